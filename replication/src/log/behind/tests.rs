//! The log with a disk, against a model: a vector of all bytes, and segment files in memory.

use super::*;
use crate::log::ReaderLimits;
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};

const SIZES: Sizes = Sizes {
    chunk_bytes: 64,
    write_bytes: 256,
    read_bytes: 100,
    segment_bytes: 512,
    slack_bytes: 200,
    unacked_bytes: 400,
};
const BACKLOG_BYTES: u64 = 300;
const NO_LIMITS: ReaderLimits = ReaderLimits { hard_bytes: 0, soft_bytes: 0, soft_ms: 0 };

/// A log, its disk and its readers.
struct World {
    log: Log,
    rng: fastrand::Rng,
    first_offset: u64,
    stream: Vec<u8>,
    files: BTreeMap<u64, Vec<u8>>,
    /// Steps that are not carried out yet.
    steps: VecDeque<Step>,
    told: VecDeque<Told>,
    /// Of a hundred writes and reads, how many fail.
    failing: u8,
    failed_writes: usize,
    failed_reads: usize,
    lines: Vec<String>,
    readers: Vec<ReaderId>,
    /// Bytes that went through files.
    read_bytes: u64,
    now_ms: u64,
}

impl World {
    fn new(seed: u64, disk_bytes: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let first_offset = rng.u64(..1000);
        let mut log = Log::new(first_offset, BACKLOG_BYTES);
        log.set_sizes(SIZES);
        log.set_disk_bytes(disk_bytes);
        log.activate();
        Self {
            log,
            rng,
            first_offset,
            stream: Vec::new(),
            files: BTreeMap::new(),
            steps: VecDeque::new(),
            told: VecDeque::new(),
            failing: 0,
            failed_writes: 0,
            failed_reads: 0,
            lines: Vec::new(),
            readers: Vec::new(),
            read_bytes: 0,
            now_ms: 0,
        }
    }

    fn append(&mut self, len_bytes: usize) {
        let bytes: Vec<u8> = (0..len_bytes).map(|_| self.rng.u8(..)).collect();
        self.stream.extend_from_slice(&bytes);
        self.log.append(bytes.into());
        self.trim();
    }

    fn trim(&mut self) {
        self.log.trim();
        self.steps.extend(self.log.take_steps());
    }

    /// Carries out the next step, as a disk would. False: there is none.
    fn carry_out(&mut self) -> bool {
        let Some(step) = self.steps.pop_front() else { return false };
        let fails = self.rng.u8(..100) < self.failing;
        match step {
            Step::Write { segment, bytes } => {
                let bytes = bytes.concat();
                assert!(!bytes.is_empty() && (bytes.len() as u64).is_multiple_of(SIZES.chunk_bytes));
                assert!(bytes.len() as u64 <= SIZES.write_bytes);
                let file = self.files.entry(segment).or_default();
                assert!((file.len() as u64).is_multiple_of(SIZES.chunk_bytes), "behind a failed write");
                if fails {
                    self.failed_writes += 1;
                    file.extend_from_slice(&[0; 7]);
                } else {
                    file.extend_from_slice(&bytes);
                }
                assert!(file.len() as u64 <= SIZES.segment_bytes);
                self.told.push_back(Told::Written(if fails { Err("full".into()) } else { Ok(()) }));
            }
            Step::Read { read, segment, at_bytes, len_bytes } => {
                let outcome = if fails {
                    self.failed_reads += 1;
                    Err("broken".into())
                } else {
                    self.read_bytes += len_bytes;
                    let file = &self.files[&segment];
                    Ok(Bytes::copy_from_slice(&file[at_bytes as usize..][..len_bytes as usize]))
                };
                self.told.push_back(Told::Read { read, outcome });
            }
            Step::Delete { segment } => assert!(self.files.remove(&segment).is_some()),
            Step::Warn(line) => self.lines.push(line),
        }
        true
    }

