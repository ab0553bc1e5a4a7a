//! Reading values: all layouts of strings, lists, hashes, sets and sorted sets that Redis 5 to 8 and Valkey 7 to 9
//! write, and those of older files.
//!
//! What comes in is not trusted: listpacks, intsets and ziplists are checked byte by byte, duplicates and scores that are
//! no numbers are refused, and no count is believed before its elements have come.

use super::codes::{FIRST_VALKEY_VERSION, kind};
use super::cursor::{Cursor, FaultKind, Stop};
use super::value::{NODE_PACKED, NODE_PLAIN, VALKEY_NO_EXPIRY_MS};
use super::ziplist::{ziplist_to_listpack, zipmap_to_listpack};
use crate::table::{MAX_LEN_BYTES, OwnedValue};
use crate::types::num::parse_f64;
use crate::types::{
    Element, Hash, IntSet, Limits, List, Listpack, Misfit, Object, Quicklist, Set, ZSet, hash, intset,
};
use std::borrow::Cow;

/// A string's buffer has room for all of it from the start, unless more than this was announced.
const BUFFER_MAX_BYTES: usize = 512 << 20;

const NOT_AN_EXPIRY: FaultKind = FaultKind::Value("Hash field expiry is out of range");
const DUPLICATE: FaultKind = FaultKind::Value("Collection has a duplicate element");
const NOT_A_SCORE: FaultKind = FaultKind::Value("Sorted set score is not a number");
const BAD_ZIPLIST: FaultKind = FaultKind::Value("Ziplist is malformed");

/// Reads a value that is at hand completely; see [`ValueLoader::read`].
///
/// # Errors
/// As [`ValueLoader::new`] and [`ValueLoader::read`].
pub fn load_value(
    kind: u8,
    version: u32,
    cursor: &mut Cursor<'_>,
    limits: &Limits,
) -> Result<OwnedValue<Object>, Stop> {
    let mut loader = ValueLoader::new(kind, version).map_err(|fault| cursor.fault(fault))?;
    loader.read(cursor, limits)
}

/// Reads one value, as far as it has arrived: large collections need not be held as bytes and as a value at once.
pub struct ValueLoader {
    kind: u8,
    /// Elements to come; `None` before their number was read.
    left: Option<u64>,
    growing: Growing,
}

/// A value that is read element by element.
enum Growing {
    /// One string, possibly a whole collection in its compact encoding.
    Nothing,
    /// A string whose bytes come as they are: a buffer that they go into, and no other, how ever many pieces they come in.
    Text(Vec<u8>),
    Items(List),
    Nodes(Quicklist),
    /// With the time that expiries are relative to, ms since the Unix epoch.
    Fields(Hash, Option<u64>),
    Members(Set),
    Scores(ZSet),
}

impl ValueLoader {
    /// For a value of that type, from a file or a `DUMP` payload of that version.
    ///
    /// # Errors
    /// A type that is not supported, named, or one that does not exist.
    pub fn new(kind: u8, version: u32) -> Result<Self, FaultKind> {
        let is_valkey = version >= FIRST_VALKEY_VERSION;
        let growing = match kind {
            kind::STRING
            | kind::LIST_ZIPLIST
            | kind::HASH_ZIPMAP
            | kind::HASH_ZIPLIST
            | kind::HASH_LISTPACK
            | kind::SET_INTSET
            | kind::SET_LISTPACK
            | kind::ZSET_ZIPLIST
            | kind::ZSET_LISTPACK => Growing::Nothing,
            kind::HASH_LISTPACK_EX if !is_valkey => Growing::Nothing,
            kind::LIST => Growing::Items(List::new()),
            kind::LIST_QUICKLIST | kind::LIST_QUICKLIST_2 => Growing::Nodes(Quicklist::new()),
            kind::HASH => Growing::Fields(Hash::new(), None),
            kind::HASH_METADATA if !is_valkey => Growing::Fields(Hash::new(), None),
            kind::VALKEY_HASH_2 if is_valkey => Growing::Fields(Hash::new(), None),
            kind::SET => Growing::Members(Set::new()),
            kind::ZSET | kind::ZSET_2 => Growing::Scores(ZSet::new()),
            kind::STREAM_LISTPACKS | kind::STREAM_LISTPACKS_2 | kind::STREAM_LISTPACKS_3 => {
                return Err(FaultKind::Value("Values of type stream are not supported"));
            }
            kind::MODULE_PRE_GA | kind::MODULE_2 => {
                return Err(FaultKind::Value("Values of modules are not supported"));
            }
            _ => return Err(FaultKind::Opcode(kind)),
        };
        Ok(ValueLoader { kind, left: None, growing })
    }

