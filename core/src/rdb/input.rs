//! What has arrived of an RDB stream and was not read yet.

use super::checksum::Checksum;
use super::cursor::{Cursor, Limits};

/// A buffer that grows at its end as chunks arrive and is read from its front, with the checksum of what was read.
/// It holds what was fed and not consumed, never more than twice that; it is the feeder who stops feeding while the
/// reader makes progress with what it has.
pub struct Input {
    buffer: Vec<u8>,
    /// Bytes of `buffer` that were consumed.
    consumed: usize,
    /// Bytes of `buffer` that the checksum covers: hashing lags behind consuming so that it sees long pieces.
    hashed: usize,
    /// Position in the file of the buffer's first byte.
    base: u64,
    is_whole: bool,
    checksum: Option<Checksum>,
    limits: Limits,
}

impl Input {
    /// With `verify`, checksums are computed (`rdbchecksum`).
    pub fn new(limits: Limits, verify: bool) -> Self {
        Input {
            buffer: Vec::new(),
            consumed: 0,
            hashed: 0,
            base: 0,
            is_whole: false,
            checksum: verify.then(Checksum::default),
            limits,
        }
    }

    /// More has arrived.
    ///
    /// # Panics
    /// After [`Input::finish`].
    pub fn feed(&mut self, chunk: &[u8]) {
        assert!(!self.is_whole, "fed after the end");
        // Moving what is left costs at most what was consumed.
        if self.consumed >= self.buffer.len() - self.consumed {
            self.drop_consumed();
        }
        self.buffer.extend_from_slice(chunk);
    }

    /// Nothing more will arrive: from now on a short read is a fault.
    pub fn finish(&mut self) {
        self.is_whole = true;
    }

    /// A cursor over what was not consumed yet. What it read has to be consumed explicitly.
    pub fn cursor(&self) -> Cursor<'_> {
        Cursor::over(&self.buffer[self.consumed..], self.position(), self.is_whole, self.limits)
    }

    /// Moves on.
    ///
    /// # Panics
    /// If there are fewer bytes.
    pub fn consume(&mut self, len_bytes: usize) {
        assert!(len_bytes <= self.buffered_bytes(), "consumed more than there is");
        self.consumed += len_bytes;
    }

    /// Position in the file of the next byte to be read.
    pub fn position(&self) -> u64 {
        self.base + self.consumed as u64
    }

    /// Bytes that arrived and were not consumed.
    pub fn buffered_bytes(&self) -> usize {
        self.buffer.len() - self.consumed
    }

    /// The checksum of everything consumed, if it is computed.
    pub(super) fn checksum(&mut self) -> Option<u64> {
        self.hash();
        self.checksum.as_ref().map(Checksum::value)
    }

    /// The buffer, to be freed.
    pub fn into_buffer(self) -> Vec<u8> {
        self.buffer
    }

    /// Takes out what was not consumed: behind a snapshot the replication stream goes on.
    pub fn take_rest(&mut self) -> Vec<u8> {
        self.hash();
        let rest = self.buffer.split_off(self.consumed);
        self.drop_consumed();
        rest
    }

    fn hash(&mut self) {
        if let Some(checksum) = &mut self.checksum {
            checksum.update(&self.buffer[self.hashed..self.consumed]);
        }
        self.hashed = self.consumed;
    }

    fn drop_consumed(&mut self) {
        self.hash();
        self.buffer.drain(..self.consumed);
        self.base += self.consumed as u64;
        self.consumed = 0;
        self.hashed = 0;
    }
}
