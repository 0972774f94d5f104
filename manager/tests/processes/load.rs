//! The load of `fleet bench commands`, with a few nodes: every node takes every command, and every figure is there.

use std::process::Command;

use serde_json::Value;

use crate::given::agent_binary;

#[test]
fn commands_reach_all_nodes_of_the_load_and_their_pages_are_read() {
    agent_binary();
    let output = Command::new(env!("CARGO_BIN_EXE_fleet"))
        .args(["bench", "commands", "--nodes", "20", "--single", "5", "--stored", "60", "-o", "json"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let figure = |name: &str| {
        let figures = report["figures"].as_array().unwrap();
        figures.iter().find(|figure| figure["name"] == name).and_then(|it| it["value"].as_f64())
    };
    assert_eq!((figure("nodes"), figure("executions stored")), (Some(20.0), Some(60.0)));
    for name in ["call to running p50", "all accepted after the call", "slowest page"] {
        assert!(figure(name).is_some_and(|value| value > 0.0), "{name}");
    }
}