    /// Reads on. [`OwnedValue::None`] is an empty collection, for which no key may be made: old servers wrote some by
    /// mistake. A string is returned as it came, to be stored as the keyspace stores strings.
    ///
    /// # Errors
    /// [`Stop::NeedMore`]: what the cursor has passed is read for good; call again with a cursor behind it when more has
    /// arrived. [`Stop::Fault`]: the value is malformed.
    pub fn read(&mut self, cursor: &mut Cursor<'_>, limits: &Limits) -> Result<OwnedValue<Object>, Stop> {
        if self.kind == kind::STRING {
            return self.string(cursor);
        }
        if matches!(self.growing, Growing::Nothing) {
            return cursor.atomically(|cursor| compact(self.kind, cursor, limits));
        }
        let mut left = match self.left {
            Some(left) => left,
            None => cursor.atomically(|cursor| self.begin(cursor, limits))?,
        };
        while left > 0 {
            self.left = Some(left);
            cursor.atomically(|cursor| self.element(cursor, limits))?;
            left -= 1;
        }
        self.left = Some(0);
        Ok(match std::mem::replace(&mut self.growing, Growing::Nothing) {
            Growing::Nothing | Growing::Text(_) => unreachable!("handled above"),
            Growing::Items(list) => boxed(list.is_empty(), Object::List(list)),
            Growing::Nodes(quick) => {
                boxed(quick.is_empty(), Object::List(List::from_quicklist(quick, limits)))
            }
            Growing::Fields(hash, _) => boxed(hash.is_empty(), Object::Hash(hash)),
            Growing::Members(set) => boxed(set.is_empty(), Object::Set(set)),
            Growing::Scores(zset) => boxed(zset.is_empty(), Object::ZSet(zset)),
        })
    }

    /// What was read of a value whose rest will not come, to be freed.
    pub fn into_unfinished(self) -> Option<Box<Object>> {
        let object = match self.growing {
            Growing::Nothing => return None,
            Growing::Items(list) => Object::List(list),
            Growing::Nodes(quick) => Object::List(List::from_quicklist(quick, &Limits::default())),
            Growing::Fields(hash, _) => Object::Hash(hash),
            Growing::Members(set) => Object::Set(set),
            Growing::Scores(zset) => Object::ZSet(zset),
            Growing::Text(buffer) => Object::Str(buffer.into()),
        };
        Some(Box::new(object))
    }

    /// A value that is a string: what has come of it is in its place.
    fn string(&mut self, cursor: &mut Cursor<'_>) -> Result<OwnedValue<Object>, Stop> {
        let left = match self.left {
            Some(left) => left,
            None => {
                if let Some(number) = cursor.integer()? {
                    return Ok(OwnedValue::Int(number));
                }
                let start = cursor.clone();
                let Some(len) = cursor.plain_len()? else {
                    return Ok(OwnedValue::Str(text(cursor)?.into_owned()));
                };
                bounded(len).map_err(|fault| start.fault(fault))?;
                self.growing = Growing::Text(Vec::with_capacity(len.min(BUFFER_MAX_BYTES)));
                len as u64
            }
        };
        let Growing::Text(buffer) = &mut self.growing else { unreachable!("made with the length") };
        let bytes = cursor.some_bytes(left as usize);
        buffer.extend_from_slice(bytes);
        let left = left - bytes.len() as u64;
        self.left = Some(left);
        // Nothing is at hand any more: either more comes, or the end was early.
        cursor.bytes(left as usize)?;
        Ok(OwnedValue::Str(std::mem::take(buffer)))
    }

