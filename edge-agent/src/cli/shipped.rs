//! The manual pages and completions that the package brings, made from the command line: they are kept beside the package's
//! other files, so that the agent itself does not carry what makes them.
//!
//! INSTA_UPDATE=always writes them anew.

use std::{collections::BTreeMap, fs, path::Path};

use clap::{Command, CommandFactory as _};
use clap_complete::aot;

use super::Cli;

/// Where they are.
const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../debian/generated");

#[test]
fn what_the_package_brings_is_of_this_command_line() {
    let mut made = BTreeMap::new();
    let mut cli = Cli::command();
    cli.build();
    pages(&cli, &mut made);
    completion(aot::Bash, "fleet-agent.bash", &mut made);
    completion(aot::Zsh, "_fleet-agent", &mut made);
    completion(aot::Fish, "fleet-agent.fish", &mut made);
    if std::env::var("INSTA_UPDATE").is_ok_and(|word| word == "always") {
        fs::create_dir_all(FOLDER).unwrap();
        for (name, text) in &made {
            fs::write(Path::new(FOLDER).join(name), text).unwrap();
        }
    }
    let kept: BTreeMap<String, String> = fs::read_dir(FOLDER)
        .unwrap()
        .map(|file| file.unwrap().path())
        .map(|path| {
            (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read_to_string(path).unwrap())
        })
        .collect();
    let names = |files: &BTreeMap<String, String>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&kept), names(&made), "INSTA_UPDATE=always writes them; remove what is too much");
    for (name, text) in &made {
        assert!(
            kept[name] == *text,
            "{name} is not of this command line: INSTA_UPDATE=always writes it anew"
        );
    }
}

fn pages(command: &Command, made: &mut BTreeMap<String, String>) {
    let name = command.get_bin_name().unwrap_or_else(|| command.get_name()).replace(' ', "-");
    let mut page = Vec::new();
    clap_mangen::Man::new(command.clone().version(clap::builder::Resettable::Reset))
        .title(name.to_uppercase())
        .source("Clawland Fleet")
        .manual("Clawland Fleet")
        .date("")
        .render(&mut page)
        .unwrap();
    made.insert(format!("{name}.1"), String::from_utf8(page).unwrap());
    let shown = |verb: &&Command| !verb.is_hide_set() && verb.get_name() != "help";
    command.get_subcommands().filter(shown).for_each(|verb| pages(verb, made));
}

fn completion(shell: impl aot::Generator, name: &str, made: &mut BTreeMap<String, String>) {
    let mut text = Vec::new();
    aot::generate(shell, &mut Cli::command(), "fleet-agent", &mut text);
    made.insert(name.to_owned(), String::from_utf8(text).unwrap());
}