    fn tell(&mut self) -> bool {
        let Some(told) = self.told.pop_front() else { return false };
        self.log.told(told, self.now_ms);
        self.trim();
        true
    }

    /// Lets the disk do everything.
    fn settle(&mut self) {
        while self.carry_out() || self.tell() {}
    }

    fn lost(&mut self, id: ReaderId) -> Option<Exceeded> {
        self.log.check_limits(id, NO_LIMITS, 0)
    }

    /// Sends a reader something, and compares. Returns how much.
    fn feed(&mut self, id: ReaderId, max_bytes: u64, max_slices: usize) -> u64 {
        let mut out = Vec::new();
        let len_bytes = self.log.reader_slices(id, max_bytes, max_slices, &mut out);
        assert!(out.len() <= max_slices && len_bytes <= max_bytes);
        let from = (self.log.reader(id).position - self.first_offset) as usize;
        assert_eq!(out.concat(), self.stream[from..from + len_bytes as usize]);
        // While it is sent the log goes on.
        if self.rng.bool() {
            self.append(300);
            while self.rng.bool() && (self.carry_out() || self.tell()) {}
        }
        self.log.advance(id, len_bytes);
        self.trim();
        len_bytes
    }

    fn drop_lost(&mut self, disk_bytes: u64) {
        for id in std::mem::take(&mut self.readers) {
            match self.lost(id) {
                None => self.readers.push(id),
                Some(Exceeded::Unreadable) => {
                    assert!(self.failed_reads > 0);
                    self.log.remove_reader(id);
                }
                Some(Exceeded::Disk) => {
                    let behind_bytes = self.log.pending_bytes(id);
                    let segment_bytes = SIZES.segment_bytes;
                    assert!(behind_bytes + 2 * segment_bytes > disk_bytes, "only {behind_bytes} behind");
                    self.log.remove_reader(id);
                }
                Some(exceeded) => panic!("{exceeded}"),
            }
        }
        self.trim();
    }

    fn check(&self) {
        let end = self.first_offset + self.stream.len() as u64;
        assert_eq!((self.log.end_offset(), self.log.first_byte() + self.log.histlen_bytes()), (end, end + 1));
        assert!(self.log.histlen_bytes() >= BACKLOG_BYTES.min(self.stream.len() as u64));
    }
}

