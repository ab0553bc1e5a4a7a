use super::{ParkedRun, Waiting};
use crate::parcel::{Caller, ConnId};
use crate::testing::{CONN, Cluster};
use braid_core::keyspace::WatcherId;

/// A random schedule of clients who each begin a transaction as soon as the last was answered, all of them over `a` or
/// `b` of shard 0 and a key elsewhere.
struct Crowd {
    cluster: Cluster,
    keys: [String; 4],
    rng: fastrand::Rng,
    answered: usize,
}

impl Crowd {
    const CLIENTS: usize = 6;

    fn new(seed: u64) -> Self {
        let cluster = Cluster::new(4);
        let keys = [(0, "a"), (0, "b"), (1, "c"), (2, "d")].map(|(shard, name)| cluster.key(shard, name));
        let mut crowd = Self { cluster, keys, rng: fastrand::Rng::with_seed(seed), answered: 0 };
        (0..Self::CLIENTS).for_each(|client| crowd.begin(client));
        crowd
    }

    fn begin(&mut self, client: usize) {
        let [a, b, c, d] = &self.keys;
        let ours = self.rng.choice([vec![a], vec![b], vec![a, b]]).unwrap();
        let theirs = self.rng.choice([c, d]).unwrap();
        let words = ours.into_iter().chain([theirs]).map(|key| format!(" {key} {client}"));
        let line = format!("MSET{}", words.collect::<String>());
        assert_eq!(self.cluster.send(client % 4, ConnId(100 + client as u64), &line), None);
    }

    /// A message arrives, or a tick ends. Gives the answers to others than the clients.
    fn step(&mut self) -> Vec<(ConnId, String)> {
        let (from, to) = (self.rng.usize(0..4), self.rng.usize(0..4));
        if self.cluster.is_on_its_way(from, to) {
            self.cluster.deliver(from, to);
        } else {
            self.cluster.end_tick(from);
        }
        let mut others = Vec::new();
        for at in 0..4 {
            for (conn, reply) in std::mem::take(&mut self.cluster.told[at].replies) {
                match conn.0.checked_sub(100) {
                    Some(client) => {
                        assert_eq!(reply, "+OK\r\n");
                        self.answered += 1;
                        self.begin(client as usize);
                    }
                    None => others.push((conn, reply)),
                }
            }
        }
        others
    }
}

#[test]
fn law3_what_waits_for_keys_is_not_overtaken_by_transactions_that_come_later() {
    for seed in 0..200 {
        let mut crowd = Crowd::new(seed);
        for round in 0..20 {
            for _ in 0..crowd.rng.usize(0..50) {
                assert!(crowd.step().is_empty());
            }
            let line = format!("MGET {} {}", crowd.keys[0], crowd.keys[1]);
            // Nothing had the keys: it was not asked to wait.
            if crowd.cluster.send(0, CONN, &line).is_some() {
                continue;
            }
            let before = crowd.answered;
            while crowd.step().is_empty() {
                let overtook = crowd.answered - before;
                assert!(
                    overtook <= Crowd::CLIENTS,
                    "seed {seed}, round {round}: {overtook} transactions went before it"
                );
            }
        }
    }
}

#[test]
fn law3_a_watch_that_begins_after_another_ended_is_not_ended_with_it() {
    let mut cluster = Cluster::new(3);
    let key = cluster.key(0, "a");
    let watcher = WatcherId { shard: 2, conn: CONN.0 };
    let caller = Caller { conn: CONN, flags: Default::default(), watcher: Some(watcher) };
    // All of shard 0 is on loan while the connection ends one watch and begins the next.
    assert_eq!(cluster.send(1, ConnId(8), "FLUSHALL"), None);
    cluster.pass(1, 0);
    cluster.shards[2].unwatch(watcher, [0]);
    let watch = crate::testing::unit(&format!("watch|here {key}"));
    let command = watch.commands().next().unwrap();
    cluster.shards[2].submit(&mut Default::default(), 0, caller, command.invocation());
    cluster.pass(2, 0);
    cluster.rest();
    let keyspace = cluster.shards[0].keyspace().unwrap();
    assert_eq!(keyspace.watches.keys(watcher).count(), 1);
}

/// What waits at shard 0.
fn parked(cluster: &Cluster) -> Vec<&ParkedRun> {
    let waiting = cluster.shards[0].waiting.values();
    let runs = waiting.filter_map(|waiting| match waiting {
        Waiting::Run(run) => Some(&**run),
        Waiting::Claim(_) | Waiting::Unwatch(_) => None,
    });
    runs.collect()
}

#[test]
fn what_waits_for_a_key_is_not_tried_when_another_comes_back() {
    let mut cluster = Cluster::new(4);
    let (a, b) = (cluster.key(0, "a"), cluster.key(0, "b"));
    let (c, d) = (cluster.key(1, "c"), cluster.key(1, "d"));
    assert_eq!(cluster.send(2, CONN, &format!("MSET {a} 1 {c} 1")), None);
    assert_eq!(cluster.send(3, CONN, &format!("MSET {b} 1 {d} 1")), None);
    cluster.pass(2, 0);
    cluster.pass(3, 0);
    assert_eq!(cluster.send(0, CONN, &format!("GET {a}")), None);
    assert_eq!(cluster.send(0, ConnId(8), &format!("GET {b}")), None);
    let buffer = |cluster: &Cluster| parked(cluster)[0].unit.bytes.as_ptr();
    let before = buffer(&cluster);
    cluster.deliver(3, 1);
    cluster.end_tick(0);
    cluster.deliver(0, 3);
    cluster.pass(1, 3);
    cluster.pass(3, 0);
    assert_eq!(cluster.replies(0), ["$1\r\n1\r\n"], "the second has its key");
    assert_eq!((parked(&cluster).len(), buffer(&cluster)), (1, before), "copied by being tried");
    cluster.rest();
    assert_eq!(cluster.replies(0), ["$1\r\n1\r\n"]);
}

#[test]
fn what_waits_for_the_end_of_an_epoch_claims_nothing() {
    let mut cluster = Cluster::new(2);
    let a = cluster.key(0, "a");
    cluster.shards[0].locks.hold();
    assert_eq!(cluster.send(0, CONN, &format!("GET {a}")), None);
    assert!(parked(&cluster)[0].wants.is_none());
    cluster.shards[0].locks.release_hold();
    cluster.shards[0].retry_waiting(&mut cluster.told[0]);
    assert_eq!(cluster.replies(0), ["$-1\r\n"]);
}
