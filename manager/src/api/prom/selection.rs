//! Which series a query's matchers choose. Pure.
//!
//! The labels are `__name__` (always `fleet_sample`), `node`, `site`, `device`, `metric` and `unit`; one without a
//! value is absent, and an absent label matches as the empty text, as in Prometheus. Regular expressions are anchored.

use std::collections::BTreeSet;

use fleet_schemas::{DeviceId, MetricName};
use regex::{Regex, RegexBuilder};

use super::wire::{Label, LabelMatcher};

/// The one metric that is served.
pub(super) const NAME: &str = "fleet_sample";
/// Most matchers of one query.
const MATCHERS: usize = 64;
/// Longest value of a matcher, in bytes: a dashboard's "all nodes" is a long alternation.
const VALUE_BYTES: usize = 64 * 1024;
/// Most memory of one compiled expression, in bytes.
const REGEX_BYTES: usize = 8 * 1024 * 1024;

/// The matchers of a query, by label.
#[derive(Debug, Default)]
pub(super) struct Selection {
    node: Vec<Test>,
    site: Vec<Test>,
    device: Vec<Test>,
    metric: Vec<Test>,
    unit: Vec<Test>,
    /// A matcher of the name or of a label that no series has says no.
    nothing: bool,
    /// Labels that the asking Prometheus puts on everything: given back as asked for.
    external: Vec<Label>,
}

#[derive(Debug)]
enum Test {
    Is(String),
    Not(String),
    Like(Regex),
    Unlike(Regex),
}

/// Why matchers are not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadMatcher {
    #[error("a query has {0} matchers, and at most {MATCHERS} are allowed")]
    Many(usize),
    #[error("the matcher of {0} is longer than {VALUE_BYTES} bytes; choose fewer values")]
    Long(String),
    #[error("the matcher of {0} is of type {1}; known are 0 (=), 1 (!=), 2 (=~) and 3 (!~)")]
    Kind(String, i32),
    #[error("the matcher of {0} is no regular expression in RE2's syntax: {1}")]
    Regex(String, String),
}

impl Selection {
    /// Reads matchers; `external` are the names of labels that the asking Prometheus adds to its queries.
    pub(super) fn read(matchers: &[LabelMatcher], external: &BTreeSet<String>) -> Result<Self, BadMatcher> {
        if matchers.len() > MATCHERS {
            return Err(BadMatcher::Many(matchers.len()));
        }
        let mut selection = Self::default();
        for matcher in matchers {
            let test = Test::read(matcher)?;
            match matcher.name.as_str() {
                "__name__" => selection.nothing |= !test.holds(NAME),
                "node" => selection.node.push(test),
                "site" => selection.site.push(test),
                "device" => selection.device.push(test),
                "metric" => selection.metric.push(test),
                "unit" => selection.unit.push(test),
                name if external.contains(name) && matches!(test, Test::Is(_)) => {
                    let label = Label { name: name.to_owned(), value: matcher.value.clone() };
                    selection.external.push(label);
                }
                _ => selection.nothing |= !test.holds(""),
            }
        }
        Ok(selection)
    }

    /// Whether nothing can be chosen.
    pub(super) fn is_empty(&self) -> bool {
        self.nothing
    }

    /// The only node that can be chosen, when there is one.
    pub(super) fn only_node(&self) -> Option<&str> {
        self.node.iter().find_map(|test| match test {
            Test::Is(node) => Some(node.as_str()),
            Test::Not(_) | Test::Like(_) | Test::Unlike(_) => None,
        })
    }

    /// Whether a node of this id and site is chosen.
    pub(super) fn takes_node(&self, node: &str, site: &str) -> bool {
        !self.nothing && all(&self.node, node) && all(&self.site, site)
    }

    /// Whether a series of a chosen node is chosen.
    pub(super) fn takes_series(
        &self,
        device: &DeviceId,
        metric: &MetricName,
        unit: Option<&MetricName>,
    ) -> bool {
        all(&self.metric, metric.as_str())
            && all(&self.device, device.as_str())
            && all(&self.unit, unit.map_or("", MetricName::as_str))
    }

    /// The labels of a series, by name.
    pub(super) fn labels(
        &self,
        (node, site): (&str, &str),
        device: &DeviceId,
        metric: &MetricName,
        unit: Option<&MetricName>,
    ) -> Vec<Label> {
        let own = [
            ("__name__", NAME),
            ("device", device.as_str()),
            ("metric", metric.as_str()),
            ("node", node),
            ("site", site),
            ("unit", unit.map_or("", MetricName::as_str)),
        ];
        let own = own.into_iter().filter(|(_, value)| !value.is_empty());
        let mut labels: Vec<_> =
            own.map(|(name, value)| Label { name: name.to_owned(), value: value.to_owned() }).collect();
        labels.extend(self.external.iter().filter(|label| !label.value.is_empty()).cloned());
        labels.sort_unstable();
        labels.dedup_by(|a, b| a.name == b.name);
        labels
    }
}

fn all(tests: &[Test], value: &str) -> bool {
    tests.iter().all(|test| test.holds(value))
}

