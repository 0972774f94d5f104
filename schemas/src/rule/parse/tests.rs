//! What conditions mean, and what is refused where.

use std::time::Duration;

use proptest::prelude::*;

use super::super::{Aggregate, Fact};
use super::*;

struct Shed;

impl View for Shed {
    fn value(&self, series: &Series) -> Option<f64> {
        match (series.device.as_ref().map(DeviceId::as_str), series.metric.as_str()) {
            (None, "t") => Some(27.5),
            (None, "h") => Some(40.0),
            (Some("door"), "open") => Some(1.0),
            _ => None,
        }
    }
    fn last_seen_s(&self) -> Option<f64> {
        Some(12.0)
    }
    fn over(&self, series: &Series, span: Duration) -> Option<Aggregate> {
        let (start, end) = (Aggregate::of(0, 20.0), Aggregate::of(60_000, 26.0));
        (series.metric.as_str() == "t" && span == Duration::from_secs(300)).then(|| start.then(end))
    }
    fn fact(&self, name: &str) -> Option<Fact<'_>> {
        match name {
            "presence" => Some(Fact::Text("offline")),
            "outbox_records" => Some(Fact::Number(7.0)),
            "in_maintenance" => Some(Fact::Truth(false)),
            _ => None,
        }
    }
}

const SCOPE: Scope<'_> = Scope {
    facts: &[("presence", Kind::Text), ("outbox_records", Kind::Number), ("in_maintenance", Kind::Truth)],
    selector: None,
};

fn parse(text: &str) -> Result<Condition, ConditionError> {
    Condition::parse(text, Some(&MetricName::parse("t").unwrap()), SCOPE)
}

fn holds(text: &str) -> Option<bool> {
    parse(text).unwrap_or_else(|error| panic!("{text}: {error}")).holds(&Shed, 0.0)
}

#[test]
fn conditions_mean_what_they_say() {
    for (text, expected) in [
        ("value > 27.0", true),
        ("value>27.5", false),
        ("value >= 27.5 && last_seen_s < 120", true),
        ("1 + 2 * 3 == 7", true),
        ("(1 + 2) * 3 == 9 && -2 - -3 == 1", true),
        ("10 % 4 / 2 == 1", true),
        ("2 - 1 - 1 == 0", true),
        ("1.5e1 == 15 && 15E-1 == 1.5 && .5 < 1", true),
        ("true || false && false", true),
        ("!(value > 30) && !false", true),
        ("metric('h') < 50 && metric(\"door\", \"open\") == 1", true),
        ("has('h') && !has('nothing')", true),
        ("presence == 'offline' && presence != 'online'", true),
        ("outbox_records > 5 && !in_maintenance", true),
        ("in_maintenance == false", true),
        ("rate('5m') == 0.1 && rate('t', '5m') * 60 == 6", true),
        ("avg_over('5m') == 23 && min_over('5m') == 20 && max_over('t', '300s') == 26", true),
        ("sum_over('5m') == 46 && count_over('5m') == 2 && count_over('h', '1d') == 0", true),
        ("abs(-3) == 3 && min(1, 2) == 1 && max(1, 2 + 1) == 3", true),
    ] {
        assert_eq!(holds(text), Some(expected), "{text}");
    }
}

#[test]
fn what_is_not_known_is_neither_true_nor_false() {
    for (text, expected) in [
        ("metric('x') > 1", None),
        ("!(metric('x') > 1)", None),
        ("value / 0 > 1", None),
        ("rate('x', '5m') > 0", None),
        ("metric('x') > 1 && false", Some(false)),
        ("metric('x') > 1 && true", None),
        ("metric('x') > 1 || true", Some(true)),
        ("metric('x') > 1 || false", None),
        ("metric('x') == metric('x')", None),
    ] {
        assert_eq!(holds(text), expected, "{text}");
    }
}

#[test]
fn slack_moves_thresholds_of_the_rules_own_field_only() {
    for (text, slack, expected) in [
        ("value > 28", 0.0, false),
        ("value > 28", 1.0, true),
        ("28 < value", 1.0, true),
        ("value < 27", 1.0, true),
        ("!(value < 28)", 1.0, true),
        ("metric('h') > 40", 1.0, false),
        ("max_over('5m') > 26.5", 1.0, true),
    ] {
        assert_eq!(parse(text).unwrap().holds(&Shed, slack), Some(expected), "{text}");
    }
}

