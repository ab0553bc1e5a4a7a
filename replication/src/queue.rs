//! What waits to be sent on a connection, in pieces that are shared with others.

use bytes::Bytes;
use std::collections::VecDeque;

/// See the module.
#[derive(Default)]
pub(crate) struct SendQueue {
    pieces: VecDeque<Bytes>,
    /// Of the first piece, which is long, so much was taken.
    taken_bytes: usize,
    /// What is not taken.
    len_bytes: u64,
    /// A long piece all of which was taken, until that is sent: freeing what is left of it at the end is freeing it.
    long: Option<Bytes>,
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

    /// Moves pieces to `out` until they are at least so much, and less than twice that: a longer piece goes out in several
    /// sends, each of which shows that it gets on.
    pub(crate) fn take(&mut self, enough_bytes: u64, out: &mut Vec<Bytes>) {
        let mut out_bytes = 0;
        while out_bytes < enough_bytes
            && let Some(first) = self.pieces.pop_front()
        {
            let part =
                if first.len() as u64 <= enough_bytes { first } else { self.part(first, enough_bytes) };
            out_bytes += part.len() as u64;
            out.push(part);
        }
        self.len_bytes -= out_bytes;
    }

    /// The next part of the first piece, which is long.
    fn part(&mut self, first: Bytes, max_bytes: u64) -> Bytes {
        let from = self.taken_bytes;
        self.taken_bytes = first.len().min(from + max_bytes as usize);
        let part = first.slice(from..self.taken_bytes);
        if self.taken_bytes < first.len() {
            self.pieces.push_front(first);
        } else {
            self.taken_bytes = 0;
            self.long = Some(first);
        }
        part
    }

    /// Nothing more is sent: what is left, for who can free it.
    pub(crate) fn into_pieces(self) -> impl Iterator<Item = Bytes> {
        self.long.into_iter().chain(self.pieces)
    }

    /// What was taken is sent. Returns a long piece that this was the end of, for who can free it.
    pub(crate) fn sent(&mut self) -> Option<Bytes> {
        self.long.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_send_is_bounded_however_long_a_piece_is() {
        let mut queue = SendQueue::default();
        let long: Vec<u8> = (0..1000u32).map(|n| n as u8).collect();
        let stream = [&[1; 30][..], &long, &[2; 99], &[3; 99]].concat();
        for piece in [&[1; 30][..], &long, &[2; 99], &[3; 99]] {
            queue.push(Bytes::copy_from_slice(piece));
        }
        let mut sent = Vec::new();
        while !queue.is_empty() {
            let mut out = Vec::new();
            queue.take(100, &mut out);
            let taken = out.concat();
            drop(out);
            assert!(!taken.is_empty() && taken.len() < 200, "{}", taken.len());
            sent.extend(taken);
            let whole = queue.sent();
            assert_eq!(whole.is_some(), sent.len() == 30 + long.len(), "{}", sent.len());
            assert!(whole.is_none_or(|whole| whole.is_unique() && whole[..] == long[..]));
            assert_eq!(queue.len_bytes(), (stream.len() - sent.len()) as u64);
        }
        assert_eq!(sent, stream);
    }
}
