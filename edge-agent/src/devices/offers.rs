//! Firmware that devices may fetch from this node right now, and where they find it.
//!
//! A device knows the address from the command that it was told, and the address holds the only thing that lets it in.
//! Nothing is offered but what an update under way is about.

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use fleet_schemas::update::Digest;
use subtle::ConstantTimeEq as _;

use crate::clock;

/// Where firmware is on the edge API: `{PATH}{digest}?token={token}`.
pub(crate) const PATH: &str = "/api/v1/firmware/";

/// What is offered. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Offers(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    base: Option<String>,
    open: HashMap<Digest, Offer>,
    // Whose last byte was sent to somebody.
    fetched: HashSet<Digest>,
}

/// A file that is offered.
#[derive(Debug, Clone)]
pub(crate) struct Offer {
    pub(crate) file: PathBuf,
    token: String,
}

impl Offers {
    /// From now on devices find the edge API under this address, such as `http://192.168.4.1:9099`.
    pub(crate) fn found_at(&self, base: Option<String>) {
        self.lock().base = base;
    }

    /// Whether devices can find it.
    pub(crate) fn base(&self) -> Option<String> {
        self.lock().base.clone()
    }

    /// Offers a file, until it is withdrawn; what follows the address of the edge API.
    pub(crate) fn open(&self, digest: Digest, file: PathBuf) -> String {
        let mut inner = self.lock();
        let offer = inner.open.entry(digest).or_insert_with(|| {
            let token = clock::random::<12>().iter().map(|byte| format!("{byte:02x}")).collect();
            Offer { file: file.clone(), token }
        });
        offer.file = file;
        format!("{PATH}{digest}?token={}", offer.token)
    }

    pub(crate) fn withdraw(&self, digest: Digest) {
        self.lock().open.remove(&digest);
    }

    /// The last byte of this file was sent.
    pub(crate) fn sent(&self, digest: Digest) {
        self.lock().fetched.insert(digest);
    }

    /// Whether somebody has fetched this file from this process.
    pub(crate) fn was_fetched(&self, digest: Digest) -> bool {
        self.lock().fetched.contains(&digest)
    }

    /// It is known what became of this file, or nobody asks any more.
    pub(crate) fn forget(&self, digest: Digest) {
        self.lock().fetched.remove(&digest);
    }

    /// What is offered under this digest to whoever has this token.
    pub(crate) fn find(&self, digest: Digest, token: &str) -> Option<Offer> {
        let offer = self.lock().open.get(&digest).cloned()?;
        bool::from(offer.token.as_bytes().ct_eq(token.as_bytes())).then_some(offer)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where devices that reach the listener at `devices` reach the edge API, if they do.
pub(crate) fn base(api: SocketAddr, tls: bool, devices: SocketAddr) -> Option<String> {
    let served = api.ip().is_unspecified() || api.ip() == devices.ip();
    let scheme = if tls { "https" } else { "http" };
    (served && !devices.ip().is_unspecified())
        .then(|| format!("{scheme}://{}", SocketAddr::new(devices.ip(), api.port())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_offered_is_found_and_only_with_its_token() {
        let offers = Offers::default();
        let (one, other) = (Digest([1; 32]), Digest([2; 32]));
        let path = offers.open(one, "/a".into());
        assert_eq!(offers.open(one, "/a".into()), path, "an address that a device was told stays");
        let (_, token) = path.split_once("?token=").unwrap();
        assert!(path.starts_with(&format!("{PATH}{one}?")) && token.len() == 24);
        assert!(offers.find(one, token).is_some());
        assert!(offers.find(one, "").is_none() && offers.find(other, token).is_none());
        offers.withdraw(one);
        assert!(offers.find(one, token).is_none());
    }

    #[test]
    fn devices_find_the_edge_api_where_they_find_their_listener() {
        for (api, devices, found) in [
            ("0.0.0.0:9099", "192.168.4.1:1883", Some("http://192.168.4.1:9099")),
            ("192.168.4.1:9099", "192.168.4.1:1883", Some("http://192.168.4.1:9099")),
            ("[::]:9099", "[fe80::1]:1883", Some("http://[fe80::1]:9099")),
            ("127.0.0.1:9099", "192.168.4.1:1883", None),
            ("0.0.0.0:9099", "0.0.0.0:1883", None),
        ] {
            let base = base(api.parse().unwrap(), false, devices.parse().unwrap());
            assert_eq!(base.as_deref(), found, "{api} {devices}");
        }
    }
}
