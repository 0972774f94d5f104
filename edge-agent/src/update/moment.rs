//! What windows ask about the moment: the time of day, power, the link.

use std::{fs, path::Path};

use fleet_schemas::update::Window;
use jiff::{Timestamp, tz::TimeZone};

use super::Config;
use crate::core::update::window::Local;

/// Where Linux says what gives power.
const POWER: &str = "/sys/class/power_supply";

/// Whether the zone of a window is known here.
pub(super) fn knows_zone(window: Option<&Window>) -> bool {
    window.and_then(|window| window.zone.as_deref()).is_none_or(|zone| TimeZone::get(zone).is_ok())
}

/// The time of day in a window's zone.
pub(super) fn local(window: Option<&Window>, true_ms: Option<i64>) -> Local {
    let zone = window.and_then(|window| window.zone.as_deref()).unwrap_or("UTC");
    let minute = || {
        let zone = if zone == "UTC" { TimeZone::UTC } else { TimeZone::get(zone).ok()? };
        let time = zone.to_datetime(Timestamp::from_millisecond(true_ms?).ok()?);
        let (hour, minute) = (u16::try_from(time.hour()).ok()?, u16::try_from(time.minute()).ok()?);
        Some(hour * 60 + minute)
    };
    minute().map_or(Local::Unknown, Local::Minute)
}

/// Whether the machine has outside power: it has, unless it says that it lives on a battery.
pub(super) fn on_power() -> bool {
    power_in(Path::new(POWER))
}

fn power_in(folder: &Path) -> bool {
    let Ok(supplies) = fs::read_dir(folder) else { return true };
    let word = |path: &Path, name: &str| {
        fs::read_to_string(path.join(name)).map(|text| text.trim().to_owned()).unwrap_or_default()
    };
    let (mut outside, mut online, mut discharging) = (false, false, false);
    for supply in supplies.flatten() {
        let path = supply.path();
        match word(&path, "type").as_str() {
            "Battery" => discharging |= word(&path, "status") == "Discharging",
            "Mains" | "USB" | "Wireless" => {
                outside = true;
                online |= word(&path, "online") == "1";
            }
            _ => {}
        }
    }
    if outside { online } else { !discharging }
}

/// Whether the link is paid by the byte.
pub(super) fn metered(config: &Config) -> bool {
    config.metered || config.metered_while.as_ref().is_some_and(|path| path.exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_day_is_that_of_the_site() {
        let window = |zone: &str| Window { zone: Some(zone.into()), ..Window::default() };
        // 2026-07-01T22:30:00Z
        let ms = Some(1_782_945_000_000);
        assert_eq!(local(None, ms), Local::Minute(22 * 60 + 30));
        assert_eq!(local(Some(&window("Europe/Berlin")), ms), Local::Minute(30));
        assert_eq!(local(Some(&window("Mars/Olympus")), ms), Local::Unknown);
        assert_eq!(local(None, None), Local::Unknown);
        assert!(knows_zone(None) && knows_zone(Some(&window("Europe/Berlin"))));
        assert!(!knows_zone(Some(&window("Mars/Olympus"))));
    }

    #[test]
    fn a_machine_without_a_battery_has_power() {
        let folder = tempfile::tempdir().unwrap();
        let supply = |name: &str, words: &[(&str, &str)]| {
            let path = folder.path().join(name);
            fs::create_dir_all(&path).unwrap();
            words.iter().for_each(|(key, word)| fs::write(path.join(key), format!("{word}\n")).unwrap());
        };
        assert!(power_in(&folder.path().join("absent")) && power_in(folder.path()));
        supply("BAT0", &[("type", "Battery"), ("status", "Discharging")]);
        assert!(!power_in(folder.path()));
        supply("AC", &[("type", "Mains"), ("online", "1")]);
        assert!(power_in(folder.path()));
        supply("AC", &[("online", "0")]);
        assert!(!power_in(folder.path()));
    }
}
