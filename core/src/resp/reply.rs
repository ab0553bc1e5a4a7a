//! The reply writer: RESP2 or RESP3, by the connection's choice.

use super::number;
use bytes::Bytes;

/// A bulk at least this long goes out by reference instead of being copied into the buffer.
pub const SHARED_BULK_LEN_BYTES: usize = 16 * 1024;

/// Replies under construction: a buffer, plus long values that are spliced in by reference when it is sent.
#[derive(Default)]
pub struct Reply {
    pub buf: Vec<u8>,
    /// (position in `buf` before which it belongs, value), ascending.
    pub pieces: Vec<(usize, Bytes)>,
    /// Speak RESP3.
    pub resp3: bool,
}

impl Reply {
    pub fn new(resp3: bool) -> Self {
        Self { resp3, ..Self::default() }
    }

    /// Bytes this will be on the wire.
    pub fn len_bytes(&self) -> usize {
        self.buf.len() + self.pieces.iter().map(|(_, piece)| piece.len()).sum::<usize>()
    }

    pub fn is_empty(&self) -> bool {
        self.buf.is_empty() && self.pieces.is_empty()
    }

    /// Appends replies encoded elsewhere (another shard's answer).
    pub fn append_encoded(&mut self, encoded: &[u8], pieces: Vec<(usize, Bytes)>) {
        let base = self.buf.len();
        self.buf.extend_from_slice(encoded);
        self.pieces.extend(pieces.into_iter().map(|(at, piece)| (base + at, piece)));
    }

    /// Forgets everything behind a position taken earlier with `mark`.
    pub fn truncate(&mut self, (len, pieces): (usize, usize)) {
        self.buf.truncate(len);
        self.pieces.truncate(pieces);
    }

    pub fn mark(&self) -> (usize, usize) {
        (self.buf.len(), self.pieces.len())
    }

    #[inline]
    fn prefixed(&mut self, kind: u8, value: i64) {
        self.buf.push(kind);
        let mut digits = itoa::Buffer::new();
        self.buf.extend_from_slice(digits.format(value).as_bytes());
        self.buf.extend_from_slice(b"\r\n");
    }

    #[inline]
    pub fn ok(&mut self) {
        self.buf.extend_from_slice(b"+OK\r\n");
    }

    pub fn simple(&mut self, text: &str) {
        self.buf.push(b'+');
        self.buf.extend_from_slice(text.as_bytes());
        self.buf.extend_from_slice(b"\r\n");
    }

    /// `text` with its code, as `ERR no such key`; line ends in it become spaces, for they would break the protocol.
    pub fn error(&mut self, text: &str) {
        self.buf.push(b'-');
        self.buf.extend(
            text.trim_end_matches(['\r', '\n'])
                .bytes()
                .map(|b| if matches!(b, b'\r' | b'\n') { b' ' } else { b }),
        );
        self.buf.extend_from_slice(b"\r\n");
    }

    #[inline]
    pub fn int(&mut self, value: i64) {
        self.prefixed(b':', value);
    }

    #[inline]
    pub fn bulk(&mut self, value: &[u8]) {
        self.prefixed(b'$', value.len() as i64);
        self.buf.extend_from_slice(value);
        self.buf.extend_from_slice(b"\r\n");
    }

    /// A bulk that may be sent by reference.
    pub fn bulk_shared(&mut self, value: &Bytes) {
        if value.len() < SHARED_BULK_LEN_BYTES {
            return self.bulk(value);
        }
        self.prefixed(b'$', value.len() as i64);
        self.pieces.push((self.buf.len(), value.clone()));
        self.buf.extend_from_slice(b"\r\n");
    }

    pub fn bulk_int(&mut self, value: i64) {
        let mut digits = itoa::Buffer::new();
        self.bulk(digits.format(value).as_bytes());
    }

    pub fn null(&mut self) {
        self.buf.extend_from_slice(if self.resp3 { b"_\r\n" } else { b"$-1\r\n" });
    }

    pub fn null_array(&mut self) {
        self.buf.extend_from_slice(if self.resp3 { b"_\r\n" } else { b"*-1\r\n" });
    }

    pub fn array(&mut self, len: usize) {
        self.prefixed(b'*', len as i64);
    }

