//! How the link to one master has fared: since when it is up or down, and how often it was tried.

/// See the module.
#[derive(Debug, Default)]
pub(super) struct History {
    up_since_ms: Option<u64>,
    /// None: it is up, or never was.
    down_since_ms: Option<u64>,
    /// How long it was down between two times that it was up.
    mended_ms: u64,
    attempts: u64,
    total_attempts: u64,
}

/// What there is to tell of the past of a link.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HistoryReport {
    /// Since the link was made; None: it is down.
    pub up_since_ms: Option<u64>,
    /// Since the link was lost; None: it is up, or never was.
    pub down_since_ms: Option<u64>,
    /// How long it has been down in all, since it was first up.
    pub down_total_ms: u64,
    /// Attempts to connect since the link was last lost, and in all.
    pub attempts: u64,
    pub total_attempts: u64,
}

impl History {
    pub(super) fn attempted(&mut self) {
        self.attempts += 1;
        self.total_attempts += 1;
    }

    pub(super) fn is_up(&mut self, now_ms: u64) {
        self.up_since_ms = Some(now_ms);
        self.mended_ms += self.down_since_ms.take().map_or(0, |since_ms| now_ms.saturating_sub(since_ms));
    }

    /// It is lost, or the one to the master before this was.
    pub(super) fn is_down(&mut self, now_ms: u64) {
        self.up_since_ms = None;
        self.down_since_ms = Some(now_ms);
        self.attempts = 0;
    }

    pub(super) fn has_been_up(&self) -> bool {
        self.up_since_ms.is_some() || self.down_since_ms.is_some()
    }

    pub(super) fn report(&self, now_ms: u64) -> HistoryReport {
        let ago = |since_ms: Option<u64>| since_ms.map(|since_ms| now_ms.saturating_sub(since_ms));
        let down_since_ms = ago(self.down_since_ms);
        HistoryReport {
            up_since_ms: ago(self.up_since_ms),
            down_since_ms,
            down_total_ms: self.mended_ms + down_since_ms.unwrap_or(0),
            attempts: self.attempts,
            total_attempts: self.total_attempts,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_and_times_without_a_link_are_counted() {
        let mut history = History::default();
        history.attempted();
        history.attempted();
        let never_up = HistoryReport { attempts: 2, total_attempts: 2, ..HistoryReport::default() };
        assert_eq!(history.report(5000), never_up);
        history.is_up(5000);
        assert_eq!(history.report(6000), HistoryReport { up_since_ms: Some(1000), ..never_up });
        history.is_down(7000);
        history.attempted();
        let down = HistoryReport {
            up_since_ms: None,
            down_since_ms: Some(500),
            down_total_ms: 500,
            attempts: 1,
            total_attempts: 3,
        };
        assert_eq!(history.report(7500), down);
        history.is_up(8000);
        history.is_down(9000);
        assert_eq!(history.report(9300).down_total_ms, 1300);
    }
}
