//! How long the oldest message that was heard of has waited for its UID.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

use crate::etcd::Mailbox;

/// Since when each mailbox has had messages without a stable UID. Clones share what they hold.
#[derive(Clone, Debug, Default)]
pub struct Lag {
    since: Arc<Mutex<HashMap<Mailbox, Instant>>>,
}

impl Lag {
    /// The oldest message of this mailbox whose UID is not shown has waited since then. It is told
    /// anew when that message's UID is shown and younger ones still wait.
    pub fn waits(&self, mailbox: &Mailbox, since: Instant) {
        self.since.lock().insert(mailbox.clone(), since);
    }

    /// Every UID of this mailbox is shown.
    pub fn settled(&self, mailbox: &Mailbox) {
        self.since.lock().remove(mailbox);
    }

    /// The longest of all waits, in seconds; 0 when nothing waits.
    #[must_use]
    pub fn seconds(&self) -> f64 {
        let oldest = self.since.lock().values().min().copied();
        oldest.map_or(0.0, |since| since.elapsed().as_secs_f64())
    }
}

impl Collector for Lag {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let gauge = ConstGauge::new(self.seconds());
        let metric = encoder.encode_descriptor(
            "lag",
            "Age of the oldest message whose UID is not stable",
            Some(&Unit::Seconds),
            prometheus_client::metrics::MetricType::Gauge,
        )?;
        gauge.encode(metric)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_oldest_wait_counts() {
        let lag = Lag::default();
        assert!(lag.seconds() == 0.0);
        let ago = |seconds| Instant::now() - Duration::from_secs(seconds);
        let [a, b] = ["a", "b"].map(|user| Mailbox {
            user: user.into(),
            guid: [1; 16],
        });
        lag.waits(&a, ago(100));
        lag.waits(&b, ago(10));
        assert!(lag.seconds() >= 100.0);
        lag.settled(&a);
        assert!((10.0..100.0).contains(&lag.seconds()));
        lag.settled(&b);
        assert!(lag.seconds() == 0.0);
    }
}
