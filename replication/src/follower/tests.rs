//! The replica role whole: home and follower on shards of their own, a master that says what the test says, a disk that does
//! what it says.

use super::*;
use crate::home::{Action, Rules};
use crate::link::LinkState;
use crate::log::ReaderLimits;
use crate::sharing::Policy;
use braid_core::command::{Outcome, Segment, Time, registry};
use braid_core::rdb::{Writer, WriterOptions, kind};
use braid_core::resp::Reply;
use braid_core::table::HashKey;
use braid_shards::{
    Caller, ConnId, Host, Invocation, LoadAnswer, Mark, Outlet, Parcel, Ran, RunFlags, ShardConfig, ShardId,
};
use bytes::Bytes;
use std::any::Any;

const DATABASES: usize = 2;
const SHARDS: usize = 2;
const TIMEOUT_MS: u64 = 60_000;
/// More rounds than anything takes.
const ROUNDS: usize = 40;
const SET_K: &str = "*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1\r\nv\r\n";

/// What the shards tell, and those who hear it.
struct Front {
    home: Home,
    follower: Follower,
}

impl Host for Front {
    fn reply(&mut self, _: ConnId, _: &[u8], _: Vec<(usize, Bytes)>, _: bool) {
        self.follower.epoch_applied(Ok(()));
    }
    fn session(&mut self, _: ConnId, _: CommandId, _: Args<'_>, _: &mut Reply) -> Outcome {
        Ok(())
    }
    fn upper(&mut self, _: ShardId, _: Box<dyn Any + Send>) {}
    fn segment(&mut self, ticket: u64, segment: Segment, mark: Option<Mark>) {
        self.home.segment(ticket, segment, mark);
    }
    fn epoch_applied(&mut self, _: u64, outcome: Result<(), EpochError>) {
        self.follower.epoch_applied(outcome);
    }
    fn load_answer(&mut self, from: ShardId, answer: LoadAnswer) {
        self.follower.loads.answer(from, answer);
    }
    fn took(&mut self, _: ConnId, _: u64, _: Args<'_>) {}
    fn monotonic_ns(&mut self) -> u64 {
        0
    }
}

#[derive(Default)]
struct Out(Vec<(ShardId, Box<Parcel>)>);

impl Outlet for Out {
    fn deliver(&mut self, to: ShardId, parcel: Box<Parcel>) -> Result<(), Box<Parcel>> {
        self.0.push((to, parcel));
        Ok(())
    }
}

/// A node and what it asked for.
struct Node {
    shards: Vec<Shard>,
    front: Front,
    now_ms: u64,
    actions: Vec<FollowerAction>,
    said: Vec<String>,
    /// What was written into the file under way, and its number.
    file: Option<(u64, Vec<u8>)>,
    /// The disk is done with nothing.
    is_disk_stuck: bool,
    /// The file that is being loaded, as far as it was not fed.
    loading: Option<Vec<u8>>,
    /// The home's cut can't be made yet.
    holds_cuts: bool,
}

fn rules(intake: Intake) -> FollowerRules {
    let link = LinkRules { timeout_ms: TIMEOUT_MS, databases: DATABASES as u32, ..LinkRules::default() };
    let load = LoadRules { databases: DATABASES, string_max_bytes: 1 << 20, verify: true };
    FollowerRules { link, load, protects: true, intake }
}

fn id(byte: u8) -> ReplId {
    ReplId::parse(&[byte; 40]).expect("hexadecimal")
}

fn target(host: &str) -> Target {
    Target { host: host.into(), port: 1 }
}

/// A snapshot with so many keys: `k0` and so on.
fn snapshot(keys: usize) -> Vec<u8> {
    let mut writer = Writer::new(WriterOptions { version: 10, compress: false, checksum: true });
    writer.header();
    writer.select_db(0);
    for number in 0..keys {
        writer.key(kind::STRING, format!("k{number}").as_bytes());
        writer.string(b"v");
    }
    writer.eof();
    writer.take()
}

impl Node {
    fn new(intake: Intake) -> Self {
        let map = SlotMap::new(SHARDS);
        let counters = std::sync::Arc::new(braid_shards::Counters::new(SHARDS));
        let shards: Vec<Shard> = (0..SHARDS)
            .map(|id| {
                Shard::new(ShardConfig {
                    id: id as ShardId,
                    map,
                    databases: DATABASES,
                    hash: HashKey::from_seed(5),
                    seed: 6,
                    settings: Default::default(),
                    counters: std::sync::Arc::clone(&counters),
                    home: 0,
                })
            })
            .collect();
        let home_rules = Rules {
            backlog_bytes: 1 << 30,
            backlog_disk_bytes: 0,
            backlog_ttl_ms: 0,
            protects: true,
            ping_period_ms: 10_000,
            timeout_ms: TIMEOUT_MS,
            sharing: Policy { is_diskless: true, delay_ms: 0, max_replicas: 0 },
            limits: ReaderLimits { hard_bytes: 0, soft_bytes: 0, soft_ms: 0 },
            compress: false,
            checksum: true,
        };
        let front =
            Front { home: Home::new(SHARDS, home_rules, 7), follower: Follower::new(map, rules(intake)) };
        Self {
            shards,
            front,
            now_ms: 1000,
            actions: Vec::new(),
            said: Vec::new(),
            file: None,
            is_disk_stuck: false,
            loading: None,
            holds_cuts: false,
        }
    }

