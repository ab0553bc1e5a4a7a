//! Encoding.

use super::checksum::Checksum;
use super::codes::{DEFAULT_VERSION, FIRST_VALKEY_VERSION, can_write, len_form, op, string_form};
use super::lzf;

/// Strings up to this length are never compressed: nothing would be won.
const COMPRESS_ABOVE_BYTES: usize = 20;
/// Compression has to win at least this much, or the header of the compressed form eats it up.
const COMPRESS_GAIN_BYTES: usize = 4;
/// No 32-bit integer has more characters.
const INTEGER_CHARS_MAX: usize = 11;

/// How a [`Writer`] writes.
#[derive(Clone, Copy, Debug)]
pub struct WriterOptions {
    /// One of those that [`can_write`] accepts.
    pub version: u32,
    /// `rdbcompression`: compress strings of more than 20 bytes when they get smaller.
    pub compress: bool,
    /// `rdbchecksum`: without it the checksum is written as 0, which readers take for "not computed".
    pub checksum: bool,
}

impl Default for WriterOptions {
    fn default() -> Self {
        WriterOptions { version: DEFAULT_VERSION, compress: true, checksum: true }
    }
}

/// Appends RDB primitives to a buffer. Take the buffer from time to time with [`Writer::take`]; the checksum goes on over
/// all of them.
pub struct Writer {
    out: Vec<u8>,
    options: WriterOptions,
    checksum: Checksum,
    taken_bytes: u64,
    /// Room for a piece.
    piece_bytes: usize,
    /// Made when the first string is long enough: `DUMP` of a small value needs none.
    compressor: Option<lzf::Compressor>,
    /// Room for the compressed form: its length stands before it but is known only after.
    packed: Vec<u8>,
}

impl Writer {
    /// # Panics
    /// If the version is none that this codec writes.
    pub fn new(options: WriterOptions) -> Self {
        assert!(can_write(options.version), "no RDB version {}", options.version);
        Writer {
            out: Vec::new(),
            options,
            checksum: Checksum::default(),
            taken_bytes: 0,
            piece_bytes: 0,
            compressor: None,
            packed: Vec::new(),
        }
    }

    /// The version that values must be laid out for.
    pub fn version(&self) -> u32 {
        self.options.version
    }

    /// Bytes waiting to be taken.
    /// As [`Writer::new`], for who takes pieces ([`Writer::take_piece`]) that mostly have room in `piece_bytes`.
    pub fn in_pieces(options: WriterOptions, piece_bytes: usize) -> Self {
        Writer { piece_bytes, out: Vec::with_capacity(piece_bytes), ..Writer::new(options) }
    }

    pub fn len_bytes(&self) -> usize {
        self.out.len()
    }

    /// Bytes written so far, taken or not.
    pub fn total_bytes(&self) -> u64 {
        self.taken_bytes + self.out.len() as u64
    }

    /// Hands over what was written since the last call. Better few large pieces than many small ones: see
    /// [`Checksum`]'s measurements.
    pub fn take(&mut self) -> Vec<u8> {
        self.hash();
        self.taken_bytes += self.out.len() as u64;
        std::mem::take(&mut self.out)
    }

    /// Like [`Writer::take`], for a piece of a file whose other pieces are written elsewhere: also hands over its
    /// checksum, to be given to [`Writer::append_piece`] of who writes the whole, and starts a new one. A piece may wait for
    /// long: it takes hardly more memory than it is long.
    pub fn take_piece(&mut self) -> (Vec<u8>, Checksum) {
        let mut piece = self.take();
        if piece.capacity() - piece.len() > piece.len() / 4 {
            // The allocator may leave what is made shorter where it is.
            piece = piece.as_slice().to_vec();
        }
        self.out.reserve(self.piece_bytes);
        (piece, std::mem::take(&mut self.checksum))
    }

    /// Accounts for a piece that another writer wrote and that the caller sends after everything taken from this one.
    ///
    /// # Panics
    /// If bytes wait to be taken: they would end up behind the piece.
    pub fn append_piece(&mut self, piece: &Checksum) {
        assert!(self.out.is_empty(), "take what comes before the piece first");
        self.checksum.append(piece);
        self.taken_bytes += piece.len_bytes();
    }

    fn hash(&mut self) {
        if self.options.checksum {
            self.checksum.update(&self.out);
        }
    }

