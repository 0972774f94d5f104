//! `firmware/{digest}`: what a device was told to fetch, with `Range` (RFC 9110 §14).
//!
//! The only route that asks for no token of the node: its address holds one that is good for this file alone.

use std::{
    fs::File,
    io::{self, Read as _, Seek as _, SeekFrom},
    sync::Arc,
};

use axum::{
    body::Body,
    extract::{Path, Query, State},
    http::{HeaderMap, Response, StatusCode, header},
};
use bytes::Bytes;
use fleet_schemas::update::Digest;
use futures_util::stream;
use serde::Deserialize;
use tokio::task;

use super::{
    http::{Answer, Api},
    problem::Problem,
};

/// Bytes that are read at a time.
const CHUNK: u64 = 32 * 1024;

#[derive(Debug, Deserialize)]
pub(super) struct Ask {
    #[serde(default)]
    token: String,
}

/// Which bytes of a file are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    All,
    /// From the first to the last.
    Of(u64, u64),
    /// There are none such.
    Beyond,
}

pub(super) async fn fetch(
    State(api): State<Arc<Api>>,
    Path(digest): Path<String>,
    Query(ask): Query<Ask>,
    headers: HeaderMap,
) -> Answer {
    let found = digest.parse::<Digest>().ok().zip(api.offers.clone());
    let found = found.and_then(|(digest, offers)| Some((offers.find(digest, &ask.token)?, digest, offers)));
    let Some((offer, which, offers)) = found else {
        let detail =
            "nothing is offered here; a device is told the whole address when it is to update itself";
        return Err(Problem::new(StatusCode::NOT_FOUND, detail));
    };
    let opened = task::spawn_blocking(move || {
        let file = File::open(&offer.file)?;
        let length = file.metadata()?.len();
        Ok::<_, io::Error>((file, length))
    });
    let gone = |error: String| {
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, format!("the firmware cannot be read: {error}"))
            .retry_after(5)
    };
    let (file, length) =
        opened.await.map_err(|error| gone(error.to_string()))?.map_err(|error| gone(error.to_string()))?;
    let etag = format!("\"{digest}\"");
    let stale = headers.get(header::IF_RANGE).is_some_and(|tag| tag.as_bytes() != etag.as_bytes());
    let range = headers.get(header::RANGE).filter(|_| !stale).and_then(|range| range.to_str().ok());
    let response = Response::builder()
        .header(header::CONTENT_TYPE, "application/octet-stream")
        .header(header::ACCEPT_RANGES, "bytes")
        .header(header::ETAG, etag);
    let (response, first, last) = match part(range, length) {
        Part::All => (response, 0, length),
        Part::Of(first, last) => {
            let range = format!("bytes {first}-{last}/{length}");
            let response = response.status(StatusCode::PARTIAL_CONTENT);
            (response.header(header::CONTENT_RANGE, range), first, last + 1)
        }
        Part::Beyond => {
            let response = response.status(StatusCode::RANGE_NOT_SATISFIABLE);
            (response.header(header::CONTENT_RANGE, format!("bytes */{length}")), 0, 0)
        }
    };
    let response = response.header(header::CONTENT_LENGTH, last - first);
    let sent = move || {
        if last == length {
            offers.sent(which);
        }
    };
    Ok(response.body(stream(file, first, last, sent)).expect("the headers are made of digits and digests"))
}

/// The bytes from `at` up to `end`, as they are read; then `sent` is called.
fn stream(file: File, at: u64, end: u64, sent: impl FnOnce() + Send + 'static) -> Body {
    let chunks = stream::try_unfold((file, at, Some(sent)), move |(mut file, at, mut sent)| async move {
        if at >= end {
            return Ok(None);
        }
        let read = task::spawn_blocking(move || {
            file.seek(SeekFrom::Start(at))?;
            let mut bytes = vec![0; usize::try_from(CHUNK.min(end - at)).unwrap_or(usize::MAX)];
            file.read_exact(&mut bytes)?;
            Ok::<_, io::Error>((file, bytes))
        });
        let (file, bytes) = read.await.map_err(io::Error::other)??;
        let next = at + bytes.len() as u64;
        if let Some(sent) = sent.take_if(|_| next == end) {
            sent();
        }
        Ok::<_, io::Error>(Some((Bytes::from(bytes), (file, next, sent))))
    });
    Body::from_stream(chunks)
}

/// One range is served; more than one, or what cannot be read, is answered with all (RFC 9110 §14.2).
fn part(range: Option<&str>, length: u64) -> Part {
    let Some((first, last)) = range.and_then(|range| range.strip_prefix("bytes=")?.split_once('-')) else {
        return Part::All;
    };
    let (first, last) = (first.trim(), last.trim());
    match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(first), Ok(last)) if first > last => Part::All,
        (Ok(first), _) if first >= length => Part::Beyond,
        (Ok(first), Ok(last)) => Part::Of(first, last.min(length - 1)),
        (Ok(first), Err(_)) if last.is_empty() => Part::Of(first, length - 1),
        (Err(_), Ok(count)) if first.is_empty() && (count == 0 || length == 0) => Part::Beyond,
        (Err(_), Ok(count)) if first.is_empty() => Part::Of(length.saturating_sub(count), length - 1),
        (_, _) => Part::All,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_the_rfc_has_them() {
        for (range, expected) in [
            (None, Part::All),
            (Some("bytes=0-0"), Part::Of(0, 0)),
            (Some("bytes=10-19"), Part::Of(10, 19)),
            (Some("bytes=90-"), Part::Of(90, 99)),
            (Some("bytes=90-1000"), Part::Of(90, 99)),
            (Some("bytes=-10"), Part::Of(90, 99)),
            (Some("bytes=-1000"), Part::Of(0, 99)),
            (Some("bytes=100-"), Part::Beyond),
            (Some("bytes=-0"), Part::Beyond),
            (Some("bytes=5-4"), Part::All),
            (Some("bytes=0-1,5-6"), Part::All),
            (Some("bytes=a-"), Part::All),
            (Some("lines=0-1"), Part::All),
        ] {
            assert_eq!(part(range, 100), expected, "{range:?}");
        }
        assert_eq!(part(Some("bytes=0-"), 0), Part::Beyond);
    }
}
