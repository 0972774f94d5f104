//! `fleet doctor`: looks at a hub from outside and says what is wrong and what to do about it.
//!
//! Asks what any operator may ask. Judging is pure; what may not be looked at is told as such and judged by nobody.

mod releases;
mod room;

use std::collections::BTreeMap;

use clap::Args;
use serde::Serialize;
use serde_json::{Value, json};

use super::{
    Context, Failure, figure,
    output::{Cell, Table, Tone, ago, count, until},
};
use crate::{
    api::shapes::{Node, Pki, Restored, Status},
    clock,
};

/// Takes the common flags only.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  fleet doctor\n  fleet doctor -o json\n\n\
    Exit code 1 when something is wrong; a warning alone is none.")]
pub(super) struct DoctorArgs {}

/// Clocks further apart make times hard to compare, and certificates fail, in milliseconds.
const APART_MS: u64 = 5_000;
/// A CA that ends so soon is to be changed: nodes need time to follow.
const CA_MS: i64 = 30 * DAY_MS;
/// Other certificates renew themselves long before.
const SOON_MS: i64 = 3 * DAY_MS;
const DAY_MS: i64 = 86_400_000;
/// Use of a disk, in percent, that is worth a word, and that is too much.
const FULL: [f64; 2] = [85.0, 95.0];
/// Names that a line lists.
const LISTED: usize = 5;

/// What a check came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    Unknown,
    Warning,
    Wrong,
}

/// One look at one thing.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Check {
    check: &'static str,
    verdict: Verdict,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
}

/// What was found; what could not be asked for says why.
struct Found {
    status: Result<Status, Failure>,
    pki: Result<Pki, Failure>,
    nodes: Result<Vec<Node>, Failure>,
    metrics: Result<String, Failure>,
    here_ms: i64,
}

/// Runs the verb.
///
/// # Errors
/// [`Failure::Failed`] when something is wrong, [`Failure::Unreachable`] when no hub answers.
pub(super) async fn run(_: DoctorArgs, context: &Context) -> Result<(), Failure> {
    let Context { client, out } = context;
    // Without an answer there is nothing else to look at, and the failure says what to do.
    let _version: Value = client.get(&["version"], &[]).await?;
    let found = Found {
        status: client.get(&["api", "v1", "status"], &[]).await,
        here_ms: clock::wall_ms(),
        pki: client.get(&["api", "v1", "pki"], &[]).await,
        nodes: client.list(&["api", "v1", "nodes"], &[], None).await,
        metrics: client.text(&["metrics"], &[], "text/plain").await,
    };
    let checks = judge(&found, client.base());
    let wrong = checks.iter().filter(|check| check.verdict == Verdict::Wrong).count();
    out.show(&json!({ "ok": wrong == 0, "checks": checks }), || text(&checks, out.color))?;
    match wrong {
        0 => Ok(()),
        1 => Err(Failure::Failed("one thing is wrong; see above".to_owned())),
        wrong => Err(Failure::Failed(format!("{wrong} things are wrong; see above"))),
    }
}

fn judge(found: &Found, base: &str) -> Vec<Check> {
    let mut checks = vec![Check::ok("hub", format!("answers at {base}"))];
    match &found.status {
        Ok(status) => {
            checks.extend([ready(status), clocks(status, found.here_ms), disk(status)]);
            checks.extend(room::room(status));
            checks.push(ledger(status));
            checks.extend(status.restored.as_ref().map(restored));
        }
        Err(failure) => checks.push(Check::unknown("readiness", failure)),
    }
    let now_ms = found.status.as_ref().map_or(found.here_ms, |status| status.now_ms);
    match &found.pki {
        Ok(pki) => checks.push(certificates(pki, now_ms)),
        Err(failure) => checks.push(Check::unknown("certificates", failure)),
    }
    match &found.nodes {
        Ok(nodes) => {
            let hub = found.status.as_ref().ok().map(|status| status.version.as_str());
            checks.extend([presence(nodes), node_certificates(nodes, now_ms), node_disks(nodes)]);
            checks.extend(hub.map(|hub| versions(nodes, hub)));
        }
        Err(failure) => checks.push(Check::unknown("nodes", failure)),
    }
    match &found.metrics {
        Ok(text) => {
            checks.extend([broker(text), store(text)]);
            checks.extend(releases::releases(text, now_ms));
        }
        Err(failure) => checks.push(Check::unknown("broker", failure)),
    }
    checks
}

