use super::*;
use crate::parcel::ConnId;
use crate::pipeline::Pipeline;
use crate::testing::{ATOMIC, CONN, Cluster, unit};
use braid_core::command::{Args, registry};

const OTHER: ConnId = ConnId(8);

fn keys(names: &[&String]) -> Option<Vec<LockKey>> {
    Some(names.iter().map(|name| name.as_bytes()).collect::<crate::locks::LockKeys>().finish())
}

#[test]
fn law3_transactions_that_meet_crosswise_both_finish() {
    let mut cluster = Cluster::new(4);
    let (a, b) = (cluster.key(0, "a"), cluster.key(1, "b"));
    assert_eq!(cluster.send(2, CONN, &format!("MSET {a} 2 {b} 2")), None);
    assert_eq!(cluster.send(3, CONN, &format!("MSET {b} 3 {a} 3")), None);
    cluster.end_tick(2);
    cluster.end_tick(3);
    // Each is first at one of the shards: the older is refused at shard 1 and starts over.
    cluster.deliver(2, 0);
    cluster.deliver(3, 1);
    cluster.deliver(3, 0);
    cluster.deliver(2, 1);
    cluster.rest();
    assert_eq!((cluster.replies(2), cluster.replies(3)), (vec!["+OK\r\n".into()], vec!["+OK\r\n".into()]));
    let both = cluster.ask(&format!("MGET {a} {b}"));
    assert_eq!(both, "*2\r\n$1\r\n2\r\n$1\r\n2\r\n", "who started over came last");
}

#[test]
fn law3_an_older_claim_that_waits_is_not_overtaken() {
    let mut cluster = Cluster::new(4);
    let (a, b) = (cluster.key(0, "a"), cluster.key(0, "b"));
    let c = cluster.key(1, "c");
    // The first holds `a`; the second waits for `a` and `b`; the third wants `b`, which is free.
    for (at, line) in [
        (1, format!("MSET {a} 1 {c} 1")),
        (2, format!("MSET {a} 2 {b} 2 {c} 2")),
        (3, format!("MSET {b} 3 {c} 3")),
    ] {
        assert_eq!(cluster.send(at, CONN, &line), None);
        cluster.pass(at, 0);
    }
    assert!(cluster.shards[0].locks.blocks(a.as_bytes()));
    assert!(!cluster.shards[0].locks.blocks(b.as_bytes()), "it waits behind the older one");
    cluster.rest();
    for at in 1..4 {
        assert_eq!(cluster.replies(at), ["+OK\r\n"]);
    }
    assert_eq!(cluster.ask(&format!("MGET {a} {b} {c}")), "*3\r\n$1\r\n2\r\n$1\r\n3\r\n$1\r\n3\r\n");
}

#[test]
fn law3_everything_waits_for_keys_and_keys_for_everything() {
    let mut cluster = Cluster::new(3);
    let (a, b) = (cluster.key(0, "a"), cluster.key(1, "b"));
    assert_eq!(cluster.send(1, CONN, &format!("MSET {a} 1 {b} 1")), None);
    cluster.pass(1, 0);
    assert_eq!(cluster.send(2, CONN, "FLUSHALL"), None);
    cluster.pass(2, 0);
    cluster.deliver(2, 1);
    assert!(cluster.shards[0].locks.exclusive_holder().is_none());
    // Younger than what waits for everything.
    assert_eq!(cluster.send(0, CONN, &format!("MSET {a} 2 {b} 2")), None);
    cluster.rest();
    assert_eq!(cluster.ask(&format!("MGET {a} {b}")), "*2\r\n$1\r\n2\r\n$1\r\n2\r\n");
}

/// A connection of shard 2 watches keys at their owners.
fn watch(cluster: &mut Cluster, names: &[&String]) -> WatcherId {
    let watcher = begin_watch(cluster, names);
    cluster.rest();
    cluster.replies(2);
    watcher
}

fn begin_watch(cluster: &mut Cluster, names: &[&String]) -> WatcherId {
    let watcher = WatcherId { shard: 2, conn: CONN.0 };
    let (id, _) = registry().find(b"watch|here").unwrap();
    for name in names {
        let args: [&[u8]; 2] = [b"watch|here", name.as_bytes()];
        let owner = cluster.shards[0].map.shard_of(name.as_bytes());
        let args = Args::new(&args, &[]);
        let mut alone = Pipeline::default();
        let flags = RunFlags::default();
        cluster.shards[2].submit(
            &mut alone,
            owner,
            Caller { conn: CONN, flags, watcher: Some(watcher) },
            Invocation { id, db: 0, args },
        );
    }
    watcher
}

