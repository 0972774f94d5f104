//! Who is told, and when not: silences, acknowledgements, and the first word on an alert.

use super::{Acknowledged, Alert, AlertError, Engine, SILENCE_DAYS, SILENCES, Silence, Stage, Word};

impl Engine {
    /// Somebody takes care of an alert. It fires on, and its end is told.
    ///
    /// # Errors
    /// [`AlertError::Unknown`].
    pub fn acknowledge(&mut self, number: u64, by: Acknowledged) -> Result<(), AlertError> {
        if !self.alerts.contains_key(&number) {
            return Err(AlertError::Unknown(number));
        }
        self.change(number, |alert| alert.acknowledged = Some(by));
        Ok(())
    }

    /// Nobody is told of what it fits until it ends. Its number is given here.
    ///
    /// # Errors
    /// [`AlertError`].
    pub fn silence(&mut self, mut silence: Silence) -> Result<u64, AlertError> {
        if self.silences.len() >= SILENCES {
            return Err(AlertError::Silences);
        }
        let furthest = silence.since_ms.saturating_add(SILENCE_DAYS * 86_400_000);
        if silence.until_ms <= silence.since_ms || silence.until_ms > furthest {
            return Err(AlertError::Until);
        }
        if silence.rule.is_none()
            && silence.node.is_none()
            && silence.device.is_none()
            && silence.site.is_none()
        {
            return Err(AlertError::Everything);
        }
        self.last_silence += 1;
        let number = self.last_silence;
        silence.number = number;
        self.effects.silences.insert(number, Some(silence.clone()));
        let fitting: Vec<u64> =
            self.alerts.values().filter(|alert| silence.fits(alert)).map(|alert| alert.number).collect();
        let since_ms = silence.since_ms;
        self.silences.insert(number, silence);
        for number in fitting {
            self.look_again(number, since_ms);
        }
        Ok(number)
    }

    /// Ends a silence before its time.
    ///
    /// # Errors
    /// [`AlertError::NoSilence`].
    pub fn unsilence(&mut self, number: u64, now_ms: i64) -> Result<Silence, AlertError> {
        let silence = self.silences.remove(&number).ok_or(AlertError::NoSilence(number))?;
        self.effects.silences.insert(number, None);
        self.speak_again(now_ms);
        Ok(silence)
    }

    /// Silences that were made and have not ended.
    pub fn silences(&self) -> impl Iterator<Item = &Silence> {
        self.silences.values()
    }

    pub(super) fn end_silences(&mut self, now_ms: i64) {
        let over = self.silences.values().filter(|silence| silence.until_ms <= now_ms);
        let over: Vec<u64> = over.map(|silence| silence.number).collect();
        if over.is_empty() {
            return;
        }
        for number in over {
            self.silences.remove(&number);
            self.effects.silences.insert(number, None);
        }
        self.speak_again(now_ms);
    }

    /// A silence has ended: what still fires is told.
    fn speak_again(&mut self, now_ms: i64) {
        let silenced = self.alerts.values().filter(|alert| alert.silenced_until_ms.is_some());
        let silenced: Vec<u64> = silenced.map(|alert| alert.number).collect();
        for number in silenced {
            self.look_again(number, now_ms);
            self.wait_to_tell(number, now_ms);
        }
        self.tell_due(now_ms);
    }

    fn look_again(&mut self, number: u64, now_ms: i64) {
        let Some(alert) = self.alerts.get(&number) else { return };
        let until_ms = self.silenced_until(alert);
        if alert.silenced_until_ms != until_ms {
            self.change(number, |alert| alert.silenced_until_ms = until_ms);
        }
        if until_ms.is_some() {
            self.hand_outage_over(number, now_ms);
        }
    }

    /// Until when nobody is told of an alert.
    pub(super) fn silenced_until(&self, alert: &Alert) -> Option<i64> {
        let fitting = self.silences.values().filter(|silence| silence.fits(alert));
        fitting.map(|silence| silence.until_ms).max()
    }

    /// An alert that fires and was not told of is told of when it may be.
    pub(super) fn wait_to_tell(&mut self, number: u64, now_ms: i64) {
        if self.alerts.get(&number).is_some_and(|alert| alert.stage == Stage::Firing && !alert.told) {
            self.untold.entry(number).or_insert(now_ms);
        }
    }

    pub(super) fn tell_due(&mut self, now_ms: i64) {
        let due: Vec<u64> =
            self.untold.iter().filter(|(_, at_ms)| **at_ms <= now_ms).map(|(number, _)| *number).collect();
        due.into_iter().for_each(|number| self.tell(number, now_ms));
    }

    /// Tells receivers that an alert fires, if they may be told now.
    pub(super) fn tell(&mut self, number: u64, now_ms: i64) {
        let due = self.untold.get(&number).is_some_and(|at_ms| *at_ms <= now_ms);
        if due {
            // Others may have gone dark since it began to fire.
            self.join_outage(number);
        }
        let quiet = |alert: &Alert| alert.inhibited_by.is_some() || alert.silenced_until_ms.is_some();
        if !due || self.alerts.get(&number).is_none_or(quiet) {
            return;
        }
        self.untold.remove(&number);
        self.describe(number);
        self.change(number, |alert| alert.told = true);
        self.effects.words.push((number, Word::Firing));
    }
}
