//! Nodes that are only objects, and what stands for their warmers: it answers every new spec with a status in which all
//! is held.

use std::collections::HashSet;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use coral_schema::crd::NodeCache;
use coral_schema::crd::node_cache::NodeCacheSpec;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::api::core::v1::Node;
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::sleep;

/// Requests at once: of thousands of warmers together.
const REQUESTS: usize = 16;
/// How long a warmer needs for all its images.
const PULL: Duration = Duration::from_secs(1);

/// The nodes, and the task that plays their warmers.
#[derive(Debug)]
pub(super) struct Fleet {
    nodes: usize,
    state: Arc<State>,
    _warmers: JoinSet<()>,
}

#[derive(Debug, Default)]
struct State {
    warm: AtomicUsize,
    largest: AtomicUsize,
}

impl Fleet {
    /// Makes the nodes; one is warm when it holds `images`.
    pub(super) async fn start(
        client: &Client,
        nodes: usize,
        images: usize,
    ) -> anyhow::Result<Self> {
        let api: Api<Node> = Api::all(client.clone());
        let made = stream::iter(0..nodes).map(|number| {
            let api = api.clone();
            async move {
                api.create(&PostParams::default(), &node(number)?)
                    .await
                    .context("a Node")
            }
        });
        made.buffer_unordered(REQUESTS)
            .try_for_each(|_| async { Ok(()) })
            .await?;
        let state = Arc::new(State::default());
        let mut warmers = JoinSet::new();
        warmers.spawn(play(client.clone(), images, Arc::clone(&state)));
        Ok(Self {
            nodes,
            state,
            _warmers: warmers,
        })
    }

    pub(super) fn warm(&self) -> usize {
        self.state.warm.load(Ordering::Relaxed)
    }

    pub(super) fn all_are_warm(&self) -> bool {
        self.warm() == self.nodes
    }

    /// Length of the longest `NodeCache`, bytes.
    pub(super) fn largest(&self) -> usize {
        self.state.largest.load(Ordering::Relaxed)
    }
}

fn node(number: usize) -> anyhow::Result<Node> {
    let name = format!("node-{number:05}");
    Ok(serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": name, "labels": {
            "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64", "kubernetes.io/hostname": name,
            "topology.kubernetes.io/zone": format!("zone-{}", number % 3),
        } },
        "status": {
            "conditions": [{
                "type": "Ready", "status": "True", "reason": "KubeletReady", "message": "",
                "lastTransitionTime": "2026-01-01T00:00:00Z", "lastHeartbeatTime": "2026-01-01T00:00:00Z",
            }],
            "nodeInfo": {
                "operatingSystem": "linux", "architecture": "amd64", "kubeletVersion": "v1.36.3",
                "containerRuntimeVersion": "containerd://2.4.2", "machineID": "", "systemUUID": "", "bootID": "",
                "kernelVersion": "", "osImage": "", "kubeProxyVersion": "",
            },
        },
    }))?)
}

/// Answers each generation of each spec once, until it is dropped.
async fn play(client: Client, images: usize, state: Arc<State>) {
    let api: Api<NodeCache> = Api::all(client);
    let mut seen = pin!(
        watcher(api.clone(), watcher::Config::default())
            .default_backoff()
            .applied_objects()
    );
    let room = Arc::new(Semaphore::new(REQUESTS));
    let (mut answered, mut warm) = (HashSet::new(), HashSet::new());
    let mut answers = JoinSet::new();
    while let Some(event) = seen.next().await {
        let Ok(object) = event else { continue };
        let (Some(name), Some(generation)) =
            (object.metadata.name.clone(), object.metadata.generation)
        else {
            continue;
        };
        let length = serde_json::to_vec(&object).map_or(0, |bytes| bytes.len());
        state.largest.fetch_max(length, Ordering::Relaxed);
        let reported = object.status.as_ref().is_some_and(|status| {
            status.observed_generation == Some(generation) && status.images.len() == images
        });
        if reported && warm.insert(name.clone()) {
            state.warm.fetch_add(1, Ordering::Relaxed);
        }
        if answered.insert((name.clone(), generation)) {
            answers.spawn(answer(
                api.clone(),
                name,
                status(&object.spec, generation),
                Arc::clone(&room),
            ));
        }
        while answers.try_join_next().is_some() {}
    }
}

async fn answer(api: Api<NodeCache>, name: String, status: Value, room: Arc<Semaphore>) {
    sleep(PULL).await;
    let object = json!({
        "apiVersion": "coral.dev/v1alpha1", "kind": "NodeCache", "metadata": { "name": name }, "status": status,
    });
    let params = PatchParams::apply("coral-warmer").force();
    loop {
        let Ok(_permit) = room.acquire().await else {
            return;
        };
        if api
            .patch_status(&name, &params, &Patch::Apply(&object))
            .await
            .is_ok()
        {
            return;
        }
        sleep(PULL).await;
    }
}

fn status(spec: &NodeCacheSpec, generation: i64) -> Value {
    let held = spec.images.iter().map(|image| {
        json!({
            "ref": image.reference, "state": "Ready", "digest": image.digest, "sizeBytes": 4096,
            "pulledByUs": true, "revision": image.revision, "lastTransition": "2026-01-01T00:00:00Z",
        })
    });
    let held: Vec<Value> = held.collect();
    let condition = |kind: &str, reason: &str| {
        json!({
            "type": kind, "status": "True", "reason": reason, "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z", "observedGeneration": generation,
        })
    };
    json!({
        "observedGeneration": generation, "nodeUID": spec.node_uid,
        "conditions": [
            condition("Ready", "Warm"), condition("RuntimeReachable", "Reachable"),
            condition("StorageAvailable", "Enough"), condition("MirrorConfigured", "Written"),
        ],
        "runtime": { "name": "containerd", "version": "v2.4.2" },
        "imageFS": { "capacityBytes": 100_000_000_000_u64, "usedBytes": 10_000_000_000_u64, "usedPercent": 10 },
        "desired": held.len(), "ready": held.len(), "images": held, "firstReadyTime": "2026-01-01T00:00:00Z",
    })
}
