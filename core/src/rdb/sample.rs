//! For tests: values drawn at random in all encodings, and a plain form to compare them by.

use crate::table::{NewValue, ValueRef};
use crate::types::{Hash, Limits, List, Object, Set, ZSet};
use std::collections::{BTreeMap, BTreeSet};

/// What a value is, whatever its encoding. Scores by their bits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Plain {
    Text(Vec<u8>),
    List(Vec<Vec<u8>>),
    Hash(BTreeMap<Vec<u8>, (Vec<u8>, Option<u64>)>),
    Set(BTreeSet<Vec<u8>>),
    ZSet(Vec<(Vec<u8>, u64)>),
}

/// The plain form of a value.
pub(crate) fn plain(value: ValueRef<'_, Object>) -> Plain {
    match value {
        ValueRef::Int(number) => Plain::Text(number.to_string().into_bytes()),
        ValueRef::Str(text) => Plain::Text(text.to_vec()),
        ValueRef::Boxed(Object::Str(text)) => Plain::Text(text.to_vec()),
        ValueRef::Boxed(Object::List(list)) => Plain::List(list.iter().map(|item| item.to_vec()).collect()),
        ValueRef::Boxed(Object::Hash(hash)) => Plain::Hash(
            hash.iter().map(|field| (field.name.to_vec(), (field.value.to_vec(), field.expiry_ms))).collect(),
        ),
        ValueRef::Boxed(Object::Set(set)) => Plain::Set(set.iter().map(|member| member.to_vec()).collect()),
        ValueRef::Boxed(Object::ZSet(zset)) => {
            Plain::ZSet(zset.iter().map(|(member, score)| (member.to_vec(), score.to_bits())).collect())
        }
        ValueRef::None | ValueRef::Score(_) => panic!("no value of a key"),
    }
}

/// Some bytes: numbers, words, and now and then a long text that compresses, or does not.
pub(crate) fn text(rng: &mut fastrand::Rng) -> Vec<u8> {
    match rng.u8(..20) {
        0..8 => (rng.i64(..) >> rng.u8(..64)).to_string().into_bytes(),
        8..18 => (0..rng.usize(..30)).map(|_| rng.alphanumeric() as u8).collect(),
        18 => b"again and ".repeat(rng.usize(1..100)),
        _ => (0..rng.usize(..2000)).map(|_| rng.u8(..)).collect(),
    }
}

/// A value of any type; collections are not empty, and of any encoding that Redis's default limits lead to. `timed`:
/// fields of hashes may expire.
pub(crate) fn value(rng: &mut fastrand::Rng, timed: bool) -> NewValue<'static, Object> {
    let limits = Limits::default();
    let len = match rng.u8(..10) {
        0..7 => rng.usize(1..8),
        7..9 => rng.usize(1..150),
        _ => rng.usize(1..800),
    };
    NewValue::Boxed(Box::new(match rng.u8(..7) {
        0 => return NewValue::Int(rng.i64(..) >> rng.u8(..64)),
        1 if rng.u8(..20) > 0 => Object::Str(text(rng).into()),
        1 => Object::Str(vec![rng.u8(..); rng.usize(8000..40_000)].into()),
        2 => {
            let mut list = List::new();
            (0..len).for_each(|_| list.push_back(&text(rng), &limits));
            if rng.u8(..10) == 0 {
                list.push_front(&vec![rng.u8(..); 10_000], &limits);
            }
            Object::List(list)
        }
        3 => {
            let mut hash = Hash::new();
            let timed = timed && rng.bool();
            for _ in 0..len {
                let name = text(rng);
                hash.set(&name, &text(rng), &limits);
                if timed && rng.u8(..3) == 0 {
                    hash.set_expiry(&name, Some(rng.u64(1..1 << 47)));
                }
            }
            Object::Hash(hash)
        }
        4 => {
            let mut set = Set::new();
            let bits = rng.u8(..63);
            (0..len).for_each(|_| {
                set.insert((rng.i64(..) >> bits).to_string().as_bytes(), &limits);
            });
            Object::Set(set)
        }
        5 => {
            let mut set = Set::new();
            (0..len).for_each(|_| {
                set.insert(&text(rng), &limits);
            });
            Object::Set(set)
        }
        _ => {
            let mut zset = ZSet::new();
            for _ in 0..len {
                let score = match rng.u8(..6) {
                    0 => f64::INFINITY,
                    1 => f64::NEG_INFINITY,
                    2 => rng.f64() * 1e300,
                    3 => f64::from(rng.i32(..)) / 64.0,
                    _ => f64::from(rng.i8(..)),
                };
                zset.insert(&text(rng), score, &limits);
            }
            Object::ZSet(zset)
        }
    }))
}
