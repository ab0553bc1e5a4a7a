//! Finding the end of a value without making it: who loads a file in parallel has to know where each key begins.

use super::codes::kind;
use super::cursor::{Cursor, FaultKind, Stop};
use super::load::ValueLoader;

/// Passes over one value, as far as it has arrived. It stops where a [`ValueLoader`] can go on:
/// between elements, or within a string.
pub struct ValueSkipper {
    kind: u8,
    /// Elements to come; `None` before their number was read.
    left: Option<u64>,
}

impl ValueSkipper {
    /// For a value of that type in a file of that version.
    ///
    /// # Errors
    /// As [`ValueLoader::new`].
    pub fn new(kind: u8, version: u32) -> Result<Self, FaultKind> {
        ValueLoader::new(kind, version).map(|_| ValueSkipper { kind, left: None })
    }

    /// Moves the cursor to the end of the value.
    ///
    /// # Errors
    /// [`Stop::NeedMore`]: what the cursor has passed is done; call again with a cursor behind it when more has arrived.
    /// [`Stop::Fault`]: this is no such value.
    pub fn skip(&mut self, cursor: &mut Cursor<'_>) -> Result<(), Stop> {
        if self.kind == kind::STRING {
            return self.string(cursor);
        }
        let mut left = match self.left {
            Some(left) => left,
            None => cursor.atomically(|cursor| self.begin(cursor))?,
        };
        while left > 0 {
            self.left = Some(left);
            cursor.atomically(|cursor| self.element(cursor))?;
            left -= 1;
        }
        self.left = Some(0);
        Ok(())
    }

    /// Passes as much of a string as is there, if its bytes come as they are.
    fn string(&mut self, cursor: &mut Cursor<'_>) -> Result<(), Stop> {
        let left = match self.left {
            Some(left) => left,
            None => match cursor.plain_len()? {
                Some(len) => len as u64,
                None => return cursor.skip_string(),
            },
        };
        let left = left - cursor.some_bytes(left as usize).len() as u64;
        self.left = Some(left);
        cursor.bytes(left as usize).map(drop)
    }

    /// Passes what stands before the elements. A value that is one string counts as one element.
    fn begin(&self, cursor: &mut Cursor<'_>) -> Result<u64, Stop> {
        if self.kind == kind::HASH_METADATA {
            cursor.millis()?;
        }
        if self.has_elements() { cursor.length() } else { Ok(1) }
    }

    fn has_elements(&self) -> bool {
        matches!(
            self.kind,
            kind::LIST
                | kind::LIST_QUICKLIST
                | kind::LIST_QUICKLIST_2
                | kind::HASH
                | kind::HASH_METADATA
                | kind::VALKEY_HASH_2
                | kind::SET
                | kind::ZSET
                | kind::ZSET_2
        )
    }

    fn element(&self, cursor: &mut Cursor<'_>) -> Result<(), Stop> {
        match self.kind {
            kind::HASH_METADATA | kind::LIST_QUICKLIST_2 => drop(cursor.length()?),
            kind::HASH_LISTPACK_EX => drop(cursor.millis()?),
            _ => {}
        }
        cursor.skip_string()?;
        match self.kind {
            kind::HASH | kind::HASH_METADATA => cursor.skip_string(),
            kind::VALKEY_HASH_2 => {
                cursor.skip_string()?;
                cursor.millis().map(drop)
            }
            kind::ZSET => cursor.text_double().map(drop),
            kind::ZSET_2 => cursor.double().map(drop),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rdb::{Input, Limits, Writer, WriterOptions, kind_of, sample, save_value};
    use crate::table::Entry;
    use crate::types::Object;

    /// Passes a value that arrives in pieces; returns its length.
    fn skip_in_pieces(kind: u8, version: u32, bytes: &[u8], rng: &mut fastrand::Rng) -> u64 {
        let mut skipper = ValueSkipper::new(kind, version).unwrap();
        let mut input = Input::new(Limits::default(), false);
        let mut rest = bytes;
        loop {
            let mut cursor = input.cursor();
            let step = skipper.skip(&mut cursor);
            let used_bytes = cursor.used_bytes();
            input.consume(used_bytes);
            match step {
                Ok(()) => return input.position(),
                Err(Stop::NeedMore(_)) if !rest.is_empty() => {
                    let (piece, tail) = rest.split_at(rng.usize(1..=rest.len().min(200)));
                    input.feed(piece);
                    rest = tail;
                }
                Err(stop) => panic!("{stop:?}"),
            }
        }
    }

    #[test]
    fn law8_a_long_string_is_passed_as_it_comes() {
        let mut writer = Writer::new(WriterOptions { compress: false, ..WriterOptions::default() });
        writer.string(&[b'x'; 100_000]);
        let bytes = writer.take();
        let mut skipper = ValueSkipper::new(kind::STRING, 10).unwrap();
        let mut input = Input::new(Limits::default(), false);
        for piece in bytes.chunks(1000) {
            input.feed(piece);
            let mut cursor = input.cursor();
            let step = skipper.skip(&mut cursor);
            let used_bytes = cursor.used_bytes();
            input.consume(used_bytes);
            assert_eq!(input.buffered_bytes(), 0);
            assert_eq!(step.is_ok(), input.position() == bytes.len() as u64);
        }
    }

    #[test]
    fn ends_where_the_value_ends_whatever_the_pieces() {
        let mut rng = fastrand::Rng::with_seed(12);
        for version in [9, 10, 11, 12, crate::rdb::VALKEY_VERSION] {
            for _ in 0..300 {
                let entry: Entry<Object> = Entry::with_expiry(b"key", sample::value(&mut rng, true), None);
                let mut writer =
                    Writer::new(WriterOptions { version, compress: rng.bool(), checksum: false });
                save_value(&mut writer, entry.value());
                let mut bytes = writer.take();
                let len_bytes = bytes.len() as u64;
                bytes.extend_from_slice(b"what follows");
                let kind = kind_of(entry.value(), version);
                assert_eq!(skip_in_pieces(kind, version, &bytes, &mut rng), len_bytes, "type {kind}");
            }
        }
    }
}
