//! Writing a value that is too large for one slice of time, a stretch at a time.
//!
//! Between two stretches the value must not change: whoever writes it sees to that. Elements are written whole, however
//! long they are. A long string is written without compression, which knows no stretches.

use super::codes::kind;
use super::value::{
    ELEMENT_EFFORT_BYTES, kind_of, save_effort_bytes, write_element, write_field, write_node,
};
use super::writer::Writer;
use crate::table::{EntryRef, ValueRef};
use crate::types::hash::HashRef;
use crate::types::set::SetRef;
use crate::types::zset::ZSetRef;
use crate::types::{Element, Object};

/// A value of at least this effort (see [`save_effort_bytes`]) is written in stretches: some 0.3 to 1 ms of work. Tests
/// have enough of them when they are smaller.
const HUGE_EFFORT_BYTES: usize = if cfg!(test) { 4 << 10 } else { 256 << 10 };
/// Elements of a table visited at a time, between two looks at what they amounted to.
const BATCH_LEN: usize = 16;

/// Whether a value is better written in stretches, and can be in a file of that version.
pub fn is_huge(value: ValueRef<'_, Object>, version: u32) -> bool {
    save_effort_bytes(value) >= HUGE_EFFORT_BYTES
        && match value {
            ValueRef::Boxed(Object::Str(_)) => true,
            ValueRef::Boxed(Object::List(_)) => kind_of(value, version) == kind::LIST_QUICKLIST_2,
            ValueRef::Boxed(Object::Hash(hash)) => matches!(hash.stored(), HashRef::Table(_)),
            ValueRef::Boxed(Object::Set(set)) => matches!(set.stored(), SetRef::Table(_)),
            ValueRef::Boxed(Object::ZSet(zset)) => matches!(zset.stored(), ZSetRef::Tree(_)),
            _ => false,
        }
}

/// How far the writing of one item of a file has come.
pub struct Stretches {
    kind: u8,
    /// Where the next stretch goes on: a byte of a string, a node of a list, a cursor of a table.
    position: u64,
    /// Bytes, nodes or elements to come.
    left: usize,
    min_expiry_ms: u64,
}

impl Stretches {
    /// Writes the beginning: the expiry if there is one, the type, the key, and how many elements follow.
    ///
    /// # Panics
    /// If the value is not huge.
    pub fn begin(writer: &mut Writer, entry: EntryRef<'_, Object>) -> Self {
        let value = entry.value();
        assert!(is_huge(value, writer.version()), "a value that can be written in stretches");
        if let Some(at_ms) = entry.expiry_ms() {
            writer.expire_at_ms(i64::try_from(at_ms).unwrap_or(i64::MAX));
        }
        let kind = kind_of(value, writer.version());
        writer.key(kind, entry.key());
        let ValueRef::Boxed(object) = value else { unreachable!("what is huge is boxed") };
        let mut min_expiry_ms = 0;
        let left = match object {
            Object::Str(text) => text.len(),
            Object::List(list) => list.node_count(),
            Object::Hash(hash) => {
                if kind == kind::HASH_METADATA {
                    // Readers take any time that no field expires before; to find the earliest would be a walk.
                    min_expiry_ms = hash.next_expiry_ms().unwrap_or(0);
                    writer.millis(min_expiry_ms as i64);
                }
                hash.len()
            }
            Object::Set(set) => set.len(),
            Object::ZSet(zset) => zset.len(),
        };
        writer.length(left as u64);
        Stretches { kind, position: 0, left, min_expiry_ms }
    }

    pub fn is_done(&self) -> bool {
        self.left == 0
    }

    /// Writes on until about `budget_bytes` were read. Returns how many were.
    ///
    /// # Panics
    /// If the value is not what it was at the beginning, as far as that is seen.
    pub fn write(&mut self, writer: &mut Writer, value: ValueRef<'_, Object>, budget_bytes: usize) -> usize {
        let ValueRef::Boxed(object) = value else { unreachable!("what is huge is boxed") };
        let mut effort_bytes = 0;
        while self.left > 0 && effort_bytes < budget_bytes {
            effort_bytes += match object {
                Object::Str(text) => {
                    let rest = &text[self.position as usize..];
                    assert_eq!(rest.len(), self.left, "the string has changed");
                    let stretch = &rest[..rest.len().min(budget_bytes)];
                    writer.raw(stretch);
                    self.position += stretch.len() as u64;
                    self.left -= stretch.len();
                    stretch.len()
                }
                Object::List(list) => {
                    assert_eq!(list.node_count() - self.position as usize, self.left, "the list has changed");
                    // Finding one takes a walk over many; they are found once for all of the stretch.
                    let mut written_bytes = 0;
                    for node in list.nodes_from(self.position as usize) {
                        written_bytes += write_node(writer, node);
                        self.position += 1;
                        self.left -= 1;
                        if effort_bytes + written_bytes >= budget_bytes {
                            break;
                        }
                    }
                    written_bytes
                }
                Object::Hash(hash) => {
                    let (kind, min_expiry_ms) = (self.kind, self.min_expiry_ms);
                    let mut batch = Batch::default();
                    self.position = hash.scan(self.position, BATCH_LEN, |field| {
                        write_field(writer, field, kind, min_expiry_ms);
                        batch.add(element_len_bytes(field.name) + element_len_bytes(field.value));
                    });
                    self.visited(batch)
                }
                Object::Set(set) => {
                    let mut batch = Batch::default();
                    self.position = set.scan(self.position, BATCH_LEN, |member| {
                        write_element(writer, member);
                        batch.add(element_len_bytes(member));
                    });
                    self.visited(batch)
                }
                Object::ZSet(zset) => {
                    assert!(self.left <= zset.len(), "the sorted set has changed");
                    let mut batch = Batch::default();
                    // Highest first, as in `save_value`.
                    for (member, score) in zset.range(self.left.saturating_sub(BATCH_LEN)..self.left).rev() {
                        write_element(writer, member);
                        writer.double(score);
                        batch.add(element_len_bytes(member));
                    }
                    self.left -= batch.len;
                    batch.effort_bytes
                }
            };
        }
        effort_bytes
    }

