//! A document of the hub, put over the node's own configuration.
//!
//! Owns which settings a document may make and how it says what is wrong with it. Names are those of `agent.toml`.

use std::path::Path;

use fleet_schemas::config::Failed;
use serde::Deserialize as _;
use serde_json::Value;

use crate::{
    collect::driver,
    config::{Config, ConfigError, seconds},
    core::config::failed,
    upload::Gone,
};

type Set = fn(&mut Config, &Value) -> Result<(), serde_json::Error>;

/// Every setting that a document may make, by section and key of `agent.toml`.
const SETTINGS: [(&str, &str, Set); 15] = [
    ("log", "level", |config, value| String::deserialize(value).map(|level| config.log.level = level)),
    ("node", "heartbeat_s", |config, value| seconds::deserialize(value).map(|s| config.node.heartbeat = s)),
    ("outbox", "batch_samples", |config, value| {
        usize::deserialize(value).map(|samples| config.outbox.batch_samples = samples)
    }),
    ("outbox", "keep_s", |config, value| seconds::deserialize(value).map(|s| config.outbox.keep = s)),
    ("outbox", "prompt_s", |config, value| seconds::deserialize(value).map(|s| config.outbox.prompt = s)),
    ("outbox", "quota_bytes", |config, value| {
        u64::deserialize(value).map(|bytes| config.outbox.quota_bytes = Some(bytes))
    }),
    ("outbox", "upload_s", |config, value| seconds::deserialize(value).map(|s| config.outbox.upload = s)),
    ("system", "interval_s", |config, value| seconds::deserialize(value).map(|s| config.system.interval = s)),
    ("upload", "cron", |config, value| Option::deserialize(value).map(|cron| config.upload.cron = cron)),
    ("upload", "day_bytes", |config, value| {
        Option::deserialize(value).map(|bytes| config.upload.day_bytes = bytes)
    }),
    ("upload", "every_s", |config, value| {
        let every = (!value.is_null()).then(|| seconds::deserialize(value)).transpose()?;
        config.upload.every = every;
        Ok(())
    }),
    ("upload", "hour_bytes", |config, value| {
        Option::deserialize(value).map(|bytes| config.upload.hour_bytes = bytes)
    }),
    ("upload", "live_share", |config, value| {
        f64::deserialize(value).map(|share| config.upload.live_share = share)
    }),
    ("upload", "when_gone", |config, value| {
        Gone::deserialize(value).map(|gone| config.upload.when_gone = gone)
    }),
    ("upload", "zone", |config, value| Option::deserialize(value).map(|zone| config.upload.zone = zone)),
];
/// The list of drivers; takes the place of the one in `agent.toml`.
const DRIVER: &str = "driver";
/// What programs on the node make of it is their business.
const APPS: &str = "apps";

/// The node's own configuration with the document over it.
///
/// # Errors
/// `invalid` or `not_allowed`, with the JSON pointer (RFC 6901) to what is wrong.
pub(super) fn over(own: &Config, bytes: &[u8]) -> Result<Config, Failed> {
    let document: Value =
        ciborium::from_reader(bytes).map_err(|error| invalid("", &format!("it is no document: {error}")))?;
    let Value::Object(document) = document else { return Err(invalid("", "it is no object")) };
    let mut config = own.clone();
    for (section, value) in &document {
        match section.as_str() {
            APPS => {}
            DRIVER => drivers(own, &mut config, value)?,
            section => settings(&mut config, section, value)?,
        }
    }
    Ok(config)
}

fn settings(config: &mut Config, section: &str, value: &Value) -> Result<(), Failed> {
    let known = SETTINGS.iter().any(|(name, ..)| *name == section);
    let Value::Object(values) = value else {
        let pointer = pointer(&[section]);
        return Err(if known { invalid(&pointer, "it is no object") } else { unknown(&pointer) });
    };
    let schedules = ["cron", "every_s"];
    if section == "upload"
        && schedules.iter().any(|key| values.get(*key).is_some_and(|value| !value.is_null()))
    {
        // Whichever schedule the node has of its own, the document's takes its place.
        (config.upload.cron, config.upload.every) = (None, None);
    }
    for (key, value) in values {
        let pointer = pointer(&[section, key]);
        let set = SETTINGS.iter().find(|(one, other, _)| (*one, *other) == (section, key.as_str()));
        let Some((.., set)) = set else { return Err(unknown(&pointer)) };
        set(config, value).map_err(|error| invalid(&pointer, &error.to_string()))?;
        check(config, &pointer)?;
    }
    if known || !values.is_empty() { Ok(()) } else { Err(unknown(&pointer(&[section]))) }
}

