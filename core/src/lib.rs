//! One shard's data: values, keyspace, commands, RESP and RDB. No I/O, no clock, no threads.

pub mod table;
pub mod types;