#[test]
fn one_stream_every_reader_reads_it_whatever_the_disk_does() {
    let (mut spilled, mut failed, mut resumed) = (0, 0, 0);
    for seed in 0..300 {
        let disk_bytes = [0, 1, 1000, 4000, 100_000][seed as usize % 5];
        let mut world = World::new(seed, disk_bytes);
        let disk_bytes = disk_bytes.max(SIZES.chunk_bytes * BUDGET_MIN_CHUNKS);
        world.failing = [0, 0, 3, 30][seed as usize / 5 % 4];
        if seed % 2 == 0 {
            // Memory keeps more than a small budget does.
            world.log.set_sizes(Sizes { unacked_bytes: 3000, ..SIZES });
        }
        for _ in 0..600 {
            match world.rng.u8(..20) {
                0..5 => {
                    let len_bytes = world.rng.usize(..500);
                    world.append(len_bytes);
                }
                5 if world.readers.len() < 4 => {
                    // From any byte that is said to be kept.
                    let position = world.rng.u64(world.log.first_byte() - 1..=world.log.end_offset());
                    resumed += u64::from(position + BACKLOG_BYTES < world.log.end_offset());
                    world.readers.push(world.log.add_reader(position));
                }
                6 if !world.readers.is_empty() && world.rng.bool() => {
                    let id = world.readers.swap_remove(world.rng.usize(..world.readers.len()));
                    world.log.expect_back(id, world.rng.u8(..4).to_string());
                    world.log.remove_reader(id);
                }
                7 => world.log.is_back(&world.rng.u8(..4).to_string()),
                8 if !world.readers.is_empty() => {
                    let id = world.readers[world.rng.usize(..world.readers.len())];
                    let acked = world.log.reader(id).position.saturating_sub(world.rng.u64(..200));
                    world.log.acked(id, acked);
                }
                9 => {
                    world.now_ms += PAUSE_MS / 3;
                    world.log.tick(world.now_ms);
                }
                10..13 if !world.readers.is_empty() => {
                    let id = world.readers[world.rng.usize(..world.readers.len())];
                    let (max_bytes, max_slices) = (world.rng.u64(1..400), world.rng.usize(1..5));
                    world.feed(id, max_bytes, max_slices);
                }
                13..16 => drop(world.carry_out()),
                16..19 => drop(world.tell()),
                _ => world.trim(),
            }
            if seed % 3 > 0 {
                // A disk that keeps up.
                world.settle();
            }
            world.drop_lost(disk_bytes);
            world.check();
            assert!(world.log.disk_bytes() <= disk_bytes);
        }
        // The disk works again: who is left has everything in the end.
        world.failing = 0;
        let mut left = world.readers.clone();
        while let Some(id) = left.pop() {
            while world.lost(id).is_none() && world.log.pending_bytes(id) > 0 {
                world.now_ms += PAUSE_MS;
                world.log.tick(world.now_ms);
                world.settle();
                if world.lost(id).is_some() {
                    break;
                }
                let mut out = Vec::new();
                let len_bytes = world.log.reader_slices(id, 1000, 10, &mut out);
                assert!(len_bytes > 0, "seed {seed}: it is stuck");
                let from = (world.log.reader(id).position - world.first_offset) as usize;
                assert_eq!(out.concat(), world.stream[from..from + len_bytes as usize]);
                world.log.advance(id, len_bytes);
                world.log.acked(id, u64::MAX);
                world.trim();
            }
            world.log.remove_reader(id);
        }
        (0..4).for_each(|who| world.log.is_back(&who.to_string()));
        world.trim();
        world.settle();
        assert_eq!((world.files.len(), world.log.disk_bytes()), (0, 0), "seed {seed}");
        assert_eq!(world.log.memory_bytes(), BACKLOG_BYTES.min(world.stream.len() as u64));
        spilled += world.read_bytes;
        failed += world.failed_writes + world.failed_reads;
    }
    assert!(spilled > 100_000 && failed > 100 && resumed > 100, "{spilled} {failed} {resumed}");
}

#[test]
fn a_slow_reader_costs_no_memory_and_reads_from_disk() {
    let mut world = World::new(1, 1 << 20);
    let slow = world.log.add_reader(world.first_offset);
    let quick = world.log.add_reader(world.first_offset);
    for _ in 0..1000 {
        world.append(100);
        world.settle();
        let mut out = Vec::new();
        let len_bytes = world.log.reader_slices(quick, 1000, 1000, &mut out);
        assert_eq!(len_bytes, 100);
        world.log.advance(quick, len_bytes);
        world.log.acked(quick, world.log.end_offset());
        let most_bytes = BACKLOG_BYTES + SIZES.slack_bytes + 2 * SIZES.read_bytes;
        assert!(world.log.memory_bytes() <= most_bytes, "{}", world.log.memory_bytes());
        assert_eq!(world.lost(slow), None);
    }
    assert_eq!(world.log.histlen_bytes(), 100_000);
    assert!(world.log.disk_bytes() > 98_000);
    // Deletions follow it through the segments.
    while world.log.pending_bytes(slow) > 50_000 {
        world.settle();
        let mut out = Vec::new();
        let len_bytes = world.log.reader_slices(slow, 1000, 10, &mut out);
        world.log.advance(slow, len_bytes);
        world.trim();
    }
    world.settle();
    assert!(world.files.len() > 190, "it may have got nothing of that: {} files", world.files.len());
    world.log.acked(slow, world.log.reader(slow).position);
    world.trim();
    world.settle();
    assert!(world.files.len() < 110, "{} files", world.files.len());
    assert!(world.lines.is_empty());
}

