//! Frames of a small fleet, and what keys do to them.

use super::{view::Column, *};
use crate::api::shapes::{Outbox, Series};

const NOW_MS: i64 = 1_790_000_000_000;

fn node(id: &str, state: &str, cpu: f64, age_ms: i64) -> Node {
    Node {
        id: id.to_owned(),
        kind: "picclaw".to_owned(),
        state: state.to_owned(),
        site: Some("hall-3".to_owned()),
        labels: [("rack".to_owned(), id.to_owned())].into(),
        last_seen_ms: Some(NOW_MS - age_ms),
        system: [
            ("cpu_percent".to_owned(), cpu),
            ("load1".to_owned(), cpu / 50.0),
            ("mem_used_bytes".to_owned(), 256e6),
            ("mem_total_bytes".to_owned(), 1e9),
        ]
        .into(),
        outbox: Some(Outbox { records: 1_000, bytes: 4_096, quota_bytes: 1 << 28 }),
        ..Node::default()
    }
}

fn status(now_ms: i64, stored: u64) -> Status {
    Status {
        version: "0.1.0".to_owned(),
        now_ms,
        ready: true,
        nodes_by_state: [("offline".to_owned(), 1), ("online".to_owned(), 2)].into(),
        accounts_by_state: [("balanced".to_owned(), 5), ("pending".to_owned(), 1)].into(),
        records: [("stored".to_owned(), stored), ("at_edge".to_owned(), 1_000)].into(),
        ..Status::default()
    }
}

fn view() -> View {
    let mut view = View::new("http://127.0.0.1:8080", Column::Id, false);
    let nodes = vec![
        node("c-3", "online", 5.0, 900),
        node("a-1", "online", 97.0, 1_000),
        node("b-2", "offline", 0.0, 9e6 as i64),
    ];
    view.fleet(status(NOW_MS - 2_000, 10_000), vec![]);
    view.fleet(status(NOW_MS, 13_000), nodes);
    let points = (0..60).map(|i| (NOW_MS - LOOK_BACK_MS + i * 30_000, (i % 20) as f64)).collect();
    let series =
        Series { metric: "cpu_percent".to_owned(), unit: Some("%".to_owned()), points, ..Series::default() };
    let probe = Series { device: "probe".to_owned(), metric: "t".to_owned(), ..Series::default() };
    view.detail("a-1".to_owned(), Telemetry { series: vec![probe, series] });
    view
}

fn ids(view: &View) -> Vec<&str> {
    view.lines().into_iter().map(|node| node.id.as_str()).collect()
}

#[test]
fn a_frame_of_80_by_24_has_everything() {
    insta::assert_snapshot!(picture(&view(), 80, 24));
}

#[test]
fn small_and_odd_screens_are_drawn() {
    for (width, height) in [(1, 1), (10, 3), (40, 10), (80, 19), (300, 100)] {
        let mut view = view();
        view.key(Key::Char('?'));
        assert_eq!(picture(&view, width, height).lines().count(), usize::from(height));
    }
}

#[test]
fn the_worst_comes_first_and_r_turns_it_round() {
    let mut view = view();
    assert_eq!(ids(&view), ["a-1", "b-2", "c-3"]);
    view.key(Key::Char('>'));
    assert_eq!((view.sort, ids(&view)), (Column::State, vec!["b-2", "a-1", "c-3"]));
    view.key(Key::Char('>'));
    view.key(Key::Char('>'));
    assert_eq!((view.sort, ids(&view)), (Column::Cpu, vec!["a-1", "c-3", "b-2"]));
    view.key(Key::Char('r'));
    assert_eq!(ids(&view), ["b-2", "c-3", "a-1"]);
    for _ in 0..4 {
        view.key(Key::Char('<'));
    }
    assert_eq!(view.sort, Column::Seen, "the columns go round");
}

#[test]
fn the_filter_narrows_and_the_selection_stays_on_the_screen() {
    let mut view = view();
    view.key(Key::End);
    assert_eq!(view.detail_of(), Some("c-3"));
    for c in "/rack=B".chars() {
        assert_eq!(view.key(Key::Char(c)), Act::Stay);
    }
    assert_eq!((ids(&view), view.detail_of()), (vec!["b-2"], Some("b-2")));
    view.key(Key::Char('q'));
    assert!(ids(&view).is_empty(), "q is a letter while typing");
    assert_eq!(view.detail_of(), None);
    view.key(Key::Backspace);
    view.key(Key::Enter);
    assert!(!view.typing && ids(&view) == ["b-2"]);
    view.key(Key::Escape);
    assert_eq!(ids(&view).len(), 3);
}

#[test]
fn keys_move_within_the_lines() {
    let mut view = view();
    for (key, expected) in [
        (Key::Up, "a-1"),
        (Key::Down, "b-2"),
        (Key::PageDown, "c-3"),
        (Key::Down, "c-3"),
        (Key::Home, "a-1"),
        (Key::Char('G'), "c-3"),
        (Key::Char('k'), "b-2"),
        (Key::PageUp, "a-1"),
        (Key::End, "c-3"),
    ] {
        view.key(key);
        assert_eq!(view.detail_of(), Some(expected), "{key:?}");
    }
    view.key(Key::Enter);
    assert_eq!(view.detail_of(), None, "a closed pane asks for nothing");
}

#[test]
fn q_and_ctrl_c_leave() {
    assert_eq!(view().key(Key::Char('q')), Act::Leave);
    let mut typing = view();
    typing.key(Key::Char('/'));
    assert_eq!(typing.key(Key::Interrupt), Act::Leave);
}

#[test]
fn the_rate_is_records_a_second_and_trouble_keeps_the_figures() {
    let mut view = view();
    assert_eq!(view.rates, [1_500.0]);
    view.trouble("no hub answers".to_owned());
    let text = picture(&view, 80, 24);
    assert!(text.contains("no hub answers") && text.contains("a-1"));
}
