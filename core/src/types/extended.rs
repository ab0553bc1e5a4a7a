//! Floating point as `INCRBYFLOAT` and `HINCRBYFLOAT` know it: the x87 extended format with its 64-bit significand,
//! which is what C calls `long double` on the machines that the expected replies come from. Rust has no such type; of
//! its arithmetic only reading, adding and printing with 17 decimals are needed.
//!
//! Reading and adding round to nearest, ties to even, as the hardware does. Numbers below the normal range
//! (2^-16382) keep all their bits here; they print as zero either way.

use super::bignum::Big;

/// Longest text that is read, bytes: Redis's own limit.
const MAX_TEXT_LEN_BYTES: usize = 5 * 1024 - 1;
/// Decimals printed.
const DECIMALS: usize = 17;
const TEN_TO_DECIMALS: u128 = 10u128.pow(DECIMALS as u32);
/// A finite number is below 2^MAX_EXPONENT.
const MAX_EXPONENT: i64 = 16384;
/// At or below 2^MIN_EXPONENT a number read rounds to zero: half of the smallest subnormal.
const MIN_EXPONENT: i64 = -16446;

/// A finite number: `significand` times two to the power of `exponent`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extended {
    negative: bool,
    /// Bit 63 is set, except in zero.
    significand: u64,
    exponent: i32,
}

/// What a text says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parsed {
    Finite(Extended),
    Infinite,
}

/// Why a sum could not be formed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SumError {
    /// The present value is no number.
    Value,
    /// The increment is no number.
    Increment,
    /// The increment, the present value or the sum is infinite.
    Infinite,
}

/// Adds two texts as Redis does and prints the sum. No present value counts as 0.
pub fn add_texts(value: Option<&[u8]>, increment: &[u8]) -> Result<Vec<u8>, SumError> {
    let finite = |text: &[u8], error: SumError| match Extended::parse(text) {
        Some(Parsed::Finite(number)) => Ok(number),
        Some(Parsed::Infinite) => Err(SumError::Infinite),
        None => Err(error),
    };
    let increment = finite(increment, SumError::Increment)?;
    let value = value.map_or(Ok(Extended::ZERO), |text| finite(text, SumError::Value))?;
    Ok(value.checked_add(increment).ok_or(SumError::Infinite)?.format())
}

impl Extended {
    pub const ZERO: Self = Self { negative: false, significand: 0, exponent: 0 };

    /// Reads what C's `strtold` reads, to the end of the text: decimal, hexadecimal, infinity. `None`: not a number,
    /// or one beyond the range of the format.
    pub fn parse(text: &[u8]) -> Option<Parsed> {
        if text.len() > MAX_TEXT_LEN_BYTES {
            return None;
        }
        let (negative, magnitude) = match text {
            [b'-', rest @ ..] => (true, rest),
            [b'+', rest @ ..] => (false, rest),
            _ => (false, text),
        };
        if magnitude.eq_ignore_ascii_case(b"inf") || magnitude.eq_ignore_ascii_case(b"infinity") {
            return Some(Parsed::Infinite);
        }
        let number = match magnitude {
            [b'0', b'x' | b'X', digits @ ..] => parse_hexadecimal(digits)?,
            _ => parse_decimal(magnitude)?,
        };
        Some(Parsed::Finite(Self { negative, ..number }))
    }

    /// `high` times two to the power of `exponent`, rounded; `more`: plus something below one unit of `high`.
    /// `None`: out of range.
    fn rounded(high: u128, more: bool, exponent: i64) -> Option<Self> {
        if high == 0 {
            return Some(Self::ZERO);
        }
        let shift = 64 - i64::from(high.leading_zeros());
        let exponent = exponent + shift;
        let (significand, exponent) = if shift <= 0 {
            debug_assert!(!more, "bits are missing below");
            ((high << -shift) as u64, exponent)
        } else {
            const HALF: u128 = 1 << 127;
            let (kept, rest) = ((high >> shift) as u64, high << (128 - shift));
            let up = rest > HALF || rest == HALF && (more || kept & 1 == 1);
            match kept.checked_add(u64::from(up)) {
                Some(sum) => (sum, exponent),
                None => (1 << 63, exponent + 1),
            }
        };
        let top = exponent + 64;
        if top > MAX_EXPONENT || top <= MIN_EXPONENT {
            return None;
        }
        Some(Self { negative: false, significand, exponent: exponent as i32 })
    }

