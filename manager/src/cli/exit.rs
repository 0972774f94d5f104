//! Why a verb failed, and the exit code it gives: the only such map.
//!
//! Messages are lower-case fragments after "fleet: " and say what to do next.

use crate::api::shapes::Problem;

/// Why a verb did not do all it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// It ran and the answer is no.
    #[error("{0}")]
    Failed(String),
    /// It was asked wrongly.
    #[error("{0}")]
    Usage(String),
    /// There is no such thing.
    #[error("{0}")]
    NotFound(String),
    /// The caller may not.
    #[error("{0}")]
    Denied(String),
    /// No hub answers.
    #[error("{0}")]
    Unreachable(String),
    /// Some of it was done.
    #[error("{0}")]
    Partly(String),
    /// Somebody else changed it first.
    #[error("{0}")]
    Conflict(String),
    /// With an exit code of its own, such as that of a program at a node.
    #[error("{why}")]
    Own {
        /// The code.
        code: u8,
        /// Why.
        why: String,
    },
}

/// Everything went well.
pub(super) const DONE: u8 = 0;

impl Failure {
    /// The exit code, as the manual lists them.
    #[must_use]
    pub fn code(&self) -> u8 {
        match self {
            Self::Failed(_) => 1,
            Self::Usage(_) => 2,
            Self::NotFound(_) => 3,
            Self::Denied(_) => 4,
            Self::Unreachable(_) => 5,
            Self::Partly(_) => 6,
            Self::Conflict(_) => 7,
            Self::Own { code, .. } => *code,
        }
    }

    /// What a hub's refusal means here.
    #[must_use]
    pub fn of_problem(problem: &Problem) -> Self {
        let mut text = if problem.detail.is_empty() { problem.title.clone() } else { problem.detail.clone() };
        for fault in &problem.errors {
            text.push_str(&format!("\n  {}: {}", fault.pointer, fault.detail));
        }
        match problem.status {
            404 => Self::NotFound(text),
            401 | 403 => Self::Denied(text),
            409 | 412 => Self::Conflict(text),
            400 | 415 | 422 => Self::Usage(text),
            502..=504 => Self::Unreachable(text),
            _ => Self::Failed(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::shapes::Fault;

    #[test]
    fn statuses_become_exit_codes() {
        for (status, code) in [
            (404, 3),
            (401, 4),
            (403, 4),
            (409, 7),
            (412, 7),
            (400, 2),
            (422, 2),
            (503, 5),
            (500, 1),
            (429, 1),
        ] {
            let problem = Problem { status, ..Problem::default() };
            assert_eq!(Failure::of_problem(&problem).code(), code, "{status}");
        }
    }

    #[test]
    fn faults_are_listed_under_the_detail() {
        let fault = Fault { pointer: "/site".to_owned(), detail: "too long".to_owned() };
        let problem = Problem {
            status: 422,
            detail: "not changed".to_owned(),
            errors: vec![fault],
            ..Problem::default()
        };
        assert_eq!(
            Failure::of_problem(&problem),
            Failure::Usage("not changed\n  /site: too long".to_owned())
        );
    }
}
