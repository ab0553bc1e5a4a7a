//! A whole process of several shards in one thread, under a seeded scheduler. Tests are named after the laws in
//! ARCHITECTURE.md.
//!
//! A run that fails prints its seed: `BRAID_SIM_SEED=17 cargo test -p braid-replication --test simulation NAME` replays
//! it exactly. `BRAID_SIM_SEEDS=100000` makes every test run that many seeds.

mod check;
mod model;
mod replicas;
mod session;
mod stream;
mod workload;
mod world;

use workload::{Scenario, count_in};
use world::World;

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

/// Runs a scenario under many seeds and looks at each run's end.
fn simulate(scenario: Scenario, seeds: u64, mut look: impl FnMut(&mut World)) {
    let range = match variable("BRAID_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..variable("BRAID_SIM_SEEDS").unwrap_or(seeds),
    };
    for seed in range {
        let seed = Seed(seed);
        let mut world = World::new(seed.0, scenario);
        world.run();
        if variable("BRAID_SIM_SEED").is_some() {
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
fn law3_atomicity_who_reads_all_keys_sees_one_writer() {
    simulate(Scenario::AllOrNothing, 800, |world| {
        for op in world.ops.iter().filter(|op| op.client % 2 == 1) {
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
            let done = world.ops.iter().filter(counted).filter(|op| !op.is_aborted()).count();
            aborted += world.ops.iter().filter(counted).filter(|op| op.is_aborted()).count();
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
    assert!(variable("BRAID_SIM_SEED").is_some() || aborted > 100, "contention: {aborted}");
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
            world.ops.iter().map(|op| (op.sent, op.replied, op.commands.clone(), op.reply.clone())).collect()
        };
        assert_eq!(moments(first), moments(second), "seed {seed}");
        let sent = |world: &mut World| -> Vec<_> {
            world.replicas().links.iter().map(|link| link.received.clone()).collect()
        };
        assert_eq!(sent(first), sent(second), "seed {seed}");
    }
}

/// Readers that saw a number in the queue whose object they then did not find.
fn count_violations(world: &World) -> usize {
    let mut queue = vec![None; world.ops.len()];
    let mut violations = 0;
    for op in &world.ops {
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
    simulate(Scenario::Litmus { is_ordered: true }, 800, |world| {
        assert_eq!(count_violations(world), 0, "law 2");
        check::check(world);
    });
}

#[test]
fn law2_program_order_the_litmus_fails_without_the_rule() {
    let mut violations = 0;
    simulate(Scenario::Litmus { is_ordered: false }, 300, |world| violations += count_violations(world));
    assert!(variable("BRAID_SIM_SEED").is_some() || violations > 0, "the litmus notices nothing");
}
