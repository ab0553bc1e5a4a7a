//! Stock replicas follow Braid: laws 3, 4, 5 and 6 with real processes, under a write load over all families.
//!
//! `BRAID_REPLICATION_COMMANDS=n` sets how many commands the load runs at least while replicas come and go.

#[path = "replication/attach.rs"]
mod attach;
mod common;
#[path = "replication/fake.rs"]
mod fake;
#[path = "replication/load.rs"]
mod load;
#[path = "common/proxy.rs"]
mod proxy;
#[path = "common/replicas.rs"]
mod replicas;

use attach::attach_under_load;
use braid_bench::client::Client;
use braid_bench::cmd;
use braid_bench::dataset::Dataset;
use braid_bench::peers::{Builder, Kind, Peer};
use braid_bench::probe::Probe;
use common::{call, connect, field, fill, is_closed, key_per_shard, start, wait_until};
use fake::{Fake, Item};
use load::{Load, State, enough};
use proxy::Proxy;
use replicas::{assert_clients_equal, assert_equal, first_replica, follow, is_linked, number};
use std::collections::BTreeSet;
use std::thread;
use std::time::Duration;

const KINDS: [Kind; 3] = [Kind::Redis7, Kind::Redis8, Kind::Valkey];

fn master(shards: usize) -> Builder {
    replicas::master(shards).args(["--repl-backlog-size", "64mb"])
}

/// Asks once a millisecond.
fn probe(braid: &Peer) -> Probe {
    Probe::start(connect(braid), cmd!["GET", "here"], Duration::from_millis(1)).expect("a probe")
}

/// Ends a probe, which must have been served all the time. Many share the machine, so that tens of milliseconds mean nothing here;
/// who waits for a replica waits for longer than this.
fn assert_no_stall(phase: &str, probe: Probe) {
    let latencies_ns = probe.stop().expect("the probe is served");
    let at_us = |quantile| latencies_ns.value_at_quantile(quantile) / 1000;
    let told =
        format!("{phase}: probe p50 {} us, p99 {} us, worst {} us", at_us(0.5), at_us(0.99), at_us(1.0));
    println!("{told}");
    assert!(!latencies_ns.is_empty() && at_us(1.0) < 3_000_000, "{told}");
}

/// All kinds attach while it is written, one after the other.
fn attach_all(shards: usize, with_big_values: bool) {
    let braid = start(master(shards));
    if with_big_values {
        fill(&braid, 10 << 20);
    }
    let replicas = KINDS.map(|kind| kind.start().expect("the peer starts"));
    let probe = probe(&braid);
    attach_under_load(&braid, &replicas, shards);
    assert_no_stall("snapshots", probe);
}

#[test]
fn law5_stock_replicas_attach_under_load_to_one_shard() {
    attach_all(1, false);
}

#[test]
fn law5_stock_replicas_attach_under_load_to_two_shards() {
    attach_all(2, false);
}

#[test]
fn law5_stock_replicas_attach_under_load_to_three_shards_with_big_values() {
    attach_all(3, true);
}

#[test]
fn law5_stock_replicas_attach_under_load_to_seven_shards() {
    attach_all(7, false);
}

#[test]
fn law5_an_empty_dataset_replaces_what_a_replica_had() {
    let braid = start(master(2));
    let replica = Kind::Redis8.start().expect("the peer starts");
    call(&mut connect(&replica), &["SET", "old", "1"]);
    follow(&replica, braid.port());
    wait_until("the replica is linked", || is_linked(&replica));
    assert!(Dataset::read(&mut connect(&replica)).expect("is read").is_empty());
    assert_equal(&braid, &replica);
}

/// Items that touch keys with this prefix: each must touch all of them, and be one piece.
fn assert_whole(items: &[Item], prefix: &str, keys: usize) {
    let mut seen = 0;
    for item in items {
        let touched: Vec<&Vec<u8>> =
            item.commands.iter().flatten().filter(|word| word.starts_with(prefix.as_bytes())).collect();
        if touched.is_empty() {
            continue;
        }
        let distinct: BTreeSet<_> = touched.iter().collect();
        assert_eq!((touched.len(), distinct.len()), (keys, keys), "a part of a transaction: {item:?}");
        assert!(item.is_block || item.commands.len() == 1, "{item:?}");
        let values: BTreeSet<_> =
            item.commands.iter().flat_map(|command| command[1..].chunks(2).map(|pair| &pair[1])).collect();
        assert_eq!(values.len(), 1, "a mix of transactions: {item:?}");
        seen += 1;
    }
    assert!(seen > 10, "{seen} of {prefix} were seen");
}

