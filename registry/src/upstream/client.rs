//! The HTTP implementation of [`Endpoint`]: which request each question is, and what its answer means.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use coral_schema::oci::{Digest, ManifestRef, RepositoryName, media_type};
use futures::future::BoxFuture;
use http::Method;
use http::header::{HeaderValue, IF_NONE_MATCH, RANGE};
use serde_json::Value;

use super::exchange::{Attempt, Request};
use super::metrics::Kind;
use super::shared::{ACCEPT_ANY, Shared};
use super::transport::{self, Flow};
use super::{
    BlobCall, BlobStream, ByteRange, Call, Checked, CredentialId, Endpoint, EndpointStatus,
    FetchedManifest, Page, UpstreamError, UpstreamErrorKind, answer,
};

/// Longest page of a tag list, bytes: a hundred thousand tags.
const LONGEST_TAGS: u64 = 8 << 20;
/// Most pages of referrers; a page has up to a thousand.
const MOST_REFERRER_PAGES: usize = 10;

/// One endpoint over HTTP.
pub(super) struct HttpEndpoint(pub(super) Arc<Shared>);

impl fmt::Debug for HttpEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("HttpEndpoint").field(&self.0.url).finish()
    }
}

impl Endpoint for HttpEndpoint {
    fn url(&self) -> &str {
        &self.0.url
    }

    fn credential_id(&self, repository: &RepositoryName) -> CredentialId {
        // A refused one still says that the repository is not known to be public.
        let own = self.0.credentials.find(repository);
        let lent = || {
            self.0
                .lent
                .find(&self.0.name, repository)
                .into_iter()
                .next()
        };
        match own.or_else(lent) {
            Some(credential) => credential.id,
            None if self.0.clients.has_certificate => CredentialId("certificate".into()),
            None => CredentialId::anonymous(),
        }
    }

    fn available(&self) -> Result<(), Duration> {
        if !self.0.gate.is_open() {
            return Ok(());
        }
        if self.0.gate.wants_check() {
            self.0.probe();
        }
        Err(self.0.gate.closed_for())
    }

    fn responsive(&self) -> bool {
        let responsive = self.0.gate.is_responsive();
        if !responsive && self.0.gate.wants_check() {
            self.0.probe();
        }
        responsive
    }

    fn status(&self) -> EndpointStatus {
        let gate = &self.0.gate;
        let problem = self
            .0
            .credentials
            .problem()
            .map(|problem| problem.to_string());
        EndpointStatus {
            url: self.0.url.to_string(),
            breaker_open: gate.is_open(),
            in_flight: gate.slots.taken(),
            ratelimit_remaining: gate.remaining(),
            last_error: problem.or_else(|| gate.last_error()),
        }
    }

    fn head_manifest<'a>(
        &'a self,
        call: Call,
        repository: &'a RepositoryName,
        reference: &'a ManifestRef,
        etag: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Checked, UpstreamError>> {
        let path = format!("{repository}/manifests/{reference}");
        let mut request = self
            .0
            .request(Method::HEAD, &path, media_type::ACCEPT_MANIFESTS);
        let mut expected: &[u16] = &[200];
        if let Some(etag) = etag.and_then(|etag| HeaderValue::from_str(etag).ok()) {
            request.headers.insert(IF_NONE_MATCH, etag);
            expected = &[200, 304];
        }
        Box::pin(async move {
            let attempt = self.0.begin(call, Kind::HeadManifest, repository).await?;
            let response = attempt.within(attempt.request(&request, expected)).await;
            let response = attempt.end(response)?;
            Ok(match response.status().as_u16() {
                304 => Checked::NotModified,
                _ => Checked::Head(answer::manifest_head(response.headers())),
            })
        })
    }

