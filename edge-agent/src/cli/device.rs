//! `fleet-agent device`: the devices behind the node, their passwords, and who may speak for others.
//!
//! Passwords lie in a file of the data folder, so they can be given while the agent is stopped; the rest of a device is
//! the running agent's.

use std::collections::BTreeMap;

use anyhow::{Context as _, anyhow};
use clap::{Args, Subcommand};
use comfy_table::{Table, presets};
use fleet_edge_agent::{config::Config, devices::passwords};
use fleet_schemas::DeviceId;
use hyper::{Method, StatusCode};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Failure, Format, Place, ask, packaged, print, status};

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Device {
    #[command(subcommand)]
    verb: Verb,
    #[command(flatten)]
    place: Place,
}

const EXAMPLES: &str = "\
Boards are served where agent.toml says so; with `open = true` they need no password, which is
allowed only on a loopback address or the node's own on a private network:
  [devices]
  listen = \"192.168.4.1:1883\"

Examples:
  fleet-agent device add shed                              prints its password, once
  fleet-agent device add shed --heartbeat 60 --name 'Shed' late after 90 s, offline after 180 s
  fleet-agent device add pit --sleep 900                   wakes every 15 minutes
  fleet-agent device add barn-gw --gateway                 may speak for devices behind it
  fleet-agent device ls
  fleet-agent device rm shed                               its session ends within two seconds

What a board does (here mosquitto_pub stands for it):
  mosquitto_pub -h 192.168.4.1 -i esp-1 -u shed -P PASSWORD \\
      -t clawland/shed/sensors/temperature -m '{\"value\":23.5,\"unit\":\"C\"}'";

#[derive(Debug, Subcommand)]
enum Verb {
    /// Register a device and give it a new password
    Add(Add),
    /// List the devices of the running agent
    Ls(Ls),
    /// Remove a device and its password
    Rm(Rm),
}

#[derive(Debug, Args)]
struct Add {
    /// Its id: the user name of its sessions, and the one in its topics
    id: DeviceId,
    /// What kind of board
    #[arg(long)]
    kind: Option<String>,
    /// A name for people
    #[arg(long)]
    name: Option<String>,
    /// How often it speaks, in seconds
    #[arg(long, value_name = "SECONDS")]
    heartbeat: Option<f64>,
    /// How long it sleeps after each word, in seconds
    #[arg(long, value_name = "SECONDS")]
    sleep: Option<f64>,
    /// It may speak for other devices, in `clawland/ID/batch`
    #[arg(long)]
    gateway: bool,
    /// It gets no password (and loses the one it has): for a listener that is open
    #[arg(long)]
    no_password: bool,
    /// How to print it
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
}

#[derive(Debug, Args)]
struct Ls {
    /// How to print them
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
}

#[derive(Debug, Args)]
struct Rm {
    /// Its id
    id: DeviceId,
}

/// What the edge API shows of a device, as far as it is printed.
#[derive(Debug, Deserialize, Serialize)]
struct Shown {
    id: DeviceId,
    state: String,
    #[serde(flatten)]
    rest: BTreeMap<String, Value>,
    #[serde(default)]
    password: bool,
    #[serde(default)]
    gateway: bool,
}

#[derive(Debug, Deserialize, Serialize)]
struct List {
    items: Vec<Shown>,
}

impl Device {
    pub(super) fn main(self) -> Result<(), Failure> {
        let config = self.place.load()?;
        packaged::become_owner(&config.data, None)?;
        match self.verb {
            Verb::Add(verb) => verb.main(&config),
            Verb::Ls(verb) => verb.main(&config),
            Verb::Rm(verb) => verb.main(&config),
        }
    }
}

impl Add {
    fn main(self, config: &Config) -> Result<(), Failure> {
        check(&self.id)?;
        let facts = [
            ("kind", self.kind.map(Value::from)),
            ("name", self.name.map(Value::from)),
            ("heartbeat_s", self.heartbeat.map(Value::from)),
            ("sleep_s", self.sleep.map(Value::from)),
        ];
        let facts: serde_json::Map<_, _> =
            facts.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect();
        let told = !facts.is_empty();
        let registered = match ask::send(config, &Method::PUT, &path(&self.id), Some(&facts.into())) {
            Ok((StatusCode::OK | StatusCode::CREATED, _)) => true,
            Ok((status, problem)) => return Err(refused(status, &problem)),
            // Its first session with the password registers it.
            Err(Failure::Unreachable(_)) if !told && !self.no_password => false,
            Err(failure) => return Err(failure),
        };
        let password = passwords::set(&config.data, &self.id, !self.no_password, self.gateway);
        let password = password.context("failed to keep the password").map_err(Failure::Failed)?;
        print(&match self.output {
            Format::Json => status::json(&json!({
                "device": self.id, "password": password, "gateway": self.gateway, "registered": registered,
            })),
            Format::Table => {
                let mut text = match registered {
                    true => format!("device {} is registered\n", self.id),
                    false => format!("device {} will be registered by its first session\n", self.id),
                };
                if let Some(password) = password {
                    text.push_str(&format!(
                        "user      {}\npassword  {password}   shown this once\n",
                        self.id
                    ));
                }
                text
            }
        });
        if config.devices.listen.is_none() {
            eprintln!(
                "fleet-agent: no device is served yet; write `listen = \"ADDRESS:1883\"` under [devices] in {}",
                config.data.join(fleet_edge_agent::config::FILE).display()
            );
        }
        Ok(())
    }
}

