//! Whether a scaler serves, as a person reads it.

use super::{BOLD, NARROWEST, WIDEST, page::Page};
use crate::check::{presence::Presence, report::Level};

/// Lines of at most `width` columns, with colour.
pub(in crate::check) fn summary(presence: &Presence, width: usize) -> String {
    let mut page = Page { text: String::new(), width: width.clamp(NARROWEST, WIDEST) };
    page.line(format_args!("{BOLD}Scaler{BOLD:#}"));
    let took = format!("answered after {:.1} ms", presence.took_ms);
    match &presence.error {
        None => page.paragraph(&format!("{} serves, {took}", presence.scaler)),
        Some(error) => {
            page.paragraph(&presence.scaler);
            page.finding(Level::Error, error);
        }
    }
    page.text
}