fn drivers(own: &Config, config: &mut Config, value: &Value) -> Result<(), Failed> {
    let Value::Array(listed) = value else { return Err(invalid("/driver", "it is no list")) };
    config.driver.clear();
    for (at, value) in listed.iter().enumerate() {
        let pointer = format!("/driver/{at}");
        let driver = driver::Config::deserialize(value);
        let driver = driver.map_err(|error| invalid(&pointer, &error.to_string()))?;
        if !may_run(own, &driver) {
            let program = driver.program.display();
            let message = format!(
                "{pointer}: this node runs no {program} for a document; to allow it, write in its agent.toml: [desired] \
                 programs = [\"{program}\"]"
            );
            return Err(failed("not_allowed", message));
        }
        config.driver.push(driver);
        check(config, &pointer)?;
    }
    Ok(())
}

/// A document may change when a program of `agent.toml` runs; others have to be allowed there.
fn may_run(own: &Config, driver: &driver::Config) -> bool {
    let what = |driver: &driver::Config| (driver.program.clone(), driver.args.clone(), driver.env.clone());
    let known = own.driver.iter().any(|own| what(own) == what(driver));
    let climbs = |path: &Path| path.components().any(|part| part == std::path::Component::ParentDir);
    let allowed = |allowed: &String| match driver.program.to_str() {
        Some(program) if allowed.ends_with('/') => program.starts_with(allowed) && !climbs(&driver.program),
        Some(program) => program == allowed,
        None => false,
    };
    known || own.desired.programs.iter().any(allowed)
}

fn check(config: &Config, pointer: &str) -> Result<(), Failed> {
    match config.check() {
        Ok(()) => Ok(()),
        Err(ConfigError::Range { found, allowed, .. }) => {
            Err(invalid(pointer, &format!("it is {found}; {allowed}")))
        }
        Err(error) => Err(invalid(pointer, &error.to_string())),
    }
}

fn unknown(pointer: &str) -> Failed {
    let settings = SETTINGS.iter().map(|(section, key, _)| format!("/{section}/{key}"));
    let all: Vec<_> = settings.chain([DRIVER, APPS].map(|key| format!("/{key}"))).collect();
    let why = format!("a document sets no such thing; there are {}", all.join(", "));
    invalid(pointer, &why)
}

fn invalid(pointer: &str, why: &str) -> Failed {
    let at = if pointer.is_empty() { "the document" } else { pointer };
    failed("invalid", format!("{at}: {why}"))
}

