//! What a containerd says of the pulls that it was asked for: the runtime's own word on what happened when.

use jiff::Timestamp;

/// A pull began or ended.
#[derive(Clone, Debug)]
pub(crate) struct PullEvent {
    /// In nanoseconds; all nodes have the clock of this machine.
    pub(crate) time: Timestamp,
    /// As it was asked for.
    pub(crate) image: String,
    pub(crate) what: What,
}

/// What happened to it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum What {
    Began,
    Held,
    /// With the error.
    Failed(String),
}

/// Those in a log of containerd, which for each has a line like
/// `time="2026-01-01T00:00:00.123456789Z" level=info msg="PullImage \"nginx:1\" returns image reference \"sha256:…\""`.
pub(super) fn events(log: &str) -> Vec<PullEvent> {
    log.lines().filter_map(event).collect()
}

fn event(line: &str) -> Option<PullEvent> {
    let (time, line) = line.strip_prefix("time=\"")?.split_once('"')?;
    let (_, line) = line.split_once("msg=\"PullImage \\\"")?;
    let (image, line) = line.split_once("\\\"")?;
    let what = if line.starts_with('"') {
        What::Began
    } else if line.starts_with(" returns") {
        What::Held
    } else {
        What::Failed(line.strip_prefix(" failed")?.to_owned())
    };
    Some(PullEvent {
        time: time.parse().unwrap(),
        image: image.to_owned(),
        what,
    })
}
