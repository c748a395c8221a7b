//! Is a source too slow?

use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::download::Source;
use crate::upstream::{UpstreamError, UpstreamErrorKind};

/// Notices a source that delivers less than `minRate` for `stall`. Only time spent waiting for it counts, so that a
/// slow reader is not the source's fault.
#[derive(Debug, Default)]
pub(super) struct StallMeter {
    waited: Duration,
    bytes: u64,
}

impl StallMeter {
    pub(super) async fn watch<F>(
        &mut self,
        source: &Source,
        next: F,
    ) -> Result<Option<Result<Bytes, UpstreamError>>, UpstreamError>
    where
        F: Future<Output = Option<Result<Bytes, UpstreamError>>>,
    {
        let timeouts = source.origin.upstream.timeouts;
        let since = Instant::now();
        let chunk = tokio::time::timeout(timeouts.stall.saturating_sub(self.waited), next).await;
        self.waited += since.elapsed();
        if let Ok(Some(Ok(chunk))) = &chunk {
            self.bytes += chunk.len() as u64;
        }
        if self.waited >= timeouts.stall {
            let too_slow = self.bytes
                < timeouts
                    .min_rate
                    .saturating_mul(timeouts.stall.as_secs().max(1));
            *self = Self::default();
            if too_slow || chunk.is_err() {
                return Err(source.error(UpstreamErrorKind::Timeout("its download was too slow")));
            }
        }
        chunk.map_err(|_| source.error(UpstreamErrorKind::Timeout("its download stalled")))
    }
}
