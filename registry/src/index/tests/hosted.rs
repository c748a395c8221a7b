//! Rows of hosted repositories.

use super::*;

/// Only what a hosted repository has as its own may never go: that a manifest names it is not enough.
#[tokio::test]
async fn what_was_pushed_is_known_to_eviction() {
    let bench = Bench::new();
    let index = bench.open();
    let names = ["pushed", "manifest", "proxied", "named"];
    for name in names {
        index.put_blob(&digest(name), 1, true, false).await.unwrap();
    }
    let row = manifest_row(&[("named", ChildKind::Layer)]);
    for pushed in ["team/app", "team"] {
        let (repo, digest) = (repo(pushed), digest("pushed"));
        index.accept_member(&repo, &digest).await.unwrap();
    }
    for proxied in ["ghcr.io/a.b/c", "localhost/a", "r:5000/a", "ghcr.io/a"] {
        index
            .put_member(&repo(proxied), &digest("proxied"))
            .await
            .unwrap();
    }
    let (other, manifest) = (repo("team/a.b/c"), digest("manifest"));
    let accepted = index.accept_manifest(&other, &manifest, row, vec![]);
    accepted.await.unwrap();
    let hosted = index
        .choose(|candidates| {
            let hosted = candidates.filter(|candidate| candidate.pinned);
            hosted.map(|candidate| candidate.digest).collect::<Vec<_>>()
        })
        .await
        .unwrap();
    let mut expected = [digest("pushed"), digest("manifest")];
    let mut hosted = hosted;
    expected.sort();
    hosted.sort();
    assert_eq!(hosted, expected);
}

/// What was pushed is on disk, its row may not be: after a power loss the store is asked again.
#[tokio::test]
async fn h09_rows_of_hosted_repositories_do_not_survive_a_power_loss() {
    let bench = Bench::new();
    let index = bench.open_in("one").index;
    index.set_complete(0).await.unwrap();
    let (team, hub) = (repo("team/app"), repo("ghcr.io/org/app"));
    let (name, digest) = (tag("v1"), digest("manifest"));
    let row = manifest_row(&[]);
    let tags = vec![(name.clone(), TagRow::clone(&tag_row(digest)))];
    index.accept_member(&team, &digest).await.unwrap();
    let accepted = index.accept_manifest(&team, &digest, row.clone(), tags);
    accepted.await.unwrap();
    index.put_manifest(&hub, &digest, row).await.unwrap();
    index.flush().await.unwrap();
    drop(index);

    let again = bench.open_in("one").index;
    assert!(again.complete(), "only killed");
    assert!(again.is_member(&team, &digest).await.unwrap());
    drop(again);
    let after = bench.open_in("two").index;
    assert!(!after.complete());
    assert!(!after.is_member(&team, &digest).await.unwrap());
    assert!(after.tag(&team, &name).await.unwrap().is_none());
    assert!(after.manifest(&team, &digest).await.unwrap().is_none());
    assert!(after.manifest(&hub, &digest).await.unwrap().is_some());
}

#[tokio::test]
async fn what_is_deleted_from_a_hosted_repository_is_gone_at_once() {
    let bench = Bench::new();
    let index = bench.open();
    let (team, one, two) = (repo("team/app"), tag("one"), tag("two"));
    let digest = digest("manifest");
    let row = |tag: &Tag| (tag.clone(), TagRow::clone(&tag_row(digest)));
    let tags = vec![row(&one), row(&two)];
    let accepted = index.accept_manifest(&team, &digest, manifest_row(&[]), tags);
    accepted.await.unwrap();
    assert_eq!(
        index.tags_of(&team, &digest).await.unwrap(),
        [one.clone(), two.clone()]
    );
    assert!(index.tag(&team, &one).await.unwrap().is_some());
    index
        .remove_manifest(&team, None, vec![one.clone()])
        .await
        .unwrap();
    assert!(index.tag(&team, &one).await.unwrap().is_none());
    assert!(index.manifest(&team, &digest).await.unwrap().is_some());
    index
        .remove_manifest(&team, Some(digest), vec![two.clone()])
        .await
        .unwrap();
    assert!(index.manifest(&team, &digest).await.unwrap().is_none());
    assert!(index.tags(&team, None, 9).await.unwrap().is_empty());
    assert!(!index.has_repository(&team).await.unwrap());
}
