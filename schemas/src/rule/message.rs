//! Messages of rules: text with `{{ name }}` in it.

use super::MESSAGE_BYTES;

/// A message that was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message(Box<str>);

impl Message {
    /// Checks its length.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        match text.len() {
            0..=MESSAGE_BYTES => Ok(Self(text.into())),
            _ => Err("the message is longer than 1024 bytes; shorten it"),
        }
    }

    /// The text with every `{{ name }}` replaced by what `of` says; a name it does not know stays as it is.
    #[must_use]
    pub fn render(&self, of: impl Fn(&str) -> Option<String>) -> String {
        let mut rendered = String::with_capacity(self.0.len() + 16);
        let mut rest = &*self.0;
        while let Some((before, after)) = rest.split_once("{{") {
            let Some((name, after)) = after.split_once("}}") else { break };
            rendered.push_str(before);
            match of(name.trim()) {
                Some(value) => rendered.push_str(&value),
                None => rendered.extend(["{{", name, "}}"]),
            }
            rest = after;
        }
        rendered.push_str(rest);
        rendered
    }
}

/// A number as people write it: at most three decimals, fewer where they say nothing.
#[must_use]
pub(super) fn number(value: f64) -> String {
    let rounded = format!("{value:.3}");
    let short = rounded.trim_end_matches('0').trim_end_matches('.');
    if value != 0.0 && value.abs() < 0.001 { format!("{value:e}") } else { short.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_replaced_and_others_stay() {
        let message = Message::parse("{{value}} at {{ sensor }}, {{ what }} {{ open").unwrap();
        let of = |name: &str| match name {
            "value" => Some("27.5".to_owned()),
            "sensor" => Some("{{ value }}".to_owned()),
            _ => None,
        };
        assert_eq!(message.render(of), "27.5 at {{ value }}, {{ what }} {{ open");
        assert!(Message::parse(&"x".repeat(MESSAGE_BYTES + 1)).is_err());
    }

    #[test]
    fn numbers_are_short() {
        let texts = [0.1 + 0.2, 27.0, -0.0, 1_234.567_8, 0.000_012, 100.0].map(number);
        assert_eq!(texts, ["0.3", "27", "-0", "1234.568", "1.2e-5", "100"]);
    }
}
