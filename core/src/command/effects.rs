//! What a shard's tick changed, as replicas will apply it.

use bytes::{Bytes, BytesMut};
use smallvec::{SmallVec, smallvec};

/// Consecutive effects on one database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    pub db: u16,
    pub len_bytes: u64,
}

/// A tick's effects, frozen: RESP commands, and to which database each stretch of them belongs. May be empty.
#[derive(Debug, Clone, Default)]
pub struct Segment {
    /// In the stream's order; none is empty. Most ticks make one, those of more than 64 KiB several. A long argument is a
    /// piece of its own, which it shares with the dataset; so pieces may begin and end within a command.
    pub pieces: SmallVec<[Bytes; 1]>,
    /// Together as long as `pieces`.
    pub runs: SmallVec<[Run; 2]>,
}

impl Segment {
    /// Effects on one database.
    pub fn of(db: u16, bytes: Bytes) -> Self {
        let len_bytes = bytes.len() as u64;
        Segment { pieces: smallvec![bytes], runs: SmallVec::from_slice(&[Run { db, len_bytes }]) }
    }

    pub fn len_bytes(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.len() as u64).sum()
    }
}

/// An argument at least this long that is a buffer of its own goes into the stream by reference: a copy takes longer than
/// what a piece of its own costs everybody behind.
pub const SHARED_ARG_LEN_BYTES: usize = 16 << 10;

/// The buffer that many ticks' effects are cut from. `BytesMut` remembers no larger first size than this.
const CHUNK_BYTES: usize = 64 << 10;

/// Collects the effects of a tick: deterministic commands, already encoded.
#[derive(Default)]
pub struct Effects {
    /// Off while nobody listens: no replica, no backlog, no append-only file.
    enabled: bool,
    /// What was encoded before `buf`: long arguments, what was before them, and what filled the buffers before.
    pieces: SmallVec<[Bytes; 1]>,
    buf: BytesMut,
    runs: SmallVec<[Run; 2]>,
    /// Of all runs together: legs ask after each of them, and may be as many as runs.
    len_bytes: u64,
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
        self.runs.is_empty()
    }

    pub fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// Appends one command for database `db`.
    #[inline]
    pub fn push(&mut self, db: u16, args: &[&[u8]]) {
        self.push_sharing(db, args, &[]);
    }

    /// The same; long arguments that are one of the buffers of `shared` (whatever their indexes) are not copied.
    #[inline]
    pub fn push_sharing(&mut self, db: u16, args: &[&[u8]], shared: &[(u32, Bytes)]) {
        if !self.enabled {
            return;
        }
        if self.multi == Some(false) {
            self.multi = Some(true);
            self.encode(db, &[b"MULTI"], &[]);
        }
        self.multi_db = db;
        self.encode(db, args, shared);
    }

    fn encode(&mut self, db: u16, args: &[&[u8]], shared: &[(u32, Bytes)]) {
        let len_bytes = if shared.is_empty() { self.copy(args) } else { self.refer(args, shared) } as u64;
        self.len_bytes += len_bytes;
        match self.runs.last_mut() {
            Some(run) if run.db == db => run.len_bytes += len_bytes,
            _ => self.runs.push(Run { db, len_bytes }),
        }
    }

    /// Encodes a command into the buffer. Returns its length.
    fn copy(&mut self, args: &[&[u8]]) -> usize {
        let len_bytes = 16 + args.iter().map(|arg| arg.len() + 16).sum::<usize>();
        if len_bytes > self.buf.capacity() - self.buf.len() {
            // The buffer is full. What is in it stays where it is: in a longer one half of the room might be lost.
            self.set_aside();
            self.buf.reserve(len_bytes);
        }
        let start = self.buf.len();
        announce_command(&mut self.buf, args.len());
        for arg in args {
            announce_arg(&mut self.buf, arg.len());
            self.buf.extend_from_slice(arg);
        }
        self.buf.extend_from_slice(b"\r\n");
        self.buf.len() - start
    }

    /// Makes what is in the buffer a piece of its own.
    fn set_aside(&mut self) {
        if !self.buf.is_empty() {
            self.pieces.push(self.buf.split().freeze());
        }
    }

    /// Encodes a command among whose arguments there are buffers of their own. Returns its length.
    #[cold]
    fn refer(&mut self, args: &[&[u8]], shared: &[(u32, Bytes)]) -> usize {
        let before = self.buf.len();
        // What is behind `before` of the buffer, and what left it.
        let mut left_bytes = 0;
        // Arguments mostly come in the order in which they were received.
        let mut rest = shared;
        announce_command(&mut self.buf, args.len());
        for arg in args {
            announce_arg(&mut self.buf, arg.len());
            let is_arg = |(_, own): &(u32, Bytes)| own.as_ptr() == arg.as_ptr() && own.len() == arg.len();
            let is_long = arg.len() >= SHARED_ARG_LEN_BYTES;
            match is_long.then(|| rest.iter().position(is_arg)).flatten() {
                Some(at) => {
                    left_bytes += self.buf.len() + arg.len();
                    self.pieces.push(self.buf.split().freeze());
                    self.pieces.push(rest[at].1.clone());
                    rest = &rest[at + 1..];
                }
                None => self.buf.extend_from_slice(arg),
            }
        }
        self.buf.extend_from_slice(b"\r\n");
        left_bytes + self.buf.len() - before
    }

    /// Effects pushed from here to [`Effects::end_multi`] become one `MULTI`/`EXEC` block (if there are any).
    pub fn begin_multi(&mut self) {
        assert!(self.multi.is_none(), "transactions do not nest");
        self.multi = Some(false);
    }

    pub fn end_multi(&mut self) {
        if self.multi.take().expect("begun") {
            self.encode(self.multi_db, &[b"EXEC"], &[]);
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
        self.set_aside();
        let (pieces, runs) = (std::mem::take(&mut self.pieces), std::mem::take(&mut self.runs));
        let segment = Segment { pieces, runs };
        debug_assert_eq!(segment.len_bytes(), self.len_bytes);
        self.len_bytes = 0;
        segment
    }
}

