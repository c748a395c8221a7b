//! From configuration to endpoints. Reads certificates and credentials, never touches the network.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use coral_schema::oci::reference::DOCKER_HUB;
use coral_schema::process::tasks::Tasks;
use http::header::{ACCEPT_ENCODING, HeaderMap, HeaderValue};
use reqwest::{Client, ClientBuilder, Identity, Proxy, redirect};
use url::Url;

use super::client::HttpEndpoint;
use super::credentials::Credentials;
use super::gate::Gate;
use super::lent::Lent;
use super::metrics::Meter;
use super::redirect::near_host;
use super::resolver::{Nearness, Resolver};
use super::shared::{Clients, Shared};
use super::tls::{Mistake, Tls};
use super::token::Tokens;
use super::{Endpoint, Upstream, UpstreamConfig, UpstreamMetrics};

/// Docker Hub's token service, which may always receive Docker Hub's credentials.
const DOCKER_HUB_REALM: &str = "auth.docker.io";
/// Idle connections are kept this long: shorter than the 90 s and more after which servers and NATs forget them.
const KEEP_IDLE: Duration = Duration::from_mins(1);
/// How a dead HTTP/2 connection is found while requests wait on it.
const HTTP2_PING: Duration = Duration::from_secs(10);
/// HTTP/2 windows, bytes: fixed, since adaptive ones get connections cut. At 50 ms, 16 MiB carry 320 MiB/s.
const STREAM_WINDOW: u32 = 16 << 20;
const CONNECTION_WINDOW: u32 = 64 << 20;

/// Why an upstream cannot be built from its configuration.
#[derive(Debug, thiserror::Error)]
#[error("upstream {upstream}: {setting}: {problem}")]
pub struct BuildError {
    /// Its name.
    pub upstream: String,
    /// The setting at fault, as it is called in the file.
    pub setting: &'static str,
    /// What is wrong and what to do, naming the file if there is one.
    pub problem: String,
}

/// Builds an upstream. Reads files, so call it where blocking is allowed. `tasks` owns the breakers' probes.
pub fn build(
    config: &UpstreamConfig,
    lent: &Lent,
    metrics: &UpstreamMetrics,
    tasks: &Tasks,
) -> Result<Upstream, BuildError> {
    let error = |(setting, problem)| BuildError {
        upstream: config.name.to_string(),
        setting,
        problem,
    };
    let tls = Tls::read(config).map_err(error)?;
    let endpoints = config
        .endpoints
        .iter()
        .map(|url| endpoint(config, &tls, url, (lent, metrics, tasks)).map_err(error));
    Ok(Upstream {
        name: config.name.clone(),
        endpoints: endpoints.collect::<Result<_, _>>()?,
        timeouts: config.timeouts,
        policy: config.policy.clone(),
    })
}

fn endpoint(
    config: &UpstreamConfig,
    tls: &Tls,
    url: &Url,
    (lent, metrics, tasks): (&Lent, &UpstreamMetrics, &Tasks),
) -> Result<Arc<dyn Endpoint>, Mistake> {
    let base = check(config, url).map_err(|problem| ("endpoints", problem))?;
    let host = base.host_str().unwrap_or_default();
    let authority = base
        .port()
        .map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
    let nearness = Arc::new(Nearness::new(near_host(&base)));
    let resolver = Resolver {
        own: host.into(),
        proxies: Arc::new(proxy_host(config)),
        nearness: Arc::clone(&nearness),
    };
    let anonymous = client(config, tls, None, &resolver)?;
    let configured = match &tls.identity {
        None => anonymous.clone(),
        Some(identity) => client(config, tls, Some(identity), &resolver)?,
    };
    let mut token_realms: Vec<_> = config
        .token_realms
        .iter()
        .map(|host| host.to_ascii_lowercase())
        .collect();
    if config.name.as_str() == DOCKER_HUB {
        token_realms.push(DOCKER_HUB_REALM.to_owned());
    }
    let meter = Meter::new(metrics, &config.name);
    let text: Arc<str> = base.as_str().trim_end_matches('/').into();
    Ok(Arc::new(HttpEndpoint(Arc::new(Shared {
        gate: Gate::new(Arc::clone(&text), &config.limits, meter.clone()),
        url: text,
        token_realms,
        clients: Clients {
            configured,
            anonymous,
            has_certificate: tls.identity.is_some(),
        },
        nearness,
        credentials: Credentials::new(&config.credentials, [authority, config.name.to_string()]),
        name: config.name.clone(),
        lent: lent.clone(),
        tokens: Tokens::new(),
        meter,
        tasks: tasks.clone(),
        base,
    }))))
}

/// What an endpoint's URL may be. Neither the log nor an origin record may get a secret with it.
fn check(config: &UpstreamConfig, url: &Url) -> Result<Url, String> {
    let mut shown = url.clone();
    // Both fail only for URLs without a host, which are refused below.
    let _ = shown.set_password(None);
    let _ = shown.set_username("");
    shown.set_query(None);
    shown.set_fragment(None);
    if url.host_str().is_none_or(str::is_empty) || !matches!(url.scheme(), "https" | "http") {
        return Err(format!("{shown} is no https URL with a host"));
    }
    if url.scheme() == "http" && !config.plain_http {
        return Err(format!(
            "{shown} is not https; write https, or plainHttp: true for a network that you trust"
        ));
    }
    if shown != *url {
        return Err(format!(
            "{shown} must have neither login nor query; a login belongs under credentials"
        ));
    }
    Ok(shown)
}

fn proxy_host(config: &UpstreamConfig) -> HashSet<String> {
    let host = config
        .proxy
        .as_ref()
        .and_then(|proxy| proxy.expose().host_str());
    host.map(str::to_owned).into_iter().collect()
}

fn client(
    config: &UpstreamConfig,
    tls: &Tls,
    identity: Option<&Identity>,
    resolver: &Resolver,
) -> Result<Client, Mistake> {
    let builder = || {
        let base = base(config, resolver)?;
        Ok(if config.http2 {
            base.http2_initial_stream_window_size(STREAM_WINDOW)
                .http2_initial_connection_window_size(CONNECTION_WINDOW)
                .http2_keep_alive_interval(HTTP2_PING)
                .http2_keep_alive_timeout(HTTP2_PING)
        } else {
            base.http1_only()
        })
    };
    super::tls::client(&builder, tls, identity)
}

/// What all clients have in common. Each silent step has a deadline of its own in `transport`.
fn base(config: &UpstreamConfig, resolver: &Resolver) -> Result<ClientBuilder, Mistake> {
    let builder = Client::builder()
        .user_agent(concat!("coral-registry/", env!("CARGO_PKG_VERSION")))
        .default_headers(HeaderMap::from_iter([(
            ACCEPT_ENCODING,
            HeaderValue::from_static("identity"),
        )]))
        .redirect(redirect::Policy::none())
        .referer(false)
        .no_gzip()
        .no_brotli()
        .no_zstd()
        .no_deflate()
        .connect_timeout(config.timeouts.connect)
        .pool_idle_timeout(KEEP_IDLE)
        .dns_resolver(Arc::new(resolver.clone()));
    let Some(proxy) = &config.proxy else {
        return Ok(builder);
    };
    let proxy = Proxy::all(proxy.expose().clone()).map_err(|_| {
        (
            "proxy",
            format!("{proxy} cannot be used; write http://host:port or https://host:port"),
        )
    })?;
    Ok(builder.proxy(proxy))
}
