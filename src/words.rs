//! Other people's words: made fit for a message, that is, bounded, and with nothing in them that a
//! terminal or a log would obey; read as Go reads them; and what is a name.

pub(crate) mod json;
pub(crate) mod go;

pub(crate) use go::boolean;

/// The first `most` characters, each of them visible or a space.
pub fn shorten(text: &str, most: usize) -> String {
    let mut shown: String =
        text.chars().take(most).map(|c| if is_invisible(c) { ' ' } else { c }).collect();
    if text.chars().nth(most).is_some() {
        shown.push('…');
    }
    shown
}

/// Whether it can be the name of a namespace or a Service in Kubernetes (RFC 1123 label).
pub(crate) fn is_label(text: &str) -> bool {
    text.len() <= 63 && is_part(text)
}

/// Whether it can be the name of any object in Kubernetes (RFC 1123 subdomain).
pub(crate) fn is_name(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_part)
}

fn is_part(text: &str) -> bool {
    let is_inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    let ends = [text.bytes().next(), text.bytes().last()];
    text.bytes().all(is_inner) && ends.iter().all(|end| end.is_some_and(|end| end != b'-'))
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
    fn names_are_what_dns_takes() {
        let (longest, longer) = ("a".repeat(63), "a".repeat(64));
        assert!(is_label("a-1") && is_label("1") && is_label(&longest));
        assert!(is_name("a-1.b") && is_name(&longer));
        for odd in ["", "A", "-a", "a-", "ä", "a/b", ".", "a..b", "a."] {
            assert!(!is_label(odd) && !is_name(odd), "{odd}");
        }
        assert!(!is_label("a.b") && !is_label(&longer) && !is_name(&"a".repeat(254)));
    }
}
