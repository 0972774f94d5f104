//! The hub's configuration: defaults, `fleet.toml` in the data folder (or another file), `FLEET_*` variables, flags, in
//! that order of growing strength. Nothing binds or opens while it is read.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use fleet_schemas::{enrol, topic::check_form};
use serde::{Deserialize, Serialize};

use crate::{alerts, backup::trail, hub, mirror, notify, store::telemetry};

/// Name of the file in the data folder.
pub const FILE: &str = "fleet.toml";
/// The data folder unless another is named.
pub const DATA: &str = "./fleet-data";
/// The data folder of a hub that came as a package.
pub const PACKAGED: &str = "/var/lib/clawland-fleet";
/// Longest prefix of discovery: a topic below it has two names of 120 bytes at most.
const PREFIX_BYTES: usize = 64;
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Everything the hub can be told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The data folder.
    #[serde(skip)]
    pub data: PathBuf,
    /// The file of revocations; absent: `revocations.jsonl` in the data folder. On another disk it survives this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revocations: Option<PathBuf>,
    /// Where to listen.
    pub listen: Listen,
    /// How much is kept, for how long.
    pub keep: Keep,
    /// What Home Assistant is told.
    pub home_assistant: HomeAssistant,
    /// What clients may take.
    pub limits: Limits,
    /// What raises alerts, and who is told.
    pub alerts: Alerts,
    /// Whether programs of this machine may look at the API without a token; for the demo.
    #[serde(skip)]
    pub anonymous_viewer: bool,
}

/// Where to listen; port 0 picks a free one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Listen {
    /// Operators' HTTP.
    pub http: SocketAddr,
    /// Whether that is HTTPS, with the hub's own certificate.
    pub http_tls: bool,
    /// Plain MQTT, loopback only, unless the next says otherwise.
    pub mqtt: SocketAddr,
    /// Lets plain MQTT listen anywhere: passwords and all that is said cross the network for everybody to read.
    pub plain_mqtt_without_encryption_on_every_network: bool,
    /// MQTT over TLS.
    pub mqtts: SocketAddr,
    /// HTTPS for nodes: enrolment, renewal, and field dialects.
    pub node_https: SocketAddr,
    /// Field dialects without TLS, for boards that cannot; absent: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub legacy_http: Option<SocketAddr>,
    /// Names and addresses by which tools know this hub; they go into its certificate. Nodes need none.
    pub names: Vec<String>,
    /// Most MQTT sessions of nodes.
    pub sessions: usize,
}

/// What raises alerts, and who is told.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Alerts {
    /// The file of rules; absent: `rules.yaml` in the data folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rules: Option<PathBuf>,
    /// Who is told.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub receivers: Vec<notify::Receiver>,
}

/// What clients may take.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Most connections from one address (IPv6: one /64) to MQTT over TLS; many nodes may share a carrier's.
    pub mqtts_per_address: usize,
    /// Most connections to MQTT that have no session yet.
    pub handshakes: usize,
    /// The same from one address.
    pub handshakes_per_address: usize,
    /// Messages that a node may publish a second; 0: any number.
    pub node_messages_per_s: u64,
    /// Bytes that a node may publish a second; 0: any number.
    pub node_bytes_per_s: u64,
    /// Most sessions of tools.
    pub tools: usize,
    /// Most filters of one session of a tool.
    pub tool_filters: usize,
    /// Bytes that may wait for all tools that read too slowly.
    pub tool_queue_bytes: usize,
    /// Topics on which tools may have something retained.
    pub retained_topics: usize,
    /// Bytes that tools may have retained.
    pub retained_bytes: usize,
}

/// What Home Assistant is told, over MQTT.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HomeAssistant {
    /// Whether nodes and devices are announced to it.
    pub enabled: bool,
    /// The prefix of its discovery.
    pub prefix: String,
}

/// How much is kept, for how long.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Keep {
    /// Days that samples and events are kept.
    pub days: u32,
    /// Bytes that telemetry may take; absent: 80 % of the filesystem.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_disk_bytes: Option<u64>,
    /// Bytes of samples that are kept in the order of their arrival for whoever follows the feed,
    pub feed_bytes: u64,
    /// and for how many hours.
    pub feed_hours: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data: PathBuf::from(DATA),
            revocations: None,
            listen: Listen::default(),
            keep: Keep::default(),
            home_assistant: HomeAssistant::default(),
            limits: Limits::default(),
            alerts: Alerts::default(),
            anonymous_viewer: false,
        }
    }
}

