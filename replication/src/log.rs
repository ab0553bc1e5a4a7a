//! The ordered log: the replication stream of one history, as far back as memory keeps it.
//!
//! Offsets are as in Redis: an *offset* is a number of bytes, `master_repl_offset` the number of all bytes ever; *bytes*
//! are counted from 1. So offset `n` is also the number of the last byte of `n`, and a replica that has `n` bytes asks
//! for byte `n + 1`.
//!
//! The log holds long pieces by reference count and hands out slices of them; it copies the others together. A short piece
//! kept by reference would keep all of the buffer that it was cut from.
//!
//! Bytes are kept as long as the backlog's size says, or longer if a reader has not had them: then in memory or, if it may
//! use the disk, there ([`behind`], [`spill`]). A reader is whoever consumes the stream, such as a replica.

mod behind;
pub mod spill;

use std::collections::VecDeque;

use behind::Spill;
use braid_core::command::SHARED_ARG_LEN_BYTES;
use bytes::{Buf, Bytes, BytesMut};

/// Shorter pieces are copied together. What is by reference thereby keeps at most four times as much in memory as it is long:
/// effects are cut from buffers of 64 KiB.
const COPY_BELOW_BYTES: usize = if cfg!(test) { 256 } else { SHARED_ARG_LEN_BYTES };
/// If its buffer is kept anyway, for the piece before it, one is copied if it is shorter than this.
const COPY_NEXT_BELOW_BYTES: usize = if cfg!(test) { 64 } else { 4 << 10 };
/// Room made for copied pieces at a time.
const TAIL_BYTES: usize = 64 << 10;

/// Freeing a piece at least this long takes too long for a shard's thread.
const LONG_PIECE_LEN_BYTES: usize = 1 << 20;
/// However short a piece is, freeing it takes as long as giving back this much memory.
const FREE_COST_BYTES: u64 = 4 << 10;
/// So much is freed at a time though nothing is appended: some 100 us of work (law 8).
const FREE_BYTES: u64 = 1 << 20;

/// Names a reader of one [`Log`]. Not reused for another reader before it wraps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ReaderId {
    slot: u32,
    generation: u32,
}

/// `client-output-buffer-limit replica`. Zero: no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReaderLimits {
    pub hard_bytes: u64,
    pub soft_bytes: u64,
    /// How long the soft limit may be exceeded without a break.
    pub soft_ms: u64,
}

impl Default for ReaderLimits {
    /// Redis's: 256mb 64mb 60.
    fn default() -> Self {
        ReaderLimits { hard_bytes: 256 << 20, soft_bytes: 64 << 20, soft_ms: 60_000 }
    }
}

/// Which limit a reader broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exceeded {
    Hard,
    Soft,
    /// It needs what the disk's budget had no room for.
    Disk,
    /// It needs what the disk does not give back.
    Unreadable,
}

impl std::fmt::Display for Exceeded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Exceeded::Hard => "output buffer limit: Hard",
            Exceeded::Soft => "output buffer limit: Soft",
            Exceeded::Disk => "it is further behind than repl-backlog-disk-size reaches",
            Exceeded::Unreadable => "the part of the stream that it needs can't be read from disk",
        })
    }
}

struct Piece {
    /// Offset before the first byte, which of the first piece may be before what is kept.
    start: u64,
    bytes: Bytes,
}

struct Reader {
    /// Bytes of the stream it has had.
    position: u64,
    /// What it has applied for sure; None: it never says.
    acked: Option<u64>,
    /// What follows its position, read from disk.
    fetched: VecDeque<Bytes>,
    /// It cannot go on.
    lost: Option<Exceeded>,
    over_soft_since_ms: Option<u64>,
}

#[derive(Default)]
struct Slot {
    generation: u32,
    reader: Option<Reader>,
}

/// See the module.
pub struct Log {
    pieces: VecDeque<Piece>,
    /// The first so many of them are let go: they are freed some at a time.
    released_pieces: usize,
    /// What it will cost to free what was appended since some were freed last.
    appended_cost_bytes: u64,
    /// Small pieces being copied together; they come after `pieces`.
    tail: BytesMut,
    /// Offset before the first byte kept.
    start: u64,
    /// Offset after the last byte.
    end: u64,
    backlog_bytes: u64,
    is_active: bool,
    slots: Vec<Slot>,
    spill: Spill,
    /// Long pieces that were let go, for [`Log::take_dropped`].
    dropped: Vec<Bytes>,
}

