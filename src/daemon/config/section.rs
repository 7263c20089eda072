//! Reading a section of a TOML file so that every mistake can be said in one line.

use std::borrow::Cow;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::Error;

/// How much of a wrong value a message shows, in characters.
const SHOWN: usize = 60;

/// A section: what is read of it is ticked off, so that what is left over can be refused.
pub(super) struct Section<'a> {
    file: &'a Path,
    text: &'a str,
    /// "", "etcd." or "peer[1].".
    prefix: String,
    /// `None`: the section is not there.
    table: Option<&'a DeTable<'a>>,
    known: Vec<&'static str>,
}

/// A range of durations, and how to say it.
pub(super) struct Durations {
    range: RangeInclusive<Duration>,
    whole_seconds: bool,
}

/// Whole seconds in a range.
pub(super) fn whole_seconds(range: RangeInclusive<u64>) -> Durations {
    let [low, high] = [range.start(), range.end()].map(|s| Duration::from_secs(*s));
    Durations {
        range: low..=high,
        whole_seconds: true,
    }
}

/// Any duration in a range.
pub(super) fn between(range: RangeInclusive<Duration>) -> Durations {
    Durations {
        range,
        whole_seconds: false,
    }
}

impl Durations {
    fn has(&self, duration: Duration) -> bool {
        self.range.contains(&duration) && !(self.whole_seconds && duration.subsec_nanos() != 0)
    }

    fn expected(&self) -> String {
        let (low, high) = (self.range.start(), self.range.end());
        let kind = match self.whole_seconds {
            true => "whole seconds, as \"5s\"",
            false => "a duration, as \"500ms\", \"5s\" or \"1m\"",
        };
        format!("{kind}, from {low:?} to {high:?}")
    }
}

/// Parses a whole file.
pub(super) fn parse<'a>(file: &Path, text: &'a str) -> Result<Spanned<DeTable<'a>>, Error> {
    DeTable::parse(text).map_err(|error| Error::Syntax {
        file: file.to_owned(),
        line: line_of(text, error.span().map_or(0, |span| span.start)),
        problem: error.message().replace('\n', ", "),
    })
}

