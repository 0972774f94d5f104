//! The topics of boards in the field, and which of them a device may speak on and hear. Pure.
//!
//! `clawland/{id}/…`, and an older tree `microclaw/…` that names nobody. Deny by default; what a payload says is not
//! read here.

use fleet_schemas::topic::check_form;

use super::{Denial, filter_form};

/// Where a device speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place<'t> {
    /// The id in the topic; the older tree has none.
    pub id: Option<&'t str>,
    /// What for.
    pub leaf: Leaf<'t>,
}

/// What a device speaks of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leaf<'t> {
    /// `sensors/{type}`: one sample.
    Sensor(&'t str),
    /// `sensors`: some samples, each with its name.
    Sensors,
    /// `status`: how it is.
    Status,
    /// `deep_sleep`: what it measured, before it sleeps again.
    DeepSleep,
    /// `batch`: samples, which may be of other devices.
    Batch,
}

/// Whose commands a device hears, and in which tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cmd<'t> {
    /// `clawland/{id}/cmd`, also by a wildcard below the id.
    Of(&'t str),
    /// `microclaw/commands`.
    Unnamed,
}

const ROOT: &str = "clawland";
const OLD_ROOT: &str = "microclaw";

/// Reads the topic of a publish.
///
/// # Errors
/// [`Denial::Form`] for what is no topic, [`Denial::NotYours`] for one that is not for devices.
pub fn place(topic: &str) -> Result<Place<'_>, Denial> {
    check_form(topic).map_err(|_| Denial::Form)?;
    if topic.contains(['+', '#']) {
        return Err(Denial::Form);
    }
    let levels: Vec<_> = topic.split('/').collect();
    let (id, leaf) = match *levels.as_slice() {
        [ROOT, id, "sensors", kind] if !kind.is_empty() => (Some(id), Leaf::Sensor(kind)),
        [ROOT, id, "sensors"] => (Some(id), Leaf::Sensors),
        [ROOT, id, "status"] => (Some(id), Leaf::Status),
        [ROOT, id, "deep_sleep"] => (Some(id), Leaf::DeepSleep),
        [ROOT, id, "batch"] => (Some(id), Leaf::Batch),
        [OLD_ROOT, "sensors", kind] if !kind.is_empty() => (None, Leaf::Sensor(kind)),
        [OLD_ROOT, "sensors"] => (None, Leaf::Sensors),
        [OLD_ROOT, "status"] => (None, Leaf::Status),
        [OLD_ROOT, "deep_sleep"] => (None, Leaf::DeepSleep),
        _ => return Err(Denial::NotYours),
    };
    if id.is_some_and(str::is_empty) {
        return Err(Denial::NotYours);
    }
    Ok(Place { id, leaf })
}

/// Reads the filter of a subscription. A wildcard that would hear others is none of a device's.
///
/// # Errors
/// [`Denial`].
pub fn cmd(filter: &str) -> Result<Cmd<'_>, Denial> {
    filter_form(filter)?;
    let levels: Vec<_> = filter.split('/').collect();
    match *levels.as_slice() {
        [ROOT, id, "cmd" | "+" | "#"] | [ROOT, id, "cmd", "#"] if !id.is_empty() && id != "+" => {
            Ok(Cmd::Of(id))
        }
        [OLD_ROOT, "commands" | "+" | "#"] | [OLD_ROOT, "commands", "#"] => Ok(Cmd::Unnamed),
        _ => Err(Denial::NotYours),
    }
}

/// The topic of commands to a device.
#[must_use]
pub fn cmd_topic(id: &str, old_tree: bool) -> String {
    if old_tree { format!("{OLD_ROOT}/commands") } else { format!("{ROOT}/{id}/cmd") }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn boards_speak_where_they_do_in_the_field() {
        let at = |topic| place(topic).map(|place| (place.id, place.leaf));
        assert_eq!(at("clawland/shed/sensors/temperature"), Ok((Some("shed"), Leaf::Sensor("temperature"))));
        assert_eq!(at("clawland/shed/status"), Ok((Some("shed"), Leaf::Status)));
        assert_eq!(at("clawland/gw/batch"), Ok((Some("gw"), Leaf::Batch)));
        assert_eq!(at("clawland/shed/deep_sleep"), Ok((Some("shed"), Leaf::DeepSleep)));
        assert_eq!(at("microclaw/sensors"), Ok((None, Leaf::Sensors)));
        for bad in [
            "clawland//status",
            "clawland/shed",
            "clawland/shed/cmd",
            "clawland/shed/sensors/",
            "clawland/shed/sensors/a/b",
            "microclaw/commands",
            "microclaw/batch",
            "fleet/v1/edge-1/up/telemetry",
            "$SYS/x",
            "status",
        ] {
            assert_eq!(place(bad), Err(Denial::NotYours), "{bad}");
        }
        for bad in ["", "clawland/+/status", "clawland/é/status", "clawland/shed/#"] {
            assert_eq!(place(bad), Err(Denial::Form), "{bad}");
        }
    }

    #[test]
    fn a_device_hears_its_own_commands_alone() {
        for good in ["clawland/shed/cmd", "clawland/shed/#", "clawland/shed/+", "clawland/shed/cmd/#"] {
            assert_eq!(cmd(good), Ok(Cmd::Of("shed")), "{good}");
            assert!(super::super::covers(good, &cmd_topic("shed", false)), "{good}");
        }
        assert_eq!(cmd("microclaw/commands"), Ok(Cmd::Unnamed));
        for bad in
            ["#", "clawland/#", "clawland/+/cmd", "clawland//cmd", "clawland/shed/status", "fleet/v1/#"]
        {
            assert_eq!(cmd(bad), Err(Denial::NotYours), "{bad}");
        }
        assert_eq!(cmd("$share/g/clawland/shed/cmd"), Err(Denial::Shared));
    }

    proptest! {
        #[test]
        fn no_accepted_place_or_filter_is_outside_of_both_trees(
            words in proptest::collection::vec(prop_oneof![
                Just("clawland"), Just("microclaw"), Just("me"), Just("you"), Just("sensors"), Just("status"),
                Just("batch"), Just("cmd"), Just("commands"), Just("+"), Just("#"), Just(""), Just("$share"), Just("é"),
            ], 0..6),
        ) {
            let text = words.join("/");
            if let Ok(place) = place(&text) {
                let root = place.id.map_or_else(|| "microclaw/".to_owned(), |id| format!("clawland/{id}/"));
                prop_assert!(text.starts_with(&root) && !text.contains(['+', '#']));
                // Where a command would go; a sensor may be called `cmd`.
                prop_assert_ne!(&text, &cmd_topic(place.id.unwrap_or_default(), place.id.is_none()));
            }
            if let Ok(Cmd::Of(id)) = cmd(&text) {
                prop_assert!(super::super::covers(&text, &cmd_topic(id, false)));
                prop_assert!(!super::super::covers(&text, &cmd_topic("another", false)) && id != "+");
            }
        }
    }
}
