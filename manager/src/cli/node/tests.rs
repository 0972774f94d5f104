//! The patch that flags ask for, and how nodes are shown.

use clap::Parser as _;

use super::*;
use crate::api::shapes::{Outbox, Versions};

#[derive(Debug, clap::Parser)]
struct Line {
    #[command(flatten)]
    args: SetArgs,
}

fn patched(flags: &[&str]) -> Result<Value, Failure> {
    let line = Line::try_parse_from([&["set", "edge-1"], flags].concat()).unwrap();
    patch(&line.args)
}

fn node() -> Node {
    Node {
        id: "edge-1".to_owned(),
        name: Some("Kiln \x1b[2J".to_owned()),
        kind: "picclaw".to_owned(),
        state: "online".to_owned(),
        site: Some("Hall 3".to_owned()),
        labels: [("rack".to_owned(), "12".to_owned())].into(),
        capabilities: vec!["sensor".to_owned()],
        versions: Versions { agent: "0.1.0".to_owned(), ..Versions::default() },
        first_seen_ms: Some(1_790_000_000_000),
        last_seen_ms: Some(1_790_000_005_000),
        system: [
            ("cpu_percent".to_owned(), 12.4),
            ("load1".to_owned(), 0.5),
            ("mem_used_bytes".to_owned(), 3e8),
            ("mem_total_bytes".to_owned(), 1e9),
        ]
        .into(),
        outbox: Some(Outbox { records: 1_200, bytes: 3_000, quota_bytes: 1 << 28 }),
        ..Node::default()
    }
}

#[test]
fn flags_become_a_merge_patch() {
    assert_eq!(
        patched(&[
            "--site", "berlin", "--label", "rack=12", "--label", "old-", "--lat", "-1.5", "--lon", "13"
        ]),
        Ok(json!({"site": "berlin", "location": {"lat": -1.5, "lon": 13.0},
            "labels": {"rack": "12", "old": null}}))
    );
    assert_eq!(patched(&["--name", "", "--no-location"]), Ok(json!({"name": null, "location": null})));
    assert_eq!(patched(&[]).unwrap_err().code(), 2);
    assert_eq!(patched(&["--label", "rack"]).unwrap_err().code(), 2);
}

#[test]
fn nodes_are_listed_in_one_line_each() {
    let silent = Node { id: "edge-2".to_owned(), state: "new".to_owned(), ..Node::default() };
    insta::assert_snapshot!(table(&[node(), silent], 1_790_000_010_000).text(false), @r"
    ID      NAME       STATE   ENROLMENT  SITE    KIND     AGENT   SEEN  CPU  MEM  OUTBOX
    edge-1  Kiln �[2J  online  none       Hall 3  picclaw  0.1.0     5s  12%  30%   1,200
    edge-2  -          new     none       -                       never    -    -       -
    ");
}

#[test]
fn a_description_has_everything() {
    let devices = [
        Device {
            id: "probe".to_owned(),
            state: "unknown".to_owned(),
            metrics: vec!["t".to_owned()],
            last_ms: Some(1_790_000_004_000),
            last_seen_ms: Some(1_790_000_004_000),
            ..Device::default()
        },
        Device {
            id: "shed".to_owned(),
            state: "sleeping".to_owned(),
            kind: Some("microclaw".to_owned()),
            firmware: Some("0.2.0".to_owned()),
            until_ms: Some(1_790_000_304_000),
            ..Device::default()
        },
    ];
    let account = Account { node: "edge-1".to_owned(), lane: "event".to_owned(), ..Account::default() };
    insta::assert_snapshot!(description(&node(), &devices, &[], &[account], 1_790_000_010_000, false));
}
