use std::fmt::Write as _;

use coral_schema::quantity::ByteSize;
use proptest::prelude::*;

use super::*;
use crate::admin::auth::keys::Location;
use crate::upstream::{CredentialSource, Limits, OnMissing, TlsConfig, VisibilityMode};

fn parse(text: &str) -> Result<Loaded, Mistakes> {
    from_bytes("coral.yaml", text.as_bytes(), &Overrides::default())
}

fn config(text: &str) -> Config {
    parse(text)
        .unwrap_or_else(|mistakes| panic!("{mistakes}"))
        .config
}

/// What is printed for `text`, a line per mistake.
fn mistakes(text: &str) -> String {
    parse(text).expect_err("this file has mistakes").to_string()
}

fn names(config: &Config) -> Vec<&str> {
    config.upstreams.iter().map(|it| it.name.as_str()).collect()
}

/// The file of `registry.md`, section 2.1, without the keys that are not built yet.
fn full(folder: &Path) -> String {
    for name in [
        "tls.crt",
        "tls.key",
        "hub",
        "config.json",
        "ca.pem",
        "client.crt",
        "client.key",
        "token",
    ] {
        std::fs::write(folder.join(name), "x").unwrap();
    }
    include_str!("tests/full.yaml").replace("FOLDER", &folder.display().to_string())
}

#[test]
fn no_file_at_all() {
    let Loaded { config, warnings } = load(None, &Overrides::default()).unwrap();
    assert_eq!(config.listen.to_string(), "127.0.0.1:5000");
    assert_eq!(config.admin.listen.to_string(), "127.0.0.1:9090");
    assert_eq!(config.data, Path::new("coral-data"));
    assert_eq!(config.store.folder, Path::new("coral-data/store"));
    assert_eq!(config.store.max_bytes, StoreLimit::Modest);
    assert_eq!(
        names(&config),
        [
            "docker.io",
            "ghcr.io",
            "quay.io",
            "registry.k8s.io",
            "gcr.io",
            "public.ecr.aws",
            "mcr.microsoft.com"
        ]
    );
    assert_eq!(config.default_upstream.unwrap().as_str(), "docker.io");
    assert_eq!(config.connections, 4096);
    assert_eq!(config.shutdown_grace, Duration::from_secs(55));
    assert_eq!(config.manifest_max_bytes, 8 << 20);
    assert_eq!(
        config.cache,
        CacheConfig {
            manifest_memory: 64 << 20,
            negative_ttl: Duration::from_secs(10),
            finish_transfers: FinishTransfers::Always,
            fill_on_range: FillOnRange::Auto,
        }
    );
    assert_eq!(warnings, [""; 0]);
}

#[test]
fn an_upstreams_defaults() {
    let config = config("upstreams: { docker.io: , ghcr.io: {} }");
    let [hub, ghcr] = config.upstreams.as_slice() else {
        panic!("{config:?}");
    };
    assert_eq!(hub.endpoints[0].as_str(), "https://registry-1.docker.io/");
    assert_eq!(hub.token_realms, ["auth.docker.io"]);
    assert_eq!(ghcr.endpoints[0].as_str(), "https://ghcr.io/");
    assert_eq!(ghcr.token_realms, [""; 0]);
    assert_eq!(
        ghcr.limits,
        Limits {
            concurrent_transfers: 64,
            requests_per_minute: None,
            bandwidth: None,
            reserve: 20,
        }
    );
    let timeouts = ghcr.timeouts;
    let seconds = [
        timeouts.connect,
        timeouts.headers,
        timeouts.tag_check,
        timeouts.stall,
    ];
    assert_eq!(seconds.map(|wait| wait.as_secs()), [3, 10, 2, 30]);
    assert_eq!(timeouts.min_rate, 16 << 10);
    assert_eq!(ghcr.policy.stale_if_error, Duration::from_hours(720));
    assert_eq!(ghcr.policy.on_missing, OnMissing::Serve);
    assert_eq!(ghcr.policy.revoke_grace, Duration::from_hours(1));
    assert_eq!(ghcr.policy.visibility, VisibilityMode::Auto);
    let rules = &ghcr.policy.tags;
    assert_eq!(rules.len(), 2);
    assert!(rules[0].pattern.matches("a/b:v1") && !rules[0].pattern.matches("a/b:latest"));
    assert!(rules[1].pattern.matches("a/b:latest"));
    let fresh: Vec<u64> = rules.iter().map(|rule| rule.freshness.as_secs()).collect();
    assert_eq!(fresh, [3600, 300]);
    assert_eq!(ghcr.tls, TlsConfig::default());
    // A file names its upstreams itself, and then also its default.
    assert_eq!(config.default_upstream, None);
    assert_eq!(
        config.store.max_bytes,
        StoreLimit::Volume("90%".parse().unwrap())
    );
}

