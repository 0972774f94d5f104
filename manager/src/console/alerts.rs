//! `/alerts`: what fires and fired, who takes care of it, and what is kept quiet.

use std::sync::Arc;

use askama::Template;
use axum::{
    extract::{Path, State},
    http::{StatusCode, Uri},
    response::{IntoResponse as _, Redirect, Response},
};

use super::{
    fleet::part,
    form::{Fields, Form},
    live::{self, Part, Tick},
    page::{self, Shell, Trouble, Visitor},
    view::View,
    words::{self, When},
};
use crate::{
    api::{Api, alerts, problem::Refusal, shapes},
    core::identity::Role,
};

/// Alerts of a page.
const LISTED: usize = 50;
/// What a timeline shows: a day.
const WINDOW_MS: i64 = 86_400_000;
/// Width of a timeline, in its own units.
const WIDTH: f64 = 1_000.0;
/// How long a silence may be made for: name, seconds.
const SPANS: [(&str, u32); 4] = [("1 h", 3_600), ("4 h", 14_400), ("1 day", 86_400), ("1 week", 604_800)];
/// States that a list can have; without one it is of those that are open.
const STATES: [&str; 4] = ["open", "firing", "pending", "resolved"];
const SEVERITIES: [&str; 4] = ["info", "warning", "error", "critical"];

/// Which alerts a page lists.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Asked {
    state: String,
    severity: Option<String>,
    node: Option<String>,
    rule: Option<String>,
    cursor: Option<String>,
    /// What forms on the page must bring; empty where nobody may change anything.
    csrf: String,
}

#[derive(Template)]
#[template(path = "alerts.html")]
struct Page {
    shell: Shell,
    asked: Asked,
    list: List,
    silences: Silences,
}

#[derive(Template)]
#[template(path = "alerts_list.html")]
struct List {
    alerts: Vec<shapes::Alert>,
    next: Option<String>,
    asked: Asked,
    now_ms: i64,
}

#[derive(Template)]
#[template(path = "alerts_silences.html")]
struct Silences {
    silences: Vec<shapes::Silence>,
    csrf: String,
    now_ms: i64,
}

/// `GET /alerts?state=&severity=&node=&rule=&cursor=`.
pub(super) async fn page(
    State(api): State<Arc<Api>>,
    visitor: Visitor,
    uri: Uri,
    query: Fields,
) -> Result<Response, Trouble> {
    let mut shell = visitor.shell(&api, "alerts");
    let asked = Asked::of(&shell, &query)?;
    shell.live = format!("/live/alerts?{}", uri.query().unwrap_or_default());
    let (list, silences) = read(&api, &asked, shell.now_ms).await?;
    Ok(page::shown(StatusCode::OK, &Page { shell, asked, list, silences })?)
}

/// `GET /live/alerts`, with the page's own query.
pub(super) async fn live(
    State(api): State<Arc<Api>>,
    visitor: Visitor,
    query: Fields,
) -> Result<Response, Trouble> {
    let asked = Asked::of(&visitor.shell(&api, "alerts"), &query)?;
    Ok(live::stream(api, visitor, View::Alerts(Box::new(asked)))?)
}

/// `POST /alerts/{id}/acknowledge`: `comment`.
pub(super) async fn acknowledge(
    State(api): State<Arc<Api>>,
    visitor: Visitor,
    Path(id): Path<String>,
    Form(form): Form,
) -> Result<Response, Trouble> {
    alerts::take_care(&api, &visitor.caller, &id, form.text("comment").map(str::to_owned)).await?;
    Ok(back())
}

/// `POST /alerts/{id}/silence`: `for_s`, `comment`.
pub(super) async fn silence(
    State(api): State<Arc<Api>>,
    visitor: Visitor,
    Path(id): Path<String>,
    Form(form): Form,
) -> Result<Response, Trouble> {
    let for_s = form.text("for_s").unwrap_or("3600").parse();
    let for_s = for_s.map_err(|_| Refusal::at("/for_s", "is no number of seconds"))?;
    let comment = form.text("comment").map(str::to_owned);
    alerts::keep_quiet(&api, &visitor.caller, &id, for_s, comment).await?;
    Ok(back())
}

/// `POST /silences/{id}/remove`.
pub(super) async fn unsilence(
    State(api): State<Arc<Api>>,
    visitor: Visitor,
    Path(id): Path<String>,
    Form(_): Form,
) -> Result<Response, Trouble> {
    alerts::speak_again(&api, &visitor.caller, &id).await?;
    Ok(back())
}

fn back() -> Response {
    Redirect::to("/alerts").into_response()
}

/// The page's parts, as they are now.
pub(super) async fn parts(api: &Arc<Api>, asked: &Asked) -> Result<Vec<Part>, Refusal> {
    let (list, silences) = read(api, asked, api.hub.clock().now().wall_ms).await?;
    Ok(vec![part("list", &list)?, part("silences", &silences)?])
}

async fn read(api: &Arc<Api>, asked: &Asked, now_ms: i64) -> Result<(List, Silences), Refusal> {
    let wanted = alerts::Wants {
        state: Some(asked.state.as_str()),
        severity: asked.severity.as_deref(),
        node: asked.node.as_deref(),
        rule: asked.rule.as_deref(),
        cursor: asked.cursor.as_deref(),
        limit: LISTED,
        ..alerts::Wants::default()
    };
    let page = alerts::read(api, wanted).await?;
    let silences = alerts::read_silences(api).await?.items;
    Ok((
        List { alerts: page.items, next: page.next, asked: asked.clone(), now_ms },
        Silences { silences, csrf: asked.csrf.clone(), now_ms },
    ))
}