impl Check {
    fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Ok, found: found.into(), advice: None }
    }

    fn unknown(check: &'static str, failure: &Failure) -> Self {
        Self { verdict: Verdict::Unknown, ..Self::ok(check, format!("cannot be looked at: {failure}")) }
    }

    fn bad(self, verdict: Verdict, advice: &str) -> Self {
        Self { verdict, advice: Some(advice.to_owned()), ..self }
    }
}

fn ready(status: &Status) -> Check {
    match (status.ready, status.reasons.is_empty()) {
        (true, true) => Check::ok("readiness", format!("version {} takes data", status.version)),
        (true, false) => Check::ok("readiness", status.reasons.join("; "))
            .bad(Verdict::Warning, "data is stored all the same; do what it says"),
        (false, _) => Check::ok("readiness", status.reasons.join("; "))
            .bad(Verdict::Wrong, "nodes keep what they have until it is mended; do what it says"),
    }
}

fn clocks(status: &Status, here_ms: i64) -> Check {
    let apart_ms = here_ms.abs_diff(status.now_ms);
    let found = Check::ok("clock", format!("the hub's and this machine's are {} ms apart", apart_ms));
    if apart_ms <= APART_MS {
        found
    } else {
        found.bad(Verdict::Warning, "set both by NTP; the hub's decides what its times mean")
    }
}

fn disk(status: &Status) -> Check {
    let Some(disk) = &status.disk else {
        return Check { verdict: Verdict::Unknown, ..Check::ok("disk", "the hub cannot tell") };
    };
    let used = 100.0 * (1.0 - disk.free_bytes as f64 / (disk.total_bytes as f64).max(1.0));
    let found = Check::ok("disk", format!("{used:.0}% of the hub's is used{}", room::by(disk)));
    let advice = "make room, or let the store keep less: max_disk_bytes under [keep] in fleet.toml";
    match used {
        used if used > FULL[1] => found.bad(Verdict::Wrong, advice),
        used if used > FULL[0] => found.bad(Verdict::Warning, advice),
        _ => found,
    }
}

fn ledger(status: &Status) -> Check {
    let of = |state: &str| status.accounts_by_state.get(state).copied().unwrap_or(0);
    let found = Check::ok(
        "ledger",
        format!("{} balanced, {} pending, {} broken", of("balanced"), of("pending"), of("broken")),
    );
    if of("broken") == 0 {
        found
    } else {
        found.bad(Verdict::Wrong, "`fleet ledger` names the accounts and says why")
    }
}

fn restored(restored: &Restored) -> Check {
    let Restored { nodes, nodes_back, nodes_settled, records_due, records_lost, held, .. } = restored;
    let found = Check::ok(
        "restore",
        format!(
            "{} of {} nodes came back since, {} settled; {} records due, {} lost",
            count(*nodes_back),
            count(*nodes),
            count(*nodes_settled),
            count(*records_due),
            count(*records_lost)
        ),
    );
    match (*held, nodes_settled == nodes) {
        (0, true) => found,
        (0, false) => found
            .bad(Verdict::Warning, "`fleet status` names nodes that are not back; they keep what they have"),
        (_, _) => found.bad(
            Verdict::Warning,
            "commands are held: `fleet command ls --state queued`, then `fleet command approve` or `cancel`",
        ),
    }
}

