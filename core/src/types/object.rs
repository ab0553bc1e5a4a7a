//! What an entry of the keyspace boxes: a big string or a collection.

use super::free_steps;
use super::hash::Hash;
use super::list::List;
use super::set::Set;
use super::zset::ZSet;
use bytes::Bytes;

/// A value that does not lie in its key's entry.
#[derive(Clone, Debug)]
pub enum Object {
    /// Sent to clients and replicas by reference.
    Str(Bytes),
    List(List),
    Hash(Hash),
    Set(Set),
    ZSet(ZSet),
}

// One is allocated for each collection; all that can be big is behind a pointer.
const _: () = assert!(size_of::<Object>() <= 40);

impl Object {
    /// `TYPE`.
    pub fn type_name(&self) -> &'static str {
        match self {
            Object::Str(_) => "string",
            Object::List(_) => "list",
            Object::Hash(_) => "hash",
            Object::Set(_) => "set",
            Object::ZSet(_) => "zset",
        }
    }

    /// `OBJECT ENCODING`.
    pub fn encoding(&self) -> &'static str {
        match self {
            Object::Str(_) => "raw",
            Object::List(list) => list.encoding(),
            Object::Hash(hash) => hash.encoding(),
            Object::Set(set) => set.encoding(),
            Object::ZSet(zset) => zset.encoding(),
        }
    }

    /// Bytes allocated for the value, this struct included; sampled where a value is huge.
    pub fn heap_bytes(&self) -> usize {
        let owned = match self {
            Object::Str(bytes) => bytes.len(),
            Object::List(list) => list.heap_bytes(),
            Object::Hash(hash) => hash.heap_bytes(),
            Object::Set(set) => set.heap_bytes(),
            Object::ZSet(zset) => zset.heap_bytes(),
        };
        size_of::<Object>() + owned
    }

    /// Steps that freeing the value takes, about (see [`free_steps`]).
    pub fn free_effort(&self) -> usize {
        match self {
            Object::Str(bytes) => free_steps(bytes.len()),
            Object::List(list) => list.free_effort(),
            Object::Hash(hash) => hash.free_effort(),
            Object::Set(set) => set.free_effort(),
            Object::ZSet(zset) => zset.free_effort(),
        }
    }

    /// Frees for up to about `max_steps`; true once the rest can be dropped at once. The value must not be read
    /// or changed from the first call on.
    pub fn free_some(&mut self, max_steps: usize) -> bool {
        match self {
            Object::Str(_) => true,
            Object::List(list) => list.free_some(max_steps),
            Object::Hash(hash) => hash.free_some(max_steps),
            Object::Set(set) => set.free_some(max_steps),
            Object::ZSet(zset) => zset.free_some(max_steps),
        }
    }
}
