//! Set: sorted integers, a listpack, or a table, in this order as it grows or takes up longer members.
//!
//! The rules are Redis 8's: a set of integers up to `set-max-intset-entries`, other small ones a listpack, everything
//! else a table; nothing goes back to a smaller encoding when members leave.

use super::intset::IntSet;
use super::listpack::{self, Element, Listpack, Needle};
use super::members::{self, MemberTable, Misfit, Never};
use super::num::parse_i64;
use super::{Limits, free_steps};
use crate::table::{self, Entry, Lookup, NewValue};

/// Intsets count in 32 bits; Redis stops them here.
const INTSET_MAX_LEN: usize = 1 << 30;

/// A set of byte strings.
#[derive(Debug)]
pub struct Set {
    form: Form,
}

enum Form {
    Ints(IntSet),
    Packed(Listpack),
    Table(Box<MemberTable>),
}

/// The set as it is stored, for writing it out.
#[derive(Clone, Copy)]
pub enum SetRef<'a> {
    Ints(&'a IntSet),
    Packed(&'a Listpack),
    Table(&'a MemberTable),
}

impl std::fmt::Debug for Form {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Form::Ints(ints) => ints.fmt(f),
            Form::Packed(pack) => pack.fmt(f),
            Form::Table(table) => write!(f, "table of {}", table.len()),
        }
    }
}

impl Clone for Set {
    fn clone(&self) -> Self {
        let form = match &self.form {
            Form::Ints(ints) => Form::Ints(ints.clone()),
            Form::Packed(pack) => Form::Packed(pack.clone()),
            Form::Table(table) => Form::Table(Box::new(members::clone_table(table))),
        };
        Set { form }
    }
}

impl Default for Set {
    fn default() -> Self {
        Set::new()
    }
}

impl Set {
    /// An empty set, which can become anything.
    pub fn new() -> Self {
        Set { form: Form::Ints(IntSet::new()) }
    }

    /// An empty set in the encoding for `count` members of which `first` is one.
    pub fn with_hint(first: &[u8], count: usize, limits: &Limits) -> Self {
        let form = if parse_i64(first).is_some() && count <= limits.set_max_intset_entries {
            Form::Ints(IntSet::new())
        } else if count <= limits.set_max_listpack_entries {
            Form::Packed(Listpack::new())
        } else {
            Form::Table(Box::new(members::new_table()))
        };
        Set { form }
    }

    /// Makes ready for `count` more members: a small set becomes a table if those alone are too many for it.
    pub fn prepare(&mut self, count: usize, limits: &Limits) {
        let too_many = match &self.form {
            Form::Ints(_) => count > limits.set_max_intset_entries,
            Form::Packed(_) => count > limits.set_max_listpack_entries,
            Form::Table(_) => false,
        };
        if too_many {
            self.make_table();
        }
    }

    pub fn from_intset(ints: IntSet, limits: &Limits) -> Self {
        let mut set = Set { form: Form::Ints(ints) };
        set.limit_ints(limits);
        set
    }

    /// Takes a listpack from outside.
    pub fn from_listpack(pack: Listpack, limits: &Limits) -> Result<Self, Misfit> {
        if pack.is_empty() {
            return Err(Misfit::Empty);
        }
        if members::has_duplicates(&pack, 1) {
            return Err(Misfit::Duplicate);
        }
        let too_big = pack.len() > limits.set_max_listpack_entries;
        let mut set = Set { form: Form::Packed(pack) };
        if too_big {
            set.make_table();
        }
        Ok(set)
    }

