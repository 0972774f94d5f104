//! How a node leaves its hub for another: the old one is given everything first, the new one is asked before anything is
//! given up, and a crash at any step goes on with it.
//!
//! Owns `identity/moving.json`, which is written before the step that it tells of: the wish and the key; the identity that
//! the new hub gave; that the old hub is left. Until that last one the node is the old hub's, whatever happens. The
//! command ends, as far as the old hub sees, when the new hub has said yes; then the agent leaves as soon as everything
//! is delivered, its command's end included.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use ciborium::Value;
use fleet_schemas::{
    CommandId, NodeId,
    command::Reason,
    enrol::{JoinToken, RefusalCode},
};
use serde::{Deserialize, Serialize};
use tokio::{
    select,
    sync::{oneshot, watch},
    time,
};
use tracing::{error, info, warn};

use super::{
    certificate::Key,
    folder::replace,
    https::AskError,
    join::{HubAddress, JoinError, Wish, WishedId, enrol},
    live::Live,
    record::Joined,
};
use crate::{
    core::queue::{End, Ending, Origin, reason},
    outbox,
    stop::Stop,
};

/// The file's name in `identity/`.
const FILE: &str = "moving.json";
/// Largest file that is read, in bytes: it holds an identity.
const FILE_BYTES: u64 = 256 * 1024;
/// How often it is looked whether everything is delivered.
const LOOK: Duration = Duration::from_millis(250);
/// How often it is said what is still to be delivered.
const TELL: Duration = Duration::from_secs(30);
/// How often the new hub is asked before the node stays where it is.
const TRIES: u32 = 3;
/// Pause between these.
const AGAIN: Duration = Duration::from_secs(3);

/// Parameters of a command of kind `move`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Order {
    hub: HubAddress,
    token: JoinToken,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Params {
    hub: String,
    token: String,
}

impl Order {
    /// Reads parameters.
    ///
    /// # Errors
    /// What is wrong with them. The token is not repeated.
    pub(crate) fn read(params: &Value) -> Result<Self, String> {
        let Params { hub, token } = params.deserialized().map_err(|_| "{hub, token}".to_owned())?;
        let hub = hub.parse().map_err(|error: super::join::BadAddress| error.to_string())?;
        let token = token.parse().map_err(|error: fleet_schemas::enrol::TokenError| error.to_string())?;
        Ok(Self { hub, token })
    }
}

/// How far a move is; the whole of the file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Moving {
    /// The command.
    command: CommandId,
    /// The key that the new hub is asked with, so that an answer that was lost is given again.
    key: Key,
    /// The new identity, once the new hub gave it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    joined: Option<Box<Joined>>,
    /// The node has left: the new identity is the node's, or is to be by the next start.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    left: bool,
}

/// The file, and whoever waits for it to say that the node may leave.
#[derive(Debug, Clone)]
pub(crate) struct Mover {
    path: PathBuf,
    may_leave: Arc<watch::Sender<bool>>,
}

impl Mover {
    /// Of this data folder.
    pub(crate) fn new(data: &Path) -> Self {
        Self { path: path(data), may_leave: Arc::new(watch::Sender::new(false)) }
    }

    /// Does a command of kind `move`, as far as the old hub sees it. The node stays where it is unless all of it is done.
    pub(crate) async fn run(
        &self,
        command: CommandId,
        order: Order,
        node: &NodeId,
        name: Option<String>,
        outbox: &outbox::Handle,
        stopping: &mut oneshot::Receiver<Ending>,
    ) -> End {
        let moved = select! {
            moved = self.try_run(command, &order, node, name, outbox) => moved,
            // An error says that the runner is gone.
            why = stopping => {
                if why.is_ok() {
                    self.forget();
                }
                return End::Stopped;
            }
        };
        match moved {
            Ok(joined) => {
                self.may_leave.send_replace(true);
                let entry = |key: &str, value: String| (Value::Text(key.to_owned()), Value::Text(value));
                let (hub, node) = (joined.hub.to_string(), joined.node.to_string());
                End::Done { result: Value::Map(vec![entry("hub", hub), entry("node", node)]) }
            }
            Err(why) => {
                self.forget();
                End::Failed(why)
            }
        }
    }

