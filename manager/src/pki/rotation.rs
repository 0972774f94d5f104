//! When keys change, decided: what is due of a hub's authorities and of its server certificate.
//!
//! Pure: knows times and pins, no keys. A CA lives through four stages: it signs everything; its successor signs the
//! certificates of nodes while it still signs the hub's own; the successor signs that too; it is dropped when the last
//! certificate it signed has ended.

use fleet_schemas::enrol::Pin;

use crate::core::time::millis;
use std::time::Duration;

const DAY: Duration = Duration::from_secs(24 * 3600);
/// Life of a CA.
pub const AUTHORITY_LIFE: Duration = DAY.saturating_mul(20 * 365);
/// A CA with less left than this is replaced: by then its successor has to be known to every board.
const AUTHORITY_REST: Duration = DAY.saturating_mul(2 * 365);
/// Life of the server's certificate.
pub const SERVER_LIFE: Duration = DAY.saturating_mul(90);
/// Life of a node's certificate.
pub const NODE_LIFE: Duration = DAY.saturating_mul(30);
/// Life of a tool's certificate: somebody copies it by hand.
pub const TOOL_LIFE: Duration = DAY.saturating_mul(365);
/// How long the hub waits for nodes that do not come for a certificate of the new CA. Longer than a certificate lives:
/// whoever is missing by then has been away for weeks.
pub const PATIENCE: Duration = DAY.saturating_mul(45);
/// Most CAs that are trusted at once.
pub const AUTHORITIES: usize = 4;

/// A CA.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Authority {
    /// Names it.
    pub pin: Pin,
    /// When it was made, Unix milliseconds.
    pub made_ms: i64,
    /// When it ends, Unix milliseconds.
    pub not_after_ms: i64,
    /// When its successor took over the signing of nodes, Unix milliseconds.
    pub retired_ms: Option<i64>,
    /// Whether it has signed a tool's certificate.
    pub tools: bool,
}

/// The server's certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Server {
    /// The CA that signed it.
    pub by: Pin,
    /// When it was made, Unix milliseconds.
    pub made_ms: i64,
    /// When it ends, Unix milliseconds.
    pub not_after_ms: i64,
}

/// What is there: the CAs, oldest first, never none; the last one signs for nodes and tools.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ring {
    /// The CAs.
    pub authorities: Vec<Authority>,
    /// The server's certificate.
    pub server: Server,
}

/// What is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Make a CA; it signs for nodes and tools from now on.
    MakeAuthority,
    /// Make a server certificate, signed by this CA.
    MakeServer(Pin),
    /// Trust this CA no more.
    Drop(Pin),
}

/// Where a change of the CA stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// One CA signs everything.
    Settled,
    /// Nodes are given certificates of the new CA; the hub shows one of the old.
    Moving,
    /// The hub shows a certificate of the new CA; the old one is still trusted.
    Draining,
}

impl Ring {
    /// The CA that signs for nodes and tools.
    #[must_use]
    pub fn signer(&self) -> &Authority {
        self.authorities.last().expect("a ring has a CA")
    }

    /// Where a change of the CA stands.
    #[must_use]
    pub fn stage(&self) -> Stage {
        if self.server.by != self.signer().pin {
            Stage::Moving
        } else if self.authorities.len() > 1 {
            Stage::Draining
        } else {
            Stage::Settled
        }
    }

    /// What is due at `now_ms`, one step at a time. `waiting`: nodes whose certificate is not the newest CA's.
    #[must_use]
    pub fn due(&self, waiting: usize, now_ms: i64) -> Option<Step> {
        let signer = self.signer();
        match self.stage() {
            Stage::Moving => {
                let patience = signer.made_ms.saturating_add(millis(PATIENCE));
                if waiting == 0 || patience <= now_ms {
                    return Some(Step::MakeServer(signer.pin));
                }
            }
            Stage::Draining => {
                let over = |authority: &&Authority| authority.over_ms().is_some_and(|over| over <= now_ms);
                if let Some(over) = self.authorities.iter().find(over) {
                    return Some(Step::Drop(over.pin));
                }
            }
            Stage::Settled if signer.not_after_ms.saturating_sub(millis(AUTHORITY_REST)) <= now_ms => {
                return Some(Step::MakeAuthority);
            }
            Stage::Settled => {}
        }
        let Server { by, made_ms, not_after_ms } = self.server;
        let two_thirds = made_ms.saturating_add(not_after_ms.saturating_sub(made_ms) / 3 * 2);
        // Made by a clock that was ahead: whoever looks at the time would refuse it.
        let ahead = made_ms > now_ms.saturating_add(millis(DAY));
        (two_thirds <= now_ms || ahead).then_some(Step::MakeServer(by))
    }

    /// What an operator's `rotate ca` does, if it can be done now.
    #[must_use]
    pub fn rotate(&self) -> Option<Step> {
        let room = self.stage() != Stage::Moving && self.authorities.len() < AUTHORITIES;
        room.then_some(Step::MakeAuthority)
    }

