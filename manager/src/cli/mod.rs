//! `fleet`: the hub's command line and the operator's.
//!
//! Owns parsing, the verbs and what they print. Operator verbs know the hub by HTTP only; `hub`, `demo` and
//! `simulate` hand over to [`crate::run`] and [`crate::simulate`].

mod access;
mod alert;
mod artifact;
mod audit;
mod backup;
mod bench;
mod client;
mod command;
mod config;
mod contexts;
mod decode;
mod doctor;
mod exit;
mod field_token;
pub(crate) mod figure;
mod gene;
mod group;
mod join_token;
mod ledger;
mod log_level;
mod login;
mod node;
mod operator;
mod order;
pub(crate) mod output;
mod period;
mod pki;
mod place;
mod release;
mod restore;
mod rollout;
mod rule;
mod selector;
mod serve;
mod shell;
mod simulate;
mod site;
mod spark;
mod sse;
mod status;
mod target;
mod telemetry;
mod top;
mod trust;
mod upgrade;
mod why;
mod wire;
mod yaml;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, CommandFactory as _, Parser, Subcommand};

use client::Client;
pub use exit::Failure;
use output::{Format, Out};
pub use release::RELEASE_KEYS;
pub use serve::{DemoArgs, HubArgs, ListenArgs};
pub use target::ADMIN;

use crate::config::DATA;

const EXAMPLES: &str = "\
Examples:
  fleet demo --nodes 3              bring up a hub and three nodes on this machine
  fleet node ls -l site=berlin      which nodes are there
  fleet telemetry edge-1 --since 1h what a node measured
  fleet command run --all -- uptime tell nodes what to do
  fleet top                         watch all of it
  fleet join-token create           let a machine join
  fleet ledger --verify             is every record accounted for

Exit codes: 0 done, 1 failed, 2 usage, 3 not found, 4 denied, 5 unreachable, 6 partly, 7 conflict.";

/// The Clawland Fleet hub and its operator's tool.
#[derive(Debug, Parser)]
#[command(name = "fleet", version, after_help = EXAMPLES, propagate_version = true)]
pub struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    verb: Verb,
}

/// Flags of every verb.
#[derive(Debug, Clone, Default, Args)]
pub struct Common {
    /// The hub's HTTP address, such as https://hub.example:8080; without it: the hub of --data or ./fleet-data, then
    /// the current context of `fleet login`
    #[arg(long, global = true, env = "FLEET_HUB", value_name = "URL")]
    pub hub: Option<String>,
    /// The operator's token
    #[arg(long, global = true, env = "FLEET_TOKEN", value_name = "T", hide_env_values = true)]
    pub token: Option<String>,
    /// The hub's data folder, ./fleet-data unless given
    #[arg(long, global = true, env = "FLEET_DATA", value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// The CA that vouches for an https hub, PEM
    #[arg(long, global = true, env = "FLEET_CA", value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// The same by its pin, as in a join token
    #[arg(long, global = true, env = "FLEET_CA_PIN", value_name = "PIN", conflicts_with = "ca")]
    pub ca_pin: Option<String>,
    /// The form of the answer
    #[arg(short, long, global = true, value_enum, default_value_t)]
    pub output: Format,
}

impl Common {
    /// The hub's data folder.
    #[must_use]
    pub fn data(&self) -> &Path {
        self.data.as_deref().unwrap_or(Path::new(DATA))
    }
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run a hub
    Hub(Box<HubArgs>),
    /// Run a hub and real nodes in one process, on this machine's own figures
    Demo(Box<DemoArgs>),
    /// Look at nodes and change what the registry says of them
    #[command(subcommand)]
    Node(node::NodeVerb),
    /// Tell nodes what to do, watch them, and take it back
    #[command(subcommand)]
    Command(command::CommandVerb),
    /// Roll signed releases out in waves: make, watch, pause, take back
    #[command(subcommand)]
    Rollout(rollout::RolloutVerb),
    /// What fires, who takes care of it, who is told
    #[command(subcommand)]
    Alert(alert::AlertVerb),
    /// What raises alerts: check, try on recorded samples, apply, import
    #[command(subcommand)]
    Rule(rule::RuleVerb),
    /// Saved selectors
    #[command(subcommand)]
    Group(group::GroupVerb),
    /// Where nodes are, and in which time zone
    #[command(subcommand)]
    Site(site::SiteVerb),
    /// Settings of nodes: set for all, a group, a site or one; who follows, and why one does not
    #[command(subcommand)]
    Config(config::ConfigVerb),
    /// Tokens that machines join with
    #[command(subcommand)]
    JoinToken(join_token::JoinTokenVerb),
    /// Tokens of agents that speak a field dialect over HTTP
    #[command(subcommand)]
    FieldToken(field_token::FieldTokenVerb),
    /// Genes that field agents published
    #[command(subcommand)]
    Gene(gene::GeneVerb),
    /// Who may use the hub's API
    #[command(subcommand)]
    Operator(operator::OperatorVerb),
    /// Third-party MQTT tools: what they may read and write
    #[command(subcommand)]
    Access(access::AccessVerb),
    /// The hub's certificates
    #[command(subcommand)]
    Pki(pki::PkiVerb),
    /// Bytes that nodes may run, once they are signed
    #[command(subcommand)]
    Artifact(artifact::ArtifactVerb),
    /// Keep a copy of a hub, while it runs; and check one
    Backup(backup::BackupArgs),
    /// Make a hub's data folder out of a backup
    Restore(restore::RestoreArgs),
    /// Bring a data folder to this build's formats, or back
    Upgrade(upgrade::UpgradeArgs),
    /// Which artifacts nodes may run: make keys, sign, list
    #[command(subcommand)]
    Release(Box<release::ReleaseVerb>),
    /// Who changed what, when
    Audit(audit::AuditArgs),
    /// How much the hub logs, changed while it runs
    LogLevel(log_level::LogLevelArgs),
    /// Keep a hub's address, token and CA for the other verbs
    Login(login::LoginArgs),
    /// Why a node, a rollout or a command is in the state it is in
    Why(why::WhyArgs),
    /// What a node measured
    Telemetry(telemetry::TelemetryArgs),
    /// Watch the fleet live
    Top(top::TopArgs),
    /// The account of every record; exits 1 only when an account is broken
    Ledger(ledger::LedgerArgs),
    /// The hub in one look; exits 1 when it is not ready
    Status(status::StatusArgs),
    /// Look a hub over and say what to do; exits 1 when something is wrong
    Doctor(doctor::DoctorArgs),
    /// Run the real cores and stores against seeded faults; exits 1 when a rule did not hold
    Simulate(simulate::SimulateArgs),
    /// Measure a hub or an agent under load
    #[command(subcommand)]
    Bench(Box<bench::BenchVerb>),
    /// Show payloads of topics as JSON
    Decode(decode::DecodeArgs),
    /// Print what a shell needs to complete verbs and flags
    Completion(shell::CompletionArgs),
    /// Print the manual page of a verb, or write those of all
    Man(shell::ManArgs),
}

