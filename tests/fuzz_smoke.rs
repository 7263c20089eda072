//! A short run of every fuzz target, on a stable toolchain: the seeds, and what becomes of them
//! when octets are changed. Always the same inputs; `IMAP_XID_SOAK` makes it fifty times as many.

use std::fs;
use std::path::Path;

#[path = "../fuzz/bodies.rs"]
mod bodies;

/// Inputs for a target that takes microseconds, and for one that takes milliseconds.
const FAST_RUNS: u32 = 20_000;
const SLOW_RUNS: u32 = 120;
const SOAK_FACTOR: u32 = 50;

/// The longest input that is made of nothing.
const LENGTH_MAX: u64 = 80;

/// Small and the same everywhere (Marsaglia's xorshift64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }

    fn octets(&mut self) -> Vec<u8> {
        let n = self.below(LENGTH_MAX);
        (0..n).map(|_| self.next().to_le_bytes()[2]).collect()
    }

    fn place(&mut self, input: &[u8]) -> usize {
        usize::try_from(self.below(input.len() as u64)).unwrap_or(0)
    }

    /// One of the ways in which fuzzers change an input.
    fn change(&mut self, input: &mut Vec<u8>, seeds: &[Vec<u8>]) {
        let at = self.place(input);
        match self.below(6) {
            0 => input.insert(at.min(input.len()), self.next().to_le_bytes()[1]),
            1 => input.truncate(at),
            2 if !input.is_empty() => drop(input.remove(at)),
            3 if !input.is_empty() => input[at] ^= 1 << self.below(8),
            4 if !input.is_empty() => input[at] = b"0123456789-,@* .:\0"[self.place(&[0; 18])],
            _ => {
                let other = &seeds[self.place(&vec![0; seeds.len()])];
                let from = self.place(other);
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
        }
    }
}

fn seeds(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/seeds")
        .join(target);
    let mut files: Vec<_> = fs::read_dir(&folder)
        .unwrap_or_else(|e| panic!("{}: {e}", folder.display()))
        .map(|entry| entry.expect("an entry").path())
        .collect();
    files.sort();
    assert!(!files.is_empty(), "{target} has no seeds");
    files
        .iter()
        .map(|file| fs::read(file).expect("a seed"))
        .collect()
}

fn smoke(target: &str, body: bodies::Body) {
    let slow = bodies::SLOW.contains(&target);
    let factor = if std::env::var_os("IMAP_XID_SOAK").is_some() {
        SOAK_FACTOR
    } else {
        1
    };
    let runs = if slow { SLOW_RUNS } else { FAST_RUNS } * factor;
    let seeds = seeds(target);
    let mut random = Random(0x1795_4600_0000_0011);
    for seed in &seeds {
        run(target, body, seed);
    }
    for n in 0..runs {
        let mut input = match n % 4 {
            0 => random.octets(),
            _ => seeds[random.place(&vec![0; seeds.len()])].clone(),
        };
        for _ in 0..=random.below(4) {
            random.change(&mut input, &seeds);
        }
        run(target, body, &input);
    }
}

fn run(target: &str, body: bodies::Body, input: &[u8]) {
    let outcome = std::panic::catch_unwind(|| body(input));
    assert!(
        outcome.is_ok(),
        "{target} fails on {:?}",
        input.escape_ascii().to_string()
    );
}

#[test]
fn no_input_breaks_a_parser() {
    for (target, body) in bodies::ALL
        .iter()
        .filter(|(name, _)| !bodies::SLOW.contains(name))
    {
        smoke(target, *body);
    }
}

#[test]
fn no_file_breaks_the_registry_or_the_table() {
    for (target, body) in bodies::ALL
        .iter()
        .filter(|(name, _)| bodies::SLOW.contains(name))
    {
        smoke(target, *body);
    }
}

#[test]
fn every_body_is_a_target_of_cargo_fuzz() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let manifest = fs::read_to_string(root.join("Cargo.toml")).expect("fuzz/Cargo.toml");
    for (name, _) in bodies::ALL {
        assert!(
            manifest.contains(&format!("name = \"{name}\"")),
            "{name} is not in the manifest"
        );
        let target = root.join(format!("fuzz_targets/{name}.rs"));
        let text = fs::read_to_string(&target).expect("the target's file");
        assert!(
            text.contains(&format!("bodies::{name}(data)")),
            "{}",
            target.display()
        );
    }
}
