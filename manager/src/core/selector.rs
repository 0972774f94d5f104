//! Selectors over nodes in the Kubernetes grammar, with error positions.
//!
//! Owns parsing and matching. A [`Subject`] says which values it has under a key. Beyond the grammar, values may stand
//! in double quotes, because names and sites may contain spaces.

use std::borrow::Cow;

use super::fleet::Node;

/// Longest selector, in bytes: it travels in a URL.
pub const SELECTOR_BYTES: usize = 2_048;
/// Most requirements in one selector: bounds the work per node.
pub const REQUIREMENTS: usize = 32;
/// Most values in one `in (…)`: bounds the work per node.
pub const VALUES: usize = 128;
/// Keys that are no labels; a label must not be named so.
pub const FIELDS: [&str; 7] = ["id", "name", "site", "kind", "state", "capability", "agent-version"];

/// All of its requirements must hold. Empty: everything matches.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selector {
    requirements: Vec<Requirement>,
}

/// One requirement on one key.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Requirement {
    key: String,
    test: Test,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Test {
    Exists,
    Missing,
    /// `=`, `==` and `in`.
    AnyOf(Vec<String>),
    /// `!=` and `notin`; holds also when the key is missing.
    NoneOf(Vec<String>),
    Above(i64),
    Below(i64),
}

/// Something that can be selected.
pub trait Subject {
    /// The values under a key: none when it has no such key, several for `capability`.
    fn values(&self, key: &str) -> Vec<Cow<'_, str>>;
}

/// Why a text is no selector. Fits after "failed to read the selector: ".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message} at character {at}; an example is site=berlin,kind in (picclaw,gateway),!spare")]
pub struct SelectorError {
    /// What is wrong.
    pub message: String,
    /// Where, in characters from 1.
    pub at: usize,
}

impl Selector {
    /// Reads a selector such as `site=berlin,kind in (picclaw),!spare,rack>3`.
    ///
    /// # Errors
    /// [`SelectorError`] with the position of the first mistake.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        if text.len() > SELECTOR_BYTES {
            let message = format!("selector is longer than {SELECTOR_BYTES} bytes");
            return Err(SelectorError { message, at: SELECTOR_BYTES });
        }
        let tokens = lex(text)?;
        let mut reader = Reader { tokens: &tokens, at: 0 };
        let mut requirements = Vec::new();
        if reader.peek() == &Token::End {
            return Ok(Self::default());
        }
        loop {
            if requirements.len() == REQUIREMENTS {
                return Err(reader.error(&format!("more than {REQUIREMENTS} requirements")));
            }
            requirements.push(reader.requirement()?);
            match reader.next() {
                Token::End => return Ok(Self { requirements }),
                Token::Comma => {}
                found => return Err(reader.expected("a comma or the end", &found)),
            }
        }
    }

    /// Whether it selects everything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }

    /// Whether it asks for a key.
    #[must_use]
    pub fn names(&self, key: &str) -> bool {
        self.requirements.iter().any(|requirement| requirement.key == key)
    }

    /// Whether it asks for this key and for no other.
    #[must_use]
    pub fn is_about(&self, key: &str) -> bool {
        self.requirements.iter().all(|requirement| requirement.key == key)
    }

    /// Whether all requirements hold.
    #[must_use]
    pub fn matches(&self, subject: &impl Subject) -> bool {
        self.requirements.iter().all(|requirement| requirement.holds(subject))
    }
}

impl Requirement {
    fn holds(&self, subject: &impl Subject) -> bool {
        let found = subject.values(&self.key);
        let any = |wanted: &[String]| found.iter().any(|value| wanted.iter().any(|want| want == value));
        let number = |test: &dyn Fn(i64) -> bool| found.iter().any(|v| v.parse().is_ok_and(test));
        match &self.test {
            Test::Exists => !found.is_empty(),
            Test::Missing => found.is_empty(),
            Test::AnyOf(wanted) => any(wanted),
            Test::NoneOf(wanted) => !any(wanted),
            Test::Above(bound) => number(&|value| value > *bound),
            Test::Below(bound) => number(&|value| value < *bound),
        }
    }
}

