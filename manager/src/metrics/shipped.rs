//! The dashboards and rules that are shipped, held against the catalogue: they name nothing that is not told.

use std::{collections::BTreeSet, fs, path::PathBuf};

use regex::Regex;
use serde_json::Value;

use super::catalogue::{self, Kind};

/// Served by remote read, not scraped.
const HISTORY: &str = "fleet_sample";
const SOURCE: &str = "fleet-prometheus";

fn folder() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../grafana"))
}

fn texts(below: &str, suffix: &str) -> Vec<(String, String)> {
    let entries = fs::read_dir(folder().join(below)).unwrap().map(|entry| entry.unwrap().path());
    let named = entries.filter(|path| path.to_str().unwrap().ends_with(suffix));
    let read = named.map(|path| (path.display().to_string(), fs::read_to_string(path).unwrap()));
    let found: Vec<_> = read.collect();
    assert!(!found.is_empty(), "{below}");
    found
}

fn dashboards() -> Vec<(String, Value)> {
    let parse = |(name, text): (String, String)| (name, serde_json::from_str(&text).unwrap());
    texts("dashboards", ".json").into_iter().map(parse).collect()
}

fn expressions(board: &Value) -> Vec<&str> {
    let panels = board["panels"].as_array().unwrap().iter();
    let targets = panels.filter_map(|panel| panel["targets"].as_array()).flatten();
    targets.map(|target| target["expr"].as_str().unwrap()).collect()
}

/// Why a name is none that Prometheus has, if it is none.
fn stranger(name: &str) -> Option<String> {
    let exact = catalogue::ALL.iter().find(|metric| metric.name == name);
    let part = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix));
    let whole =
        catalogue::ALL.iter().find(|metric| Some(metric.name) == part && metric.kind == Kind::Histogram);
    match exact {
        _ if whole.is_some() || name == HISTORY => None,
        Some(metric) if metric.kind == Kind::Histogram => {
            Some(format!("{name} has buckets, a sum and a count"))
        }
        Some(_) => None,
        None => Some(format!("{name} is not in the catalogue")),
    }
}

#[test]
fn dashboards_and_rules_name_what_is_in_the_catalogue() {
    let rules = texts("prometheus/rules", ".yml");
    let recorded = Regex::new(r"record: (\S+)").unwrap();
    let recorded: BTreeSet<&str> = (rules.iter())
        .flat_map(|(_, text)| recorded.captures_iter(text).map(|found| found.get(1).unwrap().as_str()))
        .collect();
    let names = Regex::new(r"\bfleet[_:][a-z0-9_:]+").unwrap();
    let counted = Regex::new(r"(\w+)\(\s*(fleet_\w+_total)").unwrap();
    let tests = texts("prometheus/tests", ".yml");
    for (file, text) in rules.iter().chain(&tests).chain(&texts("dashboards", ".json")) {
        let used: BTreeSet<&str> = names.find_iter(text).map(|found| found.as_str()).collect();
        assert!(!used.is_empty(), "{file}");
        for name in used {
            let why = if name.contains(':') {
                (!recorded.contains(name)).then(|| format!("{name} is not recorded"))
            } else {
                stranger(name)
            };
            assert_eq!(why, None, "{file}");
        }
        // What only grows says nothing by itself.
        for found in counted.captures_iter(text) {
            assert!(["rate", "increase"].contains(&&found[1]), "{file}: {} of {}", &found[1], &found[2]);
        }
    }
    assert!(stranger("fleet_nodes_total").is_some() && stranger("fleet_nodes_bucket").is_some());
    assert!(stranger("fleet_store_commit_duration_seconds").is_some());
}

#[test]
fn dashboards_are_told_apart_by_fixed_ids_and_follow_the_scrape() {
    let source = fs::read_to_string(folder().join("provisioning/datasources/fleet.yaml")).unwrap();
    assert!(source.contains(&format!("uid: {SOURCE}\n")));
    let boards = dashboards();
    let uids: BTreeSet<&str> = boards.iter().map(|(_, board)| board["uid"].as_str().unwrap()).collect();
    assert_eq!(uids.len(), boards.len());
    let linked = Regex::new(r"/d/([a-z-]+)").unwrap();
    let window = Regex::new(r"\b(?:rate|increase)\([^\[]*\[([^\]]+)\]").unwrap();
    for (file, board) in &boards {
        let text = board.to_string();
        for link in linked.captures_iter(&text) {
            assert!(uids.contains(&link[1]), "{file}: there is no dashboard {}", &link[1]);
        }
        for panel in board["panels"].as_array().unwrap().iter().filter(|panel| panel["type"] != "row") {
            assert_eq!(panel["datasource"]["uid"], SOURCE, "{file}: {panel}");
            assert!(panel["fieldConfig"]["defaults"]["unit"].is_string(), "{file}: {panel}");
        }
        for expression in expressions(board) {
            for found in window.captures_iter(expression) {
                let right = ["$__rate_interval", "$__range"].contains(&&found[1]);
                assert!(right, "{file}: {expression}");
            }
        }
    }
}
