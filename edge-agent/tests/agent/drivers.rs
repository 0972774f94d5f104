//! Drivers as real programs: their lines arrive, bad lines and hanging programs do no harm.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use crate::{get_json, quiet, script, start, until, url};
use fleet_edge_agent::{collect::driver, core::devices::Register, run::Handle};
use serde_json::json;

pub(crate) fn driver(
    name: &str,
    program: PathBuf,
    every: Option<Duration>,
    timeout: Duration,
) -> driver::Config {
    driver::Config {
        name: name.to_owned(),
        program,
        args: Vec::new(),
        env: BTreeMap::new(),
        every,
        cron: None,
        timeout,
    }
}

async fn held(agent: &Handle) -> u64 {
    get_json(&url(agent, "/api/v1/outbox")).await["held_records"].as_u64().unwrap()
}

async fn page(agent: &Handle) -> String {
    reqwest::get(url(agent, "/metrics")).await.unwrap().text().await.unwrap()
}

/// The value of a metric, 0 while it is not there.
fn value(page: &str, series: &str) -> f64 {
    let line = page.lines().find_map(|line| line.strip_prefix(series));
    line.map_or(0.0, |value| value.trim().parse().unwrap())
}

const HOUR: Duration = Duration::from_secs(3_600);

#[tokio::test]
async fn lines_of_a_running_driver_are_stored_and_bad_ones_counted() {
    let (folder, mut config) = quiet("driver-1");
    let text = r#"
echo "hello from stderr" >&2
echo '{"sensor":"dht22","values":{"temperature":23.5,"humidity":40},"unit":{"temperature":"C"},"status":"ok"}'
echo 'not json'
echo '{"sensor":"dht22","values":{"temperature":"warm"}}'
head -c 20000 /dev/zero | tr '\0' x; echo
echo '{"sensor":"dht22","values":{"temperature":-999},"status":"crc_error"}'
printf '{"sensor":"dht22","values":{"temperature":24}}'
exec sleep 1000 >/dev/null"#;
    config.driver = vec![driver("dht22", script(folder.path(), "dht22", text), None, HOUR)];
    let agent = start(config).await;
    // Three samples; the sensor's trouble and its recovery are events.
    until("5 records", async || held(&agent).await, |held| *held == 5).await;
    let page = page(&agent).await;
    for (series, expected) in [
        (r#"fleet_agent_driver_lines_total{driver="dht22"}"#, 3.0),
        (r#"fleet_agent_driver_bad_lines_total{driver="dht22",reason="json"}"#, 1.0),
        (r#"fleet_agent_driver_bad_lines_total{driver="dht22",reason="value"}"#, 1.0),
        (r#"fleet_agent_driver_bad_lines_total{driver="dht22",reason="long"}"#, 1.0),
        (r#"fleet_agent_accepted_records_total{kind="sample"}"#, 3.0),
        (r#"fleet_agent_accepted_records_total{kind="event"}"#, 2.0),
    ] {
        assert_eq!(value(&page, series), expected, "{series}\n{page}");
    }
    agent.stop().await;
}

#[tokio::test]
async fn a_sensor_that_is_not_taken_costs_the_others_nothing() {
    let (folder, mut config) = quiet("driver-devices");
    config.devices.register = Register::Explicit;
    let go = folder.path().join("go");
    let text = format!(
        r#"while [ ! -e {} ]; do sleep 0.05; done
for sensor in shed stranger shed; do echo "{{\"sensor\":\"$sensor\",\"values\":{{\"t\":1}}}}"; done
exec sleep 1000"#,
        go.display()
    );
    config.driver = vec![driver("radio", script(folder.path(), "radio", &text), None, HOUR)];
    let agent = start(config).await;
    let shed = url(&agent, "/api/v1/devices/shed");
    assert_eq!(reqwest::Client::new().put(shed).json(&json!({})).send().await.unwrap().status(), 201);
    std::fs::write(&go, "").unwrap();
    let series = r#"fleet_agent_accepted_records_total{kind="sample"}"#;
    until("the shed's samples", async || value(&page(&agent).await, series), |samples| *samples >= 2.0).await;
    let refused = r#"fleet_agent_driver_bad_lines_total{driver="radio",reason="device"}"#;
    let told = async || value(&page(&agent).await, refused);
    until("the stranger is told of", told, |lines| *lines >= 1.0).await;
    assert_eq!(value(&page(&agent).await, series), 2.0);
    agent.stop().await;
}

#[tokio::test]
async fn a_burst_of_words_on_a_sensor_is_taken_in_parts() {
    let (folder, mut config) = quiet("driver-flips");
    let flips = "{\"sensor\":\"door\",\"status\":\"stuck\"}\n{\"sensor\":\"door\",\"status\":\"ok\"}\n";
    let (count, lines) = (12_000, folder.path().join("lines"));
    assert!(count > fleet_schemas::limits::BATCH_RECORDS);
    std::fs::write(&lines, flips.repeat(count / 2)).unwrap();
    let text = format!("cat {}; exec sleep 1000 >/dev/null", lines.display());
    config.driver = vec![driver("door", script(folder.path(), "door", &text), None, HOUR)];
    let agent = start(config).await;
    let series = r#"fleet_agent_accepted_records_total{kind="event"}"#;
    // Each, and that the device was heard of.
    let told = async || value(&page(&agent).await, series) as usize;
    until("every word", told, |events| *events >= count).await;
    agent.stop().await;
}

#[tokio::test]
async fn a_driver_that_ends_is_started_again() {
    let (folder, mut config) = quiet("driver-2");
    let text = r#"echo '{"sensor":"s","values":{"v":1}}'; exit 3"#;
    config.driver = vec![driver("flaky", script(folder.path(), "flaky", text), None, HOUR)];
    let agent = start(config).await;
    until("a second run", async || held(&agent).await, |held| *held >= 2).await;
    assert!(
        value(&page(&agent).await, r#"fleet_agent_driver_ends_total{driver="flaky",reason="failed"}"#) >= 1.0
    );
    agent.stop().await;
}

#[tokio::test]
async fn a_driver_that_hangs_is_killed_with_its_children_and_started_again() {
    let (folder, mut config) = quiet("driver-3");
    let pids = folder.path().join("pids");
    let text = format!(
        "trap '' TERM\nsleep 1000 &\necho $! >> {0}.part; mv {0}.part {0}\nwait; wait; wait",
        pids.display()
    );
    let program = script(folder.path(), "hangs", &text);
    config.driver =
        vec![driver("hangs", program, Some(Duration::from_millis(100)), Duration::from_millis(300))];
    let agent = start(config).await;
    let ended = async || {
        value(&page(&agent).await, r#"fleet_agent_driver_ends_total{driver="hangs",reason="timeout"}"#)
    };
    until("a timeout", ended, |ended| *ended >= 1.0).await;
    let child = std::fs::read_to_string(&pids).unwrap().lines().next().unwrap().to_owned();
    let alive = async || std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
    // A zombie that nobody reaps is as dead.
    until("the child is gone", alive, |stat| stat.is_empty() || stat.contains(") Z ")).await;
    until("a second run", async || ended().await, |ended| *ended >= 2.0).await;
    agent.stop().await;
}

#[tokio::test]
async fn a_scheduled_driver_runs_again_and_a_missing_one_harms_nobody() {
    let (folder, mut config) = quiet("driver-4");
    let text = r#"echo '{"sensor":"s","values":{"v":1}}'"#;
    let program = script(folder.path(), "timed", text);
    config.driver = vec![
        driver("timed", program, Some(Duration::from_millis(50)), HOUR),
        driver("missing", "/nonexistent/driver".into(), Some(Duration::from_millis(50)), HOUR),
    ];
    let agent = start(config).await;
    until("three runs", async || held(&agent).await, |held| *held >= 3).await;
    let page = page(&agent).await;
    assert!(value(&page, r#"fleet_agent_driver_ends_total{driver="timed",reason="done"}"#) >= 2.0, "{page}");
    assert!(value(&page, r#"fleet_agent_driver_ends_total{driver="missing",reason="io"}"#) >= 1.0, "{page}");
    agent.stop().await;
}

#[tokio::test]
async fn stopping_the_agent_ends_its_drivers_and_keeps_their_last_lines() {
    let (folder, mut config) = quiet("driver-5");
    let pid = folder.path().join("pid");
    let text = format!(
        "trap 'exit 0' TERM\necho '{{\"sensor\":\"s\",\"values\":{{\"v\":1}}}}'\necho $$ > {0}.part; mv {0}.part {0}\nwhile true; do sleep 0.05; done",
        pid.display()
    );
    config.driver = vec![driver("stopped", script(folder.path(), "stopped", &text), None, HOUR)];
    let agent = start(config.clone()).await;
    let wrote = async || std::fs::read_to_string(&pid).unwrap_or_default();
    let process = until("the driver runs", wrote, |pid| !pid.is_empty()).await;
    let line = async || value(&page(&agent).await, r#"fleet_agent_driver_lines_total{driver="stopped"}"#);
    until("its line was read", line, |lines| *lines == 1.0).await;
    agent.stop().await;
    assert!(!std::path::Path::new(&format!("/proc/{}", process.trim())).exists());
    config.driver.clear();
    let agent = start(config).await;
    assert_eq!(held(&agent).await, 1);
    agent.stop().await;
}

#[tokio::test]
async fn the_machines_figures_are_collected() {
    let (_folder, mut config) = quiet("system-1");
    config.system.interval = Duration::from_millis(100);
    config.outbox.upload = Duration::from_millis(100);
    let agent = start(config).await;
    until("figures in the outbox", async || held(&agent).await, |held| *held >= 12).await;
    agent.stop().await;
}

#[tokio::test]
async fn a_driver_with_a_time_of_its_own_waits_for_it() {
    let (folder, mut config) = quiet("driver-7");
    let line = r#"echo '{"sensor":"s","values":{"v":1}}'"#;
    let program = script(folder.path(), "timed", line);
    let timed = |cron: &str| driver::Config {
        cron: Some(cron.parse().unwrap()),
        ..driver("timed", program.clone(), None, HOUR)
    };
    let other = driver("soon", script(folder.path(), "soon", line), Some(HOUR), HOUR);
    config.driver = vec![timed("0 0 29 2 *"), other];
    let agent = start(config.clone()).await;
    until("the other one", async || held(&agent).await, |held| *held >= 1).await;
    assert_eq!(held(&agent).await, 1, "the 29th of February is another day");
    agent.stop().await;
    config.driver[0].every = Some(HOUR);
    assert!(config.check().unwrap_err().to_string().contains("choose one"));
}
