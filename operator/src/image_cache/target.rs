//! Pure: does a node belong to a set? Labels as label selectors mean them, taints as pods tolerate them.

use std::collections::{BTreeMap, BTreeSet};

use coral_schema::crd::node_target::{NodeTarget, TaintPolicy};
use k8s_openapi::api::core::v1::{Taint, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};

use super::dereference::NodeFacts;
use super::validate::Mistakes;
use crate::labels::WARMING_TAINT;

/// Which nodes a set means.
#[derive(Debug, Clone)]
pub struct NodeFilter {
    labels: Vec<Requirement>,
    /// Only these, if any are given.
    pub names: Option<BTreeSet<String>>,
    /// Only those on which such pods run, if any are described.
    pub pods: Option<Vec<Requirement>>,
    /// Which these are; none before pods were looked at.
    pub pod_nodes: Option<BTreeSet<String>>,
    /// So many of the matching nodes.
    pub replicas: Option<usize>,
    /// Over whose values replicas are spread.
    pub topology_key: String,
    honor_taints: bool,
    tolerations: Vec<Toleration>,
}

/// One condition on a label. All conditions of a selector have to hold.
#[derive(Debug, Clone)]
pub enum Requirement {
    /// The label has one of these values.
    In(String, BTreeSet<String>),
    /// It has none of these; holds without the label, too.
    NotIn(String, BTreeSet<String>),
    /// It is there.
    Exists(String),
    /// It is not.
    Absent(String),
}

impl NodeFilter {
    pub(super) fn new(target: &NodeTarget, path: &str, mistakes: &mut Mistakes) -> Self {
        if target.taint_policy == TaintPolicy::Unknown {
            let message = "is a word that this version does not know";
            mistakes.add(format!("{path}.taintPolicy"), message);
        }
        let pods = target.pod_selector.as_ref();
        Self {
            pods: pods
                .map(|pods| requirements(Some(pods), &format!("{path}.podSelector"), mistakes)),
            pod_nodes: None,
            labels: requirements(
                target.selector.as_ref(),
                &format!("{path}.selector"),
                mistakes,
            ),
            names: target
                .names
                .as_ref()
                .map(|names| names.iter().cloned().collect()),
            replicas: target
                .replicas
                .map(|replicas| usize::try_from(replicas).unwrap_or(usize::MAX)),
            topology_key: target.topology_key().to_owned(),
            honor_taints: target.taint_policy == TaintPolicy::Honor,
            tolerations: target.tolerations.clone().unwrap_or_default(),
        }
    }

    /// Does the set mean this node? Readiness is another question.
    pub fn matches(&self, node: &NodeFacts) -> bool {
        node.is_linux()
            && self
                .names
                .as_ref()
                .is_none_or(|names| names.contains(&*node.name))
            && (self.pods.is_none()
                || self
                    .pod_nodes
                    .as_ref()
                    .is_some_and(|names| names.contains(&*node.name)))
            && self.labels.iter().all(|label| label.holds(&node.labels))
            && (!self.honor_taints || node.taints.iter().all(|taint| self.tolerates(taint)))
    }

    fn tolerates(&self, taint: &Taint) -> bool {
        taint.effect == "PreferNoSchedule"
            || CONDITION_TAINTS.contains(&taint.key.as_str())
            || self
                .tolerations
                .iter()
                .any(|toleration| tolerates(toleration, taint))
    }
}

/// Taints that say how a node does, not whom it is for. They come and go with its health, which is counted otherwise
/// (skipped nodes), and with ours: were they honoured, a reboot would withdraw wishes, and purge.
const CONDITION_TAINTS: [&str; 7] = [
    "node.kubernetes.io/not-ready",
    "node.kubernetes.io/unreachable",
    "node.kubernetes.io/disk-pressure",
    "node.kubernetes.io/memory-pressure",
    "node.kubernetes.io/pid-pressure",
    "node.kubernetes.io/network-unavailable",
    WARMING_TAINT,
];

/// As `ToleratesTaint` of `k8s.io/component-helpers` decides it.
fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let key = toleration.key.as_deref().unwrap_or_default();
    let value = toleration.value.as_deref().unwrap_or_default();
    let taint_value = taint.value.as_deref().unwrap_or_default();
    let effect = toleration.effect.as_deref().unwrap_or_default();
    if !(effect.is_empty() || effect == taint.effect) || !(key.is_empty() || key == taint.key) {
        return false;
    }
    let compare = |holds: fn(&i64, &i64) -> bool| {
        let numbers = (taint_value.parse().ok()).zip(value.parse().ok());
        numbers.is_some_and(|(taint, limit)| holds(&taint, &limit))
    };
    match toleration.operator.as_deref().unwrap_or_default() {
        "" | "Equal" => !key.is_empty() && value == taint_value,
        "Exists" => true,
        "Gt" => compare(i64::gt),
        "Lt" => compare(i64::lt),
        _ => false,
    }
}

/// `path` is the selector's own, for what is wrong in it.
pub(super) fn requirements(
    selector: Option<&LabelSelector>,
    path: &str,
    mistakes: &mut Mistakes,
) -> Vec<Requirement> {
    let labels = selector.and_then(|selector| selector.match_labels.as_ref());
    let labels = labels
        .into_iter()
        .flatten()
        .map(|(key, value)| Requirement::In(key.clone(), BTreeSet::from([value.clone()])));
    let mut all: Vec<Requirement> = labels.collect();
    let expressions = selector.and_then(|selector| selector.match_expressions.as_ref());
    for (index, expression) in expressions.into_iter().flatten().enumerate() {
        match requirement(expression) {
            Ok(requirement) => all.push(requirement),
            Err(message) => mistakes.add(format!("{path}.matchExpressions[{index}]"), message),
        }
    }
    all
}

fn requirement(expression: &LabelSelectorRequirement) -> Result<Requirement, &'static str> {
    let key = expression.key.clone();
    let values: BTreeSet<String> = expression.values.iter().flatten().cloned().collect();
    match (expression.operator.as_str(), values.is_empty()) {
        ("In", false) => Ok(Requirement::In(key, values)),
        ("NotIn", false) => Ok(Requirement::NotIn(key, values)),
        ("In" | "NotIn", true) => Err("In and NotIn need values"),
        ("Exists", true) => Ok(Requirement::Exists(key)),
        ("DoesNotExist", true) => Ok(Requirement::Absent(key)),
        ("Exists" | "DoesNotExist", false) => Err("Exists and DoesNotExist take no values"),
        _ => Err("the operator is In, NotIn, Exists or DoesNotExist"),
    }
}

impl Requirement {
    pub(super) fn holds(&self, labels: &BTreeMap<String, String>) -> bool {
        match self {
            Self::In(key, values) => labels.get(key).is_some_and(|value| values.contains(value)),
            Self::NotIn(key, values) => labels.get(key).is_none_or(|value| !values.contains(value)),
            Self::Exists(key) => labels.contains_key(key),
            Self::Absent(key) => !labels.contains_key(key),
        }
    }
}

#[cfg(test)]
mod tests;
