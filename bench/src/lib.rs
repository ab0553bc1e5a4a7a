//! Load and replication scenarios, latency histograms, peers side by side.
//!
//! Everything here talks to servers over the wire only. The modules [`client`], [`peers`] and [`dataset`] also
//! serve the end-to-end tests of the server: start servers, drive them, compare what they hold. The others are
//! the parts of the binary `braid-bench`.

pub mod client;
pub mod dataset;
pub mod fill;
pub mod load;
pub mod peers;
pub mod probe;
pub mod report;
pub mod resp;
pub mod schedule;
pub mod sys;
pub mod value;
pub mod wait;
pub mod workload;
