//! Listpack: a sequence of strings and integers in one allocation, in the byte format of Redis 7 and later.
//!
//! ```text
//! u32 total bytes | u16 count | entry ... | 0xFF
//! entry = encoding and payload | the entry's own length, readable from its last byte backwards
//! ```
//! The trailing length is what lets a reader walk from right to left. The count saturates: 65535 means "count them".
//! The format is specified in antirez's "Listpack: a specification" and is what RDB files and `DUMP` carry.

use super::num::parse_i64;

const HEADER_BYTES: usize = 6;
const END: u8 = 0xFF;
const COUNT_UNKNOWN: usize = u16::MAX as usize;
/// No listpack grows beyond this; Redis's own safety limit for the 32-bit length in the header.
pub const MAX_BYTES: usize = 1 << 30;
/// What one element may cost beyond its own bytes: five of header, five of trailing length.
pub const MAX_OVERHEAD_BYTES: usize = 10;

/// An element, borrowed from the listpack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element<'a> {
    Int(i64),
    Str(&'a [u8]),
}

impl<'a> Element<'a> {
    /// The element as text, in its own storage or in `scratch`.
    pub fn bytes<'b>(self, scratch: &'b mut itoa::Buffer) -> &'b [u8]
    where
        'a: 'b,
    {
        match self {
            Element::Int(value) => scratch.format(value).as_bytes(),
            Element::Str(text) => text,
        }
    }

    pub fn to_vec(self) -> Vec<u8> {
        self.bytes(&mut itoa::Buffer::new()).to_vec()
    }

    /// Length of the element as text.
    pub fn len_bytes(self) -> usize {
        self.bytes(&mut itoa::Buffer::new()).len()
    }

    /// The element as an integer, if it is one or spells one canonically.
    pub fn as_int(self) -> Option<i64> {
        match self {
            Element::Int(value) => Some(value),
            Element::Str(text) => parse_i64(text),
        }
    }
}

/// A text to look for, with its integer reading worked out once.
#[derive(Clone, Copy, Debug)]
pub struct Needle<'a> {
    text: &'a [u8],
    int: Option<i64>,
}

impl<'a> Needle<'a> {
    pub fn new(text: &'a [u8]) -> Self {
        Needle { text, int: parse_i64(text) }
    }

    pub fn matches(&self, element: Element) -> bool {
        match element {
            Element::Int(value) => self.int == Some(value),
            Element::Str(text) => self.text == text,
        }
    }
}

/// Why bytes are not a listpack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// The header's length, or the end marker, does not fit the bytes.
    Frame,
    /// An entry's encoding is unknown, reaches past the end, or disagrees with its trailing length.
    Entry,
    /// The header's count is not the number of entries.
    Count,
}

impl std::fmt::Display for Malformed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Malformed::Frame => "listpack frame is malformed",
            Malformed::Entry => "listpack entry is malformed",
            Malformed::Count => "listpack count is wrong",
        })
    }
}

impl std::error::Error for Malformed {}

/// A value ready to be written: the bytes before the payload, and the payload.
struct Encoded<'a> {
    head: [u8; 9],
    head_len: usize,
    payload: &'a [u8],
}

impl<'a> Encoded<'a> {
    fn text(text: &'a [u8]) -> Self {
        match parse_i64(text) {
            Some(value) => Encoded::int(value),
            None => {
                let len = text.len();
                assert!(len <= MAX_BYTES, "element of {len} bytes is too big for a listpack");
                let mut head = [0; 9];
                let head_len = if len < 1 << 6 {
                    head[0] = 0x80 | len as u8;
                    1
                } else if len < 1 << 12 {
                    head[0] = 0xE0 | (len >> 8) as u8;
                    head[1] = len as u8;
                    2
                } else {
                    head[0] = 0xF0;
                    head[1..5].copy_from_slice(&(len as u32).to_le_bytes());
                    5
                };
                Encoded { head, head_len, payload: text }
            }
        }
    }

