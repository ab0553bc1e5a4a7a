//! Writing keys and values: which of the format's layouts a value gets, and its body.
//!
//! Compact encodings are written as they lie in memory, which is what Redis writes too, as far as the version knows
//! them; everything else element by element.

use super::codes::{VALKEY_VERSION, kind};
use super::writer::Writer;
use crate::table::{EntryRef, ValueRef};
use crate::types::hash::{Field, Hash, HashRef};
use crate::types::list::List;
use crate::types::listpack::Element;
use crate::types::quicklist::NodeRef;
use crate::types::set::{Set, SetRef};
use crate::types::zset::{ZSet, ZSetRef};
use crate::types::{MemberTable, Object};

/// Listpacks of hashes, sorted sets and lists; before there were ziplists, which this codec does not write.
const FIRST_LISTPACK_VERSION: u32 = 10;
const FIRST_SET_LISTPACK_VERSION: u32 = 11;
/// Redis's files: fields of hashes that expire.
const FIRST_FIELD_EXPIRY_VERSION: u32 = 12;

/// Containers of a list's nodes.
pub(super) const NODE_PLAIN: u64 = 1;
pub(super) const NODE_PACKED: u64 = 2;
/// A field without expiry, in Valkey's layout.
pub(super) const VALKEY_NO_EXPIRY_MS: i64 = -1;

/// Writes one item of a file: the expiry if there is one, the type, the key and the value.
///
/// # Panics
/// If the entry holds no value of a key, or an empty collection.
pub fn save_key(writer: &mut Writer, entry: EntryRef<'_, Object>) {
    if let Some(at_ms) = entry.expiry_ms() {
        writer.expire_at_ms(i64::try_from(at_ms).unwrap_or(i64::MAX));
    }
    writer.key(kind_of(entry.value(), writer.version()), entry.key());
    save_value(writer, entry.value());
}

/// The type byte for a value in a file of that version.
///
/// Versions without expiring fields get such a hash without the expiries: whoever reads them could not keep them, and
/// hears of each field that goes as of any other change.
pub fn kind_of(value: ValueRef<'_, Object>, version: u32) -> u8 {
    let has_listpacks = version >= FIRST_LISTPACK_VERSION;
    match value {
        ValueRef::Int(_) | ValueRef::Str(_) | ValueRef::Boxed(Object::Str(_)) => kind::STRING,
        ValueRef::Boxed(Object::List(_)) if has_listpacks => kind::LIST_QUICKLIST_2,
        ValueRef::Boxed(Object::List(_)) => kind::LIST,
        ValueRef::Boxed(Object::Hash(hash)) => match hash.stored() {
            HashRef::Packed(_) if has_listpacks => kind::HASH_LISTPACK,
            HashRef::Timed(_) | HashRef::Table(_) if hash.next_expiry_ms().is_some() => match version {
                VALKEY_VERSION => kind::VALKEY_HASH_2,
                FIRST_FIELD_EXPIRY_VERSION.. => match hash.stored() {
                    HashRef::Timed(_) => kind::HASH_LISTPACK_EX,
                    _ => kind::HASH_METADATA,
                },
                _ => kind::HASH,
            },
            _ => kind::HASH,
        },
        ValueRef::Boxed(Object::Set(set)) => match set.stored() {
            SetRef::Ints(_) => kind::SET_INTSET,
            SetRef::Packed(_) if version >= FIRST_SET_LISTPACK_VERSION => kind::SET_LISTPACK,
            SetRef::Packed(_) | SetRef::Table(_) => kind::SET,
        },
        ValueRef::Boxed(Object::ZSet(zset)) => match zset.stored() {
            ZSetRef::Packed(_) if has_listpacks => kind::ZSET_LISTPACK,
            ZSetRef::Packed(_) | ZSetRef::Tree(_) => kind::ZSET_2,
        },
        ValueRef::None | ValueRef::Score(_) => unreachable!("a key holds a string or a collection"),
    }
}

/// Writes a value's body, laid out as [`kind_of`] says for the writer's version.
///
/// # Panics
/// As [`save_key`].
pub fn save_value(writer: &mut Writer, value: ValueRef<'_, Object>) {
    let kind = kind_of(value, writer.version());
    match value {
        ValueRef::Int(number) => writer.integer(number),
        ValueRef::Str(text) => writer.string(text),
        ValueRef::Boxed(Object::Str(text)) => writer.string(text),
        ValueRef::Boxed(Object::List(list)) => save_list(writer, list, kind),
        ValueRef::Boxed(Object::Hash(hash)) => save_hash(writer, hash, kind),
        ValueRef::Boxed(Object::Set(set)) => save_set(writer, set, kind),
        ValueRef::Boxed(Object::ZSet(zset)) => save_zset(writer, zset, kind),
        ValueRef::None | ValueRef::Score(_) => unreachable!("a key holds a string or a collection"),
    }
}

/// A hash's field as `kind` has it.
pub(super) fn write_field(writer: &mut Writer, field: Field<'_>, kind: u8, min_expiry_ms: u64) {
    if kind == kind::HASH_METADATA {
        // Relative to the earliest, and one more, for 0 says that there is none.
        writer.length(field.expiry_ms.map_or(0, |at_ms| at_ms - min_expiry_ms + 1));
    }
    write_element(writer, field.name);
    write_element(writer, field.value);
    if kind == kind::VALKEY_HASH_2 {
        writer.millis(field.expiry_ms.map_or(VALKEY_NO_EXPIRY_MS, |at_ms| at_ms as i64));
    }
}

