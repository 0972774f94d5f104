//! The figures of a node's last heartbeat that lists show. Pure.

use crate::api::shapes::Node;

/// Use of the processor, in percent.
#[must_use]
pub(crate) fn cpu(node: &Node) -> Option<f64> {
    node.system.get("cpu_percent").copied()
}

/// Use of memory, in percent.
#[must_use]
pub(crate) fn mem(node: &Node) -> Option<f64> {
    share(node, "mem_used_bytes", "mem_total_bytes")
}

/// Use of the disk, in percent.
#[must_use]
pub(crate) fn disk(node: &Node) -> Option<f64> {
    share(node, "disk_used_bytes", "disk_total_bytes")
}

/// Load over one minute.
#[must_use]
pub(crate) fn load(node: &Node) -> Option<f64> {
    node.system.get("load1").copied()
}

fn share(node: &Node, part: &str, whole: &str) -> Option<f64> {
    let whole = node.system.get(whole).copied().filter(|whole| *whole > 0.0)?;
    Some(node.system.get(part)? / whole * 100.0)
}
