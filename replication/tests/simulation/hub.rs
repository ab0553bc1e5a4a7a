//! What the home shard of a process has beside its slice: the stream's home, the replica role, and their connections and
//! files, without a network and a disk.

mod peers;

use crate::env::Env;
use crate::model::State;
use crate::stock::{FullSync, StockLink, dump};
use braid_core::command::Segment;
use braid_replication::acks::{Level, ReplicaId, WaiterId};
use braid_replication::failover::Step;
use braid_replication::follower::{
    Asker, Follower, FollowerAction, FollowerRules, Restored, RoleRequest, Site,
};
use braid_replication::home::{Action, FileStep, Home, Piece, Rules};
use braid_replication::ids::ReplId;
use braid_replication::link::Target;
use braid_replication::psync::Replica;
use braid_shards::{Everything, Mark, Shard, Share};
use bytes::Bytes;
use peers::Peer;
use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

/// How long a client waits for replicas.
const WAIT_MS: u64 = 500;

/// A piece of a shard's part of a snapshot on its way to the home.
pub struct WalkedPiece {
    pub snapshot: u64,
    pub piece: Piece,
}

/// Nobody wants the snapshot any more.
pub struct Abort {
    pub snapshot: u64,
}

/// What the dataset was at each cut from which on it is streamed, as the transaction over everything saw it.
pub type Cuts = Rc<RefCell<Vec<State>>>;

/// What arrives from the network.
pub enum Input {
    /// Of the connection to the master with this number.
    LinkUp(u64),
    LinkBytes(u64, Vec<u8>),
    LinkClosed(u64),
    /// Of a connection that a replica made.
    PeerBytes(usize, Vec<u8>),
    PeerClosed(usize),
}

/// What the network has to do.
pub enum Errand {
    /// Make a connection to a node, under this number.
    Connect {
        to: usize,
        number: u64,
    },
    Send(Vec<u8>),
    CloseLink,
    ToPeer(usize, Vec<u8>),
    ClosePeer(usize),
}

/// Snapshot files, and what their thread has to tell.
#[derive(Default)]
struct Disk {
    files: BTreeMap<u64, (bool, Vec<u8>)>,
    /// The node's snapshot file.
    saved: Option<Vec<u8>>,
    told: VecDeque<Told>,
}

enum Told {
    Written(u64, u64),
    Done(u64, u64),
    Read(ReplicaId, Bytes),
}

/// What happened to the log in one step of the home shard.
pub struct Capture {
    pub id: ReplId,
    /// The history that it branched from, and at which offset.
    pub former: Option<(ReplId, u64)>,
    pub is_replica: bool,
    /// The dataset is another: the log begins at `start`.
    pub has_reset: bool,
    /// Offset before the new bytes.
    pub start: u64,
    pub bytes: Vec<u8>,
    /// The dataset at a cut that was made since.
    pub cut: Option<State>,
    /// Before it the dataset was the log's up to this moment only.
    pub doubtful_since: Option<u64>,
    /// The log is kept no longer.
    pub has_stopped: bool,
    pub moment: u64,
}

/// Where the log stood when it was last captured.
struct Seen {
    id: ReplId,
    end: u64,
}

/// See the module.
pub struct Hub {
    pub home: Home,
    pub follower: Follower,
    pub links: Vec<StockLink>,
    pub cuts: Cuts,
    /// From this moment on whatever is sent has its effects in the stream.
    pub activated: Option<u64>,
    /// Keys that each shard holds, as of its last tick.
    pub keys: Rc<[Cell<usize>]>,
    /// Arrived, and not looked at yet.
    pub inbox: VecDeque<Input>,
    pub outbox: Vec<Errand>,
    /// Writes wait: a failover is under way.
    pub is_paused: bool,
    pub captures: Vec<Capture>,
    /// From this moment on the dataset is about to become another.
    doubtful_since: Option<u64>,
    /// From this moment on it may not be streamed any more.
    stopping_since: Option<u64>,
    /// Offsets acknowledged to the master.
    pub acked: Option<u64>,
    link_number: Option<u64>,
    links_made: u64,
    waits: u64,
    peers: BTreeMap<usize, Peer>,
    /// Replicas to which something is being sent.
    sending: BTreeSet<ReplicaId>,
    disk: Disk,
    /// The snapshot file being read at the start.
    restoring: VecDeque<u8>,
    seen: Option<Seen>,
    cuts_seen: usize,
}

