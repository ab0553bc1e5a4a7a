//! Values written and read back, in pieces, damaged, and of types that are not supported.

use super::sample::{self, Plain, plain};
use super::*;
use crate::table::{Entry, OwnedValue, ValueRef};
use crate::types::{Limits as TypeLimits, Object};

fn owned(value: &OwnedValue<Object>) -> Plain {
    match value {
        OwnedValue::Str(text) => Plain::Text(text.clone()),
        OwnedValue::Int(number) => plain(ValueRef::Int(*number)),
        OwnedValue::Boxed(object) => plain(ValueRef::Boxed(object)),
        _ => panic!("no value of a key: {value:?}"),
    }
}

/// What of a value a version can carry.
fn carried(value: Plain, version: u32) -> Plain {
    match value {
        Plain::Hash(fields) if version < 12 => {
            Plain::Hash(fields.into_iter().map(|(name, (value, _))| (name, (value, None))).collect())
        }
        value => value,
    }
}

#[test]
fn keys_are_read_back_from_a_stream_in_pieces_whatever_the_version() {
    for (seed, version) in [9, 10, 11, 12, VALKEY_VERSION].into_iter().enumerate() {
        let mut rng = fastrand::Rng::with_seed(seed as u64);
        let mut writer = Writer::new(WriterOptions { version, compress: rng.bool(), checksum: true });
        writer.header();
        let mut expected = Vec::new();
        for number in 0..300 {
            let expiry_ms = rng.bool().then(|| rng.u64(1..1 << 45));
            let key = format!("key {number}");
            let entry = Entry::with_expiry(key.as_bytes(), sample::value(&mut rng, true), expiry_ms);
            save_key(&mut writer, entry.view());
            expected.push((key.into_bytes(), expiry_ms, carried(plain(entry.value()), version)));
        }
        writer.eof();
        let bytes = writer.take();

        let mut decoder = Decoder::new(Limits::default(), true);
        let mut loader: Option<(KeyHeader, ValueLoader)> = None;
        let (mut found, mut fed, mut resumed) = (Vec::new(), 0, 0);
        loop {
            let stop = if let Some((header, value)) = &mut loader {
                let mut cursor = decoder.cursor();
                let result = value.read(&mut cursor, &TypeLimits::default());
                let used_bytes = cursor.used_bytes();
                decoder.consume(used_bytes);
                match result {
                    Ok(value) => {
                        let expiry_ms = header.expire_at_ms.map(|at_ms| at_ms as u64);
                        found.push((header.key.clone(), expiry_ms, owned(&value)));
                        loader = None;
                        continue;
                    }
                    Err(stop) => {
                        resumed += usize::from(used_bytes > 0);
                        stop
                    }
                }
            } else {
                match decoder.next_event() {
                    Ok(Event::End) => break,
                    Ok(Event::Key(header)) => {
                        let value = ValueLoader::new(header.kind, decoder.version()).unwrap();
                        loader = Some((header, value));
                        continue;
                    }
                    Ok(_) => continue,
                    Err(stop) => stop,
                }
            };
            assert!(matches!(stop, Stop::NeedMore(_)), "{stop:?}");
            let chunk = rng.usize(1..3000).min(bytes.len() - fed);
            decoder.feed(&bytes[fed..fed + chunk]);
            fed += chunk;
        }
        assert!(found == expected, "version {version}");
        assert!(resumed > 20, "collections are read in stretches: {resumed}");
    }
}