#[test]
fn every_key_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let config = config(&full(folder.path()));
    assert_eq!(config.listen.to_string(), "0.0.0.0:5000");
    assert_eq!(
        config.address(config.listen).to_string(),
        "cache.example:5000"
    );
    assert_eq!(config.admin.hosts, ["cache-admin.example"]);
    assert_eq!(config.store.folder, Path::new("/srv/coral"));
    assert_eq!(config.store.max_bytes, StoreLimit::Bytes(2 << 40));
    let tls = config.tls.unwrap();
    assert_eq!(
        (tls.certificate, tls.key),
        (path("tls.crt"), path("tls.key"))
    );
    assert_eq!(config.manifest_max_bytes, 4 << 20);
    assert_eq!(
        config.cache.finish_transfers,
        FinishTransfers::After("10%".parse().unwrap())
    );
    assert_eq!(config.default_upstream.unwrap().as_str(), "docker.io");

    let hub = &config.upstreams[0];
    assert_eq!(hub.endpoints.len(), 2);
    assert_eq!(hub.aliases.len(), 2);
    assert_eq!(hub.token_realms, ["auth.docker.io", "login.example:8443"]);
    assert_eq!(
        hub.credentials[0].source,
        CredentialSource::Password {
            username: "u".to_owned(),
            password_file: path("hub"),
        }
    );
    assert_eq!(
        hub.credentials[1].source,
        CredentialSource::DockerConfig(path("config.json"))
    );
    assert!(hub.policy.allow[1].0.matches("team/a/b"));
    assert!(!hub.policy.allow[0].0.matches("library/a/b"));
    assert_eq!(hub.policy.on_missing, OnMissing::Refuse);
    assert_eq!(hub.policy.visibility, VisibilityMode::Shared);
    // A rule for all other tags is added.
    assert_eq!(hub.policy.tags.len(), 2);
    assert_eq!(hub.limits.requests_per_minute, Some(600));
    assert_eq!(hub.limits.bandwidth, Some(100 << 20));
    assert_eq!(hub.timeouts.connect, Duration::from_millis(1500));
    assert_eq!(
        hub.tls.client,
        Some((path("client.crt"), path("client.key")))
    );
    assert_eq!(
        hub.proxy.as_ref().unwrap().to_string(),
        "http://proxy.example:3128/"
    );
    assert!(hub.http2);
    assert!(config.upstreams[1].plain_http);
}

#[test]
fn flags_win_over_the_file() {
    let overrides = Overrides {
        listen: Some("127.0.0.1:0".parse().unwrap()),
        admin_listen: Some("127.0.0.1:0".parse().unwrap()),
        data: Some("/elsewhere".into()),
    };
    let text = b"{ listen: 10.0.0.1:5000, admin: { listen: 10.0.0.1:5000 }, data: /here }";
    let config = from_bytes("coral.yaml", text, &overrides).unwrap().config;
    assert_eq!(config.listen.to_string(), "127.0.0.1:0");
    assert_eq!(config.admin.listen.to_string(), "127.0.0.1:0");
    assert_eq!(config.store.folder, Path::new("/elsewhere/store"));
}

/// Pinned: this is what an administrator sees of a file with several mistakes. All at once, with line and column.
#[test]
fn all_mistakes_at_once() {
    assert_eq!(
        mistakes(include_str!("tests/mistakes.yaml")),
        include_str!("tests/mistakes.txt").trim_end()
    );
}

