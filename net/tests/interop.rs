//! Interop (laws 4 to 7 and 9): every ordered pair of servers in which Braid takes part, and chains of three with Braid in each
//! place. Writes run throughout, links are cut in the midst of bytes, processes are stopped and continued, killed and started
//! again. At the end all hold the same, value by value and expiry by expiry, and no full sync was made that need not be.
//!
//! A test is about one master: all its replicas follow it at once, each over a proxy of its own.

mod common;
#[path = "replication/load.rs"]
mod load;
#[path = "common/proxy.rs"]
mod proxy;
#[path = "common/replicas.rs"]
mod replicas;

use braid_bench::peers::{Builder, Kind, Peer};
use common::{TIMEOUT, braid, connect, field, fill, number_from_env, restart, settle, start, wait_until};
use fastrand::Rng;
use load::{Load, State};
use proxy::Proxy;
use replicas::{assert_equal, follow, forgot, is_linked, node, number};
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

/// Shards of the key set that the load's transactions touch.
const SPREAD: usize = 5;
/// Of the largest value, of random bytes: snapshots are larger.
const LARGEST_BYTES: usize = 1 << 20;
/// Where a snapshot is cut: behind the handshake, before the end.
const WITHIN_SNAPSHOT_BYTES: u64 = 500_000;
/// Of the load, between two pipelines of a thread.
const PAUSE: Duration = Duration::from_millis(5);
/// How often [`Follower::cut`] cuts the links of pairs, and those of chains.
const MANY_CUTS: u64 = 12;
const CUTS: u64 = 4;

/// A server: its kind, and how many shards if it is Braid.
type Server = (Kind, usize);

const STOCK: [Server; 3] = [(Kind::Redis7, 1), (Kind::Redis8, 1), (Kind::Valkey, 1)];

fn braid_of(shards: usize) -> Server {
    (braid(), shards)
}

fn server((kind, shards): &Server) -> Builder {
    match kind {
        // These would fetch snapshots from their own kind over further connections, and other numbers would break.
        Kind::Redis8 => node(kind, *shards).args(["--repl-rdb-channel", "no"]),
        Kind::Braid(_) => node(kind, *shards).args(["--repl-sync-connections", "1"]),
        _ => node(kind, *shards),
    }
}

fn is_braid(peer: &Peer) -> bool {
    matches!(peer.kind(), Kind::Braid(_))
}

/// Commands of the load between two events.
fn commands() -> u64 {
    number_from_env("BRAID_REPLICATION_COMMANDS", 1_000)
}

/// What a master counts of its replicas.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Syncs {
    full: u64,
    partial: u64,
}

impl Syncs {
    fn of(master: &Peer) -> Self {
        let mut client = connect(master);
        let [full, partial] = ["sync_full", "sync_partial_ok"].map(|name| number(&mut client, "stats", name));
        Self { full, partial }
    }

    fn all(self) -> u64 {
        self.full + self.partial
    }

    fn add(&mut self, other: Self) {
        self.full += other.full;
        self.partial += other.partial;
    }
}

/// A node below another one, which it reaches over a proxy.
struct Follower {
    peer: Peer,
    link: Proxy,
}

impl Follower {
    fn start(kind: &Server, master: &Peer) -> Self {
        let link = Proxy::start(master.addr()).expect("a proxy");
        Self { peer: start(server(kind)), link }
    }

    fn is_braid(&self) -> bool {
        is_braid(&self.peer)
    }

    fn follow(&self) {
        follow(&self.peer, self.link.port());
    }

    /// Breaks the link, and then again and again: once within the handshake, the other times at some byte of the stream. The
    /// proxy counts `cuts` then, and as often it resumes: the proxy does not count the first, and the one within the handshake
    /// is not resumed.
    fn cut(&self, cuts: u64, rng: &mut Rng) {
        let at_handshake = rng.u64(0..cuts);
        let budgets =
            (0..cuts).map(|n| if n == at_handshake { rng.u64(1..12) } else { rng.u64(1000..60_000) });
        self.link.break_after(budgets.collect::<Vec<_>>());
        self.link.break_all();
    }

    /// Starts it again after it was killed.
    fn start_again(&mut self) {
        let master = self.link.port().to_string();
        self.peer.add_args(["--replicaof", "127.0.0.1", &master]);
        restart(&mut self.peer);
    }

