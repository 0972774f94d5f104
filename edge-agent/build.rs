//! Compiles `schemas/edge.proto` into the types of the gRPC API, without protoc.

use std::{env, error::Error, ffi::OsString, fs, path::PathBuf, process::Command};

use prost::Message as _;

const SCHEMAS: &str = "../schemas";
const PROTO: &str = "edge.proto";
/// Functions and constants that are the same, byte for byte, are there once. Rust promises no function an address of its
/// own. lld and mold know it.
const FOLD: &str = "-Wl,--icf=all";

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
        if links_with(FOLD) {
            println!("cargo::rustc-link-arg-bins={FOLD}");
        }
        if packs_relocations() {
            println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
        }
    }
    Ok(())
}

/// Whether the linker that will be used takes a flag: found out by linking a program that does nothing.
fn links_with(flag: &str) -> bool {
    let (Some(rustc), Some(out), Ok(target)) =
        (env::var_os("RUSTC"), env::var_os("OUT_DIR"), env::var("TARGET"))
    else {
        return false;
    };
    let (source, program) = (PathBuf::from(&out).join("nothing.rs"), PathBuf::from(&out).join("nothing"));
    if fs::write(&source, "fn main() {}").is_err() {
        return false;
    }
    let mut link = Command::new(rustc);
    link.args(["--target", &target, "-C", &format!("link-arg={flag}")]).arg("-o").arg(program).arg(source);
    if let Some(linker) = env::var_os("RUSTC_LINKER") {
        let mut option = OsString::from("linker=");
        option.push(linker);
        link.arg("-C").arg(option);
    }
    link.output().is_ok_and(|done| done.status.success())
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