impl Subject for Node {
    fn values(&self, key: &str) -> Vec<Cow<'_, str>> {
        let record = &self.record;
        let one = |value: &str| vec![Cow::Owned(value.to_owned())];
        let maybe =
            |value: Option<&str>| value.map(|value| Cow::Owned(value.to_owned())).into_iter().collect();
        match key {
            "id" => one(record.id.as_str()),
            "name" => one(record.display_name()),
            "site" => maybe(record.site.as_deref()),
            "kind" => one(&record.kind),
            "state" => one(record.presence.state.as_str()),
            "capability" => record.capabilities.iter().map(|what| Cow::Borrowed(what.as_str())).collect(),
            "agent-version" => one(&record.versions.agent),
            label => maybe(record.labels.get(label).map(String::as_str)),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Word(String),
    Comma,
    Open,
    Close,
    Equal,
    Differs,
    Not,
    Above,
    Below,
    End,
}

/// Tokens with their positions in characters from 1.
fn lex(text: &str) -> Result<Vec<(usize, Token)>, SelectorError> {
    let mut tokens = Vec::new();
    let mut chars = text.chars().enumerate().map(|(at, c)| (at + 1, c)).peekable();
    while let Some((at, c)) = chars.next() {
        let token = match c {
            c if c.is_whitespace() => continue,
            ',' => Token::Comma,
            '(' => Token::Open,
            ')' => Token::Close,
            '>' => Token::Above,
            '<' => Token::Below,
            '=' => {
                chars.next_if(|(_, c)| *c == '=');
                Token::Equal
            }
            '!' => match chars.next_if(|(_, c)| *c == '=') {
                Some(_) => Token::Differs,
                None => Token::Not,
            },
            '"' => {
                let mut word = String::new();
                loop {
                    match chars.next() {
                        Some((_, '"')) => break,
                        Some((_, c)) => word.push(c),
                        None => return Err(SelectorError { message: "quote is not closed".to_owned(), at }),
                    }
                }
                Token::Word(word)
            }
            c => {
                let mut word = String::from(c);
                let ends = |c: char| c.is_whitespace() || ",()=!<>\"".contains(c);
                while let Some((_, c)) = chars.next_if(|(_, c)| !ends(*c)) {
                    word.push(c);
                }
                Token::Word(word)
            }
        };
        tokens.push((at, token));
    }
    tokens.push((text.chars().count() + 1, Token::End));
    Ok(tokens)
}

struct Reader<'a> {
    tokens: &'a [(usize, Token)],
    at: usize,
}

