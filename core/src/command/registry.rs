//! Commands by name and by number.

use super::Command;
use std::sync::LazyLock;

/// A command's position in the registry: what travels between shards instead of its name.
pub type CommandId = u16;

/// All commands. Lookup is one probe in an open-addressing table over the upper-cased name.
pub struct Registry {
    commands: Vec<&'static Command>,
    /// Index into `commands` plus one; 0 is free. The length is a power of two.
    slots: Vec<u16>,
}

static REGISTRY: LazyLock<Registry> = LazyLock::new(|| Registry::new(crate::commands::FAMILIES));

/// The registry of every family.
pub fn registry() -> &'static Registry {
    &REGISTRY
}

fn hash(name: &[u8]) -> usize {
    // FNV-1a over the name with bit 5 cleared, which folds the case of letters.
    let mut hash: u32 = 0x811c_9dc5;
    for &byte in name {
        hash = (hash ^ u32::from(byte & 0xdf)).wrapping_mul(0x0100_0193);
    }
    (hash ^ (hash >> 15)) as usize
}

impl Registry {
    fn new(families: &[&'static [Command]]) -> Self {
        let commands: Vec<&'static Command> = families.iter().flat_map(|family| family.iter()).collect();
        let mut slots = vec![0u16; (commands.len() * 4).next_power_of_two()];
        let mask = slots.len() - 1;
        for (index, command) in commands.iter().enumerate() {
            let mut at = hash(command.name.as_bytes()) & mask;
            while slots[at] != 0 {
                assert_ne!(commands[usize::from(slots[at]) - 1].name, command.name, "declared twice");
                at = (at + 1) & mask;
            }
            slots[at] = u16::try_from(index + 1).expect("fewer than 65535 commands");
        }
        Self { commands, slots }
    }

    /// Finds a command by its name, in any case.
    #[inline]
    pub fn find(&self, name: &[u8]) -> Option<(CommandId, &'static Command)> {
        let mask = self.slots.len() - 1;
        let mut at = hash(name) & mask;
        loop {
            let slot = self.slots[at];
            if slot == 0 {
                return None;
            }
            let command = self.commands[usize::from(slot) - 1];
            if command.name.as_bytes().eq_ignore_ascii_case(name) {
                return Some((slot - 1, command));
            }
            at = (at + 1) & mask;
        }
    }

    pub fn get(&self, id: CommandId) -> &'static Command {
        self.commands[usize::from(id)]
    }

    pub fn all(&self) -> &[&'static Command] {
        &self.commands
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_is_found_in_any_case() {
        for (index, command) in registry().all().iter().enumerate() {
            for name in [command.name.to_uppercase(), command.name.to_string()] {
                assert_eq!(
                    registry().find(name.as_bytes()).map(|(id, _)| usize::from(id)),
                    Some(index),
                    "{name}"
                );
            }
        }
        assert!(registry().find(b"nosuchcommand").is_none());
        assert!(registry().find(b"").is_none());
    }

    #[test]
    fn declarations_are_complete() {
        for command in registry().all() {
            assert!(!command.summary.is_empty(), "{} has no summary", command.name);
            assert_eq!(command.name, command.name.to_lowercase());
            assert!(command.arity != 0, "{} has no arity", command.name);
        }
    }
}
