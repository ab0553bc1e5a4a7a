//! Full syncs in parts between a master and a replica in one thread, from a seed: connections carry their bytes in pieces of any
//! size, in any order among each other, and break at any moment; those that carry parts damage them, too. Whatever the replica puts in place is the master's dataset at
//! the very offset that it names (law 5), and nothing less (law 9); and in the end it gets there.
//!
//! `BRAID_PARTS_SEEDS=n` runs so many seeds, `BRAID_PARTS_SEED=n` that one.

mod master;
mod replica;

use master::Master;
use replica::Replica;
use std::collections::{BTreeMap, BTreeSet};

/// What a snapshot holds.
pub type Keys = BTreeSet<String>;

/// Full syncs of one world.
const SYNCS: u32 = 4;
const STEPS_MAX: u32 = 200_000;

/// A connection, as the network has it.
#[derive(Default)]
pub struct Wire {
    /// On their way to the master, and to the replica.
    pub up: Vec<u8>,
    pub down: Vec<u8>,
    /// Either side has closed it, or it broke.
    pub is_broken: bool,
}

/// All connections, by number.
#[derive(Default)]
pub struct Network {
    pub wires: BTreeMap<u64, Wire>,
    last: u64,
}

impl Network {
    pub fn open(&mut self) -> u64 {
        self.last += 1;
        self.wires.insert(self.last, Wire::default());
        self.last
    }

    pub fn wire(&mut self, id: u64) -> Option<&mut Wire> {
        self.wires.get_mut(&id).filter(|wire| !wire.is_broken)
    }

    pub fn cut(&mut self, id: u64) {
        if let Some(wire) = self.wires.get_mut(&id) {
            wire.is_broken = true;
        }
    }
}

/// Takes some of what is on its way.
fn some(bytes: &mut Vec<u8>, rng: &mut fastrand::Rng) -> Vec<u8> {
    let len = if rng.bool() { bytes.len() } else { rng.usize(..=bytes.len()) };
    bytes.drain(..len).collect()
}

struct World {
    rng: fastrand::Rng,
    now_ms: u64,
    network: Network,
    master: Master,
    replica: Replica,
    /// Connections still to be cut.
    cuts_left: u32,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let connections = rng.usize(0..=16);
        let shards = rng.usize(1..8);
        Self {
            now_ms: 1000,
            network: Network::default(),
            master: Master::new(shards, rng.u64(..), rng.bool()),
            replica: Replica::new(connections, 1000),
            cuts_left: rng.u32(0..12),
            rng,
        }
    }

    fn step(&mut self) {
        let Self { rng, now_ms, network, master, replica, .. } = self;
        *now_ms += if rng.u8(..100) == 0 { rng.u64(..1500) } else { rng.u64(..5) };
        match rng.u8(..8) {
            0 => master.write(rng),
            1 => master.work(network, rng, *now_ms),
            2 => replica.work(network, &master.cuts, *now_ms),
            3 if self.cuts_left > 0 && rng.u8(..40) == 0 => {
                let open: Vec<u64> = network.wires.keys().copied().collect();
                if let Some(id) = rng.choice(&open) {
                    self.cuts_left -= 1;
                    match network.wire(*id) {
                        Some(wire) if replica.is_part(*id) && !wire.down.is_empty() && rng.bool() => {
                            let at = rng.usize(..wire.down.len());
                            wire.down[at] ^= 1 << rng.u8(..8);
                        }
                        _ => network.cut(*id),
                    }
                }
            }
            _ => {
                let ids: Vec<u64> = network.wires.keys().copied().collect();
                let Some(id) = rng.choice(ids) else { return };
                let wire = network.wires.get_mut(&id).expect("just listed");
                let (up, down) = (some(&mut wire.up, rng), some(&mut wire.down, rng));
                if wire.is_broken {
                    // What was on its way may still arrive, at one side or both.
                    network.wires.remove(&id);
                    if rng.bool() {
                        replica.received(id, &down, *now_ms);
                    }
                    replica.closed(id, *now_ms);
                    master.closed(id, *now_ms);
                } else {
                    master.received(id, &up, network, *now_ms);
                    replica.received(id, &down, *now_ms);
                }
            }
        }
    }
}

fn run(seed: u64) -> (u32, u64) {
    let mut world = World::new(seed);
    let mut syncs = 0;
    for step in 0..STEPS_MAX {
        world.step();
        if world.replica.is_in_step() {
            syncs += 1;
            if syncs == SYNCS {
                return (step, world.master.home.report(world.now_ms).syncs_in_parts);
            }
            world.replica.start_over(world.now_ms);
        }
    }
    panic!("seed {seed}: {syncs} full syncs in {STEPS_MAX} steps");
}

#[test]
fn law5_and_9_what_is_put_in_place_is_the_dataset_at_its_offset_whatever_breaks() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    if let Some(seed) = number("BRAID_PARTS_SEED") {
        run(seed);
        return;
    }
    let mut in_parts = 0;
    let seeds = number("BRAID_PARTS_SEEDS").unwrap_or(200);
    for seed in 0..seeds {
        let outcome = std::panic::catch_unwind(|| run(seed));
        match outcome {
            Ok((_, parts)) => in_parts += parts,
            Err(panic) => {
                eprintln!("BRAID_PARTS_SEED={seed} replays it");
                std::panic::resume_unwind(panic);
            }
        }
    }
    assert!(in_parts > seeds, "most worlds see some in parts: {in_parts}");
}
