//! Which requests the faults happen to.

use std::collections::VecDeque;

use http::Method;

use super::{Fault, Kind, Target};

/// Chooses requests: everything that was said must hold.
#[derive(Debug, Clone, Default)]
pub struct When {
    kind: Option<Kind>,
    method: Option<Method>,
    repository: Option<String>,
    reference: Option<String>,
    ranged: Option<bool>,
}

impl When {
    /// Every request.
    pub fn any() -> Self {
        Self::default()
    }

    /// Requests of this kind.
    pub fn kind(kind: Kind) -> Self {
        Self {
            kind: Some(kind),
            ..Self::default()
        }
    }

    /// Requests for a blob, by its digest; on the registry's own address, not behind a signed URL.
    pub fn blob(digest: &(impl ToString + ?Sized)) -> Self {
        Self::kind(Kind::Blob).reference(digest)
    }

    /// Requests for a manifest, by tag or digest.
    pub fn manifest(reference: &(impl ToString + ?Sized)) -> Self {
        Self::kind(Kind::Manifest).reference(reference)
    }

    /// … with this method.
    #[must_use]
    pub fn method(mut self, method: Method) -> Self {
        self.method = Some(method);
        self
    }

    /// … in this repository.
    #[must_use]
    pub fn repository(mut self, repository: &str) -> Self {
        self.repository = Some(repository.to_owned());
        self
    }

    /// … for this tag or digest.
    #[must_use]
    pub fn reference(mut self, reference: &(impl ToString + ?Sized)) -> Self {
        self.reference = Some(reference.to_string());
        self
    }

    /// … with (or without) a `Range` header.
    #[must_use]
    pub fn ranged(mut self, ranged: bool) -> Self {
        self.ranged = Some(ranged);
        self
    }

    pub(super) fn matches(&self, target: &Target) -> bool {
        fn fits<T: PartialEq>(wanted: Option<&T>, found: Option<&T>) -> bool {
            wanted.is_none() || wanted == found
        }
        fits(self.kind.as_ref(), Some(&target.kind))
            && fits(self.method.as_ref(), Some(&target.method))
            && fits(self.repository.as_ref(), target.repository.as_ref())
            && fits(self.reference.as_ref(), target.reference.as_ref())
            && fits(self.ranged.as_ref(), Some(&target.ranged))
    }
}

/// The faults that are still to happen.
#[derive(Debug, Default)]
pub(super) struct Script {
    /// Used once each, in order; the first row that matches a request counts.
    once: Vec<(When, VecDeque<Fault>)>,
    /// Asked when no row of `once` matches.
    always: Vec<(When, Fault)>,
}

impl Script {
    pub(super) fn add(&mut self, when: When, faults: VecDeque<Fault>) {
        self.once.push((when, faults));
    }

    pub(super) fn add_always(&mut self, when: When, fault: Fault) {
        self.always.push((when, fault));
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// The fault for this request; the default one when there is none.
    pub(super) fn next(&mut self, target: &Target) -> Fault {
        self.once.retain(|(_, faults)| !faults.is_empty());
        let once = self.once.iter_mut().find(|(when, _)| when.matches(target));
        if let Some(fault) = once.and_then(|(_, faults)| faults.pop_front()) {
            return fault;
        }
        let always = self.always.iter().find(|(when, _)| when.matches(target));
        always.map(|(_, fault)| fault.clone()).unwrap_or_default()
    }
}
