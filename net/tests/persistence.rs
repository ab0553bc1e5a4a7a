//! Snapshots on disk, with real processes: what was saved is what comes back, here and in stock servers; what is not whole is
//! refused.

mod common;
#[path = "replication/load.rs"]
mod load;
#[path = "common/replicas.rs"]
mod replicas;

use braid_bench::client::Client;
use braid_bench::cmd;
use braid_bench::dataset::{self, Dataset};
use braid_bench::peers::{Kind, Peer};
use braid_bench::wait;
use common::{
    TIMEOUT, braid, braid_builder, call, connect, count, fill, restart, settle, start, wait_told, wait_until,
};
use load::{Load, State};
use replicas::{is_linked, temporary_files};
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Instant;

const LARGEST_BYTES: usize = 3 << 20;
const STOCK: [Kind; 3] = [Kind::Redis7, Kind::Redis8, Kind::Valkey];

fn field(peer: &Peer, section: &str, name: &str) -> String {
    common::field(&mut connect(peer), section, name)
}

/// Commands of all families from several clients.
fn run_load(peer: &Peer, shards: usize, commands: u64, mut meanwhile: impl FnMut(&Peer)) {
    let state = State::default();
    thread::scope(|scope| {
        let load = Load::start(scope, peer, shards, &state);
        for _ in 0..3 {
            state.pass(commands / 3);
            meanwhile(peer);
        }
        load.stop();
    });
}

/// Both hold the same, but for keys that expired in between.
fn assert_same(left: &Dataset, right: &Dataset) {
    let diff = dataset::diff(left, right);
    assert!(diff.is_empty(), "{diff}");
}

#[test]
fn no_loss_a_dataset_survives_a_shutdown_whatever_the_number_of_shards() {
    let mut peer = start(braid_builder(3));
    fill(&peer, LARGEST_BYTES);
    run_load(&peer, 3, 3000, |_| {});
    settle(&peer);
    let before = Dataset::read(&mut connect(&peer)).expect("is read");
    // A file has keys that are over, too, as long as they are not removed.
    let mut client = connect(&peer);
    wait_until("what is over is removed", || {
        let sizes = (0..16).map(|db| {
            call(&mut client, &cmd!["SELECT", db]);
            call(&mut client, &["DBSIZE"]).as_int().expect("a number")
        });
        sizes.sum::<i64>() == before.len() as i64
    });
    for shards in [1, 5, 2] {
        connect(&peer).send(&["SHUTDOWN", "SAVE"]).expect("is sent");
        assert!(peer.wait_exit(TIMEOUT).expect("it ends").success());
        peer.set_threads(shards);
        peer.restart().expect("it starts again");
        assert_same(&before, &Dataset::read(&mut connect(&peer)).expect("is read"));
        assert_eq!(field(&peer, "persistence", "loading"), "0");
        assert_eq!(field(&peer, "persistence", "rdb_last_load_keys_loaded"), before.len().to_string());
    }
    wait_told(&peer, "DB loaded from disk");
}

#[test]
fn stock_servers_load_what_braid_saved() {
    let peer = start(braid_builder(3));
    fill(&peer, LARGEST_BYTES);
    run_load(&peer, 3, 2000, |_| {});
    settle(&peer);
    call(&mut connect(&peer), &["SAVE"]);
    let before = Dataset::read(&mut connect(&peer)).expect("is read");
    for kind in STOCK {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::copy(peer.dir().join("dump.rdb"), folder.path().join("dump.rdb")).expect("is copied");
        let stock = start(Peer::builder(kind).dir(folder.path()));
        assert_same(&before, &Dataset::read(&mut connect(&stock)).expect("is read"));
    }
}

