//! Walks the items of an RDB stream.

use super::codes::{FIRST_VALKEY_VERSION, can_read, module_part, op};
use super::cursor::{Cursor, Fault, FaultKind, Limits, Stop};
use super::input::Input;

/// Both signatures with their version digits are this long.
const HEADER_BYTES: usize = 9;
/// Files older than this have no checksum.
const FIRST_CHECKSUM_VERSION: u32 = 5;

/// One item of the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The file's version; always the first event.
    Version(u32),
    Aux {
        name: Vec<u8>,
        value: Vec<u8>,
    },
    SelectDb(u64),
    /// Hints; a file may lie.
    ResizeDb {
        keys: u64,
        expires: u64,
    },
    SlotInfo {
        slot: u64,
        keys: u64,
        expires: u64,
    },
    Function(Vec<u8>),
    /// Data of a module, which was skipped; its id.
    ModuleAux(u64),
    /// A key. Its value is next in the stream and must be read by [`Decoder::cursor`] and [`Decoder::consume`] before
    /// the next event is asked for.
    Key(KeyHeader),
    /// The end; the checksum was right, or there is none.
    End,
}

/// What stands before a value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyHeader {
    /// One of [`super::kind`], or unknown.
    pub kind: u8,
    pub key: Vec<u8>,
    /// Unix time in ms.
    pub expire_at_ms: Option<i64>,
    /// Seconds since the key was used.
    pub idle_s: Option<u64>,
    /// LFU counter.
    pub freq: Option<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Header,
    Items,
    End,
}

/// Decodes a stream that arrives in chunks: feed, then ask for events until [`Stop::NeedMore`].
pub struct Decoder {
    input: Input,
    state: State,
    version: u32,
    /// What was said so far about the key to come.
    pending: KeyHeader,
}

impl Decoder {
    /// With `verify`, a wrong checksum is a fault (`rdbchecksum`).
    pub fn new(limits: Limits, verify: bool) -> Self {
        Decoder {
            input: Input::new(limits, verify),
            state: State::Header,
            version: 0,
            pending: KeyHeader::default(),
        }
    }

    /// See [`Input::feed`].
    pub fn feed(&mut self, chunk: &[u8]) {
        self.input.feed(chunk);
    }

    /// See [`Input::finish`].
    pub fn finish(&mut self) {
        self.input.finish();
    }

    /// For a value's body.
    pub fn cursor(&self) -> Cursor<'_> {
        self.input.cursor()
    }

    /// Moves past what a value's decoder has read.
    pub fn consume(&mut self, len_bytes: usize) {
        self.input.consume(len_bytes);
    }

    /// The file's version, 0 before [`Event::Version`].
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Position in the file.
    pub fn position(&self) -> u64 {
        self.input.position()
    }

    /// What follows the end of the file.
    ///
    /// # Panics
    /// Before [`Event::End`].
    pub fn take_rest(&mut self) -> Vec<u8> {
        assert_eq!(self.state, State::End);
        self.input.take_rest()
    }

    /// The next item.
    ///
    /// # Errors
    /// [`Stop::NeedMore`]: feed and call again. [`Stop::Fault`]: the stream is not usable from here on.
    pub fn next_event(&mut self) -> Result<Event, Stop> {
        match self.state {
            State::Header => self.header(),
            State::Items => loop {
                if let Some(event) = self.item()? {
                    return Ok(event);
                }
            },
            State::End => Ok(Event::End),
        }
    }

    fn header(&mut self) -> Result<Event, Stop> {
        let mut cursor = self.input.cursor();
        let start = cursor.clone();
        let magic = cursor.bytes(HEADER_BYTES)?;
        let (digits, is_valkey) = match (magic.strip_prefix(b"REDIS"), magic.strip_prefix(b"VALKEY")) {
            (Some(digits), _) => (digits, false),
            (_, Some(digits)) => (digits, true),
            _ => return Err(start.fault(FaultKind::Magic)),
        };
        if !digits.iter().all(u8::is_ascii_digit) {
            return Err(start.fault(FaultKind::Magic));
        }
        let version = digits.iter().fold(0, |version, digit| version * 10 + u32::from(digit - b'0'));
        if !can_read(version) || is_valkey != (version >= FIRST_VALKEY_VERSION) {
            return Err(start.fault(FaultKind::Version(version)));
        }
        self.input.consume(HEADER_BYTES);
        self.version = version;
        self.state = State::Items;
        Ok(Event::Version(version))
    }

    /// Reads one item. `None`: it only says something about the key to come.
    fn item(&mut self) -> Result<Option<Event>, Stop> {
        let mut cursor = self.input.cursor();
        let start = cursor.clone();
        let code = cursor.byte()?;
        let mut next = self.pending.clone_attributes();
        let event = match code {
            op::AUX => Some(Event::Aux { name: cursor.string()?.into(), value: cursor.string()?.into() }),
            op::SELECTDB => Some(Event::SelectDb(cursor.length()?)),
            op::RESIZEDB => Some(Event::ResizeDb { keys: cursor.length()?, expires: cursor.length()? }),
            op::SLOT_INFO => Some(Event::SlotInfo {
                slot: cursor.length()?,
                keys: cursor.length()?,
                expires: cursor.length()?,
            }),
            op::FUNCTION2 => Some(Event::Function(cursor.string()?.into())),
            op::MODULE_AUX => Some(Event::ModuleAux(skip_module_aux(&mut cursor)?)),
            op::EXPIRETIME_MS => {
                next.expire_at_ms = Some(cursor.millis()?);
                None
            }
            op::EXPIRETIME => {
                next.expire_at_ms = Some(i64::from(cursor.seconds()?) * 1000);
                None
            }
            op::IDLE => {
                next.idle_s = Some(cursor.length()?);
                None
            }
            op::FREQ => {
                next.freq = Some(cursor.byte()?);
                None
            }
            op::EOF => return self.end().map(Some),
            op::LOWEST.. => return Err(start.fault(FaultKind::Opcode(code))),
            kind => {
                let key = cursor.string()?.into();
                Some(Event::Key(KeyHeader { kind, key, ..std::mem::take(&mut next) }))
            }
        };
        let used_bytes = cursor.used_bytes();
        self.input.consume(used_bytes);
        self.pending = next;
        Ok(event)
    }

    fn end(&mut self) -> Result<Event, Stop> {
        let mut cursor = self.input.cursor();
        cursor.byte()?;
        let has_checksum = self.version >= FIRST_CHECKSUM_VERSION;
        let position = cursor.position();
        let expected = if has_checksum { cursor.checksum()? } else { 0 };
        let used_bytes = cursor.used_bytes();
        self.input.consume(1);
        if let Some(computed) = self.input.checksum()
            && expected != 0
            && expected != computed
        {
            return Err(Fault { position, kind: FaultKind::Checksum(expected, computed) }.into());
        }
        self.input.consume(used_bytes - 1);
        self.state = State::End;
        Ok(Event::End)
    }
}

