//! Hooks that write a log, on a machine whose boots are pretended.

use std::os::unix::fs::PermissionsExt as _;

use fleet_schemas::{
    batch::Clock,
    update::{Custom, Digest, Order},
};

use super::*;
use crate::core::{
    Now,
    queue::{Limit, Time},
};

struct Node {
    folder: tempfile::TempDir,
    config: Config,
    boot: u8,
}

impl Node {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let hooks = folder.path().join("hooks");
        fs::create_dir(&hooks).unwrap();
        let moment = Duration::from_millis(10);
        let config = Config {
            hooks: Some(hooks),
            hook: Duration::from_secs(30),
            later: moment,
            latest: 3 * moment,
            ..Config::default()
        };
        Self { folder, config, boot: 1 }
    }

    fn hook(&self, name: &str, body: &str) {
        let path = self.folder.path().join("hooks").join(name);
        let log = self.folder.path().join("log");
        let text = format!(
            "#!/bin/sh\necho \"{name}\" >> {}\n{}\n",
            log.display(),
            body.replace("LOG", &log.display().to_string())
        );
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// One hook for every moment that a whole update has.
    fn all(&self) {
        for state in State::ALL {
            for action in ["Enter", "Leave", "Error"] {
                self.hook(&format!("{state:?}_{action}_10"), "");
            }
        }
    }

    fn firmware(&self) -> Firmware {
        Firmware {
            config: self.config.clone(),
            folder: self.folder.path().join("releases/firmware"),
            data: self.folder.path().to_owned(),
            boot: [self.boot; 8],
        }
    }

    fn plan(&self) -> Plan {
        let order = Order {
            target: "firmware/gateway/2026.11/any".parse().unwrap(),
            digest: Digest([7; 32]),
            rollout: None,
            device: None,
            back: false,
            probation_ms: None,
            window: None,
            offline_ok: false,
        };
        let file = self.folder.path().join("artifact");
        let (custom, command) = (Custom::default(), CommandId([1; 16]));
        Plan { command, order, length: 1, custom, from: None, file }
    }

    /// What ran since the last look.
    fn log(&self) -> String {
        let path = self.folder.path().join("log");
        let text = fs::read_to_string(&path).unwrap_or_default();
        let _ = fs::remove_file(path);
        text.lines().collect::<Vec<_>>().join(" ")
    }
}

fn trial() -> Trial {
    let now = Now { wall_ms: 0, up: Duration::ZERO, clock: Clock::Unsynced };
    let limit = Limit::after(Duration::ZERO, &Time { now, boot: [0; 8], true_ms: None });
    Trial { since: limit, until: limit, reach: limit, span_ms: 0, reach_ms: 0 }
}

#[tokio::test]
async fn an_update_runs_its_hooks_in_order_over_a_reboot() {
    let mut node = Node::new();
    node.all();
    let plan = node.plan();
    node.firmware().admit(&plan).unwrap();
    node.firmware().install(&plan).await.unwrap();
    assert_eq!(
        node.log(),
        "Download_Enter_10 Download_Leave_10 ArtifactInstall_Enter_10 ArtifactInstall_Leave_10"
    );
    node.firmware().install(&plan).await.unwrap();
    assert_eq!(node.log(), "", "it is installed");
    // The agent is started again without a reboot: the hook asks for one again.
    for _ in 0..2 {
        assert_eq!(node.firmware().switch(&plan).await, Ok(Switched::Away));
        assert_eq!(node.log(), "ArtifactReboot_Enter_10");
    }
    node.boot = 2;
    assert_eq!(node.firmware().switch(&plan).await, Ok(Switched::Done));
    assert_eq!(
        node.log(),
        "ArtifactReboot_Leave_10 ArtifactVerifyReboot_Enter_10 ArtifactVerifyReboot_Leave_10"
    );
    // A power cut on trial: nothing is run again, but it is asked again which system runs.
    node.boot = 3;
    for _ in 0..2 {
        assert_eq!(node.firmware().probe(&plan, &trial()).await, Health::Well);
    }
    assert_eq!(node.firmware().switch(&plan).await, Ok(Switched::Done));
    assert_eq!(node.log(), "ArtifactVerifyReboot_Enter_10 ArtifactVerifyReboot_Leave_10");
    assert_eq!(node.firmware().runs(&plan).await, None);
    for _ in 0..2 {
        node.firmware().commit(&plan).await.unwrap();
    }
    assert_eq!(node.log(), "ArtifactCommit_Enter_10 ArtifactCommit_Leave_10");
    let runs = node.firmware().runs(&plan).await.unwrap();
    assert_eq!((runs.version.as_str(), runs.digest), ("2026.11", Digest([7; 32])));
}

