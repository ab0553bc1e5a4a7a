//! The RDB format: what snapshots, full syncs and `DUMP` payloads are made of. Here are the primitives, the frame
//! around the keys, and in `value` and `load` how each value type is laid out.
//!
//! ```text
//! file    = "REDIS" dddd | "VALKEY" ddd, item*, EOF, CRC64 of all before (0: not computed)
//! item    = AUX name value | SELECTDB n | RESIZEDB keys expires | FUNCTION2 source | ...
//!         | [EXPIRETIME_MS ms] [IDLE s | FREQ n] type key value
//! length  = 00xxxxxx | 01xxxxxx x | 0x80 xxxx | 0x81 xxxxxxxx   (big-endian)   6, 14, 32, 64 bits
//! string  = length bytes | 11000000 i8 | 11000001 i16 | 11000010 i32 | 11000011 packed-length length LZF
//! ```
//! Everything fixed in size (integers in strings, doubles, times, the CRC) is little-endian.
//!
//! Writing: [`Writer`]. Reading: [`Decoder`] walks a file or stream that arrives in pieces and stops at each key;
//! [`Cursor`] reads primitives from bytes at hand; [`Input`] holds what has arrived. Values: [`save_key`] and
//! [`ValueLoader`]. None of them does I/O.

mod checksum;
mod codes;
mod cursor;
mod decoder;
mod input;
mod load;
mod lzf;
#[cfg(test)]
pub(crate) mod sample;
mod skip;
mod stretch;
#[cfg(test)]
mod tests;
mod value;
mod writer;
mod ziplist;

pub use checksum::Checksum;
pub use codes::{DEFAULT_VERSION, FIRST_VALKEY_VERSION, VALKEY_VERSION, can_read, can_write, kind, op};
pub use cursor::{Cursor, Fault, FaultKind, Limits, Stop};
pub use decoder::{Decoder, Event, KeyHeader};
pub use input::Input;
pub use load::{ValueLoader, load_value};
pub use skip::ValueSkipper;
pub use stretch::{Stretches, is_huge};
pub use value::{kind_of, save_effort_bytes, save_key, save_value};
pub use writer::{Writer, WriterOptions};

/// Appends what ends a `DUMP` payload: the version, two bytes, and the CRC64 of everything before.
///
/// # Panics
/// If this codec does not write `version`.
pub fn seal_dump(version: u32, payload: &mut Vec<u8>) {
    assert!(can_write(version), "no RDB version {version}");
    payload.extend_from_slice(&(version as u16).to_le_bytes());
    payload.extend_from_slice(&Checksum::of(payload).to_le_bytes());
}

/// Checks what [`seal_dump`] wrote and returns the payload's version, its type byte and the bytes of its value.
/// `None`: "DUMP payload version or checksum are wrong". A CRC of 0 means that the sender did not compute one.
pub fn open_dump(payload: &[u8]) -> Option<(u32, u8, &[u8])> {
    let (hashed, crc) = payload.split_last_chunk::<8>()?;
    let (body, version) = hashed.split_last_chunk::<2>()?;
    let version = u32::from(u16::from_le_bytes(*version));
    let crc = u64::from_le_bytes(*crc);
    let intact = crc == 0 || crc == Checksum::of(hashed);
    let (&kind, value) = body.split_first()?;
    (intact && can_read(version)).then_some((version, kind, value))
}
