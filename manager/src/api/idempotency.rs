//! `Idempotency-Key` on POST: the same key and request get the first answer again instead of being done again.
//!
//! In memory and bounded: it covers a client that repeats because an answer got lost, not a hub's restart. An answer
//! may hold a secret, so nothing of it goes to disk, and it is given again only to whoever asked first.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
};

use axum::{
    body::Bytes,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use fleet_schemas::batch::{Digest, digest};
use serde::Serialize;

use super::{problem::Refusal, rights::Caller};

/// Answers kept; the oldest go first.
const KEPT: usize = 256;
/// Largest answer kept, in bytes; with KEPT this bounds the memory. A larger one is done again, which imports bear.
const ANSWER_BYTES: usize = 256 * 1024;
/// Longest key, in bytes: a UUID has 36.
const KEY_BYTES: usize = 128;

/// The keys of one hub.
#[derive(Debug, Default)]
pub(super) struct Keys(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    entries: HashMap<String, Entry>,
    order: VecDeque<String>,
}

#[derive(Debug)]
struct Entry {
    request: Digest,
    /// None while the first request is being done.
    answer: Option<Bytes>,
}

/// What to do with a request.
#[derive(Debug)]
pub(super) enum Turn<'a> {
    /// It was done: say this again.
    Again(Bytes),
    /// Do it, and tell [`Claim::done`].
    First(Claim<'a>),
}

/// The right to do a request; given back when it fails.
#[derive(Debug)]
pub(super) struct Claim<'a> {
    keys: &'a Keys,
    key: Option<String>,
}

