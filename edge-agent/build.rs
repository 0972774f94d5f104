//! Compiles `schemas/edge.proto` into the types of the gRPC API, without protoc.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;

const SCHEMAS: &str = "../schemas";
const PROTO: &str = "edge.proto";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={SCHEMAS}/{PROTO}");
    let descriptors = protox::compile([PROTO], [SCHEMAS])?;
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    // What the reflection service serves.
    fs::write(out.join("edge.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .build_transport(false)
        .codec_path("crate::api::grpc::codec::Bounded")
        .compile_fds(descriptors)?;
    // A package with an opt-level of its own gets `strip = "debuginfo"`, whatever the profile says: two megabytes of names.
    if env::var("PROFILE").is_ok_and(|profile| profile == "release") {
        println!("cargo::rustc-link-arg-bins=-Wl,--strip-all");
    }
    Ok(())
}
