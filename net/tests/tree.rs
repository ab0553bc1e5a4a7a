//! Braid anywhere in the tree of replicas (law 6): chains, deaths, promotions and hand-overs with real processes, and who
//! follows whom afterwards without a full sync.

mod common;
#[path = "replication/load.rs"]
mod load;
#[path = "common/replicas.rs"]
mod replicas;

use braid_bench::cmd;
use braid_bench::peers::Kind;
use common::{braid, call, connect, field, start, wait_until};
use load::{Load, State, enough};
use replicas::{READONLY, assert_equal, error, follow, forgot, is_linked, node, number, replica};
use std::thread;

/// Shards of the key set that the load's transactions touch.
const SPREAD: usize = 5;

/// Three in a chain; then the last moves up to the first, without a full sync.
fn chain(kinds: [(&Kind, usize); 3]) {
    let [first, middle, last] = kinds.map(|(kind, shards)| start(node(kind, shards)));
    let state = State::default();
    thread::scope(|scope| {
        let load = Load::start(scope, &first, SPREAD, &state);
        state.pass(enough() / 5);
        follow(&middle, first.port());
        follow(&last, middle.port());
        for node in [&middle, &last] {
            wait_until("the node is linked", || is_linked(node));
        }
        state.pass(enough() / 2);
        follow(&last, first.port());
        state.pass(enough() / 5);
        wait_until("the last node has moved", || {
            number(&mut connect(&first), "replication", "connected_slaves") == 2 && is_linked(&last)
        });
        follow(&last, middle.port());
        state.pass(enough() / 5);
        wait_until("the last node has moved back", || {
            number(&mut connect(&middle), "replication", "connected_slaves") == 1 && is_linked(&last)
        });
        load.stop();
    });
    assert_equal(&first, &middle);
    assert_equal(&first, &last);
    let ids = [&first, &middle, &last].map(|node| field(&mut connect(node), "replication", "master_replid"));
    assert_eq!(ids[0], ids[1]);
    assert_eq!(ids[0], ids[2]);
    let syncs = [&first, &middle].map(|node| number(&mut connect(node), "stats", "sync_full"));
    let again = forgot(&last);
    assert_eq!(syncs.iter().sum::<u64>(), 2 + again, "moving within the tree costs no full sync");
    assert!(
        (1..=1 + again).contains(&syncs[0]),
        "the last node moves to where it was known: {syncs:?}, {again}"
    );
}

#[test]
fn law6_braid_stands_between_redis_and_valkey() {
    chain([(&Kind::Redis7, 1), (&braid(), 3), (&Kind::Valkey, 1)]);
}

#[test]
fn law6_braid_stands_below_valkey_that_follows_redis_7() {
    chain([(&Kind::Redis7, 1), (&Kind::Valkey, 1), (&braid(), 2)]);
}

#[test]
fn law6_braid_stands_above_braid_and_redis_8() {
    chain([(&braid(), 2), (&braid(), 5), (&Kind::Redis8, 1)]);
}

#[test]
fn law6_braids_of_different_shards_stand_in_a_chain() {
    chain([(&braid(), 3), (&braid(), 1), (&braid(), 5)]);
}

/// Braid replicas freeze, die and come back, in the middle of a chain too, with another number of shards.
fn freeze_and_die(kind: &Kind) {
    let master = start(node(kind, 2));
    let (frozen, mut dying) = (replica(3), replica(2));
    let leaf = start(node(&Kind::Redis8, 1));
    let state = State::default();
    thread::scope(|scope| {
        let load = Load::start(scope, &master, SPREAD, &state);
        for node in [&frozen, &dying] {
            follow(node, master.port());
        }
        follow(&leaf, frozen.port());
        for node in [&frozen, &dying, &leaf] {
            wait_until("the replica is linked", || is_linked(node));
        }
        frozen.stop().expect("is stopped");
        dying.kill().expect("is killed");
        state.pass(enough() / 2);
        dying.set_args(["--replicaof", "127.0.0.1", &master.port().to_string()]);
        dying.set_threads(5);
        dying.restart().expect("starts again");
        frozen.cont().expect("goes on");
        state.pass(enough() / 5);
        load.stop();
    });
    for node in [&frozen, &dying, &leaf] {
        wait_until("the replica is linked", || is_linked(node));
        assert_equal(&master, node);
    }
    // Only the one that died had lost its dataset.
    assert_eq!(number(&mut connect(&master), "stats", "sync_full"), 3);
    assert_eq!(number(&mut connect(&frozen), "stats", "sync_full"), 1);
}

