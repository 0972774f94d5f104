//! Reading a condition: text in, checked terms out, or where it is wrong and why.
//!
//! Owns the grammar and the types. Limits are looked at before anything is built.

use std::{fmt, time::Duration};

use super::{
    CONDITION_BYTES, CONDITION_DEPTH, CONDITION_TERMS,
    eval::{Calculate, Compare, Over, Series, Term, View},
    span,
};
use crate::id::{DeviceId, MetricName};

/// What a term is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A number.
    Number,
    /// A text.
    Text,
    /// True or false.
    Truth,
}

/// Says what is wrong with a selector.
pub type CheckSelector = fn(&str) -> Result<(), String>;

/// What conditions may name beside the language's own terms.
#[derive(Debug, Clone, Copy, Default)]
pub struct Scope<'a> {
    /// Names and what they are.
    pub facts: &'a [(&'a str, Kind)],
    /// Says what is wrong with a selector, where somebody reads them.
    pub selector: Option<CheckSelector>,
}

/// A condition that was read.
#[derive(Debug, Clone, PartialEq)]
pub struct Condition {
    text: Box<str>,
    term: Term,
    uses_time: bool,
}

/// Where a condition is wrong, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason} (at character {at} of the condition)")]
pub struct ConditionError {
    /// Which character, from 1.
    pub at: usize,
    /// What is wrong, and what would be right.
    pub reason: String,
}

impl Condition {
    /// Reads a condition. `field` is what `value` means.
    ///
    /// # Errors
    /// [`ConditionError`].
    pub fn parse(text: &str, field: Option<&MetricName>, scope: Scope<'_>) -> Result<Self, ConditionError> {
        limit(text)?;
        let mut reader =
            Reader { text, at: 0, token: Token::End, start: 0, depth: 0, terms: 0, field, scope };
        reader.advance()?;
        let (term, kind) = reader.either()?;
        if reader.token != Token::End {
            return Err(reader.wrong(format!("{} is not expected here", reader.token)));
        }
        if kind != Kind::Truth {
            return Err(ConditionError {
                at: 1,
                reason: format!("this is {kind}; compare it with something"),
            });
        }
        let mut uses_time = false;
        term.walk(&mut |term| uses_time |= matches!(term, Term::LastSeen | Term::Over(..) | Term::Fact(_)));
        Ok(Self { text: text.into(), term, uses_time })
    }

    /// As it was written.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether it holds; unknown when what it needs is not known. `slack` is how far thresholds of the rule's own field
    /// give way (hysteresis).
    #[must_use]
    pub fn holds(&self, view: &dyn View, slack: f64) -> Option<bool> {
        self.term.truth(view, slack)
    }

    /// Whether it may change without a sample of the device: by time, or by a fact.
    #[must_use]
    pub fn uses_time(&self) -> bool {
        self.uses_time
    }

    /// Whether time alone changes it: it asks how long ago something was, or looks at a window.
    #[must_use]
    pub fn uses_clock(&self) -> bool {
        let mut found = self.uses_silence();
        self.term.walk(&mut |term| found |= matches!(term, Term::Over(..)));
        found
    }

    /// Whether it asks how long ago the device was seen.
    #[must_use]
    pub fn uses_silence(&self) -> bool {
        let mut found = false;
        self.term.walk(&mut |term| found |= matches!(term, Term::LastSeen));
        found
    }

    /// The facts that it names.
    #[must_use]
    pub fn facts(&self) -> Vec<&str> {
        let mut found = Vec::new();
        self.term.walk(&mut |term| {
            if let Term::Fact(name) = term {
                found.push(&**name);
            }
        });
        found
    }

    /// The windows it looks at.
    #[must_use]
    pub fn windows(&self) -> Vec<(&Series, Duration)> {
        let mut windows = Vec::new();
        self.term.walk(&mut |term| {
            if let Term::Over(_, series, span) = term {
                windows.push((series, *span));
            }
        });
        windows
    }

    /// The series whose latest values it looks at.
    #[must_use]
    pub fn series(&self) -> Vec<&Series> {
        let mut found = Vec::new();
        self.term.walk(&mut |term| {
            if let Term::Value(series) | Term::Has(series) = term {
                found.push(series);
            }
        });
        found
    }
}

/// Length and brackets, before any work is done for them.
fn limit(text: &str) -> Result<(), ConditionError> {
    if text.len() > CONDITION_BYTES {
        let reason = format!("longer than {CONDITION_BYTES} bytes; make several rules of it");
        return Err(ConditionError { at: CONDITION_BYTES, reason });
    }
    let mut depth = 0_usize;
    for (at, c) in text.chars().enumerate() {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > CONDITION_DEPTH {
            return Err(deep(at + 1));
        }
    }
    Ok(())
}