impl Hub {
    pub fn new(
        shard: &Shard,
        rules: Rules,
        follower_rules: FollowerRules,
        keys: Rc<[Cell<usize>]>,
        seed: u64,
    ) -> Self {
        Self {
            home: Home::new(shard.map.shards(), rules, seed),
            follower: Follower::new(shard.map, follower_rules),
            links: Vec::new(),
            cuts: Cuts::default(),
            activated: None,
            keys,
            inbox: VecDeque::new(),
            outbox: Vec::new(),
            is_paused: false,
            captures: Vec::new(),
            doubtful_since: None,
            stopping_since: None,
            acked: None,
            link_number: None,
            links_made: 0,
            waits: 0,
            peers: BTreeMap::new(),
            sending: BTreeSet::new(),
            disk: Disk::default(),
            restoring: VecDeque::new(),
            seen: None,
            cuts_seen: 0,
        }
    }

    /// Lets the follower work.
    pub fn with_follower<T>(
        &mut self,
        shard: &mut Shard,
        now_ms: u64,
        work: impl FnOnce(&mut Follower, &mut Site<'_>) -> T,
    ) -> T {
        let has_keys = || self.keys.iter().any(|keys| keys.get() > 0);
        work(&mut self.follower, &mut Site { shard, home: &mut self.home, has_keys: &has_keys, now_ms })
    }

    /// The node starts with the snapshot file that the one before it left.
    pub fn start_from(&mut self, shard: &mut Shard, file: Vec<u8>) {
        self.restoring = file.clone().into();
        self.disk.saved = Some(file);
        self.follower.begin_restore(shard);
    }

    /// The node's snapshot file.
    pub fn saved(&self) -> Option<&Vec<u8>> {
        self.disk.saved.as_ref()
    }

    /// Up to when the dataset was that of the log.
    pub fn true_until(&self) -> u64 {
        self.doubtful_since.into_iter().chain(self.stopping_since).min().unwrap_or(u64::MAX)
    }

    /// A stock replica comes.
    pub fn attach_stock(&mut self, now_ms: u64) {
        let mut handshake = Replica::default();
        handshake.replconf(&[b"capa", b"eof", b"capa", b"psync2"]);
        let id = self.home.attach(handshake, "127.0.0.1", Some(&[b"?", b"-1"]), now_ms).expect("attaches");
        self.links.push(StockLink {
            id,
            received: Vec::new(),
            is_sending: false,
            has_acked: false,
            is_closed: false,
        });
    }

    pub fn detach_stock(&mut self, index: usize) {
        self.links[index].is_closed = true;
        self.home.detach(self.links[index].id);
    }

    pub fn message(&mut self, message: Box<dyn Any + Send>) {
        let walked = message.downcast::<WalkedPiece>().expect("no other message goes home");
        self.home.piece(walked.snapshot, walked.piece);
    }

    pub fn segment(&mut self, ticket: u64, segment: Segment, mark: Option<Mark>) {
        self.home.segment(ticket, segment, mark);
    }

    pub fn share(&mut self, ticket: u64, share: Share) {
        self.home.share(ticket, share);
    }

    /// Takes what has arrived.
    pub fn take_inputs(&mut self, env: &mut Env) {
        let now_ms = env.now_ms();
        for _ in 0..env.rng.usize(..8) {
            let Some(input) = self.inbox.pop_front() else { break };
            match input {
                Input::LinkUp(number) if self.link_number == Some(number) => {
                    self.follower.connected(&self.home, now_ms);
                }
                Input::LinkBytes(number, bytes) if self.link_number == Some(number) => {
                    if self.follower.is_full() {
                        self.inbox.push_front(Input::LinkBytes(number, bytes));
                        break;
                    }
                    self.follower.received(&bytes, now_ms);
                }
                Input::LinkClosed(number) if self.link_number == Some(number) => {
                    self.link_number = None;
                    self.follower.closed("cut", now_ms);
                }
                // Of a connection that was given up.
                Input::LinkUp(_) | Input::LinkBytes(..) | Input::LinkClosed(_) => {}
                Input::PeerBytes(conn, bytes) => self.peer_sent(conn, bytes, now_ms),
                Input::PeerClosed(conn) => self.peer_closed(conn),
            }
        }
        for _ in 0..env.rng.usize(..4) {
            match self.disk.told.pop_front() {
                None => break,
                Some(Told::Written(snapshot, len_bytes)) => self.home.file_written(snapshot, len_bytes),
                Some(Told::Done(snapshot, len_bytes)) => {
                    self.home.file_done(snapshot, Ok(len_bytes), now_ms);
                    if self.disk.files.get(&snapshot).is_some_and(|(keeps, _)| *keeps) {
                        self.disk.saved = self.disk.files.remove(&snapshot).map(|(_, bytes)| bytes);
                    }
                }
                Some(Told::Read(replica, bytes)) => self.home.file_read(replica, Ok(bytes)),
            }
        }
    }

    /// A client waits for replicas: they are asked for their offsets.
    pub fn wait(&mut self, env: &Env) {
        let (now_ms, end) = (env.now_ms(), self.home.end_offset());
        self.waits += 1;
        self.home.wait(WaiterId(self.waits), end, 1, Some(now_ms + WAIT_MS), Level::Applied);
    }

    /// Goes on with the snapshot file at the start.
    pub fn restore(&mut self, shard: &mut Shard, env: &mut Env) {
        if !self.follower.is_restoring() {
            return;
        }
        if self.follower.loads.wants_more() && !self.restoring.is_empty() {
            let len = env.rng.usize(..=self.restoring.len().min(400));
            let bytes: Vec<u8> = self.restoring.drain(..len).collect();
            self.follower.loads.feed(shard, &bytes).expect("law 9: what was saved can be loaded");
        }
        let restored = self.with_follower(shard, env.now_ms(), Follower::restore);
        if let Restored::Done { .. } = restored.expect("law 9: what was saved can be loaded") {
            self.observe(env, true);
        }
    }

    /// Does what the home asks for. Returns snapshots to be given up by every shard.
    pub fn act(&mut self, env: &mut Env) -> Vec<u64> {
        let now_ms = env.now_ms();
        if self.home.next_tick_ms().is_some_and(|at_ms| at_ms <= now_ms) {
            self.home.tick(now_ms);
        }
        self.home.poll_failover(now_ms);
        self.home.take_resolved();
        let mut aborted = Vec::new();
        for action in self.home.take_actions() {
            match action {
                Action::Cut { snapshot, with_data } => {
                    let cuts = Rc::clone(&self.cuts);
                    let hook = move |everything: &mut Everything<'_>| {
                        let slices = everything.slices.iter().map(|slice| &**slice);
                        if everything.slices.iter().all(|slice| slice.stream) {
                            cuts.borrow_mut().push(dump(slices, |_, _| {}));
                        }
                    };
                    self.follower.want_cut(snapshot, with_data, Some(Box::new(hook)));
                }
                Action::Abort { snapshot } => aborted.push(snapshot),
                Action::Unblock { .. } => {}
                Action::File { snapshot, step } => self.file_step(snapshot, step),
                Action::Close { replica, why } => self.close_peer(env, replica, &why),
                Action::Turned(turn) => self.follower.turned(turn),
                Action::StopStream => {
                    self.stopping_since.get_or_insert(env.clock);
                    self.follower.want_stop();
                }
                Action::Failover(step) => self.failover_step(step),
                Action::EndParts { .. } => panic!("every replica takes its snapshot in one piece"),
                Action::Leave(_) => panic!("nobody ends"),
            }
        }
        aborted
    }