/// The new slot verified, and died on trial; the boot loader went back to the old one, which is as healthy as can be.
#[tokio::test]
async fn a_slot_that_was_left_on_trial_is_neither_well_nor_kept() {
    let mut node = Node::new();
    node.all();
    let slot = node.folder.path().join("slot");
    fs::write(&slot, "new").unwrap();
    node.hook("ArtifactVerifyReboot_Enter_20", &format!("grep -q new {}", slot.display()));
    let plan = node.plan();
    node.firmware().install(&plan).await.unwrap();
    node.firmware().switch(&plan).await.unwrap();
    node.boot = 2;
    assert_eq!(node.firmware().switch(&plan).await, Ok(Switched::Done));
    assert_eq!(node.firmware().probe(&plan, &trial()).await, Health::Well);
    node.boot = 3;
    fs::write(&slot, "old").unwrap();
    node.log();
    let Health::Sick(trouble) = node.firmware().probe(&plan, &trial()).await else {
        panic!("it is the old slot")
    };
    assert_eq!(trouble.code, "hook_failed");
    // Also when the trial was over before: what is committed is what runs.
    assert_eq!(node.firmware().commit(&plan).await.unwrap_err().code, "hook_failed");
    assert!(!node.log().contains("Commit"));
    assert_eq!(node.firmware().undo(&plan).await, Ok(Switched::Away));
    node.boot = 4;
    assert_eq!(node.firmware().undo(&plan).await, Ok(Switched::Done));
}

#[tokio::test]
async fn one_that_did_not_verify_is_returned_from_with_another_reboot() {
    let mut node = Node::new();
    node.all();
    node.hook("ArtifactVerifyReboot_Enter_20", "echo no network >&2; exit 1");
    let plan = node.plan();
    node.firmware().install(&plan).await.unwrap();
    node.firmware().switch(&plan).await.unwrap();
    node.boot = 2;
    node.log();
    let trouble = node.firmware().switch(&plan).await.unwrap_err();
    assert_eq!((trouble.code.as_str(), trouble.passing), ("hook_failed", false));
    assert!(trouble.message.contains("ended with code 1: no network"), "{}", trouble.message);
    assert_eq!(
        node.log(),
        "ArtifactReboot_Leave_10 ArtifactVerifyReboot_Enter_10 ArtifactVerifyReboot_Enter_20 \
         ArtifactVerifyReboot_Error_10"
    );
    assert_eq!(node.firmware().undo(&plan).await, Ok(Switched::Away));
    assert_eq!(
        node.log(),
        "ArtifactRollback_Enter_10 ArtifactRollback_Leave_10 ArtifactRollbackReboot_Enter_10"
    );
    node.boot = 3;
    assert_eq!(node.firmware().undo(&plan).await, Ok(Switched::Done));
    assert_eq!(node.firmware().undo(&plan).await, Ok(Switched::Done));
    assert_eq!(
        node.log(),
        "ArtifactRollbackReboot_Leave_10 ArtifactVerifyRollbackReboot_Enter_10 \
         ArtifactVerifyRollbackReboot_Leave_10"
    );
    for _ in 0..2 {
        node.firmware().discard(&plan).await;
    }
    assert_eq!(node.log(), "ArtifactFailure_Enter_10 ArtifactFailure_Leave_10");
    assert_eq!(node.firmware().load().await.unwrap(), Kept::default());
}

#[tokio::test]
async fn a_machine_that_never_boots_is_not_waited_for_for_ever() {
    let node = Node::new();
    node.all();
    let plan = node.plan();
    node.firmware().install(&plan).await.unwrap();
    for _ in 0..REBOOTS {
        assert_eq!(node.firmware().switch(&plan).await, Ok(Switched::Away));
    }
    assert_eq!(node.firmware().switch(&plan).await.unwrap_err().code, "no_reboot");
    node.log();
    // It never left the system of before: no reboot back.
    assert_eq!(node.firmware().undo(&plan).await, Ok(Switched::Done));
    assert_eq!(node.log(), "ArtifactRollback_Enter_10 ArtifactRollback_Leave_10");
}

