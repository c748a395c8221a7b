//! Pure: what the runtime's mirror settings shall say now, and what is to be told about them.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

use coral_schema::crd::Reason;
use coral_schema::crd::node_cache::Mirror;
use coral_schema::mirror_config::{self, HostPort};

use super::{MirrorState, Outcome};
use crate::cri::Version;

/// What the settings shall say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) cache: mirror_config::Cache,
    /// PEM certificates.
    pub(super) authority: Option<String>,
    pub(super) registries: BTreeSet<HostPort>,
}

/// What to do with the files.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// It is not known yet whether the cache answers: what an earlier process wrote stands meanwhile.
    Wait,
    Withdraw(Reason, String),
    Write(Wanted),
}

pub(super) fn decide(spec: Option<&Mirror>, alive: Option<bool>) -> Decision {
    let Some(spec) = spec.filter(|spec| !spec.registries.is_empty()) else {
        return Decision::Withdraw(Reason::Removed, "no mirror is wished for".to_owned());
    };
    let Some(wanted) = Wanted::read(spec) else {
        let message = format!("{} is no URL of scheme, host and port", spec.url);
        return Decision::Withdraw(Reason::Internal, message);
    };
    match alive {
        None => Decision::Wait,
        Some(true) => Decision::Write(wanted),
        Some(false) => {
            let message = format!("the cache does not answer at {}", spec.url);
            Decision::Withdraw(Reason::Removed, message)
        }
    }
}

impl Wanted {
    /// Names that are no hosts are left out: no image can have them.
    pub(super) fn read(spec: &Mirror) -> Option<Self> {
        let hosts = spec.registries.iter();
        Some(Self {
            cache: spec.url.parse().ok()?,
            authority: spec.ca_bundle.clone(),
            registries: hosts.filter_map(|host| host.parse().ok()).collect(),
        })
    }
}

/// By who answers; by the folder's name while nobody does.
pub(super) fn is_crio(folder: &Path, runtime: Option<&Version>) -> bool {
    match runtime {
        Some(version) => version.name == "cri-o",
        None => folder
            .file_name()
            .is_some_and(|name| name == "registries.conf.d"),
    }
}

/// What stands after the wanted files were written. What needs a person comes first.
pub(super) fn standing(outcome: &Outcome, state: MirrorState) -> MirrorState {
    let theirs = outcome.foreign.iter();
    let in_the_way: Vec<_> = theirs
        .filter_map(|(name, foreign)| Some((name, &foreign.what, foreign.paste.as_ref()?)))
        .collect();
    let theirs = outcome.foreign.iter();
    let theirs = theirs.filter_map(|(name, foreign)| foreign.paste.is_none().then_some(name));
    let state = MirrorState {
        leads: outcome.written.iter().chain(theirs).cloned().collect(),
        ..state
    };
    if let Some((registry, what, paste)) = in_the_way.first() {
        let mut message = format!("{registry} is left alone: {what} is not ours");
        if in_the_way.len() > 1 {
            // Writing to a String cannot fail.
            let _ = write!(message, " (and {} more registries)", in_the_way.len() - 1);
        }
        let _ = write!(message, "; to use the cache there, paste:\n{paste}");
        return state.because(Reason::NotOurs, message);
    }
    if let Some(problem) = outcome.problems.first() {
        return state.because(Reason::Internal, problem.clone());
    }
    let mut message = format!("{} registries lead to the cache", state.leads.len());
    if let Some(note) = &outcome.note {
        let _ = write!(message, "; {note}");
    }
    state.because(Reason::Written, message)
}

#[cfg(test)]
mod tests;
