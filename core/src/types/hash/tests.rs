use super::*;
use std::collections::{BTreeMap, BTreeSet};

type Model = BTreeMap<Vec<u8>, (Vec<u8>, Option<u64>)>;

fn owned(field: Field) -> (Vec<u8>, (Vec<u8>, Option<u64>)) {
    (field.name.to_vec(), (field.value.to_vec(), field.expiry_ms))
}

fn check(hash: &Hash, model: &Model) {
    let fields: Vec<_> = hash.iter().map(owned).collect();
    assert_eq!((fields.len(), hash.len()), (model.len(), model.len()));
    assert_eq!(&fields.into_iter().collect::<Model>(), model);
    let first = model.values().filter_map(|(_, expiry)| *expiry).min();
    assert_eq!(hash.next_expiry_ms().is_some(), first.is_some());
    assert!(hash.next_expiry_ms() <= first);
}

#[test]
fn random_edits_match_a_map_in_every_encoding() {
    let mut rng = fastrand::Rng::with_seed(51);
    let mut seen = BTreeSet::new();
    for round in 0..40 {
        let limits = Limits { hash_max_listpack_entries: [5, 40][round % 2], ..Limits::default() };
        let (mut hash, mut model) = (Hash::new(), Model::new());
        let mut now_ms = 1_000;
        for _ in 0..400 {
            let name = format!("{}{}", ["", "f"][rng.usize(..2)], rng.u8(..50)).into_bytes();
            let value = match rng.u8(..60) {
                0 => vec![b'v'; rng.usize(60..70)],
                1..30 => rng.i16(..).to_string().into_bytes(),
                _ => (0..rng.usize(..20)).map(|_| rng.u8(..)).collect(),
            };
            let old = model.get(&name).cloned();
            match rng.u8(..16) {
                0..7 => {
                    assert_eq!(hash.set(&name, &value, &limits), old.is_none());
                    model.insert(name, (value, None));
                }
                7 => {
                    assert_eq!(hash.set_keeping_expiry(&name, &value, &limits), old.is_none());
                    model.insert(name, (value, old.and_then(|(_, expiry)| expiry)));
                }
                8..11 => assert_eq!(hash.remove(&name), model.remove(&name).is_some()),
                11 | 12 if round % 4 > 1 => {
                    let expiry = rng.bool().then(|| now_ms + rng.u64(..50));
                    assert_eq!(hash.set_expiry(&name, expiry), old.is_some());
                    model.entry(name).and_modify(|field| field.1 = expiry);
                }
                13 => {
                    let delta = rng.i64(-9..9);
                    let number = match &old {
                        Some((text, _)) => crate::types::num::parse_i64(text),
                        None => Some(0),
                    };
                    let expected = number.map(|n| n + delta).ok_or(IncrementError::NotAnInteger);
                    assert_eq!(hash.increment(&name, delta, &limits), expected);
                    if let Ok(sum) = expected {
                        model.insert(name, (sum.to_string().into_bytes(), old.and_then(|(_, at)| at)));
                    }
                }
                14 => {
                    now_ms += rng.u64(..20);
                    let max = rng.usize(1..9);
                    let mut taken = Vec::new();
                    let count = hash.take_expired(now_ms, max, |name| taken.push(name.to_vec()));
                    assert_eq!(count, taken.len());
                    for name in taken {
                        assert!(model.remove(&name).is_some_and(|(_, at)| at.unwrap() < now_ms));
                    }
                    let over = model.values().filter(|(_, at)| at.is_some_and(|at| at < now_ms)).count();
                    assert!(over == 0 || count == max);
                }
                _ => {
                    let count = rng.usize(..model.len() + 2);
                    let drawn: Model = hash.sample(&mut rng, count).into_iter().map(owned).collect();
                    assert_eq!(drawn.len(), count.min(model.len()));
                    assert!(drawn.iter().all(|(name, field)| model.get(name) == Some(field)));
                    let one = hash.random(&mut rng).map(owned);
                    assert_eq!(one.is_none(), model.is_empty());
                    assert!(one.is_none_or(|(name, field)| model.get(&name) == Some(&field)));
                }
            }
            check(&hash, &model);
            seen.insert(hash.encoding());
        }
        check(&hash.clone(), &model);
        let (mut scanned, mut cursor) = (Model::new(), 0);
        loop {
            cursor = hash.scan(cursor, 10, |field| scanned.extend([owned(field)]));
            if cursor == 0 {
                break;
            }
        }
        assert_eq!(scanned, model);
        match hash.stored() {
            HashRef::Packed(pack) if !model.is_empty() => {
                check(&Hash::from_listpack(pack.clone(), &limits).unwrap(), &model);
            }
            HashRef::Timed(pack) if !model.is_empty() => {
                check(&Hash::from_timed_listpack(pack.clone(), &limits).unwrap(), &model);
            }
            _ => {}
        }
    }
    assert_eq!(seen.len(), 3);
}

