//! The Docker daemon with `registry-mirrors`: it takes our registry for a mirror of Docker Hub.

use std::path::PathBuf;

use tempfile::TempDir;

use crate::clients::Client;
use crate::coral::Coral;
use crate::harness::{self, Process};
use crate::images::Image;

/// A daemon of its own: no bridge, no rules in the kernel's tables, and Debian's containerd below it.
pub(crate) struct Docker {
    socket: PathBuf,
    _daemon: Process,
    _containerd: Process,
    folder: TempDir,
}

impl Drop for Docker {
    fn drop(&mut self) {
        // The daemon binds its data folder to itself, and is killed too fast to undo that.
        harness::unmount(&self.folder.path().join("data"));
    }
}

impl Docker {
    /// Starts it with our registry as its mirror.
    pub(crate) async fn start(coral: &Coral) -> Self {
        let folder = harness::scratch();
        let at = |name: &str| folder.path().join(name);
        let containerd = containerd(&folder).await;
        let socket = at("docker.sock");
        let mut command = harness::command("dockerd");
        command.args([
            "--iptables=false",
            "--ip6tables=false",
            "--bridge=none",
            "--config-file",
        ]);
        command.arg(harness::write(folder.path(), "daemon.json", "{}"));
        command.arg(format!("--registry-mirror=http://{}", coral.address()));
        command
            .arg("--data-root")
            .arg(at("data"))
            .arg("--exec-root")
            .arg(at("exec"))
            .arg("--pidfile")
            .arg(at("pid"));
        command
            .arg("--containerd")
            .arg(at("c.sock"))
            .arg("-H")
            .arg(format!("unix://{}", socket.display()));
        let daemon = Process::spawn("dockerd", command, &at("docker.log"));
        let daemon = daemon
            .ready(async || tokio::net::UnixStream::connect(&socket).await.is_ok())
            .await;
        Self {
            socket,
            _daemon: daemon,
            _containerd: containerd,
            folder,
        }
    }

    /// Runs the client against it.
    pub(crate) async fn docker(&self, arguments: &[&str]) -> Result<String, String> {
        let mut command = harness::command("docker");
        command
            .arg("-H")
            .arg(format!("unix://{}", self.socket.display()))
            .args(arguments)
            // Where logins are kept.
            .env("DOCKER_CONFIG", self.folder.path().join("client"));
        harness::run(command).await.result()
    }
}

impl Client for Docker {
    async fn pull(&self, image: &Image) -> Result<(), String> {
        let name = image.name();
        // The daemon does not ask for layers that any image it holds has; an image it does not hold is no failure here.
        let _ = self.docker(&["image", "rm", "--force", &name]).await;
        self.docker(&["pull", &name]).await?;
        let digests = self
            .docker(&["image", "inspect", "--format", "{{.RepoDigests}}", &name])
            .await?;
        let expected = format!("{}@{}", image.repository, image.digest());
        assert!(
            digests.contains(&expected),
            "{digests} instead of {expected}"
        );
        Ok(())
    }
}

async fn containerd(folder: &TempDir) -> Process {
    let path = folder.path().display();
    let config = format!(
        "version = 2\nroot = \"{path}/c\"\nstate = \"{path}/cs\"\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
         [grpc]\naddress = \"{path}/c.sock\"\n[ttrpc]\naddress = \"{path}/ct.sock\"\n"
    );
    let mut command = harness::command("containerd");
    command
        .arg("--config")
        .arg(harness::write(folder.path(), "containerd.toml", &config));
    let process = Process::spawn("containerd", command, &folder.path().join("containerd.log"));
    let socket = folder.path().join("c.sock");
    process
        .ready(async || tokio::net::UnixStream::connect(&socket).await.is_ok())
        .await
}
