//! What only Dovecot can say, asked as an administrator would: with doveadm and doveconf.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use imap_xid::xid::namespace_from_host;

use crate::error::Error;

/// A Dovecot installation, named by its configuration file.
pub struct Host {
    config: Option<PathBuf>,
}

/// A mailbox as Dovecot describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mailbox {
    /// Its name, in UTF-8.
    pub name: String,
    /// Its GUID.
    pub guid: [u8; 16],
    /// Its UIDVALIDITY.
    pub uidvalidity: u32,
    /// The UID that the next message gets.
    pub uidnext: u32,
}

impl Host {
    /// The installation with this configuration file, or the usual one.
    pub fn new(config: Option<PathBuf>) -> Host {
        Host { config }
    }

    /// A setting of `plugin { }`; none when it is not set or empty.
    ///
    /// # Errors
    /// When doveconf cannot be run.
    pub fn plugin_setting(&self, name: &str) -> Result<Option<String>, Error> {
        let setting = format!("plugin/{name}");
        let value = self.ask("doveconf", ["-h".as_ref(), setting.as_ref()])?;
        let value = value.trim();
        Ok((!value.is_empty()).then(|| value.to_owned()))
    }

    /// A field that the user database has for the user, `home` for example.
    ///
    /// # Errors
    /// When doveadm cannot be run or does not know the user.
    pub fn user_field(&self, user: &str, field: &str) -> Result<Option<String>, Error> {
        let all = self.ask("doveadm", ["-f", "tab", "user", user].map(OsStr::new))?;
        let value = all
            .lines()
            .find_map(|line| line.split_once('\t').filter(|(key, _)| *key == field));
        Ok(value
            .map(|(_, value)| untab(value))
            .filter(|value| !value.is_empty()))
    }

    /// The folder of a mailbox's index files.
    ///
    /// # Errors
    /// When doveadm cannot be run or does not know the user.
    pub fn index_path(&self, user: &str, mailbox: &str) -> Result<PathBuf, Error> {
        let args = ["mailbox", "path", "-u", user, "-t", "index", mailbox];
        let path = self.ask("doveadm", args.map(OsStr::new))?;
        Ok(PathBuf::from(path.trim_end_matches('\n')))
    }

    /// The user's mailboxes whose names match the mask (`*` for all).
    ///
    /// # Errors
    /// When doveadm cannot be run, does not know the user, or answers something else.
    pub fn mailboxes(&self, user: &str, mask: &str) -> Result<Vec<Mailbox>, Error> {
        let args = [
            "-f",
            "tab",
            "mailbox",
            "status",
            "-u",
            user,
            "guid uidvalidity uidnext",
            mask,
        ];
        let text = match self.ask("doveadm", args.map(OsStr::new)) {
            Err(Error::Host { text, .. }) if text.contains("Mailbox doesn't exist") => {
                return Err(Error::NoMailbox(mask.to_owned()));
            }
            asked => asked?,
        };
        let table = Table::parse(&text);
        let columns = ["mailbox", "guid", "uidvalidity", "uidnext"].map(|name| table.column(name));
        let [Some(name), Some(guid), Some(uidvalidity), Some(uidnext)] = columns else {
            return Err(self.answer("doveadm mailbox status", "a table of mailboxes", &text));
        };
        table
            .rows
            .iter()
            .map(|row| {
                let parsed = (|| {
                    Some(Mailbox {
                        name: row.get(name)?.clone(),
                        guid: parse_guid(row.get(guid)?)?,
                        uidvalidity: row.get(uidvalidity)?.parse().ok()?,
                        uidnext: row.get(uidnext)?.parse().ok()?,
                    })
                })();
                parsed.ok_or_else(|| {
                    self.answer("doveadm mailbox status", "a mailbox", &row.join("\t"))
                })
            })
            .collect()
    }

    /// The GUID of each message of a mailbox, by UID. The plug-in sees the mailbox opened, and
    /// gives XIDs to messages that have none.
    ///
    /// # Errors
    /// When doveadm cannot be run or cannot open the mailbox.
    pub fn message_guids(
        &self,
        user: &str,
        guid: &[u8; 16],
    ) -> Result<HashMap<u32, String>, Error> {
        let guid = hex(guid);
        let args = [
            "-f",
            "tab",
            "fetch",
            "-u",
            user,
            "uid guid",
            "mailbox-guid",
            &guid,
        ];
        let mut guids = HashMap::new();
        self.each_line("doveadm", args.map(OsStr::new), |line| {
            if let Some((uid, guid)) = line.split_once('\t')
                && let Ok(uid) = uid.parse()
            {
                guids.insert(uid, untab(guid));
            }
        })?;
        Ok(guids)
    }

    /// This server's namespace, as the plug-in finds it for the user.
    ///
    /// # Errors
    /// When Dovecot cannot be asked, or the host has no name.
    pub fn namespace(&self, user: &str) -> Result<String, Error> {
        let setting = match self.user_field(user, "xid_namespace")? {
            Some(value) => Some(value),
            None => self.plugin_setting("xid_namespace")?,
        };
        setting.map_or_else(default_namespace, Ok)
    }

    fn answer(&self, command: &str, wanted: &'static str, got: &str) -> Error {
        let got = got.chars().take(200).collect();
        Error::HostAnswer {
            command: command.to_owned(),
            wanted,
            got,
        }
    }

