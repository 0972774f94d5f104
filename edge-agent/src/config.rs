//! The agent's configuration: `agent.toml`, then `FLEET_*` variables, then flags, in growing strength.
//!
//! Owns how the sources are joined and checked. Each section belongs to the module it configures; nothing is opened
//! or bound here.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use fleet_schemas::{NodeId, id::IdError, limits};
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::{
    api, clock,
    collect::{driver, file, scrape, system},
    commands, desired, devices,
    identity::join::{WishedId, host_part},
    log, logs, mqtt, outbox, rules, update, upload,
};

/// The file's name in the data folder.
pub const FILE: &str = "agent.toml";
/// Most drivers: each is a process.
const DRIVERS: usize = 64;
/// Shortest heartbeat, so that a typing error does not drown the hub.
const HEARTBEAT_FLOOR: Duration = Duration::from_millis(200);

/// Everything the agent can be told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The data folder: outbox, identity, `agent.toml`.
    pub data: PathBuf,
    /// Who the node is.
    pub node: Node,
    /// How the hub is reached.
    pub hub: mqtt::Config,
    /// The edge API.
    pub api: api::Config,
    /// The outbox.
    pub outbox: outbox::Config,
    /// How the clock is judged.
    pub clock: clock::Config,
    /// The machine's figures.
    pub system: system::Config,
    /// Which programs may be run.
    pub commands: commands::Config,
    /// What documents of the hub may do.
    pub desired: desired::Config,
    /// How much is logged.
    pub log: log::Config,
    /// Whose logs are kept.
    pub logs: logs::Config,
    /// When records go up, and how many bytes they may take.
    pub upload: upload::Config,
    /// Local rules and their outputs.
    pub rules: rules::Config,
    /// The devices behind the node.
    pub devices: devices::Config,
    /// How releases are taken.
    pub update: update::Config,
    /// Programs that print a JSON object per line.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub driver: Vec<driver::Config>,
    /// Files that hold figures.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub file: Vec<file::Config>,
    /// Local exporters.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub scrape: Vec<scrape::Config>,
}

/// Who the node is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Node {
    /// Its id, never to change; absent: as it joined, else the host's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<NodeId>,
    /// A name for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What kind of machine.
    pub kind: String,
    /// What it can do.
    pub capabilities: Vec<String>,
    /// How often it sends a heartbeat, in seconds.
    #[serde(rename = "heartbeat_s", with = "seconds")]
    pub heartbeat: Duration,
}

impl Default for Node {
    fn default() -> Self {
        Self {
            id: None,
            name: None,
            kind: "picclaw".to_owned(),
            capabilities: vec!["sensor".to_owned()],
            heartbeat: Duration::from_secs(30),
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data: PathBuf::from("./fleet-agent-data"),
            node: Node::default(),
            hub: mqtt::Config::default(),
            api: api::Config::default(),
            outbox: outbox::Config::default(),
            clock: clock::Config::default(),
            system: system::Config::default(),
            commands: commands::Config::default(),
            desired: desired::Config::default(),
            log: log::Config::default(),
            logs: logs::Config::default(),
            upload: upload::Config::default(),
            rules: rules::Config::default(),
            devices: devices::Config::default(),
            update: update::Config::default(),
            driver: Vec::new(),
            file: Vec::new(),
            scrape: Vec::new(),
        }
    }
}

/// What flags say; absent is left to weaker sources.
#[derive(Debug, Clone, Default)]
pub struct Flags {
    /// `--data`.
    pub data: Option<PathBuf>,
    /// `--config`: another file than `agent.toml` in the data folder.
    pub file: Option<PathBuf>,
    /// `--node`.
    pub node: Option<NodeId>,
    /// `--hub`.
    pub hub: Option<mqtt::HubUrl>,
    /// `--api`.
    pub api: Option<std::net::SocketAddr>,
    /// `--secret-file`.
    pub secret_file: Option<PathBuf>,
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
    #[error("{origin} is wrong: {message}")]
    Syntax {
        /// The file, or where else it came from.
        origin: String,
        /// What and where.
        message: String,
    },
    /// A variable names no setting.
    #[error("the variable {0} names no setting; `fleet-agent run --print-config` lists them")]
    Variable(String),
    /// A section that cannot be as it is.
    #[error("[{section}]{}{name} is wrong: {why}", if name.is_empty() { "" } else { " " })]
    Section {
        /// The section.
        section: &'static str,
        /// Which of them; empty where there is one.
        name: String,
        /// What is wrong.
        why: String,
    },
    /// A value out of range.
    #[error("{key} is {found}; {allowed}")]
    Range {
        /// The setting.
        key: &'static str,
        /// What was found.
        found: String,
        /// What would be allowed.
        allowed: &'static str,
    },
    /// The host's name makes no node id.
    #[error(
        "the host's name {name:?} makes no node id ({source}); give one with --node, or as `id` under [node]"
    )]
    Host {
        /// The name.
        name: String,
        /// Why not.
        source: IdError,
    },
}