    /// A map of `len` pairs; a flat array in RESP2.
    pub fn map(&mut self, len: usize) {
        if self.resp3 { self.prefixed(b'%', len as i64) } else { self.prefixed(b'*', 2 * len as i64) }
    }

    pub fn set(&mut self, len: usize) {
        self.prefixed(if self.resp3 { b'~' } else { b'*' }, len as i64);
    }

    /// Out-of-band data in RESP3, an array in RESP2.
    pub fn push(&mut self, len: usize) {
        self.prefixed(if self.resp3 { b'>' } else { b'*' }, len as i64);
    }

    pub fn bool(&mut self, value: bool) {
        if self.resp3 {
            self.buf.extend_from_slice(if value { b"#t\r\n" } else { b"#f\r\n" });
        } else {
            self.int(i64::from(value));
        }
    }

    /// A double; a bulk string in RESP2.
    pub fn double(&mut self, value: f64) {
        let text = number::format_f64(value);
        if self.resp3 {
            self.buf.push(b',');
            self.buf.extend_from_slice(text.as_bytes());
            self.buf.extend_from_slice(b"\r\n");
        } else {
            self.bulk(text.as_bytes());
        }
    }

    /// Text for people (`INFO`, `CLIENT LIST`): a verbatim string in RESP3.
    pub fn verbatim(&mut self, text: &str) {
        if !self.resp3 {
            return self.bulk(text.as_bytes());
        }
        self.prefixed(b'=', text.len() as i64 + 4);
        self.buf.extend_from_slice(b"txt:");
        self.buf.extend_from_slice(text.as_bytes());
        self.buf.extend_from_slice(b"\r\n");
    }

    /// Writes an array whose length is known only after its elements: `body` returns it.
    pub fn array_of(&mut self, body: impl FnOnce(&mut Self) -> usize) {
        let (start, pieces) = self.mark();
        let len = body(self);
        let mut header = itoa::Buffer::new();
        let header = header.format(len);
        let extra = header.len() + 3;
        self.buf.splice(start..start, [b'*'].into_iter().chain(header.bytes()).chain(*b"\r\n"));
        for (at, _) in &mut self.pieces[pieces..] {
            *at += extra;
        }
    }

    /// The bytes as they will go over the wire, joined (tests and slow paths).
    pub fn to_wire(&self) -> Vec<u8> {
        let mut wire = Vec::with_capacity(self.len_bytes());
        let mut from = 0;
        for (at, piece) in &self.pieces {
            wire.extend_from_slice(&self.buf[from..*at]);
            wire.extend_from_slice(piece);
            from = *at;
        }
        wire.extend_from_slice(&self.buf[from..]);
        wire
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_protocol_version_decides_the_types() {
        let mut two = Reply::new(false);
        let mut three = Reply::new(true);
        for reply in [&mut two, &mut three] {
            reply.null();
            reply.map(1);
            reply.double(1.5);
            reply.bool(true);
        }
        assert_eq!(two.to_wire(), b"$-1\r\n*2\r\n$3\r\n1.5\r\n:1\r\n");
        assert_eq!(three.to_wire(), b"_\r\n%1\r\n,1.5\r\n#t\r\n");
    }

    #[test]
    fn long_values_are_spliced_where_they_belong() {
        let value = Bytes::from(vec![b'x'; SHARED_BULK_LEN_BYTES]);
        let mut reply = Reply::new(false);
        reply.array_of(|reply| {
            reply.bulk(b"a");
            reply.bulk_shared(&value);
            2
        });
        let mut outer = Reply::new(false);
        outer.ok();
        outer.append_encoded(&reply.buf, reply.pieces);
        let mut want = b"+OK\r\n*2\r\n$1\r\na\r\n$16384\r\n".to_vec();
        want.extend_from_slice(&value);
        want.extend_from_slice(b"\r\n");
        assert_eq!(outer.to_wire(), want);
        assert_eq!(outer.len_bytes(), want.len());
    }

    #[test]
    fn an_error_stays_on_one_line() {
        let mut reply = Reply::new(false);
        reply.error("ERR a\r\nb\r\n");
        assert_eq!(reply.to_wire(), b"-ERR a  b\r\n");
    }
}
