//! Lines that wrap, rows and findings: what a report is written with.

use std::fmt::{self, Write as _};

use textwrap::{Options, WordSplitter, core::display_width, fill};

use super::{BOLD, CYAN, MAX_TEXT, RED, YELLOW};
use crate::{
    check::report::{Examined, Level, Step},
    words::shorten,
};

/// What has been written, and how wide it may be.
pub(super) struct Page {
    pub(super) text: String,
    pub(super) width: usize,
}

impl Page {
    pub(super) fn line(&mut self, line: fmt::Arguments<'_>) {
        writeln!(self.text, "{line}").expect("a text can be written to");
    }

    pub(super) fn heading(&mut self, heading: &str) {
        self.line(format_args!("\n{BOLD}{heading}{BOLD:#}"));
    }

    /// Only if there is something to say.
    pub(super) fn section(&mut self, heading: &str, examined: &Examined, step: Step) {
        if examined.findings.iter().any(|finding| finding.step == step) {
            self.heading(heading);
            self.findings(examined, step);
        }
    }

    pub(super) fn wrapped(&mut self, text: &str, first: &str, rest: &str) {
        let options = Options::new(self.width)
            .initial_indent(first)
            .subsequent_indent(rest)
            // `keda-datadog-scaler` is to be copied.
            .word_splitter(WordSplitter::NoHyphenation)
            .break_words(true);
        let text = fill(text, options);
        self.line(format_args!("{text}"));
    }

    pub(super) fn paragraph(&mut self, text: &str) {
        self.wrapped(text, "  ", "  ");
    }

    /// A name and its value, which wraps in a column of its own.
    pub(super) fn row(&mut self, name: &str, value: &str) {
        let first = format!("  {name:<25} ");
        self.wrapped(value, &first, &" ".repeat(display_width(&first)));
    }

    pub(super) fn findings(&mut self, examined: &Examined, step: Step) {
        for finding in examined.findings.iter().filter(|finding| finding.step == step) {
            self.finding(finding.level, &finding.message);
        }
    }

    /// But for errors, which stand there already.
    pub(super) fn warnings(&mut self, examined: &Examined, step: Step) {
        let of_step = examined.findings.iter().filter(|finding| finding.step == step);
        of_step.filter(|f| f.level != Level::Error).for_each(|f| self.finding(f.level, &f.message));
    }

    pub(super) fn finding(&mut self, level: Level, message: &str) {
        let style = match level {
            Level::Error => RED,
            Level::Warning => YELLOW,
            Level::Note => CYAN,
        };
        let label = format!("  {level}: ");
        // Wrapped without colour, whose codes have no width.
        let before = self.text.len();
        self.wrapped(&shorten(message, MAX_TEXT), &label, "    ");
        let word = label.trim();
        let coloured = format!("  {style}{word}{style:#} ");
        self.text.replace_range(before..before + label.len(), &coloured);
    }
}