    /// Runs one of Dovecot's programs and gives what it printed.
    fn ask<'a>(
        &self,
        program: &'static str,
        args: impl IntoIterator<Item = &'a OsStr>,
    ) -> Result<String, Error> {
        let mut text = String::new();
        self.each_line(program, args, |line| {
            text.push_str(line);
            text.push('\n');
        })?;
        Ok(text)
    }

    /// Runs one of Dovecot's programs and hands over its lines as they come.
    ///
    /// # Errors
    /// When it cannot be run, or fails.
    pub fn each_line<'a>(
        &self,
        program: &'static str,
        args: impl IntoIterator<Item = &'a OsStr>,
        mut line: impl FnMut(&str),
    ) -> Result<(), Error> {
        let mut command = Command::new(program);
        if let Some(config) = &self.config {
            command.arg("-c").arg(config);
        }
        command
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let fail = |source| Error::NoHost { program, source };
        let mut child = command.spawn().map_err(fail)?;
        // Read beside the output, or a program with much to complain about would never end.
        let complaints = child.stderr.take().map(|stderr| {
            std::thread::spawn(move || {
                let mut text = Vec::new();
                let _ = BufReader::new(stderr).read_to_end(&mut text);
                text
            })
        });
        let mut read = Ok(());
        if let Some(stdout) = child.stdout.take() {
            read = hand_over(BufReader::new(stdout), &mut line);
        }
        let status = child.wait().map_err(fail)?;
        let text = complaints
            .and_then(|thread| thread.join().ok())
            .unwrap_or_default();
        read.map_err(fail)?;
        if !status.success() {
            let text = String::from_utf8_lossy(&text);
            let text = text
                .lines()
                .next_back()
                .unwrap_or("no reason given")
                .to_owned();
            return Err(Error::Host {
                command: spelled(&command),
                text,
            });
        }
        Ok(())
    }
}

/// Lines as text; what is not UTF-8 in them is replaced.
fn hand_over(mut from: impl BufRead, line: &mut impl FnMut(&str)) -> std::io::Result<()> {
    let mut bytes = Vec::new();
    while from.read_until(b'\n', &mut bytes)? > 0 {
        line(String::from_utf8_lossy(bytes.strip_suffix(b"\n").unwrap_or(&bytes)).as_ref());
        bytes.clear();
    }
    Ok(())
}

/// The namespace of a server whose settings name none.
///
/// # Errors
/// When the host has no name.
pub fn default_namespace() -> Result<String, Error> {
    let mut name = vec![0u8; 256];
    // SAFETY: the buffer is as long as said.
    let failed = unsafe { libc::gethostname(name.as_mut_ptr().cast(), name.len()) } != 0;
    let host = name.split(|&byte| byte == 0).next().unwrap_or_default();
    if failed {
        return Err(Error::HostName("gethostname failed".into()));
    }
    namespace_from_host(host).map_err(|error| Error::HostName(error.to_string()))
}

/// Octets as hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A command line as one would type it.
fn spelled(command: &Command) -> String {
    let program = Path::new(command.get_program()).display().to_string();
    let args = command
        .get_args()
        .map(|arg| arg.to_string_lossy().into_owned());
    std::iter::once(program)
        .chain(args)
        .collect::<Vec<_>>()
        .join(" ")
}

/// The output of `doveadm -f tab`.
struct Table {
    header: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    fn parse(text: &str) -> Table {
        let mut lines = text
            .lines()
            .map(|line| line.split('\t').map(untab).collect::<Vec<_>>());
        let header = lines.next().unwrap_or_default();
        Table {
            header,
            rows: lines.collect(),
        }
    }

    fn column(&self, name: &str) -> Option<usize> {
        self.header.iter().position(|column| column == name)
    }
}

/// Undoes the escapes of Dovecot's tabbed format: \001 followed by 0, 1, t, r or n.
fn untab(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '\x01' {
            plain.push(c);
            continue;
        }
        plain.push(match chars.next() {
            Some('0') => '\0',
            Some('1') => '\x01',
            Some('t') => '\t',
            Some('r') => '\r',
            Some('n') => '\n',
            Some(other) => other,
            None => '\x01',
        });
    }
    plain
}

/// A GUID from its 32 hexadecimal digits.
pub fn parse_guid(text: &str) -> Option<[u8; 16]> {
    let mut guid = [0; 16];
    if text.len() != 2 * guid.len() || !text.is_ascii() {
        return None;
    }
    for (i, byte) in guid.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).ok()?;
    }
    Some(guid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guid_is_32_hexadecimal_digits() {
        let guid = parse_guid("d3038333e5a6046b5b59000083ecc375");
        assert_eq!(guid.map(|guid| (guid[0], guid[15])), Some((0xd3, 0x75)));
        for bad in [
            "",
            "d303",
            "d3038333e5a6046b5b59000083ecc37g",
            "é3038333e5a6046b5b59000083ecc3",
        ] {
            assert_eq!(parse_guid(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn tabbed_answers_are_read_by_the_names_of_their_columns() {
        let table = Table::parse("mailbox\tguid\na\x01tb\tff\n");
        assert_eq!(table.column("guid"), Some(1));
        assert_eq!(table.column("uidnext"), None);
        assert_eq!(table.rows, [["a\tb", "ff"]]);
    }
}
