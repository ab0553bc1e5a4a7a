//! Seeded mutations of a kept corpus (`fuzz_corpus/`) against every decoder of bytes from strangers: no panic, no hang,
//! no memory out of proportion to the input. libFuzzer runs the same targets, see `scripts/fuzz`.
//!
//! - `BRAID_FUZZ_ITERATIONS=n` inputs for each target.
//! - `BRAID_FUZZ_SEED=n` the first seed; a failing one is printed.

mod common;
#[path = "fuzz/targets.rs"]
mod targets;

use common::number_from_env;
use fastrand::Rng;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

/// Inputs do not grow beyond this.
const INPUT_MAX_BYTES: usize = 300_000;
/// No input of this size takes longer, even where tests compete for the processor.
const TIME_MAX: Duration = Duration::from_secs(5);

thread_local! {
    static HELD_BYTES: Cell<usize> = const { Cell::new(0) };
    static PEAK_BYTES: Cell<usize> = const { Cell::new(0) };
}

/// The system's allocator, which counts what each thread holds.
struct Counting;

fn count(add: usize, sub: usize) {
    // A thread that ends has no counters any more.
    let _ = HELD_BYTES.try_with(|held| {
        held.set((held.get() + add).saturating_sub(sub));
        let _ = PEAK_BYTES.try_with(|peak| peak.set(peak.get().max(held.get())));
    });
}

// SAFETY: every call is passed on to the system's allocator as it came; counting touches only the thread's own cells, which
// need no allocation.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: the caller's promises are the system's conditions.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(0, layout.size());
        // SAFETY: as above; the block came from the system's allocator.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count(new_size, layout.size());
        // SAFETY: as above.
        unsafe { System.realloc(at, layout, new_size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz_corpus").join(name);
    let mut paths: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    // The same seed must mean the same input everywhere.
    paths.sort();
    assert!(!paths.is_empty());
    paths.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

/// What decoders stumble over: boundaries of lengths, in text and in binary.
const MORSELS: &[&[u8]] = &[
    b"-1",
    b"0",
    b"00",
    b"+1",
    b"2147483648",
    b"4294967296",
    b"18446744073709551615",
    b"1048577",
    b"\r\n",
    b"\n",
    b"\r",
    b"$",
    b"*",
    b"\"",
    b"'",
    b"\\x",
    b"\0",
    b"\xff\xff\xff\xff",
    b"\x80\xff\xff\xff\xff",
    b"\x81\xff\xff\xff\xff\xff\xff\xff\xff",
    b"\xc3",
    b"\xc0\xff",
    b"\xfa",
    b"\xfc",
    b"\xfd",
    b"\xfe",
    b"\x7f",
    b" ",
    b"$70000\r\n",
    b"*3\r\n",
];

/// A few changes to one of the corpus.
fn mutate(corpus: &[Vec<u8>], rng: &mut Rng) -> Vec<u8> {
    let mut input = corpus[rng.usize(..corpus.len())].clone();
    for _ in 0..rng.usize(..6) {
        let at = rng.usize(..=input.len());
        let most = 1 << rng.u8(..10);
        let len = rng.usize(..=(input.len() - at).min(most));
        match rng.u8(..9) {
            0 if at < input.len() => input[at] ^= 1 << rng.u8(..8),
            1 if at < input.len() => input[at] = rng.u8(..),
            2 if at < input.len() => input[at] = input[at].wrapping_add(rng.u8(..5)).wrapping_sub(2),
            3 => drop(input.drain(at..at + len)),
            4 => {
                let copy = input[at..at + len].to_vec();
                let to = rng.usize(..=input.len());
                input.splice(to..to, copy);
            }
            5 => {
                let other = &corpus[rng.usize(..corpus.len())];
                let from = rng.usize(..=other.len());
                let piece = other[from..].iter().take(1 << rng.u8(..10)).copied().collect::<Vec<u8>>();
                input.splice(at..at, piece);
            }
            6 => input.truncate(at),
            7 => {
                let morsel = MORSELS[rng.usize(..MORSELS.len())];
                let end = if rng.bool() { (at + morsel.len()).min(input.len()) } else { at };
                input.splice(at..end, morsel.iter().copied());
            }
            _ if rng.u8(..8) == 0 => {
                let byte = rng.u8(..);
                input.splice(at..at, std::iter::repeat_n(byte, rng.usize(..80_000)));
            }
            _ => {}
        }
        input.truncate(INPUT_MAX_BYTES);
    }
    input
}

/// `expansion`: bytes of memory that a byte of input may cost.
fn fuzz(name: &str, default_iterations: u64, expansion: usize, target: fn(&[u8])) {
    /// Memory that costs nothing to ask for: buffers, a string that was announced.
    const ALLOWANCE_BYTES: usize = 4 << 20;
    let corpus = corpus(name);
    let first = number_from_env("BRAID_FUZZ_SEED", 0);
    for seed in first..first + number_from_env("BRAID_FUZZ_ITERATIONS", default_iterations) {
        // The corpus itself comes first.
        let input = match usize::try_from(seed).ok().and_then(|at| corpus.get(at)) {
            Some(kept) => kept.clone(),
            None => mutate(&corpus, &mut Rng::with_seed(seed)),
        };
        let before = HELD_BYTES.get();
        PEAK_BYTES.set(before);
        let started = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| target(&input)));
        let (elapsed, grown) = (started.elapsed(), PEAK_BYTES.get() - before);
        let shown = || input[..input.len().min(2000)].escape_ascii().to_string();
        assert!(outcome.is_ok(), "{name}: BRAID_FUZZ_SEED={seed}: panicked at \"{}\"", shown());
        assert!(elapsed < TIME_MAX, "{name}: BRAID_FUZZ_SEED={seed}: took {elapsed:?} for \"{}\"", shown());
        let limit = ALLOWANCE_BYTES + expansion * input.len();
        assert!(grown <= limit, "{name}: BRAID_FUZZ_SEED={seed}: took {grown} bytes for \"{}\"", shown());
    }
}

#[test]
fn requests_never_break_the_parser() {
    fuzz("resp", 60_000, 200, targets::resp);
}

#[test]
fn snapshots_never_break_the_decoder() {
    // A packed string may be 264 times as long as its three bytes; what it unpacks to is a value of many elements.
    fuzz("rdb", 60_000, 2000, targets::rdb);
}

#[test]
fn configurations_never_break_the_parser() {
    fuzz("config", 20_000, 2000, targets::config);
}

#[test]
fn the_corpus_is_read_completely() {
    for kept in corpus("rdb") {
        let (keys, end, fault) = targets::snapshot(&kept, usize::MAX);
        assert!(keys >= 14 && end == Some(kept.len() as u64), "{keys} keys, {end:?}, {fault}");
    }
}
