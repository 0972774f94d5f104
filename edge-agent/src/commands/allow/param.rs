//! Placeholders of the allow-list: their types, and which values they take.

use std::path::{Component, Path};

use serde::Deserialize;

/// Longest value, in bytes, unless `max` says otherwise.
const VALUE_BYTES: usize = 1_024;

/// One placeholder.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Param {
    #[serde(rename = "type")]
    pub(super) kind: Kind,
    /// Smallest number, or shortest text in bytes.
    pub(super) min: Option<i64>,
    /// Largest number, or longest text in bytes.
    pub(super) max: Option<i64>,
    /// The values of an `enum`.
    #[serde(default)]
    pub(super) values: Vec<String>,
    /// What the whole value must look like: `*` is any text, `?` any character.
    pub(super) pattern: Option<String>,
    /// The folder that a `path` must lie in.
    pub(super) under: Option<String>,
    /// Taken when no value is given.
    pub(super) default: Option<String>,
    /// Whether the value may begin with `-`, and so look like an option.
    #[serde(default)]
    pub(super) dash: bool,
}

/// What a placeholder stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Kind {
    /// An absolute path without `..`.
    Path,
    /// A whole number.
    Int,
    /// Letters, digits and `._:@%+-`.
    Word,
    /// Anything without control characters.
    Text,
    /// One of `values`.
    Enum,
}

impl Param {
    /// Whether the value fits; the error fits after "`{name}` is {value:?}: ".
    pub(super) fn check(&self, value: &str) -> Result<(), String> {
        match self.kind {
            Kind::Path => self.check_path(value)?,
            Kind::Int => self.check_int(value)?,
            Kind::Word => {
                let fits = |c: char| c.is_ascii_alphanumeric() || "._:@%+-".contains(c);
                if value.is_empty() || !value.chars().all(fits) {
                    return Err("give letters, digits and ._:@%+- only".to_owned());
                }
            }
            Kind::Text => {}
            Kind::Enum => {
                if !self.values.iter().any(|one| one == value) {
                    return Err(format!("give one of {}", self.values.join(", ")));
                }
            }
        }
        if value.chars().any(char::is_control) {
            return Err("control characters are not allowed".to_owned());
        }
        if value.starts_with('-') && !self.dash {
            return Err("a value may not begin with `-`, where it would be taken for an option".to_owned());
        }
        if self.kind != Kind::Int {
            self.check_length(value)?;
        }
        match &self.pattern {
            Some(pattern) if !matches(pattern, value) => Err(format!("it does not look like {pattern:?}")),
            Some(_) | None => Ok(()),
        }
    }

    /// What is wrong with the placeholder itself.
    pub(super) fn flaw(&self) -> Option<String> {
        if self.kind == Kind::Enum && self.values.is_empty() {
            return Some("an enum needs `values`".to_owned());
        }
        if self.min.zip(self.max).is_some_and(|(min, max)| min > max) {
            return Some("`min` is above `max`".to_owned());
        }
        let wrong = self.default.as_ref().and_then(|value| self.check(value).err());
        wrong.map(|wrong| format!("its default does not fit: {wrong}"))
    }

    fn check_path(&self, value: &str) -> Result<(), String> {
        let path = Path::new(value);
        let plain = |part| matches!(part, Component::RootDir | Component::Normal(_));
        if !path.is_absolute() || !path.components().all(plain) {
            return Err("give an absolute path without `..`".to_owned());
        }
        match &self.under {
            Some(under) if !path.starts_with(under) => Err(format!("give a path under {under}")),
            Some(_) | None => Ok(()),
        }
    }

    fn check_int(&self, value: &str) -> Result<(), String> {
        let number: i64 = value.parse().map_err(|_| "give a whole number".to_owned())?;
        match (self.min, self.max) {
            (Some(min), _) if number < min => Err(format!("give {min} or more")),
            (_, Some(max)) if number > max => Err(format!("give {max} or less")),
            (_, _) => Ok(()),
        }
    }

    fn check_length(&self, value: &str) -> Result<(), String> {
        let bytes = |limit: Option<i64>, or| limit.map_or(or, |limit| usize::try_from(limit).unwrap_or(0));
        let (min, max) = (bytes(self.min, 0), bytes(self.max, VALUE_BYTES));
        if (min..=max).contains(&value.len()) { Ok(()) } else { Err(format!("give {min} to {max} bytes")) }
    }
}

/// Whether the whole text looks like the pattern. Linear in memory, at most quadratic in time.
fn matches(pattern: &str, text: &str) -> bool {
    let pattern: Vec<char> = pattern.chars().collect();
    let text: Vec<char> = text.chars().collect();
    let (mut p, mut t) = (0, 0);
    // Where the last `*` was, and how much of the text it took.
    let mut star = None;
    while t < text.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(c) if *c == '?' || *c == text[t] => (p, t) = (p + 1, t + 1),
            Some(_) | None => match star {
                Some((at, took)) => {
                    star = Some((at, took + 1));
                    (p, t) = (at + 1, took + 1);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn param(text: &str) -> Param {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn values_are_checked_by_their_type() {
        for (text, good, bad) in [
            (r#"type = "path""#, "/data/x", "data"),
            (r#"type = "path""#, "/", "/data/../etc"),
            (
                r#"type = "path"
                under = "/data""#,
                "/data/x",
                "/database",
            ),
            (
                r#"type = "int"
                min = 1
                max = 9"#,
                "9",
                "10",
            ),
            (r#"type = "int""#, "0", "1e3"),
            (r#"type = "word""#, "eth0:1", "a b"),
            (r#"type = "word""#, "a", ""),
            (r#"type = "text""#, "a b; rm -rf /", "a\nb"),
            (
                r#"type = "text"
                max = 3"#,
                "abc",
                "abcd",
            ),
            (
                r#"type = "enum"
                values = ["on", "off"]"#,
                "on",
                "On",
            ),
            (
                r#"type = "word"
                pattern = "eth*.?0""#,
                "ethernet.10",
                "eth.100",
            ),
            (r#"type = "word""#, "a-b", "-rf"),
            (r#"type = "int""#, "5", "-5"),
            (
                r#"type = "int"
                dash = true"#,
                "-5",
                "--5",
            ),
        ] {
            let param = param(text);
            assert_eq!(param.check(good), Ok(()), "{text}");
            assert!(param.check(bad).is_err(), "{text} takes {bad}");
        }
    }

    #[test]
    fn a_placeholder_that_fits_nothing_is_a_flaw() {
        for flawed in
            ["type = \"enum\"", "type = \"int\"\nmin = 2\nmax = 1", "type = \"int\"\ndefault = \"x\""]
        {
            assert!(param(flawed).flaw().is_some(), "{flawed}");
        }
    }

    #[test]
    fn patterns_take_the_whole_text() {
        for (pattern, text, fits) in [
            ("", "", true),
            ("*", "", true),
            ("a*", "b", false),
            ("*a*b", "xaab", true),
            ("*a*b", "xaabc", false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("abc", "abcd", false),
        ] {
            assert_eq!(matches(pattern, text), fits, "{pattern} {text}");
        }
        assert!(!matches(&"*a".repeat(500), &"a".repeat(499)), "and it takes no time");
    }
}