/// A command's first line, without its end.
fn announce_command(buf: &mut BytesMut, args: usize) {
    match args {
        0..10 => buf.extend_from_slice(&[b'*', digit(args)]),
        _ => {
            buf.extend_from_slice(b"*");
            buf.extend_from_slice(itoa::Buffer::new().format(args).as_bytes());
        }
    }
}

/// The end of the line before an argument, and the line with its length. Short ones are so frequent that it shows to write them
/// at once.
#[inline]
fn announce_arg(buf: &mut BytesMut, len: usize) {
    match len {
        0..10 => buf.extend_from_slice(&[b'\r', b'\n', b'$', digit(len), b'\r', b'\n']),
        10..100 => {
            buf.extend_from_slice(&[b'\r', b'\n', b'$', digit(len / 10), digit(len % 10), b'\r', b'\n']);
        }
        _ => {
            buf.extend_from_slice(b"\r\n$");
            buf.extend_from_slice(itoa::Buffer::new().format(len).as_bytes());
            buf.extend_from_slice(b"\r\n");
        }
    }
}

#[inline]
fn digit(number: usize) -> u8 {
    b'0' + number as u8
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
                effects.take().pieces.remove(0)
            })
            .collect();
        let follows = |pair: &[Bytes]| pair[0].as_ptr().addr() + pair[0].len() == pair[1].as_ptr().addr();
        let followers = taken.windows(2).filter(|pair| follows(pair)).count();
        assert!(followers > 950, "only {followers} of 999 stand behind the one before");
    }

    #[test]
    fn what_a_tick_does_beyond_a_buffer_is_in_the_next() {
        let mut effects = Effects::default();
        effects.set_enabled(true);
        let value = [b'x'; 1000];
        let command = "*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1000\r\n".len() + 1002;
        for count in [10, 100, 100, 1, 200] {
            (0..count).for_each(|_| effects.push(0, &[b"SET", b"k", &value]));
            let Segment { pieces, runs } = effects.take();
            let whole = pieces.concat();
            assert_eq!(whole.len(), count * command);
            assert!(whole.chunks(command).all(|bytes| bytes == &whole[..command]));
            assert_eq!(runs.as_slice(), [Run { db: 0, len_bytes: whole.len() as u64 }]);
            assert!(pieces.iter().all(|piece| piece.len() <= CHUNK_BYTES));
            assert!(pieces.len() <= whole.len() / (CHUNK_BYTES - 2 * command) + 2, "{}", pieces.len());
        }
    }

    #[test]
    fn lengths_of_any_number_of_digits() {
        let mut effects = Effects::default();
        effects.set_enabled(true);
        for len in [0, 9, 10, 99, 100, 65_536] {
            for count in [1, 9, 10, 123] {
                let arg = "x".repeat(len);
                effects.push(0, &vec![arg.as_bytes(); count]);
                let expected = format!("*{count}\r\n{}", format!("${len}\r\n{arg}\r\n").repeat(count));
                assert!(effects.take().pieces.concat() == expected.as_bytes(), "{len} {count}");
            }
        }
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
        assert_eq!(segment.pieces[..], [format!("*1\r\n$5\r\nMULTI\r\n{del}{del}*1\r\n$4\r\nEXEC\r\n")]);
        assert_eq!(segment.runs.as_slice(), [Run { db: 3, len_bytes: 35 }, Run { db: 4, len_bytes: 34 }]);
        assert_eq!(segment.runs.iter().map(|run| run.len_bytes).sum::<u64>(), segment.len_bytes());
        assert!(effects.is_empty());
    }

    #[test]
    fn law8_long_arguments_are_shared_and_stand_where_they_belong() {
        let long = |byte: u8| Bytes::from(vec![byte; SHARED_ARG_LEN_BYTES]);
        let (first, second) = (long(b'1'), long(b'2'));
        let short = first.slice(1..);
        let mut effects = Effects::default();
        effects.set_enabled(true);
        effects.push(0, &[b"DEL", b"k"]);
        // One is too short to be shared, one is nobody's buffer.
        let copied = long(b'3');
        let args: &[&[u8]] = &[b"MSET", b"a", &short, b"b", &second, b"c", &copied, b"d", &first];
        let shared = [(2, short.clone()), (4, second.clone()), (8, first.clone())];
        effects.push_sharing(1, args, &shared);
        effects.push(1, &[b"DEL", b"k"]);
        let Segment { pieces, runs } = effects.take();
        let of = |value: &Bytes| pieces.iter().filter(|piece| piece.as_ptr() == value.as_ptr()).count();
        assert_eq!([&first, &second, &short, &copied].map(of), [1, 1, 0, 0]);
        assert!(pieces.iter().all(|piece| !piece.is_empty()));
        let mut model = Effects::default();
        model.set_enabled(true);
        model.push(0, &[b"DEL", b"k"]);
        model.push(1, args);
        model.push(1, &[b"DEL", b"k"]);
        let model = model.take();
        assert_eq!(pieces.concat(), model.pieces.concat());
        assert_eq!(runs, model.runs);
        assert!(effects.is_empty() && effects.take().pieces.is_empty());
    }

    /// One buffer, many times: more than 32 bits count, in little memory.
    #[test]
    fn an_effect_may_be_longer_than_4_gib() {
        const LEN: usize = 64 << 20;
        let value = Bytes::from(vec![0; LEN]);
        let mut args: Vec<&[u8]> = vec![b"MSET"];
        let mut shared = Vec::new();
        for at in 0..65 {
            args.extend([&b"k"[..], &value]);
            shared.push((2 * at + 2, value.clone()));
        }
        let mut effects = Effects::default();
        effects.set_enabled(true);
        effects.push_sharing(0, &args, &shared);
        let segment = effects.take();
        assert!(segment.len_bytes() > u64::from(u32::MAX));
        assert_eq!(segment.runs.as_slice(), [Run { db: 0, len_bytes: segment.len_bytes() }]);
    }

    #[test]
    fn a_transaction_may_begin_with_a_long_argument() {
        let value = Bytes::from(vec![b'v'; SHARED_ARG_LEN_BYTES]);
        let mut effects = Effects::default();
        effects.set_enabled(true);
        effects.begin_multi();
        effects.push_sharing(2, &[b"SET", b"k", &value], &[(2, value.clone())]);
        effects.end_multi();
        assert!(!effects.is_empty());
        let segment = effects.take();
        let whole = segment.pieces.concat();
        assert!(whole.starts_with(b"*1\r\n$5\r\nMULTI\r\n*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$16384\r\nv"));
        assert!(whole.ends_with(b"v\r\n*1\r\n$4\r\nEXEC\r\n"));
        assert_eq!(segment.runs.as_slice(), [Run { db: 2, len_bytes: whole.len() as u64 }]);
    }
}
