//! `fleet rollout`: a signed release to many nodes, in waves.

use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use reqwest::Method;
use serde_json::{Value, json};

use super::{
    Context, Failure,
    output::{Cell, Format, Table, Tone, ago, bytes, clean, read, until},
    period, selector,
};
use crate::api::shapes::{Rollout, RolloutAsk, RolloutDraft, RolloutTerms, RolloutWindow};

mod watch;

/// The verbs on rollouts.
#[derive(Debug, Subcommand)]
pub(super) enum RolloutVerb {
    /// Roll a signed release out in waves
    #[command(after_help = "Examples:\n  fleet rollout create greeter@1.2.0 --all --dry-run\n  \
        fleet rollout create greeter@1.2.0 -l site=berlin --waves 1,5%,25%,100% --soak 10m --watch\n  \
        fleet rollout create fleet-agent@0.2.0 --all --max-unavailable 1/site --rate 100/min --on-failure rollback\n  \
        fleet rollout create greeter@1.2.0 --all --window 22:00-04:00 --zone Europe/Berlin --approve\n  \
        fleet rollout create greeter@1.2.0 --all --gate 'avg_over(\"cpu_percent\",\"5m\") < 80'\n\n\
        A node counts as done only when it says that the new release is confirmed and that this is what it runs;\n\
        one that says nothing in its time has failed. When more than --max-failures of a wave fail, it halts.")]
    Create(Box<CreateArgs>),
    /// Watch a rollout to its end; exits 0 when it is done, 1 when it is not, 6 when nodes failed
    #[command(
        after_help = "Examples:\n  fleet rollout watch greeter-1.2.0-1\n  fleet rollout watch greeter-1.2.0-1 -o json"
    )]
    Watch {
        /// Its name
        id: String,
    },
    /// List rollouts, newest first
    #[command(
        after_help = "Examples:\n  fleet rollout ls\n  fleet rollout ls --state running,paused -o json"
    )]
    Ls {
        /// In these states: waiting_approval, running, paused, rolling_back, done, stopped, rolled_back, failed
        #[arg(long, value_name = "STATES")]
        state: Option<String>,
        /// At most so many
        #[arg(long, value_name = "N")]
        limit: Option<usize>,
    },
    /// Show one rollout: its waves, its plan, and where each node stands
    #[command(after_help = "Examples:\n  fleet rollout get greeter-1.2.0-1\n  \
        fleet rollout get greeter-1.2.0-1 --state failed,rolled_back,timed_out\n  fleet rollout get greeter-1.2.0-1 -o yaml")]
    Get {
        /// Its name
        id: String,
        /// Only nodes in these states
        #[arg(long, value_name = "STATES")]
        state: Option<String>,
    },
    /// Tell no further node; those that were told go on
    #[command(after_help = "Examples:\n  fleet rollout pause greeter-1.2.0-1 --reason 'the shop is open'")]
    Pause(ActArgs),
    /// Go on; what failed until now does not count again
    #[command(after_help = "Examples:\n  fleet rollout resume greeter-1.2.0-1")]
    Resume {
        /// Its name
        id: String,
    },
    /// Call it off; nodes that have the release keep it
    #[command(after_help = "Examples:\n  fleet rollout abort greeter-1.2.0-1 --reason 'wrong sites'")]
    Abort(ActArgs),
    /// Call it off, and take every node that has the release back to what it ran before
    #[command(
        after_help = "Examples:\n  fleet rollout rollback greeter-1.2.0-1 --reason 'customers complain'\n\n\
        The way back is a rollout of its own; `fleet rollout watch` of this one shows its name."
    )]
    Rollback(ActArgs),
    /// Let a rollout begin that waits for it
    #[command(after_help = "Examples:\n  fleet rollout approve greeter-1.2.0-1")]
    Approve {
        /// Its name
        id: String,
    },
}

/// What happens when too many nodes fail.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum OnFailure {
    /// Tell no further node until an operator says so
    Pause,
    /// It is over
    Stop,
    /// It is over, and nodes that have the release go back
    Rollback,
}

