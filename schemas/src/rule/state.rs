//! The states of one (rule, device): ok, pending, firing.
//!
//! Pure: `(rule, view, now)` in, what changed out. Times are Unix milliseconds, so that a state can be kept on disk; a
//! clock that was set back only makes a wait begin anew.

use serde::{Deserialize, Serialize};

use super::{Rule, View};

/// Where an alert of one device stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// The condition does not hold.
    #[default]
    Ok,
    /// It holds, but not yet for long enough, or too soon after the last time.
    Pending {
        /// Since when, Unix milliseconds.
        since_ms: i64,
    },
    /// It holds, and whoever wants to know was told.
    Firing {
        /// Since when, Unix milliseconds.
        since_ms: i64,
    },
}

/// What is remembered of one (rule, device).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Where it stands.
    pub phase: Phase,
    /// When it fired last, Unix milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fired_ms: Option<i64>,
}

/// What changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Transition {
    /// The condition began to hold; nothing fires yet.
    Pending,
    /// It was pending and is over before it fired.
    Dropped,
    /// It fires.
    Firing,
    /// It fired and is over.
    Resolved,
}

impl Transition {
    /// The word on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Dropped => "dropped",
            Self::Firing => "firing",
            Self::Resolved => "resolved",
        }
    }
}

impl State {
    /// Judges the rule once more. A condition that is not known leaves everything as it is.
    pub fn step(&mut self, rule: &Rule, view: &dyn View, now_ms: i64) -> Option<Transition> {
        match self.phase {
            Phase::Ok => {
                if rule.condition.holds(view, 0.0) != Some(true) {
                    return None;
                }
                self.phase = Phase::Pending { since_ms: now_ms };
                self.fire_if_due(rule, now_ms).or(Some(Transition::Pending))
            }
            Phase::Pending { since_ms } => match rule.condition.holds(view, 0.0) {
                Some(false) => {
                    self.phase = Phase::Ok;
                    Some(Transition::Dropped)
                }
                Some(true) => {
                    if since_ms > now_ms {
                        self.phase = Phase::Pending { since_ms: now_ms };
                    }
                    self.fire_if_due(rule, now_ms)
                }
                None => None,
            },
            Phase::Firing { .. } => {
                let over = match &rule.clear {
                    Some(clear) => clear.holds(view, 0.0),
                    None => rule.condition.holds(view, rule.hysteresis).map(|holds| !holds),
                };
                (over == Some(true)).then(|| {
                    self.phase = Phase::Ok;
                    Transition::Resolved
                })
            }
        }
    }

    /// When a pending alert is due to fire, if it stays so.
    #[must_use]
    pub fn due_ms(&self, rule: &Rule) -> Option<i64> {
        let Phase::Pending { since_ms } = self.phase else { return None };
        let cooled = self.fired_ms.map(|fired| fired.saturating_add(millis(rule.cooldown)));
        Some(since_ms.saturating_add(millis(rule.wait)).max(cooled.unwrap_or(i64::MIN)))
    }

    fn fire_if_due(&mut self, rule: &Rule, now_ms: i64) -> Option<Transition> {
        // It fired in the future: the clock was set back.
        self.fired_ms = self.fired_ms.filter(|fired| *fired <= now_ms);
        (self.due_ms(rule)? <= now_ms).then(|| {
            *self = Self { phase: Phase::Firing { since_ms: now_ms }, fired_ms: Some(now_ms) };
            Transition::Firing
        })
    }
}

