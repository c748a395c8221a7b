//! `/v2/_catalog`: the repositories that the caller may read, by their canonical names.

use serde::Serialize;

use super::answer::Answer;
use super::error::Failure;
use super::{Asked, Http, paging};
use crate::name::RepoKey;
use crate::pull::Outcome;

/// Entries of a page when the client does not say.
const DEFAULT_PAGE: usize = 100;
/// Repositories that are looked at in one go.
const BATCH: usize = 1000;

#[derive(Serialize)]
struct Body<'a> {
    repositories: &'a [String],
}

/// One page.
pub(super) async fn catalog(http: &Http, asked: &Asked<'_>) -> Result<Answer, Failure> {
    let n = paging::limit(asked.query)?;
    let length = n.unwrap_or(DEFAULT_PAGE);
    let last = asked.query.get("last").map(|last| last.parse());
    let last = last.transpose().map_err(|_| {
        Failure::Parameter("the parameter last must be a repository of the page before")
    })?;
    let found = match length {
        0 => Vec::new(),
        // One more than wanted tells whether there is another page.
        _ => listed(http, asked, last, length + 1).await,
    };
    Ok(answer(&found, length))
}

/// The first `wanted` repositories after `last` that the caller may see. A page is never cut short before that: its last
/// entry, where the next one starts, must be one that the caller may see, too.
async fn listed(
    http: &Http,
    asked: &Asked<'_>,
    mut last: Option<RepoKey>,
    wanted: usize,
) -> Vec<String> {
    let mut found = Vec::new();
    loop {
        let batch = http.puller.repositories(last.as_ref(), BATCH).await;
        for repo in &batch {
            if http.access.may_list(&asked.caller, repo).await {
                found.push(repo.to_string());
            }
            if found.len() == wanted {
                return found;
            }
        }
        if batch.len() < BATCH {
            return found;
        }
        last = batch.into_iter().last();
    }
}

fn answer(found: &[String], length: usize) -> Answer {
    let repositories = &found[..found.len().min(length)];
    let body = serde_json::to_vec(&Body { repositories }).expect("plain data serialises");
    let mut answer = Answer::json("application/json", Outcome::Hit, body);
    if let Some(last) = repositories.last().filter(|_| found.len() > length) {
        let length = length.to_string();
        let parameters = [("n", Some(length.as_str())), ("last", Some(last))];
        paging::set_next(&mut answer.headers, "/v2/_catalog", &parameters);
    }
    answer
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::answer::Content;
    use http::header::LINK;

    #[rstest::rstest]
    #[case(0, "[]", None)]
    #[case(1, r#"["a/x"]"#, Some("</v2/_catalog?n=1&last=a%2Fx>; rel=\"next\""))]
    #[case(2, r#"["a/x","b/y"]"#, None)]
    fn pages(#[case] length: usize, #[case] list: &str, #[case] link: Option<&str>) {
        let all = ["a/x", "b/y"].map(str::to_owned);
        let found = &all[..all.len().min(if length == 0 { 0 } else { length + 1 })];
        let answer = answer(found, length);
        let Content::Full(body) = &answer.content else {
            panic!("{answer:?}")
        };
        assert_eq!(body, format!(r#"{{"repositories":{list}}}"#).as_bytes());
        assert_eq!(
            answer.headers.get(LINK).map(|link| link.to_str().unwrap()),
            link
        );
    }
}
