//! Updates on the port for nodes: signed metadata for every node that is let in, artifacts for the nodes that are to
//! have them.
//!
//! Artifacts are read from the disk piece by piece while the node takes them (RFC 9110 §14: one range, `If-Range`).

use std::{io, ops::Range, sync::Arc};

use axum::{
    Extension,
    body::Body,
    extract::{Path, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use fleet_schemas::{
    NodeId,
    enrol::RefusalCode,
    update::{Digest, TUF_PATH},
};
use futures_util::stream;

use super::{
    Port,
    refusal::Refusal,
    serve::{Hold, Peer, Stay},
};
use crate::{
    artifact::{self, Reader},
    pki::{self, Who},
    release,
};

/// What a request asks of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Asked {
    Whole,
    Part(Range<u64>),
    /// Nothing that is there.
    Beyond,
}

/// `GET v1/tuf/{file}`.
pub(super) async fn metadata(
    State(port): State<Arc<Port>>,
    Extension(peer): Extension<Peer>,
    Path(file): Path<String>,
) -> Result<Response, Refusal> {
    node(&port, &peer)?;
    let found = port.hub.releases().and_then(|releases| releases.file(&file));
    let bytes = found.ok_or_else(|| missing(&format!("there is no {TUF_PATH}/{file:.64}")))?;
    // A root may come at any time, and so may the rest.
    let headers = [(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-cache")];
    Ok((headers, bytes).into_response())
}

/// `GET v1/artifacts/{digest}`.
pub(super) async fn artifact(
    State(port): State<Arc<Port>>,
    Extension(peer): Extension<Peer>,
    Extension(stay): Extension<Stay>,
    Path(digest): Path<String>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let node = node(&port, &peer)?;
    let none = || missing("there is no such artifact");
    let digest: Digest = digest.parse().map_err(|_| none())?;
    let releases = port.hub.releases().ok_or_else(none)?.clone();
    if !port.hub.with_fleet(|fleet| release::may_have(fleet, &node, &digest)) {
        let why = format!("no open update of node {node} names the artifact {digest}");
        let status = StatusCode::FORBIDDEN;
        return Err(Refusal { status, ..Refusal::new(RefusalCode::BadRequest, why) });
    }
    let opened = tokio::task::spawn_blocking(move || releases.artifacts().reader(&digest)).await;
    let reader = opened.map_err(|error| Refusal::new(RefusalCode::Unavailable, error.to_string()))?;
    let reader = reader.map_err(|error| match error {
        artifact::Error::Unknown(_) => none(),
        other => Refusal::new(RefusalCode::Unavailable, other.to_string()),
    })?;
    Ok(answer(reader, &digest, &method, &headers, &stay))
}

/// The node that asks, if it may.
fn node(port: &Port, peer: &Peer) -> Result<NodeId, Refusal> {
    let stranger = "updates are for nodes: show the node's certificate in the TLS handshake";
    let stranger = || Refusal::new(RefusalCode::BadCertificate, stranger);
    let certificate = peer.certificate.as_deref().and_then(pki::Peer::read).ok_or_else(stranger)?;
    let Who::Node(node) = certificate.who else { return Err(stranger()) };
    let now_ms = port.hub.clock().now().wall_ms;
    port.hub.with_identities(|known| known.admit(&node, &certificate.shown, now_ms))?;
    Ok(node)
}

fn missing(what: &str) -> Refusal {
    Refusal { status: StatusCode::NOT_FOUND, ..Refusal::new(RefusalCode::BadRequest, what) }
}

fn answer(reader: Reader, digest: &Digest, method: &Method, asked: &HeaderMap, stay: &Stay) -> Response {
    let length = reader.length();
    let tag = HeaderValue::from_str(&format!("\"{digest}\"")).expect("hexadecimal digits make a header");
    let asked = if *method == Method::GET { range(asked, &tag, length) } else { Asked::Whole };
    let (status, part) = match asked {
        Asked::Whole => (StatusCode::OK, 0..length),
        Asked::Part(part) => (StatusCode::PARTIAL_CONTENT, part),
        Asked::Beyond => (StatusCode::RANGE_NOT_SATISFIABLE, 0..0),
    };
    let mut headers = HeaderMap::new();
    headers.insert(header::ETAG, tag);
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(part.end - part.start));
    let of = match status {
        StatusCode::PARTIAL_CONTENT => Some(format!("bytes {}-{}/{length}", part.start, part.end - 1)),
        StatusCode::RANGE_NOT_SATISFIABLE => Some(format!("bytes */{length}")),
        _ => None,
    };
    if let Some(of) = of.and_then(|of| HeaderValue::from_str(&of).ok()) {
        headers.insert(header::CONTENT_RANGE, of);
    }
    (status, headers, body(reader, part, stay.hold())).into_response()
}

/// Reads the next piece when the peer took the one before; on another thread if the disk is to be waited for.
fn body(reader: Reader, part: Range<u64>, hold: Hold) -> Body {
    let pieces = stream::try_unfold((reader.pieces(part), hold), async |(mut pieces, hold)| {
        if pieces.is_empty() {
            return Ok::<_, io::Error>(None);
        }
        hold.moved();
        if let Some(piece) = pieces.ready() {
            return Ok(Some((piece, (pieces, hold))));
        }
        let read = move || pieces.read().map(|piece| (piece, pieces));
        let (piece, pieces) = tokio::task::spawn_blocking(read).await??;
        Ok(Some((piece, (pieces, hold))))
    });
    Body::from_stream(pieces)
}

/// What a request asks for: one range is given; of several, or of what is not understood, the whole.
fn range(headers: &HeaderMap, tag: &HeaderValue, length: u64) -> Asked {
    // Of another file than the one that it has a part of.
    if headers.get(header::IF_RANGE).is_some_and(|known| known != tag) {
        return Asked::Whole;
    }
    let Some(text) = headers.get(header::RANGE).and_then(|range| range.to_str().ok()) else {
        return Asked::Whole;
    };
    let Some((first, last)) = text.strip_prefix("bytes=").and_then(|range| range.trim().split_once('-'))
    else {
        return Asked::Whole;
    };
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        // One with more digits than a number has lies beyond any file.
        digits.then(|| text.parse::<u64>().unwrap_or(u64::MAX))
    };
    let part = match (first, last) {
        ("", last) => {
            number(last).map(|last| length.saturating_sub(last)..if last == 0 { 0 } else { length })
        }
        (first, "") => number(first).map(|first| first..length),
        (first, last) => match (number(first), number(last)) {
            (Some(first), Some(last)) if first <= last => Some(first..last.saturating_add(1).min(length)),
            _ => None,
        },
    };
    match part {
        None => Asked::Whole,
        Some(part) if part.start >= part.end => Asked::Beyond,
        Some(part) => Asked::Part(part),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_range_is_given_and_whatever_else_is_the_whole() {
        let tag = HeaderValue::from_static("\"a\"");
        let ask = |text: &str| {
            let headers = [(header::RANGE, text.parse().unwrap())].into_iter().collect();
            range(&headers, &tag, 100)
        };
        assert_eq!(range(&HeaderMap::new(), &tag, 100), Asked::Whole);
        for (text, part) in [
            ("bytes=0-0", 0..1),
            ("bytes=0-", 0..100),
            ("bytes=99-", 99..100),
            ("bytes=10-19", 10..20),
            ("bytes=10-99999999999999999999999", 10..100),
            ("bytes=-1", 99..100),
            ("bytes=-1000", 0..100),
        ] {
            assert_eq!(ask(text), Asked::Part(part), "{text}");
        }
        for text in ["bytes=100-", "bytes=-0", "bytes=99999999999999999999999-", "bytes=100-200"] {
            assert_eq!(ask(text), Asked::Beyond, "{text}");
        }
        for text in
            ["bytes=", "bytes=-", "bytes=5-4", "bytes=a-b", "bytes=0-1,5-6", "items=0-1", "bytes=+1-2"]
        {
            assert_eq!(ask(text), Asked::Whole, "{text}");
        }
        let with = |known: &'static str| {
            let headers = [
                (header::RANGE, HeaderValue::from_static("bytes=5-")),
                (header::IF_RANGE, HeaderValue::from_static(known)),
            ];
            range(&headers.into_iter().collect(), &tag, 100)
        };
        assert_eq!(with("\"a\""), Asked::Part(5..100));
        assert_eq!(with("\"b\""), Asked::Whole);
        assert_eq!(with("W/\"a\""), Asked::Whole);
    }
}
