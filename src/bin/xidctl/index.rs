//! The XIDs in a mailbox's own index, which is the authority, read through `doveadm dump`.
//!
//! That reads the index files as they are: no plug-in has a say, nothing is changed, and nothing
//! waits for UIDs to become stable.

use std::collections::BTreeMap;
use std::mem::offset_of;

use crate::error::Error;
use crate::host::{Host, Mailbox};

/// The layout, as the shim's own header has it (c-shim/dovecot/xid-record.h).
#[allow(dead_code, non_camel_case_types, missing_docs)]
mod shim {
    include!(concat!(env!("OUT_DIR"), "/xid_record.rs"));
}

use shim::{XID_HEADER_VERSION, xid_header, xid_header_entry, xid_record};

/// Octets of the header before its entries, of an entry, and of a message's record.
const HEADER_SIZE: usize = size_of::<xid_header>();
const ENTRY_SIZE: usize = size_of::<xid_header_entry>();
const RECORD_SIZE: usize = size_of::<xid_record>();

/// A message in an index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// Its UID.
    pub uid: u32,
    /// Its XID: a position in [`Index::namespaces`], and the number. None where it has none.
    pub xid: Option<(usize, u64)>,
}

/// What an index says.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Index {
    /// Each namespace, with the highest number that was ever given in this mailbox.
    pub namespaces: Vec<(String, u64)>,
    /// Every message, by UID.
    pub records: Vec<Record>,
}

impl Index {
    /// Reads the index of a user's mailbox.
    ///
    /// # Errors
    /// When doveadm cannot read it, or the extension is of another release.
    pub fn read(host: &Host, user: &str, mailbox: &Mailbox) -> Result<Index, Error> {
        let path = host.index_path(user, &mailbox.name)?;
        let mut parser = Parser::default();
        let args = [
            "dump".as_ref(),
            "-t".as_ref(),
            "index".as_ref(),
            path.as_os_str(),
        ];
        host.each_line("doveadm", args, |line| parser.line(line))?;
        parser.index.map_err(|why| Error::Index {
            mailbox: mailbox.name.clone(),
            why,
        })
    }

    /// A message's XID as text.
    pub fn xid_text(&self, xid: (usize, u64)) -> String {
        let name = self.namespaces.get(xid.0).map_or("?", |(name, _)| name);
        format!("{name}-{}", xid.1)
    }

    /// The XIDs that several messages have, with their UIDs.
    pub fn doubles(&self) -> Vec<((usize, u64), Vec<u32>)> {
        let mut uids: BTreeMap<(usize, u64), Vec<u32>> = BTreeMap::new();
        for record in &self.records {
            if let Some(xid) = record.xid {
                uids.entry(xid).or_default().push(record.uid);
            }
        }
        uids.into_iter()
            .filter(|(_, uids)| uids.len() > 1)
            .collect()
    }
}

/// What is taken from the lines of the dump.
struct Parser {
    /// Whether the lines are of our extension's description.
    ours: bool,
    index: Result<Index, String>,
}

impl Default for Parser {
    fn default() -> Parser {
        Parser {
            ours: false,
            index: Ok(Index::default()),
        }
    }
}

impl Parser {
    fn line(&mut self, line: &str) {
        let Ok(index) = &mut self.index else { return };
        let done = if let Some(name) = line.strip_prefix("name ........ = ") {
            self.ours = name.as_bytes() == extension_name();
            Ok(())
        } else if let Some(header) = line
            .strip_prefix("header ........ = ")
            .filter(|_| self.ours)
        {
            header_entries(header).map(|entries| index.namespaces = entries)
        } else if let Some(record) = line.strip_prefix("RECORD: ") {
            uid_of(record).map(|uid| index.records.push(Record { uid, xid: None }))
        } else if let Some(extension) = line.strip_prefix(" - ext ") {
            xid_of(extension).map(|xid| set_last(index, xid))
        } else {
            Ok(())
        };
        if let Err(why) = done {
            self.index = Err(why);
        }
    }
}

fn set_last(index: &mut Index, xid: Option<(usize, u64)>) {
    if let (Some(xid), Some(last)) = (xid, index.records.last_mut()) {
        last.xid = Some(xid);
    }
}

/// `seq=1, uid=1, flags=...`
fn uid_of(record: &str) -> Result<u32, String> {
    let uid = record
        .split_once("uid=")
        .and_then(|(_, rest)| rest.split(',').next());
    uid.and_then(|uid| uid.parse().ok())
        .ok_or_else(|| format!("no UID in {record:?}"))
}

/// `4 xid       :            (0100...)`: None for other extensions, and for a record of zeros.
fn xid_of(extension: &str) -> Result<Option<(usize, u64)>, String> {
    let mut words = extension.split_whitespace();
    let name = words.nth(1).map(|name| name.trim_end_matches(':'));
    if name.map(str::as_bytes) != Some(extension_name()) {
        return Ok(None);
    }
    let hex = extension
        .rsplit_once('(')
        .map(|(_, hex)| hex.trim_end_matches(')'));
    let bytes = hex
        .and_then(unhex)
        .filter(|bytes| bytes.len() == RECORD_SIZE);
    let bytes = bytes.ok_or_else(|| format!("a record of another size: {extension:?}"))?;
    let number = u64::from_ne_bytes(bytes_at(&bytes, offset_of!(xid_record, number)));
    let namespace = u32::from_ne_bytes(bytes_at(&bytes, offset_of!(xid_record, ns)));
    Ok((number != 0).then_some((namespace as usize, number)))
}

