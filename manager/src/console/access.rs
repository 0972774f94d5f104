//! `/access` and `/audit`: who may speak to the hub, and who changed what. Both are looked at only: secrets are shown by
//! the command that makes them, once.

use std::sync::Arc;

use askama::Template;
use axum::{extract::State, http::StatusCode, response::Response};

use super::{
    form::Fields,
    page::{self, Shell, Trouble, Visitor},
    words::{self, When},
};
use crate::api::{Api, access, audit, field_tokens, join_tokens, operators, problem::Refusal, shapes};

/// Of each kind on the page; more are told by the command line.
const LISTED: usize = 200;
/// Entries of a page of the trail.
const ENTRIES: usize = 50;

#[derive(Template)]
#[template(path = "access.html")]
struct Page {
    shell: Shell,
    operators: shapes::Page<shapes::Operator>,
    tools: shapes::Page<shapes::Access>,
    tokens: shapes::Page<shapes::JoinToken>,
    field: shapes::Page<shapes::FieldToken>,
    now_ms: i64,
}

#[derive(Template)]
#[template(path = "audit.html")]
struct Trail {
    shell: Shell,
    who: String,
    action: String,
    entries: Vec<shapes::AuditEntry>,
    next: Option<String>,
    now_ms: i64,
}

/// `GET /access`.
pub(super) async fn page(State(api): State<Arc<Api>>, visitor: Visitor) -> Result<Response, Trouble> {
    let shell = visitor.shell(&api, "access");
    let page = Page {
        now_ms: shell.now_ms,
        operators: operators::read(&api, "", LISTED),
        tools: access::read(&api, "", LISTED),
        tokens: join_tokens::read(&api, "", LISTED),
        field: field_tokens::read(&api, "", LISTED),
        shell,
    };
    Ok(page::shown(StatusCode::OK, &page)?)
}

/// `GET /audit?who=&action=&cursor=`.
pub(super) async fn trail(
    State(api): State<Arc<Api>>,
    visitor: Visitor,
    query: Fields,
) -> Result<Response, Trouble> {
    let shell = visitor.shell(&api, "audit");
    let before = query.text("cursor").map(str::parse).transpose();
    let wanted = audit::Wanted {
        before: before.map_err(|_| Refusal::query("cursor", "is none that this page gave"))?,
        who: query.text("who").map(str::to_owned),
        action: query.text("action").map(str::to_owned),
        since_ms: None,
        limit: ENTRIES,
    };
    let (who, action) = (wanted.who.clone(), wanted.action.clone());
    let found = audit::read(&api, wanted).await?;
    let page = Trail {
        now_ms: shell.now_ms,
        who: who.unwrap_or_default(),
        action: action.unwrap_or_default(),
        entries: found.items,
        next: found.next,
        shell,
    };
    Ok(page::shown(StatusCode::OK, &page)?)
}

impl Trail {
    fn older(&self, cursor: &str) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        for (name, value) in [("who", self.who.as_str()), ("action", &self.action), ("cursor", cursor)] {
            if !value.is_empty() {
                query.append_pair(name, value);
            }
        }
        format!("/audit?{}", query.finish())
    }

    fn detail(&self, entry: &shapes::AuditEntry) -> String {
        entry.detail.as_ref().map(|detail| words::clip(&detail.to_string())).unwrap_or_default()
    }
}
