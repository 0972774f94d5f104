//! The hooks of firmware updates by their names: `ArtifactInstall_Enter_50-rauc` is the fiftieth to run when the state
//! ArtifactInstall is entered. Pure.
//!
//! States, their order and the exit codes are those of Mender's state scripts, so that what people wrote for them needs
//! little change.

use std::fmt;

/// Exit code of a hook that wants to be run again later.
pub const LATER: i32 = 21;

/// A state that hooks belong to, in the order in which they come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// The artifact is on disk, whole and verified.
    Download,
    /// It is put into the slot that does not run.
    ArtifactInstall,
    /// The machine is booted from that slot.
    ArtifactReboot,
    /// Whether it was.
    ArtifactVerifyReboot,
    /// That slot stays.
    ArtifactCommit,
    /// The slot of before is to be booted.
    ArtifactRollback,
    /// The machine is booted from it.
    ArtifactRollbackReboot,
    /// Whether it was.
    ArtifactVerifyRollbackReboot,
    /// The update did not pass: what is left of it is removed.
    ArtifactFailure,
}

/// When in a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// When it begins.
    Enter,
    /// When it ended well.
    Leave,
    /// When it failed.
    Error,
}

/// A moment that has hooks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(pub State, pub Action);

impl State {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Download,
        Self::ArtifactInstall,
        Self::ArtifactReboot,
        Self::ArtifactVerifyReboot,
        Self::ArtifactCommit,
        Self::ArtifactRollback,
        Self::ArtifactRollbackReboot,
        Self::ArtifactVerifyRollbackReboot,
        Self::ArtifactFailure,
    ];
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}_{:?}", self.0, self.1)
    }
}

/// The moment of a hook with this name; `None` for other files.
#[must_use]
pub fn moment(name: &str) -> Option<Moment> {
    let mut parts = name.splitn(3, '_');
    let (state, action, number) = (parts.next()?, parts.next()?, parts.next()?);
    let digits = number.as_bytes().get(..2)?;
    let rest = number.as_bytes().get(2);
    if !digits.iter().all(u8::is_ascii_digit) || rest.is_some_and(u8::is_ascii_digit) {
        return None;
    }
    let state = State::ALL.into_iter().find(|one| format!("{one:?}") == state)?;
    let action =
        [Action::Enter, Action::Leave, Action::Error].into_iter().find(|one| format!("{one:?}") == action)?;
    Some(Moment(state, action))
}

/// Those of a moment, in their order.
#[must_use]
pub fn of(moment: Moment, names: &[String]) -> Vec<&String> {
    let mut found: Vec<_> = names.iter().filter(|name| self::moment(name) == Some(moment)).collect();
    // Their numbers have two digits: the order of their names is theirs.
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_when_and_in_which_order() {
        let install = Moment(State::ArtifactInstall, Action::Enter);
        assert_eq!(install.to_string(), "ArtifactInstall_Enter");
        for (name, expected) in [
            ("ArtifactInstall_Enter_00", Some(install)),
            ("ArtifactInstall_Enter_50-rauc", Some(install)),
            ("ArtifactInstall_Enter_50_rauc", Some(install)),
            ("ArtifactVerifyReboot_Leave_99", Some(Moment(State::ArtifactVerifyReboot, Action::Leave))),
            ("Download_Error_01", Some(Moment(State::Download, Action::Error))),
            ("ArtifactInstall_Enter", None),
            ("ArtifactInstall_Enter_5", None),
            ("ArtifactInstall_Enter_500", None),
            ("artifactinstall_Enter_50", None),
            ("Idle_Enter_00", None),
            ("README.md", None),
            ("ArtifactInstall_Enter_\u{e4}\u{e4}", None),
        ] {
            assert_eq!(moment(name), expected, "{name}");
        }
        let names =
            ["ArtifactInstall_Enter_50-b", "version", "ArtifactInstall_Enter_07", "ArtifactInstall_Leave_00"]
                .map(str::to_owned);
        assert_eq!(of(install, &names), ["ArtifactInstall_Enter_07", "ArtifactInstall_Enter_50-b"]);
    }
}
