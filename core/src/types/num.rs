//! Numbers as Redis reads and prints them. Clients compare these texts, so they must match to the byte.

/// Reads a decimal `i64` in its one canonical spelling: no sign `+`, no leading zero, no blank, no `-0`.
///
/// Only such a text may be stored as an integer, because it is the only one that printing gives back.
pub fn parse_i64(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text {
        [b'-', rest @ ..] => (true, rest),
        _ => (false, text),
    };
    match digits {
        [] => return None,
        [b'0'] => return (!negative).then_some(0),
        [b'0', ..] => return None,
        // 19 digits hold every i64; a 20th always overflows.
        _ if digits.len() > 19 => return None,
        _ => {}
    }
    let mut magnitude: u64 = 0;
    for &digit in digits {
        if !digit.is_ascii_digit() {
            return None;
        }
        magnitude = magnitude * 10 + u64::from(digit - b'0');
    }
    if negative { 0i64.checked_sub_unsigned(magnitude) } else { i64::try_from(magnitude).ok() }
}

/// Reads a double as C's `strtod` does for Redis: decimal, exponent, hexadecimal, `inf`, `infinity`; the whole text
/// must be consumed. `nan` is refused, and so is a number that overflows or underflows to nothing.
pub fn parse_f64(text: &[u8]) -> Option<f64> {
    let text = std::str::from_utf8(text).ok()?;
    let (negative, magnitude) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let value = match magnitude.as_bytes() {
        [b'i' | b'I', ..] => magnitude.parse::<f64>().ok()?,
        [b'0', b'x' | b'X', digits @ ..] => parse_hexadecimal(digits)?,
        [b'0'..=b'9' | b'.', ..] => {
            let value = magnitude.parse::<f64>().ok()?;
            let mantissa = magnitude.split(['e', 'E']).next().unwrap_or("");
            let vanished = value == 0.0 && mantissa.bytes().any(|b| matches!(b, b'1'..=b'9'));
            if value.is_infinite() || vanished {
                return None;
            }
            value
        }
        _ => return None,
    };
    Some(if negative { -value } else { value })
}

/// The part of a C hexadecimal float after `0x`: hex digits with an optional point, then an optional `p` and a
/// decimal power of two. More than 15 significant digits are refused rather than rounded: nobody types them.
fn parse_hexadecimal(text: &[u8]) -> Option<f64> {
    const MAX_DIGITS: usize = 15;
    let power_at = text.iter().position(|b| matches!(b, b'p' | b'P'));
    let (mantissa, power) = match power_at {
        Some(at) => {
            let power = std::str::from_utf8(&text[at + 1..]).ok()?;
            (&text[..at], power.parse::<i32>().ok()?.clamp(-2000, 2000))
        }
        None => (text, 0),
    };
    let mut significand: u64 = 0;
    let (mut digits, mut significant, mut fraction_bits, mut in_fraction) = (0, 0, 0, false);
    for &byte in mantissa {
        if byte == b'.' && !in_fraction {
            in_fraction = true;
            continue;
        }
        let digit = char::from(byte).to_digit(16)?;
        digits += 1;
        significant += usize::from(significant > 0 || digit > 0);
        if significant > MAX_DIGITS || digits > 64 {
            return None;
        }
        significand = significand << 4 | u64::from(digit);
        fraction_bits += if in_fraction { 4 } else { 0 };
    }
    if digits == 0 {
        return None;
    }
    // Two factors keep each power inside a double's range, so that nothing is lost on the way to a subnormal.
    let power = power - fraction_bits;
    let half = power / 2;
    let value = significand as f64 * 2f64.powi(half) * 2f64.powi(power - half);
    (value.is_finite() && (value != 0.0 || significand == 0)).then_some(value)
}

/// Appends a double as Redis 7.2 and later print scores: whole numbers plainly, everything else with the fewest
/// digits that read back as the same number, `inf`, `-inf`, `nan`.
///
/// Redis finds its digits with Grisu2, which for about one number in a thousand misses the shortest form; ours are
/// always the shortest. Both read back as the same number.
pub fn write_f64(out: &mut Vec<u8>, value: f64) {
    // Half of i64's range, as Redis: below it the cast to an integer and back is exact for every whole number.
    const WHOLE_LIMIT: f64 = (i64::MAX / 2) as f64;
    if value.is_nan() {
        out.extend_from_slice(b"nan");
    } else if value.is_infinite() {
        out.extend_from_slice(if value > 0.0 { b"inf" } else { b"-inf" });
    } else if value == 0.0 {
        out.extend_from_slice(if value.is_sign_negative() { b"-0" } else { b"0" });
    } else if value.abs() <= WHOLE_LIMIT && value.fract() == 0.0 {
        out.extend_from_slice(itoa::Buffer::new().format(value as i64).as_bytes());
    } else {
        write_shortest(out, value);
    }
}

/// [`write_f64`] into a new buffer.
pub fn format_f64(value: f64) -> Vec<u8> {
    let mut out = Vec::with_capacity(24);
    write_f64(&mut out, value);
    out
}