impl<'a> Section<'a> {
    /// What stands before the first section.
    pub fn top(file: &'a Path, text: &'a str, table: &'a DeTable<'a>) -> Section<'a> {
        Section {
            file,
            text,
            prefix: String::new(),
            table: Some(table),
            known: Vec::new(),
        }
    }

    /// A section of this one; an empty one where it is not there.
    pub fn table(&mut self, key: &'static str) -> Result<Section<'a>, Error> {
        let expected = format!("a section [{key}]");
        let table = match self.find(key) {
            None => None,
            Some(value) => Some(
                value
                    .get_ref()
                    .as_table()
                    .ok_or_else(|| self.refuse(key, value, &expected))?,
            ),
        };
        Ok(self.below(format!("{key}."), table))
    }

    /// Sections that can be there several times.
    pub fn tables(&mut self, key: &'static str) -> Result<Vec<Section<'a>>, Error> {
        let expected = format!("sections [[{key}]]");
        let Some(value) = self.find(key) else {
            return Ok(Vec::new());
        };
        let refuse = || self.refuse(key, value, &expected);
        let array = value.get_ref().as_array().ok_or_else(refuse)?;
        let mut sections = Vec::new();
        for (index, item) in array.iter().enumerate() {
            let table = item.get_ref().as_table().ok_or_else(refuse)?;
            sections.push(self.below(format!("{key}[{}].", index + 1), Some(table)));
        }
        Ok(sections)
    }

    fn below(&self, prefix: String, table: Option<&'a DeTable<'a>>) -> Section<'a> {
        Section {
            prefix,
            table,
            known: Vec::new(),
            ..*self
        }
    }

    /// A text that `parse` understands.
    pub fn optional<T>(
        &mut self,
        key: &'static str,
        expected: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<Option<T>, Error> {
        let Some(value) = self.find(key) else {
            return Ok(None);
        };
        let parsed = value.get_ref().as_str().and_then(parse);
        parsed
            .map(Some)
            .ok_or_else(|| self.refuse(key, value, expected))
    }

    /// The same, where it must be there.
    pub fn required<T>(
        &mut self,
        key: &'static str,
        expected: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<T, Error> {
        self.optional(key, expected, parse)?
            .ok_or_else(|| self.missing(key, expected))
    }

    /// A list of at least one text.
    pub fn list<T>(
        &mut self,
        key: &'static str,
        expected: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<Vec<T>, Error> {
        let Some(value) = self.find(key) else {
            return Err(self.missing(key, expected));
        };
        let items = value.get_ref().as_array().map(|array| {
            array
                .iter()
                .map(|item| item.get_ref().as_str().and_then(&parse))
                .collect::<Option<Vec<T>>>()
        });
        match items.flatten() {
            Some(items) if !items.is_empty() => Ok(items),
            _ => Err(self.refuse(key, value, expected)),
        }
    }

    /// An absolute path.
    pub fn path(&mut self, key: &'static str) -> Result<Option<PathBuf>, Error> {
        self.optional(key, "an absolute path", |text| {
            (text.starts_with('/') && !text.contains('\0')).then(|| PathBuf::from(text))
        })
    }

    /// A duration with its unit.
    pub fn duration(
        &mut self,
        key: &'static str,
        durations: Durations,
    ) -> Result<Option<Duration>, Error> {
        self.optional(key, &durations.expected(), |text| {
            duration(text).filter(|duration| durations.has(*duration))
        })
    }

    /// A whole number.
    pub fn number(
        &mut self,
        key: &'static str,
        range: RangeInclusive<u32>,
    ) -> Result<Option<u32>, Error> {
        let Some(value) = self.find(key) else {
            return Ok(None);
        };
        let number = value.get_ref().as_integer();
        let number = number.and_then(|n| u32::from_str_radix(n.as_str(), n.radix()).ok());
        let expected = format!("a number, from {} to {}", range.start(), range.end());
        match number {
            Some(number) if range.contains(&number) => Ok(Some(number)),
            _ => Err(self.refuse(key, value, &expected)),
        }
    }

    /// The error of a key that is not there.
    pub fn missing(&self, key: &str, expected: &str) -> Error {
        Error::Missing {
            file: self.file.to_owned(),
            key: format!("{}{key}", self.prefix),
            expected: expected.to_owned(),
        }
    }

    /// The error of a value that is wrong beside another one.
    pub fn wrong(&mut self, key: &'static str, expected: &str) -> Error {
        match self.find(key) {
            Some(value) => self.refuse(key, value, expected),
            None => self.missing(key, expected),
        }
    }

    /// Refuses what nobody asked for.
    pub fn finish(&self) -> Result<(), Error> {
        let Some(table) = self.table else {
            return Ok(());
        };
        let unknown = table
            .iter()
            .find(|(key, _)| !self.known.contains(&key.get_ref().as_ref()));
        let Some((key, _)) = unknown else {
            return Ok(());
        };
        let mut known = self.known.clone();
        known.sort_unstable();
        known.dedup();
        Err(Error::Unknown {
            file: self.file.to_owned(),
            line: line_of(self.text, key.span().start),
            key: format!("{}{}", self.prefix, short(key.get_ref())),
            known: format!("expected one of {}", known.join(", ")),
        })
    }

    fn find(&mut self, key: &'static str) -> Option<&'a Spanned<DeValue<'a>>> {
        self.known.push(key);
        let found = self.table?.iter().find(|(name, _)| name.get_ref() == key);
        found.map(|(_, value)| value)
    }

    fn refuse(&self, key: &str, value: &Spanned<DeValue<'_>>, expected: &str) -> Error {
        let span = value.span();
        let written = self.text.get(span.clone()).unwrap_or_default();
        let first = written.lines().next().unwrap_or_default();
        Error::Value {
            file: self.file.to_owned(),
            line: line_of(self.text, span.start),
            key: format!("{}{key}", self.prefix),
            value: short(first).into_owned(),
            expected: expected.to_owned(),
        }
    }
}

/// "500ms", "5s", "1m" or "1h".
fn duration(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok()?;
    match unit {
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        "m" => number.checked_mul(60).map(Duration::from_secs),
        "h" => number.checked_mul(3600).map(Duration::from_secs),
        _ => None,
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    let before = text.as_bytes().iter().take(offset);
    before.filter(|byte| **byte == b'\n').count() + 1
}

/// A value as far as a message has room for it.
fn short(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(SHOWN) {
        None => Cow::Borrowed(text),
        Some((end, _)) => Cow::Owned(format!("{}...", &text[..end])),
    }
}
