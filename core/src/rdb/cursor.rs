//! Decoding primitives from bytes at hand.

use std::borrow::Cow;
use std::fmt;

use super::codes::{len_form, string_form};
use super::lzf;

/// What a reader is willing to hold in memory at once.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Longest string, compressed or not. `proto-max-bulk-len` is the natural choice.
    pub string_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { string_bytes: 512 << 20 }
    }
}

/// Something in the input that is not RDB.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Byte of the file where the primitive in question begins.
    pub position: u64,
    pub kind: FaultKind,
}

/// Kinds of [`Fault`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// The file does not begin as RDB files do.
    Magic,
    /// A version this codec does not read.
    Version(u32),
    /// The input ended early.
    Truncated,
    /// The first byte of a length has a form that does not exist.
    LengthForm(u8),
    /// A string encoding where a length was expected, or one that does not exist.
    StringForm(u8),
    /// A string longer than the limit; its length.
    StringTooLong(u64),
    /// Compressed data that does not decompress.
    Lzf,
    /// A decimal double that is none.
    Double,
    /// An opcode that this codec does not know or that cannot stand here.
    Opcode(u8),
    /// The checksum: expected, computed.
    Checksum(u64, u64),
    /// A value's body is wrong; for who decodes values.
    Value(&'static str),
    /// Something that the format allows and the reader lacks, in words.
    Unsupported(String),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            FaultKind::Magic => write!(f, "Wrong signature trying to load DB from file")?,
            FaultKind::Version(version) => write!(f, "Can't handle RDB format version {version}")?,
            FaultKind::Truncated => write!(f, "Unexpected end of RDB")?,
            FaultKind::LengthForm(byte) => write!(f, "Unknown length encoding {byte:#04x}")?,
            FaultKind::StringForm(form) => write!(f, "Unknown RDB string encoding type {form}")?,
            FaultKind::StringTooLong(len_bytes) => {
                write!(f, "String of {len_bytes} bytes is over the limit")?
            }
            FaultKind::Lzf => write!(f, "Invalid LZF compressed string")?,
            FaultKind::Double => write!(f, "Invalid double value")?,
            FaultKind::Opcode(byte) => write!(f, "Unknown or unsupported RDB opcode or type {byte}")?,
            FaultKind::Checksum(expected, computed) => {
                write!(f, "Wrong RDB checksum expected: ({expected:016x}) but got ({computed:016x})")?
            }
            FaultKind::Unsupported(what) => write!(f, "{what}")?,
            FaultKind::Value(what) => write!(f, "{what}")?,
        }
        write!(f, " at byte {}", self.position)
    }
}

impl std::error::Error for Fault {}

/// Why a read did not succeed. It consumed nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Try again when at least this many more bytes have arrived (an estimate from below, not zero).
    NeedMore(u64),
    Fault(Fault),
}

impl From<Fault> for Stop {
    fn from(fault: Fault) -> Self {
        Stop::Fault(fault)
    }
}

/// Reads primitives one after the other. Each read either succeeds as a whole or leaves the cursor where it was.
/// Allocates only to decompress, and no more than 88 bytes for each byte at hand.
#[derive(Clone, Debug)]
pub struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    base: u64,
    is_whole: bool,
    limits: Limits,
}

impl<'a> Cursor<'a> {
    /// Over a payload that is complete: an end of input is a fault.
    pub fn whole(bytes: &'a [u8], limits: Limits) -> Self {
        Cursor { bytes, at: 0, base: 0, is_whole: true, limits }
    }

    /// Over what has arrived so far; `base` is the position of its first byte in the file, and `is_whole` says that
    /// nothing more will come.
    pub(super) fn over(bytes: &'a [u8], base: u64, is_whole: bool, limits: Limits) -> Self {
        Cursor { bytes, at: 0, base, is_whole, limits }
    }

    /// Bytes consumed since the cursor was made.
    pub fn used_bytes(&self) -> usize {
        self.at
    }

