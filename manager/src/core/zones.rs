//! Time zones of sites: which one a window is of, whether it is open there, and what the clock shows.
//!
//! The rules of zones are data, not state: those of the machine where it has any (they are the newest), else those that
//! this program brings (`jiff`). Nothing here reads a clock.

use std::collections::BTreeMap;

use fleet_schemas::{
    NodeId,
    update::{Hours, Window},
};
use jiff::{
    Span, Timestamp,
    civil::{DateTime, Time},
    tz::TimeZone,
};

use super::fleet::{Fleet, Node};

/// Zone of windows that name none, at sites that have none.
pub const UTC: &str = "UTC";
/// Days that are looked at for the next opening: two are enough but for windows that lie in a gap.
const DAYS: i64 = 4;

/// Whether a window is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opens {
    /// It is.
    Now,
    /// From then on, Unix milliseconds.
    At(i64),
}

/// The zone of an IANA name; `None` when there is none.
#[must_use]
pub fn get(name: &str) -> Option<TimeZone> {
    if name == UTC { Some(TimeZone::UTC) } else { TimeZone::get(name).ok() }
}

/// The name of the zone that a window's hours are of at a site: its own, else that of the site, else UTC.
#[must_use]
pub fn of<'a>(window: &'a Window, site: Option<&str>, sites: &'a BTreeMap<String, String>) -> &'a str {
    let of_site = || site.and_then(|site| sites.get(site)).map(String::as_str);
    window.zone.as_deref().or_else(of_site).unwrap_or(UTC)
}

/// The zone that somebody gave a site.
#[must_use]
pub fn of_site(fleet: &Fleet, site: Option<&str>) -> Option<String> {
    fleet.sites.get(site?).cloned()
}

/// The zone that somebody gave the site of a node.
#[must_use]
pub fn of_node(fleet: &Fleet, node: &Node) -> Option<String> {
    of_site(fleet, node.record.site.as_deref())
}

/// The same by the node's id, also of one that was removed and whose history is kept.
#[must_use]
pub fn at(fleet: &Fleet, node: &NodeId) -> Option<String> {
    of_node(fleet, fleet.known(node)?)
}

/// When a window's hours are next open in a zone. What cannot be read is no limit: it was refused before.
#[must_use]
pub fn opens(window: &Window, zone: &str, now_ms: i64) -> Opens {
    let Some(hours) = window.hours.as_deref().and_then(Hours::parse) else { return Opens::Now };
    let (Some(zone), Ok(now)) = (get(zone), Timestamp::from_millisecond(now_ms)) else { return Opens::Now };
    let shown = zone.to_datetime(now);
    if hours.contains(minute(shown)) {
        return Opens::Now;
    }
    // What comes twice begins twice; in a gap, what lies beyond it begins with its end.
    let begins = (0..DAYS).filter_map(|day| {
        let span = Span::new().days(day).minutes(i64::from(hours.begin()));
        let at = shown.date().to_datetime(Time::midnight()).checked_add(span).ok()?;
        let at = zone.to_ambiguous_timestamp(at);
        Some([at.earlier().ok()?, at.later().ok()?])
    });
    let changes = zone.following(now).take(DAYS as usize).map(|change| change.timestamp());
    let opens = |at: &Timestamp| *at > now && hours.contains(minute(zone.to_datetime(*at)));
    let first = begins.flatten().chain(changes).filter(opens).min();
    first.map_or(Opens::Now, |at| Opens::At(at.as_millisecond()))
}

fn minute(shown: DateTime) -> u16 {
    u16::try_from(i32::from(shown.hour()) * 60 + i32::from(shown.minute())).unwrap_or(0)
}

