//! Namespaces without names: they live as long as the process that made them, so an aborted run leaves none.

use std::path::Path;
use std::process::Command;

use crate::harness::{self, Process};

/// How many nodes a cluster may have; `fabric.sh` and `network.sh` have routes for as many.
pub(crate) const NODES: usize = 4;

/// The control plane's address, and every node's default route.
pub(crate) const ADDRESS: &str = "10.77.0.1";

/// The namespaces of a process of ours.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Namespaces {
    target: u32,
    kinds: &'static [&'static str],
}

impl Namespaces {
    /// The same command inside. Its working folder is the root; files of the machine keep their paths.
    pub(crate) fn enter(self, command: &Command) -> Command {
        let mut entered = harness::command("nsenter");
        entered
            .arg("--target")
            .arg(self.target.to_string())
            .args(self.kinds)
            .arg("--");
        if self.kinds.contains(&"--pid") {
            // nsenter has to fork here, and the child must not outlive it.
            entered.args(["setpriv", "--pdeathsig", "KILL", "--"]);
        }
        entered.arg(command.get_program()).args(command.get_args());
        take_environment(&mut entered, command);
        entered
    }

    /// Runs a shell script inside.
    pub(crate) async fn script(self, text: &str, arguments: &[&str]) {
        let mut command = Command::new("sh");
        command.args(["-c", text, "sh"]).args(arguments);
        harness::run(self.enter(&command)).await.result().unwrap();
    }

    /// Whether a TCP socket listens on the port.
    pub(crate) async fn listens(self, port: u16) -> bool {
        let mut command = Command::new("ss");
        command.args(["-Hltn", &format!("sport = :{port}")]);
        let sockets = harness::run(self.enter(&command)).await.result();
        !sockets.unwrap().trim().is_empty()
    }
}

/// Sets for one command what is set for the other.
pub(super) fn take_environment(to: &mut Command, from: &Command) {
    for (name, value) in from.get_envs() {
        match value {
            Some(value) => to.env(name, value),
            None => to.env_remove(name),
        };
    }
}

/// The network of a cluster: a namespace with a bridge at 10.77.0.1, where the control plane runs. That many clusters
/// use the same addresses does not matter, as nothing leads out.
pub(crate) struct Fabric {
    holder: Process,
}

impl Fabric {
    /// Makes it; `hosts` takes the place of `/etc/hosts`.
    pub(crate) async fn start(folder: &Path, hosts: &Path) -> Self {
        let mut command = harness::command("unshare");
        command
            .args(["--net", "--mount", "--propagation", "private"])
            .args(["sh", "-c", include_str!("fabric.sh"), "sh"])
            .arg(hosts);
        let log = folder.join("fabric.log");
        let holder = Process::spawn("fabric", command, &log);
        let holder = holder.ready(async || says_ready(&log)).await;
        Self { holder }
    }

    pub(crate) fn namespaces(&self) -> Namespaces {
        Namespaces {
            target: self.holder.id(),
            kinds: &["--net", "--mount"],
        }
    }
}

/// A machine: PID 1 of namespaces of its own, with one end of a cable in the fabric. When it ends, the kernel ends
/// everything in it, takes its mounts away and unplugs the cable: a power cut.
pub(crate) struct Machine {
    process: Process,
    init: u32,
}

impl Machine {
    /// Boots machine `number`; its folder is laid over `/run`, `/var/lib` and others, see `node.sh`.
    pub(crate) async fn start(fabric: Namespaces, number: usize, folder: &Path) -> Self {
        let mut command = harness::command("unshare");
        command
            .args(["--net", "--mount", "--propagation", "private", "--uts"])
            .args(["--pid", "--fork", "--kill-child", "--mount-proc"])
            .args(["sh", "-c", include_str!("node.sh"), "sh"])
            .arg(format!("node{number}"))
            .arg(folder);
        let log = folder.join("init.log");
        let _ = std::fs::remove_file(&log);
        let process = Process::spawn("PID 1", command, &log);
        let process = process.ready(async || says_ready(&log)).await;
        let init = process.child().unwrap();
        let machine = Self { process, init };
        let (number, init) = (number.to_string(), init.to_string());
        let cable = "ip link add \"port$1\" type veth peer name eth0 netns \"$2\"\n\
                     ip link set \"port$1\" master br0 up";
        fabric.script(cable, &[&number, &init]).await;
        machine
            .namespaces()
            .script(include_str!("network.sh"), &[&number])
            .await;
        machine
    }

    pub(crate) fn namespaces(&self) -> Namespaces {
        Namespaces {
            target: self.init,
            kinds: &["--net", "--mount", "--uts", "--pid"],
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Not unshare itself: it ends after the last process of its PID namespace, which is what to wait for.
        harness::kill(self.init);
        self.process.wait();
    }
}

fn says_ready(log: &Path) -> bool {
    std::fs::read_to_string(log).is_ok_and(|text| text.ends_with("ready\n"))
}
