//! Numbers as Redis reads and prints them.

/// Parses a signed 64-bit decimal exactly as Redis does: no sign but `-`, no spaces, no leading zeros, no overflow.
pub fn parse_i64(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text {
        [b'-', rest @ ..] => (true, rest),
        _ => (false, text),
    };
    if digits.is_empty() || digits.len() > 19 {
        return None;
    }
    if digits[0] == b'0' {
        return (digits.len() == 1 && !negative).then_some(0);
    }
    let mut value: u64 = 0;
    for &digit in digits {
        if !digit.is_ascii_digit() {
            return None;
        }
        value = value.checked_mul(10)?.checked_add(u64::from(digit - b'0'))?;
    }
    if negative {
        (value <= 1 << 63).then(|| (value as i64).wrapping_neg())
    } else {
        i64::try_from(value).ok()
    }
}

/// Parses a floating point number as Redis does: the whole text, no surrounding space, `inf` allowed, NaN refused.
pub fn parse_f64(text: &[u8]) -> Option<f64> {
    if text.is_empty() || text.len() > 255 {
        return None;
    }
    let text = std::str::from_utf8(text).ok()?;
    let unsigned = text.trim_start_matches(['+', '-']);
    if text.len() - unsigned.len() > 1 {
        return None;
    }
    if let Some(hex) = unsigned.strip_prefix("0x").or_else(|| unsigned.strip_prefix("0X")) {
        let value = u64::from_str_radix(hex, 16).ok()? as f64;
        return Some(if text.starts_with('-') { -value } else { value });
    }
    let value: f64 = text.parse().ok()?;
    (!value.is_nan()).then_some(value)
}

/// Prints a double the way Redis 8 replies it: whole numbers below 2^52 plain, anything else with the shortest digits
/// that read back as the same double, in the layout of the Grisu2 printer (`fpconv`) that Redis uses.
pub fn format_f64(value: f64) -> String {
    if value.is_nan() {
        return "nan".into();
    }
    if value.is_infinite() {
        return if value > 0.0 { "inf" } else { "-inf" }.into();
    }
    if value == 0.0 {
        return if value.is_sign_negative() { "-0" } else { "0" }.into();
    }
    if value.abs() < (1u64 << 52) as f64 && value.fract() == 0.0 {
        return (value as i64).to_string();
    }
    let scientific = format!("{:e}", value.abs());
    let (mantissa, exponent) = scientific.split_once('e').expect("{:e} prints an exponent");
    let exponent: i32 = exponent.parse().expect("{:e} prints a decimal exponent");
    let digits = mantissa.replace('.', "");
    let count = digits.len() as i32;
    // The value is `digits` times ten to the power of `last`.
    let last = exponent - (count - 1);
    let sign = if value < 0.0 { "-" } else { "" };
    if last >= 0 && exponent.abs() < count + 7 {
        return format!("{sign}{digits}{}", "0".repeat(last as usize));
    }
    if last < 0 && (last > -7 || exponent.abs() < 4) {
        let whole = count + last;
        return if whole <= 0 {
            format!("{sign}0.{}{digits}", "0".repeat(-whole as usize))
        } else {
            format!("{sign}{}.{}", &digits[..whole as usize], &digits[whole as usize..])
        };
    }
    format!("{sign}{mantissa}e{}{}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_are_read_strictly() {
        assert_eq!(parse_i64(b"0"), Some(0));
        assert_eq!(parse_i64(b"-9223372036854775808"), Some(i64::MIN));
        assert_eq!(parse_i64(b"9223372036854775807"), Some(i64::MAX));
        for bad in [&b""[..], b"-", b"+1", b"01", b"-0", b" 1", b"1 ", b"9223372036854775808", b"1.0", b"abc"]
        {
            assert_eq!(parse_i64(bad), None, "{:?}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn floats_are_read_whole() {
        assert_eq!(parse_f64(b"1.5"), Some(1.5));
        assert_eq!(parse_f64(b"-inf"), Some(f64::NEG_INFINITY));
        assert_eq!(parse_f64(b"1e3"), Some(1000.0));
        for bad in [&b""[..], b" 1", b"1 ", b"nan", b"1x", b"+-1"] {
            assert_eq!(parse_f64(bad), None);
        }
    }

    #[test]
    fn floats_print_as_redis_prints_them() {
        for (value, text) in [
            (3.0, "3"),
            (0.1, "0.1"),
            (-1.5, "-1.5"),
            (1e20, "1e+20"),
            (1e15, "1000000000000000"),
            (1e-7, "1e-7"),
            (1.5e-7, "1.5e-7"),
        ] {
            assert_eq!(format_f64(value), text);
        }
    }
}
