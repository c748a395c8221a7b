use std::path::Path;

use super::*;

/// Long enough for a busy machine; a test that waits for it has failed.
const PATIENCE: Duration = Duration::from_secs(20);

struct Watched {
    folder: tempfile::TempDir,
    watch: Arc<ConfigWatch>,
    metrics: Registry,
    stopping: CancellationToken,
    running: tokio::task::JoinHandle<()>,
}

impl Watched {
    fn new(text: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("coral.yaml");
        std::fs::write(&file, text).unwrap();
        let overrides = Overrides::default();
        let config = super::super::load(Some(&file), &overrides).unwrap().config;
        let mut metrics = Registry::default();
        let watch = Arc::new(ConfigWatch::new(config, ReloadState::Current, &mut metrics));
        let stopping = CancellationToken::new();
        let source = Source {
            file,
            overrides,
            period: Duration::from_millis(2),
        };
        let tasks = coral_schema::process::tasks::Tasks::new();
        let running = tasks.spawn(
            "watch",
            Arc::clone(&watch).run(source, Arc::new(|_: &Config| Ok(())), stopping.clone()),
        );
        Self {
            folder,
            watch,
            metrics,
            stopping,
            running,
        }
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("coral.yaml")
    }

    /// As editors do it: never a half written file.
    fn write(&self, text: &str) {
        replace(&self.file(), text);
    }

    async fn state(&self, wanted: impl FnMut(&ReloadState) -> bool) -> ReloadState {
        let mut state = self.watch.state();
        let found = tokio::time::timeout(PATIENCE, state.wait_for(wanted)).await;
        found.unwrap().unwrap().clone()
    }

    async fn refused(&self, part: &str) -> String {
        let wanted =
            |state: &ReloadState| matches!(state, ReloadState::Refused(why) if why.contains(part));
        match self.state(wanted).await {
            ReloadState::Refused(why) => why,
            other => panic!("{other:?}"),
        }
    }

    async fn in_force(&self, wanted: impl FnMut(&Arc<Config>) -> bool) -> Arc<Config> {
        let mut config = self.watch.config();
        let found = tokio::time::timeout(PATIENCE, config.wait_for(wanted)).await;
        found.unwrap().unwrap().clone()
    }

    fn counted(&self) -> (String, String) {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.metrics).unwrap();
        let count = |result: &str| {
            let start = format!("config_reloads_total{{result=\"{result}\"}} ");
            let line = text.lines().find_map(|line| line.strip_prefix(&start));
            line.unwrap().to_owned()
        };
        (count("applied"), count("refused"))
    }
}

fn replace(file: &Path, text: &str) {
    let next = file.with_extension("next");
    std::fs::write(&next, text).unwrap();
    std::fs::rename(next, file).unwrap();
}

fn counts(applied: &str, refused: &str) -> (String, String) {
    (applied.to_owned(), refused.to_owned())
}

#[tokio::test]
async fn a_valid_change_is_in_force_and_counted() {
    let watched = Watched::new("connections: 10\n");
    watched.write("connections: 20\n");
    watched.in_force(|config| config.connections == 20).await;
    assert_eq!(watched.counted(), counts("1", "0"));
    watched.stopping.cancel();
    let ended = tokio::time::timeout(PATIENCE, watched.running).await;
    ended.unwrap().unwrap();
}

#[tokio::test]
async fn an_invalid_change_is_refused_and_the_old_one_stays() {
    let watched = Watched::new("connections: 10\n");
    watched.write("connections: many\n");
    let why = watched.refused("whole number").await;
    assert!(why.contains("coral.yaml:1:14: connections: "), "{why}");
    assert_eq!(watched.watch.config().borrow().connections, 10);

    // The same content is refused again and again, but counted once; another one is counted.
    watched.write("connections: none\n");
    watched.refused("none").await;
    watched.write("connections: 10\n");
    watched.state(|state| *state == ReloadState::Current).await;
    assert_eq!(watched.counted(), counts("0", "2"));
}