impl Reader<'_> {
    fn peek(&self) -> &Token {
        &self.tokens[self.at.min(self.tokens.len() - 1)].1
    }

    fn next(&mut self) -> Token {
        let token = self.peek().clone();
        self.at += 1;
        token
    }

    fn requirement(&mut self) -> Result<Requirement, SelectorError> {
        if self.peek() == &Token::Not {
            self.next();
            return Ok(Requirement { key: self.key()?, test: Test::Missing });
        }
        let key = self.key()?;
        let test = match self.peek().clone() {
            Token::End | Token::Comma => Test::Exists,
            Token::Equal => Test::AnyOf(vec![self.value()?]),
            Token::Differs => Test::NoneOf(vec![self.value()?]),
            Token::Above => Test::Above(self.number()?),
            Token::Below => Test::Below(self.number()?),
            Token::Word(word) if word == "in" => Test::AnyOf(self.values()?),
            Token::Word(word) if word == "notin" => Test::NoneOf(self.values()?),
            found @ (Token::Word(_) | Token::Open | Token::Close | Token::Not) => {
                self.next();
                return Err(self.expected("one of = == != in notin > <", &found));
            }
        };
        Ok(Requirement { key, test })
    }

    fn key(&mut self) -> Result<String, SelectorError> {
        match self.next() {
            Token::Word(key) if !key.is_empty() => Ok(key),
            found => Err(self.expected("a key", &found)),
        }
    }

    /// The operator, then one value; nothing at all is the empty value.
    fn value(&mut self) -> Result<String, SelectorError> {
        self.next();
        match self.peek().clone() {
            Token::Word(value) => {
                self.next();
                Ok(value)
            }
            Token::End | Token::Comma => Ok(String::new()),
            found => {
                self.next();
                Err(self.expected("a value", &found))
            }
        }
    }

    fn number(&mut self) -> Result<i64, SelectorError> {
        let value = self.value()?;
        value.parse().map_err(|_| self.error(&format!("expected a whole number, found {value:?}")))
    }

    /// The operator, then `(a,b,…)`.
    fn values(&mut self) -> Result<Vec<String>, SelectorError> {
        self.next();
        match self.next() {
            Token::Open => {}
            found => return Err(self.expected("(", &found)),
        }
        let mut values = Vec::new();
        loop {
            match self.next() {
                Token::Word(value) => values.push(value),
                found => return Err(self.expected("a value", &found)),
            }
            if values.len() > VALUES {
                return Err(self.error(&format!("more than {VALUES} values")));
            }
            match self.next() {
                Token::Comma => {}
                Token::Close => return Ok(values),
                found => return Err(self.expected("a comma or )", &found)),
            }
        }
    }

    /// About the token read last.
    fn expected(&self, what: &str, found: &Token) -> SelectorError {
        let found = match found {
            Token::Word(word) => format!("{word:?}"),
            Token::Comma => "a comma".to_owned(),
            Token::Open => "(".to_owned(),
            Token::Close => ")".to_owned(),
            Token::Equal => "=".to_owned(),
            Token::Differs => "!=".to_owned(),
            Token::Not => "!".to_owned(),
            Token::Above => ">".to_owned(),
            Token::Below => "<".to_owned(),
            Token::End => "the end".to_owned(),
        };
        self.error(&format!("expected {what}, found {found}"))
    }

    fn error(&self, message: &str) -> SelectorError {
        let index = self.at.saturating_sub(1).min(self.tokens.len() - 1);
        SelectorError { message: message.to_owned(), at: self.tokens[index].0 }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    struct Given(&'static [(&'static str, &'static str)]);

    impl Subject for Given {
        fn values(&self, key: &str) -> Vec<Cow<'_, str>> {
            self.0.iter().filter(|(k, _)| *k == key).map(|(_, v)| (*v).into()).collect()
        }
    }

    const NODE: Given = Given(&[
        ("id", "edge-1"),
        ("site", "Hall 3"),
        ("rack", "12"),
        ("capability", "sensor"),
        ("capability", "exec"),
        ("empty", ""),
    ]);

    #[test]
    fn requirements_hold_as_in_kubernetes() {
        for (selector, expected) in [
            ("", true),
            ("  ", true),
            ("id=edge-1", true),
            ("id==edge-1", true),
            ("id = edge-2", false),
            ("id!=edge-2", true),
            ("id in (edge-1, edge-2)", true),
            ("id notin (edge-1)", false),
            ("missing!=x", true),
            ("missing notin (x)", true),
            ("missing=x", false),
            ("missing", false),
            ("!missing", true),
            ("rack", true),
            ("!rack", false),
            ("rack>11,rack<13", true),
            ("rack>12", false),
            ("site>1", false),
            ("capability=exec", true),
            ("capability!=exec", false),
            ("capability in (sensor,camera)", true),
            ("site=\"Hall 3\"", true),
            ("empty=", true),
            ("empty=,rack=12", true),
            ("id=edge-1,rack=13", false),
        ] {
            let parsed = Selector::parse(selector).unwrap();
            assert_eq!(parsed.matches(&NODE), expected, "{selector}");
        }
    }

    #[test]
    fn mistakes_are_told_with_their_position() {
        for (selector, at, message) in [
            (",", 1, "expected a key, found a comma"),
            ("a=b,", 5, "expected a key, found the end"),
            ("a b", 3, "expected one of = == != in notin > <, found \"b\""),
            ("a in b", 6, "expected (, found \"b\""),
            ("a in (", 7, "expected a value, found the end"),
            ("a in ()", 7, "expected a value, found )"),
            ("a in (x y)", 9, "expected a comma or ), found \"y\""),
            ("a=(b)", 3, "expected a value, found ("),
            ("a>b", 3, "expected a whole number, found \"b\""),
            ("ä=1,!", 6, "expected a key, found the end"),
            ("a=b c", 5, "expected a comma or the end, found \"c\""),
            ("site=\"x", 6, "quote is not closed"),
        ] {
            let error = Selector::parse(selector).unwrap_err();
            assert_eq!((error.at, error.message.as_str()), (at, message), "{selector}");
        }
    }

    #[test]
    fn size_is_bounded() {
        assert!(Selector::parse(&"a".repeat(SELECTOR_BYTES + 1)).is_err());
        assert!(Selector::parse(&vec!["a"; REQUIREMENTS].join(",")).is_ok());
        assert!(Selector::parse(&vec!["a"; REQUIREMENTS + 1].join(",")).is_err());
        assert!(Selector::parse(&format!("a in ({})", vec!["x"; VALUES + 1].join(","))).is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in ".{0,80}") {
            if let Ok(selector) = Selector::parse(&text) {
                let _: bool = selector.matches(&NODE);
            }
        }
    }
}
