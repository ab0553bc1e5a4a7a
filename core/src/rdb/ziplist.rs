//! Compact encodings of Redis before 7, read only: ziplists and, from before 2.6, zipmaps.
//!
//! ```text
//! ziplist = u32 total bytes | u32 offset of the last entry | u16 count (65535: not known) | entry ... | 0xFF
//! entry   = length of the entry before (u8, or 0xFE u32) | encoding | payload
//! zipmap  = u8 count (254 and up: not known) | (length key | length u8-unused value | unused bytes) ... | 0xFF
//! length  = u8 below 254 | 0xFE u32
//! ```
//! Numbers are little-endian but for a ziplist's string lengths, which are big-endian.

use crate::types::Listpack;

const ZIPLIST_HEADER_BYTES: usize = 10;
const END: u8 = 0xFF;
const LONG_LENGTH: u8 = 0xFE;
const ZIPLIST_COUNT_UNKNOWN: usize = u16::MAX as usize;
/// From here on a zipmap's count is not known.
const ZIPMAP_COUNT_UNKNOWN: usize = 254;

/// A position in bytes that came from outside. All reads are checked.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, len_bytes: usize) -> Option<&'a [u8]> {
        let taken = self.bytes.get(self.at..self.at.checked_add(len_bytes)?)?;
        self.at += len_bytes;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|taken| taken[0])
    }

    fn u32(&mut self) -> Option<usize> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?) as usize)
    }

    fn signed(&mut self, width: usize) -> Option<i64> {
        let mut wide = [0; 8];
        wide[8 - width..].copy_from_slice(self.take(width)?);
        Some(i64::from_le_bytes(wide) >> (64 - 8 * width))
    }

    /// A length of one byte or five; `None` also at the end mark.
    fn length(&mut self) -> Option<usize> {
        match self.byte()? {
            LONG_LENGTH => self.u32(),
            END => None,
            short => Some(usize::from(short)),
        }
    }
}

/// The elements of a ziplist as a listpack. `None` if the bytes are no ziplist.
pub(super) fn ziplist_to_listpack(bytes: &[u8]) -> Option<Listpack> {
    let mut reader = Reader { bytes, at: 0 };
    let (total, tail) = (reader.u32()?, reader.u32()?);
    let count = usize::from(u16::from_le_bytes(reader.take(2)?.try_into().ok()?));
    if total != bytes.len() || *bytes.last()? != END {
        return None;
    }
    let end = bytes.len() - 1;
    let mut pack = Listpack::with_capacity(bytes.len());
    let (mut found, mut before) = (0, ZIPLIST_HEADER_BYTES);
    reader.bytes = &bytes[..end];
    while reader.at < end {
        let start = reader.at;
        if reader.length()? != if found == 0 { 0 } else { start - before } {
            return None;
        }
        before = start;
        if !pack.has_room_for(end - start) {
            return None;
        }
        let code = reader.byte()?;
        let text_len = match code >> 6 {
            0b00 => usize::from(code & 0x3F),
            0b01 => usize::from(code & 0x3F) << 8 | usize::from(reader.byte()?),
            0b10 => u32::from_be_bytes(reader.take(4)?.try_into().ok()?) as usize,
            _ => {
                pack.push_back_int(match code {
                    0xC0 => reader.signed(2)?,
                    0xD0 => reader.signed(4)?,
                    0xE0 => reader.signed(8)?,
                    0xF0 => reader.signed(3)?,
                    0xFE => reader.signed(1)?,
                    0xF1..=0xFD => i64::from(code & 0x0F) - 1,
                    _ => return None,
                });
                found += 1;
                continue;
            }
        };
        pack.push_back(reader.take(text_len)?);
        found += 1;
    }
    // An empty one points at its end mark.
    let is_right = tail == before && (count == found || count == ZIPLIST_COUNT_UNKNOWN);
    is_right.then_some(pack)
}