pub(super) fn write_element(writer: &mut Writer, element: Element<'_>) {
    match element {
        Element::Int(number) => writer.integer(number),
        Element::Str(text) => writer.string(text),
    }
}

/// # Panics
/// If there is nothing to count: readers refuse empty collections.
fn count(writer: &mut Writer, len: usize) {
    assert!(len > 0, "an empty collection is no value");
    writer.length(len as u64);
}

fn save_list(writer: &mut Writer, list: &List, kind: u8) {
    if kind == kind::LIST {
        count(writer, list.len());
        return list.iter().for_each(|item| write_element(writer, item));
    }
    assert!(!list.is_empty(), "an empty collection is no value");
    writer.length(list.node_count() as u64);
    for node in list.nodes() {
        write_node(writer, node);
    }
}

/// Writes a node of a list. Returns its length in bytes.
pub(super) fn write_node(writer: &mut Writer, node: NodeRef<'_>) -> usize {
    let (container, bytes) = match node {
        NodeRef::Plain(text) => (NODE_PLAIN, text),
        NodeRef::Packed(pack) => (NODE_PACKED, pack.as_bytes()),
    };
    writer.length(container);
    writer.string(bytes);
    ELEMENT_EFFORT_BYTES + bytes.len()
}

fn save_hash(writer: &mut Writer, hash: &Hash, kind: u8) {
    let min_expiry_ms = hash.iter().filter_map(|field| field.expiry_ms).min().unwrap_or(0);
    match (hash.stored(), kind) {
        (HashRef::Packed(pack), kind::HASH_LISTPACK) => return writer.string(pack.as_bytes()),
        (HashRef::Timed(pack), kind::HASH_LISTPACK_EX) => {
            writer.millis(min_expiry_ms as i64);
            return writer.string(pack.as_bytes());
        }
        _ => {}
    }
    if kind == kind::HASH_METADATA {
        writer.millis(min_expiry_ms as i64);
    }
    count(writer, hash.len());
    for field in hash.iter() {
        write_field(writer, field, kind, min_expiry_ms);
    }
}

fn save_set(writer: &mut Writer, set: &Set, kind: u8) {
    match (set.stored(), kind) {
        (SetRef::Ints(ints), _) => {
            assert!(!ints.is_empty(), "an empty collection is no value");
            writer.string(ints.as_bytes());
        }
        (SetRef::Packed(pack), kind::SET_LISTPACK) => {
            assert!(!pack.is_empty(), "an empty collection is no value");
            writer.string(pack.as_bytes());
        }
        (SetRef::Packed(pack), _) => {
            count(writer, pack.len());
            pack.iter().for_each(|member| write_element(writer, member));
        }
        (SetRef::Table(table), _) => save_members(writer, table),
    }
}

fn save_members(writer: &mut Writer, table: &MemberTable) {
    count(writer, table.len());
    table.iter().for_each(|member| writer.string(member.key()));
}

fn save_zset(writer: &mut Writer, zset: &ZSet, kind: u8) {
    if let (ZSetRef::Packed(pack), kind::ZSET_LISTPACK) = (zset.stored(), kind) {
        assert!(!pack.is_empty(), "an empty collection is no value");
        return writer.string(pack.as_bytes());
    }
    count(writer, zset.len());
    // Highest first, as Redis writes: its reader then always inserts at the head of its skip list.
    for (member, score) in zset.iter().rev() {
        write_element(writer, member);
        writer.double(score);
    }
}

/// What a small element costs beyond its bytes, in bytes that are copied in the same time.
pub(super) const ELEMENT_EFFORT_BYTES: usize = 64;

/// Nodes of a list that are looked at to tell its effort.
const LIST_WALK_MAX: usize = 64;

/// About how much work it is to write a value: the bytes that are read for it, whatever becomes of them. A slice of
/// time is bounded by it.
pub fn save_effort_bytes(value: ValueRef<'_, Object>) -> usize {
    let table = |len: usize| len * ELEMENT_EFFORT_BYTES;
    let bytes = match value {
        ValueRef::None | ValueRef::Score(_) | ValueRef::Int(_) => 0,
        ValueRef::Str(text) => text.len(),
        ValueRef::Boxed(Object::Str(text)) => text.len(),
        // A walk over a huge list would be work itself; a sample of it tells enough.
        ValueRef::Boxed(Object::List(list)) if list.node_count() > LIST_WALK_MAX => list.heap_bytes(),
        ValueRef::Boxed(Object::List(list)) => list
            .nodes()
            .map(|node| match node {
                NodeRef::Plain(text) => text.len(),
                NodeRef::Packed(pack) => pack.len_bytes(),
            })
            .sum(),
        ValueRef::Boxed(Object::Hash(hash)) => match hash.stored() {
            HashRef::Packed(pack) | HashRef::Timed(pack) => pack.len_bytes(),
            HashRef::Table(fields) => table(fields.len()),
        },
        ValueRef::Boxed(Object::Set(set)) => match set.stored() {
            SetRef::Ints(ints) => ints.as_bytes().len(),
            SetRef::Packed(pack) => pack.len_bytes(),
            SetRef::Table(members) => table(members.len()),
        },
        ValueRef::Boxed(Object::ZSet(zset)) => match zset.stored() {
            ZSetRef::Packed(pack) => pack.len_bytes(),
            ZSetRef::Tree(tree) => table(tree.len()),
        },
    };
    ELEMENT_EFFORT_BYTES + bytes
}