    fn visited(&mut self, batch: Batch) -> usize {
        self.left = self.left.checked_sub(batch.len).expect("the value has grown");
        assert!(self.left == 0 || self.position != 0, "the value has shrunk");
        batch.effort_bytes.max(ELEMENT_EFFORT_BYTES)
    }
}

/// Elements written together, and the effort they took.
#[derive(Default)]
struct Batch {
    len: usize,
    effort_bytes: usize,
}

impl Batch {
    fn add(&mut self, len_bytes: usize) {
        self.len += 1;
        self.effort_bytes += ELEMENT_EFFORT_BYTES + len_bytes;
    }
}

fn element_len_bytes(element: Element<'_>) -> usize {
    match element {
        Element::Int(_) => 8,
        Element::Str(text) => text.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rdb::sample::{Plain, plain};
    use crate::rdb::{Decoder, Event, VALKEY_VERSION, WriterOptions, load_value};
    use crate::table::{Entry, NewValue, OwnedValue};
    use crate::types::{Hash, Limits, List, Set, ZSet};

    /// One huge value of every type; a hash also with expiring fields.
    fn huge_objects() -> Vec<Object> {
        let limits = Limits::default();
        let (mut list, mut set, mut zset) = (List::new(), Set::new(), ZSet::new());
        let (mut hash, mut timed) = (Hash::new(), Hash::new());
        for i in 0..20_000u32 {
            let text = format!("member:{i}").into_bytes();
            list.push_back(&text, &limits);
            set.insert(&text, &limits);
            zset.insert(&text, f64::from(i % 1000) / 4.0, &limits);
            hash.set(&text, &text, &limits);
            timed.set(&text, &text, &limits);
            if i % 3 == 0 {
                timed.set_expiry(&text, Some(1_000_000 + u64::from(i)));
            }
        }
        list.push_front(&vec![b'x'; 100_000], &limits);
        let text = (0..300_000u32).flat_map(u32::to_le_bytes).collect::<Vec<u8>>();
        vec![
            Object::Str(text.into()),
            Object::List(list),
            Object::Set(set),
            Object::ZSet(zset),
            Object::Hash(hash),
            Object::Hash(timed),
        ]
    }

    #[test]
    fn law8_stretches_are_short_and_add_up_to_the_value() {
        for (number, object) in huge_objects().into_iter().enumerate() {
            for version in [10, 12, VALKEY_VERSION] {
                let options = WriterOptions { version, compress: true, checksum: true };
                let value = NewValue::Boxed(Box::new(object.clone()));
                let entry = Entry::with_expiry(b"key", value, Some(77));
                assert!(is_huge(entry.value(), version));
                let mut writer = Writer::new(options);
                writer.header();
                writer.select_db(0);
                let mut stretches = Stretches::begin(&mut writer, entry.view());
                let mut count = 0;
                while !stretches.is_done() {
                    let before_bytes = writer.len_bytes();
                    let effort_bytes = stretches.write(&mut writer, entry.value(), 10_000);
                    // A node of a list and an element are written whole; the big one is the longest here.
                    let longest_bytes = if number == 1 && count == 0 { 101_000 } else { 20_000 };
                    assert!(effort_bytes < longest_bytes, "type {number}: {effort_bytes}");
                    assert!(writer.len_bytes() - before_bytes < longest_bytes);
                    count += 1;
                }
                assert!(count > 10, "type {number}: {count}");
                writer.eof();
                let mut decoder = Decoder::new(crate::rdb::Limits::default(), true);
                decoder.feed(&writer.take());
                assert_eq!(decoder.next_event(), Ok(Event::Version(version)));
                assert_eq!(decoder.next_event(), Ok(Event::SelectDb(0)));
                let Ok(Event::Key(header)) = decoder.next_event() else { panic!("type {number}") };
                assert_eq!((header.expire_at_ms, &header.key[..]), (Some(77), &b"key"[..]));
                let mut cursor = decoder.cursor();
                let loaded = load_value(header.kind, version, &mut cursor, &Limits::default()).unwrap();
                let used_bytes = cursor.used_bytes();
                decoder.consume(used_bytes);
                assert_eq!(decoder.next_event(), Ok(Event::End), "type {number} version {version}");
                let loaded = match loaded {
                    OwnedValue::Str(text) => Plain::Text(text),
                    OwnedValue::Boxed(object) => plain(ValueRef::Boxed(&object)),
                    other => panic!("type {number}: {other:?}"),
                };
                let mut expected = plain(entry.value());
                if let (Plain::Hash(fields), 10) = (&mut expected, version) {
                    // It knows no expiring fields.
                    fields.values_mut().for_each(|(_, expiry_ms)| *expiry_ms = None);
                }
                assert!(loaded == expected, "type {number} version {version}");
            }
        }
    }
}
