//! Replicas that come while their master is written.

use super::common::{call, connect, field, wait_until};
use super::load::{Load, State, enough};
use super::replicas::{assert_equal, follow, is_linked, number};
use braid_bench::peers::{Kind, Peer};
use std::thread;

/// Replicas attach to a master one after the other while it is written, and end equal, in its history, with nothing of what
/// they had before. `spread`: shards of the key set that transactions touch.
pub fn attach_under_load(master: &Peer, replicas: &[Peer], spread: usize) {
    call(&mut connect(&replicas[replicas.len() / 2]), &["SET", "stale", "1"]);
    let state = State::default();
    thread::scope(|scope| {
        let load = Load::start(scope, master, spread, &state);
        state.pass(enough() / 5);
        for replica in replicas {
            follow(replica, master.port());
            state.pass(enough() / 5);
        }
        for replica in replicas {
            wait_until("the replica is linked", || is_linked(replica));
        }
        state.pass(enough() / 2);
        load.stop();
    });
    let history = field(&mut connect(master), "replication", "master_replid");
    for replica in replicas {
        assert_equal(master, replica);
        let mut client = connect(replica);
        assert_eq!(call(&mut client, &["EXISTS", "stale"]), 0);
        assert_eq!(field(&mut client, "replication", "master_replid"), history);
        if let Kind::Braid(_) = replica.kind() {
            assert_eq!(number(&mut client, "replication", "slave_failed_commands"), 0);
        }
    }
    let mut client = connect(master);
    assert_eq!(number(&mut client, "stats", "sync_full"), replicas.len() as u64);
    assert_eq!(number(&mut client, "replication", "connected_slaves"), replicas.len() as u64);
}
