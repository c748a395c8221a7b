//! Grants: as many nodes at once as the object and the operator allow, in the order of the nodes' names.

use std::sync::Arc;

use coral_schema::crd::node_cache::NodeRegistryPolicy;

use super::progress::Claim;
use super::slots::Left;
use super::way::somebody_ahead;
use super::{Assignment, Grant, NodePlan, Pair, Progress, Slots, Wait, Way};
use crate::image_cache::validate::ValidatedImageCache;

/// Tells further nodes of their images, or says why not.
pub(super) fn grant(
    object: &ValidatedImageCache,
    slots: &Slots,
    is_open: bool,
    assignment: &mut Assignment,
) {
    let Assignment {
        nodes,
        ways,
        slots: takes,
        ..
    } = assignment;
    let busy = |plan: &&NodePlan| plan.pairs.iter().any(|pair| pair.progress.takes_slot());
    takes.busy = nodes
        .iter()
        .filter(busy)
        .map(|plan| Arc::clone(&plan.node.name))
        .collect();
    let mut wave = Wave {
        object,
        ways,
        is_open,
        stage: stage(object, nodes),
        ahead: somebody_ahead(ways.len(), nodes),
        free: object
            .concurrency
            .of(nodes.len())
            .saturating_sub(takes.busy.len()),
        shared: slots.left_for(object, &takes.busy),
    };
    for plan in nodes {
        let own = takes.busy.contains(&plan.node.name);
        match wave.grant(plan, own) {
            Told::Granted => {
                takes.busy.insert(Arc::clone(&plan.node.name));
            }
            Told::Wanting if takes.wanting < wave.free => takes.wanting += 1,
            Told::Wanting | Told::Nothing => {}
        }
    }
}

/// What came of a node's turn.
#[derive(PartialEq, Eq)]
enum Told {
    Granted,
    /// Only the slots of all objects were missing.
    Wanting,
    Nothing,
}

/// What may still be granted.
struct Wave<'a> {
    object: &'a ValidatedImageCache,
    ways: &'a [Way],
    /// Is the maintenance window open?
    is_open: bool,
    /// Sets of an index above this wait.
    stage: u32,
    /// Per image: a node pulls it ahead of the others.
    ahead: Vec<bool>,
    free: usize,
    shared: Left<'a>,
}

impl Wave<'_> {
    fn grant(&mut self, plan: &mut NodePlan, own: bool) -> Told {
        let elsewhere = own || self.shared.is_busy(&plan.node.name);
        let admission = self.admit(own, elsewhere);
        let barred = self.barred(plan);
        let mut told = Told::Nothing;
        for pair in &mut plan.pairs {
            let outdated = matches!(pair.progress, Progress::Outdated(_));
            let new = pair.grant.is_none()
                && !matches!(pair.progress, Progress::LeftOut | Progress::NoPlatform);
            if !outdated && !new {
                continue;
            }
            let gate = barred.map_or_else(|| self.gate(pair), Err);
            match gate.and_then(|policy| admission.map(|()| policy)) {
                Ok(policy) => {
                    self.take(pair, policy);
                    told = Told::Granted;
                }
                Err(wait) => {
                    if wait == Wait::SharedSlot {
                        told = Told::Wanting;
                    }
                    pair.progress = if outdated {
                        Progress::Outdated(wait)
                    } else {
                        Progress::NotGranted(wait)
                    };
                }
            }
        }
        if told == Told::Granted && !own {
            self.free -= 1;
            self.shared.free -= usize::from(!elsewhere);
        }
        told
    }

    /// Why this node is told nothing new at all.
    fn barred(&self, plan: &NodePlan) -> Option<Wait> {
        if !plan.node.ready {
            Some(Wait::NodeNotReady)
        } else if plan.silent {
            Some(Wait::WarmerSilent)
        } else if self.object.suspend {
            Some(Wait::Suspended)
        } else if plan.node.paused {
            Some(Wait::Paused)
        } else if !self.is_open {
            Some(Wait::Window)
        } else {
            None
        }
    }

    /// May this image start on one more node, and how?
    fn gate(&self, pair: &Pair) -> Result<NodeRegistryPolicy, Wait> {
        if pair.sets.trailing_zeros() > self.stage {
            return Err(Wait::EarlierSet);
        }
        match self.ways[pair.image] {
            Way::Open(policy) => Ok(policy),
            Way::AwaitCache => Err(Wait::Cache),
            Way::OneAhead if self.ahead[pair.image] => Err(Wait::NodeAhead),
            Way::OneAhead => Ok(NodeRegistryPolicy::Default),
        }
    }

    /// Is there a slot for one more node? One that has a slot needs no other.
    fn admit(&self, own: bool, shared: bool) -> Result<(), Wait> {
        if !own && self.free == 0 {
            Err(Wait::Slot)
        } else if !shared && self.shared.free == 0 {
            Err(Wait::SharedSlot)
        } else {
            Ok(())
        }
    }

    fn take(&mut self, pair: &mut Pair, policy: NodeRegistryPolicy) {
        self.ahead[pair.image] |= self.ways[pair.image] == Way::OneAhead;
        // A raised revision is pulled again although the name is there.
        let revision = pair.grant.map_or(0, |grant| grant.revision + 1);
        pair.grant = Some(Grant { policy, revision });
        pair.progress = Progress::Waiting(Claim::Slot);
    }
}

/// The first set that is not done; all of them when sets do not wait for each other. A set is done when every Ready node
/// was told, and holds its images or failed once: one broken node does not hold up the rest.
fn stage(object: &ValidatedImageCache, nodes: &[NodePlan]) -> u32 {
    let open = |pair: &&Pair| {
        let waits = matches!(
            pair.progress,
            Progress::NotGranted(_) | Progress::Outdated(_)
        );
        waits || pair.progress.takes_slot()
    };
    let first = nodes
        .iter()
        .filter(|plan| plan.is_desired() && !plan.silent && !plan.node.paused)
        .flat_map(|plan| &plan.pairs)
        .filter(open)
        .map(|pair| pair.sets.trailing_zeros())
        .min();
    match first {
        Some(first) if object.sequential => first,
        Some(_) | None => u32::MAX,
    }
}
