//! The place where what is meant for a session waits, and how a session is opened and closed with it.
//!
//! Joins the sessions of nodes and of tools for `conn`, which serves both. Moves no bytes.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use crate::{
    PublishLimit,
    gate::{
        Gate,
        admit::{self, Admitted, Guest},
        encode::{self, Welcome},
        pace::Pace,
        session::{Cut, Effects, Party, Session, tool::Tool},
        sessions::{self, NotOpened},
        tools,
    },
    identity::{Identity, Refusal},
    stats::Reason,
};

/// What waits for one session.
pub(crate) enum Outlet {
    Node(Arc<sessions::Outlet>),
    Tool(Arc<tools::Outlet>),
}

/// A session that has begun.
pub(crate) struct Opened {
    pub(crate) session: Session,
    pub(crate) outlet: Outlet,
    pub(crate) pace: Pace,
    /// How long the peer's socket may take nothing of what waits for it.
    pub(crate) patience: Duration,
}

impl Opened {
    /// How fast it may publish.
    pub(crate) fn limit<'a>(&self, gate: &'a Gate) -> &'a PublishLimit {
        match &self.outlet {
            Outlet::Node(_) => &gate.publish_limit,
            Outlet::Tool(_) => &gate.talk.limit,
        }
    }
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

    /// Whether a node lost messages since it last took one.
    pub(crate) fn overflowed(&self) -> bool {
        match self {
            Self::Node(outlet) => outlet.overflowed(),
            Self::Tool(_) => false,
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

/// The first packet of a connection, whose sender is known: a session, or the refusal.
pub(crate) fn open(
    gate: &Arc<Gate>,
    body: &[u8],
    identity: Result<Identity, Refusal>,
    now: Instant,
    effects: &mut Effects,
) -> Option<Opened> {
    // Whoever comes back while the old session still counts takes that one's place.
    let full = |guest: &Guest| match guest {
        Guest::Node(node) => gate.sessions.len() >= gate.max_sessions && !gate.sessions.has(node),
        Guest::Tool(key, _) => gate.tools.full(key),
    };
    let Admitted { guest, terms, server_keepalive } = match admit::admit(body, identity, full) {
        Ok(admitted) => admitted,
        Err(refused) => {
            refused.say(effects);
            return None;
        }
    };
    let mut assigned = None;
    let opened = match guest {
        Guest::Node(node) => match gate.sessions.open(&node, now) {
            Ok(outlet) => Some((Party::Node(node), Outlet::Node(outlet))),
            Err(NotOpened::Closed) => None,
            Err(NotOpened::Rivals) => {
                admit::held_off(terms.version).say(effects);
                return None;
            }
        },
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
    let tool = matches!(party, Party::Tool(_));
    let welcome = Welcome { keepalive: server_keepalive, assigned: assigned.as_deref(), tool };
    encode::welcome(&mut effects.write, terms.version, welcome);
    let patience = terms.keepalive * 3 / 2;
    Some(Opened { session: Session::new(party, terms, now), outlet, pace: Pace::new(now), patience })
}
