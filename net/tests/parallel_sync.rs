//! Full syncs between two Braids over several connections: whole under load whatever the numbers of shards and connections,
//! and nothing of them when one of the connections is lost (laws 5 and 9).

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
use braid_bench::client::Client;
use braid_bench::cmd;
use braid_bench::peers::{Builder, Kind, Peer};
use common::{braid, call, connect, field, start, wait_told, wait_until};
use load::{Load, State, enough};
use proxy::Proxy;
use replicas::{assert_equal, follow, is_linked, number};
use std::os::unix::fs::MetadataExt;
use std::{fs, thread};

/// Shards of the key set that the load's transactions touch.
const SPREAD: usize = 5;

fn node(shards: usize) -> Builder {
    replicas::node(&braid(), shards)
}

/// One that fetches its snapshots on so many connections.
fn replica(shards: usize, connections: usize) -> Peer {
    start(node(shards).args(["--repl-sync-connections", &connections.to_string()]))
}

/// How many full syncs a master has made, and how many of them in parts. What INFO shows may be a moment old.
fn assert_syncs(master: &Peer, all: u64, in_parts: u64) {
    let mut client = connect(master);
    let mut stat = |name| number(&mut client, "stats", name);
    wait_until("the full syncs are counted", || {
        (stat("sync_full"), stat("sync_full_in_parts")) == (all, in_parts)
    });
}

/// So many keys with 100 bytes that cannot be compressed, and a list of so many elements.
fn fill(peer: &Peer, keys: usize, elements: usize) {
    let mut client = connect(peer);
    let value = || (0..100).map(|_| fastrand::alphanumeric()).collect::<String>();
    for from in (0..keys).step_by(1000) {
        for key in from..(from + 1000).min(keys) {
            client.send(&["SET", &format!("filled:{key}"), &value()]).expect("is sent");
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
    let list = call(client, &["CLIENT", "LIST"]);
    let list = list.text();
    let flags = list.split_whitespace().filter_map(|word| word.strip_prefix("flags="));
    flags.filter(|flags| flags.contains('D')).map(str::to_owned).collect()
}

/// How much each thread of a node insists on its processor.
fn niceness(peer: &Peer) -> Vec<i32> {
    let tasks = fs::read_dir(format!("/proc/{}/task", peer.pid().expect("it runs"))).expect("it runs");
    // A thread may end meanwhile.
    let stats = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("stat")).ok());
    let nice = stats.map(|stat| {
        let behind_name = stat.rsplit(')').next().expect("a line");
        behind_name.split_whitespace().nth(16).expect("as in proc(5)").parse().expect("a number")
    });
    nice.collect()
}