    fn replica(intake: Intake) -> Self {
        let mut node = Self::new(intake);
        node.with_follower(|follower, site| follower.start_as_replica(target("master"), site));
        start_shard_as_replica(&mut node.shards[1]);
        node.rounds();
        node
    }

    fn with_follower<T>(&mut self, work: impl FnOnce(&mut Follower, &mut Site<'_>) -> T) -> T {
        let keys = self.len();
        let has_keys = || keys > 0;
        let Front { home, follower } = &mut self.front;
        let shard = &mut self.shards[0];
        work(follower, &mut Site { shard, home, has_keys: &has_keys, now_ms: self.now_ms })
    }

    fn follower(&mut self) -> &mut Follower {
        &mut self.front.follower
    }

    fn link(&self) -> &Link {
        self.front.follower.link().expect("there is a link")
    }

    fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.keyspace().map_or(0, |keyspace| keyspace.len())).sum()
    }

    /// One round of every shard, without what the follower's file needs.
    fn round(&mut self) {
        self.now_ms += 1;
        let time = Time { us: self.now_ms * 1000 };
        self.shards.iter_mut().for_each(|shard| shard.set_time(time));
        self.front.follower.loads.work(&mut self.shards[0]);
        self.act_for_home();
        self.with_follower(Follower::go_on);
        self.shards[0].settle(&mut self.front);
        self.with_follower(Follower::finish);
        let mut out = Out::default();
        for from in 0..SHARDS {
            let shard = &mut self.shards[from];
            shard.load_some();
            shard.background(1000, &mut self.front);
            shard.settle(&mut self.front);
            shard.end_tick(&mut out, &mut self.front);
            for (to, parcel) in std::mem::take(&mut out.0) {
                self.shards[usize::from(to)].receive(from as ShardId, parcel, &mut self.front);
            }
        }
        self.take_actions();
    }

    fn act_for_home(&mut self) {
        for action in self.front.home.take_actions() {
            match action {
                Action::Turned(turn) => self.front.follower.turned(turn),
                Action::Cut { snapshot, with_data } if !self.holds_cuts => {
                    self.front.follower.want_cut(snapshot, with_data, None);
                }
                _ => {}
            }
        }
    }

    fn take_actions(&mut self) {
        for action in self.front.follower.take_actions() {
            match action {
                FollowerAction::Notice(text) | FollowerAction::Warning(text) => self.said.push(text),
                FollowerAction::Spool { number, step } => self.spool(number, step),
                other => self.actions.push(other),
            }
        }
        self.work_disk();
    }

    fn spool(&mut self, number: u64, step: SpoolStep) {
        match step {
            SpoolStep::Create => self.file = Some((number, Vec::new())),
            SpoolStep::Write(bytes) => {
                self.file.as_mut().expect("it was made").1.extend_from_slice(&bytes);
                if !self.is_disk_stuck {
                    self.follower().spool_written(number, bytes.len() as u64);
                }
            }
            SpoolStep::Finish if self.is_disk_stuck => {}
            SpoolStep::Finish => {
                let len = self.file.as_ref().expect("it was made").1.len() as u64;
                self.follower().spool_done(number, Ok(len));
            }
            SpoolStep::Load => self.loading = self.file.as_ref().map(|(_, bytes)| bytes.clone()),
            SpoolStep::Drop => (self.file, self.loading) = (None, None),
        }
    }

    fn work_disk(&mut self) {
        if self.front.follower.loads.wants_more()
            && let Some(bytes) = self.loading.take()
        {
            self.front.follower.loads.feed(&mut self.shards[0], &bytes).expect("it is sound");
        }
    }

    fn rounds(&mut self) {
        (0..ROUNDS).for_each(|_| self.round());
    }

    fn take_actions_of(&mut self, is_it: impl Fn(&FollowerAction) -> bool) -> usize {
        let len = self.actions.len();
        self.actions.retain(|action| !is_it(action));
        len - self.actions.len()
    }