impl ConfigError {
    /// `[upload]` is wrong.
    pub(crate) fn upload(why: String) -> Self {
        Self::Section { section: "upload", name: String::new(), why }
    }
}

impl Config {
    /// Joins all sources. `variable` looks an environment variable up.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn load(flags: Flags, variables: &[(String, String)]) -> Result<Self, ConfigError> {
        let variable =
            |name: &str| variables.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
        let data = flags.data.or_else(|| variable("FLEET_DATA").map(PathBuf::from));
        let folder = data.clone().unwrap_or_else(|| Self::default().data);
        let named = flags.file.or_else(|| variable("FLEET_CONFIG").map(PathBuf::from));
        let mut table = read(named, &folder)?;
        overlay(&mut table, variables)?;
        let origin = || "the configuration".to_owned();
        let mut config = typed(&table)
            .map_err(|error| ConfigError::Syntax { origin: origin(), message: error.message().to_owned() })?;
        let wrong =
            |message: String| ConfigError::Syntax { origin: "a FLEET_* variable".to_owned(), message };
        let parsed = |name: &str| variable(name).filter(|text| !text.is_empty());
        if let Some(data) = data {
            config.data = data;
        }
        if let Some(text) = parsed("FLEET_NODE") {
            config.node.id = Some(NodeId::parse(&text).map_err(|error| wrong(error.to_string()))?);
        }
        if let Some(text) = parsed("FLEET_HUB") {
            config.hub.url = Some(text.parse().map_err(|error: mqtt::BadUrl| wrong(error.to_string()))?);
        }
        if let Some(text) = parsed("FLEET_API") {
            let bad = |_| wrong(format!("FLEET_API is {text:?}; write an address such as 127.0.0.1:9099"));
            config.api.listen = text.parse().map_err(bad)?;
        }
        config.hub.secret = parsed("FLEET_SECRET").map(mqtt::Secret);
        config.hub.secret_file = parsed("FLEET_SECRET_FILE").map(PathBuf::from).or(config.hub.secret_file);
        config.node.id = flags.node.or(config.node.id);
        config.hub.url = flags.hub.or(config.hub.url);
        config.api.listen = flags.api.unwrap_or(config.api.listen);
        if let Some(file) = flags.secret_file {
            // The flag is the strongest word on where the secret is.
            config.hub.secret_file = Some(file);
            config.hub.secret = None;
        }
        config.check()?;
        Ok(config)
    }

    /// Checks what types cannot.
    ///
    /// # Errors
    /// [`ConfigError::Range`].
    pub fn check(&self) -> Result<(), ConfigError> {
        let out = |key, found: &dyn std::fmt::Debug, allowed| {
            Err(ConfigError::Range { key, found: format!("{found:?}"), allowed })
        };
        let heartbeat = self.node.heartbeat;
        if heartbeat < HEARTBEAT_FLOOR || heartbeat > Duration::from_secs(86_400) {
            return out("node.heartbeat_s", &heartbeat, "it may be 0.2 to 86400 seconds");
        }
        let keep_alive = self.hub.keep_alive;
        if keep_alive < Duration::from_secs(1) || keep_alive > Duration::from_secs(3_600) {
            return out("hub.keep_alive_s", &keep_alive, "it may be 1 to 3600 seconds");
        }
        let trust = self.hub.trust;
        if trust < Duration::from_secs(1) || trust > Duration::from_secs(7 * 86_400) {
            return out("hub.trust_s", &trust, "it may be 1 to 604800 seconds");
        }
        if self.outbox.batch_samples == 0 || self.outbox.batch_samples > limits::BATCH_RECORDS {
            return out("outbox.batch_samples", &self.outbox.batch_samples, "it may be 1 to 10000");
        }
        if let Some(bytes) = self.outbox.quota_bytes.filter(|bytes| *bytes < outbox::QUOTA_LEAST) {
            return out("outbox.quota_bytes", &bytes, "it may be 1048576 (1 MiB) or more");
        }
        if self.outbox.upload < Duration::from_millis(100) {
            return out("outbox.upload_s", &self.outbox.upload, "it may be 0.1 seconds or more");
        }
        if !(1..=1_024).contains(&self.api.connections) {
            return out("api.connections", &self.api.connections, "it may be 1 to 1024");
        }
        if self.api.read < Duration::from_millis(10) {
            return out("api.read_s", &self.api.read, "it may be 0.01 seconds or more");
        }
        let probation = self.desired.probation;
        if probation < Duration::from_secs(1) || probation > Duration::from_secs(86_400) {
            return out("desired.probation_s", &probation, "it may be 1 to 86400 seconds");
        }
        if !log::is_level(&self.log.level) {
            let levels = "it may be off, error, warn, info, debug, trace, or a list with target=level";
            return out("log.level", &self.log.level, levels);
        }
        if self.driver.len() > DRIVERS {
            return out("driver", &self.driver.len(), "at most 64 may be listed");
        }
        for driver in &self.driver {
            if driver.name.is_empty() || driver.name.len() > limits::LABEL_BYTES {
                return out("driver.name", &driver.name, "it may have 1 to 63 bytes");
            }
            if driver.timeout.is_zero() || driver.every.is_some_and(|every| every.is_zero()) {
                return out(
                    "driver.timeout_s or driver.every_s",
                    &driver.name,
                    "they may be more than 0 seconds",
                );
            }
        }
        self.check_collectors()
    }

    fn check_collectors(&self) -> Result<(), ConfigError> {
        let wrong = |section, name: &str, why: String| {
            Err(ConfigError::Section { section, name: name.to_owned(), why })
        };
        for (section, count) in [
            ("file", self.file.len()),
            ("scrape", self.scrape.len()),
            ("rules", self.rules.files.len()),
            ("rules.program", self.rules.program.len()),
        ] {
            if count > DRIVERS {
                return wrong(section, "", format!("at most {DRIVERS} may be listed"));
            }
        }
        let both = |driver: &&driver::Config| driver.every.is_some() && driver.cron.is_some();
        if let Some(driver) = self.driver.iter().find(both) {
            return wrong("driver", &driver.name, "it has every_s and cron; choose one".to_owned());
        }
        if let Err(why) = self.upload.policy() {
            return wrong("upload", "", why);
        }
        if let Err(why) = self.update.check() {
            return wrong("update", "", why);
        }
        if let Err(why) = self.logs.check() {
            return wrong("logs", "", why);
        }
        if let Err(why) = self.devices.check() {
            return wrong("devices", "", why);
        }
        for file in &self.file {
            if let Err(why) = file.check() {
                return wrong("file", &file.path, why);
            }
        }
        for scrape in &self.scrape {
            if let Err(why) = scrape.check() {
                return wrong("scrape", &scrape.url.to_string(), why);
            }
        }
        Ok(())
    }

    /// The node's id: as configured, else the host's name in the grammar of node ids.
    ///
    /// # Errors
    /// [`ConfigError::Host`].
    pub fn node_id(&self) -> Result<NodeId, ConfigError> {
        if let Some(id) = &self.node.id {
            return Ok(id.clone());
        }
        let name = sysinfo::System::host_name().unwrap_or_default();
        NodeId::parse(&host_part(&name)).map_err(|source| ConfigError::Host { name, source })
    }

    /// The id to ask a hub for: as configured, else one of the host's name.
    #[must_use]
    pub fn wished_id(&self) -> WishedId {
        match &self.node.id {
            Some(id) => WishedId::Told(id.clone()),
            None => WishedId::OfHost(sysinfo::System::host_name().unwrap_or_default()),
        }
    }

    /// The configuration as `agent.toml`.
    #[must_use]
    pub fn print(&self) -> String {
        toml::to_string(self).expect("the configuration has only tables, texts, numbers and lists")
    }
}

