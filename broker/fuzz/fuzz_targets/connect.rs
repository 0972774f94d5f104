//! See `fleet_broker::fuzz::connect`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fleet_broker::fuzz::connect(bytes));
