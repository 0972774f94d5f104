//! Files that hold figures: one number, `key=value` lines, or JSON; read on a schedule.

use std::{
    fs::File,
    io::{self, Read as _},
    path::Path,
    sync::Arc,
    time::Duration,
};

use fleet_schemas::{DeviceId, MetricName, telemetry::Sample};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::task;

use super::{
    line,
    rounds::{self, Failure, Found, Round, Surroundings},
    scrape::fits,
};
use crate::{config::seconds, stop::Stop};

/// Largest file, in bytes.
const FILE_BYTES: u64 = 64 * 1024;
/// Most files that a pattern may stand for.
const FILES: usize = 64;
/// Most values of a file.
const VALUES: usize = 256;
/// Deepest nesting of JSON whose names are joined.
const DEPTH: usize = 4;

/// One file, or a pattern of files, of `agent.toml`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The path; `*`, `?` and `[…]` stand for others, at most 64 files.
    pub path: String,
    /// What is in it.
    #[serde(default)]
    pub format: Format,
    /// How often, in seconds.
    #[serde(default = "default_every", rename = "every_s", with = "seconds")]
    pub every: Duration,
    /// The device it is of: `{file}` stands for its name without an ending, `{folder}` for the name of its folder;
    /// absent: the node itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// The metric of a file that is one number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metric: Option<MetricName>,
    /// The unit of its values.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// What values are multiplied with.
    #[serde(default = "one")]
    pub scale: f64,
    /// Which keys are taken; `*` at the end stands for any rest; absent: all whose value is a number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<Vec<String>>,
}

/// What is in a file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// One number; what follows it after a space is passed over.
    #[default]
    Number,
    /// `key=value` or `key: value` a line; others are passed over.
    Pairs,
    /// An object of numbers (names of nested ones are joined by `_`), or what a driver prints.
    Json,
}

fn default_every() -> Duration {
    Duration::from_secs(60)
}

fn one() -> f64 {
    1.0
}

impl Config {
    /// Checks what types cannot.
    ///
    /// # Errors
    /// A sentence.
    pub fn check(&self) -> Result<(), String> {
        if let Err(error) = glob::Pattern::new(&self.path) {
            return Err(format!("the path is no pattern: {error}"));
        }
        if self.format == Format::Number && self.metric.is_none() {
            return Err("a file that is one number needs `metric`".to_owned());
        }
        if self.every < rounds::LEAST || !self.scale.is_finite() {
            return Err("every_s is at least 0.1, and scale a number".to_owned());
        }
        Ok(())
    }
}

/// Reads it again and again until told to stop.
pub(crate) async fn run(config: Config, surroundings: Surroundings, stop: Stop) {
    let round = Round { kind: "file", name: config.path.clone(), every: config.every };
    let config = Arc::new(config);
    let read = |now_ms| {
        let config = config.clone();
        // A file of a sensor or a network may take its time.
        let read = task::spawn_blocking(move || read_all(&config, now_ms));
        async { read.await.unwrap_or_else(|error| Err(("panic", error.to_string()))) }
    };
    rounds::run(round, surroundings, stop, read).await;
}

fn read_all(config: &Config, now_ms: i64) -> Result<Found, Failure> {
    let wrong = |error: glob::PatternError| ("pattern", error.to_string());
    let mut found = Found::default();
    let mut any = false;
    for path in glob::glob(&config.path).map_err(wrong)?.take(FILES) {
        any = true;
        match path.map_err(io::Error::from).and_then(|path| Ok((read(&path)?, path))) {
            Ok((text, path)) => take(config, &path, &text, now_ms, &mut found),
            Err(_) => found.passed_over("unreadable"),
        }
    }
    if any { Ok(found) } else { Err(("missing", format!("there is no file {}", config.path))) }
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let file = File::open(path)?;
    if file.metadata()?.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    let read = file.take(FILE_BYTES + 1).read_to_string(&mut text)?;
    if read as u64 > FILE_BYTES { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(text) }
}

