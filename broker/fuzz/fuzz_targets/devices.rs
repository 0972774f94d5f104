//! See `fleet_broker::fuzz::devices`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fleet_broker::fuzz::devices(bytes));
