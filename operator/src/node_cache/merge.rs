//! Pure: the wishes of a node to its spec. The same input gives the same bytes.
//!
//! Where objects wish for the same image, the one of higher priority, then the older one, then the first by name decides
//! digest, policy and retry; the others are told. What left the list is purged if all owners that left with it say so, and
//! no pod on the node names it. While any owner is left, and while an object that owned it cannot be evaluated, it stays.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use coral_schema::crd::MOST_IMAGES;
use coral_schema::crd::node_cache::{Budget, Mirror, NodeCacheSpec, NodeImage, PurgeWish};
use coral_schema::duration::HumanDuration;
use coral_schema::oci::ImageReference;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::stored::Stored;
use super::wishes::{NodeWish, ObjectKey, ObjectWishes, Owner, Verdict, Wishes};

/// What a node's spec depends on, beside wishes.
#[derive(Debug, Clone, Copy)]
pub struct Circumstances<'a> {
    /// UID of the Node.
    pub uid: &'a str,
    /// Annotation `coral.dev/paused` of the Node.
    pub paused: bool,
    /// The stored object, if there is one.
    pub stored: Option<&'a Stored>,
    /// What pods on the node name, from a live list. Nothing when it was not asked: what would be purged then stays.
    pub pods: Option<&'a HashSet<ImageReference>>,
    /// The same for all nodes.
    pub cluster: &'a Cluster,
    /// Wall clock.
    pub now: Timestamp,
}

/// What is the same for all nodes.
#[derive(Debug, Clone, Default)]
pub struct Cluster {
    /// How many nodes there are.
    pub nodes: usize,
    /// The cache, as nodes reach it.
    pub mirror: Option<Mirror>,
}

/// A node's spec, and what to tell.
#[derive(Debug, PartialEq)]
pub struct Merged {
    /// What to write.
    pub spec: NodeCacheSpec,
    /// For the statuses of objects: [`Wishes::record`].
    pub verdicts: Vec<(ObjectKey, Verdict)>,
    /// Would be purged if pods were asked for: list them, and merge again.
    pub undecided: Vec<String>,
    /// Left the list and is not purged, since a pod names it, with those that wanted it purged: for events.
    pub in_use: Vec<(String, Vec<ObjectKey>)>,
}

/// Makes the spec of one node.
pub fn merge(node: &str, wishes: &Wishes, around: &Circumstances<'_>) -> Merged {
    let stored = around
        .stored
        .filter(|stored| stored.spec.node_uid == around.uid);
    let mut candidates = collect(node, wishes);
    let mut departures = Departures::default();
    let before = stored.map_or(&[][..], |stored| &stored.spec.images);
    for image in before {
        match candidates.get_mut(image.reference.as_str()) {
            Some(candidate) => {
                candidate.keep_owners(image, wishes);
                candidate.stored = (image.digest.as_ref(), image.revision);
            }
            None => departures.add(image, wishes, around),
        }
    }
    let mut verdicts = Vec::new();
    let mut images: Vec<NodeImage> = departures.stay;
    images.extend(
        candidates
            .into_values()
            .map(|candidate| candidate.decide(&mut verdicts)),
    );
    truncate(&mut images, wishes, node, &mut verdicts);
    images.sort_unstable_by(|a, b| a.reference.cmp(&b.reference));
    verdicts.sort_unstable();
    let purge = purge_list(stored, &images, departures.purge, around.now);
    Merged {
        spec: NodeCacheSpec {
            node_uid: around.uid.to_owned(),
            report_interval: report_interval(stored, around.cluster.nodes),
            look_interval: HumanDuration::from_secs(LOOK_INTERVAL_SECS),
            images,
            purge,
            budget: stored.map_or_else(Budget::default, |stored| stored.spec.budget.clone()),
            mirror: around.cluster.mirror.clone(),
            paused: around.paused,
        },
        verdicts,
        undecided: departures.undecided,
        in_use: departures.in_use,
    }
}

/// All wishes for one image.
struct Candidate<'a> {
    reference: &'a Arc<str>,
    /// By rank.
    wishes: Vec<(&'a ObjectWishes, NodeWish)>,
    /// Owners in the stored object that cannot be evaluated now.
    kept: Vec<String>,
    /// Digest and revision in the stored object.
    stored: (Option<&'a String>, u64),
}

/// Smaller decides.
fn rank(wishes: &ObjectWishes) -> (Reverse<i32>, Timestamp, &ObjectKey) {
    (Reverse(wishes.priority), wishes.created, &wishes.object)
}

fn collect<'a>(node: &str, wishes: &'a Wishes) -> BTreeMap<&'a str, Candidate<'a>> {
    let mut all: BTreeMap<&str, Candidate<'_>> = BTreeMap::new();
    let mut objects: Vec<_> = wishes.at(node).collect();
    objects.sort_unstable_by(|(a, _), (b, _)| rank(a).cmp(&rank(b)));
    for (object, wishes) in objects {
        for wish in wishes {
            let reference = &object.images[wish.image].reference;
            let candidate = all.entry(reference).or_insert_with(|| Candidate {
                reference,
                wishes: Vec::new(),
                kept: Vec::new(),
                stored: (None, 0),
            });
            candidate.wishes.push((object, *wish));
        }
    }
    all
}

