//! `backup`: the hub as it is at one moment, streamed while it goes on.
//!
//! The answer is a backup in the form of [`crate::backup`], not encrypted: whoever asks is an admin and encrypts it
//! before it is written. An answer that is cut off has no manifest, and is none.

use std::{
    collections::BTreeSet,
    io::{self, Write},
    sync::Arc,
    time::Duration,
};

use axum::{
    body::Body as Stream,
    extract::State,
    http::{HeaderMap, HeaderName, header},
    response::{IntoResponse as _, Response},
};
use bytes::{Bytes, BytesMut};
use serde::Deserialize;
use serde_json::json;
use tokio::{runtime::Handle, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;

use super::{
    Api,
    problem::Refusal,
    query::{Body, Params, json},
    rights::Caller,
};
use crate::{
    backup::make::{self, Ask, Sources},
    clock,
    core::registry::{Intent, Noted},
};

/// Backups at once: each reads everything, and holds what is replaced meanwhile.
pub(super) const BACKUPS: usize = 1;
/// Bytes between the stores and the socket.
const PIECE: usize = 256 * 1024;
/// Pieces that wait for whoever reads.
const WAITING: usize = 8;
/// How long a reader may take nothing; its disk may be slow.
const STALLED: Duration = Duration::from_secs(300);
/// How often it is looked meanwhile whether to go on.
const LOOK: Duration = Duration::from_secs(1);
/// Most tags that need not come.
const TAGS: usize = 20_000;
const BYTES: HeaderName = HeaderName::from_static(make::BYTES_HEADER);

/// Largest body of a request, in bytes: every tag that may be named.
pub(super) const BODY_BYTES: usize = 2 * 1024 * 1024;

/// The body of a POST.
#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema), schema(as = BackupAsk))]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    /// With the samples of all weeks.
    #[serde(default)]
    telemetry: bool,
    /// Week files and artifacts come as `objects/TAG/PATH`, to be kept beside the backup.
    #[serde(default)]
    objects: bool,
    /// Tags of those that are there already.
    #[serde(default)]
    have: BTreeSet<String>,
}

/// Hands pieces over; fails when nobody takes them any more.
struct Pipe<'a> {
    to: mpsc::Sender<io::Result<Bytes>>,
    piece: BytesMut,
    go_on: &'a dyn Fn() -> bool,
}

impl Pipe<'_> {
    fn send(&mut self) -> io::Result<()> {
        if self.piece.is_empty() {
            return Ok(());
        }
        let piece = self.piece.split().freeze();
        self.hand(Ok(piece))
    }

    /// Waits as long as somebody may take it: whoever stands still holds the stores as they were, and the only place.
    fn hand(&self, piece: io::Result<Bytes>) -> io::Result<()> {
        let runtime = Handle::current();
        let until = clock::mono() + STALLED;
        loop {
            match runtime.block_on(async { tokio::time::timeout(LOOK, self.to.reserve()).await }) {
                Ok(Ok(place)) => {
                    place.send(piece);
                    return Ok(());
                }
                Ok(Err(_)) => return Err(io::ErrorKind::BrokenPipe.into()),
                Err(_) if clock::mono() >= until => {
                    let why = format!("nobody took a piece of it for {} s", STALLED.as_secs());
                    return Err(io::Error::new(io::ErrorKind::TimedOut, why));
                }
                // Not `Interrupted`: whoever writes would try that again.
                Err(_) if !(self.go_on)() => {
                    return Err(io::Error::other("the hub stops, or its stores failed"));
                }
                Err(_) => {}
            }
        }
    }
}

impl Write for Pipe<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.piece.extend_from_slice(bytes);
        if self.piece.len() >= PIECE {
            self.send()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.send()
    }
}

/// `POST backup {telemetry?, objects?, have?}`: the hub at this moment.
pub(super) async fn create(
    State(api): State<Arc<Api>>,
    caller: Caller,
    params: Params,
    headers: HeaderMap,
    Body(body): Body,
) -> Result<Response, Refusal> {
    params.only(&[])?;
    let Wanted { telemetry, objects, have } = match body.is_empty() {
        true => Wanted::default(),
        false => json(&headers, &body)?,
    };
    if have.len() > TAGS {
        return Err(Refusal::at("/have", format!("at most {TAGS} tags are taken")));
    }
    let turn = api.backups.clone().try_acquire_owned().map_err(|_| {
        Refusal::Unavailable("another backup is being made; wait until it is done".to_owned())
    })?;
    let ask = Ask { telemetry, objects, have };
    let detail = json!({ "telemetry": telemetry });
    let noted = Noted { action: "hub.backup", target: api.hub.store_id().to_string(), detail };
    api.hub.intend(&caller.by(), Intent::Noted(noted)).await?;
    let sources = api.query(sources).await?;
    // Said before anything is sent: what breaks off later can say nothing.
    make::has_room(&sources, &ask).map_err(|error| Refusal::Conflict(error.to_string()))?;
    let bytes = make::estimate(&sources, &ask);
    let (to, from) = mpsc::channel(WAITING);
    let (stopping, hub) = (api.stopping(), api.hub.clone());
    let write = move || {
        let _turn = turn;
        let gone = to.clone();
        // Stores that failed are opened again only when nobody holds them any more.
        let go_on = || !*stopping.borrow() && !gone.is_closed() && hub.readiness().ready;
        let mut pipe = Pipe { to, piece: BytesMut::with_capacity(2 * PIECE), go_on: &go_on };
        match make::write(sources, &ask, &mut pipe, &go_on) {
            Ok(_) => {}
            Err(error) => {
                tracing::error!(%error, "a backup was not made");
                // Nobody takes half of it for a whole: the answer breaks off.
                drop(pipe.hand(Err(io::Error::other(error.to_string()))));
            }
        }
    };
    tokio::task::spawn_blocking(write);
    let stream = Stream::from_stream(ReceiverStream::new(from));
    let headers = [(header::CONTENT_TYPE, "application/zstd".to_owned()), (BYTES, bytes.to_string())];
    Ok((headers, stream).into_response())
}

fn sources(api: &Api) -> Result<Sources, Refusal> {
    let state = api.hub.state();
    let moment = api.hub.telemetry().moment(&state)??;
    let trail = &api.config.trail;
    Ok(Sources {
        data: api.config.data.clone(),
        moment,
        releases: api.hub.releases().map(|releases| releases.files()),
        trail: make::trail_elsewhere(&api.config.data, trail),
        store_id: state.store_id().to_string(),
        now_ms: api.hub.clock().now().wall_ms,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn who_takes_nothing_is_not_waited_for_when_the_hub_stops() {
        let (to, mut from) = mpsc::channel(1);
        let write = || {
            let mut pipe = Pipe { to, piece: BytesMut::new(), go_on: &|| false };
            pipe.write_all(&[1; PIECE]).and_then(|()| pipe.write_all(&[2; PIECE]))
        };
        let wrote = tokio::task::spawn_blocking(write).await.unwrap();
        assert_eq!(wrote.unwrap_err().kind(), io::ErrorKind::Other);
        assert_eq!(from.recv().await.unwrap().unwrap(), [1; PIECE].as_slice());
        assert!(from.recv().await.is_none());
    }
}
