//! `fleet command run`: makes a command of the flags, hands it to the hub, and watches it.

use reqwest::Method;
use serde_json::{Map, Value, json};

use super::{
    RunArgs,
    watch::{self, Whole},
};
use crate::{
    api::shapes::{BriefCommand, Node},
    cli::{
        Context, Failure, node,
        output::{Format, read},
        period, selector,
    },
    core::command::Rate,
};

/// The pace of all nodes when only that of a site is asked for: none that would be felt.
const UNHURRIED: f64 = 1_000_000.0;
const COMMANDS: [&str; 3] = ["api", "v1", "commands"];

/// Runs the verb.
///
/// # Errors
/// [`Failure`], also when it did not succeed everywhere.
pub(super) async fn run(args: &RunArgs, context: &Context) -> Result<(), Failure> {
    let Context { client, out } = context;
    if let Some(text) = &args.selector {
        if text.trim().is_empty() {
            return Err(Failure::Usage("the selector is empty; --all selects every node".to_owned()));
        }
        selector::check(text)?;
    }
    if out.format == Format::Csv {
        return Err(Failure::Usage("csv is only for `fleet telemetry`; use -o json".to_owned()));
    }
    let body = body(args, context).await?;
    if args.dry_run {
        return dry_run(args, context).await;
    }
    let key = args.idempotency_key.as_deref();
    let value = client.change_with(Method::POST, &COMMANDS, &[], Some(&body), key).await?;
    let made: BriefCommand = read(std::slice::from_ref(&value))?.remove(0);
    if args.no_wait {
        return out.show(&value, || {
            let count = made.executions.len();
            format!("{}  made for {count} {}\n", made.id, if count == 1 { "node" } else { "nodes" })
        });
    }
    watch::until_over(&Whole { id: made.id, node: None }, context).await
}

/// The body that the hub takes.
async fn body(args: &RunArgs, context: &Context) -> Result<Value, Failure> {
    let (kind, params) = match (&args.kind, args.program.is_empty()) {
        (Some(kind), _) => (kind.as_str(), params(&args.params)?),
        (None, _) => ("exec", json!({ "argv": args.program })),
    };
    let mut body = json!({
        "kind": kind,
        "params": params,
        "ttl_s": args.ttl.as_secs_f64(),
        "timeout_s": args.timeout.as_secs_f64(),
        "queue": args.queue,
        "priority": args.priority,
        "idempotent": args.idempotent,
        "supersedes": args.supersedes,
        "rate": rate(args),
        "all": args.all,
        "selector": args.selector,
    });
    if !args.nodes.is_empty() {
        body["nodes"] = json!(args.nodes);
    }
    if let Some(when) = &args.not_before {
        body["not_before_ms"] = json!(not_before(when, context).await?);
    }
    Ok(body)
}

fn rate(args: &RunArgs) -> Option<Rate> {
    match (args.rate, args.rate_per_site) {
        (None, None) => None,
        (per_s, per_site) => Some(Rate { per_s: per_s.unwrap_or(UNHURRIED), per_site }),
    }
}

/// `KEY=VALUE` words as an object; nothing at all when there are none.
fn params(words: &[String]) -> Result<Value, Failure> {
    let mut params = Map::new();
    for word in words {
        let wrong = || Failure::Usage(format!("--param {word}: write KEY=VALUE, such as what=system"));
        let (key, value) = word.split_once('=').filter(|(key, _)| !key.is_empty()).ok_or_else(wrong)?;
        let value = serde_json::from_str(value).unwrap_or_else(|_| Value::from(value));
        if params.insert(key.to_owned(), value).is_some() {
            return Err(Failure::Usage(format!("--param {key} is given twice")));
        }
    }
    Ok(if params.is_empty() { Value::Null } else { Value::Object(params) })
}

/// Unix milliseconds of a period from the hub's now, or of a time.
async fn not_before(when: &str, context: &Context) -> Result<i64, Failure> {
    if let Ok(period) = period::parse(when) {
        return Ok(node::now(context).await?.saturating_add(period::ms(period)));
    }
    let time: jiff::Timestamp = when.parse().map_err(|_| {
        Failure::Usage(format!(
            "--not-before {when}: write a period such as 30m, or a time such as 2026-12-01T06:00:00Z"
        ))
    })?;
    Ok(time.as_millisecond())
}

/// Shows which nodes it would be for.
async fn dry_run(args: &RunArgs, context: &Context) -> Result<(), Failure> {
    let Context { client, out } = context;
    let path = ["api", "v1", "nodes"];
    let items: Vec<Value> = if args.nodes.is_empty() {
        let query: Vec<_> = args.selector.as_deref().map(|text| ("selector", text)).into_iter().collect();
        client.list(&path, &query, None).await?
    } else {
        let mut items = Vec::new();
        for id in &args.nodes {
            items.push(client.get(&[&path[..], &[id.as_str()]].concat(), &[]).await?);
        }
        items
    };
    if items.is_empty() {
        return Err(Failure::Usage(
            "no node matches; `fleet node ls -l SELECTOR` shows what one matches".to_owned(),
        ));
    }
    let now_ms = node::now(context).await?;
    let nodes: Vec<Node> = read(&items)?;
    out.show(&json!({ "dry_run": true, "items": items, "next": null }), || {
        let (count, table) = (nodes.len(), node::table(&nodes, now_ms).text(out.color));
        format!(
            "{table}{count} {} would get it; nothing was sent\n",
            if count == 1 { "node" } else { "nodes" }
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_json_where_they_read_as_such() {
        let words = ["what=system", "n=3", "deep={\"a\":[1]}", "odd=1 2", "empty=", "eq=a=b"];
        let read = params(&words.map(str::to_owned)).unwrap();
        assert_eq!(
            read,
            json!({ "what": "system", "n": 3, "deep": { "a": [1] }, "odd": "1 2", "empty": "", "eq": "a=b" })
        );
        assert_eq!(params(&[]).unwrap(), Value::Null);
        for wrong in [&["what"][..], &["=x"], &["a=1", "a=2"]] {
            let words: Vec<_> = wrong.iter().map(|word| (*word).to_owned()).collect();
            assert_eq!(params(&words).unwrap_err().code(), 2, "{wrong:?}");
        }
    }
}