#[test]
fn what_a_condition_looks_at_is_known() {
    let condition = parse("value > 1 && rate('h', '2m') > 0 && metric('d', 'm') > 0").unwrap();
    let windows: Vec<_> =
        condition.windows().iter().map(|(series, span)| (series.metric.as_str(), *span)).collect();
    assert_eq!(windows, [("h", Duration::from_secs(120))]);
    assert_eq!(condition.series().len(), 2);
    assert!(condition.uses_time() && !parse("value > 1").unwrap().uses_time());
}

#[test]
fn mistakes_are_told_with_their_place() {
    for (text, at, hint) in [
        ("", 1, "term is missing"),
        ("value", 1, "compare it"),
        ("value >", 8, "term is missing"),
        ("value > 27 30", 12, "not expected"),
        ("value > 'warm'", 9, "a text"),
        ("value && true", 1, "true or false"),
        ("true + 1 > 0", 1, "a number"),
        ("humidity > 3", 1, "metric(\"humidity\")"),
        ("1 < 2 < 3", 7, "do not chain"),
        ("value > 1e999", 9, "not a number"),
        ("value > 1x", 9, "not a number"),
        ("value > 27;", 11, "means nothing"),
        ("presence == 'off", 13, "no end"),
        ("presence == 'o\\'", 13, "backslash"),
        ("rate('5 minutes') > 0", 6, "no time"),
        ("rate(5) > 0", 6, "a text such as"),
        ("rate('a','b','c','d') > 0", 18, "`)`"),
        ("shout('x') > 0", 1, "no function"),
        ("metric('') > 0", 8, "empty"),
        ("(value > 3", 11, "`)`"),
        ("ä > 3", 1, "means nothing"),
        ("value > 3 && ä", 14, "means nothing"),
        ("presence > 'a'", 1, "a number"),
    ] {
        let error = parse(text).unwrap_err();
        assert_eq!(error.at, at, "{text}: {error}");
        assert!(error.reason.contains(hint), "{text}: {error}");
    }
    let none = Condition::parse("value > 1", None, Scope::default()).unwrap_err();
    assert!(none.reason.contains("`field`"), "{none}");
}

#[test]
fn limits_hold_before_anything_is_built() {
    let brackets = format!("{}true{}", "(".repeat(200), ")".repeat(200));
    let signs = format!("{}true", "!".repeat(200));
    let negatives = format!("{}1 > 0", "- ".repeat(200));
    let calls = format!("{}1{} > 0", "abs(".repeat(30), ")".repeat(30));
    let terms = format!("true{}", " && true".repeat(100));
    let long = format!("value > {}", "1".repeat(CONDITION_BYTES));
    for (text, hint) in [
        (brackets, "nested"),
        (signs, "nested"),
        (negatives, "nested"),
        (calls, "nested"),
        (terms, "terms"),
        (long, "longer"),
    ] {
        let error = parse(&text).unwrap_err();
        assert!(error.reason.contains(hint), "{text}: {error}");
    }
    assert!(parse(&format!("{}true{}", "(".repeat(16), ")".repeat(16))).is_ok());
}

proptest! {
    #[test]
    fn no_text_is_taken_amiss(text in "\\PC{0,80}") {
        if let Ok(condition) = parse(&text) {
            let _ = condition.holds(&Shed, 1.0);
        }
    }

    #[test]
    fn no_jumble_of_words_is_taken_amiss(
        words in prop::collection::vec(
            prop::sample::select(vec![
                "value", "last_seen_s", "27", "1e3", ".", "'5m'", "\"t\"", "rate", "abs", "min", "metric", "has", "(", ")",
                ",", "&&", "||", "!", "-", "+", "*", "/", "%", "<", ">=", "==", "!=", "true", "presence", "ß", "\\",
            ]),
            0..24,
        ),
    ) {
        match parse(&words.join(" ")) {
            Ok(condition) => drop(condition.holds(&Shed, 1.0)),
            Err(error) => prop_assert!(error.at >= 1 && !error.reason.is_empty()),
        }
    }
}
