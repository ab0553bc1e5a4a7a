//! The command families.

pub mod bitfield;
pub mod bitmaps;
pub mod counters;
pub mod expiry;
pub mod lcs;
mod set_options;
pub mod strings;
#[cfg(test)]
pub mod testing;

use crate::command::Command;

/// Every family, in the order in which `COMMAND` lists them.
pub const FAMILIES: &[&[Command]] =
    &[strings::COMMANDS, counters::COMMANDS, bitmaps::COMMANDS, bitfield::COMMANDS, lcs::COMMANDS];
