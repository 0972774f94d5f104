//! How a machine becomes a node: the way from a token to a stored certificate.
//!
//! Safe to break off at any point: the key is on disk before it is shown to anybody, so that the next try asks with
//! the same key and is given the same answer.

use std::{path::PathBuf, sync::Arc, time::Duration};

use fleet_schemas::{
    NodeId,
    enrol::{Enrol, JoinToken, NODE_HTTPS_PORT, Pending, RefusalCode, secret_text},
    limits,
};
use sha2::{Digest as _, Sha256};
use tokio::time;

use super::{
    certificate::{Key, Unreadable},
    folder::{Folder, FolderError},
    https::{self, AskError, Enrolled},
    record::{Joined, Place, Unfit},
    trust::{Bound, ConfigError, Trusted, client_config},
};
use crate::{address::Address, clock};

/// Shortest and longest pause between two questions whether an operator has approved, whatever the hub says.
const RETRY: std::ops::RangeInclusive<u64> = 1..=300;

/// Where a hub serves HTTPS for nodes, as people write it: `host`, `host:port` or `https://host:port`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubAddress(pub(crate) Address);

/// A text is no address of a hub.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no hub; write host, host:port or https://host:port, such as hub.example or 192.168.1.10:8443"
)]
pub struct BadAddress(String);

impl std::str::FromStr for HubAddress {
    type Err = BadAddress;

    fn from_str(text: &str) -> Result<Self, BadAddress> {
        let rest = text.strip_prefix("https://").unwrap_or(text);
        Address::parse(rest, NODE_HTTPS_PORT).map(Self).ok_or_else(|| BadAddress(text.to_owned()))
    }
}

impl std::fmt::Display for HubAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// The id that a machine would like to have. The hub decides: a token that replaces a node gives that node's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WishedId {
    /// This one.
    Told(NodeId),
    /// The host's name with the first digits of the key's hash behind it: boards flashed from one image have one name.
    OfHost(String),
}

/// Hexadecimal digits of the key's hash behind a host's name, and how many where the hub has such a node already.
const DIGITS: [usize; 3] = [4, 8, 16];

impl WishedId {
    /// The ids to ask for, one after the other while they are taken by other keys.
    fn ids(&self, key: &Key) -> Result<Vec<NodeId>, Unreadable> {
        let host = match self {
            Self::Told(id) => return Ok(vec![id.clone()]),
            Self::OfHost(name) => host_part(name),
        };
        let host = if host.is_empty() { "node" } else { &host };
        let hash = Sha256::digest(key.public_key()?);
        let hash: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        let id = |digits: usize| {
            let host = &host[..host.len().min(limits::NODE_ID_BYTES - 1 - digits)];
            NodeId::parse(&format!("{}-{}", host.trim_end_matches(['-', '.', '_']), &hash[..digits]))
                .expect("a host in the grammar of ids, a hyphen and digits are an id")
        };
        Ok(DIGITS.map(id).to_vec())
    }
}

/// A host's name in the grammar of node ids: other characters become hyphens.
pub(crate) fn host_part(name: &str) -> String {
    let fitting = |c: char| match c.to_ascii_lowercase() {
        c @ ('a'..='z' | '0'..='9' | '.') => c,
        _ => '-',
    };
    let part: String = name.chars().map(fitting).take(limits::NODE_ID_BYTES).collect();
    part.trim_matches(['-', '.']).to_owned()
}

/// What a machine that joins has.
#[derive(Debug, Clone)]
pub struct Wish {
    /// Where the hub is.
    pub hub: HubAddress,
    /// The token.
    pub token: JoinToken,
    /// The id it would like.
    pub node: WishedId,
    /// A name for people.
    pub name: Option<String>,
    /// The data folder.
    pub data: PathBuf,
    /// Whether to leave a hub that was joined before, or to join the same one anew with a new key.
    pub force: bool,
}

/// What a join came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It has a certificate now.
    Joined(Box<Joined>),
    /// It had one of this hub already; nothing changed.
    Already(Box<Joined>),
    /// It had one of this hub already, which is found at another address now.
    Moved(Box<Joined>),
}

