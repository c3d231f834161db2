//! Aligned tables, and goals that are met or missed.

use std::fmt::{self, Display};

/// Something that was promised of a figure.
pub(crate) struct Goal {
    text: String,
    is_met: bool,
}

pub(crate) struct Table {
    title: &'static str,
    head: Vec<&'static str>,
    rows: Vec<Row>,
}

#[derive(Clone, Default)]
pub(crate) struct Row {
    /// As many as the head has.
    pub(crate) cells: Vec<String>,
    /// What is said below the table, in lines.
    pub(crate) notes: Vec<String>,
}

impl Goal {
    pub(crate) fn new(text: impl Into<String>, is_met: bool) -> Self {
        Self { text: text.into(), is_met }
    }
}

/// All goals of a row.
pub(crate) fn verdict(goals: &[Goal]) -> String {
    let of_one = |goal: &Goal| {
        let verdict = if goal.is_met { "ok" } else { "MISSED" };
        format!("{} {verdict}", goal.text)
    };
    format!("goal {}", goals.iter().map(of_one).collect::<Vec<_>>().join(", "))
}

impl Table {
    pub(crate) fn new(title: &'static str, head: &[&'static str]) -> Self {
        Self { title, head: head.to_vec(), rows: Vec::new() }
    }

    pub(crate) fn push(&mut self, row: Row) {
        assert_eq!(row.cells.len(), self.head.len(), "a row of another table");
        self.rows.push(row);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
}

impl Display for Table {
    /// Figures to the right; the first and the last column, which are words, to the left.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = |column: usize| {
            let cells = self.rows.iter().map(|row| row.cells[column].chars().count());
            cells.chain([self.head[column].chars().count()]).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.head.len()).map(width).collect();
        writeln!(f, "\n{}", self.title)?;
        let head: Vec<String> = self.head.iter().map(|cell| (*cell).to_owned()).collect();
        for cells in [&head].into_iter().chain(self.rows.iter().map(|row| &row.cells)) {
            let last = cells.len() - 1;
            for (column, (cell, width)) in cells.iter().zip(&widths).enumerate() {
                match column {
                    0 => write!(f, "{cell:width$}")?,
                    _ if column == last => write!(f, "  {cell}")?,
                    _ => write!(f, "  {cell:>width$}")?,
                }
            }
            writeln!(f)?;
        }
        for note in self.rows.iter().flat_map(|row| &row.notes) {
            writeln!(f, "  {note}")?;
        }
        Ok(())
    }
}
