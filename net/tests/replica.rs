//! Braid follows: every peer and itself, with any number of shards, while its master is written; laws 2 to 7 and 9 with real
//! processes.
//!
//! `BRAID_REPLICATION_COMMANDS=n` sets how many commands the load runs at least while replicas come and go.

#[path = "replication/attach.rs"]
mod attach;
mod common;
#[path = "replication/load.rs"]
mod load;
#[path = "common/proxy.rs"]
mod proxy;
#[path = "common/replicas.rs"]
mod replicas;

use attach::attach_under_load;
use braid_bench::client::{Client, Value};
use braid_bench::cmd;
use braid_bench::dataset::Dataset;
use braid_bench::peers::{Kind, Peer};
use common::{TIMEOUT, braid, call, connect, count, field, key_per_shard, start, wait_told, wait_until};
use load::{Load, State, enough};
use proxy::Proxy;
use replicas::{READONLY, assert_equal, error, follow, is_linked, node, number, replica};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

/// Shards of the key set that the load's transactions touch.
const SPREAD: usize = 5;

fn link_is_down(peer: &Peer) -> bool {
    !is_linked(peer)
}

/// Braid with several numbers of shards attaches to this master while it is written.
fn follow_under_load(kind: &Kind) {
    let master = start(node(kind, 1));
    attach_under_load(&master, &[1, 2, 5].map(replica), SPREAD);
}

#[test]
fn law5_braid_follows_redis_7_under_load() {
    follow_under_load(&Kind::Redis7);
}

#[test]
fn law5_braid_follows_redis_8_under_load() {
    follow_under_load(&Kind::Redis8);
}

#[test]
fn law5_braid_follows_valkey_under_load() {
    follow_under_load(&Kind::Valkey);
}

/// Each reader looks at least so often while the writer writes and something of it has arrived.
const LOOKS: u64 = 50;

