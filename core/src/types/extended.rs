//! The arithmetic of `INCRBYFLOAT` and `HINCRBYFLOAT`: x86's 80-bit floating point, in software.
//!
//! Redis adds in `long double` and prints the sum with 17 decimals, so 0.1 + 0.2 is "0.3" and 1000 + 0.1 is
//! "1000.09999999999999998". Doubles give other texts, and replicas and clients compare texts; hence this module: a
//! significand of 64 bits, every step rounded to nearest, ties to even.

use super::num::parse_f64;
use std::cmp::Ordering;

/// Longest text that is read, as Redis.
const MAX_TEXT_BYTES: usize = 255;
/// Decimals that are printed.
const DECIMALS: usize = 17;
/// Powers of two of the least significant bit: the largest finite number has MAX_EXPONENT, and what has less than
/// MIN_EXPONENT is no number but zero.
const MAX_EXPONENT: i32 = 16383 - 63;
const MIN_EXPONENT: i32 = -16445;

/// `significand * 2^exponent` with the sign; the significand has its top bit set, or is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extended {
    negative: bool,
    significand: u64,
    exponent: i32,
}

/// Why a sum could not be formed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SumError {
    /// The present value is no number.
    Value,
    /// The increment is no number.
    Increment,
    /// The increment, or the sum, is infinite.
    Infinite,
}

/// Adds two decimal texts as Redis does and prints the sum. No present value counts as 0.
pub fn add_texts(value: Option<&[u8]>, increment: &[u8]) -> Result<Vec<u8>, SumError> {
    let increment = match Extended::parse(increment) {
        Some(increment) => increment,
        None if parse_f64(increment).is_some_and(f64::is_infinite) => return Err(SumError::Infinite),
        None => return Err(SumError::Increment),
    };
    let value = match value {
        None => Extended::ZERO,
        Some(text) => match Extended::parse(text) {
            Some(value) => value,
            None if parse_f64(text).is_some_and(f64::is_infinite) => return Err(SumError::Infinite),
            None => return Err(SumError::Value),
        },
    };
    Ok(value.checked_add(increment).ok_or(SumError::Infinite)?.to_text())
}

impl Extended {
    pub const ZERO: Extended = Extended { negative: false, significand: 0, exponent: 0 };

    /// Reads a finite number: decimal with an optional exponent, or what else [`parse_f64`] reads.
    pub fn parse(text: &[u8]) -> Option<Self> {
        if text.len() > MAX_TEXT_BYTES {
            return None;
        }
        let (negative, magnitude) = match text {
            [b'-', rest @ ..] => (true, rest),
            [b'+', rest @ ..] => (false, rest),
            _ => (false, text),
        };
        if let [b'0', b'x' | b'X', ..] = magnitude {
            return parse_f64(text).and_then(Extended::from_f64);
        }
        let (mantissa, exponent) = match magnitude.iter().position(|b| matches!(b, b'e' | b'E')) {
            Some(at) => (&magnitude[..at], parse_exponent(&magnitude[at + 1..])?),
            None => (magnitude, 0),
        };
        let mut digits = Big::default();
        let (mut count, mut scale, mut in_fraction) = (0, exponent, false);
        for &byte in mantissa {
            match byte {
                b'0'..=b'9' => {
                    digits.multiply_add(10, u32::from(byte - b'0'));
                    count += 1;
                    scale -= i32::from(in_fraction);
                }
                b'.' if !in_fraction => in_fraction = true,
                _ => return None,
            }
        }
        if count == 0 {
            return None;
        }
        Extended::from_decimal(negative, digits, scale)
    }

