//! Hash: a listpack of names and values while it is small, a table when it has grown.
//!
//! Fields may expire. A compact hash in which a field ever got an expiry keeps a third element with each field, its
//! expiry in milliseconds or 0, and orders the fields by it, those without at the end ("listpackex", as Redis 7.4).
//! Expired fields stay until [`Hash::take_expired`] or [`Hash::remove`] takes them: the caller decides whether they
//! are seen ([`Field::is_live`]), since a replica must hide what it may not remove.

use super::extended::{self, SumError};
use super::listpack::{self, Element, Listpack, Needle};
use super::members::{self, MemberTable, Misfit, Never};
use super::{Limits, free_steps};
use crate::table::{self, Due, Entry, EntryRef, Lookup, NewValue, ValueRef, Verdict};

/// A hash.
#[derive(Debug)]
pub struct Hash {
    form: Form,
}

enum Form {
    /// Name, value, name, value ...
    Packed(Listpack),
    /// Name, value, expiry, name, value, expiry ...
    Timed(Listpack),
    Table(Box<Fields>),
}

/// The table of a large hash.
struct Fields {
    table: MemberTable,
    /// Fields with an expiry.
    timed: usize,
    /// No field expires before, ms since the Unix epoch.
    min_expiry_ms: u64,
}

/// The hash as it is stored, for writing it out.
#[derive(Clone, Copy)]
pub enum HashRef<'a> {
    Packed(&'a Listpack),
    Timed(&'a Listpack),
    Table(&'a MemberTable),
}

/// A field of a hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field<'a> {
    pub name: Element<'a>,
    pub value: Element<'a>,
    /// Milliseconds since the Unix epoch.
    pub expiry_ms: Option<u64>,
}

impl Field<'_> {
    /// Whether the field is to be seen. As with keys, the millisecond of the expiry still belongs to the field.
    pub fn is_live(&self, now_ms: u64) -> bool {
        self.expiry_ms.is_none_or(|at| now_ms <= at)
    }
}

/// Why [`Hash::increment`] refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IncrementError {
    /// "hash value is not an integer".
    NotAnInteger,
    /// "increment or decrement would overflow".
    Overflow,
}

impl std::fmt::Debug for Form {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Form::Packed(pack) | Form::Timed(pack) => pack.fmt(f),
            Form::Table(fields) => write!(f, "table of {}", fields.table.len()),
        }
    }
}

impl Clone for Hash {
    fn clone(&self) -> Self {
        let form = match &self.form {
            Form::Packed(pack) => Form::Packed(pack.clone()),
            Form::Timed(pack) => Form::Timed(pack.clone()),
            Form::Table(fields) => {
                Form::Table(Box::new(Fields { table: members::clone_table(&fields.table), ..**fields }))
            }
        };
        Hash { form }
    }
}

impl Default for Hash {
    fn default() -> Self {
        Hash::new()
    }
}

fn field_of<'a>(entry: EntryRef<'a, Never>) -> Field<'a> {
    let ValueRef::Str(value) = entry.value() else { unreachable!("a field's value is a string") };
    Field { name: Element::Str(entry.key()), value: Element::Str(value), expiry_ms: entry.expiry_ms() }
}

/// An expiry as a timed listpack stores it: 0 for none. Checked when it came in.
fn expiry_in(element: Element) -> Option<u64> {
    match element.as_int() {
        Some(ms @ 1..) => Some(ms as u64),
        _ => None,
    }
}

fn stored_expiry(expiry_ms: Option<u64>) -> i64 {
    assert!(expiry_ms.is_none_or(|ms| (1..EXPIRY_END_MS).contains(&ms)), "a time that is over is not none");
    expiry_ms.map_or(0, |ms| ms as i64)
}

/// Times at which fields expire lie below, ms since the Unix epoch: the bound that Redis sets, too.
pub const EXPIRY_END_MS: u64 = 1 << 48;

impl Hash {
    pub fn new() -> Self {
        Hash { form: Form::Packed(Listpack::new()) }
    }

    /// Takes a listpack of names and values from outside.
    pub fn from_listpack(pack: Listpack, limits: &Limits) -> Result<Self, Misfit> {
        Hash::checked(Hash { form: Form::Packed(pack) }, limits)
    }

    /// Takes a listpack of names, values and expiries from outside.
    pub fn from_timed_listpack(pack: Listpack, limits: &Limits) -> Result<Self, Misfit> {
        Hash::checked(Hash { form: Form::Timed(pack) }, limits)
    }

