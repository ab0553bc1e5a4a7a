//! The options of the commands that set strings and their expiries.

use super::expiry::{Timing, parse_positive_deadline_ms};
use crate::command::Error;
use crate::keyspace::Expiry;

/// When to set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Condition<'a> {
    #[default]
    Always,
    /// `NX`
    Missing,
    /// `XX`
    Exists,
    /// `IFEQ`
    Equal(&'a [u8]),
    /// `IFNE`: a key that does not exist is different from anything.
    NotEqual(&'a [u8]),
}

/// What the options of one command say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct SetOptions<'a> {
    pub condition: Condition<'a>,
    /// How and when it expires.
    pub expiry: Option<(Timing, &'a [u8])>,
    pub keep_ttl: bool,
    pub persist: bool,
    /// Reply the value before.
    pub get: bool,
}

impl SetOptions<'_> {
    /// What becomes of the expiry.
    ///
    /// # Errors
    /// As [`parse_positive_deadline_ms`].
    pub fn resolve(&self, now_ms: u64, command: &'static str) -> Result<Expiry, Error> {
        match self.expiry {
            Some((timing, amount)) => {
                parse_positive_deadline_ms(amount, timing, now_ms, command).map(Expiry::At)
            }
            None if self.keep_ttl => Ok(Expiry::Keep),
            None => Ok(Expiry::Clear),
        }
    }
}

/// Which options a command knows beside the four of an expiry.
struct Known {
    conditions: bool,
    comparisons: bool,
    keep_ttl: bool,
    persist: bool,
    get: bool,
}

pub(super) fn parse_set<'a>(args: &[&'a [u8]]) -> Result<SetOptions<'a>, Error> {
    parse(args, Known { conditions: true, comparisons: true, keep_ttl: true, persist: false, get: true })
}

pub(super) fn parse_getex<'a>(args: &[&'a [u8]]) -> Result<SetOptions<'a>, Error> {
    parse(args, Known { conditions: false, comparisons: false, keep_ttl: false, persist: true, get: false })
}

pub(super) fn parse_msetex<'a>(args: &[&'a [u8]]) -> Result<SetOptions<'a>, Error> {
    parse(args, Known { conditions: true, comparisons: false, keep_ttl: true, persist: false, get: false })
}

/// An option may be repeated (the last one counts; not so a comparison) but not joined by one that contradicts it.
fn parse<'a>(args: &[&'a [u8]], known: Known) -> Result<SetOptions<'a>, Error> {
    let mut options = SetOptions::default();
    let mut rest = args.iter().copied();
    while let Some(word) = rest.next() {
        let is = |name: &str| word.eq_ignore_ascii_case(name.as_bytes());
        let condition = if known.conditions && is("NX") {
            Some(Condition::Missing)
        } else if known.conditions && is("XX") {
            Some(Condition::Exists)
        } else if known.comparisons && is("IFEQ") {
            Some(Condition::Equal(rest.next().ok_or(Error::Syntax)?))
        } else if known.comparisons && is("IFNE") {
            Some(Condition::NotEqual(rest.next().ok_or(Error::Syntax)?))
        } else {
            None
        };
        if let Some(condition) = condition {
            let takes_value = matches!(condition, Condition::Equal(_) | Condition::NotEqual(_));
            let repeats = options.condition == condition && !takes_value;
            if options.condition != Condition::Always && !repeats {
                return Err(Error::Syntax);
            }
            options.condition = condition;
        } else if let Some(timing) = Timing::of_option(word) {
            let amount = rest.next().ok_or(Error::Syntax)?;
            if options.keep_ttl || options.persist || options.expiry.is_some_and(|(other, _)| other != timing)
            {
                return Err(Error::Syntax);
            }
            options.expiry = Some((timing, amount));
        } else if known.keep_ttl && is("KEEPTTL") && options.expiry.is_none() {
            options.keep_ttl = true;
        } else if known.persist && is("PERSIST") && options.expiry.is_none() {
            options.persist = true;
        } else if known.get && is("GET") {
            options.get = true;
        } else {
            return Err(Error::Syntax);
        }
    }
    Ok(options)
}