    /// Reads what stands before the elements, and makes ready for them. A collection said to be large becomes a table at
    /// once; that costs nothing if it was a lie.
    fn begin(&mut self, cursor: &mut Cursor<'_>, limits: &Limits) -> Result<u64, Stop> {
        let base_ms = match self.kind {
            kind::HASH_METADATA => {
                let at_ms = cursor.millis()?;
                Some(u64::try_from(at_ms).map_err(|_| cursor.fault(NOT_AN_EXPIRY))?)
            }
            _ => None,
        };
        let count = cursor.length()?;
        let len = usize::try_from(count).unwrap_or(usize::MAX);
        match &mut self.growing {
            Growing::Fields(hash, base) => {
                *base = base_ms;
                hash.prepare(len, 0, limits);
            }
            Growing::Members(set) => set.prepare(len, limits),
            Growing::Scores(zset) => *zset = ZSet::with_hint(len, 0, limits),
            Growing::Items(_) | Growing::Nodes(_) | Growing::Nothing | Growing::Text(_) => {}
        }
        Ok(count)
    }

    fn element(&mut self, cursor: &mut Cursor<'_>, limits: &Limits) -> Result<(), Stop> {
        let kind = self.kind;
        match &mut self.growing {
            Growing::Nothing | Growing::Text(_) => unreachable!("strings have no elements"),
            Growing::Items(list) => list.push_back(&text(cursor)?, limits),
            Growing::Nodes(quick) => match kind {
                kind::LIST_QUICKLIST => quick.push_back_pack(ziplist(cursor)?),
                _ => match cursor.length()? {
                    NODE_PLAIN => quick.push_back_plain(&text(cursor)?),
                    NODE_PACKED => quick.push_back_pack(listpack(cursor)?),
                    _ => return Err(cursor.fault(FaultKind::Value("Unknown container of a list node"))),
                },
            },
            Growing::Fields(hash, base_ms) => {
                // All is read before anything changes: a stop in between must leave no half field.
                let distance_ms = if kind == kind::HASH_METADATA { cursor.length()? } else { 0 };
                let (name, value) = (text(cursor)?, text(cursor)?);
                let expiry_ms = match (kind, distance_ms) {
                    (kind::VALKEY_HASH_2, _) => match cursor.millis()? {
                        VALKEY_NO_EXPIRY_MS => None,
                        at_ms => Some(u64::try_from(at_ms).unwrap_or(u64::MAX)),
                    },
                    (_, 0) => None,
                    (_, distance) => Some(base_ms.unwrap_or(0).saturating_add(distance - 1)),
                };
                if expiry_ms.is_some_and(|at_ms| !(1..hash::EXPIRY_END_MS).contains(&at_ms)) {
                    return Err(cursor.fault(NOT_AN_EXPIRY));
                }
                if !hash.set(&name, &value, limits) {
                    return Err(cursor.fault(DUPLICATE));
                }
                if expiry_ms.is_some() {
                    hash.set_expiry(&name, expiry_ms);
                }
            }
            Growing::Members(set) => {
                if !set.insert(&text(cursor)?, limits) {
                    return Err(cursor.fault(DUPLICATE));
                }
            }
            Growing::Scores(zset) => {
                let member = text(cursor)?;
                let score = if kind == kind::ZSET { cursor.text_double()? } else { cursor.double()? };
                if score.is_nan() {
                    return Err(cursor.fault(NOT_A_SCORE));
                }
                if zset.score(&member).is_some() {
                    return Err(cursor.fault(DUPLICATE));
                }
                zset.insert(&member, score, limits);
            }
        }
        Ok(())
    }
}

fn boxed(is_empty: bool, object: Object) -> OwnedValue<Object> {
    if is_empty { OwnedValue::None } else { OwnedValue::Boxed(Box::new(object)) }
}

/// A string that the tables can hold.
fn text<'a>(cursor: &mut Cursor<'a>) -> Result<Cow<'a, [u8]>, Stop> {
    let text = cursor.string()?;
    bounded(text.len()).map_err(|fault| cursor.fault(fault))?;
    Ok(text)
}

fn bounded(len: usize) -> Result<(), FaultKind> {
    if len > MAX_LEN_BYTES { Err(FaultKind::StringTooLong(len as u64)) } else { Ok(()) }
}

fn listpack(cursor: &mut Cursor<'_>) -> Result<Listpack, Stop> {
    let bytes = cursor.string()?.into_owned();
    Listpack::from_bytes(bytes).map_err(|_| cursor.fault(FaultKind::Value("Listpack is malformed")))
}