    fn checked(mut hash: Hash, limits: &Limits) -> Result<Self, Misfit> {
        if let Some((pack, stride)) = hash.pack() {
            if pack.is_empty() {
                return Err(Misfit::Empty);
            }
            if !pack.len().is_multiple_of(stride) {
                return Err(Misfit::Odd);
            }
            if members::has_duplicates(pack, stride) {
                return Err(Misfit::Duplicate);
            }
            if stride == 3 {
                let mut expiries = pack.iter().skip(2).step_by(3).map(|element| element.as_int());
                if !expiries.clone().all(|at| at.is_some_and(|ms| (0..EXPIRY_END_MS as i64).contains(&ms))) {
                    return Err(Misfit::Number);
                }
                let key = |at: Option<i64>| at.filter(|&ms| ms > 0).unwrap_or(i64::MAX);
                if !expiries.by_ref().map(key).is_sorted() {
                    return Err(Misfit::Order);
                }
            }
        }
        if hash.len() > limits.hash_max_listpack_entries {
            hash.make_table();
        }
        Ok(hash)
    }

    /// `OBJECT ENCODING`.
    pub fn encoding(&self) -> &'static str {
        match &self.form {
            Form::Packed(_) => "listpack",
            Form::Timed(_) => "listpackex",
            Form::Table(_) => "hashtable",
        }
    }

    pub fn stored(&self) -> HashRef<'_> {
        match &self.form {
            Form::Packed(pack) => HashRef::Packed(pack),
            Form::Timed(pack) => HashRef::Timed(pack),
            Form::Table(fields) => HashRef::Table(&fields.table),
        }
    }

    /// Number of fields, expired ones included as in Redis.
    pub fn len(&self) -> usize {
        match (&self.form, self.pack()) {
            (_, Some((pack, stride))) => pack.len() / stride,
            (Form::Table(fields), _) => fields.table.len(),
            _ => unreachable!("what is no listpack is a table"),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The value of a field, expired or not.
    pub fn get(&self, name: &[u8]) -> Option<Element<'_>> {
        self.find(name).map(|field| field.value)
    }

    pub fn contains(&self, name: &[u8]) -> bool {
        self.find(name).is_some()
    }

    pub fn find(&self, name: &[u8]) -> Option<Field<'_>> {
        match &self.form {
            Form::Table(fields) => fields.table.find(fields.table.hash(name), name).map(field_of),
            Form::Packed(pack) => Some(field_at(pack, 2, pack.find(&Needle::new(name), pack.start(), 2)?)),
            Form::Timed(pack) => Some(field_at(pack, 3, pack.find(&Needle::new(name), pack.start(), 3)?)),
        }
    }

    /// Makes ready for more fields whose longest name or value has `longest_bytes`, so that a hash that will not stay
    /// compact is converted before. Optional.
    pub fn prepare(&mut self, added_fields: usize, longest_bytes: usize, limits: &Limits) {
        if self.pack().is_some()
            && (longest_bytes > limits.hash_max_listpack_value_bytes
                || added_fields > limits.hash_max_listpack_entries)
        {
            self.make_table();
        }
    }

    /// Sets a field, which loses its expiry; true if it is new.
    pub fn set(&mut self, name: &[u8], value: &[u8], limits: &Limits) -> bool {
        self.write(name, value, false, limits)
    }

    /// Sets a field, which keeps its expiry if it has one; true if it is new.
    pub fn set_keeping_expiry(&mut self, name: &[u8], value: &[u8], limits: &Limits) -> bool {
        self.write(name, value, true, limits)
    }

    fn write(&mut self, name: &[u8], value: &[u8], keep_expiry: bool, limits: &Limits) -> bool {
        self.prepare(1, name.len().max(value.len()), limits);
        let added_bytes = name.len() + value.len() + 4 * listpack::MAX_OVERHEAD_BYTES;
        if self.pack().is_some_and(|(pack, _)| !pack.has_room_for(added_bytes)) {
            self.make_table();
        }
        let is_new = match &mut self.form {
            Form::Packed(pack) => match pack.find(&Needle::new(name), pack.start(), 2) {
                Some(at) => {
                    pack.replace(pack.next(at), value);
                    false
                }
                None => {
                    pack.push_back(name);
                    pack.push_back(value);
                    true
                }
            },
            Form::Timed(pack) => match pack.find(&Needle::new(name), pack.start(), 3) {
                Some(at) => {
                    pack.replace(pack.next(at), value);
                    if !keep_expiry {
                        move_timed(pack, at, None);
                    }
                    false
                }
                None => {
                    pack.push_back(name);
                    pack.push_back(value);
                    pack.push_back_int(0);
                    true
                }
            },
            Form::Table(fields) => fields.set(name, value, keep_expiry),
        };
        if is_new && self.pack().is_some() && self.len() > limits.hash_max_listpack_entries {
            self.make_table();
        }
        is_new
    }

    /// Removes a field; false if there is none.
    pub fn remove(&mut self, name: &[u8]) -> bool {
        match &mut self.form {
            Form::Table(fields) => fields.remove(name),
            Form::Packed(pack) => remove_tuple(pack, 2, name),
            Form::Timed(pack) => remove_tuple(pack, 3, name),
        }
    }

    /// Gives a field an expiry (ms since the Unix epoch) or takes it away; false if there is no such field.
    pub fn set_expiry(&mut self, name: &[u8], expiry_ms: Option<u64>) -> bool {
        if expiry_ms.is_some()
            && let Form::Packed(pack) = &self.form
        {
            if pack.find(&Needle::new(name), pack.start(), 2).is_none() {
                return false;
            }
            let mut timed = Listpack::with_capacity(pack.len_bytes() + pack.len());
            for (index, element) in pack.iter().enumerate() {
                timed.push_back_element(element);
                if index % 2 == 1 {
                    timed.push_back_int(0);
                }
            }
            self.form = Form::Timed(timed);
        }
        match &mut self.form {
            Form::Packed(_) => self.contains(name),
            Form::Timed(pack) => match pack.find(&Needle::new(name), pack.start(), 3) {
                Some(at) => {
                    move_timed(pack, at, expiry_ms);
                    true
                }
                None => false,
            },
            Form::Table(fields) => fields.set_expiry(name, expiry_ms),
        }
    }

    /// No field expires before this time, ms since the Unix epoch; `None` if none expires at all.
    pub fn next_expiry_ms(&self) -> Option<u64> {
        match &self.form {
            Form::Packed(_) => None,
            Form::Timed(pack) => pack.nth(2).and_then(expiry_in),
            Form::Table(fields) => (fields.timed > 0).then_some(fields.min_expiry_ms),
        }
    }

    /// Removes up to `max` fields whose time is over, after showing the name of each to `visit`. Returns how many.
    pub fn take_expired(&mut self, now_ms: u64, max: usize, mut visit: impl FnMut(&[u8])) -> usize {
        match &mut self.form {
            Form::Packed(_) => 0,
            Form::Timed(pack) => {
                let (mut at, mut taken) = (pack.start(), 0);
                let mut scratch = itoa::Buffer::new();
                while taken < max && at < pack.end() {
                    let field = field_at(pack, 3, at);
                    if field.is_live(now_ms) {
                        break;
                    }
                    visit(field.name.bytes(&mut scratch));
                    at = after_tuple(pack, 3, at);
                    taken += 1;
                }
                pack.remove_run(pack.start(), taken * 3);
                taken
            }
            Form::Table(fields) => fields.take_expired(now_ms, max, visit),
        }
    }

    /// Adds to the integer in a field, which counts as 0 if absent and keeps its expiry.
    pub fn increment(&mut self, name: &[u8], delta: i64, limits: &Limits) -> Result<i64, IncrementError> {
        let old = match self.get(name) {
            Some(value) => value.as_int().ok_or(IncrementError::NotAnInteger)?,
            None => 0,
        };
        let new = old.checked_add(delta).ok_or(IncrementError::Overflow)?;
        self.set_keeping_expiry(name, itoa::Buffer::new().format(new).as_bytes(), limits);
        Ok(new)
    }

    /// Adds to the number in a field, which counts as 0 if absent and keeps its expiry. Returns the sum as text.
    pub fn increment_by_float(
        &mut self,
        name: &[u8],
        delta: &[u8],
        limits: &Limits,
    ) -> Result<Vec<u8>, SumError> {
        let mut scratch = itoa::Buffer::new();
        let old = self.get(name);
        let new = extended::add_texts(old.as_ref().map(|value| value.bytes(&mut scratch)), delta)?;
        self.set_keeping_expiry(name, &new, limits);
        Ok(new)
    }

    /// A field chosen at random.
    pub fn random(&self, rng: &mut fastrand::Rng) -> Option<Field<'_>> {
        match (&self.form, self.pack()) {
            _ if self.is_empty() => None,
            (_, Some((pack, stride))) => {
                let at = pack.seek(rng.usize(..self.len()) * stride)?;
                Some(field_at(pack, stride, at))
            }
            (Form::Table(fields), _) => fields.table.random(rng).map(field_of),
            _ => unreachable!("what is no listpack is a table"),
        }
    }

    /// `count` distinct fields (all, if there are not more), chosen at random.
    pub fn sample(&self, rng: &mut fastrand::Rng, count: usize) -> Vec<Field<'_>> {
        match (&self.form, self.pack()) {
            (_, Some((pack, stride))) => {
                let indices = members::sample_indices(self.len(), rng, count);
                members::positions(pack, stride, &indices).map(|at| field_at(pack, stride, at)).collect()
            }
            (Form::Table(fields), _) => {
                members::sample_table(&fields.table, rng, count).into_iter().map(field_of).collect()
            }
            _ => unreachable!("what is no listpack is a table"),
        }
    }

    /// All fields, expired or not.
    pub fn iter(&self) -> Iter<'_> {
        match &self.form {
            Form::Packed(pack) => Iter::Packed { elements: pack.iter(), timed: false },
            Form::Timed(pack) => Iter::Packed { elements: pack.iter(), timed: true },
            Form::Table(fields) => Iter::Table(fields.table.iter()),
        }
    }

    /// Visits some `count` fields from `cursor` on (0 to start); returns the cursor to go on with, 0 at the end. A
    /// compact hash is visited whole.
    pub fn scan(&self, cursor: u64, count: usize, mut visit: impl FnMut(Field)) -> u64 {
        match &self.form {
            Form::Table(fields) => fields.table.scan(cursor, count, |entry| visit(field_of(entry))),
            _ => {
                self.iter().for_each(visit);
                0
            }
        }
    }

    /// Bytes allocated, sampled for a table.
    pub fn heap_bytes(&self) -> usize {
        match &self.form {
            Form::Packed(pack) | Form::Timed(pack) => pack.heap_bytes(),
            Form::Table(fields) => size_of::<Fields>() + members::table_bytes(&fields.table),
        }
    }

    /// Steps that freeing the hash takes, about.
    pub fn free_effort(&self) -> usize {
        match &self.form {
            Form::Table(fields) => members::free_effort(&fields.table),
            Form::Packed(pack) | Form::Timed(pack) => free_steps(pack.heap_bytes()),
        }
    }

    /// Frees fields for up to about `max_steps`; true once nothing but the value itself is left to drop. Nothing else may be done
    /// with it from the first call on.
    pub fn free_some(&mut self, max_steps: usize) -> bool {
        match &mut self.form {
            Form::Table(fields) => members::free_some(&mut fields.table, max_steps),
            _ => true,
        }
    }

    /// The listpack of a compact hash, and how many elements a field has.
    fn pack(&self) -> Option<(&Listpack, usize)> {
        match &self.form {
            Form::Packed(pack) => Some((pack, 2)),
            Form::Timed(pack) => Some((pack, 3)),
            Form::Table(_) => None,
        }
    }

    fn make_table(&mut self) {
        let mut fields = Fields { table: members::new_table(), timed: 0, min_expiry_ms: u64::MAX };
        let (mut name, mut value) = (itoa::Buffer::new(), itoa::Buffer::new());
        for field in self.iter() {
            let (name, value) = (field.name.bytes(&mut name), field.value.bytes(&mut value));
            fields.note_expiry(field.expiry_ms);
            let entry = Entry::with_expiry(name, NewValue::Str(value), field.expiry_ms);
            fields.table.insert(fields.table.hash(name), entry);
        }
        self.form = Form::Table(Box::new(fields));
    }
}