    async fn try_run(
        &self,
        command: CommandId,
        order: &Order,
        node: &NodeId,
        name: Option<String>,
        outbox: &outbox::Handle,
    ) -> Result<Box<Joined>, Reason> {
        let disk = |error: io::Error| {
            let text = format!("the move cannot be written down: {error}; check the node's disk");
            reason("disk", text, false)
        };
        let known = load(&self.path).filter(|moving| moving.command == command);
        let mut moving = match known {
            // Begun before the agent was started again.
            Some(moving) => moving,
            None => {
                let new = Moving { command, key: Key::generate(), joined: None, left: false };
                self.store(&new).map_err(disk)?;
                new
            }
        };
        if let Some(joined) = moving.joined {
            return Ok(joined);
        }
        drain(command, outbox).await?;
        let wish = Wish {
            hub: order.hub.clone(),
            token: order.token.clone(),
            node: WishedId::Told(node.clone()),
            name,
            data: PathBuf::new(),
            force: false,
        };
        let joined = Box::new(ask(&wish, &moving.key).await?);
        moving.joined = Some(joined.clone());
        self.store(&moving).map_err(disk)?;
        info!(hub = %order.hub, node = %joined.node, "the new hub has taken this node; it leaves its old one once that has everything");
        Ok(joined)
    }

    /// Leaves the old hub once that has everything; then the agent is to start again. Returns when there is nothing to
    /// leave any more, or the agent stops.
    pub(crate) async fn leave(
        self,
        outbox: outbox::Handle,
        restart: Arc<watch::Sender<bool>>,
        mut stop: Stop,
    ) {
        if load(&self.path).is_some_and(|moving| moving.joined.is_some()) {
            self.may_leave.send_replace(true);
        }
        let mut may_leave = self.may_leave.subscribe();
        let ready = async {
            // The sender lives as long as this.
            let _ = may_leave.wait_for(|may| *may).await;
            loop {
                let Some(Moving { command, .. }) = load(&self.path) else { return false };
                if all_told(command, &outbox).await {
                    return true;
                }
                time::sleep(LOOK).await;
            }
        };
        let ready = select! {
            ready = ready => ready,
            () = stop.wanted() => return,
        };
        if ready {
            info!("the old hub has everything; this node leaves it");
            outbox.leave().await;
            restart.send_replace(true);
        }
    }

    /// After the last goodbye: the node is the new hub's, if it has left the old one. Blocks.
    pub(crate) fn settle(&self, live: &Live, has_left: bool) {
        let Some(moving) = load(&self.path) else { return };
        let Some(joined) = moving.joined.clone().filter(|_| has_left) else { return };
        // The other way round a crash in between would leave an identity that nobody knows to be new.
        let written = self.store(&Moving { left: true, ..moving }).map_err(|error| error.to_string());
        match written.and_then(|()| live.leave(&joined).map_err(|error| error.to_string())) {
            Ok(()) => info!(hub = %joined.hub, "this node has left its old hub"),
            Err(error) => error!("the new identity cannot be written down, the next start does it: {error}"),
        }
    }

    fn store(&self, moving: &Moving) -> io::Result<()> {
        let text = serde_json::to_string_pretty(moving).expect("texts and numbers under text keys");
        replace(&self.path, &text)
    }

    fn forget(&self) {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                warn!("{} cannot be removed: {error}", self.path.display());
            }
            Ok(()) | Err(_) => {}
        }
    }
}

/// Completes at a start what a crash broke off after the node had left, or forgets what is done. `unheard` says that the
/// outbox holds nothing that a hub was told of. Gives whether the identity is another now. Blocks.
pub(crate) fn resume(data: &Path, live: &Live, unheard: bool) -> bool {
    let path = path(data);
    let Some(moving) = load(&path) else { return false };
    let mover = Mover::new(data);
    let Some(joined) = moving.joined.as_deref() else { return false };
    if joined.node == *live.node() && live.is(joined) {
        mover.forget();
        return false;
    }
    // Without the mark, an outbox that is empty tells as much: the command's own end was in it.
    if moving.left || unheard {
        mover.settle(live, true);
        return true;
    }
    false
}

/// Whether the node has just left a hub whose signed metadata it trusted.
pub(crate) fn has_left(data: &Path) -> bool {
    load(&path(data)).is_some_and(|moving| moving.left)
}

fn path(data: &Path) -> PathBuf {
    data.join("identity").join(FILE)
}

fn load(path: &Path) -> Option<Moving> {
    use std::io::Read as _;
    let mut text = String::new();
    fs::File::open(path).ok()?.take(FILE_BYTES).read_to_string(&mut text).ok()?;
    let read = serde_json::from_str(&text);
    read.inspect_err(|error| warn!("{} is damaged and left alone: {error}", path.display())).ok()
}

