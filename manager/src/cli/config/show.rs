//! Layers, changes and nodes' configuration as tables. Pure.

use serde_json::Value;

use crate::{
    api::shapes::config::{BriefLayer, Changed, Difference, Follow, Layer, NodeConfig, Revision},
    cli::output::{Cell, Table, ago, clean, count, paint, tone},
    core::config,
};

/// Nodes of a change that are named.
const NAMED: usize = 8;

pub(super) fn layers(layers: &[BriefLayer], now_ms: i64, color: bool) -> String {
    if layers.is_empty() {
        return "no settings yet; make one with `fleet config set fleet KEY=VALUE`\n".to_owned();
    }
    let mut table = Table::new(&["layer", "revision", "keys", "nodes", "changed", "by"]);
    for layer in layers {
        table.row(vec![
            Cell::left(&layer.layer),
            Cell::right(layer.revision),
            Cell::right(count(layer.keys_count as u64)),
            Cell::right(count(layer.nodes_count as u64)),
            Cell::right(ago(now_ms, Some(layer.at_ms))),
            Cell::left(&layer.by),
        ]);
    }
    table.text(color)
}

pub(super) fn layer(layer: &Layer, now_ms: i64, color: bool) -> String {
    let mut text = match (&layer.by, layer.at_ms) {
        (Some(by), Some(at_ms)) => {
            let back = layer.returned_to.map(|to| format!(", as revision {to} was")).unwrap_or_default();
            format!(
                "{}, revision {} by {} {}{back}\n",
                layer.layer,
                layer.revision,
                by,
                ago(now_ms, Some(at_ms))
            )
        }
        _ => format!("{} has no settings\n", layer.layer),
    };
    text = clean_lines(&text);
    text.push_str(&document(&layer.doc, color));
    text.push_str(&format!("\n{}\n", progress(&layer.nodes)));
    if !layer.nodes.behind.is_empty() {
        let mut table = Table::new(&["node", "state", "why"]);
        for behind in &layer.nodes.behind {
            let state = Cell::toned(&behind.state, tone(&behind.state));
            table.row(vec![Cell::left(&behind.node), state, Cell::left(&behind.reason)]);
        }
        text.push_str(&table.text(color));
    }
    text
}

fn clean_lines(text: &str) -> String {
    text.lines().map(|line| clean(line) + "\n").collect()
}

/// A document's settings, one a line.
fn document(doc: &Value, color: bool) -> String {
    let settings = config::differences(&config::empty(), doc);
    if settings.is_empty() {
        return String::new();
    }
    let mut table = Table::new(&["key", "value"]);
    for setting in settings {
        table.row(vec![Cell::left(setting.pointer), Cell::left(value(setting.after.as_ref()))]);
    }
    table.text(color)
}

fn value(value: Option<&Value>) -> String {
    value.map_or_else(|| "-".to_owned(), ToString::to_string)
}

/// Whether nodes follow, in one line.
pub(super) fn progress(nodes: &Follow) -> String {
    let of = |state: &str| nodes.by_state.get(state).copied().unwrap_or(0);
    let managed = nodes.count - of("unmanaged").min(nodes.count);
    let mut text = format!("{} of {managed} nodes follow", of("in_sync"));
    for state in ["pending", "failed", "offline"] {
        if of(state) > 0 {
            text.push_str(&format!(", {} {state}", of(state)));
        }
    }
    if of("unmanaged") > 0 {
        text.push_str(&format!("; {} take no configuration", of("unmanaged")));
    }
    text
}

/// What a change did, or would do.
pub(super) fn changed(changed: &Changed, color: bool) -> String {
    let Changed { layer, revision, changed: is_new, dry_run, nodes_count, changes, .. } = changed;
    let nodes = match nodes_count {
        0 => "no node changes".to_owned(),
        1 => "1 node changes".to_owned(),
        many => format!("{} nodes change", count(*many as u64)),
    };
    let mut text = match (is_new, dry_run) {
        (false, _) => format!("{layer} is as it should be already, at revision {revision}\n"),
        (true, false) => format!("{layer} is at revision {revision}; {nodes}\n"),
        (true, true) => format!("{layer} would be at revision {revision}; {nodes}. Nothing was done\n"),
    };
    text = clean_lines(&text);
    if changes.is_empty() {
        return text;
    }
    let mut table = Table::new(&["nodes", "key", "before", "after"]);
    for group in changes {
        let mut named = group.nodes.iter().take(NAMED).cloned().collect::<Vec<_>>().join(" ");
        if group.nodes.len() > NAMED {
            named.push_str(&format!(" and {} more", group.nodes.len() - NAMED));
        }
        for (at, difference) in group.differences.iter().enumerate() {
            let named = if at == 0 { named.as_str() } else { "" };
            table.row(row(named, difference));
        }
    }
    text + &table.text(color)
}

fn row(named: &str, difference: &Difference) -> Vec<Cell> {
    vec![
        Cell::left(named),
        Cell::left(&difference.pointer),
        Cell::left(value(difference.before.as_ref())),
        Cell::left(value(difference.after.as_ref())),
    ]
}