#[test]
fn nothing_is_written_while_everybody_is_in_step() {
    let mut world = World::new(2, 1 << 20);
    let reader = world.log.add_reader(world.first_offset);
    for _ in 0..1000 {
        world.append(100);
        if world.log.pending_bytes(reader) > BACKLOG_BYTES {
            let len_bytes = world.log.pending_bytes(reader);
            assert_eq!(world.log.reader_slices(reader, len_bytes, 100, &mut Vec::new()), len_bytes);
            world.log.advance(reader, len_bytes);
        }
        assert!(world.steps.is_empty());
    }
    // What it has not acknowledged stays for a while, but not for ever.
    world.log.acked(reader, world.first_offset);
    world.append(1);
    assert!(world.log.histlen_bytes() <= BACKLOG_BYTES + SIZES.unacked_bytes);
}

#[test]
fn what_is_acknowledged_late_costs_memory_only_as_far_as_sockets_may_hold_it() {
    for (unacked_bytes, kept_bytes) in [(100, BACKLOG_BYTES), (400, 400)] {
        let mut world = World::new(2, 1 << 20);
        world.log.set_sizes(Sizes { unacked_bytes, ..SIZES });
        let reader = world.log.add_reader(world.first_offset);
        world.log.acked(reader, world.first_offset);
        for _ in 0..1000 {
            world.append(10);
            world.log.advance(reader, 10);
        }
        world.append(0);
        assert_eq!(world.log.histlen_bytes(), kept_bytes);
    }
}

#[test]
fn who_went_away_comes_back_to_what_it_has_not_acknowledged() {
    let mut world = World::new(3, 1 << 20);
    let reader = world.log.add_reader(world.first_offset);
    world.append(200);
    world.log.advance(reader, 200);
    let acked = world.first_offset + 50;
    world.log.acked(reader, acked);
    world.log.expect_back(reader, "it".into());
    world.log.remove_reader(reader);
    for _ in 0..100 {
        world.append(100);
        world.settle();
    }
    assert!(world.log.can_continue_with(acked + 1));
    let reader = world.log.add_reader(acked);
    world.log.is_back("it");
    world.readers.push(reader);
    while world.log.pending_bytes(reader) > 0 {
        world.settle();
        let mut out = Vec::new();
        let len_bytes = world.log.reader_slices(reader, 1000, 10, &mut out);
        let from = (world.log.reader(reader).position - world.first_offset) as usize;
        assert_eq!(out.concat(), world.stream[from..from + len_bytes as usize]);
        world.log.advance(reader, len_bytes);
        world.log.acked(reader, world.log.reader(reader).position);
        world.trim();
    }
    world.settle();
    assert!(world.files.is_empty());
}

#[test]
fn who_has_acknowledged_nothing_yet_may_have_got_nothing() {
    let mut world = World::new(3, 1 << 20);
    let gone = world.log.add_reader(world.first_offset);
    world.log.expect_back(gone, "it".into());
    world.log.remove_reader(gone);
    for _ in 0..100 {
        world.append(100);
        world.settle();
    }
    // It catches up, as far as the sockets tell, and its connection breaks before its first acknowledgement.
    let back = world.log.add_reader(world.first_offset);
    world.log.is_back("it");
    world.readers.push(back);
    while world.log.pending_bytes(back) > 0 {
        world.settle();
        let len_bytes = world.log.reader_slices(back, 1000, 10, &mut Vec::new());
        world.log.advance(back, len_bytes);
        world.trim();
    }
    world.settle();
    let held = world.log.end_offset() - SIZES.unacked_bytes;
    assert!(world.log.can_continue_with(held + 1), "what the sockets may have held");
    world.log.expect_back(back, "it".into());
    world.log.remove_reader(back);
    let needed = world.log.first_byte();
    for _ in 0..100 {
        world.append(100);
        world.settle();
    }
    assert!(world.log.can_continue_with(needed));
}

