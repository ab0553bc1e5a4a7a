//! What goes out: the buffer a caller fills, and the state of a send until the kernel is done with it.

use bytes::Bytes;
use io_uring::squeue::Entry;
use io_uring::{opcode, types};
use std::os::fd::RawFd;

/// Linux's IOV_MAX: the pieces one `sendmsg` accepts.
const MAX_PIECES: usize = 1024;

/// One operation's result is an `i32`; staying far below keeps sums simple. The rest follows as a continuation.
const MAX_OPERATION_LEN_BYTES: usize = 1 << 30;

/// Bytes to send, in order: own bytes, with shared pieces inserted among them.
///
/// Small replies are written into [`bytes`](Self::bytes) and leave with a plain `send`. Large values and slices of the
/// replication log are inserted by reference count and leave together with the rest in one `sendmsg`, uncopied.
#[derive(Default)]
pub struct SendBuffer {
    /// The own bytes. Append at will; never remove a byte that stands before an inserted piece.
    pub bytes: Vec<u8>,
    /// Each piece with the number of own bytes that go before it; the numbers never decrease.
    shared: Vec<(usize, Bytes)>,
    shared_len_bytes: usize,
}

impl SendBuffer {
    /// Own bytes with pieces to insert: each piece with the number of own bytes before it, ascending.
    #[must_use]
    pub fn with_pieces(bytes: Vec<u8>, shared: Vec<(usize, Bytes)>) -> Self {
        debug_assert!(shared.is_sorted_by_key(|(position, _)| *position));
        let shared_len_bytes = shared.iter().map(|(_, piece)| piece.len()).sum();
        Self { bytes, shared, shared_len_bytes }
    }

    /// Inserts `piece` after everything appended so far.
    #[cfg(test)]
    pub(super) fn push_shared(&mut self, piece: Bytes) {
        if !piece.is_empty() {
            self.shared_len_bytes += piece.len();
            self.shared.push((self.bytes.len(), piece));
        }
    }

    /// All bytes to send, own and shared.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        self.bytes.len() + self.shared_len_bytes
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len_bytes() == 0
    }

    /// Empties the buffer, keeping its allocations for the next use.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.shared.clear();
        self.shared_len_bytes = 0;
    }

    /// The contiguous pieces in sending order; none is empty.
    fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        let mut start = 0;
        let tail_start = self.shared.last().map_or(0, |(position, _)| *position);
        self.shared
            .iter()
            .flat_map(move |(position, piece)| {
                let own = &self.bytes[start..*position];
                start = *position;
                [own, &piece[..]]
            })
            .chain(std::iter::once(&self.bytes[tail_start..]))
            .filter(|piece| !piece.is_empty())
    }
}

impl From<Vec<u8>> for SendBuffer {
    fn from(bytes: Vec<u8>) -> Self {
        Self { bytes, ..Self::default() }
    }
}

impl std::fmt::Debug for SendBuffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SendBuffer({} bytes, {} shared pieces)", self.len_bytes(), self.shared.len())
    }
}

/// The header and the list of pieces of a `sendmsg`. Boxed: the kernel reads the header by address.
struct Gather {
    header: libc::msghdr,
    pieces: Vec<libc::iovec>,
}

/// A send under way. It owns the bytes until the kernel has answered, whatever the caller does meanwhile.
pub(super) struct InFlightSend {
    buffer: SendBuffer,
    len_bytes: usize,
    sent_len_bytes: usize,
    gather: Option<Box<Gather>>,
}

impl InFlightSend {
    pub(super) fn new(buffer: SendBuffer) -> Self {
        let len_bytes = buffer.len_bytes();
        Self { buffer, len_bytes, sent_len_bytes: 0, gather: None }
    }

    pub(super) fn unsent_len_bytes(&self) -> usize {
        self.len_bytes - self.sent_len_bytes
    }

    /// Notes that the kernel took `len_bytes` more.
    pub(super) fn advance(&mut self, len_bytes: usize) {
        assert!(len_bytes <= self.unsent_len_bytes(), "the kernel sent more than it was given");
        self.sent_len_bytes += len_bytes;
    }

    pub(super) fn into_buffer(self) -> SendBuffer {
        self.buffer
    }

