//! Compiles `schemas/edge.proto` into the types of the gRPC API, without protoc; tells the linker how to make a small agent.

use std::{
    env,
    error::Error,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use prost::Message as _;

const SCHEMAS: &str = "../schemas";
const PROTO: &str = "edge.proto";
/// Functions and constants that are the same, byte for byte, are there once. Rust promises no function an address of its
/// own. lld and mold know it.
const FOLD: &str = "-Wl,--icf=all";
/// The names of functions that an agent at rest has run, or how they begin: `.ci/resident` writes it. The linker puts them
/// side by side. A page that is touched brings fifteen neighbours into memory (fault-around, Linux): spread over the whole
/// program, a third of its functions kept all of it resident. A name that fits nothing costs nothing.
const RESIDENT: &str = "resident.txt";
/// Set by `.ci/resident`: the agent as the compiler made it, with its names, and a map of it in this file.
const PLAIN: &str = "FLEET_AGENT_PLAIN_MAP";

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
    println!("cargo::rerun-if-changed={RESIDENT}");
    println!("cargo::rerun-if-env-changed={PLAIN}");
    if env::var("PROFILE").is_ok_and(|profile| profile == "release") {
        if let Ok(map) = env::var(PLAIN) {
            println!("cargo::rustc-link-arg-bins=-Wl,-Map={map}");
            return Ok(());
        }
        // A package with an opt-level of its own gets `strip = "debuginfo"`, whatever the profile says: two megabytes of
        // names.
        println!("cargo::rustc-link-arg-bins=-Wl,--strip-all");
        let side_by_side = format!("-Wl,-T,{}", order(&out)?.display());
        for flag in [FOLD, &side_by_side] {
            if links_with(flag) {
                println!("cargo::rustc-link-arg-bins={flag}");
            }
        }
        if packs_relocations() {
            println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
        }
    }
    Ok(())
}

/// Writes the linker script that puts what is resident in front of the other functions: GNU ld and lld know it.
fn order(out: &Path) -> Result<PathBuf, Box<dyn Error>> {
    let names = fs::read_to_string(RESIDENT)?;
    let names = names.lines().filter(|line| !line.starts_with('#'));
    let sections: String = names.map(|name| format!("*(.text.{name}*)\n")).collect();
    let path = out.join("resident.ld");
    fs::write(&path, format!("SECTIONS {{ .text.resident : {{\n{sections}}} }} INSERT BEFORE .text;\n"))?;
    Ok(path)
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
