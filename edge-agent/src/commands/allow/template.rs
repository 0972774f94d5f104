//! Arguments of the allow-list: plain text with at most one placeholder in each.

/// One argument: `{name}` stands for a value; `{{` and `}}` for a brace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Template {
    before: String,
    pub(super) name: Option<String>,
    after: String,
}

impl Template {
    /// Reads one; the error says what is wrong with it.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut template = Self { before: String::new(), name: None, after: String::new() };
        let mut chars = text.chars().peekable();
        while let Some(c) = chars.next() {
            let literal = if template.name.is_some() { &mut template.after } else { &mut template.before };
            match c {
                '{' | '}' if chars.peek() == Some(&c) => {
                    chars.next();
                    literal.push(c);
                }
                '{' => {
                    let name: String = chars.by_ref().take_while(|c| *c != '}').collect();
                    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
                    if name.is_empty() || !name.chars().all(plain) || !text.contains(&format!("{{{name}}}")) {
                        return Err(format!(
                            "{text:?} has a brace that is no {{placeholder}}; write {{{{ for a brace"
                        ));
                    }
                    if template.name.replace(name).is_some() {
                        return Err(format!(
                            "{text:?} has two placeholders; one in each argument is possible"
                        ));
                    }
                }
                '}' => return Err(format!("{text:?} has a lonely }}; write }}}} for a brace")),
                c => literal.push(c),
            }
        }
        Ok(template)
    }

    /// The argument with this value.
    pub(super) fn fill(&self, value: &str) -> String {
        match &self.name {
            None => self.before.clone(),
            Some(_) => format!("{}{value}{}", self.before, self.after),
        }
    }

    /// The value that makes this argument; empty for an argument without a placeholder.
    pub(super) fn value<'a>(&self, argument: &'a str) -> Option<&'a str> {
        match &self.name {
            None => (argument == self.before).then_some(""),
            Some(_) => argument.strip_prefix(self.before.as_str())?.strip_suffix(self.after.as_str()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_fill_and_match() {
        let template = Template::parse("--path={path}/x").unwrap();
        assert_eq!(template.fill("/data"), "--path=/data/x");
        assert_eq!(template.value("--path=/data/x"), Some("/data"));
        assert_eq!(template.value("--path=/data"), None);
        let plain = Template::parse("{{-h}}").unwrap();
        assert_eq!((plain.fill("ignored"), plain.value("{-h}")), ("{-h}".to_owned(), Some("")));
        assert_eq!(Template::parse("{a}").unwrap().value(""), Some(""));
    }

    #[test]
    fn braces_that_mean_nothing_are_refused() {
        for bad in ["{", "}", "{}", "{a", "{a}{b}", "{a b}", "a}"] {
            assert!(Template::parse(bad).is_err(), "{bad}");
        }
    }
}