    fn int(value: i64) -> Self {
        let mut head = [0; 9];
        let head_len = match value {
            0..=127 => {
                head[0] = value as u8;
                1
            }
            -4096..=4095 => {
                head[0] = 0xC0 | (value >> 8) as u8 & 0x1F;
                head[1] = value as u8;
                2
            }
            _ => {
                let width = match value {
                    -0x8000..=0x7FFF => 2,
                    -0x80_0000..=0x7F_FFFF => 3,
                    -0x8000_0000..=0x7FFF_FFFF => 4,
                    _ => 8,
                };
                head[0] = if width == 8 { 0xF4 } else { 0xEF + width as u8 };
                head[1..1 + width].copy_from_slice(&value.to_le_bytes()[..width]);
                1 + width
            }
        };
        Encoded { head, head_len, payload: &[] }
    }

    fn body_len(&self) -> usize {
        self.head_len + self.payload.len()
    }

    fn entry_len(&self) -> usize {
        self.body_len() + back_len_width(self.body_len())
    }

    /// Writes the entry over the whole of `out`.
    fn write(&self, out: &mut [u8]) {
        let body_len = self.body_len();
        out[..self.head_len].copy_from_slice(&self.head[..self.head_len]);
        out[self.head_len..body_len].copy_from_slice(self.payload);
        // Seven bits a byte, most significant first; all but the first byte carry the flag "there is more to my left".
        let mut rest = body_len;
        for (distance, byte) in out[body_len..].iter_mut().rev().enumerate() {
            *byte = rest as u8 & 0x7F | 0x80;
            rest >>= 7;
            debug_assert!(distance < 5);
        }
        out[body_len] &= 0x7F;
    }
}

/// Bytes that the trailing length of an entry with a body of `body_len` bytes takes.
fn back_len_width(body_len: usize) -> usize {
    match body_len {
        0..=0x7F => 1,
        0x80..=0x3FFF => 2,
        0x4000..=0x1F_FFFF => 3,
        0x20_0000..=0xFFF_FFFF => 4,
        _ => 5,
    }
}

/// The body length whose trailing field ends just before `end`, and the width of that field.
fn read_back_len(bytes: &[u8], end: usize) -> Option<(usize, usize)> {
    let mut body_len = 0usize;
    for width in 1..=5 {
        let byte = *bytes.get(end.checked_sub(width)?)?;
        body_len |= usize::from(byte & 0x7F) << (7 * (width - 1));
        if byte & 0x80 == 0 {
            return Some((body_len, width));
        }
    }
    None
}

/// Decodes the entry at `at`: the element and its body's length. `None` if it is malformed or reaches past the end.
fn decode(bytes: &[u8], at: usize) -> Option<(Element<'_>, usize)> {
    let tail = bytes.get(at..)?;
    let first = *tail.first()?;
    let text = |head: usize, len: usize| {
        let body = head.checked_add(len)?;
        Some((Element::Str(tail.get(head..body)?), body))
    };
    let int = |width: usize| {
        let stored = tail.get(1..1 + width)?;
        // Fill the high bytes, then shift back with the sign.
        let mut wide = [0; 8];
        wide[8 - width..].copy_from_slice(stored);
        Some((Element::Int(i64::from_le_bytes(wide) >> (64 - 8 * width)), 1 + width))
    };
    match first {
        0x00..=0x7F => Some((Element::Int(i64::from(first)), 1)),
        0x80..=0xBF => text(1, usize::from(first & 0x3F)),
        0xC0..=0xDF => {
            let raw = i64::from(first & 0x1F) << 8 | i64::from(*tail.get(1)?);
            Some((Element::Int(if raw >= 1 << 12 { raw - (1 << 13) } else { raw }), 2))
        }
        0xE0..=0xEF => text(2, usize::from(first & 0x0F) << 8 | usize::from(*tail.get(1)?)),
        0xF0 => text(5, u32::from_le_bytes(tail.get(1..5)?.try_into().ok()?) as usize),
        0xF1..=0xF3 => int(usize::from(first - 0xEF)),
        0xF4 => int(8),
        _ => None,
    }
}