/// Until the hub has everything that was accepted when this began.
async fn drain(command: CommandId, outbox: &outbox::Handle) -> Result<(), Reason> {
    let silent = |error: outbox::Silent| reason("silent", error.to_string(), false);
    let mut told: Option<u32> = None;
    for round in 0_u32.. {
        outbox.seal_now().await;
        let delivery = outbox.delivery().await.map_err(silent)?;
        if delivery.delivered && delivery.connected {
            return Ok(());
        }
        let looks = u32::try_from(TELL.as_millis() / LOOK.as_millis()).unwrap_or(u32::MAX);
        if told.is_none_or(|at| round - at >= looks) {
            told = Some(round);
            let text = format!("{} records are still to be delivered to the old hub\n", delivery.records);
            outbox.output(command, text.into()).await;
            // The line itself is a batch: it must have its time.
            time::sleep(LOOK).await;
        }
        time::sleep(LOOK).await;
    }
    Err(reason("silent", "the outbox was never empty", false))
}

/// Whether the old hub has everything, the command's own end included.
async fn all_told(command: CommandId, outbox: &outbox::Handle) -> bool {
    let Ok(held) = outbox.commands().await else { return false };
    let runs = |held: &crate::core::queue::Held| {
        held.command.origin == Origin::Hub && matches!(held.stage, crate::core::queue::Stage::Running(_))
    };
    if held.iter().any(|held| held.command.id == command || runs(held)) {
        return false;
    }
    outbox.seal_now().await;
    outbox.delivery().await.is_ok_and(|delivery| delivery.delivered && delivery.connected)
}

/// Asks the new hub, some times if it is away.
async fn ask(wish: &Wish, key: &Key) -> Result<Joined, Reason> {
    let stays = "; the node stays with its hub";
    for attempt in 1.. {
        match enrol(wish, key.clone(), |_| ()).await {
            Ok(joined) => return Ok(joined),
            Err(JoinError::Ask(
                error @ (AskError::Unreachable { .. } | AskError::Slow(_) | AskError::Broken(..)),
            )) => {
                if attempt == TRIES {
                    return Err(reason("unreachable", format!("{error}{stays}"), false));
                }
                warn!(attempt, "the new hub does not answer: {error}");
            }
            Err(JoinError::Ask(AskError::Refused(refused)))
                if refused.code == RefusalCode::Unavailable && attempt < TRIES => {}
            Err(error) => return Err(reason("refused", format!("{error}{stays}"), false)),
        }
        time::sleep(AGAIN).await;
    }
    Err(reason("unreachable", "the new hub was never asked", false))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::{folder::Folder, given};

    fn live(data: &Path, joined: &Joined) -> Live {
        let folder = Folder::new(data);
        folder.store(joined).unwrap();
        Live::open(folder, joined.clone(), None).unwrap()
    }

    fn moving(joined: Option<&Joined>, left: bool) -> Moving {
        let joined = joined.cloned().map(Box::new);
        Moving { command: CommandId([7; 16]), key: Key::generate(), joined, left }
    }

    #[test]
    fn a_start_after_a_crash_at_any_step_knows_whose_the_node_is() {
        let (old, new) = (given::joined("edge-1"), given::joined("edge-1"));
        for (file, unheard, is_new) in [
            (moving(None, false), false, false),
            (moving(None, false), true, false),
            (moving(Some(&new), false), false, false),
            (moving(Some(&new), false), true, true),
            (moving(Some(&new), true), false, true),
        ] {
            let data = tempfile::tempdir().unwrap();
            let open = live(data.path(), &old);
            let mover = Mover::new(data.path());
            mover.store(&file).unwrap();
            assert_eq!(resume(data.path(), &open, unheard), is_new, "{file:?}");
            // What the running identity would still write goes nowhere.
            open.save().unwrap();
            drop(open);
            let stored = Folder::new(data.path()).load().unwrap().unwrap();
            assert_eq!(stored == new, is_new, "{file:?}");
            if is_new {
                assert!(has_left(data.path()));
                // The next start is the new hub's, and forgets how it came there.
                let open = Live::open(Folder::new(data.path()), stored, None).unwrap();
                assert!(!resume(data.path(), &open, false));
                assert!(load(&mover.path).is_none());
            }
        }
    }

    #[test]
    fn parameters_are_an_address_and_a_token() {
        let token = JoinToken { pin: fleet_schemas::enrol::Pin([7; 32]), id: "t".into(), secret: [9; 32] };
        let read = |hub: &str, token: &str| {
            let params = serde_json::json!({"hub": hub, "token": token});
            Order::read(&Value::serialized(&params).unwrap())
        };
        assert_eq!(read("hub.example", &token.to_string()).unwrap().hub.to_string(), "hub.example:8443");
        for (hub, text) in
            [("mqtt://x", token.to_string()), ("hub.example", token.to_string()[..40].to_owned())]
        {
            let error = read(hub, &text).unwrap_err();
            assert!(!error.contains(&text), "{error}");
        }
        assert!(Order::read(&Value::Null).is_err());
    }
}