    /// Begins a file.
    pub fn header(&mut self) {
        let version = self.options.version;
        let magic = if version >= FIRST_VALKEY_VERSION {
            format!("VALKEY{version:03}")
        } else {
            format!("REDIS{version:04}")
        };
        self.out.extend_from_slice(magic.as_bytes());
    }

    /// Ends a file. What is taken next is the end.
    pub fn eof(&mut self) {
        self.out.push(op::EOF);
        let value = if self.options.checksum {
            let mut whole = self.checksum.clone();
            whole.update(&self.out);
            whole.value()
        } else {
            0
        };
        self.out.extend_from_slice(&value.to_le_bytes());
    }

    /// A name and a value about the file.
    pub fn aux(&mut self, name: &[u8], value: &[u8]) {
        self.out.push(op::AUX);
        self.string(name);
        self.string(value);
    }

    /// The database of the keys that follow.
    pub fn select_db(&mut self, db: u64) {
        self.out.push(op::SELECTDB);
        self.length(db);
    }

    /// How many keys the selected database has, and how many of them expire: a hint for the reader's tables.
    pub fn resize_db(&mut self, keys: u64, expires: u64) {
        self.out.push(op::RESIZEDB);
        self.length(keys);
        self.length(expires);
    }

    /// A function library.
    pub fn function(&mut self, source: &[u8]) {
        self.out.push(op::FUNCTION2);
        self.string(source);
    }

    /// Unix time in ms when the next key expires. Before [`Writer::idle`], [`Writer::freq`] and [`Writer::key`].
    pub fn expire_at_ms(&mut self, at_ms: i64) {
        self.out.push(op::EXPIRETIME_MS);
        self.millis(at_ms);
    }

    /// Seconds since the next key was used.
    pub fn idle(&mut self, idle_s: u64) {
        self.out.push(op::IDLE);
        self.length(idle_s);
    }

    /// The next key's LFU counter.
    pub fn freq(&mut self, counter: u8) {
        self.out.extend_from_slice(&[op::FREQ, counter]);
    }

    /// Begins an entry: its type (one of [`super::kind`]) and its key. The value follows.
    pub fn key(&mut self, kind: u8, key: &[u8]) {
        debug_assert!(kind < op::LOWEST);
        self.out.push(kind);
        self.string(key);
    }

    /// One byte as it is.
    pub fn byte(&mut self, byte: u8) {
        self.out.push(byte);
    }

    /// Bytes as they are: part of a string whose length was written before.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
    }

    /// A length or any other unsigned number.
    pub fn length(&mut self, len: u64) {
        if len < 1 << 6 {
            self.out.push(len as u8);
        } else if len < 1 << 14 {
            self.out.extend_from_slice(&((len as u16) | u16::from(len_form::BITS_14) << 14).to_be_bytes());
        } else if let Ok(len) = u32::try_from(len) {
            self.out.push(len_form::BITS_32);
            self.out.extend_from_slice(&len.to_be_bytes());
        } else {
            self.out.push(len_form::BITS_64);
            self.out.extend_from_slice(&len.to_be_bytes());
        }
    }

    /// A string in its smallest form: as an integer if it is one in canonical decimal, else compressed if that is on and
    /// gains, else plain.
    pub fn string(&mut self, bytes: &[u8]) {
        if let Some(number) = canonical_i32(bytes) {
            self.special_integer(number);
        } else if !self.compressed(bytes) {
            self.plain(bytes);
        }
    }

    /// An integer as a string.
    pub fn integer(&mut self, number: i64) {
        match i32::try_from(number) {
            Ok(number) => self.special_integer(number),
            Err(_) => self.plain(itoa::Buffer::new().format(number).as_bytes()),
        }
    }

    fn plain(&mut self, bytes: &[u8]) {
        self.length(bytes.len() as u64);
        self.out.extend_from_slice(bytes);
    }

    fn special(&mut self, form: u8) {
        self.out.push(len_form::SPECIAL << 6 | form);
    }

    fn special_integer(&mut self, number: i32) {
        if let Ok(number) = i8::try_from(number) {
            self.special(string_form::INT8);
            self.out.extend_from_slice(&number.to_le_bytes());
        } else if let Ok(number) = i16::try_from(number) {
            self.special(string_form::INT16);
            self.out.extend_from_slice(&number.to_le_bytes());
        } else {
            self.special(string_form::INT32);
            self.out.extend_from_slice(&number.to_le_bytes());
        }
    }

    /// Writes the compressed form, if it is wanted and gains.
    fn compressed(&mut self, bytes: &[u8]) -> bool {
        if !self.options.compress || bytes.len() <= COMPRESS_ABOVE_BYTES {
            return false;
        }
        self.packed.clear();
        let compressor = self.compressor.get_or_insert_default();
        let limit_bytes = bytes.len() - COMPRESS_GAIN_BYTES;
        let Some(packed_len) = compressor.compress(bytes, limit_bytes, &mut self.packed) else {
            return false;
        };
        self.special(string_form::LZF);
        self.length(packed_len as u64);
        self.length(bytes.len() as u64);
        self.out.extend_from_slice(&self.packed);
        true
    }

    /// A binary double, 8 bytes.
    pub fn double(&mut self, value: f64) {
        self.out.extend_from_slice(&value.to_le_bytes());
    }

    /// A Unix time in ms, 8 bytes.
    pub fn millis(&mut self, at_ms: i64) {
        self.out.extend_from_slice(&at_ms.to_le_bytes());
    }
}

