//! A node: a home, perhaps a link, and a dataset.

use crate::dataset::{self, Dataset, Read};
use braid_core::command::{Args, CommandId, Segment};
use braid_core::rdb::Writer;
use braid_replication::home::relay::Turn;
use braid_replication::home::{Action, Home, Rules};
use braid_replication::ids::ReplId;
use braid_replication::link::stream::{EpochWork, Parts};
use braid_replication::link::{Link, LinkAction, LinkRules, Target};
use braid_replication::log::ReaderLimits;
use braid_replication::sharing::Policy;
use braid_shards::Mark;
use bytes::Bytes;

pub const DATABASES: u16 = 3;
const TIMEOUT_MS: u64 = 5_000;

/// Commands of an epoch: database, key, what is appended.
#[derive(Default)]
struct Appends(Vec<(u16, Vec<u8>, Vec<u8>)>);

impl Parts for Appends {
    fn fits(&self, _id: CommandId, args: Args<'_>) -> bool {
        assert!(args.is(0, "append"), "nothing else is written");
        true
    }

    fn push(&mut self, _id: CommandId, db: u16, args: Args<'_>) {
        self.0.push((db, args[1].to_vec(), args[2].to_vec()));
    }
}

struct Applying {
    appends: Appends,
    end_offset: u64,
    asks_ack: bool,
}

/// What the world has to do for a node.
pub enum Errand {
    Connect { to: usize },
    Send(Vec<u8>),
    CloseLink,
    CloseReplica(braid_replication::acks::ReplicaId),
}

/// See the module.
pub struct Node {
    pub home: Home,
    pub link: Option<Link>,
    pub data: Dataset,
    applying: Option<Applying>,
    applied: u64,
    /// A snapshot being received.
    loading: Option<Vec<u8>>,
    loaded: Option<Read>,
    swap: Option<(ReplId, u64)>,
    next_ticket: u64,
}

fn append(key: &str, text: &str) -> Bytes {
    format!("*3\r\n$6\r\nAPPEND\r\n${}\r\n{key}\r\n${}\r\n{text}\r\n", key.len(), text.len()).into()
}

impl Node {
    pub fn new(seed: u64, backlog_bytes: u64) -> Self {
        let rules = Rules {
            backlog_bytes,
            backlog_disk_bytes: 0,
            backlog_ttl_ms: 0,
            protects: false,
            ping_period_ms: 1_000,
            timeout_ms: TIMEOUT_MS,
            sharing: Policy { is_diskless: true, delay_ms: 0, max_replicas: 0 },
            limits: ReaderLimits { hard_bytes: 0, soft_bytes: 0, soft_ms: 0 },
            compress: true,
            checksum: true,
        };
        Self {
            home: Home::new(1, rules, seed),
            link: None,
            data: Dataset::new(),
            applying: None,
            applied: 0,
            loading: None,
            loaded: None,
            swap: None,
            next_ticket: 0,
        }
    }

    fn take_ticket(&mut self) -> u64 {
        self.next_ticket += 1;
        self.next_ticket - 1
    }

    /// A client's write; on a replica nothing.
    pub fn write(&mut self, db: u16, key: &str, text: &str) {
        if self.home.is_replica() {
            return;
        }
        self.data.entry((db, key.as_bytes().to_vec())).or_default().extend_from_slice(text.as_bytes());
        // Nobody collects what nobody follows.
        if self.home.is_followed() {
            let ticket = self.take_ticket();
            self.home.segment(ticket, Segment::of(db, append(key, text)), None);
            self.home.trim();
        }
    }

    /// The history and offset that the dataset is at, if it is at one.
    pub fn position(&self) -> Option<(ReplId, u64)> {
        let position = self.home.position()?;
        let is_settled = self.applying.is_none() && self.swap.is_none();
        is_settled.then_some((position.id, position.offset))
    }

    /// Begins to follow a node, or ends it.
    pub fn follow(&mut self, target: Option<usize>, now_ms: u64) {
        self.settle(now_ms);
        self.link = None;
        self.loading = None;
        self.loaded = None;
        self.home.set_link(false);
        let turn = match (target, self.home.is_replica()) {
            (None, true) => Some(Turn::Promote),
            (Some(_), false) => Some(Turn::Follow),
            _ => None,
        };
        if let Some(turn) = turn {
            self.home.begin_turn(turn);
            let ticket = self.take_ticket();
            self.home.segment(ticket, Segment::default(), Some(Mark::Role));
        }
        if let Some(target) = target {
            let rules = LinkRules {
                timeout_ms: TIMEOUT_MS,
                user: String::new(),
                password: String::new(),
                listening_port: 1,
                announced_ip: String::new(),
                version: "8.2.0".into(),
                databases: u32::from(DATABASES),
            };
            self.link = Some(Link::new(Target { host: target.to_string(), port: 1 }, rules, now_ms));
        }
    }