impl KeyHeader {
    /// Cheap: the key is still empty while attributes gather.
    fn clone_attributes(&self) -> Self {
        debug_assert!(self.key.is_empty());
        self.clone()
    }
}

fn skip_module_aux(cursor: &mut Cursor<'_>) -> Result<u64, Stop> {
    let id = cursor.length()?;
    loop {
        let start = cursor.clone();
        match cursor.length()? {
            module_part::EOF => return Ok(id),
            module_part::SIGNED | module_part::UNSIGNED => drop(cursor.length()?),
            module_part::FLOAT => drop(cursor.float()?),
            module_part::DOUBLE => drop(cursor.double()?),
            module_part::STRING => drop(cursor.string()?),
            _ => return Err(start.fault(FaultKind::Value("Unknown part in a module's data"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rdb::{DEFAULT_VERSION, VALKEY_VERSION, Writer, WriterOptions, kind};

    /// One entry as the tests see it: what stands before the value, and the value, a string.
    type Entry = (KeyHeader, Vec<u8>);

    /// What a file has come to: events, entries, and the bytes behind its end.
    type Decoded = (Vec<Event>, Vec<Entry>, Vec<u8>);

    /// Feeds `file` in the pieces that `sizes` yields; returns what came out and what followed the end.
    fn decode(file: &[u8], mut sizes: impl FnMut() -> usize) -> Result<Decoded, Fault> {
        let mut decoder = Decoder::new(Limits { string_bytes: 1 << 20 }, true);
        let (mut events, mut entries) = (Vec::new(), Vec::new());
        let mut rest = file;
        let mut key: Option<KeyHeader> = None;
        loop {
            let step = match key.take() {
                None => decoder.next_event(),
                Some(header) => {
                    let mut cursor = decoder.cursor();
                    match cursor.string().map(|value| value.into_owned()) {
                        Ok(value) => {
                            let used_bytes = cursor.used_bytes();
                            decoder.consume(used_bytes);
                            entries.push((header, value));
                            continue;
                        }
                        Err(stop) => {
                            key = Some(header);
                            Err(stop)
                        }
                    }
                }
            };
            match step {
                Ok(Event::End) => {
                    let mut after = decoder.take_rest();
                    after.extend_from_slice(rest);
                    return Ok((events, entries, after));
                }
                Ok(Event::Key(header)) => key = Some(header),
                Ok(event) => events.push(event),
                Err(Stop::Fault(fault)) => return Err(fault),
                Err(Stop::NeedMore(_)) if rest.is_empty() => decoder.finish(),
                Err(Stop::NeedMore(_)) => {
                    let (chunk, tail) = rest.split_at(sizes().clamp(1, rest.len()));
                    decoder.feed(chunk);
                    rest = tail;
                }
            }
        }
    }

    fn sample(rng: &mut fastrand::Rng, version: u32) -> (Vec<u8>, Vec<Event>, Vec<Entry>) {
        let mut writer = Writer::new(WriterOptions { version, compress: rng.bool(), checksum: true });
        writer.header();
        writer.aux(b"redis-bits", b"64");
        writer.function(b"#!lua name=f");
        writer.select_db(3);
        writer.resize_db(200, 70_000);
        let events = vec![
            Event::Version(version),
            Event::Aux { name: b"redis-bits".to_vec(), value: b"64".to_vec() },
            Event::Function(b"#!lua name=f".to_vec()),
            Event::SelectDb(3),
            Event::ResizeDb { keys: 200, expires: 70_000 },
        ];
        let mut entries = Vec::new();
        for i in 0..rng.usize(..30) {
            let header = KeyHeader {
                kind: kind::STRING,
                key: format!("key{i}").into_bytes(),
                expire_at_ms: rng.bool().then(|| rng.i64(..)),
                idle_s: rng.bool().then(|| rng.u64(..)),
                freq: rng.bool().then(|| rng.u8(..)),
            };
            let value = vec![rng.u8(..); rng.usize(..1000)];
            header.expire_at_ms.inspect(|at_ms| writer.expire_at_ms(*at_ms));
            header.idle_s.inspect(|idle_s| writer.idle(*idle_s));
            header.freq.inspect(|freq| writer.freq(*freq));
            writer.key(kind::STRING, &header.key);
            writer.string(&value);
            entries.push((header, value));
        }
        writer.eof();
        (writer.take(), events, entries)
    }

    #[test]
    fn a_file_is_read_back_whatever_the_chunks_and_what_follows_is_left_alone() {
        let mut rng = fastrand::Rng::with_seed(31);
        for version in [9, DEFAULT_VERSION, 11, 12, VALKEY_VERSION] {
            for _ in 0..60 {
                let (mut file, events, entries) = sample(&mut rng, version);
                file.extend_from_slice(b"*1\r\n$4\r\nPING\r\n");
                let chunk_max = 1 << rng.u32(1..12);
                let (got_events, got_entries, rest) = decode(&file, || rng.usize(1..=chunk_max)).unwrap();
                assert_eq!(got_events, events);
                assert_eq!(got_entries, entries);
                assert_eq!(rest, b"*1\r\n$4\r\nPING\r\n");
            }
        }
    }

    #[test]
    fn no_loss_a_damaged_or_cut_file_is_never_accepted() {
        let mut rng = fastrand::Rng::with_seed(32);
        for _ in 0..2000 {
            let (file, ..) = sample(&mut rng, DEFAULT_VERSION);
            let mut damaged = file.clone();
            let place = rng.usize(..file.len());
            damaged[place] ^= 1 << rng.u8(..8);
            let fault = decode(&damaged, || 4096).expect_err("one bit is wrong");
            assert!(fault.position <= file.len() as u64);
            let fault = decode(&file[..place], || 4096).expect_err("cut");
            assert_eq!(fault.kind, FaultKind::Truncated);
        }
    }

    #[test]
    fn reads_a_file_of_valkey_9() {
        // Begins with aux fields of each string form, then db 0, sizes 1 and 1, an expiry, `a` = 1.
        let file = b"VALKEY080\xfa\nvalkey-ver\x059.1.2\xfa\nredis-bits\xc0@\xfa\x05ctime\xc2\x88\xa6\x02k\
            \xfa\x08used-mem\xc2X\xe2\x0f\0\xfa\x08aof-base\xc0\0\xfe\0\xfb\x01\x01\xfcf\xc9i\x02\xa2\x01\0\0\
            \0\x01a\xc0\x01\xff\xddV\x8c\xae\xf3\x84\xee\xe8";
        let (events, entries, rest) = decode(file, || 7).unwrap();
        assert_eq!(events[0], Event::Version(VALKEY_VERSION));
        assert_eq!(events[1], Event::Aux { name: b"valkey-ver".to_vec(), value: b"9.1.2".to_vec() });
        assert_eq!(entries.len(), 1);
        assert_eq!((&entries[0].0.key[..], &entries[0].1[..]), (&b"a"[..], &b"1"[..]));
        assert_eq!(entries[0].0.expire_at_ms, Some(0x0000_01a2_0269_c966));
        assert!(rest.is_empty());
    }

    #[test]
    fn foreign_headers_are_refused() {
        let kind = |file: &[u8]| decode(file, || 100).unwrap_err().kind;
        assert_eq!(kind(b"RODIS0010"), FaultKind::Magic);
        assert_eq!(kind(b"REDIS00x0"), FaultKind::Magic);
        assert_eq!(kind(b"REDIS0013"), FaultKind::Version(13));
        assert_eq!(kind(b"REDIS0080"), FaultKind::Version(80));
        assert_eq!(kind(b"VALKEY011"), FaultKind::Version(11));
        assert_eq!(kind(b"REDIS0010\xf3"), FaultKind::Opcode(0xf3));
        assert_eq!(kind(b"REDIS0010\xf7\x01\x09"), FaultKind::Value("Unknown part in a module's data"));
    }
}