impl Default for Listen {
    fn default() -> Self {
        Self {
            http: SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)),
            http_tls: false,
            mqtt: SocketAddr::from((Ipv4Addr::LOCALHOST, 1883)),
            plain_mqtt_without_encryption_on_every_network: false,
            mqtts: SocketAddr::from((Ipv4Addr::UNSPECIFIED, enrol::MQTTS_PORT)),
            node_https: SocketAddr::from((Ipv4Addr::UNSPECIFIED, enrol::NODE_HTTPS_PORT)),
            legacy_http: None,
            names: Vec::new(),
            sessions: fleet_broker::Config::default().max_connections,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        let gate = fleet_broker::Config::default();
        Self {
            mqtts_per_address: gate.max_tls_connections_per_address,
            handshakes: gate.max_handshakes,
            handshakes_per_address: gate.max_handshakes_per_address,
            node_messages_per_s: gate.publish_limit.messages_per_s,
            node_bytes_per_s: gate.publish_limit.bytes_per_s,
            tools: gate.max_tools,
            tool_filters: gate.max_tool_filters,
            tool_queue_bytes: gate.tool_budget_bytes,
            retained_topics: gate.max_retained_topics,
            retained_bytes: gate.retained_budget_bytes,
        }
    }
}

impl Default for HomeAssistant {
    fn default() -> Self {
        Self { enabled: false, prefix: "homeassistant".to_owned() }
    }
}

impl Default for Keep {
    fn default() -> Self {
        let telemetry = telemetry::Config::default();
        let feed_hours = u32::try_from(telemetry.feed_age.as_secs() / 3600).unwrap_or(u32::MAX);
        Self { days: 90, max_disk_bytes: None, feed_bytes: telemetry.feed_bytes, feed_hours }
    }
}

/// What flags and variables say; absent leaves the weaker sources alone.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// `--config`: another file than `fleet.toml` in the data folder, which must be there.
    pub file: Option<PathBuf>,
    /// `--http`.
    pub http: Option<SocketAddr>,
    /// `--http-tls`.
    pub http_tls: bool,
    /// `--mqtt`.
    pub mqtt: Option<SocketAddr>,
    /// `--plain-mqtt-without-encryption-on-every-network`.
    pub plain_anywhere: bool,
    /// `--mqtts`.
    pub mqtts: Option<SocketAddr>,
    /// `--node-https`.
    pub node_https: Option<SocketAddr>,
    /// `--legacy-http`.
    pub legacy_http: Option<SocketAddr>,
    /// `--rules`.
    pub rules: Option<PathBuf>,
    /// `--revocations`.
    pub revocations: Option<PathBuf>,
}

/// The configuration cannot be used. The text fits after "failed to start: ".
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{path} cannot be read: {source}; create it, or leave --config away")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Not TOML, or not ours.
    #[error("{path} is wrong: {message}; `fleet hub --print-config` shows what is known")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Line, column and reason.
        message: String,
    },
    /// A value that makes no sense.
    #[error("{key} is wrong: {why}")]
    Value {
        /// Which.
        key: &'static str,
        /// Why.
        why: String,
    },
}