#[test]
fn law3_and_4_transactions_are_one_block_each_and_offsets_are_exact() {
    for shards in [1, 3, 7] {
        let braid = start(master(shards));
        let state = State::default();
        let mut fake = None;
        let mut items = Vec::new();
        thread::scope(|scope| {
            let load = Load::start(scope, &braid, shards, &state);
            state.pass(500);
            let reader = scope.spawn(|| {
                let mut fake = Fake::attach(&braid).expect("attaches");
                fake.ack().expect("is heard");
                let items = fake.items_until_set("end").expect("the stream goes on");
                (fake, items)
            });
            state.pass(enough());
            load.stop();
            call(&mut connect(&braid), &["SET", "end", "1"]);
            let (read, all) = reader.join().expect("the reader succeeds");
            (fake, items) = (Some(read), all);
        });
        let mut fake = fake.expect("set above");
        assert!(fake.rdb.starts_with(b"REDIS0010"));
        let keys = shards.max(2);
        assert_whole(&items, "tx:", keys);
        assert_whole(&items, "mtx:", keys);
        assert!(items.iter().any(|item| item.db == 15), "databases are selected");
        let mut client = connect(&braid);
        // Expiries go on while nobody writes.
        let bytes = |fake: &mut Fake, client: &mut Client| {
            let end = number(client, "replication", "master_repl_offset");
            while fake.offset < end {
                fake.command().expect("the stream goes on");
            }
            fake.offset == number(client, "replication", "master_repl_offset")
        };
        wait_until("all bytes are accounted for", || bytes(&mut fake, &mut client));
        fake.ack().expect("is heard");
        let acked = fake.offset.to_string();
        wait_until("ROLE and INFO show the acknowledgement", || {
            let role = call(&mut client, &["ROLE"]);
            let role = role.items().expect("an array");
            let replicas = role[2].items().expect("an array");
            let line = first_replica(&mut client);
            replicas.len() == 1
                && replicas[0].items().is_some_and(|entry| entry[1] == "7777" && entry[2] == acked.as_str())
                && line.contains(&format!("port=7777,state=online,offset={acked},"))
        });
        assert_eq!(field(&mut client, "replication", "master_replid"), fake.id);
        println!("{shards} shards: {} items, {} bytes of stream", items.len(), fake.offset);
    }
}

#[test]
fn a_quiet_link_that_breaks_is_resumed() {
    let braid = start(master(2));
    let mut client = connect(&braid);
    let proxies = [(); 3].map(|()| Proxy::start(braid.addr()).expect("a proxy"));
    let replicas = KINDS.map(|kind| kind.start().expect("the peer starts"));
    for (replica, proxy) in replicas.iter().zip(&proxies) {
        follow(replica, proxy.port());
        assert_equal(&braid, replica);
    }
    for round in 1..=3 {
        proxies.iter().for_each(Proxy::break_all);
        call(&mut client, &cmd!["SET", "round", round]);
        for replica in &replicas {
            assert_equal(&braid, replica);
        }
        assert_eq!(number(&mut client, "stats", "sync_partial_ok"), 3 * round);
    }
    assert_eq!(number(&mut client, "stats", "sync_full"), 3);
    assert_eq!(number(&mut client, "stats", "sync_partial_err"), 3, "the first attempts");
}

#[test]
fn law4_a_fake_replica_that_resumes_anywhere_reads_the_same_bytes() {
    let braid = start(master(3).args(["--protected-restart", "no"]));
    let mut client = connect(&braid);
    let mut first = Fake::attach(&braid).expect("attaches");
    first.ack().expect("is heard");
    let start_offset = first.offset;
    for n in 0..200 {
        call(&mut client, &cmd!["SET", format!("key:{n}"), n]);
    }
    let end = number(&mut client, "replication", "master_repl_offset");
    let all = first.client.receive_exact((end - start_offset) as usize).expect("the stream");
    for at in [start_offset, start_offset + 1, (start_offset + end) / 2, end - 1, end] {
        let mut again = Fake::ask(connect(&braid), &first.id, at as i64 + 1).expect("asks");
        assert_eq!(again.line().expect("an answer"), format!("+CONTINUE {}", first.id));
        let rest = again.client.receive_exact((end - at) as usize).expect("the stream");
        assert_eq!(rest, all[(at - start_offset) as usize..]);
    }
    // Neither the future nor another history.
    for (id, at) in [(first.id.clone(), end + 2), ("0".repeat(40), end)] {
        let mut other = Fake::ask(connect(&braid), &id, at as i64).expect("asks");
        assert_eq!(other.full_resync().expect("an answer").0, first.id);
    }
}