    /// Ends what is being done to the dataset.
    fn settle(&mut self, now_ms: u64) {
        // One thing at a time: what was begun before a link broke comes before what its successor brings.
        self.finish_epoch(now_ms);
        self.finish_swap(now_ms);
    }

    fn finish_epoch(&mut self, now_ms: u64) {
        let Some(Applying { appends, end_offset, asks_ack }) = self.applying.take() else { return };
        for (db, key, text) in appends.0 {
            self.data.entry((db, key)).or_default().extend_from_slice(&text);
        }
        self.applied = end_offset;
        if let (true, Some(link)) = (asks_ack, &mut self.link) {
            link.acknowledge(end_offset, now_ms);
        }
    }

    fn finish_swap(&mut self, now_ms: u64) {
        let Some((id, offset)) = self.swap.take() else { return };
        let Read { data, stream_db, .. } = self.loaded.take().expect("it was whole");
        self.data = data;
        self.home.replace_history(id, offset, stream_db);
        self.applied = offset;
        if let Some(link) = &mut self.link {
            link.swapped(Ok(stream_db), now_ms);
        }
    }

    /// A stretch of a replica's work. `is_lazy`: it takes its time.
    pub fn work(&mut self, is_lazy: bool, now_ms: u64) {
        self.load(now_ms);
        if is_lazy {
            return;
        }
        self.settle(now_ms);
        let mut appends = Appends::default();
        let Some(link) = &mut self.link else { return };
        if let Some(epoch) = link.next_epoch(&mut appends).expect("a valid stream") {
            assert!(matches!(epoch.work, EpochWork::Parts));
            self.home.relay(epoch.pieces, epoch.end_offset, epoch.db);
            self.home.trim();
            self.applying =
                Some(Applying { appends, end_offset: epoch.end_offset, asks_ack: epoch.asks_ack });
        }
    }

    fn load(&mut self, now_ms: u64) {
        let (Some(link), Some(loading)) = (&mut self.link, &mut self.loading) else { return };
        let new = link.payload();
        if new.is_empty() {
            return;
        }
        let before = loading.len();
        loading.extend_from_slice(new);
        let all = new.len();
        self.loaded = dataset::read(loading);
        match &self.loaded {
            Some(read) => link.consume_payload(read.len - before, true, now_ms),
            None => link.consume_payload(all, false, now_ms),
        }
    }

    /// Time passes; then what the home and the link want done.
    pub fn tick(&mut self, now_ms: u64) {
        if self.home.next_tick_ms().is_some_and(|at_ms| at_ms <= now_ms) {
            self.home.tick(now_ms);
        }
        if let Some(link) = &mut self.link {
            link.tick(self.applied, now_ms);
        }
    }

    /// Does what home and link want done; what is for the world to do is handed out.
    pub fn errands(&mut self, now_ms: u64) -> Vec<Errand> {
        let mut errands = Vec::new();
        let is_up = self.link.as_ref().is_some_and(Link::is_up);
        self.home.set_link(is_up);
        for action in self.link.as_mut().map(Link::take_actions).unwrap_or_default() {
            match action {
                LinkAction::Connect => {
                    let host = &self.link.as_ref().expect("just asked").target().host;
                    errands.push(Errand::Connect { to: host.parse().expect("a node") });
                }
                LinkAction::Send(bytes) => errands.push(Errand::Send(bytes)),
                LinkAction::Close => errands.push(Errand::CloseLink),
                LinkAction::BeginLoading => self.loading = Some(Vec::new()),
                LinkAction::AbandonLoading => {
                    self.loading = None;
                    self.loaded = None;
                }
                LinkAction::Swap { id, offset } => {
                    self.loading = None;
                    self.swap = Some((id, offset));
                }
                LinkAction::Continue { id } => {
                    self.home.continue_as(id);
                    if self.applying.is_none() {
                        self.applied = self.home.end_offset();
                    }
                }
                LinkAction::FailoverRefused(why) => panic!("nobody asked for it: {why}"),
                LinkAction::Notice(_) | LinkAction::Warning(_) => {}
            }
        }
        for action in self.home.take_actions() {
            match action {
                Action::Cut { snapshot, .. } => {
                    // Between two epochs, and not within a swap.
                    self.settle(now_ms);
                    let ticket = self.take_ticket();
                    self.home.segment(ticket, Segment::default(), Some(Mark::Cut(snapshot)));
                    let writer = Writer::new(self.home.writer_options());
                    self.home.piece(snapshot, dataset::piece(&self.data, writer));
                }
                Action::Close { replica, .. } => errands.push(Errand::CloseReplica(replica)),
                Action::Turned(_) | Action::Abort { .. } | Action::Resume { .. } => {}
                action => panic!("{action:?}"),
            }
        }
        errands
    }
}