impl Keys {
    /// Looks a request up by its `Idempotency-Key`, if it has one. `request` is what makes it the same: path, query
    /// and body.
    ///
    /// # Errors
    /// [`Refusal::Conflict`] while the first is being done, or when it was another request.
    pub(super) fn turn(
        &self,
        headers: &HeaderMap,
        caller: &Caller,
        request: &[&[u8]],
    ) -> Result<Turn<'_>, Refusal> {
        let Some(key) = headers.get("idempotency-key") else {
            return Ok(Turn::First(Claim { keys: self, key: None }));
        };
        let key = (key.to_str().ok().filter(|key| !key.is_empty() && key.len() <= KEY_BYTES))
            .ok_or_else(|| {
                Refusal::BadRequest(format!("Idempotency-Key is not 1 to {KEY_BYTES} ASCII characters"))
            })?
            .to_owned();
        // Two operators may have the same idea of a key.
        let key = format!("{}/{key}", caller.name);
        let request = digest(&request.join(&0));
        let mut known = self.lock();
        match known.entries.get(&key) {
            Some(entry) if entry.request != request => Err(Refusal::Conflict(
                "this Idempotency-Key was used for another request; use a new one".into(),
            )),
            Some(Entry { answer: Some(answer), .. }) => Ok(Turn::Again(answer.clone())),
            Some(Entry { answer: None, .. }) => {
                Err(Refusal::Conflict("the first request with this Idempotency-Key is not done yet".into()))
            }
            None => {
                if known.order.len() == KEPT
                    && let Some(oldest) = known.order.pop_front()
                {
                    known.entries.remove(&oldest);
                }
                known.entries.insert(key.clone(), Entry { request, answer: None });
                known.order.push_back(key.clone());
                Ok(Turn::First(Claim { keys: self, key: Some(key) }))
            }
        }
    }

    /// Does a request that makes something, once; answers 201 with what `make` gives.
    ///
    /// # Errors
    /// As [`Keys::turn`] and `make`.
    pub(super) async fn create<T: Serialize>(
        &self,
        headers: &HeaderMap,
        caller: &Caller,
        request: &[&[u8]],
        make: impl Future<Output = Result<T, Refusal>>,
    ) -> Result<Response, Refusal> {
        self.once(StatusCode::CREATED, headers, caller, request, make).await
    }

    /// Does a request once; answers with this status and what `make` gives.
    ///
    /// # Errors
    /// As [`Keys::turn`] and `make`.
    pub(super) async fn once<T: Serialize>(
        &self,
        status: StatusCode,
        headers: &HeaderMap,
        caller: &Caller,
        request: &[&[u8]],
        make: impl Future<Output = Result<T, Refusal>>,
    ) -> Result<Response, Refusal> {
        let answer = match self.turn(headers, caller, request)? {
            Turn::Again(answer) => answer,
            Turn::First(claim) => {
                let made = serde_json::to_vec(&make.await?);
                let answer = Bytes::from(made.map_err(|error| Refusal::Internal(error.to_string()))?);
                claim.done(&answer);
                answer
            }
        };
        // It may hold a secret that nobody is to keep on the way.
        let kind = [(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")];
        Ok((status, kind, answer).into_response())
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Claim<'_> {
    /// Keeps the answer for repetitions.
    pub(super) fn done(mut self, answer: &Bytes) {
        if answer.len() <= ANSWER_BYTES
            && let Some(key) = self.key.take()
            && let Some(entry) = self.keys.lock().entries.get_mut(&key)
        {
            entry.answer = Some(answer.clone());
        }
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        if let Some(key) = self.key.take() {
            let mut known = self.keys.lock();
            known.entries.remove(&key);
            known.order.retain(|known| *known != key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(key: &str) -> HeaderMap {
        [("idempotency-key".parse().unwrap(), key.parse().unwrap())].into_iter().collect()
    }

    fn caller() -> Caller {
        Caller::anonymous()
    }

    #[test]
    fn an_answer_is_given_again_only_to_who_asked() {
        let keys = Keys::default();
        let Ok(Turn::First(claim)) = keys.turn(&headers("k"), &caller(), &[b"a"]) else { panic!("first") };
        claim.done(&Bytes::from_static(b"a secret"));
        let other = Caller { name: "eve".to_owned(), ..caller() };
        assert!(matches!(keys.turn(&headers("k"), &other, &[b"a"]), Ok(Turn::First(_))));
    }

    #[test]
    fn the_first_answer_is_given_again() {
        let keys = Keys::default();
        let Ok(Turn::First(claim)) = keys.turn(&headers("k"), &caller(), &[b"a"]) else { panic!("first") };
        assert!(
            matches!(keys.turn(&headers("k"), &caller(), &[b"a"]), Err(Refusal::Conflict(_))),
            "in flight"
        );
        claim.done(&Bytes::from_static(b"answer"));
        assert!(
            matches!(keys.turn(&headers("k"), &caller(), &[b"a"]), Ok(Turn::Again(answer)) if answer == "answer")
        );
        assert!(
            matches!(keys.turn(&headers("k"), &caller(), &[b"b"]), Err(Refusal::Conflict(_))),
            "another request"
        );
    }

    #[test]
    fn a_failed_request_may_be_repeated() {
        let keys = Keys::default();
        drop(keys.turn(&headers("k"), &caller(), &[b"a"]).unwrap());
        assert!(matches!(keys.turn(&headers("k"), &caller(), &[b"a"]), Ok(Turn::First(_))));
        assert!(matches!(keys.turn(&HeaderMap::new(), &caller(), &[b"a"]), Ok(Turn::First(_))));
        assert!(keys.turn(&headers(&"k".repeat(KEY_BYTES + 1)), &caller(), &[b"a"]).is_err());
    }

    #[test]
    fn keys_are_bounded() {
        let keys = Keys::default();
        for i in 0..2 * KEPT {
            let Ok(Turn::First(claim)) = keys.turn(&headers(&i.to_string()), &caller(), &[b"a"]) else {
                panic!("first")
            };
            claim.done(&Bytes::new());
        }
        assert_eq!(keys.lock().entries.len(), KEPT);
    }
}
