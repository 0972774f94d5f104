//! The open sessions of the local front: who they are, and how each is reached.
//!
//! Owns which session is told and which is ended; moves no bytes. No lock is held across an await.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use fleet_schemas::DeviceId;
use tokio::sync::{mpsc, oneshot, watch};

use crate::stats::Reason;

/// All open sessions, by number: the larger, the newer.
#[derive(Debug)]
pub(super) struct Crowd {
    inner: Mutex<Inner>,
    most: usize,
}

#[derive(Debug, Default)]
struct Inner {
    sessions: BTreeMap<u64, Seat>,
    next: u64,
    closed: bool,
}

#[derive(Debug)]
struct Seat {
    key: Key,
    device: Option<DeviceId>,
    hears: bool,
    orders: mpsc::Sender<Order>,
    cut: watch::Sender<Option<Reason>>,
}

/// What tells the sessions of one client: a newer one takes the older one's place (MQTT 3.1.1 §3.1.4).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Key {
    /// The device of a password.
    pub(super) device: Option<DeviceId>,
    /// Empty: it takes nobody's place.
    pub(super) client_id: String,
}

/// What a session has to do.
#[derive(Debug)]
pub(super) enum Order {
    /// Say this to the device; `done` hears that the bytes are on their way.
    Tell { payload: Vec<u8>, done: oneshot::Sender<()> },
    /// What had this packet id is safe.
    Ack(u16),
}

/// How one session hears of the rest.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) number: u64,
    pub(super) orders: mpsc::Receiver<Order>,
    pub(super) cut: watch::Receiver<Option<Reason>>,
}

/// Most sessions of one device: its own, and programs beside it that speak for it.
const PER_DEVICE: usize = 4;
/// Most that waits for one session.
const ORDERS: usize = 32;

impl Crowd {
    pub(super) fn new(most: usize) -> Self {
        Self { inner: Mutex::default(), most }
    }

    /// A new session, if there is room. It takes the place of one with the same key.
    pub(super) fn enter(&self, key: Key) -> Option<Place> {
        let mut inner = self.lock();
        if inner.closed {
            return None;
        }
        let named = !key.client_id.is_empty();
        let old = inner.sessions.iter().find(|(_, seat)| named && seat.key == key).map(|(number, _)| *number);
        if let Some(seat) = old.and_then(|number| inner.sessions.remove(&number)) {
            seat.cut(Reason::TakenOver);
        }
        if inner.sessions.len() >= self.most {
            return None;
        }
        let (orders, taken) = mpsc::channel(ORDERS);
        let (cut, cutting) = watch::channel(None);
        let number = inner.next;
        inner.next += 1;
        inner.sessions.insert(number, Seat { key, device: None, hears: false, orders, cut });
        Some(Place { number, orders: taken, cut: cutting })
    }

    /// A session is this device; its oldest gives way when it has too many.
    pub(super) fn bind(&self, number: u64, device: &DeviceId) {
        let mut inner = self.lock();
        if let Some(seat) = inner.sessions.get_mut(&number) {
            seat.device = Some(device.clone());
        }
        let of = |seat: &&Seat| seat.device.as_ref() == Some(device);
        if inner.sessions.values().filter(of).count() > PER_DEVICE
            && let Some(oldest) = inner.sessions.values().find(of)
        {
            oldest.cut(Reason::TakenOver);
        }
    }

    pub(super) fn hears(&self, number: u64, hears: bool) {
        if let Some(seat) = self.lock().sessions.get_mut(&number) {
            seat.hears = hears;
        }
    }

    pub(super) fn leave(&self, number: u64) {
        self.lock().sessions.remove(&number);
    }

    /// Where a device hears commands: in its newest session that does.
    pub(super) fn orders_of(&self, device: &DeviceId) -> Option<mpsc::Sender<Order>> {
        let inner = self.lock();
        let of = |seat: &&Seat| seat.hears && seat.device.as_ref() == Some(device);
        inner.sessions.values().rev().find(of).map(|seat| seat.orders.clone())
    }

    pub(super) fn orders(&self, number: u64) -> Option<mpsc::Sender<Order>> {
        self.lock().sessions.get(&number).map(|seat| seat.orders.clone())
    }