#[test]
fn damaged_values_are_refused_or_read_but_never_panic() {
    let mut rng = fastrand::Rng::with_seed(11);
    let (mut refused, mut accepted) = (0, 0);
    for round in 0..30_000 {
        let version = *rng.choice(&[9, 10, 12, VALKEY_VERSION]).unwrap();
        let mut writer = Writer::new(WriterOptions { version, compress: rng.bool(), checksum: true });
        let entry = Entry::new(b"k", sample::value(&mut rng, true));
        let mut kind = kind_of(entry.value(), version);
        save_value(&mut writer, entry.value());
        let mut bytes = writer.take();
        if round % 4 == 0 {
            // The body of one type taken for another's.
            kind = rng.u8(..26);
        } else {
            for _ in 0..rng.usize(1..4) {
                // The beginning, where lengths and counts are, is hit more often.
                let near = rng.usize(..bytes.len()).min(1 << rng.u8(1..20));
                bytes[near] = rng.u8(..);
            }
        }
        let mut cursor = Cursor::whole(&bytes, Limits { string_bytes: 1 << 20 });
        match load_value(kind, version, &mut cursor, &TypeLimits::default()) {
            Ok(OwnedValue::None) | Err(Stop::Fault(_)) => refused += 1,
            Err(Stop::NeedMore(_)) => panic!("all of it is there"),
            Ok(value) => {
                // What was accepted is a sound value: it can be walked and written again.
                let read = owned(&value);
                let again = Entry::new(b"k", crate::keyspace::storable(&mut { value }));
                assert_eq!(plain(again.value()), read);
                let mut writer = Writer::new(WriterOptions::default());
                save_value(&mut writer, again.value());
                accepted += 1;
            }
        }
    }
    assert!(refused > 5000 && accepted > 1000, "{refused} {accepted}");
}

#[test]
fn empty_and_unsupported_values_are_told_apart() {
    let load = |kind, body: &[u8]| {
        let mut cursor = Cursor::whole(body, Limits::default());
        load_value(kind, 10, &mut cursor, &TypeLimits::default())
    };
    for kind in [kind::LIST, kind::SET, kind::HASH, kind::ZSET_2, kind::LIST_QUICKLIST_2] {
        assert!(matches!(load(kind, b"\0"), Ok(OwnedValue::None)), "{kind}");
    }
    let listpack = load(kind::HASH_LISTPACK, b"\x07\x07\0\0\0\0\0\xff");
    assert!(matches!(listpack, Ok(OwnedValue::None)));
    let intset = load(kind::SET_INTSET, b"\x08\x02\0\0\0\0\0\0\0");
    assert!(matches!(intset, Ok(OwnedValue::None)));
    for (kind, text) in [
        (kind::STREAM_LISTPACKS_3, "Values of type stream are not supported at byte 0"),
        (kind::MODULE_2, "Values of modules are not supported at byte 0"),
        (kind::VALKEY_HASH_2, "Unknown or unsupported RDB opcode or type 22 at byte 0"),
        (99, "Unknown or unsupported RDB opcode or type 99 at byte 0"),
    ] {
        let Err(Stop::Fault(fault)) = load(kind, b"\0") else { panic!("{kind}") };
        assert_eq!(fault.to_string(), text);
    }
    for (kind, body) in [
        (kind::SET, &b"\x02\x01a\x01a"[..]),
        (kind::HASH, b"\x02\x01a\x01b\x01a\x01c"),
        (kind::ZSET, b"\x01\x01a\xfd"),
        (kind::ZSET_2, b"\x01\x01a\0\0\0\0\0\0\xf8\x7f"),
        (kind::LIST_QUICKLIST_2, b"\x01\x03\x01a"),
    ] {
        assert!(matches!(load(kind, body), Err(Stop::Fault(_))), "{kind}");
    }
}

