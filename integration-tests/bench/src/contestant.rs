//! The programs that are compared, each in its best documented configuration, started fresh for each case.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use coral_integration_tests::client::Connection;
use coral_integration_tests::images::Image;
use coral_integration_tests::program::{Program, Usage, free_port};
use coral_integration_tests::registry::{self, Registry};
use coral_integration_tests::upstream::Upstream;
use tempfile::TempDir;
use tokio::process::Command;

/// Something that images are pulled from.
#[derive(Debug)]
pub(crate) struct Contestant {
    pub(crate) address: SocketAddr,
    process: Process,
}

#[derive(Debug)]
enum Process {
    /// The upstream, which runs in this process.
    Direct,
    Ours(Box<Registry>),
    Other {
        program: Box<Program>,
        /// Goes after the program.
        _folder: TempDir,
    },
}

impl Contestant {
    /// The upstream itself.
    pub(crate) fn direct(upstream: &Upstream) -> Self {
        Self {
            address: upstream.address(),
            process: Process::Direct,
        }
    }

    /// Ours before this upstream; `more` are further keys of the upstream's configuration.
    pub(crate) async fn ours(
        binary: &Path,
        upstream: &Upstream,
        more: &str,
    ) -> anyhow::Result<Self> {
        Self::configured(binary, &registry::configuration(upstream, more)).await
    }

    /// Ours, open to pushes.
    pub(crate) async fn hosting(binary: &Path, prefix: &str) -> anyhow::Result<Self> {
        let configuration = format!("hosted: [{{ prefix: {prefix} }}]\nanonymousPush: true\n");
        Self::configured(binary, &configuration).await
    }

    async fn configured(binary: &Path, configuration: &str) -> anyhow::Result<Self> {
        let registry = Registry::start(binary, configuration).await?;
        Ok(Self {
            address: registry.address(),
            process: Process::Ours(Box::new(registry)),
        })
    }

    /// distribution with its cache of descriptors: as a proxy, or open to pushes.
    pub(crate) async fn distribution(
        binary: &Path,
        proxied: Option<&Upstream>,
    ) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("coral-bench-").tempdir()?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        let configuration = format!(
            "version: 0.1\nlog: {{ level: error, accesslog: {{ disabled: true }} }}\n\
             storage:\n  filesystem: {{ rootdirectory: {0}/store }}\n  cache: {{ blobdescriptor: inmemory }}\n\
             http: {{ addr: \"{address}\" }}\n{1}",
            folder.path().display(),
            proxied.map_or_else(String::new, |upstream| {
                format!("proxy: {{ remoteurl: \"{}\" }}\n", upstream.url())
            }),
        );
        let file = folder.path().join("config.yml");
        std::fs::write(&file, configuration)?;
        let mut command = Command::new(binary);
        command
            .arg("serve")
            .arg(file)
            .env("OTEL_TRACES_EXPORTER", "none");
        Self::other(command, folder, address).await
    }

    /// nginx with the image's bytes as files.
    pub(crate) async fn nginx(
        binary: &Path,
        repository: &str,
        tag: &str,
        image: &Image,
    ) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("coral-bench-").tempdir()?;
        let root = folder.path().join("root");
        write_files(&root.join("v2").join(repository), tag, image)?;
        // Workers run as nobody.
        let readable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(folder.path(), readable)?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        let file = folder.path().join("nginx.conf");
        let configuration = NGINX
            .replace("FOLDER", &folder.path().display().to_string())
            .replace("ADDRESS", &address.to_string())
            .replace("TYPE", &image.manifest.media_type);
        std::fs::write(&file, configuration)?;
        let mut command = Command::new(binary);
        command
            .arg("-c")
            .arg(file)
            .arg("-e")
            .arg(folder.path().join("error.log"));
        Self::other(command, folder, address).await
    }

    async fn other(command: Command, folder: TempDir, address: SocketAddr) -> anyhow::Result<Self> {
        let name = command.as_std().get_program().to_owned();
        let log = folder.path().join("log");
        let program = Program::start(command, &log)?;
        let up = async {
            while Connection::open(address).await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let up = tokio::time::timeout(Duration::from_secs(20), up).await;
        up.with_context(|| {
            let log = std::fs::read_to_string(&log).unwrap_or_default();
            format!("{} does not listen; its output:\n{log}", name.display())
        })?;
        Ok(Self {
            address,
            process: Process::Other {
                program: Box::new(program),
                _folder: folder,
            },
        })
    }

    /// What it has used; nothing for the upstream.
    pub(crate) fn usage(&self) -> anyhow::Result<Usage> {
        match &self.process {
            Process::Direct => Ok(Usage::default()),
            Process::Ours(registry) => registry.usage(),
            Process::Other { program, .. } => program.usage(),
        }
    }

    /// Stops it in order, so that no children are left behind, and removes what it stored.
    pub(crate) async fn stop(mut self) -> anyhow::Result<()> {
        let within = Duration::from_secs(10);
        match &mut self.process {
            Process::Direct => {}
            Process::Ours(registry) => registry.kill().await?,
            Process::Other { program, .. } => {
                program.stop(within).await?;
            }
        }
        Ok(())
    }
}

fn write_files(repository: &Path, tag: &str, image: &Image) -> anyhow::Result<()> {
    let (manifests, blobs) = (repository.join("manifests"), repository.join("blobs"));
    std::fs::create_dir_all(&manifests)?;
    std::fs::create_dir_all(&blobs)?;
    let manifest = image.manifest.content.read_all();
    std::fs::write(manifests.join(tag), &manifest)?;
    std::fs::write(manifests.join(image.digest().to_string()), &manifest)?;
    for blob in &image.blobs {
        let mut file = std::fs::File::create(blobs.join(blob.digest.to_string()))?;
        for chunk in blob.content.chunks() {
            std::io::Write::write_all(&mut file, &chunk)?;
        }
        // Else writing back would go on during the measurement.
        file.sync_all()?;
    }
    Ok(())
}

/// `sendfile` and open files kept, as its documentation recommends for large static files.
const NGINX: &str = "\
daemon off;
worker_processes 2;
pid FOLDER/pid;
error_log FOLDER/error.log;
events { worker_connections 4096; }
http {
    access_log off;
    sendfile on;
    sendfile_max_chunk 2m;
    tcp_nopush on;
    tcp_nodelay on;
    keepalive_requests 100000000;
    open_file_cache max=1000 inactive=600s;
    client_body_temp_path FOLDER/body;
    proxy_temp_path FOLDER/proxy;
    fastcgi_temp_path FOLDER/fastcgi;
    uwsgi_temp_path FOLDER/uwsgi;
    scgi_temp_path FOLDER/scgi;
    types { }
    default_type application/octet-stream;
    server {
        listen ADDRESS;
        root FOLDER/root;
        location ~ /manifests/ { default_type TYPE; }
    }
}
";
