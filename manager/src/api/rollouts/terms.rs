//! The terms of a rollout as they are written, and as the core takes them.

use fleet_schemas::update::{Hours, Window};

use crate::{
    api::{problem::Refusal, shapes},
    core::{
        rollout::{Approval, DEADLINE, MaxUnavailable, OnFailure, Size, TIMEOUT, Terms, percent},
        zones,
    },
};

const WAVES: [&str; 4] = ["1", "5%", "25%", "100%"];
const SOAK_MS: i64 = 600_000;
const OFFLINE_MS: i64 = 900_000;
const MAX_FAILURES: f64 = 0.02;
const ALLOWANCE: f64 = 0.1;
const MIN_EXECUTED: u32 = 5;

fn at(field: &str, why: impl Into<String>) -> Refusal {
    Refusal::at(format!("/terms/{field}"), why)
}

/// Reads what is written.
pub(super) fn read(ask: &shapes::RolloutTerms) -> Result<Terms, Refusal> {
    let waves: Vec<String> =
        if ask.waves.is_empty() { WAVES.map(str::to_owned).to_vec() } else { ask.waves.clone() };
    let size = |text: &String| Size::parse(text).map_err(|why| at("waves", why));
    let window = ask.window.as_ref().map(|window| Window {
        hours: window.hours.clone(),
        zone: window.zone.clone(),
        on_power: window.on_power,
        unmetered: window.unmetered,
    });
    Ok(Terms {
        waves: waves.iter().map(size).collect::<Result<_, _>>()?,
        soak_ms: millis("soak_s", ask.soak_s)?.unwrap_or(SOAK_MS),
        max_failures: part("max_failures", ask.max_failures.as_deref())?.unwrap_or(MAX_FAILURES),
        min_executed: ask.min_executed.unwrap_or(MIN_EXECUTED),
        max_unavailable: ask.max_unavailable.as_deref().map(unavailable).transpose()?,
        rate: ask.rate_per_minute,
        window: window.map(check_window).transpose()?,
        gates: ask.gates.clone(),
        on_failure: on_failure(ask.on_failure.as_deref())?,
        approval: approval(ask.approve.as_deref())?,
        deadline_ms: millis("deadline_s", ask.deadline_s)?.unwrap_or(DEADLINE),
        timeout_ms: millis("timeout_s", ask.timeout_s)?.unwrap_or(TIMEOUT),
        offline_ms: millis("offline_s", ask.offline_s)?.unwrap_or(OFFLINE_MS),
        probation_ms: millis("probation_s", ask.probation_s)?,
        offline_ok: ask.offline_ok,
        allowance: part("allowance", ask.allowance.as_deref())?.unwrap_or(ALLOWANCE),
    })
}

/// As they are shown.
pub(super) fn shown(terms: &Terms) -> shapes::RolloutTerms {
    let seconds = |ms: i64| Some(ms as f64 / 1_000.0);
    shapes::RolloutTerms {
        waves: terms.waves.iter().map(|size| size.name()).collect(),
        soak_s: seconds(terms.soak_ms),
        max_failures: Some(percent(terms.max_failures)),
        min_executed: Some(terms.min_executed),
        max_unavailable: terms.max_unavailable.map(|most| {
            let site = if most.per_site { "/site" } else { "" };
            format!("{}{site}", most.nodes)
        }),
        rate_per_minute: terms.rate,
        window: terms.window.as_ref().map(|window| shapes::RolloutWindow {
            hours: window.hours.clone(),
            zone: window.zone.clone(),
            on_power: window.on_power,
            unmetered: window.unmetered,
        }),
        gates: terms.gates.clone(),
        on_failure: Some(
            match terms.on_failure {
                OnFailure::Pause => "pause",
                OnFailure::Stop => "stop",
                OnFailure::Rollback => "rollback",
            }
            .to_owned(),
        ),
        approve: Some(
            match terms.approval {
                Approval::No => "none",
                Approval::Any => "any",
                Approval::Other => "other",
            }
            .to_owned(),
        ),
        deadline_s: seconds(terms.deadline_ms),
        timeout_s: seconds(terms.timeout_ms),
        offline_s: seconds(terms.offline_ms),
        probation_s: terms.probation_ms.and_then(seconds),
        offline_ok: terms.offline_ok,
        allowance: Some(percent(terms.allowance)),
    }
}