/// What two documents have differently.
pub(super) fn differences(before: &Value, after: &Value) -> Vec<Difference> {
    let differences = config::differences(before, after).into_iter();
    let shown = differences.map(|config::Difference { pointer, before, after }| Difference {
        pointer,
        before,
        after,
    });
    shown.collect()
}

/// Differences, one a line.
pub(super) fn diff(differences: &[Difference], color: bool) -> String {
    if differences.is_empty() {
        return "no difference\n".to_owned();
    }
    let mut table = Table::new(&["key", "before", "after"]);
    for difference in differences {
        table.row(row("", difference).split_off(1));
    }
    table.text(color)
}

pub(super) fn node_diff(node: &NodeConfig, color: bool) -> String {
    let reason = clean_lines(node.reasons.first().map_or("", String::as_str));
    let rest = match &node.diff {
        Some(differences) => diff(differences, color),
        None if node.desired.is_none() => String::new(),
        None => "what it runs is not known here; what it is to have: `fleet config get NODE`\n".to_owned(),
    };
    reason + &rest
}

pub(super) fn history(revisions: &[Revision], now_ms: i64, color: bool) -> String {
    if revisions.is_empty() {
        return "no revisions: this was never set\n".to_owned();
    }
    let mut table = Table::new(&["revision", "changed", "by", "note"]);
    for revision in revisions {
        let note = revision.returned_to.map(|to| format!("as revision {to} was")).unwrap_or_default();
        table.row(vec![
            Cell::right(revision.revision),
            Cell::right(ago(now_ms, Some(revision.at_ms))),
            Cell::left(&revision.by),
            Cell::left(note),
        ]);
    }
    table.text(color)
}

pub(super) fn node(node: &NodeConfig, why: bool, now_ms: i64, color: bool) -> String {
    let mut text = format!("{}  {}\n", clean(&node.node), paint(&node.state, tone(&node.state), color));
    let reasons = if why { node.reasons.len() } else { 1 };
    node.reasons.iter().take(reasons).for_each(|reason| text.push_str(&clean_lines(reason)));
    let Some(desired) = &node.desired else { return text };
    let settings = config::differences(&config::empty(), &desired.doc);
    if settings.is_empty() {
        return text;
    }
    text.push('\n');
    let head: &[_] = if why {
        &["key", "value", "layer", "revision", "changed", "by"]
    } else {
        &["key", "value", "layer"]
    };
    let mut table = Table::new(head);
    for setting in settings {
        let origin = node.why.get(&setting.pointer).cloned().unwrap_or_default();
        let shown = value(setting.after.as_ref());
        let mut cells = vec![Cell::left(&setting.pointer), Cell::left(shown), Cell::left(&origin.layer)];
        if why {
            cells.push(Cell::right(origin.revision));
            cells.push(Cell::right(ago(now_ms, Some(origin.at_ms))));
            cells.push(Cell::left(&origin.by));
        }
        table.row(cells);
    }
    text + &table.text(color)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        api::shapes::config::{Changes, Desired, Origin},
        cli::output,
    };

    #[test]
    fn a_dry_run_names_nodes_and_what_changes_for_them() {
        let difference =
            Difference { pointer: "/upload_s".to_owned(), before: Some(json!(90)), after: Some(json!(30)) };
        let nodes: Vec<_> = (1..=10).map(|n| format!("edge-{n}")).collect();
        let shown = Changed {
            layer: "site/roof".to_owned(),
            revision: 3,
            changed: true,
            dry_run: true,
            doc: json!({"upload_s": 30}),
            nodes_count: 10,
            changes: vec![Changes { nodes, differences: vec![difference] }],
        };
        let text = changed(&shown, false);
        assert!(
            text.starts_with("site/roof would be at revision 3; 10 nodes change. Nothing was done\n"),
            "{text}"
        );
        assert!(text.contains("edge-8 and 2 more  /upload_s  90      30\n"), "{text}");
        let same = Changed { changed: false, dry_run: false, changes: Vec::new(), ..shown };
        assert_eq!(changed(&same, false), "site/roof is as it should be already, at revision 3\n");
    }

    #[test]
    fn a_node_shows_where_its_settings_come_from() {
        let origin =
            Origin { layer: "site/roof".to_owned(), revision: 3, by: "operator ann".to_owned(), at_ms: 0 };
        let shown = NodeConfig {
            node: "edge-1".to_owned(),
            state: "pending".to_owned(),
            reasons: vec!["first".to_owned(), "second\u{1b}[31m".to_owned()],
            desired: Some(Desired { doc: json!({"upload_s": 30}), ..Desired::default() }),
            why: [("/upload_s".to_owned(), origin)].into(),
            ..NodeConfig::default()
        };
        let brief = node(&shown, false, 60_000, false);
        assert!(brief.contains("/upload_s  30     site/roof\n") && !brief.contains("second"), "{brief}");
        let whole = node(&shown, true, 60_000, false);
        assert!(whole.contains("operator ann") && whole.contains("second"), "{whole}");
        assert!(!whole.contains('\u{1b}'), "{whole:?}");
        assert_eq!(output::tone("pending"), output::Tone::Warning);
    }
}
