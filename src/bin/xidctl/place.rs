//! Whose mail a command is about: `-u USER`, found as doveadm finds it, or `--dir DIR`.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::host::Host;

/// The files by which a folder is known to be the plug-in's.
const MARKS: [&str; 3] = ["xid.table", "xid.registry", "xid.incarnation"];

/// The options by which every command is told where to look.
#[derive(clap::Args, Clone)]
pub struct PlaceArgs {
    /// The user, as Dovecot knows them; Dovecot has to be running.
    #[arg(short = 'u', long, value_name = "USER", conflicts_with = "dir")]
    pub user: Option<String>,

    /// Only this mailbox; all of them otherwise.
    #[arg(short = 'm', long, value_name = "MAILBOX")]
    pub mailbox: Option<String>,

    /// The folder that holds xid.registry, without asking Dovecot.
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
}

/// Where a command looks.
#[derive(Debug, Clone)]
pub struct Place {
    /// The folder with xid.table, xid.registry and so on.
    pub dir: PathBuf,
    /// The user, when Dovecot was asked.
    pub user: Option<String>,
}

impl PlaceArgs {
    /// Finds the folder, and acts as its owner from here on when run as root.
    ///
    /// # Errors
    /// When neither option was given, Dovecot does not know the user, or there is nothing.
    pub fn find(&self, host: &Host) -> Result<Place, Error> {
        let place = match (&self.dir, &self.user) {
            (Some(dir), _) => Place {
                dir: checked(dir)?,
                user: None,
            },
            (None, Some(user)) => {
                let mailbox = self.mailbox.as_deref().unwrap_or("INBOX");
                Place {
                    dir: root_of(host, user, mailbox)?,
                    user: Some(user.clone()),
                }
            }
            (None, None) => return Err(Error::NoPlace),
        };
        Ok(place)
    }
}

impl Place {
    /// Becomes the owner of the folder, for the rest of the process's life: a file that root
    /// created here could not be opened by the user's own mail processes.
    ///
    /// # Errors
    /// When another user's folder is named by someone who is not root.
    pub fn act_as_owner(&self) -> Result<(), Error> {
        let fail = |uid, source| Error::Owner {
            dir: self.dir.clone(),
            uid,
            source,
        };
        let meta = self.dir.metadata().map_err(|source| fail(0, source))?;
        let (uid, gid) = (meta.uid(), meta.gid());
        // SAFETY: these calls have no preconditions.
        let me = unsafe { libc::geteuid() };
        if me == uid {
            return Ok(());
        }
        become_user(uid, gid).map_err(|source| fail(uid, source))
    }
}

/// Changes the process's groups and users, in the order in which the right to do so lasts.
fn become_user(uid: u32, gid: u32) -> io::Result<()> {
    let ok = |result: libc::c_int| {
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    };
    // SAFETY: one group, read from a variable that lives through the call.
    ok(unsafe { libc::setgroups(1, &gid) })?;
    // SAFETY: plain numbers.
    ok(unsafe { libc::setresgid(gid, gid, gid) })?;
    // SAFETY: plain numbers.
    ok(unsafe { libc::setresuid(uid, uid, uid) })
}

/// The folder named by --dir, if it is one of the plug-in's.
fn checked(dir: &Path) -> Result<PathBuf, Error> {
    let fail = |why: String| Error::NotARoot {
        dir: dir.to_owned(),
        why,
    };
    let dir = dir
        .canonicalize()
        .map_err(|error| fail(error.to_string()))?;
    if !is_root(&dir) {
        return Err(fail(format!("none of {} is there", MARKS.join(", "))));
    }
    Ok(dir)
}

/// The folder of a user's mail: `xid_dir` where it is set, else the nearest folder at or above
/// the mailbox's index files that has the plug-in's files.
fn root_of(host: &Host, user: &str, mailbox: &str) -> Result<PathBuf, Error> {
    let setting = match host.user_field(user, "xid_dir")? {
        Some(value) => Some(value),
        None => host.plugin_setting("xid_dir")?,
    };
    if let Some(value) = setting {
        let home = host.user_field(user, "home")?.unwrap_or_default();
        return checked(Path::new(&expand(&value, user, &home)?));
    }
    let index = host.index_path(user, mailbox)?;
    match index.ancestors().find(|dir| is_root(dir)) {
        Some(dir) => Ok(dir.to_owned()),
        None => Err(Error::NoRoot {
            user: user.to_owned(),
            looked: index,
        }),
    }
}

fn is_root(dir: &Path) -> bool {
    MARKS.iter().any(|name| dir.join(name).exists())
}

/// Expands the variables of Dovecot that a path is made of: the user, its two parts, the home.
fn expand(value: &str, user: &str, home: &str) -> Result<String, Error> {
    let (name, domain) = user.split_once('@').unwrap_or((user, ""));
    let known = |variable: &str| match variable {
        "u" | "{user}" => Some(user),
        "n" | "{username}" => Some(name),
        "d" | "{domain}" => Some(domain),
        "h" | "{home}" => Some(home),
        "%" => Some("%"),
        _ => None,
    };
    let (mut expanded, mut rest) = match value.strip_prefix("~/") {
        Some(rest) => (format!("{home}/"), rest),
        None => (String::new(), value),
    };
    while let Some((before, after)) = rest.split_once('%') {
        let length = match after.strip_prefix('{').and_then(|_| after.find('}')) {
            Some(end) => end + 1,
            None => after.chars().next().map_or(0, char::len_utf8),
        };
        let (variable, behind) = after.split_at(length);
        let Some(text) = known(variable) else {
            let variable = format!("%{variable}");
            return Err(Error::Variable {
                value: value.to_owned(),
                variable,
            });
        };
        expanded.push_str(before);
        expanded.push_str(text);
        rest = behind;
    }
    expanded.push_str(rest);
    Ok(expanded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn xid_dir_is_expanded_as_dovecot_does() {
        let expanded = |value| expand(value, "joe@example.org", "/home/joe").ok();
        for (value, wanted) in [
            ("/var/xid/%u", "/var/xid/joe@example.org"),
            ("/var/xid/%d/%n", "/var/xid/example.org/joe"),
            ("%h/xid", "/home/joe/xid"),
            ("~/xid", "/home/joe/xid"),
            ("/x/%{domain}/%{username}/%%", "/x/example.org/joe/%"),
        ] {
            assert_eq!(expanded(value).as_deref(), Some(wanted), "{value}");
        }
        for bad in ["/x/%8Mu", "/x/%", "/x/%{env:HOME}"] {
            assert_eq!(expanded(bad), None, "{bad}");
        }
    }
}
