use super::*;
use std::collections::BTreeMap;

type Model = BTreeMap<Vec<u8>, f64>;

fn sorted(model: &Model) -> Vec<(Vec<u8>, f64)> {
    let mut order: Vec<_> = model.iter().map(|(member, &score)| (member.clone(), score)).collect();
    order.sort_by(|a, b| scored::compare(a.1, b.1).then_with(|| a.0.cmp(&b.0)));
    order
}

fn owned((member, score): (Element, f64)) -> (Vec<u8>, f64) {
    (member.to_vec(), score)
}

/// `ZADD` in a few lines.
fn model_add(model: &mut Model, member: &[u8], score: f64, flags: AddFlags) -> Result<Added, NotANumber> {
    let old = model.get(member).copied();
    let new = if flags.increment { old.unwrap_or(0.0) + score } else { score };
    let allowed = match old {
        None => !flags.only_existing,
        Some(old) => !(flags.only_new || flags.only_greater && new <= old || flags.only_less && new >= old),
    };
    if old.is_some() && !flags.only_new && new.is_nan() {
        return Err(NotANumber);
    }
    if !allowed {
        return Ok(Added::Refused);
    }
    model.insert(member.to_vec(), new);
    Ok(match old {
        None => Added::New(new),
        Some(old) if old == new => Added::Same(new),
        Some(_) => Added::Changed(new),
    })
}

#[test]
fn random_edits_match_a_sorted_map_in_both_encodings() {
    let mut rng = fastrand::Rng::with_seed(41);
    let mut seen = std::collections::HashSet::new();
    for round in 0..40 {
        let limits = Limits { zset_max_listpack_entries: [4, 25, 128][round % 3], ..Limits::default() };
        let (mut zset, mut model) = (ZSet::new(), Model::new());
        for _ in 0..300 {
            let member = match rng.u8(..40) {
                0 => vec![b'm'; rng.usize(60..70)],
                1..15 => rng.u8(..60).to_string().into_bytes(),
                _ => format!("m{}", rng.u8(..60)).into_bytes(),
            };
            let score =
                [rng.i32(-9..9) as f64, rng.f64(), 1e300, f64::INFINITY, f64::NEG_INFINITY][rng.usize(..5)];
            match rng.u8(..12) {
                0..8 => {
                    let flags = AddFlags {
                        only_new: rng.u8(..6) == 0,
                        only_existing: rng.u8(..6) == 0,
                        only_greater: rng.u8(..6) == 0,
                        only_less: rng.u8(..6) == 0,
                        increment: rng.u8(..3) == 0,
                    };
                    let expected = model_add(&mut model, &member, score, flags);
                    assert_eq!(zset.add(&member, score, flags, &limits), expected);
                }
                8 | 9 => assert_eq!(zset.remove(&member), model.remove(&member)),
                10 => {
                    let order = sorted(&model);
                    let rank = if rng.bool() { 0 } else { order.len().saturating_sub(1) };
                    let (popped, expected) = (zset.remove_at(rank), order.get(rank));
                    assert_eq!(popped.as_ref(), expected);
                    expected.map(|(member, _)| model.remove(member));
                }
                _ if rng.u8(..6) == 0 => {
                    let start = rng.usize(..=model.len());
                    let ranks = start..start + rng.usize(..5);
                    let order = sorted(&model);
                    let doomed = &order[start..ranks.end.min(order.len())];
                    model.retain(|member, _| !doomed.iter().any(|(other, _)| other == member));
                    assert_eq!(zset.remove_range(ranks), doomed.len());
                }
                _ => {}
            }
            assert_eq!((zset.len(), zset.score(&member)), (model.len(), model.get(&member).copied()));
            seen.insert(zset.encoding());
        }
        check(&zset, &model, &mut rng);
        check(&zset.clone(), &model, &mut rng);
        if let ZSetRef::Packed(pack) = zset.stored() {
            let copy = ZSet::from_listpack(pack.clone(), &limits);
            assert!(model.is_empty() || copy.is_ok_and(|copy| copy.iter().eq(zset.iter())));
        }
    }
    assert_eq!(seen.len(), 2);
}

