//! JSON that a terminal can be shown: what it would obey, in somebody's text, is escaped.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::ser::{CompactFormatter, Formatter, PrettyFormatter, Serializer};

use crate::words::is_invisible;

/// With its line break.
pub(crate) fn line(value: &impl Serialize) -> io::Result<Vec<u8>> {
    write(value, CompactFormatter)
}

/// Over many lines.
pub(crate) fn document(value: &impl Serialize) -> io::Result<Vec<u8>> {
    write(value, PrettyFormatter::new())
}

fn write(value: &impl Serialize, layout: impl Formatter) -> io::Result<Vec<u8>> {
    let mut json = Vec::new();
    value.serialize(&mut Serializer::with_formatter(&mut json, Visible(layout)))?;
    json.push(b'\n');
    Ok(json)
}

/// `serde_json` escapes no more than JSON has to.
struct Visible<F>(F);

impl<F: Formatter> Formatter for Visible<F> {
    fn write_string_fragment<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        let mut rest = fragment;
        while let Some(at) = rest.find(is_invisible) {
            let (visible, tail) = rest.split_at(at);
            writer.write_all(visible.as_bytes())?;
            let invisible = tail.chars().next().unwrap_or_default();
            for unit in invisible.encode_utf16(&mut [0; 2]) {
                write!(writer, "\\u{unit:04x}")?;
            }
            rest = &tail[invisible.len_utf8()..];
        }
        writer.write_all(rest.as_bytes())
    }

    fn begin_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.begin_array(writer)
    }

    fn end_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.end_array(writer)
    }

    fn begin_array_value<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.0.begin_array_value(writer, first)
    }

    fn end_array_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.end_array_value(writer)
    }

    fn begin_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.begin_object(writer)
    }

    fn end_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.end_object(writer)
    }

    fn begin_object_key<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.0.begin_object_key(writer, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.begin_object_value(writer)
    }

    fn end_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.end_object_value(writer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_escaped_and_nothing_is_lost() {
        let text = "a\u{1b}[31m\u{9b}1mb\u{202e}c\u{e0041}é\"";
        for json in [line(&text), document(&text)] {
            let json = String::from_utf8(json.unwrap()).unwrap();
            let expected = "\"a\\u001b[31m\\u009b1mb\\u202ec\\udb40\\udc41é\\\"\"\n";
            assert_eq!(json, expected);
            assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text);
        }
    }
}
