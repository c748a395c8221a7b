//! A TCP proxy that a test breaks and restores: the wire between two programs.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use coral_schema::process::tasks::Tasks;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// A running proxy. It ends, with its connections, when it is dropped.
#[derive(Debug)]
pub struct Chaos {
    address: SocketAddr,
    state: Arc<State>,
    tasks: Tasks,
}

#[derive(Debug)]
struct State {
    target: SocketAddr,
    flow: watch::Sender<Flow>,
    /// Raised by each cut: connections of an earlier number end.
    generation: watch::Sender<u64>,
    connections: AtomicU64,
    downstream: AtomicU64,
}

/// What the wire does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    Open,
    /// Nothing moves; connections stay, new ones are accepted and stay silent.
    Stalled,
    /// New connections are reset.
    Refusing,
}

impl Chaos {
    /// Starts a proxy before `target`.
    pub async fn start(target: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let state = Arc::new(State {
            target,
            flow: watch::Sender::new(Flow::Open),
            generation: watch::Sender::new(0),
            connections: AtomicU64::new(0),
            downstream: AtomicU64::new(0),
        });
        let tasks = Tasks::new();
        let accepting = accept(listener, Arc::clone(&state), tasks.clone());
        let stopping = tasks.stopping();
        tasks.spawn(
            "chaos accept",
            stopping.run_until_cancelled_owned(accepting),
        );
        Ok(Self {
            address,
            state,
            tasks,
        })
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Resets all connections of now; new ones work.
    pub fn cut(&self) {
        self.state.generation.send_modify(|number| *number += 1);
    }

    /// Stops all bytes; connections stay open.
    pub fn stall(&self) {
        self.state.flow.send_replace(Flow::Stalled);
    }

    /// Resets all connections of now and all that are tried.
    pub fn refuse(&self) {
        self.state.flow.send_replace(Flow::Refusing);
        self.cut();
    }

    /// Lets bytes and connections pass again.
    pub fn restore(&self) {
        self.state.flow.send_replace(Flow::Open);
    }

    /// Connections that were accepted.
    pub fn connections(&self) -> u64 {
        self.state.connections.load(Ordering::Relaxed)
    }

    /// Bytes that came from the target, heads included.
    pub fn downstream_bytes(&self) -> u64 {
        self.state.downstream.load(Ordering::Relaxed)
    }
}

impl Drop for Chaos {
    fn drop(&mut self) {
        self.tasks.stopping().cancel();
    }
}

async fn accept(listener: TcpListener, state: Arc<State>, tasks: Tasks) {
    while let Ok((client, _)) = listener.accept().await {
        state.connections.fetch_add(1, Ordering::Relaxed);
        let stopping = tasks.stopping();
        let relaying = relay(client, Arc::clone(&state));
        tasks.spawn("chaos relay", stopping.run_until_cancelled_owned(relaying));
    }
}

async fn relay(mut client: TcpStream, state: Arc<State>) -> io::Result<()> {
    if *state.flow.borrow() == Flow::Refusing {
        return client.set_zero_linger();
    }
    let mut generation = state.generation.subscribe();
    let mut server = TcpStream::connect(state.target).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    client.set_zero_linger()?;
    // Borrowed halves: owned ones end with a FIN, and a cut is to be a reset.
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    let ignored = AtomicU64::new(0);
    let both = async {
        tokio::try_join!(
            pump(&mut from_client, &mut to_server, &state, &ignored),
            pump(&mut from_server, &mut to_client, &state, &state.downstream),
        )
    };
    let in_order = tokio::select! {
        result = both => result.is_ok(),
        _ = generation.changed() => false,
    };
    if in_order {
        // What is still on its way must arrive.
        rustix::net::sockopt::set_socket_linger(&client, None)?;
    }
    Ok(())
}

async fn pump<R, W>(from: &mut R, to: &mut W, state: &State, count: &AtomicU64) -> io::Result<()>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut flow = state.flow.subscribe();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let length = from.read(&mut buffer).await?;
        let opened = flow.wait_for(|flow| *flow == Flow::Open).await;
        opened.map_err(io::Error::other)?;
        if length == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..length]).await?;
        count.fetch_add(length as u64, Ordering::Relaxed);
    }
}