    /// `digits * 10^scale`, rounded. `None` if it overflows, or is too small to be anything but 0.
    fn from_decimal(negative: bool, mut digits: Big, scale: i32) -> Option<Self> {
        if digits.is_zero() {
            return Some(Extended { negative, ..Extended::ZERO });
        }
        // 255 digits and a scale beyond these cannot be in range; this bounds the work below.
        if !(-5300..=5000).contains(&scale) {
            return None;
        }
        if scale >= 0 {
            (0..scale).for_each(|_| digits.multiply_add(10, 0));
            return Extended::rounded(negative, digits, 0, false);
        }
        let mut divisor = Big::from(1);
        (0..-scale).for_each(|_| divisor.multiply_add(10, 0));
        // Long division in base two, until there are two bits more than needed; the rest only matters if not zero.
        let shift = divisor.bits() as i32 - digits.bits() as i32 + 1;
        if shift > 0 {
            digits.shift_left(shift as usize)
        } else {
            divisor.shift_left(-shift as usize)
        }
        // Now the quotient lies between 1 and 4.
        const QUOTIENT_BITS: i32 = 67;
        let mut quotient: u128 = 0;
        for _ in 0..QUOTIENT_BITS {
            quotient <<= 1;
            // The first step may subtract up to three times, later ones at most once.
            while digits.compare(&divisor).is_ge() {
                digits.subtract(&divisor);
                quotient += 1;
            }
            digits.shift_left(1);
        }
        let exponent = 1 - QUOTIENT_BITS - shift;
        Extended::rounded(negative, Big::from(quotient), exponent, !digits.is_zero())
    }

    fn from_f64(value: f64) -> Option<Self> {
        let bits = value.abs().to_bits();
        let (fraction, biased) = (bits & ((1 << 52) - 1), (bits >> 52) as i32);
        match biased {
            0x7FF => None,
            0 => Extended::rounded(value < 0.0, Big::from(u128::from(fraction)), -1074, false),
            _ => Extended::rounded(
                value < 0.0,
                Big::from(u128::from(fraction | 1 << 52)),
                biased - 1075,
                false,
            ),
        }
    }

    /// `value * 2^exponent`, and a little more if `sticky`, rounded to 64 bits.
    fn rounded(negative: bool, value: Big, exponent: i32, sticky: bool) -> Option<Self> {
        if value.is_zero() {
            return Some(Extended { negative, ..Extended::ZERO });
        }
        let excess = value.bits() as i32 - 64;
        let (mut significand, mut exponent) = if excess <= 0 {
            (value.low_64() << -excess, exponent + excess)
        } else {
            let mut top = value;
            let (half, rest) = top.shift_right(excess as usize);
            let up = half && (rest || sticky || top.low_64() & 1 == 1);
            let mut significand = top.low_64();
            let mut exponent = exponent + excess;
            if up {
                significand = significand.wrapping_add(1);
                if significand == 0 {
                    significand = 1 << 63;
                    exponent += 1;
                }
            }
            (significand, exponent)
        };
        if exponent > MAX_EXPONENT {
            return None;
        }
        if exponent < MIN_EXPONENT {
            // Fewer bits remain; such numbers print as zero, so how they round does not show.
            let lost = (MIN_EXPONENT - exponent) as u32;
            significand = significand.checked_shr(lost).filter(|&bits| bits > 0)?;
            exponent = MIN_EXPONENT - significand.leading_zeros() as i32;
            significand <<= significand.leading_zeros();
        }
        Some(Extended { negative, significand, exponent })
    }

    /// The sum, rounded; `None` if it overflows.
    pub fn checked_add(self, other: Extended) -> Option<Extended> {
        if self.significand == 0 || other.significand == 0 {
            return Some(if self.significand == 0 { other } else { self });
        }
        let is_larger = (self.exponent, self.significand) >= (other.exponent, other.significand);
        let (large, small) = if is_larger { (self, other) } else { (other, self) };
        // 63 more bits below, which keep what rounding must know; one free bit above.
        const EXTRA: i32 = 63;
        let distance = (large.exponent - small.exponent) as u32;
        let wide_small = u128::from(small.significand) << EXTRA;
        let shifted = wide_small.checked_shr(distance).unwrap_or(0);
        let lost = shifted.checked_shl(distance).unwrap_or(0) != wide_small;
        // A bit that stands for everything that was lost.
        let wide_small = shifted | u128::from(lost);
        let wide_large = u128::from(large.significand) << EXTRA;
        let sum =
            if large.negative == small.negative { wide_large + wide_small } else { wide_large - wide_small };
        let negative = large.negative && sum != 0;
        Extended::rounded(negative, Big::from(sum), large.exponent - EXTRA, false)
    }

