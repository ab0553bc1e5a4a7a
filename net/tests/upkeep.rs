//! What keeps a node in order beside its data: pauses, ends of the process, numbers about replication, and what becomes of
//! what it cannot read.

mod common;
#[path = "common/proxy.rs"]
mod proxy;
#[path = "common/replicas.rs"]
mod replicas;

use braid_bench::client::{Client, Value};
use braid_bench::peers::{Builder, Kind, Peer};
use braid_bench::sys::Signal;
use common::{braid_builder, call, connect, field, start, wait_told, wait_until};
use proxy::Proxy;
use replicas::{assert_equal, follow, is_linked, number, replica_of, temporary_files};
use std::time::Duration;

const SHARDS: usize = 2;

fn master() -> Builder {
    replicas::master(SHARDS)
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

/// The names of a section's fields, in order, but for those that only Braid has.
fn names(client: &mut Client, section: &str) -> Vec<String> {
    const OWN: [&str; 5] = [
        "protected_restart",
        "repl_backlog_disk_bytes",
        "master_dataset_refused",
        "slave_failed_commands",
        "braid_version",
    ];
    let Value::Bulk(text) = call(client, &["INFO", section]) else { panic!("INFO is a string") };
    let text = String::from_utf8(text).expect("INFO is text");
    let names = text.lines().filter_map(|line| line.split_once(':').map(|(name, _)| name.to_owned()));
    names.filter(|name| !OWN.contains(&name.as_str())).collect()
}

#[test]
fn info_replication_has_the_fields_of_redis_in_every_state_of_the_link() {
    let nobody = braid_bench::peers::free_port().expect("a free port");
    // One for each, or the second would wait for the first's snapshot.
    let mut masters =
        [(); 2].map(|()| start(Peer::builder(Kind::Redis8).args(["--repl-diskless-sync-delay", "0"])));
    let peers = [start(Peer::builder(Kind::Redis8)), start(braid_builder(SHARDS))];
    let mut clients = peers.each_ref().map(connect);
    let mut compare = |what: &str| {
        let [redis, braid] = clients.each_mut().map(|client| names(client, "replication"));
        assert_eq!(braid, redis, "{what}");
        clients.each_mut().map(|client| client.info("replication").expect("INFO"))
    };
    compare("a master alone");
    peers.iter().for_each(|peer| follow(peer, nobody));
    for info in compare("a master that is not there") {
        for name in ["master_last_io_seconds_ago", "master_link_down_since_seconds"] {
            assert_eq!(info[name], "-1", "{name}");
        }
    }
    let mut writers = masters.each_ref().map(connect);
    for writer in &mut writers {
        for n in 0..200 {
            call(writer, &["SET", &format!("key{n}"), "value"]);
        }
        call(writer, &["CONFIG", "SET", "rdb-key-save-delay", "20000"]);
    }
    for (peer, master) in peers.iter().zip(&masters) {
        follow(peer, master.port());
    }
    for peer in &peers {
        let mut client = connect(peer);
        wait_until("it syncs", || field(&mut client, "replication", "master_sync_in_progress") == "1");
    }
    for info in compare("a full sync") {
        assert_eq!(info["master_last_io_seconds_ago"], "-1");
        assert_eq!(info["master_current_sync_attempts"], "1");
    }
    peers.iter().for_each(|peer| wait_until("it is up", || is_linked(peer)));
    for info in compare("a link that is up") {
        assert_ne!(info["master_last_io_seconds_ago"], "-1");
        assert_eq!(info["total_disconnect_time_sec"], "0");
    }
    masters.iter_mut().for_each(|master| master.kill().expect("a signal"));
    peers.iter().for_each(|peer| wait_until("it is down", || !is_linked(peer)));
    for info in compare("a link that is lost") {
        assert_eq!(info["master_last_io_seconds_ago"], "-1");
        assert_ne!(info["master_link_down_since_seconds"], "-1");
    }
    for peer in &peers {
        call(&mut connect(peer), &["REPLICAOF", "NO", "ONE"]);
    }
    compare("a former replica");
}

#[test]
fn bytes_of_replication_are_counted() {
    const LEN: usize = 1 << 20;
    for replica in [Peer::builder(Kind::Redis8), braid_builder(SHARDS)] {
        let braid = start(master());
        let replica = replica_of(replica, braid.port());
        let mut client = connect(&braid);
        let output = |client: &mut Client| number(client, "stats", "total_net_repl_output_bytes");
        let before = output(&mut client);
        assert!(before > 0, "the snapshot");
        call(&mut client, &["SET", "key", &"v".repeat(LEN)]);
        call(&mut client, &["WAIT", "1", "0"]);
        let sent = output(&mut client) - before;
        assert!((LEN..LEN + 4096).contains(&(sent as usize)), "{sent}");
        assert!(number(&mut client, "stats", "total_net_output_bytes") > sent);
        wait_until("the rate shows it", || {
            call(&mut client, &["SET", "other", &"v".repeat(LEN)]);
            field(&mut client, "stats", "instantaneous_output_repl_kbps") != "0.00"
        });
        let received = number(&mut connect(&replica), "stats", "total_net_repl_input_bytes");
        assert!(received >= sent, "{received}");
        assert_eq!(number(&mut client, "stats", "total_net_repl_input_bytes"), 0);
    }
}

#[test]
fn a_save_within_a_transaction_is_scheduled_as_in_redis() {
    for peer in [start(Peer::builder(Kind::Redis8)), start(braid_builder(SHARDS))] {
        let mut client = connect(&peer);
        let scheduled = Value::Simple("Background saving scheduled".into());
        for command in ["MULTI", "BGSAVE"] {
            call(&mut client, &[command]);
        }
        call(&mut client, &["BGSAVE", "SCHEDULE"]);
        assert_eq!(call(&mut client, &["EXEC"]), Value::Array(vec![scheduled.clone(), scheduled]));
        wait_until("it is saved", || field(&mut client, "persistence", "rdb_saves") == "1");
        for line in [&["BGSAVE", "FOO"][..], &["BGSAVE", "SCHEDULE", "NOW"]] {
            let Value::Error(text) = client.command(line).expect("a reply") else { panic!("{line:?}") };
            assert_eq!(text, "ERR syntax error");
        }
    }
}

/// A replica with so many keys of its own, which takes snapshots in as told.
fn intake(way: &str, keys: usize) -> Peer {
    let args = ["--repl-diskless-load", way, "--enable-protected-configs", "yes"];
    let replica = start(braid_builder(SHARDS).args(args));
    let mut client = connect(&replica);
    for n in 0..keys {
        call(&mut client, &["SET", &format!("mine:{n}"), "value"]);
    }
    replica
}

/// A stock master with many keys.
fn populated(keys: usize) -> Peer {
    let args = ["--repl-diskless-sync-delay", "0", "--enable-debug-command", "yes"];
    let master = start(Peer::builder(Kind::Redis8).args(args));
    call(&mut connect(&master), &["DEBUG", "POPULATE", &keys.to_string()]);
    master
}

#[test]
fn no_loss_a_dataset_goes_for_a_file_only_when_that_is_whole() {
    const FLUSHED: &str = "Flushing old data";
    let (master, replica) = (populated(20_000), intake("disabled", 1000));
    let mut client = connect(&replica);
    let proxy = Proxy::start(master.addr()).expect("a proxy");
    proxy.break_after([10_000, 200_000, 400_000]);
    follow(&replica, proxy.port());
    wait_until("attempts broke off", || {
        let is_whole_yet = proxy.broken() >= 3;
        assert!(is_whole_yet || call(&mut client, &["DBSIZE"]) == 1000, "it must stay until then");
        is_whole_yet
    });
    assert_equal(&master, &replica);
    wait_told(&replica, FLUSHED);
    assert_eq!(replica.log().matches(FLUSHED).count(), 1);
    assert!(temporary_files(&replica).is_empty());
    // What was taken in is as good as any: links go on, and it can be saved.
    proxy.break_all();
    assert_equal(&master, &replica);
    assert_eq!(number(&mut connect(&master), "stats", "sync_full"), 4);
    call(&mut client, &["SAVE"]);
}

#[test]
fn no_loss_a_dataset_goes_for_a_file_though_its_folder_is_no_longer_the_one() {
    let (master, replica) = (populated(1000), intake("disabled", 10));
    let elsewhere = tempfile::tempdir().expect("a folder");
    let mut client = connect(&replica);
    call(&mut connect(&master), &["CONFIG", "SET", "rdb-key-save-delay", "1000"]);
    follow(&replica, master.port());
    wait_until("it is being received", || !temporary_files(&replica).is_empty());
    call(&mut client, &["CONFIG", "SET", "dir", elsewhere.path().to_str().expect("is text")]);
    assert!(!temporary_files(&replica).is_empty(), "in the midst of it");
    assert_equal(&master, &replica);
    assert_eq!(number(&mut connect(&master), "stats", "sync_full"), 1);
    assert!(temporary_files(&replica).is_empty());
    assert_eq!(std::fs::read_dir(elsewhere.path()).expect("a folder").count(), 0);
}

#[test]
fn law9_a_file_that_cannot_be_read_again_is_noticed_before_the_dataset_goes() {
    let (master, replica) = (populated(1000), intake("disabled", 10));
    let (mut there, mut here) = (connect(&master), connect(&replica));
    // Two seconds in all.
    call(&mut there, &["CONFIG", "SET", "rdb-key-save-delay", "2000"]);
    follow(&replica, master.port());
    wait_until("it syncs", || !temporary_files(&replica).is_empty());
    call(&mut there, &["CONFIG", "SET", "rdb-key-save-delay", "0"]);
    for path in temporary_files(&replica) {
        std::fs::remove_file(path).expect("is removed");
    }
    wait_until("it is noticed", || {
        assert_eq!(call(&mut here, &["DBSIZE"]), 10, "it must stay");
        replica.log().contains("the file is gone")
    });
    assert_eq!(replica.log().matches("Flushing old data").count(), 0);
    assert_equal(&master, &replica);
}

#[test]
fn clients_are_told_that_a_dataset_is_loaded_when_there_is_no_other() {
    for (serves_stale, expected) in [("yes", "LOADING"), ("no", "MASTERDOWN")] {
        let (master, replica) = (populated(300_000), intake("disabled", 10));
        let mut client = connect(&replica);
        call(&mut client, &["CONFIG", "SET", "replica-serve-stale-data", serves_stale]);
        follow(&replica, master.port());
        wait_until(expected, || match client.command(&["GET", "mine:1"]).expect("a reply") {
            Value::Error(text) => {
                let is_loading = field(&mut client, "persistence", "loading") == "1";
                assert!(text.starts_with(expected) || serves_stale == "yes", "{text}");
                text.starts_with(expected) && is_loading
            }
            Value::Null => panic!("it was loaded before anybody saw"),
            _ => false,
        });
        assert_equal(&master, &replica);
        assert_eq!(field(&mut client, "persistence", "loading"), "0");
        assert_eq!(number(&mut client, "persistence", "rdb_last_load_keys_loaded"), 300_000);
    }
}

#[test]
fn only_a_dataset_that_is_not_empty_makes_way_on_empty_db() {
    for (keys, flushes) in [(0, false), (10, true)] {
        let (master, replica) = (populated(1000), intake("on-empty-db", keys));
        follow(&replica, master.port());
        assert_equal(&master, &replica);
        // It is told before the link.
        wait_told(&replica, "Finished with success");
        assert_eq!(replica.log().contains("Flushing old data"), flushes);
    }
}

#[test]
fn a_snapshot_that_is_being_received_leaves_no_file_when_the_replica_ends() {
    let master = populated(1000);
    call(&mut connect(&master), &["CONFIG", "SET", "rdb-key-save-delay", "100000"]);
    let mut replica = intake("disabled", 10);
    follow(&replica, master.port());
    let mut client = connect(&replica);
    wait_until("it syncs", || field(&mut client, "replication", "master_sync_in_progress") == "1");
    replica.terminate(Duration::from_secs(20)).expect("it ends");
    assert!(temporary_files(&replica).is_empty());
}

#[test]
fn expiries_of_fields_are_taken_over_from_masters_that_have_them() {
    for kind in [Kind::Redis8, Kind::Valkey] {
        let valkey = matches!(kind, Kind::Valkey);
        let (master, replica) = (start(Peer::builder(kind)), start(braid_builder(SHARDS)));
        let (mut there, mut here) = (connect(&master), connect(&replica));
        call(&mut there, &["CONFIG", "SET", "repl-diskless-sync-delay", "0"]);
        if !valkey {
            // A Valkey master sends such a hash only to who says that it is a Valkey, too.
            call(&mut there, &["HSET", "before", "goes", "1", "stays", "2"]);
            call(&mut there, &["HPEXPIRE", "before", "2000", "FIELDS", "1", "goes"]);
        }
        follow(&replica, master.port());
        wait_until("it is linked", || is_linked(&replica));
        call(&mut there, &["HSET", "after", "goes", "1", "stays", "2", "kept", "3"]);
        call(&mut there, &["HPEXPIRE", "after", "2000", "NX", "FIELDS", "2", "goes", "kept"]);
        call(&mut there, &["HPERSIST", "after", "FIELDS", "1", "kept"]);
        let hashes = if valkey { &["after"][..] } else { &["before", "after"] };
        for hash in hashes {
            wait_until("it is here", || call(&mut here, &["HGET", hash, "stays"]) == "2");
            wait_until("the field is gone", || call(&mut here, &["HGET", hash, "goes"]) == Value::Null);
        }
        // Its master says so in the end.
        wait_until("it is removed", || call(&mut here, &["HLEN", "after"]) == 2);
        assert_eq!(call(&mut here, &["HGET", "after", "kept"]), "3");
        assert_eq!(number(&mut here, "replication", "slave_failed_commands"), 0);
        assert_eq!(number(&mut there, "stats", "sync_full"), 1);
    }
}

#[test]
fn no_loss_a_type_that_does_not_exist_here_is_named_and_the_dataset_stays() {
    for (kind, way) in [(Kind::Redis8, "swapdb"), (Kind::Valkey, "disabled")] {
        let (master, replica) = (start(Peer::builder(kind)), intake(way, 10));
        let (mut there, mut here) = (connect(&master), connect(&replica));
        call(&mut there, &["CONFIG", "SET", "repl-diskless-sync-delay", "0"]);
        call(&mut there, &["XADD", "stream", "*", "field", "value"]);
        follow(&replica, master.port());
        wait_told(&replica, "Values of type stream are not supported");
        assert_eq!(call(&mut here, &["DBSIZE"]), 10);
        call(&mut there, &["DEL", "stream"]);
        wait_until("it is linked", || is_linked(&replica));
        assert_eq!(number(&mut here, "replication", "slave_failed_commands"), 0);
        // In the stream: counted, told with its offset, and the dataset is fetched anew.
        let offset = number(&mut there, "replication", "master_repl_offset");
        call(&mut there, &["XADD", "stream", "*", "field", "value"]);
        wait_until("it fails", || number(&mut here, "replication", "slave_failed_commands") == 1);
        wait_told(&replica, "unknown command 'XADD'");
        let place = "The master's stream cannot be followed at offset ";
        let log = replica.log();
        let told = log.split(place).nth(1).and_then(|rest| rest.split(':').next()).expect("it is told");
        assert!(told.parse::<u64>().expect("a number") >= offset, "{told}");
        call(&mut there, &["DEL", "stream"]);
        assert_equal(&master, &replica);
    }
}

/// A master whose only replica is frozen and lacks a write.
fn lagging(options: &[&str]) -> (Peer, Peer, Client) {
    let braid = start(master().args(options));
    let replica = replica_of(Peer::builder(Kind::Redis8), braid.port());
    replica.stop().expect("a signal");
    let mut client = connect(&braid);
    call(&mut client, &["SET", "key", "value"]);
    (braid, replica, client)
}

#[test]
fn no_loss_the_end_waits_for_replicas() {
    for saves in ["NOSAVE", "SAVE"] {
        let (mut braid, replica, mut client) = lagging(&[]);
        let mut writer = connect(&braid);
        client.send(&["SHUTDOWN", saves]).expect("sent");
        wait_told(&braid, "Waiting for replicas before shutting down.");
        writer.send(&["SET", "key", "too late"]).expect("sent");
        replica.cont().expect("a signal");
        assert!(braid.wait_exit(Duration::from_secs(20)).expect("it ends").success());
        assert!(braid.log().contains("1 of 1 replicas are in sync when shutting down."));
        assert_eq!(call(&mut connect(&replica), &["GET", "key"]), "value");
        assert_eq!(braid.dir().join("dump.rdb").exists(), saves == "SAVE");
    }
}

#[test]
fn the_end_waits_for_no_longer_than_it_is_told() {
    const LAGS: &str = "Lagging replica 127.0.0.1:";
    // By a timeout, and by a signal; without one, and with NOW.
    for (options, command) in [
        (&["--shutdown-timeout", "1"][..], Some(&["SHUTDOWN", "NOSAVE"][..])),
        (&["--shutdown-timeout", "1"], None),
        (&["--shutdown-timeout", "0"], Some(&["SHUTDOWN", "NOSAVE"])),
        (&[], Some(&["SHUTDOWN", "NOSAVE", "NOW"])),
    ] {
        let (mut braid, replica, mut client) = lagging(options);
        let ended = match command {
            Some(command) => {
                client.send(command).expect("sent");
                braid.wait_exit(Duration::from_secs(8))
            }
            None => braid.terminate(Duration::from_secs(8)),
        };
        assert!(ended.expect("it ends").success());
        let log = braid.log();
        assert_eq!(log.contains("Waiting for replicas"), options.last() == Some(&"1"));
        assert!(
            log.contains(LAGS) && log.contains("0 of 1 replicas are in sync when shutting down."),
            "{log}"
        );
        replica.cont().expect("a signal");
    }
}

#[test]
fn an_end_that_waits_can_be_aborted() {
    let (braid, replica, mut client) = lagging(&[]);
    let (mut writer, mut admin) = (connect(&braid), connect(&braid));
    let none = |reply: Value| assert_eq!(reply, Value::Error("ERR No shutdown in progress.".into()));
    none(admin.command(&["SHUTDOWN", "ABORT"]).expect("a reply"));
    client.send(&["SHUTDOWN"]).expect("sent");
    wait_told(&braid, "Waiting for replicas before shutting down.");
    writer.send(&["SET", "key", "later"]).expect("sent");
    wait_until("the write waits", || blocked(&mut admin) >= 1);
    assert_eq!(call(&mut admin, &["SHUTDOWN", "ABORT"]), Value::Simple("OK".into()));
    let failed = Value::Error("ERR Errors trying to SHUTDOWN. Check logs.".into());
    assert_eq!(client.receive().expect("a reply"), failed);
    assert_eq!(writer.receive().expect("a reply"), Value::Simple("OK".into()));
    none(admin.command(&["SHUTDOWN", "ABORT"]).expect("a reply"));
    replica.cont().expect("a signal");
}

/// What insists is a second SIGINT while the end waits; nothing else.
#[test]
fn no_loss_a_signal_saves_and_waits_also_after_an_end_that_was_given_up() {
    const WAITS: &str = "Waiting for replicas before shutting down.";
    let (mut braid, replica, mut client) = lagging(&["--save", "3600 1"]);
    let waits = |braid: &Peer, times| wait_until("it waits", || braid.log().matches(WAITS).count() == times);
    for times in 1..=2 {
        braid.signal(Signal::Term).expect("a signal");
        waits(&braid, times);
        // The process is asked again, which changes nothing.
        braid.signal(Signal::Term).expect("a signal");
        wait_until("it is heard", || braid.log().matches("Received Terminate").count() == 2 * times);
        assert_eq!(call(&mut client, &["SHUTDOWN", "ABORT"]), Value::Simple("OK".into()));
    }
    braid.signal(Signal::Int).expect("a signal");
    waits(&braid, 3);
    replica.cont().expect("a signal");
    assert!(braid.wait_exit(Duration::from_secs(20)).expect("it ends").success());
    assert!(braid.log().contains("1 of 1 replicas are in sync when shutting down."));
    braid.restart().expect("it starts again");
    assert_eq!(call(&mut connect(&braid), &["GET", "key"]), "value");
}

#[test]
fn who_insists_from_the_terminal_waits_for_nothing() {
    let (mut braid, replica, _client) = lagging(&["--save", "3600 1"]);
    braid.signal(Signal::Int).expect("a signal");
    wait_told(&braid, "Waiting for replicas before shutting down.");
    braid.signal(Signal::Int).expect("a signal");
    assert!(braid.wait_exit(Duration::from_secs(8)).expect("it ends").success());
    assert!(braid.log().contains("You insist... exiting now."));
    assert!(!braid.dir().join("dump.rdb").exists());
    replica.cont().expect("a signal");
}

/// Connections that cannot be accepted wait, and so does the server.
#[test]
fn without_descriptors_nobody_is_busy_and_later_all_are_served() {
    let braid = start(braid_builder(1));
    let mut client = connect(&braid);
    braid.limit_files(8).expect("is limited");
    // The limit is that of the moment when a listener begins to accept.
    let port = braid_bench::peers::free_port().expect("a free port");
    call(&mut client, &["CONFIG", "SET", "port", &port.to_string()]);
    let mut others: Vec<Client> =
        (0..100).map(|_| Client::connect(("127.0.0.1", port)).expect("is queued")).collect();
    others.iter_mut().for_each(|other| other.send(&["PING"]).expect("is sent"));
    wait_told(&braid, "Accepting client connection: Too many open files");
    let rounds = |client: &mut Client| number(client, "stats", "eventloop_cycles");
    let before = rounds(&mut client);
    // Half a second passes.
    assert_eq!(call(&mut client, &["WAIT", "1", "500"]), Value::Int(0));
    let passed = rounds(&mut client) - before;
    assert!(passed < 200, "{passed} rounds while nothing could be done");
    braid.limit_files(200).expect("is limited");
    for other in &mut others {
        assert_eq!(other.receive().expect("is served"), Value::Simple("PONG".into()));
    }
}