#[tokio::test]
async fn changes_that_need_a_restart_are_refused_as_a_whole() {
    let watched = Watched::new("connections: 10\n");
    watched.write("connections: 20\nlisten: 127.0.0.1:5001\nstore: { maxBytes: 1Gi }\n");
    let why = watched.refused("needs a restart").await;
    assert_eq!(why.lines().count(), 2, "{why}");
    assert!(
        why.contains(": listen: ") && why.contains(": store: "),
        "{why}"
    );
    assert_eq!(watched.watch.config().borrow().connections, 10);
}

#[tokio::test]
async fn a_file_that_goes_is_refused_and_may_come_back() {
    let watched = Watched::new("connections: 10\n");
    std::fs::remove_file(watched.file()).unwrap();
    watched.refused("cannot be read").await;
    watched.write("connections: 11\n");
    watched.in_force(|config| config.connections == 11).await;
}

/// A secret's volume may be mounted or updated after the configuration's.
#[tokio::test]
async fn a_named_file_may_arrive_later() {
    let watched = Watched::new("connections: 10\n");
    let secret = watched.folder.path().join("secret");
    watched.write(&format!(
        "connections: 11\nupstreams: {{ ghcr.io: {{ credentials: [{{ tokenFile: {} }}] }} }}\n",
        secret.display()
    ));
    watched.refused("the file cannot be read").await;
    std::fs::write(&secret, "token").unwrap();
    watched.in_force(|config| config.connections == 11).await;
    watched.state(|state| *state == ReloadState::Current).await;
    assert_eq!(watched.counted(), counts("1", "1"));
}

/// Kubernetes mounts a `ConfigMap` as links: the file → `..data/file`, `..data` → a folder that is swapped.
#[tokio::test]
async fn a_swapped_link_is_seen() {
    use std::os::unix::fs::symlink;

    let watched = Watched::new("connections: 10\n");
    let folder = watched.folder.path();
    for (version, text) in [("1", "connections: 10\n"), ("2", "connections: 12\n")] {
        std::fs::create_dir(folder.join(version)).unwrap();
        std::fs::write(folder.join(version).join("coral.yaml"), text).unwrap();
    }
    symlink("1", folder.join("..data")).unwrap();
    symlink("..data/coral.yaml", folder.join("link")).unwrap();
    std::fs::rename(folder.join("link"), watched.file()).unwrap();
    symlink("2", folder.join("..next")).unwrap();
    std::fs::rename(folder.join("..next"), folder.join("..data")).unwrap();
    watched.in_force(|config| config.connections == 12).await;
}

/// H-36: under constant change every snapshot is one whole configuration, and a snapshot that was taken stays as it is.
#[tokio::test]
async fn h36_snapshots_are_whole_while_the_file_changes() {
    let texts = [
        "connections: 1\nshutdownGrace: 1s\n",
        "connections: 2\nshutdownGrace: 2s\n",
        "connections: 3\nshutdownGrace: broken\n",
    ];
    let watched = Watched::new(texts[0]);
    let file = watched.file();
    let writing = tokio::task::spawn_blocking(move || {
        for round in 0..300 {
            replace(&file, texts[round % texts.len()]);
        }
        replace(&file, texts[1]);
    });
    let whole =
        |config: &Config| config.shutdown_grace == Duration::from_secs(config.connections as u64);
    let mut receiver = watched.watch.config();
    let first = receiver.borrow().clone();
    let reading = async {
        loop {
            let config = receiver.borrow_and_update().clone();
            assert!(whole(&config) && config.connections < 3, "{config:?}");
            if writing.is_finished() && config.connections == 2 {
                break;
            }
            // Woken by a change, or to look whether the writer has ended.
            let _ = tokio::time::timeout(Duration::from_millis(10), receiver.changed()).await;
        }
    };
    tokio::time::timeout(PATIENCE, reading).await.unwrap();
    assert_eq!(first.connections, 1);
}
