//! RESP2 and RESP3 from a client's side: requests encoded, a decoder that pulls from any reader, and a scanner that
//! finds where a reply ends without building it.
//!
//! The wire format is the one the Redis project documents as "RESP protocol specification". Its streamed strings
//! and aggregates (`$?`, `*?`) are refused: no server sends them.

use std::fmt;
use std::io::{self, Read};

use crate::value::Value;

/// Replies may nest this deep; `COMMAND DOCS`, the deepest real one, stays below ten.
const DEPTH_MAX: usize = 64;
/// No bulk string may be longer than this (Redis's own limit is 512 MiB).
const BULK_MAX_BYTES: usize = 1 << 30;
/// A line that is not a bulk string: a status, an error, a number.
const LINE_MAX_BYTES: usize = 1 << 20;
/// Spare room offered to each read from the source.
const READ_BYTES: usize = 64 * 1024;

/// Appends a command in RESP's request form (an array of bulk strings) to `out`.
pub fn encode<A: AsRef<[u8]>>(out: &mut Vec<u8>, args: &[A]) {
    encode_header(out, b'*', args.len());
    for arg in args {
        encode_bulk(out, arg.as_ref());
    }
}

/// Appends one bulk string to `out`.
pub fn encode_bulk(out: &mut Vec<u8>, bytes: &[u8]) {
    encode_header(out, b'$', bytes.len());
    out.extend_from_slice(bytes);
    out.extend_from_slice(b"\r\n");
}

/// Appends a type byte, a count and the line's end to `out`.
pub fn encode_header(out: &mut Vec<u8>, kind: u8, count: usize) {
    out.push(kind);
    encode_decimal(out, count as u64);
    out.extend_from_slice(b"\r\n");
}

/// Appends `number` in decimal to `out`.
pub fn encode_decimal(out: &mut Vec<u8>, mut number: u64) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

fn malformed(what: impl fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("protocol error: {what}"))
}

fn parse_count(digits: &[u8]) -> io::Result<i64> {
    std::str::from_utf8(digits)
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| malformed(format_args!("bad number \"{}\"", digits.escape_ascii())))
}

/// The length of a bulk string, `None` for the null one.
fn parse_bulk_len(digits: &[u8]) -> io::Result<Option<usize>> {
    match parse_count(digits)? {
        -1 => Ok(None),
        len if (0..=BULK_MAX_BYTES as i64).contains(&len) => Ok(Some(len as usize)),
        len => Err(malformed(format_args!("bulk length {len}"))),
    }
}

/// The number of elements of an aggregate, `None` for the null one.
fn parse_item_count(digits: &[u8]) -> io::Result<Option<usize>> {
    match parse_count(digits)? {
        -1 => Ok(None),
        count if (0..=u32::MAX as i64).contains(&count) => Ok(Some(count as usize)),
        count => Err(malformed(format_args!("element count {count}"))),
    }
}

fn find_line_end(bytes: &[u8]) -> Option<usize> {
    bytes.windows(2).position(|pair| pair == b"\r\n")
}

/// The length in bytes of the first reply in `bytes`, or `None` while it is incomplete. Builds nothing.
///
/// # Errors
/// `InvalidData` for bytes that are no reply.
pub fn frame_len(bytes: &[u8]) -> io::Result<Option<usize>> {
    let mut at = 0;
    let mut values_left: u64 = 1;
    while values_left > 0 {
        let Some(&kind) = bytes.get(at) else { return Ok(None) };
        let Some(line_len) = find_line_end(&bytes[at..]) else {
            if bytes.len() - at > LINE_MAX_BYTES {
                return Err(malformed("endless line"));
            }
            return Ok(None);
        };
        let digits = &bytes[at + 1..at + line_len];
        at += line_len + 2;
        values_left -= 1;
        match kind {
            b'+' | b'-' | b':' | b',' | b'(' | b'#' | b'_' => {}
            b'$' | b'=' | b'!' => {
                if let Some(len) = parse_bulk_len(digits)? {
                    at += len + 2;
                }
            }
            b'*' | b'~' | b'>' => values_left += parse_item_count(digits)?.unwrap_or(0) as u64,
            b'%' => values_left += 2 * parse_item_count(digits)?.unwrap_or(0) as u64,
            // The attributed value itself follows.
            b'|' => values_left += 2 * parse_item_count(digits)?.unwrap_or(0) as u64 + 1,
            other => return Err(malformed(format_args!("type byte '{}'", other.escape_ascii()))),
        }
        if at > bytes.len() {
            return Ok(None);
        }
    }
    Ok(Some(at))
}

