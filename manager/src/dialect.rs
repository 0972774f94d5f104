//! Drop-in for agents that are in the field already: what they say over HTTP, in their own words, becomes what an agent
//! of ours would say on the bus; they are nodes as any other.
//!
//! | who | paths | told by | answered |
//! |---|---|---|---|
//! | PicClaw and the handler branch | `/fleet/…` | `node_id` | 200, `{node_id, status, …, commands_pending}` |
//! | forks | `/fleet/…` | `id` or `metrics` | 201 for what is made; lists bare; `online\|degraded\|offline` |
//! | the proposed OpenAPI | `/api/v1/fleet/…` | the path | `{status, next_heartbeat_seconds, commands_pending}`, …; `online\|offline\|down` |
//! | MoltClaw | either | `agentId` | `{success: true, ack: true}` |
//! | NanoClaw | `/report`, `/batch` | the path | 201 `{status: "accepted", node_id, buffer_size}` |
//!
//! Below `/fleet` and `/api/v1/fleet`: POST `register`, `heartbeat`, `events`, `genes/publish`, `command` (or GET),
//! `command/ack`; GET `nodes`, `nodes/{id}`. Every spelling of a field is taken on every path; ids lose their capitals.
//!
//! - **Who.** `Authorization: Bearer TOKEN`, a token of `fleet field-token create` or the text of a join token; it
//!   serves the first node that comes with it ([`crate::core::identity::Brought`]). An operator's token sees the list of
//!   nodes, a field token its own node. There is no way in without a token.
//! - **What is answered is stored.** 2xx comes after the commit; 503 means that nobody can tell, and a repeated request
//!   may store the same twice: such records carry no sequence. Their stream says so
//!   ([`fleet_schemas::StreamId::is_unsequenced`]), their events have `data.unsequenced`, and `machine.sequence` of the
//!   node does. One stream a node goes on over restarts of the hub, with the numbers that are committed.
//! - **Times** of the agent are kept while they can be true (at most five minutes ahead, a year back); else the hub's
//!   are taken and an event has `data.reported_ms`.
//! - **Readings** (`sensor_reading` events with a number, NanoClaw's, and the numbers of heartbeats) are samples; a
//!   reading above `info` is an event too.
//! - **Commands** are given to whoever asks, see `commands`.
//!
//! Not accepted: bodies over 256 KiB, more than 100 events (413) or 1,000 readings, no JSON (400), wrong fields (422 with
//! a pointer), pushes of commands to a node's own port, MicroClaw's MQTT topics (they are for the agent's own listener).

mod commands;
pub(crate) mod family;
mod genes;
mod pace;
pub(crate) mod read;
mod refusal;
mod room;
mod routes;
pub(crate) mod said;
mod seal;
mod stand_in;
#[cfg(test)]
mod tests;

pub use room::Room;
pub use routes::router;