#[test]
fn braid_loads_what_stock_servers_saved() {
    for kind in STOCK {
        let stock = start(Peer::builder(kind));
        fill(&stock, LARGEST_BYTES);
        run_load(&stock, 2, 2000, |_| {});
        settle(&stock);
        call(&mut connect(&stock), &["SAVE"]);
        let before = Dataset::read(&mut connect(&stock)).expect("is read");
        for shards in [1, 4] {
            let folder = tempfile::tempdir().expect("a folder");
            std::fs::copy(stock.dir().join("dump.rdb"), folder.path().join("dump.rdb")).expect("is copied");
            let peer = start(braid_builder(shards).dir(folder.path()));
            assert_same(&before, &Dataset::read(&mut connect(&peer)).expect("is read"));
        }
    }
}

/// One client counts one key up after the other, all the time; a snapshot holds a prefix of that.
#[test]
fn law5_a_snapshot_under_load_holds_exactly_what_came_before_its_cut() {
    const KEYS: usize = 40;
    let peer = start(braid_builder(3));
    fill(&peer, LARGEST_BYTES);
    let keys: Vec<String> = (0..KEYS).map(|n| format!("count:{n}")).collect();
    let state = State::default();
    thread::scope(|scope| {
        let load = Load::start(scope, &peer, 3, &state);
        let is_over = std::sync::atomic::AtomicBool::new(false);
        thread::scope(|inner| {
            let counter = inner.spawn(|| {
                let mut client = connect(&peer);
                while !is_over.load(Ordering::Relaxed) {
                    let commands: Vec<_> = keys.iter().map(|key| cmd!["INCR", key]).collect();
                    client.pipeline(&commands).expect("the server stays");
                }
            });
            let mut last = 0;
            for saves in 1..4 {
                let mut client = connect(&peer);
                wait_until("it is counted on", || {
                    count(&call(&mut client, &["GET", &keys[KEYS - 1]])) > last
                });
                assert_eq!(call(&mut client, &["BGSAVE"]), "Background saving started");
                wait_until("it is saved", || field(&peer, "persistence", "rdb_saves") == saves.to_string());
                let folder = tempfile::tempdir().expect("a folder");
                std::fs::copy(peer.dir().join("dump.rdb"), folder.path().join("dump.rdb"))
                    .expect("is copied");
                let copy = start(braid_builder(2).dir(folder.path()));
                let values = call(&mut connect(&copy), &[&["MGET".to_owned()], keys.as_slice()].concat());
                let values: Vec<u64> = values.items().expect("an array").iter().map(count).collect();
                assert!(
                    values.is_sorted_by(|a, b| a >= b),
                    "a later count without an earlier one: {values:?}"
                );
                assert!(values[0] - values[KEYS - 1] <= 1, "{values:?}");
                assert!(values[KEYS - 1] > last, "what was answered before the save is in it");
                last = values[0];
                // Braid and a stock server read the same out of it.
                let stock = start(Peer::builder(Kind::Redis7).dir(folder.path()));
                settle(&copy);
                let theirs = Dataset::read(&mut connect(&stock)).expect("is read");
                let ours = Dataset::read(&mut connect(&copy)).expect("is read");
                assert_eq!(theirs.get(0, "big:list"), ours.get(0, "big:list"));
                assert_eq!(theirs.get(0, "big:zset"), ours.get(0, "big:zset"));
            }
            is_over.store(true, Ordering::Relaxed);
            counter.join().expect("the counter succeeds");
        });
        load.stop();
    });
}

