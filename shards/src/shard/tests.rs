mod batches;

use super::*;
use crate::parcel::{Caller, RunFlags};
use crate::pipeline::Pipeline;
use crate::testing::{ATOMIC, CONN, Cluster, unit};
use crate::tx::{Everything, Work};
use crate::unit::{Invocation, Unit};

/// A cluster of three in which shard 2 coordinates `MSET` of a key of shard 0 and one of shard 1, and has borrowed the
/// former.
fn borrowed() -> (Cluster, String, String) {
    let mut cluster = Cluster::new(3);
    let (a, b) = (cluster.key(0, "a"), cluster.key(1, "b"));
    assert_eq!(cluster.send(2, CONN, &format!("MSET {a} new {b} new")), None);
    cluster.pass(2, 0);
    cluster.end_tick(0);
    (cluster, a, b)
}

#[test]
fn law3_a_command_waits_for_a_key_on_loan() {
    let (mut cluster, a, _) = borrowed();
    assert_eq!(cluster.send(0, CONN, &format!("GET {a}")), None);
    let c = cluster.key(0, "c");
    assert_eq!(cluster.send(0, ConnId(8), &format!("GET {c}")), Some("$-1\r\n".into()));
    cluster.rest();
    assert_eq!(cluster.replies(0), ["$3\r\nnew\r\n"]);
}

#[test]
fn law3_who_walks_the_keys_waits_for_those_on_loan() {
    for line in ["KEYS *", "SCAN 0"] {
        let mut cluster = Cluster::new(3);
        let (a, b) = (cluster.key(0, "a"), cluster.key(1, "b"));
        cluster.ask(&format!("SET {a} old"));
        assert_eq!(cluster.send(2, CONN, &format!("MSET {a} new {b} new")), None);
        cluster.pass(2, 0);
        assert_eq!(cluster.send(0, ConnId(8), line), None, "{line}: one key is away");
        // Who comes later, and wants another key, does not go before.
        let c = cluster.key(0, "c");
        assert_eq!(cluster.send(1, ConnId(8), &format!("MSET {b} 1 {c} 1")), None);
        cluster.pass(1, 0);
        cluster.rest();
        let replies = cluster.replies(0);
        assert!(replies.len() == 1 && replies[0].contains(&a) && !replies[0].contains(&c), "{replies:?}");
    }
}

#[test]
fn law2_a_run_that_waits_keeps_its_order() {
    let (mut cluster, a, _) = borrowed();
    let c = cluster.key(0, "c");
    let lines = [format!("SET {c} 1"), format!("GET {a}"), format!("GET {c}"), format!("SET {c} 2")];
    assert_eq!(cluster.pipeline(1, CONN, &lines), "");
    cluster.pass(1, 0);
    // What comes before the key on loan took effect, what comes behind did not.
    assert_eq!(cluster.send(0, CONN, &format!("GET {c}")), Some("$1\r\n1\r\n".into()));
    cluster.rest();
    assert_eq!(cluster.replies(1), ["+OK\r\n$3\r\nnew\r\n$1\r\n1\r\n+OK\r\n"]);
    assert_eq!(cluster.send(0, CONN, &format!("GET {c}")), Some("$1\r\n2\r\n".into()));
}

/// The commands of a pipeline that goes from shard 0 to 1, to 0, to 2, to 1 and to 0.
fn crossing(cluster: &Cluster) -> Vec<String> {
    let [x, y, z] = [0, 1, 2].map(|shard| cluster.key(shard, "x"));
    [&y, &x, &z, &y, &x].iter().enumerate().map(|(n, key)| format!("SET {key} {n}")).collect()
}

#[test]
fn law2_in_unrest_legs_run_one_after_another_whatever_comes_first() {
    let mut cluster = Cluster::new(3);
    cluster.shards[0].counters.sequencer.begin_unrest(1);
    let lines = crossing(&cluster);
    let [x, y, z] = [0, 1, 2].map(|shard| cluster.key(shard, "x"));
    let value = |cluster: &mut Cluster, at: usize, key: &str| {
        cluster.send(at, ConnId(9), &format!("GET {key}")).expect("an own key")
    };
    assert_eq!(cluster.pipeline(0, CONN, &lines), "");
    cluster.end_tick(0);
    // The third leg arrives first, and waits; so does the second, which is here.
    cluster.deliver(0, 2);
    assert_eq!(value(&mut cluster, 2, &z), "$-1\r\n");
    assert_eq!(value(&mut cluster, 0, &x), "$-1\r\n");
    cluster.deliver(0, 1);
    assert_eq!(value(&mut cluster, 1, &y), "$1\r\n0\r\n");
    assert_eq!(value(&mut cluster, 0, &x), "$-1\r\n");
    // The first one's tick ends: the second runs, but its own has not ended.
    cluster.pass(1, 0);
    assert_eq!(value(&mut cluster, 0, &x), "$1\r\n1\r\n");
    assert_eq!(value(&mut cluster, 2, &z), "$-1\r\n");
    cluster.pass(0, 2);
    assert_eq!(value(&mut cluster, 2, &z), "$1\r\n2\r\n");
    assert_eq!(value(&mut cluster, 1, &y), "$1\r\n0\r\n");
    cluster.end_tick(2);
    // The fourth may run, which shard 1 hears before the coordinator has the third's answer.
    cluster.deliver(2, 1);
    assert_eq!(value(&mut cluster, 1, &y), "$1\r\n3\r\n");
    cluster.pass(1, 0);
    assert_eq!(value(&mut cluster, 0, &x), "$1\r\n4\r\n");
    assert_eq!(cluster.replies(0), ["+OK\r\n", "+OK\r\n"], "not what came before the third's");
    cluster.rest();
    assert_eq!(cluster.replies(0), ["+OK\r\n"; 3]);
}

