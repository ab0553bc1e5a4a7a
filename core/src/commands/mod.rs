//! The command families.

pub mod strings;

use crate::command::Command;

/// Every family, in the order in which `COMMAND` lists them.
pub const FAMILIES: &[&[Command]] = &[strings::COMMANDS];