impl Fields {
    /// Counts an expiry that a field gets.
    fn note_expiry(&mut self, expiry_ms: Option<u64>) {
        if let Some(ms) = expiry_ms {
            self.timed += 1;
            self.min_expiry_ms = self.min_expiry_ms.min(ms);
        }
    }

    fn set(&mut self, name: &[u8], value: &[u8], keep_expiry: bool) -> bool {
        let hash = self.table.hash(name);
        match self.table.lookup(hash, name) {
            Lookup::Found(mut entry) => {
                entry.set_value(NewValue::Str(value));
                if !keep_expiry && entry.expiry_ms().is_some() {
                    entry.set_expiry(None);
                    self.timed -= 1;
                }
                false
            }
            Lookup::Vacant(place) => {
                place.insert(Entry::new(name, NewValue::Str(value)));
                true
            }
        }
    }

    fn remove(&mut self, name: &[u8]) -> bool {
        let Some(entry) = self.table.remove(self.table.hash(name), name) else { return false };
        self.timed -= usize::from(entry.expiry_ms().is_some());
        true
    }

    fn set_expiry(&mut self, name: &[u8], expiry_ms: Option<u64>) -> bool {
        let Some(mut entry) = self.table.find_mut(self.table.hash(name), name) else { return false };
        let had_one = entry.expiry_ms().is_some();
        entry.set_expiry(expiry_ms);
        self.timed -= usize::from(had_one);
        self.note_expiry(expiry_ms);
        true
    }