impl Log {
    /// A log that goes on after `offset` bytes, keeping nothing until [`Log::activate`].
    pub fn new(offset: u64, backlog_bytes: u64) -> Self {
        Log {
            pieces: VecDeque::new(),
            released_pieces: 0,
            appended_cost_bytes: 0,
            tail: BytesMut::new(),
            start: offset,
            end: offset,
            backlog_bytes,
            is_active: false,
            slots: Vec::new(),
            spill: Spill::new(),
            dropped: Vec::new(),
        }
    }

    /// From now on the stream is kept (`repl_backlog_active:1`).
    pub fn activate(&mut self) {
        self.is_active = true;
    }

    /// Keeps nothing any more (`repl-backlog-ttl` is over). The history needs a new id: see [`crate::ids::Ids::renew`].
    ///
    /// # Panics
    /// If there are readers.
    pub fn deactivate(&mut self) {
        self.reset(self.end);
        self.is_active = false;
    }

    /// Another history begins after `offset` bytes: a full sync replaced the dataset.
    ///
    /// # Panics
    /// If there are readers; theirs was the old history.
    pub fn reset(&mut self, offset: u64) {
        assert_eq!(self.readers().count(), 0, "readers of a history that ends");
        self.released_pieces = self.pieces.len();
        self.tail.clear();
        self.start = offset;
        self.end = offset;
        self.spill.reset(offset);
    }

    pub fn is_active(&self) -> bool {
        self.is_active
    }

    /// `master_repl_offset`: number of bytes of the stream so far.
    pub fn end_offset(&self) -> u64 {
        self.end
    }

    /// `repl_backlog_first_byte_offset`: number, from 1, of the first byte kept, in memory or on disk, or of the next one
    /// if none is; 0 while inactive.
    pub fn first_byte(&self) -> u64 {
        if self.is_active { self.first_offset() + 1 } else { 0 }
    }

    /// `repl_backlog_histlen`: bytes kept, in memory or on disk.
    pub fn histlen_bytes(&self) -> u64 {
        self.end - self.first_offset()
    }

    /// `repl_backlog_size`.
    pub fn backlog_bytes(&self) -> u64 {
        self.backlog_bytes
    }

    /// Changes `repl-backlog-size`, at once.
    pub fn set_backlog_bytes(&mut self, backlog_bytes: u64) {
        self.backlog_bytes = backlog_bytes;
        self.trim();
    }

    /// Appends to the stream. Call [`Log::trim`] when a batch is in.
    pub fn append(&mut self, mut bytes: Bytes) {
        let len_bytes = bytes.len();
        self.append_first(&mut bytes, len_bytes);
    }

    /// Takes the first `len_bytes` of `bytes` and appends them, as [`Log::append`] does.
    pub fn append_first(&mut self, bytes: &mut Bytes, len_bytes: usize) {
        let start = self.end;
        self.end += len_bytes as u64;
        if self.is_active && (len_bytes >= COPY_BELOW_BYTES || self.is_next(bytes, len_bytes)) {
            self.seal_before(start);
            return self.push(Piece { start, bytes: bytes.split_to(len_bytes) });
        }
        if self.is_active {
            self.copy(&bytes[..len_bytes], start);
        } else {
            debug_assert_eq!(self.readers().count(), 0);
            self.start = self.end;
        }
        bytes.advance(len_bytes);
    }

    /// Whether bytes stand behind those appended last, which are by reference, and are worth a piece.
    fn is_next(&self, bytes: &Bytes, len_bytes: usize) -> bool {
        let last = || self.pieces.back().filter(|_| self.tail.is_empty());
        len_bytes >= COPY_NEXT_BELOW_BYTES
            && last().is_some_and(|last| last.bytes.as_ptr_range().end == bytes.as_ptr())
    }

    /// Copies `bytes`, which begin at `start` in the stream.
    fn copy(&mut self, mut bytes: &[u8], mut start: u64) {
        while !bytes.is_empty() {
            let room = self.tail.capacity() - self.tail.len();
            let (here, rest) = bytes.split_at(bytes.len().min(room));
            self.tail.extend_from_slice(here);
            start += here.len() as u64;
            bytes = rest;
            if !bytes.is_empty() {
                self.seal_before(start);
                self.tail = BytesMut::with_capacity(TAIL_BYTES);
            }
        }
    }

    /// Makes the copied pieces readable. What is left of their room stays usable.
    fn seal(&mut self) {
        self.seal_before(self.end);
    }

    fn seal_before(&mut self, tail_end: u64) {
        if !self.tail.is_empty() {
            let bytes = self.tail.split().freeze();
            self.push(Piece { start: tail_end - bytes.len() as u64, bytes });
        }
    }

    fn push(&mut self, piece: Piece) {
        self.appended_cost_bytes += piece.free_cost_bytes();
        self.pieces.push_back(piece);
    }