    /// The number with 17 decimals, less trailing zeros.
    pub fn to_text(self) -> Vec<u8> {
        let mut value = Big::from(u128::from(self.significand));
        (0..DECIMALS).for_each(|_| value.multiply_add(10, 0));
        if self.exponent >= 0 {
            value.shift_left(self.exponent as usize);
        } else {
            let (half, rest) = value.shift_right(self.exponent.unsigned_abs() as usize);
            if half && (rest || value.low_64() & 1 == 1) {
                value.multiply_add(1, 1);
            }
        }
        if value.is_zero() {
            return b"0".to_vec();
        }
        let mut digits = value.into_decimal();
        // At least one digit before the point.
        while digits.len() <= DECIMALS {
            digits.push(b'0');
        }
        digits.reverse();
        digits.insert(digits.len() - DECIMALS, b'.');
        while digits.last() == Some(&b'0') {
            digits.pop();
        }
        if digits.last() == Some(&b'.') {
            digits.pop();
        }
        if self.negative {
            digits.insert(0, b'-');
        }
        digits
    }
}

/// The digits after `e`, far-off values brought near enough.
fn parse_exponent(text: &[u8]) -> Option<i32> {
    let digits = text.strip_prefix(b"+").or(text.strip_prefix(b"-")).unwrap_or(text);
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let magnitude = digits
        .iter()
        .fold(0i32, |value, &digit| value.saturating_mul(10).saturating_add(i32::from(digit - b'0')))
        .min(100_000);
    Some(if text[0] == b'-' { -magnitude } else { magnitude })
}

/// A natural number of any size: 32 bits a word, least significant first, no zero word at the top.
#[derive(Clone, Debug, Default)]
struct Big {
    words: Vec<u32>,
}

impl From<u128> for Big {
    fn from(value: u128) -> Self {
        let mut big = Big { words: (0..4).map(|word| (value >> (32 * word)) as u32).collect() };
        big.trim();
        big
    }
}

impl Big {
    fn trim(&mut self) {
        while self.words.last() == Some(&0) {
            self.words.pop();
        }
    }

    fn is_zero(&self) -> bool {
        self.words.is_empty()
    }

    fn bits(&self) -> usize {
        self.words.last().map_or(0, |top| self.words.len() * 32 - top.leading_zeros() as usize)
    }

    fn low_64(&self) -> u64 {
        let word = |at: usize| u64::from(self.words.get(at).copied().unwrap_or(0));
        word(1) << 32 | word(0)
    }

    fn multiply_add(&mut self, factor: u32, addend: u32) {
        let mut carry = u64::from(addend);
        for word in &mut self.words {
            carry += u64::from(*word) * u64::from(factor);
            *word = carry as u32;
            carry >>= 32;
        }
        if carry > 0 {
            self.words.push(carry as u32);
        }
    }

    fn shift_left(&mut self, bits: usize) {
        if self.is_zero() {
            return;
        }
        self.multiply_add(1 << (bits % 32), 0);
        self.words.splice(0..0, std::iter::repeat_n(0, bits / 32));
    }

    /// Returns whether the highest bit that was shifted out, and whether any lower one, was set.
    fn shift_right(&mut self, bits: usize) -> (bool, bool) {
        if bits == 0 {
            return (false, false);
        }
        let bit = |at: usize| self.words.get(at / 32).is_some_and(|word| word >> (at % 32) & 1 == 1);
        let half = bit(bits - 1);
        let whole = ((bits - 1) / 32).min(self.words.len());
        let partial = self.words.get(whole).is_some_and(|word| word & ((1 << ((bits - 1) % 32)) - 1) != 0);
        let rest = partial || self.words[..whole].iter().any(|&word| word != 0);
        self.words.drain(..(bits / 32).min(self.words.len()));
        let mut high = 0;
        for word in self.words.iter_mut().rev() {
            let wide = u64::from(high) << 32 | u64::from(*word);
            high = *word;
            *word = (wide >> (bits % 32)) as u32;
        }
        self.trim();
        (half, rest)
    }

    fn compare(&self, other: &Big) -> Ordering {
        self.words
            .len()
            .cmp(&other.words.len())
            .then_with(|| self.words.iter().rev().cmp(other.words.iter().rev()))
    }

    /// Subtracts a number that is not larger.
    fn subtract(&mut self, other: &Big) {
        let mut borrow = false;
        for (at, word) in self.words.iter_mut().enumerate() {
            let (less, under) = word.overflowing_sub(other.words.get(at).copied().unwrap_or(0));
            let (less, under_too) = less.overflowing_sub(u32::from(borrow));
            *word = less;
            borrow = under || under_too;
        }
        debug_assert!(!borrow);
        self.trim();
    }