fn millis(span: std::time::Duration) -> i64 {
    i64::try_from(span.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::{Aggregate, Fact, Scope, Series, read};
    use super::*;

    struct Latest(Option<f64>);

    impl View for Latest {
        fn value(&self, _: &Series) -> Option<f64> {
            self.0
        }
        fn last_seen_s(&self) -> Option<f64> {
            self.0
        }
        fn over(&self, _: &Series, _: Duration) -> Option<Aggregate> {
            None
        }
        fn fact(&self, _: &str) -> Option<Fact<'_>> {
            None
        }
    }

    fn rule(more: &str) -> Rule {
        let text = format!(
            "alerts: [{{id: r, sensor: s, field: t, condition: 'value > 27', severity: warn{more}}}]"
        );
        read(&text, Scope::default()).unwrap().remove(0)
    }

    /// Plays `(second, value)` and writes down what happened.
    fn play(rule: &Rule, story: &[(i64, f64)]) -> Vec<(i64, &'static str)> {
        let mut state = State::default();
        let told = story.iter().filter_map(|(second, value)| {
            let transition = state.step(rule, &Latest(Some(*value)), second * 1_000)?;
            Some((*second, transition.as_str()))
        });
        told.collect()
    }

    #[test]
    fn it_fires_at_once_and_resolves_at_once() {
        let told = play(&rule(""), &[(0, 26.0), (1, 27.0), (2, 27.1), (3, 30.0), (4, 27.0)]);
        assert_eq!(told, [(2, "firing"), (4, "resolved")]);
    }

    #[test]
    fn it_waits_for_the_condition_to_last() {
        let rule = rule(", for: 10s");
        let told = play(&rule, &[(0, 28.0), (5, 28.0), (6, 26.0), (7, 28.0), (16, 28.0), (17, 28.0)]);
        assert_eq!(told, [(0, "pending"), (6, "dropped"), (7, "pending"), (17, "firing")]);
    }

    #[test]
    fn a_value_that_flaps_at_the_threshold_fires_once_with_hysteresis() {
        let flapping: Vec<_> = (0..20).map(|n| (n, if n % 2 == 0 { 27.2 } else { 26.8 })).collect();
        assert_eq!(play(&rule(", hysteresis: 1.0"), &flapping), [(0, "firing")]);
        assert_eq!(
            play(&rule(", hysteresis: 1.0"), &[(0, 28.0), (1, 26.0)]),
            [(0, "firing"), (1, "resolved")]
        );
        assert_eq!(play(&rule(""), &flapping).len(), 20);
    }

    #[test]
    fn a_condition_to_clear_takes_the_place_of_hysteresis() {
        let told = play(&rule(", clear: 'value < 25'"), &[(0, 28.0), (1, 26.0), (2, 25.0), (3, 24.9)]);
        assert_eq!(told, [(0, "firing"), (3, "resolved")]);
    }

    #[test]
    fn within_the_cooldown_it_is_pending_and_fires_when_that_ends() {
        let rule = rule(", cooldown_s: 60");
        let told =
            play(&rule, &[(0, 28.0), (1, 20.0), (2, 28.0), (3, 20.0), (4, 28.0), (59, 28.0), (60, 28.0)]);
        let expected =
            [(0, "firing"), (1, "resolved"), (2, "pending"), (3, "dropped"), (4, "pending"), (60, "firing")];
        assert_eq!(told, expected);
    }

    #[test]
    fn what_is_not_known_changes_nothing() {
        let rule = rule("");
        let mut state = State::default();
        assert_eq!(state.step(&rule, &Latest(None), 0), None);
        assert_eq!(state.step(&rule, &Latest(Some(28.0)), 1), Some(Transition::Firing));
        assert_eq!(state.step(&rule, &Latest(None), 2), None);
        assert_eq!(state.phase, Phase::Firing { since_ms: 1 });
    }

    #[test]
    fn a_clock_that_was_set_back_wedges_nothing() {
        let rule = rule(", for: 10s, cooldown_s: 60");
        let hot = Latest(Some(28.0));
        let mut state = State { phase: Phase::Ok, fired_ms: Some(i64::MAX) };
        assert_eq!(state.step(&rule, &hot, 100_000), Some(Transition::Pending));
        assert_eq!(state.step(&rule, &hot, 0), None);
        assert_eq!(state.step(&rule, &hot, 10_000), Some(Transition::Firing));
    }

    #[test]
    fn a_state_can_be_kept() {
        let state = State { phase: Phase::Firing { since_ms: 5 }, fired_ms: Some(5) };
        let bytes = crate::cbor::encode(&state);
        assert_eq!(crate::cbor::decode::<State>(&bytes).unwrap(), state);
    }
}