    /// As [`Extended::rounded`], of a whole number of any length.
    fn rounded_big(number: &Big, more: bool, exponent: i64) -> Option<Self> {
        let (high, below, shift) = number.top_bits();
        Self::rounded(high, more || below, exponent + shift as i64)
    }

    /// The sum. `None`: it overflows to infinity.
    pub fn checked_add(self, other: Self) -> Option<Self> {
        if self.significand == 0 || other.significand == 0 {
            let sum = if self.significand == 0 { other } else { self };
            return Some(sum);
        }
        let (big, small) = if (self.exponent, self.significand) >= (other.exponent, other.significand) {
            (self, other)
        } else {
            (other, self)
        };
        // 62 bits stand below the larger one's last bit. What the smaller one has below them counts only as
        // "something", which is kept in the very last bit: far enough down to decide no tie wrongly.
        const ROOM: u32 = 62;
        let distance = (big.exponent - small.exponent) as u32;
        let large = u128::from(big.significand) << ROOM;
        let aligned = u128::from(small.significand) << ROOM;
        let shifted = aligned.checked_shr(distance).unwrap_or(0);
        let lost = distance >= 128 || shifted << distance != aligned;
        let addend = shifted | u128::from(lost);
        let sum = if big.negative == small.negative { large + addend } else { large - addend };
        let rounded = Self::rounded(sum, false, i64::from(big.exponent) - i64::from(ROOM));
        match rounded {
            // An exact difference of zero is positive.
            Some(zero) if zero.significand == 0 => Some(zero),
            Some(number) => Some(Self { negative: big.negative, ..number }),
            None if big.exponent < 0 => Some(Self::ZERO),
            None => None,
        }
    }

    /// The number as `%.17Lf` prints it, without the zeros at its end.
    pub fn format(self) -> Vec<u8> {
        let mut text = Vec::with_capacity(40);
        if self.significand == 0 {
            return b"0".to_vec();
        }
        if self.exponent >= 0 {
            if self.negative {
                text.push(b'-');
            }
            let mut number = Big::from(u128::from(self.significand));
            number.shift_left(self.exponent as usize);
            text.extend_from_slice(number.to_decimal().as_bytes());
            return text;
        }
        // Below 2^64 * 10^17, which has 121 bits.
        let scaled = u128::from(self.significand) * TEN_TO_DECIMALS;
        let shift = self.exponent.unsigned_abs();
        let mut units = scaled.checked_shr(shift).unwrap_or(0);
        if shift < 128 {
            let (rest, half) = (scaled - (units << shift), 1u128 << (shift - 1));
            units += u128::from(rest > half || rest == half && units & 1 == 1);
        }
        if units == 0 {
            return b"0".to_vec();
        }
        if self.negative {
            text.push(b'-');
        }
        text.extend_from_slice((units / TEN_TO_DECIMALS).to_string().as_bytes());
        let fraction = format!(".{:0width$}", units % TEN_TO_DECIMALS, width = DECIMALS);
        text.extend_from_slice(fraction.trim_end_matches('0').trim_end_matches('.').as_bytes());
        text
    }
}

