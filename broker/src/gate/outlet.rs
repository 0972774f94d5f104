//! The place where what is meant for a session waits, and how a session is opened and closed with it.
//!
//! Joins the sessions of nodes and of tools for `conn`, which serves both. Moves no bytes.

use std::{net::SocketAddr, sync::Arc, time::Instant};

use tokio::sync::Notify;

use crate::{
    gate::{
        Gate,
        admit::{self, Admitted, Guest},
        encode,
        frame::Frame,
        session::{Cut, Effects, Party, Session, tool::Tool},
        sessions, tools,
    },
    stats::Reason,
};

/// What waits for one session.
pub(crate) enum Outlet {
    Node(Arc<sessions::Outlet>),
    Tool(Arc<tools::Outlet>),
}

impl Outlet {
    /// Told when something was queued.
    pub(crate) fn wake(&self) -> &Notify {
        match self {
            Self::Node(outlet) => &outlet.wake,
            Self::Tool(outlet) => &outlet.wake,
        }
    }

    /// Why the session is to end, if it is.
    pub(crate) fn cut_due(&self) -> Option<Cut> {
        match self {
            Self::Node(outlet) => outlet.cut_due(),
            Self::Tool(outlet) => outlet.cut_due(),
        }
    }

    /// The session ended.
    pub(crate) fn close(&self, gate: &Gate, party: &Party) {
        match (self, party) {
            (Self::Node(outlet), Party::Node(node)) => {
                gate.sessions.close(node, outlet);
                gate.stats.sessions.sub(1);
            }
            (Self::Tool(outlet), Party::Tool(_)) => {
                gate.tools.close(outlet);
                gate.stats.tools.sub(1);
            }
            (Self::Node(_), Party::Tool(_)) | (Self::Tool(_), Party::Node(_)) => {}
        }
    }
}

/// The first packet of a connection: a session, or the refusal.
pub(crate) fn open(
    gate: &Arc<Gate>,
    peer: SocketAddr,
    frame: &Frame<'_>,
    now: Instant,
    effects: &mut Effects,
) -> Option<(Session, Outlet)> {
    // Whoever comes back while the old session still counts takes that one's place.
    let full = |guest: &Guest| match guest {
        Guest::Node(node) => gate.sessions.len() >= gate.max_sessions && !gate.sessions.has(node),
        Guest::Tool(key, _) => gate.tools.full(key),
    };
    let Admitted { guest, terms, server_keepalive } =
        match admit::admit(frame.body, peer, &*gate.directory, full) {
            Ok(admitted) => admitted,
            Err(refused) => {
                effects.write.extend_from_slice(&refused.answer);
                effects.end = Some(Some(refused.reason));
                return None;
            }
        };
    let mut assigned = None;
    let opened = match guest {
        Guest::Node(node) => {
            gate.sessions.open(&node).map(|outlet| (Party::Node(node), Outlet::Node(outlet)))
        }
        Guest::Tool(mut key, grants) => {
            if key.client_id.is_empty() {
                key.client_id = gate.tools.name();
                assigned = Some(key.client_id.clone());
            }
            let outlet = gate.tools.open(key.clone(), terms.version, terms.packet_max);
            let tool = Tool::new(key, grants, gate.max_tool_filters);
            outlet.map(|outlet| (Party::Tool(Box::new(tool)), Outlet::Tool(outlet)))
        }
    };
    let Some((party, outlet)) = opened else {
        effects.end = Some(Some(Reason::Shutdown));
        return None;
    };
    let (count, total) = match &party {
        Party::Node(_) => (&gate.stats.sessions, &gate.stats.sessions_opened),
        Party::Tool(_) => (&gate.stats.tools, &gate.stats.tools_opened),
    };
    count.add(1);
    total.add(1);
    encode::welcome(&mut effects.write, terms.version, server_keepalive, assigned.as_deref());
    Some((Session::new(party, terms, now), outlet))
}
