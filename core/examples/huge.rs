//! Law 8 with huge values, measured: how long the longest step takes while values of millions of elements grow, are
//! written to a snapshot and are freed. Numbers to be read, not a test: they depend on the machine.
//!
//! `cargo run --release -p braid-core --example huge [millions]`

use braid_core::keyspace::{KeyEntry, Keyspace, SnapshotProgress};
use braid_core::rdb::WriterOptions;
use braid_core::table::{HashKey, NewValue};
use braid_core::types::{Hash, Limits, List, Object, Set, ZSet};
use std::time::Duration;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Time that this thread was running: what else runs on the machine does not count.
fn running_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the clock exists since Linux 2.6.12, and writes a time to where it is told.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    assert_eq!(result, 0);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// How often everything is done. The steps are the same each time, so what else the machine does, and the host of a
/// virtual one, is left out by taking the shortest time of each.
const ROUNDS: usize = 3;

/// The steps of one phase.
#[derive(Default)]
struct Steps {
    shortest_ns: Vec<u32>,
    next: usize,
}

impl Steps {
    fn time<R>(&mut self, step: impl FnOnce() -> R) -> R {
        let start = running_time();
        let result = step();
        let took_ns = (running_time() - start).as_nanos() as u32;
        match self.shortest_ns.get_mut(self.next) {
            Some(shortest_ns) => *shortest_ns = took_ns.min(*shortest_ns),
            None => self.shortest_ns.push(took_ns),
        }
        self.next += 1;
        result
    }

    fn report(&self, what: &str) {
        let all_ns: u64 = self.shortest_ns.iter().map(|ns| u64::from(*ns)).sum();
        let (at, longest_ns) = self.shortest_ns.iter().enumerate().max_by_key(|(_, ns)| **ns).expect("steps");
        let long = self.shortest_ns.iter().filter(|ns| **ns > 1_000_000).count();
        println!(
            "  {what:6} {:9} steps, {:5} ms in all, longest {:6} us (number {at}), {long} above 1 ms",
            self.shortest_ns.len(),
            all_ns / 1_000_000,
            longest_ns / 1000,
        );
    }
}

fn grow(steps: &mut Steps, millions: usize, mut add: impl FnMut(u64)) {
    for number in 0..millions as u64 * 1_000_000 {
        // Scattered, as members are.
        let number = number.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        steps.time(|| add(number));
    }
}

fn object(kind: &str, millions: usize, steps: &mut Steps) -> Object {
    let limits = Limits::default();
    match kind {
        "list" => {
            let mut list = List::new();
            grow(steps, millions, |n| list.push_back(format!("element:{n}").as_bytes(), &limits));
            Object::List(list)
        }
        // As of elements so long that each has a node: the deque of nodes grows long.
        "list of single nodes" => {
            let mut list = List::new();
            let limits = Limits { list_max_listpack_size: 1, ..limits };
            grow(steps, millions, |_| list.push_back(&[b'x'; 10], &limits));
            Object::List(list)
        }
        "set" => {
            let mut set = Set::new();
            grow(steps, millions, |n| {
                set.insert(format!("member:{n}").as_bytes(), &limits);
            });
            Object::Set(set)
        }
        "hash" => {
            let mut hash = Hash::new();
            grow(steps, millions, |n| {
                hash.set(format!("field:{n}").as_bytes(), &[b'v'; 40], &limits);
            });
            Object::Hash(hash)
        }
        "zset" => {
            let mut zset = ZSet::new();
            grow(steps, millions, |n| zset.insert(format!("member:{n}").as_bytes(), n as f64, &limits));
            Object::ZSet(zset)
        }
        // As many times 64 MiB.
        _ => Object::Str(vec![b'x'; millions << 26].into()),
    }
}

fn main() {
    let millions = std::env::args().nth(1).map_or(1, |arg| arg.parse().expect("millions of elements"));
    for kind in ["list", "list of single nodes", "set", "hash", "zset", "string"] {
        println!("{kind}, {millions} million elements");
        let [mut growing, mut writing, mut freeing] = [(); 3].map(|()| Steps::default());
        for _ in 0..ROUNDS {
            for steps in [&mut growing, &mut writing, &mut freeing] {
                steps.next = 0;
            }
            let object = object(kind, millions, &mut growing);
            let mut space = Keyspace::new(1, HashKey::from_seed(1));
            space.attach(0, KeyEntry::new(b"key", NewValue::Boxed(Box::new(object))));
            let options = WriterOptions { version: 10, compress: true, checksum: true };
            space.begin_snapshot(options).expect("the first");
            let mut pieces = Vec::new();
            while writing.time(|| space.snapshot_slice(32 << 10, 256 << 10)) != SnapshotProgress::Idle {
                pieces.extend(space.take_snapshot_output());
            }
            drop(pieces);
            space.clear(0);
            let mut elsewhere = Vec::new();
            while freeing.time(|| space.free_some(1024, |block| elsewhere.push(block))) {}
        }
        if !growing.shortest_ns.is_empty() {
            growing.report("grow");
        }
        writing.report("write");
        freeing.report("free");
    }
}
