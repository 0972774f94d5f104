//! Whether a target that was verified may run on this node.

use fleet_schemas::update::{ANY_ARCH, Hours, Kind, Order, State};

use super::{FAILURES, Found, RESERVE_BYTES, Update, Verdict, View, code, version};

/// # Errors
/// How the update ends without anything being done.
pub(super) fn check(update: &Update, found: &Found, view: &View<'_>) -> Result<(), Verdict> {
    let order = &update.order;
    let Found { digest, signed, runs, needs } = found;
    let no = |code: &str, message: String| Err(Verdict::new(State::Rejected, code, message));
    if *digest != order.digest {
        return no(
            code::DIGEST,
            format!(
                "the order names {} and the signed releases say {digest}; push and sign the release again",
                order.digest
            ),
        );
    }
    let target = &order.target;
    if ![ANY_ARCH, view.arch].contains(&target.arch.as_str()) {
        return no(
            code::ARCH,
            format!("it is for {}, and this machine is {}; choose its release", target.arch, view.arch),
        );
    }
    if runs.as_ref().is_some_and(|runs| runs.digest == order.digest) {
        return Err(Verdict::new(State::Confirmed, code::RUNS, "it ran already"));
    }
    if signed.custom.epoch < view.history.epoch {
        return no(
            code::EPOCH,
            format!(
                "its security epoch is {}, and this node has confirmed {}: releases before that must not run any more",
                signed.custom.epoch, view.history.epoch
            ),
        );
    }
    check_window(order)?;
    if view.failures >= FAILURES && !order.back {
        return no(
            code::QUARANTINED,
            format!(
                "it failed {} times on this node, and is not tried again; release a version that is mended",
                view.failures
            ),
        );
    }
    check_version(order, found, view)?;
    let needs = needs.saturating_add(RESERVE_BYTES);
    if let Some(free) = view.free.filter(|free| *free < needs) {
        return no(
            code::NO_SPACE,
            format!("it needs {needs} bytes of disk, and {free} are free; remove something and try again"),
        );
    }
    Ok(())
}

fn check_window(order: &Order) -> Result<(), Verdict> {
    let hours = order.window.as_ref().and_then(|window| window.hours.as_deref());
    match hours.filter(|hours| Hours::parse(hours).is_none()) {
        None => Ok(()),
        Some(hours) => {
            let message = format!("{hours:?} are no hours; write them as 22:00-04:00");
            Err(Verdict::new(State::Rejected, code::WINDOW, message))
        }
    }
}

fn check_version(order: &Order, found: &Found, view: &View<'_>) -> Result<(), Verdict> {
    let (wanted, kind) = (order.target.version.as_str(), order.target.kind);
    let Some(runs) = &found.runs else { return Ok(()) };
    // Going back to what was good is what a rollback is for.
    if order.back && view.history.knows(order.digest) {
        return Ok(());
    }
    let ordered = match kind {
        Kind::Skill | Kind::Agent => true,
        // Their versions have no order that a node could know.
        Kind::Firmware | Kind::DeviceFirmware => false,
    };
    let lower = ordered && version::compare(wanted, runs.version.as_str()).is_lt();
    if lower && !found.signed.custom.downgrade {
        let message = format!(
            "{wanted} is lower than {}, which runs; sign the release with --downgrade if that is meant",
            runs.version
        );
        return Err(Verdict::new(State::Rejected, code::DOWNGRADE, message));
    }
    let min = found.signed.custom.min_from.as_deref();
    match min.filter(|min| version::compare(runs.version.as_str(), min).is_lt()) {
        None => Ok(()),
        Some(min) => {
            let message =
                format!("it updates from {min} or higher, and {} runs; update to {min} first", runs.version);
            Err(Verdict::new(State::Rejected, code::MIN_FROM, message))
        }
    }
}
