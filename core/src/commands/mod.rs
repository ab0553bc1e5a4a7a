//! The command families.

pub mod counters;
pub mod expiry;
mod set_options;
pub mod strings;
#[cfg(test)]
pub mod testing;

use crate::command::Command;

/// Every family, in the order in which `COMMAND` lists them.
pub const FAMILIES: &[&[Command]] = &[strings::COMMANDS, counters::COMMANDS];
