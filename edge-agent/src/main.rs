//! `fleet-agent`: the agent of one edge machine, and the words to ask it.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