    /// What an operator's `rotate ca --finish` does: the hub shows the new CA without waiting for anybody; asked again,
    /// it trusts the old one no more.
    #[must_use]
    pub fn finish(&self) -> Option<Step> {
        match self.stage() {
            Stage::Settled => None,
            Stage::Moving => Some(Step::MakeServer(self.signer().pin)),
            Stage::Draining => self.authorities.first().map(|oldest| Step::Drop(oldest.pin)),
        }
    }
}

impl Authority {
    /// When the last certificate it signed has ended; none while it signs.
    fn over_ms(&self) -> Option<i64> {
        let life = if self.tools { TOOL_LIFE } else { NODE_LIFE };
        self.retired_ms.map(|at| at.saturating_add(millis(life)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: i64 = 1_800_000_000_000;

    fn days(days: u32) -> i64 {
        START + millis(DAY * days)
    }

    fn authority(n: u8, made_ms: i64) -> Authority {
        let not_after_ms = made_ms + millis(AUTHORITY_LIFE);
        Authority { pin: Pin([n; 32]), made_ms, not_after_ms, retired_ms: None, tools: false }
    }

    fn server(by: u8, made_ms: i64) -> Server {
        Server { by: Pin([by; 32]), made_ms, not_after_ms: made_ms + millis(SERVER_LIFE) }
    }

    fn moving() -> Ring {
        let old = Authority { retired_ms: Some(START), ..authority(1, START - millis(DAY)) };
        Ring { authorities: vec![old, authority(2, START)], server: server(1, START) }
    }

    #[test]
    fn a_server_certificate_is_renewed_at_two_thirds_of_its_life() {
        let ring = Ring { authorities: vec![authority(1, START)], server: server(1, START) };
        assert_eq!(ring.stage(), Stage::Settled);
        assert_eq!(ring.due(0, days(59)), None);
        assert_eq!(ring.due(0, days(60)), Some(Step::MakeServer(Pin([1; 32]))));
    }

    #[test]
    fn a_server_certificate_of_a_clock_that_was_ahead_is_made_anew() {
        let ring = Ring { authorities: vec![authority(1, START)], server: server(1, days(3650)) };
        assert_eq!(ring.due(0, START), Some(Step::MakeServer(Pin([1; 32]))));
    }

    #[test]
    fn the_hub_shows_the_new_ca_when_every_node_has_its_certificate() {
        let ring = moving();
        assert_eq!((ring.stage(), ring.signer().pin), (Stage::Moving, Pin([2; 32])));
        assert_eq!((ring.due(1, days(40)), ring.rotate()), (None, None));
        assert_eq!(ring.due(0, START), Some(Step::MakeServer(Pin([2; 32]))));
    }

    #[test]
    fn a_node_that_never_comes_holds_up_a_change_for_a_while_only() {
        let ring = Ring { server: server(1, days(40)), ..moving() };
        assert_eq!(ring.due(1, days(44)), None);
        assert_eq!(ring.due(1, days(45)), Some(Step::MakeServer(Pin([2; 32]))));
        assert_eq!(ring.finish(), Some(Step::MakeServer(Pin([2; 32]))));
    }

    #[test]
    fn while_nodes_move_the_server_certificate_is_renewed_by_the_old_ca() {
        assert_eq!(
            Ring { server: server(1, START - millis(DAY * 61)), ..moving() }.due(3, START),
            Some(Step::MakeServer(Pin([1; 32])))
        );
    }

    #[test]
    fn an_old_ca_is_trusted_until_the_last_certificate_it_signed_has_ended() {
        let mut ring = Ring { server: server(2, days(1)), ..moving() };
        assert_eq!(ring.stage(), Stage::Draining);
        assert_eq!(ring.due(0, days(29)), None);
        assert_eq!(ring.due(0, days(30)), Some(Step::Drop(Pin([1; 32]))));
        assert_eq!(ring.finish(), Some(Step::Drop(Pin([1; 32]))));
        ring.authorities[0].tools = true;
        ring.server = server(2, days(320));
        assert_eq!(ring.due(0, days(364)), None);
        assert_eq!(ring.due(0, days(365)), Some(Step::Drop(Pin([1; 32]))));
    }

    #[test]
    fn a_ca_is_replaced_two_years_before_its_end() {
        let late = START + millis(AUTHORITY_LIFE - AUTHORITY_REST);
        let ring = Ring { authorities: vec![authority(1, START)], server: server(1, late) };
        assert_eq!(ring.due(0, late - 1), None);
        assert_eq!(ring.due(0, late), Some(Step::MakeAuthority));
        assert_eq!(ring.finish(), None);
    }

    #[test]
    fn changes_of_the_ca_do_not_pile_up() {
        let old = |n| Authority { retired_ms: Some(START), ..authority(n, START) };
        let authorities = vec![old(1), old(2), old(3), authority(4, START)];
        let ring = Ring { authorities, server: server(4, START) };
        assert_eq!((ring.stage(), ring.rotate()), (Stage::Draining, None));
    }
}
