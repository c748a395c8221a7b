//! What to look at next, each thing at most once per pause (L20): events say that something changed, never what to do.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;
use std::time::Duration;

use tokio::time::Instant;

/// Things to look at, by the time that they are due. Holds each once, however often it was marked.
#[derive(Debug)]
pub struct Queue<K> {
    pause: Duration,
    due: HashMap<K, Instant>,
    order: BTreeMap<Instant, BTreeSet<K>>,
    taken: HashMap<K, Instant>,
}

impl<K: Clone + Eq + Hash + Ord> Queue<K> {
    /// Between two looks at one thing `pause` passes.
    pub fn new(pause: Duration) -> Self {
        Self {
            pause,
            due: HashMap::new(),
            order: BTreeMap::new(),
            taken: HashMap::new(),
        }
    }

    /// Something changed: at once, or when the pause since the last look is over.
    pub fn mark(&mut self, key: &K, now: Instant) {
        self.mark_at(key, now);
    }

    /// Time passing changes something, then. An earlier mark stands.
    pub fn mark_at(&mut self, key: &K, at: Instant) {
        let free = self.taken.get(key).map(|taken| *taken + self.pause);
        let at = free.map_or(at, |free| free.max(at));
        if let Some(&before) = self.due.get(key) {
            if before <= at {
                return;
            }
            self.unlink(key, before);
        }
        self.due.insert(key.clone(), at);
        self.order.entry(at).or_default().insert(key.clone());
    }

    /// When the next one is due.
    pub fn next(&self) -> Option<Instant> {
        self.order.first_key_value().map(|(at, _)| *at)
    }

    /// One that is due now.
    pub fn take(&mut self, now: Instant) -> Option<K> {
        let at = self.next().filter(|at| *at <= now)?;
        let key = self.order.get_mut(&at)?.pop_first()?;
        self.unlink(&key, at);
        self.due.remove(&key);
        self.taken.insert(key.clone(), now);
        Some(key)
    }

    /// It is gone.
    pub fn forget(&mut self, key: &K) {
        if let Some(at) = self.due.remove(key) {
            self.unlink(key, at);
        }
        self.taken.remove(key);
    }

    fn unlink(&mut self, key: &K, at: Instant) {
        if let Some(keys) = self.order.get_mut(&at) {
            keys.remove(key);
            if keys.is_empty() {
                self.order.remove(&at);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAUSE: Duration = Duration::from_secs(2);

    #[tokio::test(start_paused = true)]
    async fn l20_many_events_are_one_look_per_pause() {
        let mut queue = Queue::new(PAUSE);
        let start = Instant::now();
        let mut looks = Vec::new();
        // An event each 10 ms for ten seconds.
        for tick in 0..1000 {
            let now = start + Duration::from_millis(10 * tick);
            queue.mark(&"cache", now);
            while queue.take(now).is_some() {
                looks.push(now - start);
            }
        }
        let seconds: Vec<u64> = looks.iter().map(Duration::as_secs).collect();
        assert_eq!(seconds, [0, 2, 4, 6, 8]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_event_after_a_rest_starts_work_at_once() {
        let mut queue = Queue::new(PAUSE);
        let start = Instant::now();
        queue.mark(&"a", start);
        assert_eq!(queue.take(start), Some("a"));
        let later = start + PAUSE;
        queue.mark(&"a", later);
        assert_eq!(queue.next(), Some(later));
    }

    #[tokio::test(start_paused = true)]
    async fn the_earlier_mark_counts() {
        let mut queue = Queue::new(PAUSE);
        let start = Instant::now();
        queue.mark_at(&"a", start + PAUSE * 5);
        queue.mark_at(&"a", start + PAUSE * 9);
        assert_eq!(queue.next(), Some(start + PAUSE * 5));
        queue.mark(&"a", start);
        assert_eq!(queue.take(start), Some("a"));
        assert_eq!((queue.take(start + PAUSE * 9), queue.next()), (None, None));
        queue.mark(&"a", start);
        queue.forget(&"a");
        assert_eq!(queue.next(), None);
    }
}