/// The file: one that was named must be there, the default one may be missing.
fn read(named: Option<PathBuf>, folder: &Path) -> Result<Table, ConfigError> {
    let required = named.is_some();
    let path = named.unwrap_or_else(|| folder.join(FILE));
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound && !required => String::new(),
        Err(source) => return Err(ConfigError::Read { path, source }),
    };
    // Read as a whole first: here an error still knows its line.
    let wrong = |error: toml::de::Error| ConfigError::Syntax {
        origin: path.display().to_string(),
        message: error.to_string(),
    };
    toml::from_str::<Config>(&text).map_err(wrong)?;
    text.parse().map_err(wrong)
}

/// Through its text: the code that reads every section from a tree would be as large again as the one that reads text.
fn typed(table: &Table) -> Result<Config, toml::de::Error> {
    toml::from_str(&table.to_string())
}

/// Variables that have a place of their own, or belong to other programs of the fleet.
const OTHER_VARIABLES: [&str; 9] = [
    "FLEET_DATA",
    "FLEET_CONFIG",
    "FLEET_NODE",
    "FLEET_HUB",
    "FLEET_API",
    "FLEET_SECRET",
    "FLEET_SECRET_FILE",
    "FLEET_LOG",
    "FLEET_TOKEN",
];
/// The sections whose settings have variables: `FLEET_OUTBOX_UPLOAD_S` is `upload_s` under `[outbox]`.
const SECTIONS: [&str; 14] = [
    "node", "hub", "api", "outbox", "clock", "system", "commands", "desired", "devices", "log", "logs",
    "rules", "update", "upload",
];

