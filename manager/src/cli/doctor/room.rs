//! How long the hub's disk lasts: what fills it, which retention acts when, and what to do where that is too soon.

use super::{Check, Verdict};
use crate::{
    api::shapes::{DiskForecast, DiskSpace, Status},
    cli::output::bytes,
};

/// A disk that is full so soon is worth a word: there is time to buy another.
const SOON_DAYS: f64 = 30.0;

/// What uses it, in brackets; nothing where the hub does not tell yet.
pub(super) fn by(disk: &DiskSpace) -> String {
    let part = |(name, used): (&String, &u64)| format!("{name} {}", bytes(*used as f64));
    let parts: Vec<_> = disk.used_bytes.iter().map(part).collect();
    if parts.is_empty() { String::new() } else { format!(" ({})", parts.join(", ")) }
}

/// What is to come; none from a hub that does not look at its disk.
pub(super) fn room(status: &Status) -> Option<Check> {
    let disk = status.disk.as_ref().filter(|disk| !disk.level.is_empty())?;
    let Some(forecast) = &disk.forecast else {
        let watched = disk.watched_s / 3_600;
        let found =
            format!("no forecast yet: the hub has looked for {watched} of the 6 hours that one takes");
        return Some(Check::ok("disk forecast", found));
    };
    let found = Check::ok("disk forecast", sentence(disk, forecast));
    Some(match (forecast.full_days, forecast.kept_days) {
        (Some(days), _) if days < SOON_DAYS => found.bad(
            Verdict::Warning,
            "make room for what grows beside telemetry, or a larger disk: retention does not hold it",
        ),
        (_, Some(_)) => found.bad(
            Verdict::Warning,
            "size decides before age: a larger disk, more max_disk_bytes, or fewer days under [keep] in fleet.toml",
        ),
        (Some(_) | None, None) => found,
    })
}

fn sentence(disk: &DiskSpace, forecast: &DiskForecast) -> String {
    let DiskForecast { daily_bytes, next, next_days, kept_days, full_days } = forecast;
    let grows: Vec<_> = (daily_bytes.iter())
        .filter(|(_, daily)| **daily > 0)
        .map(|(name, daily)| format!("{name} by {}", bytes(*daily as f64)))
        .collect();
    let mut text = match grows.as_slice() {
        [] => "nothing grows".to_owned(),
        grows => format!("{} a day", grows.join(", ")),
    };
    match (next.as_deref(), next_days) {
        (Some("age"), Some(days)) => {
            text.push_str(&format!(
                "; in {days:.0} days the oldest samples are {} days old and go",
                disk.keep_days
            ));
        }
        (Some("size"), Some(days)) => {
            let most = bytes(disk.telemetry_most_bytes as f64);
            text.push_str(&format!("; in {days:.0} days telemetry has its {most}, and the oldest goes"));
        }
        _ => {}
    }
    if let Some(kept) = kept_days {
        text.push_str(&format!("; samples will be kept for about {kept:.0} days, not {}", disk.keep_days));
    }
    match full_days {
        Some(days) => text.push_str(&format!("; the disk is full in {days:.0} days")),
        None => text.push_str("; the disk does not fill up"),
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(forecast: Option<DiskForecast>) -> Check {
        let disk = DiskSpace {
            free_bytes: 60,
            total_bytes: 100,
            level: "fine".to_owned(),
            telemetry_most_bytes: 50_000_000_000,
            keep_days: 90,
            watched_s: 2 * 3_600,
            forecast,
            ..DiskSpace::default()
        };
        room(&Status { disk: Some(disk), ..Status::default() }).unwrap()
    }

    #[test]
    fn a_hub_that_has_just_begun_to_look_foretells_nothing() {
        let check = told(None);
        assert_eq!(check.verdict, Verdict::Ok);
        assert!(check.found.contains("2 of the 6 hours"), "{}", check.found);
        assert!(room(&Status { disk: Some(DiskSpace::default()), ..Status::default() }).is_none());
    }

    #[test]
    fn days_are_told_by_what_and_which_retention_acts() {
        let grows = DiskForecast {
            daily_bytes: [("telemetry".to_owned(), 1_000_000_000), ("state".to_owned(), -5)].into(),
            next: Some("size".to_owned()),
            next_days: Some(40.4),
            kept_days: Some(50.0),
            full_days: None,
        };
        let check = told(Some(grows.clone()));
        assert_eq!(check.verdict, Verdict::Warning);
        assert!(
            check.found.starts_with("telemetry by ") && !check.found.contains("state"),
            "{}",
            check.found
        );
        assert!(check.found.contains("in 40 days telemetry has its"), "{}", check.found);
        assert!(check.found.contains("kept for about 50 days, not 90"), "{}", check.found);
        let fills = DiskForecast { full_days: Some(12.0), kept_days: None, ..grows.clone() };
        let check = told(Some(fills));
        assert!(check.verdict == Verdict::Warning && check.found.ends_with("the disk is full in 12 days"));
        let rests = DiskForecast { next: Some("age".to_owned()), kept_days: None, ..grows };
        assert_eq!(told(Some(rests)).verdict, Verdict::Ok);
    }
}
