//! The caps on connections: how many there may be, in all and from one address, and who makes room.
//!
//! A connection without a session is *pending*. Pending ones have caps of their own, and above them the newest gets
//! in and the oldest of the address that has the most goes: who floods the gate pays for it, and a node that comes
//! back does not. Counts only; the connection watches its [`Slot`].

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

use crate::stats::{Reason, Stats};

/// Counts open connections.
pub(crate) struct Caps {
    open: Mutex<Open>,
    limits: Limits,
    stats: Arc<Stats>,
}

/// How many there may be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Connections in all.
    pub(crate) total: usize,
    /// Pending ones in all.
    pub(crate) pending: usize,
    /// Pending ones from one address.
    pub(crate) pending_per_address: usize,
}

#[derive(Default)]
struct Open {
    total: usize,
    pending: usize,
    next: u64,
    by_address: HashMap<IpAddr, Here>,
    /// Addresses with pending connections: the last one has the most of them, and of equals the oldest.
    ranks: BTreeSet<Rank>,
}

/// The connections of one address.
#[derive(Default)]
struct Here {
    all: usize,
    /// By age.
    pending: BTreeMap<u64, Arc<Notify>>,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    pending: usize,
    oldest: std::cmp::Reverse<u64>,
    address: IpAddr,
}

/// One counted connection; dropping it gives the place back.
pub(crate) struct Slot {
    caps: Arc<Caps>,
    address: IpAddr,
    /// While it is pending: its number, and what tells it to go.
    pending: Option<(u64, Arc<Notify>)>,
}

impl Caps {
    pub(crate) fn new(limits: Limits, stats: Arc<Stats>) -> Self {
        Self { open: Mutex::default(), limits, stats }
    }

    /// Counts a new, pending connection of an address that may have `per_address` of them, unless a cap is reached.
    pub(crate) fn enter(self: &Arc<Self>, address: IpAddr, per_address: usize) -> Result<Slot, Reason> {
        let address = neighbourhood(address);
        let mut open = lock(&self.open);
        if open.total >= self.limits.total {
            return Err(Reason::Busy);
        }
        let here = open.by_address.entry(address).or_default();
        if here.all >= per_address {
            return Err(Reason::AddressBusy);
        }
        let waiting = here.pending.len();
        here.all += 1;
        open.total += 1;
        self.stats.connections.add(1);
        if waiting >= self.limits.pending_per_address {
            open.crowd_out(address);
        } else if open.pending >= self.limits.pending {
            open.crowd_out_worst();
        }
        let go = Arc::new(Notify::new());
        let number = open.next;
        open.next += 1;
        open.change(address, |pending| drop(pending.insert(number, go.clone())));
        Ok(Slot { caps: self.clone(), address, pending: Some((number, go)) })
    }

    /// Tells up to `count` pending connections to go; says how many there were.
    pub(crate) fn crowd_out(&self, count: usize) -> usize {
        let mut open = lock(&self.open);
        (0..count).take_while(|_| open.crowd_out_worst()).count()
    }
}

impl Open {
    /// Changes the pending connections of an address, and its rank with them.
    fn change(&mut self, address: IpAddr, change: impl FnOnce(&mut BTreeMap<u64, Arc<Notify>>)) {
        let Some(here) = self.by_address.get_mut(&address) else { return };
        if let Some(rank) = here.rank(address) {
            self.ranks.remove(&rank);
        }
        self.pending -= here.pending.len();
        change(&mut here.pending);
        self.pending += here.pending.len();
        self.ranks.extend(here.rank(address));
    }

    fn crowd_out(&mut self, address: IpAddr) {
        self.change(address, |pending| {
            if let Some((_, go)) = pending.pop_first() {
                go.notify_one();
            }
        });
    }

    fn crowd_out_worst(&mut self) -> bool {
        let Some(address) = self.ranks.last().map(|rank| rank.address) else { return false };
        self.crowd_out(address);
        true
    }
}

impl Here {
    fn rank(&self, address: IpAddr) -> Option<Rank> {
        let (oldest, _) = self.pending.first_key_value()?;
        Some(Rank { pending: self.pending.len(), oldest: std::cmp::Reverse(*oldest), address })
    }
}

impl Slot {
    /// The connection has a session now. One that was told to go in this very moment may stay.
    pub(crate) fn settle(&mut self) {
        if let Some((number, _)) = self.pending.take() {
            lock(&self.caps.open).change(self.address, |pending| drop(pending.remove(&number)));
        }
    }

