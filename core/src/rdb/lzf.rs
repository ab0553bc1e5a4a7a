//! LZF, the compression of long strings in RDB files (Marc Lehmann's LibLZF format).
//!
//! A compressed text is a sequence of
//! - literals: a byte `n < 32`, then `n + 1` bytes to copy out;
//! - references: `lll ddddd`, an extra length byte if `lll` is 7, a byte `d`: copy `lll + extra + 2` bytes that start
//!   `(ddddd << 8 | d) + 1` bytes back in the output. Source and target may overlap, which repeats a pattern.
//!
//! Why not a crate: the only maintained name on crates.io, `lzf`, is marked deprecated by its author, and it allocates and
//! clears a table of 512 KiB for each string. A snapshot compresses millions of strings of 100 bytes.

/// Longest run of literals.
const LITERALS_MAX: usize = 32;
/// Shortest reference worth writing.
const MATCH_MIN: usize = 3;
/// Longest reference: 7 + 255 + 2.
const MATCH_MAX: usize = 264;
/// How far back a reference reaches.
const DISTANCE_MAX: usize = 8192;
/// Three bytes of input can become no more than [`MATCH_MAX`] of output.
const EXPANSION_MAX: u64 = 88;

const TABLE_BITS: u32 = 13;

/// A compressor with its table of recently seen places, 32 KiB, kept from string to string.
pub struct Compressor {
    /// For a hash of three bytes: `base` + the place where they were last seen. Values below `base` are left over from
    /// earlier strings, so that starting a string costs nothing.
    seen_at: Box<[u32]>,
    base: u32,
}

impl Default for Compressor {
    fn default() -> Self {
        Compressor { seen_at: vec![0; 1 << TABLE_BITS].into_boxed_slice(), base: 1 }
    }
}

impl Compressor {
    /// Appends the compressed form of `input` to `out` if it has at most `limit_bytes`, and says how long it is.
    /// Otherwise leaves `out` as it was.
    pub fn compress(&mut self, input: &[u8], limit_bytes: usize, out: &mut Vec<u8>) -> Option<usize> {
        if input.len() < MATCH_MIN || input.len() > (u32::MAX / 2) as usize {
            return None;
        }
        if self.base.checked_add(input.len() as u32).is_none() {
            self.seen_at.fill(0);
            self.base = 1;
        }
        let start = out.len();
        let fits = self.write(input, limit_bytes, out);
        self.base += input.len() as u32;
        let len_bytes = out.len() - start;
        if !fits || len_bytes > limit_bytes {
            out.truncate(start);
            return None;
        }
        Some(len_bytes)
    }

    /// Returns false as soon as the output is over the limit.
    fn write(&mut self, input: &[u8], limit_bytes: usize, out: &mut Vec<u8>) -> bool {
        let start = out.len();
        let mut at = 0;
        let mut literals_from = 0;
        while at + MATCH_MIN <= input.len() {
            let Some(distance) = self.last_seen(input, at).filter(|d| {
                *d <= DISTANCE_MAX && input[at - d..at - d + MATCH_MIN] == input[at..at + MATCH_MIN]
            }) else {
                at += 1;
                continue;
            };
            let longest = MATCH_MAX.min(input.len() - at);
            let mut len = MATCH_MIN;
            while len < longest && input[at - distance + len] == input[at + len] {
                len += 1;
            }
            put_literals(&input[literals_from..at], out);
            put_reference(distance, len, out);
            if out.len() - start > limit_bytes {
                return false;
            }
            // The last two places inside the match are enough to find what begins there; more costs more than it gains.
            for inside in at + len - 2..at + len {
                if inside + MATCH_MIN <= input.len() {
                    self.last_seen(input, inside);
                }
            }
            at += len;
            literals_from = at;
        }
        put_literals(&input[literals_from..], out);
        true
    }

    /// How far back the three bytes at `at` may have been seen, and remembers this place.
    fn last_seen(&mut self, input: &[u8], at: usize) -> Option<usize> {
        let three = u32::from_le_bytes([input[at], input[at + 1], input[at + 2], 0]);
        let slot = (three.wrapping_mul(0x9e37_79b1) >> (32 - TABLE_BITS)) as usize;
        let before = std::mem::replace(&mut self.seen_at[slot], self.base + at as u32);
        let seen = before.checked_sub(self.base)? as usize;
        // A place of this string, and never the place itself: each is asked about once.
        debug_assert!(seen < at);
        Some(at - seen)
    }
}

fn put_literals(bytes: &[u8], out: &mut Vec<u8>) {
    for run in bytes.chunks(LITERALS_MAX) {
        out.push(run.len() as u8 - 1);
        out.extend_from_slice(run);
    }
}

