//! Records for an edge API: each carries a number of its own, and what became of it is remembered.

use std::{collections::BTreeSet, time::Duration};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use reqwest::Client;
use serde_json::{Value, json};

use crate::given::Door;

/// Numbers per metric, so that a query answers with a bounded part.
pub(crate) const PER_METRIC: u64 = 5_000;
/// When the first sample is said to be taken, Unix milliseconds.
const FIRST_MS: i64 = 1_790_000_000_000;
/// How far a number is shifted in a sample's value, above random bits that no compression takes away.
const RANDOM_BITS: u32 = 32;

/// What was handed in.
#[derive(Debug, Default, Clone)]
pub(crate) struct Truth {
    pub(crate) samples: BTreeSet<u64>,
    pub(crate) events: BTreeSet<u64>,
    /// No answer came: they may have been accepted.
    pub(crate) maybe: BTreeSet<u64>,
    /// The highest number that was used.
    pub(crate) last: u64,
}

/// Hands records in.
pub(crate) struct Generator {
    pub(crate) truth: Truth,
    rng: StdRng,
    client: Client,
    door: Door,
}

/// The number in a sample's value.
pub(crate) fn number(value: f64) -> u64 {
    value as u64 >> RANDOM_BITS
}

impl Generator {
    pub(crate) fn new(seed: u64, door: Door) -> Self {
        let client = Client::builder().timeout(Duration::from_secs(20)).build().unwrap();
        Self { truth: Truth::default(), rng: StdRng::seed_from_u64(seed), client, door }
    }

    fn take(&mut self, count: u64) -> Vec<u64> {
        let first = self.truth.last + 1;
        self.truth.last += count;
        (first..=self.truth.last).collect()
    }

    /// Posts samples; whether they were accepted.
    pub(crate) async fn samples(&mut self, count: u64) -> bool {
        let numbers = self.take(count);
        let sample = |number: &u64| {
            let value = number << RANDOM_BITS | u64::from(self.rng.random::<u32>());
            let metric = format!("m{}", number / PER_METRIC);
            json!({ "metric": metric, "value": value, "time_ms": FIRST_MS + *number as i64 })
        };
        let samples: Vec<Value> = numbers.iter().map(sample).collect();
        let accepted = self.post("/api/v1/telemetry", json!({ "samples": samples }), &numbers).await;
        self.truth.samples.extend(numbers.into_iter().filter(|_| accepted));
        accepted
    }

    /// Posts events; whether they were accepted.
    pub(crate) async fn events(&mut self, count: u64) -> bool {
        let numbers = self.take(count);
        let event =
            |number: &u64| json!({ "kind": "test", "severity": "info", "message": number.to_string() });
        let events: Vec<Value> = numbers.iter().map(event).collect();
        let accepted = self.post("/api/v1/events", Value::Array(events), &numbers).await;
        self.truth.events.extend(numbers.into_iter().filter(|_| accepted));
        accepted
    }

    async fn post(&mut self, path: &str, body: Value, numbers: &[u64]) -> bool {
        let Some(address) = *self.door.lock().unwrap() else { return false };
        let request = self.client.post(format!("http://{address}{path}"));
        match request.header("content-type", "application/json").body(body.to_string()).send().await {
            Ok(answer) => match answer.status().as_u16() {
                202 => true,
                // Full or closing: it says that nothing of it was taken.
                503 | 507 => false,
                other => panic!("{path}: {other}: {:?}", answer.text().await),
            },
            Err(error) if error.is_connect() => false,
            Err(_) => {
                self.truth.maybe.extend(numbers);
                false
            }
        }
    }

    /// One request of the usual load: some samples, now and then events.
    pub(crate) async fn load(&mut self) {
        if self.rng.random_bool(0.15) {
            let count = self.rng.random_range(1..4);
            self.events(count).await;
        } else {
            let count = self.rng.random_range(1..20);
            self.samples(count).await;
        }
    }
}