#[test]
fn law6_braid_replicas_of_valkey_freeze_die_and_come_back() {
    freeze_and_die(&Kind::Valkey);
}

#[test]
fn law6_braid_replicas_of_braid_freeze_die_and_come_back() {
    freeze_and_die(&braid());
}

/// The master goes; one of its replicas takes over, and the other and the old master follow it, without a full sync.
fn take_over(heir: (&Kind, usize), sibling: (&Kind, usize), master: (&Kind, usize)) {
    let [master, heir, sibling] = [master, heir, sibling].map(|(kind, shards)| start(node(kind, shards)));
    let state = State::default();
    thread::scope(|scope| {
        let load = Load::start(scope, &master, SPREAD, &state);
        for replica in [&heir, &sibling] {
            follow(replica, master.port());
            wait_until("the replica is linked", || is_linked(replica));
        }
        state.pass(enough() / 5);
        load.stop();
    });
    // Who was written last has what nobody else has: its bytes must have gone to the others.
    assert_equal(&master, &heir);
    assert_equal(&master, &sibling);
    let old_id = field(&mut connect(&heir), "replication", "master_replid");
    // Nothing more comes from it: a key that expires would be the old master's own history.
    follow(&master, heir.port());
    call(&mut connect(&heir), &["REPLICAOF", "NO", "ONE"]);
    call(&mut connect(&heir), &["SET", "reign", "new"]);
    follow(&sibling, heir.port());
    assert_ne!(field(&mut connect(&heir), "replication", "master_replid"), old_id);
    assert_eq!(field(&mut connect(&heir), "replication", "master_replid2"), old_id);
    for replica in [&sibling, &master] {
        wait_until("it follows the heir", || is_linked(replica));
        assert_equal(&heir, replica);
    }
    assert_eq!(number(&mut connect(&heir), "stats", "sync_full"), 0, "the fork is known to all");
}

#[test]
fn law6_a_promoted_braid_keeps_its_siblings_of_other_kinds() {
    take_over((&braid(), 3), (&Kind::Valkey, 1), (&Kind::Redis7, 1));
}

#[test]
fn law6_a_promoted_braid_keeps_its_siblings_of_its_own_kind() {
    take_over((&braid(), 2), (&braid(), 5), (&braid(), 1));
}

#[test]
fn law6_braid_follows_a_promoted_valkey() {
    take_over((&Kind::Valkey, 1), (&braid(), 2), (&braid(), 3));
}

/// A master hands over to Braid, which takes its place without a full sync.
fn hand_over(kind: &Kind, shards: usize) {
    let (master, heir) = (start(node(kind, 1)), replica(shards));
    follow(&heir, master.port());
    assert_equal(&master, &heir);
    let mut client = connect(&master);
    // The heir has to be online in the master's eyes.
    wait_until("the master hands over", || {
        let words = cmd!["FAILOVER", "TO", "127.0.0.1", heir.port()];
        client.command(&words).is_ok_and(|reply| !reply.is_error())
    });
    wait_until("the roles are exchanged", || {
        field(&mut connect(&heir), "replication", "role") == "master" && is_linked(&master)
    });
    call(&mut connect(&heir), &["SET", "reign", "new"]);
    assert_equal(&heir, &master);
    assert_eq!(number(&mut connect(&heir), "stats", "sync_full"), 0);
    assert_eq!(error(&mut client, &["SET", "a", "1"]), READONLY);
}

#[test]
fn law6_redis_7_hands_over_to_braid() {
    hand_over(&Kind::Redis7, 3);
}

#[test]
fn law6_valkey_hands_over_to_braid() {
    hand_over(&Kind::Valkey, 1);
}