fn header_entries(hex: &str) -> Result<Vec<(String, u64)>, String> {
    let bytes = unhex(hex).filter(|bytes| bytes.len() >= HEADER_SIZE);
    let bytes = bytes.ok_or_else(|| "the extension's header is too short".to_owned())?;
    let version = u32::from_ne_bytes(bytes_at(&bytes, offset_of!(xid_header, version)));
    if version != XID_HEADER_VERSION {
        return Err(format!(
            "its extension has version {version}, known is {XID_HEADER_VERSION}"
        ));
    }
    let count = u32::from_ne_bytes(bytes_at(&bytes, offset_of!(xid_header, count))) as usize;
    let entries = bytes[HEADER_SIZE..]
        .chunks_exact(ENTRY_SIZE)
        .take(count)
        .map(|entry| {
            let name = entry[offset_of!(xid_header_entry, name)..]
                .split(|&byte| byte == 0)
                .next()
                .unwrap_or_default();
            (
                String::from_utf8_lossy(name).into_owned(),
                u64::from_ne_bytes(bytes_at(entry, offset_of!(xid_header_entry, high))),
            )
        });
    let entries: Vec<_> = entries.collect();
    if entries.len() != count {
        return Err(format!(
            "its extension has {} of {count} namespaces",
            entries.len()
        ));
    }
    Ok(entries)
}

/// The name of the index extension, without C's NUL.
fn extension_name() -> &'static [u8] {
    shim::XID_EXT_NAME.to_bytes()
}

/// Octets at a place that is known to be there; zeros otherwise.
fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes
        .get(at..at + N)
        .and_then(|part| part.try_into().ok())
        .unwrap_or([0; N])
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let text = text.trim();
    if !text.len().is_multiple_of(2) || !text.is_ascii() {
        return None;
    }
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn header(names: &[(&str, u64)]) -> String {
        let mut bytes = Vec::new();
        for word in [XID_HEADER_VERSION, names.len() as u32, 0, 0] {
            bytes.extend(word.to_ne_bytes());
        }
        for (name, high) in names {
            bytes.extend(high.to_ne_bytes());
            let mut text = name.as_bytes().to_vec();
            text.resize(64, 0);
            bytes.extend(text);
        }
        hex(&bytes)
    }

    fn record(number: u64, namespace: u32) -> String {
        let parts = [
            number.to_ne_bytes().to_vec(),
            namespace.to_ne_bytes().to_vec(),
            vec![0; 4],
        ];
        hex(&parts.concat())
    }

    fn parse(lines: &[String]) -> Result<Index, String> {
        let mut parser = Parser::default();
        lines.iter().for_each(|line| parser.line(line));
        parser.index
    }

    #[test]
    fn a_dump_gives_namespaces_and_the_xid_of_each_message() {
        let lines = [
            "name ........ = cache".into(),
            "header ........ = ff".into(),
            "name ........ = xid".into(),
            format!("header ........ = {}", header(&[("foo", 9), ("b.ar", 3)])),
            "RECORD: seq=1, uid=7, flags=0x00 ".into(),
            " - ext 4 cache     :        452 (c4010000)".into(),
            format!(" - ext 5 xid       :            ({})", record(9, 0)),
            "RECORD: seq=2, uid=12, flags=0x08 (Seen)".into(),
            format!(" - ext 5 xid       :            ({})", record(3, 1)),
            "RECORD: seq=3, uid=13, flags=0x00 ".into(),
            format!(" - ext 5 xid       :            ({})", record(0, 0)),
        ];
        let index = parse(&lines).expect("a good dump");
        assert_eq!(
            index.namespaces,
            [("foo".to_owned(), 9), ("b.ar".to_owned(), 3)]
        );
        let xids: Vec<_> = index.records.iter().map(|r| (r.uid, r.xid)).collect();
        assert_eq!(xids, [(7, Some((0, 9))), (12, Some((1, 3))), (13, None)]);
        assert_eq!(index.xid_text((1, 3)), "b.ar-3");
        assert_eq!(index.doubles(), []);
    }

    #[test]
    fn two_messages_with_one_xid_are_found() {
        let record = |uid| Record {
            uid,
            xid: Some((0, 5)),
        };
        let index = Index {
            namespaces: vec![("a".into(), 5)],
            records: vec![record(1), record(4)],
        };
        assert_eq!(index.doubles(), [((0, 5), vec![1, 4])]);
    }

    #[test]
    fn an_extension_of_another_release_is_an_error() {
        let mut other = header(&[]);
        other.replace_range(0..8, &hex(&2u32.to_ne_bytes()));
        for bad in [other, "00".into(), header(&[("a", 1)])[..40].to_owned()] {
            let lines = [
                "name ........ = xid".into(),
                format!("header ........ = {bad}"),
            ];
            assert!(parse(&lines).is_err(), "{bad}");
        }
    }
}