    /// What its death costs. Braid lost all it had; the others kept the snapshot in a file, and go on from there.
    fn sync_after_death(&self) -> Syncs {
        let full = u64::from(self.is_braid());
        Syncs { full, partial: 1 - full }
    }

    fn forgot(&self) -> u64 {
        forgot(&self.peer)
    }

    fn applied(&self) -> u64 {
        number(&mut connect(&self.peer), "replication", "slave_repl_offset")
    }
}

/// The master's offset.
fn stream_end(master: &Peer) -> u64 {
    number(&mut connect(master), "replication", "master_repl_offset")
}

fn wait_linked<'a>(followers: impl IntoIterator<Item = &'a Follower>) {
    for follower in followers {
        wait_until("the replica is linked", || is_linked(&follower.peer));
    }
}

fn wait_cut<'a>(followers: impl IntoIterator<Item = &'a Follower>, times: u64) {
    for follower in followers {
        wait_until("the link was cut", || follower.link.broken() >= times);
    }
}

/// The counts are what they must be; but for what [`forgot`] tells.
fn assert_syncs(master: &Peer, followers: &[Follower], expected: Syncs) {
    let forgot: u64 = followers.iter().map(Follower::forgot).sum();
    let expected = Syncs { full: expected.full + forgot, partial: expected.partial - forgot };
    assert_eq!(Syncs::of(master), expected, "{forgot} were forgotten");
}

fn assert_all_equal(master: &Peer, followers: &[Follower]) {
    followers.iter().for_each(|follower| assert_equal(master, &follower.peer));
}

/// Saves, when no snapshot for a replica is in the way.
fn save(master: &Peer) {
    wait_until("it is saved", || !connect(master).command(&["SAVE"]).expect("an answer").is_error());
}

/// Starts followers of a master, each over its link, and breaks that once in the midst of the snapshot.
fn attach(master: &Peer, followers: &[Follower]) {
    for follower in followers {
        follower.link.break_after([WITHIN_SNAPSHOT_BYTES]);
        follower.follow();
    }
    wait_linked(followers);
    wait_cut(followers, 1);
    // Each attempt counts.
    assert_eq!(Syncs::of(master), Syncs { full: 2 * followers.len() as u64, partial: 0 });
}

/// A master and all its replicas through whatever may happen to them.
fn pairs(master: &Server, replicas: &[Server]) {
    let mut rng = Rng::with_seed(number_from_env("BRAID_REPLICATION_SEED", 1));
    // In the end nothing may come into the stream but what is written.
    let mut master = start(server(master).args(["--repl-ping-replica-period", "3600"]));
    fill(&master, LARGEST_BYTES);
    let mut followers: Vec<Follower> =
        replicas.iter().map(|replica| Follower::start(replica, &master)).collect();
    let all = followers.len() as u64;
    let mut state = State::default();
    state.pause = PAUSE;
    thread::scope(|scope| {
        let load = Load::start(scope, &master, SPREAD, &state);
        attach(&master, &followers);
        let mut expected = Syncs { full: 2 * all, partial: 0 };

        followers.iter().for_each(|follower| follower.cut(MANY_CUTS, &mut rng));
        wait_cut(&followers, 1 + MANY_CUTS);
        wait_linked(&followers);
        expected.partial += MANY_CUTS * all;
        state.pass(commands());

        for round in 0..2 {
            for (n, follower) in followers.iter_mut().enumerate() {
                if n % 2 == round { follower.peer.stop() } else { follower.peer.kill() }.expect("a signal");
            }
            state.pass(commands());
            for (n, follower) in followers.iter_mut().enumerate() {
                if n % 2 == round {
                    follower.peer.cont().expect("a signal");
                } else {
                    follower.start_again();
                    expected.add(follower.sync_after_death());
                }
            }
            wait_linked(&followers);
        }
        assert_syncs(&master, &followers, expected);

        // The master dies, and with it what all had already.
        save(&master);
        let saved = stream_end(&master);
        for follower in &followers {
            wait_until("the replica is ahead of the file", || follower.applied() > saved);
        }
        state.may_die.store(true, Ordering::Relaxed);
        master.kill().expect("is killed");
        restart(&mut master);
        wait_until("all replicas asked", || Syncs::of(&master).all() >= all);
        wait_linked(&followers);
        state.pass(commands());
        load.stop();
    });
    assert_all_equal(&master, &followers);
    assert_eq!(Syncs::of(&master), Syncs { full: all, partial: 0 });
    if is_braid(&master) {
        // It did not begin empty: that is the dataset that there is, and who has more is not protected from it.
        assert_eq!(field(&mut connect(&master), "replication", "protected_restart"), "0");
    }

    // It dies again, but nothing is lost.
    settle(&master);
    assert_all_equal(&master, &followers);
    if is_braid(&master) {
        connect(&master).send(&["SHUTDOWN", "SAVE"]).expect("is sent");
        assert!(master.wait_exit(TIMEOUT).expect("it ends").success());
        master.set_threads(3);
    } else {
        save(&master);
        master.kill().expect("is killed");
    }
    restart(&mut master);
    wait_until("all replicas are back", || Syncs::of(&master).all() >= all);
    wait_linked(&followers);
    assert_all_equal(&master, &followers);
    assert_eq!(Syncs::of(&master), Syncs { full: 0, partial: all });
}

