//! What hosted repositories do not need, as collecting sees it.

use super::*;
use crate::index::{Role, Taken};

async fn unneeded(index: &Index, role: Role) -> Vec<(Digest, bool)> {
    let page = index.needs(&repo("team/app"), role, None).await.unwrap();
    assert!(page.last.is_none());
    let unneeded = page.unneeded.iter();
    unneeded
        .map(|found| (found.digest, found.since.is_some()))
        .collect()
}

async fn take(index: &Index, role: Role, name: &str) -> bool {
    let taken = Taken {
        repo: repo("team/app"),
        digest: digest(name),
        role,
    };
    let now = index.now();
    index.take(&taken, now, Duration::ZERO).await.unwrap()
}

async fn accept(index: &Index, name: &str, children: &[(&str, ChildKind)], tags: &[&str]) {
    let row = |name: &&str, to| (tag(name), TagRow::clone(&tag_row(to)));
    let to = digest(name);
    let tags = tags.iter().map(|name| row(name, to)).collect();
    let row = ManifestRow {
        subject: None,
        ..ManifestRow::clone(&manifest_row(children))
    };
    index
        .accept_manifest(&repo("team/app"), &to, Arc::new(row), tags)
        .await
        .unwrap();
}

async fn mark(index: &Index, role: Role, name: &str) -> usize {
    let team = repo("team/app");
    index.mark(&team, role, vec![digest(name)]).await.unwrap()
}

#[tokio::test]
async fn h02_what_is_used_after_it_was_marked_stays() {
    let bench = Bench::new();
    let index = bench.open();
    let team = repo("team/app");
    for name in ["a", "b", "c", "d"] {
        index.accept_member(&team, &digest(name)).await.unwrap();
        assert_eq!(mark(&index, Role::Blob, name).await, 1);
    }
    index.renew(&team, &digest("a")).await.unwrap();
    index.accept_member(&team, &digest("b")).await.unwrap();
    accept(&index, "manifest", &[("c", ChildKind::Layer)], &[]).await;
    for name in ["a", "b", "c"] {
        assert!(!take(&index, Role::Blob, name).await, "{name}");
        assert!(index.is_member(&team, &digest(name)).await.unwrap());
    }
    assert!(take(&index, Role::Blob, "d").await);
    assert!(!take(&index, Role::Blob, "d").await, "only once");
    assert!(!index.is_member(&team, &digest("d")).await.unwrap());
    assert_eq!(mark(&index, Role::Blob, "c").await, 0, "named meanwhile");
    let now = index.now();
    assert_eq!(mark(&index, Role::Blob, "a").await, 1);
    let taken = Taken {
        repo: team,
        digest: digest("a"),
        role: Role::Blob,
    };
    let early = index.take(&taken, now, Duration::ZERO);
    assert!(!early.await.unwrap(), "marked too late");
    let early = index.take(&taken, index.now(), Duration::from_hours(1));
    assert!(!early.await.unwrap(), "whatever the wall clock says (H-30)");
}