/// It is killed when so much of the new file is written, or when that is in its place.
#[test]
fn no_loss_a_kill_during_a_save_leaves_the_old_file_or_the_new_one_whole() {
    const VALUE_BYTES: u64 = 8 << 20;
    let mut peer = start(braid_builder(2));
    let mut rng = fastrand::Rng::with_seed(2);
    let mut outcomes = Vec::new();
    for written in [Some(0), Some(1), Some(VALUE_BYTES), Some(3 * VALUE_BYTES), None] {
        let mut client = connect(&peer);
        call(&mut client, &["FLUSHALL"]);
        call(&mut client, &["SET", "marker", "old"]);
        call(&mut client, &["SAVE"]);
        for n in 0..4 {
            let big: Vec<u8> = (0..VALUE_BYTES).map(|_| rng.u8(..)).collect();
            call(&mut client, &cmd!["SET", format!("big{n}"), big]);
        }
        call(&mut client, &["SET", "marker", "new"]);
        temporary_files(&peer).into_iter().for_each(|left| std::fs::remove_file(left).expect("is removed"));
        call(&mut client, &["BGSAVE"]);
        let is_placed = || len_bytes(&peer.dir().join("dump.rdb")) > Some(VALUE_BYTES);
        let has_begun = |written| temporary_files(&peer).iter().any(|file| len_bytes(file) >= Some(written));
        let begun = Instant::now();
        while !is_placed() && !written.is_some_and(has_begun) {
            assert!(begun.elapsed() < TIMEOUT, "it is written");
        }
        // What is to be expected is seen while it stands still.
        peer.stop().expect("is stopped");
        let is_placed = is_placed();
        restart(&mut peer);
        let mut client = connect(&peer);
        assert_eq!(call(&mut client, &["GET", "marker"]), if is_placed { "new" } else { "old" });
        let bigs = call(&mut client, &["EXISTS", "big0", "big1", "big2", "big3"]);
        assert_eq!(bigs.as_int(), Some(if is_placed { 4 } else { 0 }));
        outcomes.push(is_placed);
    }
    assert!(outcomes.contains(&false) && outcomes.last() == Some(&true), "{outcomes:?}");
}

/// None: there is no such file.
fn len_bytes(file: &Path) -> Option<u64> {
    file.metadata().ok().map(|metadata| metadata.len())
}