#[test]
fn a_replica_that_was_away_for_longer_than_the_backlog_gets_a_full_sync() {
    let braid =
        start(replicas::master(2).args(["--repl-backlog-size", "16kb", "--repl-backlog-disk-size", "0"]));
    let replica = Kind::Valkey.start().expect("the peer starts");
    let proxy = Proxy::start(braid.addr()).expect("a proxy");
    follow(&replica, proxy.port());
    wait_until("the replica is linked", || is_linked(&replica));
    assert_equal(&braid, &replica);
    replica.stop().expect("is stopped");
    proxy.break_all();
    let mut client = connect(&braid);
    wait_until("its link is gone", || number(&mut client, "replication", "connected_slaves") == 0);
    for n in 0..50 {
        call(&mut client, &cmd!["SET", n, "x".repeat(1000)]);
    }
    replica.cont().expect("goes on");
    assert_equal(&braid, &replica);
    assert_eq!(number(&mut client, "stats", "sync_full"), 2);
    assert!(number(&mut client, "replication", "repl_backlog_histlen") <= 16 << 10);
}

#[test]
fn law6_replicas_die_freeze_come_back_and_have_replicas_of_their_own() {
    let shards = 3;
    let braid = start(master(shards));
    let mut dying = Kind::Redis7.start().expect("the peer starts");
    let freezing = Kind::Valkey.start().expect("the peer starts");
    let below = Kind::Redis8.start().expect("the peer starts");
    let chained = Kind::Redis8.start().expect("the peer starts");
    let state = State::default();
    thread::scope(|scope| {
        let load = Load::start(scope, &braid, shards, &state);
        for replica in [&dying, &freezing, &chained] {
            follow(replica, braid.port());
        }
        follow(&below, chained.port());
        for replica in [&dying, &freezing, &chained, &below] {
            wait_until("the replica is linked", || is_linked(replica));
        }
        freezing.stop().expect("is stopped");
        dying.kill().expect("is killed");
        state.pass(enough());
        let replica_of = format!("127.0.0.1 {}", braid.port());
        dying.set_args(["--replicaof", &replica_of]);
        dying.restart().expect("starts again");
        freezing.cont().expect("goes on");
        state.pass(enough() / 5);
        load.stop();
    });
    for replica in [&dying, &freezing, &chained, &below] {
        wait_until("the replica is linked", || is_linked(replica));
        assert_equal(&braid, replica);
    }
    let mut client = connect(&braid);
    // The one that was killed had kept its snapshot in a file and goes on from there.
    assert_eq!(number(&mut client, "stats", "sync_full"), 3);
    assert_eq!(number(&mut client, "stats", "sync_partial_ok"), 1);
    // The same history, byte for byte, all the way down.
    assert_eq!(
        field(&mut connect(&below), "replication", "master_replid"),
        field(&mut client, "replication", "master_replid")
    );
}

#[test]
fn a_connection_of_any_shard_becomes_a_replica_with_what_it_said_before() {
    let shards = 7;
    let braid = start(master(shards));
    let keys = key_per_shard("key", shards);
    let mut client = connect(&braid);
    let mut fakes: Vec<Fake> = (0..2 * shards)
        .map(|n| {
            let mut connection = connect(&braid);
            // Something was done here before, and another database is selected.
            call(&mut connection, &cmd!["SELECT", 3]);
            call(&mut connection, &cmd!["SET", &keys[n % shards], n]);
            let mut fake = Fake::ask(connection, "?", -1).expect("asks");
            (fake.id, fake.offset) = fake.full_resync().expect("an answer");
            fake.read_snapshot().expect("a snapshot");
            fake.ack().expect("is heard");
            fake
        })
        .collect();
    let online = |client: &mut Client| {
        let lines = client.info("replication").expect("INFO");
        lines
            .iter()
            .filter(|(name, line)| name.starts_with("slave") && line.contains("port=7777,state=online"))
            .count()
    };
    wait_until("all are replicas", || online(&mut client) == 2 * shards);
    call(&mut client, &["SET", "end", "1"]);
    for fake in &mut fakes {
        let items = fake.items_until_set("end").expect("the stream");
        assert_eq!(items.last().expect("the end").db, 0);
    }
    let clients = field(&mut client, "clients", "connected_clients");
    drop(fakes);
    wait_until("all are gone", || number(&mut client, "replication", "connected_slaves") == 0);
    println!("{clients} clients with {} replicas", 2 * shards);
    wait_until("none is counted", || number(&mut client, "clients", "connected_clients") == 1);
}

