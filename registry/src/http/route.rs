//! Pure: method and raw path to [`Route`], matched from the right, since repository names contain slashes and the
//! keywords themselves (`a/blobs/b` is a name).
//!
//! Total: any bytes give a route or an error. Names are not percent-decoded and not checked here; that is what
//! `RepoKey` is for.

use std::borrow::Cow;

use coral_schema::oci::digest::DigestError;
use coral_schema::oci::reference::ManifestRefError;
use coral_schema::oci::tag::TagError;
use coral_schema::oci::{Digest, ManifestRef};
use http::Method;
use percent_encoding::percent_decode_str;

/// What a request asks for. `path` is the raw text between `/v2/` and the keyword.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route<'a> {
    /// `/v2/` (end-1)
    Ping,
    /// `/v2/_catalog`
    Catalog,
    /// `/v2/<path>/manifests/<reference>` (end-3)
    Manifest {
        /// Host and repository.
        path: &'a str,
        /// Tag or digest.
        reference: ManifestRef,
    },
    /// `/v2/<path>/blobs/<digest>` (end-2)
    Blob {
        /// Host and repository.
        path: &'a str,
        /// Which.
        digest: Digest,
    },
    /// `/v2/<path>/blobs/uploads/` (end-4, end-11)
    Uploads {
        /// Host and repository.
        path: &'a str,
    },
    /// `/v2/<path>/blobs/uploads/<id>` (end-5, end-6, end-13, end-14)
    Upload {
        /// Host and repository.
        path: &'a str,
        /// The session's name, not checked.
        id: &'a str,
    },
    /// `/v2/<path>/tags/list` (end-8)
    Tags {
        /// Host and repository.
        path: &'a str,
    },
    /// `/v2/<path>/referrers/<digest>` (end-12)
    Referrers {
        /// Host and repository.
        path: &'a str,
        /// Their subject.
        digest: Digest,
    },
    /// `/token`: what challenges name.
    Token,
}

impl Route<'_> {
    /// The manifest, blob or subject that it names.
    pub fn reference(&self) -> Option<ManifestRef> {
        match self {
            Self::Manifest { reference, .. } => Some(reference.clone()),
            Self::Blob { digest, .. } | Self::Referrers { digest, .. } => {
                Some(ManifestRef::Digest(*digest))
            }
            Self::Ping
            | Self::Catalog
            | Self::Tags { .. }
            | Self::Uploads { .. }
            | Self::Upload { .. }
            | Self::Token => None,
        }
    }

    /// The methods that it knows, as an `Allow` header.
    fn methods(&self) -> &'static str {
        match self {
            Self::Ping | Self::Catalog | Self::Tags { .. } | Self::Referrers { .. } => READ,
            Self::Manifest { .. } => "GET, HEAD, PUT, DELETE",
            Self::Blob { .. } => "GET, HEAD, DELETE",
            Self::Uploads { .. } => "POST",
            Self::Token => "GET, POST",
            Self::Upload { .. } => "GET, HEAD, PATCH, PUT, DELETE",
        }
    }
}

/// Why a request has no route.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// No such endpoint.
    #[error("this is not an endpoint of the OCI distribution API")]
    Unknown,
    /// The endpoint does not know this method; those that it knows.
    #[error("this endpoint answers {0}")]
    Method(&'static str),
    /// The digest is malformed.
    #[error(transparent)]
    Digest(#[from] DigestError),
    /// Neither a tag nor a digest.
    #[error(transparent)]
    Tag(#[from] TagError),
    /// The same, and it was to be made.
    #[error(transparent)]
    NewTag(TagError),
}

const READ: &str = "GET, HEAD";

/// The route of a request.
pub fn route<'a>(method: &Method, path: &'a str) -> Result<Route<'a>, RouteError> {
    let route = of_path(path).map_err(|error| match error {
        RouteError::Tag(error) if method == Method::PUT => RouteError::NewTag(error),
        other => other,
    })?;
    let known = route.methods();
    if known.split(", ").any(|known| known == method.as_str()) {
        Ok(route)
    } else {
        Err(RouteError::Method(known))
    }
}

