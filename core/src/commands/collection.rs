//! What the commands of lists, hashes, sets and sorted sets share: replies, indexes and counts.

use crate::command::{Error, Flags, KeySpec, Use};
use crate::resp::Reply;
use crate::resp::number::parse_i64;
use crate::types::Element;
use crate::types::num::format_f64;
use std::ops::Range;

pub(super) const READ: Flags = Flags::READONLY;
pub(super) const READ_FAST: Flags = Flags::READONLY.or(Flags::FAST);
pub(super) const WRITE: Flags = Flags::WRITE;
pub(super) const WRITE_FAST: Flags = Flags::WRITE.or(Flags::FAST);
/// Takes memory.
pub(super) const GROW: Flags = Flags::WRITE.or(Flags::DENYOOM);
pub(super) const GROW_FAST: Flags = GROW.or(Flags::FAST);

/// The value is looked at but not returned.
pub(super) const LOOK: &[KeySpec] = &[KeySpec::one(1, Use::Read, &[])];
pub(super) const ACCESS: &[KeySpec] = &[KeySpec::one(1, Use::Read, &["access"])];
pub(super) const INSERT: &[KeySpec] = &[KeySpec::one(1, Use::ReadWrite, &["insert"])];
pub(super) const UPDATE: &[KeySpec] = &[KeySpec::one(1, Use::ReadWrite, &["update"])];
pub(super) const ACCESS_UPDATE: &[KeySpec] = &[KeySpec::one(1, Use::ReadWrite, &["access", "update"])];
pub(super) const DELETE: &[KeySpec] = &[KeySpec::one(1, Use::ReadWrite, &["delete"])];
pub(super) const ACCESS_DELETE: &[KeySpec] = &[KeySpec::one(1, Use::ReadWrite, &["access", "delete"])];

pub(super) const NOT_POSITIVE: Error = Error::text("ERR value is out of range, must be positive");

/// An element as a bulk string.
#[inline]
pub(super) fn bulk_element(out: &mut Reply, element: Element<'_>) {
    match element {
        Element::Str(text) => out.bulk(text),
        Element::Int(value) => out.bulk_int(value),
    }
}

/// A score: a double in RESP3, a bulk string in RESP2.
#[inline]
pub(super) fn score(out: &mut Reply, value: f64) {
    // Whole numbers, most scores, need no buffer. Zero has a sign; the limit is where doubles stop to hold each number.
    const WHOLE_LIMIT: f64 = (1u64 << 52) as f64;
    let mut digits = itoa::Buffer::new();
    let text;
    let text = if value != 0.0 && value.abs() < WHOLE_LIMIT && value.fract() == 0.0 {
        digits.format(value as i64).as_bytes()
    } else {
        text = format_f64(value);
        &text
    };
    if out.resp3 {
        out.buf.push(b',');
        out.buf.extend_from_slice(text);
        out.buf.extend_from_slice(b"\r\n");
    } else {
        out.bulk(text);
    }
}

/// An integer argument.
#[inline]
pub(super) fn integer(arg: &[u8]) -> Result<i64, Error> {
    parse_i64(arg).ok_or(Error::NotInteger)
}

/// An integer argument whose sign says which way, so that it must have a counterpart of the other sign.
pub(super) fn signed_count(arg: &[u8]) -> Result<i64, Error> {
    match integer(arg)? {
        i64::MIN => Err(Error::text(
            "ERR value is out of range, value must between -9223372036854775807 and 9223372036854775807",
        )),
        number => Ok(number),
    }
}

/// How many to take or to return: an integer that is not negative.
pub(super) fn count(arg: &[u8]) -> Result<usize, Error> {
    parse_i64(arg).and_then(|number| usize::try_from(number).ok()).ok_or(NOT_POSITIVE)
}

/// The indexes that `start` and `stop` (inclusive, negative: from the end) mean in a collection of `len` elements.
#[inline]
pub(super) fn index_range(start: i64, stop: i64, len: usize) -> Range<usize> {
    let len = len as i64;
    let absolute = |index: i64| if index < 0 { (index + len).max(-1) } else { index };
    let (start, stop) = (absolute(start).max(0), absolute(stop).min(len - 1));
    if start > stop { 0..0 } else { start as usize..stop as usize + 1 }
}

/// The index that `index` (negative: from the end) means in a collection of `len` elements, if it is in it.
#[inline]
pub(super) fn index_in(index: i64, len: usize) -> Option<usize> {
    let index = if index < 0 { index + len as i64 } else { index };
    usize::try_from(index).ok().filter(|&index| index < len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indexes_count_from_either_end() {
        for (start, stop, len, want) in [
            (0, -1, 3, 0..3),
            (1, 1, 3, 1..2),
            (-2, -1, 3, 1..3),
            (-9, 9, 3, 0..3),
            (i64::MIN, i64::MAX, 3, 0..3),
            (2, 1, 3, 0..0),
            (3, 9, 3, 0..0),
            (0, -4, 3, 0..0),
            (0, -1, 0, 0..0),
        ] {
            assert_eq!(index_range(start, stop, len), want, "{start} {stop} of {len}");
        }
        for (index, want) in [(0, Some(0)), (-1, Some(2)), (3, None), (-4, None), (i64::MIN, None)] {
            assert_eq!(index_in(index, 3), want);
        }
    }
}
