//! Configuration of third-party tools, to be pasted: host, port, CA, login and topics filled in. Pure.
//!
//! The hub's certificate carries a fixed name; a tool that can be told which name to expect needs no DNS. One that
//! cannot checks the host it dials, and is warned when the certificate has no such name.

use std::path::PathBuf;

use clap::ValueEnum;
use fleet_schemas::{enrol::HUB_NAME, topic};
use serde_json::json;
use sha2::{Digest as _, Sha256};

/// A tool that we know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Preset {
    /// A flow to import
    NodeRed,
    /// An input for telegraf.conf
    Telegraf,
    /// Steps for its MQTT integration
    HomeAssistant,
    /// A command for `mosquitto_sub`, and a bridge for mosquitto.conf
    Mosquitto,
}

/// What a tool logs in with.
#[derive(Debug, Clone)]
pub(super) enum Login {
    /// Password.
    Password(String),
    /// Files.
    Certificate {
        /// The certificate.
        file: PathBuf,
        /// Its key.
        key: PathBuf,
    },
}

/// What is filled in.
#[derive(Debug, Clone)]
pub(super) struct Given {
    /// Where the hub is.
    pub host: String,
    /// Its port of MQTT over TLS.
    pub port: u16,
    /// Whether the hub's certificate has that host among its names.
    pub named: bool,
    /// The user name.
    pub user: String,
    /// The rest of it.
    pub login: Login,
    /// What it may read.
    pub read: Vec<String>,
    /// The CAs to trust, PEM.
    pub ca: String,
}

impl Preset {
    /// What it reads unless told otherwise.
    #[must_use]
    pub(super) fn read(self) -> Vec<String> {
        let hub = |what: &str| topic::ALL_HUB.replace('#', what);
        match self {
            Self::NodeRed | Self::Mosquitto => vec![topic::ALL_HUB.to_owned()],
            Self::Telegraf => vec![hub("samples/+")],
            // Its own discovery topics, and those that the discovered entities follow.
            Self::HomeAssistant => vec![hub("node/+"), hub("latest/+"), "homeassistant/#".to_owned()],
        }
    }

    /// What it writes unless told otherwise.
    #[must_use]
    pub(super) fn write(self) -> Vec<String> {
        match self {
            Self::NodeRed | Self::Mosquitto | Self::Telegraf => Vec::new(),
            Self::HomeAssistant => vec!["homeassistant/status".to_owned()],
        }
    }

    /// The text to paste.
    #[must_use]
    pub(super) fn text(self, given: &Given) -> String {
        match self {
            Self::NodeRed => node_red(given),
            Self::Telegraf => telegraf(given),
            Self::HomeAssistant => home_assistant(given),
            Self::Mosquitto => mosquitto(given),
        }
    }
}

impl Given {
    fn host_port(&self) -> String {
        super::joined(&(self.host.clone(), self.port))
    }

    /// What a tool that checks the host it dials has to be warned of, as a comment.
    fn warning(&self) -> String {
        if self.named {
            return String::new();
        }
        format!(
            "# The hub's certificate has no name {0:?}: put names = [{0:?}] under [listen] in the hub's fleet.toml and\n\
             # restart it, or the tool will refuse it.\n",
            self.host
        )
    }
}

/// A file as a command that makes it.
fn heredoc(path: &str, text: &str) -> String {
    format!("cat > {path} <<'END'\n{}\nEND\n", text.trim_end())
}

/// A word for a shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// A string of TOML (basic strings are JSON's but for a few escapes that do not occur).
fn string(text: &str) -> String {
    json!(text).to_string()
}

fn node_red(given: &Given) -> String {
    let id = |part: &str| {
        let digest = Sha256::digest(format!("{}/{part}", given.user));
        digest[..8].iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    };
    let (tab, tls, broker, debug) = (id("tab"), id("tls"), id("broker"), id("debug"));
    let mut trust = json!({
        "id": tls, "type": "tls-config", "name": "Fleet CA", "cert": "", "key": "", "ca": "", "certname": "",
        "keyname": "", "caname": "fleet-ca.pem", "servername": HUB_NAME, "verifyservercert": true,
        "credentials": { "cadata": given.ca },
    });
    let mut hub = json!({
        "id": broker, "type": "mqtt-broker", "name": "Fleet", "broker": given.host,
        "port": given.port.to_string(), "tls": tls, "clientid": "", "autoConnect": true, "usetls": true,
        "protocolVersion": "5", "keepalive": "60", "cleansession": true, "autoUnsubscribe": true,
    });
    match &given.login {
        Login::Password(password) => hub["credentials"] = json!({ "user": given.user, "password": password }),
        // Node-RED takes either files or data, for all three.
        Login::Certificate { file, key } => {
            trust["cert"] = json!(file);
            trust["key"] = json!(key);
            trust["ca"] = json!(file.with_file_name("ca.crt"));
            trust["credentials"] = json!({});
        }
    }
    let mut flow = vec![json!({ "id": tab, "type": "tab", "label": "Fleet" }), trust, hub];
    for (at, filter) in given.read.iter().enumerate() {
        flow.push(json!({
            "id": id(filter), "type": "mqtt in", "z": tab, "name": "", "topic": filter, "qos": "0",
            "datatype": "auto-detect", "broker": broker, "nl": false, "rap": true, "rh": 0, "inputs": 0,
            "x": 200, "y": 80 + 60 * at, "wires": [[debug]],
        }));
    }
    flow.push(json!({
        "id": debug, "type": "debug", "z": tab, "name": "", "active": true, "tosidebar": true,
        "complete": "payload", "targetType": "msg", "x": 480, "y": 80, "wires": [],
    }));
    super::super::output::json(&flow)
}

