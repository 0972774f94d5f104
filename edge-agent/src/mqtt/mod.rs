//! The connection to the hub: the only room that names rumqttc.
//!
//! Owns connecting, reconnecting and moving messages. Keeps nothing: what a connection loses, the outbox sends again.

mod session;

use std::{fmt, path::PathBuf, str::FromStr, sync::Arc, time::Duration};

use fleet_schemas::{NodeId, enrol::MQTTS_PORT};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use tokio::{select, time};
use tracing::{info, warn};

use crate::{
    address::Address,
    clock,
    clock::Clock,
    config::seconds,
    identity::{live::Live, record::Place},
    metrics::Metrics,
    outbox,
    stop::Stop,
};

/// First pause before the next attempt, doubled each time, spread by a jitter.
const RETRY_FIRST: Duration = Duration::from_secs(1);
/// Longest such pause.
const RETRY_LAST: Duration = Duration::from_secs(60);
/// How long the first session waits for a certificate that has ended to be renewed.
const RENEWAL: Duration = Duration::from_secs(60);
/// A session that lasted this long was a success; one that ends earlier may be a node id used twice, where two agents
/// would otherwise throw each other out without end.
const PROVED: Duration = Duration::from_secs(10);

/// How the hub is reached.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where: `mqtts://host:port`, or `mqtt://host:port` on this machine. Absent: where the node has joined; a node that
    /// has not only collects.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<HubUrl>,
    /// How long the connection may be silent before it is probed, in seconds.
    #[serde(rename = "keep_alive_s", with = "seconds")]
    pub keep_alive: Duration,
    /// How often the hub is asked which CAs to trust, in seconds. What fails is tried again after a 360th of it, then
    /// more slowly.
    #[serde(rename = "trust_s", with = "seconds")]
    pub trust: Duration,
    /// The file with the node's secret; absent: `identity/secret` in the data folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret_file: Option<PathBuf>,
    /// The secret itself, for those who embed the agent; never read from or printed to a file.
    #[serde(skip)]
    pub secret: Option<Secret>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            url: None,
            keep_alive: Duration::from_secs(30),
            trust: Duration::from_secs(6 * 3_600),
            secret_file: None,
            secret: None,
        }
    }
}

/// Where the hub is, and how it is spoken to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubUrl {
    /// How it is spoken to.
    pub scheme: Scheme,
    /// Host name or address; an IPv6 address without its brackets.
    pub host: String,
    /// Port.
    pub port: u16,
}

/// How the hub is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// MQTT over plain TCP with a secret: for a hub on the same machine.
    Mqtt,
    /// MQTT over TLS with the certificate that the node was given when it joined.
    Mqtts,
}

/// Port of [`Scheme::Mqtt`] when the URL has none.
const MQTT_PORT: u16 = 1883;

/// Why a text is not the URL of a hub.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no hub; write mqtts://host:port, or mqtt://host:port for one on this machine (mqtt://127.0.0.1:1883)"
)]
pub struct BadUrl(String);

impl FromStr for HubUrl {
    type Err = BadUrl;

    fn from_str(text: &str) -> Result<Self, BadUrl> {
        let bad = || BadUrl(text.to_owned());
        let (scheme, rest) = text.split_once("://").ok_or_else(bad)?;
        let (scheme, port) = match scheme {
            "mqtt" => (Scheme::Mqtt, MQTT_PORT),
            "mqtts" => (Scheme::Mqtts, MQTTS_PORT),
            _ => return Err(bad()),
        };
        let Address { host, port } = Address::parse(rest, port).ok_or_else(bad)?;
        Ok(Self { scheme, host, port })
    }
}

impl fmt::Display for HubUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.scheme {
            Scheme::Mqtt => "mqtt",
            Scheme::Mqtts => "mqtts",
        };
        write!(f, "{scheme}://{}", Address { host: self.host.clone(), port: self.port })
    }
}

impl Serialize for HubUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for HubUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// What proves who the node is. Its text never appears in a log.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Who connects where, and with what.
#[derive(Debug, Clone)]
pub(crate) struct Account {
    pub(crate) hub: HubUrl,
    pub(crate) node: NodeId,
    pub(crate) proof: Proof,
    pub(crate) keep_alive: Duration,
}

