//! Whole processes of several shards in one thread, under a seeded scheduler: one with stock replicas, or a cluster of nodes.
//! Tests are named after the laws in ARCHITECTURE.md.
//!
//! A run that fails prints its seed: `BRAID_SIM_SEED=17 cargo test -p braid-replication --test simulation NAME` replays
//! it exactly. `BRAID_SIM_SEEDS=100000` makes every test run that many seeds.

mod check;
mod cluster;
mod env;
mod history;
mod hub;
mod model;
mod process;
mod rules;
mod session;
mod single;
mod stock;
mod stream;
mod workload;

use cluster::{Cluster, Happened};
use history::Compared;
use single::World;
use workload::{Scenario, count_in};

/// Databases of the process.
const DATABASES: usize = 3;

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

/// One seed is run again.
fn is_replay() -> bool {
    variable("BRAID_SIM_SEED").is_some()
}

/// The seeds to run: so many, unless the environment says otherwise.
fn seeds(count: u64) -> std::ops::Range<u64> {
    match variable("BRAID_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..variable("BRAID_SIM_SEEDS").unwrap_or(count),
    }
}

/// Runs a scenario under many seeds and looks at each run's end.
fn simulate(scenario: Scenario, seeds: u64, mut look: impl FnMut(&mut World)) {
    for seed in self::seeds(seeds) {
        let seed = Seed(seed);
        let mut world = World::new(seed.0, scenario);
        world.run();
        if is_replay() {
            check::print(&mut world);
        }
        look(&mut world);
    }
}

#[test]
fn law4_one_stream_is_the_order_in_which_everything_happened() {
    simulate(Scenario::Mixed, 2000, check::check);
}

#[test]
fn law4_one_stream_has_pipelines_in_their_order_though_shards_run_them_at_once() {
    let mut batches = 0;
    simulate(Scenario::Calm, 2000, |world| {
        batches += world.process.batches();
        check::check(world);
    });
    assert!(is_replay() || batches > 10_000, "pipelines of several shards at once: {batches}");
}

#[test]
fn law3_atomicity_who_reads_all_keys_sees_one_writer() {
    simulate(Scenario::AllOrNothing, 800, |world| {
        for op in world.env.ops.iter().filter(|op| op.client % 2 == 1) {
            let values: Vec<&[u8]> =
                op.reply.split(|byte| *byte == b'\n').filter(|line| line[0..].starts_with(b"v")).collect();
            let writer = |value: &[u8]| value.split(|byte| *byte == b'.').next().map(<[u8]>::to_vec);
            assert!(
                values.windows(2).all(|pair| writer(pair[0]) == writer(pair[1])),
                "law 3: a mix: {}",
                op.reply.escape_ascii()
            );
        }
        check::check(world);
    });
}

#[test]
fn law3_atomicity_no_count_is_lost_under_watch() {
    let mut aborted = 0;
    simulate(Scenario::Counters, 800, |world| {
        for counter in 0..2 {
            let counted = |op: &&workload::Op| {
                op.kind == workload::Kind::Exec && op.body()[0][1] == workload::key(counter).as_bytes()
            };
            let done = world.env.ops.iter().filter(counted).filter(|op| !op.is_aborted()).count();
            aborted += world.env.ops.iter().filter(counted).filter(|op| op.is_aborted()).count();
            let (_, state) = world.rests.last().expect("the end");
            let value = state.get(0, workload::key(counter).as_bytes());
            let count = value.map_or(0, |value| match &value.data {
                model::Data::Text(text) => count_in(&model::bulk(text)).expect("a count"),
                model::Data::List(_) => unreachable!("a string"),
            });
            assert_eq!(count, done as u64, "law 3: a count was lost");
        }
        check::check(world);
    });
    assert!(is_replay() || aborted > 100, "contention: {aborted}");
}

#[test]
fn a_seed_replays_exactly() {
    for seed in 0..100 {
        let mut runs = [(), ()].map(|()| {
            let mut world = World::new(seed, Scenario::Mixed);
            world.run();
            world
        });
        let [first, second] = &mut runs;
        let moments = |world: &World| -> Vec<_> {
            world
                .env
                .ops
                .iter()
                .map(|op| (op.sent, op.replied, op.commands.clone(), op.reply.clone()))
                .collect()
        };
        assert_eq!(moments(first), moments(second), "seed {seed}");
        let sent = |world: &mut World| -> Vec<_> {
            world.hub().links.iter().map(|link| link.received.clone()).collect()
        };
        assert_eq!(sent(first), sent(second), "seed {seed}");
    }
}

#[test]
fn law4_to_7_a_cluster_of_any_topology_is_one_stream_and_converges() {
    let mut happened = Happened::default();
    let mut compared = Compared::default();
    for seed in seeds(2500) {
        let seed = Seed(seed);
        let mut cluster = Cluster::new(seed.0, is_replay());
        cluster.run();
        cluster.heal();
        happened += cluster.happened;
        compared += cluster.histories.compared;
    }
    println!("{happened:?}, {compared:?}");
    assert!(is_replay() || happened.is_plenty() && compared.is_plenty());
}

/// Readers that saw a number in the queue whose object they then did not find.
fn count_violations(world: &World) -> usize {
    let mut queue = vec![None; world.env.ops.len()];
    let mut violations = 0;
    for op in &world.env.ops {
        let count = count_in(&op.reply);
        match op.body()[0].join(&b' ').as_slice() {
            b"GET queue" => queue[op.client] = count,
            b"GET obj" => violations += usize::from(count < queue[op.client]),
            _ => {}
        }
    }
    violations
}

#[test]
fn law2_program_order_who_sees_the_queue_finds_the_object() {
    let mut batches = 0;
    simulate(Scenario::Litmus { is_ordered: true }, 800, |world| {
        assert_eq!(count_violations(world), 0, "law 2");
        batches += world.process.batches();
        check::check(world);
    });
    assert!(is_replay() || batches > 10_000, "pipelines of several shards at once: {batches}");
}

#[test]
fn law2_program_order_the_litmus_fails_without_the_rule() {
    let mut violations = 0;
    simulate(Scenario::Litmus { is_ordered: false }, 300, |world| violations += count_violations(world));
    assert!(is_replay() || violations > 0, "the litmus notices nothing");
}
