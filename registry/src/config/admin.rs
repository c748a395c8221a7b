//! The section `admin`: who may look at the cache and ask it for something.

use std::net::SocketAddr;

use super::section::Section;
use super::settings::{loopback, tls};
use super::{AdminConfig, AuthConfig, Overrides, value};
use crate::admin::auth::keys::{KeySource, Location};

/// Reads `admin`; `oci` is where clients connect to.
pub(super) fn admin(
    mut section: Section<'_>,
    oci: SocketAddr,
    overrides: &Overrides,
) -> AdminConfig {
    let item = section.take("listen");
    let written = item.as_ref().and_then(|item| item.value(value::listen));
    let listen = overrides
        .admin_listen
        .or(written)
        .unwrap_or_else(|| loopback(9090));
    if listen == oci && listen.port() != 0 {
        let what = "the admin listener has the address of the other one; give it its own port";
        match &item {
            Some(item) => item.wrong(what),
            None => section.wrong(what),
        }
    }
    let hosts = section
        .list("hosts")
        .into_iter()
        .filter_map(|item| item.value(value::host))
        .collect();
    let tls = tls(section.section("tls"));
    let auth = section.take("auth").filter(|item| !item.is_off());
    let auth = auth.and_then(|item| admin_auth(item.section()));
    section.finish();
    AdminConfig {
        listen,
        hosts,
        tls,
        auth,
    }
}

fn admin_auth(mut section: Section<'_>) -> Option<AuthConfig> {
    let issuer = section.value("issuer", value::text);
    let audience = section.required("audience", value::text);
    let location = section.take("jwks").map(|item| {
        if item.value(|text| Ok(text.contains("://"))) == Some(true) {
            item.value(value::https).map(Location::Url)
        } else {
            item.file().map(Location::File)
        }
    });
    if location.is_none() {
        section.wrong("jwks is missing; write the URL or the file of the issuer's public keys");
    }
    let ca = section.take("jwksCA").and_then(|item| item.file());
    let token = section.take("jwksToken").and_then(|item| item.file());
    if issuer.is_none() && token.is_none() {
        section.wrong(
            "nothing says whose tokens are good; write issuer, or jwksToken for the issuer of our own token",
        );
    }
    let subjects = section.list("subjects").into_iter();
    let subjects: Vec<_> = subjects
        .filter_map(|item| item.value(value::text))
        .collect();
    if subjects.is_empty() {
        section.wrong(
            "nobody is listed under subjects; write one like system:serviceaccount:coral-system:coral-operator",
        );
    }
    section.finish();
    Some(AuthConfig {
        issuer,
        audience: audience?,
        subjects,
        keys: KeySource {
            location: location??,
            ca,
            token,
        },
    })
}
