//! What the allow-list lets through, and what it says otherwise.

use std::os::unix::fs::PermissionsExt as _;

use super::*;

const LIST: &str = r#"
[command.uptime]
program = "/usr/bin/uptime"

[command.df]
program = "/usr/bin/df"
args = ["-h", "{path}"]
user = "nobody"
timeout_s = 5
env = { LANG = "C" }
cwd = "/tmp"
nice = 10
memory_mb = 64

[command.df.params.path]
type = "path"
default = "/"

[command.blink]
program = "blink"
args = ["--times={times}"]
[command.blink.params.times]
type = "int"
min = 1
max = 5
"#;

fn source(text: &str) -> Source {
    Source { file: "/nonexistent/commands.toml".into(), otherwise: Some(text.into()) }
}

fn typed(words: &str) -> Wish {
    Wish::Typed(words.split(' ').filter(|word| !word.is_empty()).map(str::to_owned).collect())
}

fn named(name: &str, args: &[(&str, &str)]) -> Wish {
    let args = args.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    Wish::Named { name: name.to_owned(), args }
}

#[test]
fn what_is_listed_is_planned() {
    let list = source(LIST);
    let plan = list.plan(&named("df", &[("path", "/data")])).unwrap();
    assert_eq!((plan.args.join(" "), plan.user.as_deref()), ("-h /data".to_owned(), Some("nobody")));
    assert_eq!((plan.timeout, plan.memory_bytes), (Some(Duration::from_secs(5)), Some(64 << 20)));
    for words in ["df -h /data", "/usr/bin/df -h /data"] {
        assert_eq!(list.plan(&typed(words)).unwrap(), plan, "{words}");
    }
    assert_eq!(list.plan(&typed("df -h")), list.plan(&named("df", &[])), "a default may be left away");
    assert_eq!(list.plan(&typed("blink --times=3")).unwrap().args, ["--times=3"]);
    assert_eq!(list.plan(&named("blink", &[("times", "3")])).unwrap().args, ["--times=3"]);
}

#[test]
fn values_that_do_not_fit_are_named() {
    let list = source(LIST);
    for wish in [
        typed("df -h ../etc"),
        typed("blink --times=9"),
        named("df", &[("path", "-x")]),
        named("df", &[("colour", "red")]),
        named("blink", &[]),
        Wish::Typed(Vec::new()),
    ] {
        let refused = list.plan(&wish).unwrap_err();
        assert_eq!(refused.code, "bad_params", "{wish:?}: {}", refused.message);
    }
}

#[test]
fn a_refusal_prints_lines_that_allow_it() {
    for wish in [
        typed("df /"),
        typed("df -h / /boot"),
        typed("/opt/a tool/x {} \"quoted\""),
        typed("/tmp/df -h /"),
        typed("sh -c reboot"),
        named("reboot now", &[]),
        named("ip", &[("verb", "addr")]),
    ] {
        let refused = source(LIST).plan(&wish).unwrap_err();
        assert_eq!(refused.code, "not_allowed");
        assert!(refused.message.contains("/nonexistent/commands.toml"), "{}", refused.message);
        let (_, lines) = refused.message.split_once(":\n").unwrap();
        let plan = source(&format!("{LIST}\n{lines}")).plan(&wish);
        assert!(plan.is_ok(), "{wish:?} is still refused after adding\n{lines}\n{plan:?}");
    }
    let nothing = source("").plan(&typed("uptime")).unwrap_err();
    assert!(nothing.message.contains("allows nothing"), "{}", nothing.message);
}

#[test]
fn a_broken_list_allows_nothing_and_says_where() {
    for (text, says) in [
        ("[command.a]\nprogram = 5", "line 2"),
        ("\n[command.a]\nprogram = \"a\"\nargs = [\"{x}\"]", "line 2"),
        ("[command.a]\nprogram = \"a\"\nargs = [\"{\"]", "line 1"),
        ("[command.a]\nprogramm = \"a\"", "programm"),
        ("[command.a]\nprogram = \"a\"\n[command.a.params.x]\ntype = \"enum\"", "params.x"),
    ] {
        let broken = source(text).plan(&typed("a")).unwrap_err();
        assert_eq!(broken.code, "bad_allow_list");
        assert!(broken.message.contains(says), "{}", broken.message);
    }
}

#[test]
fn a_change_of_the_file_counts_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("commands.toml");
    let list = Source { file: file.clone(), otherwise: Some(LIST.into()) };
    assert!(list.plan(&typed("uptime")).is_ok(), "what was given counts while there is no file");
    fs::write(&file, "[command.date]\nprogram = \"/usr/bin/date\"\n").unwrap();
    assert!(list.plan(&typed("uptime")).is_err());
    assert!(list.plan(&typed("date")).is_ok());
    fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).unwrap();
    assert_eq!(
        list.plan(&typed("date")).unwrap_err().code,
        "bad_allow_list",
        "anybody could have written it"
    );
}
