//! Values of many megabytes in the stream: they pass masters and replicas by reference (law 8), and links break within them
//! (laws 4 and 5).

mod common;
#[path = "common/proxy.rs"]
mod proxy;
#[path = "common/replicas.rs"]
mod replicas;

use braid_bench::client::Client;
use braid_bench::cmd;
use braid_bench::peers::{Builder, Kind};
use common::{braid, call, connect, key_per_shard, start, wait_until};
use proxy::Proxy;
use replicas::{assert_clients_equal, follow, is_linked, number};

const VALUE_BYTES: usize = 64 << 20;
const SHARDS: usize = 2;

fn node(kind: &Kind) -> Builder {
    replicas::node(kind, SHARDS).args(["--repl-backlog-size", "1gb"])
}

fn random(seed: u64) -> Vec<u8> {
    let mut value = vec![0; VALUE_BYTES];
    fastrand::Rng::with_seed(seed).fill(&mut value);
    value
}

/// Huge values as strings of either shard, on their own and in transactions, changed and read meanwhile.
fn write(client: &mut Client, keys: &[String]) {
    call(client, &cmd!["SET", &keys[0], random(1)]);
    // The stream has the same buffer, which must stay as it was.
    call(client, &cmd!["APPEND", &keys[0], "tail"]);
    call(client, &cmd!["SETRANGE", &keys[0], 7, "changed"]);
    call(client, &cmd!["MSET", &keys[0], "small", &keys[1], random(2), "other", "1"]);
    call(client, &["MULTI"]);
    call(client, &cmd!["SET", &keys[0], random(3), "EX", 1000]);
    call(client, &cmd!["INCR", "counter"]);
    call(client, &["EXEC"]);
    call(client, &["DEL", &keys[1]]);
}

/// A replica gets huge values through the stream, and after its link was cut in the midst of them.
fn follow_huge_values(master_kind: &Kind, replica_kind: &Kind) {
    let master = start(node(master_kind));
    let replica = start(node(replica_kind));
    let proxy = Proxy::start(master.addr()).expect("a proxy");
    let keys = key_per_shard("huge", SHARDS);
    let mut client = connect(&master);
    follow(&replica, proxy.port());
    wait_until("the replica is linked", || is_linked(&replica));
    write(&mut client, &keys);
    assert_clients_equal(&mut client, &mut connect(&replica));
    // The links after this one: each breaks within a value.
    let third = VALUE_BYTES as u64 / 3;
    proxy.break_after([third, 1000, VALUE_BYTES as u64 + third]);
    proxy.break_all();
    write(&mut client, &keys);
    wait_until("its links were broken", || proxy.broken() == 3);
    assert_clients_equal(&mut client, &mut connect(&replica));
    assert_eq!(number(&mut client, "stats", "sync_full"), 1);
    assert!(number(&mut client, "stats", "sync_partial_ok") >= 4);
    // Nobody but the keys has them in the end.
    call(&mut client, &["FLUSHALL"]);
    assert_clients_equal(&mut client, &mut connect(&replica));
}

#[test]
fn law4_and_5_redis_8_follows_braid_through_huge_values() {
    follow_huge_values(&braid(), &Kind::Redis8);
}

#[test]
fn law4_and_5_braid_follows_redis_8_through_huge_values() {
    follow_huge_values(&Kind::Redis8, &braid());
}

#[test]
fn law4_and_5_braid_follows_braid_through_huge_values() {
    follow_huge_values(&braid(), &braid());
}

/// What the stream keeps of a value beside the key is no copy of it, at the master and at the replica.
#[test]
fn law8_the_stream_costs_no_second_copy() {
    let master = start(node(&braid()));
    let replica = start(node(&braid()));
    follow(&replica, master.port());
    wait_until("the replica is linked", || is_linked(&replica));
    let (mut client, mut copy) = (connect(&master), connect(&replica));
    let used = |client: &mut Client| number(client, "memory", "used_memory");
    let before_bytes = [used(&mut client), used(&mut copy)];
    for n in 0..4 {
        call(&mut client, &cmd!["SET", format!("huge:{n}"), random(n)]);
    }
    call(&mut client, &cmd!["WAIT", 1, 60_000]);
    assert_eq!(call(&mut copy, &["STRLEN", "huge:3"]), VALUE_BYTES as i64);
    let after_bytes = [used(&mut client), used(&mut copy)];
    for (before_bytes, after_bytes) in before_bytes.into_iter().zip(after_bytes) {
        let values = (after_bytes - before_bytes) as f64 / VALUE_BYTES as f64;
        assert!((3.9..4.5).contains(&values), "four values, and memory for {values:.2}");
    }
}
