//! Who is logged in: a cookie names a session, and a session the API token that it was begun with.
//!
//! In memory, bounded and short: a restart of the hub logs everybody out. Keeps hashes of cookies and tokens only. What
//! an operator may do is looked up at every request, so a token that is taken away ends its sessions at once.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::http::{HeaderMap, header};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

use crate::{
    api::{Api, token::hash},
    core::identity::Hash,
};

/// How long a session lasts: a working day.
pub(crate) const LIFE: Duration = Duration::from_secs(12 * 3_600);
/// Sessions at once; the oldest end first. Each takes about 200 bytes.
const SESSIONS: usize = 4_096;
/// Sessions of one token at once: browsers of one person.
const OF_ONE: usize = 32;
/// How long a login link is good for.
const LINK_LIFE: Duration = Duration::from_secs(15 * 60);
/// Login links at once.
const LINKS: usize = 16;

/// Who is logged in.
#[derive(Debug, Default)]
pub struct Sessions(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    /// By the hash of the cookie.
    seats: BTreeMap<Hash, Kept>,
    /// Tokens by the hash of a link's secret, with the end of its life.
    links: BTreeMap<Hash, (Duration, Hash)>,
}

#[derive(Debug, Clone)]
struct Kept {
    token: Hash,
    csrf: String,
    ends: Duration,
}

/// A session that a request belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seat {
    /// SHA-256 of the cookie.
    pub(crate) id: Hash,
    /// SHA-256 of the API token that it was begun with.
    pub(crate) token: Hash,
    /// What every form of it must bring.
    pub(crate) csrf: String,
}

impl Sessions {
    /// Begins a session for the holder of a token; gives the cookie's value.
    pub(crate) fn open(&self, token: Hash, random: [[u8; 32]; 2], now: Duration) -> String {
        let [cookie, csrf] = random.map(|bytes| URL_SAFE_NO_PAD.encode(bytes));
        let mut known = self.known(now);
        while known.seats.len() >= SESSIONS || known.of(&token).count() >= OF_ONE {
            let crowded = known.of(&token).count() >= OF_ONE;
            let candidates = known.seats.iter().filter(|(_, kept)| !crowded || kept.token == token);
            let Some(oldest) = candidates.min_by_key(|(_, kept)| kept.ends).map(|(id, _)| *id) else { break };
            known.seats.remove(&oldest);
        }
        known.seats.insert(hash(&cookie), Kept { token, csrf, ends: now + LIFE });
        cookie
    }

    /// The session that a cookie names.
    pub(crate) fn find(&self, cookie: &str, now: Duration) -> Option<Seat> {
        let id = hash(cookie);
        let known = self.known(now);
        let Kept { token, csrf, .. } = known.seats.get(&id)?.clone();
        Some(Seat { id, token, csrf })
    }

    /// Whether a session still lasts.
    pub(crate) fn lasts(&self, id: &Hash, now: Duration) -> bool {
        self.known(now).seats.contains_key(id)
    }

    /// Ends a session.
    pub(crate) fn close(&self, id: &Hash) {
        self.lock().seats.remove(id);
    }

    /// Makes a secret that logs in once, in the name of the holder of a token, within a quarter of an hour.
    #[must_use]
    pub fn link(&self, token: Hash, random: [u8; 32], now: Duration) -> String {
        let secret = URL_SAFE_NO_PAD.encode(random);
        let mut known = self.known(now);
        if known.links.len() >= LINKS
            && let Some(oldest) = known.links.iter().min_by_key(|(_, (ends, _))| *ends).map(|(id, _)| *id)
        {
            known.links.remove(&oldest);
        }
        known.links.insert(hash(&secret), (now + LINK_LIFE, token));
        secret
    }

    /// Uses a link's secret up.
    pub(crate) fn redeem(&self, secret: &str, now: Duration) -> Option<Hash> {
        self.known(now).links.remove(&hash(secret)).map(|(_, token)| token)
    }