#[tokio::test]
async fn what_is_taken_is_remembered_until_it_is_finished_or_pushed_again() {
    let bench = Bench::new();
    let team = repo("team/app");
    {
        let index = bench.open();
        for name in ["a", "b"] {
            index.accept_member(&team, &digest(name)).await.unwrap();
            mark(&index, Role::Blob, name).await;
        }
    }
    let index = bench.open();
    let mut marked = unneeded(&index, Role::Blob).await;
    marked.retain(|(_, marked)| *marked);
    assert_eq!(marked.len(), 2, "marks survive a restart");
    for name in ["a", "b"] {
        assert!(take(&index, Role::Blob, name).await);
    }
    drop(index);
    let index = bench.open();
    let taken = index.taken().await.unwrap();
    assert_eq!(taken.len(), 2);
    index.accept_member(&team, &digest("a")).await.unwrap();
    for taken in taken {
        let again = taken.digest == digest("a");
        assert_eq!(index.is_taken(&taken).await.unwrap(), !again);
        index.forget_taken(&taken).await.unwrap();
    }
    assert!(index.is_member(&team, &digest("a")).await.unwrap());
    assert!(index.taken().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_manifest_is_needed_by_what_has_a_tag() {
    let bench = Bench::new();
    let index = bench.open();
    let team = repo("team/app");
    let part = |name: &'static str| (name, ChildKind::Manifest);
    accept(&index, "index", &[part("inner")], &["v1"]).await;
    accept(&index, "inner", &[part("child")], &[]).await;
    accept(&index, "child", &[], &[]).await;
    accept(&index, "alone", &[part("kept by nobody")], &[]).await;
    let referrer = Arc::new(ManifestRow {
        subject: Some(digest("child")),
        ..ManifestRow::clone(&manifest_row(&[]))
    });
    let signature = digest("signature");
    let accepted = index.accept_manifest(&team, &signature, referrer, vec![]);
    accepted.await.unwrap();
    assert_eq!(
        unneeded(&index, Role::Manifest).await,
        [(digest("alone"), false)]
    );
    index
        .remove_manifest(&team, None, vec![tag("v1")])
        .await
        .unwrap();
    assert_eq!(unneeded(&index, Role::Manifest).await.len(), 5);
    for name in ["index", "inner", "child", "signature"] {
        assert_eq!(mark(&index, Role::Manifest, name).await, 1);
    }
    // Somebody reads the index, and will want what it has.
    index.renew(&team, &digest("index")).await.unwrap();
    for name in ["inner", "child", "signature"] {
        assert!(!take(&index, Role::Manifest, name).await, "{name}");
    }
    mark(&index, Role::Manifest, "index").await;
    for name in ["child", "signature", "index", "inner"] {
        assert!(take(&index, Role::Manifest, name).await, "{name}");
        assert!(
            index
                .manifest(&team, &digest(name))
                .await
                .unwrap()
                .is_none()
        );
    }
}

#[tokio::test]
async fn pinned_manifests_are_needed() {
    let bench = Bench::new();
    let index = bench.open();
    accept(&index, "one", &[], &[]).await;
    accept(&index, "two", &[], &[]).await;
    let image = |name: &str, frozen: Option<&str>| PinnedImage {
        repo: repo("team/app"),
        reference: match frozen {
            Some(_) => "v1".parse().unwrap(),
            None => digest(name).to_string().parse().unwrap(),
        },
        frozen: frozen.map(digest),
    };
    let pins = |until| Pins {
        images: vec![image("one", None), image("", Some("two"))],
        platforms: Vec::new(),
        until,
    };
    let later = Timestamp::now() + jiff::SignedDuration::from_hours(1);
    assert!(index.pin("me", pins(later)).await.unwrap());
    assert!(unneeded(&index, Role::Manifest).await.is_empty());
    assert!(index.pin("me", pins(second(1))).await.unwrap());
    assert_eq!(unneeded(&index, Role::Manifest).await.len(), 2);
}

#[tokio::test]
async fn bytes_go_only_when_nobody_has_or_names_them() {
    let bench = Bench::new();
    let index = bench.open();
    for name in ["mine", "named", "proxied", "nobody"] {
        index.put_blob(&digest(name), 1, true, false).await.unwrap();
    }
    index
        .accept_member(&repo("team/app"), &digest("mine"))
        .await
        .unwrap();
    accept(&index, "manifest", &[("named", ChildKind::Layer)], &[]).await;
    index
        .put_member(&repo("ghcr.io/a"), &digest("proxied"))
        .await
        .unwrap();
    index.flush().await.unwrap();
    for name in ["mine", "named", "proxied", "unknown"] {
        let claim = index.claim_unnamed(&digest(name)).await.unwrap();
        assert!(claim.is_none(), "{name}");
    }
    let publishing = index.publishing(&digest("nobody")).await.unwrap();
    assert!(
        index
            .claim_unnamed(&digest("nobody"))
            .await
            .unwrap()
            .is_none()
    );
    drop(publishing);
    assert!(
        index
            .claim_unnamed(&digest("nobody"))
            .await
            .unwrap()
            .is_some()
    );
}

#[tokio::test]
async fn hosted_repositories_in_order() {
    let bench = Bench::new();
    let index = bench.open();
    for name in ["team/b", "ghcr.io/a", "team/a"] {
        index
            .accept_member(&repo(name), &digest("x"))
            .await
            .unwrap();
    }
    index
        .accept_manifest(&repo("team/c"), &digest("m"), manifest_row(&[]), vec![])
        .await
        .unwrap();
    let (mut found, mut last) = (Vec::new(), None);
    while let Some(next) = index.next_hosted(last.as_ref()).await.unwrap() {
        found.push(next.to_string());
        last = Some(next);
    }
    assert_eq!(found, ["team/a", "team/b", "team/c"]);
}