impl Candidate<'_> {
    /// Owners that cannot be evaluated stay owners.
    fn keep_owners(&mut self, stored: &NodeImage, wishes: &Wishes) {
        let kept = stored.owners.iter().filter(|text| {
            text.parse::<Owner>()
                .is_ok_and(|owner| wishes.is_kept(&owner.object))
        });
        self.kept = kept.cloned().collect();
    }

    /// The first wish decides.
    fn decide(self, verdicts: &mut Vec<(ObjectKey, Verdict)>) -> NodeImage {
        let (owners, more_owners) = self.owners();
        let (winner, wish) = self.wishes[0];
        let facts = &winner.images[wish.image];
        for (loser, other) in &self.wishes[1..] {
            let differs = other.policy != wish.policy
                || loser.retry != winner.retry
                || loser.on_eviction != winner.on_eviction
                || loser.tag_policy != winner.tag_policy
                || differ(
                    loser.images[other.image].digest.as_ref(),
                    facts.digest.as_ref(),
                );
            if differs {
                let verdict = Verdict::Conflict {
                    reference: Arc::clone(self.reference),
                    winner: winner.object.clone(),
                };
                verdicts.push((loser.object.clone(), verdict));
            }
        }
        // Whoever asks for another try gets it; newer content only where the first wish follows it.
        let counts = |other: &&(&ObjectWishes, NodeWish)| !other.1.follows || wish.follows;
        let revisions = self.wishes.iter().filter(counts);
        let revision = revisions.map(|(_, wish)| wish.revision).max();
        let revision = revision.unwrap_or(wish.revision).max(self.stored.1);
        // What a tag means by now is no reason to write to every node: it stands there when the node is sent for it.
        let digest = self.stored.0.filter(|_| self.stored.1 >= revision);
        NodeImage {
            reference: self.reference.to_string(),
            digest: digest.cloned().or_else(|| facts.digest.clone()),
            size_bytes: facts.size_bytes,
            revision,
            priority: winner.priority,
            registry_policy: wish.policy,
            on_eviction: winner.on_eviction,
            // A pin takes nothing from those who did not ask for it.
            protect: self.wishes.iter().any(|(object, _)| object.protect),
            retry: winner.retry.clone(),
            owners,
            more_owners,
        }
    }

    /// Replica sets first: their nodes are read back from here. The rest is counted.
    fn owners(&self) -> (Vec<String>, u32) {
        let mut owners: Vec<(bool, String)> = Vec::new();
        for (object, wish) in &self.wishes {
            for (index, set) in object.sets.iter().enumerate() {
                if wish.sets & (1 << index) != 0 {
                    let owner = Owner {
                        object: object.object.clone(),
                        set: set.name.clone(),
                    };
                    owners.push((!set.replicas, owner.to_string()));
                }
            }
        }
        owners.extend(self.kept.iter().map(|owner| (false, owner.clone())));
        owners.sort_unstable();
        owners.dedup_by(|a, b| a.1 == b.1);
        let more = owners.len().saturating_sub(MOST_OWNERS);
        let owners = owners.into_iter().take(MOST_OWNERS);
        (
            owners.map(|(_, owner)| owner).collect(),
            u32::try_from(more).unwrap_or(u32::MAX),
        )
    }
}

/// Two known digests; one that is not known yet agrees with all.
fn differ(one: Option<&String>, other: Option<&String>) -> bool {
    one.zip(other).is_some_and(|(one, other)| one != other)
}

const MOST_OWNERS: usize = 16;

/// What nobody who can be evaluated wishes for any more.
#[derive(Default)]
struct Departures {
    /// As it was: an owner cannot be evaluated, or pods were not asked.
    stay: Vec<NodeImage>,
    purge: Vec<(String, Duration)>,
    undecided: Vec<String>,
    in_use: Vec<(String, Vec<ObjectKey>)>,
}

impl Departures {
    fn add(&mut self, image: &NodeImage, wishes: &Wishes, around: &Circumstances<'_>) {
        let owners: Vec<Owner> = image
            .owners
            .iter()
            .filter_map(|owner| owner.parse().ok())
            .collect();
        let kept = |owner: &&String| {
            let parsed: Result<Owner, _> = owner.parse();
            parsed.is_ok_and(|owner| wishes.is_kept(&owner.object))
        };
        let left: Vec<String> = image.owners.iter().filter(kept).cloned().collect();
        if !left.is_empty() || (image.more_owners > 0 && wishes.any_kept()) {
            self.stay.push(NodeImage {
                owners: left,
                ..image.clone()
            });
            return;
        }
        let Some(timeout) = purge_timeout(&owners, wishes) else {
            return;
        };
        match around.pods {
            None => {
                self.undecided.push(image.reference.clone());
                self.stay.push(image.clone());
            }
            Some(pods) if names(pods, &image.reference) => {
                let mut objects: Vec<ObjectKey> =
                    owners.into_iter().map(|owner| owner.object).collect();
                objects.dedup();
                self.in_use.push((image.reference.clone(), objects));
            }
            Some(_) => self.purge.push((image.reference.clone(), timeout)),
        }
    }
}

