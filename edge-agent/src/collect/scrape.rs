//! Local exporters: their pages of metrics, read on a schedule.
//!
//! Owns which series become samples, and under which names. The page's grammar is in `exposition`.

use std::{collections::HashSet, sync::Arc, time::Duration};

use fleet_schemas::{DeviceId, MetricName, telemetry::Sample};
use serde::{Deserialize, Serialize};

use super::{
    exposition,
    rounds::{self, Found, Round, Surroundings},
};
use crate::{
    config::seconds,
    fetch::{self, Url},
    stop::Stop,
};

/// Largest page, in bytes: a node exporter has about 100 kB.
const PAGE_BYTES: usize = 4 * 1024 * 1024;
/// Most samples of one page.
const SERIES: usize = 1_000;

/// One exporter of `agent.toml`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Its page: `http://…` on this machine.
    pub url: Url,
    /// How often, in seconds.
    #[serde(default = "default_every", rename = "every_s", with = "seconds")]
    pub every: Duration,
    /// Time it has to answer, in seconds.
    #[serde(default = "default_timeout", rename = "timeout_s", with = "seconds")]
    pub timeout: Duration,
    /// Which metrics are taken; `*` at the end stands for any rest.
    pub metrics: Vec<String>,
    /// The device they are of; absent: the node itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<DeviceId>,
    /// A label whose value names the device, where a series has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_label: Option<String>,
    /// Labels whose values are put behind the metric's name, with a dot each; absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<Vec<String>>,
}

impl Config {
    /// Checks what types cannot.
    ///
    /// # Errors
    /// A sentence.
    pub fn check(&self) -> Result<(), String> {
        if !self.url.is_loopback() {
            return Err(
                "only exporters on this machine are read: write 127.0.0.1, [::1] or localhost".to_owned()
            );
        }
        if self.metrics.is_empty() {
            return Err(
                "`metrics` names none; list those that are worth sending, `*` at the end for any rest"
                    .to_owned(),
            );
        }
        if self.every < rounds::LEAST || self.timeout.is_zero() {
            return Err("every_s is at least 0.1, and timeout_s more than 0".to_owned());
        }
        Ok(())
    }
}

fn default_every() -> Duration {
    Duration::from_secs(60)
}

fn default_timeout() -> Duration {
    Duration::from_secs(5)
}

/// Reads it again and again until told to stop.
pub(crate) async fn run(config: Config, surroundings: Surroundings, stop: Stop) {
    let name = config.url.to_string();
    let round = Round { kind: "scrape", name, every: config.every };
    let config = Arc::new(config);
    let read = |now_ms| {
        let config = config.clone();
        async move {
            match fetch::get(&config.url, PAGE_BYTES, config.timeout).await {
                Ok(page) => Ok(samples(&config, &page, now_ms)),
                Err(error) => Err((error.reason(), error.to_string())),
            }
        }
    };
    rounds::run(round, surroundings, stop, read).await;
}

/// The samples of a page.
fn samples(config: &Config, page: &[u8], now_ms: i64) -> Found {
    let mut found = Found::default();
    let mut taken: HashSet<(DeviceId, MetricName)> = HashSet::new();
    for line in page.split(|byte| *byte == b'\n') {
        let Ok(text) = std::str::from_utf8(line) else {
            found.passed_over("utf8");
            continue;
        };
        let line = match exposition::line(text) {
            Ok(Some(line)) => line,
            Ok(None) => continue,
            Err(why) => {
                found.passed_over(why);
                continue;
            }
        };
        if !config.metrics.iter().any(|wanted| fits(wanted, line.name)) || !line.value.is_finite() {
            continue;
        }
        let Some((device, metric)) = names(config, &line) else {
            found.passed_over("name");
            continue;
        };
        if found.samples.len() >= SERIES {
            found.passed_over("many_series");
        } else if taken.insert((device.clone(), metric.clone())) {
            let time_ms = line.time_ms.unwrap_or(now_ms);
            found.samples.push(Sample { time_ms, device, metric, unit: None, value: line.value });
        } else {
            found.passed_over("same_name");
        }
    }
    found
}