    fn take_expired(&mut self, now_ms: u64, max: usize, mut visit: impl FnMut(&[u8])) -> usize {
        // Enough to finish a segment of the table, which brings its record of what is due up to date.
        const SLICE: usize = 1024;
        let (mut taken, mut position) = (0, 0);
        while taken < max && self.timed > 0 {
            match self.table.next_due(position, now_ms) {
                Due::At(at) => {
                    position = self.table.retain_slice(at, SLICE, |entry| {
                        let is_over = entry.expiry_ms().is_some_and(|at| at < now_ms);
                        if !is_over || taken == max {
                            return Verdict::Keep;
                        }
                        taken += 1;
                        self.timed -= 1;
                        visit(entry.key());
                        Verdict::Remove
                    });
                }
                Due::Resume(at) => position = at,
                Due::Nothing => position = 0,
            }
            if position == 0 {
                break;
            }
        }
        if taken < max {
            // Nothing is over any more, so nothing expires before now.
            self.min_expiry_ms = if self.timed == 0 { u64::MAX } else { self.min_expiry_ms.max(now_ms) };
        }
        taken
    }
}

fn field_at(pack: &Listpack, stride: usize, at: usize) -> Field<'_> {
    let value_at = pack.next(at);
    let expiry_ms = if stride == 3 { expiry_in(pack.get(pack.next(value_at))) } else { None };
    Field { name: pack.get(at), value: pack.get(value_at), expiry_ms }
}