/// Pinned, see above: names that mean two things, and loops.
#[test]
fn mistakes_between_upstreams() {
    assert_eq!(
        mistakes(include_str!("tests/names.yaml")),
        include_str!("tests/names.txt").trim_end()
    );
}

/// Pinned, see above: what is not built yet is never ignored.
#[test]
fn keys_that_are_not_supported_yet() {
    assert_eq!(
        mistakes(include_str!("tests/unsupported.yaml")),
        include_str!("tests/unsupported.txt").trim_end()
    );
    config(
        "{ anonymousPush: false, hosted: [], users: , access: [], store: { redirect: false }, admin: { auth: {} } }",
    );
}

#[test]
fn hosted_repositories() {
    let config = config(
        "{ hosted: [{ prefix: team, immutableTags: [\"v*\", \"[0-9].*\"] }, { prefix: team/lax, sparse: false }], anonymousPush: true }",
    );
    assert!(config.anonymous_push);
    let [team, lax] = &config.hosted[..] else {
        panic!("{:?}", config.hosted)
    };
    assert_eq!(team.prefix.as_str(), "team");
    assert!(team.sparse && !lax.sparse);
    let globs = team
        .immutable_tags
        .iter()
        .map(crate::upstream::Glob::as_str);
    assert_eq!(globs.collect::<Vec<_>>(), ["v*", "[0-9].*"]);
}

#[test]
fn what_is_not_needed_goes_when_that_is_said() {
    let text = "{ hosted: [{ prefix: a, deleteUntaggedAfter: 168h }, { prefix: b, deleteUntaggedAfter: none }, { prefix: c }], \
                gc: { interval: none, grace: 2h } }";
    let config = config(text);
    let after = config.hosted.iter().map(|one| one.delete_untagged_after);
    let week = Duration::from_hours(168);
    assert_eq!(after.collect::<Vec<_>>(), [Some(week), None, None]);
    let hours = Duration::from_hours;
    assert_eq!(
        (config.gc.interval, config.gc.grace, config.gc.uploads),
        (None, hours(2), hours(24))
    );
    let default = self::config("{}").gc;
    assert_eq!(
        (default.interval, default.grace),
        (Some(hours(1)), hours(1))
    );
    let found = mistakes("gc: { interval: 0s, grace: soon, every: 1h }");
    for key in ["gc.interval:", "gc.grace:", "gc.every: unknown key"] {
        assert!(found.contains(key), "{key}\nin:\n{found}");
    }
}

#[test]
fn hosted_prefixes_are_names_that_no_host_can_have() {
    let text = "hosted: [{ prefix: team, immutable: [] }, { prefix: ghcr.io/x }, { prefix: localhost }, \
                { prefix: Team }, { sparse: maybe }, { prefix: team }, { prefix: a, immutableTags: [\"a/b\"] }]";
    let found = mistakes(text);
    for expected in [
        "hosted[0].immutable: unknown key; did you mean \"immutableTags\"?",
        "hosted[1].prefix: \"ghcr.io/x\" looks like a host",
        "hosted[2].prefix: \"localhost\" looks like a host",
        "hosted[3].prefix: \"Team\" is not the start of repository names",
        "hosted[4]: prefix is missing",
        "hosted[4].sparse: \"maybe\" is neither true nor false",
        "hosted[5]: the prefix team stands in the list already",
        "hosted[6].immutableTags[0]: \"a/b\" is not a pattern of tags",
    ] {
        assert!(found.contains(expected), "{expected}\nin:\n{found}");
    }
}

#[test]
fn the_admin_listener_may_ask_for_tokens() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let config = config(&full(folder.path()));
    assert_eq!(config.admin.tls, config.tls);
    let auth = config.admin.auth.unwrap();
    assert_eq!(
        auth.issuer.as_deref(),
        Some("https://kubernetes.default.svc.cluster.local")
    );
    assert_eq!(auth.audience, "coral-registry");
    assert_eq!(
        auth.subjects,
        ["system:serviceaccount:coral-system:coral-operator"]
    );
    let url = "https://kubernetes.default.svc/openid/v1/jwks";
    assert_eq!(auth.keys.location, Location::Url(url.parse().unwrap()));
    assert_eq!(auth.keys.ca, Some(path("ca.pem")));
    assert_eq!(auth.keys.token, Some(path("token")));
}

