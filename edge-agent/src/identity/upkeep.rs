//! Keeps the identity of a running agent in its time: asks whom to trust, renews the certificate, writes down what
//! changed.
//!
//! The only task that changes the folder `identity/`. Nothing here ends a session: what it brings takes effect with
//! the next.

use std::{sync::Arc, time::Duration};

use fleet_schemas::enrol::Renew;
use tokio::{select, task, time};
use tracing::{error, info, warn};

use super::{
    https,
    live::Live,
    record::{Pair, Unfit, check_cas, check_issued},
};
use crate::{
    clock::{self, Clock},
    core::{Now, renewal},
    outbox,
    stop::Stop,
};

/// Longest sleep: the hub's time, which acks bring, is looked at this often.
const LOOK: Duration = Duration::from_secs(600);
/// Spreads the first questions of a fleet that started at once.
const FIRST: Duration = Duration::from_secs(5);
/// The first pause after a failure is this part of the time between two questions: a minute of six hours.
const RETRY_FIRST: u32 = 360;
/// The last one: an hour of six.
const RETRY_LAST: u32 = 6;

/// Keeps `live` in its time until told to stop. `every` is the time between two questions whom to trust.
pub(crate) async fn run(
    live: Arc<Live>,
    every: Duration,
    clock: Clock,
    outbox: outbox::Handle,
    mut stop: Stop,
) {
    let now = clock.now();
    let ended = live.now_ms(now) >= live.life().not_after_ms;
    if !ended {
        live.settle();
    }
    let first = if ended { Duration::ZERO } else { clock::jitter(FIRST.min(every)) };
    let mut upkeep = Upkeep {
        live,
        every,
        clock,
        trust_due: now.up + first,
        trust_failures: 0,
        ca_changed: false,
        renewal_due: now.up + first,
        renewal_failures: 0,
        waited: false,
    };
    loop {
        let pause = select! {
            pause = upkeep.round(&outbox) => pause,
            () = stop.wanted() => break,
        };
        select! {
            () = time::sleep(pause) => {}
            () = stop.wanted() => break,
        }
    }
    upkeep.save().await;
}

struct Upkeep {
    live: Arc<Live>,
    every: Duration,
    clock: Clock,
    trust_due: Duration,
    trust_failures: u32,
    // The hub signs with another CA now than the one that signed our certificate.
    ca_changed: bool,
    renewal_due: Duration,
    // Renewals that did not lead to a session.
    renewal_failures: u32,
    // Whether a renewed pair waited for its first session.
    waited: bool,
}

/// What went wrong, of several kinds; only told.
type Told = Box<dyn std::error::Error + Send + Sync>;

impl Upkeep {
    /// Does what is due and gives the time until there may be more to do.
    async fn round(&mut self, outbox: &outbox::Handle) -> Duration {
        if let Ok(status) = outbox.status().await
            && let (Some(hub_ms), Some(at)) = (status.hub_ms, status.last_ack)
        {
            self.live.hear(hub_ms, at, self.clock.now());
        }
        if self.clock.now().up >= self.trust_due {
            self.ask_trust().await;
        }
        let waits = self.live.waits();
        if std::mem::replace(&mut self.waited, waits) && !waits {
            self.renewal_failures = 0;
        }
        let now = self.clock.now();
        let now_ms = self.live.now_ms(now);
        if now.up >= self.renewal_due && (self.ca_changed || now_ms >= self.live.life().renew_ms()) {
            self.renew().await;
        }
        self.live.settle();
        self.live.judge_session(self.live.now_ms(self.clock.now()));
        self.save().await;
        self.pause(self.clock.now())
    }

    fn pause(&self, now: Now) -> Duration {
        let until_ms = self.live.life().renew_ms().saturating_sub(self.live.now_ms(now));
        let until = Duration::from_millis(u64::try_from(until_ms).unwrap_or(0));
        let until = if self.ca_changed { Duration::ZERO } else { until };
        let renewal = until.max(self.renewal_due.saturating_sub(now.up));
        renewal.min(self.trust_due.saturating_sub(now.up)).min(LOOK)
    }

    async fn ask_trust(&mut self) {
        match self.try_trust().await {
            Ok(()) => {
                self.trust_failures = 0;
                self.trust_due = self.clock.now().up + clock::jitter(self.every);
            }
            Err(error) => {
                self.trust_failures = self.trust_failures.saturating_add(1);
                let again_in = self.after(self.trust_failures);
                self.trust_due = self.clock.now().up + again_in;
                warn!(hub = %self.live.https(), ?again_in, "cannot ask the hub which CAs to trust: {error}");
            }
        }
    }

    async fn try_trust(&mut self) -> Result<(), Told> {
        let trust = https::trust(&self.live.https(), self.live.anonymous()?).await?;
        check_cas(&trust.ca)?;
        let now = self.clock.now();
        self.live.hear(trust.hub_ms, now.up, now);
        self.live.trust(trust.ca, trust.releases_root)?;
        self.ca_changed = !self.live.is_of_first_ca();
        Ok(())
    }

    async fn renew(&mut self) {
        match self.try_renew().await {
            Ok(()) => {
                // It counts as a failure until the new one has opened a session: a hub that gives what it does not
                // take, or what is due at once, must not be asked without end.
                self.renewal_failures = self.renewal_failures.saturating_add(1);
                self.renewal_due = self.clock.now().up + self.after(self.renewal_failures);
                self.waited = true;
                self.ca_changed = false;
                info!("the hub renewed this node's certificate; the next session uses it");
            }
            Err(error) => {
                self.renewal_failures = self.renewal_failures.saturating_add(1);
                let again_in = self.after(self.renewal_failures);
                self.renewal_due = self.clock.now().up + again_in;
                warn!(hub = %self.live.https(), ?again_in, "cannot renew this node's certificate: {error}");
            }
        }
    }

    async fn try_renew(&mut self) -> Result<(), Told> {
        let key = self.live.next_key();
        // On disk before the hub hears of it, so that an answer that is lost is given again.
        self.store().await?;
        let (which, tls) = self.live.dial();
        let issued = https::renew(&self.live.https(), tls, &Renew { csr: key.request()? }).await;
        // The other pair may be the one that the hub takes.
        let issued = issued.inspect_err(|_| self.live.take_turns(which))?;
        check_issued(&issued, &key)?;
        if issued.node != *self.live.node() {
            return Err(Unfit::Other.into());
        }
        let now = self.clock.now();
        self.live.hear(issued.trust.hub_ms, now.up, now);
        self.live.trust(issued.trust.ca, issued.trust.releases_root)?;
        self.live.renewed(Pair { key, certificate: issued.certificate })?;
        Ok(())
    }

    fn after(&self, failures: u32) -> Duration {
        clock::jitter(renewal::pause(failures, self.every / RETRY_FIRST, self.every / RETRY_LAST))
    }

    async fn save(&self) {
        if let Err(error) = self.store().await {
            error!(
                "the node's identity cannot be written down, tried again in {LOOK:?} at the latest: {error}"
            );
        }
    }

    /// Off this thread: a flash card may take its time.
    async fn store(&self) -> Result<(), Told> {
        let live = self.live.clone();
        task::spawn_blocking(move || live.save()).await??;
        Ok(())
    }
}