fn put_reference(distance: usize, len: usize, out: &mut Vec<u8>) {
    let (back, count) = (distance - 1, len - 2);
    if count < 7 {
        out.push((count << 5 | back >> 8) as u8);
    } else {
        out.push((7 << 5 | back >> 8) as u8);
        out.push((count - 7) as u8);
    }
    out.push(back as u8);
}

/// Whether `input_len` compressed bytes can possibly become `output_len`. Ask before allocating for a length that
/// came from outside.
pub fn is_plausible(input_len: u64, output_len: u64) -> bool {
    output_len > 0 && output_len <= input_len.saturating_mul(EXPANSION_MAX)
}

/// Decompresses into exactly `output_len` bytes. `None`: the input is damaged. Allocates no more than
/// [`EXPANSION_MAX`] times the input.
pub fn decompress(input: &[u8], output_len: usize) -> Option<Vec<u8>> {
    if !is_plausible(input.len() as u64, output_len as u64) {
        return None;
    }
    let mut out = Vec::with_capacity(output_len);
    let mut rest = input;
    while let Some((&control, tail)) = rest.split_first() {
        if usize::from(control) < LITERALS_MAX {
            let (run, tail) = tail.split_at_checked(usize::from(control) + 1)?;
            if run.len() > output_len - out.len() {
                return None;
            }
            out.extend_from_slice(run);
            rest = tail;
            continue;
        }
        let (mut count, mut tail) = (usize::from(control >> 5), tail);
        if count == 7 {
            let (&extra, after) = tail.split_first()?;
            count += usize::from(extra);
            tail = after;
        }
        let (&low, tail) = tail.split_first()?;
        let distance = (usize::from(control & 0x1f) << 8 | usize::from(low)) + 1;
        let len = count + 2;
        if distance > out.len() || len > output_len - out.len() {
            return None;
        }
        let from = out.len() - distance;
        if distance >= len {
            out.extend_from_within(from..from + len);
        } else {
            for i in from..from + len {
                out.push(out[i]);
            }
        }
        rest = tail;
    }
    (out.len() == output_len).then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random_text(rng: &mut fastrand::Rng) -> Vec<u8> {
        let mut text = Vec::new();
        let goal = if rng.u8(..) == 0 { rng.usize(..40_000) } else { rng.usize(3..400) };
        let letters = rng.u8(1..);
        while text.len() < goal {
            if text.is_empty() || rng.bool() {
                text.extend((0..rng.usize(1..40)).map(|_| rng.u8(..letters)));
            } else {
                let from = rng.usize(..text.len());
                let to = rng.usize(from..=text.len()).min(from + 600);
                text.extend_from_within(from..to);
            }
        }
        text
    }

    #[test]
    fn what_is_compressed_comes_back() {
        let mut rng = fastrand::Rng::with_seed(11);
        let mut compressor = Compressor::default();
        let mut smaller = 0;
        for round in 0..3000 {
            if round == 1500 {
                // Reach the place where the table has to be cleared.
                compressor.base = u32::MAX - 1000;
            }
            let text = random_text(&mut rng);
            let mut out = b"before".to_vec();
            match compressor.compress(&text, text.len(), &mut out) {
                Some(len) => {
                    smaller += 1;
                    assert_eq!(out.len(), 6 + len);
                    assert_eq!(decompress(&out[6..], text.len()).as_deref(), Some(&text[..]));
                }
                None => assert_eq!(out, b"before"),
            }
        }
        assert!(smaller > 1000);
    }

    #[test]
    fn damaged_input_is_refused_or_stays_within_its_length() {
        let mut rng = fastrand::Rng::with_seed(12);
        let mut compressor = Compressor::default();
        let mut refused = 0;
        for _ in 0..3000 {
            let text = random_text(&mut rng);
            let mut out = Vec::new();
            if compressor.compress(&text, text.len(), &mut out).is_none() {
                continue;
            }
            let place = rng.usize(..out.len());
            out[place] = rng.u8(..);
            out.truncate(rng.usize(1..=out.len()));
            match decompress(&out, text.len()) {
                Some(result) => assert_eq!(result.len(), text.len()),
                None => refused += 1,
            }
        }
        assert!(refused > 500);
        assert_eq!(decompress(&[0, b'x'], 1 << 40), None);
        assert_eq!(decompress(&[], 0), None);
    }

    #[test]
    fn reads_what_redis_wrote() {
        // `DUMP` of Redis 7.0 for "ab" sixty times and for "x" three hundred times.
        let ab = [0x02, 0x61, 0x62, 0x61, 0xe0, 0x6a, 0x01, 0x01, 0x61, 0x62];
        assert_eq!(decompress(&ab, 120).unwrap(), b"ab".repeat(60));
        let x = [0x01, 0x78, 0x78, 0xe0, 0xff, 0x00, 0xe0, 0x17, 0x00, 0x01, 0x78, 0x78];
        assert_eq!(decompress(&x, 300).unwrap(), b"x".repeat(300));
    }
}
