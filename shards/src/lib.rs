//! Shards, the mailboxes between them, program order and multi-shard transactions.

pub mod epoch;
pub mod flight;
pub mod load;
pub mod locks;
pub mod parcel;
pub mod pipeline;
pub mod sequencer;
pub mod shard;
pub mod slots;
pub mod stats;
#[cfg(test)]
mod testing;
pub mod tx;
pub mod unit;
pub mod walk;

pub use epoch::{EpochBuilder, EpochError, Fit, MASTER, MASTER_CONN, Part};
pub use load::{LoadAnswer, LoadBatch, LoadFault};
pub use locks::LockKey;
pub use parcel::{Caller, ConnId, Cut, Mark, Parcel, RunFlags, Share};
pub use pipeline::{Admit, Pipeline, Place, Plan, Target, place};
pub use sequencer::Sequencer;
pub use shard::{Counters, Host, Outlet, Ran, Shard, ShardConfig};
pub use slots::{MAX_SHARDS, ShardId, SlotMap, key_slot};
pub use tx::{Everything, Work};
pub use unit::{Decoded, Invocation, Unit};