fn certificates(pki: &Pki, now_ms: i64) -> Check {
    let left = |at_ms: i64| at_ms.saturating_sub(now_ms);
    let signing = pki.authorities.iter().filter(|one| one.signs_clients).map(|one| one.not_after_ms).min();
    let server = pki.server.not_after_ms;
    let found = Check::ok(
        "certificates",
        format!(
            "the CA ends in {}, the hub's own in {}",
            until(now_ms, signing),
            until(now_ms, Some(server))
        ),
    );
    match signing.map(left) {
        Some(..0) => {
            found.bad(Verdict::Wrong, "`fleet pki rotate ca` makes a new CA; nodes have to join anew")
        }
        Some(..CA_MS) => {
            found.bad(Verdict::Warning, "`fleet pki rotate ca` makes a new one while nodes stay connected")
        }
        _ if left(server) < SOON_MS => {
            found.bad(Verdict::Wrong, "it should have renewed itself; `fleet pki rotate server` does it now")
        }
        _ => found,
    }
}

fn presence(nodes: &[Node]) -> Check {
    let mut states: BTreeMap<&str, u64> = BTreeMap::new();
    for node in nodes {
        *states.entry(node.state.as_str()).or_default() += 1;
    }
    let words: Vec<_> = states.iter().map(|(state, n)| format!("{} {state}", count(*n))).collect();
    let found = if words.is_empty() { "none yet".to_owned() } else { words.join(", ") };
    let found = Check::ok("nodes", found);
    match nodes.iter().find(|node| node.state == "offline") {
        Some(node) => {
            found.bad(Verdict::Warning, &format!("`fleet why {}` says why one is offline", node.id))
        }
        None => found,
    }
}

/// A check that some nodes may fail.
fn some(check: &'static str, good: &str, bad: &[String], verdict: Verdict, advice: &str) -> Check {
    if bad.is_empty() {
        return Check::ok(check, good);
    }
    let mut names = bad.iter().take(LISTED).cloned().collect::<Vec<_>>().join(", ");
    if bad.len() > LISTED {
        names.push_str(&format!(" and {} more", bad.len() - LISTED));
    }
    Check::ok(check, names).bad(verdict, advice)
}

fn node_certificates(nodes: &[Node], now_ms: i64) -> Check {
    let enrolled = nodes.iter().filter(|node| node.enrolment.state == "enrolled");
    let ending = enrolled.filter_map(|node| {
        let at_ms = node.enrolment.not_after_ms.filter(|at_ms| at_ms.saturating_sub(now_ms) < SOON_MS)?;
        Some(format!("{} ({})", node.id, until(now_ms, Some(at_ms))))
    });
    some(
        "node certificates",
        "none ends within three days",
        &ending.collect::<Vec<_>>(),
        Verdict::Warning,
        "they renew themselves while they reach the node port; one that is over joins anew: \
         `fleet join-token create --replace NODE`",
    )
}

fn node_disks(nodes: &[Node]) -> Check {
    let full = nodes.iter().filter_map(|node| {
        let used = figure::disk(node).filter(|used| *used > FULL[1])?;
        Some(format!("{} ({used:.0}%)", node.id))
    });
    some(
        "node disks",
        "none is full",
        &full.collect::<Vec<_>>(),
        Verdict::Warning,
        "make room there: an outbox that cannot grow sheds its oldest records, and says so",
    )
}

fn versions(nodes: &[Node], hub: &str) -> Check {
    let told = nodes.iter().filter(|node| !node.versions.agent.is_empty());
    let other = told.filter(|node| node.versions.agent != hub);
    let other: Vec<_> = other.map(|node| format!("{} ({})", node.id, node.versions.agent)).collect();
    let good = format!("all agents are of the hub's version {hub}");
    let advice = format!("the hub is {hub}; bring agents and hub to one version when you can");
    some("versions", &good, &other, Verdict::Warning, &advice)
}

