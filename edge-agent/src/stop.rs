//! The word that tells tasks to stop, and the ear that waits for it.

use tokio::sync::watch;

/// Hears that the agent stops. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Stop(watch::Receiver<bool>);

/// Says that the agent stops; dropping it says so as well.
#[derive(Debug)]
pub(crate) struct Stopper(watch::Sender<bool>);

pub(crate) fn channel() -> (Stopper, Stop) {
    let (stopper, stop) = watch::channel(false);
    (Stopper(stopper), Stop(stop))
}

impl Stopper {
    pub(crate) fn stop(&self) {
        self.0.send_replace(true);
    }
}

impl Stop {
    /// Returns once the agent stops. Safe to cancel.
    pub(crate) async fn wanted(&mut self) {
        // An error says that the stopper was dropped.
        let _ = self.0.wait_for(|stop| *stop).await;
    }

    /// Whether the agent stops.
    pub(crate) fn is_wanted(&self) -> bool {
        *self.0.borrow() || self.0.has_changed().is_err()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_dropped_stopper_stops_too() {
        let (stopper, mut stop) = channel();
        assert!(!stop.is_wanted());
        drop(stopper);
        assert!(stop.is_wanted());
        stop.wanted().await;
        let (stopper, mut stop) = channel();
        stopper.stop();
        assert!(stop.is_wanted());
        stop.wanted().await;
    }
}
