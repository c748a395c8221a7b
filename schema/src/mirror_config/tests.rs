use super::*;
use proptest::prelude::*;

fn cache() -> Cache {
    Cache {
        address: "cache.example:5000".parse().unwrap(),
        tls: false,
    }
}

fn registry(host: &str, aliases: &[&str], plain_http: bool) -> Registry {
    Registry {
        host: host.parse().unwrap(),
        aliases: aliases.iter().map(|alias| alias.parse().unwrap()).collect(),
        plain_http,
    }
}

/// Pinned: administrators paste this. When it changes, say so in the release notes.
#[test]
fn containerd_files() {
    let registries = [
        registry("docker.io", &["index.docker.io"], false),
        registry("registry.internal:5000", &[], true),
    ];
    let files = containerd(&cache(), &registries);
    assert_eq!(
        files[0].to_string(),
        r#"# /etc/containerd/certs.d/docker.io/hosts.toml
# Read at every pull, once the registry section of containerd's config.toml has config_path = "/etc/containerd/certs.d".
# The registry itself stays the fallback.
server = "https://registry-1.docker.io"

[host."http://cache.example:5000"]
  capabilities = ["pull", "resolve"]
  dial_timeout = "400ms"
"#
    );
    assert_eq!(
        files[1].path,
        "/etc/containerd/certs.d/registry.internal:5000/hosts.toml"
    );
    assert!(
        files[1]
            .content
            .starts_with("server = \"http://registry.internal:5000\"\n")
    );
}

/// Pinned, see above.
#[test]
fn containerd_default_file_names_no_server() {
    let cache = Cache {
        tls: true,
        ..cache()
    };
    let file = containerd_default(&cache);
    assert_eq!(file.path, "/etc/containerd/certs.d/_default/hosts.toml");
    assert_eq!(
        file.content,
        r#"[host."https://cache.example:5000"]
  capabilities = ["pull", "resolve"]
  dial_timeout = "400ms"
"#
    );
}

/// Pinned, see above: this is what the warmer writes.
#[test]
fn containerd_hosts_with_an_authority() {
    let cache = "https://10.96.0.10:5000".parse().unwrap();
    assert_eq!(
        containerd_hosts(&cache, Some("ca.pem")),
        r#"[host."https://10.96.0.10:5000"]
  capabilities = ["pull", "resolve"]
  dial_timeout = "400ms"
  ca = "ca.pem"
"#
    );
}

#[rstest::rstest]
#[case("http://Cache.example:5000", Some("http://cache.example:5000"))]
#[case("https://[::1]/", Some("https://[::1]"))]
#[case("cache.example:5000", None)]
#[case("ftp://cache.example", None)]
#[case("http://cache.example/path", None)]
#[case("http://cache.example\"]", None)]
fn urls_of_caches(#[case] text: &str, #[case] printed: Option<&str>) {
    let cache = text.parse::<Cache>().ok();
    assert_eq!(cache.map(|cache| cache.url()).as_deref(), printed);
}

/// Pinned, see above.
#[test]
fn crio_drop_in() {
    let registries = [
        registry("docker.io", &[], false),
        registry("registry.internal:5000", &["registry.internal"], true),
        registry("other.internal:5000", &[], false),
    ];
    assert_eq!(
        crio(&cache(), &registries).to_string(),
        r#"# /etc/containers/registries.conf.d/50-coral.conf
# CRI-O reads it after `systemctl reload crio`; podman with its next command.
# The registry itself stays the fallback.
[[registry]]
prefix = "docker.io"
location = "docker.io"

[[registry.mirror]]
location = "cache.example:5000/docker.io"
insecure = true

[[registry]]
prefix = "registry.internal:5000"
location = "registry.internal:5000"
insecure = true

[[registry.mirror]]
location = "cache.example:5000/registry.internal"
insecure = true

# other.internal:5000: a mirror's location cannot hold its port; give it an alias without one.
"#
    );
}

/// Pinned, see above. The content is JSON.
#[test]
fn docker_daemon() {
    let file = docker(&cache());
    assert_eq!(
        file.to_string(),
        r#"# /etc/docker/daemon.json
# Merge it into the file, without these comment lines, then `systemctl restart docker`.
# Docker mirrors Docker Hub only, and the cache's defaultUpstream must be docker.io for it.
{
  "registry-mirrors": ["http://cache.example:5000"],
  "insecure-registries": ["cache.example:5000"]
}
"#
    );
    for (address, tls) in [("127.0.0.1:5000", false), ("cache.example", true)] {
        let address = address.parse().unwrap();
        let json: serde_json::Value =
            serde_json::from_str(&docker(&Cache { address, tls }).content).unwrap();
        assert!(json.get("insecure-registries").is_none());
    }
}

#[rstest::rstest]
#[case("Cache.Example:5000", "cache.example:5000")]
#[case("localhost", "localhost")]
#[case("10.0.0.5:80", "10.0.0.5:80")]
#[case("[::1]", "[::1]")]
#[case("[fe80::1]:5000", "[fe80::1]:5000")]
fn hosts(#[case] text: &str, #[case] printed: &str) {
    assert_eq!(text.parse::<HostPort>().unwrap().to_string(), printed);
}

#[rstest::rstest]
#[case("")]
#[case(":5000")]
#[case("a:")]
#[case("a:0")]
#[case("a:+1")]
#[case("a:65536")]
#[case("a:b:1")]
#[case("::1")]
#[case("[::1")]
#[case("[::1]x:1")]
#[case("a b")]
#[case("a/b")]
#[case("user@a")]
#[case("a\"]\n[host.b")]
#[case("..")]
#[case("-a")]
#[case("http://a")]
fn not_hosts(#[case] text: &str) {
    assert_eq!(text.parse::<HostPort>(), Err(HostPortError));
}

#[test]
fn loopback() {
    for (text, expected) in [
        ("localhost:5000", true),
        ("127.0.0.9", true),
        ("[::1]:1", true),
        ("10.0.0.1", false),
        ("cache.example", false),
    ] {
        assert_eq!(
            text.parse::<HostPort>().unwrap().is_loopback(),
            expected,
            "{text}"
        );
    }
}

proptest! {
    /// No character that means something in TOML, JSON or a path.
    #[test]
    fn hosts_are_total_and_safe(text in "[a-zA-Z0-9.:\\[\\]\"\\\\/\n_-]{0,20}") {
        if let Ok(host) = text.parse::<HostPort>() {
            let printed = host.to_string();
            prop_assert!(!printed.contains(['"', '\\', '/', '\n', ' ']) && !printed.contains(".."));
            prop_assert_eq!(printed.parse::<HostPort>(), Ok(host));
        }
    }
}