fn telegraf(given: &Given) -> String {
    let ca = "/etc/telegraf/fleet-ca.pem";
    let topics: Vec<_> = given.read.iter().map(|filter| string(filter)).collect();
    let login = match &given.login {
        Login::Password(password) => {
            format!("  username = {}\n  password = {}\n", string(&given.user), string(password))
        }
        Login::Certificate { file, key } => {
            let path = |path: &PathBuf| string(&path.display().to_string());
            format!("  tls_cert = {}\n  tls_key = {}\n", path(file), path(key))
        }
    };
    let samples = topic::ALL_HUB.replace('#', "samples/+");
    let conf = format!(
        "[[inputs.mqtt_consumer]]\n  servers = [{server}]\n  topics = [{topics}]\n  client_id = {user}\n{login}  \
         tls_ca = {ca}\n  tls_server_name = {name}\n  topic_tag = \"\"\n  data_format = \"json_v2\"\n\
         \n  [[inputs.mqtt_consumer.topic_parsing]]\n    topic = {samples}\n    tags = \"_/_/_/_/node\"\n\
         \n  [[inputs.mqtt_consumer.json_v2]]\n    measurement_name = \"fleet\"\n\
         \n    [[inputs.mqtt_consumer.json_v2.object]]\n      path = \"@this\"\n      timestamp_key = \"time_ms\"\n      \
         timestamp_format = \"unix_ms\"\n      tags = [\"device\", \"metric\", \"unit\"]\n      excluded_keys = [\"late\"]\n",
        server = string(&format!("ssl://{}", given.host_port())),
        topics = topics.join(", "),
        user = string(&format!("telegraf-{}", given.user)),
        ca = string(ca),
        name = string(HUB_NAME),
        samples = string(&samples),
    );
    let file = "/etc/telegraf/telegraf.d/fleet.conf";
    format!("{}\n{}", heredoc(ca, &given.ca), heredoc(file, &conf))
}

fn home_assistant(given: &Given) -> String {
    let login = match &given.login {
        Login::Password(password) => format!("   Username     {}\n   Password     {password}\n", given.user),
        Login::Certificate { file, key } => {
            format!("   Use a client certificate: on; upload {} and {}\n", file.display(), key.display())
        }
    };
    format!(
        "# 1. Save the CA where your browser can upload it:\n{ca}\n\
         # 2. In Home Assistant: Settings, Devices & services, Add integration, MQTT:\n   Broker       {host}\n   \
         Port         {port}\n{login}   Advanced options: Broker certificate validation: Custom, upload fleet-ca.pem\n{warning}\n\
         # 3. Its birth message stays homeassistant/status, its discovery prefix homeassistant.\n\
         # 4. Let the hub announce its nodes: enabled = true under [home_assistant] in fleet.toml, or\n\
         #    fleet hub --home-assistant\n",
        ca = heredoc("fleet-ca.pem", &given.ca),
        host = given.host,
        port = given.port,
        warning = given.warning(),
    )
}

fn mosquitto(given: &Given) -> String {
    let ca = "fleet-ca.pem";
    let (flags, bridge) = match &given.login {
        Login::Password(password) => (
            format!("-u {} -P {}", quoted(&given.user), quoted(password)),
            format!("# remote_username {}\n# remote_password {password}\n", given.user),
        ),
        Login::Certificate { file, key } => (
            format!(
                "--cert {} --key {}",
                quoted(&file.display().to_string()),
                quoted(&key.display().to_string())
            ),
            format!("# bridge_certfile {}\n# bridge_keyfile {}\n", file.display(), key.display()),
        ),
    };
    let topics: Vec<_> = given.read.iter().map(|filter| format!("-t {}", quoted(filter))).collect();
    let taken: String = given.read.iter().map(|filter| format!("# topic {filter} in 0\n")).collect();
    format!(
        "{file}{warning}\nmosquitto_sub -h {host} -p {port} --cafile {ca} {flags} {topics} -v\n\n\
         # The same into a mosquitto of your own, in its mosquitto.conf:\n# connection fleet\n# address {address}\n\
         # bridge_cafile /etc/mosquitto/{ca}\n{bridge}# remote_clientid {user}-bridge\n# cleansession true\n\
         # try_private false\n# notifications false\n{taken}",
        file = heredoc(ca, &given.ca),
        warning = given.warning(),
        host = given.host,
        port = given.port,
        topics = topics.join(" "),
        address = given.host_port(),
        user = given.user,
    )
}

#[cfg(test)]
mod tests;
