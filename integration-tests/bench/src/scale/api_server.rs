//! etcd and the API server, on loopback, with nothing behind them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use coral_integration_tests::program::{Program, free_port};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tokio::process::Command;
use tokio::time::sleep;

use crate::cli::tool;

/// Who may do everything.
const TOKEN: &str = "benchmark";
/// Files of the API server.
const KEY: &str = "service-accounts.key";
const USERS: &str = "users.csv";

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
        let (clients, port) = (format!("http://127.0.0.1:{}", free_port()?), free_port()?);
        let etcd = etcd(&program(tools, "etcd")?, folder, &clients)?;
        let etcd = Program::start(etcd, &folder.join("etcd.log"))?;
        make_key(&folder.join(KEY)).await?;
        std::fs::write(
            folder.join(USERS),
            format!("{TOKEN},admin,1,system:masters\n"),
        )?;
        let server = server(&program(tools, "kube-apiserver")?, folder, &clients, port);
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

fn etcd(program: &Path, folder: &Path, clients: &str) -> anyhow::Result<Command> {
    let peers = format!("http://127.0.0.1:{}", free_port()?);
    let mut command = Command::new(program);
    command
        .arg("--data-dir")
        .arg(folder.join("etcd"))
        .args(["--listen-client-urls", clients])
        .args(["--advertise-client-urls", clients])
        .args(["--listen-peer-urls", &peers])
        .args(["--initial-advertise-peer-urls", &peers])
        .args(["--initial-cluster", &format!("default={peers}")])
        .args(["--quota-backend-bytes", "8000000000"])
        .args(["--unsafe-no-fsync", "--log-level=warn"]);
    Ok(command)
}

/// The API server does not start without one for tokens that nobody uses here.
async fn make_key(file: &Path) -> anyhow::Result<()> {
    let mut command = Command::new("openssl");
    let made = command.args(["genrsa", "-out"]).arg(file).output().await;
    let made = made.context("openssl")?;
    if !made.status.success() {
        bail!("openssl: {}", String::from_utf8_lossy(&made.stderr));
    }
    Ok(())
}

fn server(program: &Path, folder: &Path, etcd: &str, port: u16) -> Command {
    let mut command = Command::new(program);
    let mut flag = |name: &str, value: &str| {
        command.arg(format!("--{name}={value}"));
    };
    let key = folder.join(KEY);
    flag("etcd-servers", etcd);
    flag("bind-address", "127.0.0.1");
    flag("secure-port", &port.to_string());
    flag("cert-dir", &folder.to_string_lossy());
    flag("token-auth-file", &folder.join(USERS).to_string_lossy());
    flag("service-account-key-file", &key.to_string_lossy());
    flag("service-account-signing-key-file", &key.to_string_lossy());
    flag("service-account-issuer", "https://kubernetes.default.svc");
    flag("service-cluster-ip-range", "10.96.0.0/16");
    flag("authorization-mode", "RBAC");
    flag("endpoint-reconciler-type", "none");
    flag("profiling", "false");
    command
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

fn program(tools: &Path, name: &str) -> anyhow::Result<PathBuf> {
    let found = tool(tools, name, name);
    found.with_context(|| {
        format!("{name} is not among the tools: run `integration-tests/run --tools`")
    })
}
