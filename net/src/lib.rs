//! The network ring, connections, configuration and the server binary.

pub mod allocator;
pub mod background;
pub mod clock;
pub mod config;
pub mod disk;
pub mod engine;
pub mod freeing;
pub mod holds;
pub mod log;
pub mod memory;
pub mod niceness;
pub mod node;
pub mod persistence;
pub mod ring;
pub mod session;
pub mod startup;
