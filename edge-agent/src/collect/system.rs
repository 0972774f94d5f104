//! The machine's figures: processor, load, memory, disk, temperature, network, uptime.
//!
//! Owns their names and units. Reads the machine only; what becomes of the figures is the outbox's business.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use fleet_schemas::{DeviceId, MetricName, telemetry::Sample};
use serde::{Deserialize, Serialize};
use sysinfo::{Components, Networks, Pid, ProcessRefreshKind, ProcessesToUpdate, System};
use tokio::time;
use tracing::warn;

use crate::{clock::Clock, config::seconds, outbox, stop::Stop};

/// How the machine is measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// How often, in seconds; 0 turns it off.
    #[serde(rename = "interval_s", with = "seconds")]
    pub interval: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self { interval: Duration::from_secs(10) }
    }
}

/// Measures until told to stop. The samples are kept in memory until the outbox writes anyway: they are worth no
/// flash write of their own.
pub(crate) async fn run(
    config: Config,
    folder: PathBuf,
    clock: Clock,
    outbox: outbox::Handle,
    mut stop: Stop,
) {
    if config.interval.is_zero() {
        return;
    }
    let mut machine = match Machine::new(folder) {
        Ok(machine) => machine,
        Err(error) => return warn!(%error, "the machine's figures cannot be read; none are collected"),
    };
    let mut ticks = time::interval(config.interval.max(Duration::from_millis(100)));
    ticks.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = stop.wanted() => return,
        }
        let figures = machine.measure();
        let time_ms = clock.now().wall_ms;
        outbox.set_system(figures.iter().map(|(figure, value)| (figure.name.to_owned(), *value)).collect());
        outbox.submit_lazily(samples(&figures, time_ms));
    }
}

/// A figure's name and unit (UCUM), fixed for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Figure {
    name: &'static str,
    unit: &'static str,
}

const fn figure(name: &'static str, unit: &'static str) -> Figure {
    Figure { name, unit }
}

const CPU: Figure = figure("cpu_percent", "%");
const LOAD1: Figure = figure("load1", "1");
const LOAD5: Figure = figure("load5", "1");
const LOAD15: Figure = figure("load15", "1");
const MEM_TOTAL: Figure = figure("mem_total_bytes", "By");
const MEM_USED: Figure = figure("mem_used_bytes", "By");
const MEM_AVAILABLE: Figure = figure("mem_available_bytes", "By");
const SWAP_USED: Figure = figure("swap_used_bytes", "By");
const DISK_TOTAL: Figure = figure("disk_total_bytes", "By");
const DISK_USED: Figure = figure("disk_used_bytes", "By");
const TEMPERATURE: Figure = figure("temperature_celsius", "Cel");
const NET_RX: Figure = figure("net_rx_bytes", "By");
const NET_TX: Figure = figure("net_tx_bytes", "By");
const UPTIME: Figure = figure("uptime_s", "s");
const RSS: Figure = figure("process_rss_bytes", "By");

/// The machine as `sysinfo` sees it, with what it keeps between measurements.
struct Machine {
    system: System,
    networks: Networks,
    components: Components,
    me: Option<Pid>,
    folder: PathBuf,
}

impl Machine {
    fn new(folder: PathBuf) -> Result<Self, sysinfo::Error> {
        let mut system = System::new()?;
        // Processor use is a difference: the first measurement needs one before it.
        system.refresh_cpu_usage();
        Ok(Self {
            system,
            networks: Networks::new_with_refreshed_list()?,
            components: Components::new_with_refreshed_list()?,
            me: sysinfo::get_current_pid().ok(),
            folder,
        })
    }

    fn measure(&mut self) -> Vec<(Figure, f64)> {
        self.system.refresh_cpu_usage();
        self.system.refresh_memory();
        self.networks.refresh(true);
        self.components.refresh(false);
        let mut figures = vec![
            (CPU, tenths(self.system.global_cpu_usage())),
            (MEM_TOTAL, self.system.total_memory() as f64),
            (MEM_USED, self.system.used_memory() as f64),
            (MEM_AVAILABLE, self.system.available_memory() as f64),
            (SWAP_USED, self.system.used_swap() as f64),
        ];
        if let Ok(load) = System::load_average() {
            figures.extend([(LOAD1, load.one), (LOAD5, load.five), (LOAD15, load.fifteen)]);
        }
        figures.extend(disk(&self.folder).into_iter().flatten());
        // The hottest sensor: a board that throttles does so by its hottest part.
        let hottest = self.components.iter().filter_map(sysinfo::Component::temperature).reduce(f32::max);
        figures.extend(hottest.map(|celsius| (TEMPERATURE, tenths(celsius))));
        let cards =
            || self.networks.iter().filter(|(name, _)| name.as_os_str() != "lo").map(|(_, card)| card);
        figures.push((NET_RX, cards().map(|card| card.total_received()).sum::<u64>() as f64));
        figures.push((NET_TX, cards().map(|card| card.total_transmitted()).sum::<u64>() as f64));
        if let Ok(uptime) = System::uptime() {
            figures.push((UPTIME, uptime as f64));
        }
        figures.extend(self.rss().map(|bytes| (RSS, bytes)));
        figures.retain(|(_, value)| value.is_finite());
        figures
    }

