//! The table of ratios, as Markdown.

use std::fmt::Write as _;

/// What one measure gave for each contestant.
#[derive(Debug, Clone, Default)]
pub(crate) struct Row {
    pub(crate) case: String,
    pub(crate) measure: String,
    pub(crate) direct: String,
    pub(crate) ours: String,
    pub(crate) peer: String,
    pub(crate) limit: String,
    /// The target, in words.
    pub(crate) must: String,
    /// Is it met? `None`: there is no target, or ours was not measured.
    pub(crate) verdict: Option<bool>,
}

impl Row {
    pub(crate) fn new(case: &str, measure: &str) -> Self {
        Self {
            case: case.to_owned(),
            measure: measure.to_owned(),
            ..Self::default()
        }
    }

    pub(crate) fn direct(mut self, cell: impl Into<String>) -> Self {
        self.direct = cell.into();
        self
    }

    pub(crate) fn ours(mut self, cell: impl Into<String>) -> Self {
        self.ours = cell.into();
        self
    }

    pub(crate) fn peer(mut self, cell: impl Into<String>) -> Self {
        self.peer = cell.into();
        self
    }

    pub(crate) fn limit(mut self, cell: impl Into<String>) -> Self {
        self.limit = cell.into();
        self
    }

    pub(crate) fn must(mut self, target: impl Into<String>, verdict: Option<bool>) -> Self {
        self.must = target.into();
        self.verdict = verdict;
        self
    }
}

/// All rows so far.
#[derive(Debug, Default)]
pub(crate) struct Table {
    rows: Vec<Row>,
}

impl Table {
    pub(crate) fn add(&mut self, row: Row) {
        self.rows.push(row);
    }

    /// Is no target missed?
    pub(crate) fn is_good(&self) -> bool {
        self.rows.iter().all(|row| row.verdict != Some(false))
    }

    pub(crate) fn render(&self) -> String {
        let mut text = String::from(
            "| Case | Measure | direct | ours | peer | limit | ours must | |\n|---|---|---|---|---|---|---|---|\n",
        );
        let mut last_case = "";
        for row in &self.rows {
            let case = if row.case == last_case {
                "…"
            } else {
                &row.case
            };
            last_case = &row.case;
            let verdict = match row.verdict {
                Some(true) => "yes",
                Some(false) => "**no**",
                None => "",
            };
            let cells = [&row.direct, &row.ours, &row.peer, &row.limit, &row.must];
            let cells = cells.map(|cell| {
                if cell.is_empty() {
                    "–"
                } else {
                    cell.as_str()
                }
            });
            writeln!(
                text,
                "| {case} | {} | {} | {verdict} |",
                row.measure,
                cells.join(" | ")
            )
            .expect("writing to a String does not fail");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missed_target_is_seen_and_a_missing_one_is_not() {
        let mut table = Table::default();
        table.add(Row::new("hit", "speed").ours("2").must("≤ 1", None));
        assert!(table.is_good());
        assert!(
            table
                .render()
                .ends_with("| hit | speed | – | 2 | – | – | ≤ 1 |  |\n")
        );
        table.add(Row::new("hit", "more").must("≤ 1", Some(false)));
        assert!(!table.is_good());
        assert!(table.render().contains("| … | more |"));
    }
}