fn take(config: &Config, path: &Path, text: &str, now_ms: i64, found: &mut Found) {
    let Ok(device) = device(config, path) else { return found.passed_over("name") };
    let unit = config.unit.as_deref().map(line::ucum).map(MetricName::parse).transpose();
    let Ok(unit) = unit else { return found.passed_over("name") };
    let mut values: Vec<(String, f64)> = Vec::new();
    match config.format {
        Format::Number => {
            let number = text.split_ascii_whitespace().next().and_then(|word| word.parse().ok());
            let metric = config.metric.as_ref().map(|metric| metric.as_str().to_owned());
            let (Some(number), Some(metric)) = (number, metric) else { return found.passed_over("value") };
            values.push((metric, number));
        }
        Format::Pairs => values.extend(text.lines().filter_map(pair)),
        Format::Json => match serde_json::from_str::<Value>(text) {
            Ok(value @ Value::Object(_)) => {
                // Many objects name a sensor; a driver's line has its values apart.
                if value.get("values").is_some_and(Value::is_object)
                    && let Ok(reading) = line::parse(text.as_bytes(), now_ms)
                {
                    return found.samples.extend(reading.samples);
                }
                flatten("", &value, DEPTH, &mut values);
            }
            Ok(_) | Err(_) => return found.passed_over("json"),
        },
    }
    let wanted = |name: &str| {
        let listed = |metrics: &Vec<String>| metrics.iter().any(|wanted| fits(wanted, name));
        config.metrics.as_ref().is_none_or(listed)
    };
    let mut taken = 0;
    for (name, value) in values.into_iter().filter(|(name, _)| wanted(name)) {
        let value = value * config.scale;
        match MetricName::parse(&name) {
            _ if !value.is_finite() => found.passed_over("value"),
            _ if taken >= VALUES => found.passed_over("many_values"),
            Err(_) => found.passed_over("name"),
            Ok(metric) => {
                taken += 1;
                let (device, unit) = (device.clone(), unit.clone());
                found.samples.push(Sample { time_ms: now_ms, device, metric, unit, value });
            }
        }
    }
}

fn device(config: &Config, path: &Path) -> Result<DeviceId, fleet_schemas::id::IdError> {
    let Some(template) = &config.device else { return Ok(DeviceId::node()) };
    let text = |name: Option<&std::ffi::OsStr>| name.unwrap_or_default().to_string_lossy().into_owned();
    let folder = path.parent().and_then(Path::file_name);
    DeviceId::parse(&template.replace("{file}", &text(path.file_stem())).replace("{folder}", &text(folder)))
}

fn pair(line: &str) -> Option<(String, f64)> {
    let (key, value) = line.split_once('=').or_else(|| line.split_once(':'))?;
    let value = value.trim().trim_matches('"');
    // A unit may follow, as in /proc/meminfo.
    let number = value.split_ascii_whitespace().next()?.parse().ok()?;
    let key = key.trim();
    (!key.is_empty() && !key.starts_with('#')).then(|| (key.to_owned(), number))
}

