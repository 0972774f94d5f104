//! Rows of devices behind nodes.

use fleet_schemas::{DeviceId, cbor, limits};
use redb::{ReadableDatabase, ReadableTable as _, TableDefinition, WriteTransaction};

use super::{Error, StateStore, decode, store};
use crate::core::{
    devices::{Changes, Device},
    fleet::NodeNo,
};

// (node, device id) → CBOR `Device`. At most 256 a node, rewritten when the node reports the device.
const DEVICES: TableDefinition<'_, (u32, &str), &[u8]> = TableDefinition::new("devices");

pub(super) fn open(write: &WriteTransaction) -> Result<(), Error> {
    write.open_table(DEVICES).map(drop).map_err(store)
}

/// Copies every table of this room.
pub(super) fn copy(copier: &mut crate::store::moment::Copier<'_>) -> Result<(), crate::store::moment::Cut> {
    copier.table(DEVICES)
}

pub(super) fn apply(write: &WriteTransaction, changes: &Changes, removed: &[NodeNo]) -> Result<(), Error> {
    if changes.is_empty() && removed.is_empty() {
        return Ok(());
    }
    let mut devices = write.open_table(DEVICES).map_err(store)?;
    for (node, id, device) in changes {
        let key = (*node, id.as_str());
        let Some(device) = device else {
            devices.remove(key).map_err(store)?;
            continue;
        };
        let known = devices.get(key).map_err(store)?.is_some();
        // An agent keeps to the limit; what another program makes of it must not grow without end.
        let count = || devices.range((*node, "")..(node.saturating_add(1), "")).map(Iterator::count);
        if known || count().map_err(store)? < limits::DEVICES_PER_NODE {
            devices.insert(key, cbor::encode(device).as_slice()).map_err(store)?;
        }
    }
    for node in removed {
        devices.retain_in((*node, "")..(node.saturating_add(1), ""), |_, _| false).map_err(store)?;
    }
    Ok(())
}

impl StateStore {
    /// The devices that a node reported, by id.
    ///
    /// # Errors
    /// [`Error`].
    pub fn devices(&self, node: NodeNo) -> Result<Vec<(DeviceId, Device)>, Error> {
        let read = self.db.begin_read().map_err(store)?;
        let table = read.open_table(DEVICES).map_err(store)?;
        let mut found = Vec::new();
        for row in table.range((node, "")..(node.saturating_add(1), "")).map_err(store)? {
            let (key, value) = row.map_err(store)?;
            let id = DeviceId::parse(key.value().1).map_err(|error| Error::Damaged(error.to_string()))?;
            found.push((id, decode(value.value(), "a device")?));
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use fleet_schemas::{
        StoreId,
        device::{Report, State},
    };

    use super::*;
    use crate::store::{disk::Memory, state::Commit};

    fn device(id: &str, state: State) -> (DeviceId, Option<Device>) {
        let id = DeviceId::parse(id).unwrap();
        let report = Report {
            device: id.clone(),
            state,
            kind: None,
            name: None,
            firmware: None,
            capabilities: Vec::new(),
            heartbeat_ms: None,
            sleep_ms: None,
            until_ms: None,
            last_seen_ms: Some(5),
            unsequenced: true,
        };
        (id, Some(Device { report, at_ms: 6, recv_ms: 7 }))
    }

    fn commit(rows: Vec<(NodeNo, (DeviceId, Option<Device>))>) -> Commit {
        let devices = rows.into_iter().map(|(node, (id, device))| (node, id, device)).collect();
        Commit { devices, ..Commit::default() }
    }

    #[test]
    fn the_last_report_of_each_device_is_kept_and_no_more_than_the_limit() {
        let disk = Memory::default();
        let state = StateStore::open(&disk, StoreId([3; 16])).unwrap();
        let rows = vec![
            (7, device("a", State::Online)),
            (7, device("b", State::Online)),
            (8, device("a", State::Late)),
            (7, device("a", State::Offline)),
            (7, (DeviceId::parse("b").unwrap(), None)),
        ];
        state.apply(&commit(rows)).unwrap();
        drop(state);
        let state = StateStore::open(&disk, StoreId([9; 16])).unwrap();
        let (id, expected) = device("a", State::Offline);
        assert_eq!(state.devices(7).unwrap(), [(id, expected.unwrap())]);
        let many = (0..300).map(|n| (9, device(&n.to_string(), State::Online))).collect();
        state.apply(&commit(many)).unwrap();
        assert_eq!(state.devices(9).unwrap().len(), limits::DEVICES_PER_NODE);
        state.apply(&Commit { removed: vec![9], ..Commit::default() }).unwrap();
        assert_eq!(state.devices(9).unwrap(), []);
        assert_eq!(state.devices(8).unwrap().len(), 1);
    }
}
