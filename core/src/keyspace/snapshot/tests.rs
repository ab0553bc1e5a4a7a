//! Law 5: a snapshot holds what was there at its cut, nothing twice and nothing missing, whatever happens meanwhile.

use super::*;
use crate::commands::testing::Node;
use crate::keyspace::{Expiry, Keys};
use crate::rdb::sample::{self, Plain, plain};
use crate::rdb::{Cursor, Decoder, Event, Limits, load_value};
use crate::table::{HashKey, ValueMut};
use crate::types::Limits as TypeLimits;
use std::collections::{BTreeMap, BTreeSet};

const DATABASES: u16 = 4;

/// Everything a keyspace holds, expired or not.
type Image = BTreeMap<(u16, Vec<u8>), (Plain, Option<u64>)>;

fn image(space: &Keyspace) -> Image {
    let keys = (0..space.databases() as u16)
        .flat_map(|db| space.db(db).table.iter().map(move |entry| (db, entry)))
        .map(|(db, entry)| ((db, entry.key().to_vec()), (plain(entry.value()), entry.expiry_ms())));
    keys.collect()
}

/// Joins pieces to a file, as who sends a snapshot does.
fn file_of(options: WriterOptions, pieces: &[SnapshotPiece]) -> Vec<u8> {
    let mut frame = Writer::new(options);
    frame.header();
    let mut file = frame.take();
    for piece in pieces {
        piece.chunks.iter().for_each(|chunk| file.extend_from_slice(chunk));
        frame.append_piece(&piece.checksum);
    }
    frame.eof();
    file.extend_from_slice(&frame.take());
    file
}

/// Loads a file into a fresh keyspace. Panics if a key comes twice or the checksum is wrong.
fn load(file: &[u8]) -> Keyspace {
    let mut space = Keyspace::new(usize::from(DATABASES), HashKey::from_seed(77));
    let mut decoder = Decoder::new(Limits::default(), true);
    decoder.feed(file);
    decoder.finish();
    let mut db = None;
    loop {
        match decoder.next_event().unwrap() {
            Event::SelectDb(number) => db = Some(number as u16),
            Event::Key(header) => {
                let mut cursor: Cursor<'_> = decoder.cursor();
                let limits = TypeLimits::default();
                let value = load_value(header.kind, decoder.version(), &mut cursor, &limits).unwrap();
                let used_bytes = cursor.used_bytes();
                decoder.consume(used_bytes);
                let expiry_ms = header.expire_at_ms.map(|at_ms| at_ms as u64);
                let is_new = space.load_key(db.expect("selected"), &header.key, value, expiry_ms, 0);
                assert!(is_new, "twice: {}", header.key.escape_ascii());
            }
            Event::End => return space,
            Event::Version(_) => {}
            event => panic!("{event:?}"),
        }
    }
}