    fn manifest<'a>(
        &'a self,
        call: Call,
        repository: &'a RepositoryName,
        reference: &'a ManifestRef,
        limit: u64,
    ) -> BoxFuture<'a, Result<FetchedManifest, UpstreamError>> {
        let path = format!("{repository}/manifests/{reference}");
        let request = self
            .0
            .request(Method::GET, &path, media_type::ACCEPT_MANIFESTS);
        Box::pin(async move {
            let attempt = self.0.begin(call, Kind::Manifest, repository).await?;
            let work = async {
                let response = attempt.request(&request, &[200]).await?;
                let head = answer::manifest_head(response.headers());
                let body = transport::body(response, limit, call.step).await?;
                self.0.meter.received(body.len());
                Ok(FetchedManifest { head, body })
            };
            let fetched = attempt.within(work).await;
            attempt.end(fetched)
        })
    }

    fn head_blob<'a>(
        &'a self,
        call: Call,
        repository: &'a RepositoryName,
        digest: &'a Digest,
    ) -> BoxFuture<'a, Result<Option<u64>, UpstreamError>> {
        let path = format!("{repository}/blobs/{digest}");
        let request = self.0.request(Method::HEAD, &path, ACCEPT_ANY);
        Box::pin(async move {
            let attempt = self.0.begin(call, Kind::HeadBlob, repository).await?;
            let response = attempt.within(attempt.request(&request, &[200])).await;
            Ok(answer::length(attempt.end(response)?.headers()))
        })
    }

    fn blob<'a>(
        &'a self,
        call: BlobCall,
        repository: &'a RepositoryName,
        digest: &'a Digest,
        range: Option<ByteRange>,
    ) -> BoxFuture<'a, Result<BlobStream, UpstreamError>> {
        let path = format!("{repository}/blobs/{digest}");
        let mut request = self.0.request(Method::GET, &path, ACCEPT_ANY);
        if let Some(range) = range {
            request.headers.insert(RANGE, range_header(range));
        }
        Box::pin(async move {
            let (attempt, slot) = self.0.begin_download(&call, repository).await?;
            let work = async {
                let response = attempt.request(&request, &[200, 206]).await?;
                let status = response.status().as_u16();
                let extent = answer::extent(status, response.headers(), range).map_err(unusable)?;
                Ok((response, extent))
            };
            let answered = attempt.within(work).await;
            let (response, extent) = attempt.end(answered)?;
            let flow = Flow {
                endpoint: Arc::clone(&self.0.url),
                length: extent.length,
                step: call.step,
                bandwidth: self.0.gate.bandwidth.clone(),
                meter: self.0.meter.clone(),
                slot,
            };
            Ok(BlobStream {
                start: extent.start,
                total: extent.total,
                body: transport::flow(response, flow),
            })
        })
    }

    fn tags<'a>(
        &'a self,
        call: Call,
        repository: &'a RepositoryName,
        n: Option<usize>,
        last: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Page<String>, UpstreamError>> {
        let path = format!("{repository}/tags/list");
        let mut request = self.0.request(Method::GET, &path, ACCEPT_ANY);
        if n.is_some() || last.is_some() {
            let n = n.map(|n| ("n", n.to_string()));
            let last = last.map(|last| ("last", last.to_owned()));
            request
                .url
                .query_pairs_mut()
                .extend_pairs(n.into_iter().chain(last));
        }
        Box::pin(async move {
            let attempt = self.0.begin(call, Kind::Tags, repository).await?;
            let work = async {
                let response = attempt.request(&request, &[200]).await?;
                let more = answer::next_link(response.headers()).is_some();
                let body = transport::body(response, LONGEST_TAGS, call.step).await?;
                Ok(Page {
                    entries: tag_names(&body)?,
                    more,
                })
            };
            let page = attempt.within(work).await;
            attempt.end(page)
        })
    }

    fn referrers<'a>(
        &'a self,
        call: Call,
        repository: &'a RepositoryName,
        digest: &'a Digest,
        limit: u64,
    ) -> BoxFuture<'a, Result<Page<Value>, UpstreamError>> {
        let path = format!("{repository}/referrers/{digest}");
        let request = self.0.request(Method::GET, &path, ACCEPT_ANY);
        Box::pin(async move {
            let attempt = self.0.begin(call, Kind::Referrers, repository).await?;
            let page = attempt.within(referrers(&attempt, request, limit)).await;
            attempt.end(page)
        })
    }
}

async fn referrers(
    attempt: &Attempt<'_>,
    mut request: Request,
    limit: u64,
) -> Result<Page<Value>, UpstreamErrorKind> {
    let mut entries = Vec::new();
    for _ in 0..MOST_REFERRER_PAGES {
        let response = attempt.request(&request, &[200]).await?;
        let next = answer::next_link(response.headers()).map(|next| request.url.join(next));
        let body = transport::body(response, limit, attempt.call.step).await?;
        entries.extend(answer::list(&body, "manifests").map_err(unusable)?);
        match next {
            None => {
                return Ok(Page {
                    entries,
                    more: false,
                });
            }
            // The credentials are for this origin.
            Some(Ok(url)) if url.origin() == request.url.origin() => request.url = url,
            Some(_) => return Err(unusable("its next page is somewhere else")),
        }
    }
    Ok(Page {
        entries,
        more: true,
    })
}

fn tag_names(body: &Bytes) -> Result<Vec<String>, UpstreamErrorKind> {
    let entries = answer::list(body, "tags").map_err(unusable)?.into_iter();
    let names = entries.filter_map(|entry| match entry {
        Value::String(tag) => Some(tag),
        _ => None,
    });
    Ok(names.collect())
}

fn unusable(reason: &str) -> UpstreamErrorKind {
    UpstreamErrorKind::Protocol(reason.into())
}

fn range_header(range: ByteRange) -> HeaderValue {
    let text = match range.end {
        Some(end) => format!("bytes={}-{end}", range.start),
        None => format!("bytes={}-", range.start),
    };
    HeaderValue::from_str(&text).expect("digits and dashes make a header")
}
