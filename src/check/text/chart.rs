//! The curve in the terminal: every point of every series, those that the value was made of, and
//! the target.

use std::fmt::Write as _;

use super::{DIM, GREEN, number, series::instant};
use crate::check::report::{Examined, PointSeen};

const ROWS: usize = 8;
/// A target further away than this many times what there is to see would flatten it.
const FARTHEST: f64 = 10.0;

/// What is to be drawn. Instants in milliseconds since the Unix epoch.
pub(super) struct Chart<'a> {
    points: Vec<&'a PointSeen>,
    from_ms: i64,
    to_ms: i64,
    target: f64,
    lowest: f64,
    highest: f64,
    /// Whether the target lies between the two.
    shows_target: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Cell {
    Empty,
    Target,
    Point,
    Counts,
}

impl<'a> Chart<'a> {
    /// `None` without a point.
    pub(super) fn of(examined: &'a Examined) -> Option<Self> {
        let window = examined.request.as_ref()?.window?;
        let target =
            examined.settings.iter().find(|s| s.key == "queryValue" || s.key == "targetValue");
        let target: f64 = target?.value.parse().ok()?;
        let points: Vec<&PointSeen> = examined.series.iter().flat_map(|s| &s.points).collect();
        let values = || points.iter().map(|point| point.value);
        let (lowest, highest) =
            (values().reduce(f64::min)?.min(0.0), values().reduce(f64::max)?.max(0.0));
        let shows_target = target <= FARTHEST * highest.max(-lowest) || lowest >= highest;
        let highest = if shows_target { highest.max(target) } else { highest };
        let from_ms = points.iter().map(|p| p.at_ms).fold(window.from_ms, i64::min);
        let to_ms = points.iter().map(|p| p.at_ms).fold(window.to_ms, i64::max);
        Some(Self { points, from_ms, to_ms, target, lowest, highest, shows_target })
    }

    /// `width` columns, without the last line break.
    pub(super) fn draw(&self, width: usize) -> String {
        let labels = [number(self.highest), number(self.lowest), number(self.target)];
        let margin = labels.iter().map(String::len).max().unwrap_or(0) + 2;
        let columns = width.saturating_sub(margin + 3).max(10);

        let mut cells = vec![vec![Cell::Empty; columns]; ROWS];
        if self.shows_target {
            cells[self.row(self.target)].fill(Cell::Target);
        }
        for point in &self.points {
            let cell = &mut cells[self.row(point.value)][self.column(point.at_ms, columns)];
            *cell = (*cell).max(if point.counts { Cell::Counts } else { Cell::Point });
        }

        let mut text = String::new();
        for (row, cells) in cells.iter().enumerate() {
            let label = match row {
                _ if self.shows_target && row == self.row(self.target) => &labels[2],
                0 => &labels[0],
                _ if row == ROWS - 1 => &labels[1],
                _ => "",
            };
            let cells: String = cells.iter().map(|cell| cell.drawn()).collect();
            let _ = writeln!(text, "{label:>margin$} │{}", cells.trim_end());
        }
        let (from, to) = (instant(self.from_ms, "%H:%M:%S"), instant(self.to_ms, "%H:%M:%S"));
        let _ = writeln!(text, "{:>margin$} └{}", "", "─".repeat(columns));
        let gap = columns.saturating_sub(from.len() + to.len());
        let _ = writeln!(text, "{:>margin$}  {from}{:gap$}{to}", "", "");
        let target = number(self.target);
        let target = if self.shows_target {
            format!("{} target {target}", Cell::Target.drawn())
        } else {
            format!("the target, {target}, is far above")
        };
        let _ = write!(
            text,
            "{:>margin$}  {} counts   {} does not   {target}",
            "",
            Cell::Counts.drawn(),
            Cell::Point.drawn(),
        );
        text
    }

    fn row(&self, value: f64) -> usize {
        // Halved, since the difference of two numbers may be too large for one.
        let share = (value / 2.0 - self.lowest / 2.0) / (self.highest / 2.0 - self.lowest / 2.0);
        ROWS - 1 - nearest(share, ROWS - 1)
    }

    fn column(&self, at_ms: i64, columns: usize) -> usize {
        #[expect(clippy::cast_precision_loss, reason = "a column is wider than what is lost")]
        let share = (at_ms - self.from_ms) as f64 / (self.to_ms - self.from_ms).max(1) as f64;
        nearest(share, columns - 1)
    }
}

/// `share` (0 to 1) of `most`; 0 if it is no number.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "a screen is small, and a cast saturates"
)]
fn nearest(share: f64, most: usize) -> usize {
    ((share * most as f64).round() as usize).min(most)
}

impl Cell {
    fn drawn(self) -> String {
        match self {
            Self::Empty => " ".to_owned(),
            Self::Target => format!("{DIM}┄{DIM:#}"),
            Self::Point => "•".to_owned(),
            Self::Counts => format!("{GREEN}◆{GREEN:#}"),
        }
    }
}