    fn file_step(&mut self, snapshot: u64, step: FileStep) {
        let Disk { files, told, .. } = &mut self.disk;
        match step {
            FileStep::Create { keeps } => drop(files.insert(snapshot, (keeps, Vec::new()))),
            FileStep::Drop => drop(files.remove(&snapshot)),
            FileStep::Write(bytes) => {
                let (_, file) = files.get_mut(&snapshot).expect("it was made");
                file.extend_from_slice(&bytes);
                told.push_back(Told::Written(snapshot, bytes.len() as u64));
            }
            FileStep::Finish => {
                let (_, file) = files.get(&snapshot).expect("it was made");
                told.push_back(Told::Done(snapshot, file.len() as u64));
            }
            FileStep::Read { replica, offset, len_bytes } => {
                let (_, file) = files.get(&snapshot).expect("it was made");
                let bytes = file[offset as usize..][..len_bytes as usize].to_vec();
                told.push_back(Told::Read(replica, bytes.into()));
            }
        }
    }

    fn failover_step(&mut self, step: Step) {
        match step {
            Step::PauseWrites => self.is_paused = true,
            Step::ResumeWrites => self.is_paused = false,
            Step::Follow { host, port, offset } => {
                let answer = Some(Asker::Failover { offset });
                self.follower.request(RoleRequest { master: Some(Target { host, port }), answer });
            }
            Step::StayMaster => self.follower.request(RoleRequest { master: None, answer: None }),
            Step::Log(_) => {}
            Step::AskForAcks => unreachable!("done at home"),
        }
    }