/// What there is to say while a join is under way.
#[derive(Debug, Clone, Copy)]
pub enum Progress<'a> {
    /// An operator has to approve; said once.
    Pending(&'a Pending),
    /// The hub did not answer while it was waited for; said once.
    Waiting(&'a AskError),
}

/// A machine did not join. The text fits after "failed to join: ".
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// It is a node of another hub.
    #[error(
        "this machine is node {node} of the hub at {hub}, which is another one; to leave it, add --force. \
         What its outbox holds then goes to the new hub"
    )]
    Elsewhere {
        /// The node.
        node: NodeId,
        /// The other hub.
        hub: Place,
    },
    /// The folder.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// The hub.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// The hub's answer does not fit.
    #[error("the hub's answer cannot be used: {0}; report it to whoever runs the hub")]
    Unfit(#[from] Unfit),
    /// Nothing to dial with.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The key cannot be used.
    #[error("the key in identity/joining.pem {0}; remove the file and run it again")]
    Key(#[from] Unreadable),
}

/// Joins, and waits for approval where that is wanted.
///
/// # Errors
/// [`JoinError`]; what was joined before is still joined.
pub async fn join(wish: &Wish, tell: impl FnMut(Progress<'_>)) -> Result<Outcome, JoinError> {
    let folder = Folder::new(&wish.data);
    if let Some(joined) = folder.load_unless(wish.force)? {
        return joined_before(wish, &folder, joined).await;
    }
    let _lock = folder.lock()?;
    // Somebody else may have been faster than the lock.
    if let Some(joined) = folder.load_unless(wish.force)?
        && joined.is_of(wish.token.pin)
    {
        return Ok(Outcome::Already(Box::new(joined)));
    }
    // A folder that cannot be read is one more reason to join anew; nobody knows whose node it was.
    let used = folder.load();
    let is_anothers = match &used {
        Ok(used) => used.as_ref().is_some_and(|used| !used.is_of(wish.token.pin)),
        Err(_) => true,
    };
    let used = used.ok().flatten();
    let key = folder.joining_key(used.as_ref().map(|joined| &joined.current.key))?;
    // A node that joined before keeps its id, unless it is told another.
    let node = match (&wish.node, used) {
        (WishedId::OfHost(_), Some(used)) => WishedId::Told(used.node),
        (wished, _) => wished.clone(),
    };
    let joined = enrol(&Wish { node, ..wish.clone() }, key, tell).await?;
    if is_anothers {
        folder.leave()?;
    }
    folder.store(&joined)?;
    folder.end_joining()?;
    Ok(Outcome::Joined(Box::new(joined)))
}

/// Asks the hub for a certificate for this key, and waits for approval where that is wanted. Writes nothing down.
///
/// # Errors
/// [`JoinError`].
pub(crate) async fn enrol(
    wish: &Wish,
    key: Key,
    mut tell: impl FnMut(Progress<'_>),
) -> Result<Joined, JoinError> {
    let bound = Arc::new(Bound::new(limits::BUILT_MS));
    let tls = client_config(&Trusted::Pin(wish.token.pin), bound, None)?;
    let mut ids = wish.node.ids(&key)?.into_iter().peekable();
    let mut node = ids.next().expect("there is a first id to ask for");
    let mut waiting = Waiting::default();
    let issued = loop {
        let body = Enrol {
            id: wish.token.id.clone(),
            secret: secret_text(&wish.token.secret),
            csr: key.request()?,
            node: node.clone(),
        };
        match https::enrol(&wish.hub.0, tls.clone(), &body).await {
            Ok(Enrolled::Issued(issued)) => break *issued,
            Ok(Enrolled::Pending(pending)) => waiting.pending(&pending, &mut tell),
            // Two boards whose names and digits are the same: more digits tell them apart.
            Err(AskError::Refused(refused))
                if refused.code == RefusalCode::NodeExists && ids.peek().is_some() =>
            {
                node = ids.next().expect("it was peeked at");
                continue;
            }
            // While it waits for a person, a hub that is away for an hour is no reason to give up.
            Err(error) if waiting.is_patient_with(&error) => waiting.away(&error, &mut tell),
            Err(error) => return Err(error.into()),
        }
        let pause = Duration::from_secs(waiting.retry_s);
        time::sleep(pause + clock::jitter(pause / 4)).await;
    };
    Ok(Joined::new(&wish.hub.0, &wish.token, wish.name.clone(), key, issued)?)
}

impl Folder {
    /// What was joined before, unless it is to be left.
    fn load_unless(&self, force: bool) -> Result<Option<Joined>, FolderError> {
        if force { Ok(None) } else { self.load() }
    }
}

/// Idempotent where the hub is the same; an address that changed is taken over once the hub was found there.
async fn joined_before(wish: &Wish, folder: &Folder, joined: Joined) -> Result<Outcome, JoinError> {
    if !joined.is_of(wish.token.pin) {
        return Err(JoinError::Elsewhere { node: joined.node, hub: joined.hub });
    }
    if joined.hub.https() == wish.hub.0 {
        return Ok(Outcome::Already(Box::new(joined)));
    }
    let _lock = folder.lock()?;
    let bound = Arc::new(Bound::new(joined.hub_ms.max(limits::BUILT_MS)));
    let tls = client_config(&Trusted::Cas(&joined.cas()), bound, None)?;
    https::trust(&wish.hub.0, tls).await?;
    let Address { host, port } = wish.hub.0.clone();
    let hub = Place { host, https_port: port, mqtts_port: joined.hub.mqtts_port };
    let moved = Joined { hub, ..joined };
    folder.store(&moved)?;
    Ok(Outcome::Moved(Box::new(moved)))
}

/// Waits for a person.
#[derive(Debug, Default)]
struct Waiting {
    retry_s: u64,
    told_pending: bool,
    told_away: bool,
}

impl Waiting {
    fn pending(&mut self, pending: &Pending, tell: &mut impl FnMut(Progress<'_>)) {
        self.retry_s = pending.retry_s.clamp(*RETRY.start(), *RETRY.end());
        self.told_away = false;
        if !std::mem::replace(&mut self.told_pending, true) {
            tell(Progress::Pending(pending));
        }
    }

    fn away(&mut self, error: &AskError, tell: &mut impl FnMut(Progress<'_>)) {
        if !std::mem::replace(&mut self.told_away, true) {
            tell(Progress::Waiting(error));
        }
    }

    /// Only after the hub said that somebody has to approve, and only with a network or a hub that is out of order.
    fn is_patient_with(&self, error: &AskError) -> bool {
        self.told_pending
            && match error {
                AskError::Unreachable { .. } | AskError::Slow(_) | AskError::Broken(..) => true,
                AskError::Refused(refused) => {
                    matches!(refused.code, RefusalCode::Unavailable | RefusalCode::ClockInDoubt)
                }
                AskError::Tls { .. } | AskError::Strange { .. } => false,
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_of_the_host_has_digits_of_the_key_and_is_one() {
        let key = Key::generate();
        let hash = Sha256::digest(key.public_key().unwrap());
        let [one, two] = [hash[0], hash[1]];
        let ids = |host: &str| WishedId::OfHost(host.to_owned()).ids(&key).unwrap();
        assert_eq!(ids("raspberrypi")[0].as_str(), format!("raspberrypi-{one:02x}{two:02x}"));
        assert_eq!(ids("raspberrypi").len(), 3);
        assert!(ids("Old Shed_2.lan")[0].as_str().starts_with("old-shed-2.lan-"));
        assert!(ids("-.-")[0].as_str().starts_with("node-"));
        for host in ["hub", "x", &"long".repeat(15), &format!("{}.{}", "a".repeat(57), "b".repeat(5))] {
            let ids = ids(host);
            assert!(ids.iter().all(|id| id.as_str().starts_with(&host[..host.len().min(46)])), "{ids:?}");
            assert_ne!(ids[0], ids[1]);
        }
        let told = WishedId::Told(NodeId::parse("edge-1").unwrap());
        assert_eq!(told.ids(&key).unwrap(), [NodeId::parse("edge-1").unwrap()]);
    }

    #[test]
    fn hubs_are_written_in_three_ways() {
        for (text, expected) in [
            ("hub.example", "hub.example:8443"),
            ("hub.example:1", "hub.example:1"),
            ("https://10.0.0.7:9443", "10.0.0.7:9443"),
            ("https://hub.example/", "hub.example:8443"),
            ("[::1]:7", "[::1]:7"),
        ] {
            assert_eq!(text.parse::<HubAddress>().map(|hub| hub.to_string()), Ok(expected.to_owned()));
        }
        for bad in ["", "http://hub", "mqtts://hub", "hub:port", "hub/path", "::1"] {
            let error = bad.parse::<HubAddress>().unwrap_err().to_string();
            assert!(error.contains("https://host:port"), "{bad}: {error}");
        }
    }
}
