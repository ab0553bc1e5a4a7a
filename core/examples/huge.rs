//! Law 8 with huge values, measured: how long the longest step takes while values of millions of elements grow, are
//! written to a snapshot and are freed. Numbers to be read, not a test: they depend on the machine.
//!
//! `cargo run --release -p braid-core --example huge [millions]`

use braid_core::keyspace::{KeyEntry, Keyspace, SnapshotProgress};
use braid_core::rdb::WriterOptions;
use braid_core::table::{HashKey, NewValue};
use braid_core::types::{Hash, Limits, List, Object, Set, ZSet};
use std::time::{Duration, Instant};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The longest of many steps.
#[derive(Default)]
struct Longest {
    steps: usize,
    all: Duration,
    longest: Duration,
    at: usize,
}

impl Longest {
    fn time<R>(&mut self, step: impl FnOnce() -> R) -> R {
        let start = Instant::now();
        let result = step();
        let took = start.elapsed();
        self.steps += 1;
        self.all += took;
        if took > self.longest {
            (self.longest, self.at) = (took, self.steps);
        }
        result
    }

    fn report(&self, what: &str) {
        println!(
            "  {what:10} {:9} steps, {:9.1?} in all, longest {:9.1?} (number {})",
            self.steps, self.all, self.longest, self.at
        );
    }
}

fn grow(millions: usize, mut add: impl FnMut(u64)) {
    let mut longest = Longest::default();
    for number in 0..millions as u64 * 1_000_000 {
        // Scattered, as members are.
        let number = number.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        longest.time(|| add(number));
    }
    longest.report("grow");
}

fn main() {
    let millions = std::env::args().nth(1).map_or(1, |arg| arg.parse().expect("millions of elements"));
    let limits = Limits::default();
    for kind in ["list", "list of 4 KiB", "set", "hash", "zset", "string"] {
        println!("{kind}, {millions} million elements");
        let object = match kind {
            "list" => {
                let mut list = List::new();
                grow(millions, |n| list.push_back(format!("element:{n}").as_bytes(), &limits));
                Object::List(list)
            }
            // Two to a node: the deque of nodes grows long. A tenth of the elements.
            "list of 4 KiB" => {
                let mut list = List::new();
                let text = [b'x'; 10];
                let limits = Limits { list_max_listpack_size: 1, ..limits.clone() };
                grow(millions, |_| list.push_back(&text, &limits));
                Object::List(list)
            }
            "set" => {
                let mut set = Set::new();
                grow(millions, |n| {
                    set.insert(format!("member:{n}").as_bytes(), &limits);
                });
                Object::Set(set)
            }
            "hash" => {
                let mut hash = Hash::new();
                let value = [b'v'; 40];
                grow(millions, |n| {
                    hash.set(format!("field:{n}").as_bytes(), &value, &limits);
                });
                Object::Hash(hash)
            }
            "zset" => {
                let mut zset = ZSet::new();
                grow(millions, |n| zset.insert(format!("member:{n}").as_bytes(), n as f64, &limits));
                Object::ZSet(zset)
            }
            _ => Object::Str(vec![b'x'; millions << 20].into()),
        };
        let mut space = Keyspace::new(1, HashKey::from_seed(1));
        space.attach(0, KeyEntry::new(b"key", NewValue::Boxed(Box::new(object))));
        space
            .begin_snapshot(WriterOptions { version: 10, compress: true, checksum: true })
            .expect("the first");
        let mut longest = Longest::default();
        let mut pieces = Vec::new();
        while longest.time(|| space.snapshot_slice(32 << 10, 256 << 10)) != SnapshotProgress::Idle {
            pieces.extend(longest.time(|| space.take_snapshot_output()));
        }
        let bytes: usize = pieces.iter().flat_map(|piece| &piece.chunks).map(Vec::len).sum();
        longest.report(&format!("write {} MB", bytes >> 20));
        drop(pieces);
        let mut longest = Longest::default();
        longest.time(|| space.clear(0));
        while longest.time(|| space.free_some(1024)) {}
        longest.report("free");
    }
}
