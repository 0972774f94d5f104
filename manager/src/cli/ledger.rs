//! `fleet ledger`: the account of every record.

use clap::Args;
use fleet_schemas::NodeId;
use serde_json::Value;

use super::{
    Context, Failure,
    output::{Cell, Table, Tone, count, paint, time_in, tone},
};
use crate::api::shapes::{Account, Ledger};

/// Which accounts, and how sure.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  fleet ledger\n  fleet ledger edge-1 --verify\n  fleet ledger -o json | jq .balanced\n\n\
    produced = stored + expired + quarantined + lost + written off + at edge, in records. `pending` is not yet\n\
    settled since the time shown, by the clocks of the node's site; only `broken` is wrong, and exits 1."
)]
pub(super) struct LedgerArgs {
    /// Only this node
    node: Option<NodeId>,
    /// Count rows instead of trusting marks; reads the whole store
    #[arg(long)]
    verify: bool,
}

/// Runs the verb.
///
/// # Errors
/// [`Failure::Failed`] when an account is broken.
pub(super) async fn run(args: LedgerArgs, context: &Context) -> Result<(), Failure> {
    let Context { client, out } = context;
    let mut query = Vec::new();
    query.extend(args.node.as_ref().map(|node| ("node", node.as_str())));
    if args.verify {
        query.push(("verify", "true"));
    }
    let value: Value = client.get(&["api", "v1", "ledger"], &query).await?;
    let ledger: Ledger = serde_json::from_value(value.clone())
        .map_err(|error| Failure::Failed(format!("the hub's ledger is not understood: {error}")))?;
    out.show(&value, || text(&ledger, out.color))?;
    verdict(&ledger)
}

fn verdict(ledger: &Ledger) -> Result<(), Failure> {
    if ledger.balanced {
        return Ok(());
    }
    let broken: Vec<String> = (ledger.accounts.iter().filter(|account| account.state == "broken"))
        .map(|account| format!("{}/{}", account.node, account.lane))
        .chain(ledger.findings.iter().flatten().map(|finding| format!("{}/{}", finding.node, finding.lane)))
        .collect();
    Err(Failure::Failed(format!(
        "the ledger is broken: {}; `fleet node describe` shows the node's events",
        broken.join(", ")
    )))
}

/// The accounts of one or more nodes.
pub(super) fn table(accounts: &[Account]) -> Table {
    let mut table = Table::new(&[
        "node",
        "lane",
        "state",
        "produced",
        "stored",
        "expired",
        "quarantined",
        "lost",
        "written off",
        "at edge",
        "duplicates",
        "as of",
    ]);
    for account in accounts {
        let state = match &account.reason {
            Some(reason) => format!("{} ({reason})", account.state),
            None => account.state.clone(),
        };
        let mut cells = vec![
            Cell::left(&account.node),
            Cell::left(&account.lane),
            Cell::toned(state, tone(&account.state)),
        ];
        let terms = [
            account.produced,
            account.stored,
            account.expired,
            account.quarantined,
            account.lost,
            account.written_off,
            account.at_edge,
            account.duplicates,
        ];
        cells.extend(terms.map(|term| Cell::right(count(term))));
        cells.push(Cell::left(time_in(account.as_of_ms, account.tz.as_deref())));
        table.row(cells);
    }
    table
}

fn text(ledger: &Ledger, color: bool) -> String {
    if ledger.accounts.is_empty() {
        return "no accounts: no node has delivered anything yet\n".to_owned();
    }
    let mut text = table(&ledger.accounts).text(color);
    if let Some(findings) = &ledger.findings {
        for finding in findings {
            let (marks, rows) = (count(finding.expected), count(finding.counted));
            let found =
                format!("{}/{}: {marks} by the marks, {rows} by counting", finding.node, finding.lane);
            text.push_str(&format!("{}\n", paint(&found, Tone::Bad, color)));
        }
        if findings.is_empty() {
            text.push_str("verified: counting rows agrees with every mark\n");
        }
    }
    let of = |state: &str| ledger.accounts.iter().filter(|account| account.state == state).count();
    let sum = |term: fn(&Account) -> u64| count(ledger.accounts.iter().map(term).sum());
    let word = if ledger.balanced {
        paint("balanced", Tone::Good, color)
    } else {
        paint("broken", Tone::Bad, color)
    };
    text.push_str(&format!(
        "{word}: {} produced, {} stored, {} at edge, {} lost; accounts: {} balanced, {} pending, {} broken\n",
        sum(|a| a.produced),
        sum(|a| a.stored),
        sum(|a| a.at_edge),
        sum(|a| a.lost),
        of("balanced"),
        of("pending"),
        of("broken"),
    ));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::shapes::Finding;

    fn account(state: &str) -> Account {
        Account {
            node: "edge-1".to_owned(),
            lane: "telemetry".to_owned(),
            state: state.to_owned(),
            produced: 1_250,
            stored: 1_200,
            at_edge: 50,
            as_of_ms: 1_790_000_000_000,
            ..Account::default()
        }
    }

    #[test]
    fn the_sum_stands_under_the_accounts() {
        let ledger = Ledger {
            balanced: true,
            accounts: vec![
                account("balanced"),
                Account { tz: Some("Europe/Berlin".to_owned()), ..account("pending") },
            ],
            findings: Some(vec![]),
        };
        insta::assert_snapshot!(text(&ledger, false));
    }

    #[test]
    fn only_broken_fails() {
        let ledger =
            |balanced, state: &str| Ledger { balanced, accounts: vec![account(state)], findings: None };
        assert_eq!(verdict(&ledger(true, "balanced")), Ok(()));
        assert_eq!(verdict(&ledger(true, "pending")), Ok(()));
        assert_eq!(verdict(&ledger(false, "broken")).unwrap_err().code(), 1);
        let finding =
            Finding { node: "edge-1".to_owned(), lane: "event".to_owned(), expected: 5, counted: 4 };
        let found = Ledger { findings: Some(vec![finding]), ..ledger(false, "balanced") };
        assert!(verdict(&found).unwrap_err().to_string().contains("edge-1/event"));
    }
}