fn after_tuple(pack: &Listpack, stride: usize, at: usize) -> usize {
    (0..stride).fold(at, |at, _| pack.next(at))
}

fn remove_tuple(pack: &mut Listpack, stride: usize, name: &[u8]) -> bool {
    match pack.find(&Needle::new(name), pack.start(), stride) {
        Some(at) => pack.remove_run(at, stride) == stride,
        None => false,
    }
}

/// Gives the field at `at` an expiry or none, and moves it to its place in the order.
fn move_timed(pack: &mut Listpack, at: usize, expiry_ms: Option<u64>) {
    let field = field_at(pack, 3, at);
    if field.expiry_ms == expiry_ms {
        return;
    }
    let (name, value) = (field.name.to_vec(), field.value.to_vec());
    pack.remove_run(at, 3);
    let mut place = pack.start();
    if let Some(ms) = expiry_ms {
        while place < pack.end() && field_at(pack, 3, place).expiry_ms.is_some_and(|other| other <= ms) {
            place = after_tuple(pack, 3, place);
        }
    } else {
        place = pack.end();
    }
    pack.insert_int(place, stored_expiry(expiry_ms));
    pack.insert(place, &value);
    pack.insert(place, &name);
}

/// Fields in the order of their encoding.
pub enum Iter<'a> {
    Packed { elements: listpack::Iter<'a>, timed: bool },
    Table(table::Iter<'a, Never>),
}

impl<'a> Iterator for Iter<'a> {
    type Item = Field<'a>;

    fn next(&mut self) -> Option<Field<'a>> {
        match self {
            Iter::Packed { elements, timed } => Some(Field {
                name: elements.next()?,
                value: elements.next()?,
                expiry_ms: if *timed { expiry_in(elements.next()?) } else { None },
            }),
            Iter::Table(entries) => entries.next().map(field_of),
        }
    }
}

#[cfg(test)]
mod tests;
