//! The local MQTT listener: who may come in, and the way of what devices say into the outbox.
//!
//! Owns the task. What a word means is read in `dialect`; sessions and topics are the broker's business, and what becomes
//! of devices and records is decided by the uplink. A message that could not be kept is counted, for the board that said
//! it at QoS 0 keeps nothing.

use std::{
    collections::HashSet,
    io,
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::Arc,
    time::Duration,
};

use fleet_broker::{
    Credentials, Refusal, Stats,
    local::{self, Ack, Front, Gatekeeper, Heard, On, Word},
};
use fleet_schemas::{DeviceId, MetricName};
use tokio::{select, sync::mpsc, time};
use tracing::{info, warn};

use super::{
    Config,
    dialect::{self, KIND, Wrong},
    line::Line,
    passwords::{self, Passwords},
};
use crate::{
    clock::Clock,
    core::devices::{Declared, Refused, Sight},
    metrics::Metrics,
    outbox::{self, SubmitError},
    stop::Stop,
    uplink::{self, Told},
};

/// The listener does not start. The text fits after "failed to start: ".
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address cannot be had.
    #[error("devices cannot be served on {address}: {source}; choose another `listen` under [devices]")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The passwords.
    #[error(transparent)]
    Passwords(#[from] passwords::Error),
}

/// Bound, and not served yet.
#[derive(Debug)]
pub(crate) struct Bound {
    front: Front,
    passwords: Arc<Passwords>,
    open: bool,
    /// Where it listens.
    pub(crate) address: SocketAddr,
    pub(crate) line: Line,
}

/// What the listener works with.
pub(crate) struct Surroundings {
    pub(crate) clock: Clock,
    pub(crate) outbox: outbox::Handle,
    pub(crate) metrics: Arc<Metrics>,
}

/// Messages that may wait to be read, and most that are written in one transaction.
const MESSAGES: usize = 64;
/// How often the passwords are looked at, and the counters told.
const TICK: Duration = Duration::from_secs(1);
/// How often what devices said is handed in again to an outbox whose disk failed, and how long it rests between.
const TRIES: usize = 5;
const AGAIN: Duration = Duration::from_secs(1);

/// Binds the listener, if there is to be one.
///
/// # Errors
/// [`Error`].
pub(crate) fn bind(config: &Config, data: &Path) -> Result<Option<Bound>, Error> {
    let Some(address) = config.listen else { return Ok(None) };
    let passwords = Arc::new(Passwords::open(data)?);
    let front = local::Config { listen: address, max_sessions: config.sessions, ..local::Config::default() };
    let front = Front::bind(front).map_err(|source| Error::Listen { address, source })?;
    let (address, line) = (front.address(), Line::new(front.speaker()));
    Ok(Some(Bound { front, passwords, open: config.open, address, line }))
}

/// Whether only this machine, or machines on a private network, can reach an address.
pub(super) fn is_private(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.is_loopback() || v4.is_private() || v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unique_local() || v6.is_unicast_link_local(),
    }
}

/// Serves devices until told to stop; what they said until then is handed in.
pub(crate) async fn run(bound: Bound, surroundings: Surroundings, mut stop: Stop) {
    let Bound { front, passwords, open, address, line } = bound;
    info!(%address, open, "devices are served over MQTT");
    let (sender, mut heard) = mpsc::channel(MESSAGES);
    let mut desk = Desk {
        surroundings,
        line,
        speaker: front.speaker(),
        stats: front.stats(),
        passwords: passwords.clone(),
        strangers: HashSet::new(),
        complained: HashSet::new(),
    };
    let door = Door { passwords, open };
    let mut tick = time::interval(TICK);
    tick.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
    let served = front.serve(Arc::new(door), sender, async move { stop.wanted().await });
    let heard = async {
        let mut messages = Vec::new();
        loop {
            select! {
                // None: the front has ended, and everything was heard.
                count = heard.recv_many(&mut messages, MESSAGES) => match count {
                    0 => break,
                    _ => desk.hear(std::mem::take(&mut messages)).await,
                },
                _ = tick.tick() => desk.look(),
            }
        }
        desk.look();
    };
    tokio::join!(served, heard);
}