fn pointer(keys: &[&str]) -> String {
    keys.iter().map(|key| format!("/{}", key.replace('~', "~0").replace('/', "~1"))).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;

    fn own() -> Config {
        let text = r#"
            [desired]
            programs = ["/opt/gps", "/opt/drivers/"]
            [[driver]]
            name = "dht22"
            program = "dht22"
            args = ["4"]
        "#;
        toml::from_str(text).unwrap()
    }

    fn read(document: &Value) -> Result<Config, Failed> {
        over(&own(), &fleet_schemas::cbor::encode(document))
    }

    #[test]
    fn a_document_goes_over_what_the_node_has() {
        assert_eq!(read(&json!({})).unwrap(), own());
        let config = read(&json!({
            "node": {"heartbeat_s": 5},
            "outbox": {"upload_s": 1.5, "prompt_s": 1, "keep_s": 60, "quota_bytes": 2_000_000, "batch_samples": 7},
            "system": {"interval_s": 0},
            "log": {"level": "debug"},
            "driver": [
                {"name": "slow", "program": "dht22", "args": ["4"], "every_s": 600},
                {"name": "gps", "program": "/opt/gps", "args": ["any"]},
                {"name": "new", "program": "/opt/drivers/new"},
            ],
            "apps": {"anything": [1, {"a": null}]},
        }));
        let config = config.unwrap();
        assert_eq!(config.node.heartbeat, Duration::from_secs(5));
        assert_eq!(config.outbox.upload, Duration::from_millis(1_500));
        assert_eq!((config.outbox.quota_bytes, config.outbox.batch_samples), (Some(2_000_000), 7));
        assert_eq!((config.system.interval, config.log.level.as_str()), (Duration::ZERO, "debug"));
        let names: Vec<_> = config.driver.iter().map(|driver| driver.name.as_str()).collect();
        assert_eq!(names, ["slow", "gps", "new"]);
        assert_eq!(config.outbox.storage, own().outbox.storage);
    }

    #[test]
    fn the_schedule_of_a_document_takes_the_place_of_the_nodes_own() {
        let upload = |own: &str, document: Value| {
            let own: Config = toml::from_str(&format!("[upload]\n{own}")).unwrap();
            let config = over(&own, &fleet_schemas::cbor::encode(&json!({"upload": document})));
            config.map(|config| {
                (config.upload.every.map(|every| every.as_secs()), config.upload.cron.is_some())
            })
        };
        for (own, document, every, cron) in [
            ("every_s = 60", json!({"cron": "0 3 * * *"}), None, true),
            ("every_s = 60", json!({"cron": "0 3 * * *", "every_s": null}), None, true),
            ("cron = \"0 3 * * *\"", json!({"every_s": 5}), Some(5), false),
            ("cron = \"0 3 * * *\"", json!({"cron": null, "every_s": 5}), Some(5), false),
            ("every_s = 60", json!({"every_s": null}), None, false),
            ("every_s = 60", json!({"cron": null}), Some(60), false),
            ("every_s = 60", json!({"day_bytes": 20_000}), Some(60), false),
        ] {
            assert_eq!(upload(own, document.clone()).unwrap(), (every, cron), "{own}: {document}");
        }
        let both = upload("", json!({"cron": "0 3 * * *", "every_s": 5})).unwrap_err();
        assert!(both.message.contains("choose one"), "{}", both.message);
    }

    #[test]
    fn mistakes_are_named_with_their_place() {
        for (document, code, pointer, hint) in [
            (json!({"hub": {"url": "mqtt://elsewhere"}}), "invalid", "/hub/url", "/node/heartbeat_s"),
            (json!({"hub": {}}), "invalid", "/hub", "/apps"),
            (json!({"node": {"id": "other"}}), "invalid", "/node/id", "/node/heartbeat_s"),
            (json!({"a/b": 1}), "invalid", "/a~1b", "/driver"),
            (json!({"node": 7}), "invalid", "/node", "no object"),
            (json!({"node": {"heartbeat_s": 0}}), "invalid", "/node/heartbeat_s", "0.2 to 86400"),
            (json!({"node": {"heartbeat_s": "fast"}}), "invalid", "/node/heartbeat_s", "seconds"),
            (json!({"outbox": {"quota_bytes": -1}}), "invalid", "/outbox/quota_bytes", "-1"),
            (json!({"log": {"level": "loud"}}), "invalid", "/log/level", "debug"),
            (json!({"driver": {}}), "invalid", "/driver", "no list"),
            (json!({"driver": [{"name": "a"}]}), "invalid", "/driver/0", "program"),
            (json!({"driver": [{"name": "", "program": "/opt/gps"}]}), "invalid", "/driver/0", "1 to 63"),
            (
                json!({"driver": [{"name": "a", "program": "/opt/gps"}, {"name": "b", "program": "sh"}]}),
                "not_allowed",
                "/driver/1",
                "programs = [\"sh\"]",
            ),
            (json!({"driver": [{"name": "a", "program": "dht22"}]}), "not_allowed", "/driver/0", "dht22"),
            (
                json!({"driver": [{"name": "a", "program": "/opt/drivers/../sh"}]}),
                "not_allowed",
                "/driver/0",
                "agent.toml",
            ),
        ] {
            let failed = read(&document).unwrap_err();
            assert_eq!(failed.code, code, "{document}: {}", failed.message);
            assert!(failed.message.starts_with(&format!("{pointer}: ")), "{document}: {}", failed.message);
            assert!(failed.message.contains(hint), "{document}: {}", failed.message);
        }
    }
}