#[test]
fn who_never_comes_back_costs_one_budget_and_is_forgotten() {
    let mut world = World::new(4, 4000);
    let reader = world.log.add_reader(world.first_offset);
    world.log.expect_back(reader, "it".into());
    world.log.remove_reader(reader);
    let mut written = Vec::new();
    for _ in 0..200 {
        world.append(100);
        world.settle();
        written.push(world.log.disk_bytes());
    }
    assert!(written.iter().any(|bytes| *bytes > 3000));
    assert!(written.iter().all(|bytes| *bytes <= 4000));
    assert_eq!((world.log.disk_bytes(), world.files.len()), (0, 0));
    assert_eq!(world.log.histlen_bytes(), BACKLOG_BYTES);
}

#[test]
fn a_disk_that_fails_leaves_it_to_memory_and_its_limits() {
    let mut world = World::new(5, 1 << 20);
    let limits = ReaderLimits { hard_bytes: 5000, soft_bytes: 0, soft_ms: 0 };
    let slow = world.log.add_reader(world.first_offset);
    (0..20).for_each(|_| {
        world.append(100);
        world.settle();
    });
    let on_disk = world.log.disk_bytes();
    assert!(on_disk > 0);
    world.failing = 100;
    while world.stream.len() as u64 - on_disk <= 5000 {
        assert_eq!(world.log.check_limits(slow, limits, 0), None);
        world.append(100);
        // It has two reads ready, so that no other is made, and none fails.
        world.settle();
    }
    assert_eq!((world.failed_writes, world.lines.len()), (1, 1), "{:?}", world.lines);
    assert!(world.lines[0].contains("full"));
    assert_eq!(world.log.check_limits(slow, limits, 0), Some(Exceeded::Hard));
    // Nothing was lost by that: the disk comes back, and takes what memory kept.
    world.failing = 0;
    assert_eq!(world.log.next_tick_ms(), Some(PAUSE_MS));
    world.log.tick(PAUSE_MS - 1);
    assert_eq!(world.log.check_limits(slow, limits, 0), Some(Exceeded::Hard));
    world.log.tick(PAUSE_MS);
    assert_eq!(world.log.next_tick_ms(), None);
    world.trim();
    world.settle();
    assert_eq!(world.log.check_limits(slow, limits, 0), None);
    while world.log.pending_bytes(slow) > 0 {
        world.settle();
        assert!(world.feed(slow, 1000, 10) > 0);
        if world.stream.len() > 20_000 {
            break;
        }
    }
    assert_eq!(world.lost(slow), None);
}

#[test]
fn switched_off_it_cuts_off_who_was_on_disk() {
    let mut world = World::new(6, 1 << 20);
    let slow = world.log.add_reader(world.first_offset);
    (0..50).for_each(|_| {
        world.append(100);
        world.settle();
    });
    world.log.set_disk_bytes(0);
    world.trim();
    assert_eq!(world.lost(slow), Some(Exceeded::Disk));
    world.settle();
    assert!(world.files.is_empty());
    world.log.remove_reader(slow);
    world.trim();
    assert_eq!(world.log.memory_bytes(), BACKLOG_BYTES);
}

#[test]
fn a_disk_that_hangs_or_fails_keeps_no_memory_for_who_is_not_there() {
    for hangs in [false, true] {
        let mut world = World::new(7, 1 << 20);
        let reader = world.log.add_reader(world.first_offset);
        world.log.expect_back(reader, "it".into());
        world.log.remove_reader(reader);
        world.failing = 100;
        let mut most_bytes = 0;
        for _ in 0..200 {
            world.append(100);
            if !hangs {
                world.settle();
            }
            most_bytes = most_bytes.max(world.log.memory_bytes());
        }
        assert!(most_bytes <= BACKLOG_BYTES + 4 * SIZES.unacked_bytes + 100, "{most_bytes}");
        assert_eq!(world.log.memory_bytes(), BACKLOG_BYTES, "it is forgotten");
        world.settle();
        assert!(world.files.is_empty());
    }
}