    /// The operation that sends what is unsent, or as much of it as one operation takes.
    ///
    /// The entry points into heap allocations this value owns (which stay put when the value itself moves), so the
    /// value must live, unchanged, until the operation completes.
    pub(super) fn operation(&mut self, fd: RawFd) -> Entry {
        assert!(self.unsent_len_bytes() > 0);
        // A peer that has gone must be an error here, not a SIGPIPE for the process. No MSG_WAITALL: a short count
        // tells the owner how far a slow reader has come.
        let flags = libc::MSG_NOSIGNAL;
        if self.buffer.shared.is_empty() {
            let rest = &self.buffer.bytes[self.sent_len_bytes..];
            let len = rest.len().min(MAX_OPERATION_LEN_BYTES) as u32;
            return opcode::Send::new(types::Fd(fd), rest.as_ptr(), len).flags(flags).build();
        }
        let gather = self.gather.get_or_insert_with(|| {
            // SAFETY: msghdr is a C struct of integers and pointers, for which all-zero is valid ("no address, no
            // pieces, no control data").
            Box::new(Gather { header: unsafe { std::mem::zeroed() }, pieces: Vec::new() })
        });
        gather.pieces.clear();
        let mut skip_len_bytes = self.sent_len_bytes;
        let mut budget_len_bytes = MAX_OPERATION_LEN_BYTES;
        for piece in self.buffer.pieces() {
            if skip_len_bytes >= piece.len() {
                skip_len_bytes -= piece.len();
                continue;
            }
            let rest = &piece[std::mem::take(&mut skip_len_bytes)..];
            let rest = &rest[..rest.len().min(budget_len_bytes)];
            budget_len_bytes -= rest.len();
            // The kernel only reads what a send points to; iovec is declared mutable because recvmsg shares it.
            gather
                .pieces
                .push(libc::iovec { iov_base: rest.as_ptr().cast_mut().cast(), iov_len: rest.len() });
            if gather.pieces.len() == MAX_PIECES || budget_len_bytes == 0 {
                break;
            }
        }
        gather.header.msg_iov = gather.pieces.as_mut_ptr();
        gather.header.msg_iovlen = gather.pieces.len() as _;
        opcode::SendMsg::new(types::Fd(fd), &raw const gather.header).flags(flags as u32).build()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flat(buffer: &SendBuffer) -> Vec<u8> {
        buffer.pieces().flatten().copied().collect()
    }

    #[test]
    fn shared_pieces_stand_where_they_were_inserted() {
        let mut buffer = SendBuffer::default();
        buffer.push_shared(Bytes::from_static(b"first"));
        buffer.bytes.extend_from_slice(b"-own-");
        buffer.push_shared(Bytes::from_static(b"second"));
        buffer.push_shared(Bytes::new());
        buffer.push_shared(Bytes::from_static(b"third"));
        buffer.bytes.extend_from_slice(b"-end");
        assert_eq!(flat(&buffer), b"first-own-secondthird-end");
        assert_eq!(buffer.len_bytes(), 25);
        buffer.clear();
        assert!(buffer.is_empty());
        assert_eq!(flat(&buffer), b"");
    }

    #[test]
    fn any_sequence_of_short_sends_covers_every_byte_once() {
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..200 {
            let mut buffer = SendBuffer::default();
            for _ in 0..random.usize(1..3000) {
                let piece = vec![random.u8(..); random.usize(0..40)];
                if random.bool() {
                    buffer.bytes.extend_from_slice(&piece);
                } else {
                    buffer.push_shared(Bytes::from(piece));
                }
            }
            buffer.push_shared(Bytes::from_static(b"at least one"));
            let expected = flat(&buffer);
            let mut received = Vec::new();
            let mut send = InFlightSend::new(buffer);
            while send.unsent_len_bytes() > 0 {
                let _ = send.operation(0);
                let gather = send.gather.as_ref().unwrap();
                assert!(gather.pieces.len() <= MAX_PIECES);
                let mut offered = Vec::new();
                for piece in &gather.pieces {
                    assert!(piece.iov_len > 0);
                    // SAFETY: `operation` made the piece from a live slice of the buffer that `send` owns.
                    offered.extend_from_slice(unsafe {
                        std::slice::from_raw_parts(piece.iov_base.cast::<u8>(), piece.iov_len)
                    });
                }
                let taken = random.usize(1..=offered.len());
                received.extend_from_slice(&offered[..taken]);
                send.advance(taken);
            }
            assert_eq!(received, expected);
        }
    }
}
