//! A condition's terms, and what they are worth for one device at one time.
//!
//! Owns three-valued judgement: unknown is neither true nor false. Does not read text.

use std::time::Duration;

use super::window::Aggregate;
use crate::id::{DeviceId, MetricName};

/// A series as a condition names it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Series {
    /// The device; absent: the one that is judged.
    pub device: Option<DeviceId>,
    /// The metric.
    pub metric: MetricName,
}

/// What a fact is worth.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fact<'a> {
    /// A number.
    Number(f64),
    /// A text.
    Text(&'a str),
    /// True or false.
    Truth(bool),
}

/// What is known of the device that is judged. `None` everywhere: not known.
pub trait View {
    /// The latest value of a series.
    fn value(&self, series: &Series) -> Option<f64>;

    /// Seconds since the device said anything.
    fn last_seen_s(&self) -> Option<f64>;

    /// What a series did in the last `span`.
    fn over(&self, series: &Series, span: Duration) -> Option<Aggregate>;

    /// A name of the [`Scope`](super::Scope).
    fn fact(&self, name: &str) -> Option<Fact<'_>>;
}

/// A term. Types were checked when it was read: a term of another type is worth nothing.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Term {
    Number(f64),
    Truth(bool),
    Text(Box<str>),
    Value(Series),
    Has(Series),
    LastSeen,
    Fact(Box<str>),
    Over(Over, Series, Duration),
    Abs(Box<Term>),
    Negative(Box<Term>),
    Not(Box<Term>),
    Calculate(Calculate, Box<[Term; 2]>),
    // Whether it is about the rule's own field, which hysteresis is for.
    Compare(Compare, bool, Box<[Term; 2]>),
    And(Box<[Term; 2]>),
    Or(Box<[Term; 2]>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Over {
    Rate,
    Average,
    Least,
    Most,
    Sum,
    Count,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Calculate {
    Add,
    Subtract,
    Multiply,
    Divide,
    Remainder,
    Least,
    Most,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compare {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    More,
    MoreOrEqual,
}

impl Term {
    /// Whether it holds. `slack` makes comparisons with the rule's own field hold longer.
    pub(super) fn truth(&self, view: &dyn View, slack: f64) -> Option<bool> {
        match self {
            Self::Truth(truth) => Some(*truth),
            Self::Has(series) => Some(view.value(series).is_some()),
            Self::Fact(name) => match view.fact(name)? {
                Fact::Truth(truth) => Some(truth),
                Fact::Number(_) | Fact::Text(_) => None,
            },
            // What holds longer inside does so outside when it is turned round.
            Self::Not(term) => term.truth(view, -slack).map(|truth| !truth),
            Self::And(terms) => match (terms[0].truth(view, slack), terms[1].truth(view, slack)) {
                (Some(false), _) | (_, Some(false)) => Some(false),
                (Some(true), Some(true)) => Some(true),
                (None, _) | (_, None) => None,
            },
            Self::Or(terms) => match (terms[0].truth(view, slack), terms[1].truth(view, slack)) {
                (Some(true), _) | (_, Some(true)) => Some(true),
                (Some(false), Some(false)) => Some(false),
                (None, _) | (_, None) => None,
            },
            Self::Compare(compare, own, terms) => {
                compare.holds(&terms[0], &terms[1], view, if *own { slack } else { 0.0 })
            }
            Self::Number(_)
            | Self::Text(_)
            | Self::Value(_)
            | Self::LastSeen
            | Self::Over(..)
            | Self::Abs(_)
            | Self::Negative(_)
            | Self::Calculate(..) => None,
        }
    }

    fn number(&self, view: &dyn View) -> Option<f64> {
        let number = match self {
            Self::Number(number) => *number,
            Self::Value(series) => view.value(series)?,
            Self::LastSeen => view.last_seen_s()?,
            Self::Fact(name) => match view.fact(name)? {
                Fact::Number(number) => number,
                Fact::Text(_) | Fact::Truth(_) => return None,
            },
            Self::Over(over, series, span) => over.of(view.over(series, *span))?,
            Self::Abs(term) => term.number(view)?.abs(),
            Self::Negative(term) => -term.number(view)?,
            Self::Calculate(calculate, terms) => calculate.of(terms[0].number(view)?, terms[1].number(view)?),
            Self::Truth(_)
            | Self::Text(_)
            | Self::Has(_)
            | Self::Not(_)
            | Self::And(_)
            | Self::Or(_)
            | Self::Compare(..) => return None,
        };
        number.is_finite().then_some(number)
    }

    fn text<'a>(&'a self, view: &'a dyn View) -> Option<&'a str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Fact(name) => match view.fact(name)? {
                Fact::Text(text) => Some(text),
                Fact::Number(_) | Fact::Truth(_) => None,
            },
            Self::Number(_)
            | Self::Truth(_)
            | Self::Value(_)
            | Self::Has(_)
            | Self::LastSeen
            | Self::Over(..)
            | Self::Abs(_)
            | Self::Negative(_)
            | Self::Not(_)
            | Self::Calculate(..)
            | Self::Compare(..)
            | Self::And(_)
            | Self::Or(_) => None,
        }
    }

    /// Calls `see` with every term, this one first.
    pub(super) fn walk<'a>(&'a self, see: &mut dyn FnMut(&'a Term)) {
        see(self);
        match self {
            Self::Abs(term) | Self::Negative(term) | Self::Not(term) => term.walk(see),
            Self::Calculate(_, terms) | Self::Compare(_, _, terms) | Self::And(terms) | Self::Or(terms) => {
                terms.iter().for_each(|term| term.walk(see));
            }
            Self::Number(_)
            | Self::Truth(_)
            | Self::Text(_)
            | Self::Value(_)
            | Self::Has(_)
            | Self::LastSeen
            | Self::Fact(_)
            | Self::Over(..) => {}
        }
    }
}

impl Compare {
    fn holds(self, left: &Term, right: &Term, view: &dyn View, slack: f64) -> Option<bool> {
        match self {
            Self::Equal => same(left, right, view),
            Self::NotEqual => same(left, right, view).map(|same| !same),
            Self::Less => Some(left.number(view)? < right.number(view)? + slack),
            Self::LessOrEqual => Some(left.number(view)? <= right.number(view)? + slack),
            Self::More => Some(left.number(view)? > right.number(view)? - slack),
            Self::MoreOrEqual => Some(left.number(view)? >= right.number(view)? - slack),
        }
    }
}

#[expect(clippy::float_cmp, reason = "whoever writes == means it: states are whole numbers")]
fn same(left: &Term, right: &Term, view: &dyn View) -> Option<bool> {
    if let (Some(left), Some(right)) = (left.number(view), right.number(view)) {
        return Some(left == right);
    }
    if let (Some(left), Some(right)) = (left.text(view), right.text(view)) {
        return Some(left == right);
    }
    Some(left.truth(view, 0.0)? == right.truth(view, 0.0)?)
}

impl Calculate {
    fn of(self, left: f64, right: f64) -> f64 {
        match self {
            Self::Add => left + right,
            Self::Subtract => left - right,
            Self::Multiply => left * right,
            Self::Divide => left / right,
            Self::Remainder => left % right,
            Self::Least => left.min(right),
            Self::Most => left.max(right),
        }
    }
}

impl Over {
    fn of(self, found: Option<Aggregate>) -> Option<f64> {
        let Some(found) = found else { return (self == Self::Count).then_some(0.0) };
        match self {
            Self::Rate => found.rate(),
            Self::Average => Some(found.sum / found.count as f64),
            Self::Least => Some(found.least),
            Self::Most => Some(found.most),
            Self::Sum => Some(found.sum),
            Self::Count => Some(found.count as f64),
        }
    }
}