/// Braid with several numbers of shards.
fn braids() -> [Server; 3] {
    [1, 2, 5].map(braid_of)
}

fn all_servers() -> Vec<Server> {
    [braids(), STOCK].concat()
}

#[test]
fn pairs_braid_of_one_shard_and_everyone() {
    pairs(&braid_of(1), &all_servers());
}

#[test]
fn pairs_braid_of_two_shards_and_everyone() {
    pairs(&braid_of(2), &all_servers());
}

#[test]
fn pairs_braid_of_five_shards_and_everyone() {
    pairs(&braid_of(5), &all_servers());
}

#[test]
fn pairs_redis_7_and_braid() {
    pairs(&STOCK[0], &braids());
}

#[test]
fn pairs_redis_8_and_braid() {
    pairs(&STOCK[1], &braids());
}

#[test]
fn pairs_valkey_and_braid() {
    pairs(&STOCK[2], &braids());
}

/// A node in the middle of chains, and those below it.
struct Middle {
    node: Follower,
    leaves: Vec<Follower>,
}

/// Whether a server can be a replica of that one at all. Stock servers read snapshots of their own format's version and
/// of older ones: Redis 7.0 writes version 10, Redis 8.2 version 12, Valkey 9.1 version 11 for whom it does not know. Braid
/// reads all, and writes what all read.
fn can_follow(replica: &Kind, master: &Kind) -> bool {
    match master {
        Kind::Redis8 => !matches!(replica, Kind::Redis7 | Kind::Valkey),
        Kind::Valkey => *replica != Kind::Redis7,
        _ => true,
    }
}

impl Middle {
    /// Below `top` and above everybody who can follow it; but Braid has a place in each chain.
    fn start(server: &Server, top: &Peer) -> Self {
        let node = Follower::start(server, top);
        let knows_stream = |kind: &Kind| *kind != Kind::Redis7 || *top.kind() != Kind::Redis8;
        let has_braid = node.is_braid() || is_braid(top);
        let leaves = [&[braid_of(2)], &STOCK[..]]
            .concat()
            .iter()
            .filter(|(kind, _)| (has_braid || *kind == braid()) && can_follow(kind, &server.0))
            .filter(|(kind, _)| knows_stream(kind))
            .map(|leaf| Follower::start(leaf, &node.peer))
            .collect();
        Self { node, leaves }
    }

    /// Whether its link may break: Redis 8.2 would fetch everything anew, and so would all below it.
    fn may_be_cut(&self) -> bool {
        *self.node.peer.kind() != Kind::Redis8
    }

    fn forgot(&self) -> u64 {
        self.leaves.iter().map(Follower::forgot).sum()
    }
}

fn nodes(middles: &[Middle]) -> impl Iterator<Item = &Follower> {
    middles.iter().map(|middle| &middle.node)
}

