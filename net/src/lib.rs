//! The network ring, connections, configuration and the server binary.

pub mod ring;