/// Puts `FLEET_{SECTION}_{KEY}` over the file. The value is TOML where it reads as such, else text.
fn overlay(table: &mut Table, variables: &[(String, String)]) -> Result<(), ConfigError> {
    for (name, text) in variables {
        let Some(setting) = name.strip_prefix("FLEET_") else { continue };
        if OTHER_VARIABLES.contains(&name.as_str()) {
            continue;
        }
        let lower = setting.to_ascii_lowercase();
        let split = SECTIONS.iter().find_map(|section| {
            let key = lower.strip_prefix(section)?.strip_prefix('_')?;
            Some((*section, key.to_owned()))
        });
        // Other programs may have FLEET_ variables of their own.
        let Some((section, key)) = split else { continue };
        let value = toml::from_str::<Table>(&format!("value = {text}"))
            .ok()
            .and_then(|mut read| read.remove("value"))
            .unwrap_or_else(|| Value::String(text.clone()));
        let entry = table.entry(section).or_insert_with(|| Value::Table(Table::new()));
        let Value::Table(entry) = entry else { return Err(ConfigError::Variable(name.clone())) };
        entry.insert(key, value);
        if let Err(error) = typed(table) {
            let message = error.message().to_owned();
            return Err(ConfigError::Syntax { origin: format!("the variable {name}"), message });
        }
    }
    Ok(())
}

/// Durations as seconds, whole or with a fraction.
pub(crate) mod seconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(crate) fn serialize<S: Serializer>(span: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        if span.subsec_nanos() == 0 {
            serializer.serialize_u64(span.as_secs())
        } else {
            serializer.serialize_f64(span.as_secs_f64())
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        /// A TOML number.
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "it is no number of seconds")]
        enum Number {
            Whole(i64),
            Fraction(f64),
        }
        let seconds = match Number::deserialize(deserializer)? {
            Number::Whole(seconds) => seconds as f64,
            Number::Fraction(seconds) => seconds,
        };
        Duration::try_from_secs_f64(seconds).map_err(|_| de::Error::custom("not a duration in seconds"))
    }
}

/// The same, where there may be none.
pub(crate) mod optional_seconds {
    use std::time::Duration;

