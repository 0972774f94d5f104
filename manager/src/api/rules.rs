//! `rules`: what alerts are raised by. Texts are taken whole or refused whole, with line, column and reason.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Json,
    extract::{Path, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use fleet_schemas::rule::{self, RuleId, Target};

use super::{
    Api,
    problem::Refusal,
    query::{Body, Params, content_type},
    rights::Caller,
    shapes::{RefusedRules, Rule, Rules},
};
use crate::{
    alerts::rules::{KITS, Listed, Source},
    core::bounds::Touch,
};

const YAML: &str = "application/yaml";
const YAMLS: [&str; 4] = [YAML, "application/x-yaml", "text/yaml", "text/plain"];

/// `GET rules`: all on one page; with `Accept: application/yaml` the text of `rules.yaml`.
pub(super) async fn list(
    State(api): State<Arc<Api>>,
    params: Params,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    params.only(&["limit", "cursor"])?;
    let rules = api.alerts()?.rules();
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    if accept.contains("yaml") {
        return Ok(([(header::CONTENT_TYPE, YAML)], rules.text.to_string()).into_response());
    }
    let open = api
        .query(|api| {
            let stages = vec![crate::core::alert::Stage::Pending, crate::core::alert::Stage::Firing];
            let filter = crate::store::state::AlertFilter {
                stages,
                limit: crate::core::alert::OPEN,
                ..crate::store::state::AlertFilter::default()
            };
            let mut counts: BTreeMap<RuleId, usize> = BTreeMap::new();
            for alert in api.hub.state().alerts(&filter)?.0 {
                *counts.entry(alert.rule).or_default() += 1;
            }
            Ok(counts)
        })
        .await?;
    let items =
        rules.listed.iter().map(|listed| shown(listed, open.get(&listed.rule.id).copied().unwrap_or(0)));
    let refused = rules.refused.as_ref().map(|refused| RefusedRules {
        file: refused.file.clone(),
        line: refused.line,
        column: refused.column,
        reason: refused.reason.clone(),
    });
    Ok(Json(Rules { items: items.collect(), next: None, refused }).into_response())
}

fn shown(listed: &Listed, open_count: usize) -> Rule {
    let rule = &listed.rule;
    let sensor = match &rule.target {
        Target::Any => "any".to_owned(),
        Target::Device(device) if device.is_node() => "node".to_owned(),
        Target::Device(device) => device.to_string(),
    };
    Rule {
        id: rule.id.to_string(),
        source: listed.source.text(),
        enabled: listed.enabled,
        sensor,
        field: rule.field.as_ref().map(ToString::to_string),
        condition: rule.condition.text().to_owned(),
        clear: rule.clear.as_ref().map(|clear| clear.text().to_owned()),
        hysteresis: rule.hysteresis,
        for_s: rule.wait.as_secs_f64(),
        cooldown_s: rule.cooldown.as_secs_f64(),
        severity: rule.severity.as_str().to_owned(),
        labels: rule.labels.clone(),
        selector: rule.selector.clone(),
        open_count,
    }
}

fn text(headers: &HeaderMap, body: &[u8]) -> Result<String, Refusal> {
    content_type(headers, &YAMLS)?;
    if body.len() > rule::FILE_BYTES {
        return Err(Refusal::Large(format!("rules may have {} bytes; keep them apart", rule::FILE_BYTES)));
    }
    let text = std::str::from_utf8(body);
    text.map(str::to_owned).map_err(|error| Refusal::BadRequest(format!("the body is not UTF-8: {error}")))
}

/// `PUT rules` with the text of `rules.yaml`; answers after it counts.
pub(super) async fn put(
    State(api): State<Arc<Api>>,
    caller: Caller,
    params: Params,
    headers: HeaderMap,
    Body(body): Body,
) -> Result<Response, Refusal> {
    params.only(&[])?;
    api.hub.may(&caller.by(), Touch::Whole("rules"))?;
    api.alerts()?.put_rules(text(&headers, &body)?, caller.by()).await?;
    list(State(api), params, HeaderMap::new()).await
}

/// `PUT rules/kits/{name}` with a kit's `alerts.yaml` as it is; its rules are called `NAME.ID`.
pub(super) async fn put_kit(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Path(name): Path<String>,
    params: Params,
    headers: HeaderMap,
    Body(body): Body,
) -> Result<Response, Refusal> {
    params.only(&[])?;
    api.hub.may(&caller.by(), Touch::Whole("rules"))?;
    if RuleId::parse(&name).is_err() || name.starts_with('.') {
        return Err(Refusal::at(
            "/name",
            "a kit's name has 1 to 63 of A-Z a-z 0-9 . _ -, and no dot at its front",
        ));
    }
    let alerts = api.alerts()?;
    let mut kits: Vec<_> = (alerts.rules().listed.iter())
        .filter_map(|listed| match &listed.source {
            Source::Kit(kit) => Some(kit.clone()),
            Source::Own | Source::File => None,
        })
        .collect();
    kits.dedup();
    if kits.len() >= KITS && !kits.contains(&name) {
        return Err(Refusal::Conflict(format!("there are {KITS} kits already; remove one first")));
    }
    alerts.put_kit(name, Some(text(&headers, &body)?), caller.by()).await?;
    list(State(api), params, HeaderMap::new()).await
}

/// `DELETE rules/kits/{name}`: its alerts are over.
pub(super) async fn remove_kit(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Path(name): Path<String>,
    params: Params,
) -> Result<Response, Refusal> {
    params.only(&[])?;
    api.hub.may(&caller.by(), Touch::Whole("rules"))?;
    api.alerts()?.put_kit(name, None, caller.by()).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}
