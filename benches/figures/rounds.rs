//! Rounds that measure two things in turns, so that a machine that gets slower or faster favours
//! neither.

/// What the rounds of one figure came to.
pub struct Spread {
    /// The median of the rounds' ratios, ours to base.
    pub ratio: f64,
    /// The quartiles around it.
    pub low: f64,
    pub high: f64,
    /// The medians of the two times, in seconds.
    pub base: f64,
    pub ours: f64,
    pub rounds: usize,
}

/// One side of a round: each call does a slice of the round's work and gives seconds.
pub type Side<'a> = Box<dyn FnMut() -> f64 + 'a>;

/// Measures `base` and `ours` in `slices` turns a round, so that what disturbs the machine for a
/// moment disturbs both. Each round opens its two sides anew; who goes first changes with every
/// slice. A round's ratio is that of the sums: what happens once in many slices counts.
/// One round before them is thrown away: it fills the caches.
pub fn alternate<'a>(
    rounds: usize,
    slices: usize,
    mut base: impl FnMut() -> Side<'a>,
    mut ours: impl FnMut() -> Side<'a>,
) -> Spread {
    let (mut bases, mut ourses) = (Vec::new(), Vec::new());
    for round in 0..=rounds {
        let (b, o) = one_round(slices, round, &mut base(), &mut ours());
        if round > 0 {
            bases.push(b);
            ourses.push(o);
        }
    }
    let ratios: Vec<f64> = ourses.iter().zip(&bases).map(|(o, b)| o / b).collect();
    Spread {
        ratio: quantile(&ratios, 0.5),
        low: quantile(&ratios, 0.25),
        high: quantile(&ratios, 0.75),
        base: quantile(&bases, 0.5),
        ours: quantile(&ourses, 0.5),
        rounds,
    }
}

/// The means of both sides' slices.
fn one_round(slices: usize, round: usize, base: &mut Side, ours: &mut Side) -> (f64, f64) {
    let (mut b, mut o) = (0.0, 0.0);
    for slice in 0..slices {
        if (round + slice).is_multiple_of(2) {
            b += base();
            o += ours();
        } else {
            o += ours();
            b += base();
        }
    }
    (b / slices as f64, o / slices as f64)
}

/// The value below which this part of the values lies, between two of them by their distance.
pub fn quantile(values: &[f64], part: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = part * (sorted.len() - 1) as f64;
    let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    low + (high - low) * at.fract()
}
