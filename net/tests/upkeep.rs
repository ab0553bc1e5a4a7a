//! What keeps a node in order beside its data: pauses, ends of the process, numbers about replication, and what becomes of
//! what it cannot read.

mod common;
#[path = "replication/load.rs"]
#[allow(dead_code)]
mod load;
#[path = "common/replicas.rs"]
mod replicas;

use braid_bench::client::{Client, Value};
use braid_bench::peers::{Builder, Kind, Peer};
use common::{braid_builder, call, connect};
use replicas::{field, follow, is_linked, number, start, wait_until};

const SHARDS: usize = 2;

fn master() -> Builder {
    braid_builder(SHARDS).args(["--repl-diskless-sync-delay", "0"])
}

/// A replica of `port`, in step.
fn replica_of(builder: Builder, port: u16) -> Peer {
    let replica = start(builder);
    follow(&replica, port);
    wait_until("the replica is in step", || is_linked(&replica));
    replica
}

fn blocked(client: &mut Client) -> u64 {
    number(client, "clients", "blocked_clients")
}

/// A failover that waits for a replica which is frozen.
fn begin_failover(client: &mut Client) {
    call(client, &["SET", "unsent", "value"]);
    call(client, &["FAILOVER", "TIMEOUT", "60000"]);
    wait_until("it waits", || field(client, "replication", "master_failover_state") == "waiting-for-sync");
}

#[test]
fn a_failover_and_client_pause_do_not_end_each_others_pause() {
    let braid = start(master());
    let replica = replica_of(Peer::builder(Kind::Redis8), braid.port());
    replica.stop().expect("a signal");
    let (mut client, mut writer) = (connect(&braid), connect(&braid));
    begin_failover(&mut client);
    writer.send(&["SET", "key", "value"]).expect("sent");
    wait_until("the write waits", || blocked(&mut client) == 1);
    call(&mut client, &["CLIENT", "UNPAUSE"]);
    assert_eq!(call(&mut client, &["GET", "key"]), Value::Null, "the failover still pauses writes");
    assert_eq!(blocked(&mut client), 1);

    call(&mut client, &["CLIENT", "PAUSE", "100000", "WRITE"]);
    call(&mut client, &["FAILOVER", "ABORT"]);
    wait_until("it is over", || field(&mut client, "replication", "master_failover_state") == "no-failover");
    assert_eq!(call(&mut client, &["GET", "key"]), Value::Null, "the operator still pauses writes");
    assert_eq!(blocked(&mut client), 1);
    call(&mut client, &["CLIENT", "UNPAUSE"]);
    assert_eq!(writer.receive().expect("answered"), Value::Simple("OK".into()));
    replica.cont().expect("a signal");
}

#[test]
fn who_is_held_back_by_the_stricter_of_two_pauses_goes_on_with_its_end() {
    let braid = start(master());
    let replica = replica_of(Peer::builder(Kind::Redis8), braid.port());
    replica.stop().expect("a signal");
    let (mut client, mut writer, mut reader) = (connect(&braid), connect(&braid), connect(&braid));
    begin_failover(&mut client);
    call(&mut client, &["CLIENT", "PAUSE", "300", "ALL"]);
    writer.send(&["SET", "key", "value"]).expect("sent");
    reader.send(&["GET", "key"]).expect("sent");
    assert_eq!(reader.receive().expect("answered"), Value::Null);
    assert_eq!(blocked(&mut client), 1);
    call(&mut client, &["FAILOVER", "ABORT"]);
    assert_eq!(writer.receive().expect("answered"), Value::Simple("OK".into()));
    replica.cont().expect("a signal");
}