/// What a reader at a replica sees of one writer at the master: never a later write without an earlier one, never a part of
/// a transaction or of a command.
fn read_history(kind: &Kind, shards: usize) {
    let (master, replica) = (start(node(kind, 2)), replica(shards));
    follow(&replica, master.port());
    assert_equal(&master, &replica);
    let steps = key_per_shard("step:", shards.max(2));
    let whole = key_per_shard("whole:", shards.max(2));
    let state = State::default();
    let is_over = AtomicBool::new(false);
    let looks = [const { AtomicU64::new(0) }; 2];
    let have_looked = || looks.iter().all(|looks| looks.load(Ordering::Relaxed) >= LOOKS);
    thread::scope(|scope| {
        let load = Load::start(scope, &master, SPREAD, &state);
        let writer = scope.spawn(|| {
            let mut client = connect(&master);
            let (mut n, start) = (0, Instant::now());
            while n < enough() / 5 || !(have_looked() || start.elapsed() > TIMEOUT) {
                n += 1;
                let mut pipeline: Vec<_> = steps.iter().map(|key| cmd!["SET", key, n]).collect();
                match n % 3 {
                    0 => {
                        pipeline.push(cmd!["MULTI"]);
                        pipeline.extend(whole.iter().map(|key| cmd!["SET", key, n]));
                        pipeline.push(cmd!["EXEC"]);
                    }
                    1 => {
                        let mut mset = cmd!["MSET"];
                        whole.iter().for_each(|key| mset.extend(cmd![key, n]));
                        pipeline.push(mset);
                    }
                    // Several shards' keys in a command that runs alone.
                    _ => {
                        pipeline.push(cmd!["MULTI"]);
                        pipeline.extend(whole.iter().map(|key| cmd!["SET", key, n]));
                        pipeline.push(cmd!["RENAME", &whole[0], "elsewhere"]);
                        pipeline.push(cmd!["RENAME", "elsewhere", &whole[0]]);
                        pipeline.push(cmd!["EXEC"]);
                    }
                }
                client.pipeline(&pipeline).expect("the server stays");
            }
            is_over.store(true, Ordering::SeqCst);
        });
        let readers: Vec<_> = (0..2)
            .map(|reader| {
                let (steps, whole, is_over, replica) = (&steps, &whole, &is_over, &replica);
                let looks: &AtomicU64 = &looks[reader];
                scope.spawn(move || {
                    let mut client = connect(replica);
                    let mut last = 0;
                    while !is_over.load(Ordering::SeqCst) {
                        // The last step first: what is seen of it, all before it must show.
                        let reads: Vec<_> = steps.iter().rev().map(|key| cmd!["GET", key]).collect();
                        let seen: Vec<u64> =
                            client.pipeline(&reads).expect("the server stays").iter().map(count).collect();
                        assert!(seen.is_sorted(), "a later write without an earlier one: {seen:?}");
                        assert!(seen[0] >= last, "time goes back: {seen:?} after {last}");
                        last = seen[0];
                        let seen: Vec<u64> = if reader == 0 {
                            let mut mget = cmd!["MGET"];
                            mget.extend(whole.iter().map(|key| key.clone().into_bytes()));
                            call(&mut client, &mget).items().expect("an array").iter().map(count).collect()
                        } else {
                            let mut block = vec![cmd!["MULTI"]];
                            block.extend(whole.iter().map(|key| cmd!["GET", key]));
                            block.push(cmd!["EXEC"]);
                            let replies = client.pipeline(&block).expect("the server stays");
                            let values =
                                replies.last().expect("that of EXEC").items().expect("an array").to_vec();
                            values.iter().map(count).collect()
                        };
                        assert!(seen.iter().all(|n| *n == seen[0]), "a part of a transaction: {seen:?}");
                        if last > 0 && seen[0] > 0 {
                            looks.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                })
            })
            .collect();
        writer.join().expect("the writer succeeds");
        readers.into_iter().for_each(|reader| reader.join().expect("a reader succeeds"));
        load.stop();
    });
    assert!(have_looked(), "too little was seen: {looks:?}");
    assert_equal(&master, &replica);
    assert_eq!(number(&mut connect(&master), "stats", "sync_full"), 1);
}

#[test]
fn law2_and_3_readers_of_a_replica_of_redis_see_a_prefix_of_history() {
    read_history(&Kind::Redis7, 3);
}

#[test]
fn law2_and_3_readers_of_a_replica_of_braid_see_a_prefix_of_history() {
    read_history(&braid(), 5);
}

#[test]
fn law2_and_3_readers_of_a_replica_of_one_shard_see_a_prefix_of_history() {
    read_history(&Kind::Valkey, 1);
}

#[test]
fn a_replica_takes_writes_from_its_master_only() {
    for shards in [1, 3] {
        let (master, replica) = (replica(1), replica(shards));
        follow(&replica, master.port());
        assert_equal(&master, &replica);
        let mut client = connect(&replica);
        for words in [&["SET", "a", "1"][..], &["MSET", "a", "1", "b", "2"], &["FLUSHALL"], &["DEL", "a"]] {
            assert_eq!(error(&mut client, words), READONLY);
        }
        call(&mut client, &["MULTI"]);
        assert_eq!(error(&mut client, &["SET", "a", "1"]), READONLY);
        assert!(error(&mut client, &["EXEC"]).starts_with("EXECABORT"));
        call(&mut client, &["CONFIG", "SET", "replica-read-only", "no"]);
        call(&mut client, &["SET", "mine", "1"]);
        call(&mut client, &["CONFIG", "SET", "replica-read-only", "yes"]);
        assert_eq!(error(&mut client, &["SET", "a", "1"]), READONLY);
        // A transaction that was begun on a master ends on a replica.
        let mut other = connect(&master);
        for words in [&["MULTI"][..], &["SET", "late", "1"]] {
            call(&mut other, words);
        }
        let third = start(node(&braid(), 1));
        follow(&master, third.port());
        let text = error(&mut other, &["EXEC"]);
        assert_eq!(text, format!("EXECABORT Transaction discarded because of: {READONLY}"));
    }
}

#[test]
fn the_state_of_the_link_is_shown_as_redis_shows_it() {
    let (master, replica) = (replica(2), replica(2));
    let mut client = connect(&replica);
    // A proxy whose server is gone takes connections and ends them.
    let proxy = Proxy::start(master.addr()).expect("a proxy");
    assert_eq!(call(&mut client, &cmd!["REPLICAOF", "127.0.0.1", proxy.port()]), "OK");
    let again = call(&mut client, &cmd!["REPLICAOF", "127.0.0.1", proxy.port()]);
    assert_eq!(again, "OK Already connected to specified master");
    assert_equal(&master, &replica);
    let info = client.info("replication").expect("INFO");
    let port = proxy.port().to_string();
    for (name, value) in [
        ("role", "slave"),
        ("master_host", "127.0.0.1"),
        ("master_port", &port),
        ("master_link_status", "up"),
        ("master_sync_in_progress", "0"),
        ("slave_priority", "100"),
        ("slave_read_only", "1"),
        ("replica_announced", "1"),
        ("connected_slaves", "0"),
    ] {
        assert_eq!(info[name], value, "{name}");
    }
    assert_eq!(info["slave_repl_offset"], info["master_repl_offset"]);
    let role = call(&mut client, &["ROLE"]);
    let role = role.items().expect("an array");
    assert_eq!(
        (role[0].text(), role[1].text(), role[3].text()),
        ("slave".into(), "127.0.0.1".into(), "connected".into())
    );
    let list = call(&mut client, &["CLIENT", "LIST", "TYPE", "master"]).text().to_string();
    assert!(list.contains(" flags=M ") && list.lines().count() == 1, "{list}");
    let list = call(&mut connect(&master), &["CLIENT", "LIST", "TYPE", "replica"]).text().to_string();
    assert!(list.contains(" flags=S ") && list.lines().count() == 1, "{list}");
    let line = format!("port={},state=online", replica.port());
    wait_until("the master shows it", || {
        field(&mut connect(&master), "replication", "slave0").contains(&line)
    });
    // Killed at either end, it comes back.
    let partial = || number(&mut connect(&master), "stats", "sync_partial_ok");
    assert_eq!(call(&mut client, &["CLIENT", "KILL", "TYPE", "master"]), 1);
    wait_until("the link is back", || partial() == 1 && is_linked(&replica));
    assert_eq!(call(&mut connect(&master), &["CLIENT", "KILL", "TYPE", "replica"]), 1);
    wait_until("the link is back", || partial() == 2 && is_linked(&replica));
    assert_eq!(error(&mut client, &["REPLICAOF", "127.0.0.1", "x"]), "ERR Invalid master port");
    call(&mut client, &["REPLICAOF", "NO", "ONE"]);
    assert_eq!(field(&mut client, "replication", "role"), "master");
    call(&mut client, &["SET", "a", "1"]);
}

#[test]
fn without_a_link_old_data_is_served_or_not() {
    let (mut master, replica) = (replica(1), replica(2));
    call(&mut connect(&master), &["SET", "a", "1"]);
    follow(&replica, master.port());
    assert_equal(&master, &replica);
    master.kill().expect("is killed");
    wait_until("the link is down", || link_is_down(&replica));
    let mut client = connect(&replica);
    assert_eq!(call(&mut client, &["GET", "a"]), "1");
    assert!(number(&mut client, "replication", "master_link_down_since_seconds") < 60);
    call(&mut client, &["CONFIG", "SET", "replica-serve-stale-data", "no"]);
    let down = "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.";
    assert_eq!(error(&mut client, &["GET", "a"]), down);
    assert_eq!(field(&mut client, "replication", "role"), "slave");
    // Nobody may begin to follow it meanwhile, and stock replicas go on asking.
    let below = Kind::Redis7.start().expect("the peer starts");
    call(&mut connect(&below), &["SET", "kept", "1"]);
    follow(&below, replica.port());
    master.restart().expect("starts again");
    let mut there = connect(&master);
    call(&mut there, &["SET", "b", "1"]);
    // A master that lost its dataset does not wipe those of its replicas before it is told to.
    wait_told(&replica, "protected from wiping its replicas");
    call(&mut client, &["CONFIG", "SET", "replica-serve-stale-data", "yes"]);
    assert_eq!(call(&mut client, &["GET", "a"]), "1");
    call(&mut there, &["REPLICAOF", "NO", "ONE"]);
    wait_until("the chain is linked", || is_linked(&replica) && is_linked(&below));
    assert_equal(&master, &below);
}

#[test]
fn law9_a_master_that_comes_back_empty_does_not_wipe_its_replica() {
    // In whatever database its keys are.
    for (shards, db) in [(1, 0), (3, 0), (2, 70)] {
        let databases = |kind: Kind, shards| start(node(&kind, shards).args(["--databases", "100"]));
        let (mut master, replica) = (databases(Kind::Redis7, 1), databases(braid(), shards));
        let mut there = connect(&master);
        call(&mut there, &cmd!["SELECT", db]);
        call(&mut there, &["SET", "a", "1"]);
        follow(&replica, master.port());
        wait_until("the replica is linked", || is_linked(&replica));
        master.kill().expect("is killed");
        master.restart().expect("starts again");
        let mut client = connect(&replica);
        let is_refused = |client: &mut Client| field(client, "replication", "master_dataset_refused") == "1";
        call(&mut client, &cmd!["SELECT", db]);
        wait_until("the dataset is refused", || {
            assert_eq!(call(&mut client, &["GET", "a"]), "1");
            is_refused(&mut client)
        });
        wait_told(&replica, "empty dataset of another history");
        // Whoever says so means it.
        follow(&replica, master.port());
        wait_until("the dataset is accepted", || is_linked(&replica) && !is_refused(&mut client));
        assert_eq!(call(&mut client, &["DBSIZE"]), 0);
        assert_equal(&master, &replica);
    }
}

#[test]
fn law9_a_replica_that_is_saved_and_started_again_goes_on_where_it_was() {
    for kind in [Kind::Redis7, Kind::Valkey, braid()] {
        let (master, mut replica) = (start(node(&kind, 2)), replica(3));
        follow(&replica, master.port());
        let state = State::default();
        thread::scope(|scope| {
            let load = Load::start(scope, &master, SPREAD, &state);
            state.pass(enough() / 5);
            wait_until("the replica is linked", || is_linked(&replica));
            // Somewhere in the midst, and in whatever database.
            let mut client = connect(&master);
            call(&mut client, &["SELECT", "9"]);
            call(&mut client, &["SET", "before", "1"]);
            let _ = connect(&replica).command(&["SHUTDOWN", "SAVE"]);
            replica.wait_exit(TIMEOUT).expect("it ends");
            let saves = replica.log().matches("DB saved on disk").count();
            assert_eq!(saves, 1, "whatever comes in meanwhile: every cut of the stream is as good");
            state.pass(enough() / 5);
            replica.set_threads(2);
            replica.set_args(["--replicaof", &format!("127.0.0.1 {}", master.port())]);
            replica.restart().expect("starts again");
            wait_until("the replica is linked", || is_linked(&replica));
            state.pass(enough() / 5);
            load.stop();
        });
        assert_equal(&master, &replica);
        let mut client = connect(&master);
        let syncs = ["sync_full", "sync_partial_ok"].map(|name| number(&mut client, "stats", name));
        assert_eq!(syncs, [1, 1], "the file says where it stands");
    }
}

#[test]
fn expired_keys_are_hidden_until_the_master_says_so() {
    let (master, replica) = (Kind::Redis7.start().expect("the peer starts"), replica(2));
    follow(&replica, master.port());
    assert_equal(&master, &replica);
    let (mut there, mut here) = (connect(&master), connect(&replica));
    call(&mut there, &["DEBUG", "SET-ACTIVE-EXPIRE", "0"]);
    call(&mut there, &["SET", "short", "1", "PX", "100"]);
    wait_until("the key is there", || call(&mut here, &["DBSIZE"]) == 2);
    wait_until("the key is hidden", || call(&mut here, &["EXISTS", "short"]) == 0);
    assert_eq!(call(&mut here, &["GET", "short"]).text(), "");
    assert_eq!(call(&mut here, &["DBSIZE"]), 2, "it is still held");
    // The master looks at it, and tells.
    call(&mut there, &["GET", "short"]);
    wait_until("the key is gone", || call(&mut here, &["DBSIZE"]) == 1);
    assert_equal(&master, &replica);
}

/// Braid, Redis and Valkey in turn as the writable replica in the middle: what its own clients let expire it removes itself, what
/// the master gave it stays, and who follows it hears nothing of that.
#[test]
fn a_writable_replica_removes_what_its_own_clients_let_expire() {
    const TRACKED: &str = "slave_expires_tracked_keys";
    // Redis and Valkey do not read each other's snapshots.
    for (middle, kind) in [
        (braid(), Kind::Redis8),
        (braid(), Kind::Valkey),
        (Kind::Redis8, Kind::Redis8),
        (Kind::Valkey, Kind::Valkey),
    ] {
        let (master, middle, below) = (start(node(&kind, 1)), start(node(&middle, 3)), start(node(&kind, 1)));
        follow(&middle, master.port());
        assert_equal(&master, &middle);
        follow(&below, middle.port());
        assert_equal(&master, &below);
        let (mut there, mut here) = (connect(&master), connect(&middle));
        call(&mut there, &["DEBUG", "SET-ACTIVE-EXPIRE", "0"]);
        call(&mut here, &["CONFIG", "SET", "replica-read-only", "no"]);
        for n in 0..20 {
            call(&mut here, &cmd!["SET", format!("own:{n}"), 1, "PX", 100]);
            call(&mut here, &cmd!["SET", format!("later:{n}"), 1, "EX", 1000]);
        }
        call(&mut there, &["SET", "theirs", "1", "PX", "100"]);
        call(&mut there, &["SET", "last", "1"]);
        wait_until("the master's are there", || call(&mut here, &["EXISTS", "last"]) == 1);
        // The marker of the comparisons, `theirs`, `last`, and what comes later.
        wait_until("its own are gone", || call(&mut here, &["DBSIZE"]) == 23);
        assert_eq!(number(&mut here, "stats", TRACKED), 20);
        assert_eq!(number(&mut here, "stats", "expired_keys"), 20);
        wait_until("the master's is hidden", || call(&mut here, &["EXISTS", "theirs"]) == 0);
        assert_eq!(call(&mut here, &["DBSIZE"]), 23);
        call(&mut there, &["GET", "theirs"]);
        for n in 0..20 {
            call(&mut here, &cmd!["DEL", format!("later:{n}")]);
        }
        assert_equal(&master, &middle);
        assert_equal(&master, &below);
        wait_until("nothing is tracked", || number(&mut here, "stats", TRACKED) == 0);
        assert_eq!(field(&mut connect(&below), "replication", "master_link_status"), "up");
        assert_eq!(number(&mut here, "stats", "sync_full"), 1, "the stream has stayed as it was");
        call(&mut here, &["SET", "own", "1", "EX", "1000"]);
        assert_eq!(number(&mut here, "stats", TRACKED), 1);
        call(&mut there, &["FLUSHALL"]);
        wait_until("nothing is tracked", || number(&mut here, "stats", TRACKED) == 0);
    }
}

#[test]
fn a_command_that_fails_is_counted_and_the_dataset_is_fetched_anew() {
    let (master, replica) = (Kind::Redis8.start().expect("the peer starts"), replica(3));
    follow(&replica, master.port());
    assert_equal(&master, &replica);
    let mut client = connect(&replica);
    // A write of the replica's own makes the master's fail.
    call(&mut client, &["CONFIG", "SET", "replica-read-only", "no"]);
    call(&mut client, &["SET", "clash", "a string"]);
    call(&mut connect(&master), &["RPUSH", "clash", "a", "list"]);
    wait_until("the failure is noticed", || number(&mut client, "replication", "slave_failed_commands") == 1);
    wait_until("the link is back", || is_linked(&replica));
    assert_equal(&master, &replica);
    assert_eq!(number(&mut connect(&master), "stats", "sync_full"), 2);
    wait_told(&replica, "failed on shard");
}

#[test]
fn law9_a_snapshot_that_breaks_off_leaves_what_was_there() {
    let (master, replica) = (Kind::Valkey.start().expect("the peer starts"), replica(2));
    let mut there = connect(&master);
    let mut rng = fastrand::Rng::with_seed(1);
    for n in 0..2000 {
        let value: Vec<u8> = (0..500).map(|_| rng.u8(..)).collect();
        call(&mut there, &cmd!["SET", format!("key:{n}"), value]);
    }
    let mut client = connect(&replica);
    call(&mut client, &["SET", "mine", "1"]);
    let before = Dataset::read(&mut client).expect("is read");
    let proxy = Proxy::start(master.addr()).expect("a proxy");
    proxy.break_after([200_000, 400_000, 600_000]);
    follow(&replica, proxy.port());
    wait_until("two attempts broke off", || {
        assert!(proxy.broken() >= 3 || Dataset::read(&mut client).expect("is read").len() == before.len());
        proxy.broken() >= 3
    });
    assert_equal(&master, &replica);
}

#[test]
fn memory_for_two_datasets_can_be_refused() {
    let (master, replica) = (Kind::Redis8.start().expect("the peer starts"), replica(3));
    let mut there = connect(&master);
    for n in 0..1000 {
        call(&mut there, &cmd!["SET", format!("key:{n}"), n]);
    }
    let mut client = connect(&replica);
    call(&mut client, &["CONFIG", "SET", "repl-diskless-load", "flush-before-load"]);
    for n in 0..1000 {
        call(&mut client, &cmd!["SET", format!("mine:{n}"), n]);
    }
    let proxy = Proxy::start(master.addr()).expect("a proxy");
    // Within the snapshot: what was given up is not there any more.
    proxy.break_after([5_000]);
    follow(&replica, proxy.port());
    wait_until("the dataset is given up", || {
        let reply = client.command(&["DBSIZE"]).expect("a reply");
        reply.is_error() && reply.text().starts_with("LOADING")
    });
    assert_equal(&master, &replica);
    // With a dataset that was asked for, links go on as ever.
    proxy.break_all();
    assert_equal(&master, &replica);
    assert_eq!(number(&mut there, "stats", "sync_full"), 2);
}

#[test]
fn law9_a_dataset_that_was_given_up_is_seen_by_nobody_and_its_file_stays() {
    let (master, replica) = (Kind::Redis8.start().expect("the peer starts"), replica(3));
    let (mut there, mut client, mut queuing) = (connect(&master), connect(&replica), connect(&replica));
    for n in 0..1000 {
        call(&mut there, &cmd!["SET", format!("key:{n}"), vec![b'v'; 20_000]]);
    }
    for n in 0..5000 {
        call(&mut client, &cmd!["SET", format!("mine:{n}"), n]);
    }
    call(&mut client, &["SAVE"]);
    call(&mut client, &["CONFIG", "SET", "repl-diskless-load", "flush-before-load", "save", "1 1"]);
    let file = || std::fs::read(replica.dir().join("dump.rdb")).expect("it is saved");
    let saved = file();
    call(&mut queuing, &["MULTI"]);
    call(&mut queuing, &["GET", "mine:1"]);
    // A minute in all, of which something arrives at once.
    call(&mut there, &["CONFIG", "SET", "rdb-key-save-delay", "60000", "rdbcompression", "no"]);
    follow(&replica, master.port());
    let loading = "LOADING Redis is loading the dataset in memory";
    wait_until("it is given up", || match client.command(&["GET", "mine:1"]).expect("a reply") {
        Value::Null => panic!("nobody may see what is left"),
        reply => reply == Value::Error(loading.into()),
    });
    assert_eq!(field(&mut client, "persistence", "loading"), "1");
    assert_eq!(error(&mut client, &["KEYS", "*"]), loading);
    assert_eq!(
        error(&mut queuing, &["EXEC"]),
        format!("EXECABORT Transaction discarded because of: {loading}")
    );
    assert_eq!(error(&mut queuing, &["EXEC"]), "ERR EXEC without MULTI");
    // The way out of it, if the master is gone.
    call(&mut client, &["REPLICAOF", "NO", "ONE"]);
    wait_until("it is a master", || call(&mut client, &["DBSIZE"]) == 0);
    assert_eq!(field(&mut client, "persistence", "loading"), "0");
    call(&mut client, &["SET", "new", "1"]);
    // A save point would save two seconds after that.
    let saves_at = Instant::now() + std::time::Duration::from_secs(4);
    wait_until("the save point's time is over", || Instant::now() >= saves_at);
    assert!(file() == saved, "it holds more than there is");
    call(&mut client, &["SAVE"]);
    assert!(file() != saved, "it was asked for");
    call(&mut there, &["CONFIG", "SET", "rdb-key-save-delay", "0"]);
}

#[test]
fn the_role_is_configured() {
    let master = replica(1);
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("braid.conf");
    std::fs::write(&path, format!("replicaof 127.0.0.1 {}\n", master.port())).expect("is written");
    let replica = start(node(&braid(), 2).arg("--include").arg(&path));
    wait_until("the replica is linked", || is_linked(&replica));
    assert_equal(&master, &replica);
    let mut client = connect(&replica);
    let shown = call(&mut client, &["CONFIG", "GET", "replicaof"]);
    assert_eq!(shown.items().expect("an array")[1], format!("127.0.0.1 {}", master.port()).as_str());
    call(&mut client, &["REPLICAOF", "NO", "ONE"]);
    let shown = call(&mut client, &["CONFIG", "GET", "replicaof"]);
    assert_eq!(shown.items().expect("an array")[1], "");
}
