//! Masters and replicas in the end-to-end tests.

// Every test binary uses its own part of this.
#![allow(dead_code)]

use super::common::{TIMEOUT, braid, braid_builder, call, connect, field, start, wait_until};
use braid_bench::client::Client;
use braid_bench::cmd;
use braid_bench::dataset::{self, Dataset};
use braid_bench::peers::{Builder, Kind, Peer};
use braid_bench::wait;
use std::path::PathBuf;
use std::time::Duration;

/// A server of this kind, ready to be anybody's master; Braid with so many shards.
pub fn node(kind: &Kind, shards: usize) -> Builder {
    let builder = match kind {
        Kind::Braid(_) => braid_builder(shards).args(["--repl-diskless-sync-delay", "0"]),
        _ => Peer::builder(kind.clone()),
    };
    // On a machine that is short of time a replica may fall far behind, and full syncs are counted.
    let patient = ["--repl-backlog-size", "512mb", "--client-output-buffer-limit", "replica 0 0 0"];
    builder.args(patient)
}

/// A Braid of so many shards that will follow somebody.
pub fn replica(shards: usize) -> Peer {
    start(node(&braid(), shards))
}

/// A master of so many shards that has a replica wait for no other.
pub fn master(shards: usize) -> Builder {
    braid_builder(shards).args(["--repl-diskless-sync-delay", "0"])
}

/// A replica of `port`, in step.
pub fn replica_of(builder: Builder, port: u16) -> Peer {
    let replica = start(builder);
    follow(&replica, port);
    wait_until("the replica is in step", || is_linked(&replica));
    replica
}

/// Files that a server has not brought to their place, and has to remove when it does not need them.
pub fn temporary_files(peer: &Peer) -> Vec<PathBuf> {
    let files = std::fs::read_dir(peer.dir()).expect("a folder").map(|entry| entry.expect("an entry").path());
    let is_temporary =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("temp-"));
    files.filter(is_temporary).collect()
}

pub fn follow(replica: &Peer, port: u16) {
    call(&mut connect(replica), &cmd!["REPLICAOF", "127.0.0.1", port]);
}

/// How often a replica asked for everything because it did not know any more where it was. Redis 8.2 forgets that, whoever
/// its master is, when a link breaks while much is on its way.
pub fn forgot(replica: &Peer) -> u64 {
    match replica.kind() {
        Kind::Redis8 => replica.log().matches("(no cached master)").count() as u64,
        _ => 0,
    }
}

pub fn number(client: &mut Client, section: &str, name: &str) -> u64 {
    let text = field(client, section, name);
    text.parse().unwrap_or_else(|_| panic!("{name} is {text}"))
}

/// The first replica's line; empty if there is none.
pub fn first_replica(client: &mut Client) -> String {
    client.info("replication").expect("INFO").remove("slave0").unwrap_or_default()
}

pub fn is_linked(replica: &Peer) -> bool {
    connect(replica)
        .info("replication")
        .is_ok_and(|info| info.get("master_link_status").is_some_and(|status| status == "up"))
}

/// Waits until the replica has had everything, and compares.
pub fn assert_equal(master: &Peer, replica: &Peer) {
    assert_clients_equal(&mut connect(master), &mut connect(replica));
}

pub fn assert_clients_equal(master: &mut Client, replica: &mut Client) {
    // What was answered before this was written comes before it in the stream (law 4).
    let marker = fastrand::u64(..).to_string();
    call(master, &["SET", "marker", &marker]);
    wait::until("the replica has the last write", TIMEOUT, || {
        Ok(replica.command(&["GET", "marker"])? == marker.as_str())
    })
    .unwrap_or_else(|error| panic!("{error}"));
    wait::until_caught_up(master, replica, TIMEOUT).unwrap_or_else(|error| panic!("{error}"));
    // Between two readings keys may expire; in the end both are the same.
    let equal = wait::until("both hold the same", Duration::from_secs(10), || {
        Ok(dataset::diff(&Dataset::read(master)?, &Dataset::read(replica)?).is_empty())
    });
    if equal.is_err() {
        dataset::assert_same(master, replica).expect("both hold the same");
    }
}

/// The error of a command that must fail.
pub fn error(client: &mut Client, words: &[&str]) -> String {
    let reply = client.command(words).expect("the server stays");
    assert!(reply.is_error(), "{words:?}: {reply:?}");
    reply.text().to_string()
}

pub const READONLY: &str = "READONLY You can't write against a read only replica.";
