//! What the signed metadata says of a target: fetched from the hub, verified by `core::tuf`, kept.

use fleet_schemas::update::{TUF_PATH, Target};
use hyper::StatusCode;

use crate::{
    core::{
        tuf::{self, Trusted, TufError},
        update::{Refusal, Signed, Trouble},
    },
    identity::{https, live::Live},
};

/// The first root, for a node that joined a hub that had none then.
const FIRST: &str = "1.root.json";

/// What came of it: what is trusted from now on, in any case, and what it says of the target.
pub(super) struct Verified {
    pub(super) trusted: Option<Trusted>,
    pub(super) found: Result<(fleet_schemas::update::Digest, Signed), Refusal>,
}

/// Brings what is trusted up to date, as far as the hub has news, and looks the target up.
pub(super) async fn verify(live: &Live, trusted: Option<Trusted>, target: &Target, now_ms: i64) -> Verified {
    let trusted = match trusted {
        Some(trusted) => trusted,
        None => match pin(live).await {
            Ok(trusted) => trusted,
            Err(refusal) => return Verified { trusted: None, found: Err(refusal) },
        },
    };
    let mut update = match tuf::Update::new(trusted.clone(), now_ms) {
        Ok(update) => update,
        Err(error) => return Verified { trusted: Some(trusted), found: Err(refuse(&error)) },
    };
    let news = follow(live, &mut update).await;
    // What was verified on the way stays, also when the rest is not there: nobody shows the node an older one again.
    let trusted = update.finish();
    let found = news.and_then(|()| {
        let tuf::Signed { length, digest, custom } =
            trusted.target(target).map_err(|error| refuse(&error))?;
        Ok((digest, Signed { length, custom }))
    });
    Verified { trusted: Some(trusted), found }
}

async fn follow(live: &Live, update: &mut tuf::Update) -> Result<(), Refusal> {
    while let Some(want) = update.wants() {
        let bytes = fetch(live, &want.name, want.limit).await?;
        update.take(bytes.as_deref()).map_err(|error| refuse(&error))?;
    }
    Ok(())
}

/// The root that this node trusts for good: the one that it was given with its identity, or the first of its own hub,
/// which has proved itself by the CA that the node joined.
async fn pin(live: &Live) -> Result<Trusted, Refusal> {
    let bytes = match live.releases_root() {
        Some(text) => text.into_bytes(),
        None => match fetch(live, FIRST, tuf::ROOT_BYTES).await? {
            Some(bytes) => bytes,
            None => return Err(refuse(&TufError::Missing { name: FIRST.to_owned() })),
        },
    };
    Trusted::pin(&bytes).map_err(|error| refuse(&error))
}

/// A file of metadata; `None` when there is none of this name.
async fn fetch(live: &Live, name: &str, limit: u64) -> Result<Option<Vec<u8>>, Refusal> {
    let later = |error: https::AskError| Refusal::Later(error.to_string());
    let path = format!("{TUF_PATH}/{name}");
    let answer = https::get(&live.https(), live.dial().1, &path, 0, None).await.map_err(later)?;
    match answer.status {
        StatusCode::OK => {}
        StatusCode::NOT_FOUND => return Ok(None),
        status => return Err(Refusal::Later(format!("the hub answers {path} with status {status}"))),
    }
    // One more: the verifier says what it thinks of that.
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    match answer.whole(limit).await.map_err(later)? {
        Some(bytes) => Ok(Some(bytes)),
        None => Err(refuse(&TufError::TooLarge { name: name.to_owned(), limit: limit as u64 })),
    }
}

fn refuse(error: &TufError) -> Refusal {
    let trouble = Trouble::lasting(error.code(), error.to_string());
    if error.may_pass() { Refusal::Soon(trouble) } else { Refusal::Never(trouble) }
}
