//! Order without clocks: what a test holds back, it can prove to be still missing.

use tokio::sync::watch;

/// Holds bodies back until the test lets them go; by it a test knows, without a clock, that what a client has by now
/// it got before the upstream sent the rest.
#[derive(Debug, Clone)]
pub struct Gate {
    open: watch::Sender<bool>,
    held: watch::Sender<usize>,
}

impl Gate {
    /// A closed gate.
    pub fn new() -> Self {
        Self {
            open: watch::Sender::new(false),
            held: watch::Sender::new(0),
        }
    }

    /// Lets everything pass, now and later.
    pub fn open(&self) {
        self.open.send_replace(true);
    }

    /// Waits until `bodies` of them, counted since the beginning, have come to the gate.
    pub async fn reached(&self, bodies: usize) {
        let mut held = self.held.subscribe();
        let reached = held.wait_for(|&held| held >= bodies).await;
        reached.expect("the gate itself holds the sender");
    }

    pub(super) async fn pass(&self) {
        self.held.send_modify(|held| *held += 1);
        let mut open = self.open.subscribe();
        let opened = open.wait_for(|&open| open).await;
        opened.expect("the gate itself holds the sender");
    }
}

impl Default for Gate {
    fn default() -> Self {
        Self::new()
    }
}