/// Checks every byte of `bytes` that reading will rely on. Never panics, whatever the bytes. Returns the count of
/// elements.
pub fn validate(bytes: &[u8]) -> Result<usize, Malformed> {
    if bytes.len() <= HEADER_BYTES || bytes.len() > MAX_BYTES {
        return Err(Malformed::Frame);
    }
    let total = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize;
    let end = bytes.len() - 1;
    if total != bytes.len() || bytes[end] != END {
        return Err(Malformed::Frame);
    }
    let mut at = HEADER_BYTES;
    let mut count = 0;
    while at < end {
        let (_, body_len) = decode(&bytes[..end], at).ok_or(Malformed::Entry)?;
        let next = at + body_len + back_len_width(body_len);
        if next > end || read_back_len(bytes, next) != Some((body_len, next - at - body_len)) {
            return Err(Malformed::Entry);
        }
        at = next;
        count += 1;
    }
    let declared = usize::from(u16::from_le_bytes([bytes[4], bytes[5]]));
    if declared != COUNT_UNKNOWN && declared != count {
        return Err(Malformed::Count);
    }
    Ok(count)
}

/// A listpack. Positions (`usize`) are byte offsets of entries; they hold until the listpack changes at or before
/// them.
///
/// Invariant: the bytes pass [`validate`].
#[derive(PartialEq, Eq)]
pub struct Listpack {
    bytes: Vec<u8>,
}

impl Default for Listpack {
    fn default() -> Self {
        Listpack::new()
    }
}

impl Clone for Listpack {
    fn clone(&self) -> Self {
        Listpack { bytes: self.bytes.clone() }
    }
}

impl std::fmt::Debug for Listpack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl Listpack {
    pub fn new() -> Self {
        Listpack::with_capacity(0)
    }

    /// An empty listpack with room for entries of `entry_bytes` in all.
    pub fn with_capacity(entry_bytes: usize) -> Self {
        let mut bytes = Vec::with_capacity(HEADER_BYTES + 1 + entry_bytes);
        bytes.extend_from_slice(&[HEADER_BYTES as u8 + 1, 0, 0, 0, 0, 0, END]);
        Listpack { bytes }
    }

