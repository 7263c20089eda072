//! Who owns a user's mail, as Dovecot says.

use std::ffi::CString;
use std::sync::Arc;
use std::time::Duration;

use imap_xid::daemon::Config;
use imap_xid::daemon::doveadm::{Pool, Target};
use imap_xid::daemon::socket::{Owners, UidAnswer};
use parking_lot::Mutex;
use tokio::sync::watch;

/// Connections for these questions; each is a process of Dovecot's.
const CONNECTIONS: usize = 4;
/// Time limit of one question.
const LIMIT: Duration = Duration::from_secs(5);
/// Room for an entry of the system's user database, in bytes; more than any real one needs.
const ENTRY_BYTES: usize = 64 * 1024;

/// Asks `doveadm user`.
pub struct Doveadm {
    config: watch::Receiver<Arc<Config>>,
    pool: Mutex<Arc<Pool>>,
}

impl Doveadm {
    /// Through this node's service, where the configuration in force says that it is.
    pub fn new(config: watch::Receiver<Arc<Config>>) -> Doveadm {
        let pool = Mutex::new(pool(target(&config)));
        Doveadm { config, pool }
    }

    fn pool(&self) -> Arc<Pool> {
        let (now, mut kept) = (target(&self.config), self.pool.lock());
        if *kept.target() != now {
            *kept = pool(now);
        }
        kept.clone()
    }
}

fn target(config: &watch::Receiver<Arc<Config>>) -> Target {
    Target::Unix(config.borrow().doveadm.socket.clone())
}

fn pool(target: Target) -> Arc<Pool> {
    Arc::new(Pool::new(target, None, CONNECTIONS))
}

impl Owners for Doveadm {
    async fn uid_of(&self, user: &str) -> UidAnswer {
        // doveadm would take it for a mask.
        if user.contains(['*', '?']) {
            return Ok(None);
        }
        let answer = match self.pool().run("", &["user", user], LIMIT).await {
            Ok(answer) => answer,
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(error.to_string()),
        };
        let uid = uid_field(&answer, user)?;
        if let Ok(uid) = uid.parse() {
            return Ok(Some(uid));
        }
        let lookup = tokio::task::spawn_blocking(move || system_uid(&uid));
        lookup.await.map_err(|error| error.to_string())?.map(Some)
    }
}

/// The field in `{"USER":{"uid":"1000",...}}`.
fn uid_field(answer: &str, user: &str) -> Result<String, String> {
    let all: serde_json::Value = serde_json::from_str(answer.trim())
        .map_err(|error| format!("doveadm user answered what is no JSON: {error}"))?;
    match &all[user]["uid"] {
        serde_json::Value::String(uid) if !uid.is_empty() => Ok(uid.clone()),
        serde_json::Value::Number(uid) => Ok(uid.to_string()),
        _ => Err("doveadm user names no uid".into()),
    }
}

/// The uid of an account of the system: `mail_uid` may be a name.
fn system_uid(name: &str) -> Result<u32, String> {
    let fail = || format!("{name}: no such account of the system");
    let name = CString::new(name).map_err(|_| fail())?;
    let mut room = vec![0_u8; ENTRY_BYTES];
    // SAFETY: all zeroes is a passwd of null pointers.
    let mut entry: libc::passwd = unsafe { std::mem::zeroed() };
    let mut found = std::ptr::null_mut();
    // SAFETY: the name ends with NUL; the entry and its room are ours and as long as is said.
    unsafe {
        let start = room.as_mut_ptr().cast();
        libc::getpwnam_r(
            name.as_ptr(),
            &raw mut entry,
            start,
            room.len(),
            &raw mut found,
        );
    }
    match found.is_null() {
        true => Err(fail()),
        false => Ok(entry.pw_uid),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_uid_is_the_one_of_this_user() {
        let answer = r#"{"jo\"e":{"uid":"1000","gid":"1000","home":"/x"}}"#;
        assert_eq!(uid_field(answer, "jo\"e"), Ok("1000".into()));
        for wrong in [
            "",
            "{}",
            "[]",
            r#"{"jane":{"uid":"1"}}"#,
            r#"{"joe":{"uid":""}}"#,
        ] {
            assert!(uid_field(wrong, "joe").is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_account_of_the_system_has_its_uid() {
        assert_eq!(system_uid("root"), Ok(0));
        assert!(system_uid("no such account").is_err());
        assert!(system_uid("a\0b").is_err());
    }
}
