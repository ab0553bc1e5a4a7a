//! Masters and replicas in the end-to-end tests.

// Every test binary uses its own part of this.
#![allow(dead_code)]

use super::common::{TIMEOUT, braid_builder, call, connect, field, number_from_env, wait_until};
use super::load::State;
use braid_bench::client::Client;
use braid_bench::cmd;
use braid_bench::dataset::{self, Dataset};
use braid_bench::peers::{Builder, Kind, Peer};
use braid_bench::wait;
use std::sync::atomic::Ordering;
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

/// How many commands the load runs before something ends.
pub fn enough() -> u64 {
    number_from_env("BRAID_REPLICATION_COMMANDS", 5_000)
}

impl State {
    /// Waits until so many commands more were run.
    pub fn pass(&self, commands: u64) {
        let end = self.commands.load(Ordering::Relaxed) + commands;
        wait_until("the load has run", || {
            assert!(!self.has_failed.load(Ordering::Relaxed), "the load failed");
            self.commands.load(Ordering::Relaxed) >= end
        });
    }
}