/// Pinned, see above: an API that asks for tokens must know which.
#[rstest::rstest]
#[case(
    "admin: { auth: { audience: a } }",
    [
        "1:16: admin.auth: jwks is missing; write the URL or the file of the issuer's public keys",
        "1:16: admin.auth: nobody is listed under subjects; write one like \
         system:serviceaccount:coral-system:coral-operator",
        "1:16: admin.auth: nothing says whose tokens are good; write issuer, or jwksToken for the issuer of our own token",
    ].as_slice()
)]
#[case(
    "admin: { auth: { jwks: \"http://a.example/keys\", issuer: i, subjects: [s] } }",
    [
        "1:16: admin.auth: audience is missing",
        "1:24: admin.auth.jwks: the value is not encrypted; write https",
    ].as_slice()
)]
fn tokens_of_the_admin_api(#[case] text: &str, #[case] printed: &[&str]) {
    let printed = printed.iter().map(|line| format!("coral.yaml:{line}"));
    assert_eq!(mistakes(text), printed.collect::<Vec<_>>().join("\n"));
}

/// Pinned, see above: only this kind stands alone.
#[rstest::rstest]
#[case(
    "listen: [1\nconections: 1\n",
    "coral.yaml:2:11: this is not YAML: illegal placement of ':' indicator"
)]
#[case(
    "a: *b",
    "coral.yaml:1:4: this is not YAML: while parsing node, found unknown anchor"
)]
#[case("a: &a [*a]", "coral.yaml:1:8: an anchor cannot be used inside itself")]
fn a_syntax_error_stands_alone(#[case] text: &str, #[case] printed: &str) {
    assert_eq!(mistakes(text), printed);
}

#[rstest::rstest]
#[case("[]", "coral.yaml:1:1: a mapping of keys is expected, not a list")]
#[case(
    "x",
    "coral.yaml:1:1: a mapping of keys is expected, not a single value"
)]
#[case(
    "{}\n--- \n{}",
    "coral.yaml:3:1: a second YAML document; a configuration is one document"
)]
#[case(
    "connections: 1\nconnections: 2",
    "coral.yaml:2:1: connections: this key stands here twice, first in line 1; remove one"
)]
#[case(
    "upstreams:\n  a.io:\n    limits: {reserve: 1, reserve: 2}",
    "coral.yaml:3:26: upstreams.\"a.io\".limits.reserve: this key stands here twice, first in line 3; remove one"
)]
#[case(
    "connections: !!int 1",
    "coral.yaml:1:20: YAML tags mean nothing here; remove the tag"
)]
#[case(
    "upstreams: { a.io: { <<: {} } }",
    "coral.yaml:1:22: upstreams.\"a.io\".\"<<\": merge keys are not supported; write the keys out"
)]
#[case("[a]: 1", "coral.yaml:1:1: a key is a word")]
fn yaml_that_is_no_configuration(#[case] text: &str, #[case] printed: &str) {
    assert_eq!(mistakes(text), printed);
}

#[test]
fn anchors_are_written_out() {
    let config =
        config("upstreams:\n  a.io: { timeouts: &t { connect: 1s } }\n  b.io: { timeouts: *t }\n");
    assert_eq!(config.upstreams[1].timeouts.connect, Duration::from_secs(1));
}

/// Deeper than the nesting that may be written; walking and dropping it must not use up the stack.
#[test]
fn aliases_cannot_nest_without_end() {
    let (open, close) = ("[".repeat(30), "]".repeat(30));
    let mut text = format!("a0: &a0 {open}{close}\n");
    for number in 1..1000 {
        let before = number - 1;
        writeln!(text, "a{number}: &a{number} {open}*a{before}{close}").unwrap();
    }
    assert!(mistakes(&text).contains("more than 20000 values"));
}

/// Each line doubles the tree: without a bound this would be 2^40 values.
#[test]
fn aliases_cannot_explode() {
    let mut text = "a0: &a0 [x]\n".to_owned();
    for number in 1..40 {
        let before = number - 1;
        writeln!(text, "a{number}: &a{number} [*a{before}, *a{before}]").unwrap();
    }
    assert!(mistakes(&text).contains("more than 20000 values"));
}