    /// Lets go of what neither the backlog's size nor a reader keeps, and brings to disk what has to go there. Frees some
    /// of it, so call it often, and as long as [`Log::is_freeing`].
    pub fn trim(&mut self) {
        self.spill();
        self.forget_before(self.memory_floor());
        self.free_some();
        self.read_ahead();
    }

    fn forget_before(&mut self, floor: u64) {
        if floor <= self.start {
            return;
        }
        self.seal();
        // A piece of which something is kept stays as it is: its memory is one block.
        self.released_pieces = self.first_piece_beyond(floor);
        self.start = floor;
    }

    /// Of the pieces that are kept, the first with a byte behind `offset`.
    fn first_piece_beyond(&self, offset: u64) -> usize {
        let (mut first, mut end) = (self.released_pieces, self.pieces.len());
        while first < end {
            let middle = first.midpoint(end);
            if self.pieces[middle].end() <= offset {
                first = middle + 1;
            } else {
                end = middle;
            }
        }
        first
    }

    /// Frees some of what was let go, and twice as much as was appended, so that it does not pile up.
    fn free_some(&mut self) {
        let mut left_bytes = FREE_BYTES + 2 * std::mem::take(&mut self.appended_cost_bytes);
        while self.released_pieces > 0 && left_bytes > 0 {
            let piece = self.pieces.pop_front().expect("it counts pieces");
            self.released_pieces -= 1;
            left_bytes = left_bytes.saturating_sub(piece.free_cost_bytes());
            self.dropped.extend(piece.long());
        }
    }

    /// Whether [`Log::trim`] has something more to free at once.
    pub fn is_freeing(&self) -> bool {
        self.released_pieces > 0
    }

    /// Long pieces that were let go: where nobody else has them, they are to be freed elsewhere. To be asked for whenever the
    /// log was trimmed.
    pub fn take_dropped(&mut self) -> Vec<Bytes> {
        std::mem::take(&mut self.dropped)
    }

    /// Whether a partial resync can start with `next_byte` (counted from 1): every byte from it on is kept, or it is
    /// the very next one.
    pub fn can_continue_with(&self, next_byte: u64) -> bool {
        self.is_active && next_byte > self.first_offset() && next_byte <= self.end + 1
    }

    /// Appends to `out` up to `max_slices` slices and `max_bytes` bytes of the stream from `offset` on, and returns how
    /// many bytes they are. They stay valid whatever becomes of the log.
    ///
    /// # Panics
    /// If memory does not have `offset`.
    pub fn slices(&mut self, offset: u64, max_bytes: u64, max_slices: usize, out: &mut Vec<Bytes>) -> u64 {
        assert!(self.start <= offset && offset <= self.end, "offset {offset} is not in the log");
        self.seal();
        let first = self.first_piece_beyond(offset);
        let mut at = offset;
        let stop = self.end.min(offset.saturating_add(max_bytes));
        for piece in self.pieces.range(first..).take(max_slices) {
            if at == stop {
                break;
            }
            let from = (at - piece.start) as usize;
            let to = (stop.min(piece.end()) - piece.start) as usize;
            out.push(piece.bytes.slice(from..to));
            at = piece.start + to as u64;
        }
        at - offset
    }

    /// Starts a reader that has had `position` bytes: the offset of the cut for a full sync, `next_byte - 1` for a
    /// partial one.
    ///
    /// # Panics
    /// If the log is inactive or does not have that position.
    pub fn add_reader(&mut self, position: u64) -> ReaderId {
        self.insert_reader(position, Some(position))
    }

    /// Starts a reader that never acknowledges anything, and so never comes back for anything.
    ///
    /// # Panics
    /// As [`Log::add_reader`].
    pub fn add_silent_reader(&mut self, position: u64) -> ReaderId {
        self.insert_reader(position, None)
    }

    fn insert_reader(&mut self, position: u64, acked: Option<u64>) -> ReaderId {
        assert!(self.can_continue_with(position + 1), "position {position} is not in the log");
        let slot = self.slots.iter().position(|slot| slot.reader.is_none()).unwrap_or_else(|| {
            self.slots.push(Slot::default());
            self.slots.len() - 1
        });
        self.slots[slot].reader =
            Some(Reader { position, acked, fetched: VecDeque::new(), lost: None, over_soft_since_ms: None });
        ReaderId { slot: slot as u32, generation: self.slots[slot].generation }
    }

    /// Ends a reader; what only it kept goes with the next [`Log::trim`].
    pub fn remove_reader(&mut self, id: ReaderId) {
        self.reader_mut(id);
        let slot = &mut self.slots[id.slot as usize];
        slot.reader = None;
        slot.generation = slot.generation.wrapping_add(1);
    }

