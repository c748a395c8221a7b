//! Processes that die with their test, ports, folders, and waiting without luck.

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::time::Instant;

/// How long any one client command may take. Far above what is seen; a hang must end as a failure with its output.
const CLIENT_DEADLINE: Duration = Duration::from_mins(3);
/// How long a process has to start serving. containerd and dockerd on a busy two-core machine take seconds.
const START_DEADLINE: Duration = Duration::from_mins(1);
/// Many a look starts a client program, and there are two cores.
const BETWEEN_POLLS: Duration = Duration::from_millis(100);

/// A server of this test. It is killed when the value is dropped, and by the kernel when the test program dies.
pub(crate) struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts the command; what it prints goes to `log`, appended.
    pub(crate) fn spawn(name: &str, mut command: Command, log: &Path) -> Self {
        let output = File::options().create(true).append(true).open(log).unwrap();
        let child = command
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .unwrap_or_else(|error| panic!("{name} does not start: {error}"));
        Self {
            name: name.to_owned(),
            child,
            log: log.to_owned(),
        }
    }

    /// Waits until `probe` answers true, and fails with the log when the process ends or the time is over.
    pub(crate) async fn ready(mut self, mut probe: impl AsyncFnMut() -> bool) -> Self {
        let deadline = Instant::now() + START_DEADLINE;
        while !probe().await {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!(
                    "{} ended with {status} at its start:\n{}",
                    self.name,
                    self.log()
                );
            }
            assert!(
                Instant::now() < deadline,
                "{} is not ready:\n{}",
                self.name,
                self.log()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        self
    }

    /// All it has printed.
    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap()).into_owned()
    }

    /// Sends a signal to this process alone.
    pub(crate) fn signal(&self, signal: Signal) {
        send(self.id(), signal);
    }

    /// Its number.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its child, if it has exactly one: what `nsenter` or `unshare` runs in another PID namespace.
    pub(crate) fn child(&self) -> Option<u32> {
        let children = format!("/proc/{0}/task/{0}/children", self.id());
        std::fs::read_to_string(children).ok()?.trim().parse().ok()
    }

    /// Sends a signal to that child.
    pub(crate) fn signal_child(&self, signal: Signal) {
        if let Some(child) = self.child() {
            send(child, signal);
        }
    }

    /// Blocks until its end, for where it is certain and near.
    pub(crate) fn wait(&mut self) {
        let _ = self.child.wait();
    }

    /// Waits for its end.
    pub(crate) async fn ended(&mut self, within: Duration) -> ExitStatus {
        let deadline = Instant::now() + within;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(
                Instant::now() < deadline,
                "{} does not end:\n{}",
                self.name,
                self.log()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.signal(Signal::CONT);
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            // Its folder may be gone, and a second panic would hide the first.
            let log = std::fs::read(&self.log).unwrap_or_default();
            let log = String::from_utf8_lossy(&log);
            let tail = log.len().saturating_sub(4000);
            let tail = (tail..=log.len())
                .find(|&at| log.is_char_boundary(at))
                .unwrap_or(0);
            say(&format!(
                "---- end of the log of {} ----\n{}",
                self.name,
                &log[tail..]
            ));
        }
    }
}

/// Kills one process.
pub(crate) fn kill(id: u32) {
    send(id, Signal::KILL);
}

fn send(id: u32, signal: Signal) {
    let pid = Pid::from_raw(id.cast_signed()).unwrap();
    // An error means that it ended by itself, which whoever waits for it will see.
    let _ = kill_process(pid, signal);
}

/// What a client command did.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) success: bool,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Outcome {
    /// What it printed on success, its error text on failure.
    pub(crate) fn result(self) -> Result<String, String> {
        if self.success {
            Ok(self.stdout)
        } else {
            Err(self.stderr + &self.stdout)
        }
    }
}