/// What to roll out to whom, and how.
#[derive(Debug, Args)]
pub(super) struct CreateArgs {
    /// A signed release, NAME@VERSION
    release: String,
    /// To nodes that match; those that match it later join the last wave
    #[arg(short = 'l', long, value_name = "SELECTOR", conflicts_with_all = ["all", "node"])]
    selector: Option<String>,
    /// To every node
    #[arg(long, conflicts_with = "node")]
    all: bool,
    /// To these nodes
    #[arg(long, value_name = "NODE", value_delimiter = ',')]
    node: Vec<String>,
    /// Sizes of the waves, counted from the first node; the last is 100%
    #[arg(long, value_name = "SIZES", value_delimiter = ',', default_value = "1,5%,25%,100%")]
    waves: Vec<String>,
    /// How long a wave is watched after its last node
    #[arg(long, value_name = "PERIOD", default_value = "10m", value_parser = zero)]
    soak: Duration,
    /// The part of a wave that may fail
    #[arg(long, value_name = "PART", default_value = "2%")]
    max_failures: String,
    /// So many nodes come to an end before that counts; of a smaller wave all
    #[arg(long, value_name = "N", default_value_t = 5)]
    min_executed: u32,
    /// How many nodes may be down at once: 3, or 1/site
    #[arg(long, value_name = "N[/site]")]
    max_unavailable: Option<String>,
    /// How many nodes are told in a minute, such as 100/min
    #[arg(long, value_name = "N/min", value_parser = rate)]
    rate: Option<f64>,
    /// The hours in which nodes may download and switch, such as 22:00-04:00
    #[arg(long, value_name = "HOURS")]
    window: Option<String>,
    /// The time zone of --window, by its IANA name; that of each node's site unless given (`fleet site set`), else UTC
    #[arg(long, requires = "window")]
    zone: Option<String>,
    /// Only while a node has outside power
    #[arg(long)]
    on_power: bool,
    /// Not over a link that is paid by the byte
    #[arg(long)]
    unmetered: bool,
    /// A condition over the telemetry of a wave's nodes that holds before the next wave begins
    #[arg(long, value_name = "CONDITION")]
    gate: Vec<String>,
    /// What happens when too many fail
    #[arg(long, value_enum, default_value = "pause")]
    on_failure: OnFailure,
    /// Wait until an operator approves it
    #[arg(long)]
    approve: bool,
    /// Wait until another operator than you approves it
    #[arg(long, conflicts_with = "approve")]
    approve_by_other: bool,
    /// How long the whole may take
    #[arg(long, value_name = "PERIOD", default_value = "1d", value_parser = period::parse)]
    deadline: Duration,
    /// How long one node may take
    #[arg(long, value_name = "PERIOD", default_value = "1h", value_parser = period::parse)]
    timeout: Duration,
    /// How long a node may be offline in the middle of its update
    #[arg(long, value_name = "PERIOD", default_value = "15m", value_parser = period::parse)]
    offline: Duration,
    /// How long the release is on trial at a node; the node's own setting unless given
    #[arg(long, value_name = "PERIOD", value_parser = period::parse)]
    probation: Option<Duration>,
    /// A node may keep the release although it cannot reach the hub
    #[arg(long)]
    offline_ok: bool,
    /// The part of a wave that may be offline without counting as failed
    #[arg(long, value_name = "PART", default_value = "10%")]
    allowance: String,
    /// Only show waves, nodes, and what it would take
    #[arg(long, conflicts_with = "watch")]
    dry_run: bool,
    /// Watch it to its end
    #[arg(long)]
    watch: bool,
}

/// A rollout, and why something is done with it.
#[derive(Debug, Args)]
pub(super) struct ActArgs {
    /// Its name
    id: String,
    /// Why, for whoever reads it later
    #[arg(long)]
    reason: Option<String>,
}

const ROLLOUTS: [&str; 3] = ["api", "v1", "rollouts"];
/// Names of a wave that a draft shows.
const SHOWN: usize = 6;

/// A period, or nothing at all.
fn zero(text: &str) -> Result<Duration, String> {
    if matches!(text, "0" | "0s") { Ok(Duration::ZERO) } else { period::parse(text) }
}

/// `100/min`, `5/s` or `100`, in nodes a minute.
fn rate(text: &str) -> Result<f64, String> {
    let (number, per) = match text.split_once('/') {
        Some((number, "min" | "m")) => (number, 1.0),
        Some((number, "s")) => (number, 60.0),
        Some((number, "h")) => (number, 1.0 / 60.0),
        Some(_) => (text, 1.0),
        None => (text, 1.0),
    };
    let rate =
        number.parse::<f64>().ok().map(|rate| rate * per).filter(|rate| rate.is_finite() && *rate > 0.0);
    rate.ok_or_else(|| format!("{text:?} is no rate; examples are 100/min and 2/s"))
}

