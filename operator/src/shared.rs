//! One copy of what many objects say: thousands of nodes are told the same, and say the same of it.

use std::borrow::Borrow;
use std::collections::HashSet;
use std::hash::Hash;
use std::sync::Arc;

/// Values that are in use, each once. Those that nobody holds any more go when there are twice as many as were in use.
#[derive(Debug)]
pub struct Shared<T: ?Sized> {
    known: HashSet<Arc<T>>,
    sweep_at: usize,
}

impl<T: ?Sized> Default for Shared<T> {
    fn default() -> Self {
        Self {
            known: HashSet::new(),
            sweep_at: FIRST_SWEEP,
        }
    }
}

impl<T: ?Sized + Eq + Hash> Shared<T> {
    /// The one copy of a value.
    pub fn one(&mut self, value: impl Borrow<T> + Into<Arc<T>>) -> Arc<T> {
        if let Some(known) = self.known.get(value.borrow()) {
            return Arc::clone(known);
        }
        if self.known.len() >= self.sweep_at {
            self.known.retain(|value| Arc::strong_count(value) > 1);
            self.sweep_at = (self.known.len() * 2).max(FIRST_SWEEP);
        }
        let value = value.into();
        self.known.insert(Arc::clone(&value));
        value
    }
}

/// Fewer values than this are not worth a look.
const FIRST_SWEEP: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_are_one() {
        let mut shared = Shared::<str>::default();
        let one = shared.one("nginx".to_owned());
        assert!(Arc::ptr_eq(&one, &shared.one("nginx")));
        assert!(!Arc::ptr_eq(&one, &shared.one("alpine")));
    }

    #[test]
    fn what_nobody_holds_goes() {
        let mut shared = Shared::<str>::default();
        let held = shared.one("held");
        for number in 0..10 * FIRST_SWEEP {
            shared.one(format!("dropped-{number}"));
        }
        assert!(shared.known.len() <= FIRST_SWEEP);
        assert!(Arc::ptr_eq(&held, &shared.one("held")));
    }
}