fn of_path(path: &str) -> Result<Route<'_>, RouteError> {
    if path == "/token" {
        return Ok(Route::Token);
    }
    let rest = match path.strip_prefix("/v2") {
        Some("" | "/") => "",
        Some(rest) => rest.strip_prefix('/').ok_or(RouteError::Unknown)?,
        None => return Err(RouteError::Unknown),
    };
    match rest {
        "" => return Ok(Route::Ping),
        "_catalog" => return Ok(Route::Catalog),
        _ => {}
    }
    let (path, keyword, last) = split(rest).ok_or(RouteError::Unknown)?;
    match (keyword, last) {
        ("manifests", reference) => Ok(Route::Manifest {
            path,
            reference: manifest_ref(reference)?,
        }),
        // Some clients leave the last slash out.
        ("blobs", "uploads") => Ok(Route::Uploads { path }),
        ("uploads", id) if path.ends_with("/blobs") => {
            let path = &path[..path.len() - "/blobs".len()];
            match id {
                _ if path.is_empty() => Err(RouteError::Unknown),
                "" => Ok(Route::Uploads { path }),
                id => Ok(Route::Upload { path, id }),
            }
        }
        ("blobs", digest) => Ok(Route::Blob {
            path,
            digest: decode_colon(digest).parse()?,
        }),
        ("referrers", digest) => Ok(Route::Referrers {
            path,
            digest: decode_colon(digest).parse()?,
        }),
        ("tags", "list") => Ok(Route::Tags { path }),
        _ => Err(RouteError::Unknown),
    }
}

/// `a/b/keyword/last` → (`a/b`, `keyword`, `last`)
fn split(rest: &str) -> Option<(&str, &str, &str)> {
    let (head, last) = rest.rsplit_once('/')?;
    let (path, keyword) = head.rsplit_once('/')?;
    (!path.is_empty()).then_some((path, keyword, last))
}

fn manifest_ref(text: &str) -> Result<ManifestRef, RouteError> {
    decode_colon(text).parse().map_err(|error| match error {
        ManifestRefError::Digest(error) => RouteError::Digest(error),
        ManifestRefError::Tag(error) => RouteError::Tag(error),
    })
}

/// Some clients encode the colon of a digest; nothing else in a reference can need it.
fn decode_colon(text: &str) -> Cow<'_, str> {
    match text.split_once("%3A").or_else(|| text.split_once("%3a")) {
        Some((algorithm, hex)) => format!("{algorithm}:{hex}").into(),
        None => text.into(),
    }
}

/// The query of a request. Values are percent-decoded once; `+` stays a plus, as in media types.
#[derive(Debug, Clone, Copy)]
pub struct Query<'a>(pub &'a str);