#[test]
fn size_and_depth_are_bounded() {
    assert!(mistakes(&" ".repeat(raw::MAX_BYTES + 1)).contains("longer than 1 MiB"));
    for deep in [
        "[".repeat(200_000),
        "- ".repeat(200_000),
        "a: {".repeat(100_000),
    ] {
        assert!(mistakes(&deep).contains("not YAML"));
    }
    let error = from_bytes("f", b"a: 1\nb: \xff", &Overrides::default()).unwrap_err();
    assert_eq!(error.to_string(), "f:2:4: this is not UTF-8 text");
    let error = check(Path::new("/dev/zero")).unwrap_err();
    assert!(error.to_string().contains("longer than 1 MiB"));
}

#[test]
fn files_that_are_named_have_to_be_readable() {
    let folder = tempfile::tempdir().unwrap();
    let text = format!(
        "upstreams:\n  a.io:\n    credentials:\n    - {{ username: u, passwordFile: hunter2 }}\n    tls: {{ ca: {} }}\n",
        folder.path().display()
    );
    let error = "the file cannot be read: ";
    let advice = "; write the path of a file that this process may read";
    assert_eq!(
        mistakes(&text),
        format!(
            "coral.yaml:4:36: upstreams.\"a.io\".credentials[0].passwordFile: {error}entity not found{advice}\n\
             coral.yaml:5:16: upstreams.\"a.io\".tls.ca: {error}it is not a file{advice}"
        )
    );
}

/// Wherever a password was written by mistake, no message and no `Debug` output repeats it.
#[rstest::rstest]
#[case("upstreams: { a.io: { credentials: [{ username: u, password: hunter2 }] } }")]
#[case("upstreams: { a.io: { credentials: [{ username: u, passwordFile: hunter2 }] } }")]
#[case("upstreams: { a.io: { credentials: [{ username: \"u:hunter2\", passwordFile: /x }] } }")]
#[case("upstreams: { a.io: { credentials: [{ tokenFile: [hunter2] }] } }")]
#[case("upstreams: { a.io: { credentials: [hunter2] } }")]
#[case("upstreams: { a.io: { credentials: hunter2 } }")]
#[case("upstreams: { a.io: { endpoints: [\"https://u:hunter2@a.io\"] } }")]
#[case("upstreams: { a.io: { endpoints: [\"https://u:hunter2@a.io/x y\"] } }")]
#[case("upstreams: { a.io: { tokenRealms: [\"hunter2 x\"] } }")]
#[case("upstreams: { a.io: { proxy: \"u:hunter2@proxy\" } }")]
#[case("upstreams: { a.io: { proxy: \"http://u:hunter2@proxy/path\" } }")]
#[case("upstreams: { a.io: { tls: { clientKey: hunter2 } } }")]
#[case("upstreams: { a.io: { credentials: [{ username: u, hunter2 }] } }")]
#[case("upstreams: { \"https://u:hunter2@a.io\": {} }")]
#[case("defaultUpstream: u:hunter2@a.io")]
#[case("users: hunter2")]
#[case("authToken: hunter2")]
#[case("tls: { key: hunter2 }")]
#[case("address: \"u:hunter2@cache.example\"")]
#[case("users: { tokens: hunter2 }\nlisten: [\n")]
fn secrets_are_not_repeated(#[case] text: &str) {
    let error = parse(text).unwrap_err();
    assert!(!error.to_string().contains("hunter2"), "{error}");
    assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
}

#[test]
fn a_proxys_password_is_not_in_debug_output() {
    let config = config("upstreams: { a.io: { proxy: \"http://u:hunter2@proxy.example\" } }");
    assert!(!format!("{config:?}").contains("hunter2"));
}

