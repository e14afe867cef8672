//! Who was let in lately: a device that comes again is let in without a question to the directory.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use dunlin_model::{Clock, Timestamp};

use crate::{
    config::AdmissionConfig,
    directory::{Admitted, Credential, Denied, Directory},
    table::Table,
};

#[derive(Debug, Clone)]
pub(crate) struct Admissions(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    directory: Arc<dyn Directory>,
    clock: Clock,
    valid: Duration,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    known: Table<Credential, Option<Known>>,
    /// An answer from before a revocation may not know of it.
    revocations: u64,
}

#[derive(Debug)]
struct Known {
    who: Admitted,
    since: Timestamp,
}

impl Admissions {
    pub(crate) fn new(config: &AdmissionConfig, directory: Arc<dyn Directory>, clock: Clock) -> Self {
        let state = State { known: Table::new(config.credentials_max), revocations: 0 };
        let valid = Duration::from_secs(config.valid_seconds.into());
        Self(Arc::new(Inner { directory, clock, valid, state: Mutex::new(state) }))
    }

    /// The device that shows this credential.
    pub(crate) async fn admit(&self, credential: &Credential) -> Result<Admitted, Denied> {
        let revocations = match self.0.known(credential) {
            Ok(who) => return Ok(who),
            Err(revocations) => revocations,
        };
        let who = self.0.directory.admit_by(credential).await?;
        self.0.remember(credential, &who, revocations);
        Ok(who)
    }

    /// The directory has taken something back: whoever comes now is asked about again.
    pub(crate) fn forget_all(&self) {
        let mut state = self.0.lock();
        state.revocations += 1;
        state.known.clear();
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who it is, or how many revocations there were when that was not known.
    fn known(&self, credential: &Credential) -> Result<Admitted, u64> {
        let now = self.clock.now();
        let state = self.lock();
        match state.known.get(credential) {
            // A clock that was set back makes nothing valid for longer.
            Some(Some(known)) if now >= known.since && now < known.since + self.valid => {
                Ok(known.who.clone())
            }
            _ => Err(state.revocations),
        }
    }

    fn remember(&self, credential: &Credential, who: &Admitted, revocations: u64) {
        let known = Known { who: who.clone(), since: self.clock.now() };
        let mut state = self.lock();
        if state.revocations == revocations && !self.valid.is_zero() {
            *state.known.entry(credential.clone()) = Some(known);
        }
    }
}

#[cfg(test)]
mod tests;