    fn rss(&mut self) -> Option<f64> {
        let me = self.me?;
        let memory = ProcessRefreshKind::nothing().with_memory();
        self.system.refresh_processes_specifics(ProcessesToUpdate::Some(&[me]), false, memory);
        self.system.process(me).map(|process| process.memory() as f64)
    }
}

/// Size and use of the file system that holds `folder`.
fn disk(folder: &Path) -> Option<[(Figure, f64); 2]> {
    let space = rustix::fs::statvfs(folder).ok()?;
    let bytes = |blocks: u64| blocks as f64 * space.f_frsize as f64;
    Some([
        (DISK_TOTAL, bytes(space.f_blocks)),
        (DISK_USED, bytes(space.f_blocks.saturating_sub(space.f_bfree))),
    ])
}

/// A tenth is as exact as such figures are, and it packs well.
fn tenths(value: f32) -> f64 {
    (f64::from(value) * 10.0).round() / 10.0
}

fn samples(figures: &[(Figure, f64)], time_ms: i64) -> Vec<Sample> {
    let name = |text| MetricName::parse(text).expect("our names and units are valid");
    (figures.iter())
        .map(|(figure, value)| Sample {
            time_ms,
            device: DeviceId::node(),
            metric: name(figure.name),
            unit: Some(name(figure.unit)),
            value: *value,
        })
        .collect()
}

/// What a birth says of the machine: `hostname`, `os`, `arch`, `kernel`, `model` where known.
#[must_use]
pub fn describe() -> BTreeMap<String, String> {
    // A single-board computer tells its model in its device tree, a PC in its DMI table.
    let model = ["/proc/device-tree/model", "/sys/devices/virtual/dmi/id/product_name"]
        .into_iter()
        .find_map(|path| std::fs::read_to_string(path).ok())
        .map(|model| model.trim_matches(|c: char| c == '\0' || c.is_whitespace()).to_owned());
    let facts = [
        ("hostname", System::host_name().ok()),
        ("os", System::long_os_version().ok()),
        ("kernel", System::kernel_version().ok()),
        ("arch", Some(System::cpu_arch())),
        ("model", model),
    ];
    (facts.into_iter())
        .filter_map(|(key, value)| Some((key.to_owned(), value.filter(|value| !value.is_empty())?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_the_figures_every_machine_has() {
        let mut machine = Machine::new(std::env::temp_dir()).unwrap();
        let figures: BTreeMap<_, _> =
            machine.measure().into_iter().map(|(figure, value)| (figure.name, value)).collect();
        let at = |figure: Figure| *figures.get(figure.name).unwrap_or_else(|| panic!("no {}", figure.name));
        for figure in [LOAD1, LOAD5, LOAD15, NET_RX, NET_TX, SWAP_USED] {
            assert!(at(figure) >= 0.0, "{}", figure.name);
        }
        assert!((0.0..=100.0).contains(&at(CPU)));
        assert!(at(MEM_USED) > 0.0 && at(MEM_USED) <= at(MEM_TOTAL));
        assert!(at(MEM_AVAILABLE) <= at(MEM_TOTAL));
        assert!(at(DISK_USED) > 0.0 && at(DISK_USED) <= at(DISK_TOTAL));
        assert!(at(UPTIME) > 0.0);
        assert!(at(RSS) > 1e6 && at(RSS) < at(MEM_TOTAL));
    }

    #[test]
    fn figures_become_samples_of_the_node_itself() {
        let samples = samples(&[(CPU, 12.5)], 7);
        assert_eq!(samples.len(), 1);
        assert!(samples[0].device.is_node());
        assert_eq!(
            (samples[0].metric.as_str(), samples[0].value, samples[0].time_ms),
            ("cpu_percent", 12.5, 7)
        );
        assert_eq!(samples[0].unit.as_ref().map(MetricName::as_str), Some("%"));
    }

    #[test]
    fn the_machine_is_described() {
        let machine = describe();
        assert!(machine.contains_key("hostname") && machine.contains_key("arch"), "{machine:?}");
    }
}