/// The number that `bytes` is the canonical decimal form of: no plus sign, no leading zero, no `-0`.
fn canonical_i32(bytes: &[u8]) -> Option<i32> {
    if bytes.is_empty() || bytes.len() > INTEGER_CHARS_MAX {
        return None;
    }
    let number: i32 = std::str::from_utf8(bytes).ok()?.parse().ok()?;
    (itoa::Buffer::new().format(number).as_bytes() == bytes).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rdb::{kind, open_dump, seal_dump};

    fn dump(value: &[u8]) -> Vec<u8> {
        let mut writer = Writer::new(WriterOptions::default());
        writer.byte(kind::STRING);
        writer.string(value);
        let mut payload = writer.take();
        seal_dump(DEFAULT_VERSION, &mut payload);
        payload
    }

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
    }

    #[test]
    fn pieces_take_hardly_more_memory_than_they_are_long() {
        let mut writer = Writer::in_pieces(WriterOptions { compress: false, ..Default::default() }, 10_000);
        for len in [9_000, 100, 20_000, 9_999, 0] {
            let value = vec![b'x'; len];
            writer.string(&value);
            let (piece, _) = writer.take_piece();
            assert!(
                piece.len() >= len && piece.capacity() <= piece.len() * 5 / 4 + 1,
                "{len} {}",
                piece.capacity()
            );
        }
    }

    #[test]
    fn dumps_are_byte_for_byte_those_of_redis_7() {
        for (value, payload) in [
            ("12", "00c00c0a003c2af8515c04bcd5"),
            ("300", "00c12c010a00954261f265825c10"),
            ("-70000", "00c290eefeff0a002875de7b13eb2800"),
            ("hello", "000568656c6c6f0a006372df766534200a"),
            ("2147483648", "000a323134373438333634380a00e7b129a34c1d76ee"),
            ("-129", "00c17fff0a001760822854808480"),
        ] {
            let payload = hex(payload);
            assert_eq!(dump(value.as_bytes()), payload, "{value}");
            let (version, kind, _) = open_dump(&payload).unwrap();
            assert_eq!((version, kind), (10, kind::STRING));
        }
    }

    #[test]
    fn a_damaged_dump_is_refused() {
        let payload = dump(b"hello");
        for place in 0..payload.len() {
            let mut damaged = payload.clone();
            damaged[place] ^= 1;
            assert_eq!(open_dump(&damaged), None, "byte {place}");
            assert_eq!(open_dump(&payload[..place]), None, "cut at {place}");
        }
    }

    #[test]
    fn pieces_written_apart_have_the_checksum_of_the_whole() {
        let mut whole = Writer::new(WriterOptions::default());
        let mut frame = Writer::new(WriterOptions::default());
        let mut shards: Vec<Writer> = (0..3).map(|_| Writer::new(WriterOptions::default())).collect();
        whole.header();
        frame.header();
        let mut joined = frame.take();
        for (i, shard) in shards.iter_mut().enumerate() {
            for writer in [&mut whole, shard] {
                writer.key(kind::STRING, &[b'a' + i as u8]);
                writer.string(&b"some text ".repeat(i * 30));
            }
            let (bytes, checksum) = shard.take_piece();
            joined.extend_from_slice(&bytes);
            frame.append_piece(&checksum);
        }
        whole.eof();
        frame.eof();
        joined.extend_from_slice(&frame.take());
        assert_eq!(joined, whole.take());
        assert_eq!(frame.total_bytes(), joined.len() as u64);
    }
}