#[test]
fn law2_a_leg_that_waits_for_a_key_on_loan_holds_up_the_next() {
    let (mut cluster, a, _) = borrowed();
    let d = cluster.key(1, "d");
    // From shard 2: to 0, where the key is on loan, to 1, and home.
    let e = cluster.key(2, "e");
    let lines = [format!("GET {a}"), format!("SET {d} 1"), format!("SET {e} 1")];
    assert_eq!(cluster.pipeline(2, CONN, &lines), "");
    cluster.pass(2, 0);
    cluster.deliver(2, 1);
    cluster.deliver(2, 1);
    cluster.end_tick(0);
    assert_eq!(cluster.send(1, CONN, &format!("GET {d}")), Some("$-1\r\n".into()));
    assert_eq!(cluster.send(2, ConnId(9), &format!("GET {e}")), Some("$-1\r\n".into()));
    cluster.rest();
    assert_eq!(cluster.replies(2), ["+OK\r\n", "$3\r\nnew\r\n", "+OK\r\n", "+OK\r\n"]);
}

#[test]
fn law3_a_transaction_of_one_shard_waits_as_a_whole() {
    let (mut cluster, a, _) = borrowed();
    let c = cluster.key(0, "c");
    let commands = unit(&format!("SET {c} 1; GET {a}"));
    cluster.shards[1].dispatch_atomic(0, Caller::new(CONN, ATOMIC), &commands);
    cluster.pass(1, 0);
    assert_eq!(cluster.send(0, CONN, &format!("GET {c}")), Some("$-1\r\n".into()));
    cluster.rest();
    assert_eq!(cluster.replies(1), ["*2\r\n+OK\r\n$3\r\nnew\r\n"]);
}

#[test]
fn law3_everything_on_loan_blocks_even_what_has_no_keys() {
    let mut cluster = Cluster::new(2);
    assert_eq!(cluster.send(1, CONN, "DBSIZE"), None);
    cluster.pass(1, 0);
    assert!(cluster.shards[0].keyspace().is_none());
    let a = cluster.key(0, "a");
    assert_eq!(cluster.send(0, CONN, &format!("SET {a} 1")), None);
    cluster.shards[0].run_later(Caller::new(CONN, ATOMIC), Unit::default());
    cluster.shards[0].settle(&mut cluster.told[0]);
    assert!(cluster.told[0].replies.is_empty());
    cluster.rest();
    assert_eq!(cluster.replies(0), ["+OK\r\n", "*0\r\n"]);
    assert_eq!(cluster.replies(1), [":0\r\n"]);
}

/// A transaction of the home that cuts the stream here.
fn cut(cluster: &mut Cluster) {
    let action = |everything: &mut Everything<'_>| {
        everything.slices.iter_mut().for_each(|slice| slice.stream = true);
        *everything.mark = Some(Mark::Cut(1));
    };
    cluster.shards[0].begin(None, Work::Action(Box::new(action)));
    cluster.shards[0].settle(&mut cluster.told[0]);
}

#[test]
fn law5_cut_what_follows_in_the_same_tick_is_behind_the_mark() {
    let mut cluster = Cluster::new(2);
    cut(&mut cluster);
    // Waits for the cut to return the slice, and then runs in the tick that made the cut.
    let a = cluster.key(0, "a");
    assert_eq!(cluster.send(0, CONN, &format!("SET {a} 1")), None);
    cluster.pass(0, 1);
    cluster.pass(1, 0);
    assert_eq!(cluster.replies(0), ["+OK\r\n"]);
    cluster.end_tick(0);
    let segments = &cluster.told[0].segments;
    assert_eq!(segments[0], (0, String::new(), Some(Mark::Cut(1))));
    assert_eq!((segments[1].0, segments[1].2), (1, None));
    assert!(segments[1].1.contains("SET"));
    cluster.rest();
}

#[test]
fn law4_one_stream_a_coordinator_whose_slice_is_not_back_from_the_cut_has_effects() {
    let mut cluster = Cluster::new(4);
    cut(&mut cluster);
    cluster.end_tick(0);
    for owner in 1..4 {
        cluster.deliver(0, owner);
        cluster.pass(owner, 0);
    }
    cluster.end_tick(0);
    // The slice of shard 1, which coordinates, stays on its way back; the others are home.
    cluster.deliver(0, 2);
    cluster.deliver(0, 3);
    let (c, d) = (cluster.key(2, "c"), cluster.key(3, "d"));
    assert_eq!(cluster.send(1, CONN, &format!("MSET {c} 1 {d} 1")), None);
    cluster.end_tick(1);
    for owner in [2, 3] {
        cluster.deliver(1, owner);
        cluster.pass(owner, 1);
    }
    assert!(cluster.shards[1].keyspace().is_none());
    assert_eq!(cluster.replies(1), ["+OK\r\n"]);
    cluster.rest();
    assert!(cluster.told[0].segments.iter().any(|(_, bytes, _)| bytes.contains("MSET")));
}

