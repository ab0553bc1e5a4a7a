use super::*;
use proptest::prelude::*;

/// Texts around every boundary of the encodings, strings and integers alike.
fn sample(rng: &mut fastrand::Rng) -> Vec<u8> {
    let edges =
        [0i64, 127, 128, 4095, 4096, 32767, 32768, 8388607, 8388608, 2147483647, 2147483648, i64::MAX];
    match rng.u8(..10) {
        0..=2 => (edges[rng.usize(..edges.len())] as i128 * [1, -1][rng.usize(..2)] + rng.i128(-1..=1))
            .to_string()
            .into_bytes(),
        3..=5 => rng.i64(..).to_string().into_bytes(),
        6 => vec![b'x'; [0, 62, 63, 64, 125, 126, 127, 4094, 4095, 4096, 17000][rng.usize(..11)]],
        _ => (0..rng.usize(..20)).map(|_| rng.u8(..)).collect(),
    }
}

fn check(pack: &Listpack, model: &[Vec<u8>]) {
    assert_eq!(validate(pack.as_bytes()), Ok(model.len()));
    assert_eq!(pack.len(), model.len());
    assert!(pack.iter().map(Element::to_vec).eq(model.iter().cloned()));
    assert!(pack.iter().rev().map(Element::to_vec).eq(model.iter().rev().cloned()));
}

#[test]
fn random_edits_match_a_vector() {
    let mut rng = fastrand::Rng::with_seed(1);
    for _ in 0..40 {
        let (mut pack, mut model) = (Listpack::new(), Vec::<Vec<u8>>::new());
        for _ in 0..200 {
            let text = sample(&mut rng);
            let index = rng.usize(..=model.len());
            let at = pack.seek(index).unwrap_or(pack.end());
            assert_eq!(at == pack.end(), index == model.len());
            match rng.u8(..8) {
                0 => {
                    pack.push_front(&text);
                    model.insert(0, text);
                }
                1 => {
                    pack.push_back(&text);
                    model.push(text);
                }
                2 | 3 => {
                    pack.insert(at, &text);
                    model.insert(index, text);
                }
                4 if index < model.len() => {
                    pack.replace(at, &text);
                    model[index] = text;
                }
                5 if index < model.len() => {
                    pack.remove(at);
                    model.remove(index);
                }
                6 => {
                    let count = rng.usize(..4);
                    let removed = pack.remove_run(at, count);
                    assert_eq!(model.drain(index..(index + count).min(model.len())).count(), removed);
                }
                _ => {
                    let tail = pack.split_off(at);
                    check(&tail, &model[index..]);
                    check(&pack, &model[..index]);
                    pack.append(&tail);
                }
            }
            check(&pack, &model);
            if let Some(wanted) = model.get(index) {
                let found = pack.find(&Needle::new(wanted), pack.start(), 1).unwrap();
                assert_eq!(pack.get(found).to_vec(), *wanted);
                assert!(found <= pack.seek(index).unwrap());
            }
        }
    }
}

#[test]
fn a_text_is_kept_as_an_integer_exactly_if_it_prints_back() {
    let mut pack = Listpack::new();
    for text in ["7", "-7", "007", "+7", "9223372036854775807", "9223372036854775808", "-0", ""] {
        pack.push_back(text.as_bytes());
    }
    let ints = pack.iter().map(|e| matches!(e, Element::Int(_))).collect::<Vec<_>>();
    assert_eq!(ints, [true, true, false, false, true, false, false, false]);
}

/// The bytes that Redis 8.2 dumped for `RPUSH k a 1 -1 300 70000 <64 x 'b'>`'s node.
#[test]
fn the_bytes_are_those_of_redis() {
    let mut pack = Listpack::new();
    for text in ["a", "1", "-1", "300", "70000"] {
        pack.push_back(text.as_bytes());
    }
    pack.push_back(&[b'b'; 64]);
    let mut expected = vec![91, 0, 0, 0, 6, 0, 0x81, b'a', 2, 1, 1, 0xDF, 0xFF, 2, 0xC1, 0x2C, 2];
    expected.extend([0xF2, 0x70, 0x11, 0x01, 4, 0xE0, 64]);
    expected.extend([b'b'; 64]);
    expected.extend([66, 0xFF]);
    expected[0] = expected.len() as u8;
    assert_eq!(pack.as_bytes(), expected);
}

#[test]
fn counts_beyond_the_header_are_walked() {
    let mut pack = Listpack::new();
    for i in 0..70_000 {
        pack.push_back_int(i % 100);
    }
    assert_eq!(pack.as_bytes()[4..6], [0xFF, 0xFF]);
    assert_eq!(pack.len(), 70_000);
    assert_eq!(pack.nth(69_999), Some(Element::Int(99)));
    assert_eq!(pack.seek(70_000), None);
    assert_eq!(pack.remove_run(pack.start(), 10_000), 10_000);
    assert_eq!(validate(pack.as_bytes()), Ok(60_000));
    assert_eq!(u16::from_le_bytes([pack.as_bytes()[4], pack.as_bytes()[5]]), 60_000);
}

#[test]
fn growth_is_amortized_and_shrinking_gives_memory_back() {
    let mut pack = Listpack::new();
    let mut reallocations = 0;
    for _ in 0..100_000 {
        let before = pack.heap_bytes();
        pack.push_back(b"0123456789");
        reallocations += usize::from(pack.heap_bytes() != before);
    }
    assert!(reallocations < 80, "{reallocations}");
    let full = pack.heap_bytes();
    pack.remove_run(pack.start(), 99_000);
    assert!(pack.heap_bytes() < full / 10);
}

#[test]
fn damaged_bytes_are_refused() {
    let mut pack = Listpack::new();
    pack.push_back(b"hello");
    pack.push_back_int(5);
    let good = pack.as_bytes().to_vec();
    let refused = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        change(&mut bytes);
        validate(&bytes).unwrap_err()
    };
    assert_eq!(refused(&|b| b[0] += 1), Malformed::Frame);
    assert_eq!(refused(&|b| b.truncate(6)), Malformed::Frame);
    assert_eq!(refused(&|b| *b.last_mut().unwrap() = 0), Malformed::Frame);
    assert_eq!(refused(&|b| b[4] = 3), Malformed::Count);
    assert_eq!(refused(&|b| b[6] = 0x86), Malformed::Entry);
    assert_eq!(refused(&|b| b[6] = 0xF5), Malformed::Entry);
    assert_eq!(refused(&|b| b[12] = 7), Malformed::Entry);
}

proptest! {
    #[test]
    fn hostile_bytes_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..80), framed: bool) {
        if framed && bytes.len() > 7 {
            let total = bytes.len() as u32;
            bytes[..4].copy_from_slice(&total.to_le_bytes());
            *bytes.last_mut().unwrap() = 0xFF;
            bytes[4..6].copy_from_slice(&[0xFF, 0xFF]);
        }
        if let Ok(pack) = Listpack::from_bytes(bytes) {
            prop_assert_eq!(pack.iter().count(), pack.iter().rev().count());
        }
    }

    #[test]
    fn a_flipped_byte_never_panics(
        texts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 1..8),
        at: proptest::sample::Index,
        value: u8,
    ) {
        let mut pack = Listpack::new();
        texts.iter().for_each(|text| pack.push_back(text));
        let mut bytes = pack.as_bytes().to_vec();
        let at = at.index(bytes.len());
        bytes[at] = value;
        if let Ok(pack) = Listpack::from_bytes(bytes) {
            prop_assert_eq!(pack.iter().count(), pack.iter().rev().count());
        }
    }
}