/// A node with a life of its own, keys on loan to transactions included.
struct World {
    node: Node,
    rng: fastrand::Rng,
    scratch: Keyspace,
    /// Keys on loan, in the scratch keyspace.
    lent: BTreeSet<Vec<u8>>,
    /// How often each thing happened.
    counts: BTreeMap<&'static str, usize>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut node = Node::new();
        let hash = HashKey::from_seed(seed);
        node.space = Keyspace::new(usize::from(DATABASES), hash);
        let scratch = Keyspace::scratch(usize::from(DATABASES), hash);
        let rng = fastrand::Rng::with_seed(seed);
        World { node, rng, scratch, lent: BTreeSet::new(), counts: BTreeMap::new() }
    }

    /// A key that is not on loan.
    fn key(&mut self) -> Vec<u8> {
        loop {
            let key = format!("key:{}", self.rng.u32(..300)).into_bytes();
            if !self.lent.contains(&key) {
                return key;
            }
        }
    }

    fn expiry_ms(&mut self) -> u64 {
        self.node.now_ms() + self.rng.u64(1..3000)
    }

    /// Changes a value in place, as a command on a collection does.
    fn change(keys: &mut Keys<'_>, key: &[u8], rng: &mut fastrand::Rng) {
        let limits = TypeLimits::default();
        let Some(mut entry) = keys.write(key) else { return };
        let text = sample::text(rng);
        match entry.value_mut() {
            ValueMut::Boxed(Object::List(list)) => list.push_front(&text, &limits),
            ValueMut::Boxed(Object::Hash(hash)) => {
                hash.set(&text, b"changed", &limits);
            }
            ValueMut::Boxed(Object::Set(set)) => {
                set.insert(&text, &limits);
            }
            ValueMut::Boxed(Object::ZSet(zset)) => zset.insert(&text, 0.5, &limits),
            _ => entry.set_value(NewValue::Str(b"rewritten")),
        }
        keys.changed(key);
    }

    fn keys<'a>(node: &'a mut Node, space: Option<&'a mut Keyspace>, db: u16) -> Keys<'a> {
        Keys {
            now_ms: node.now_ms(),
            space: space.unwrap_or(&mut node.space),
            effects: &mut node.effects,
            settings: &node.settings,
            db,
            replica: false,
            from_master: false,
            no_touch: false,
        }
    }

    fn put_random(&mut self, key: &[u8]) {
        let expiry = match self.rng.u8(..4) {
            0 => Expiry::At(self.expiry_ms()),
            1 => Expiry::Keep,
            _ => Expiry::Clear,
        };
        let value = sample::value(&mut self.rng, true);
        let mut keys = Self::keys(&mut self.node, None, self.rng.u16(..DATABASES));
        keys.put(key, value, expiry);
        keys.changed(key);
    }

    fn run(&mut self, args: &[&[u8]]) {
        self.node.db = self.rng.u16(..DATABASES);
        self.node.run_args(args);
        self.node.effects.take();
    }

    /// One random thing happens.
    fn step(&mut self) {
        let (key, other) = (self.key(), self.key());
        // Most commands wait for a huge value, as they do in a shard; some come all the same.
        if self.rng.u8(..8) > 0 && self.node.space.awaits_walk(&key) {
            return *self.counts.entry("waits").or_default() += 1;
        }
        let number = self.rng.u16(..DATABASES).to_string();
        let what = match self.rng.u8(..100) {
            0..20 => {
                self.put_random(&key);
                "put"
            }
            20..27 => {
                // Collections made or changed by commands; those on a value of another type do nothing.
                let text = sample::text(&mut self.rng);
                let lines: [&[&[u8]]; 8] = [
                    &[b"LPUSH", &key, &text],
                    &[b"RPOP", &key],
                    &[b"HSET", &key, &text, b"value"],
                    &[b"SADD", &key, &text],
                    &[b"SPOP", &key],
                    &[b"ZADD", &key, b"2.5", &text],
                    &[b"APPEND", &key, &text],
                    &[b"INCR", &key],
                ];
                let line = lines[self.rng.usize(..lines.len())];
                self.run(line);
                "command"
            }
            27..35 => {
                let db = self.rng.u16(..DATABASES);
                Self::change(&mut Self::keys(&mut self.node, None, db), &key, &mut self.rng);
                "change"
            }
            35..42 => {
                self.run(&[b"SET", &key, b"value"]);
                "set"
            }
            42..47 => {
                self.run(&[b"DEL", &key, &other]);
                "del"
            }
            47..52 => {
                self.run(&[b"RENAME", &key, &other]);
                "rename"
            }
            52..57 => {
                self.run(&[b"MOVE", &key, number.as_bytes()]);
                "move"
            }
            57..63 => {
                self.run(&[b"COPY", &key, &other, b"DB", number.as_bytes(), b"REPLACE"]);
                "copy"
            }
            63..68 => {
                let at_ms = self.expiry_ms().to_string();
                self.run(&[b"PEXPIREAT", &key, at_ms.as_bytes()]);
                "expire"
            }
            68..70 => {
                // Without the look for writing that commands have before it.
                let expiry_ms = self.rng.bool().then(|| self.expiry_ms());
                let mut keys = Self::keys(&mut self.node, None, self.rng.u16(..DATABASES));
                if keys.exists(&key) {
                    keys.set_expiry(&key, expiry_ms);
                }
                "set_expiry"
            }
            70..72 => {
                self.run(&[b"PERSIST", &key]);
                "persist"
            }
            72..78 => {
                self.run(&[b"GET", &key]);
                "get"
            }
            78..80 => {
                self.node.advance_ms(self.rng.u64(..200));
                "time"
            }
            80..83 if self.lent.is_empty() => {
                let now_ms = self.node.now_ms();
                let Node { space, settings, effects, .. } = &mut self.node;
                space.expire_slice(now_ms, self.rng.usize(1..2000), settings, effects);
                "sweep"
            }
            83..90 => {
                // A transaction borrows a key and changes it. That it is away may last.
                for (db, entry) in self.node.space.lend(&key) {
                    self.scratch.attach(db, entry);
                }
                self.lent.insert(key);
                "lend"
            }
            90..96 => {
                self.bring_home();
                "home"
            }
            96 if self.lent.is_empty() => {
                self.run(&[b"SWAPDB", number.as_bytes(), b"1"]);
                "swapdb"
            }
            97 if self.lent.is_empty() && self.rng.u8(..4) == 0 => {
                self.run(&[b"FLUSHDB"]);
                "flushdb"
            }
            98 if self.lent.is_empty() && self.rng.u8(..4) == 0 => {
                self.run(&[b"FLUSHALL"]);
                "flushall"
            }
            99 => {
                self.node.space.free_some(10, drop);
                "free"
            }
            _ => "nothing",
        };
        *self.counts.entry(what).or_default() += 1;
    }

    /// The oldest transaction does its work and returns its key.
    fn bring_home(&mut self) {
        let Some(key) = self.lent.pop_first() else { return };
        for db in 0..DATABASES {
            let mut keys = Self::keys(&mut self.node, Some(&mut self.scratch), db);
            match self.rng.u8(..4) {
                0 => Self::change(&mut keys, &key, &mut self.rng),
                1 => {
                    keys.remove(&key);
                }
                2 => keys.put(&key, sample::value(&mut self.rng, true), Expiry::Clear),
                _ => {}
            }
        }
        for (db, entry) in self.scratch.detach_all(&key) {
            self.node.space.attach(db, entry);
        }
    }
}

