//! The binary `fleet`: the hub and the operator's command line. See [`fleet_manager::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    fleet_manager::cli::main()
}
