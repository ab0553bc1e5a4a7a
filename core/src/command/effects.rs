//! What a shard's tick changed, as replicas will apply it.

use bytes::{Bytes, BytesMut};
use smallvec::SmallVec;

/// Consecutive effects on one database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    pub db: u16,
    pub len_bytes: u32,
}

/// A tick's effects, frozen: RESP commands, and to which database each stretch of them belongs. May be empty.
#[derive(Debug, Clone, Default)]
pub struct Segment {
    pub bytes: Bytes,
    /// Together as long as `bytes`.
    pub runs: SmallVec<[Run; 2]>,
}

impl Segment {
    /// Effects on one database.
    pub fn of(db: u16, bytes: Bytes) -> Self {
        let len_bytes = u32::try_from(bytes.len()).expect("a tick writes less than 4 GiB");
        Segment { bytes, runs: SmallVec::from_slice(&[Run { db, len_bytes }]) }
    }
}

/// The buffer that many ticks' effects are cut from. `BytesMut` remembers no larger first size than this.
const CHUNK_BYTES: usize = 64 << 10;

/// Collects the effects of a tick: deterministic commands, already encoded.
#[derive(Default)]
pub struct Effects {
    /// Off while nobody listens: no replica, no backlog, no append-only file.
    enabled: bool,
    buf: BytesMut,
    runs: SmallVec<[Run; 2]>,
    /// Inside a transaction: whether its MULTI has been written.
    multi: Option<bool>,
    multi_db: u16,
}

impl Effects {
    pub fn set_enabled(&mut self, enabled: bool) {
        if enabled && self.buf.capacity() == 0 {
            // From here on the buffer is replaced by one of this size whenever it is full: ticks share it.
            self.buf = BytesMut::with_capacity(CHUNK_BYTES);
        }
        self.enabled = enabled;
    }

    #[inline]
    pub fn enabled(&self) -> bool {
        self.enabled
    }

    pub fn is_empty(&self) -> bool {
        self.buf.is_empty()
    }

    /// Appends one command for database `db`.
    #[inline]
    pub fn push(&mut self, db: u16, args: &[&[u8]]) {
        if !self.enabled {
            return;
        }
        if self.multi == Some(false) {
            self.multi = Some(true);
            self.encode(db, &[b"MULTI"]);
        }
        self.multi_db = db;
        self.encode(db, args);
    }

    fn encode(&mut self, db: u16, args: &[&[u8]]) {
        let start = self.buf.len();
        self.buf.reserve(16 + args.iter().map(|arg| arg.len() + 16).sum::<usize>());
        let mut digits = itoa::Buffer::new();
        self.buf.extend_from_slice(b"*");
        self.buf.extend_from_slice(digits.format(args.len()).as_bytes());
        self.buf.extend_from_slice(b"\r\n");
        for arg in args {
            self.buf.extend_from_slice(b"$");
            self.buf.extend_from_slice(digits.format(arg.len()).as_bytes());
            self.buf.extend_from_slice(b"\r\n");
            self.buf.extend_from_slice(arg);
            self.buf.extend_from_slice(b"\r\n");
        }
        let len = u32::try_from(self.buf.len() - start).expect("an effect is shorter than 4 GB");
        match self.runs.last_mut() {
            Some(run) if run.db == db && u32::MAX - run.len_bytes >= len => run.len_bytes += len,
            _ => self.runs.push(Run { db, len_bytes: len }),
        }
    }

    /// Effects pushed from here to [`Effects::end_multi`] become one `MULTI`/`EXEC` block (if there are any).
    pub fn begin_multi(&mut self) {
        assert!(self.multi.is_none(), "transactions do not nest");
        self.multi = Some(false);
    }

    pub fn end_multi(&mut self) {
        if self.multi.take().expect("begun") {
            self.encode(self.multi_db, &[b"EXEC"]);
        }
    }

    /// What `body` pushes is one atomic block of the stream, inside a transaction or outside: for a command whose
    /// outcome takes several commands to tell.
    pub fn together(&mut self, body: impl FnOnce(&mut Self)) {
        let outside = self.multi.is_none();
        if outside {
            self.begin_multi();
        }
        body(self);
        if outside {
            self.end_multi();
        }
    }

    /// Freezes what has been collected.
    pub fn take(&mut self) -> Segment {
        assert!(self.multi.is_none(), "a segment ends between transactions");
        Segment { bytes: self.buf.split().freeze(), runs: std::mem::take(&mut self.runs) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_share_their_buffer() {
        let mut effects = Effects::default();
        effects.set_enabled(true);
        let value = [b'x'; 1000];
        let taken: Vec<Bytes> = (0..1000)
            .map(|_| {
                effects.push(0, &[b"SET", b"k", &value]);
                effects.take().bytes
            })
            .collect();
        let follows = |pair: &[Bytes]| pair[0].as_ptr().addr() + pair[0].len() == pair[1].as_ptr().addr();
        let followers = taken.windows(2).filter(|pair| follows(pair)).count();
        assert!(followers > 950, "only {followers} of 999 stand behind the one before");
    }

    #[test]
    fn a_transaction_is_one_block_and_an_empty_one_is_nothing() {
        let mut effects = Effects::default();
        effects.push(0, &[b"lost"]);
        assert!(effects.is_empty());
        effects.set_enabled(true);
        effects.begin_multi();
        effects.end_multi();
        assert!(effects.is_empty());
        effects.begin_multi();
        effects.push(3, &[b"DEL", b"k"]);
        effects.push(4, &[b"DEL", b"k"]);
        effects.end_multi();
        let segment = effects.take();
        let del = "*2\r\n$3\r\nDEL\r\n$1\r\nk\r\n";
        assert_eq!(segment.bytes, format!("*1\r\n$5\r\nMULTI\r\n{del}{del}*1\r\n$4\r\nEXEC\r\n"));
        assert_eq!(segment.runs.as_slice(), [Run { db: 3, len_bytes: 35 }, Run { db: 4, len_bytes: 34 }]);
        assert_eq!(segment.runs.iter().map(|run| run.len_bytes as usize).sum::<usize>(), segment.bytes.len());
        assert!(effects.is_empty());
    }
}