impl Ls {
    fn main(self, config: &Config) -> Result<(), Failure> {
        let List { mut items } = ask::get(config, "/api/v1/devices")?;
        let known =
            passwords::list(&config.data).context("failed to list passwords").map_err(Failure::Failed)?;
        for item in &mut items {
            let entry = known.get(&item.id);
            item.password = entry.is_some_and(passwords::Entry::has_password);
            item.gateway = entry.is_some_and(|entry| entry.gateway);
        }
        print(&match self.output {
            Format::Json => status::json(&List { items }),
            Format::Table => table(&items),
        });
        Ok(())
    }
}

impl Rm {
    fn main(self, config: &Config) -> Result<(), Failure> {
        check(&self.id)?;
        // First, or it would come in again.
        let had = forget(config, &self.id)?;
        match ask::send(config, &Method::DELETE, &path(&self.id), None) {
            Ok((StatusCode::NO_CONTENT, _)) => {}
            Ok((StatusCode::NOT_FOUND, _)) if had => {}
            Ok((status, problem)) => return Err(refused(status, &problem)),
            Err(Failure::Unreachable(error)) if had => {
                let context =
                    "its password is gone, but the agent does not answer; remove it again when it runs";
                return Err(Failure::Unreachable(error.context(context)));
            }
            Err(failure) => return Err(failure),
        }
        print(&format!("device {} is removed\n", self.id));
        Ok(())
    }
}

fn check(id: &DeviceId) -> Result<(), Failure> {
    if id.is_node() {
        return Err(Failure::Usage(anyhow!("the device's id is empty; give one of 1 to 63 bytes")));
    }
    Ok(())
}

fn forget(config: &Config, id: &DeviceId) -> Result<bool, Failure> {
    if !config.data.exists() {
        return Ok(false);
    }
    passwords::remove(&config.data, id).context("failed to remove the password").map_err(Failure::Failed)
}

fn refused(status: StatusCode, problem: &str) -> Failure {
    let error = anyhow!("the agent answered {status}: {problem}");
    match status {
        StatusCode::NOT_FOUND => Failure::NotFound(error),
        StatusCode::UNAUTHORIZED => Failure::Denied(error),
        StatusCode::CONFLICT => Failure::Conflict(error),
        _ => Failure::Failed(error),
    }
}

/// Its path at the edge API (RFC 3986 §2.1).
fn path(id: &DeviceId) -> String {
    let mut path = "/api/v1/devices/".to_owned();
    for byte in id.as_str().bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                path.push(char::from(byte));
            }
            other => path.push_str(&format!("%{other:02X}")),
        }
    }
    path
}

fn table(items: &[Shown]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header([
        "DEVICE",
        "STATE",
        "KIND",
        "FIRMWARE",
        "LAST SEEN",
        "REGISTERED",
        "PASSWORD",
        "GATEWAY",
    ]);
    let yes = |yes: bool| if yes { "yes" } else { "-" }.to_owned();
    for item in items {
        let text = |key: &str| item.rest.get(key).and_then(Value::as_str).unwrap_or("-").to_owned();
        let seen = item.rest.get("last_seen_ms").and_then(Value::as_i64);
        let seen = seen.and_then(|millis| Timestamp::from_millisecond(millis).ok());
        let seen = seen.map_or_else(|| "never".to_owned(), |time| format!("{time:.0}"));
        table.add_row([
            item.id.to_string(),
            item.state.clone(),
            text("kind"),
            text("firmware"),
            seen,
            text("registered"),
            yes(item.password),
            yes(item.gateway),
        ]);
    }
    format!("{}\n", table.trim_fmt())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_one_part_of_a_path() {
        assert_eq!(path(&DeviceId::parse("shed-1").unwrap()), "/api/v1/devices/shed-1");
        assert_eq!(path(&DeviceId::parse("a/b é").unwrap()), "/api/v1/devices/a%2Fb%20%C3%A9");
    }
}
