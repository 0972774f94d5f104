//! Every limit of the wire, each with its reason. A number that bounds an input lives here and nowhere else.

use std::time::Duration;

/// Largest MQTT packet a node may send, in bytes: bounds what one session can make the hub buffer.
pub const PACKET_BYTES: usize = 256 * 1024;
/// Most records in one batch: bounds the work of one decode (about 1 ms).
pub const BATCH_RECORDS: usize = 10_000;
/// Largest body that the column builder makes, in bytes: with its envelope it fits a packet even when nothing of it
/// compresses.
pub const SAMPLES_BYTES: usize = PACKET_BYTES - 32 * 1024;
/// Most cells (rows × series) that the columns of one batch may span, gaps included: a column of nothing but gaps
/// compresses to nothing, and reading it costs as much as a full one.
pub const BATCH_CELLS: usize = 1 << 18;
/// Largest payload after decompression, in bytes: a zstd bomb stops here.
pub const DECOMPRESSED_BYTES: usize = 16 * 1024 * 1024;
/// Largest zstd window a decoder accepts, as a power of two (8 MiB, what zstd's own default tools accept).
pub const ZSTD_WINDOW_LOG: u32 = 23;
/// Deepest CBOR nesting: our own payloads need 7.
pub const CBOR_DEPTH: usize = 16;
/// Most CBOR items (values, keys, tags) in one payload: an array header claiming millions is refused before
/// anything is allocated for it.
pub const CBOR_ITEMS: usize = 400_000;
/// Below this size, in bytes, a payload is sent as it is: a zstd frame would save nothing.
pub const COMPRESS_ABOVE_BYTES: usize = 200;
/// Level of the zstd frames that agents send: measured best ratio for its CPU on telemetry columns.
pub const ZSTD_LEVEL: i32 = 3;
/// Longest node id, in bytes: fits a DNS label, so it can be a host name and a certificate's common name.
pub const NODE_ID_BYTES: usize = 63;
/// Longest label key or value, metric name, unit, device id, in bytes.
pub const LABEL_BYTES: usize = 63;
/// Most labels a node may carry: they become columns of lists and selectors.
pub const LABELS_PER_NODE: usize = 32;
/// Most devices behind one node.
pub const DEVICES_PER_NODE: usize = 256;
/// Largest MQTT packet between a device and the agent's listener, in bytes: the buffer of a board in the field.
pub const DEVICE_PACKET_BYTES: usize = 512;
/// Most series (device, metric) of one node: bounds the hub's latest-value table.
pub const SERIES_PER_NODE: usize = 4_096;
/// Largest parameters of a command, in bytes.
pub const COMMAND_PARAMS_BYTES: usize = 64 * 1024;
/// Most output of a command that is kept, in bytes.
pub const COMMAND_OUTPUT_BYTES: usize = 64 * 1024;
/// Largest configuration of a node, in bytes of CBOR: fits a packet.
pub const CONFIG_BYTES: usize = 64 * 1024;
/// Longest command queue of a node.
pub const QUEUE_LENGTH: usize = 1_000;
/// Longest event message, in bytes.
pub const EVENT_MESSAGE_BYTES: usize = 4 * 1024;
/// Largest event data, in bytes of CBOR.
pub const EVENT_DATA_BYTES: usize = 32 * 1024;
/// Time a peer has to finish its TLS handshake.
pub const HANDSHAKE: Duration = Duration::from_secs(5);
/// Time a peer has to send CONNECT once it may.
pub const CONNECT: Duration = Duration::from_secs(5);
/// Most batches an agent may have in flight, whatever credit the hub gives.
pub const IN_FLIGHT_BATCHES: u32 = 16;
/// Streams a birth or heartbeat may list per lane: an agent that restarts in a loop drains the oldest first
/// and lists the others later.
pub const STREAMS_PER_LANE: usize = 64;
/// Drained streams per lane that an agent goes on listing although it holds nothing of them: a hub that was set back
/// learns from them what it is missing, and one that was not, that a storage was set back when they vanish.
pub const STREAMS_REMEMBERED: usize = STREAMS_PER_LANE / 2;
/// Digests of recent batches the hub keeps per stream, to tell a duplicate from a fork.
pub const DIGEST_WINDOW: usize = 32;
/// Longest topic, in bytes.
pub const TOPIC_BYTES: usize = 256;
/// Most levels of a topic.
pub const TOPIC_LEVELS: usize = 8;
/// Longest name, machine description or site, in bytes.
pub const TEXT_BYTES: usize = 256;
/// Most skills a node may announce.
pub const SKILLS_PER_NODE: usize = 256;
/// Most entries of what a node and the devices behind it run: every skill, the agent, the system, some devices; about
/// 40 kB, so that a birth still fits a packet.
pub const RUNNING_PER_NODE: usize = SKILLS_PER_NODE + 64;
/// Largest artifact, in bytes: a system image of a small machine.
pub const ARTIFACT_BYTES: u64 = 2 * 1024 * 1024 * 1024;
/// Largest file of signed metadata, in bytes: some ten thousand targets.
pub const METADATA_BYTES: usize = 4 * 1024 * 1024;
/// Most figures of the machine in one heartbeat.
pub const FIGURES_PER_NODE: usize = 128;
/// When this source was written (2026-08-01), Unix milliseconds: a clock that shows less is wrong.
pub const BUILT_MS: i64 = 1_785_542_400_000;