fn check(zset: &ZSet, model: &Model, rng: &mut fastrand::Rng) {
    let order = sorted(model);
    assert!(zset.iter().map(owned).eq(order.iter().cloned()));
    assert!(zset.iter().rev().map(owned).eq(order.iter().rev().cloned()));
    let start = rng.usize(..=order.len());
    let end = rng.usize(start..=order.len());
    assert!(
        zset.range(start..end + 9).map(owned).eq(order.iter().skip(start).take(end + 9 - start).cloned())
    );
    for (rank, (member, score)) in order.iter().enumerate() {
        assert_eq!(zset.rank(member), Some((rank, *score)));
        assert_eq!(zset.get(rank).map(owned).as_ref(), Some(&(member.clone(), *score)));
    }
    for _ in 0..20 {
        let [a, b] = [0; 2].map(|_| [rng.i32(-10..10) as f64, rng.f64(), f64::INFINITY][rng.usize(..3)]);
        let range = ScoreRange { min: a, max: b, min_open: rng.bool(), max_open: rng.bool() };
        let inside: Vec<_> = order
            .iter()
            .filter(|(_, s)| if range.min_open { *s > a } else { *s >= a })
            .filter(|(_, s)| if range.max_open { *s < b } else { *s <= b })
            .cloned()
            .collect();
        let ranks = zset.ranks_by_score(&range);
        assert_eq!(ranks.len(), inside.len());
        assert!(zset.range(ranks).map(owned).eq(inside));
    }
    let drawn = zset.sample(rng, 5);
    assert_eq!(drawn.len(), order.len().min(5));
    assert!(drawn.into_iter().map(owned).all(|(member, score)| model.get(&member) == Some(&score)));
    let mut scanned = Model::new();
    let mut cursor = 0;
    loop {
        cursor = zset.scan(cursor, 7, |member, score| scanned.extend([(member.to_vec(), score)]));
        if cursor == 0 {
            break;
        }
    }
    assert_eq!(&scanned, model);
}

#[test]
fn ranges_of_texts_match_a_filter() {
    let mut rng = fastrand::Rng::with_seed(43);
    for count in [0, 10, 300] {
        let members: std::collections::BTreeSet<Vec<u8>> =
            (0..count).map(|_| rng.u16(..2_000).to_string().into_bytes()).collect();
        let limits = Limits::default();
        let mut zset = ZSet::with_hint(count, 0, &limits);
        for member in &members {
            zset.insert(member, 0.0, &limits);
        }
        assert_eq!(zset.encoding(), if count > 128 { "skiplist" } else { "listpack" });
        for _ in 0..200 {
            let mut bound = |open_ended: &str| match rng.u8(..4) {
                0 => open_ended.to_string(),
                1 => format!("({}", rng.u16(..2_000)),
                _ => format!("[{}", rng.u16(..2_000)),
            };
            let (min, max) = (bound("-"), bound("+"));
            let range = LexRange::parse(min.as_bytes(), max.as_bytes()).unwrap();
            let inside = members.iter().filter(|member| {
                let (low, high) = (&min.as_bytes()[1..], &max.as_bytes()[1..]);
                (match min.as_bytes()[0] {
                    b'-' => true,
                    b'(' => member[..] > *low,
                    _ => member[..] >= *low,
                }) && match max.as_bytes()[0] {
                    b'+' => true,
                    b'(' => member[..] < *high,
                    _ => member[..] <= *high,
                }
            });
            let found = zset.range(zset.ranks_by_lex(&range)).map(|(member, _)| member.to_vec());
            assert!(found.eq(inside.cloned()), "{min} {max}");
        }
    }
}

#[test]
fn conversion_happens_where_redis_does_it() {
    let limits = Limits::default();
    let mut zset = ZSet::new();
    for i in 0..128 {
        zset.insert(format!("m{i}").as_bytes(), i as f64, &limits);
    }
    assert_eq!(zset.encoding(), "listpack");
    zset.insert(b"m5", 7.5, &limits);
    assert_eq!(zset.encoding(), "listpack");
    zset.insert(b"one more", 7.5, &limits);
    assert_eq!(zset.encoding(), "skiplist");
    for length in [64, 65] {
        let mut zset = ZSet::new();
        zset.insert(&vec![b'x'; length], 1.0, &limits);
        assert_eq!(zset.encoding(), if length == 64 { "listpack" } else { "skiplist" });
    }
}

/// The bytes that Redis 8.2 dumped for these members.
#[test]
fn the_bytes_are_those_of_redis() {
    let mut zset = ZSet::new();
    for (member, score) in [("a", 1.5), ("b", 2.0), ("c", 0.1), ("d", -0.0), ("e", 1e300)] {
        zset.insert(member.as_bytes(), score, &Limits::default());
    }
    let ZSetRef::Packed(pack) = zset.stored() else { panic!("five members are few") };
    let expected =
        b"\x2C\0\0\0\x0A\0\x81d\x02\0\x01\x81c\x02\x830.1\x04\x81a\x02\x831.5\x04\x81b\x02\x02\x01\
        \x81e\x02\x861e+300\x07\xff";
    assert_eq!(pack.as_bytes(), expected);
}

#[test]
fn foreign_listpacks_are_checked() {
    let of = |texts: &[&str]| {
        let mut pack = Listpack::new();
        texts.iter().for_each(|text| pack.push_back(text.as_bytes()));
        ZSet::from_listpack(pack, &Limits::default()).map(|zset| zset.len())
    };
    assert_eq!(of(&["a", "1", "b", "1.5"]), Ok(2));
    assert_eq!(of(&["a", "1", "b"]), Err(Misfit::Odd));
    assert_eq!(of(&["a", "1", "a", "2"]), Err(Misfit::Duplicate));
    assert_eq!(of(&["a", "nan"]), Err(Misfit::Number));
    assert_eq!(of(&["a", "2", "b", "1"]), Err(Misfit::Order));
    assert_eq!(of(&["b", "1", "a", "1"]), Err(Misfit::Order));
}