/// A time as the clocks of a zone show it, with the zone's abbreviation; the number itself when no calendar has it.
#[must_use]
pub fn shown(ms: i64, zone: &TimeZone) -> String {
    match Timestamp::from_millisecond(ms) {
        Ok(time) => time.to_zoned_datetime(zone.clone()).strftime("%Y-%m-%d %H:%M:%S %Z").to_string(),
        Err(_) => ms.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(text: &str) -> i64 {
        text.parse::<Timestamp>().unwrap().as_millisecond()
    }

    fn window(hours: &str) -> Window {
        Window { hours: Some(hours.to_owned()), ..Window::default() }
    }

    /// The next opening as UTC, or `now`.
    fn next(hours: &str, zone: &str, now: &str) -> String {
        match opens(&window(hours), zone, ms(now)) {
            Opens::Now => "now".to_owned(),
            Opens::At(at) => Timestamp::from_millisecond(at).unwrap().to_string(),
        }
    }

    #[test]
    fn a_window_opens_by_the_clock_of_its_site() {
        let berlin = "Europe/Berlin";
        assert_eq!(next("22:00-04:00", berlin, "2026-07-01T19:59:59Z"), "2026-07-01T20:00:00Z");
        assert_eq!(next("22:00-04:00", berlin, "2026-07-01T20:00:00Z"), "now");
        assert_eq!(next("22:00-04:00", berlin, "2026-07-02T01:59:59Z"), "now");
        assert_eq!(next("22:00-04:00", berlin, "2026-07-02T02:00:00Z"), "2026-07-02T20:00:00Z");
        assert_eq!(next("22:00-04:00", berlin, "2026-12-01T21:00:00Z"), "now", "in winter an hour later");
        assert_eq!(next("22:00-04:00", "Asia/Tokyo", "2026-07-01T12:00:00Z"), "2026-07-01T13:00:00Z");
        assert_eq!(next("09:00-10:00", "Asia/Kathmandu", "2026-07-01T00:00:00Z"), "2026-07-01T03:15:00Z");
        assert_eq!(next("22:00-04:00", UTC, "2026-07-01T04:00:00Z"), "2026-07-01T22:00:00Z");
        assert_eq!(next("24:00-01:00", UTC, "2026-07-01T12:00:00Z"), "2026-07-02T00:00:00Z");
        // Nothing that holds anybody up: what no hub would have taken.
        assert_eq!(next("soon", UTC, "2026-07-01T12:00:00Z"), "now");
        assert_eq!(next("22:00-04:00", "Mars/Olympus", "2026-07-01T12:00:00Z"), "now");
        assert_eq!(opens(&Window::default(), berlin, 0), Opens::Now);
    }

    #[test]
    fn hours_that_do_not_exist_do_not_open() {
        // Berlin, 2026-03-29: after 01:59:59 CET comes 03:00:00 CEST.
        let berlin = "Europe/Berlin";
        let before = "2026-03-29T00:30:00Z";
        assert_eq!(
            next("02:15-02:45", berlin, before),
            "2026-03-30T00:15:00Z",
            "the next day, in summer time"
        );
        assert_eq!(
            next("02:15-02:45", berlin, "2026-03-28T01:14:00Z"),
            "2026-03-28T01:15:00Z",
            "the day before"
        );
        // One that reaches beyond the gap is open after it.
        assert_eq!(next("02:30-04:00", berlin, before), "2026-03-29T01:00:00Z", "03:00 CEST");
        assert_eq!(next("02:30-04:00", berlin, "2026-03-29T01:59:00Z"), "now", "03:59 CEST");
        assert_eq!(next("02:30-04:00", berlin, "2026-03-29T02:00:00Z"), "2026-03-30T00:30:00Z");
        // Lord Howe's clocks go by half an hour; Samoa had no 30 December 2011 at all.
        assert_eq!(
            next("02:00-02:30", "Australia/Lord_Howe", "2026-10-03T15:00:00Z"),
            "2026-10-04T15:00:00Z"
        );
        assert_eq!(next("10:00-11:00", "Pacific/Apia", "2011-12-30T00:00:00Z"), "2011-12-30T20:00:00Z");
    }

    #[test]
    fn hours_that_come_twice_are_open_twice() {
        // Berlin, 2026-10-25: after 02:59:59 CEST comes 02:00:00 CET.
        let berlin = "Europe/Berlin";
        assert_eq!(next("02:15-02:45", berlin, "2026-10-25T00:00:00Z"), "2026-10-25T00:15:00Z", "CEST");
        assert_eq!(next("02:15-02:45", berlin, "2026-10-25T00:44:59Z"), "now");
        assert_eq!(next("02:15-02:45", berlin, "2026-10-25T00:50:00Z"), "2026-10-25T01:15:00Z", "CET");
        assert_eq!(next("02:15-02:45", berlin, "2026-10-25T01:15:00Z"), "now", "CET");
        assert_eq!(next("02:15-02:45", berlin, "2026-10-25T01:45:00Z"), "2026-10-26T01:15:00Z");
        // The same minute of the clock, an hour apart, is told apart.
        let zone = get(berlin).unwrap();
        assert_eq!(shown(ms("2026-10-25T00:30:00Z"), &zone), "2026-10-25 02:30:00 CEST");
        assert_eq!(shown(ms("2026-10-25T01:30:00Z"), &zone), "2026-10-25 02:30:00 CET");
    }

    #[test]
    fn times_have_the_zone_that_they_are_of() {
        let at = |zone| shown(ms("2026-07-01T12:00:00Z"), &get(zone).unwrap());
        assert_eq!(at(UTC), "2026-07-01 12:00:00 UTC");
        assert_eq!(at("Asia/Tokyo"), "2026-07-01 21:00:00 JST");
        assert_eq!(at("America/Sao_Paulo"), "2026-07-01 09:00:00 -03", "it has no letters for it");
        assert_eq!(shown(i64::MAX, &TimeZone::UTC), i64::MAX.to_string());
    }

    #[test]
    fn a_window_names_its_zone_or_has_that_of_the_site() {
        let sites = [("berlin".to_owned(), "Europe/Berlin".to_owned())].into();
        let named = Window { zone: Some("Asia/Tokyo".to_owned()), ..window("01:00-02:00") };
        assert_eq!(of(&named, Some("berlin"), &sites), "Asia/Tokyo");
        assert_eq!(of(&window("01:00-02:00"), Some("berlin"), &sites), "Europe/Berlin");
        assert_eq!(of(&window("01:00-02:00"), Some("elsewhere"), &sites), UTC);
        assert_eq!(of(&window("01:00-02:00"), None, &sites), UTC);
    }
}