    /// Bytes at hand and not yet consumed.
    pub fn remaining_bytes(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// Position in the file.
    pub fn position(&self) -> u64 {
        self.base + self.at as u64
    }

    /// A fault at the current position.
    pub fn fault(&self, kind: FaultKind) -> Stop {
        Stop::Fault(Fault { position: self.position(), kind })
    }

    /// Runs `read` as one read: if it stops, the cursor goes back to where it was.
    pub fn atomically<T>(&mut self, read: impl FnOnce(&mut Self) -> Result<T, Stop>) -> Result<T, Stop> {
        let before = self.at;
        let result = read(self);
        if result.is_err() {
            self.at = before;
        }
        result
    }

    /// The next `len_bytes` bytes.
    pub fn bytes(&mut self, len_bytes: usize) -> Result<&'a [u8], Stop> {
        let rest = &self.bytes[self.at..];
        match rest.get(..len_bytes) {
            Some(taken) => {
                self.at += len_bytes;
                Ok(taken)
            }
            None if self.is_whole => Err(self.fault(FaultKind::Truncated)),
            None => Err(Stop::NeedMore((len_bytes - rest.len()) as u64)),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Stop> {
        Ok(self.bytes(N)?.try_into().expect("as many bytes as were asked for"))
    }

    /// One byte.
    pub fn byte(&mut self) -> Result<u8, Stop> {
        Ok(self.array::<1>()?[0])
    }

    /// One byte, which stays unread.
    pub fn peek(&self) -> Result<u8, Stop> {
        self.clone().byte()
    }

    /// A length. Whoever sizes a table by it must bound it first: see [`Cursor::count_hint`].
    pub fn length(&mut self) -> Result<u64, Stop> {
        self.atomically(|c| {
            let start = c.clone();
            match c.len_or_form()? {
                Length::Plain(len) => Ok(len),
                Length::Special(form) => Err(start.fault(FaultKind::StringForm(form))),
            }
        })
    }

    /// How much room to reserve for `count` elements that are said to follow: not more than could be at hand
    /// already, so that a lie costs nothing.
    pub fn count_hint(&self, count: u64) -> usize {
        (count.min(self.remaining_bytes() as u64)) as usize
    }

    fn len_or_form(&mut self) -> Result<Length, Stop> {
        let start = self.clone();
        let first = self.byte()?;
        let low = first & 0x3f;
        Ok(match first {
            len_form::BITS_32 => Length::Plain(u64::from(u32::from_be_bytes(self.array()?))),
            len_form::BITS_64 => Length::Plain(u64::from_be_bytes(self.array()?)),
            _ => match first >> 6 {
                0 => Length::Plain(u64::from(low)),
                len_form::BITS_14 => Length::Plain(u64::from(low) << 8 | u64::from(self.byte()?)),
                len_form::SPECIAL => Length::Special(low),
                _ => return Err(start.fault(FaultKind::LengthForm(first))),
            },
        })
    }

    /// A string, whichever way it is encoded. Plain ones are borrowed.
    pub fn string(&mut self) -> Result<Cow<'a, [u8]>, Stop> {
        self.atomically(|c| {
            let start = c.clone();
            Ok(match c.len_or_form()? {
                Length::Plain(len) => Cow::Borrowed(c.bytes(start.bounded(len)?)?),
                Length::Special(string_form::LZF) => {
                    let packed_len = start.bounded(c.length()?)?;
                    let len = start.bounded(c.length()?)?;
                    if !lzf::is_plausible(packed_len as u64, len as u64) {
                        return Err(start.fault(FaultKind::Lzf));
                    }
                    let packed = c.bytes(packed_len)?;
                    let text = lzf::decompress(packed, len).ok_or_else(|| start.fault(FaultKind::Lzf))?;
                    Cow::Owned(text)
                }
                Length::Special(form) => {
                    let number = c.special_integer(form, &start)?;
                    Cow::Owned(itoa::Buffer::new().format(number).as_bytes().to_vec())
                }
            })
        })
    }

    /// The length of a string whose bytes follow as they are; `None` if it is encoded otherwise: then nothing is consumed.
    pub fn plain_len(&mut self) -> Result<Option<usize>, Stop> {
        let start = self.clone();
        match self.atomically(Self::len_or_form)? {
            Length::Plain(len) => start.bounded(len).map(Some),
            Length::Special(_) => {
                *self = start;
                Ok(None)
            }
        }
    }

    /// As many of the next `max` bytes as are at hand.
    pub fn some_bytes(&mut self, max: usize) -> &'a [u8] {
        let taken = &self.bytes[self.at..][..max.min(self.remaining_bytes())];
        self.at += taken.len();
        taken
    }

