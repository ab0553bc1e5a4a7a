//! How long a shard looks for another shard's answer before it sleeps.
//!
//! Between shards that have cores of their own an answer takes about a microsecond, and sleeping and being woken takes
//! ten; where several threads share a core the answer cannot come before this one sleeps. Which of the two it is shows:
//! looking that was rewarded makes the shard more patient, looking in vain less.

use std::time::Duration;

const MIN: Duration = Duration::from_micros(12);
const MAX: Duration = Duration::from_micros(50);

/// See the module.
pub struct Patience {
    current: Duration,
    is_looking: bool,
}

impl Default for Patience {
    fn default() -> Self {
        Self { current: MAX, is_looking: false }
    }
}

impl Patience {
    /// Nothing has come for `idle`: whether to go on looking.
    pub fn lasts(&mut self, idle: Duration) -> bool {
        self.is_looking = idle < self.current;
        if !self.is_looking {
            self.current = (self.current / 2).max(MIN);
        }
        self.is_looking
    }

    /// There was something to do.
    pub fn worked(&mut self) {
        if std::mem::take(&mut self.is_looking) {
            self.current = (self.current * 2).min(MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_grows_with_success_and_shrinks_without() {
        let mut patience = Patience::default();
        let idle = MAX - Duration::from_nanos(1);
        assert!(patience.lasts(idle));
        patience.worked();
        assert!(patience.lasts(idle));
        assert!(!patience.lasts(MAX));
        assert!(!patience.lasts(idle), "half as long");
        for _ in 0..10 {
            patience.lasts(MAX);
        }
        assert!(patience.lasts(MIN / 2));
        patience.worked();
        assert!(patience.lasts(MIN + MIN / 2), "twice as long");
        patience.worked();
        patience.worked();
        assert!(!patience.lasts(idle), "work that came without looking teaches nothing");
    }
}
