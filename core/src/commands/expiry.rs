//! The arithmetic of expiries, shared by every command that takes one.

use crate::command::Error;
use crate::resp::number::parse_i64;

/// How an expiry is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// Seconds, not milliseconds.
    seconds: bool,
    /// A point in Unix time, not a span from now.
    absolute: bool,
}

impl Timing {
    pub const EX: Self = Self { seconds: true, absolute: false };
    pub const PX: Self = Self { seconds: false, absolute: false };
    pub const EXAT: Self = Self { seconds: true, absolute: true };
    pub const PXAT: Self = Self { seconds: false, absolute: true };

    /// The timing of that option word, in any case.
    pub fn of_option(word: &[u8]) -> Option<Self> {
        [(&b"EX"[..], Self::EX), (b"PX", Self::PX), (b"EXAT", Self::EXAT), (b"PXAT", Self::PXAT)]
            .into_iter()
            .find_map(|(name, timing)| word.eq_ignore_ascii_case(name).then_some(timing))
    }

    pub fn is_absolute(self) -> bool {
        self.absolute
    }

    /// The deadline in milliseconds of Unix time that `amount` means. It may lie in the past, even before 1970.
    /// `None`: it does not fit 64 bits.
    fn deadline_ms(self, amount: i64, now_ms: u64) -> Option<i64> {
        let amount_ms = if self.seconds { amount.checked_mul(1000)? } else { amount };
        if self.absolute {
            return Some(amount_ms);
        }
        amount_ms.checked_add(i64::try_from(now_ms).expect("a clock before the year 292 million"))
    }
}

/// Reads the argument of `EXPIRE` and its kin for the command of that (lower-case) name: the deadline in
/// milliseconds of Unix time, which may be negative.
///
/// # Errors
/// Not an integer, or a deadline that does not fit 64 bits.
pub fn parse_deadline_ms(
    arg: &[u8],
    timing: Timing,
    now_ms: u64,
    command: &'static str,
) -> Result<i64, Error> {
    let amount = parse_i64(arg).ok_or(Error::NotInteger)?;
    timing.deadline_ms(amount, now_ms).ok_or(Error::InvalidExpire(command.into()))
}

/// Reads the expiry option of a command that sets a value (`SET … EX`, `GETEX`, `SETEX`, …): these take only amounts
/// above zero. The deadline, in milliseconds of Unix time, may still lie in the past when it is absolute.
///
/// # Errors
/// As [`parse_deadline_ms`], and an amount of zero or less.
pub fn parse_positive_deadline_ms(
    arg: &[u8],
    timing: Timing,
    now_ms: u64,
    command: &'static str,
) -> Result<u64, Error> {
    let amount = parse_i64(arg).ok_or(Error::NotInteger)?;
    let deadline_ms = if amount > 0 { timing.deadline_ms(amount, now_ms) } else { None };
    deadline_ms.map(i64::cast_unsigned).ok_or(Error::InvalidExpire(command.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_MS: u64 = 1_000_000;

    #[test]
    fn units_and_bases() {
        for (timing, deadline_ms) in
            [(Timing::EX, 1_010_000), (Timing::PX, 1_000_010), (Timing::EXAT, 10_000), (Timing::PXAT, 10)]
        {
            assert_eq!(parse_deadline_ms(b"10", timing, NOW_MS, "expire"), Ok(deadline_ms));
            assert_eq!(parse_positive_deadline_ms(b"10", timing, NOW_MS, "set"), Ok(deadline_ms as u64));
        }
        assert_eq!(Timing::of_option(b"exAT"), Some(Timing::EXAT));
        assert_eq!(Timing::of_option(b"KEEPTTL"), None);
        assert_eq!(parse_deadline_ms(b"-1", Timing::PXAT, NOW_MS, "pexpireat"), Ok(-1));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let invalid = |command: &'static str| Error::InvalidExpire(command.into());
        for (arg, timing) in [
            ("9223372036854775807", Timing::PX),
            ("9223372036854775807", Timing::EXAT),
            ("9223372036854775", Timing::EX),
            ("-9223372036854775807", Timing::EXAT),
        ] {
            assert_eq!(parse_deadline_ms(arg.as_bytes(), timing, NOW_MS, "expire"), Err(invalid("expire")));
            assert_eq!(
                parse_positive_deadline_ms(arg.as_bytes(), timing, NOW_MS, "set"),
                Err(invalid("set"))
            );
        }
        for arg in ["0", "-1"] {
            let got = parse_positive_deadline_ms(arg.as_bytes(), Timing::EX, NOW_MS, "getex");
            assert_eq!(got, Err(invalid("getex")));
        }
        assert_eq!(parse_deadline_ms(b"1.5", Timing::EX, NOW_MS, "expire"), Err(Error::NotInteger));
    }
}