    /// The connection that was asked for stands, and the master says up to what it answers to `PSYNC`.
    fn shake_hands(&mut self) {
        let asked = self.take_actions_of(|action| matches!(action, FollowerAction::Connect(_)));
        assert_eq!(asked, 1, "a connection is asked for: {:?}", self.said);
        let now_ms = self.now_ms;
        let Front { home, follower } = &mut self.front;
        follower.connected(home, now_ms);
        self.receive("+PONG\r\n+OK\r\n+OK\r\n+OK\r\n");
        assert_eq!(self.link().state(), LinkState::Handshake);
    }

    fn receive(&mut self, bytes: impl AsRef<[u8]>) {
        let now_ms = self.now_ms;
        self.follower().received(bytes.as_ref(), now_ms);
        self.rounds();
    }

    /// The master begins a full sync of its history `id` at offset 100.
    fn begin_full_sync(&mut self, id: ReplId) {
        self.shake_hands();
        self.receive(format!("+FULLRESYNC {id} 100\r\n"));
    }

    /// A full sync with so many keys.
    fn full_sync(&mut self, keys: usize) {
        self.begin_full_sync(id(b'a'));
        let bytes = snapshot(keys);
        self.receive([format!("${}\r\n", bytes.len()).as_bytes(), &bytes].concat());
        assert!(self.link().is_up(), "{:?}", self.said);
        assert_eq!(self.len(), keys);
    }

    /// The link breaks, and is tried again as soon as that may be.
    fn break_link(&mut self) {
        let now_ms = self.now_ms;
        self.follower().closed("reset", now_ms);
        self.rounds();
        self.now_ms += 1000;
        self.rounds();
    }

    fn follow(&mut self, master: Option<&str>) {
        let master = master.map(target);
        self.follower().request(RoleRequest { master, answer: None });
        self.rounds();
    }

    /// What a client gets of a key that shard 0 owns.
    fn get(&mut self, key: &str) -> String {
        let (id, _) = registry().find(b"get").expect("a command");
        let words: [&[u8]; 2] = [b"get", key.as_bytes()];
        let owner = usize::from(SlotMap::new(SHARDS).shard_of(key.as_bytes()));
        let mut out = Reply::default();
        let caller = Caller::new(ConnId(0), RunFlags::default());
        let call = Invocation { id, db: 0, args: Args::new(&words, &[]) };
        assert_eq!(self.shards[owner].run(caller, call, &mut out, &mut self.front), Ran::Done);
        String::from_utf8(out.buf.to_vec()).expect("text")
    }
}

#[test]
fn a_load_that_was_given_up_when_it_was_whole_is_not_taken_for_the_next() {
    let mut node = Node::replica(Intake::Beside);
    node.full_sync(3);
    // Whole, but for the mark behind it.
    node.break_link();
    node.begin_full_sync(id(b'b'));
    node.receive([format!("$EOF:{}\r\n", "m".repeat(40)).as_bytes(), &snapshot(5)].concat());
    assert!(node.follower().loads.is_good());
    node.break_link();
    let now = rules(Intake::FileFirst);
    node.follower().set_rules(now);
    node.is_disk_stuck = true;
    node.begin_full_sync(id(b'c'));
    let bytes = snapshot(7);
    node.receive([format!("${}\r\n", bytes.len()).as_bytes(), &bytes].concat());
    assert_eq!(node.len(), 3, "the file is not complete");
    let (number, len) =
        node.file.as_ref().map(|(number, file)| (*number, file.len() as u64)).expect("a file");
    node.follower().spool_done(number, Ok(len));
    node.rounds();
    assert_eq!(node.len(), 7);
    assert!(node.link().is_up());
}

#[test]
fn no_loss_who_is_promoted_applies_what_was_received_first() {
    let mut node = Node::replica(Intake::Beside);
    node.full_sync(3);
    // More than one epoch: from a master that dies, and one that is alive.
    for dies in [true, false] {
        let before = node.front.home.end_offset();
        let many = SET_K.repeat(5000);
        let now_ms = node.now_ms;
        node.follower().received(many.as_bytes(), now_ms);
        if dies {
            node.follower().closed("reset", now_ms);
        }
        node.follow(None);
        assert_eq!(node.front.home.end_offset(), before + many.len() as u64);
        assert_eq!(node.follower().applied_offset(), before + many.len() as u64);
        assert!(!node.front.home.is_replica() && node.follower().link().is_none());
        node.follow(Some("master"));
        node.full_sync(3);
    }
}

