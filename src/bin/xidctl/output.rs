//! Where answers go: lines for people, JSON for programs, and a bar while work goes on.

use std::io::{self, BufWriter, IsTerminal, StdoutLock, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::error::Error;

/// A way of answering, chosen by `--json`.
pub struct Output {
    json: bool,
}

impl Output {
    /// An output that prints JSON, or lines.
    pub fn new(json: bool) -> Output {
        Output { json }
    }

    /// Whether programs read the answer.
    pub fn json(&self) -> bool {
        self.json
    }

    /// Standard output, buffered: an export can have millions of lines.
    pub fn writer(&self) -> BufWriter<StdoutLock<'static>> {
        BufWriter::with_capacity(1 << 16, io::stdout().lock())
    }

    /// Prints one answer: as JSON on one line, or as `people` writes it.
    ///
    /// # Errors
    /// When standard output cannot be written.
    pub fn print<T: Serialize>(
        &self,
        answer: &T,
        people: impl FnOnce(&mut dyn Write, &T) -> io::Result<()>,
    ) -> Result<(), Error> {
        let mut writer = self.writer();
        if self.json {
            serde_json::to_writer(&mut writer, answer)?;
            writeln!(writer)?;
        } else {
            people(&mut writer, answer)?;
        }
        Ok(writer.flush()?)
    }

    /// A progress bar of `total` steps on standard error; silent where no person looks on.
    pub fn progress(&self, what: &str, total: u64) -> ProgressBar {
        if self.json || !io::stderr().is_terminal() {
            return ProgressBar::hidden();
        }
        let bar = ProgressBar::new(total);
        if let Ok(style) = ProgressStyle::with_template("{msg} [{bar:30}] {pos}/{len} {eta}") {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_message(what.to_owned());
        bar.enable_steady_tick(Duration::from_millis(200));
        bar
    }
}
