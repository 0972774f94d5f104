//! Whether two machines, or two programs of one, take turns under one id.
//!
//! A boot never comes back once another began, and neither does a process: whoever returns was there all the time. A
//! node that roams, restarts or reboots returns to nothing. In memory only: after a hub's start it takes two more turns
//! to see it again.

/// A boot or a process.
pub type Id = [u8; 8];

/// Processes remembered: those that spoke last.
const INSTANCES: usize = 4;
/// Pairs that were reported and are not reported again.
const REPORTED: usize = 8;

/// Who spoke under one id.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Twins {
    // Latest last.
    instances: Vec<Id>,
    reported: Vec<(Id, Id)>,
}

impl Twins {
    /// Learns of a birth: a boot that returned, with the one that was there meanwhile, and the process. Says whether
    /// this is a pair that was not reported yet.
    pub fn born(&mut self, returned_boot: Option<(Id, Id)>, instance: Option<Id>) -> bool {
        let returned = instance.and_then(|instance| self.returned(instance));
        // Two machines differ in both: their boots name the pair, as they outlive a restart.
        let Some((one, other)) = returned_boot.or(returned) else { return false };
        let pair = (one.min(other), one.max(other));
        if self.reported.contains(&pair) {
            return false;
        }
        if self.reported.len() >= REPORTED {
            self.reported.remove(0);
        }
        self.reported.push(pair);
        true
    }

    /// Makes a process the latest; if it was there before the one that was the latest, gives both.
    fn returned(&mut self, instance: Id) -> Option<(Id, Id)> {
        let latest = self.instances.last().copied();
        if latest == Some(instance) {
            return None;
        }
        let known = self.instances.iter().position(|known| *known == instance);
        if known.is_some() || self.instances.len() >= INSTANCES {
            self.instances.remove(known.unwrap_or(0));
        }
        self.instances.push(instance);
        latest.filter(|_| known.is_some()).map(|latest| (instance, latest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(births: &[u8]) -> Vec<bool> {
        let mut twins = Twins::default();
        births.iter().map(|birth| twins.born(None, Some([*birth; 8]))).collect()
    }

    #[test]
    fn two_that_take_turns_are_told_once_and_a_third_once_more() {
        assert_eq!(told(&[1, 2, 1, 2, 1]), [false, false, true, false, false]);
        assert_eq!(told(&[1, 2, 1, 3, 1, 3]), [false, false, true, false, true, false]);
    }

    #[test]
    fn one_that_roams_or_restarts_is_never_told() {
        assert!(!told(&[1, 1, 1, 1]).contains(&true));
        assert!(!told(&(0..50).collect::<Vec<_>>()).contains(&true));
    }

    #[test]
    fn boots_that_return_name_the_pair_when_processes_change() {
        let mut twins = Twins::default();
        let (a, b) = ([0xa; 8], [0xb; 8]);
        assert!(!twins.born(None, Some([1; 8])) && !twins.born(None, Some([2; 8])));
        assert!(twins.born(Some((a, b)), Some([3; 8])));
        assert!(!twins.born(Some((b, a)), Some([4; 8])), "the same two");
        // An agent of before `instance` has its boot only.
        assert!(!twins.born(Some((a, b)), None));
        assert!(!Twins::default().born(None, None));
    }
}
