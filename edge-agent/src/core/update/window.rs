//! When downloading and switching may begin: the order's window, and the node's budget of bytes.

use std::time::Duration;

use fleet_schemas::update::{Hours, Window};

/// How often it is looked again whether the window opened.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// What is known about the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// The time of day in the window's zone.
    pub local: Local,
    /// Whether the machine has outside power.
    pub on_power: bool,
    /// Whether the link is paid by the byte.
    pub metered: bool,
    /// Bytes that were fetched today.
    pub spent: u64,
    /// Bytes that may be fetched in a day, if that is limited.
    pub budget: Option<u64>,
}

/// The time of day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Local {
    /// Minutes since midnight.
    Minute(u16),
    /// Nobody has told the time yet.
    Unknown,
}

/// Whether downloading and switching may begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// They may.
    Open,
    /// Not yet: why, and when to look again.
    Closed(&'static str, Duration),
}

/// Whether switching may begin. Hours that cannot be read were refused before; here they are no limit.
#[must_use]
pub fn gate(window: Option<&Window>, moment: &Moment) -> Gate {
    let Some(Window { hours, zone: _, on_power, unmetered }) = window else { return Gate::Open };
    if let Some(hours) = hours.as_deref().and_then(Hours::parse) {
        match moment.local {
            Local::Minute(minute) if hours.contains(minute) => {}
            Local::Minute(_) => return Gate::Closed("it waits for its hours", LOOK_AGAIN),
            Local::Unknown => return Gate::Closed("it waits until the node knows the time", LOOK_AGAIN),
        }
    }
    if *on_power && !moment.on_power {
        return Gate::Closed("it waits for outside power", LOOK_AGAIN);
    }
    if *unmetered && moment.metered {
        return Gate::Closed("it waits for a link that is not paid by the byte", LOOK_AGAIN);
    }
    Gate::Open
}

/// Whether bytes may be fetched.
#[must_use]
pub fn download_gate(window: Option<&Window>, moment: &Moment) -> Gate {
    match gate(window, moment) {
        Gate::Open if moment.budget.is_some_and(|budget| moment.spent >= budget) => {
            Gate::Closed("today's bytes are used up", LOOK_AGAIN)
        }
        gate => gate,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOMENT: Moment =
        Moment { local: Local::Minute(0), on_power: true, metered: false, spent: 0, budget: None };

    fn open(gate: Gate) -> bool {
        gate == Gate::Open
    }

    #[test]
    fn every_condition_can_close_it_alone() {
        let hours = |text: &str| Window { hours: Some(text.into()), ..Window::default() };
        assert!(open(gate(None, &MOMENT)));
        assert!(open(gate(Some(&hours("23:00-01:00")), &MOMENT)));
        assert!(!open(gate(Some(&hours("01:00-02:00")), &MOMENT)));
        let blind = Moment { local: Local::Unknown, ..MOMENT };
        assert!(!open(gate(Some(&hours("23:00-01:00")), &blind)));
        assert!(open(gate(Some(&Window::default()), &blind)));
        let powered = Window { on_power: true, ..Window::default() };
        assert!(open(gate(Some(&powered), &MOMENT)));
        assert!(!open(gate(Some(&powered), &Moment { on_power: false, ..MOMENT })));
        let free = Window { unmetered: true, ..Window::default() };
        assert!(!open(gate(Some(&free), &Moment { metered: true, ..MOMENT })));
        let spent = Moment { spent: 10, budget: Some(10), ..MOMENT };
        assert!(open(gate(None, &spent)) && !open(download_gate(None, &spent)));
        assert!(open(download_gate(None, &Moment { spent: 9, ..spent })));
    }
}