    /// Bytes that wait for the reader.
    pub fn pending_bytes(&self, id: ReaderId) -> u64 {
        self.end - self.reader(id).position
    }

    /// The next slices for the reader, as in [`Log::slices`]. It has had them when [`Log::advance`] says so. None, though
    /// bytes are pending: they are being read from disk, or it is to be cut off.
    pub fn reader_slices(
        &mut self,
        id: ReaderId,
        max_bytes: u64,
        max_slices: usize,
        out: &mut Vec<Bytes>,
    ) -> u64 {
        let reader = self.reader(id);
        if reader.lost.is_some() {
            return 0;
        }
        if !reader.fetched.is_empty() {
            let mut left_bytes = max_bytes;
            for bytes in reader.fetched.iter().take(max_slices) {
                let len_bytes = left_bytes.min(bytes.len() as u64);
                if len_bytes > 0 {
                    out.push(bytes.slice(..len_bytes as usize));
                }
                left_bytes -= len_bytes;
            }
            return max_bytes - left_bytes;
        }
        match reader.position {
            position if position < self.start => 0,
            position => self.slices(position, max_bytes, max_slices, out),
        }
    }

    /// The reader has had `len_bytes` more.
    ///
    /// # Panics
    /// If there are not as many.
    pub fn advance(&mut self, id: ReaderId, len_bytes: u64) {
        let end = self.end;
        let reader = self.reader_mut(id);
        reader.position += len_bytes;
        assert!(reader.position <= end, "a reader passed the end of the log");
        let mut left_bytes = len_bytes as usize;
        while let Some(bytes) = reader.fetched.front_mut().filter(|_| left_bytes > 0) {
            let had_bytes = left_bytes.min(bytes.len());
            bytes.advance(had_bytes);
            left_bytes -= had_bytes;
            if bytes.is_empty() {
                reader.fetched.pop_front();
            }
        }
    }

    /// Whether the reader is too far behind and has to be cut off. Ask again from time to time: the soft limit is about how
    /// long. A hard limit below the backlog's size is raised to it, since who is cut off could come back and ask for the
    /// same bytes. What is on disk does not count, and while the disk works nor does what is on its way there.
    pub fn check_limits(&mut self, id: ReaderId, limits: ReaderLimits, now_ms: u64) -> Option<Exceeded> {
        if let Some(lost) = self.reader(id).lost {
            return Some(lost);
        }
        let pending_bytes = self.pending_in_memory(self.reader(id));
        let grace_bytes = self.pending_grace();
        let hard_bytes = limits.hard_bytes.max(self.backlog_bytes).max(grace_bytes.unwrap_or(0));
        let reader = self.reader_mut(id);
        if grace_bytes.is_some_and(|grace_bytes| pending_bytes <= grace_bytes) {
            reader.over_soft_since_ms = None;
            return None;
        }
        if limits.soft_bytes == 0 || pending_bytes <= limits.soft_bytes {
            reader.over_soft_since_ms = None;
        }
        if limits.hard_bytes != 0 && pending_bytes > hard_bytes {
            return Some(Exceeded::Hard);
        }
        if limits.soft_bytes == 0 || pending_bytes <= limits.soft_bytes {
            return None;
        }
        let since_ms = *reader.over_soft_since_ms.get_or_insert(now_ms);
        (now_ms.saturating_sub(since_ms) > limits.soft_ms).then_some(Exceeded::Soft)
    }

    fn readers(&self) -> impl Iterator<Item = &Reader> {
        self.slots.iter().filter_map(|slot| slot.reader.as_ref())
    }

    fn reader(&self, id: ReaderId) -> &Reader {
        let slot = &self.slots[id.slot as usize];
        assert_eq!(slot.generation, id.generation, "a reader that was removed");
        slot.reader.as_ref().expect("the generation changes when a reader goes")
    }

    fn reader_mut(&mut self, id: ReaderId) -> &mut Reader {
        let slot = &mut self.slots[id.slot as usize];
        assert_eq!(slot.generation, id.generation, "a reader that was removed");
        slot.reader.as_mut().expect("the generation changes when a reader goes")
    }
}

impl Piece {
    fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }

    fn free_cost_bytes(&self) -> u64 {
        self.bytes.len() as u64 + FREE_COST_BYTES
    }

    /// The bytes, if they are many.
    fn long(self) -> Option<Bytes> {
        (self.bytes.len() >= LONG_PIECE_LEN_BYTES).then_some(self.bytes)
    }
}

#[cfg(test)]
mod tests;
