//! One shard's engine, round by round, at times that the test chooses.

use super::*;
use crate::config::Config;
use crate::ring::RingConfig;
use braid_core::command::registry;
use braid_core::rdb::WriterOptions;
use braid_core::resp::Reply;
use braid_shards::{Host, Ran, RunFlags};

/// The first of several shards, of which the others exist as mailboxes only.
fn engine(config: Config, shards: usize) -> (Engine, Vec<Mailboxes>) {
    let mut mailboxes = mailbox::connect_all(shards);
    let node = Arc::new(Node::new(config, None, shards));
    node.persistence.end_loading(0);
    let ring = Ring::new(&RingConfig::default()).expect("a ring is set up");
    let engine = Engine::new(0, node, ring, mailboxes.remove(0));
    (engine, mailboxes)
}

/// Runs a command whose keys are this shard's.
fn run(engine: &mut Engine, line: &str) {
    let args: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
    let args = Args::new(&args, &[]);
    let (id, _) = registry().find(args[0]).expect("a command");
    let (shard, front) = engine.parts();
    let ran = shard.run(ConnId(1), RunFlags::default(), id, 0, args, &mut Reply::default(), front);
    assert!(ran == Ran::Done);
}

#[test]
fn snapshots_that_are_given_up_in_the_same_round_are_all_given_up() {
    let (mut engine, _others) = engine(Config::default(), 2);
    let key = (0..).map(|n| format!("k{n}")).find(|key| engine.front.node.map.shard_of(key.as_bytes()) == 0);
    let members: Vec<String> = (0..30_000).map(|number| format!("member:{number}")).collect();
    run(&mut engine, &format!("SADD {} {}", key.expect("one of many"), members.join(" ")));
    let keyspace = engine.shard.keyspace_mut().expect("it is here");
    keyspace.begin_snapshot(WriterOptions { version: 10, compress: false, checksum: true }).unwrap();
    keyspace.snapshot_id = 6;
    for snapshot in [6, 7] {
        engine.front.upper(1, Box::new(replicas::Abort { snapshot }));
    }
    // One gives it up, the next clears it away; to walk the set takes more than ten.
    for _ in 0..2 {
        engine.round().unwrap();
    }
    assert!(!engine.shard.keyspace().expect("it is here").has_snapshot());
}