    /// Decimal digits, least significant first.
    fn into_decimal(mut self) -> Vec<u8> {
        const CHUNK: u64 = 1_000_000_000;
        let mut digits = Vec::new();
        while !self.is_zero() {
            let mut rest = 0u64;
            for word in self.words.iter_mut().rev() {
                let wide = rest << 32 | u64::from(*word);
                *word = (wide / CHUNK) as u32;
                rest = wide % CHUNK;
            }
            self.trim();
            for _ in 0..9 {
                digits.push(b'0' + (rest % 10) as u8);
                rest /= 10;
            }
        }
        while digits.last() == Some(&b'0') {
            digits.pop();
        }
        digits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(value: &str, increment: &str) -> String {
        String::from_utf8(add_texts(Some(value.as_bytes()), increment.as_bytes()).unwrap()).unwrap()
    }

    /// Replies of Redis 8.2 to `HINCRBYFLOAT` on a field with the first number.
    #[test]
    fn sums_are_those_of_redis() {
        for (value, increment, expected) in [
            ("0.1", "0.1", "0.2"),
            ("0.1", "0.2", "0.3"),
            ("0.1", "1e3", "1000.09999999999999998"),
            ("0.1", "5000.1", "5000.20000000000000018"),
            ("0.1", "1e17", "100000000000000000.1015625"),
            ("0.1", "1e18", "1000000000000000000.125"),
            ("0.1", "3.0e-5", "0.10003"),
            ("0.1", "1e-18", "0.1"),
            ("0.1", "1e-17", "0.10000000000000001"),
            ("0.1", "123456789.123456789", "123456789.22345678899728227"),
            ("0.1", "-0.1", "0"),
        ] {
            assert_eq!(sum(value, increment), expected, "{value} + {increment}");
        }
    }

    #[test]
    fn whole_numbers_are_exact_up_to_64_bits() {
        let mut rng = fastrand::Rng::with_seed(9);
        for _ in 0..3_000 {
            let (a, b) = (rng.i64(..) >> rng.u32(1..63), rng.i64(..) >> rng.u32(1..63));
            assert_eq!(sum(&a.to_string(), &b.to_string()), (a + b).to_string());
        }
        assert_eq!(sum("1e30", "0"), "1000000000000000000024696061952");
        assert_eq!(sum("18446744073709551615", "0"), "18446744073709551615");
    }

    /// A double is a special case: what it prints must be what it is.
    #[test]
    fn doubles_are_read_without_error() {
        let mut rng = fastrand::Rng::with_seed(10);
        for _ in 0..3_000 {
            let value = f64::from_bits(rng.u64(..)) % 1e6;
            if !value.is_finite() {
                continue;
            }
            let exact = Extended::from_f64(value).unwrap();
            let digits = format!("{value:.60e}");
            let parsed = Extended::parse(digits.as_bytes()).unwrap();
            assert_eq!(parsed.to_text(), exact.to_text(), "{value}");
            let decimals = format!("{value:.17}");
            let expected = decimals.trim_end_matches('0').trim_end_matches('.');
            let expected = if expected == "-0" { "0" } else { expected };
            assert_eq!(String::from_utf8(exact.to_text()).unwrap(), expected);
        }
    }

    #[test]
    fn texts_that_are_no_numbers_are_refused() {
        for bad in
            ["", "-", ".", "1e", "1e+", "e1", "1.2.3", " 1", "1 ", "abc", "nan", "1e5000", "1e-5000", "--1"]
        {
            assert_eq!(add_texts(None, bad.as_bytes()), Err(SumError::Increment), "{bad}");
            assert_eq!(add_texts(Some(bad.as_bytes()), b"1"), Err(SumError::Value), "{bad}");
        }
        assert_eq!(add_texts(None, b"inf"), Err(SumError::Infinite));
        assert_eq!(add_texts(Some(b"-inf"), b"1"), Err(SumError::Infinite));
        assert_eq!(add_texts(Some(b"1e4932"), b"1.1e4932"), Err(SumError::Infinite));
        assert_eq!(add_texts(None, b"1e4932").unwrap().len(), 4933);
        assert_eq!(add_texts(None, b"0x10"), Ok(b"16".to_vec()));
        assert_eq!(add_texts(None, &[b'1'; 256]), Err(SumError::Increment));
        assert_eq!(add_texts(None, b"-5.5e-1"), Ok(b"-0.55".to_vec()));
        assert_eq!(add_texts(None, b"0e99999"), Ok(b"0".to_vec()));
    }
}
