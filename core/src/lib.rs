//! One shard's data: values, keyspace, commands, RESP and RDB. No I/O, no clock, no threads.

pub mod command;
pub mod commands;
pub mod glob;
pub mod keyspace;
pub mod rdb;
pub mod resp;
pub mod table;
pub mod types;