/// Splits `digits[.digits][<mark>exponent]`: the digits without the point, how many of them stand behind it, and the
/// exponent, clamped to where it has long left the range. `None`: no such form, or no digit.
fn split(text: &[u8], mark: u8, is_digit: fn(&u8) -> bool) -> Option<(Vec<u8>, i64, i64)> {
    const MAX_POWER: i64 = 100_000;
    let (mantissa, power) = match text.iter().position(|byte| byte.eq_ignore_ascii_case(&mark)) {
        None => (text, 0),
        Some(at) => {
            let (negative, digits) = match &text[at + 1..] {
                [b'-', rest @ ..] => (true, rest),
                [b'+', rest @ ..] => (false, rest),
                rest => (false, rest),
            };
            if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
                return None;
            }
            let power = digits
                .iter()
                .fold(0, |power: i64, digit| (power * 10 + i64::from(digit - b'0')).min(MAX_POWER));
            (&text[..at], if negative { -power } else { power })
        }
    };
    let point = mantissa.iter().position(|&byte| byte == b'.');
    let mut digits = mantissa.to_vec();
    if let Some(point) = point {
        digits.remove(point);
    }
    if digits.is_empty() || !digits.iter().all(is_digit) {
        return None;
    }
    let fraction = point.map_or(0, |point| digits.len() - point) as i64;
    let zeros = digits.iter().take_while(|&&digit| digit == b'0').count();
    digits.drain(..zeros);
    Some((digits, fraction, power))
}

fn parse_decimal(text: &[u8]) -> Option<Extended> {
    let (digits, fraction, power) = split(text, b'e', u8::is_ascii_digit)?;
    let scale = power - fraction;
    // Far outside the range nothing needs to be computed: 10^4933 and 10^-4951 are its ends.
    let magnitude = digits.len() as i64 + scale;
    if digits.is_empty() {
        return Some(Extended::ZERO);
    }
    if !(-5000..=5000).contains(&magnitude) {
        return None;
    }
    let value =
        |digits: &[u8]| digits.iter().fold(0, |value: u64, digit| value * 10 + u64::from(digit - b'0'));
    if digits.len() <= 19 && (-18..=0).contains(&scale) {
        // 127 significant bits divided by less than 2^60 leave more than 64 and one to round by.
        let number = u128::from(value(&digits));
        let shift = number.leading_zeros();
        let (number, divisor) = (number << shift, 10u128.pow(-scale as u32));
        return Extended::rounded(number / divisor, number % divisor != 0, -i64::from(shift));
    }
    let mut number = Big::from(0);
    for chunk in digits.chunks(9) {
        number.multiply_add(10u32.pow(chunk.len() as u32), value(chunk) as u32);
    }
    if scale >= 0 {
        number.multiply_by_power_of_ten(scale as usize);
        return Extended::rounded_big(&number, false, 0);
    }
    // Ten to the power of n has less than 4n bits: enough are added above them to round by.
    let shift = -scale as usize * 4 + 128;
    number.shift_left(shift);
    let more = number.divide_by_power_of_ten(-scale as usize);
    Extended::rounded_big(&number, more, -(shift as i64))
}

