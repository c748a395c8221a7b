//! One address: accepts until it is closed, and can be opened again.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context as _;
use coral_schema::process::tasks::Tasks;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::Shared;
use super::connection::serve;

/// One listening socket with its connections.
#[derive(Debug)]
pub(super) struct Listener {
    pub(super) address: SocketAddr,
    pub(super) closing: CancellationToken,
    accepting: Option<JoinHandle<()>>,
}

impl Listener {
    pub(super) fn start(
        listener: TcpListener,
        shared: &Arc<Shared>,
        tasks: &Tasks,
    ) -> anyhow::Result<Self> {
        let address = listener.local_addr()?;
        let closing = CancellationToken::new();
        let accepting = accept(listener, Arc::clone(shared), tasks.clone(), closing.clone());
        Ok(Self {
            address,
            accepting: Some(tasks.spawn("upstream accept", accepting)),
            closing,
        })
    }

    pub(super) async fn close(&mut self) {
        self.closing.cancel();
        if let Some(accepting) = self.accepting.take() {
            accepting.await.expect("accepting does not panic");
        }
    }

    pub(super) async fn reopen(
        &mut self,
        shared: &Arc<Shared>,
        tasks: &Tasks,
    ) -> anyhow::Result<()> {
        let listener = TcpListener::bind(self.address)
            .await
            .with_context(|| format!("reopening {}", self.address))?;
        *self = Self::start(listener, shared, tasks)?;
        Ok(())
    }
}

async fn accept(
    listener: TcpListener,
    shared: Arc<Shared>,
    tasks: Tasks,
    closing: CancellationToken,
) {
    // Connections run within this task's life: when it has ended, the port and all its connections are closed.
    let connections = tokio_util::task::TaskTracker::new();
    while let Some(Ok((tcp, _))) = closing.run_until_cancelled(listener.accept()).await {
        let serving = serve(tcp, Arc::clone(&shared));
        let serving = closing.clone().run_until_cancelled_owned(serving);
        tasks.spawn("upstream connection", connections.track_future(serving));
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}