fn millis(field: &str, seconds: Option<f64>) -> Result<Option<i64>, Refusal> {
    let Some(seconds) = seconds else { return Ok(None) };
    if !(0.0..=1e8).contains(&seconds) {
        return Err(at(field, "is no number of seconds"));
    }
    Ok(Some((seconds * 1_000.0).round() as i64))
}

fn part(field: &str, text: Option<&str>) -> Result<Option<f64>, Refusal> {
    let Some(text) = text else { return Ok(None) };
    let percent = text.strip_suffix('%').and_then(|text| text.trim().parse::<f64>().ok());
    match percent.filter(|percent| (0.0..=100.0).contains(percent)) {
        Some(percent) => Ok(Some(percent / 100.0)),
        None => Err(at(field, format!("{text:?} is no part; write one such as 2%"))),
    }
}

fn unavailable(text: &str) -> Result<MaxUnavailable, Refusal> {
    let (number, per_site) = text.strip_suffix("/site").map_or((text, false), |number| (number, true));
    let nodes = number.trim().parse().ok().filter(|nodes| *nodes > 0);
    let why = || at("max_unavailable", format!("{text:?} is no number of nodes; write 3, or 1/site"));
    Ok(MaxUnavailable { nodes: nodes.ok_or_else(why)?, per_site })
}

fn on_failure(text: Option<&str>) -> Result<OnFailure, Refusal> {
    match text {
        None | Some("pause") => Ok(OnFailure::Pause),
        Some("stop") => Ok(OnFailure::Stop),
        Some("rollback") => Ok(OnFailure::Rollback),
        Some(other) => Err(at("on_failure", format!("{other:?} is none of pause, stop, rollback"))),
    }
}

fn approval(text: Option<&str>) -> Result<Approval, Refusal> {
    match text {
        None | Some("none") => Ok(Approval::No),
        Some("any") => Ok(Approval::Any),
        Some("other") => Ok(Approval::Other),
        Some(other) => Err(at("approve", format!("{other:?} is none of none, any, other"))),
    }
}

fn check_window(window: Window) -> Result<Window, Refusal> {
    if window.hours.as_deref().is_some_and(|hours| Hours::parse(hours).is_none()) {
        return Err(at("window/hours", "is written 22:00-04:00"));
    }
    if let Some(zone) = &window.zone
        && zones::get(zone).is_none()
    {
        return Err(at("window/zone", format!("{zone:?} is no time zone; an example is Europe/Berlin")));
    }
    Ok(window)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terms_are_shown_as_they_are_written() {
        let ask = shapes::RolloutTerms {
            waves: vec!["1".into(), "12.5%".into(), "100%".into()],
            soak_s: Some(1.5),
            max_failures: Some("2.5%".into()),
            min_executed: Some(3),
            max_unavailable: Some("1/site".into()),
            rate_per_minute: Some(100.0),
            window: Some(shapes::RolloutWindow {
                hours: Some("22:00-04:00".into()),
                zone: Some("Europe/Berlin".into()),
                ..shapes::RolloutWindow::default()
            }),
            gates: vec!["has(\"x\")".into()],
            on_failure: Some("rollback".into()),
            approve: Some("other".into()),
            deadline_s: Some(100.0),
            timeout_s: Some(10.0),
            offline_s: Some(20.0),
            probation_s: Some(5.0),
            offline_ok: true,
            allowance: Some("0%".into()),
        };
        assert_eq!(shown(&read(&ask).unwrap()), ask);
        let usual = shown(&read(&shapes::RolloutTerms::default()).unwrap());
        assert_eq!(usual.waves, WAVES);
        assert_eq!(shown(&read(&usual).unwrap()), usual);
        let bad = |change: &dyn Fn(&mut shapes::RolloutTerms)| {
            let mut terms = shapes::RolloutTerms::default();
            change(&mut terms);
            read(&terms).unwrap_err()
        };
        bad(&|terms| terms.waves = vec!["0".into()]);
        bad(&|terms| terms.max_failures = Some("2".into()));
        bad(&|terms| terms.max_unavailable = Some("0/site".into()));
        bad(&|terms| terms.soak_s = Some(-1.0));
        bad(&|terms| terms.on_failure = Some("cry".into()));
        let hours = |hours: &str| {
            Some(shapes::RolloutWindow { hours: Some(hours.into()), ..shapes::RolloutWindow::default() })
        };
        bad(&|terms| terms.window = hours("22-4"));
        bad(&|terms| terms.window = hours("25:00-04:00"));
    }
}
