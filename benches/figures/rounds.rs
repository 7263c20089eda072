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

/// Measures `base` and `ours` in turns, each giving seconds, the order changing with every round.
/// One round before them is thrown away: it fills the caches.
pub fn alternate(
    rounds: usize,
    mut base: impl FnMut() -> f64,
    mut ours: impl FnMut() -> f64,
) -> Spread {
    let (mut bases, mut ourses) = (Vec::new(), Vec::new());
    for round in 0..=rounds {
        let (b, o) = if round % 2 == 0 {
            let b = base();
            (b, ours())
        } else {
            let o = ours();
            (base(), o)
        };
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

/// The value below which this part of the values lies, between two of them by their distance.
pub fn quantile(values: &[f64], part: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = part * (sorted.len() - 1) as f64;
    let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    low + (high - low) * at.fract()
}