fn flatten(name: &str, value: &Value, depth: usize, values: &mut Vec<(String, f64)>) {
    match value {
        Value::Number(number) => values.extend(number.as_f64().map(|number| (name.to_owned(), number))),
        Value::Bool(on) => values.push((name.to_owned(), f64::from(u8::from(*on)))),
        Value::Object(inner) if depth > 0 => {
            for (key, value) in inner {
                let joined = if name.is_empty() { key.clone() } else { format!("{name}_{key}") };
                flatten(&joined, value, depth - 1, values);
            }
        }
        Value::Object(_) | Value::Array(_) | Value::Null | Value::String(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn collect(folder: &Path, config: &str) -> (Vec<String>, Found) {
        let config: Config = toml::from_str(&config.replace("DIR", folder.to_str().unwrap())).unwrap();
        config.check().unwrap();
        let found = read_all(&config, 5).unwrap();
        let one = |s: &Sample| format!("{}/{} {}", s.device.as_str(), s.metric, s.value);
        (found.samples.iter().map(one).collect(), found)
    }

    #[test]
    fn one_number_of_each_file_that_fits() {
        let folder = tempfile::tempdir().unwrap();
        for (zone, text) in [("zone0", "42500\n"), ("zone1", "38000 mC"), ("zone2", "cold")] {
            fs::create_dir(folder.path().join(zone)).unwrap();
            fs::write(folder.path().join(zone).join("temp"), text).unwrap();
        }
        let config =
            "path = \"DIR/zone*/temp\"\ndevice = \"{folder}\"\nmetric = \"t\"\nunit = \"C\"\nscale = 0.001";
        let (told, found) = collect(folder.path(), config);
        assert_eq!(told, ["zone0/t 42.5", "zone1/t 38"]);
        assert_eq!(found.samples[0].unit.as_ref().map(MetricName::as_str), Some("Cel"));
        assert_eq!(found.passed_over["value"], 1);
    }

    #[test]
    fn pairs_and_json_give_their_numbers() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a.txt"), "MemFree:  12 kB\nname=x\nload=0.5\n# c=1\nv=\"7\"\n")
            .unwrap();
        let (told, _) = collect(folder.path(), "path = \"DIR/a.txt\"\nformat = \"pairs\"");
        assert_eq!(told, ["/MemFree 12", "/load 0.5", "/v 7"]);
        fs::write(folder.path().join("a.json"), r#"{"a":{"b":1,"c":"x"},"d":true,"e":[1],"load":2}"#)
            .unwrap();
        let config =
            "path = \"DIR/a.json\"\nformat = \"json\"\ndevice = \"{file}\"\nmetrics = [\"a_*\", \"d\"]";
        assert_eq!(collect(folder.path(), config).0, ["a/a_b 1", "a/d 1"]);
        fs::write(folder.path().join("d.json"), r#"{"sensor":"dht22","values":{"t":1.5}}"#).unwrap();
        assert_eq!(collect(folder.path(), "path = \"DIR/d.json\"\nformat = \"json\"").0, ["dht22/t 1.5"]);
        // No driver's line, although it names a sensor and says how it is.
        fs::write(folder.path().join("e.json"), r#"{"sensor":"BME280","status":"running","t":21.5}"#)
            .unwrap();
        assert_eq!(collect(folder.path(), "path = \"DIR/e.json\"\nformat = \"json\"").0, ["/t 21.5"]);
    }

    #[test]
    fn hostile_files_are_bounded() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("large"), "1".repeat(100_000)).unwrap();
        fs::write(folder.path().join("bytes"), [0xff, 0xfe]).unwrap();
        let (told, found) = collect(folder.path(), "path = \"DIR/*\"\nmetric = \"t\"");
        assert_eq!((told.len(), found.passed_over["unreadable"]), (0, 2));
        let many: String = (0..1_000).map(|n| format!("k{n}=1\n")).collect();
        fs::write(folder.path().join("many"), many).unwrap();
        let (told, found) = collect(folder.path(), "path = \"DIR/many\"\nformat = \"pairs\"");
        assert_eq!((told.len(), found.passed_over["many_values"]), (VALUES, 744));
        fs::write(folder.path().join("deep"), format!("{}1{}", "{\"a\":".repeat(100), "}".repeat(100)))
            .unwrap();
        assert_eq!(collect(folder.path(), "path = \"DIR/deep\"\nformat = \"json\"").0, Vec::<String>::new());
        let missing: Config = toml::from_str("path = \"/nonexistent/*\"\nmetric = \"t\"").unwrap();
        assert_eq!(read_all(&missing, 0).unwrap_err().0, "missing");
        let wrong: Config = toml::from_str("path = \"/a\"").unwrap();
        assert!(wrong.check().unwrap_err().contains("metric"));
    }
}
