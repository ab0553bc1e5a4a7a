//! Listeners whose accepting failed, mostly because no file descriptor is left. The kernel says so again at once, so trying
//! again waits a while: connections wait in the listeners' queues meanwhile.

use crate::log_warning;
use crate::ring::Token;
use std::io;
use std::time::{Duration, Instant};

/// How long a listener rests.
const REST: Duration = Duration::from_millis(100);

/// See the module.
#[derive(Default)]
pub struct Accepting {
    resting: Vec<Token>,
    again_at: Option<Instant>,
    /// Nothing was accepted since a failure was told.
    has_told: bool,
}

impl Accepting {
    /// Accepting on this listener has failed, and stopped.
    pub fn failed(&mut self, listener: Token, error: &io::Error, now: Instant) {
        if !std::mem::replace(&mut self.has_told, true) {
            log_warning!("Accepting client connection: {error}");
        }
        self.resting.push(listener);
        self.again_at.get_or_insert(now + REST);
    }

    pub fn succeeded(&mut self) {
        self.has_told = false;
    }

    /// The listeners that are to accept again.
    pub fn due(&mut self, now: Instant) -> Vec<Token> {
        if self.again_at.is_none_or(|at| now < at) {
            return Vec::new();
        }
        self.again_at = None;
        std::mem::take(&mut self.resting)
    }

    /// When some are.
    pub fn deadline(&self) -> Option<Instant> {
        self.again_at
    }
}