#[test]
fn a_watch_that_waited_for_its_key_does_not_outlive_its_connection() {
    let mut cluster = Cluster::new(3);
    let (a, b) = (cluster.key(0, "a"), cluster.key(1, "b"));
    assert_eq!(cluster.send(1, OTHER, &format!("MSET {a} 1 {b} 1")), None);
    cluster.pass(1, 0);
    cluster.end_tick(0);
    // The key is on loan when the watch comes, and still is when the connection goes.
    let watcher = begin_watch(&mut cluster, &[&a]);
    cluster.pass(2, 0);
    cluster.shards[2].unwatch(watcher, [0]);
    cluster.pass(2, 0);
    cluster.rest();
    assert!(cluster.shards[0].keyspace().unwrap().watches.is_empty());
}

#[test]
fn law3_a_change_while_on_loan_is_seen_by_who_watches() {
    for writes in [true, false] {
        let mut cluster = Cluster::new(3);
        let (a, b) = (cluster.key(0, "a"), cluster.key(1, "b"));
        let watcher = watch(&mut cluster, &[&a, &b]);
        let line = if writes { format!("MSET {a} 1 {b} 1") } else { format!("MGET {a} {b}") };
        cluster.ask(&line);
        cluster.begin(
            2,
            Caller { conn: CONN, flags: ATOMIC, watcher: Some(watcher) },
            keys(&[&a, &b]),
            &format!("SET {a} mine; SET {b} mine"),
        );
        cluster.rest();
        let answer = if writes { "*-1\r\n" } else { "*2\r\n+OK\r\n+OK\r\n" };
        assert_eq!(cluster.replies(2), [answer]);
        assert!(cluster.shards.iter().all(|shard| shard.keyspace().unwrap().watches.is_empty()));
    }
}

#[test]
fn law3_a_watched_key_on_loan_keeps_the_transaction_of_one_shard_waiting() {
    let mut cluster = Cluster::new(3);
    let (a, b) = (cluster.key(0, "a"), cluster.key(1, "b"));
    let c = cluster.key(0, "c");
    let watcher = watch(&mut cluster, &[&a]);
    assert_eq!(cluster.send(1, OTHER, &format!("MSET {a} 1 {b} 1")), None);
    cluster.pass(1, 0);
    cluster.pass(0, 1);
    // The other client has its answer, and the key is not back yet.
    assert_eq!(cluster.replies(1), ["+OK\r\n"]);
    let commands = unit(&format!("SET {c} mine"));
    cluster.shards[2].dispatch_atomic(
        0,
        Caller { conn: CONN, flags: ATOMIC, watcher: Some(watcher) },
        &commands,
    );
    cluster.pass(2, 0);
    cluster.rest();
    assert_eq!(cluster.replies(2), ["*-1\r\n"]);
}

#[test]
fn law3_a_watched_key_that_expires_on_its_way_aborts() {
    for (later_ms, answer) in [(10, "*2\r\n+OK\r\n+OK\r\n"), (11, "*-1\r\n")] {
        let mut cluster = Cluster::new(3);
        let (a, b) = (cluster.key(0, "a"), cluster.key(1, "b"));
        cluster.ask(&format!("SET {a} 1 PX 10"));
        let watcher = watch(&mut cluster, &[&a, &b]);
        cluster.begin(
            2,
            Caller { conn: CONN, flags: ATOMIC, watcher: Some(watcher) },
            keys(&[&a, &b]),
            &format!("SET {a} mine; SET {b} mine"),
        );
        cluster.end_tick(2);
        cluster.deliver(2, 0);
        cluster.deliver(2, 1);
        cluster.set_time_ms(1_000_000 + later_ms);
        cluster.rest();
        assert_eq!(cluster.replies(2), [answer], "{later_ms} ms later");
    }
}