    /// `OBJECT ENCODING`.
    pub fn encoding(&self) -> &'static str {
        match &self.form {
            Form::Ints(_) => "intset",
            Form::Packed(_) => "listpack",
            Form::Table(_) => "hashtable",
        }
    }

    pub fn stored(&self) -> SetRef<'_> {
        match &self.form {
            Form::Ints(ints) => SetRef::Ints(ints),
            Form::Packed(pack) => SetRef::Packed(pack),
            Form::Table(table) => SetRef::Table(table),
        }
    }

    pub fn len(&self) -> usize {
        match &self.form {
            Form::Ints(ints) => ints.len(),
            Form::Packed(pack) => pack.len(),
            Form::Table(table) => table.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn contains(&self, member: &[u8]) -> bool {
        match &self.form {
            Form::Ints(ints) => parse_i64(member).is_some_and(|value| ints.contains(value)),
            Form::Packed(pack) => pack.find(&Needle::new(member), pack.start(), 1).is_some(),
            Form::Table(table) => table.find(table.hash(member), member).is_some(),
        }
    }

    /// Adds `member`; false if it was there.
    pub fn insert(&mut self, member: &[u8], limits: &Limits) -> bool {
        match &mut self.form {
            Form::Ints(ints) => {
                if let Some(value) = parse_i64(member) {
                    let added = ints.insert(value);
                    self.limit_ints(limits);
                    return added;
                }
                let longest = [ints.min(), ints.max()].into_iter().flatten();
                let longest = longest.map(|value| Element::Int(value).len_bytes()).max().unwrap_or(0);
                let fits = ints.len() < limits.set_max_listpack_entries
                    && member.len().max(longest) <= limits.set_max_listpack_value_bytes;
                if !fits {
                    self.make_table();
                    return self.insert(member, limits);
                }
                let mut pack = Listpack::with_capacity(ints.len() * 4 + member.len());
                ints.iter().for_each(|value| pack.push_back_int(value));
                pack.push_back(member);
                self.form = Form::Packed(pack);
                true
            }
            Form::Packed(pack) => {
                if pack.find(&Needle::new(member), pack.start(), 1).is_some() {
                    return false;
                }
                let fits = pack.len() < limits.set_max_listpack_entries
                    && member.len() <= limits.set_max_listpack_value_bytes
                    && pack.has_room_for(member.len());
                if !fits {
                    self.make_table();
                    return self.insert(member, limits);
                }
                pack.push_back(member);
                true
            }
            Form::Table(table) => {
                let hash = table.hash(member);
                match table.lookup(hash, member) {
                    Lookup::Found(_) => false,
                    Lookup::Vacant(place) => {
                        place.insert(Entry::new(member, NewValue::None));
                        true
                    }
                }
            }
        }
    }

    /// Removes `member`; false if it was not there.
    pub fn remove(&mut self, member: &[u8]) -> bool {
        match &mut self.form {
            Form::Ints(ints) => parse_i64(member).is_some_and(|value| ints.remove(value)),
            Form::Packed(pack) => match pack.find(&Needle::new(member), pack.start(), 1) {
                Some(at) => {
                    pack.remove(at);
                    true
                }
                None => false,
            },
            Form::Table(table) => table.remove(table.hash(member), member).is_some(),
        }
    }

    /// A member chosen at random.
    pub fn random(&self, rng: &mut fastrand::Rng) -> Option<Element<'_>> {
        match &self.form {
            _ if self.is_empty() => None,
            Form::Ints(ints) => ints.get(rng.usize(..ints.len())).map(Element::Int),
            Form::Packed(pack) => pack.nth(rng.usize(..pack.len())),
            Form::Table(table) => table.random(rng).map(|entry| Element::Str(entry.key())),
        }
    }

    /// `count` distinct members (all, if there are not more), chosen at random.
    pub fn sample(&self, rng: &mut fastrand::Rng, count: usize) -> Vec<Element<'_>> {
        match &self.form {
            Form::Table(table) => {
                let entries = members::sample_table(table, rng, count);
                entries.into_iter().map(|entry| Element::Str(entry.key())).collect()
            }
            Form::Ints(ints) => {
                let indices = members::sample_indices(ints.len(), rng, count);
                indices.into_iter().filter_map(|index| ints.get(index)).map(Element::Int).collect()
            }
            Form::Packed(pack) => {
                let indices = members::sample_indices(pack.len(), rng, count);
                members::positions(pack, 1, &indices).map(|at| pack.get(at)).collect()
            }
        }
    }

    /// Removes a member chosen at random.
    pub fn pop(&mut self, rng: &mut fastrand::Rng) -> Option<Vec<u8>> {
        let member = self.random(rng)?.to_vec();
        let removed = self.remove(&member);
        assert!(removed, "a member just drawn is there");
        Some(member)
    }

    /// The members: ascending for integers, as added in a listpack, in hash order in a table.
    pub fn iter(&self) -> Iter<'_> {
        match &self.form {
            Form::Ints(ints) => Iter::Ints { ints, index: 0 },
            Form::Packed(pack) => Iter::Packed(pack.iter()),
            Form::Table(table) => Iter::Table(table.iter()),
        }
    }

    /// Visits some `count` members from `cursor` on (0 to start); returns the cursor to go on with, 0 at the end. A
    /// compact set is visited whole.
    pub fn scan(&self, cursor: u64, count: usize, mut visit: impl FnMut(Element)) -> u64 {
        match &self.form {
            Form::Table(table) => table.scan(cursor, count, |entry| visit(Element::Str(entry.key()))),
            _ => {
                self.iter().for_each(visit);
                0
            }
        }
    }

    /// Bytes allocated, sampled for a table.
    pub fn heap_bytes(&self) -> usize {
        match &self.form {
            Form::Ints(ints) => ints.heap_bytes(),
            Form::Packed(pack) => pack.heap_bytes(),
            Form::Table(table) => size_of::<MemberTable>() + members::table_bytes(table),
        }
    }

    /// Steps that freeing the set takes, about.
    pub fn free_effort(&self) -> usize {
        match &self.form {
            Form::Table(table) => members::free_effort(table),
            Form::Ints(ints) => free_steps(ints.heap_bytes()),
            Form::Packed(pack) => free_steps(pack.heap_bytes()),
        }
    }

    /// Frees members for up to about `max_steps`; true once nothing but the value itself is left to drop.
    pub fn free_some(&mut self, max_steps: usize) -> bool {
        match &mut self.form {
            Form::Table(table) => members::free_some(table, max_steps),
            _ => true,
        }
    }

    fn make_table(&mut self) {
        let mut table = members::new_table();
        let mut scratch = itoa::Buffer::new();
        for element in self.iter() {
            let member = element.bytes(&mut scratch);
            table.insert(table.hash(member), Entry::new(member, NewValue::None));
        }
        self.form = Form::Table(Box::new(table));
    }

    fn limit_ints(&mut self, limits: &Limits) {
        if let Form::Ints(ints) = &self.form
            && ints.len() > limits.set_max_intset_entries.min(INTSET_MAX_LEN)
        {
            self.make_table();
        }
    }
}

