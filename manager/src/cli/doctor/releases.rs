//! How long what is signed of releases is good: people have to renew root and targets, the hub the rest.

use super::{Check, DAY_MS, Verdict, metric, until};

/// Nothing for a hub that has no releases.
pub(super) fn releases(text: &str, now_ms: i64) -> Option<Check> {
    let ends = |role: &str| {
        let at_s = metric(text, &format!("fleet_release_expiry_timestamp_seconds{{role=\"{role}\"}}"));
        (at_s > 0.0).then_some((at_s * 1_000.0) as i64)
    };
    let people = ends("root")?.min(ends("targets")?);
    let hub = ends("snapshot")?.min(ends("timestamp")?);
    let told = format!(
        "what people signed ends in {}, what the hub did in {}",
        until(now_ms, Some(people)),
        until(now_ms, Some(hub))
    );
    let found = Check::ok("releases", told);
    let renew = "`fleet release rotate --renew` signs for another year; nodes update no more without";
    Some(match (people.saturating_sub(now_ms), hub.saturating_sub(now_ms)) {
        (..0, _) => found.bad(Verdict::Wrong, renew),
        (_, ..0) => {
            found.bad(Verdict::Wrong, "it should have renewed itself; the hub's log says why it could not")
        }
        (soon, _) if soon < 30 * DAY_MS => found.bad(Verdict::Warning, renew),
        _ => found,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ends_soon_is_told_in_time() {
        let text = |root: i64, targets: i64, timestamp: i64| {
            let line = |role: &str, days: i64| {
                format!(
                    "fleet_release_expiry_timestamp_seconds{{role=\"{role}\"}} {}\n",
                    days * DAY_MS / 1_000
                )
            };
            line("root", root)
                + &line("targets", targets)
                + &line("snapshot", 100)
                + &line("timestamp", timestamp)
        };
        let verdict = |text: &str| releases(text, 50 * DAY_MS).map(|check| check.verdict);
        assert_eq!(verdict("fleet_releases 0\n"), None);
        assert_eq!(verdict(&text(300, 300, 51)), Some(Verdict::Ok));
        assert_eq!(verdict(&text(300, 79, 51)), Some(Verdict::Warning));
        assert_eq!(verdict(&text(49, 300, 51)), Some(Verdict::Wrong));
        assert_eq!(verdict(&text(300, 300, 49)), Some(Verdict::Wrong));
    }
}