    /// Without what is over.
    fn known(&self, now: Duration) -> MutexGuard<'_, Known> {
        let mut known = self.lock();
        known.seats.retain(|_, kept| kept.ends > now);
        known.links.retain(|_, (ends, _)| *ends > now);
        known
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn of(&self, token: &Hash) -> impl Iterator<Item = &Kept> {
        self.seats.values().filter(move |kept| kept.token == *token)
    }
}

/// The cookie's name. Cookies know no ports: hubs on one machine must not log each other out.
fn name(api: &Api) -> String {
    let store: String = api.hub.store_id().0.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    // The prefix has the browser take it over TLS only, from this very host.
    if api.config.tls { format!("__Host-fleet-{store}") } else { format!("fleet-{store}") }
}

/// The session's cookie among a request's.
pub(crate) fn cookie<'a>(headers: &'a HeaderMap, api: &Api) -> Option<&'a str> {
    let name = name(api);
    named(headers, &name)
}

/// A cookie by its name.
pub(super) fn named<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let all = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs = all.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(of, _)| *of == name).map(|(_, value)| value)
}

/// `Set-Cookie` of a session, or, without one, of its end.
pub(super) fn set(api: &Api, value: Option<&str>) -> String {
    let secure = if api.config.tls { "; Secure" } else { "" };
    let age = if value.is_some() { LIFE.as_secs() } else { 0 };
    let (name, value) = (name(api), value.unwrap_or_default());
    format!("{name}={value}; Path=/; HttpOnly; SameSite=Strict; Max-Age={age}{secure}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Hash = [1; 32];
    const B: Hash = [2; 32];

    fn random(n: usize) -> [[u8; 32]; 2] {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&n.to_be_bytes());
        [bytes, [9; 32]]
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_session_lasts_its_life_unless_it_is_closed() {
        let sessions = Sessions::default();
        let (first, second) = (sessions.open(A, random(1), at(0)), sessions.open(A, random(2), at(0)));
        let seat = sessions.find(&first, at(1)).unwrap();
        assert_eq!((seat.token, sessions.lasts(&seat.id, at(1))), (A, true));
        sessions.close(&seat.id);
        assert_eq!(sessions.find(&first, at(1)), None);
        assert!(sessions.find(&second, at(12 * 3_600 - 1)).is_some());
        assert_eq!(sessions.find(&second, at(12 * 3_600)), None);
        assert_eq!(sessions.find("nonsense", at(1)), None);
    }

    #[test]
    fn sessions_are_bounded_and_nobody_drives_others_out() {
        let sessions = Sessions::default();
        let other = sessions.open(B, random(0), at(0));
        let mine: Vec<String> = (1..=2 * OF_ONE).map(|n| sessions.open(A, random(n), at(n as u64))).collect();
        assert!(sessions.find(&other, at(100)).is_some());
        assert_eq!(sessions.find(&mine[0], at(100)), None, "the oldest went");
        assert!(sessions.find(&mine[2 * OF_ONE - 1], at(100)).is_some());
        for n in 0..2 * SESSIONS {
            let mut token = [3; 32];
            token[..8].copy_from_slice(&n.to_be_bytes());
            sessions.open(token, random(1_000 + n), at(200));
        }
        assert_eq!(sessions.lock().seats.len(), SESSIONS);
    }

    #[test]
    fn a_link_is_good_once_and_not_for_long() {
        let sessions = Sessions::default();
        let link = sessions.link(A, [7; 32], at(0));
        assert_eq!(sessions.redeem(&link, at(1)), Some(A));
        assert_eq!(sessions.redeem(&link, at(1)), None);
        let late = sessions.link(A, [8; 32], at(0));
        assert_eq!(sessions.redeem(&late, at(15 * 60)), None);
    }

    #[test]
    fn a_cookie_is_found_among_others() {
        let mut headers = HeaderMap::new();
        headers.append(header::COOKIE, "a=1; fleet-x=two; b=3".parse().unwrap());
        headers.append(header::COOKIE, "c=4".parse().unwrap());
        assert_eq!((named(&headers, "fleet-x"), named(&headers, "c")), (Some("two"), Some("4")));
        assert_eq!(named(&headers, "fleet"), None);
    }
}
