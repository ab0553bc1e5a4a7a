//! What waits to be sent on a connection, in pieces that are shared with others.

use bytes::Bytes;
use std::collections::VecDeque;

/// See the module.
#[derive(Default)]
pub(crate) struct SendQueue {
    pieces: VecDeque<Bytes>,
    len_bytes: u64,
}

impl SendQueue {
    pub(crate) fn push(&mut self, bytes: Bytes) {
        if !bytes.is_empty() {
            self.len_bytes += bytes.len() as u64;
            self.pieces.push_back(bytes);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    pub(crate) fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// Moves pieces to `out` until they are at least so much.
    pub(crate) fn take(&mut self, enough_bytes: u64, out: &mut Vec<Bytes>) {
        let mut taken_bytes = 0;
        while taken_bytes < enough_bytes
            && let Some(bytes) = self.pieces.pop_front()
        {
            taken_bytes += bytes.len() as u64;
            out.push(bytes);
        }
        self.len_bytes -= taken_bytes;
    }
}