fn ziplist(cursor: &mut Cursor<'_>) -> Result<Listpack, Stop> {
    let bytes = cursor.string()?;
    ziplist_to_listpack(&bytes).ok_or_else(|| cursor.fault(BAD_ZIPLIST))
}

/// What a listpack made, or why it is none of its kind.
fn checked(cursor: &Cursor<'_>, result: Result<Object, Misfit>) -> Result<OwnedValue<Object>, Stop> {
    let what = match result {
        Ok(object) => return Ok(OwnedValue::Boxed(Box::new(object))),
        Err(Misfit::Empty) => return Ok(OwnedValue::None),
        Err(Misfit::Odd) => "Collection has an incomplete element",
        Err(Misfit::Duplicate) => return Err(cursor.fault(DUPLICATE)),
        Err(Misfit::Number) => "Collection has a malformed number",
        Err(Misfit::Order) => "Collection is out of order",
    };
    Err(cursor.fault(FaultKind::Value(what)))
}

/// A sorted set of members and scores that need not be in order: old servers sorted equal scores otherwise.
fn zset_of(cursor: &Cursor<'_>, pack: &Listpack, limits: &Limits) -> Result<OwnedValue<Object>, Stop> {
    if !pack.len().is_multiple_of(2) {
        return checked(cursor, Err(Misfit::Odd));
    }
    let mut zset = ZSet::with_hint(pack.len() / 2, 0, limits);
    let mut elements = pack.iter();
    while let (Some(member), Some(score)) = (elements.next(), elements.next()) {
        let score = match score {
            Element::Int(score) => score as f64,
            Element::Str(text) => parse_f64(text).ok_or_else(|| cursor.fault(NOT_A_SCORE))?,
        };
        let member = member.to_vec();
        if zset.score(&member).is_some() {
            return Err(cursor.fault(DUPLICATE));
        }
        zset.insert(&member, score, limits);
    }
    Ok(boxed(zset.is_empty(), Object::ZSet(zset)))
}

/// Reads a value that is one string.
fn compact(kind: u8, cursor: &mut Cursor<'_>, limits: &Limits) -> Result<OwnedValue<Object>, Stop> {
    match kind {
        kind::LIST_ZIPLIST => {
            let mut quick = Quicklist::new();
            quick.push_back_pack(ziplist(cursor)?);
            Ok(boxed(quick.is_empty(), Object::List(List::from_quicklist(quick, limits))))
        }
        kind::HASH_ZIPMAP => {
            let bytes = cursor.string()?;
            let malformed = FaultKind::Value("Zipmap is malformed");
            let pack = zipmap_to_listpack(&bytes).ok_or_else(|| cursor.fault(malformed))?;
            checked(cursor, Hash::from_listpack(pack, limits).map(Object::Hash))
        }
        kind::HASH_ZIPLIST => {
            let pack = ziplist(cursor)?;
            checked(cursor, Hash::from_listpack(pack, limits).map(Object::Hash))
        }
        kind::HASH_LISTPACK => {
            let pack = listpack(cursor)?;
            checked(cursor, Hash::from_listpack(pack, limits).map(Object::Hash))
        }
        kind::HASH_LISTPACK_EX => {
            // The earliest expiry stands first in the listpack, too.
            cursor.millis()?;
            let pack = listpack(cursor)?;
            checked(cursor, Hash::from_timed_listpack(pack, limits).map(Object::Hash))
        }
        kind::SET_INTSET => match IntSet::from_bytes(cursor.string()?.into_owned()) {
            Ok(ints) => Ok(OwnedValue::Boxed(Box::new(Object::Set(Set::from_intset(ints, limits))))),
            Err(intset::Malformed::Empty) => Ok(OwnedValue::None),
            Err(_) => Err(cursor.fault(FaultKind::Value("Intset is malformed"))),
        },
        kind::SET_LISTPACK => {
            let pack = listpack(cursor)?;
            checked(cursor, Set::from_listpack(pack, limits).map(Object::Set))
        }
        kind::ZSET_ZIPLIST => {
            let pack = ziplist(cursor)?;
            zset_of(cursor, &pack, limits)
        }
        kind::ZSET_LISTPACK => {
            let pack = listpack(cursor)?;
            checked(cursor, ZSet::from_listpack(pack, limits).map(Object::ZSet))
        }
        _ => unreachable!("refused when the loader was made"),
    }
}
