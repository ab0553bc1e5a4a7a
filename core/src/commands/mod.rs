//! The command families.

pub mod expire;
pub mod expiry;
pub mod generic;
pub mod object;
pub mod scan;
pub mod strings;
#[cfg(test)]
pub mod testing;
pub mod whole;

use crate::command::Command;

/// Every family, in the order in which `COMMAND` lists them.
pub const FAMILIES: &[&[Command]] = &[
    generic::COMMANDS,
    expire::COMMANDS,
    object::COMMANDS,
    scan::COMMANDS,
    whole::COMMANDS,
    strings::COMMANDS,
];
