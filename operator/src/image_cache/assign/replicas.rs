//! Some of a set's nodes: who was chosen stays chosen.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use coral_schema::oci::Digest;
use jiff::Timestamp;

use crate::image_cache::dereference::{NodeFacts, Surroundings};
use crate::image_cache::validate::ValidatedImageCache;
use crate::node_cache::wishes::Owner;

/// A node that is not Ready for longer is replaced.
pub const REPLACED_AFTER: Duration = Duration::from_mins(5);

/// The replicas of set `index` among `matching` nodes, sorted by name. Those that hold it stay while they match; of too
/// many the youngest nodes go; missing ones are spread over the topology, on nodes that are Ready.
pub(super) fn choose<'a>(
    object: &ValidatedImageCache,
    index: usize,
    matching: Vec<&'a Arc<NodeFacts>>,
    around: &Surroundings<'_>,
) -> Vec<&'a Arc<NodeFacts>> {
    let filter = object.sets[index].nodes.as_ref();
    let Some((wanted, topology)) = filter.and_then(|filter| {
        let replicas = filter.replicas?;
        Some((replicas, filter.topology_key.as_str()))
    }) else {
        return matching;
    };
    let holds = holder(object, index, around);
    let (mut chosen, mut others): (Vec<_>, Vec<_>) = matching
        .into_iter()
        .filter(|node| !is_lost(node, around.now))
        .partition(|node| holds(node));
    chosen.sort_by(|a, b| (a.created, &a.name).cmp(&(b.created, &b.name)));
    chosen.truncate(wanted);
    if chosen.len() < wanted {
        others.retain(|node| node.ready && !node.is_silent(around.uptime));
        let seed = format!("{}/{}", object.key, object.sets[index].name);
        fill(&mut chosen, others, wanted, &|node| {
            (topology_of(node, topology), draw(&seed, node))
        });
    }
    chosen.sort_by(|a, b| a.name.cmp(&b.name));
    chosen
}

/// Was this node chosen before? Its `NodeCache` says so, or the last wishes do.
fn holder(
    object: &ValidatedImageCache,
    index: usize,
    around: &Surroundings<'_>,
) -> impl Fn(&NodeFacts) -> bool {
    let set = &object.sets[index];
    let owner = Owner {
        object: object.key.clone(),
        set: set.name.clone(),
    }
    .to_string();
    let before: BTreeSet<Arc<str>> = around
        .previous
        .into_iter()
        .filter_map(|wishes| {
            let index = wishes.sets.iter().position(|old| old.name == set.name)?;
            Some((wishes, 1_u16 << index))
        })
        .flat_map(|(wishes, bit)| {
            wishes
                .nodes
                .iter()
                .filter(move |(_, pairs)| pairs.iter().any(|pair| pair.sets & bit != 0))
                .map(|(node, _)| Arc::clone(node))
        })
        .collect();
    move |node| before.contains(&node.name) || node.owners.contains(&owner)
}

fn is_lost(node: &NodeFacts, now: Timestamp) -> bool {
    let since = node.ready_changed.unwrap_or(node.created.unwrap_or(now));
    !node.ready && now > since && now.duration_since(since).unsigned_abs() > REPLACED_AFTER
}

fn topology_of<'a>(node: &'a NodeFacts, key: &str) -> &'a str {
    node.labels.get(key).map_or("", String::as_str)
}

/// Each next one from where the fewest are.
fn fill<'a>(
    chosen: &mut Vec<&'a Arc<NodeFacts>>,
    others: Vec<&'a Arc<NodeFacts>>,
    wanted: usize,
    place: &dyn Fn(&'a NodeFacts) -> (&'a str, Digest),
) {
    let mut queues: BTreeMap<&str, Vec<(Digest, &Arc<NodeFacts>)>> = BTreeMap::new();
    for node in others {
        let (zone, order) = place(node);
        queues.entry(zone).or_default().push((order, node));
    }
    let mut held: BTreeMap<&str, usize> = BTreeMap::new();
    for node in chosen.iter() {
        *held.entry(place(node).0).or_default() += 1;
    }
    for queue in queues.values_mut() {
        queue.sort_unstable_by_key(|(order, _)| std::cmp::Reverse(*order));
    }
    while chosen.len() < wanted {
        let next = queues
            .iter()
            .filter_map(|(zone, queue)| {
                let (order, _) = queue.last()?;
                Some((held.get(zone).copied().unwrap_or_default(), *order, *zone))
            })
            .min();
        let Some((_, _, zone)) = next else { return };
        if let Some((_, node)) = queues.get_mut(zone).and_then(Vec::pop) {
            chosen.push(node);
            *held.entry(zone).or_default() += 1;
        }
    }
}

/// A lot of its own for each object and node: otherwise all objects would choose the same nodes.
fn draw(seed: &str, node: &NodeFacts) -> Digest {
    Digest::sha256(format!("{seed} {}", node.name).as_bytes())
}