pub(super) fn fits(wanted: &str, name: &str) -> bool {
    wanted.strip_suffix('*').map_or(wanted == name, |start| name.starts_with(start))
}

/// Device and metric that a series becomes.
fn names(config: &Config, line: &exposition::Line<'_>) -> Option<(DeviceId, MetricName)> {
    let of_label = config.device_label.as_ref().and_then(|wanted| {
        line.labels.iter().find(|(name, value)| name == wanted && !value.is_empty()).map(|(_, value)| *value)
    });
    let device = match of_label {
        Some(value) => DeviceId::parse(value).ok()?,
        None => config.device.clone().unwrap_or_else(DeviceId::node),
    };
    let mut metric = line.name.to_owned();
    for (name, value) in &line.labels {
        let named = match &config.labels {
            Some(labels) => labels.iter().any(|label| label == name),
            None => config.device_label.as_deref() != Some(name),
        };
        if named {
            metric.push('.');
            metric.push_str(value);
        }
    }
    Some((device, MetricName::parse(&metric).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        toml::from_str(&format!("url = \"http://127.0.0.1:1/metrics\"\n{text}")).unwrap()
    }

    fn told(found: &Found) -> Vec<String> {
        let one = |s: &Sample| format!("{}/{} {}", s.device.as_str(), s.metric, s.value);
        found.samples.iter().map(one).collect()
    }

    const PAGE: &str = "# TYPE node_load1 gauge\nnode_load1 0.5\nnode_fs_free{mount=\"/\",dev=\"sda\"} 7 5\n\
                        node_fs_free{mount=\"/\",dev=\"sdb\"} 8\nnode_nan NaN\nother 1\nbroken{ 1\n";

    #[test]
    fn wanted_series_become_samples() {
        let found = samples(&config("metrics = [\"node_load1\", \"node_fs_*\"]"), PAGE.as_bytes(), 9);
        assert_eq!(told(&found), ["/node_load1 0.5", "/node_fs_free./.sda 7", "/node_fs_free./.sdb 8"]);
        assert_eq!(found.samples.iter().map(|s| s.time_ms).collect::<Vec<_>>(), [9, 5, 9]);
        assert_eq!(found.passed_over["labels"], 1);
    }

    #[test]
    fn labels_name_devices_and_metrics_as_asked() {
        let text = "metrics = [\"node_fs_free\"]\ndevice_label = \"dev\"\nlabels = []";
        assert_eq!(
            told(&samples(&config(text), PAGE.as_bytes(), 0)),
            ["sda/node_fs_free 7", "sdb/node_fs_free 8"]
        );
        let text = "metrics = [\"node_fs_free\"]\ndevice = \"disk\"\nlabels = [\"mount\"]";
        let found = samples(&config(text), PAGE.as_bytes(), 0);
        assert_eq!(told(&found), ["disk/node_fs_free./ 7"]);
        assert_eq!(found.passed_over["same_name"], 1, "two series of one name are not mixed");
    }

    #[test]
    fn a_hostile_page_is_bounded() {
        let many: String = (0..5_000).map(|n| format!("m{{l=\"{n}\"}} 1\n")).collect();
        let found = samples(&config("metrics = [\"*\"]"), many.as_bytes(), 0);
        assert_eq!((found.samples.len(), found.passed_over["many_series"]), (SERIES, 4_000));
        let long = format!("m{{l=\"{}\"}} 1\nm 1", "x".repeat(100));
        let found = samples(&config("metrics = [\"*\"]"), long.as_bytes(), 0);
        assert_eq!((told(&found), found.passed_over["name"]), (vec!["/m 1".to_owned()], 1));
        assert_eq!(samples(&config("metrics = [\"*\"]"), b"\xff\xfe\n\n", 0).passed_over["utf8"], 1);
    }
}