#[test]
fn a_watch_that_started_over_remembers_the_change() {
    let mut cluster = Cluster::new(4);
    let (a, b) = (cluster.key(0, "a"), cluster.key(1, "b"));
    let watcher = watch(&mut cluster, &[&a, &b]);
    cluster.ask(&format!("SET {a} 1"));
    // Refused at shard 1, where a younger one was first.
    cluster.begin(
        2,
        Caller { conn: CONN, flags: ATOMIC, watcher: Some(watcher) },
        keys(&[&a, &b]),
        &format!("SET {b} mine"),
    );
    assert_eq!(cluster.send(3, CONN, &format!("MSET {a} 3 {b} 3")), None);
    cluster.pass(2, 0);
    cluster.pass(3, 1);
    cluster.deliver(2, 1);
    cluster.rest();
    assert_eq!(cluster.replies(2), ["*-1\r\n"]);
    assert_eq!(cluster.replies(3), ["+OK\r\n"]);
}

#[test]
fn a_replicas_own_expiries_travel_with_their_keys() {
    let mut cluster = Cluster::new(3);
    for shard in &mut cluster.shards {
        (shard.replica, shard.is_read_only) = (true, false);
        shard.keyspace_mut().unwrap().replica = true;
    }
    let (a, b) = (cluster.key(0, "a"), cluster.key(1, "b"));
    let marked = |cluster: &Cluster| {
        [0, 1, 2].map(|shard: usize| cluster.shards[shard].keyspace().unwrap().own_expiries_len())
    };
    cluster.ask(&format!("SET {a} v PX 100000"));
    assert_eq!(marked(&cluster), [1, 0, 0]);
    cluster.ask(&format!("RENAME {a} {b}"));
    assert_eq!(marked(&cluster), [0, 1, 0]);
    cluster.ask(&format!("MSET {a} 1 {b} 1"));
    assert_eq!(marked(&cluster), [0, 0, 0]);
    cluster.ask(&format!("SET {a} v PX 100000"));
    cluster.ask(&format!("EXISTS {a} {b}"));
    assert_eq!(marked(&cluster), [1, 0, 0], "it came home with its mark");
}

/// Transactions that borrow keys, or everything.
const FRAMES: [&str; 2] = ["", "; DBSIZE"];

#[test]
fn what_a_transaction_writes_without_changing_it_counts_for_nothing() {
    for frame in FRAMES {
        let mut cluster = Cluster::new(3);
        let (a, b) = (cluster.key(0, "a"), cluster.key(1, "b"));
        cluster.ask(&format!("SET {a} 1"));
        let dirty = |cluster: &Cluster| -> Vec<u64> {
            cluster.shards.iter().map(|shard| shard.keyspace().unwrap().stats.dirty).collect()
        };
        let before = dirty(&cluster);
        let watcher = watch(&mut cluster, &[&a]);
        let names = frame.is_empty().then(|| keys(&[&a, &b]).unwrap());
        let caller = Caller { conn: OTHER, flags: ATOMIC, watcher: None };
        cluster.begin(1, caller, names, &format!("APPEND {a} ; EXISTS {a} {b}{frame}"));
        cluster.rest();
        assert_eq!(dirty(&cluster), before, "{frame}");
        let keyspace = cluster.shards[0].keyspace().unwrap();
        assert!(keyspace.watch_is_dirty(watcher, 0), "it was written to");
    }
}

#[test]
fn a_key_that_was_over_when_its_watch_began_goes_without_a_change() {
    for frame in FRAMES {
        let mut cluster = Cluster::new(3);
        let (a, b) = (cluster.key(0, "a"), cluster.key(1, "b"));
        cluster.ask(&format!("SET {a} 1 PX 10"));
        cluster.set_time_ms(1_000_011);
        let watcher = watch(&mut cluster, &[&a]);
        assert!(cluster.shards[0].keyspace().unwrap().len() == 1, "nobody has removed it");
        let names = frame.is_empty().then(|| keys(&[&a, &b]).unwrap());
        let caller = Caller { conn: OTHER, flags: ATOMIC, watcher: None };
        cluster.begin(1, caller, names, &format!("EXISTS {a} {b}{frame}"));
        cluster.rest();
        let keyspace = cluster.shards[0].keyspace().unwrap();
        assert!(keyspace.is_empty() && !keyspace.watch_is_dirty(watcher, 1_000_011), "{frame}");
        let expired: u64 = cluster.shards.iter().map(|shard| shard.keyspace().unwrap().stats.expired).sum();
        assert_eq!(expired, 1);
    }
}