/// Decodes replies from a reader. An error of the reader (a timeout, say) in the middle of a reply loses nothing:
/// the next call starts that reply again from the bytes that are here.
pub struct Decoder<R> {
    source: R,
    /// Bytes `start..end` are received and not yet given out; the rest is room.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl<R: Read> Decoder<R> {
    /// A decoder with nothing received yet.
    pub fn new(source: R) -> Self {
        Decoder { source, buffer: Vec::new(), start: 0, end: 0 }
    }

    /// The reader.
    pub fn source(&self) -> &R {
        &self.source
    }

    /// The reader, to write to where it is a socket.
    pub fn source_mut(&mut self) -> &mut R {
        &mut self.source
    }

    /// The reader; what is [buffered](Decoder::buffered) is lost.
    pub fn into_source(self) -> R {
        self.source
    }

    /// Bytes received and not yet given out.
    pub fn buffered(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// The next reply.
    ///
    /// # Errors
    /// `UnexpectedEof` when the source ends, `InvalidData` for bytes that are no reply, or the source's own error.
    pub fn value(&mut self) -> io::Result<Value> {
        self.compact();
        let start = self.start;
        let result = self.parse(0);
        if result.is_err() {
            self.start = start;
        }
        result
    }

    /// The exact bytes of the next reply.
    ///
    /// # Errors
    /// As [`Decoder::value`].
    pub fn frame(&mut self) -> io::Result<Vec<u8>> {
        self.compact();
        loop {
            if let Some(len) = frame_len(self.buffered())? {
                return Ok(self.take(len).to_vec());
            }
            self.fill()?;
        }
    }

    /// Exactly `len` bytes, whatever they are.
    ///
    /// # Errors
    /// `UnexpectedEof` when the source ends first, or the source's own error.
    pub fn exact(&mut self, len: usize) -> io::Result<Vec<u8>> {
        self.compact();
        self.need(len)?;
        Ok(self.take(len).to_vec())
    }

    /// Bytes up to and including the next `\n`.
    ///
    /// # Errors
    /// As [`Decoder::exact`], and `InvalidData` for a line beyond 1 MiB.
    pub fn raw_line(&mut self) -> io::Result<Vec<u8>> {
        self.compact();
        let mut searched = 0;
        loop {
            if let Some(at) = self.buffered()[searched..].iter().position(|&byte| byte == b'\n') {
                return Ok(self.take(searched + at + 1).to_vec());
            }
            searched = self.buffered().len();
            if searched > LINE_MAX_BYTES {
                return Err(malformed("endless line"));
            }
            self.fill()?;
        }
    }

    /// Whatever is here, after waiting for at least one byte; empty at the source's end.
    ///
    /// # Errors
    /// The source's own error.
    pub fn available(&mut self) -> io::Result<Vec<u8>> {
        self.compact();
        if self.start == self.end {
            match self.fill() {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(Vec::new()),
                other => other?,
            }
        }
        Ok(self.take(self.end - self.start).to_vec())
    }

    fn compact(&mut self) {
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        } else if self.start > READ_BYTES {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
    }

    fn take(&mut self, len: usize) -> &[u8] {
        let from = self.start;
        self.start += len;
        assert!(self.start <= self.end);
        &self.buffer[from..self.start]
    }

    fn fill(&mut self) -> io::Result<()> {
        if self.buffer.len() - self.end < READ_BYTES {
            let grown = (self.buffer.len() * 2).max(self.end + READ_BYTES);
            self.buffer.resize(grown, 0);
        }
        loop {
            match self.source.read(&mut self.buffer[self.end..]) {
                Ok(0) => {
                    return Err(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        "the server closed the connection",
                    ));
                }
                Ok(len) => {
                    self.end += len;
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn need(&mut self, len: usize) -> io::Result<()> {
        while self.end - self.start < len {
            self.fill()?;
        }
        Ok(())
    }

    /// Takes a line; returns its bounds in the buffer, without the line's end.
    fn line(&mut self) -> io::Result<(usize, usize)> {
        let mut searched = 0;
        loop {
            if let Some(at) = find_line_end(&self.buffered()[searched..]) {
                let from = self.start;
                let to = from + searched + at;
                self.start = to + 2;
                return Ok((from, to));
            }
            // The last byte may be the first half of the line's end.
            searched = self.buffered().len().saturating_sub(1);
            if searched > LINE_MAX_BYTES {
                return Err(malformed("endless line"));
            }
            self.fill()?;
        }
    }

    fn bulk(&mut self, len: usize) -> io::Result<Vec<u8>> {
        self.need(len + 2)?;
        let bytes = self.take(len + 2);
        if &bytes[len..] != b"\r\n" {
            return Err(malformed("a bulk string does not end where its length says"));
        }
        Ok(bytes[..len].to_vec())
    }

    fn parse_items(&mut self, count: usize, depth: usize) -> io::Result<Vec<Value>> {
        // A lying count must not allocate: only what arrives does.
        let mut items = Vec::with_capacity(count.min(1024));
        for _ in 0..count {
            items.push(self.parse(depth + 1)?);
        }
        Ok(items)
    }

    fn parse_pairs(&mut self, count: usize, depth: usize) -> io::Result<Vec<(Value, Value)>> {
        let mut pairs = Vec::with_capacity(count.min(1024));
        for _ in 0..count {
            pairs.push((self.parse(depth + 1)?, self.parse(depth + 1)?));
        }
        Ok(pairs)
    }

    fn parse(&mut self, depth: usize) -> io::Result<Value> {
        if depth > DEPTH_MAX {
            return Err(malformed("nested too deep"));
        }
        let (from, to) = self.line()?;
        if from == to {
            return Err(malformed("empty line"));
        }
        let kind = self.buffer[from];
        let line = &self.buffer[from + 1..to];
        let text = || String::from_utf8_lossy(line).into_owned();
        Ok(match kind {
            b'+' => Value::Simple(text()),
            b'-' => Value::Error(text()),
            b':' => Value::Int(parse_count(line)?),
            b'_' => Value::Null,
            b'(' => Value::BigNumber(text()),
            b',' => {
                let number = text();
                Value::Double(number.parse().map_err(|_| malformed(format_args!("bad double \"{number}\"")))?)
            }
            b'#' => match line {
                b"t" => Value::Bool(true),
                b"f" => Value::Bool(false),
                _ => return Err(malformed("bad boolean")),
            },
            b'$' | b'!' | b'=' => {
                let Some(len) = parse_bulk_len(line)? else { return Ok(Value::Null) };
                let bytes = self.bulk(len)?;
                match kind {
                    b'$' => Value::Bulk(bytes),
                    b'!' => Value::BulkError(String::from_utf8_lossy(&bytes).into_owned()),
                    _ if bytes.get(3) == Some(&b':') => Value::Verbatim(
                        String::from_utf8_lossy(&bytes[..3]).into_owned(),
                        bytes[4..].to_vec(),
                    ),
                    _ => return Err(malformed("verbatim string without a format")),
                }
            }
            b'*' | b'~' | b'>' | b'%' | b'|' => {
                let Some(count) = parse_item_count(line)? else { return Ok(Value::Null) };
                match kind {
                    b'*' => Value::Array(self.parse_items(count, depth)?),
                    b'~' => Value::Set(self.parse_items(count, depth)?),
                    b'>' => Value::Push(self.parse_items(count, depth)?),
                    b'%' => Value::Map(self.parse_pairs(count, depth)?),
                    _ => Value::Attribute(self.parse_pairs(count, depth)?, Box::new(self.parse(depth + 1)?)),
                }
            }
            other => return Err(malformed(format_args!("type byte '{}'", other.escape_ascii()))),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives its bytes in pieces of seeded random size, with a timeout now and then.
    struct Dribble<'a> {
        bytes: &'a [u8],
        random: fastrand::Rng,
    }

    impl Read for Dribble<'_> {
        fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
            if self.random.u8(..4) == 0 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            let len = self.random.usize(1..=7).min(self.bytes.len()).min(room.len());
            room[..len].copy_from_slice(&self.bytes[..len]);
            self.bytes = &self.bytes[len..];
            Ok(len)
        }
    }

    fn bulk(text: &str) -> Value {
        Value::Bulk(text.as_bytes().to_vec())
    }

    fn every_type() -> (Vec<u8>, Vec<Value>) {
        let pieces: Vec<(&[u8], Value)> = vec![
            (b"+OK\r\n", Value::Simple("OK".into())),
            (b"+\r\n", Value::Simple(String::new())),
            (b"-ERR no\r\n", Value::Error("ERR no".into())),
            (b":-42\r\n", Value::Int(-42)),
            (b"$3\r\na\r\n\r\n", bulk("a\r\n")),
            (b"$0\r\n\r\n", bulk("")),
            (b"$-1\r\n", Value::Null),
            (b"*-1\r\n", Value::Null),
            (b"_\r\n", Value::Null),
            (b"*0\r\n", Value::Array(vec![])),
            (
                b"*2\r\n:1\r\n*1\r\n$1\r\nx\r\n",
                Value::Array(vec![Value::Int(1), Value::Array(vec![bulk("x")])]),
            ),
            (b"#t\r\n", Value::Bool(true)),
            (b",-inf\r\n", Value::Double(f64::NEG_INFINITY)),
            (b",1.5e3\r\n", Value::Double(1500.0)),
            (b"(12345678901234567890\r\n", Value::BigNumber("12345678901234567890".into())),
            (b"!7\r\nERR\r\nno\r\n", Value::BulkError("ERR\r\nno".into())),
            (b"=6\r\ntxt:hi\r\n", Value::Verbatim("txt".into(), b"hi".to_vec())),
            (b"%1\r\n+a\r\n:1\r\n", Value::Map(vec![(Value::Simple("a".into()), Value::Int(1))])),
            (b"~2\r\n:1\r\n:2\r\n", Value::Set(vec![Value::Int(1), Value::Int(2)])),
            (b">2\r\n+message\r\n+x\r\n", {
                Value::Push(vec![Value::Simple("message".into()), Value::Simple("x".into())])
            }),
            (b"|1\r\n+ttl\r\n:9\r\n$1\r\nv\r\n", {
                Value::Attribute(vec![(Value::Simple("ttl".into()), Value::Int(9))], Box::new(bulk("v")))
            }),
        ];
        (
            pieces.iter().flat_map(|(wire, _)| wire.to_vec()).collect(),
            pieces.into_iter().map(|p| p.1).collect(),
        )
    }

    #[test]
    fn every_type_decodes_however_its_bytes_arrive() {
        let (wire, expected) = every_type();
        for seed in 0..200 {
            let source = Dribble { bytes: &wire, random: fastrand::Rng::with_seed(seed) };
            let mut decoder = Decoder::new(source);
            for value in &expected {
                let got = loop {
                    match decoder.value() {
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                        other => break other.unwrap(),
                    }
                };
                assert_eq!(&got, value, "seed {seed}");
            }
            assert!(decoder.buffered().is_empty());
        }
    }

    #[test]
    fn frame_len_agrees_with_the_decoder_on_every_prefix() {
        let (wire, expected) = every_type();
        let mut at = 0;
        for value in expected {
            let len = frame_len(&wire[at..]).unwrap().expect("whole");
            assert_eq!(Decoder::new(&wire[at..at + len]).value().unwrap(), value);
            for cut in 0..len {
                assert_eq!(frame_len(&wire[at..at + cut]).unwrap(), None, "{value:?} cut at {cut}");
            }
            at += len;
        }
        assert_eq!(at, wire.len());
    }

    #[test]
    fn bytes_that_are_no_reply_are_refused() {
        let deep = b"*1\r\n".repeat(DEPTH_MAX + 2);
        let cases: [&[u8]; 8] = [
            b"?\r\n",
            b"\r\n",
            b"$x\r\n",
            b"$-2\r\n",
            b"*99999999999\r\n",
            b"$1\r\nabc",
            b"#maybe\r\n",
            deep.as_slice(),
        ];
        for wire in cases {
            let error = Decoder::new(wire).value().unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{:?}", wire.escape_ascii().to_string());
        }
        assert_eq!(Decoder::new(&b"$5\r\nab"[..]).value().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn raw_reads_and_replies_share_one_buffer() {
        let mut decoder = Decoder::new(&b"+FULLRESYNC x 0\r\n$EOF:abc\r\n12345+OK\r\nrest"[..]);
        assert_eq!(decoder.value().unwrap(), "FULLRESYNC x 0");
        assert_eq!(decoder.raw_line().unwrap(), b"$EOF:abc\r\n");
        assert_eq!(decoder.exact(5).unwrap(), b"12345");
        assert_eq!(decoder.frame().unwrap(), b"+OK\r\n");
        assert_eq!(decoder.available().unwrap(), b"rest");
        assert_eq!(decoder.available().unwrap(), b"");
    }

    #[test]
    fn a_command_is_encoded_as_an_array_of_bulk_strings() {
        let mut out = Vec::new();
        encode(&mut out, &["SET", "key", ""]);
        assert_eq!(out, b"*3\r\n$3\r\nSET\r\n$3\r\nkey\r\n$0\r\n\r\n");
        let mut digits = Vec::new();
        encode_decimal(&mut digits, u64::MAX);
        assert_eq!(digits, b"18446744073709551615");
    }
}
