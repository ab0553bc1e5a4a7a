//! Commands that meet a huge value which a snapshot has not written yet.

use crate::parcel::{Caller, ConnId};
use crate::testing::{ATOMIC, CONN, Cluster, unit};
use crate::walk::Walked;
use braid_core::rdb::WriterOptions;

/// A cluster of two whose shard 0 owes the snapshot a large set and something small. Their keys, and one of shard 1.
fn owing() -> (Cluster, String, String, String) {
    let mut cluster = Cluster::new(2);
    let (big, small, other) = (cluster.key(0, "big"), cluster.key(0, "small"), cluster.key(1, "other"));
    let members: Vec<String> = (0..30_000).map(|number| format!("member:{number}")).collect();
    cluster.ask(&format!("SADD {big} {}", members.join(" ")));
    cluster.ask(&format!("SET {small} 1"));
    let options = WriterOptions { version: 10, compress: false, checksum: true };
    cluster.shards[0].keyspace.as_mut().unwrap().begin_snapshot(options).unwrap();
    (cluster, big, small, other)
}

fn walk(cluster: &mut Cluster, paused: bool) -> Option<Walked> {
    cluster.shards[0].walk_snapshot(32 << 10, 1 << 20, paused, &mut cluster.told[0])
}

/// Walks until the huge value is written, or given up. Returns in how many slices.
fn walk_until_written(cluster: &mut Cluster, paused: bool) -> usize {
    let count = (1..1000).find(|_| {
        walk(cluster, paused);
        cluster.shards[0].keyspace().unwrap().huge_values_written > 0
    });
    count.expect("the walk gets there")
}

#[test]
fn law8_a_change_waits_for_the_walk_and_nothing_else_does() {
    for begun in [false, true] {
        let (mut cluster, big, small, _) = owing();
        if begun {
            walk(&mut cluster, false);
        }
        assert_eq!(cluster.send(0, CONN, &format!("SADD {big} new")), None);
        assert_eq!(cluster.send(0, ConnId(8), &format!("SCARD {big}")), Some(":30000\r\n".into()));
        assert_eq!(cluster.send(0, ConnId(8), &format!("INCR {small}")), Some(":2\r\n".into()));
        // A slow reader of the snapshot holds up the walk, but not what somebody waits for.
        assert!(walk_until_written(&mut cluster, true) > 10);
        assert_eq!(cluster.replies(0), [":1\r\n"]);
        let written: usize = std::iter::from_fn(|| walk(&mut cluster, false)?.piece)
            .map(|piece| piece.chunks.iter().map(Vec::len).sum::<usize>())
            .sum();
        assert!(written > 30_000 * 10);
        assert!(!cluster.shards[0].keyspace().unwrap().has_snapshot());
    }
}

#[test]
fn what_commands_add_while_the_walk_pauses_comes_in_pieces() {
    const PIECE_BYTES: usize = 10_000;
    let mut cluster = Cluster::new(1);
    let value = "v".repeat(100);
    for number in 0..1000 {
        cluster.ask(&format!("SET key:{number} {value}"));
    }
    let options = WriterOptions { version: 10, compress: false, checksum: true };
    cluster.shards[0].keyspace.as_mut().unwrap().begin_snapshot(options).unwrap();
    let walk = |cluster: &mut Cluster, paused| {
        cluster.shards[0].walk_snapshot(32 << 10, PIECE_BYTES, paused, &mut cluster.told[0])
    };
    let mut lens = Vec::new();
    for number in 0..1000 {
        cluster.ask(&format!("SET key:{number} new"));
        let piece = walk(&mut cluster, true).and_then(|walked| walked.piece);
        lens.extend(piece.map(|piece| piece.chunks.iter().map(Vec::len).sum::<usize>()));
    }
    assert!(lens.len() >= 10, "{lens:?}");
    assert!(lens.iter().all(|len| (PIECE_BYTES..PIECE_BYTES + 200).contains(len)), "{lens:?}");
    let rest: Vec<_> =
        std::iter::from_fn(|| walk(&mut cluster, false)).filter_map(|walked| walked.piece).collect();
    assert!(rest.last().is_some_and(|piece| piece.is_last));
}

#[test]
fn law8_transactions_wait_for_the_walk_too() {
    let (mut cluster, big, small, other) = owing();
    // One of two shards, and one of this shard alone.
    cluster.begin(
        1,
        Caller::new(CONN, ATOMIC),
        Some(
            [&big[..], &other[..]]
                .into_iter()
                .map(AsRef::as_ref)
                .collect::<crate::locks::LockKeys>()
                .finish(),
        ),
        &format!("SADD {big} x; SET {other} 1"),
    );
    cluster.pass(1, 0);
    cluster.shards[1].dispatch_atomic(
        0,
        Caller::new(ConnId(8), ATOMIC),
        &unit(&format!("INCR {small}; SREM {big} member:5")),
    );
    cluster.pass(1, 0);
    assert!(!cluster.shards[0].is_quiet());
    assert_eq!(cluster.send(0, ConnId(9), &format!("GET {small}")), Some("$1\r\n1\r\n".into()));
    walk_until_written(&mut cluster, false);
    cluster.rest();
    let mut replies = cluster.replies(1);
    replies.sort();
    assert_eq!(replies, ["*2\r\n:1\r\n+OK\r\n", "*2\r\n:2\r\n:1\r\n"]);
}

#[test]
fn who_waits_for_a_snapshot_that_is_given_up_goes_on() {
    let (mut cluster, big, ..) = owing();
    walk(&mut cluster, false);
    assert_eq!(cluster.send(0, CONN, &format!("DEL {big}")), None);
    cluster.shards[0].abort_snapshot(0);
    walk_until_written(&mut cluster, false);
    assert_eq!(cluster.replies(0), [":1\r\n"]);
    while walk(&mut cluster, false).is_some() {}
    assert!(cluster.shards[0].keyspace().unwrap().has_trash());
}

#[test]
fn snapshots_given_up_while_the_slice_is_on_loan_are_all_given_up() {
    let (mut cluster, ..) = owing();
    cluster.shards[0].keyspace.as_mut().unwrap().snapshot_id = 6;
    cluster.begin(1, Caller::new(CONN, ATOMIC), None, "DBSIZE");
    cluster.pass(1, 0);
    assert!(cluster.shards[0].keyspace().is_none(), "on loan");
    cluster.shards[0].abort_snapshot(6);
    cluster.shards[0].abort_snapshot(7);
    cluster.rest();
    assert!(cluster.shards[0].keyspace().is_some(), "back");
    assert!(std::iter::from_fn(|| walk(&mut cluster, false)).all(|walked| walked.piece.is_none()));
}

#[test]
fn law8_what_waits_for_the_walk_holds_up_no_transaction_over_everything() {
    let (mut cluster, big, ..) = owing();
    assert_eq!(cluster.send(0, CONN, &format!("SADD {big} new")), None);
    assert_eq!(cluster.send(1, ConnId(8), "DBSIZE"), None);
    cluster.pass(1, 0);
    cluster.pass(0, 1);
    assert_eq!(cluster.replies(1), [":2\r\n"]);
    cluster.pass(1, 0);
    assert!(cluster.replies(0).is_empty());
    walk_until_written(&mut cluster, false);
    cluster.rest();
    assert_eq!(cluster.replies(0), [":1\r\n"]);
}