/// Replicas of 1, 2, 3 and 5 shards attach to a master of so many while it is written, and end equal.
fn follow_under_load(master_shards: usize) {
    let master = start(node(master_shards));
    fill(&master, 5000, 0);
    let replicas =
        [(1, 3), (2, 0), (3, 16), (5, 2)].map(|(shards, connections)| replica(shards, connections));
    attach_under_load(&master, &replicas, SPREAD);
    assert_syncs(&master, 4, 4);
    for peer in replicas.iter().chain([&master]) {
        let mut client = connect(peer);
        wait_until("no data connection is left", || data_connections(&mut client).is_empty());
    }
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

/// A master with so much data that a full sync of it takes a while, and with a password.
fn guarded(shards: usize) -> Peer {
    let master = start(node(shards));
    fill(&master, 20_000, 300_000);
    let mut client = connect(&master);
    call(&mut client, &["CONFIG", "SET", "requirepass", "secret"]);
    master
}

fn trust(replica: &Peer) {
    call(&mut connect(replica), &["CONFIG", "SET", "masterauth", "secret"]);
}

/// Two at once share a snapshot, each on connections of its own, behind a password, with a list of 300,000 elements in it.
#[test]
fn law5_two_replicas_share_a_snapshot_and_each_has_its_own_connections() {
    let master = guarded(3);
    let mut client = connect(&master);
    call(&mut client, &["AUTH", "secret"]);
    call(&mut client, &["CONFIG", "SET", "repl-diskless-sync-delay", "30"]);
    call(&mut client, &["CONFIG", "SET", "repl-diskless-sync-max-replicas", "2"]);
    let replicas = [replica(2, 4), replica(5, 3)];
    trust(&replicas[0]);
    follow(&replicas[0], master.port());
    wait_until("the first waits with its connections", || data_connections(&mut client).len() == 4);
    // Who comes without the password gets no part, and the link says so.
    follow(&replicas[1], master.port());
    wait_told(&replicas[1], "NOAUTH");
    trust(&replicas[1]);
    for replica in &replicas {
        wait_until("the replica is linked", || is_linked(replica));
    }
    call(&mut client, &["CONFIG", "SET", "requirepass", ""]);
    for replica in &replicas {
        assert_equal(&master, replica);
        assert_eq!(call(&mut connect(replica), &["LLEN", "huge"]), 300_000);
    }
    assert_syncs(&master, 2, 2);
    wait_told(&master, "Starting snapshot number");
    let snapshots = master.log().matches("Starting snapshot number").count();
    assert_eq!(snapshots, 1, "one for both");
}

/// A stock replica that comes at the same time gets it on one connection, and so does the Braid that shares its snapshot.
#[test]
fn law5_a_stock_replica_that_shares_the_snapshot_has_it_on_one_connection() {
    let master = start(node(3));
    fill(&master, 5000, 0);
    let mut client = connect(&master);
    call(&mut client, &["CONFIG", "SET", "repl-diskless-sync-delay", "30"]);
    call(&mut client, &["CONFIG", "SET", "repl-diskless-sync-max-replicas", "2"]);
    let (braid, stock) = (replica(3, 0), start(Peer::builder(Kind::Valkey)));
    follow(&braid, master.port());
    wait_until("it waits with its connections", || data_connections(&mut client).len() == 3);
    assert!(data_connections(&mut client).iter().all(|flags| flags == "SD"));
    follow(&stock, master.port());
    for replica in [&braid, &stock] {
        wait_until("the replica is linked", || is_linked(replica));
        assert_equal(&master, replica);
    }
    assert_syncs(&master, 2, 0);
    wait_until("they are not needed", || data_connections(&mut client).is_empty());
}

/// How many connections the replicas below have to the master's proxy: the link, and one for each part.
const CONNECTIONS: usize = 2;

/// Connection number `lost` breaks in the midst of its part: what the replica had stays until another attempt is whole.
fn lose(lost: usize) {
    let master = start(node(2));
    fill(&master, 20_000, 100_000);
    let proxy = Proxy::start(master.addr()).expect("the proxy starts");
    let replica = replica(2, CONNECTIONS);
    call(&mut connect(&replica), &["SET", "kept", "yes"]);
    let mut budgets = vec![u64::MAX; 2 * (CONNECTIONS + 1)];
    // Twice: the attempt after it fails, too.
    budgets[lost] = 300_000;
    budgets[CONNECTIONS + 1 + lost] = 1_000;
    proxy.break_after(budgets);
    let state = State::default();
    thread::scope(|scope| {
        let load = Load::start(scope, &master, SPREAD, &state);
        follow(&replica, proxy.port());
        wait_until("the connections are lost", || proxy.broken() >= 1);
        if !is_linked(&replica) {
            assert_eq!(call(&mut connect(&replica), &["GET", "kept"]), "yes");
        }
        wait_until("the replica is linked", || is_linked(&replica));
        state.pass(enough() / 5);
        load.stop();
    });
    assert_eq!(proxy.broken(), 2);
    assert_equal(&master, &replica);
    let mut client = connect(&replica);
    assert_eq!(call(&mut client, &["EXISTS", "kept"]), 0);
    assert_syncs(&master, 3, 3);
    // Nothing of the attempts is left.
    let (mut master, mut replica) = (connect(&master), connect(&replica));
    wait_until("no data connection is left", || {
        data_connections(&mut master).is_empty() && data_connections(&mut replica).is_empty()
    });
}

#[test]
fn law9_the_first_data_connection_lost_twice_leaves_the_old_dataset() {
    lose(1);
}

#[test]
fn law9_another_data_connection_lost_twice_leaves_the_old_dataset() {
    lose(2);
}

/// A replica that has begun to fetch a snapshot, slowly enough that something can be done to it meanwhile. `begun`: looks at
/// the master's clients until its connections are there.
fn syncing(master: &Peer) -> Peer {
    let replica = replica(3, CONNECTIONS);
    call(&mut connect(&replica), &["SET", "kept", "yes"]);
    follow(&replica, master.port());
    let mut client = connect(master);
    wait_until("its connections are there", || data_connections(&mut client).len() == CONNECTIONS);
    replica
}

/// A master that waits for a replica more before it begins.
fn waiting() -> Peer {
    let master = start(node(2));
    fill(&master, 20_000, 0);
    let mut client = connect(&master);
    call(&mut client, &["CONFIG", "SET", "repl-diskless-sync-delay", "1"]);
    master
}

#[test]
fn a_replica_that_dies_leaves_nothing_and_the_next_is_served() {
    let master = waiting();
    let mut dying = syncing(&master);
    let mut client = connect(&master);
    dying.kill().expect("is killed");
    wait_until("its connections are gone", || data_connections(&mut client).is_empty());
    let next = syncing(&master);
    wait_until("the replica is linked", || is_linked(&next));
    assert_equal(&master, &next);
    assert_eq!(number(&mut client, "replication", "connected_slaves"), 1);
}

#[test]
fn a_replica_that_freezes_holds_nobody_up_for_ever() {
    let master = waiting();
    fill(&master, 200_000, 0);
    call(&mut connect(&master), &["CONFIG", "SET", "repl-timeout", "3"]);
    let frozen = syncing(&master);
    frozen.stop().expect("is stopped");
    let mut client = connect(&master);
    wait_until("it is given up", || data_connections(&mut client).is_empty());
    assert_eq!(number(&mut client, "replication", "connected_slaves"), 0);
    let next = syncing(&master);
    wait_until("the replica is linked", || is_linked(&next));
    assert_equal(&master, &next);
    frozen.cont().expect("goes on");
    wait_until("the replica is linked", || is_linked(&frozen));
    assert_equal(&master, &frozen);
}

#[test]
fn a_replica_whose_data_connection_is_killed_before_the_snapshot_has_it_on_the_first() {
    let master = waiting();
    let mut client = connect(&master);
    call(&mut client, &["CONFIG", "SET", "repl-diskless-sync-delay", "30"]);
    let replica = syncing(&master);
    let list = call(&mut client, &["CLIENT", "LIST"]).text();
    let line = list.lines().find(|line| line.contains("flags=SD")).expect("a data connection");
    let id = line.split(' ').find_map(|word| word.strip_prefix("id=")).expect("an id");
    assert_eq!(call(&mut client, &["CLIENT", "KILL", "ID", id]), 1);
    wait_until("it is gone", || data_connections(&mut client).len() < CONNECTIONS);
    call(&mut client, &["CONFIG", "SET", "repl-diskless-sync-delay", "0"]);
    wait_until("the replica is linked", || is_linked(&replica));
    assert_equal(&master, &replica);
    assert_syncs(&master, 1, 0);
    wait_until("no data connection is left", || data_connections(&mut client).is_empty());
}

#[test]
fn a_replica_that_turns_away_closes_its_connections() {
    let master = waiting();
    let replica = syncing(&master);
    let mut client = connect(&replica);
    wait_until("they are seen here, too", || data_connections(&mut client) == ["MD"; CONNECTIONS]);
    call(&mut client, &["REPLICAOF", "NO", "ONE"]);
    let mut at_master = connect(&master);
    wait_until("no data connection is left", || {
        data_connections(&mut client).is_empty() && data_connections(&mut at_master).is_empty()
    });
    assert_eq!(call(&mut client, &["GET", "kept"]), "yes");
    assert_eq!(field(&mut client, "replication", "role"), "master");
}

/// Who introduces itself as a data connection without being one is told so.
#[test]
fn what_is_no_data_connection_is_refused() {
    let master = waiting();
    let mut client = connect(&master);
    let token = "0".repeat(40);
    for index in 0..3 {
        let mut stranger = connect(&master);
        let reply = stranger.command(&cmd!["REPLCONF", "sync-part", token, "index", index]).expect("a reply");
        assert!(reply.text().contains("sync-part token"), "{reply:?}");
        assert!(stranger.command(&["PING"]).is_err(), "it is closed");
    }
    for words in [
        cmd!["REPLCONF", "sync-part", token, "index", 16],
        cmd!["REPLCONF", "sync-part", token, "index", -1],
        cmd!["REPLCONF", "sync-part", "short", "index", 0],
        cmd!["REPLCONF", "sync-part", token],
    ] {
        assert!(client.command(&words).expect("a reply").is_error(), "{words:?}");
    }
    assert_eq!(call(&mut client, &["PING"]), "PONG");
}

/// All connections break at once, again and again, each time when so much of the snapshot has come.
#[test]
fn law9_a_replica_whose_connections_all_break_keeps_its_dataset_until_one_attempt_is_whole() {
    const BREAKS: u64 = 5;
    let master = start(node(3));
    fill(&master, 20_000, 100_000);
    let proxy = Proxy::start(master.addr()).expect("the proxy starts");
    let replica = replica(2, 4);
    let mut client = connect(&replica);
    call(&mut client, &["SET", "kept", "yes"]);
    let held = |n: u64| proxy.hold_after(20_000 + n * 400_000);
    held(0);
    follow(&replica, proxy.port());
    for n in 1..=BREAKS {
        wait_until("a full sync is under way", || proxy.holds());
        wait_until("the replica shows it", || {
            field(&mut client, "replication", "master_sync_in_progress") == "1"
        });
        assert_eq!(call(&mut client, &["GET", "kept"]), "yes");
        proxy.break_all();
        // The next ones have waited for this.
        if n < BREAKS { held(n) } else { proxy.hold_after(u64::MAX) }
    }
    wait_until("the replica is linked", || is_linked(&replica));
    assert_syncs(&master, BREAKS + 1, BREAKS + 1);
    assert_equal(&master, &replica);
    assert_eq!(call(&mut connect(&master), &["EXISTS", "kept"]), 0);
}

/// What goes into a file before it is loaded comes as one stream.
#[test]
fn a_snapshot_that_goes_into_a_file_comes_on_one_connection() {
    let master = start(node(2));
    fill(&master, 2000, 0);
    let replica = start(node(3).args(["--repl-diskless-load", "disabled"]));
    follow(&replica, master.port());
    wait_until("the replica is linked", || is_linked(&replica));
    assert_equal(&master, &replica);
    // From now on it is loaded beside what is there.
    call(&mut connect(&replica), &["CONFIG", "SET", "repl-diskless-load", "swapdb"]);
    call(&mut connect(&replica), &["REPLICAOF", "NO", "ONE"]);
    call(&mut connect(&replica), &["SET", "own", "write"]);
    // The master's dataset is what it should be.
    call(&mut connect(&master), &["REPLICAOF", "NO", "ONE"]);
    follow(&replica, master.port());
    wait_until("the replica is linked", || is_linked(&replica));
    assert_equal(&master, &replica);
    assert_syncs(&master, 2, 1);
}

#[test]
fn who_loads_steps_back_and_comes_back() {
    let master = start(node(2));
    fill(&master, 300_000, 0);
    let replica = replica(2, 0);
    let usual = niceness(&replica)[0];
    assert!(niceness(&replica).iter().all(|nice| *nice == usual));
    follow(&replica, master.port());
    let mut most = usual;
    wait_until("the replica is linked", || {
        most = most.max(niceness(&replica).into_iter().max().expect("threads"));
        is_linked(&replica)
    });
    // Only where it is allowed to come back; a privileged user is.
    let is_root = fs::metadata("/proc/self").expect("is there").uid() == 0;
    assert!(most > usual || !is_root, "{most}");
    wait_until("all have come back", || niceness(&replica).iter().all(|nice| *nice == usual));
}
