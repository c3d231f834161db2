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
}