    /// Takes bytes from outside after a deep check.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, Malformed> {
        validate(&bytes)?;
        Ok(Listpack { bytes })
    }

    /// The bytes as Redis stores them.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Bytes of the encoding, header and end included.
    pub fn len_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Bytes allocated.
    pub fn heap_bytes(&self) -> usize {
        self.bytes.capacity()
    }

    /// Number of elements. Constant time up to 65534 of them, a walk beyond.
    pub fn len(&self) -> usize {
        match usize::from(u16::from_le_bytes([self.bytes[4], self.bytes[5]])) {
            COUNT_UNKNOWN => self.iter().count(),
            count => count,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.bytes.len() == HEADER_BYTES + 1
    }

    /// Whether an element of `added_bytes` can be added without passing [`MAX_BYTES`].
    pub fn has_room_for(&self, added_bytes: usize) -> bool {
        self.bytes.len().saturating_add(added_bytes).saturating_add(MAX_OVERHEAD_BYTES) <= MAX_BYTES
    }

    /// Position of the first element, or [`Listpack::end`].
    pub fn start(&self) -> usize {
        HEADER_BYTES
    }

    /// Position after the last element.
    pub fn end(&self) -> usize {
        self.bytes.len() - 1
    }

    /// The element at `at`. Panics if no entry starts there.
    pub fn get(&self, at: usize) -> Element<'_> {
        self.entry(at).0
    }

    /// Position after the entry at `at`.
    pub fn next(&self, at: usize) -> usize {
        self.entry(at).1
    }

    /// Position of the entry before `at`, if there is one.
    pub fn prev(&self, at: usize) -> Option<usize> {
        (at > HEADER_BYTES).then(|| {
            let (body_len, width) =
                read_back_len(&self.bytes, at).expect("a position lies after a whole entry");
            at - width - body_len
        })
    }

    /// Position of the last element.
    pub fn last(&self) -> Option<usize> {
        self.prev(self.end())
    }

    /// The element at `at` and the position after it.
    fn entry(&self, at: usize) -> (Element<'_>, usize) {
        let (element, body_len) = decode(&self.bytes, at).expect("a position is the start of an entry");
        (element, at + body_len + back_len_width(body_len))
    }

    /// Position of the element of that index, walking from the nearer end. `None` if there are not so many.
    pub fn seek(&self, index: usize) -> Option<usize> {
        let count = usize::from(u16::from_le_bytes([self.bytes[4], self.bytes[5]]));
        if count != COUNT_UNKNOWN && index >= count {
            return None;
        }
        if count != COUNT_UNKNOWN && index > count / 2 {
            let mut at = self.end();
            for _ in index..count {
                at = self.prev(at)?;
            }
            return Some(at);
        }
        let mut at = self.start();
        for _ in 0..index {
            if at == self.end() {
                return None;
            }
            at = self.next(at);
        }
        (at < self.end()).then_some(at)
    }

    /// The element of that index.
    pub fn nth(&self, index: usize) -> Option<Element<'_>> {
        self.seek(index).map(|at| self.get(at))
    }

    pub fn push_back(&mut self, text: &[u8]) {
        self.insert(self.end(), text);
    }

    pub fn push_front(&mut self, text: &[u8]) {
        self.insert(self.start(), text);
    }

    pub fn push_back_int(&mut self, value: i64) {
        self.insert_int(self.end(), value);
    }

    /// Appends a copy of an element of another listpack.
    pub fn push_back_element(&mut self, element: Element) {
        match element {
            Element::Int(value) => self.push_back_int(value),
            Element::Str(text) => self.push_back(text),
        }
    }

    /// Inserts before the position `at`; [`Listpack::end`] appends. `at` is then the new element's position.
    pub fn insert(&mut self, at: usize, text: &[u8]) {
        self.splice(at, at, 0, Some(Encoded::text(text)));
    }

    /// [`Listpack::insert`] for an integer.
    pub fn insert_int(&mut self, at: usize, value: i64) {
        self.splice(at, at, 0, Some(Encoded::int(value)));
    }

    /// Replaces the element at `at`, which stays the position of the new one.
    pub fn replace(&mut self, at: usize, text: &[u8]) {
        self.splice(at, self.next(at), 1, Some(Encoded::text(text)));
    }

    /// Removes the element at `at`, which becomes the position of what followed it.
    pub fn remove(&mut self, at: usize) {
        self.splice(at, self.next(at), 1, None);
    }

    /// Removes up to `count` elements from `at` on; returns how many there were.
    pub fn remove_run(&mut self, at: usize, count: usize) -> usize {
        let mut end = at;
        let mut removed = 0;
        while removed < count && end < self.end() {
            end = self.next(end);
            removed += 1;
        }
        self.splice(at, end, removed, None);
        removed
    }

    /// Moves the elements from `at` on into a new listpack.
    pub fn split_off(&mut self, at: usize) -> Listpack {
        let moved = self.iter_between(at, self.end()).count();
        let mut other = Listpack::with_capacity(self.end() - at);
        other.bytes.pop();
        other.bytes.extend_from_slice(&self.bytes[at..]);
        other.set_header(moved);
        let kept_end = self.end();
        self.splice(at, kept_end, moved, None);
        other
    }

    /// Appends all elements of `other`.
    pub fn append(&mut self, other: &Listpack) {
        let count = self.len() + other.len();
        self.reserve(other.bytes.len());
        self.bytes.pop();
        self.bytes.extend_from_slice(&other.bytes[HEADER_BYTES..]);
        assert!(self.bytes.len() <= MAX_BYTES);
        self.set_header(count);
    }

    /// Position of the first element equal to `needle`, looking at every `stride`-th element from `at` on.
    pub fn find(&self, needle: &Needle, mut at: usize, stride: usize) -> Option<usize> {
        debug_assert!(stride > 0);
        while at < self.end() {
            let (element, next) = self.entry(at);
            if needle.matches(element) {
                return Some(at);
            }
            at = next;
            for _ in 1..stride {
                if at == self.end() {
                    return None;
                }
                at = self.next(at);
            }
        }
        None
    }

    pub fn iter(&self) -> Iter<'_> {
        self.iter_between(self.start(), self.end())
    }

    /// The elements from position `at` up to position `end`.
    pub fn iter_between(&self, at: usize, end: usize) -> Iter<'_> {
        Iter { pack: self, at, end }
    }

    pub fn clear(&mut self) {
        *self = Listpack::new();
    }

    /// Gives back allocated bytes that hold nothing.
    pub fn shrink_to_fit(&mut self) {
        self.bytes.shrink_to_fit();
    }

    /// Replaces the bytes `from..to`, which hold `removed` whole entries, by one entry or none.
    fn splice(&mut self, from: usize, to: usize, removed: usize, added: Option<Encoded>) {
        let old_len = self.bytes.len();
        let header_count = usize::from(u16::from_le_bytes([self.bytes[4], self.bytes[5]]));
        let added_len = added.as_ref().map_or(0, Encoded::entry_len);
        let new_len = old_len - (to - from) + added_len;
        assert!(new_len <= MAX_BYTES, "a listpack would exceed {MAX_BYTES} bytes");
        if new_len > old_len {
            self.reserve(new_len - old_len);
            self.bytes.resize(new_len, 0);
        }
        self.bytes.copy_within(to..old_len, from + added_len);
        self.bytes.truncate(new_len);
        if let Some(added) = &added {
            added.write(&mut self.bytes[from..from + added_len]);
        }
        let added_count = usize::from(added.is_some());
        match header_count {
            // Once unknown, the count becomes known again only by a walk; wait until few enough can be left.
            COUNT_UNKNOWN if added_count < removed => {
                self.set_header(COUNT_UNKNOWN);
                let count = self.len();
                self.set_header(count);
            }
            COUNT_UNKNOWN => self.set_header(COUNT_UNKNOWN),
            count => self.set_header(count - removed + added_count),
        }
        if self.bytes.capacity() > 1024 && self.bytes.capacity() / 4 > new_len {
            self.bytes.shrink_to(new_len + new_len / 4);
        }
    }

    fn set_header(&mut self, count: usize) {
        let total = self.bytes.len() as u32;
        self.bytes[..4].copy_from_slice(&total.to_le_bytes());
        self.bytes[4..6].copy_from_slice(&(count.min(COUNT_UNKNOWN) as u16).to_le_bytes());
    }

    /// Grows by a quarter at a time: amortized constant work per byte, and little slack on millions of small values.
    fn reserve(&mut self, added: usize) {
        let needed = self.bytes.len() + added;
        if needed > self.bytes.capacity() {
            let target = (needed + needed / 4 + 7) & !7;
            self.bytes.reserve_exact(target - self.bytes.len());
        }
    }
}

/// Elements between two positions, from either side.
#[derive(Clone)]
pub struct Iter<'a> {
    pack: &'a Listpack,
    at: usize,
    end: usize,
}

impl<'a> Iterator for Iter<'a> {
    type Item = Element<'a>;

    fn next(&mut self) -> Option<Element<'a>> {
        if self.at >= self.end {
            return None;
        }
        let (element, next) = self.pack.entry(self.at);
        self.at = next;
        Some(element)
    }
}

impl DoubleEndedIterator for Iter<'_> {
    fn next_back(&mut self) -> Option<Self::Item> {
        if self.at >= self.end {
            return None;
        }
        self.end = self.pack.prev(self.end)?;
        Some(self.pack.get(self.end))
    }
}

#[cfg(test)]
mod tests;