    /// One round's work of the replica role, up to where the shard has to settle.
    pub fn go_on(&mut self, shard: &mut Shard, env: &mut Env) {
        let was_swapping = self.follower.is_swapping();
        self.with_follower(shard, env.now_ms(), Follower::go_on);
        let has_reset = was_swapping && !self.follower.is_swapping();
        let is_doubtful = self.follower.is_swapping() || self.home.is_doubtful();
        if is_doubtful && !has_reset {
            self.doubtful_since.get_or_insert(env.clock);
        }
        assert_eq!(self.follower.failed_commands(), 0, "law 4: a command of the stream failed");
        self.observe(env, has_reset);
        if !is_doubtful {
            self.doubtful_since = None;
        }
        self.do_actions(env);
    }

    /// What [`Hub::go_on`] began may be over.
    pub fn finish(&mut self, shard: &mut Shard, env: &mut Env) {
        self.with_follower(shard, env.now_ms(), Follower::finish);
        self.do_actions(env);
        self.observe(env, false);
    }

    fn do_actions(&mut self, env: &mut Env) {
        for action in self.follower.take_actions() {
            match action {
                FollowerAction::Connect(target) => {
                    self.links_made += 1;
                    self.link_number = Some(self.links_made);
                    let to = target.host.parse().expect("a node");
                    self.outbox.push(Errand::Connect { to, number: self.links_made });
                }
                FollowerAction::Send(bytes) if self.link_number.is_some() => {
                    self.note_acks(&bytes);
                    self.outbox.push(Errand::Send(bytes));
                }
                FollowerAction::Close => {
                    self.link_number = None;
                    self.outbox.push(Errand::CloseLink);
                }
                FollowerAction::Answer(RoleRequest { answer: Some(Asker::Heir(conn, words)), .. }) => {
                    self.serve_heir(conn.0 as usize, &words, env.now_ms());
                }
                FollowerAction::Notice(text) | FollowerAction::Warning(text) if env.is_loud => {
                    eprintln!("{text}");
                }
                FollowerAction::Spool { .. } => panic!("no snapshot goes into a file"),
                _ => {}
            }
        }
    }

