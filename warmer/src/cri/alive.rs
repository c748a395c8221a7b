//! Does the runtime answer? A socket that was mounted as a file refuses for ever once the runtime has restarted: only a
//! new container gets the new one, so the process has to end.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::{Runtime, Version};

/// A restarting runtime listens again within seconds; what refuses longer is an old mount.
const PATIENCE: Duration = Duration::from_secs(10);
const BETWEEN_QUESTIONS: Duration = Duration::from_secs(2);

/// Nobody has listened on the socket for ten seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the runtime's socket has refused connections for 10 s; a mounted socket is only renewed by a restart"
)]
pub struct SocketDead;

/// Asks again and again and says who answered last, `None` while nobody does. Returns when the socket is dead.
pub async fn watch(runtime: &dyn Runtime, who: &watch::Sender<Option<Version>>) -> SocketDead {
    let mut refusals = Refusals::default();
    loop {
        let answer = runtime.version().await;
        let refused = answer.as_ref().is_err_and(|error| error.refused);
        if let Err(error) = &answer
            && who.borrow().is_some()
        {
            tracing::warn!(%error, "the container runtime does not answer");
        }
        who.send_if_modified(|known| {
            let answered = answer.ok();
            let changed = *known != answered;
            *known = answered;
            changed
        });
        if refusals.last_too_long(refused, Instant::now()) {
            return SocketDead;
        }
        tokio::time::sleep(BETWEEN_QUESTIONS).await;
    }
}

/// Since when every question was refused.
#[derive(Debug, Default)]
struct Refusals {
    since: Option<Instant>,
}

impl Refusals {
    fn last_too_long(&mut self, refused: bool, now: Instant) -> bool {
        if !refused {
            self.since = None;
            return false;
        }
        let since = *self.since.get_or_insert(now);
        now.duration_since(since) >= PATIENCE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_seconds_of_nothing_but_refusals() {
        let mut refusals = Refusals::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(!refusals.last_too_long(true, at(0)));
        assert!(!refusals.last_too_long(true, at(9)));
        assert!(
            !refusals.last_too_long(false, at(9)),
            "a silent runtime is not a dead socket"
        );
        assert!(!refusals.last_too_long(true, at(10)));
        assert!(!refusals.last_too_long(true, at(19)));
        assert!(refusals.last_too_long(true, at(20)));
    }
}
