//! `gc`: has a running registry collect what its hosted repositories do not need, and shows what went, and why.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::time::Duration;

use bytesize::ByteSize;
use clap::Args;
use coral_schema::admin::{GcItem, GcKind, GcReport, GcState};
use serde_json::json;

use super::api::{AdminFlags, Api};
use super::progress::printable;

/// The arguments of `gc`.
#[derive(Debug, Args)]
pub struct Gc {
    /// Only say what would go, and why
    #[arg(long)]
    pub dry_run: bool,
    /// Which registry.
    #[command(flatten)]
    pub server: AdminFlags,
}

/// Has it collect, and prints what it did.
pub(super) async fn run(command: &Gc) -> anyhow::Result<()> {
    let api = Api::new(&command.server, ANSWER_WITHIN).await?;
    let query: &[_] = if command.dry_run {
        &[("dryRun", "true")]
    } else {
        &[]
    };
    let report: GcReport = api.post(&["gc"], query, &json!({})).await?;
    io::stdout().write_all(table(&report).as_bytes())?;
    Ok(())
}

/// A line for each, and one for all.
fn table(report: &GcReport) -> String {
    let rows: Vec<[String; 5]> = report
        .items
        .iter()
        .map(|item| row(report.dry_run, item))
        .collect();
    let mut text = String::new();
    if !rows.is_empty() {
        let heads = ["WHAT BECOMES OF IT", "REPOSITORY", "SIZE", "WHY", "DIGEST"];
        let heads = heads.map(str::to_owned);
        let width = |column: usize| {
            let all = rows.iter().chain([&heads]);
            all.map(|row| row[column].len()).max().unwrap_or_default()
        };
        let widths = [0, 1, 2, 3].map(width);
        for row in [&heads].into_iter().chain(&rows) {
            for (cell, width) in row.iter().zip(widths) {
                let _ = write!(text, "{cell:width$}  ");
            }
            let _ = writeln!(text, "{}", row[4]);
        }
    }
    if report.more {
        text.push_str("and more\n");
    }
    let (removed, freed) = if report.dry_run {
        ("would be removed", String::new())
    } else {
        let freed = ByteSize(report.freed_bytes).display().iec();
        ("removed", format!(" ({freed} freed)"))
    };
    let _ = writeln!(
        text,
        "{} {removed}{freed}, {} found, {} waiting",
        report.removed, report.marked, report.waiting
    );
    text
}

fn row(dry_run: bool, item: &GcItem) -> [String; 5] {
    let until = item.until.as_deref().unwrap_or_default();
    // Whole seconds are enough.
    let until = until.split('.').next().unwrap_or_default();
    let fate = match (item.state, dry_run) {
        (GcState::Removed, true) => "goes now".to_owned(),
        (GcState::Removed, false) => "removed".to_owned(),
        (GcState::Marked | GcState::Waiting, _) => {
            format!("goes after {}Z", until.trim_end_matches('Z'))
        }
    };
    let why = match item.kind {
        GcKind::Blob => "no manifest names this blob",
        GcKind::Manifest => "no tag leads to this manifest",
    };
    [
        printable(&fate),
        printable(&item.repository),
        ByteSize(item.size).display().iec().to_string(),
        why.to_owned(),
        item.digest.to_string(),
    ]
}

/// A pass looks at everything that was ever pushed.
const ANSWER_WITHIN: Duration = Duration::from_mins(10);

#[cfg(test)]
mod tests {
    use super::*;
    use coral_schema::oci::Digest;

    #[test]
    fn says_what_goes_and_why() {
        let item = |kind, state, until: Option<&str>| GcItem {
            repository: "team/app".to_owned(),
            kind,
            digest: Digest::sha256(b""),
            size: 2048,
            state,
            until: until.map(str::to_owned),
        };
        let report = GcReport {
            dry_run: true,
            removed: 1,
            marked: 1,
            items: vec![
                item(GcKind::Blob, GcState::Removed, None),
                item(
                    GcKind::Manifest,
                    GcState::Marked,
                    Some("2026-01-31T12:00:00.25Z"),
                ),
            ],
            ..GcReport::default()
        };
        let digest = Digest::sha256(b"");
        assert_eq!(
            table(&report),
            format!(
                "WHAT BECOMES OF IT               REPOSITORY  SIZE     WHY                            DIGEST\n\
                 goes now                         team/app    2.0 KiB  no manifest names this blob    {digest}\n\
                 goes after 2026-01-31T12:00:00Z  team/app    2.0 KiB  no tag leads to this manifest  {digest}\n\
                 1 would be removed, 1 found, 0 waiting\n"
            )
        );
        let report = GcReport {
            freed_bytes: 1 << 20,
            more: true,
            ..GcReport::default()
        };
        assert_eq!(
            table(&report),
            "and more\n0 removed (1.0 MiB freed), 0 found, 0 waiting\n"
        );
    }
}