/// Lives through several snapshots, some of them aborted, and compares each with the state at its cut.
fn live(seed: u64, counts: &mut BTreeMap<&'static str, usize>) {
    let mut world = World::new(seed);
    for round in 0..5 {
        for _ in 0..world.rng.usize(..400) {
            let key = world.key();
            world.put_random(&key);
        }
        while !world.lent.is_empty() {
            world.bring_home();
        }
        let version = *world.rng.choice(&[12, crate::rdb::VALKEY_VERSION]).unwrap();
        let options = WriterOptions { version, compress: world.rng.bool(), checksum: true };
        let expected = image(&world.node.space);
        assert_eq!(world.node.space.begin_snapshot(options), Ok(()));
        assert_eq!(world.node.space.begin_snapshot(options), Err(SnapshotBusy));
        let aborts = world.rng.u8(..4) == 0;
        let steps = world.rng.usize(1..12);
        let max_output_bytes = world.rng.usize(1..100_000);
        let mut pieces = Vec::new();
        loop {
            for _ in 0..world.rng.usize(..=steps) {
                world.step();
            }
            match world.node.space.snapshot_slice(world.rng.usize(1..8000), max_output_bytes) {
                SnapshotProgress::Idle => unreachable!("the last piece was not taken"),
                SnapshotProgress::More => {}
                SnapshotProgress::Full => {
                    assert!(world.node.space.snapshot_output_len_bytes() >= max_output_bytes)
                }
                SnapshotProgress::Walked => {
                    assert_eq!(world.node.space.flushed_len(), 0);
                    // Nothing that happens now belongs to the snapshot.
                    let len_bytes = world.node.space.snapshot_output_len_bytes();
                    (0..20).for_each(|_| world.step());
                    assert_eq!(world.node.space.snapshot_output_len_bytes(), len_bytes);
                }
            }
            if aborts && world.rng.u8(..20) == 0 {
                world.node.space.abort_snapshot();
                assert!(world.node.space.take_snapshot_output().is_none());
                break;
            }
            if world.rng.u8(..3) == 0
                && let Some(piece) = world.node.space.take_snapshot_output()
            {
                let is_last = piece.is_last;
                pieces.push(piece);
                if is_last {
                    break;
                }
            }
        }
        // Clearing an aborted one away goes on among commands, too.
        while world.node.space.snapshot_slice(1000, 1) != SnapshotProgress::Idle {
            (0..3).for_each(|_| world.step());
        }
        assert!(!world.node.space.has_snapshot());
        for db in 0..DATABASES {
            let epoch = world.node.space.epoch;
            assert!(world.node.space.db(db).table.iter().all(|entry| entry.mark() == epoch));
        }
        if pieces.last().is_some_and(|piece| piece.is_last) {
            // Those of several shards come in any order.
            world.rng.shuffle(&mut pieces);
            let loaded = image(&load(&file_of(options, &pieces)));
            for (key, value) in &expected {
                assert_eq!(loaded.get(key), Some(value), "seed {seed} round {round} {key:?}");
            }
            assert_eq!(loaded.len(), expected.len(), "seed {seed} round {round}: more than there was");
            *counts.entry("compared").or_default() += 1;
        }
    }
    *counts.entry("huge").or_default() += world.node.space.huge_values_written as usize;
    for (what, count) in world.counts {
        *counts.entry(what).or_default() += count;
    }
}