    fn note_acks(&mut self, bytes: &[u8]) {
        if !bytes.starts_with(b"*") {
            return;
        }
        for (words, _) in crate::stream::commands(bytes, 0) {
            if words.len() > 2 && words[1] == b"ACK" {
                let offset = std::str::from_utf8(&words[2]).expect("text").parse().expect("an offset");
                self.acked = Some(offset);
            }
        }
    }

    /// Notes what became of the log since this was last called. Nothing of it may have been let go of in between.
    pub fn observe(&mut self, env: &Env, has_reset: bool) {
        let Some(position) = self.home.position() else {
            if let Some(Seen { id, end }) = self.seen.take() {
                self.captures.push(Capture {
                    id,
                    former: None,
                    is_replica: self.home.is_replica(),
                    has_reset: false,
                    start: end,
                    bytes: Vec::new(),
                    cut: None,
                    doubtful_since: self.stopping_since.take(),
                    has_stopped: true,
                    moment: env.clock,
                });
            }
            self.cuts_seen = self.cuts.borrow().len();
            return;
        };
        let log_start = self.home.log().first_byte() - 1;
        // It may have been given up, and begun anew, within one step.
        let has_reset = has_reset || self.seen.as_ref().is_none_or(|seen| seen.end < log_start);
        let start = match &self.seen {
            Some(seen) if !has_reset => seen.end,
            _ => log_start,
        };
        let cut = {
            let cuts = self.cuts.borrow();
            let is_new = cuts.len() > std::mem::replace(&mut self.cuts_seen, cuts.len());
            cuts.last().filter(|_| is_new).cloned()
        };
        let has_turned = self.seen.as_ref().is_none_or(|seen| seen.id != position.id);
        if !has_reset && !has_turned && cut.is_none() && position.offset == start {
            return;
        }
        let former = if has_turned {
            let report = self.home.report(env.now_ms());
            let fork = u64::try_from(report.fork_byte - 1).ok();
            ReplId::parse(report.former_id.as_bytes()).zip(fork)
        } else {
            None
        };
        let mut slices = Vec::new();
        self.home.log().slices(start, u64::MAX, usize::MAX, &mut slices);
        self.seen = Some(Seen { id: position.id, end: position.offset });
        self.captures.push(Capture {
            id: position.id,
            former,
            is_replica: self.home.is_replica(),
            has_reset,
            start,
            bytes: slices.concat(),
            cut,
            doubtful_since: self.doubtful_since,
            has_stopped: false,
            moment: env.clock,
        });
    }

    /// Whether all of the log was captured.
    pub fn is_captured(&self) -> bool {
        self.seen.as_ref().is_none_or(|seen| seen.end == self.home.end_offset())
    }

    /// Sends the replicas what there is for them, or completes a send.
    pub fn feed(&mut self, env: &mut Env) {
        let now_ms = env.now_ms();
        self.observe(env, false);
        self.home.trim();
        for link in self.links.iter_mut().filter(|link| !link.is_closed) {
            if env.rng.bool() {
                continue;
            }
            if std::mem::take(&mut link.is_sending) {
                self.home.sent(link.id, now_ms);
                continue;
            }
            let mut pieces = Vec::new();
            if self.home.next_send(link.id, &mut pieces) {
                link.received.extend(pieces.iter().flatten());
                link.is_sending = true;
            } else if !link.has_acked
                && let Some(sync) = FullSync::parse(&link.received)
            {
                link.has_acked = true;
                self.home.replconf(link.id, &[b"ACK", sync.offset.to_string().as_bytes()], now_ms);
            }
        }
        if self.activated.is_none() && self.links.first().is_some_and(|link| link.received.contains(&b'+')) {
            self.activated = Some(env.clock);
        }
        self.feed_peers(env);
    }

    /// Whether every stock replica has had everything.
    pub fn is_quiet(&mut self) -> bool {
        let end = self.home.end_offset();
        self.links.iter().filter(|link| !link.is_closed).all(|link| {
            !link.is_sending
                && FullSync::parse(&link.received)
                    .is_some_and(|sync| sync.offset + sync.stream.len() as u64 == end && link.has_acked)
        })
    }
}