/// Runs a command to its end.
pub(crate) async fn run(command: Command) -> Outcome {
    let shown = format!("{command:?}");
    let mut command = tokio::process::Command::from(command);
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(CLIENT_DEADLINE, command.output())
        .await
        .unwrap_or_else(|_| panic!("no end within {CLIENT_DEADLINE:?}: {shown}"))
        .unwrap_or_else(|error| panic!("{shown}: {error}"));
    Outcome {
        success: output.status.success(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// A command whose process the kernel kills when the thread that started it ends: an aborted run leaves nothing behind.
pub(crate) fn command(program: impl AsRef<Path>) -> Command {
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL", "--"])
        .arg(program.as_ref());
    command
}

/// Polls until there is an answer; fails with `what` after `within`.
pub(crate) async fn eventually<T>(
    what: &str,
    within: Duration,
    probe: impl AsyncFnMut() -> Option<T>,
) -> T {
    let answer = polled(within, probe).await;
    answer.unwrap_or_else(|| panic!("not within {within:?}: {what}"))
}

/// Polls until there is an answer; nothing after `within`.
pub(crate) async fn polled<T>(
    within: Duration,
    mut probe: impl AsyncFnMut() -> Option<T>,
) -> Option<T> {
    let deadline = Instant::now() + within;
    loop {
        let answer = probe().await;
        if answer.is_some() || Instant::now() >= deadline {
            return answer;
        }
        tokio::time::sleep(BETWEEN_POLLS).await;
    }
}

/// A new folder of this test. Names are short: sockets in it may have 107 bytes of path.
pub(crate) fn scratch() -> TempDir {
    let parent = variable("CORAL_REAL_SCRATCH").map_or_else(std::env::temp_dir, PathBuf::from);
    tempfile::Builder::new()
        .prefix("t")
        .rand_bytes(5)
        .tempdir_in(parent)
        .unwrap()
}

/// What names outside of any folder start with; the script that started this run removes what is left of them.
pub(crate) fn run_name() -> String {
    variable("CORAL_REAL_RUN").unwrap_or_else(|| format!("coral-real.{}", std::process::id()))
}

/// A port on loopback that is free now. Taken from below the range the kernel uses for outgoing connections, so it stays
/// free over a restart; runs start at different places.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let run = u16::try_from(std::process::id() % 200).unwrap() * 97;
    for _ in 0..1000 {
        let port = 10_000 + (run + NEXT.fetch_add(1, Ordering::Relaxed)) % 20_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free port on loopback");
}

/// A program that `integration-tests/run` built.
pub(crate) fn tool(name: &str) -> PathBuf {
    variable(name)
        .unwrap_or_else(|| {
            panic!("{name} is not set: start these tests with integration-tests/run")
        })
        .into()
}

/// Reports the running test as skipped; the run fails unless its script allows that.
pub(crate) fn skip(test: &str, reason: &str) {
    use std::io::Write;
    let Some(path) = variable("CORAL_REAL_SKIPS") else {
        return say(&format!("skipped {test}: {reason}"));
    };
    let mut skips = File::options()
        .create(true)
        .append(true)
        .open(path)
        .unwrap();
    writeln!(skips, "{test} {reason}").unwrap();
}

/// Takes a mount out of the way of the folder's removal, even while a process still uses it.
pub(crate) fn unmount(path: &Path) {
    // Nothing is mounted there when a test failed early.
    let _ = Command::new("umount")
        .arg("--lazy")
        .arg(path)
        .stderr(Stdio::null())
        .status();
}

/// A file of the given content in the folder.
pub(crate) fn write(folder: &Path, name: &str, content: &str) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, content).unwrap();
    path
}

/// All files below a folder; none if there is no such folder.
pub(crate) fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found
}

/// What the environment says.
#[expect(
    clippy::disallowed_methods,
    reason = "the script that starts these tests says here where things are"
)]
pub(crate) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

#[expect(
    clippy::print_stderr,
    reason = "shown by the test harness with the failure it explains"
)]
fn say(text: &str) {
    eprintln!("{text}");
}