#[tokio::test]
async fn without_a_reboot_hook_none_is_waited_for_and_the_version_file_decides() {
    let mut node = Node::new();
    let version = node.folder.path().join("version");
    node.config.version_file = Some(version.clone());
    node.hook(
        "ArtifactInstall_Enter_10",
        "test -n \"$FLEET_ARTIFACT$FLEET_DIGEST\" && echo $FLEET_NAME $FLEET_VERSION $FLEET_STATE >> LOG",
    );
    let plan = node.plan();
    fs::write(&version, "2026.10\n").unwrap();
    node.firmware().install(&plan).await.unwrap();
    assert_eq!(node.log(), "ArtifactInstall_Enter_10 gateway 2026.11 ArtifactInstall_Enter");
    assert_eq!(
        node.firmware().switch(&plan).await.unwrap_err().code,
        "other_version",
        "still on the old image"
    );
    fs::write(&version, "2026.11\n").unwrap();
    assert_eq!(node.firmware().switch(&plan).await, Ok(Switched::Done));
    node.firmware().commit(&plan).await.unwrap();
    assert!(node.firmware().runs(&plan).await.is_some());
    fs::write(&version, "2026.10\n").unwrap();
    assert!(node.firmware().runs(&plan).await.is_none(), "somebody went back by hand");
}

#[tokio::test]
async fn hooks_say_later_fail_hang_and_leave_things_running() {
    let mut node = Node::new();
    let plan = node.plan();
    // Twice later, then well; with something left in the background that holds the output open.
    let twice = "[ $(grep -c Download_Enter LOG) -gt 2 ] || exit 21; sleep 1000 & echo done";
    node.hook("Download_Enter_00", twice);
    node.hook("ArtifactInstall_Enter_00", "exit 21");
    let trouble = node.firmware().install(&plan).await.unwrap_err();
    assert_eq!(trouble.code, "hook_later");
    let log = node.log();
    assert_eq!((log.matches("Download").count(), log.matches("ArtifactInstall").count()), (3, 4), "{log}");
    node.config.hook = Duration::from_millis(300);
    node.hook("ArtifactInstall_Enter_00", "exec sleep 1000");
    node.hook("Download_Enter_00", "");
    assert_eq!(node.firmware().install(&plan).await.unwrap_err().code, "hook_timeout");
}

#[test]
fn what_others_may_change_is_not_run() {
    let node = Node::new();
    let plan = node.plan();
    let refused = |config: Config| {
        let firmware = Firmware { config, ..node.firmware() };
        firmware.admit(&plan).unwrap_err().code
    };
    assert_eq!(refused(Config::default()), "no_hooks");
    assert_eq!(refused(node.config.clone()), "no_hooks", "there is a folder, and nothing in it");
    node.hook("ArtifactInstall_Enter_10", "");
    node.firmware().admit(&plan).unwrap();
    // A reboot that may end in either slot.
    node.hook("ArtifactReboot_Enter_10", "");
    assert_eq!(refused(node.config.clone()), "no_hooks");
    let told = Config { version_file: Some("/etc/version".into()), ..node.config.clone() };
    Firmware { config: told, ..node.firmware() }.admit(&plan).unwrap();
    node.hook("ArtifactVerifyReboot_Enter_10", "");
    node.firmware().admit(&plan).unwrap();
    let path = node.folder.path().join("hooks/ArtifactInstall_Enter_10");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
    assert_eq!(refused(node.config.clone()), "unsafe_hooks");
}

/// The examples that are shipped have names that are read, and are scripts that a shell can read.
#[test]
fn the_examples_are_hooks() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("hooks");
    let mut found = 0;
    for folder in ["plain", "rauc", "swupdate", "mender-update"] {
        let (mut installs, mut verifies) = (false, false);
        for entry in fs::read_dir(examples.join(folder)).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            let moment = crate::core::hooks::moment(name).unwrap_or_else(|| panic!("{name} is no hook"));
            installs |= moment == Moment(State::ArtifactInstall, Action::Enter);
            verifies |= moment == Moment(State::ArtifactVerifyReboot, Action::Enter);
            let read = std::process::Command::new("/bin/sh").arg("-n").arg(&path).status().unwrap();
            assert!(
                read.success() && fs::metadata(&path).unwrap().permissions().mode() & 0o111 != 0,
                "{name}"
            );
            found += 1;
        }
        assert!(installs && verifies, "{folder}");
    }
    assert!(found >= 12, "{found}");
}