/// Runs the verb.
///
/// # Errors
/// [`Failure`].
pub(super) async fn run(verb: RolloutVerb, context: &Context) -> Result<(), Failure> {
    match verb {
        RolloutVerb::Create(args) => create(*args, context).await,
        RolloutVerb::Watch { id } => watch::until_over(&id, context).await,
        RolloutVerb::Ls { state, limit } => ls(state.as_deref(), limit, context).await,
        RolloutVerb::Get { id, state } => get(&id, state.as_deref(), context).await,
        RolloutVerb::Pause(args) => act("pause", args.id, args.reason, context).await,
        RolloutVerb::Resume { id } => act("resume", id, None, context).await,
        RolloutVerb::Abort(args) => act("abort", args.id, args.reason, context).await,
        RolloutVerb::Rollback(args) => act("rollback", args.id, args.reason, context).await,
        RolloutVerb::Approve { id } => act("approve", id, None, context).await,
    }
}

fn ask(args: &CreateArgs) -> Result<RolloutAsk, Failure> {
    let ways =
        usize::from(args.selector.is_some()) + usize::from(args.all) + usize::from(!args.node.is_empty());
    if ways != 1 {
        return Err(Failure::Usage("say which nodes: -l SELECTOR, --node NODE,… or --all".to_owned()));
    }
    if let Some(text) = &args.selector {
        selector::check(text)?;
    }
    let windowed = args.window.is_some() || args.on_power || args.unmetered;
    let window = windowed.then(|| RolloutWindow {
        hours: args.window.clone(),
        zone: args.zone.clone(),
        on_power: args.on_power,
        unmetered: args.unmetered,
    });
    let approve = match (args.approve, args.approve_by_other) {
        (true, _) => "any",
        (_, true) => "other",
        (false, false) => "none",
    };
    let on_failure = match args.on_failure {
        OnFailure::Pause => "pause",
        OnFailure::Stop => "stop",
        OnFailure::Rollback => "rollback",
    };
    let seconds = |period: Duration| Some(period.as_secs_f64());
    Ok(RolloutAsk {
        release: args.release.clone(),
        nodes: (!args.node.is_empty()).then(|| args.node.clone()),
        selector: args.selector.clone(),
        all: args.all,
        terms: RolloutTerms {
            waves: args.waves.clone(),
            soak_s: seconds(args.soak),
            max_failures: Some(args.max_failures.clone()),
            min_executed: Some(args.min_executed),
            max_unavailable: args.max_unavailable.clone(),
            rate_per_minute: args.rate,
            window,
            gates: args.gate.clone(),
            on_failure: Some(on_failure.to_owned()),
            approve: Some(approve.to_owned()),
            deadline_s: seconds(args.deadline),
            timeout_s: seconds(args.timeout),
            offline_s: seconds(args.offline),
            probation_s: args.probation.and_then(seconds),
            offline_ok: args.offline_ok,
            allowance: Some(args.allowance.clone()),
        },
    })
}

async fn create(args: CreateArgs, context: &Context) -> Result<(), Failure> {
    let Context { client, out } = context;
    let body = json!(ask(&args)?);
    if args.dry_run {
        let value =
            client.change_with(Method::POST, &ROLLOUTS, &[("dry_run", "true")], Some(&body), None).await?;
        let draft: RolloutDraft = one(&value)?;
        return out.show(&value, || draft_text(&draft));
    }
    let value = client.change(Method::POST, &ROLLOUTS, Some(&body)).await?;
    let rollout: Rollout = one(&value)?;
    if args.watch {
        return watch::until_over(&rollout.id, context).await;
    }
    out.show(&value, || {
        let id = &rollout.id;
        format!("rollout {id} is {}; `fleet rollout watch {id}` watches it\n", words(&rollout.state))
    })
}

fn one<T: serde::de::DeserializeOwned>(value: &Value) -> Result<T, Failure> {
    let mut read = read(std::slice::from_ref(value))?;
    read.pop().ok_or_else(|| Failure::Failed("the hub's answer is empty".to_owned()))
}

fn words(state: &str) -> String {
    state.replace('_', " ")
}

fn draft_text(draft: &RolloutDraft) -> String {
    let mut text = format!("{} would be rollout {}; nothing was made\n\n", draft.release, draft.id);
    let mut table = Table::new(&["wave", "nodes", "who"]);
    for wave in &draft.waves {
        let mut who = wave.nodes.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
        if wave.nodes_count > SHOWN {
            who += ", …";
        }
        table.row(vec![Cell::left(&wave.name), Cell::right(wave.nodes_count), Cell::left(who)]);
    }
    text += &table.text(false);
    for (code, nodes) in &draft.left_out {
        text += &format!("left out, {code}: {}\n", nodes.join(", "));
    }
    let took = crate::core::rollout::span((draft.duration_s * 1_000.0) as i64);
    text += &format!("\nabout {took} if all goes well, {} to download\n", bytes(draft.bytes as f64));
    for warning in &draft.warnings {
        text += &format!("warning: {warning}\n");
    }
    text
}

