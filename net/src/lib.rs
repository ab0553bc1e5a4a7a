//! The network ring, connections, configuration and the server binary.

pub mod config;
pub mod log;
pub mod ring;
pub mod startup;