#[test]
fn a_master_with_a_password_serves_replicas_that_know_it() {
    let braid = start(master(3).args(["--requirepass", "secret"]));
    let mut fake = Fake { client: connect(&braid), id: String::new(), offset: 0, rdb: Vec::new() };
    fake.client.send(&["PSYNC", "?", "-1"]).expect("asks");
    assert!(fake.line().expect("an answer").starts_with("-NOAUTH"));
    let mut client = connect(&braid);
    call(&mut client, &["AUTH", "secret"]);
    for kind in KINDS {
        let replica = start(Peer::builder(kind).args(["--masterauth", "secret"]));
        follow(&replica, braid.port());
        wait_until("the replica is linked", || is_linked(&replica));
        assert_clients_equal(&mut client, &mut connect(&replica));
    }
}

#[test]
fn law8_a_replica_frozen_in_the_midst_of_its_snapshot_costs_no_memory_and_stalls_nobody() {
    const VALUES: usize = 1200;
    let braid = start(master(2));
    let mut client = connect(&braid);
    let mut rng = fastrand::Rng::with_seed(3);
    for n in 0..VALUES {
        let value: Vec<u8> = (0..100_000).map(|_| rng.u8(..)).collect();
        call(&mut client, &cmd!["SET", format!("value:{n}"), value]);
    }
    let replica = Kind::Redis8.start().expect("the peer starts");
    let before_bytes = braid.usage().expect("it runs").rss_bytes;
    let attaching = probe(&braid);
    follow(&replica, braid.port());
    wait_until("the snapshot is on its way", || first_replica(&mut client).contains("send_bulk"));
    replica.stop().expect("is stopped");
    assert_no_stall("attaching", attaching);
    let frozen = probe(&braid);
    for n in 0..2000 {
        call(&mut client, &cmd!["SET", format!("small:{}", n % 100), n]);
    }
    let grown_bytes = braid.usage().expect("it runs").rss_bytes.saturating_sub(before_bytes);
    assert!(first_replica(&mut client).contains("send_bulk"), "frozen in the midst");
    assert_no_stall("frozen", frozen);
    let thawed = probe(&braid);
    replica.cont().expect("goes on");
    wait_until("the replica is linked", || is_linked(&replica));
    assert_no_stall("thawed", thawed);
    assert_equal(&braid, &replica);
    println!("{} MB grown while frozen", grown_bytes >> 20);
    assert!(grown_bytes < 60 << 20, "{grown_bytes} bytes for a dataset of 120 MB");
}

#[test]
fn a_master_pings_and_times_out_replicas_however_often_it_is_woken() {
    let braid = start(master(2).args(["--repl-ping-replica-period", "1", "--repl-timeout", "3"]));
    let mut fake = Fake::attach(&braid).expect("attaches");
    fake.ack().expect("is heard");
    fake.client.set_timeout(Some(Duration::from_millis(100))).expect("a timeout");
    // Each acknowledgement wakes the home shard; so does an empty line, which also keeps the link alive.
    let (mut pings, mut rounds) = (0, 0);
    while pings < 5 {
        match fake.command() {
            Ok(words) => pings += usize::from(words == [b"PING"]),
            Err(error) => assert!(!is_closed(&error), "closed though it spoke"),
        }
        fake.client.send_raw(b"\r\n").expect("is heard");
        rounds += 1;
        assert!(rounds < 300, "{pings} pings in half a minute");
    }
    assert!(pings * 4 < rounds, "pings follow each other too fast");
    // Silent from now on.
    fake.client.set_timeout(Some(Duration::from_secs(20))).expect("a timeout");
    fake.client.wait_closed().expect("a silent replica is closed");
}

#[test]
fn what_would_break_the_stream_is_refused() {
    let braid = start(master(3));
    for _ in 0..3 {
        // Replies that were not sent yet would come after the snapshot's header, or never.
        let mut client = connect(&braid);
        client.send_raw(b"PING\r\nPSYNC ? -1\r\n").expect("is sent");
        assert_eq!(client.receive().expect("a reply"), "PONG");
        let refused = client.receive().expect("a reply");
        assert_eq!(refused, "ERR SYNC and PSYNC are invalid with pending output");
        // A command with an answer in the midst of the stream.
        let mut fake = Fake::attach(&braid).expect("attaches");
        fake.ack().expect("is heard");
        fake.client.send(&["PING"]).expect("is sent");
        assert!(is_closed(&fake.command().expect_err("closed")));
    }
    let mut client = connect(&braid);
    wait_until("none is left", || number(&mut client, "replication", "connected_slaves") == 0);
}
