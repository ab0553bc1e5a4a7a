//! Pipelines of several shards, run in one order by all of them.

use super::*;

/// What an own connection of the owner of a key reads.
fn value(cluster: &mut Cluster, at: usize, key: &str) -> String {
    cluster.send(at, ConnId(9), &format!("GET {key}")).expect("an own key")
}

#[test]
fn law2_every_shard_runs_its_part_at_once() {
    let mut cluster = Cluster::new(3);
    let lines = crossing(&cluster);
    let [x, y, z] = [0, 1, 2].map(|shard| cluster.key(shard, "x"));
    assert_eq!(cluster.pipeline(0, CONN, &lines), "");
    cluster.end_tick(0);
    assert_eq!(value(&mut cluster, 0, &x), "$1\r\n4\r\n");
    cluster.deliver(0, 2);
    assert_eq!(value(&mut cluster, 2, &z), "$1\r\n2\r\n");
    cluster.pass(2, 0);
    assert!(cluster.replies(0).is_empty(), "the first answer is to come");
    cluster.deliver(0, 1);
    assert_eq!(value(&mut cluster, 1, &y), "$1\r\n3\r\n");
    cluster.pass(1, 0);
    assert_eq!(cluster.replies(0), ["+OK\r\n"; 5]);
    cluster.rest();
}

#[test]
fn law2_of_two_pipelines_the_same_is_first_everywhere() {
    let mut cluster = Cluster::new(2);
    let [x, y] = [0, 1].map(|shard| cluster.key(shard, "x"));
    cluster.pipeline(0, CONN, &[format!("SET {y} first"), format!("SET {x} first")]);
    cluster.pipeline(1, CONN, &[format!("SET {x} second"), format!("SET {y} second")]);
    cluster.end_tick(0);
    assert!(cluster.shards[1].is_behind());
    cluster.end_tick(1);
    // Its own part waits for the other pipeline's, which is on its way.
    assert!(cluster.shards[1].is_behind());
    assert_eq!(value(&mut cluster, 1, &y), "$-1\r\n");
    cluster.deliver(1, 0);
    assert_eq!(value(&mut cluster, 0, &x), "$6\r\nsecond\r\n");
    cluster.deliver(0, 1);
    assert!(!cluster.shards[1].is_behind());
    assert_eq!(value(&mut cluster, 1, &y), "$6\r\nsecond\r\n");
    cluster.rest();
}

#[test]
fn law2_who_saw_one_shard_s_part_finds_the_others() {
    let mut cluster = Cluster::new(3);
    let [y, z] = [1, 2].map(|shard| cluster.key(shard, "x"));
    cluster.pipeline(0, CONN, &[format!("SET {z} new"), format!("SET {y} new")]);
    cluster.end_tick(0);
    cluster.deliver(0, 1);
    assert_eq!(value(&mut cluster, 1, &y), "$3\r\nnew\r\n");
    // A client of shard 1 that has seen it asks shard 2, and is faster than what shard 0 sent.
    assert_eq!(cluster.send(1, CONN, &format!("GET {z}")), None);
    cluster.pass(1, 2);
    cluster.end_tick(2);
    assert!(!cluster.is_on_its_way(2, 1), "it waits");
    cluster.deliver(0, 2);
    cluster.pass(2, 1);
    assert_eq!(cluster.replies(1), ["$3\r\nnew\r\n"]);
    cluster.rest();
}

#[test]
fn one_stream_what_a_shard_did_before_a_batch_precedes_it() {
    let mut cluster = Cluster::new(2);
    cut(&mut cluster);
    cluster.rest();
    cluster.told[0].segments.clear();
    let [x, y] = [0, 1].map(|shard| cluster.key(shard, "x"));
    // Shard 1 has run something when shard 0 takes a place for a batch, and ends its tick later.
    assert!(cluster.send(1, CONN, &format!("SET {y} before")).is_some());
    cluster.pipeline(0, CONN, &[format!("SET {y} in"), format!("SET {x} in"), format!("APPEND {y} side")]);
    cluster.end_tick(0);
    cluster.end_tick(1);
    assert!(!cluster.is_on_its_way(1, 0), "what came before has no ticket of its own");
    cluster.deliver(0, 1);
    assert!(cluster.send(1, CONN, &format!("SET {y} after")).is_some());
    cluster.rest();
    let told = &mut cluster.told[0];
    let tickets: Vec<u64> = told.shares.iter().map(|(ticket, _)| *ticket).collect();
    assert_eq!(tickets, [1, 1]);
    assert_eq!(told.segments.len(), 1);
    assert!(told.segments[0].0 == 2 && told.segments[0].1.contains("after"));
    let places = |index: usize| told.shares[index].1.cuts.iter().map(|cut| cut.place).collect::<Vec<u32>>();
    assert_eq!((places(0), places(1)), (vec![2], vec![0, 1, 3]));
    let bytes = told.shares[1].1.segment.pieces.concat();
    let before = String::from_utf8(bytes[..told.shares[1].1.cuts[0].end_bytes as usize].to_vec()).unwrap();
    assert!(before.contains("before") && !before.contains("in"), "{before}");
}

#[test]
fn law3_what_may_have_to_wait_is_in_no_batch() {
    let (mut cluster, a, b) = borrowed();
    assert!(!cluster.shards[0].counters.sequencer.is_calm());
    let d = cluster.key(1, "d");
    cluster.pipeline(2, ConnId(8), &[format!("SET {a} 1"), format!("SET {d} 1")]);
    cluster.end_tick(2);
    assert!((0..3).all(|shard| !cluster.shards[shard].is_behind()));
    cluster.rest();
    assert!(cluster.shards[0].counters.sequencer.is_calm(), "the transaction and all it lent are back");
    assert_eq!(value(&mut cluster, 1, &b), "$3\r\nnew\r\n");
    assert_eq!(value(&mut cluster, 0, &a), "$1\r\n1\r\n");
}

/// What could not be delivered in one piece keeps its order by itself, and whatever is added to it.
#[test]
fn law2_without_room_legs_wait_for_each_other() {
    let mut cluster = Cluster::new(2);
    let [x, y] = [0, 1].map(|shard| cluster.key(shard, "x"));
    let lines = |n: u32| [format!("SET {y} {n}"), format!("SET {x} {n}")];
    cluster.pipeline(0, ConnId(8), &lines(1));
    cluster.shards[0].end_tick(&mut Full, &mut cluster.told[0]);
    cluster.pipeline(0, CONN, &lines(2));
    cluster.end_tick(0);
    assert!(!cluster.shards[1].is_behind());
    assert_eq!(value(&mut cluster, 0, &x), "$-1\r\n");
    cluster.deliver(0, 1);
    assert_eq!(value(&mut cluster, 1, &y), "$1\r\n2\r\n");
    cluster.rest();
    assert_eq!(value(&mut cluster, 0, &x), "$1\r\n2\r\n");
    // Now there is room again.
    cluster.pipeline(0, CONN, &lines(3));
    cluster.end_tick(0);
    assert!(cluster.shards[1].is_behind());
    cluster.rest();
}
