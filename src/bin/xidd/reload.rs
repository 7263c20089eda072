//! Reading the configuration anew while the daemon runs.

use std::path::Path;
use std::sync::Arc;

use imap_xid::daemon::Config;
use tokio::sync::watch;

/// Takes over what changed. A file that is wrong changes nothing; what cannot change in a running
/// daemon stays. Either is said in the log.
pub fn reload(file: &Path, running: &watch::Sender<Arc<Config>>) {
    let read = match Config::load(file) {
        Ok(read) => read,
        Err(error) => {
            tracing::error!("{error}; going on with the configuration as it was");
            return;
        }
    };
    let old = Arc::clone(&running.borrow());
    let fixed = old.fixed_keys_that_differ(&read);
    if !fixed.is_empty() {
        let keys = fixed.join(", ");
        tracing::warn!(
            "{}: {keys}: takes a restart; as it was until then",
            file.display()
        );
    }
    let new = read.keeping_fixed_keys_of(&old);
    let late = old.late_keys_that_differ(&new);
    if !late.is_empty() {
        let keys = late.join(", ");
        tracing::info!(
            "{}: {keys}: from the next connection to etcd on",
            file.display()
        );
    }
    match new == *old {
        // Files that it names, the password for example, may have changed all the same.
        true => tracing::info!("{}: read anew, nothing changed", file.display()),
        false => tracing::info!("{}: read anew", file.display()),
    }
    running.send_replace(Arc::new(new));
}