/// Lays out the shortest digits: plainly while few zeros are needed, else with an exponent.
fn write_shortest(out: &mut Vec<u8>, value: f64) {
    use std::io::Write;
    // "d.ddde-xx": the standard library's shortest round-trip digits.
    let mut buffer = [0; 32];
    let mut rest = &mut buffer[..];
    write!(rest, "{:e}", value.abs()).expect("17 digits, a point and an exponent fit");
    let unused = rest.len();
    let scientific = &buffer[..buffer.len() - unused];
    let e_at = memchr::memchr(b'e', scientific).expect("scientific notation has an exponent");
    let digits: smallvec::SmallVec<[u8; 20]> =
        scientific[..e_at].iter().copied().filter(u8::is_ascii_digit).collect();
    let exponent: i32 = std::str::from_utf8(&scientific[e_at + 1..])
        .ok()
        .and_then(|text| text.parse().ok())
        .expect("the exponent is a small integer");
    let count = digits.len() as i32;
    // The number is `digits * 10^scale`.
    let scale = exponent - count + 1;

    if value < 0.0 {
        out.push(b'-');
    }
    if scale >= 0 && exponent.abs() < count + 7 {
        out.extend_from_slice(&digits);
        out.resize(out.len() + scale as usize, b'0');
    } else if scale < 0 && (scale > -7 || exponent.abs() < 4) {
        let whole = count + scale;
        if whole <= 0 {
            out.extend_from_slice(b"0.");
            out.resize(out.len() + (-whole) as usize, b'0');
            out.extend_from_slice(&digits);
        } else {
            out.extend_from_slice(&digits[..whole as usize]);
            out.push(b'.');
            out.extend_from_slice(&digits[whole as usize..]);
        }
    } else {
        out.push(digits[0]);
        if count > 1 {
            out.push(b'.');
            out.extend_from_slice(&digits[1..]);
        }
        out.push(b'e');
        out.push(if exponent < 0 { b'-' } else { b'+' });
        out.extend_from_slice(itoa::Buffer::new().format(exponent.unsigned_abs()).as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_canonical_spelling_is_an_integer() {
        for good in [0, 1, -1, 127, 4096, i64::MAX, i64::MIN, i64::MAX - 1, i64::MIN + 1] {
            assert_eq!(parse_i64(good.to_string().as_bytes()), Some(good));
        }
        for bad in ["", "-", "-0", "+1", "01", "1 ", " 1", "1.0", "0x1", "9223372036854775808"] {
            assert_eq!(parse_i64(bad.as_bytes()), None, "{bad}");
        }
        assert_eq!(parse_i64(b"-9223372036854775809"), None);
        assert_eq!(parse_i64(b"18446744073709551617"), None);
        assert_eq!(parse_i64(b"99999999999999999999"), None);
    }

    #[test]
    fn doubles_are_read_as_strtod_reads_them() {
        for (text, value) in [
            ("1", 1.0),
            ("+1.5", 1.5),
            ("-.5", -0.5),
            ("3.", 3.0),
            ("1e3", 1000.0),
            ("1E-2", 0.01),
            ("inf", f64::INFINITY),
            ("-Infinity", f64::NEG_INFINITY),
            ("+inf", f64::INFINITY),
            ("0x10", 16.0),
            ("-0x1.8p1", -3.0),
            ("0e999", 0.0),
            ("5e-324", 5e-324),
        ] {
            assert_eq!(parse_f64(text.as_bytes()), Some(value), "{text}");
        }
        for bad in
            ["", " 1", "1 ", "nan", "-nan", "e5", ".", "1e", "1e400", "1e-400", "--1", "+-1", "0x", "inff"]
        {
            assert_eq!(parse_f64(bad.as_bytes()), None, "{bad}");
        }
    }

    /// Expected texts are replies of Redis 8.2 to `ZADD k <number> m` + `ZSCORE k m`.
    #[test]
    fn doubles_are_printed_as_redis_prints_them() {
        for (value, text) in [
            (0.0, "0"),
            (-0.0, "-0"),
            (3.0, "3"),
            (-17.0, "-17"),
            (0.1, "0.1"),
            (0.30000000000000004, "0.30000000000000004"),
            (1e17, "100000000000000000"),
            (4e18, "4000000000000000000"),
            (1e19, "1e+19"),
            (1.5e300, "1.5e+300"),
            (-1.25e-7, "-1.25e-7"),
            (1e-6, "0.000001"),
            (1e-7, "1e-7"),
            (1.7976931348623157e308, "1.7976931348623157e+308"),
            (f64::INFINITY, "inf"),
            (f64::NEG_INFINITY, "-inf"),
        ] {
            assert_eq!(String::from_utf8(format_f64(value)).unwrap(), text);
        }
    }

    #[test]
    fn printing_and_reading_give_back_every_double() {
        let mut rng = fastrand::Rng::with_seed(7);
        for _ in 0..20_000 {
            let value = f64::from_bits(rng.u64(..));
            if value.is_finite() {
                let text = format_f64(value);
                assert_eq!(parse_f64(&text).map(f64::to_bits), Some(value.to_bits()), "{value}");
            }
        }
    }
}
