//! Changing strings in place.
//!
//! A string that is edited becomes a buffer of its own ([`Object::Str`], Redis's `raw`), however short: it will likely
//! be edited again, and the buffer grows with room to spare, so that appending is cheap on average. A buffer that
//! somebody else still refers to (a reply, a segment of the stream that is not sent, the log) is copied before it is
//! changed, at once.

use super::{Expiry, Keys};
use crate::command::Error;
use crate::table::{EntryMut, NewValue, ValueMut, ValueRef};
use crate::types::Object;
use bytes::{Bytes, BytesMut};

use super::keys::StrRef;

impl StrRef<'_> {
    /// The value by itself: shared when it is a buffer of its own.
    pub fn to_bytes(self) -> Bytes {
        match self {
            Self::Int(value) => Bytes::copy_from_slice(itoa::Buffer::new().format(value).as_bytes()),
            Self::Inline(bytes) => Bytes::copy_from_slice(bytes),
            Self::Shared(bytes) => bytes.clone(),
        }
    }

    /// Whether the value is these bytes.
    pub fn is(self, other: &[u8]) -> bool {
        match self {
            Self::Int(value) => itoa::Buffer::new().format(value).as_bytes() == other,
            Self::Inline(bytes) => bytes == other,
            Self::Shared(bytes) => *bytes == other,
        }
    }

    /// Calls `body` with the bytes.
    pub fn with<R>(self, body: impl FnOnce(&[u8]) -> R) -> R {
        match self {
            Self::Int(value) => body(itoa::Buffer::new().format(value).as_bytes()),
            Self::Inline(bytes) => body(bytes),
            Self::Shared(bytes) => body(bytes),
        }
    }
}

impl Keys<'_> {
    /// A string to change, if there is one.
    ///
    /// # Errors
    /// The key holds something else.
    pub fn write_string(&mut self, key: &[u8]) -> Result<Option<EntryMut<'_, Object>>, Error> {
        match self.write(key) {
            None => Ok(None),
            Some(entry) if StrRef::of(entry.value()).is_some() => Ok(Some(entry)),
            Some(_) => Err(Error::WrongType),
        }
    }

    /// Sets a key to a string that is kept as a buffer of its own, however short.
    pub fn put_buffer(&mut self, key: &[u8], value: Bytes) {
        self.put(key, NewValue::Boxed(Box::new(Object::Str(value))), Expiry::Clear);
    }

    /// The longest string that this command may make, bytes. A master's commands are obeyed
    /// beyond the limit that clients have.
    pub fn max_string_len_bytes(&self) -> u64 {
        if self.from_master { u64::from(u32::MAX) } else { self.settings.max_bulk_len_bytes }
    }
}

/// Length of a string entry's value in bytes.
pub fn string_len(entry: &EntryMut<'_, Object>) -> usize {
    StrRef::of(entry.value()).expect("a string").len()
}

/// Changes a string's bytes, in place where nobody else refers to them.
pub fn edit_string<R>(entry: &mut EntryMut<'_, Object>, edit: impl FnOnce(&mut BytesMut) -> R) -> R {
    if let ValueMut::Boxed(Object::Str(value)) = entry.value_mut() {
        let mut buf =
            std::mem::take(value).try_into_mut().unwrap_or_else(|shared| BytesMut::from(&shared[..]));
        let result = edit(&mut buf);
        *value = buf.freeze();
        return result;
    }
    let mut buf = match entry.value() {
        ValueRef::Int(value) => BytesMut::from(itoa::Buffer::new().format(value).as_bytes()),
        ValueRef::Str(value) => BytesMut::from(value),
        _ => unreachable!("only strings are edited"),
    };
    let result = edit(&mut buf);
    entry.set_value(NewValue::Boxed(Box::new(Object::Str(buf.freeze()))));
    result
}

/// Makes a buffer at least `len_bytes` long, padding it with zeros.
pub fn grow_with_zeros(buf: &mut BytesMut, len_bytes: usize) {
    let old_len = buf.len();
    if len_bytes <= old_len {
        return;
    }
    // A long stretch of zeros comes from the system already zeroed, page by page as it is touched; short ones are
    // written, and the buffer grows by doubling.
    if len_bytes > buf.capacity() && len_bytes / 2 > old_len {
        let mut grown = BytesMut::zeroed(len_bytes);
        grown[..old_len].copy_from_slice(buf);
        *buf = grown;
    } else {
        buf.resize(len_bytes, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growing_keeps_the_bytes_and_adds_zeros() {
        for (from, to) in [(0, 1), (1, 3), (3, 4), (10, 5), (100, 101), (7, 100_000)] {
            let mut buf = BytesMut::from(&vec![b'x'; from][..]);
            grow_with_zeros(&mut buf, to);
            assert_eq!(buf.len(), from.max(to));
            assert!(
                buf[..from].iter().all(|byte| *byte == b'x') && buf[from..].iter().all(|byte| *byte == 0)
            );
        }
    }

    #[test]
    fn growing_byte_by_byte_seldom_moves_the_buffer() {
        let mut value = Bytes::from(vec![0]);
        let mut moves = 0;
        for len in 2..100_000 {
            let at = value.as_ptr();
            let mut buf = value.try_into_mut().expect("nobody else has it");
            grow_with_zeros(&mut buf, len);
            value = buf.freeze();
            moves += usize::from(value.as_ptr() != at);
        }
        assert!(moves < 40, "{moves}");
    }
}
