//! One full sync in parts, as its master's home sees it: which of its connections have come, and what became of them.

use super::{Token, end, offer};
use bytes::Bytes;

/// So long a replica may take to open its connections before it gets its snapshot on the first one.
pub const GATHER_MS: u64 = 3000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Awaited,
    Here,
    /// It came and went.
    Lost,
    /// Its RDB stream of this length is sent.
    Sent(u64),
}

/// See the module.
#[derive(Debug)]
pub struct Rendezvous {
    token: Token,
    parts: Vec<Part>,
    /// The snapshot is being sent in parts: without any of them it is nothing.
    is_sending: bool,
}

impl Rendezvous {
    /// With so many connections.
    pub fn new(count: usize, rng: &mut fastrand::Rng) -> Self {
        assert!(count > 1, "one connection is there already");
        Self { token: Token::random(rng), parts: vec![Part::Awaited; count], is_sending: false }
    }

    pub fn token(&self) -> Token {
        self.token
    }

    pub fn count(&self) -> usize {
        self.parts.len()
    }

    /// What the replica is told.
    pub fn offer(&self) -> Bytes {
        offer(self.token, self.parts.len())
    }

    /// A connection came.
    ///
    /// # Errors
    /// Nobody waits for it.
    pub fn come(&mut self, index: usize) -> Result<(), &'static str> {
        match self.parts.get_mut(index) {
            None => Err("ERR sync-part index is out of range"),
            Some(part @ Part::Awaited) if !self.is_sending => {
                *part = Part::Here;
                Ok(())
            }
            Some(Part::Awaited) => Err("ERR sync-part comes too late"),
            Some(_) => Err("ERR sync-part has come already"),
        }
    }

    /// A connection is gone. True: and with it the full sync, for part of it was still to be sent there.
    pub fn gone(&mut self, index: usize) -> bool {
        match &mut self.parts[index] {
            Part::Sent(_) => false,
            part => {
                *part = Part::Lost;
                self.is_sending
            }
        }
    }

    /// All connections are here.
    pub fn is_complete(&self) -> bool {
        self.parts.iter().all(|part| *part == Part::Here)
    }

    /// There is nothing to wait for: all are here, or never will be.
    pub fn is_settled(&self) -> bool {
        self.is_complete() || self.parts.contains(&Part::Lost)
    }

    /// The snapshot is to be sent in parts.
    ///
    /// # Panics
    /// If not all connections are here.
    pub fn begin(&mut self) {
        assert!(self.is_complete() && !self.is_sending, "all connections are here, once");
        self.is_sending = true;
    }

    pub fn is_sending(&self) -> bool {
        self.is_sending
    }

    /// A part of this length is sent.
    pub fn sent(&mut self, index: usize, len_bytes: u64) {
        // Otherwise it was lost in the same moment.
        if self.is_sending && self.parts[index] == Part::Here {
            self.parts[index] = Part::Sent(len_bytes);
        }
    }

    /// What ends the snapshot, once all parts are sent.
    pub fn end(&self) -> Option<Bytes> {
        let len_bytes = |part: &Part| match part {
            Part::Sent(len_bytes) => Some(*len_bytes),
            _ => None,
        };
        let lens: Option<Vec<u64>> = self.parts.iter().map(len_bytes).collect();
        lens.map(|lens| end(&lens))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new(count: usize) -> Rendezvous {
        Rendezvous::new(count, &mut fastrand::Rng::with_seed(3))
    }

    #[test]
    fn it_begins_when_every_connection_has_come_once() {
        let mut parts = new(3);
        assert_eq!(parts.come(3), Err("ERR sync-part index is out of range"));
        for index in [2, 0] {
            parts.come(index).unwrap();
            assert!(!parts.is_complete() && !parts.is_settled());
        }
        assert_eq!(parts.come(2), Err("ERR sync-part has come already"));
        parts.come(1).unwrap();
        assert!(parts.is_complete() && parts.is_settled());
        parts.begin();
        for (index, len_bytes) in [(1, 20), (0, 10), (2, 30)] {
            assert_eq!(parts.end(), None);
            parts.sent(index, len_bytes);
        }
        assert_eq!(parts.end(), Some(end(&[10, 20, 30])));
    }

    #[test]
    fn a_connection_that_goes_before_the_beginning_leaves_the_first_one() {
        let mut parts = new(2);
        parts.come(0).unwrap();
        assert!(!parts.gone(0), "nothing was sent yet");
        assert!(parts.is_settled() && !parts.is_complete());
        assert!(parts.come(0).is_err());
        parts.come(1).unwrap();
        assert!(!parts.is_complete());
    }

    #[test]
    fn law9_a_connection_that_goes_before_its_part_is_sent_ends_the_full_sync() {
        for sent in 0..3 {
            for lost in 0..3 {
                let mut parts = new(3);
                (0..3).for_each(|index| parts.come(index).unwrap());
                parts.begin();
                (0..sent).for_each(|index| parts.sent(index, 7));
                assert_eq!(parts.gone(lost), lost >= sent);
                // What the others still send never makes it whole, nor does word of the lost one that was on its way.
                (sent..3).for_each(|index| parts.sent(index, 7));
                assert_eq!(parts.end().is_some(), lost < sent, "{sent} sent, {lost} lost");
            }
        }
    }
}
