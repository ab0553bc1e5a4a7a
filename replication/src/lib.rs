//! The merge stage, the ordered log, PSYNC and snapshots.

pub mod acks;
pub mod failover;
pub mod follower;
pub mod framing;
mod hex;
pub mod home;
pub mod ids;
pub mod link;
pub mod loader;
pub mod loading;
pub mod log;
pub mod merge;
pub mod parts;
pub mod psync;
mod queue;
pub mod sharing;
mod weave;
