//! Full syncs between two Braids over several connections: whole under load whatever the numbers of shards and connections,
//! and nothing of them when one of the connections is lost (laws 5 and 9).

mod common;
#[path = "replication/load.rs"]
mod load;
#[path = "common/proxy.rs"]
mod proxy;
#[path = "common/replicas.rs"]
mod replicas;

use braid_bench::client::Client;
use braid_bench::cmd;
use braid_bench::peers::{Builder, Kind, Peer};
use common::{braid_builder, call, connect};
use load::{Load, State};
use proxy::Proxy;
use replicas::{assert_equal, enough, field, follow, is_linked, number, start, wait_until};
use std::thread;

/// Shards of the key set that the load's transactions touch.
const SPREAD: usize = 5;

fn node(shards: usize) -> Builder {
    // On a machine that is short of time a replica may fall far behind, and full syncs are counted.
    let patient = ["--repl-backlog-size", "512mb", "--client-output-buffer-limit", "replica 0 0 0"];
    braid_builder(shards).args(["--repl-diskless-sync-delay", "0"]).args(patient)
}

/// One that fetches its snapshots on so many connections.
fn replica(shards: usize, connections: usize) -> Peer {
    start(node(shards).args(["--repl-sync-connections", &connections.to_string()]))
}

fn stat(peer: &Peer, name: &str) -> u64 {
    number(&mut connect(peer), "stats", name)
}

/// So many keys of 100 bytes with every kind of database and expiry, and a list that comes in many pieces.
fn fill(peer: &Peer, keys: usize, elements: usize) {
    let mut client = connect(peer);
    for from in (0..keys).step_by(1000) {
        for key in from..(from + 1000).min(keys) {
            client.send(&["SET", &format!("filled:{key}"), &"v".repeat(100)]).expect("is sent");
        }
        for _ in from..(from + 1000).min(keys) {
            client.receive().expect("an answer");
        }
    }
    let words: Vec<String> = (0..1000).map(|at| format!("element-{at}")).collect();
    for _ in 0..elements / words.len() {
        let mut push = vec!["RPUSH".to_owned(), "huge".to_owned()];
        push.extend(words.iter().cloned());
        call(&mut client, &push);
    }
}

/// The flags of a node's clients that carry parts.
fn data_connections(client: &mut Client) -> Vec<String> {
    let list = call(client, &["CLIENT", "LIST"]).to_string();
    let flags = list.split_whitespace().filter_map(|word| word.strip_prefix("flags="));
    flags.filter(|flags| flags.contains('D')).map(str::to_owned).collect()
}

/// Replicas of 1, 2, 3 and 5 shards attach to a master of so many while it is written, and end equal.
fn follow_under_load(master_shards: usize) {
    let master = start(node(master_shards));
    fill(&master, 5000, 0);
    let replicas =
        [(1, 3), (2, 0), (3, 16), (5, 2)].map(|(shards, connections)| replica(shards, connections));
    // What a replica had before is gone after its full sync.
    call(&mut connect(&replicas[1]), &["SET", "stale", "1"]);
    let state = State::default();
    thread::scope(|scope| {
        let load = Load::start(scope, &master, SPREAD, &state);
        state.pass(enough() / 5);
        for replica in &replicas {
            follow(replica, master.port());
            state.pass(enough() / 5);
        }
        for replica in &replicas {
            wait_until("the replica is linked", || is_linked(replica));
        }
        state.pass(enough() / 2);
        load.stop();
    });
    for replica in &replicas {
        assert_equal(&master, replica);
        let mut client = connect(replica);
        assert_eq!(number(&mut client, "replication", "slave_failed_commands"), 0);
        assert_eq!(call(&mut client, &["EXISTS", "stale"]), 0);
        wait_until("no data connection is left", || data_connections(&mut client).is_empty());
    }
    assert_eq!((stat(&master, "sync_full"), stat(&master, "sync_full_in_parts")), (4, 4));
    let mut client = connect(&master);
    wait_until("no data connection is left", || data_connections(&mut client).is_empty());
}

#[test]
fn law5_replicas_of_a_master_of_one_shard_are_whole() {
    follow_under_load(1);
}

#[test]
fn law5_replicas_of_a_master_of_two_shards_are_whole() {
    follow_under_load(2);
}

#[test]
fn law5_replicas_of_a_master_of_three_shards_are_whole() {
    follow_under_load(3);
}

#[test]
fn law5_replicas_of_a_master_of_five_shards_are_whole() {
    follow_under_load(5);
}
