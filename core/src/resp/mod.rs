//! RESP, the Redis serialization protocol, versions 2 and 3: requests in, replies out.
//!
//! Neither direction does I/O: [`parse::Parser`] is a resumable state machine over bytes somebody received, and
//! [`reply::Reply`] appends to a buffer that somebody will send.
//! Source of the format: the RESP specification in the Redis documentation.

pub mod batch;
pub mod number;
pub mod parse;
pub mod reply;

pub use batch::Batch;
pub use parse::{Parsed, Parser, ProtocolError};
pub use reply::Reply;