/// Owners that leave together all have to say `PurgeUnused`; one that is gone without a trace said `Retain`: the finalizer
/// holds an object that purges.
fn purge_timeout(owners: &[Owner], wishes: &Wishes) -> Option<Duration> {
    let timeouts: Option<Vec<Duration>> = owners
        .iter()
        .map(|owner| wishes.of(&owner.object)?.purge)
        .collect();
    timeouts?.into_iter().max()
}

/// Another spelling of the same image is the same image.
fn names(pods: &HashSet<ImageReference>, reference: &str) -> bool {
    reference
        .parse()
        .is_ok_and(|reference: ImageReference| pods.contains(&reference))
}

/// What does not fit is left out by priority, then size of the name; all its owners are told.
fn truncate(
    images: &mut Vec<NodeImage>,
    wishes: &Wishes,
    node: &str,
    verdicts: &mut Vec<(ObjectKey, Verdict)>,
) {
    if images.len() <= MOST_IMAGES {
        return;
    }
    // Everything by age: what was held first stays, so that a late comer of equal rank does not push others out.
    let mut ages: HashMap<&str, Timestamp> = HashMap::new();
    for (object, wishes) in wishes.at(node) {
        for wish in wishes {
            let age = ages
                .entry(&object.images[wish.image].reference)
                .or_insert(object.created);
            *age = object.created.min(*age);
        }
    }
    images.sort_by(|a, b| {
        let key = |image: &NodeImage| {
            let age = ages.get(image.reference.as_str()).copied();
            (Reverse(image.priority), age)
        };
        key(a)
            .cmp(&key(b))
            .then_with(|| a.reference.cmp(&b.reference))
    });
    let left_out: HashSet<String> = images
        .drain(MOST_IMAGES..)
        .map(|image| image.reference)
        .collect();
    for (object, wishes) in wishes.at(node) {
        for wish in wishes {
            let reference = &object.images[wish.image].reference;
            if left_out.contains(&**reference) {
                let verdict = Verdict::LeftOut {
                    reference: Arc::clone(reference),
                };
                verdicts.push((object.object.clone(), verdict));
            }
        }
    }
}

/// Earlier wishes stay as they are until they are answered, void, or withdrawn since somebody wants the image again.
fn purge_list(
    stored: Option<&Stored>,
    images: &[NodeImage],
    leaving: Vec<(String, Duration)>,
    now: Timestamp,
) -> Vec<PurgeWish> {
    let wanted: HashSet<&str> = images
        .iter()
        .map(|image| image.reference.as_str())
        .collect();
    let answered = stored.map(answered).unwrap_or_default();
    let earlier = stored.into_iter().flat_map(|stored| &stored.spec.purge);
    let earlier = earlier.filter(|wish| {
        let reference = wish.reference.as_str();
        wish.not_after.0 > now && !answered.contains(reference) && !wanted.contains(reference)
    });
    let mut all: BTreeMap<String, Time> = earlier
        .map(|wish| (wish.reference.clone(), wish.not_after.clone()))
        .collect();
    for (reference, timeout) in leaving {
        all.entry(reference).or_insert_with(|| {
            let end = now.saturating_add(timeout).unwrap_or(Timestamp::MAX);
            // Kubernetes keeps seconds: what is read back equals what was written.
            Time(Timestamp::from_second(end.as_second()).unwrap_or(end))
        });
    }
    let wishes = all.into_iter().take(MOST_IMAGES);
    wishes
        .map(|(reference, not_after)| PurgeWish {
            reference,
            not_after,
        })
        .collect()
}

/// What the warmer said of the spec that is stored now.
fn answered(stored: &Stored) -> HashSet<&str> {
    let Some(status) = &stored.status else {
        return HashSet::new();
    };
    let is_current = status.node_uid.as_ref() == Some(&stored.spec.node_uid)
        && status.observed_generation >= stored.metadata.generation;
    let outcomes = status.purge.iter().filter(|_| is_current);
    outcomes.map(|outcome| outcome.reference.as_str()).collect()
}

/// `max(5 s, nodes / 50 s)`, changed only when off by a factor of two: 5000 nodes write at most 50 times a second, and a
/// new node does not mean a write to all (L18).
fn report_interval(stored: Option<&Stored>, nodes: usize) -> HumanDuration {
    let seconds = u64::try_from(nodes.div_ceil(50)).unwrap_or(u64::MAX);
    let right = HumanDuration::from_secs(seconds.max(5));
    match stored.map(|stored| stored.spec.report_interval) {
        Some(now) if now.0 * 2 > right.0 && now.0 < right.0 * 2 => now,
        Some(_) | None => right,
    }
}

/// Warmers spread their looks around it.
const LOOK_INTERVAL_SECS: u64 = 180;

#[cfg(test)]
mod tests;
