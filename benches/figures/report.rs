//! What was measured, as lines for programs and as a table for people.

use crate::harness::Dovecot;
use crate::rounds::Spread;

/// One figure.
struct Row {
    name: &'static str,
    value: f64,
    unit: &'static str,
    at_most: f64,
    detail: String,
}

/// All figures of one run.
pub struct Report {
    names: Vec<String>,
    /// How many rounds a figure is the median of.
    pub rounds: usize,
    rows: Vec<Row>,
    done_with: Vec<Dovecot>,
}

impl Report {
    pub fn new(names: Vec<String>, rounds: usize) -> Report {
        Report {
            names,
            rounds,
            rows: Vec::new(),
            done_with: Vec::new(),
        }
    }

    /// Stops servers, and removes their files only at the very end. ext4 without a journal looks, for
    /// minutes, at every inode that was freed in a folder's group whenever it makes a file there:
    /// thousands of them would slow down the next figure's servers, and not alike.
    pub fn done_with<const N: usize>(&mut self, servers: [Dovecot; N]) {
        servers.iter().for_each(Dovecot::stop);
        self.done_with.extend(servers);
    }

    /// Whether any of these figures was asked for.
    pub fn wants(&self, figures: &[&str]) -> bool {
        let named = |figure: &str| self.names.iter().any(|name| figure.contains(name.as_str()));
        self.names.is_empty() || figures.iter().any(|figure| named(figure))
    }

    /// Notes a figure that may be `at_most` this much; `detail` says what it was made of.
    pub fn add(
        &mut self,
        name: &'static str,
        value: f64,
        unit: &'static str,
        at_most: f64,
        detail: String,
    ) {
        println!("{name} {value:.3} {unit}");
        self.rows.push(Row {
            name,
            value,
            unit,
            at_most,
            detail,
        });
    }

    /// Notes a ratio together with the two times that it was made of.
    pub fn add_ratio(&mut self, name: &'static str, spread: &Spread, at_most: f64) {
        let detail = format!(
            "{} to {} (quartiles of {} rounds {:.3} to {:.3})",
            time(spread.base),
            time(spread.ours),
            spread.rounds,
            spread.low,
            spread.high
        );
        self.add(name, spread.ratio, "ratio", at_most, detail);
    }

    pub fn print_table(&self) {
        println!("\n| figure | measured | at most | | made of |\n|---|---|---|---|---|");
        for row in &self.rows {
            let verdict = if row.value <= row.at_most {
                "reached"
            } else {
                "MISSED"
            };
            println!(
                "| `{}` | {:.3} {} | {} | {verdict} | {} |",
                row.name, row.value, row.unit, row.at_most, row.detail
            );
        }
    }
}

/// A time in the unit that suits it, from seconds.
pub fn time(seconds: f64) -> String {
    match seconds {
        s if s >= 1.0 => format!("{s:.2} s"),
        s if s >= 1e-3 => format!("{:.2} ms", s * 1e3),
        s => format!("{:.1} us", s * 1e6),
    }
}
