//! Logging in with an API token or a link that works once, and out again.

use std::{net::SocketAddr, sync::Arc};

use askama::Template;
use axum::{
    extract::{ConnectInfo, Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Redirect, Response},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

use super::{
    assets::VERSION,
    form::{self, Fields, Form},
    page::{self, Trouble, Visitor},
    session,
};
use crate::{
    api::{
        Api,
        guard::known,
        problem::{Denied, Refusal},
    },
    clock,
    core::identity::Hash,
};

/// The cookie that a login form must agree with, so that no other page can log somebody in.
const COOKIE: &str = "fleet-login";
/// Longest token, in bytes; ours have 49.
const TOKEN_BYTES: usize = 256;

#[derive(Template)]
#[template(path = "login.html")]
struct Page {
    csrf: String,
    next: String,
    wrong: Option<String>,
    version: &'static str,
}

/// `GET /login?next=&link=`.
pub(super) async fn form(
    State(api): State<Arc<Api>>,
    headers: HeaderMap,
    query: Fields,
) -> Result<Response, Trouble> {
    let next = next(&query);
    let Some(link) = query.text("link") else { return Ok(again(&headers, next, None, StatusCode::OK)?) };
    match api.config.sessions.redeem(link, clock::mono()) {
        Some(token) => Ok(welcome(&api, token, &next)),
        None => {
            let why = "this login link was used before or is older than 15 minutes; log in with a token";
            Ok(again(&headers, next, Some(why.to_owned()), StatusCode::UNAUTHORIZED)?)
        }
    }
}

/// `POST /login`: `token`, `next`.
pub(super) async fn log_in(
    State(api): State<Arc<Api>>,
    headers: HeaderMap,
    request: Request,
) -> Result<Response, Trouble> {
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(peer)| peer.ip());
    let fields = form::read(request, &api).await?;
    let next = next(&fields);
    let secret = session::named(&headers, COOKIE).unwrap_or_default();
    if secret.is_empty() || !fields.brings(secret) {
        let why = "this form was open for too long; try again";
        return Ok(again(&headers, next, Some(why.to_owned()), StatusCode::FORBIDDEN)?);
    }
    let token = fields.text("token").map(str::trim).filter(|token| token.len() <= TOKEN_BYTES);
    match known(&api, token, peer) {
        Ok(caller) => {
            let token = caller.token.ok_or_else(|| Refusal::Internal("a token without a holder".into()))?;
            Ok(welcome(&api, token, &next))
        }
        Err(Refusal::Denied(denied @ (Denied::BadToken | Denied::TooMany { .. }))) => {
            let status = Refusal::Denied(denied.clone()).status();
            Ok(again(&headers, next, Some(denied.to_string()), status)?)
        }
        Err(refusal) => Err(refusal.into()),
    }
}

/// `POST /logout`.
pub(super) async fn log_out(State(api): State<Arc<Api>>, visitor: Visitor, Form(_): Form) -> Response {
    if let Some(seat) = &visitor.seat {
        api.config.sessions.close(&seat.id);
    }
    with_cookie(Redirect::to("/login").into_response(), &session::set(&api, None))
}

fn welcome(api: &Api, token: Hash, next: &str) -> Response {
    let cookie = api.config.sessions.open(token, [clock::random(), clock::random()], clock::mono());
    with_cookie(Redirect::to(next).into_response(), &session::set(api, Some(&cookie)))
}

/// The form, with what was wrong before.
fn again(
    headers: &HeaderMap,
    next: String,
    wrong: Option<String>,
    status: StatusCode,
) -> Result<Response, Refusal> {
    // Kept while it is there: of two open forms both can be sent.
    let known = session::named(headers, COOKIE).filter(|kept| kept.len() == 43).map(str::to_owned);
    let csrf = known.unwrap_or_else(|| URL_SAFE_NO_PAD.encode(clock::random::<32>()));
    let cookie = format!("{COOKIE}={csrf}; Path=/login; HttpOnly; SameSite=Strict; Max-Age=3600");
    let page = Page { csrf, next, wrong, version: &VERSION };
    Ok(with_cookie(page::shown(status, &page)?, &cookie))
}

fn with_cookie(mut response: Response, cookie: &str) -> Response {
    let cookie = HeaderValue::from_str(cookie).expect("our cookies are visible ASCII");
    response.headers_mut().append(header::SET_COOKIE, cookie);
    response
}

/// Where to go after: a page of ours.
fn next(fields: &Fields) -> String {
    let next = fields.text("next").unwrap_or("/");
    let own = next.starts_with('/')
        && !next.starts_with("//")
        && next.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\');
    if own { next } else { "/" }.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_back_leads_to_no_other_host() {
        let next = |text: &str| next(&Fields::parse(text.as_bytes()).unwrap());
        assert_eq!(next("next=%2Fnodes%2Fa%3Frange%3D1h"), "/nodes/a?range=1h");
        for bad in ["next=//evil", "next=https://evil", "next=/%5Cevil", "next=/%0d%0aSet-Cookie:x", ""] {
            assert_eq!(next(bad), "/", "{bad}");
        }
    }
}