fn state_tone(state: &str) -> Tone {
    match state {
        "done" | "confirmed" | "passed" => Tone::Good,
        "paused" | "stopped" | "waiting_approval" | "rolling_back" | "inconclusive" => Tone::Warning,
        "failed" | "rolled_back" | "halted" | "timed_out" | "rejected" | "drifted" => Tone::Bad,
        _ => Tone::Plain,
    }
}

async fn ls(state: Option<&str>, limit: Option<usize>, context: &Context) -> Result<(), Failure> {
    let Context { client, out } = context;
    let query: Vec<(&str, &str)> = state.map(|state| ("state", state)).into_iter().collect();
    let items: Vec<Value> = client.list(&ROLLOUTS, &query, limit).await?;
    let rollouts: Vec<Rollout> = read(&items)?;
    let now_ms = super::node::now(context).await?;
    out.show(&json!({ "items": items, "next": null }), || {
        if rollouts.is_empty() {
            return "no rollouts\n".to_owned();
        }
        let mut table = Table::new(&["id", "release", "state", "since", "done", "failed", "reason"]);
        for rollout in &rollouts {
            let confirmed: u32 = rollout.waves.iter().map(|wave| wave.confirmed).sum();
            let failed: u32 = rollout.waves.iter().map(|wave| wave.failed).sum();
            table.row(vec![
                Cell::left(&rollout.id),
                Cell::left(&rollout.release),
                Cell::toned(words(&rollout.state), state_tone(&rollout.state)),
                Cell::left(ago(now_ms, Some(rollout.since_ms))),
                Cell::right(format!("{confirmed}/{}", rollout.nodes_count)),
                Cell::right(failed),
                Cell::left(clean(&rollout.reason)),
            ]);
        }
        table.text(out.color)
    })
}

async fn get(id: &str, state: Option<&str>, context: &Context) -> Result<(), Failure> {
    let Context { client, out } = context;
    let path = [&ROLLOUTS[..], &[id]].concat();
    let query: Vec<(&str, &str)> =
        state.map(|state| ("state", state)).into_iter().chain([("limit", "1000")]).collect();
    let mut value: Value = client.get(&path, &query).await?;
    let mut rollout: Rollout = one(&value)?;
    while let Some(cursor) = rollout.next.take() {
        let query = [&query[..], &[("cursor", cursor.as_str())]].concat();
        let page: Rollout = client.get(&path, &query).await?;
        rollout.nodes.extend(page.nodes);
        rollout.next = page.next;
    }
    value["nodes"] = json!(rollout.nodes);
    if let Some(fields) = value.as_object_mut() {
        fields.remove("next");
    }
    let now_ms = super::node::now(context).await?;
    out.show(&value, || describe(&rollout, now_ms, out.color))
}

fn describe(rollout: &Rollout, now_ms: i64, color: bool) -> String {
    let mut text = head(rollout, now_ms);
    text += &waves(rollout, now_ms, color);
    text.push('\n');
    text.extend(rollout.plan.iter().map(|line| format!("{}\n", clean(line))));
    if rollout.nodes.is_empty() {
        return text;
    }
    text.push('\n');
    let mut table = Table::new(&["node", "wave", "state", "since", "from", "reason"]);
    for node in &rollout.nodes {
        let name =
            if node.device.is_empty() { node.node.clone() } else { format!("{}/{}", node.node, node.device) };
        table.row(vec![
            Cell::left(name),
            Cell::left(&node.wave),
            Cell::toned(words(&node.state), state_tone(&node.state)),
            Cell::left(ago(now_ms, Some(node.since_ms))),
            Cell::left(node.from.as_deref().unwrap_or("")),
            Cell::left(clean(node.reason.as_deref().unwrap_or(""))),
        ]);
    }
    text + &table.text(color)
}

/// What it is, where it stands and why.
fn head(rollout: &Rollout, now_ms: i64) -> String {
    let Rollout { id, release, state, reason, waits_for, .. } = rollout;
    let mut text = format!("{id}: {release} is {}\n{}\n", words(state), clean(reason));
    if !waits_for.is_empty() {
        text += &format!("waits: {}\n", clean(waits_for));
    }
    if let Some(eta_ms) = rollout.eta_ms {
        text += &format!("done in about {}\n", until(now_ms, Some(eta_ms)));
    }
    if let Some(back) = &rollout.back {
        text += &format!("rollout {back} takes its nodes back\n");
    }
    text.push('\n');
    text
}

