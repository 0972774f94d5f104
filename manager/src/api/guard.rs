//! What every request passes: where it comes from, how many there are, how long it may take.
//!
//! Operators' tokens will be checked here too; until then the listener is bound to loopback, and requests that a
//! browser sends for a foreign page are refused.

use std::{sync::Arc, time::Duration};

use axum::{
    extract::{Request, State},
    http::{HeaderMap, header},
    middleware::Next,
    response::{IntoResponse as _, Response},
};

use super::{Api, problem::Refusal};
use crate::metrics::catalogue;

/// Requests answered at once; streams count only until their first byte.
pub(super) const REQUESTS: usize = 256;
/// Time for an answer, a stream's first byte included. Recounting a ledger reads every row.
const ANSWER: Duration = Duration::from_secs(60);
const RECOUNT: Duration = Duration::from_secs(600);

/// Answers, or refuses before anything is done.
pub(super) async fn guard(State(api): State<Arc<Api>>, request: Request, next: Next) -> Response {
    let began = crate::clock::mono();
    let method = request.method().clone();
    let health = matches!(request.uri().path(), "/livez" | "/readyz" | "/metrics");
    let recount = request.uri().path() == "/api/v1/ledger";
    let response = match admit(&api, request.headers()) {
        Err(refusal) => refusal.into_response(),
        Ok(()) => {
            // Health must answer when everything else is busy.
            let permit = if health { None } else { Some(api.requests.try_acquire()) };
            if matches!(permit, Some(Err(_))) {
                Refusal::Busy.into_response()
            } else {
                let limit = if recount { RECOUNT } else { ANSWER };
                let answer = tokio::time::timeout(limit, next.run(request)).await;
                answer.unwrap_or_else(|_| Refusal::Slow.into_response())
            }
        }
    };
    let code = response.status();
    // Methods outside the standard are anybody's text, and would be labels without end.
    let known = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];
    let method = known.into_iter().find(|known| *known == method.as_str()).unwrap_or("other");
    api.exporter.counter(&catalogue::HTTP_REQUESTS, &[method, code.as_str()]).increment(1);
    api.request_seconds.record(crate::clock::mono().saturating_sub(began).as_secs_f64());
    response
}

/// Refuses what a foreign web page may have sent: a name that was rebound to this address, or another origin.
fn admit(api: &Api, headers: &HeaderMap) -> Result<(), Refusal> {
    let text = |name: header::HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    let host = text(header::HOST);
    if api.loopback && host.is_some_and(|host| !is_local(host)) {
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
    Ok(())
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
    fn only_addresses_and_localhost_are_local() {
        for good in ["localhost", "LOCALHOST:8080", "127.0.0.1", "127.0.0.1:8080", "[::1]:8080", "[::1]"] {
            assert!(is_local(good), "{good}");
        }
        for bad in ["evil.example", "evil.example:8080", "127.0.0.1.evil.example", "", "localhost.evil:1"] {
            assert!(!is_local(bad), "{bad}");
        }
    }
}