    /// Passes a string, whichever way it is encoded.
    pub fn skip_string(&mut self) -> Result<(), Stop> {
        self.atomically(|c| {
            let start = c.clone();
            match c.len_or_form()? {
                Length::Plain(len) => drop(c.bytes(start.bounded(len)?)?),
                Length::Special(string_form::LZF) => {
                    let packed_len = start.bounded(c.length()?)?;
                    c.length()?;
                    c.bytes(packed_len)?;
                }
                Length::Special(form) => drop(c.special_integer(form, &start)?),
            }
            Ok(())
        })
    }

    /// A string encoded as an integer, `None` if it is encoded otherwise: then nothing is consumed.
    pub fn integer(&mut self) -> Result<Option<i64>, Stop> {
        let first = self.peek()?;
        if first >> 6 != len_form::SPECIAL || first & 0x3f == string_form::LZF {
            return Ok(None);
        }
        self.atomically(|c| {
            let start = c.clone();
            c.byte()?;
            c.special_integer(first & 0x3f, &start).map(|number| Some(i64::from(number)))
        })
    }

    fn special_integer(&mut self, form: u8, start: &Self) -> Result<i32, Stop> {
        Ok(match form {
            string_form::INT8 => i32::from(i8::from_le_bytes(self.array()?)),
            string_form::INT16 => i32::from(i16::from_le_bytes(self.array()?)),
            string_form::INT32 => i32::from_le_bytes(self.array()?),
            _ => return Err(start.fault(FaultKind::StringForm(form))),
        })
    }

    fn bounded(&self, len: u64) -> Result<usize, Stop> {
        match usize::try_from(len) {
            Ok(fits) if len <= self.limits.string_bytes => Ok(fits),
            _ => Err(self.fault(FaultKind::StringTooLong(len))),
        }
    }

    /// A binary double.
    pub fn double(&mut self) -> Result<f64, Stop> {
        Ok(f64::from_le_bytes(self.array()?))
    }

    /// A binary float, as modules write them.
    pub fn float(&mut self) -> Result<f32, Stop> {
        Ok(f32::from_le_bytes(self.array()?))
    }

    /// A double in decimal text, as in [`super::kind::ZSET`]: one byte of length, of which 253, 254 and 255 stand for
    /// not-a-number, infinity and minus infinity.
    pub fn text_double(&mut self) -> Result<f64, Stop> {
        self.atomically(|c| {
            let start = c.clone();
            Ok(match c.byte()? {
                253 => f64::NAN,
                254 => f64::INFINITY,
                255 => f64::NEG_INFINITY,
                len_bytes => {
                    let text = c.bytes(usize::from(len_bytes))?;
                    let number = std::str::from_utf8(text).ok().and_then(|text| text.trim().parse().ok());
                    number.ok_or_else(|| start.fault(FaultKind::Double))?
                }
            })
        })
    }

    /// A Unix time in ms.
    pub fn millis(&mut self) -> Result<i64, Stop> {
        Ok(i64::from_le_bytes(self.array()?))
    }

    /// A Unix time in seconds, 4 bytes, of old files.
    pub fn seconds(&mut self) -> Result<i32, Stop> {
        Ok(i32::from_le_bytes(self.array()?))
    }

    /// The checksum at the end.
    pub(super) fn checksum(&mut self) -> Result<u64, Stop> {
        Ok(u64::from_le_bytes(self.array()?))
    }
}

enum Length {
    Plain(u64),
    Special(u8),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rdb::{Writer, WriterOptions};