/// The sum of a metric over its labels.
fn metric(text: &str, name: &str) -> f64 {
    let value = |line: &str| {
        let rest = line.strip_prefix(name)?;
        let rest = if rest.starts_with('{') { rest.rsplit_once('}')?.1 } else { rest };
        rest.strip_prefix(' ')?.trim().parse::<f64>().ok()
    };
    text.lines().filter_map(value).sum()
}

fn broker(text: &str) -> Check {
    let of = |name: &str| metric(text, name) as u64;
    let (sessions, paused) = (of("fleet_gate_sessions"), of("fleet_gate_paused_sessions"));
    let (rebuilds, lost) = (of("fleet_router_rebuilds_total"), of("fleet_gate_down_lost_total"));
    let found = Check::ok(
        "broker",
        format!(
            "{sessions} sessions, {paused} paused, {lost} messages to nodes not written, {rebuilds} routers replaced"
        ),
    );
    match (rebuilds, paused) {
        (0, 0) => found,
        (0, _) => found.bad(
            Verdict::Warning,
            "the store is slower than what comes in; look at the hub's disk and processor",
        ),
        (_, _) => {
            found.bad(Verdict::Warning, "nothing is lost by that; the hub's log says what the router died of")
        }
    }
}

fn store(text: &str) -> Check {
    let of = |name: &str| metric(text, name) as u64;
    let (failures, aside) = (of("fleet_store_commit_failures_total"), of("fleet_store_set_aside_files"));
    let lag = ago((metric(text, "fleet_store_seal_lag_seconds") * 1_000.0) as i64, Some(0));
    let found = Check::ok(
        "store",
        format!("{failures} commits failed since the start, {aside} damaged files set aside, {lag} unsealed"),
    );
    match (failures > 0, aside > 0) {
        (_, true) => found.bad(
            Verdict::Wrong,
            "restore the files that were set aside from a backup; they lie in the data folder",
        ),
        (true, false) => {
            found.bad(Verdict::Warning, "nothing of them was acked; look at the hub's disk and log")
        }
        (false, false) => found,
    }
}