#[test]
fn warnings() {
    let folder = tempfile::tempdir().unwrap();
    let login = folder.path().join("login");
    std::fs::write(&login, "x").unwrap();
    let text = include_str!("tests/warnings.yaml").replace("LOGIN", &login.display().to_string());
    let warnings = parse(&text).unwrap().warnings;
    let about = [
        "address is not set",
        "admin.listen is 0.0.0.0:9090",
        "upstreams.\"shared.example\".visibility is shared",
        "upstreams.\"public.example\".visibility is public",
        "upstreams.\"careless.example\".tls.insecureSkipVerify",
        "upstreams.\"plain.example\" sends its credentials over plain HTTP",
    ];
    assert_eq!(warnings.len(), about.len(), "{warnings:#?}");
    for (warning, start) in warnings.iter().zip(about) {
        assert!(warning.starts_with(start), "{warning}");
    }
    // Who must show a token shows it to nobody else.
    let auth = "auth: { jwks: \"https://i.example\", audience: a, issuer: i, subjects: [s] }";
    let guarded = text.replace("9090 }", &format!("9090, {auth} }}"));
    let warning = &parse(&guarded).unwrap().warnings[1];
    assert!(warning.contains("without admin.tls"), "{warning}");
    // On the loopback nobody else can read anything.
    let quiet = text.replace("0.0.0.0", "127.0.0.1");
    assert_eq!(parse(&quiet).unwrap().warnings.len(), 3);
}

#[rstest::rstest]
#[case(StoreLimit::Bytes(5), 5)]
#[case(StoreLimit::Volume("90%".parse().unwrap()), 900 << 30)]
#[case(StoreLimit::Modest, 50 << 30)]
fn limits_on_a_large_volume(#[case] limit: StoreLimit, #[case] bytes: u64) {
    assert_eq!(limit.bytes(1000 << 30, 500 << 30, 0), bytes);
}

#[test]
fn the_modest_limit_does_not_shrink_with_every_start() {
    let limit = StoreLimit::Modest;
    let fresh = limit.bytes(20 << 30, 10 << 30, 0);
    assert_eq!(ByteSize(fresh).to_string(), "5Gi");
    assert_eq!(limit.bytes(20 << 30, 6 << 30, 4 << 30), fresh);
}

/// Pieces that meet the reader's cases more often than arbitrary text does.
fn piece() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => proptest::sample::select(vec![
            "\n", ": ", "{", "}", "[", "]", ", ", "- ", "  ", "&a ", "*a", "\"", "'", "|\n", "!x ", "null", "true",
            "-1", "9999999999999999999999", "1h", "1Gi", "**", "*:*", ":", "://", "https://", "@", "docker.io", "%",
            "tls", "key", "match", "freshness", "endpoints", "aliases", "<<", "---\n", "#", "\t", "\u{feff}", "\0",
        ])
        .prop_map(str::to_owned),
        1 => ".{0,8}",
    ]
}

fn total(text: &str) -> Result<(), TestCaseError> {
    match parse(text) {
        Ok(loaded) => prop_assert!(!loaded.config.upstreams.is_empty()),
        Err(mistakes) => {
            prop_assert!(!mistakes.list().is_empty());
            let lines = text.split('\n').count()
                + text
                    .matches(['\r', '\u{85}', '\u{2028}', '\u{2029}'])
                    .count();
            for mistake in mistakes.list() {
                prop_assert!(
                    mistake
                        .at
                        .is_none_or(|at| at.line <= lines + 1 && at.column > 0)
                );
            }
            prop_assert_eq!(
                mistakes.to_string().lines().count(),
                mistakes.list().len().min(201)
            );
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn loading_is_total_on_any_text(text in ".{0,200}") {
        total(&text)?;
    }

    #[test]
    fn loading_is_total_on_any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = from_bytes("f", &bytes, &Overrides::default());
    }

    #[test]
    fn loading_is_total_on_likely_text(pieces in proptest::collection::vec(piece(), 0..60)) {
        total(&pieces.concat())?;
    }

    /// A valid file with something cut out and something else put in.
    #[test]
    fn loading_is_total_on_damaged_files(
        start in any::<proptest::sample::Index>(),
        length in 0_usize..40,
        insert in proptest::collection::vec(piece(), 0..4),
    ) {
        let mut letters: Vec<char> = include_str!("tests/full.yaml").chars().collect();
        let start = start.index(letters.len());
        let end = (start + length).min(letters.len());
        letters.splice(start..end, insert.concat().chars());
        total(&letters.into_iter().collect::<String>())?;
    }
}