fn deep(at: usize) -> ConditionError {
    ConditionError { at, reason: format!("nested deeper than {CONDITION_DEPTH}; make it flatter") }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Token<'a> {
    Number(f64),
    Text(&'a str),
    Name(&'a str),
    Sign(&'static str),
    End,
}

impl fmt::Display for Token<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Text(text) => write!(f, "{text:?}"),
            Self::Name(name) => write!(f, "`{name}`"),
            Self::Sign(sign) => write!(f, "`{sign}`"),
            Self::End => f.write_str("the end"),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Number => "a number",
            Self::Text => "a text",
            Self::Truth => "true or false",
        })
    }
}

/// Longer ones first, so that they win.
const SIGNS: [&str; 17] =
    ["&&", "||", "==", "!=", "<=", ">=", "<", ">", "!", "+", "-", "*", "/", "%", "(", ")", ","];

struct Reader<'a, 's> {
    text: &'a str,
    // Where the next token is looked for, in bytes.
    at: usize,
    token: Token<'a>,
    // Where the token begins.
    start: usize,
    depth: usize,
    terms: usize,
    field: Option<&'s MetricName>,
    scope: Scope<'s>,
}

type Read = Result<(Term, Kind), ConditionError>;

impl<'a> Reader<'a, '_> {
    fn wrong(&self, reason: impl Into<String>) -> ConditionError {
        self.wrong_at(self.start, reason)
    }

    fn wrong_at(&self, byte: usize, reason: impl Into<String>) -> ConditionError {
        let at = self.text.get(..byte).map_or(byte, |before| before.chars().count()) + 1;
        ConditionError { at, reason: reason.into() }
    }

    /// Reads the next token.
    fn advance(&mut self) -> Result<(), ConditionError> {
        let rest = self.text[self.at..].trim_start();
        self.start = self.text.len() - rest.len();
        let Some(first) = rest.chars().next() else {
            (self.token, self.at) = (Token::End, self.text.len());
            return Ok(());
        };
        let (token, len) = if first.is_ascii_digit() || first == '.' {
            self.number(rest)?
        } else if first == '"' || first == '\'' {
            let Some(end) = rest[1..].find(first) else { return Err(self.wrong("this text has no end")) };
            let text = &rest[1..=end];
            if text.contains('\\') {
                return Err(self.wrong("texts know no backslash; write it without"));
            }
            (Token::Text(text), end + 2)
        } else if first.is_ascii_alphabetic() || first == '_' {
            let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(rest.len());
            (Token::Name(&rest[..end]), end)
        } else {
            let sign = SIGNS.iter().find(|sign| rest.starts_with(**sign));
            let Some(sign) = sign else { return Err(self.wrong(format!("{first:?} means nothing here"))) };
            (Token::Sign(sign), sign.len())
        };
        (self.token, self.at) = (token, self.start + len);
        Ok(())
    }

    fn number(&self, rest: &'a str) -> Result<(Token<'a>, usize), ConditionError> {
        let mut exponent = false;
        let end = rest.find(|c: char| {
            let sign = exponent && matches!(c, '+' | '-');
            exponent = matches!(c, 'e' | 'E');
            !(c.is_ascii_alphanumeric() || c == '.' || sign)
        });
        let text = &rest[..end.unwrap_or(rest.len())];
        let number = text.parse::<f64>().ok().filter(|number| number.is_finite());
        let number = number.ok_or_else(|| self.wrong(format!("{text} is not a number")))?;
        Ok((Token::Number(number), text.len()))
    }

    fn take(&mut self, sign: &str) -> Result<bool, ConditionError> {
        let taken = self.token == Token::Sign(SIGNS.iter().find(|known| **known == sign).unwrap_or(&""));
        if taken {
            self.advance()?;
        }
        Ok(taken)
    }

    fn expect(&mut self, sign: &str) -> Result<(), ConditionError> {
        match self.take(sign)? {
            true => Ok(()),
            false => Err(self.wrong(format!("`{sign}` is expected in place of {}", self.token))),
        }
    }

    fn counted(&mut self, term: Term, kind: Kind) -> Read {
        self.terms += 1;
        match self.terms > CONDITION_TERMS {
            true => Err(self.wrong(format!("more than {CONDITION_TERMS} terms; make several rules of it"))),
            false => Ok((term, kind)),
        }
    }

    fn deeper(&mut self, read: fn(&mut Self) -> Read) -> Read {
        self.depth += 1;
        if self.depth > CONDITION_DEPTH {
            return Err(deep(self.wrong("").at));
        }
        let read = read(self);
        self.depth -= 1;
        read
    }

    /// `a || b`.
    fn either(&mut self) -> Read {
        self.joined("||", Self::both, Term::Or)
    }

    /// `a && b`.
    fn both(&mut self) -> Read {
        self.joined("&&", Self::compared, Term::And)
    }

    fn joined(&mut self, sign: &str, part: fn(&mut Self) -> Read, join: fn(Box<[Term; 2]>) -> Term) -> Read {
        let mut at = self.start;
        let (mut left, mut kind) = part(self)?;
        while self.token == Token::Sign(if sign == "&&" { "&&" } else { "||" }) {
            self.must(at, kind, Kind::Truth, sign)?;
            self.advance()?;
            at = self.start;
            let (right, right_kind) = part(self)?;
            self.must(at, right_kind, Kind::Truth, sign)?;
            (left, kind) = self.counted(join(Box::new([left, right])), Kind::Truth)?;
        }
        Ok((left, kind))
    }

    fn must(&self, at: usize, kind: Kind, wanted: Kind, sign: &str) -> Result<(), ConditionError> {
        match kind == wanted {
            true => Ok(()),
            false => Err(self.wrong_at(at, format!("`{sign}` takes {wanted} here, and this is {kind}"))),
        }
    }

    fn compared(&mut self) -> Read {
        let left_at = self.start;
        let (left, left_kind) = self.sum()?;
        let Token::Sign(sign) = self.token else { return Ok((left, left_kind)) };
        let (compare, wants_number) = match sign {
            "==" => (Compare::Equal, false),
            "!=" => (Compare::NotEqual, false),
            "<" => (Compare::Less, true),
            "<=" => (Compare::LessOrEqual, true),
            ">" => (Compare::More, true),
            ">=" => (Compare::MoreOrEqual, true),
            _ => return Ok((left, left_kind)),
        };
        self.advance()?;
        let right_at = self.start;
        let (right, right_kind) = self.sum()?;
        if wants_number {
            self.must(left_at, left_kind, Kind::Number, sign)?;
        }
        self.must(right_at, right_kind, left_kind, sign)?;
        if matches!(self.token, Token::Sign("==" | "!=" | "<" | "<=" | ">" | ">=")) {
            return Err(self.wrong("comparisons do not chain; join them with `&&`"));
        }
        let mut own = false;
        for term in [&left, &right] {
            term.walk(&mut |term| {
                own |= match term {
                    Term::Value(series) | Term::Over(_, series, _) => {
                        series.device.is_none() && Some(&series.metric) == self.field
                    }
                    _ => false,
                }
            });
        }
        self.counted(Term::Compare(compare, own, Box::new([left, right])), Kind::Truth)
    }

    fn sum(&mut self) -> Read {
        self.calculated(Self::product, |sign| match sign {
            "+" => Some(Calculate::Add),
            "-" => Some(Calculate::Subtract),
            _ => None,
        })
    }

    fn product(&mut self) -> Read {
        self.calculated(Self::signed, |sign| match sign {
            "*" => Some(Calculate::Multiply),
            "/" => Some(Calculate::Divide),
            "%" => Some(Calculate::Remainder),
            _ => None,
        })
    }

    fn calculated(&mut self, part: fn(&mut Self) -> Read, which: fn(&str) -> Option<Calculate>) -> Read {
        let mut at = self.start;
        let (mut left, mut kind) = part(self)?;
        while let Token::Sign(sign) = self.token
            && let Some(calculate) = which(sign)
        {
            self.must(at, kind, Kind::Number, sign)?;
            self.advance()?;
            at = self.start;
            let (right, right_kind) = part(self)?;
            self.must(at, right_kind, Kind::Number, sign)?;
            (left, kind) = self.counted(Term::Calculate(calculate, Box::new([left, right])), Kind::Number)?;
        }
        Ok((left, kind))
    }

    fn signed(&mut self) -> Read {
        for (sign, wanted) in [("!", Kind::Truth), ("-", Kind::Number)] {
            if self.take(sign)? {
                let at = self.start;
                let (term, kind) = self.deeper(Self::signed)?;
                self.must(at, kind, wanted, sign)?;
                let term = if sign == "!" { Term::Not(term.into()) } else { Term::Negative(term.into()) };
                return self.counted(term, kind);
            }
        }
        self.single()
    }

    fn single(&mut self) -> Read {
        let (token, start) = (self.token, self.start);
        if self.take("(")? {
            let read = self.deeper(Self::either)?;
            self.expect(")")?;
            return Ok(read);
        }
        match token {
            Token::Number(number) => {
                self.advance()?;
                self.counted(Term::Number(number), Kind::Number)
            }
            Token::Text(text) => {
                self.advance()?;
                self.counted(Term::Text(text.into()), Kind::Text)
            }
            Token::Name(name) => {
                self.advance()?;
                match self.take("(")? {
                    true => self.call(name, start),
                    false => self.named(name, start),
                }
            }
            Token::Sign(_) | Token::End => Err(self.wrong(format!("a term is missing in place of {token}"))),
        }
    }

    fn named(&mut self, name: &str, start: usize) -> Read {
        match name {
            "true" | "false" => self.counted(Term::Truth(name == "true"), Kind::Truth),
            "last_seen_s" => self.counted(Term::LastSeen, Kind::Number),
            "value" => {
                let metric = self.own(start)?;
                self.counted(Term::Value(Series { device: None, metric }), Kind::Number)
            }
            _ => match self.scope.facts.iter().find(|(fact, _)| *fact == name) {
                Some((_, kind)) => self.counted(Term::Fact(name.into()), *kind),
                None => {
                    let mut known: Vec<_> = self.scope.facts.iter().map(|(fact, _)| *fact).collect();
                    known.extend(["value", "last_seen_s", "true", "false"]);
                    let known = known.join(", ");
                    let reason = format!(
                        "`{name}` is not known; there are {known}, and metric(\"{name}\") of a device"
                    );
                    Err(self.wrong_at(start, reason))
                }
            },
        }
    }

    fn own(&self, start: usize) -> Result<MetricName, ConditionError> {
        self.field
            .cloned()
            .ok_or_else(|| self.wrong_at(start, "the rule has no `field` that this could be of"))
    }

    fn call(&mut self, name: &str, start: usize) -> Read {
        let over = match name {
            "rate" => Some(Over::Rate),
            "avg_over" => Some(Over::Average),
            "min_over" => Some(Over::Least),
            "max_over" => Some(Over::Most),
            "sum_over" => Some(Over::Sum),
            "count_over" => Some(Over::Count),
            _ => None,
        };
        if let Some(over) = over {
            let texts = self.texts()?;
            let (series, window) = match texts.as_slice() {
                [window] => (Series { device: None, metric: self.own(start)? }, window),
                [metric, window] => (self.series(&[*metric])?, window),
                [device, metric, window] => (self.series(&[*device, *metric])?, window),
                _ => return Err(self.wrong_at(start, format!("write {name}(\"metric\", \"5m\")"))),
            };
            let Some(span) = span(window.0) else {
                return Err(
                    self.wrong_at(window.1, format!("{:?} is no time such as 90s, 5m, 2h, 1d", window.0))
                );
            };
            return self.counted(Term::Over(over, series, span), Kind::Number);
        }
        match name {
            "metric" | "has" => {
                let texts = self.texts()?;
                let series = self.series(&texts)?;
                match name {
                    "has" => self.counted(Term::Has(series), Kind::Truth),
                    _ => self.counted(Term::Value(series), Kind::Number),
                }
            }
            "abs" => {
                let term = self.argument()?;
                self.expect(")")?;
                self.counted(Term::Abs(term.into()), Kind::Number)
            }
            "min" | "max" => {
                let left = self.argument()?;
                self.expect(",")?;
                let right = self.argument()?;
                self.expect(")")?;
                let which = if name == "min" { Calculate::Least } else { Calculate::Most };
                self.counted(Term::Calculate(which, Box::new([left, right])), Kind::Number)
            }
            _ => {
                let known =
                    "metric, has, rate, avg_over, min_over, max_over, sum_over, count_over, abs, min, max";
                Err(self.wrong_at(start, format!("`{name}` is no function; there are {known}")))
            }
        }
    }

    fn argument(&mut self) -> Result<Term, ConditionError> {
        let at = self.start;
        let (term, kind) = self.deeper(Self::sum)?;
        self.must(at, kind, Kind::Number, "it")?;
        Ok(term)
    }

    /// Texts up to the closing bracket, each with where it begins.
    fn texts(&mut self) -> Result<Vec<(&'a str, usize)>, ConditionError> {
        let mut texts = Vec::new();
        loop {
            let Token::Text(text) = self.token else {
                return Err(self.wrong(format!(
                    "a text such as \"temperature\" is expected in place of {}",
                    self.token
                )));
            };
            texts.push((text, self.start));
            self.advance()?;
            if !self.take(",")? || texts.len() >= 3 {
                self.expect(")")?;
                return Ok(texts);
            }
        }
    }

    fn series(&self, names: &[(&str, usize)]) -> Result<Series, ConditionError> {
        let metric = |(name, at): (&str, usize)| {
            MetricName::parse(name).map_err(|error| self.wrong_at(at, error.to_string()))
        };
        match names {
            [name] => Ok(Series { device: None, metric: metric(*name)? }),
            [device, name] => {
                let id =
                    DeviceId::parse(device.0).map_err(|error| self.wrong_at(device.1, error.to_string()))?;
                Ok(Series { device: Some(id), metric: metric(*name)? })
            }
            _ => Err(self.wrong("one metric, or a device and a metric, are expected here")),
        }
    }
}

#[cfg(test)]
mod tests;