fn parse_hexadecimal(text: &[u8]) -> Option<Extended> {
    let (digits, fraction, power) = split(text, b'p', u8::is_ascii_hexdigit)?;
    let mut number = Big::from(0);
    for &digit in &digits {
        number.multiply_add(16, char::from(digit).to_digit(16).expect("a hexadecimal digit"));
    }
    Extended::rounded_big(&number, false, power - 4 * fraction)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(text: &str) -> Extended {
        match Extended::parse(text.as_bytes()) {
            Some(Parsed::Finite(number)) => number,
            other => panic!("{text}: {other:?}"),
        }
    }

    fn sum(a: &str, b: &str) -> String {
        String::from_utf8(number(a).checked_add(number(b)).expect("finite").format()).expect("digits")
    }

    /// Expected texts are replies of Redis 8.2 on x86-64 to `SET k a` + `INCRBYFLOAT k b`.
    #[test]
    fn sums_print_as_redis_prints_them() {
        for (a, b, want) in [
            ("0.1", "0.2", "0.3"),
            ("3", "-3", "0"),
            ("-0", "0", "0"),
            ("10.5", "0.1", "10.6"),
            ("5.0e3", "200", "5200"),
            ("3.0e3", "1", "3001"),
            ("1", "-0.00000000000000000001", "1"),
            ("0x1p3", "0xA.8p0", "18.5"),
            ("17179869184", "1.5e-9", "17179869184.00000000186264515"),
            ("18446744073709551615", "0.5", "18446744073709551616"),
            ("1e25", "1", "10000000000000000000000000"),
            ("0.1", "0.1", "0.2"),
            ("0.1", "1e3", "1000.09999999999999998"),
            ("0.1", "5000.1", "5000.20000000000000018"),
            ("0.1", "1e17", "100000000000000000.1015625"),
            ("0.1", "1e18", "1000000000000000000.125"),
            ("0.1", "3.0e-5", "0.10003"),
            ("0.1", "1e-18", "0.1"),
            ("0.1", "1e-17", "0.10000000000000001"),
            ("0.1", "123456789.123456789", "123456789.22345678899728227"),
            ("-5.5e-1", "0", "-0.55"),
        ] {
            assert_eq!(sum(a, b), want, "{a} + {b}");
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

    /// Seventeen decimals of a double are what the standard library prints of it.
    #[test]
    fn printing_agrees_with_doubles() {
        let mut rng = fastrand::Rng::with_seed(10);
        for _ in 0..3_000 {
            let value = (rng.f64() - 0.5) * 10f64.powi(rng.i32(-18..19));
            let decimals = format!("{value:.17}");
            let want = decimals.trim_end_matches('0').trim_end_matches('.');
            let want = if want == "-0" { "0" } else { want };
            assert_eq!(sum(&format!("{value:.400e}"), "0"), want, "{value}");
        }
    }

    #[test]
    fn sums_of_texts_say_what_was_wrong() {
        for bad in ["", "nan", "1x"] {
            assert_eq!(add_texts(None, bad.as_bytes()), Err(SumError::Increment));
            assert_eq!(add_texts(Some(bad.as_bytes()), b"1"), Err(SumError::Value));
        }
        for (value, increment) in [("1", "inf"), ("-inf", "1"), ("1e4932", "1.1e4932")] {
            assert_eq!(add_texts(Some(value.as_bytes()), increment.as_bytes()), Err(SumError::Infinite));
        }
        assert_eq!(add_texts(None, b"0x10"), Ok(b"16".to_vec()));
    }

    #[test]
    fn only_numbers_are_read() {
        for bad in
            ["", " 1", "1 ", "nan", "abc", "1e", "e1", ".", "+-1", "--1", "1.2.3", "0x", "1e5000", "1e-5000"]
        {
            assert_eq!(Extended::parse(bad.as_bytes()), None, "{bad}");
        }
        for infinite in ["inf", "-INF", "+infinity"] {
            assert_eq!(Extended::parse(infinite.as_bytes()), Some(Parsed::Infinite));
        }
        assert_eq!(number("0e999999999999"), Extended::ZERO);
        assert_eq!(Extended::parse(&[b'1'; MAX_TEXT_LEN_BYTES + 1]), None);
    }

    #[test]
    fn the_largest_number_is_finite_and_twice_it_is_not() {
        let largest = number("1.18973149535723176502e4932");
        assert_eq!(largest.format().len(), 4933);
        assert_eq!(largest.checked_add(largest), None);
    }

    /// What has at most 53 bits is exact in a double, so doubles say what must come out.
    #[test]
    fn reading_agrees_with_doubles_where_those_are_exact() {
        let mut rng = fastrand::Rng::with_seed(3);
        for _ in 0..20_000 {
            let value = rng.i64(-(1 << 53)..1 << 53) as f64 * 2f64.powi(rng.i32(-300..100));
            // All of its digits: the shortest text would not be the double itself.
            for text in [format!("{value:.450e}"), format!("{value:.450}")] {
                let got = number(&text);
                let near = got.significand as f64 * 2f64.powi(got.exponent);
                assert_eq!(near, value.abs(), "{text}");
            }
        }
    }

    #[test]
    fn the_short_and_the_long_way_of_reading_agree() {
        let mut rng = fastrand::Rng::with_seed(4);
        for _ in 0..5_000 {
            let count = rng.u32(1..=19);
            let digits = rng.u64(1..10u64.pow(count));
            let places = rng.i32(0..=18);
            let short = number(&format!("{digits}e-{places}"));
            let long = number(&format!("{digits}{}e-{}", "0".repeat(20), places + 20));
            assert_eq!(short, long, "{digits}e-{places}");
        }
    }
}
