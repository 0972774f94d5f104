//! Compiles `schemas/edge.proto` into the types of the gRPC API, without protoc.

use std::{env, error::Error, fs, path::PathBuf, process::Command};

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
        if packs_relocations() {
            println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
        }
    }
    Ok(())
}

/// Whether the C library reads packed relocations (DT_RELR, glibc 2.36): 0.7 MB less to keep in memory. Asked of this
/// machine, so only for programs that are built where they run; others stay as they are.
fn packs_relocations() -> bool {
    let gnu = |name, value| env::var(name).is_ok_and(|set| set == value);
    let here = env::var_os("HOST") == env::var_os("TARGET");
    if !here || !gnu("CARGO_CFG_TARGET_OS", "linux") || !gnu("CARGO_CFG_TARGET_ENV", "gnu") {
        return false;
    }
    let Ok(said) = Command::new("getconf").arg("GNU_LIBC_VERSION").output() else { return false };
    let said = String::from_utf8_lossy(&said.stdout);
    let mut version = said.trim().trim_start_matches("glibc ").split('.').map(str::parse::<u32>);
    matches!((version.next(), version.next()), (Some(Ok(major)), Some(Ok(minor))) if (major, minor) >= (2, 36))
}