#[test]
fn law5_a_snapshot_is_the_state_at_its_cut() {
    let mut counts = BTreeMap::new();
    for seed in 0..48 {
        live(seed, &mut counts);
    }
    // Otherwise the test proves less than it says.
    for what in [
        "compared", "sweep", "lend", "home", "swapdb", "flushdb", "flushall", "rename", "move", "copy",
        "command", "waits", "huge",
    ] {
        assert!(counts.get(what).is_some_and(|count| *count >= 20), "{what}: {counts:?}");
    }
}

#[test]
fn law5_an_empty_slice_has_an_empty_last_piece() {
    let mut space = Keyspace::new(2, HashKey::from_seed(1));
    space.begin_snapshot(WriterOptions::default()).unwrap();
    assert!(space.take_snapshot_output().is_none());
    assert_eq!(space.snapshot_slice(1, 1), SnapshotProgress::Walked);
    let piece = space.take_snapshot_output().unwrap();
    assert!(piece.is_last && piece.chunks.is_empty());
    assert!(!space.has_snapshot() && space.take_snapshot_output().is_none());
}

#[test]
fn law8_a_slice_stops_at_its_budget_and_at_a_slow_consumer() {
    let mut space = Keyspace::new(1, HashKey::from_seed(1));
    for i in 0..10_000 {
        space.attach(0, KeyEntry::new(format!("key:{i}").as_bytes(), NewValue::Str(&[b'x'; 100])));
    }
    let options = WriterOptions { compress: false, ..Default::default() };
    space.begin_snapshot(options).unwrap();
    assert_eq!(space.snapshot_slice(10_000, usize::MAX), SnapshotProgress::More);
    let len_bytes = space.snapshot_output_len_bytes();
    assert!((1000..10_000).contains(&len_bytes), "{len_bytes}");
    assert_eq!(space.snapshot_slice(usize::MAX, 50_000), SnapshotProgress::Full);
    let len_bytes = space.snapshot_output_len_bytes();
    assert!((50_000..50_200).contains(&len_bytes), "{len_bytes}");
    assert_eq!(space.snapshot_slice(usize::MAX, 50_000), SnapshotProgress::Full);
    assert_eq!(space.snapshot_output_len_bytes(), len_bytes);
    assert!(!space.take_snapshot_output().unwrap().is_last);
    assert_eq!(space.snapshot_slice(usize::MAX, usize::MAX), SnapshotProgress::Walked);
    assert!(space.take_snapshot_output().unwrap().is_last);
}

#[test]
fn law8_what_a_snapshot_holds_on_to_is_freed_in_slices_whatever_ends_it() {
    for replaced in [true, false] {
        let mut node = Node::new();
        let members: String = (0..500).map(|at| format!(" member:{at}")).collect();
        for key in ["half", "owed", "flushed"] {
            node.run(&format!("SADD {key}{members}"));
        }
        let space = &mut node.space;
        space.begin_snapshot(WriterOptions::default()).unwrap();
        assert!(space.awaits_walk(b"half"));
        assert_eq!(space.snapshot_slice(100, usize::MAX), SnapshotProgress::More);
        node.run("DEL half");
        node.run("DEL owed");
        node.run("FLUSHALL");
        let space = &mut node.space;
        let trashed = space.trash.len();
        if replaced {
            space.replace_with(space.successor())
        } else {
            space.abort_snapshot()
        }
        assert_eq!(space.trash.len() - trashed, 3, "replaced: {replaced}");
        while space.free_some(10, drop) {}
        assert_eq!(space.trash_len(), 0);
    }
}