impl Test {
    fn read(matcher: &LabelMatcher) -> Result<Self, BadMatcher> {
        let LabelMatcher { kind, name, value } = matcher;
        if value.len() > VALUE_BYTES {
            return Err(BadMatcher::Long(name.clone()));
        }
        match kind {
            0 => Ok(Self::Is(value.clone())),
            1 => Ok(Self::Not(value.clone())),
            2 => anchored(value).map(Self::Like),
            3 => anchored(value).map(Self::Unlike),
            kind => return Err(BadMatcher::Kind(name.clone(), *kind)),
        }
        .map_err(|error| BadMatcher::Regex(name.clone(), error.to_string()))
    }

    fn holds(&self, value: &str) -> bool {
        match self {
            Self::Is(wanted) => wanted == value,
            Self::Not(unwanted) => unwanted != value,
            Self::Like(regex) => regex.is_match(value),
            Self::Unlike(regex) => !regex.is_match(value),
        }
    }
}

fn anchored(pattern: &str) -> Result<Regex, regex::Error> {
    let build = |text: &str| RegexBuilder::new(text).size_limit(REGEX_BYTES).build();
    // By itself first: `a)|(b` must not come out of the brackets that anchor it.
    build(pattern)?;
    build(&format!("^(?s:{pattern})$"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matcher((name, kind, value): (&str, i32, &str)) -> LabelMatcher {
        LabelMatcher { kind, name: name.to_owned(), value: value.to_owned() }
    }

    fn read(matchers: &[(&str, i32, &str)]) -> Result<Selection, BadMatcher> {
        let matchers: Vec<_> = matchers.iter().copied().map(matcher).collect();
        Selection::read(&matchers, &BTreeSet::from(["replica".to_owned()]))
    }

    fn takes(matchers: &[(&str, i32, &str)], node: &str, site: &str, device: &str, metric: &str) -> bool {
        let selection = read(matchers).unwrap();
        let (device, metric) = (DeviceId::parse(device).unwrap(), MetricName::parse(metric).unwrap());
        selection.takes_node(node, site) && selection.takes_series(&device, &metric, None)
    }

    #[test]
    fn matchers_choose_as_prometheus_does() {
        for (matchers, taken) in [
            (&[("__name__", 0, "fleet_sample")][..], true),
            (&[("__name__", 0, "up")], false),
            (&[("__name__", 2, "fleet_.+")], true),
            (&[("__name__", 1, "fleet_sample")], false),
            (&[("node", 0, "edge-1"), ("site", 0, "north")], true),
            (&[("node", 0, "edge-1"), ("site", 0, "south")], false),
            // Anchored at both ends.
            (&[("node", 2, "edge")], false),
            (&[("node", 2, "edge-[0-9]")], true),
            (&[("node", 3, "dge-1")], true),
            (&[("node", 2, "other|edge-1")], true),
            (&[("metric", 1, "temperature")], false),
            (&[("metric", 2, ".*")], true),
            (&[("metric", 2, "(?i)TEMPERATURE")], true),
            // An absent label is an empty one.
            (&[("unit", 0, "")], true),
            (&[("unit", 1, "")], false),
            (&[("unit", 2, ".+")], false),
            (&[("job", 0, "")], true),
            (&[("job", 0, "fleet")], false),
            (&[("job", 1, "fleet")], true),
            // What Prometheus puts on everything.
            (&[("replica", 0, "a")], true),
        ] {
            assert_eq!(takes(matchers, "edge-1", "north", "dht22", "temperature"), taken, "{matchers:?}");
        }
        assert!(takes(&[("device", 0, "")], "edge-1", "", "", "cpu_percent"), "the node itself");
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (bad, said) in [
            (("node", 2, "("), "RE2"),
            (("node", 2, "a)|(b"), "RE2"),
            (("node", 2, "a(?=b)"), "look-around"),
            (("node", 2, "(a{1000}){1000}"), "RE2"),
            (("node", 4, "a"), "type 4"),
        ] {
            let refused = read(&[bad]).unwrap_err().to_string();
            assert!(refused.contains("node") && refused.contains(said), "{refused}");
        }
        let long = "x".repeat(VALUE_BYTES + 1);
        assert_eq!(read(&[("site", 0, &long)]).unwrap_err(), BadMatcher::Long("site".to_owned()));
        let many = vec![("node", 1, "x"); MATCHERS + 1];
        assert_eq!(read(&many).unwrap_err(), BadMatcher::Many(MATCHERS + 1));
    }

    #[test]
    fn labels_stand_by_name_and_without_empty_ones() {
        let selection = read(&[("replica", 0, "a"), ("node", 2, "e.*"), ("node", 0, "edge-1")]).unwrap();
        assert_eq!(selection.only_node(), Some("edge-1"));
        let (metric, unit) = (MetricName::parse("temp").unwrap(), MetricName::parse("Cel").unwrap());
        let labels = selection.labels(("edge-1", ""), &DeviceId::node(), &metric, Some(&unit));
        let shown: Vec<_> = labels.iter().map(|label| format!("{}={}", label.name, label.value)).collect();
        assert_eq!(shown, ["__name__=fleet_sample", "metric=temp", "node=edge-1", "replica=a", "unit=Cel"]);
    }
}