/// Members in the order of their encoding.
pub enum Iter<'a> {
    Ints { ints: &'a IntSet, index: usize },
    Packed(listpack::Iter<'a>),
    Table(table::Iter<'a, Never>),
}

impl<'a> Iterator for Iter<'a> {
    type Item = Element<'a>;

    fn next(&mut self) -> Option<Element<'a>> {
        match self {
            Iter::Ints { ints, index } => {
                *index += 1;
                ints.get(*index - 1).map(Element::Int)
            }
            Iter::Packed(iter) => iter.next(),
            Iter::Table(iter) => iter.next().map(|entry| Element::Str(entry.key())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn members_of(set: &Set) -> BTreeSet<Vec<u8>> {
        let members: Vec<_> = set.iter().map(Element::to_vec).collect();
        let distinct: BTreeSet<_> = members.iter().cloned().collect();
        assert_eq!((distinct.len(), set.len()), (members.len(), members.len()));
        distinct
    }

    #[test]
    fn random_edits_match_an_ordered_set_in_every_encoding() {
        let mut rng = fastrand::Rng::with_seed(21);
        let mut seen = BTreeSet::new();
        for round in 0..30 {
            let limits = Limits {
                set_max_intset_entries: [8, 64][round % 2],
                set_max_listpack_entries: [16, 40][round % 2],
                ..Limits::default()
            };
            let (mut set, mut model) = (Set::new(), BTreeSet::<Vec<u8>>::new());
            for step in 0..400 {
                let member = match (round % 3, rng.u8(..20)) {
                    (0, _) | (1, 0..18) => rng.i64(-60..60).to_string().into_bytes(),
                    (2, 0) if step > 100 => vec![b'm'; rng.usize(60..70)],
                    _ => format!("m{}", rng.u8(..90)).into_bytes(),
                };
                match rng.u8(..10) {
                    0..6 => assert_eq!(set.insert(&member, &limits), model.insert(member.clone())),
                    6..8 => assert_eq!(set.remove(&member), model.remove(&member)),
                    8 => match set.pop(&mut rng) {
                        Some(popped) => assert!(model.remove(&popped)),
                        None => assert!(model.is_empty()),
                    },
                    _ => {
                        let count = rng.usize(..model.len() + 3);
                        let drawn: Vec<_> =
                            set.sample(&mut rng, count).into_iter().map(Element::to_vec).collect();
                        let distinct: BTreeSet<_> = drawn.iter().cloned().collect();
                        assert_eq!(drawn.len(), distinct.len());
                        assert_eq!(drawn.len(), count.min(model.len()));
                        assert!(distinct.is_subset(&model));
                    }
                }
                assert_eq!(set.contains(&member), model.contains(&member));
                assert_eq!(set.len(), model.len());
                seen.insert(set.encoding());
            }
            assert_eq!(members_of(&set), model);
            assert_eq!(members_of(&set.clone()), model);
            let (mut scanned, mut cursor) = (BTreeSet::new(), 0);
            loop {
                cursor = set.scan(cursor, 10, |element| {
                    scanned.insert(element.to_vec());
                });
                if cursor == 0 {
                    break;
                }
            }
            assert_eq!(scanned, model);
        }
        assert_eq!(seen.len(), 3);
    }

    /// The encodings that Redis 8.2 reports for the same additions.
    #[test]
    fn conversion_happens_where_redis_does_it() {
        let limits = Limits::default();
        let of = |members: &[String]| {
            let mut set = Set::new();
            members.iter().for_each(|member| assert!(set.insert(member.as_bytes(), &limits)));
            set.encoding()
        };
        let ints = |count: usize| (0..count).map(|i| i.to_string()).collect::<Vec<_>>();
        let texts = |count: usize| (0..count).map(|i| format!("a{i}")).collect::<Vec<_>>();
        assert_eq!(of(&ints(512)), "intset");
        assert_eq!(of(&ints(513)), "hashtable");
        assert_eq!(of(&[ints(100), texts(1)].concat()), "listpack");
        assert_eq!(of(&[ints(200), texts(1)].concat()), "hashtable");
        assert_eq!(of(&texts(128)), "listpack");
        assert_eq!(of(&texts(129)), "hashtable");
        assert_eq!(of(&["x".repeat(64)]), "listpack");
        assert_eq!(of(&["x".repeat(65)]), "hashtable");

        assert_eq!(Set::with_hint(b"1", 600, &limits).encoding(), "hashtable");
        assert_eq!(Set::with_hint(b"a", 128, &limits).encoding(), "listpack");
        let mut set = Set::with_hint(b"a", 3, &limits);
        assert_eq!(["a", "1", "2"].map(|member| set.insert(member.as_bytes(), &limits)), [true; 3]);
        set.remove(b"a");
        assert_eq!(set.encoding(), "listpack");
    }

    #[test]
    fn foreign_listpacks_are_checked() {
        let limits = Limits { set_max_listpack_entries: 2, ..Limits::default() };
        let pack = |texts: &[&str]| {
            let mut pack = Listpack::new();
            texts.iter().for_each(|text| pack.push_back(text.as_bytes()));
            pack
        };
        let of = |texts: &[&str]| Set::from_listpack(pack(texts), &limits);
        assert_eq!(of(&["a", "b", "a"]).unwrap_err(), Misfit::Duplicate);
        assert_eq!(of(&[]).unwrap_err(), Misfit::Empty);
        assert_eq!(of(&["a", "1"]).unwrap().encoding(), "listpack");
        let set = of(&["a", "1", "2"]).unwrap();
        assert!(set.encoding() == "hashtable" && set.contains(b"1") && set.contains(b"2"));
    }

    #[test]
    fn freeing_goes_in_slices() {
        let mut set = Set::new();
        (0..20_000).for_each(|i| assert!(set.insert(format!("m{i}").as_bytes(), &Limits::default())));
        assert!(set.heap_bytes() > 20_000 * 16 && set.free_effort() == 20_000);
        let slices = (1..).take_while(|_| !set.free_some(500)).count() + 1;
        assert!((20..=200).contains(&slices) && set.is_empty(), "{slices}");
    }

    /// The directory of a table stays as large as it has grown: freeing must not stop at segments that are empty.
    #[test]
    fn a_huge_set_is_freed_to_the_end() {
        let mut set = Set::new();
        for i in 0..3_000_000 {
            set.insert(format!("m{i}").as_bytes(), &Limits::default());
        }
        let slices = (1..10_000).take_while(|_| !set.free_some(1000)).count() + 1;
        assert!((3000..=6000).contains(&slices) && set.is_empty(), "{slices}");
    }
}