impl Config {
    /// Reads the file that was named, or the one of the data folder if there is one, and applies what is stronger.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn load(data: &Path, overrides: &Overrides) -> Result<Self, ConfigError> {
        let path = overrides.file.clone().unwrap_or_else(|| data.join(FILE));
        let mut config = match std::fs::read_to_string(&path) {
            Ok(text) => toml::from_str(&text).map_err(|error| ConfigError::Syntax {
                path,
                message: error.to_string().trim().to_owned(),
            })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound && overrides.file.is_none() => {
                Self::default()
            }
            Err(source) => return Err(ConfigError::Read { path, source }),
        };
        config.data = data.to_owned();
        let listen = &mut config.listen;
        listen.http = overrides.http.unwrap_or(listen.http);
        listen.http_tls |= overrides.http_tls;
        listen.mqtt = overrides.mqtt.unwrap_or(listen.mqtt);
        listen.plain_mqtt_without_encryption_on_every_network |= overrides.plain_anywhere;
        listen.mqtts = overrides.mqtts.unwrap_or(listen.mqtts);
        listen.node_https = overrides.node_https.unwrap_or(listen.node_https);
        listen.legacy_http = overrides.legacy_http.or(listen.legacy_http);
        config.alerts.rules = overrides.rules.clone().or(config.alerts.rules);
        config.revocations = overrides.revocations.clone().or(config.revocations);
        notify::check(&config.alerts.receivers)
            .map_err(|why| ConfigError::Value { key: "alerts.receivers", why })?;
        if config.keep.days == 0 {
            let why = "at least one day is kept".to_owned();
            return Err(ConfigError::Value { key: "keep.days", why });
        }
        let prefix = &config.home_assistant.prefix;
        let below = prefix.split('/').next() == Some("fleet");
        if check_form(prefix).is_err()
            || prefix.contains(['+', '#', '$'])
            || prefix.len() > PREFIX_BYTES
            || below
        {
            let why = format!("{prefix:?} is no topic outside fleet/ of at most {PREFIX_BYTES} bytes");
            return Err(ConfigError::Value { key: "home_assistant.prefix", why });
        }
        Ok(config)
    }

    /// The configuration as a `fleet.toml`.
    #[must_use]
    pub fn print(&self) -> String {
        let text = toml::to_string_pretty(self).expect("our configuration has TOML's shapes");
        format!("# data folder: {}\n{text}", self.data.display())
    }

    /// What the store is told.
    #[must_use]
    pub fn store(&self) -> hub::Config {
        let retain = DAY * self.keep.days;
        let telemetry = telemetry::Config {
            retain,
            max_disk_bytes: self.keep.max_disk_bytes,
            feed_bytes: self.keep.feed_bytes,
            feed_age: Duration::from_secs(3600) * self.keep.feed_hours,
            ..telemetry::Config::default()
        };
        hub::Config { telemetry, retain_events: retain }
    }

    /// The file of revocations.
    #[must_use]
    pub fn trail(&self) -> PathBuf {
        self.revocations.clone().unwrap_or_else(|| self.data.join(trail::FILE))
    }

    /// What the mirror is told.
    #[must_use]
    pub fn mirror(&self) -> mirror::Config {
        let HomeAssistant { enabled, prefix } = &self.home_assistant;
        mirror::Config { home_assistant: enabled.then(|| prefix.clone()) }
    }

    /// What the engine of alerts is told.
    #[must_use]
    pub fn alerts(&self, board: &notify::Board) -> alerts::Config {
        let Alerts { rules, .. } = &self.alerts;
        alerts::Config { data: self.data.clone(), rules: rules.clone(), routes: board.routes() }
    }

    /// What the broker is told.
    #[must_use]
    pub fn broker(&self, keys: Arc<dyn fleet_broker::Keys>) -> fleet_broker::Config {
        let Limits { node_messages_per_s, node_bytes_per_s, .. } = self.limits;
        let gate = fleet_broker::Config::default();
        fleet_broker::Config {
            mqtt: self.listen.mqtt,
            plain_anywhere: self.listen.plain_mqtt_without_encryption_on_every_network,
            mqtts: Some(fleet_broker::Mqtts { addr: self.listen.mqtts, keys }),
            max_connections: self.listen.sessions,
            max_tls_connections_per_address: self.limits.mqtts_per_address,
            max_handshakes: self.limits.handshakes,
            max_handshakes_per_address: self.limits.handshakes_per_address,
            publish_limit: fleet_broker::PublishLimit {
                messages_per_s: node_messages_per_s,
                bytes_per_s: node_bytes_per_s,
                ..gate.publish_limit
            },
            max_tools: self.limits.tools,
            max_tool_filters: self.limits.tool_filters,
            tool_budget_bytes: self.limits.tool_queue_bytes,
            max_retained_topics: self.limits.retained_topics,
            retained_budget_bytes: self.limits.retained_bytes,
            ..gate
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("fleet-config-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[test]
    fn flags_are_stronger_than_the_file_and_the_file_than_defaults() {
        let data = folder("order");
        std::fs::write(data.join(FILE), "[listen]\nhttp = \"127.0.0.1:1\"\nmqtt = \"127.0.0.1:2\"\n")
            .unwrap();
        let overrides = Overrides { mqtt: Some("127.0.0.1:3".parse().unwrap()), ..Overrides::default() };
        let config = Config::load(&data, &overrides).unwrap();
        assert_eq!((config.listen.http.port(), config.listen.mqtt.port()), (1, 3));
        assert_eq!(config.keep, Keep::default());
        assert_eq!(config.listen.sessions, Listen::default().sessions);
        std::fs::remove_dir_all(data).unwrap();
    }

    #[test]
    fn what_is_printed_can_be_read_back() {
        let data = folder("print");
        let config = Config::load(&data, &Overrides::default()).unwrap();
        std::fs::write(data.join(FILE), config.print()).unwrap();
        assert_eq!(Config::load(&data, &Overrides::default()).unwrap(), config);
        std::fs::remove_dir_all(data).unwrap();
    }

    #[test]
    fn the_file_of_the_package_shows_what_is_used_anyway() {
        let text = include_str!("../../debian/etc/fleet.toml");
        assert_eq!(toml::from_str::<Config>(text).unwrap(), Config::default());
        // A line that begins with # and a word is a setting; prose has a space between.
        let setting =
            |line: &str| line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).map(str::to_owned);
        let shown: Vec<_> = text.lines().filter_map(setting).collect();
        assert!(shown.len() > 10, "{shown:?}");
        assert_eq!(toml::from_str::<Config>(&shown.join("\n")).unwrap(), Config::default());
    }

    #[test]
    fn a_file_that_is_named_must_be_there() {
        let data = folder("named");
        let overrides = |file: &str| Overrides { file: Some(data.join(file)), ..Overrides::default() };
        std::fs::write(data.join("other.toml"), "[keep]\ndays = 7\n").unwrap();
        assert_eq!(Config::load(&data, &overrides("other.toml")).unwrap().keep.days, 7);
        let error = Config::load(&data, &overrides("missing.toml")).unwrap_err().to_string();
        assert!(error.contains("missing.toml") && error.contains("--config"), "{error}");
        std::fs::remove_dir_all(data).unwrap();
    }

    #[test]
    fn a_wrong_key_is_named_with_its_line() {
        let data = folder("wrong");
        std::fs::write(data.join(FILE), "[listen]\nhtpp = \"127.0.0.1:1\"\n").unwrap();
        let error = Config::load(&data, &Overrides::default()).unwrap_err().to_string();
        assert!(error.contains("line 2") && error.contains("htpp"), "{error}");
        std::fs::remove_dir_all(data).unwrap();
    }
}