/// What proves who the node is.
#[derive(Debug, Clone)]
pub(crate) enum Proof {
    /// A secret, to a hub on the same machine.
    Secret(Secret),
    /// The certificate it was given.
    Certificate(Arc<Live>),
}

impl Proof {
    pub(crate) fn identity(&self) -> Option<&Arc<Live>> {
        match self {
            Self::Secret(_) => None,
            Self::Certificate(live) => Some(live),
        }
    }
}

impl From<&Place> for HubUrl {
    fn from(place: &Place) -> Self {
        Self { scheme: Scheme::Mqtts, host: place.host.clone(), port: place.mqtts_port }
    }
}

/// Connects, and connects again, until told to stop; then says goodbye.
pub(crate) async fn run(
    account: Account,
    clock: Clock,
    outbox: outbox::Handle,
    metrics: Arc<Metrics>,
    mut stop: Stop,
) {
    let mut patience = Patience::default();
    if let Proof::Certificate(live) = &account.proof {
        // A certificate that has ended is renewed first. Should that hang, the hub is asked all the same.
        select! {
            _ = time::timeout(RENEWAL, live.settled()) => {}
            () = stop.wanted() => return,
        }
    }
    while !stop.is_wanted() {
        let started = clock.now().up;
        let end = session::run(&account, &outbox, &metrics, &mut stop).await;
        metrics.connected.set(0.0);
        let lasted = clock.now().up.saturating_sub(started);
        match end {
            Ok(()) => return info!(hub = %account.hub, "said goodbye to the hub"),
            Err(session::End::Outdated) => {
                info!(hub = %account.hub, "connecting again with the renewed certificate");
            }
            Err(error) => {
                metrics.connect_failures.increment(1);
                let pause = clock::jitter(patience.pause(error.was_open() && lasted >= PROVED));
                warn!(hub = %account.hub, again_in = ?pause, "not connected: {error}");
                select! {
                    () = time::sleep(pause) => {}
                    () = stop.wanted() => return,
                }
            }
        }
    }
}

/// The pause before the next attempt.
#[derive(Debug, Default)]
struct Patience {
    failures: u32,
}

impl Patience {
    fn pause(&mut self, proved: bool) -> Duration {
        if proved {
            self.failures = 0;
        }
        let pause = RETRY_FIRST.saturating_mul(2_u32.saturating_pow(self.failures)).min(RETRY_LAST);
        self.failures = self.failures.saturating_add(1);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hub_urls_round_trip() {
        for (text, host, port) in [
            ("mqtt://127.0.0.1:1883", "127.0.0.1", 1883),
            ("mqtt://hub.example:2000", "hub.example", 2000),
            ("mqtt://[::1]:7", "::1", 7),
            ("mqtts://hub.example:8884", "hub.example", 8884),
        ] {
            let url: HubUrl = text.parse().unwrap();
            assert_eq!((url.host.as_str(), url.port), (host, port));
            assert_eq!(url.to_string(), text);
        }
        assert_eq!("mqtt://hub/".parse::<HubUrl>().unwrap().port, MQTT_PORT);
        assert_eq!("mqtts://hub".parse::<HubUrl>().unwrap().port, MQTTS_PORT);
        for bad in [
            "",
            "hub:1883",
            "http://hub",
            "mqtt://",
            "mqtt://:1",
            "mqtt://a:b",
            "mqtt://[::1]7",
            "mqtt://a/b",
        ] {
            assert!(bad.parse::<HubUrl>().is_err(), "{bad}");
        }
    }

    #[test]
    fn pauses_grow_to_a_minute_and_start_over_after_a_success() {
        let mut patience = Patience::default();
        let pauses: Vec<_> = (0..8).map(|_| patience.pause(false).as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(patience.pause(true), RETRY_FIRST);
        assert_eq!(patience.pause(false), RETRY_FIRST * 2);
    }

    #[test]
    fn secrets_stay_out_of_logs() {
        assert_eq!(format!("{:?}", Secret("hunter2".into())), "Secret(…)");
    }
}
