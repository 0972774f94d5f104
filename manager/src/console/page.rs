//! What all pages have: the frame around them, the visitor, and refusals as pages.

use std::sync::Arc;

use askama::Template;
use axum::{
    extract::{FromRequestParts, Request},
    http::{HeaderValue, Method, StatusCode, header, request::Parts},
    response::{Html, IntoResponse, Redirect, Response},
};

use super::{assets::VERSION, session::Seat};
use crate::{
    api::{
        Api,
        problem::{Denied, Refusal},
        rights::Caller,
    },
    core::identity::Role,
};

/// Who looks at a page.
#[derive(Debug, Clone)]
pub(super) struct Visitor {
    /// The operator, or somebody who may look without logging in.
    pub(super) caller: Caller,
    /// Its session; none of somebody who did not log in.
    pub(super) seat: Option<Seat>,
}

/// The frame around a page.
#[derive(Debug, Clone)]
pub(super) struct Shell {
    /// Which entry of the navigation is here.
    pub(super) at: &'static str,
    /// Who is logged in.
    pub(super) who: String,
    /// In which role.
    pub(super) role: Role,
    /// What forms must bring; empty for somebody who did not log in.
    pub(super) csrf: String,
    /// Where changes of this page are told; empty when they are not.
    pub(super) live: String,
    /// The hub's clock.
    pub(super) now_ms: i64,
    /// Of the files that the page loads.
    pub(super) version: &'static str,
}

/// A refusal that is shown as a page.
#[derive(Debug)]
pub(super) struct Trouble(Refusal);

#[derive(Template)]
#[template(path = "trouble.html")]
struct TroublePage {
    title: &'static str,
    detail: String,
    faults: Vec<(String, String)>,
    version: &'static str,
}

impl Visitor {
    /// The frame of a page for it.
    pub(super) fn shell(&self, api: &Api, at: &'static str) -> Shell {
        Shell {
            at,
            who: self.caller.name.clone(),
            role: self.caller.role,
            csrf: self.seat.as_ref().map(|seat| seat.csrf.clone()).unwrap_or_default(),
            live: String::new(),
            now_ms: api.hub.clock().now().wall_ms,
            version: &VERSION,
        }
    }

    /// Whether it still may look, for answers that last.
    pub(super) fn still(&self, api: &Api) -> bool {
        let lasts = |seat: &Seat| api.config.sessions.lasts(&seat.id, crate::clock::mono());
        api.still(&self.caller) && self.seat.as_ref().is_none_or(lasts)
    }
}

impl Shell {
    /// Whether this visitor is logged in.
    pub(super) fn logged_in(&self) -> bool {
        !self.csrf.is_empty()
    }

    /// Whether this visitor may do what takes that role: forms need a session.
    pub(super) fn may(&self, role: &Role) -> bool {
        self.logged_in() && self.role >= *role
    }

    /// Whether this visitor decides who gets in.
    pub(super) fn is_admin(&self) -> bool {
        self.role == Role::Admin
    }

    /// `page` in the navigation's entry that is here.
    pub(super) fn current(&self, at: &str) -> bool {
        self.at == at
    }
}

impl<E: Into<Refusal>> From<E> for Trouble {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl IntoResponse for Trouble {
    fn into_response(self) -> Response {
        refused(self.0)
    }
}

impl FromRequestParts<Arc<Api>> for Visitor {
    type Rejection = Trouble;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, Trouble> {
        let caller = Caller::from_request_parts(parts, api).await?;
        // Who looks without logging in has no session, also when a cookie of another is at hand.
        let seat = parts.extensions.get::<Seat>().filter(|seat| caller.token == Some(seat.token)).cloned();
        Ok(Self { caller, seat })
    }
}

/// The answer with a page; nobody on the way keeps it.
pub(super) fn shown(status: StatusCode, page: &impl Template) -> Result<Response, Refusal> {
    let text = page.render().map_err(|error| Refusal::Internal(error.to_string()))?;
    Ok((status, [(header::CACHE_CONTROL, "no-store")], Html(text)).into_response())
}

/// A refusal for somebody who reads pages.
pub(crate) fn refused(refusal: Refusal) -> Response {
    let status = refusal.status();
    let title = match status {
        StatusCode::NOT_FOUND => "There is no such thing here",
        StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED => "This is not for you",
        _ if status.is_server_error() => "The hub cannot do that now",
        _ => "The hub did not understand that",
    };
    let faults = if let Refusal::Invalid { faults, .. } = &refusal { faults.clone() } else { Vec::new() };
    let page = TroublePage { title, detail: refusal.to_string(), faults, version: &VERSION };
    match shown(status, &page) {
        Ok(mut response) => {
            // What else the refusal says by its headers: when to come again.
            if let Some(retry) = refusal.into_response().headers().get(header::RETRY_AFTER) {
                response.headers_mut().insert(header::RETRY_AFTER, retry.clone());
            }
            response
        }
        Err(broken) => broken.into_response(),
    }
}

/// A refusal of a request for a page: who did not log in is sent to do so, and back.
pub(crate) fn refused_at(refusal: Refusal, request: &Request) -> Response {
    if !matches!(refusal, Refusal::Denied(Denied::NoToken)) {
        return refused(refusal);
    }
    let live = request.headers().get(header::ACCEPT) == Some(&HeaderValue::from_static("text/event-stream"));
    if live {
        // A stream follows no redirect; the page's script sees that it has to.
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let back = request.uri().path_and_query().map_or("/", |path| path.as_str());
    let back = if *request.method() == Method::GET && back != "/" {
        let next = form_urlencoded::Serializer::new(String::new()).append_pair("next", back).finish();
        format!("/login?{next}")
    } else {
        "/login".to_owned()
    };
    Redirect::to(&back).into_response()
}
