//! The ranges of `ZRANGE` and its kin: by score and by text.

/// A range of scores; an open side excludes its bound.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ScoreRange {
    pub min: f64,
    pub max: f64,
    pub min_open: bool,
    pub max_open: bool,
}

impl ScoreRange {
    /// Reads the two bounds: a number, `(` before it if the bound itself is excluded. `None`: "min or max is not a
    /// float".
    pub fn parse(min: &[u8], max: &[u8]) -> Option<Self> {
        let bound = |text: &[u8]| match text {
            [b'(', rest @ ..] => Some((parse_bound(rest)?, true)),
            _ => Some((parse_bound(text)?, false)),
        };
        let ((min, min_open), (max, max_open)) = (bound(min)?, bound(max)?);
        Some(ScoreRange { min, max, min_open, max_open })
    }

    /// Whether no score can lie in the range.
    pub fn is_empty(&self) -> bool {
        self.min > self.max || self.min == self.max && (self.min_open || self.max_open)
    }

    /// Whether the score is too low.
    pub fn is_below(&self, score: f64) -> bool {
        if self.min_open { score <= self.min } else { score < self.min }
    }

    /// Whether the score is too high.
    pub fn is_above(&self, score: f64) -> bool {
        if self.max_open { score >= self.max } else { score > self.max }
    }

    pub fn contains(&self, score: f64) -> bool {
        !self.is_below(score) && !self.is_above(score)
    }
}

/// Unlike a score that is stored, a bound is decimal only, and may be too large or too small for a double. To Redis it is
/// a C string: it ends at a zero byte, and an empty one is 0.
fn parse_bound(text: &[u8]) -> Option<f64> {
    let text = text.split(|byte| *byte == 0).next().unwrap_or_default();
    if text.is_empty() {
        return Some(0.0);
    }
    let bound: f64 = std::str::from_utf8(text).ok()?.parse().ok()?;
    (!bound.is_nan()).then_some(bound)
}

/// One side of a [`LexRange`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LexBound<'a> {
    /// `-`: before every text.
    Lowest,
    /// `+`: behind every text.
    Highest,
    Included(&'a [u8]),
    Excluded(&'a [u8]),
}

/// A range of texts in byte order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LexRange<'a> {
    min: LexBound<'a>,
    max: LexBound<'a>,
}

impl<'a> LexRange<'a> {
    /// Reads the two bounds: `-`, `+`, `[text` or `(text`. `None`: "min or max not valid string range item".
    pub fn parse(min: &'a [u8], max: &'a [u8]) -> Option<Self> {
        let bound = |text: &'a [u8]| match text {
            b"-" => Some(LexBound::Lowest),
            b"+" => Some(LexBound::Highest),
            [b'[', rest @ ..] => Some(LexBound::Included(rest)),
            [b'(', rest @ ..] => Some(LexBound::Excluded(rest)),
            _ => None,
        };
        Some(LexRange { min: bound(min)?, max: bound(max)? })
    }

    /// Whether no text can lie in the range.
    pub fn is_empty(&self) -> bool {
        use LexBound::*;
        match (self.min, self.max) {
            (Highest, _) | (_, Lowest) => true,
            (Lowest, _) | (_, Highest) => false,
            (Included(min), Included(max)) => min > max,
            (Included(min) | Excluded(min), Included(max) | Excluded(max)) => min >= max,
        }
    }

    /// Whether the text lies before the range.
    pub fn is_below(&self, text: &[u8]) -> bool {
        match self.min {
            LexBound::Lowest => false,
            LexBound::Highest => true,
            LexBound::Included(min) => text < min,
            LexBound::Excluded(min) => text <= min,
        }
    }

    /// Whether the text lies behind the range.
    pub fn is_above(&self, text: &[u8]) -> bool {
        match self.max {
            LexBound::Lowest => true,
            LexBound::Highest => false,
            LexBound::Included(max) => text > max,
            LexBound::Excluded(max) => text >= max,
        }
    }

    pub fn contains(&self, text: &[u8]) -> bool {
        !self.is_below(text) && !self.is_above(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn score_bounds_are_read_and_kept() {
        let range = ScoreRange::parse(b"(1", b"+inf").unwrap();
        assert!(!range.contains(1.0) && range.contains(1.5) && range.contains(f64::INFINITY));
        assert!(ScoreRange::parse(b"(5", b"5").unwrap().is_empty());
        assert!(!ScoreRange::parse(b"5", b"5").unwrap().is_empty());
        assert!(ScoreRange::parse(b"6", b"5").unwrap().is_empty());
        assert_eq!(ScoreRange::parse(b"-1e400", b"(1e400").unwrap().max, f64::INFINITY);
        assert_eq!(ScoreRange::parse(b"1e-400", b"1").unwrap().min, 0.0);
        assert_eq!(ScoreRange::parse(b"(", b"2\0x"), ScoreRange::parse(b"(0", b"2"));
        for bad in ["((1", "nan", "[1", "0x10", " 1", "1 "] {
            assert_eq!(ScoreRange::parse(bad.as_bytes(), b"1"), None);
        }
    }

    #[test]
    fn text_bounds_are_read_and_kept() {
        let range = LexRange::parse(b"[b", b"(d").unwrap();
        let inside = ["a", "b", "c", "d"].map(|text| range.contains(text.as_bytes()));
        assert_eq!(inside, [false, true, true, false]);
        assert!(LexRange::parse(b"-", b"+").unwrap().contains(b""));
        assert!(LexRange::parse(b"+", b"-").unwrap().is_empty());
        assert!(LexRange::parse(b"(a", b"[a").unwrap().is_empty());
        assert!(!LexRange::parse(b"[a", b"[a").unwrap().is_empty());
        for bad in ["", "a", "--", "+a"] {
            assert_eq!(LexRange::parse(bad.as_bytes(), b"+"), None);
        }
    }
}