    use serde::{Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(
        span: &Option<Duration>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match span {
            Some(span) => super::seconds::serialize(span, serializer),
            None => serializer.serialize_none(),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Duration>, D::Error> {
        super::seconds::deserialize(deserializer).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn folder(text: &str) -> (tempfile::TempDir, Flags) {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(FILE), text).unwrap();
        let flags = Flags { data: Some(folder.path().to_owned()), ..Flags::default() };
        (folder, flags)
    }

    #[test]
    fn nothing_given_is_the_default() {
        let (_folder, flags) = folder("");
        let config = Config::load(flags, &[]).unwrap();
        assert_eq!(Config { data: Config::default().data, ..config }, Config::default());
    }

    #[test]
    fn flags_beat_variables_and_variables_beat_the_file() {
        let (_folder, flags) = folder(
            "[node]\nid = \"from-file\"\nname = \"File\"\n[hub]\nurl = \"mqtt://file:1\"\n[outbox]\nupload_s = 1.5",
        );
        let file = Config::load(flags.clone(), &[]).unwrap();
        assert_eq!(file.node.id.as_ref().unwrap().as_str(), "from-file");
        assert_eq!(file.outbox.upload, Duration::from_millis(1_500));
        let given = variables(&[
            ("FLEET_NODE", "from-env"),
            ("FLEET_HUB", "mqtt://env:2"),
            ("FLEET_OUTBOX_UPLOAD_S", "7"),
            ("FLEET_SYSTEM_INTERVAL_S", "0"),
            ("FLEET_NODE_NAME", "Env 7"),
            ("FLEET_SOMETHING_ELSE", "1"),
        ]);
        let env = Config::load(flags.clone(), &given).unwrap();
        assert_eq!(env.node.id.as_ref().unwrap().as_str(), "from-env");
        assert_eq!(env.node.name.as_deref(), Some("Env 7"));
        assert_eq!(env.hub.url.as_ref().unwrap().port, 2);
        assert_eq!(env.outbox.upload, Duration::from_secs(7));
        assert_eq!(env.system.interval, Duration::ZERO);
        let flags = Flags {
            node: Some(NodeId::parse("from-flag").unwrap()),
            hub: Some("mqtt://flag:3".parse().unwrap()),
            ..flags
        };
        let all = Config::load(flags, &given).unwrap();
        assert_eq!(all.node.id.as_ref().unwrap().as_str(), "from-flag");
        assert_eq!(all.hub.url.as_ref().unwrap().port, 3);
    }

    #[test]
    fn what_is_printed_reads_back_and_holds_no_secret() {
        let text =
            "[[driver]]\nname = \"t\"\nprogram = \"/bin/true\"\nevery_s = 60\n[clock]\ntrust = \"synced\"";
        let (_folder, flags) = folder(text);
        let config = Config::load(flags, &variables(&[("FLEET_SECRET", "hunter2")])).unwrap();
        assert_eq!(config.driver[0].every, Some(Duration::from_secs(60)));
        let printed = config.print();
        assert!(!printed.contains("hunter2"));
        let mut read: Config = toml::from_str(&printed).unwrap();
        read.hub.secret = config.hub.secret.clone();
        assert_eq!(read, config);
    }

    #[test]
    fn the_files_of_the_package_show_what_is_used_anyway() {
        let text = include_str!("../../debian/etc/agent.toml");
        let expected = |mut config: Config| {
            config.commands.file = None;
            assert_eq!(config, Config::default());
        };
        expected(toml::from_str(text).unwrap());
        // A line that begins with # and a word is a setting; prose has a space between.
        let setting = |line: &str| match line.strip_prefix('#') {
            Some(rest) => (!rest.starts_with(' ') && !rest.is_empty()).then(|| rest.to_owned()),
            None => Some(line.to_owned()),
        };
        let shown: Vec<_> = text.lines().filter_map(setting).collect();
        assert!(shown.len() > 10, "{shown:?}");
        expected(toml::from_str(&shown.join("\n")).unwrap());
        let table: Table = include_str!("../../debian/etc/commands.toml").parse().unwrap();
        assert!(table.is_empty(), "nothing is allowed unless somebody says so");
    }

    #[test]
    fn mistakes_are_named() {
        for (text, hint) in [
            ("[node]\nidd = \"x\"", "idd"),
            ("[node]\nid = \"Not Valid\"", "node id"),
            ("[hub]\nurl = \"http://x\"", "mqtt://host:port"),
            ("[hub]\ntrust_s = 0", "hub.trust_s"),
            ("[hub]\nkeep_alive_s = 0", "hub.keep_alive_s"),
            ("[outbox]\nbatch_samples = 0", "outbox.batch_samples"),
            ("[outbox]\nupload_s = -1", "duration"),
            ("[[driver]]\nname = \"a\"", "program"),
            ("[devices]\nlisten = \"0.0.0.0:1883\"\nopen = true", "private network"),
            ("[devices]\nsessions = 0", "1 to 1024"),
            ("nonsense", "agent.toml"),
        ] {
            let (_folder, flags) = folder(text);
            let error = Config::load(flags, &[]).unwrap_err().to_string();
            assert!(error.contains(hint), "{text:?}: {error}");
        }
        let (_folder, flags) = folder("");
        let error = Config::load(flags.clone(), &variables(&[("FLEET_OUTBOX_SIZE", "1")])).unwrap_err();
        assert!(error.to_string().contains("FLEET_OUTBOX_SIZE"), "{error}");
        let missing = Flags { file: Some("/nonexistent.toml".into()), ..flags };
        assert!(matches!(Config::load(missing, &[]), Err(ConfigError::Read { .. })));
    }
}