#[test]
fn conversion_happens_where_redis_does_it() {
    let limits = Limits::default();
    let mut hash = Hash::new();
    for i in 0..512 {
        assert!(hash.set(format!("f{i}").as_bytes(), b"1", &limits));
    }
    assert_eq!(hash.encoding(), "listpack");
    hash.set(b"one more", b"1", &limits);
    assert_eq!(hash.encoding(), "hashtable");
    for (name, value, encoding) in [(64, 64, "listpack"), (65, 1, "hashtable"), (1, 65, "hashtable")] {
        let mut hash = Hash::new();
        hash.set(&vec![b'n'; name], &vec![b'v'; value], &limits);
        assert_eq!(hash.encoding(), encoding);
    }
    let mut hash = Hash::new();
    hash.set(b"f", b"v", &limits);
    assert!(!hash.set_expiry(b"other", Some(5)) && hash.set_expiry(b"f", None));
    assert_eq!(hash.encoding(), "listpack");
    assert!(hash.set_expiry(b"f", Some(5)));
    assert_eq!(hash.encoding(), "listpackex");
    assert!(hash.find(b"f").unwrap().is_live(5) && !hash.find(b"f").unwrap().is_live(6));
}

#[test]
fn increments_report_what_is_wrong() {
    let limits = Limits::default();
    let mut hash = Hash::new();
    hash.set(b"text", b"x", &limits);
    hash.set(b"max", b"9223372036854775807", &limits);
    assert_eq!(hash.increment(b"text", 1, &limits), Err(IncrementError::NotAnInteger));
    assert_eq!(hash.increment(b"max", 1, &limits), Err(IncrementError::Overflow));
    assert_eq!(hash.increment_by_float(b"text", b"1", &limits), Err(SumError::Value));
    assert_eq!(hash.increment_by_float(b"new", b"0.1", &limits), Ok(b"0.1".to_vec()));
    assert_eq!(hash.increment_by_float(b"new", b"0.2", &limits), Ok(b"0.3".to_vec()));
    assert_eq!(hash.get(b"new").map(Element::to_vec), Some(b"0.3".to_vec()));
}

#[test]
fn foreign_listpacks_are_checked() {
    let of = |texts: &[&str], timed: bool| {
        let mut pack = Listpack::new();
        texts.iter().for_each(|text| pack.push_back(text.as_bytes()));
        let take = if timed { Hash::from_timed_listpack } else { Hash::from_listpack };
        take(pack, &Limits::default()).map(|hash| hash.len())
    };
    assert_eq!(of(&["a", "1", "b", "1"], false), Ok(2));
    assert_eq!(of(&["a", "1", "b"], false), Err(Misfit::Odd));
    assert_eq!(of(&["a", "1", "a", "1"], false), Err(Misfit::Duplicate));
    assert_eq!(of(&["a", "1", "5", "b", "1", "0"], true), Ok(2));
    assert_eq!(of(&["a", "1", "0", "b", "1", "5"], true), Err(Misfit::Order));
    assert_eq!(of(&["a", "1", "x"], true), Err(Misfit::Number));
    assert_eq!(of(&["a", "1", "-5"], true), Err(Misfit::Number));
}

#[test]
fn a_large_hash_expires_and_is_freed_in_slices() {
    let limits = Limits::default();
    let mut hash = Hash::new();
    for i in 0..20_000u64 {
        let name = format!("field {i}");
        hash.set(name.as_bytes(), b"some value", &limits);
        if i % 4 == 0 {
            assert!(hash.set_expiry(name.as_bytes(), Some(100 + i % 1_000)));
        }
    }
    assert_eq!(hash.next_expiry_ms(), Some(100));
    let slices = (1..).take_while(|_| hash.take_expired(5_000, 100, |_| ()) == 100).count();
    assert_eq!((slices, hash.len(), hash.next_expiry_ms()), (50, 15_000, None));
    while !hash.free_some(500) {}
    assert!(hash.is_empty());
}