    type Check = Box<dyn Fn(&mut Cursor<'_>) -> Result<bool, Stop>>;

    /// Writes a random primitive and returns how to check that it was read back.
    fn random_primitive(rng: &mut fastrand::Rng, writer: &mut Writer) -> Check {
        match rng.u8(..6) {
            0 => {
                let len = rng.u64(..) >> rng.u8(..64);
                writer.length(len);
                Box::new(move |c| Ok(c.length()? == len))
            }
            1 => {
                let number = rng.i64(..) >> rng.u8(..64);
                writer.integer(number);
                Box::new(move |c| Ok(c.string()? == number.to_string().as_bytes()))
            }
            2 => {
                let number = i64::from(rng.i32(..) >> rng.u8(..32));
                writer.string(number.to_string().as_bytes());
                Box::new(move |c| Ok(c.integer()? == Some(number)))
            }
            3 => {
                let letters = rng.u8(1..);
                let bits = rng.u8(..16);
                let len_bytes = rng.usize(..1 << bits);
                let text: Vec<u8> = (0..len_bytes).map(|_| rng.u8(..letters)).collect();
                writer.string(&text);
                Box::new(move |c| Ok(c.string()? == text))
            }
            4 => {
                let number = rng.f64();
                writer.double(number);
                Box::new(move |c| Ok(c.double()? == number))
            }
            _ => {
                let at_ms = rng.i64(..);
                writer.millis(at_ms);
                Box::new(move |c| Ok(c.millis()? == at_ms))
            }
        }
    }

    #[test]
    fn what_is_written_is_read_back_and_a_short_input_asks_for_more() {
        let mut rng = fastrand::Rng::with_seed(21);
        for round in 0..3000 {
            let mut writer = Writer::new(WriterOptions { compress: rng.bool(), ..Default::default() });
            let check = random_primitive(&mut rng, &mut writer);
            let bytes = writer.take();
            let mut cursor = Cursor::whole(&bytes, Limits::default());
            assert!(check(&mut cursor).unwrap(), "round {round}");
            assert_eq!(cursor.used_bytes(), bytes.len());

            let cut = rng.usize(..bytes.len());
            let mut cursor = Cursor::over(&bytes[..cut], 100, false, Limits::default());
            let Err(Stop::NeedMore(more)) = check(&mut cursor) else { panic!("round {round}") };
            assert!(more > 0 && more as usize <= bytes.len() - cut);
            assert_eq!(cursor.used_bytes(), 0);
            let mut cursor = Cursor::whole(&bytes[..cut], Limits::default());
            let stop = check(&mut cursor).unwrap_err();
            assert!(matches!(stop, Stop::Fault(Fault { kind: FaultKind::Truncated, .. })), "{stop:?}");
        }
    }

    #[test]
    fn hostile_lengths_are_refused_before_anything_is_allocated() {
        let limits = Limits { string_bytes: 1000 };
        let stop = |bytes: &[u8]| Cursor::over(bytes, 50, false, limits).string().unwrap_err();
        let at_50 = |kind| Stop::Fault(Fault { position: 50, kind });
        let huge = [0x81, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
        assert_eq!(stop(&huge), at_50(FaultKind::StringTooLong(i64::MAX as u64)));
        assert_eq!(stop(&[0x43, 0xe9]), at_50(FaultKind::StringTooLong(1001)));
        assert_eq!(stop(&[0x43, 0xe8]), Stop::NeedMore(1000));
        // Compressed: five bytes cannot become 500.
        assert_eq!(stop(&[0xc3, 5, 0x41, 0xf4]), at_50(FaultKind::Lzf));
        assert_eq!(stop(&[0xc3, 6, 0x41, 0xf4]), Stop::NeedMore(6));
        assert_eq!(stop(&[0xc4]), at_50(FaultKind::StringForm(4)));
        assert_eq!(stop(&[0x82]), at_50(FaultKind::LengthForm(0x82)));
        let cursor = Cursor::over(&[1, 2, 3], 0, false, limits);
        assert_eq!(cursor.count_hint(u64::MAX), 3);
    }

    #[test]
    fn decimal_doubles_of_old_files_are_read() {
        let read = |bytes: &[u8]| Cursor::whole(bytes, Limits::default()).text_double();
        assert_eq!(read(b"\x041.25"), Ok(1.25));
        assert_eq!(read(b"\xfe"), Ok(f64::INFINITY));
        assert_eq!(read(b"\xff"), Ok(f64::NEG_INFINITY));
        assert!(read(b"\xfd").unwrap().is_nan());
        assert!(read(b"\x02x1").is_err());
    }
}