/// A line for each wave, with a bar.
fn waves(rollout: &Rollout, now_ms: i64, color: bool) -> String {
    let mut table = Table::new(&["wave", "state", "", "done", "failed", "under way", "waiting", "why"]);
    for wave in rollout.waves.iter().filter(|wave| wave.nodes > 0 || wave.name != "trailing") {
        let why = match wave.soaks_until_ms {
            Some(at) => format!("watched for {} more", until(now_ms, Some(at))),
            None => clean(&wave.reason),
        };
        table.row(vec![
            Cell::left(&wave.name),
            Cell::toned(words(&wave.state), state_tone(&wave.state)),
            Cell::left(bar(wave.confirmed, wave.failed, wave.nodes)),
            Cell::right(format!("{}/{}", wave.confirmed, wave.nodes)),
            Cell::right(wave.failed),
            Cell::right(wave.under_way),
            Cell::right(wave.waiting + wave.moved),
            Cell::left(why),
        ]);
    }
    table.text(color)
}

/// Twenty places: `=` confirmed, `x` failed.
fn bar(confirmed: u32, failed: u32, all: u32) -> String {
    const WIDTH: u32 = 20;
    if all == 0 {
        return format!("[{}]", ".".repeat(WIDTH as usize));
    }
    // What failed is seen, however little it is.
    let bad = if failed == 0 { 0 } else { (failed * WIDTH / all).max(1) };
    let good = (confirmed * WIDTH / all).min(WIDTH - bad);
    let rest = WIDTH - bad - good;
    format!("[{}{}{}]", "=".repeat(good as usize), "x".repeat(bad as usize), ".".repeat(rest as usize))
}

async fn act(verb: &str, id: String, reason: Option<String>, context: &Context) -> Result<(), Failure> {
    let Context { client, out } = context;
    let path = [&ROLLOUTS[..], &[&id, verb]].concat();
    let body = reason.map_or_else(|| json!({}), |reason| json!({ "reason": reason }));
    let value = client.change(Method::POST, &path, Some(&body)).await?;
    let rollout: Rollout = one(&value)?;
    out.show(&value, || {
        let back = rollout.back.as_ref().filter(|_| verb == "rollback");
        let back = back
            .map_or_else(String::new, |back| format!("; `fleet rollout watch {back}` shows the way back"));
        format!("rollout {id} is {}{back}\n", words(&rollout.state))
    })
}

/// Whether people look at the answer.
fn is_table(context: &Context) -> bool {
    context.out.format == Format::Table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::shapes::RolloutWave;

    #[test]
    fn bars_show_the_smallest_failure() {
        assert_eq!(bar(0, 0, 0), "[....................]");
        assert_eq!(bar(100, 0, 100), "[====================]");
        assert_eq!(bar(999, 1, 1_000), "[===================x]");
        assert_eq!(bar(1, 1, 4), "[=====xxxxx..........]");
    }

    #[test]
    fn rates_are_of_a_minute() {
        assert_eq!((rate("100/min"), rate("2/s"), rate("60/h")), (Ok(100.0), Ok(120.0), Ok(1.0)));
        for wrong in ["0/min", "x", "1/week", "inf", "nan/s"] {
            assert!(rate(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_rollout_is_told_wave_by_wave() {
        let wave = |name: &str, state: &str, nodes, confirmed, failed| RolloutWave {
            name: name.into(),
            state: state.into(),
            nodes,
            confirmed,
            failed,
            waiting: nodes - confirmed - failed,
            ..RolloutWave::default()
        };
        let rollout = Rollout {
            id: "greeter-1.2.0-1".into(),
            release: "greeter@1.2.0".into(),
            state: "running".into(),
            reason: "made by operator ada".into(),
            waits_for: "1 node of a site".into(),
            waves: vec![
                wave("1", "passed", 1, 1, 0),
                wave("100%", "running", 10, 4, 1),
                wave("trailing", "waiting", 0, 0, 0),
            ],
            eta_ms: Some(61_000),
            ..Rollout::default()
        };
        insta::assert_snapshot!(head(&rollout, 1_000) + &waves(&rollout, 1_000, false), @r"
        greeter-1.2.0-1: greeter@1.2.0 is running
        made by operator ada
        waits: 1 node of a site
        done in about 1m0s

        WAVE  STATE                            DONE  FAILED  UNDER WAY  WAITING  WHY
        1     passed   [====================]   1/1       0          0        0
        100%  running  [========xx..........]  4/10       1          0        5
        ");
    }
}