/// Chains of three with this master at the top: in the middle and at the leaf Braid and every stock server
/// that can be there.
fn chains(top: &Server) {
    let mut rng = Rng::with_seed(number_from_env("BRAID_REPLICATION_SEED", 1));
    let top = start(server(top));
    fill(&top, LARGEST_BYTES);
    let mut middles: Vec<Middle> = [&[braid_of(3)], &STOCK[..]]
        .concat()
        .iter()
        .filter(|(kind, _)| can_follow(kind, top.kind()))
        .map(|server| Middle::start(server, &top))
        .collect();
    let mut state = State::default();
    state.pause = PAUSE;
    thread::scope(|scope| {
        let load = Load::start(scope, &top, SPREAD, &state);
        nodes(&middles).for_each(Follower::follow);
        for middle in &middles {
            wait_linked([&middle.node]);
            middle.leaves.iter().for_each(Follower::follow);
        }
        for middle in &middles {
            wait_linked(&middle.leaves);
            let all = middle.leaves.len() as u64;
            assert_eq!(Syncs::of(&middle.node.peer), Syncs { full: all, partial: 0 });
        }
        let mut expected = Syncs { full: middles.len() as u64, partial: 0 };
        assert_eq!(Syncs::of(&top), expected);

        // Links break; those below do not notice.
        for middle in middles.iter().filter(|middle| middle.may_be_cut()) {
            middle.node.cut(CUTS, &mut rng);
            expected.partial += CUTS;
        }
        wait_cut(nodes(&middles).filter(|node| *node.peer.kind() != Kind::Redis8), CUTS);
        wait_linked(nodes(&middles));
        state.pass(commands());
        assert_eq!(Syncs::of(&top), expected);
        for middle in &middles {
            middle.leaves.iter().for_each(|leaf| leaf.cut(CUTS, &mut rng));
        }
        for middle in &middles {
            wait_cut(&middle.leaves, CUTS);
            wait_linked(&middle.leaves);
        }

        // The leaves die while nobody serves them.
        for middle in &mut middles {
            middle.node.peer.stop().expect("is stopped");
            middle.leaves.iter_mut().for_each(|leaf| leaf.peer.kill().expect("is killed"));
        }
        state.pass(commands());
        for middle in &mut middles {
            middle.leaves.iter_mut().for_each(Follower::start_again);
            middle.node.peer.cont().expect("goes on");
        }
        for middle in &middles {
            wait_linked([&middle.node]);
            wait_linked(&middle.leaves);
            let all = middle.leaves.len() as u64;
            let mut expected = Syncs { full: all, partial: CUTS * all };
            middle.leaves.iter().for_each(|leaf| expected.add(leaf.sync_after_death()));
            assert_syncs(&middle.node.peer, &middle.leaves, expected);
        }

        // Those in the middle die while nobody listens to them.
        for middle in &mut middles {
            middle.leaves.iter().for_each(|leaf| leaf.peer.stop().expect("is stopped"));
            middle.node.peer.kill().expect("is killed");
            expected.add(middle.node.sync_after_death());
        }
        state.pass(commands());
        middles.iter_mut().for_each(|middle| middle.node.start_again());
        wait_linked(nodes(&middles));
        let written = stream_end(&top);
        for middle in &middles {
            wait_until("it has caught up", || middle.node.applied() >= written);
            let forgot_before = middle.forgot();
            middle.leaves.iter().for_each(|leaf| leaf.peer.cont().expect("goes on"));
            let all = middle.leaves.len() as u64;
            wait_until("the leaves are back", || Syncs::of(&middle.node.peer).all() >= all);
            wait_linked(&middle.leaves);
            // Braid's stream begins where it came back, behind all leaves. The others' goes back to their file.
            let full = if middle.node.is_braid() { all } else { middle.forgot() - forgot_before };
            assert_eq!(Syncs::of(&middle.node.peer), Syncs { full, partial: all - full });
        }
        state.pass(commands());
        assert_eq!(Syncs::of(&top), expected);
        load.stop();
    });
    let history = |peer: &Peer| field(&mut connect(peer), "replication", "master_replid");
    for middle in &middles {
        for node in [&middle.node].into_iter().chain(&middle.leaves) {
            assert_equal(&top, &node.peer);
            assert_eq!(history(&top), history(&node.peer));
        }
    }
}

#[test]
fn chains_below_braid() {
    chains(&braid_of(2));
}

#[test]
fn chains_below_redis_7() {
    chains(&STOCK[0]);
}

#[test]
fn chains_below_redis_8() {
    chains(&STOCK[1]);
}

#[test]
fn chains_below_valkey() {
    chains(&STOCK[2]);
}
