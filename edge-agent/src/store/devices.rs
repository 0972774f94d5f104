//! The device table of the outbox's file: in the same file as the outbox, so that a change and its event are one
//! transaction.
//!
//! A row is the first 8 bytes of the SHA-256 of the rest, then CBOR, as those of commands. A damaged one is left out: the
//! device's next word makes it anew.

use fleet_schemas::{DeviceId, limits};
use redb::{ReadableTable, TableDefinition, WriteTransaction};

use super::{
    commands::{decode, encode},
    outbox::Error,
};
use crate::core::devices::{Change, Device};

// Device id → `Device`. At most 256 rows, rewritten when something of the device changes.
const DEVICES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("devices");

pub(super) fn apply(write: &WriteTransaction, change: &Change) -> Result<(), Error> {
    let mut devices = write.open_table(DEVICES)?;
    match change {
        Change::Put(device) => drop(devices.insert(device.id.as_str(), encode(device).as_slice())?),
        Change::Remove(id) => drop(devices.remove(id.as_str())?),
    }
    Ok(())
}

pub(super) fn find(write: &WriteTransaction) -> Result<Vec<Device>, Error> {
    let mut found = Vec::new();
    for row in write.open_table(DEVICES)?.iter()?.take(limits::DEVICES_PER_NODE) {
        let (id, row) = row?;
        // Under its own key, or it could not be removed.
        let device = decode::<Device>(row.value()).ok().filter(|device| device.id.as_str() == id.value());
        found.extend(device.filter(|device| device.id != DeviceId::node()));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ciborium::Value;
    use fleet_schemas::{batch::Clock, cbor};

    use super::*;
    use crate::{
        core::{
            Now,
            devices::{Devices, Policy, Register, Sight},
        },
        store::{
            outbox::{Outbox, Write},
            sim_disk::SimFile,
        },
    };

    fn device(id: &str) -> Device {
        let policy = Policy { register: Register::Auto, heartbeat: Duration::ZERO };
        let now = Now { wall_ms: 5, up: Duration::from_secs(1), clock: Clock::Synced };
        let mut devices = Devices::found(policy, Vec::new(), now);
        let id = DeviceId::parse(id).unwrap();
        devices.see(&id, &Sight { unsequenced: true, ..Sight::default() }, now).unwrap();
        devices.get(&id).unwrap().clone()
    }

    #[test]
    fn devices_survive_until_they_are_removed() {
        let disk = SimFile::new();
        let (outbox, found) = Outbox::open(disk.backend()).unwrap();
        assert_eq!(found.devices, []);
        let put = |id| Write::Device(Change::Put(Box::new(device(id))));
        outbox.apply(&[put("a"), put("b")]).unwrap();
        outbox.apply(&[Write::Device(Change::Remove(DeviceId::parse("a").unwrap()))]).unwrap();
        drop(outbox);
        let (_, found) = Outbox::open(disk.backend()).unwrap();
        assert_eq!(found.devices, [device("b")]);
    }

    #[test]
    fn rows_keep_their_format() {
        let row = encode(&device("a"));
        assert_eq!(decode::<Device>(&row), Ok(device("a")));
        let read: Value = cbor::decode(&row[8..]).unwrap();
        let keys: Vec<_> = read.as_map().unwrap().iter().map(|(key, _)| key.as_text().unwrap()).collect();
        let expected = [
            "id",
            "kind",
            "name",
            "firmware",
            "capabilities",
            "heartbeat_ms",
            "schedule_ms",
            "explicit",
            "unsequenced",
            "state",
            "since_ms",
            "sleep_ms",
            "until_ms",
            "registered_ms",
            "last_seen_ms",
        ];
        assert_eq!(keys, expected);
    }
}
