//! What happens before the first shard starts: whether this machine can run Braid at all, limits, the background, files
//! and signals.
//!
//! Each check takes what it needs to know and gives one clear line on failure; reading the machine is separate and thin.

pub mod cpus;
pub mod kernel;
pub mod limits;
pub mod listen;
pub mod process;
pub mod protected;
pub mod signals;
pub mod sockets;
