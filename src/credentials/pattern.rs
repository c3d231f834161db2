//! Which names are meant: `team-*` is all that begin so.

use std::{fmt, str::FromStr};

/// A name in which `*` stands for any characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(Box<str>);

impl Pattern {
    pub fn any() -> Self {
        Self("*".into())
    }

    /// Takes time in the product of both lengths, at most.
    pub fn matches(&self, name: &str) -> bool {
        let mut parts = self.0.split('*');
        let first = parts.next().unwrap_or_default();
        let Some(mut rest) = name.strip_prefix(first) else { return false };
        let Some(last) = parts.next_back() else { return rest.is_empty() };
        for part in parts {
            let Some(place) = rest.find(part) else { return false };
            rest = &rest[place + part.len()..];
        }
        rest.ends_with(last)
    }
}

impl FromStr for Pattern {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        if text.is_empty() {
            return Err("a name is empty; `*` stands for all");
        }
        Ok(Self(text.to_ascii_lowercase().into()))
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(pattern: &str, names: &[&str], others: &[&str]) {
        let pattern: Pattern = pattern.parse().unwrap();
        for name in names {
            assert!(pattern.matches(name), "{pattern} is to match {name}");
        }
        for name in others {
            assert!(!pattern.matches(name), "{pattern} is not to match {name}");
        }
    }

    #[test]
    fn a_star_stands_for_any_characters() {
        check("shop", &["shop"], &["", "shops", "ashop"]);
        check("*", &["", "shop"], &[]);
        check("team-*", &["team-", "team-a"], &["team", "a-team-a"]);
        check("*.example.com", &["dd.example.com"], &["example.com", "dd.example.com.evil"]);
        check("a*b*c", &["abc", "a-b-b-c"], &["ab", "acb"]);
        // The parts do not share characters.
        check("ab*b", &["abb"], &["ab"]);
        assert!(" ".parse::<Pattern>().is_err());
    }
}
