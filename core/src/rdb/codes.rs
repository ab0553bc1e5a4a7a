//! The numbers of the RDB format: versions, opcodes, value types. They are taken from the published format and checked
//! against what the servers write; the layout they stand in is described at [`super`].

/// RDB version written unless asked otherwise: the newest that Redis 7.0 loads.
pub const DEFAULT_VERSION: u32 = 10;
/// The version Valkey 9 writes. Such files begin with `VALKEY080`, not `REDIS0080`.
pub const VALKEY_VERSION: u32 = 80;
/// From this version on a file is Valkey's and begins with `VALKEY` and three digits.
pub const FIRST_VALKEY_VERSION: u32 = 80;

/// Versions this codec writes: 9 (Redis 5) to 12 (Redis 8), and Valkey's 80.
pub fn can_write(version: u32) -> bool {
    matches!(version, 9..=12 | VALKEY_VERSION)
}

/// Versions this codec reads. Before 9 millisecond times were in host byte order; streams came with 9. Types 22 and up
/// mean different things in Redis's versions and Valkey's, so the version must reach whoever decodes a value.
pub fn can_read(version: u32) -> bool {
    matches!(version, 1..=12 | VALKEY_VERSION)
}

/// A byte that stands where a value type could stand and starts something else. All are at or above
/// [`op::LOWEST`]; value types are below.
pub mod op {
    /// Valkey 9: a slot being imported. Not supported.
    pub const SLOT_IMPORT: u8 = 243;
    /// Slot number, keys in it, keys with an expiry in it: hints for cluster nodes.
    pub const SLOT_INFO: u8 = 244;
    /// A function library's source.
    pub const FUNCTION2: u8 = 245;
    /// Functions as written by a release candidate of Redis 7. Not supported by anyone since.
    pub const FUNCTION_PRE_GA: u8 = 246;
    /// A module's own data.
    pub const MODULE_AUX: u8 = 247;
    /// Idle time of the key that follows, in seconds, as a length.
    pub const IDLE: u8 = 248;
    /// LFU counter of the key that follows, one byte.
    pub const FREQ: u8 = 249;
    /// A name and a value about the file.
    pub const AUX: u8 = 250;
    /// Sizes of the selected database: keys, keys with an expiry.
    pub const RESIZEDB: u8 = 251;
    /// Unix time in ms when the key that follows expires, 8 bytes.
    pub const EXPIRETIME_MS: u8 = 252;
    /// Unix time in seconds when the key that follows expires, 4 bytes. Only old files have it.
    pub const EXPIRETIME: u8 = 253;
    /// The database that the following keys belong to.
    pub const SELECTDB: u8 = 254;
    /// End; since version 5 the CRC64 of everything before follows.
    pub const EOF: u8 = 255;
    /// Smallest opcode in use: a smaller byte is a value type.
    pub const LOWEST: u8 = SLOT_IMPORT;
}

/// Value types: the byte before a key that says how its value is laid out.
pub mod kind {
    pub const STRING: u8 = 0;
    pub const LIST: u8 = 1;
    pub const SET: u8 = 2;
    /// Scores in decimal text, see [`crate::rdb::Cursor::text_double`].
    pub const ZSET: u8 = 3;
    pub const HASH: u8 = 4;
    /// Scores as binary doubles.
    pub const ZSET_2: u8 = 5;
    pub const MODULE_PRE_GA: u8 = 6;
    pub const MODULE_2: u8 = 7;
    pub const HASH_ZIPMAP: u8 = 9;
    pub const LIST_ZIPLIST: u8 = 10;
    pub const SET_INTSET: u8 = 11;
    pub const ZSET_ZIPLIST: u8 = 12;
    pub const HASH_ZIPLIST: u8 = 13;
    /// A list of ziplists.
    pub const LIST_QUICKLIST: u8 = 14;
    pub const STREAM_LISTPACKS: u8 = 15;
    /// Since version 10.
    pub const HASH_LISTPACK: u8 = 16;
    /// Since version 10.
    pub const ZSET_LISTPACK: u8 = 17;
    /// A list of listpacks and plain nodes. Since version 10.
    pub const LIST_QUICKLIST_2: u8 = 18;
    /// Since version 10.
    pub const STREAM_LISTPACKS_2: u8 = 19;
    /// Since version 11.
    pub const SET_LISTPACK: u8 = 20;
    /// Since version 11.
    pub const STREAM_LISTPACKS_3: u8 = 21;
    /// Valkey's version 80 only: a hash whose fields carry expiry times. In Redis's files 22 never left a preview.
    pub const VALKEY_HASH_2: u8 = 22;
    /// Redis's version 12: a hash whose fields carry expiry times.
    pub const HASH_METADATA: u8 = 24;
    /// Redis's version 12: the same as one listpack.
    pub const HASH_LISTPACK_EX: u8 = 25;
}

/// Tags of the parts of a module's value, which say how to skip it.
pub(super) mod module_part {
    pub const EOF: u64 = 0;
    pub const SIGNED: u64 = 1;
    pub const UNSIGNED: u64 = 2;
    pub const FLOAT: u64 = 3;
    pub const DOUBLE: u64 = 4;
    pub const STRING: u64 = 5;
}

/// First byte of a length: its two top bits choose the form.
pub(super) mod len_form {
    pub const BITS_14: u8 = 0b01;
    pub const BITS_32: u8 = 0x80;
    pub const BITS_64: u8 = 0x81;
    /// The other six bits name a string encoding instead of a length.
    pub const SPECIAL: u8 = 0b11;
}

/// String encodings named by a special length.
pub(super) mod string_form {
    pub const INT8: u8 = 0;
    pub const INT16: u8 = 1;
    pub const INT32: u8 = 2;
    pub const LZF: u8 = 3;
}
