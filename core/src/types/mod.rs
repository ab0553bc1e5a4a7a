//! The collection value types and the encodings they move between: a compact one while a value is small, a scalable
//! one when it has grown.
//!
//! Everything here is a plain data structure: no keys, no clock, no replies. Thresholds come in as [`Limits`],
//! randomness as a generator, so every run can be repeated. The compact encodings ([`listpack`], [`intset`]) are byte
//! for byte Redis's, because an RDB file stores them as they are.

mod bignum;
mod bounds;
pub mod extended;
pub mod hash;
pub mod intset;
pub mod list;
pub mod listpack;
mod members;
pub mod num;
mod object;
mod ordered;
pub mod quicklist;
mod scored;
pub mod set;
pub mod zset;

pub use bounds::{LexRange, ScoreRange};
pub use extended::{SumError, add_texts};
pub use hash::{Field, Hash, HashRef};
pub use intset::IntSet;
pub use list::{End, List};
pub use listpack::{Element, Listpack};
pub use members::{MemberTable, Misfit, Never, set_hash_seed};
pub use object::Object;
pub use quicklist::Quicklist;
pub use scored::ScoredSet;
pub use set::{Set, SetRef};
pub use zset::{AddFlags, Added, NotANumber, ZSet, ZSetRef};

/// What freeing a block costs, in steps: one, and more if it is long, for the kernel takes its pages back at some 100 us for
/// each megabyte. A block of megabytes costs no more than one of them: the layer above has it freed elsewhere.
pub fn free_steps(block_bytes: usize) -> usize {
    1 + block_bytes.min(1 << 20) / (16 << 10)
}

/// When a value leaves its compact encoding. The fields are the `redis.conf` directives of the same names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// `list-max-listpack-size`: -1 to -5 bound a list node to 4, 8, 16, 32 or 64 KiB; a positive number bounds its
    /// count of elements.
    pub list_max_listpack_size: i32,
    /// `hash-max-listpack-entries`: fields in a compact hash.
    pub hash_max_listpack_entries: usize,
    /// `hash-max-listpack-value`: bytes in a field's name or value in a compact hash.
    pub hash_max_listpack_value_bytes: usize,
    /// `set-max-intset-entries`: members of a set of integers.
    pub set_max_intset_entries: usize,
    /// `set-max-listpack-entries`: members of a compact set.
    pub set_max_listpack_entries: usize,
    /// `set-max-listpack-value`: bytes in a member of a compact set.
    pub set_max_listpack_value_bytes: usize,
    /// `zset-max-listpack-entries`: members of a compact sorted set.
    pub zset_max_listpack_entries: usize,
    /// `zset-max-listpack-value`: bytes in a member of a compact sorted set.
    pub zset_max_listpack_value_bytes: usize,
}

impl Default for Limits {
    /// Redis 8's defaults.
    fn default() -> Self {
        Limits {
            list_max_listpack_size: -2,
            hash_max_listpack_entries: 512,
            hash_max_listpack_value_bytes: 64,
            set_max_intset_entries: 512,
            set_max_listpack_entries: 128,
            set_max_listpack_value_bytes: 64,
            zset_max_listpack_entries: 128,
            zset_max_listpack_value_bytes: 64,
        }
    }
}