/// What an operator verb works with.
#[derive(Debug, Clone)]
struct Context {
    client: Client,
    out: Out,
}

/// Parses the command line and does what it says; usage errors and help leave through clap with code 2 and 0.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse_from(node::leave::new_hub(std::env::args_os()));
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return report(&Failure::Failed(format!("cannot start the runtime: {error}"))),
    };
    match runtime.block_on(run(cli)) {
        Ok(()) => ExitCode::from(exit::DONE),
        Err(failure) => report(&failure),
    }
}

fn report(failure: &Failure) -> ExitCode {
    eprintln!("fleet: {failure}");
    ExitCode::from(failure.code())
}

async fn run(cli: Cli) -> Result<(), Failure> {
    let Cli { common, verb } = cli;
    let out = Out::new(common.output);
    let context = || {
        let client = Client::new(target::find(&common)?)?;
        Ok::<_, Failure>(Context { client, out })
    };
    match verb {
        Verb::Hub(args) => serve::hub(*args, &common).await,
        Verb::Demo(args) => serve::demo(*args, &common).await,
        Verb::Node(verb) => node::run(verb, &context()?).await,
        Verb::Command(verb) => command::run(verb, &context()?).await,
        Verb::Rollout(verb) => rollout::run(verb, &context()?).await,
        Verb::Alert(verb) => alert::run(verb, &context()?).await,
        Verb::Rule(verb) => match rule::run_here(verb, out)? {
            Some(verb) => rule::run(verb, &context()?).await,
            None => Ok(()),
        },
        Verb::Group(verb) => group::run(verb, &context()?).await,
        Verb::Site(verb) => site::run(verb, &context()?).await,
        Verb::Config(verb) => config::run(verb, &context()?).await,
        Verb::JoinToken(verb) => join_token::run(verb, &context()?).await,
        Verb::FieldToken(verb) => field_token::run(verb, &context()?).await,
        Verb::Gene(verb) => gene::run(verb, &context()?).await,
        Verb::Operator(verb) => operator::run(verb, &context()?).await,
        Verb::Access(verb) => access::run(verb, &context()?).await,
        Verb::Pki(verb) => pki::run(verb, &context()?).await,
        Verb::Artifact(verb) => artifact::run(verb, &context()?).await,
        Verb::Release(verb) => release::run(*verb, &common, context).await,
        Verb::Backup(args) => backup::run(args, &common, out).await,
        Verb::Restore(args) => restore::run(args, &common, out).await,
        Verb::Upgrade(args) => upgrade::run(args, &common, out).await,
        Verb::Audit(args) => audit::run(args, &context()?).await,
        Verb::LogLevel(args) => log_level::run(&args, &context()?).await,
        Verb::Login(args) => login::run(args, &common, out).await,
        Verb::Why(args) => why::run(args, &context()?).await,
        Verb::Telemetry(args) => telemetry::run(args, &context()?).await,
        Verb::Top(args) => top::run(args, &context()?).await,
        Verb::Ledger(args) => ledger::run(args, &context()?).await,
        Verb::Status(args) => status::run(args, &context()?).await,
        Verb::Doctor(args) => doctor::run(args, &context()?).await,
        Verb::Simulate(args) => simulate::run(&args, out),
        Verb::Bench(verb) => bench::run(*verb, &common, out).await,
        Verb::Decode(args) => decode::run(args, |value| match out.format {
            Format::Yaml => out.print(&yaml::text(value)),
            Format::Table | Format::Json | Format::Csv => out.print(&output::json(value)),
        }),
        Verb::Completion(args) => shell::complete(&args, Cli::command()),
        Verb::Man(args) => shell::man(&args, Cli::command()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_verb_shows_examples() {
        fn check(command: &clap::Command) {
            let mut leaves = command
                .get_subcommands()
                .filter(|verb| verb.get_name() != "help" && !verb.is_hide_set())
                .peekable();
            if leaves.peek().is_none() {
                let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
                assert!(help.contains("fleet "), "{} has no example", command.get_name());
            }
            leaves.for_each(check);
        }
        check(&Cli::command());
    }
}
