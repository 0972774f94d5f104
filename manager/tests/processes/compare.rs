//! What the hub has of a node, record by record, and its ledger.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::{
    generator::{self, PER_METRIC, Truth},
    given::{Hub, until},
};

/// Everything of one node that the hub shows.
#[derive(Debug, Default)]
pub(crate) struct Stored {
    /// How often each sample is there.
    pub(crate) samples: BTreeMap<u64, u64>,
    /// How often each event is there.
    pub(crate) events: BTreeMap<u64, u64>,
    /// Kinds and messages of events that nobody handed in: the hub's own.
    pub(crate) by_hub: Vec<(String, String)>,
}

impl Stored {
    pub(crate) async fn of(hub: &Hub, node: &str, last_number: u64) -> Self {
        let mut stored = Self::default();
        for metric in 0..=last_number / PER_METRIC {
            let path =
                format!("/api/v1/nodes/{node}/telemetry?metric=m{metric}&from_ms=0&to_ms=4000000000000");
            let answer = hub.get(&path).await;
            for series in answer["series"].as_array().unwrap() {
                for point in series["points"].as_array().unwrap() {
                    let number = generator::number(point[1].as_f64().unwrap());
                    *stored.samples.entry(number).or_default() += 1;
                }
            }
        }
        let mut cursor = String::new();
        loop {
            let path = format!("/api/v1/nodes/{node}/events?limit=500{cursor}");
            let page = hub.get(&path).await;
            for event in page["items"].as_array().unwrap() {
                let (kind, message) = (event["kind"].as_str().unwrap(), event["message"].as_str().unwrap());
                if kind == "test" {
                    *stored.events.entry(message.parse().unwrap()).or_default() += 1;
                } else {
                    stored.by_hub.push((kind.to_owned(), message.to_owned()));
                }
            }
            match page["next"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return stored,
            }
        }
    }

    /// Nothing is there twice, and nothing that was never handed in.
    pub(crate) fn check_foreign(&self, node: &str, truth: &Truth) {
        let known = |accepted: &BTreeSet<u64>, number: &u64| {
            accepted.contains(number) || truth.maybe.contains(number)
        };
        for (what, stored, accepted) in
            [("sample", &self.samples, &truth.samples), ("event", &self.events, &truth.events)]
        {
            let twice = stored.iter().find(|(_, times)| **times > 1);
            assert_eq!(twice, None, "{node}: {what} is stored more than once");
            let foreign = stored.keys().find(|number| !known(accepted, number));
            assert_eq!(foreign, None, "{node}: {what} was never handed in");
        }
    }

    /// Everything accepted is there once.
    pub(crate) fn check_all(&self, node: &str, truth: &Truth) {
        self.check_foreign(node, truth);
        let missing: Vec<_> = truth.samples.iter().filter(|n| !self.samples.contains_key(n)).collect();
        assert!(missing.is_empty(), "{node}: {} samples are missing: {missing:?}", missing.len());
        let missing: Vec<_> = truth.events.iter().filter(|n| !self.events.contains_key(n)).collect();
        assert!(missing.is_empty(), "{node}: {} events are missing: {missing:?}", missing.len());
    }
}

/// One term of a node's accounts, over some lanes.
pub(crate) fn term(ledger: &Value, node: &str, lanes: &[&str], term: &str) -> u64 {
    let accounts = ledger["accounts"].as_array().unwrap().iter();
    accounts
        .filter(|account| account["node"] == node && lanes.contains(&account["lane"].as_str().unwrap()))
        .map(|account| account[term].as_u64().unwrap())
        .sum()
}

pub(crate) const SAMPLES: &[&str] = &["telemetry", "backfill"];
pub(crate) const EVENTS: &[&str] = &["event"];
pub(crate) const ALL: &[&str] = &["event", "command", "telemetry", "backfill"];

/// Whether every account is balanced, with nothing left at the edge.
pub(crate) fn is_settled(ledger: &Value) -> bool {
    let accounts = ledger["accounts"].as_array().unwrap();
    ledger["balanced"] == true
        && accounts.iter().all(|account| account["state"] == "balanced" && account["at_edge"] == 0)
}

/// Waits until every account is settled; then rows are counted, and must agree.
pub(crate) async fn settled(hub: &Hub) -> Value {
    let ask = async || hub.get("/api/v1/ledger").await;
    until("every account is settled", ask, is_settled).await;
    let ledger = hub.get("/api/v1/ledger?verify=true").await;
    assert!(is_settled(&ledger) && ledger["findings"] == serde_json::json!([]), "{ledger:#}");
    ledger
}

/// The accounts say what is stored.
pub(crate) fn check_ledger(ledger: &Value, node: &str, stored: &Stored) {
    assert_eq!(term(ledger, node, SAMPLES, "stored"), stored.samples.len() as u64, "{node}: {ledger:#}");
    assert_eq!(term(ledger, node, EVENTS, "stored"), stored.events.len() as u64, "{node}: {ledger:#}");
}
