//! Sets of XIDs (spec part 3).

use super::{Error, NAMESPACE_MAX, Quoted, Xid};

/// An xid-set: XIDs in the order in which they were written, repetitions included.
///
/// It keeps the text and where its items are: 16 octets for each item beyond the text itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct XidSet {
    text: Box<str>,
    items: Vec<Item>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Item {
    number: u64,
    /// Offset in the text.
    start: u32,
    /// Octets of the namespace.
    len: u8,
}

const _: () = assert!(NAMESPACE_MAX <= u8::MAX as usize);

impl XidSet {
    /// Parses `xid *("," xid)`. There are no ranges and no star; see the errors.
    pub fn parse(text: &[u8]) -> Result<Self, Error> {
        // The grammar is ASCII, so the item that has other octets is the one to complain about.
        let checked =
            str::from_utf8(text).map_err(|e| Error::Xid(Quoted::new(&text[e.valid_up_to()..])))?;
        let mut items = Vec::with_capacity(text.iter().filter(|&&b| b == b',').count() + 1);
        let mut start = 0;
        for item in text.split(|&b| b == b',') {
            items.push(Item::parse(item, start)?);
            start += item.len() + 1;
        }
        Ok(XidSet {
            text: checked.into(),
            items,
        })
    }

    /// How many XIDs were written.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Never true of a parsed set; here because a `len` without it reads oddly.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// The XID at a position, from 0.
    pub fn get(&self, position: usize) -> Option<Xid<'_>> {
        let item = self.items.get(position)?;
        let start = item.start as usize;
        let namespace = self.text.get(start..start + usize::from(item.len))?;
        Some(Xid {
            namespace,
            number: item.number,
        })
    }

    /// The XIDs in the order in which they were written.
    pub fn iter(&self) -> impl Iterator<Item = Xid<'_>> {
        (0..self.len()).filter_map(|position| self.get(position))
    }
}

impl Item {
    fn parse(text: &[u8], start: usize) -> Result<Self, Error> {
        if text.is_empty() {
            return Err(Error::EmptySet);
        }
        if text.iter().any(|&b| b == b':' || b == b'*') {
            return Err(Error::Range(Quoted::new(text)));
        }
        let xid = Xid::parse(text)?;
        Ok(Item {
            number: xid.number(),
            start: u32::try_from(start).map_err(|_| Error::Xid(Quoted::new(text)))?,
            len: u8::try_from(xid.namespace().len())
                .map_err(|_| Error::Namespace(Quoted::new(text)))?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_keeps_order_and_repetitions() {
        let set = XidSet::parse(b"foo-2,bar-1,foo-2").unwrap();
        let written: Vec<String> = set.iter().map(|x| x.to_string()).collect();
        assert_eq!(written, ["foo-2", "bar-1", "foo-2"]);
        assert!(set.get(3).is_none() && !set.is_empty());
    }

    #[test]
    fn a_range_a_star_or_a_hole_is_refused() {
        for bad in ["foo-1:foo-3", "*", "foo-*", "foo-1,*", "1:5"] {
            assert!(
                matches!(XidSet::parse(bad.as_bytes()), Err(Error::Range(_))),
                "{bad}"
            );
        }
        for bad in ["", ",", "foo-1,", ",foo-1", "foo-1,,foo-2"] {
            assert_eq!(XidSet::parse(bad.as_bytes()), Err(Error::EmptySet), "{bad}");
        }
        for bad in [
            &b"12"[..],
            b"foo-1, foo-2",
            b"foo-1,\xff-2",
            b"foo-1,b\xc3\xa9-2",
        ] {
            assert!(XidSet::parse(bad).is_err(), "{bad:?}");
        }
    }
}
