//! Many clients that push and pull images of mixed sizes at once, and check every byte.

use std::net::SocketAddr;
use std::time::Duration;

use coral_schema::process::tasks::Tasks;
use futures::future::try_join_all;
use tokio::time::Instant;

use crate::images::Image;
use crate::pull::pull;
use crate::push::Pusher;

/// Who does it, and for how long.
#[derive(Debug, Clone, Copy)]
pub struct Mixed {
    /// Where.
    pub address: SocketAddr,
    /// How many clients. Each has a repository of its own below [`PREFIX`], and pulls from the next one's, too.
    pub clients: u64,
    /// For how long.
    pub lasts: Duration,
    /// What a client waits between two images.
    pub pause: Duration,
}

/// What came of it.
#[derive(Debug, Clone, Copy)]
pub struct Moved {
    /// Images that were pushed, and then pulled.
    pub images: u64,
    /// Their bytes, in both directions together.
    pub bytes: u64,
    /// How long that took, without the first push of each image.
    pub elapsed: Duration,
}

impl Mixed {
    /// Pushes and pulls until the time is over. Any failure, and any wrong byte, is an error.
    pub async fn run(self) -> anyhow::Result<Moved> {
        let clients: Vec<_> = (0..self.clients)
            .map(|number| self.client(number))
            .collect();
        // From then on everybody finds what the neighbour has.
        all(clients.iter().cloned().map(Client::fill)).await?;
        let start = Instant::now();
        let until = start + self.lasts;
        let work = clients
            .into_iter()
            .map(|client| client.work(self.pause, until));
        let sizes: Vec<u64> = all(work).await?.into_iter().flatten().collect();
        Ok(Moved {
            images: sizes.len() as u64,
            bytes: 2 * sizes.iter().sum::<u64>(),
            elapsed: start.elapsed(),
        })
    }

    fn client(self, number: u64) -> Client {
        let images = SIZES.iter().zip(1..);
        let images =
            images.map(|(&size, image)| Image::new(number * 100 + image, &[size, SIZES[0]]));
        Client {
            address: self.address,
            number,
            next: (number + 1) % self.clients,
            images: images.collect(),
        }
    }
}

/// Runs all to their ends, or to the first failure.
async fn all<T, F>(work: impl Iterator<Item = F>) -> anyhow::Result<Vec<T>>
where
    T: Send + 'static,
    F: Future<Output = anyhow::Result<T>> + Send + 'static,
{
    let tasks = Tasks::new();
    let running = work.map(|work| {
        let task = tasks.spawn("client", work);
        async move { task.await? }
    });
    try_join_all(running).await
}

#[derive(Debug, Clone)]
struct Client {
    address: SocketAddr,
    number: u64,
    /// Its neighbour's number.
    next: u64,
    images: Vec<Image>,
}

impl Client {
    async fn fill(self) -> anyhow::Result<()> {
        let mut pusher = Pusher::open(self.address).await?;
        let repository = repository(self.number);
        for (number, image) in self.images.iter().enumerate() {
            pusher.image(&repository, &tag(number), image).await?;
        }
        Ok(())
    }

    /// Pushes each image again and again, and pulls it, or the neighbour's of this size, which may just be pushed again.
    /// Answers the sizes of what it moved in both directions, bytes.
    async fn work(self, pause: Duration, until: Instant) -> anyhow::Result<Vec<u64>> {
        let mut pusher = Pusher::open(self.address).await?;
        let (own, next) = (repository(self.number), repository(self.next));
        let mut moved = Vec::new();
        // Clients begin at different sizes.
        let order = (0..self.images.len())
            .cycle()
            .skip(usize::try_from(self.number)?);
        for (turn, number) in order.enumerate() {
            if Instant::now() >= until {
                break;
            }
            let image = &self.images[number];
            pusher.image(&own, &tag(number), image).await?;
            let from = if turn % 2 == 0 { &own } else { &next };
            pull(self.address, from, &tag(number)).await?;
            moved.push(image.size());
            tokio::time::sleep(pause).await;
        }
        Ok(moved)
    }
}

fn tag(number: usize) -> String {
    format!("size-{number}")
}

fn repository(client: u64) -> String {
    format!("{PREFIX}/client-{client}")
}

/// What all repositories are below.
pub const PREFIX: &str = "mixed";

/// One layer of each image, bytes; the other has the first of these.
const SIZES: [u64; 5] = [4 << 10, 16 << 20, 64 << 10, 4 << 20, 1 << 20];
