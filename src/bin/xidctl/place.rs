//! Whose mail a command is about: `-u USER`, found as doveadm finds it, or `--dir DIR`.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use imap_xid::registry::Registry;

use crate::error::Error;
use crate::host::{Host, Mailbox, default_namespace};

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

    /// This server's namespace, where it is neither in Dovecot's settings nor the host's name.
    #[arg(long, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
}

/// Where a command looks.
#[derive(Debug, Clone)]
pub struct Place {
    /// The folder with xid.table, xid.registry and so on.
    pub dir: PathBuf,
    /// The user, when Dovecot was asked.
    pub user: Option<String>,
    /// This server's namespace.
    pub namespace: String,
}

impl PlaceArgs {
    /// Finds the folder.
    ///
    /// # Errors
    /// When neither option was given, Dovecot does not know the user, or there is nothing.
    pub fn find(&self, host: &Host) -> Result<Place, Error> {
        let (dir, user) = match (&self.dir, &self.user) {
            (Some(dir), _) => (checked(dir)?, None),
            (None, Some(user)) => {
                let mailbox = self.mailbox.as_deref().unwrap_or("INBOX");
                (root_of(host, user, mailbox)?, Some(user.clone()))
            }
            (None, None) => return Err(Error::NoPlace),
        };
        let namespace = match (&self.namespace, &user) {
            (Some(namespace), _) => namespace.clone(),
            (None, Some(user)) => host.namespace(user)?,
            (None, None) => default_namespace()?,
        };
        Ok(Place {
            dir,
            user,
            namespace,
        })
    }

    /// The mailboxes in question, as Dovecot sees them.
    ///
    /// # Errors
    /// When Dovecot cannot be asked, or has no such mailbox.
    pub fn mailboxes(&self, host: &Host, user: &str) -> Result<Vec<Mailbox>, Error> {
        let found = host.mailboxes(user, self.mailbox.as_deref().unwrap_or("*"))?;
        match &self.mailbox {
            Some(name) if found.is_empty() => Err(Error::NoMailbox(name.clone())),
            _ => Ok(found),
        }
    }
}

impl Place {
    /// Acts as the owner of the folder for as long as the answer lives: a file that root created
    /// there could not be opened by the user's own mail processes.
    ///
    /// # Errors
    /// When another user's folder is named by someone who is not root.
    pub fn as_owner(&self) -> Result<AsOwner, Error> {
        let fail = |uid, source| Error::Owner {
            dir: self.dir.clone(),
            uid,
            source,
        };
        let meta = self.dir.metadata().map_err(|source| fail(0, source))?;
        let (uid, gid) = (meta.uid(), meta.gid());
        // SAFETY: these calls have no preconditions.
        let (my_uid, my_gid) = unsafe { (libc::geteuid(), libc::getegid()) };
        let back = (my_uid != uid).then_some((my_uid, my_gid));
        if back.is_some() {
            // The group first: a user may not change it.
            effective(libc::setegid, gid).map_err(|source| fail(uid, source))?;
            effective(libc::seteuid, uid).map_err(|source| fail(uid, source))?;
        }
        Ok(AsOwner { back })
    }

    /// The registry of the folder.
    ///
    /// # Errors
    /// When the namespace is none.
    pub fn registry(&self) -> Result<Registry, Error> {
        Ok(Registry::new(&self.dir, &self.namespace)?)
    }

    /// The same, where looking for something in an empty one would only mislead.
    ///
    /// # Errors
    /// When there is no registry yet.
    pub fn existing_registry(&self) -> Result<Registry, Error> {
        if !Registry::exists(&self.dir) {
            let why = "it has no xid.registry yet".to_owned();
            return Err(Error::NotARoot {
                dir: self.dir.clone(),
                why,
            });
        }
        self.registry()
    }
}

/// Another user's effective identity, given back when dropped.
#[must_use = "dropping it gives the identity back"]
pub struct AsOwner {
    back: Option<(u32, u32)>,
}

impl Drop for AsOwner {
    fn drop(&mut self) {
        if let Some((uid, gid)) = self.back {
            // What we were before we may be again: neither can fail.
            let _ = effective(libc::seteuid, uid);
            let _ = effective(libc::setegid, gid);
        }
    }
}

/// Changes an effective identity.
fn effective(set: unsafe extern "C" fn(u32) -> libc::c_int, id: u32) -> io::Result<()> {
    // SAFETY: seteuid and setegid take a plain number and have no preconditions.
    match unsafe { set(id) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
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
