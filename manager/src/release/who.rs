//! Which node may have which artifact. Pure.

use fleet_schemas::{
    NodeId,
    update::{self, Digest, Order},
};

use crate::core::fleet::Fleet;

/// Whether a node may have an artifact: a command that is open orders it, or the node runs it already.
#[must_use]
pub fn may_have(fleet: &Fleet, node: &NodeId, digest: &Digest) -> bool {
    let Some(known) = fleet.nodes.get(node) else { return false };
    if known.record.versions.running.iter().any(|running| running.digest == *digest) {
        return true;
    }
    fleet.commands.open_at(known.number).iter().any(|open| {
        let command = &open.command;
        command.kind.as_str() == update::COMMAND
            && command.params.deserialized::<Order>().is_ok_and(|order| order.digest == *digest)
    })
}
