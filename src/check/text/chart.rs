//! The curve in the terminal: every point of every series, those that the value was made of, and
//! the target.

use super::{DAY_MS, DIM, GREEN, instant, number};
use crate::check::report::{PointSeen, Seen};

const ROWS: usize = 8;
/// A target further away than this many times what there is to see would flatten it.
const FARTHEST: f64 = 10.0;

/// What is to be drawn. Instants in milliseconds since the Unix epoch.
pub(super) struct Chart<'a> {
    points: Vec<&'a PointSeen>,
    from_ms: i64,
    to_ms: i64,
    target: Target,
    lowest: f64,
    highest: f64,
}

#[derive(Clone, Copy)]
enum Target {
    None,
    /// Between the lowest and the highest.
    Drawn(f64),
    FarAbove(f64),
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
    pub(super) fn of(seen: &'a Seen, target: Option<f64>) -> Option<Self> {
        let points: Vec<&PointSeen> = seen.series.iter().flat_map(|s| &s.points).collect();
        let values = || points.iter().map(|point| point.value);
        let lowest = values().reduce(f64::min)?.min(0.0);
        let highest = values().reduce(f64::max)?.max(0.0);
        let is_flat = lowest >= highest;
        let target = match target {
            None => Target::None,
            Some(target) if is_flat || target <= FARTHEST * highest.max(-lowest) => {
                Target::Drawn(target)
            }
            Some(target) => Target::FarAbove(target),
        };
        let highest =
            if let Target::Drawn(target) = target { highest.max(target) } else { highest };
        let from_ms = points.iter().map(|p| p.at_ms).fold(seen.window.from_ms, i64::min);
        let to_ms = points.iter().map(|p| p.at_ms).fold(seen.window.to_ms, i64::max);
        Some(Self { points, from_ms, to_ms, target, lowest, highest })
    }

    /// `width` columns, without the last line break.
    pub(super) fn draw(&self, width: usize) -> String {
        let (low, high) = (number(self.lowest), number(self.highest));
        let target = match self.target {
            Target::Drawn(target) => Some((self.row(target), number(target))),
            Target::None | Target::FarAbove(_) => None,
        };
        let labels = [Some(&low), Some(&high), target.as_ref().map(|(_, label)| label)];
        let margin = labels.into_iter().flatten().map(String::len).max().unwrap_or(0) + 2;
        let columns = width.saturating_sub(margin + 3).max(10);

        let mut cells = vec![vec![Cell::Empty; columns]; ROWS];
        if let Some((row, _)) = &target {
            cells[*row].fill(Cell::Target);
        }
        for point in &self.points {
            let cell = &mut cells[self.row(point.value)][self.column(point.at_ms, columns)];
            *cell = (*cell).max(if point.counts { Cell::Counts } else { Cell::Point });
        }

        let mut lines: Vec<String> = Vec::with_capacity(ROWS + 3);
        for (row, cells) in cells.iter().enumerate() {
            let label = match &target {
                Some((of_target, label)) if *of_target == row => label,
                _ if row == 0 => &high,
                _ if row == ROWS - 1 => &low,
                _ => "",
            };
            let cells: String = cells.iter().map(|cell| cell.drawn()).collect();
            lines.push(format!("{label:>margin$} │{}", cells.trim_end()));
        }
        let format = if self.to_ms.saturating_sub(self.from_ms) > DAY_MS {
            "%m-%d %H:%M"
        } else {
            "%H:%M:%S"
        };
        let (from, to) = (instant(self.from_ms, format), instant(self.to_ms, format));
        let gap = columns.saturating_sub(from.len() + to.len());
        lines.push(format!("{:>margin$} └{}", "", "─".repeat(columns)));
        lines.push(format!("{:>margin$}  {from}{:gap$}{to}", "", ""));
        let (counts, point) = (Cell::Counts.drawn(), Cell::Point.drawn());
        let legend = format!("{:>margin$}  {counts} counts   {point} does not", "");
        lines.push(match self.target {
            Target::None => legend,
            Target::Drawn(target) => {
                format!("{legend}   {} target {}", Cell::Target.drawn(), number(target))
            }
            Target::FarAbove(target) => {
                format!("{legend}   the target, {}, is far above", number(target))
            }
        });
        lines.join("\n")
    }

    fn row(&self, value: f64) -> usize {
        // Halved, since the difference of two numbers may be too large for one.
        let share = (value / 2.0 - self.lowest / 2.0) / (self.highest / 2.0 - self.lowest / 2.0);
        ROWS - 1 - nearest(share, ROWS - 1)
    }

    fn column(&self, at_ms: i64, columns: usize) -> usize {
        let since = at_ms.saturating_sub(self.from_ms);
        let all = self.to_ms.saturating_sub(self.from_ms).max(1);
        #[expect(clippy::cast_precision_loss, reason = "a column is wider than what is lost")]
        let share = since as f64 / all as f64;
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
