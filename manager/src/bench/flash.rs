//! What an agent writes to its flash at a typical rate: a device that is read every few seconds, an agent at default settings,
//! and a hub that takes all of it.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::fs::{major, minor};
use serde_json::{Value, json};
use tokio::time;

use super::{Error, Report, child, event::post, proc};
use crate::clock;

/// What is to be run.
#[derive(Debug, Clone)]
pub struct Config {
    /// The binary `fleet`; the agent is the one beside it.
    pub fleet: PathBuf,
    /// Where the temporary folder is made: on the flash that is asked about.
    pub folder: Option<PathBuf>,
    /// How long.
    pub minutes: u16,
    /// Seconds from one reading to the next.
    pub every: u16,
    /// Metrics of a reading.
    pub metrics: u16,
}

/// A record's own bytes: its time and its value.
const RECORD: f64 = 16.0;
/// What starting costs is not counted.
const SETTLE: Duration = Duration::from_secs(5);
/// Bytes that `/proc/diskstats` calls a sector, whatever the disk does (Documentation/admin-guide/iostats.rst).
const SECTOR: u64 = 512;
/// Runs it.
///
/// # Errors
/// [`Error`].
pub async fn run(config: &Config) -> Result<Report, Error> {
    let program = child::beside(&config.fleet, "fleet-agent")?;
    let folder = child::Folder::new(config.folder.as_deref())?;
    let hub = child::hub(&config.fleet, folder.path(), None).await?;
    let agent = child::agent(&program, folder.path(), "bench-flash", hub.addresses.mqtt).await?;
    let pid = agent.process.pid();
    time::sleep(SETTLE).await;
    let (before, disk, began) = (proc::written(pid)?, written_by_all(folder.path()), clock::mono());
    let records = read_device(config, &agent.api).await?;
    let seconds = clock::mono().saturating_sub(began).as_secs_f64();
    let written = proc::written(pid)?.saturating_sub(before) as f64;
    let mut report = Report::new("flash");
    report.add("records handed in", records, "records");
    report.add("written by record", written / records, "bytes");
    report.add("written by byte of record", written / records / RECORD, "bytes");
    report.add("written in an hour", written / seconds * 3_600.0 / 1_048_576.0, "MiB");
    report.add("written in a day", written / seconds * 86_400.0 / 1_048_576.0, "MiB");
    if let (Some(before), Some(after)) = (disk, written_by_all(folder.path())) {
        let hour = after.saturating_sub(before) as f64 / seconds * 3_600.0 / 1_048_576.0;
        report.add("written by the whole disk in an hour", hour, "MiB");
    }
    let Config { every, metrics, .. } = config;
    report.note(format!(
        "{metrics} metrics every {every} s, each reading answered when it is on disk; the machine's own figures beside \
         them; a record has {RECORD} bytes of its own. The whole disk is the hub's, too, and everybody else's"
    ));
    agent.process.stop().await?;
    hub.process.stop().await?;
    Ok(report)
}

/// Hands readings in for as long as is asked; how many records.
async fn read_device(config: &Config, api: &str) -> Result<f64, Error> {
    // A connection for each reading, as small programs do; one that rests would be closed meanwhile.
    let http = reqwest::Client::builder().pool_max_idle_per_host(0).build()?;
    let url = format!("{api}/api/v1/telemetry");
    let mut ticks = time::interval(Duration::from_secs(config.every.into()));
    let readings = (u64::from(config.minutes) * 60 / u64::from(config.every)).max(1);
    for reading in 0..readings {
        ticks.tick().await;
        let samples: Vec<Value> = (0..config.metrics)
            .map(|metric| {
                // A sensor's tenths, which drift.
                let value =
                    20.0 + f64::from(metric) + ((reading * 7 + u64::from(metric) * 3) % 50) as f64 / 10.0;
                json!({ "metric": format!("m{metric}"), "value": value })
            })
            .collect();
        post(&http, &url, &json!({ "device": "board", "samples": samples })).await?;
    }
    // The last reading's interval belongs to it.
    ticks.tick().await;
    Ok((readings * u64::from(config.metrics)) as f64)
}

/// Bytes that the disk under a folder has written since it was there; none where the kernel does not tell.
fn written_by_all(folder: &Path) -> Option<u64> {
    let device = fs::metadata(folder).ok()?.dev();
    of_disk(&fs::read_to_string("/proc/diskstats").ok()?, major(device), minor(device))
}

/// The tenth field of a disk's line: sectors written.
fn of_disk(text: &str, major: u32, minor: u32) -> Option<u64> {
    text.lines().find_map(|line| {
        let fields: Vec<_> = line.split_ascii_whitespace().collect();
        let is = fields.first()?.parse() == Ok(major) && fields.get(1)?.parse() == Ok(minor);
        if is { Some(fields.get(9)?.parse::<u64>().ok()? * SECTOR) } else { None }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_found_by_its_numbers() {
        let text = "   7       0 loop0 1 0 2 0 3 0 4 0 0 0 0 0 0 0 0\n 254       0 vda 57 1 900 3 80 2 1200 9 0 0 0 0 0 0 0\n";
        assert_eq!(of_disk(text, 254, 0), Some(1_200 * 512));
        assert_eq!(of_disk(text, 254, 1), None);
    }
}
