//! A replica that falls behind what memory keeps is served from disk: it costs the master no memory, and no full sync.

mod common;
#[path = "common/proxy.rs"]
mod proxy;
#[path = "common/replicas.rs"]
mod replicas;

use braid_bench::client::Client;
use braid_bench::cmd;
use braid_bench::peers::{Builder, Kind, Peer};
use common::{call, connect, start, wait_told, wait_until};
use proxy::Proxy;
use replicas::{assert_equal, number, temporary_files};

const VALUE_BYTES: usize = 100_000;
const KEYS: usize = 100;

fn master(disk_size: &str) -> Builder {
    replicas::master(2)
        .args(["--repl-backlog-size", "1mb", "--save", ""])
        .args(["--repl-backlog-disk-size", disk_size])
        .args(["--client-output-buffer-limit", "replica 32mb 16mb 1"])
}

fn replica_of(port: u16) -> Peer {
    replicas::replica_of(Peer::builder(Kind::Redis8), port)
}

/// Writes so many megabytes over the same keys. Returns the most memory that was in use.
fn write(client: &mut Client, megabytes: usize) -> u64 {
    let mut most_bytes = 0;
    for n in 0..megabytes {
        let commands: Vec<_> = (0..10)
            .map(|i| cmd!["SET", (n * 10 + i) % KEYS, format!("{n}:{i}:{}", "x".repeat(VALUE_BYTES))])
            .collect();
        for reply in client.pipeline(&commands).expect("the server stays") {
            reply.ok().expect("is written");
        }
        if n % 5 == 0 {
            most_bytes = most_bytes.max(number(client, "memory", "used_memory"));
        }
    }
    most_bytes
}

fn disk_bytes(client: &mut Client) -> u64 {
    number(client, "replication", "repl_backlog_disk_bytes")
}

/// What the stream may cost in memory beside the backlog: who is a little behind, and what is on its way to the disk.
const STREAM_BYTES: u64 = 40 << 20;

#[test]
fn a_frozen_replica_costs_no_memory_and_goes_on_from_disk() {
    let braid = start(master("4gb"));
    let mut client = connect(&braid);
    write(&mut client, KEYS / 10);
    let (frozen, awake) = (replica_of(braid.port()), replica_of(braid.port()));
    assert_equal(&braid, &frozen);
    assert_eq!(disk_bytes(&mut client), 0, "nobody is behind");
    let before_bytes = number(&mut client, "memory", "used_memory");
    frozen.stop().expect("is stopped");
    let mut most_bytes = 0;
    for written in 1..=15 {
        most_bytes = most_bytes.max(write(&mut client, 10));
        // A disk that stalls leaves it to memory for as long.
        wait_until("the disk keeps up", || disk_bytes(&mut client) + (30 << 20) > written * 10_000_000);
    }
    assert!(most_bytes < before_bytes + STREAM_BYTES, "{before_bytes} before, {most_bytes} while it lagged");
    wait_until("most of it is on disk", || disk_bytes(&mut client) > 120 << 20);
    let histlen_bytes = number(&mut client, "replication", "repl_backlog_histlen");
    assert!(histlen_bytes > 100 << 20, "all of it can be resumed from: {histlen_bytes}");
    // Who is in step is served from memory meanwhile.
    assert_equal(&braid, &awake);
    assert_eq!(temporary_files(&braid), Vec::<std::path::PathBuf>::new(), "nothing is left to outlive it");
    frozen.cont().expect("goes on");
    // It reads from one end of the segments while the other grows.
    write(&mut client, 30);
    assert_equal(&braid, &frozen);
    assert_eq!(number(&mut client, "stats", "sync_full"), 2, "one for each replica");
    wait_until("the disk is given back", || disk_bytes(&mut client) == 0);
}

#[test]
fn a_replica_that_was_away_for_long_continues_from_disk() {
    let braid = start(master("4gb"));
    let mut client = connect(&braid);
    let proxy = Proxy::start(braid.addr()).expect("a proxy");
    let replica = replica_of(proxy.port());
    write(&mut client, 20);
    assert_equal(&braid, &replica);
    replica.stop().expect("is stopped");
    // What sockets swallow is lost with them, and must be had again.
    write(&mut client, 5);
    proxy.break_all();
    wait_until("its link is gone", || number(&mut client, "replication", "connected_slaves") == 0);
    write(&mut client, 100);
    wait_until("most of it is on disk", || disk_bytes(&mut client) > 80 << 20);
    replica.cont().expect("goes on");
    assert_equal(&braid, &replica);
    assert_eq!(number(&mut client, "stats", "sync_full"), 1);
    assert_eq!(number(&mut client, "stats", "sync_partial_ok"), 1);
    wait_until("the disk is given back", || disk_bytes(&mut client) == 0);
}

#[test]
fn who_is_behind_the_disks_budget_is_closed_and_told_why() {
    let braid = start(master("16mb"));
    let mut client = connect(&braid);
    let replica = replica_of(braid.port());
    assert_equal(&braid, &replica);
    replica.stop().expect("is stopped");
    let mut most_bytes = 0;
    wait_until("it is closed", || {
        write(&mut client, 10);
        most_bytes = most_bytes.max(disk_bytes(&mut client));
        number(&mut client, "replication", "connected_slaves") == 0
    });
    assert!(most_bytes <= 16 << 20, "{most_bytes}");
    wait_told(&braid, "further behind than repl-backlog-disk-size");
    replica.cont().expect("goes on");
    assert_equal(&braid, &replica);
    assert_eq!(number(&mut client, "stats", "sync_full"), 2);
}

#[test]
fn a_replica_is_served_from_memory_when_no_disk_is_allowed() {
    let braid = start(master("0"));
    let mut client = connect(&braid);
    let replica = replica_of(braid.port());
    replica.stop().expect("is stopped");
    wait_until("it is closed", || {
        write(&mut client, 10);
        number(&mut client, "replication", "connected_slaves") == 0
    });
    assert_eq!(disk_bytes(&mut client), 0);
    wait_told(&braid, "output buffer limit");
    replica.cont().expect("goes on");
    assert_equal(&braid, &replica);
}

#[test]
fn no_loss_a_disk_that_fails_leaves_it_to_memory() {
    let braid = start(master("4gb").args(["--enable-protected-configs", "yes"]));
    let mut client = connect(&braid);
    let folder = tempfile::tempdir().expect("a folder");
    call(&mut client, &["CONFIG", "SET", "dir", folder.path().to_str().expect("is text")]);
    call(&mut client, &["CONFIG", "SET", "client-output-buffer-limit", "replica 1gb 0 0"]);
    let replica = replica_of(braid.port());
    assert_equal(&braid, &replica);
    // Nothing can be made in a folder that is gone.
    folder.close().expect("is removed");
    replica.stop().expect("is stopped");
    write(&mut client, 60);
    wait_told(&braid, "can't be written to disk");
    assert_eq!(disk_bytes(&mut client), 0);
    replica.cont().expect("goes on");
    assert_equal(&braid, &replica);
    assert_eq!(number(&mut client, "stats", "sync_full"), 1);
}
