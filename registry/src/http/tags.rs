//! The tag list (end-8), in pages.

use serde::Serialize;

use super::answer::Answer;
use super::error::Failure;
use super::{Asked, Http, Readable, paging};
use crate::access::Probe;
use crate::pull::{Outcome, TagsAnswer};

#[derive(Serialize)]
struct Body<'a> {
    name: &'a str,
    tags: &'a [String],
}

/// One page; the next one is linked with the same `n` and `ns`.
pub(super) async fn tags(
    http: &Http,
    asked: &mut Asked<'_>,
    path: &str,
) -> Result<Answer, Failure> {
    let n = paging::limit(asked.query)?;
    let cap = http.admit(asked, path, Probe::Repository).await?;
    if n == Some(0) {
        let none = TagsAnswer {
            tags: Vec::new(),
            more: false,
            warning: None,
            outcome: Outcome::Hit,
        };
        return Ok(answer(&none, path, n, asked.ns.as_deref()));
    }
    let last = asked.query.get("last");
    let page = match cap {
        Readable::Hosted(cap) => http.puller.hosted_tags(&cap, n, last.as_deref()).await?,
        Readable::Proxied(cap) => http.puller.tags(&cap, n, last.as_deref()).await?,
    };
    Ok(answer(&page, path, n, asked.ns.as_deref()))
}

fn answer(page: &TagsAnswer, path: &str, n: Option<usize>, ns: Option<&str>) -> Answer {
    let body = Body {
        name: path,
        tags: &page.tags,
    };
    let body = serde_json::to_vec(&body).expect("plain data serialises");
    let mut answer = Answer::json("application/json", page.outcome, body);
    answer.set_warning(page.warning.as_deref());
    if let Some(last) = page.tags.last().filter(|_| page.more) {
        let n = n.map(|n| n.to_string());
        let parameters = [("n", n.as_deref()), ("last", Some(last)), ("ns", ns)];
        let path = format!("/v2/{path}/tags/list");
        paging::set_next(&mut answer.headers, &path, &parameters);
    }
    answer
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::answer::Content;
    use http::header::LINK;

    fn page(tags: &[&str], more: bool) -> TagsAnswer {
        TagsAnswer {
            tags: tags.iter().map(ToString::to_string).collect(),
            more,
            warning: None,
            outcome: Outcome::Miss,
        }
    }

    #[test]
    fn a_page_and_the_way_to_the_next() {
        let answer = answer(&page(&["a", "b"], true), "x/y", Some(2), Some("ghcr.io"));
        let Content::Full(body) = &answer.content else {
            panic!("{answer:?}")
        };
        assert_eq!(body, r#"{"name":"x/y","tags":["a","b"]}"#);
        assert_eq!(
            answer.headers[LINK],
            "</v2/x/y/tags/list?n=2&last=b&ns=ghcr.io>; rel=\"next\""
        );
    }

    #[test]
    fn the_last_page_has_no_link() {
        for page in [page(&["a"], false), page(&[], true)] {
            assert!(!answer(&page, "x", None, None).headers.contains_key(LINK));
        }
    }
}
