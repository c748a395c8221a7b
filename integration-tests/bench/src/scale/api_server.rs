//! etcd and the API server, on loopback, with nothing behind them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use coral_integration_tests::program::{Program, free_port};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tokio::process::Command;
use tokio::time::sleep;

/// Who may do everything.
const TOKEN: &str = "benchmark";

#[derive(Debug)]
pub(super) struct ApiServer {
    // Dropped in this order.
    _server: Program,
    _etcd: Program,
    kubeconfig: PathBuf,
}

impl ApiServer {
    /// Starts both, with their files in `folder`.
    pub(super) async fn start(tools: &Path, folder: &Path) -> anyhow::Result<Self> {
        let (clients, peers, port) = (free_port()?, free_port()?, free_port()?);
        let clients = format!("http://127.0.0.1:{clients}");
        let peers = format!("http://127.0.0.1:{peers}");
        let mut etcd = Command::new(tool(tools, "etcd")?);
        etcd.arg("--data-dir")
            .arg(folder.join("etcd"))
            .args([
                "--listen-client-urls",
                &clients,
                "--advertise-client-urls",
                &clients,
            ])
            .args([
                "--listen-peer-urls",
                &peers,
                "--initial-advertise-peer-urls",
                &peers,
            ])
            .args(["--initial-cluster", &format!("default={peers}")])
            .args(["--quota-backend-bytes", "8000000000"])
            .args(["--unsafe-no-fsync", "--log-level=warn"]);
        let etcd = Program::start(etcd, &folder.join("etcd.log"))?;

        let key = folder.join("service-accounts.key");
        let made = Command::new("openssl")
            .args(["genrsa", "-out"])
            .arg(&key)
            .output()
            .await
            .context("openssl")?;
        if !made.status.success() {
            bail!("openssl: {}", String::from_utf8_lossy(&made.stderr));
        }
        let users = folder.join("users.csv");
        std::fs::write(&users, format!("{TOKEN},admin,1,system:masters\n"))?;
        let mut server = Command::new(tool(tools, "kube-apiserver")?);
        server
            .arg(format!("--etcd-servers={clients}"))
            .arg(format!("--secure-port={port}"))
            .arg(format!("--cert-dir={}", folder.display()))
            .arg(format!("--token-auth-file={}", users.display()))
            .arg(format!("--service-account-key-file={}", key.display()))
            .arg(format!(
                "--service-account-signing-key-file={}",
                key.display()
            ))
            .args([
                "--bind-address=127.0.0.1",
                "--service-account-issuer=https://kubernetes.default.svc",
            ])
            .args([
                "--service-cluster-ip-range=10.96.0.0/16",
                "--authorization-mode=RBAC",
            ])
            .args(["--endpoint-reconciler-type=none", "--profiling=false"]);
        let log = folder.join("kube-apiserver.log");
        let mut server = Program::start(server, &log)?;
        let kubeconfig = folder.join("kubeconfig");
        std::fs::write(&kubeconfig, config(port))?;
        for _ in 0..600 {
            if server.ended()?.is_some() {
                bail!("the API server ended: {}", std::fs::read_to_string(&log)?);
            }
            let client = client(&kubeconfig).await?;
            if client.apiserver_version().await.is_ok() {
                return Ok(Self {
                    _server: server,
                    _etcd: etcd,
                    kubeconfig,
                });
            }
            sleep(Duration::from_millis(200)).await;
        }
        bail!(
            "the API server does not start: {}",
            std::fs::read_to_string(&log)?
        )
    }

    pub(super) fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    pub(super) async fn client(&self) -> anyhow::Result<Client> {
        client(&self.kubeconfig).await
    }
}

async fn client(kubeconfig: &Path) -> anyhow::Result<Client> {
    let file = Kubeconfig::read_from(kubeconfig)?;
    let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}

/// The server makes a certificate for itself, which nobody can know before.
fn config(port: u16) -> String {
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: bench\n\
         clusters: [{{ name: bench, cluster: {{ server: \"https://127.0.0.1:{port}\", insecure-skip-tls-verify: true }} }}]\n\
         users: [{{ name: admin, user: {{ token: {TOKEN} }} }}]\n\
         contexts: [{{ name: bench, context: {{ cluster: bench, user: admin, namespace: default }} }}]\n"
    )
}

/// `integration-tests/run` keeps each tool in a folder with its version.
fn tool(tools: &Path, name: &str) -> anyhow::Result<PathBuf> {
    let folders = std::fs::read_dir(tools)?.flatten();
    let programs = folders
        .filter(|folder| {
            folder
                .file_name()
                .to_string_lossy()
                .starts_with(&format!("{name}-v"))
        })
        .map(|folder| folder.path().join(name));
    let newest = programs.filter(|path| path.exists()).max();
    newest.with_context(|| {
        format!("{name} is not among the tools: run `integration-tests/run --tools`")
    })
}