    /// Whether the device has an open session, and one that hears.
    pub(super) fn presence(&self, device: &DeviceId) -> (bool, bool) {
        let inner = self.lock();
        let of = |seat: &&Seat| seat.device.as_ref() == Some(device);
        let (mut open, mut hears) = (false, false);
        for seat in inner.sessions.values().filter(of) {
            (open, hears) = (true, hears | seat.hears);
        }
        (open, hears)
    }

    pub(super) fn cut_one(&self, number: u64, reason: Reason) {
        if let Some(seat) = self.lock().sessions.get(&number) {
            seat.cut(reason);
        }
    }

    /// Ends the sessions of a device; `None`: those of all, and opens none from now on.
    pub(super) fn cut(&self, device: Option<&DeviceId>, reason: Reason) {
        let mut inner = self.lock();
        inner.closed |= device.is_none();
        for seat in inner.sessions.values() {
            if device.is_none() || seat.device.as_ref() == device || seat.key.device.as_ref() == device {
                seat.cut(reason);
            }
        }
    }

    /// Ends the sessions that only say that they are this device's.
    pub(super) fn cut_unproven(&self, device: &DeviceId, reason: Reason) {
        let inner = self.lock();
        let of = |seat: &&Seat| seat.device.as_ref() == Some(device) && seat.key.device.is_none();
        inner.sessions.values().filter(of).for_each(|seat| seat.cut(reason));
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seat {
    fn cut(&self, reason: Reason) {
        self.cut.send_if_modified(|cut| {
            let first = cut.is_none();
            cut.get_or_insert(reason);
            first
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(client_id: &str) -> Key {
        Key { device: None, client_id: client_id.to_owned() }
    }

    fn device(id: &str) -> DeviceId {
        DeviceId::parse(id).unwrap()
    }

    #[test]
    fn a_newer_session_of_the_same_client_takes_the_place_also_when_all_are_taken() {
        let crowd = Crowd::new(2);
        let old = crowd.enter(key("a")).unwrap();
        let other = crowd.enter(key("b")).unwrap();
        assert!(crowd.enter(key("c")).is_none());
        let new = crowd.enter(key("a")).unwrap();
        assert_eq!(*old.cut.borrow(), Some(Reason::TakenOver));
        crowd.leave(old.number);
        assert_eq!((*new.cut.borrow(), *other.cut.borrow()), (None, None));
        crowd.leave(new.number);
        let nameless = [crowd.enter(key("")).unwrap(), other];
        assert!(nameless.iter().all(|place| place.cut.borrow().is_none()));
    }

    #[test]
    fn the_newest_session_that_hears_is_told_and_the_oldest_of_too_many_goes() {
        let crowd = Crowd::new(9);
        let shed = device("shed");
        let mut places: Vec<_> = (0..4).map(|n| crowd.enter(key(&n.to_string())).unwrap()).collect();
        for place in &places {
            crowd.bind(place.number, &shed);
        }
        assert!(crowd.orders_of(&shed).is_none());
        assert_eq!(crowd.presence(&shed), (true, false));
        crowd.hears(places[1].number, true);
        crowd.hears(places[2].number, true);
        crowd.orders_of(&shed).unwrap().try_send(Order::Ack(1)).unwrap();
        assert!(places[2].orders.try_recv().is_ok() && places[1].orders.try_recv().is_err());
        let fifth = crowd.enter(key("4")).unwrap();
        crowd.bind(fifth.number, &shed);
        assert_eq!(*places[0].cut.borrow(), Some(Reason::TakenOver));
        let proven = Key { device: Some(shed.clone()), client_id: "5".to_owned() };
        let proven = crowd.enter(proven).unwrap();
        crowd.bind(proven.number, &shed);
        crowd.cut(Some(&device("barn")), Reason::Kicked);
        crowd.cut_unproven(&device("barn"), Reason::Kicked);
        assert!(places[3].cut.borrow().is_none());
        crowd.cut_unproven(&shed, Reason::Kicked);
        assert_eq!((*places[3].cut.borrow(), *proven.cut.borrow()), (Some(Reason::Kicked), None));
        crowd.cut(Some(&shed), Reason::Kicked);
        assert_eq!(*proven.cut.borrow(), Some(Reason::Kicked));
        crowd.cut(None, Reason::Shutdown);
        assert!(crowd.enter(key("9")).is_none());
    }
}
