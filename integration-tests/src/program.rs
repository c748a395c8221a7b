//! A program that a test or the benchmark started: what it uses, and how it ends.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};

/// A running program with its children. Killed when dropped.
#[derive(Debug)]
pub struct Program {
    child: Child,
    pid: Pid,
}

/// What a program and its children have used.
#[derive(Debug, Clone, Copy, Default)]
pub struct Usage {
    /// Processor time since the start, of both kinds.
    pub cpu: Duration,
    /// Resident memory now, bytes.
    pub rss: u64,
    /// The most resident memory since [`Program::reset_peak`], bytes.
    pub peak_rss: u64,
}

impl Program {
    /// Starts a command; its output goes to `log`.
    pub fn start(mut command: Command, log: &PathBuf) -> anyhow::Result<Self> {
        let file = std::fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(log)?;
        let name = command.as_std().get_program().to_owned();
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("starting {}", name.display()))?;
        let id = child.id().context("the program has ended at once")?;
        let pid = i32::try_from(id).ok().and_then(Pid::from_raw);
        Ok(Self {
            child,
            pid: pid.context("not a process id")?,
        })
    }

    /// Its process id.
    pub fn id(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Sends SIGTERM and waits until it has ended; kills it after `within`. Did it end by itself?
    pub async fn stop(&mut self, within: Duration) -> anyhow::Result<bool> {
        self.signal(Signal::TERM)?;
        let ended = tokio::time::timeout(within, self.child.wait()).await;
        if ended.is_err() {
            self.kill().await?;
        }
        Ok(ended.is_ok())
    }

    /// Sends SIGKILL and waits until it has ended.
    pub async fn kill(&mut self) -> anyhow::Result<()> {
        Ok(self.child.kill().await?)
    }

    /// Sends a signal, if it still runs.
    pub fn signal(&mut self, signal: Signal) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            Some(_) => Ok(()),
            None => Ok(kill_process(self.pid, signal)?),
        }
    }

    /// Its exit status, when it has ended.
    pub fn ended(&mut self) -> anyhow::Result<Option<std::process::ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// What it and its children have used.
    pub fn usage(&self) -> anyhow::Result<Usage> {
        let mut sum = Usage::default();
        for pid in self.family() {
            let Usage { cpu, rss, peak_rss } = usage_of(pid)?;
            sum.cpu += cpu;
            sum.rss += rss;
            sum.peak_rss += peak_rss;
        }
        Ok(sum)
    }

    /// Starts to measure [`Usage::peak_rss`] anew.
    pub fn reset_peak(&self) -> anyhow::Result<()> {
        for pid in self.family() {
            std::fs::write(format!("/proc/{pid}/clear_refs"), "5")?;
        }
        Ok(())
    }

    fn family(&self) -> Vec<i32> {
        let id = self.id();
        let children = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children"));
        let children = children.unwrap_or_default();
        let children = children
            .split_whitespace()
            .filter_map(|pid| pid.parse().ok());
        std::iter::once(id).chain(children).collect()
    }
}

/// What one process has used, without its children.
pub fn usage_of(pid: i32) -> anyhow::Result<Usage> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    Ok(Usage {
        cpu: cpu(&stat).with_context(|| format!("/proc/{pid}/stat"))?,
        rss: kibibytes(&status, "VmRSS:").unwrap_or(0),
        peak_rss: kibibytes(&status, "VmHWM:").unwrap_or(0),
    })
}

/// User and system time of proc(5)'s `stat`: fields 14 and 15, counted behind the name, which may hold spaces.
fn cpu(stat: &str) -> Option<Duration> {
    let (_, behind_name) = stat.rsplit_once(')')?;
    let ticks = behind_name.split_whitespace().skip(11).take(2);
    let ticks: u64 = ticks.map(|field| field.parse().unwrap_or(0)).sum();
    Some(Duration::from_millis(ticks * MILLISECONDS_PER_TICK))
}

fn kibibytes(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    let number: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(number * 1024)
}

/// `USER_HZ` is 100 on every architecture that Linux shows to programs.
const MILLISECONDS_PER_TICK: u64 = 10;

/// A port that is free at this moment.
pub fn free_port() -> std::io::Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?
        .local_addr()?
        .port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_times_behind_any_name() {
        let stat = "7 (a b) c) S 1 7 7 0 -1 4194560 1 0 0 0 150 50 0 0 20 0 1 0 9 1 1";
        assert_eq!(cpu(stat), Some(Duration::from_secs(2)));
        assert_eq!(kibibytes("VmHWM:\t  10 kB\n", "VmHWM:"), Some(10240));
    }

    #[tokio::test]
    async fn a_program_ends_when_told() {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new("sleep");
        command.arg("600");
        let mut program = Program::start(command, &folder.path().join("log")).unwrap();
        assert!(program.usage().unwrap().rss > 0);
        assert!(program.ended().unwrap().is_none());
        assert!(program.stop(Duration::from_secs(5)).await.unwrap());
    }
}
