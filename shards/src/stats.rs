//! How often commands ran, how long they took, how they failed: `INFO commandstats`, `errorstats`, `stats`.

use braid_core::command::CommandId;
use std::collections::BTreeMap;

/// One command's counters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CallStats {
    pub calls: u64,
    pub duration_us: u64,
    /// Refused before it ran (wrong arity, no permission, out of memory, …).
    pub rejected: u64,
    pub failed: u64,
}

/// Distinct error codes counted; Redis stops at this number as well.
const MAX_ERRORS: usize = 128;

/// One shard's counters.
#[derive(Debug, Clone, Default)]
pub struct CommandStats {
    pub commands: Vec<CallStats>,
    /// By error code, the first word of an error.
    pub errors: BTreeMap<String, u64>,
    pub processed: u64,
}

impl CommandStats {
    pub fn new(commands: usize) -> Self {
        Self { commands: vec![CallStats::default(); commands], ..Self::default() }
    }

    #[inline]
    pub fn called(&mut self, id: CommandId, duration_us: u64, failed: bool) {
        let stats = &mut self.commands[usize::from(id)];
        stats.calls += 1;
        stats.duration_us += duration_us;
        stats.failed += u64::from(failed);
        self.processed += 1;
    }

    pub fn rejected(&mut self, id: CommandId, text: &str) {
        self.commands[usize::from(id)].rejected += 1;
        self.error(text);
    }

    pub fn failed(&mut self, _id: CommandId, text: &str) {
        self.error(text);
    }

    /// Counts an error by its code.
    pub fn error(&mut self, text: &str) {
        let code = text.split(' ').next().unwrap_or("ERR");
        match self.errors.get_mut(code) {
            Some(count) => *count += 1,
            None if self.errors.len() < MAX_ERRORS => drop(self.errors.insert(code.to_string(), 1)),
            None => {}
        }
    }

    /// `CONFIG RESETSTAT`.
    pub fn reset(&mut self) {
        *self = Self::new(self.commands.len());
    }
}