#[test]
fn old_layouts_are_read() {
    let load = |kind, body: &[u8]| {
        let mut cursor = Cursor::whole(body, Limits::default());
        let value = load_value(kind, 9, &mut cursor, &TypeLimits::default()).unwrap();
        assert_eq!(cursor.remaining_bytes(), 0);
        owned(&value)
    };
    // Elements "b", "2", "a", "1" in a ziplist.
    let ziplist = b"\x15\0\0\0\x12\0\0\0\x04\0\0\x01b\x03\xf3\x02\x01a\x03\xf2\xff";
    let mut body = vec![ziplist.len() as u8];
    body.extend_from_slice(ziplist);
    let texts = |list: &[&str]| list.iter().map(|text| text.as_bytes().to_vec()).collect::<Vec<_>>();
    assert_eq!(load(kind::LIST_ZIPLIST, &body), Plain::List(texts(&["b", "2", "a", "1"])));
    let twice = [&[2], &body[..], &body[..]].concat();
    let items = texts(&["b", "2", "a", "1", "b", "2", "a", "1"]);
    assert_eq!(load(kind::LIST_QUICKLIST, &twice), Plain::List(items));
    let field = |name: &str, value: &str| (name.as_bytes().to_vec(), (value.as_bytes().to_vec(), None));
    let hash = Plain::Hash([field("a", "1"), field("b", "2")].into());
    assert_eq!(load(kind::HASH_ZIPLIST, &body), hash);
    assert_eq!(load(kind::HASH_ZIPMAP, b"\x0c\x02\x01b\x01\x002\x01a\x01\x001\xff"), hash);
    let scored = |member: &str, score: f64| (member.as_bytes().to_vec(), score.to_bits());
    let zset = Plain::ZSet(vec![scored("a", 1.0), scored("b", 2.0)]);
    assert_eq!(load(kind::ZSET_ZIPLIST, &body), zset);
    assert_eq!(load(kind::ZSET, b"\x02\x01b\x012\x01a\x011"), zset);
    assert_eq!(load(kind::LIST, b"\x02\x01b\xc0\x02"), Plain::List(texts(&["b", "2"])));
}

#[test]
fn law8_a_string_that_comes_in_pieces_is_put_together_in_one_buffer() {
    const LEN: usize = 100_000;
    let text: Vec<u8> = (0..LEN).map(|at| (at % 251) as u8).collect();
    let mut writer = Writer::new(WriterOptions { compress: false, ..WriterOptions::default() });
    writer.string(&text);
    let file = writer.take();
    let mut loader = ValueLoader::new(kind::STRING, 10).unwrap();
    let limits = crate::types::Limits::default();
    let mut at = 0;
    // The first piece ends within the length.
    let ends = [3, 5, 6, 1000, 50_000, file.len() - 1, file.len()];
    let mut loaded = None;
    for end in ends {
        let is_last = end == file.len();
        let mut cursor = Cursor::over(&file[at..end], at as u64, is_last, Limits::default());
        match loader.read(&mut cursor, &limits) {
            Ok(value) => loaded = Some(value),
            Err(stop) => assert!(!is_last && matches!(stop, Stop::NeedMore(_)), "{stop:?}"),
        }
        if end > 5 {
            assert_eq!(cursor.remaining_bytes(), 0, "nothing is left to be kept elsewhere");
        }
        at += cursor.used_bytes();
    }
    let Some(OwnedValue::Str(loaded)) = loaded else { panic!("a string") };
    assert!(loaded == text && loaded.capacity() == LEN);
}

#[test]
fn a_string_that_ends_early_or_is_too_long_is_a_fault() {
    let limits = crate::types::Limits::default();
    let read = |bytes: &[u8], string_bytes: u64| {
        let mut cursor = Cursor::whole(bytes, Limits { string_bytes });
        ValueLoader::new(kind::STRING, 10).unwrap().read(&mut cursor, &limits).unwrap_err()
    };
    let kind_of = |stop: Stop| match stop {
        Stop::Fault(fault) => fault.kind,
        Stop::NeedMore(_) => panic!("nothing more comes"),
    };
    assert_eq!(kind_of(read(&[0x3f, b'x'], 100)), FaultKind::Truncated);
    assert_eq!(kind_of(read(&[0x3f, b'x'], 10)), FaultKind::StringTooLong(63));
    let announced = [0x81, 0, 0, 0, 1, 0, 0, 0, 0];
    assert_eq!(kind_of(read(&announced, u64::MAX)), FaultKind::StringTooLong(1 << 32));
}