/// Says who comes in.
struct Door {
    passwords: Arc<Passwords>,
    open: bool,
}

impl Gatekeeper for Door {
    fn admit(&self, credentials: &Credentials<'_>) -> Result<Option<DeviceId>, Refusal> {
        let (Some(user), password) = (credentials.user, credentials.password) else {
            return if self.open { Ok(None) } else { Err(Refusal::BadCredentials) };
        };
        let password = password.ok_or(Refusal::BadCredentials)?;
        let device = DeviceId::parse(user).map_err(|_| Refusal::BadCredentials)?;
        if self.passwords.takes(&device, password) { Ok(Some(device)) } else { Err(Refusal::BadCredentials) }
    }
}

struct Desk {
    surroundings: Surroundings,
    line: Line,
    speaker: local::Speaker,
    stats: Arc<Stats>,
    passwords: Arc<Passwords>,
    // Sessions that were turned away: what they still say is not heard.
    strangers: HashSet<u64>,
    // Devices and reasons that were logged.
    complained: HashSet<(DeviceId, &'static str)>,
}

/// In which session something was said, and who waits for its acknowledgement.
struct From {
    session: u64,
    /// By the device itself; else a session was opened.
    said: bool,
    ack: Option<Ack>,
}

/// Most complaints that are remembered, not to be said twice.
const COMPLAINTS: usize = 512;

impl Desk {
    /// Takes what happened at the front, in order.
    async fn hear(&mut self, messages: Vec<Heard>) {
        let mut told = Vec::with_capacity(messages.len());
        let mut from = Vec::with_capacity(messages.len());
        for Heard { session, device, word } in messages {
            match word {
                Word::Gone => {
                    self.strangers.remove(&session);
                    self.link(device).await;
                }
                _ if self.strangers.contains(&session) => self.surroundings.metrics.device_message("foreign"),
                Word::Bound { proven } => {
                    if self.welcome(session, &device, proven).await {
                        told.push(first_word(device.clone()));
                        from.push(From { session, said: false, ack: None });
                        self.link(device).await;
                    }
                }
                Word::Hears(_) => self.link(device).await,
                Word::Said { on, payload, ack } => {
                    if let Some(read) = self.read(&device, &on, &payload) {
                        told.push(read);
                        from.push(From { session, said: true, ack });
                    } else if let Some(ack) = ack {
                        // Said again it would be as wrong.
                        ack.done();
                    }
                }
            }
        }
        self.hand_in(told, from).await;
    }

    fn read(&mut self, device: &DeviceId, on: &On, payload: &[u8]) -> Option<Told> {
        let now_ms = self.surroundings.clock.now().wall_ms;
        match dialect::read(device, on, payload, self.passwords.is_gateway(device), now_ms) {
            Ok(read) => {
                if let Some(status) = &read.status {
                    self.line.hear(device, status);
                }
                Some(read.told)
            }
            Err(wrong) => {
                self.complain(device, on, &wrong);
                None
            }
        }
    }

    /// Whether a session may be this device's: where the device has a password, its word is not enough.
    async fn welcome(&mut self, session: u64, device: &DeviceId, proven: bool) -> bool {
        if !proven && self.passwords.has(device) {
            self.strangers.insert(session);
            self.speaker.turn_away(session);
            self.surroundings.metrics.device_message("foreign");
            warn!(%device, "a session without its password said it was this device, and was ended");
            return false;
        }
        // Whoever gave it a password has registered it.
        if proven && let Ok(None) = self.surroundings.outbox.device(device.clone()).await {
            let declared = Declared { kind: MetricName::parse(KIND).ok(), ..Declared::default() };
            // Said again by its first word, whatever became of this.
            let _ = self.surroundings.outbox.declare_device(device.clone(), declared).await;
        }
        true
    }

