//! What is to be cleared away however this program ends: also when it is killed.
//!
//! A shell of its own process group reads from a pipe what there is. When the program ends, the
//! pipe ends, and the shell clears away what the program has not: it kills who lives in its
//! network namespaces, and removes these, and folders.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{LazyLock, Mutex, PoisonError};

/// Dovecots stop by themselves when the program is gone: they get some time for it.
const SCRIPT: &str = r#"
line='
'
while read -r kind what; do
  case $kind in
    space) spaces="$spaces $what" ;;
    folder) folders="$folders$what$line" ;;
  esac
done
tries=150
for space in $spaces; do
  [ -e "/run/netns/$space" ] || continue
  while pids=$(ip netns pids "$space") && [ -n "$pids" ] && [ $tries -gt 0 ]; do
    [ $tries -gt 50 ] || kill -KILL $pids
    tries=$((tries - 1))
    sleep 0.1
  done
  ip netns del "$space"
done
IFS=$line
for folder in $folders; do
  rm -rf -- "$folder"
done
"#;

static JANITOR: LazyLock<Mutex<Child>> = LazyLock::new(|| Mutex::new(start()));

fn start() -> Child {
    let mut command = Command::new("sh");
    command
        .args(["-c", SCRIPT])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // Ctrl-C is not for it.
        .process_group(0);
    command.spawn().expect("sh")
}

fn tell(kind: &str, what: &str) {
    let mut janitor = JANITOR.lock().unwrap_or_else(PoisonError::into_inner);
    let input = janitor.stdin.as_mut().expect("piped");
    writeln!(input, "{kind} {what}").expect("the janitor hears");
}

/// A network namespace, by its name.
pub fn space(name: &str) {
    tell("space", name);
}

/// A folder with all that is in it.
pub fn folder(path: &Path) {
    tell("folder", &path.display().to_string());
}
