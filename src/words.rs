//! Other people's words, made fit for a message: bounded, and nothing in them that a terminal or a
//! log would obey.

pub(crate) mod json;

/// The first `most` characters, each of them visible or a space.
pub fn shorten(text: &str, most: usize) -> String {
    let mut shown: String =
        text.chars().take(most).map(|c| if is_invisible(c) { ' ' } else { c }).collect();
    if text.chars().nth(most).is_some() {
        shown.push('…');
    }
    shown
}

/// What `strconv.ParseBool` takes.
pub(crate) fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

/// Whether it is what DNS and Kubernetes call a label, but for its length, which is at most `most`.
pub(crate) fn is_label(text: &str, most: usize) -> bool {
    let is_inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    !text.is_empty()
        && text.len() <= most
        && text.bytes().all(is_inner)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// Control characters, and those that change the direction or the width of what follows.
pub(crate) fn is_invisible(c: char) -> bool {
    let is_format = matches!(
        c,
        '\u{ad}'
            | '\u{61c}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{feff}'
            | '\u{e0000}'..='\u{e007f}'
    );
    c.is_control() || is_format
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_long_or_obeyed_is_taken_out() {
        assert_eq!(shorten("shop", 4), "shop");
        assert_eq!(shorten("shöps", 4), "shöp…");
        assert_eq!(shorten("a\nb\u{1b}[31mc\u{202e}d", 99), "a b [31mc d");
    }

    #[test]
    fn booleans_are_gos() {
        assert_eq!(
            (boolean("T"), boolean("0"), boolean("False")),
            (Some(true), Some(false), Some(false))
        );
        assert_eq!((boolean("yes"), boolean("tRUE"), boolean("")), (None, None, None));
    }

    #[test]
    fn a_label_is_what_dns_takes() {
        assert!(is_label("a-1", 3) && is_label("1", 3));
        for odd in ["", "a.b", "A", "-a", "a-", "ä", "abcd", "a/b"] {
            assert!(!is_label(odd, 3), "{odd}");
        }
    }
}