impl Asked {
    fn of(shell: &Shell, query: &Fields) -> Result<Self, Refusal> {
        let word = |name: &str| query.text(name).map(|text| text.trim().to_owned());
        let state = word("state").unwrap_or_else(|| "open".to_owned());
        if !STATES.contains(&state.as_str()) {
            return Err(Refusal::query("state", format!("is none of {}", STATES.join(", "))));
        }
        let csrf = if shell.may(&Role::Operator) { shell.csrf.clone() } else { String::new() };
        let (severity, node, rule) = (word("severity"), word("node"), word("rule"));
        Ok(Self { state, severity, node, rule, cursor: word("cursor"), csrf })
    }

    /// Whether a tick may have changed what is listed.
    pub(super) fn touched(&self, tick: &Tick) -> bool {
        tick.all || tick.alerts
    }

    fn is_severity(&self, severity: &str) -> bool {
        self.severity.as_deref() == Some(severity)
    }

    /// It as a link to the page that begins at a cursor.
    fn link(&self, cursor: &str) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.append_pair("state", &self.state);
        let words = [("severity", &self.severity), ("node", &self.node), ("rule", &self.rule)];
        for (name, value) in words {
            if let Some(value) = value {
                query.append_pair(name, value);
            }
        }
        format!("/alerts?{}", query.append_pair("cursor", cursor).finish())
    }
}

impl Page {
    fn severities(&self) -> [&'static str; SEVERITIES.len()] {
        SEVERITIES
    }

    fn states(&self) -> [&'static str; STATES.len()] {
        STATES
    }
}

impl List {
    /// Whether no alert is open, as far as anybody knows.
    fn is_calm(&self) -> bool {
        let Asked { state, severity, node, rule, cursor, csrf: _ } = &self.asked;
        let is_whole = [severity, node, rule, cursor, &self.next].iter().all(|narrowed| narrowed.is_none());
        state == "open" && is_whole && self.alerts.is_empty()
    }

    /// The word for where an alert stands, and for people.
    fn word<'a>(&self, alert: &'a shapes::Alert) -> &'a str {
        match alert.state.as_str() {
            "firing" if alert.inhibited_by.is_some() => "inhibited",
            "firing" if alert.silenced_until_ms.is_some_and(|until_ms| until_ms > self.now_ms) => "silenced",
            "firing" if alert.acknowledged_by.is_some() => "acknowledged",
            state => state,
        }
    }

    /// When it was pending and when it fired, on the last day: x, width, state.
    fn line(&self, alert: &shapes::Alert) -> Vec<(String, String, &'static str)> {
        let from_ms = self.now_ms - WINDOW_MS;
        let x = |at_ms: i64| ((at_ms - from_ms) as f64 / WINDOW_MS as f64 * WIDTH).clamp(0.0, WIDTH);
        let end_ms = alert.resolved_ms.unwrap_or(self.now_ms);
        let fired_ms = alert.fired_ms.unwrap_or(end_ms);
        let pieces = [(alert.since_ms, fired_ms, "pending"), (fired_ms, end_ms, "firing")];
        let shown = pieces.into_iter().filter(|(from, to, _)| to > from && *to > from_ms);
        let drawn = shown.map(|(from, to, state)| {
            // A short one is to be seen, too, and stays inside.
            let width = (x(to) - x(from)).max(6.0);
            (format!("{:.0}", x(from).min(WIDTH - width)), format!("{width:.0}"), state)
        });
        drawn.collect()
    }

    /// How long it fired, or has been firing.
    fn lasted(&self, alert: &shapes::Alert) -> String {
        words::span(alert.resolved_ms.unwrap_or(self.now_ms) - alert.since_ms)
    }

    fn open(&self, alert: &shapes::Alert) -> bool {
        alert.state != "resolved" && !self.asked.csrf.is_empty()
    }

    fn spans(&self) -> [(&'static str, u32); SPANS.len()] {
        SPANS
    }

    fn value(&self, alert: &shapes::Alert) -> Option<String> {
        alert.value.map(|value| words::value(value, alert.metric.as_deref().unwrap_or_default(), None))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_shows_when_it_was_pending_and_when_it_fired() {
        let now_ms = 2 * WINDOW_MS;
        let list = List { alerts: Vec::new(), next: None, asked: Asked::default(), now_ms };
        let line = |since_ms, fired_ms, resolved_ms| {
            list.line(&shapes::Alert { since_ms, fired_ms, resolved_ms, ..shapes::Alert::default() })
        };
        let half = WINDOW_MS + WINDOW_MS / 2;
        assert_eq!(line(half, None, None), [("500".to_owned(), "500".to_owned(), "pending")]);
        let both = line(WINDOW_MS, Some(half), None);
        assert_eq!(
            both.iter().map(|(x, _, state)| (x.as_str(), *state)).collect::<Vec<_>>(),
            [("0", "pending"), ("500", "firing")]
        );
        assert_eq!(line(1, Some(2), Some(3)), [], "older than the line");
        assert_eq!(line(now_ms - 1, Some(now_ms - 1), None)[0].0, "994", "a new one is to be seen");
    }
}