impl<'a> Query<'a> {
    /// All values of `name`, as [`Query::get`] gives the first.
    pub fn all(self, name: &str) -> impl Iterator<Item = Cow<'a, str>> {
        self.0.split('&').filter_map(move |pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (key == name).then(|| percent_decode_str(value).decode_utf8_lossy())
        })
    }

    /// The first value of `name`. What is not UTF-8 becomes U+FFFD, which no valid value contains.
    pub fn get(self, name: &str) -> Option<Cow<'a, str>> {
        self.all(name).next()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn get(path: &str) -> Result<Route<'_>, RouteError> {
        route(&Method::GET, path)
    }

    #[rstest::rstest]
    #[case("library/nginx")]
    #[case("docker.io/library/nginx")]
    #[case("a/blobs/b/manifests/c")]
    #[case("manifests")]
    #[case("registry.internal:5000/a%2Fb")]
    fn takes_the_name_as_it_is(#[case] name: &str) {
        let digest = Digest::sha256(b"");
        let expected = ManifestRef::Digest(digest);
        assert_eq!(
            get(&format!("/v2/{name}/manifests/sha256:{HEX}")),
            Ok(Route::Manifest {
                path: name,
                reference: expected
            })
        );
        for colon in [":", "%3A", "%3a"] {
            assert_eq!(
                get(&format!("/v2/{name}/blobs/sha256{colon}{HEX}")),
                Ok(Route::Blob { path: name, digest })
            );
            assert_eq!(
                get(&format!("/v2/{name}/referrers/sha256{colon}{HEX}")),
                Ok(Route::Referrers { path: name, digest })
            );
        }
        assert_eq!(
            get(&format!("/v2/{name}/tags/list")),
            Ok(Route::Tags { path: name })
        );
        assert_eq!(
            get(&format!("/v2/{name}/manifests/v1.0")),
            Ok(Route::Manifest {
                path: name,
                reference: "v1.0".parse().unwrap()
            })
        );
    }

    #[rstest::rstest]
    #[case("/v2", Ok(Route::Ping))]
    #[case("/v2/", Ok(Route::Ping))]
    #[case("/v2/_catalog", Ok(Route::Catalog))]
    #[case("", Err(RouteError::Unknown))]
    #[case("/", Err(RouteError::Unknown))]
    #[case("/v1/", Err(RouteError::Unknown))]
    #[case("/token/", Err(RouteError::Unknown))]
    #[case("/v2x/a/tags/list", Err(RouteError::Unknown))]
    #[case("/v2//", Err(RouteError::Unknown))]
    #[case("/v2/a", Err(RouteError::Unknown))]
    #[case("/v2/tags/list", Err(RouteError::Unknown))]
    #[case("/v2//tags/list", Err(RouteError::Unknown))]
    #[case("/v2/a/tags/list/", Err(RouteError::Unknown))]
    #[case("/v2/a/tags/other", Err(RouteError::Unknown))]
    #[case("/v2/blobs/uploads/", Err(RouteError::Unknown))]
    #[case("/v2/uploads/x", Err(RouteError::Unknown))]
    #[case("/v2/a/uploads/x", Err(RouteError::Unknown))]
    #[case("/v2/a/blobs/nonsense", Err(RouteError::Digest(DigestError::Shape)))]
    #[case("/v2/a/blobs/md5:00", Err(RouteError::Digest(DigestError::Algorithm)))]
    #[case("/v2/a/referrers/latest", Err(RouteError::Digest(DigestError::Shape)))]
    #[case("/v2/a/manifests/.x", Err(RouteError::Tag(TagError)))]
    #[case("/v2/a/manifests/", Err(RouteError::Tag(TagError)))]
    #[case("/v2/a/manifests/a%2Fb", Err(RouteError::Tag(TagError)))]
    fn the_rest_of_the_table(#[case] path: &str, #[case] expected: Result<Route<'_>, RouteError>) {
        assert_eq!(get(path), expected);
        assert_eq!(
            route(&Method::HEAD, path),
            expected,
            "HEAD is GET without body"
        );
    }

    #[rstest::rstest]
    #[case("/v2/", READ)]
    #[case("/v2/_catalog", READ)]
    #[case("/v2/a/tags/list", READ)]
    #[case("/v2/a/manifests/latest", "GET, HEAD, PUT, DELETE")]
    #[case("/v2/a/blobs/uploads/", "POST")]
    #[case("/token", "GET, POST")]
    #[case("/v2/a/blobs/uploads/x", "GET, HEAD, PATCH, PUT, DELETE")]
    fn other_methods_are_told_so(#[case] path: &str, #[case] known: &'static str) {
        let methods = [Method::PUT, Method::POST, Method::DELETE, Method::PATCH];
        for method in methods.iter().chain([&Method::GET, &Method::HEAD]) {
            let is_known = known.split(", ").any(|known| known == method.as_str());
            let refused = route(method, path) == Err(RouteError::Method(known));
            assert_eq!(refused, !is_known, "{method}");
        }
        assert_eq!(route(&Method::PUT, "/elsewhere"), Err(RouteError::Unknown));
    }

    #[rstest::rstest]
    #[case("a")]
    #[case("a/blobs/uploads")]
    #[case("uploads")]
    fn uploads(#[case] path: &str) {
        for last in ["uploads/", "uploads"] {
            let found = of_path_text(&format!("/v2/{path}/blobs/{last}"));
            assert_eq!(found, format!("Uploads {{ path: {path:?} }}"));
        }
        let found = of_path_text(&format!("/v2/{path}/blobs/uploads/x"));
        assert_eq!(found, format!("Upload {{ path: {path:?}, id: \"x\" }}"));
    }

    fn of_path_text(path: &str) -> String {
        format!("{:?}", of_path(path).unwrap())
    }

    #[rstest::rstest]
    #[case("ns=docker.io", Some("docker.io"))]
    #[case("n=5&ns=registry.internal%3A5000", Some("registry.internal:5000"))]
    #[case("ns=a%252Fb", Some("a%2Fb"))]
    #[case("ns", Some(""))]
    #[case("ns=&ns=b", Some(""))]
    #[case("xns=a&nsx=b", None)]
    #[case("", None)]
    #[case("ns=%ff", Some("\u{fffd}"))]
    fn h23_ns_is_decoded_once(#[case] query: &str, #[case] expected: Option<&str>) {
        assert_eq!(Query(query).get("ns").as_deref(), expected);
    }

    #[test]
    fn a_plus_is_a_plus() {
        let query = Query("artifactType=application/vnd.a+json");
        assert_eq!(
            query.get("artifactType").as_deref(),
            Some("application/vnd.a+json")
        );
    }

    proptest! {
        /// H-23: total; and a path that has a route is built from its parts.
        #[test]
        fn h23_total(path in "(/v2)?(/|[a-z.:%]{1,4}|manifests|blobs|tags|list|referrers|sha256:|_catalog){0,12}") {
            match get(&path) {
                Ok(Route::Tags { path: name }) => prop_assert_eq!(format!("/v2/{name}/tags/list"), path),
                Ok(Route::Manifest { path: name, reference: ManifestRef::Tag(tag) }) =>
                    prop_assert_eq!(format!("/v2/{name}/manifests/{tag}"), path),
                _ => {}
            }
        }

        #[test]
        fn h23_any_text(path in ".{0,60}", query in ".{0,60}") {
            let _ = get(&path);
            let _ = Query(&query).get("ns");
        }
    }
}