    /// Ends when a pending connection has to go; never for another.
    pub(crate) async fn crowded_out(&self) {
        match &self.pending {
            Some((_, go)) => go.notified().await,
            None => std::future::pending().await,
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.settle();
        let mut open = lock(&self.caps.open);
        open.total -= 1;
        self.caps.stats.connections.sub(1);
        if let Some(here) = open.by_address.get_mut(&self.address) {
            here.all -= 1;
            if here.all == 0 {
                open.by_address.remove(&self.address);
            }
        }
    }
}

/// What counts as one address: with IPv6 a customer has a /64 (RFC 6177).
pub(crate) fn neighbourhood(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX))),
        v4 @ IpAddr::V4(_) => v4,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::runtime;

    use super::*;
    use crate::clock;

    fn caps(total: usize, pending: usize, pending_per_address: usize) -> Arc<Caps> {
        let stats = Arc::new(Stats::new(clock::now()));
        Arc::new(Caps::new(Limits { total, pending, pending_per_address }, stats))
    }

    fn address(n: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, n])
    }

    /// Whether it was told to go.
    fn gone(slot: &Slot) -> bool {
        let runtime = runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            tokio::select! {
                biased;
                () = slot.crowded_out() => true,
                () = std::future::ready(()) => false,
            }
        })
    }

    #[test]
    fn who_has_the_most_pending_connections_makes_room_with_the_oldest() {
        let caps = caps(100, 4, 3);
        let node = caps.enter(address(1), 100).unwrap();
        let flood: Vec<_> = (0..3).map(|_| caps.enter(address(2), 100).unwrap()).collect();
        let other = caps.enter(address(3), 100).unwrap();
        assert!(gone(&flood[0]) && ![&flood[1], &flood[2], &node, &other].into_iter().any(gone));
        let more = caps.enter(address(2), 100).unwrap();
        assert!(gone(&flood[1]) && !gone(&node) && !gone(&more), "its own share is used up");
        assert_eq!(caps.crowd_out(100), 4);
        assert!(gone(&node) && gone(&other));
        assert_eq!(caps.stats.connections.get(), 6, "they count until they are gone");
    }

    #[test]
    fn a_settled_connection_never_makes_room_but_counts() {
        let caps = caps(3, 1, 1);
        let mut session = caps.enter(address(1), 2).unwrap();
        session.settle();
        let mut late = caps.enter(address(1), 2).unwrap();
        assert_eq!(caps.enter(address(1), 2).err(), Some(Reason::AddressBusy));
        let _newer = caps.enter(address(2), 2).unwrap();
        assert!(gone(&late) && !gone(&session));
        late.settle();
        assert_eq!(caps.enter(address(3), 2).err(), Some(Reason::Busy));
        drop(late);
        assert!(caps.enter(address(1), 2).is_ok());
    }

    #[test]
    fn one_ipv6_customer_is_one_address() {
        let of = |text: &str| neighbourhood(text.parse().unwrap());
        assert_eq!(of("2001:db8:1:2:3::4"), of("2001:db8:1:2:ffff::"));
        assert_ne!(of("2001:db8:1:2::"), of("2001:db8:1:3::"));
        assert_eq!(of("::ffff:10.1.2.3"), of("10.1.2.3"));
    }

    proptest! {
        #[test]
        fn counts_come_back_to_nothing(steps in proptest::collection::vec((0_u8..4, 0_u8..4, 0_usize..8), 0..60)) {
            let caps = caps(12, 5, 3);
            let mut slots: Vec<Slot> = vec![];
            for (step, from, at) in steps {
                match step {
                    0 | 1 => slots.extend(caps.enter(address(from), 6)),
                    2 if at < slots.len() => slots[at].settle(),
                    _ if at < slots.len() => drop(slots.swap_remove(at)),
                    _ => {}
                }
                let open = lock(&caps.open);
                let pending: usize = open.by_address.values().map(|here| here.pending.len()).sum();
                prop_assert!(open.pending == pending && pending <= 5 && open.total == slots.len());
                prop_assert!(open.by_address.values().all(|here| here.pending.len() <= 3));
                prop_assert_eq!(open.ranks.len(), open.by_address.values().filter(|here| !here.pending.is_empty()).count());
            }
            slots.clear();
            let open = lock(&caps.open);
            prop_assert!(open.total == 0 && open.pending == 0 && open.by_address.is_empty() && open.ranks.is_empty());
        }
    }
}
