//! `fleet pki`: the hub's certificates, and their change.

use clap::Subcommand;
use reqwest::Method;
use serde_json::{Value, json};

use super::{
    Context, Failure,
    node::now,
    output::{Cell, Table, time, until},
};
use crate::api::shapes::Pki;

/// The verbs on certificates.
#[derive(Debug, Subcommand)]
pub(super) enum PkiVerb {
    /// Show the CAs, the hub's certificate, and whom a change of the CA waits for
    #[command(after_help = "Examples:\n  fleet pki status\n  fleet pki status -o json")]
    Status,
    /// Change keys while everything goes on
    #[command(subcommand)]
    Rotate(RotateVerb),
    /// Print the CA to trust, PEM
    #[command(after_help = "Examples:\n  fleet pki ca > fleet-ca.pem")]
    Ca,
}

/// What to change.
#[derive(Debug, Subcommand)]
pub(super) enum RotateVerb {
    /// Make a new certificate for the hub's own ports
    #[command(after_help = "Examples:\n  fleet pki rotate server")]
    Server,
    /// Make a new CA: nodes renew by it, and when all have, the hub shows a certificate of it
    #[command(
        after_help = "Examples:\n  fleet pki rotate ca\n  fleet pki status\n  fleet pki rotate ca --finish"
    )]
    Ca {
        /// Go on without waiting for nodes that have not renewed; they have to join again
        #[arg(long)]
        finish: bool,
    },
}

/// Runs the verb.
///
/// # Errors
/// [`Failure`].
pub(super) async fn run(verb: PkiVerb, context: &Context) -> Result<(), Failure> {
    let Context { client, out } = context;
    let path = ["api", "v1", "pki"];
    let value: Value = match verb {
        PkiVerb::Ca => {
            let pem = client.text(&["api", "v1", "pki", "ca.pem"], &[], "application/x-pem-file").await?;
            return out.show(&json!({ "ca": pem }), || pem.clone());
        }
        PkiVerb::Status => client.get(&path, &[]).await?,
        PkiVerb::Rotate(what) => {
            let body = match what {
                RotateVerb::Server => json!({ "what": "server" }),
                RotateVerb::Ca { finish } => json!({ "what": "ca", "finish": finish }),
            };
            client.change(Method::POST, &[&path[..], &["rotate"]].concat(), Some(&body)).await?
        }
    };
    let now_ms = now(context).await?;
    let pki: Pki = serde_json::from_value(value.clone())
        .map_err(|error| Failure::Failed(format!("the hub's certificates are not understood: {error}")))?;
    out.show(&value, || text(&pki, now_ms, out.color))
}

fn text(pki: &Pki, now_ms: i64, color: bool) -> String {
    let mut table = Table::new(&["ca", "made", "ends in", "signs"]);
    for one in &pki.authorities {
        let signs = match (one.signs_clients, one.signs_server) {
            (true, true) => "everything",
            (true, false) => "nodes and tools",
            (false, true) => "the hub",
            (false, false) => "nothing any more",
        };
        table.row(vec![
            Cell::left(&one.pin),
            Cell::left(time(one.made_ms)),
            Cell::left(until(now_ms, Some(one.not_after_ms))),
            Cell::left(signs),
        ]);
    }
    let server = &pki.server;
    let mut text = table.text(color);
    text.push_str(&format!(
        "\nhub certificate  ends in {}, for {}\n",
        until(now_ms, Some(server.not_after_ms)),
        server.names.join(", ")
    ));
    text.push_str(match pki.stage.as_str() {
        "moving" => {
            "change of the CA  nodes renew by the new CA; the hub shows it when all have. Back up now: a backup of\n                  \
             before lets them in by revocations.jsonl only\n"
        }
        "draining" => "change of the CA  the hub shows the new one; the old one goes when its last certificate has ended\n",
        _ => "",
    });
    if pki.nodes_waiting_count > 0 {
        let named: Vec<_> = pki.nodes_waiting.iter().take(10).map(String::as_str).collect();
        let more = if pki.nodes_waiting_count > named.len() { ", …" } else { "" };
        text.push_str(&format!(
            "still on the old  {}: {}{more}\n",
            pki.nodes_waiting_count,
            named.join(", ")
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::shapes::{Authority, ServerCertificate};

    #[test]
    fn a_change_of_the_ca_is_told() {
        let old = Authority {
            pin: "old".into(),
            not_after_ms: 86_400_000,
            signs_server: true,
            ..Authority::default()
        };
        let new = Authority {
            pin: "new".into(),
            not_after_ms: 864_000_000,
            signs_clients: true,
            ..Authority::default()
        };
        let pki = Pki {
            stage: "moving".into(),
            authorities: vec![old, new],
            server: ServerCertificate {
                made_ms: 0,
                not_after_ms: 7_200_000,
                names: vec!["localhost".into()],
            },
            nodes_waiting_count: 12,
            nodes_waiting: (0..12).map(|n| format!("n{n}")).collect(),
        };
        insta::assert_snapshot!(text(&pki, 0, false), @r##"
        CA   MADE                 ENDS IN  SIGNS
        old  1970-01-01 00:00:00  1d0h     the hub
        new  1970-01-01 00:00:00  10d0h    nodes and tools

        hub certificate  ends in 2h0m, for localhost
        change of the CA  nodes renew by the new CA; the hub shows it when all have. Back up now: a backup of
                          before lets them in by revocations.jsonl only
        still on the old  12: n0, n1, n2, n3, n4, n5, n6, n7, n8, n9, …
        "##);
    }
}