/// Starts a server by hand that is expected not to stay. Returns whether it failed, and what it said.
fn try_start(folder: &Path, shards: usize) -> (bool, String) {
    let port = braid_bench::peers::free_port().expect("a port");
    let output = Command::new(braid().binary().expect("the binary"))
        .args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--shards", &shards.to_string()])
        .args(["--save", ""])
        .arg("--dir")
        .arg(folder)
        .output()
        .expect("it runs");
    let text = [output.stdout, output.stderr].concat();
    (!output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

#[test]
fn no_loss_a_file_that_is_not_whole_is_refused_and_stays() {
    let peer = start(braid_builder(2));
    run_load(&peer, 2, 1500, |_| {});
    call(&mut connect(&peer), &["SAVE"]);
    let good = std::fs::read(peer.dir().join("dump.rdb")).expect("is read");
    let mut rng = fastrand::Rng::with_seed(3);
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("dump.rdb");
    for round in 0..16 {
        let mut bad = good.clone();
        let at = rng.usize(..good.len());
        match round {
            0 => bad.clear(),
            1..10 => bad.truncate(at),
            _ => bad[at.max(9)] ^= 1 << rng.u8(..8),
        }
        std::fs::write(&path, &bad).expect("is written");
        let (has_failed, said) = try_start(folder.path(), 1 + round % 3);
        assert!(
            has_failed && said.contains("Fatal error loading the DB") && said.contains(" at byte "),
            "{said}"
        );
        assert!(std::fs::read(&path).expect("is read") == bad, "the file stays as it was");
    }
}

#[test]
fn replicas_are_sent_a_file_when_they_are_told_not_to_go_without() {
    let peer = start(braid_builder(3).args(["--repl-diskless-sync", "no"]));
    fill(&peer, LARGEST_BYTES);
    let replicas = STOCK.map(|kind| kind.start().expect("the peer starts"));
    let mut attached = 0;
    run_load(&peer, 3, 3000, |peer| {
        call(&mut connect(&replicas[attached]), &cmd!["REPLICAOF", "127.0.0.1", peer.port()]);
        attached += 1;
    });
    for replica in &replicas {
        wait_until("the replica is linked", || is_linked(replica));
    }
    settle(&peer);
    for replica in &replicas {
        wait::until_caught_up(&mut connect(&peer), &mut connect(replica), TIMEOUT).expect("catches up");
        let theirs = Dataset::read(&mut connect(replica)).expect("is read");
        assert_same(&Dataset::read(&mut connect(&peer)).expect("is read"), &theirs);
        wait_told(replica, "bytes from ");
        let log = replica.log();
        assert!(!log.contains("streamed replication with EOF"), "{log}");
    }
    wait_until("no file is left", || temporary_files(&peer).is_empty());
}

#[test]
fn a_replicas_snapshot_begins_while_a_saved_one_is_brought_to_the_disk() {
    let peer = start(replicas::master(2));
    fill(&peer, LARGEST_BYTES);
    for round in 1..=20 {
        call(&mut connect(&peer), &["BGSAVE"]);
        // It waits for the save, and is cut as soon as all of that is in its file.
        let mut replica = connect(&peer);
        call(&mut replica, &["REPLCONF", "capa", "eof", "capa", "psync2"]);
        replica.send(&["PSYNC", "?", "-1"]).expect("is sent");
        wait_until("the replica's snapshot begins", || {
            replica.receive_line().expect("the server stays").starts_with(b"+FULLRESYNC")
        });
        wait_until("it is saved", || field(&peer, "persistence", "rdb_bgsave_in_progress") == "0");
        assert_eq!(field(&peer, "persistence", "rdb_last_bgsave_status"), "ok", "{round}");
    }
}

#[test]
fn save_points_save_and_a_failure_refuses_writes() {
    let folder = tempfile::tempdir().expect("a folder");
    let inner = folder.path().join("inner");
    std::fs::create_dir(&inner).expect("is made");
    let peer = start(braid_builder(2).args(["--enable-protected-configs", "yes"]));
    let mut client = connect(&peer);
    assert!(!peer.dir().join("dump.rdb").exists());
    call(&mut client, &["SET", "a", "1"]);
    assert_eq!(field(&peer, "persistence", "rdb_changes_since_last_save"), "1");
    call(&mut client, &["CONFIG", "SET", "save", "1 1"]);
    wait_until("it saves by itself", || field(&peer, "persistence", "rdb_saves") == "1");
    assert!(peer.dir().join("dump.rdb").exists());
    assert_eq!(field(&peer, "persistence", "rdb_changes_since_last_save"), "0");
    let saved_s = call(&mut client, &["LASTSAVE"]).as_int().expect("a time");
    assert_eq!(field(&peer, "persistence", "rdb_last_save_time"), saved_s.to_string());
    // No time is too long to be waited for.
    call(&mut client, &["CONFIG", "SET", "save", "4294967295 1"]);
    call(&mut client, &["SET", "a", "1"]);
    let refused = client.command(&["CONFIG", "SET", "save", "9223372036854775807 1"]).expect("an answer");
    assert!(refused.is_error());
    // A folder that is gone.
    call(&mut client, &cmd!["CONFIG", "SET", "save", "3600 1", "dir", inner.to_str().unwrap()]);
    std::fs::remove_dir(&inner).expect("is removed");
    let refused = client.command(&["SAVE"]).expect("an answer");
    assert!(refused.is_error() && refused.text().contains("Error saving DB on disk"), "{}", refused.text());
    assert_eq!(field(&peer, "persistence", "rdb_last_bgsave_status"), "err");
    let refused = client.command(&["SET", "a", "2"]).expect("an answer");
    assert!(refused.text().starts_with("MISCONF"), "{}", refused.text());
    assert_eq!(call(&mut client, &["GET", "a"]), "1");
    let refused = client.command(&["SHUTDOWN"]).expect("an answer");
    assert_eq!(refused.text(), "ERR Errors trying to SHUTDOWN. Check logs.");
    call(&mut client, &["CONFIG", "SET", "stop-writes-on-bgsave-error", "no"]);
    call(&mut client, &["SET", "a", "2"]);
    call(&mut client, &cmd!["CONFIG", "SET", "dir", peer.dir().to_str().unwrap()]);
    call(&mut client, &["SAVE"]);
    assert_eq!(field(&peer, "persistence", "rdb_last_bgsave_status"), "ok");
}

#[test]
fn a_signal_saves_when_there_are_save_points() {
    let mut peer = start(braid_builder(2));
    call(&mut connect(&peer), &["CONFIG", "SET", "save", "3600 1"]);
    call(&mut connect(&peer), &["SET", "a", "1"]);
    assert!(peer.terminate(TIMEOUT).expect("it ends").success());
    peer.restart().expect("it starts again");
    assert_eq!(call(&mut connect(&peer), &["GET", "a"]), "1");
    let mut client: Client = connect(&peer);
    call(&mut client, &["SET", "b", "1"]);
    client.send(&["SHUTDOWN", "NOSAVE"]).expect("is sent");
    peer.wait_exit(TIMEOUT).expect("it ends");
    peer.restart().expect("it starts again");
    assert_eq!(call(&mut connect(&peer), &["EXISTS", "a", "b"]).as_int(), Some(1));
}

/// The file is a pipe here, so that the test decides how far loading comes.
#[test]
fn no_loss_keys_are_refused_until_all_are_there() {
    let source = start(braid_builder(2));
    fill(&source, LARGEST_BYTES);
    call(&mut connect(&source), &["SAVE"]);
    let file = std::fs::read(source.dir().join("dump.rdb")).expect("is read");
    let before = Dataset::read(&mut connect(&source)).expect("is read");
    let folder = tempfile::tempdir().expect("a folder");
    let made = Command::new("mkfifo").arg(folder.path().join("dump.rdb")).status().expect("it runs");
    assert!(made.success());
    let port = braid_bench::peers::free_port().expect("a port");
    let mut child = Command::new(braid().binary().expect("the binary"))
        .args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--shards", "3", "--save", ""])
        .arg("--dir")
        .arg(folder.path())
        .stdout(std::process::Stdio::null())
        .spawn()
        .expect("it runs");
    let (first, rest) = file.split_at(file.len() / 2);
    let mut pipe =
        std::fs::OpenOptions::new().write(true).open(folder.path().join("dump.rdb")).expect("is opened");
    pipe.write_all(first).expect("is written");
    let mut client = None;
    wait_until("it listens", || {
        client = Client::connect(("127.0.0.1", port)).ok();
        client.is_some()
    });
    let mut client = client.expect("just connected");
    for words in [&["GET", "number"][..], &["SET", "number", "1"], &["PING"], &["SAVE"]] {
        let refused = client.command(words).expect("an answer");
        assert_eq!(refused.text(), "LOADING Redis is loading the dataset in memory", "{words:?}");
    }
    wait_until("it has read that", || {
        let info = client.info("persistence").expect("INFO");
        info["loading"] == "1" && info["loading_loaded_bytes"].parse::<usize>().expect("a number") >= 1 << 20
    });
    pipe.write_all(rest).expect("is written");
    drop(pipe);
    wait_until("it is loaded", || client.info("persistence").expect("INFO")["loading"] == "0");
    assert_same(&before, &Dataset::read(&mut client).expect("is read"));
    client.send(&["SHUTDOWN", "NOSAVE"]).expect("is sent");
    assert!(child.wait().expect("it ends").success());
}

/// Clients write until the server goes; whatever was answered is there again.
#[test]
fn no_loss_a_shutdown_under_load_keeps_every_write_that_was_answered() {
    let mut peer = start(braid_builder(3));
    fill(&peer, LARGEST_BYTES);
    let answered: Vec<i64> = thread::scope(|scope| {
        let write = |client: Client, number: usize| {
            let mut client = client;
            let keys: Vec<String> = (0..8).map(|n| format!("count:{number}:{n}")).collect();
            let mut last = 0;
            loop {
                let commands: Vec<_> = keys.iter().map(|key| cmd!["INCR", key]).collect();
                if commands.iter().any(|command| client.send(command).is_err()) {
                    return last;
                }
                // The answers come one by one, so that the last one before the end counts.
                for _ in &keys {
                    match client.receive() {
                        Ok(reply) => last = reply.as_int().expect("a count") - 1,
                        Err(_) => return last,
                    }
                }
                last += 1;
            }
        };
        let writers: Vec<_> = (0..6)
            .map(|number| (connect(&peer), number))
            .map(|(c, n)| scope.spawn(move || write(c, n)))
            .collect();
        wait_until("they have written", || {
            let counts: Vec<String> = (0..6).map(|n| format!("count:{n}:7")).collect();
            let counts = call(&mut connect(&peer), &[&["MGET".to_owned()], counts.as_slice()].concat());
            counts
                .items()
                .expect("an array")
                .iter()
                .all(|count| count.text().parse::<u32>().is_ok_and(|n| n > 50))
        });
        connect(&peer).send(&["SHUTDOWN", "SAVE"]).expect("is sent");
        assert!(peer.wait_exit(TIMEOUT).expect("it ends").success());
        writers.into_iter().map(|writer| writer.join().expect("a writer succeeds")).collect()
    });
    peer.restart().expect("it starts again");
    let mut client = connect(&peer);
    for (number, last) in answered.iter().enumerate() {
        // The last key of a round that was answered as a whole.
        let count = call(&mut client, &cmd!["GET", format!("count:{number}:7")]).text();
        assert!(count.parse::<i64>().expect("a number") >= *last, "{count} of {last}");
        assert!(*last > 50);
    }
}

/// As on a master: a file that a replica writes while the stream comes in is a prefix of the stream, and where it ends.
#[test]
fn law5_a_snapshot_of_a_replica_under_load_resumes_without_a_gap() {
    const KEYS: usize = 30;
    let master = start(Peer::builder(Kind::Redis7).args(["--repl-backlog-size", "256mb"]));
    fill(&master, LARGEST_BYTES);
    let mut peer = start(braid_builder(3));
    call(&mut connect(&peer), &cmd!["REPLICAOF", "127.0.0.1", master.port()]);
    wait_until("the replica is linked", || is_linked(&peer));
    let keys: Vec<String> = (0..KEYS).map(|n| format!("count:{n}")).collect();
    let is_over = std::sync::atomic::AtomicBool::new(false);
    let folder = tempfile::tempdir().expect("a folder");
    thread::scope(|scope| {
        let counter = scope.spawn(|| {
            let mut client = connect(&master);
            while !is_over.load(Ordering::Relaxed) {
                let commands: Vec<_> = keys.iter().map(|key| cmd!["INCR", key]).collect();
                client.pipeline(&commands).expect("the server stays");
            }
        });
        let mut last = 0;
        for saves in 1..4 {
            wait_until("it is counted on", || {
                let counted = count(&call(&mut connect(&peer), &["GET", &keys[KEYS - 1]]));
                counted > std::mem::replace(&mut last, counted)
            });
            call(&mut connect(&peer), &["BGSAVE"]);
            wait_until("it is saved", || field(&peer, "persistence", "rdb_saves") == saves.to_string());
        }
        std::fs::copy(peer.dir().join("dump.rdb"), folder.path().join("dump.rdb")).expect("is copied");
        let copy = start(braid_builder(2).dir(folder.path()));
        let values = call(&mut connect(&copy), &[&["MGET".to_owned()], keys.as_slice()].concat());
        let values: Vec<u64> = values.items().expect("an array").iter().map(count).collect();
        assert!(values.is_sorted_by(|a, b| a >= b) && values[0] - values[KEYS - 1] <= 1, "{values:?}");
        assert!(values[KEYS - 1] >= last, "{last} was read before: {values:?}");
        // It is killed, and goes on from its file: counts that were lost or came twice would show.
        peer.kill().expect("it is killed");
        peer.set_args(["--replicaof", "127.0.0.1", &master.port().to_string()]);
        restart(&mut peer);
        wait_until("the replica is linked", || is_linked(&peer));
        is_over.store(true, Ordering::Relaxed);
        counter.join().expect("the counter succeeds");
    });
    wait::until_caught_up(&mut connect(&master), &mut connect(&peer), TIMEOUT).expect("catches up");
    assert_eq!(field(&master, "stats", "sync_full"), "1");
    let theirs = Dataset::read(&mut connect(&master)).expect("is read");
    assert_same(&theirs, &Dataset::read(&mut connect(&peer)).expect("is read"));
}
