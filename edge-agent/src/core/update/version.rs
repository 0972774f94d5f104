//! Which of two versions is higher.

use std::cmp::Ordering;

use fleet_schemas::update::Kind;
use semver::Version;

/// Compares two versions of a kind: by semantic versioning where both are of it, which skills and the agent have to be;
/// else number by number and word by word, as `2024.10` is higher than `2024.9`.
#[must_use]
pub fn compare(left: &str, right: &str) -> Ordering {
    match (Version::parse(left), Version::parse(right)) {
        (Ok(left), Ok(right)) => left.cmp_precedence(&right),
        _ => natural(left, right),
    }
}

/// Whether a version may be one of this kind.
#[must_use]
pub fn fits(kind: Kind, version: &str) -> bool {
    match kind {
        Kind::Skill | Kind::Agent => Version::parse(version).is_ok(),
        Kind::Firmware | Kind::DeviceFirmware => true,
    }
}

fn natural(left: &str, right: &str) -> Ordering {
    let (mut left, mut right) = (left, right);
    loop {
        let ((one, rest), (other, others)) = (piece(left), piece(right));
        let order = match (number(one), number(other)) {
            (Some(one), Some(other)) => one.len().cmp(&other.len()).then_with(|| one.cmp(other)),
            _ => one.cmp(other),
        };
        if order.is_ne() || (one.is_empty() && other.is_empty()) {
            return order;
        }
        (left, right) = (rest, others);
    }
}

/// The digits, or what is none, that a text begins with.
fn piece(text: &str) -> (&str, &str) {
    let digit = text.starts_with(|c: char| c.is_ascii_digit());
    let end = text.find(|c: char| c.is_ascii_digit() != digit).unwrap_or(text.len());
    text.split_at(end)
}

/// A number without its leading zeros.
fn number(piece: &str) -> Option<&str> {
    piece.starts_with(|c: char| c.is_ascii_digit()).then(|| piece.trim_start_matches('0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_people_read_them() {
        let sorted = ["1.0.0-rc.1", "1.0.0", "1.2.0", "1.10.0", "2.0.0"];
        assert!(sorted.is_sorted_by(|left, right| compare(left, right).is_lt()));
        let sorted = ["2024.9", "2024.10", "2024.10-b2", "2024.10-b10", "v1"];
        assert!(sorted.is_sorted_by(|left, right| compare(left, right).is_lt()));
        assert_eq!(compare("1.0.0+a", "1.0.0+b"), Ordering::Equal);
        assert_eq!(compare("007", "7"), Ordering::Equal);
        assert!(fits(Kind::Firmware, "2024.10") && !fits(Kind::Skill, "2024.10"));
    }
}
