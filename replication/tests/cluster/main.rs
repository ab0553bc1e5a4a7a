//! A cluster of nodes in one thread, under a seeded scheduler: every node has the home of a master and the link of a replica,
//! the network between them delivers any number of bytes at a time and breaks connections, nodes change roles, follow each
//! other in any topology, and start over empty. The shards are left out: a dataset is a map, applied by epochs.
//!
//! At every step a node that is at some offset of some history must hold what the master of that history held there (laws 5
//! and 6: never a wrong partial resync); after healing all nodes are equal, to the last byte of their logs.
//!
//! A run that fails prints its seed: `BRAID_SIM_SEED=17 cargo test -p braid-replication --test cluster NAME` replays it.
//! `BRAID_SIM_SEEDS=100000` makes every test run that many seeds.

mod dataset;
mod node;
mod world;

use world::World;

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

/// Tells which seed failed, when a run panics.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("failed with BRAID_SIM_SEED={}", self.0);
        }
    }
}

#[test]
fn law5_and_6_nodes_in_any_topology_hold_what_their_offset_says_and_converge() {
    let range = match variable("BRAID_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..variable("BRAID_SIM_SEEDS").unwrap_or(2500),
    };
    let (mut checks, mut full, mut partial) = (0, 0, 0);
    for seed in range {
        let seed = Seed(seed);
        let mut world = World::new(seed.0);
        world.run();
        world.heal();
        checks += world.checks;
        full += world.full_syncs();
        partial += world.partial_syncs();
    }
    println!("{checks} positions compared, {full} full syncs, {partial} partial ones");
    assert!(variable("BRAID_SIM_SEED").is_some() || (checks > 1000 && full > 500 && partial > 500));
}
