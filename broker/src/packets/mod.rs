//! MQTT as bytes: frames out of a stream, packets out of frames, and back. Judges form only.
//!
//! Shared by the hub's gate and the agent's local front; knows neither.

pub(crate) mod connect;
pub(crate) mod encode;
pub(crate) mod frame;
pub(crate) mod wire;