/// The names and values of a zipmap as a listpack. `None` if the bytes are no zipmap.
pub(super) fn zipmap_to_listpack(bytes: &[u8]) -> Option<Listpack> {
    let (&END, body) = bytes.split_last()? else { return None };
    let mut reader = Reader { bytes: body, at: 0 };
    let count = usize::from(reader.byte()?);
    let mut pack = Listpack::with_capacity(bytes.len());
    let mut found = 0;
    while reader.at < body.len() {
        if !pack.has_room_for(bytes.len()) {
            return None;
        }
        let name_len = reader.length()?;
        pack.push_back(reader.take(name_len)?);
        let value_len = reader.length()?;
        let unused_len = usize::from(reader.byte()?);
        pack.push_back(reader.take(value_len)?);
        reader.take(unused_len)?;
        found += 1;
    }
    (count == found || count >= ZIPMAP_COUNT_UNKNOWN).then_some(pack)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(pack: &Listpack) -> Vec<String> {
        pack.iter().map(|element| String::from_utf8(element.to_vec()).unwrap()).collect()
    }

    #[test]
    fn reads_a_zipmap() {
        let bytes = b"\x02\x03foo\x03\x00bar\x05hello\x05\x02world??\xff";
        assert_eq!(texts(&zipmap_to_listpack(bytes).unwrap()), ["foo", "bar", "hello", "world"]);
        for cut in 0..bytes.len() {
            assert!(zipmap_to_listpack(&bytes[..cut]).is_none(), "cut at {cut}");
        }
    }

    #[test]
    fn reads_every_encoding_of_a_ziplist() {
        let long = "x".repeat(100);
        let mut entries: Vec<Vec<u8>> = vec![
            b"\x02hi".to_vec(),
            [b"\x40\x64".to_vec(), long.clone().into_bytes()].concat(),
            b"\x80\x00\x00\x00\x01z".to_vec(),
        ];
        entries.push([vec![0xC0], (-300i16).to_le_bytes().to_vec()].concat());
        entries.push([vec![0xD0], 70_000i32.to_le_bytes().to_vec()].concat());
        entries.push([vec![0xE0], i64::MIN.to_le_bytes().to_vec()].concat());
        entries.push(vec![0xF0, 0xFF, 0xFF, 0x7F]);
        entries.push(vec![0xFE, 0x80]);
        entries.push(vec![0xF1]);
        entries.push(vec![0xFD]);
        let mut body = Vec::new();
        let (mut before, mut tail) = (0u8, 0);
        for entry in &entries {
            tail = ZIPLIST_HEADER_BYTES + body.len();
            body.push(before);
            body.extend_from_slice(entry);
            before = entry.len() as u8 + 1;
        }
        let total = (ZIPLIST_HEADER_BYTES + body.len() + 1) as u32;
        let mut bytes = [total.to_le_bytes(), (tail as u32).to_le_bytes()].concat();
        bytes.extend_from_slice(&(entries.len() as u16).to_le_bytes());
        bytes.extend_from_slice(&body);
        bytes.push(END);
        let expected =
            ["hi", &long, "z", "-300", "70000", "-9223372036854775808", "8388607", "-128", "0", "12"];
        assert_eq!(texts(&ziplist_to_listpack(&bytes).unwrap()), expected);
        for cut in 0..bytes.len() {
            assert!(ziplist_to_listpack(&bytes[..cut]).is_none(), "cut at {cut}");
        }
        // Whatever a damaged one reads as, it reads without a panic.
        let mut rng = fastrand::Rng::with_seed(3);
        for _ in 0..20_000 {
            let mut damaged = bytes.clone();
            for _ in 0..rng.usize(1..4) {
                let at = rng.usize(..damaged.len());
                damaged[at] = rng.u8(..);
            }
            let _ = ziplist_to_listpack(&damaged);
            let _ = zipmap_to_listpack(&damaged);
        }
    }
}
