//! Places for requests that bring a body: how many at a time, and how long one may take to arrive.
//!
//! A place is taken before the first byte of a body is read and given back when the request is answered, so what all
//! clients together make the agent hold is bounded, however many requests a connection carries.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{body::Body, extract::Request};
use bytes::{Buf as _, Bytes};
use hyper::body::{Frame, SizeHint};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{self, Sleep},
};
use tonic::Status;

/// Records that may be on their way to the disk at a time: about 4 MB.
const ROOM: usize = 40_000;

/// Room for what clients bring.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    bodies: Arc<Semaphore>,
    streams: Arc<Semaphore>,
    room: Arc<Semaphore>,
}

/// A request's place, for as long as somebody holds it.
#[derive(Debug, Clone)]
pub(super) struct Place(#[expect(dead_code, reason = "held, not read")] Arc<OwnedSemaphorePermit>);

impl Places {
    /// As many bodies as connections, and half as many streams of them.
    pub(crate) fn new(connections: usize) -> Self {
        let semaphore = |places: usize| Arc::new(Semaphore::new(places));
        Self {
            bodies: semaphore(connections),
            streams: semaphore((connections / 2).max(1)),
            room: semaphore(ROOM),
        }
    }

    /// Waits for the place of one request.
    pub(super) async fn body(&self, patience: Duration) -> Option<Place> {
        Self::place(self.bodies.clone(), patience).await
    }

    /// Waits for the place of one stream.
    async fn stream(&self, patience: Duration) -> Option<Place> {
        Self::place(self.streams.clone(), patience).await
    }

    async fn place(places: Arc<Semaphore>, patience: Duration) -> Option<Place> {
        time::timeout(patience, places.acquire_owned()).await.ok()?.ok().map(|permit| Place(Arc::new(permit)))
    }

    /// Waits for room on the way to the disk: `weight` records.
    pub(super) async fn room(&self, weight: usize) -> OwnedSemaphorePermit {
        let weight = u32::try_from(weight.min(ROOM)).unwrap_or(u32::MAX);
        self.room.clone().acquire_many_owned(weight).await.expect("the semaphore is never closed")
    }

    /// Gives a gRPC request its place and its deadline: each message has to arrive within `limit` of its first byte,
    /// the only one of a unary call within `limit` of its head.
    pub(super) async fn seat(&self, request: Request, limit: Duration) -> Result<Request, Status> {
        // The calls whose client sends as long as it likes.
        let path = request.uri().path();
        let streams = path.ends_with("/SubmitStream") || path.ends_with("/ServerReflectionInfo");
        let place = if streams { self.stream(limit).await } else { self.body(limit).await };
        let place =
            place.ok_or_else(|| Status::resource_exhausted("too many requests at a time; try again"))?;
        let (mut head, body) = request.into_parts();
        head.extensions.insert(place.clone());
        let deadline = (!streams).then(|| Box::pin(time::sleep(limit)));
        let timely = Timely { body, limit, streams, message: Message::default(), deadline, _place: place };
        Ok(Request::from_parts(head, Body::new(timely)))
    }
}

/// How far a message has arrived (gRPC over HTTP/2, "Length-Prefixed-Message").
#[derive(Debug, Default)]
struct Message {
    prefix: [u8; 5],
    seen: usize,
    left: usize,
}

impl Message {
    fn is_between(&self) -> bool {
        self.seen == 0
    }

    /// Whether a message was completed.
    fn advance(&mut self, mut bytes: &[u8]) -> bool {
        let mut completed = false;
        while !bytes.is_empty() {
            if self.seen < self.prefix.len() {
                let part = bytes.len().min(self.prefix.len() - self.seen);
                self.prefix[self.seen..self.seen + part].copy_from_slice(&bytes[..part]);
                self.seen += part;
                bytes.advance(part);
                if self.seen == self.prefix.len() {
                    let [_, length @ ..] = self.prefix;
                    self.left = u32::from_be_bytes(length) as usize;
                }
            } else {
                let part = bytes.len().min(self.left);
                self.left -= part;
                bytes.advance(part);
            }
            if self.seen == self.prefix.len() && self.left == 0 {
                self.seen = 0;
                completed = true;
            }
        }
        completed
    }
}

/// A body that breaks off when a message takes too long.
struct Timely {
    body: Body,
    limit: Duration,
    streams: bool,
    message: Message,
    deadline: Option<Pin<Box<Sleep>>>,
    _place: Place,
}

impl hyper::body::Body for Timely {
    type Data = Bytes;
    type Error = tonic::codegen::StdError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = &mut *self;
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(cx) {
            if this.streams
                && let Some(bytes) = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref())
            {
                let completed = this.message.advance(bytes);
                if this.message.is_between() {
                    this.deadline = None;
                } else if completed || this.deadline.is_none() {
                    this.deadline = Some(Box::pin(time::sleep(this.limit)));
                }
            }
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        match this.deadline.as_mut().map(|deadline| deadline.as_mut().poll(cx)) {
            Some(Poll::Ready(())) => {
                let detail = format!("the message did not arrive within {:?}", this.limit);
                Poll::Ready(Some(Err(Box::new(Status::deadline_exceeded(detail)))))
            }
            Some(Poll::Pending) | None => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_followed_through_any_cut() {
        let stream = [0, 0, 0, 0, 2, 7, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 9];
        let ends = [7, 12, 18];
        for step in 1..=stream.len() {
            let mut message = Message::default();
            let mut at = 0;
            for part in stream.chunks(step) {
                let completed = message.advance(part);
                let before = at;
                at += part.len();
                assert_eq!(completed, ends.iter().any(|end| before < *end && *end <= at), "{step} {at}");
                assert_eq!(message.is_between(), ends.contains(&at), "{step} {at}");
            }
        }
    }
}
