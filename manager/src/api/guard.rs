//! What every request passes: where it comes from, who sends it, how many there are, how long it may take.
//!
//! Owns the check of tokens. Never logs one, and says no more of a wrong one than that it is wrong.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, PoisonError},
    time::Duration,
};

use axum::{
    extract::{ConnectInfo, MatchedPath, Request, State},
    http::{Method, header},
    middleware::Next,
    response::{IntoResponse as _, Response},
};

use super::{
    Api,
    problem::{Denied, Refusal},
    rights::{Caller, Needs},
    token,
};
use crate::{
    attempts::Failed,
    console::{
        self,
        session::{self, Seat},
    },
    core::identity::{Hash, Role},
    metrics::catalogue,
};

/// Requests answered at once; streams count only until their first byte.
pub(super) const REQUESTS: usize = 256;
/// Time for an answer, a stream's first byte included. Recounting a ledger reads every row.
const ANSWER: Duration = Duration::from_secs(60);
const RECOUNT: Duration = Duration::from_secs(600);
/// Requests of whoever showed no token, done at once, and the time that each has: people who log in, their pages' style,
/// and whatever else comes.
pub(super) const STRANGERS: usize = 32;
const STRANGER: Duration = Duration::from_secs(5);
/// How long something that was begun goes on after its time for an answer, at most.
const LATEST: Duration = Duration::from_secs(600);
/// Longest header that may hold a token, in bytes; ours have 55.
const HEADER_BYTES: usize = 512;

/// Who was let in.
struct Admitted {
    caller: Caller,
    /// Its session of the console, if it came by one.
    seat: Option<Seat>,
}

/// Answers, or refuses before anything is done.
pub(super) async fn guard(State(api): State<Arc<Api>>, mut request: Request, next: Next) -> Response {
    let began = crate::clock::mono();
    let method = request.method().clone();
    let health = matches!(request.uri().path(), "/livez" | "/readyz" | "/metrics");
    let recount = request.uri().path() == "/api/v1/ledger";
    let admitted = admit(&api, &request).inspect_err(|refusal| count(&api, refusal));
    let mut response = match admitted {
        Err(refusal) if console::is_page(request.uri().path()) => console::refused_at(refusal, &request),
        Err(refusal) => refusal.into_response(),
        Ok(admitted) => {
            let is_known = admitted.is_some();
            if let Some(Admitted { caller, seat }) = admitted {
                api.used(&caller);
                request.extensions_mut().insert(caller);
                if let Some(seat) = seat {
                    request.extensions_mut().insert(seat);
                }
            }
            // Health must answer when everything else is busy.
            let places = if is_known { &api.requests } else { &api.strangers };
            let permit = if health { None } else { Some(places.try_acquire()) };
            let limit = match (is_known, health, recount) {
                (false, false, _) => STRANGER,
                (true, _, true) => RECOUNT,
                (_, true, _) | (true, false, false) => ANSWER,
            };
            if matches!(permit, Some(Err(_))) {
                Refusal::Busy.into_response()
            } else if is_known && method == Method::POST {
                to_the_end(limit, next.run(request)).await
            } else {
                let answer = tokio::time::timeout(limit, next.run(request)).await;
                answer.unwrap_or_else(|_| Refusal::Slow.into_response())
            }
        }
    };
    console::harden(response.headers_mut());
    let code = response.status();
    // Methods outside the standard are anybody's text, and would be labels without end.
    let known = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];
    let method = known.into_iter().find(|known| *known == method.as_str()).unwrap_or("other");
    api.exporter.counter(&catalogue::HTTP_REQUESTS, &[method, code.as_str()]).increment(1);
    api.request_seconds.record(crate::clock::mono().saturating_sub(began).as_secs_f64());
    response
}

/// Does what was begun also when whoever asked is gone, or does not wait so long: with the answer it is kept under its
/// `Idempotency-Key`, and a repetition finds it.
async fn to_the_end(limit: Duration, work: impl Future<Output = Response> + Send + 'static) -> Response {
    let done = tokio::spawn(tokio::time::timeout(limit + LATEST, work));
    match tokio::time::timeout(limit, done).await {
        Ok(Ok(Ok(answer))) => answer,
        Ok(Err(error)) => Refusal::Internal(error.to_string()).into_response(),
        Ok(Ok(Err(_))) | Err(_) => Refusal::Slow.into_response(),
    }
}

