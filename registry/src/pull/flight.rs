//! One question at a time: whoever asks the same meanwhile gets the same answer. The question is asked by a task of its
//! own, so a client that leaves does not take it along.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use coral_schema::process::tasks::Tasks;
use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use tokio::sync::oneshot;

/// Questions under way, by key.
pub struct Flights<K, V> {
    name: &'static str,
    tasks: Tasks,
    running: Arc<Mutex<HashMap<K, Flight<V>>>>,
}

/// The answer of a flight; `None` when its task died.
pub type Flight<V> = Shared<BoxFuture<'static, Option<V>>>;

/// See [`Flights::join`].
pub struct Boarded<V> {
    /// Resolves to the answer.
    pub answer: Flight<V>,
    /// Did this call ask, or did another one before?
    pub leads: bool,
}

impl<K, V> Flights<K, V>
where
    K: Clone + Eq + Hash + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// None yet; `name` names the tasks.
    pub fn new(name: &'static str, tasks: Tasks) -> Self {
        Self {
            name,
            tasks,
            running: Arc::default(),
        }
    }

    /// Joins the question `key`, or asks it.
    pub fn join<F>(&self, key: &K, ask: impl FnOnce() -> F) -> Boarded<V>
    where
        F: Future<Output = V> + Send + 'static,
    {
        let mut running = lock(&self.running);
        if let Some(flight) = running.get(key) {
            return Boarded {
                answer: flight.clone(),
                leads: false,
            };
        }
        let landing = Landing {
            key: key.clone(),
            running: Arc::clone(&self.running),
        };
        let (sender, receiver) = oneshot::channel();
        let flight = receiver.map(Result::ok).boxed().shared();
        running.insert(key.clone(), flight.clone());
        drop(running);
        let question = ask();
        // Without the lock: a runtime that is being shut down drops the task at once, and it takes itself off the list.
        self.tasks.spawn(self.name, async move {
            let answer = question.await;
            drop(landing);
            // Nobody may be left to be told.
            let _ = sender.send(answer);
        });
        Boarded {
            answer: flight,
            leads: true,
        }
    }
}

/// Takes a flight off the list however its task ends.
struct Landing<K: Eq + Hash, V> {
    key: K,
    running: Arc<Mutex<HashMap<K, Flight<V>>>>,
}

impl<K: Eq + Hash, V> Drop for Landing<K, V> {
    fn drop(&mut self) {
        lock(&self.running).remove(&self.key);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<K, V> fmt::Debug for Flights<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flights")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl<V> fmt::Debug for Boarded<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Boarded")
            .field("leads", &self.leads)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::sync::Notify;

    struct AskOnDrop(Box<dyn FnMut() + Send>);

    impl Drop for AskOnDrop {
        fn drop(&mut self) {
            (self.0)();
        }
    }

    /// A task that cannot start any more ends while it is being spawned.
    #[test]
    fn a_question_at_the_end_of_the_runtime_is_dropped_and_not_waited_for() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let flights = Arc::new(Flights::<u8, usize>::new("test", Tasks::new()));
        let asker = Arc::clone(&flights);
        let (done, ended) = std::sync::mpsc::channel();
        let last = AskOnDrop(Box::new(move || {
            let boarded = asker.join(&1, std::future::pending);
            done.send(boarded.answer.now_or_never()).unwrap();
        }));
        runtime.spawn(async move {
            let _last = last;
            std::future::pending::<()>().await;
        });
        runtime.block_on(tokio::task::yield_now());
        std::thread::spawn(move || drop(runtime));
        let answer = ended.recv_timeout(std::time::Duration::from_secs(10));
        assert_eq!(answer, Ok(Some(None)), "the end of the runtime hangs");
        assert!(lock(&flights.running).is_empty());
    }

    #[tokio::test]
    async fn many_ask_once_and_the_next_round_asks_again() {
        let flights = Flights::<u8, usize>::new("test", Tasks::new());
        let (asked, gate) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
        let ask = || {
            let (asked, gate) = (Arc::clone(&asked), Arc::clone(&gate));
            async move {
                gate.notified().await;
                asked.fetch_add(1, Ordering::SeqCst)
            }
        };
        let first = flights.join(&1, ask);
        let second = flights.join(&1, ask);
        assert!(first.leads && !second.leads);
        drop(first);
        gate.notify_one();
        assert_eq!(
            second.answer.await,
            Some(0),
            "the asker left, the answer comes all the same"
        );
        let third = flights.join(&1, ask);
        gate.notify_one();
        assert_eq!((third.leads, third.answer.await), (true, Some(1)));
    }

    #[tokio::test]
    async fn a_task_that_dies_is_an_answer() {
        let flights = Flights::<u8, u8>::new("test", Tasks::new());
        let boarded = flights.join(&1, || async { panic!("dies on purpose") });
        assert_eq!(boarded.answer.await, None);
        assert!(flights.join(&1, || async { 1 }).leads);
    }
}
