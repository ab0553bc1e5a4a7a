//! The command families.

pub mod bitfield;
pub mod bitmaps;
mod collection;
pub mod connection;
pub mod counters;
pub mod dump;
pub mod element_scan;
pub mod expire;
pub mod expiry;
pub mod from_master;
pub mod generic;
pub mod hashes;
pub mod lcs;
pub mod lists;
pub mod object;
pub mod random_elements;
pub mod replication;
pub mod scan;
pub mod server;
mod set_options;
pub mod sets;
pub mod sorted_ranges;
pub mod sorted_sets;
pub mod strings;
#[cfg(test)]
pub mod testing;
pub mod transactions;
pub mod whole;

use crate::command::Command;

/// Every family, in the order in which `COMMAND` lists them.
pub const FAMILIES: &[&[Command]] = &[
    strings::COMMANDS,
    counters::COMMANDS,
    bitmaps::COMMANDS,
    bitfield::COMMANDS,
    lcs::COMMANDS,
    lists::COMMANDS,
    hashes::COMMANDS,
    from_master::COMMANDS,
    sets::COMMANDS,
    sorted_sets::COMMANDS,
    sorted_ranges::COMMANDS,
    element_scan::COMMANDS,
    random_elements::COMMANDS,
    generic::COMMANDS,
    dump::COMMANDS,
    expire::COMMANDS,
    object::COMMANDS,
    scan::COMMANDS,
    whole::COMMANDS,
    connection::COMMANDS,
    transactions::COMMANDS,
    &[transactions::WATCH_HERE],
    replication::COMMANDS,
    server::COMMANDS,
    &[server::SURVEY],
];