#[test]
fn what_a_master_refused_is_not_told_of_the_next() {
    for next in [Some("other"), None] {
        let mut node = Node::replica(Intake::Beside);
        node.full_sync(3);
        node.break_link();
        node.begin_full_sync(id(b'b'));
        let bytes = snapshot(0);
        node.receive([format!("${}\r\n", bytes.len()).as_bytes(), &bytes].concat());
        assert!(node.follower().has_refused());
        assert_eq!(node.len(), 3);
        node.follow(next);
        assert!(!node.follower().has_refused());
    }
}

#[test]
fn who_starts_from_a_file_has_applied_what_is_in_it() {
    let mut node = Node::new(Intake::Beside);
    node.with_follower(|follower, site| {
        follower.start_as_replica(target("master"), site);
        follower.begin_restore(site.shard);
    });
    start_shard_as_replica(&mut node.shards[1]);
    let mut writer = Writer::new(WriterOptions { version: 10, compress: false, checksum: true });
    writer.header();
    writer.aux(b"repl-id", &[b'a'; 40]);
    writer.aux(b"repl-offset", b"1234");
    writer.eof();
    node.loading = Some(writer.take());
    for _ in 0..ROUNDS {
        node.round();
        if let Restored::Done { .. } = node.with_follower(Follower::restore).expect("it is sound") {
            break;
        }
    }
    assert!(!node.follower().is_restoring());
    assert_eq!(node.follower().applied_offset(), 1234);
    assert_eq!(node.follower().read_offset(), 1234);
}

#[test]
fn law9_flush_before_load_flushes_when_the_snapshot_comes_and_loads_when_that_is_freed() {
    let mut node = Node::replica(Intake::FlushFirst);
    node.full_sync(3);
    // A master that saves to its disk first promises long before it sends, and may never.
    node.break_link();
    node.begin_full_sync(id(b'b'));
    assert!(node.len() == 3 && !node.follower().has_given_up_dataset());
    assert!(node.get("k1").starts_with('$'));
    node.break_link();
    assert_eq!(node.len(), 3);
    node.begin_full_sync(id(b'c'));
    let bytes = snapshot(7);
    let message = [format!("${}\r\n", bytes.len()).as_bytes(), &bytes].concat();
    let now_ms = node.now_ms;
    node.follower().received(&message, now_ms);
    node.round();
    assert!(node.follower().has_given_up_dataset());
    while !node.link().is_up() {
        assert!(node.follower().has_given_up_dataset(), "there is no dataset yet");
        let has_trash = node.shards.iter().any(|shard| shard.has_trash());
        assert!(!has_trash || node.follower().loads.loader().is_none(), "memory must not hold both");
        node.round();
    }
    assert!(node.len() == 7 && !node.follower().has_given_up_dataset());
    assert!(node.get("k6").starts_with('$'));
}

#[test]
fn a_dataset_that_is_gone_is_seen_by_no_client_until_another_is_there_or_the_node_is_promoted() {
    for promotes in [false, true] {
        let mut node = Node::replica(Intake::FlushFirst);
        node.full_sync(3);
        node.break_link();
        node.begin_full_sync(id(b'b'));
        node.receive("$1000\r\nREDIS0010");
        for key in ["k0", "k1", "k2", "other"] {
            assert_eq!(node.get(key), "-LOADING Redis is loading the dataset in memory\r\n");
        }
        node.break_link();
        assert!(node.get("k0").starts_with("-LOADING"));
        if promotes {
            node.follow(None);
            assert_eq!(node.get("k0"), "$-1\r\n");
        } else {
            node.full_sync(5);
            assert!(node.get("k0").starts_with("$1"));
        }
        assert!(!node.follower().has_given_up_dataset());
    }
}

#[test]
fn law9_what_is_left_of_a_dataset_that_was_given_up_is_neither_saved_nor_sent_to_who_has_data() {
    let mut node = Node::replica(Intake::FlushFirst);
    node.full_sync(3);
    node.break_link();
    node.begin_full_sync(id(b'b'));
    node.receive("$1000\r\nREDIS0010");
    let now_ms = node.now_ms;
    for confirms in [false, true] {
        node.front.home.request_save(now_ms);
        node.rounds();
        assert_eq!(node.front.home.is_saving(), confirms);
        assert_eq!(node.front.home.has_lost_dataset(), !confirms);
        if confirms {
            break;
        }
        node.follow(None);
        assert!(node.front.home.has_lost_dataset() && node.front.home.is_protected());
        node.front.home.request_save(now_ms);
        node.rounds();
        assert!(!node.front.home.is_saving(), "not by a save point");
        // Who promotes it once more means it.
        node.follow(None);
        assert!(!node.front.home.is_protected());
    }
    // Of a dataset that was there all is as ever.
    let mut node = Node::replica(Intake::FlushFirst);
    node.full_sync(3);
    node.follow(None);
    assert!(!node.front.home.has_lost_dataset() && !node.front.home.is_protected());
}