#[test]
fn an_abort_waits_for_the_slice_and_does_not_hit_another_snapshot() {
    let mut cluster = Cluster::new(2);
    let a = cluster.key(1, "a");
    cluster.ask(&format!("SET {a} 1"));
    let options = braid_core::rdb::WriterOptions { version: 10, compress: false, checksum: true };
    let begin = |cluster: &mut Cluster, snapshot: u64| {
        let keyspace = cluster.shards[1].keyspace.as_mut().unwrap();
        keyspace.begin_snapshot(options).unwrap();
        keyspace.snapshot_id = snapshot;
    };
    let walk = |cluster: &mut Cluster| {
        let host = &mut cluster.told[1];
        cluster.shards[1].walk_snapshot(1 << 20, 1 << 20, false, host).unwrap().piece
    };
    begin(&mut cluster, 5);
    cluster.shards[1].abort_snapshot(4);
    assert!(walk(&mut cluster).is_some_and(|piece| piece.is_last && !piece.chunks.is_empty()));
    begin(&mut cluster, 6);
    assert_eq!(cluster.send(0, CONN, "DBSIZE"), None);
    cluster.pass(0, 1);
    cluster.shards[1].abort_snapshot(6);
    cluster.rest();
    assert!(walk(&mut cluster).is_none());
    assert!(!cluster.shards[1].keyspace().unwrap().has_snapshot());
}

/// Rings without room.
struct Full;

impl Outlet for Full {
    fn has_room(&self, _: ShardId) -> bool {
        false
    }

    fn deliver(&mut self, _: ShardId, parcel: Box<Parcel>) -> Result<(), Box<Parcel>> {
        Err(parcel)
    }
}

#[test]
fn law9_what_waits_for_the_merge_is_bounded() {
    let mut cluster = Cluster::new(2);
    cut(&mut cluster);
    cluster.rest();
    let a = cluster.key(1, "a");
    let value = "x".repeat(1 << 20);
    let mut ticks = 0;
    while !cluster.shards[1].is_held_up() {
        assert_eq!(cluster.send(1, CONN, &format!("SET {a} {value}")), Some("+OK\r\n".into()));
        assert!(!cluster.shards[1].is_held_up(), "the ring may have room");
        cluster.shards[1].end_tick(&mut Full, &mut cluster.told[1]);
        assert!(cluster.shards[1].is_home_full());
        ticks += 1;
    }
    assert_eq!(ticks, UNDELIVERED_MAX_BYTES >> 20);
    cluster.end_tick(1);
    assert!(!cluster.shards[1].is_held_up() && !cluster.shards[1].is_home_full());
    cluster.rest();
    let segments = cluster.told[0].segments.iter().filter(|(_, bytes, _)| bytes.contains("SET"));
    assert_eq!(segments.count() as u64, ticks);
}

#[test]
fn a_full_ring_delays_and_loses_nothing() {
    let mut cluster = Cluster::new(2);
    let a = cluster.key(1, "a");
    assert_eq!(cluster.send(0, CONN, &format!("SET {a} 1")), None);
    cluster.shards[0].end_tick(&mut Full, &mut cluster.told[0]);
    assert!(cluster.shards[0].has_outgoing());
    assert_eq!(cluster.send(0, ConnId(8), &format!("GET {a}")), None);
    cluster.rest();
    assert_eq!(cluster.replies(0), ["+OK\r\n", "$1\r\n1\r\n"]);
}

#[test]
fn law1_large_values_of_several_connections_travel_in_one_parcel() {
    let mut cluster = Cluster::new(2);
    let (id, _) = braid_core::command::registry().find(b"set").unwrap();
    let keys: Vec<String> = (0..3).map(|n| cluster.key(1, &format!("key{n}"))).collect();
    for (n, key) in keys.iter().enumerate() {
        let value = bytes::Bytes::from(vec![b'0' + n as u8; 3]);
        let args: [&[u8]; 3] = [b"SET", key.as_bytes(), &value];
        let shared = [(2, value.clone())];
        let args = Args::new(&args, &shared);
        let (conn, mut alone) = (ConnId(n as u64), Pipeline::default());
        cluster.shards[0].submit(
            &mut alone,
            1,
            Caller::new(conn, RunFlags::default()),
            Invocation { id, db: 0, args },
        );
    }
    cluster.rest();
    assert_eq!(cluster.replies(0), ["+OK\r\n"; 3]);
    for (n, key) in keys.iter().enumerate() {
        let value = n.to_string().repeat(3);
        assert_eq!(cluster.ask(&format!("GET {key}")), format!("$3\r\n{value}\r\n"));
    }
}
