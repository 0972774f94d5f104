//! `fleet completion` and `fleet man`: what shells and `man` know of the command line, made from itself.

use std::{
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use clap::{Args, Command, ValueEnum};
use clap_complete::aot;

use super::Failure;

/// A shell that can complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Shell {
    /// Bash.
    Bash,
    /// Zsh.
    Zsh,
    /// Fish.
    Fish,
}

/// Print what a shell needs to complete verbs and flags.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    fleet completion bash > ~/.local/share/bash-completion/completions/fleet\n  \
    fleet completion zsh > ~/.zfunc/_fleet          with ~/.zfunc in fpath\n  \
    fleet completion fish > ~/.config/fish/completions/fleet.fish\n\n\
    The package brings them along.")]
pub(super) struct CompletionArgs {
    /// Which shell
    shell: Shell,
}

/// Show the manual page, or write all of them.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  fleet man | man -l -\n  fleet man node ls | man -l -\n  \
    fleet man --all ~/.local/share/man/man1\n\nThe package brings them along.")]
pub(super) struct ManArgs {
    /// Of which verb, fleet itself unless given
    #[arg(value_name = "VERB")]
    verb: Vec<String>,
    /// Write the pages of every verb into this folder, which is made
    #[arg(long, value_name = "DIR", conflicts_with = "verb")]
    all: Option<PathBuf>,
}

pub(super) fn complete(CompletionArgs { shell }: &CompletionArgs, mut cli: Command) -> Result<(), Failure> {
    let name = cli.get_name().to_owned();
    let mut text = Vec::new();
    match shell {
        Shell::Bash => aot::generate(aot::Bash, &mut cli, name, &mut text),
        Shell::Zsh => aot::generate(aot::Zsh, &mut cli, name, &mut text),
        Shell::Fish => aot::generate(aot::Fish, &mut cli, name, &mut text),
    }
    say(&text)
}

pub(super) fn man(ManArgs { verb, all }: &ManArgs, mut cli: Command) -> Result<(), Failure> {
    cli.build();
    if let Some(folder) = all {
        let failed =
            |error: io::Error| Failure::Failed(format!("{} cannot be written: {error}", folder.display()));
        std::fs::create_dir_all(folder).map_err(failed)?;
        return write(&cli, folder).map_err(failed);
    }
    let mut found = &cli;
    for word in verb {
        found = found.find_subcommand(word).ok_or_else(|| {
            Failure::NotFound(format!("{} has no verb {word}; `fleet --help` lists them", found.get_name()))
        })?;
    }
    say(&page(found).map_err(|error| Failure::Failed(error.to_string()))?)
}

/// Writes the page of a verb and of those below it.
fn write(command: &Command, folder: &Path) -> io::Result<()> {
    std::fs::write(folder.join(format!("{}.1", name(command))), page(command)?)?;
    let shown = |verb: &&Command| !verb.is_hide_set() && verb.get_name() != "help";
    command.get_subcommands().filter(shown).try_for_each(|verb| write(verb, folder))
}

fn page(command: &Command) -> io::Result<Vec<u8>> {
    let mut page = Vec::new();
    clap_mangen::Man::new(command.clone())
        .title(name(command).to_uppercase())
        .source("Clawland Fleet")
        .manual("Clawland Fleet")
        // The same page of the same build: distributions compare.
        .date("")
        .render(&mut page)?;
    Ok(page)
}

/// `fleet-node-ls` of `fleet node ls`.
fn name(command: &Command) -> String {
    command.get_bin_name().unwrap_or_else(|| command.get_name()).replace(' ', "-")
}

fn say(text: &[u8]) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text).and_then(|()| out.flush()) {
        // A reader that has seen enough is no failure.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::Failed(format!("standard output cannot be written: {error}")))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::{super::Cli, *};

    #[test]
    fn every_verb_has_a_page_that_names_it() {
        let folder = tempfile::tempdir().unwrap();
        let mut cli = Cli::command();
        cli.build();
        write(&cli, folder.path()).unwrap();
        for (page, words) in
            [("fleet.1", "fleet"), ("fleet-node-ls.1", "fleet node ls"), ("fleet-hub.1", "fleet hub")]
        {
            let text = std::fs::read_to_string(folder.path().join(page)).unwrap();
            assert!(text.contains(&words.replace('-', "\\-")) && text.contains("Examples"), "{page}: {text}");
        }
        assert!(!folder.path().join("fleet-bench-rumqttd.1").exists(), "hidden verbs have none");
    }

    #[test]
    fn every_shell_is_told_of_every_verb() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let mut text = Vec::new();
            let mut cli = Cli::command();
            match shell {
                Shell::Bash => aot::generate(aot::Bash, &mut cli, "fleet", &mut text),
                Shell::Zsh => aot::generate(aot::Zsh, &mut cli, "fleet", &mut text),
                Shell::Fish => aot::generate(aot::Fish, &mut cli, "fleet", &mut text),
            }
            let text = String::from_utf8(text).unwrap();
            for verb in Cli::command().get_subcommands().filter(|verb| !verb.is_hide_set()) {
                assert!(text.contains(verb.get_name()), "{shell:?} does not know {}", verb.get_name());
            }
        }
    }
}