/// Refuses what a foreign web page may have sent, and who may not do what is asked. Says who asks, where that matters.
fn admit(api: &Api, request: &Request) -> Result<Option<Admitted>, Refusal> {
    let headers = request.headers();
    let text = |name: header::HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    let host = text(header::HOST);
    let foreign = host.is_some_and(|host| !is_local(host));
    if api.loopback && foreign {
        return Err(Refusal::Forbidden(
            "this hub listens on loopback only and answers to its address or localhost, not to another name"
                .into(),
        ));
    }
    let origin = text(header::ORIGIN);
    let own = |origin: &str| origin.split_once("://").is_some_and(|(_, of)| Some(of) == host);
    if origin.is_some_and(|origin| !own(origin)) {
        return Err(Refusal::Forbidden("requests of other origins are refused".to_owned()));
    }
    let matched = request.extensions().get::<MatchedPath>();
    // An unknown path, or a method that it does not take: refused by the router, and nothing is told by that.
    let Some(needs) = matched.and_then(|path| api.rights.needs(request.method(), path.as_str())) else {
        return Ok(None);
    };
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(peer)| peer.ip());
    // What a proxy hands on comes from somewhere else, and a page whose name was rebound to this address is no
    // program of this machine.
    let proxied = headers.contains_key(header::FORWARDED) || headers.contains_key("x-forwarded-for");
    let here = peer.is_some_and(|peer| peer.to_canonical().is_loopback()) && !proxied && !foreign;
    let presented = headers.get(header::AUTHORIZATION).map(header::HeaderValue::as_bytes);
    let role = match needs {
        Needs::Nothing => return Ok(None),
        Needs::Here if here => return Ok(None),
        Needs::Here => Role::Viewer,
        Needs::Role(role) | Needs::Session(role) => role,
    };
    let seat = match needs {
        Needs::Session(_) => api.seat(headers),
        Needs::Nothing | Needs::Here | Needs::Role(_) => None,
    };
    let caller = match (needs, presented) {
        (Needs::Session(_), _) => seat.as_ref().and_then(|seat| api.holder(&seat.token)),
        (Needs::Nothing | Needs::Here | Needs::Role(_), Some(presented)) => {
            Some(known(api, bearer(presented), peer)?)
        }
        (Needs::Nothing | Needs::Here | Needs::Role(_), None) => None,
    };
    let anonymous = || (api.config.anonymous_viewer && here).then(Caller::anonymous);
    let caller = caller.or_else(anonymous).ok_or(Denied::NoToken)?;
    if caller.role < role {
        return Err(Denied::Role { name: caller.name, has: caller.role, needs: role }.into());
    }
    Ok(Some(Admitted { caller, seat }))
}

/// The operator whose token was presented, if it is one.
///
/// # Errors
/// [`Denied`], and slower for an address that guesses.
pub(crate) fn known(api: &Api, presented: Option<&str>, peer: Option<IpAddr>) -> Result<Caller, Refusal> {
    let found = presented.and_then(|token| api.holder(&token::hash(token)));
    if let Some(caller) = found {
        return Ok(caller);
    }
    let peer = peer.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    let mut attempts = api.attempts.lock().unwrap_or_else(PoisonError::into_inner);
    match attempts.fail(peer, crate::clock::mono()) {
        Failed::TooMany { retry_s } => Err(Denied::TooMany { retry_s }.into()),
        Failed::Told { first } => {
            if first {
                tracing::warn!(%peer, "an API token was refused: it is unknown, was removed, or has expired");
            }
            Err(Denied::BadToken.into())
        }
    }
}

/// The token of an `Authorization: Bearer …` (RFC 6750 §2.1).
fn bearer(header: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(header).ok().filter(|text| text.len() <= HEADER_BYTES)?;
    let (scheme, token) = text.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
}

fn count(api: &Api, refusal: &Refusal) {
    if let Refusal::Denied(denied) = refusal {
        api.exporter.counter(&catalogue::HTTP_DENIED, &[denied.reason()]).increment(1);
    }
}

impl Api {
    /// Whether a caller's token is still one, for answers that last.
    pub(crate) fn still(&self, caller: &Caller) -> bool {
        caller.token.is_none_or(|token| self.holder(&token).is_some())
    }

    /// The operator who holds the token of this hash.
    fn holder(&self, token: &Hash) -> Option<Caller> {
        let now_ms = self.hub.clock().now().wall_ms;
        self.hub.with_identities(|all| all.operator(token, now_ms).map(Caller::of))
    }

    /// The console's session that a request's cookie names.
    fn seat(&self, headers: &header::HeaderMap) -> Option<Seat> {
        self.config.sessions.find(session::cookie(headers, self)?, crate::clock::mono())
    }
}

/// Whether a Host header names this machine: an address or `localhost`, with or without a port.
fn is_local(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse::<std::net::IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_bearer_token_is_read() {
        assert_eq!(bearer(b"Bearer fleet_x"), Some("fleet_x"));
        assert_eq!(bearer(b"bearer  fleet_x "), Some("fleet_x"));
        let long = format!("Bearer {}", "x".repeat(HEADER_BYTES));
        for bad in [&b"Basic dTpw"[..], b"fleet_x", b"", b"Bearer \xff", long.as_bytes()] {
            assert_eq!(bearer(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn only_addresses_and_localhost_are_local() {
        for good in ["localhost", "LOCALHOST:8080", "127.0.0.1", "127.0.0.1:8080", "[::1]:8080", "[::1]"] {
            assert!(is_local(good), "{good}");
        }
        for bad in ["evil.example", "evil.example:8080", "127.0.0.1.evil.example", "", "localhost.evil:1"] {
            assert!(!is_local(bad), "{bad}");
        }
    }
}
