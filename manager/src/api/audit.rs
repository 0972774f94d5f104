//! `audit`: the trail of changes, newest first.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    response::{IntoResponse as _, Response},
};

use super::{
    Api,
    problem::Refusal,
    query::Params,
    shapes::{self, Page},
};
use crate::{core::audit::Entry, store::state::AuditFilter};

/// Entries read from the store at once while a filter looks for its own.
const READ: usize = 1_000;

/// Which entries.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wanted {
    /// Older than this.
    pub(crate) before: Option<u64>,
    /// Not older than this, Unix milliseconds.
    pub(crate) since_ms: Option<i64>,
    /// By whom: `operator NAME`, or only the name.
    pub(crate) who: Option<String>,
    /// Such as `node.revoke`, or its first word.
    pub(crate) action: Option<String>,
    /// At most so many.
    pub(crate) limit: usize,
}

/// `GET audit?limit=&cursor=&who=&action=&since_ms=`: `who` is `operator NAME`, or only the name; `action` such as
/// `node.revoke`, or its first word.
pub(super) async fn list(State(api): State<Arc<Api>>, params: Params) -> Result<Response, Refusal> {
    params.only(&["limit", "cursor", "who", "action", "since_ms"])?;
    let wanted = Wanted {
        before: params.read("cursor")?,
        since_ms: params.read("since_ms")?,
        who: params.text("who").map(str::to_owned),
        action: params.text("action").map(str::to_owned),
        limit: params.limit()?,
    };
    Ok(Json(read(&api, wanted).await?).into_response())
}

/// A page of the trail.
pub(crate) async fn read(api: &Arc<Api>, wanted: Wanted) -> Result<Page<shapes::AuditEntry>, Refusal> {
    let Wanted { mut before, since_ms, who, action, limit } = wanted;
    let found = api.query(move |api| {
        let mut found = Vec::new();
        // One more than asked tells whether there is a next page.
        while found.len() <= limit {
            let entries = api.hub.audit(AuditFilter { before, limit: READ })?;
            let last = entries.len() < READ;
            before = entries.last().map(|(number, _)| *number);
            let old = |entry: &Entry| since_ms.is_some_and(|since_ms| entry.at_ms < since_ms);
            let ended = last || entries.iter().any(|(_, entry)| old(entry));
            let wanted = |(_, entry): &(u64, Entry)| {
                !old(entry)
                    && who.as_deref().is_none_or(|who| is_by(entry, who))
                    && action.as_deref().is_none_or(|action| is_a(entry, action))
            };
            found.extend(entries.into_iter().filter(wanted));
            if ended {
                break;
            }
        }
        Ok(found)
    });
    let mut found = found.await?;
    let more = found.len() > limit;
    found.truncate(limit);
    let next = found.last().filter(|_| more).map(|(number, _)| number.to_string());
    let items = found.into_iter().map(|(_, entry)| shown(entry)).collect();
    Ok(Page { items, next })
}

fn is_by(entry: &Entry, who: &str) -> bool {
    entry.who == who || entry.who.split_once(' ').is_some_and(|(_, name)| name == who)
}

fn is_a(entry: &Entry, action: &str) -> bool {
    entry.action.strip_prefix(action).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

fn shown(entry: Entry) -> shapes::AuditEntry {
    let Entry { at_ms, who, action, target, detail } = entry;
    let detail = detail.and_then(|text| serde_json::from_str(&text).ok());
    shapes::AuditEntry { at_ms, who, action, target, detail }
}