    async fn link(&self, device: DeviceId) {
        let (open, hears) = self.speaker.presence(&device);
        self.surroundings.outbox.link_device(device, open, hears).await;
    }

    /// Hands in what was read; waits a little for a disk that failed.
    async fn hand_in(&mut self, told: Vec<Told>, from: Vec<From>) {
        if told.is_empty() {
            return;
        }
        let metrics = self.surroundings.metrics.clone();
        let mut results = None;
        for attempt in 0..TRIES {
            if attempt > 0 {
                time::sleep(AGAIN).await;
            }
            if let Ok(heard) = self.surroundings.outbox.hear_devices(told.clone()).await {
                results = Some(heard);
                break;
            }
        }
        let Some(results) = results else {
            from.iter().filter(|from| from.said).for_each(|_| metrics.device_message("disk"));
            return;
        };
        for ((result, From { session, said, ack }), told) in results.into_iter().zip(from).zip(told) {
            match result {
                Ok(()) if !said => {}
                Ok(()) => {
                    metrics.device_message("taken");
                    if told.sight.firmware.is_some() {
                        self.line.said_firmware(&told.device);
                    }
                    if let Some(ack) = ack {
                        ack.done();
                    }
                }
                Err(SubmitError::Refused(uplink::SubmitError::Device(refused))) => {
                    metrics.device_message("unknown");
                    let own = match &refused {
                        Refused::Unknown(device) => *device == told.device,
                        Refused::Full => told.samples.iter().all(|sample| sample.device == told.device),
                    };
                    let new = self.complained.len() < COMPLAINTS
                        && self.complained.insert((told.device.clone(), "unknown"));
                    if new {
                        warn!(device = %told.device, %refused, "what a device said is not taken");
                    }
                    // A gateway goes on for the others behind it.
                    if own {
                        self.strangers.insert(session);
                        self.speaker.turn_away(session);
                    } else if let Some(ack) = ack {
                        ack.done();
                    }
                }
                // Not acknowledged: a board that keeps it says it again in its next session.
                Err(error) => metrics.device_message(error.reason()),
            }
        }
    }

    /// Tells the counters, and looks whether passwords changed.
    fn look(&mut self) {
        self.surroundings.metrics.device_front(&self.stats);
        match self.passwords.refresh() {
            Ok(changed) => {
                for (device, had_password) in changed {
                    match had_password {
                        true => self.speaker.kick(&device),
                        // It may have come in with its new password already.
                        false => self.speaker.kick_unproven(&device),
                    }
                }
            }
            Err(error) => {
                if self.complained.insert((DeviceId::node(), "passwords")) {
                    warn!(%error, "the passwords of devices cannot be read; those known before go on");
                }
            }
        }
    }

    fn complain(&mut self, device: &DeviceId, on: &On, wrong: &Wrong) {
        self.surroundings.metrics.device_message(wrong.reason());
        if self.complained.len() < COMPLAINTS && self.complained.insert((device.clone(), wrong.reason())) {
            warn!(%device, ?on, %wrong, "what a device said is not taken; further ones are only counted");
        }
    }
}

/// A session is a device's: that alone shows that it is there.
fn first_word(device: DeviceId) -> Told {
    let sight = Sight { kind: MetricName::parse(KIND).ok(), ..Sight::default() };
    Told { device, sight, samples: Vec::new(), events: Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_of_this_machine_and_of_private_networks_may_be_open() {
        for (text, private) in [
            ("127.0.0.1", true),
            ("192.168.4.1", true),
            ("10.1.2.3", true),
            ("169.254.1.1", true),
            ("fd00::1", true),
            ("fe80::1", true),
            ("::ffff:10.0.0.1", true),
            ("0.0.0.0", false),
            ("::", false),
            ("203.0.113.7", false),
            ("100.64.0.1", false),
            ("2001:db8::1", false),
        ] {
            assert_eq!(is_private(text.parse().unwrap()), private, "{text}");
        }
    }
}