fn text(checks: &[Check], color: bool) -> String {
    let mut table = Table::new(&["check", "verdict", "found"]);
    for check in checks {
        let (word, tone) = match check.verdict {
            Verdict::Ok => ("ok", Tone::Good),
            Verdict::Unknown => ("unknown", Tone::Faint),
            Verdict::Warning => ("warning", Tone::Warning),
            Verdict::Wrong => ("wrong", Tone::Bad),
        };
        table.row(vec![Cell::left(check.check), Cell::toned(word, tone), Cell::left(&check.found)]);
        if let Some(advice) = &check.advice {
            table.row(vec![Cell::left(""), Cell::left(""), Cell::left(format!("→ {advice}"))]);
        }
    }
    table.text(color)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::shapes::{Authority, DiskSpace, Enrolment, ServerCertificate};

    type Spoil = fn(&mut Found);

    fn well() -> Found {
        let status = Status {
            version: "0.1.0".to_owned(),
            ready: true,
            accounts_by_state: [("balanced".to_owned(), 4)].into(),
            disk: Some(DiskSpace { free_bytes: 60, total_bytes: 100, ..DiskSpace::default() }),
            ..Status::default()
        };
        let ca = Authority { not_after_ms: 3_650 * DAY_MS, signs_clients: true, ..Authority::default() };
        let server = ServerCertificate { not_after_ms: 30 * DAY_MS, ..ServerCertificate::default() };
        let mut node = Node { id: "edge-1".to_owned(), state: "online".to_owned(), ..Node::default() };
        node.versions.agent = "0.1.0".to_owned();
        node.enrolment = Enrolment {
            state: "enrolled".to_owned(),
            not_after_ms: Some(20 * DAY_MS),
            ..Enrolment::default()
        };
        Found {
            status: Ok(status),
            pki: Ok(Pki { authorities: vec![ca], server, ..Pki::default() }),
            nodes: Ok(vec![node]),
            metrics: Ok("fleet_gate_sessions 1\nfleet_gate_down_lost_total{reason=\"gone\"} 2\n".to_owned()),
            here_ms: 0,
        }
    }

    fn verdict(found: &Found, check: &str) -> Verdict {
        let checks = judge(found, "http://hub");
        checks.iter().find(|one| one.check == check).unwrap_or_else(|| panic!("{check}: {checks:?}")).verdict
    }

    #[test]
    fn a_hub_that_is_well_is_told_in_a_table() {
        insta::assert_snapshot!(text(&judge(&well(), "http://hub"), false), @"
        CHECK              VERDICT  FOUND
        hub                ok       answers at http://hub
        readiness          ok       version 0.1.0 takes data
        clock              ok       the hub's and this machine's are 0 ms apart
        disk               ok       40% of the hub's is used
        ledger             ok       4 balanced, 0 pending, 0 broken
        certificates       ok       the CA ends in 3650d0h, the hub's own in 30d0h
        nodes              ok       1 online
        node certificates  ok       none ends within three days
        node disks         ok       none is full
        versions           ok       all agents are of the hub's version 0.1.0
        broker             ok       1 sessions, 0 paused, 2 messages to nodes not written, 0 routers replaced
        store              ok       0 commits failed since the start, 0 damaged files set aside, 0s unsealed
        ");
    }

    #[test]
    fn whatever_is_wrong_is_found_and_comes_with_advice() {
        let spoiled: [(&str, Verdict, Spoil); 10] = [
            ("readiness", Verdict::Wrong, |found| {
                let status = found.status.as_mut().unwrap();
                (status.ready, status.reasons) = (false, vec!["nothing is acked: no space".to_owned()]);
            }),
            ("clock", Verdict::Warning, |found| found.here_ms = 60_000),
            ("disk", Verdict::Wrong, |found| {
                found.status.as_mut().unwrap().disk =
                    Some(DiskSpace { free_bytes: 1, total_bytes: 100, ..DiskSpace::default() });
            }),
            ("ledger", Verdict::Wrong, |found| {
                found.status.as_mut().unwrap().accounts_by_state.insert("broken".to_owned(), 1);
            }),
            ("certificates", Verdict::Warning, |found| {
                found.pki.as_mut().unwrap().authorities[0].not_after_ms = 29 * DAY_MS;
            }),
            ("certificates", Verdict::Wrong, |found| {
                found.pki.as_mut().unwrap().server.not_after_ms = DAY_MS;
            }),
            ("nodes", Verdict::Warning, |found| {
                found.nodes.as_mut().unwrap()[0].state = "offline".to_owned();
            }),
            ("node certificates", Verdict::Warning, |found| {
                found.nodes.as_mut().unwrap()[0].enrolment.not_after_ms = Some(DAY_MS);
            }),
            ("versions", Verdict::Warning, |found| {
                found.nodes.as_mut().unwrap()[0].versions.agent = "0.0.9".to_owned();
            }),
            ("store", Verdict::Wrong, |found| {
                found.metrics = Ok("fleet_store_set_aside_files 1\n".to_owned());
            }),
        ];
        for (check, expected, spoil) in spoiled {
            let mut found = well();
            assert_eq!(verdict(&found, check), Verdict::Ok, "{check}");
            spoil(&mut found);
            assert_eq!(verdict(&found, check), expected, "{check}");
            let checks = judge(&found, "http://hub");
            assert!(
                checks.iter().all(|one| one.verdict <= Verdict::Unknown || one.advice.is_some()),
                "{check}"
            );
        }
        let mut found = well();
        found.pki = Err(Failure::Denied("eve is viewer".to_owned()));
        assert_eq!(verdict(&found, "certificates"), Verdict::Unknown);
    }
}
