//! The whole of replication as a master does it, as one state machine: merge, log, replicas, snapshots, acknowledgements.
//!
//! It lives on one shard, the home shard. Inputs are what shards and replicas send, and the time; what has to be done
//! comes out of [`Home::take_actions`], and what a replica is to be sent out of [`Home::next_send`].

mod files;
mod handover;
pub mod relay;
mod upkeep;
mod waits;

use crate::acks::{Acks, ReplicaId, Resolved};
use crate::failover::{Failover, Step};
use crate::framing::{EofMark, KEEPALIVE};
use crate::ids::Ids;
use crate::log::{Log, ReaderId, ReaderLimits};
use crate::merge::{Marked, Merge};
use crate::psync::{self, Replconf, Replica, State, Sync};
use crate::sharing::{Placement, Policy, Request, Sharing};
use braid_core::command::Segment;
use braid_core::rdb::{Checksum, Writer, WriterOptions};
use braid_shards::Mark;
use bytes::Bytes;
use relay::{Relay, Turn};
use std::collections::{BTreeMap, VecDeque};
use upkeep::{Protection, Retention};

pub use files::FileStep;
use files::{FileOut, FileSend};

/// The newest RDB version that every supported peer reads (Redis 7.0 reads up to 10).
pub const RDB_VERSION: u32 = 10;
/// Bytes of a snapshot that wait for the slowest replica before the shards are asked to pause.
const SNAPSHOT_WINDOW_BYTES: u64 = 16 << 20;
/// Bytes and pieces of the stream that one send carries.
const SEND_MAX_BYTES: u64 = 1 << 20;
const SEND_MAX_PIECES: usize = 512;
/// So much of the stream is worth a send of its own.
const PRESSING_BYTES: u64 = 64 << 10;
/// How long a refused cut waits before it is tried again.
const CUT_RETRY_MS: u64 = 2;
/// Between two looks at the time while there are replicas.
const TICK_MS: u64 = 1000;
/// The mark of the ticket from which on the shards collect no effects.
pub const STOP_MARK: u64 = u64::MAX;
/// How far one shard's ticket may be ahead of the slowest's. A shard takes one ticket a tick, so this many ticks.
const EARLY_TICKETS_MAX: usize = 1 << 24;

/// What the configuration says about replication.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    pub backlog_bytes: u64,
    /// What may be on disk of the stream, for who is behind the backlog; 0: nothing.
    pub backlog_disk_bytes: u64,
    /// How long the stream is kept after the last replica left; 0: for ever.
    pub backlog_ttl_ms: u64,
    /// `protected-restart`: a master that started empty does not replace datasets of other histories.
    pub protects: bool,
    pub ping_period_ms: u64,
    pub timeout_ms: u64,
    pub sharing: Policy,
    pub limits: ReaderLimits,
    pub compress: bool,
    pub checksum: bool,
}

/// What the layer around has to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// Make a cut over all shards whose ticket carries `Mark::Cut(snapshot)`; from it on the shards collect effects, and
    /// each walks its slice and hands in its pieces. `with_data`: otherwise the snapshot stays empty.
    Cut { snapshot: u64, with_data: bool },
    /// Nobody wants this snapshot any more.
    Abort { snapshot: u64 },
    /// The shard may go on handing in pieces.
    Resume { snapshot: u64 },
    /// Do something with a snapshot's file.
    File { snapshot: u64, step: FileStep },
    /// Close a replica's connection, and why.
    Close { replica: ReplicaId, why: String },
    /// A step of a failover.
    Failover(Step),
    /// The change of role is complete: what follows is done in the new one.
    Turned(Turn),
    /// Nobody has followed the stream for long: the shards are to collect no effects any more, by a transaction over
    /// everything whose ticket carries `Mark::Offset` of [`STOP_MARK`].
    StopStream,
}

/// A replica's line of `INFO replication` and `ROLE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicaLine {
    pub info: String,
    pub role: Option<[String; 3]>,
}

/// Numbers of `INFO replication`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    pub id: String,
    pub former_id: String,
    pub end_offset: u64,
    pub fork_byte: i64,
    pub is_backlog_active: bool,
    pub backlog_bytes: u64,
    pub first_byte: u64,
    pub histlen_bytes: u64,
    /// Of the stream, what is on disk, and what is in memory; some may be in both.
    pub disk_bytes: u64,
    pub memory_bytes: u64,
    pub replicas: Vec<ReplicaLine>,
    /// What the replicas that are online have acknowledged.
    pub acked_offsets: Vec<u64>,
    /// `master_failover_state`.
    pub failover_state: &'static str,
    /// Replicas of other histories are refused, see [`Home::confirm_dataset`].
    pub is_protected: bool,
    pub full_syncs: u64,
    pub partial_syncs: u64,
    pub refused_partial_syncs: u64,
}

struct Peer {
    handshake: Replica,
    ip: String,
    reader: Option<ReaderId>,
    /// To be sent before the stream: replies, keep-alives, the snapshot.
    queue: VecDeque<Bytes>,
    queue_bytes: u64,
    /// The snapshot is complete in `queue`: when that is sent the replica is online.
    bulk_ends: bool,
    /// The snapshot is sent with a mark at its end.
    has_mark: bool,
    /// Bytes of the stream in the send under way.
    stream_in_flight: u64,
    is_sending: bool,
    /// Since when, as ticks tell, the send under way has not been completed.
    stuck_since_ms: Option<u64>,
    /// When it last sent anything.
    last_heard_ms: u64,
    /// The file that its snapshot is read from.
    file: Option<FileSend>,
    /// Its connection is to be closed, and gets nothing more.
    is_closing: bool,
}

impl Peer {
    fn push(&mut self, bytes: Bytes) {
        if !bytes.is_empty() {
            self.queue_bytes += bytes.len() as u64;
            self.queue.push_back(bytes);
        }
    }

    /// By which it is known when it comes back.
    fn name(&self) -> String {
        let (host, port) = self.handshake.address(&self.ip);
        format!("{host}:{port}")
    }
}

/// A piece of a shard's slice.
pub struct Piece {
    /// What it consists of, one after the other.
    pub chunks: Vec<Bytes>,
    pub checksum: Checksum,
    /// The slice is complete.
    pub is_last: bool,
}

struct Snapshot {
    id: u64,
    members: Vec<ReplicaId>,
    with_data: bool,
    writer: Writer,
    mark: Option<EofMark>,
    /// Where it goes if not straight to the members.
    file: Option<FileOut>,
    shards_left: usize,
    /// Pieces that came before the cut's ticket could be merged.
    early: Vec<Piece>,
    is_cut: bool,
    is_paused: bool,
}

/// See the module.
pub struct Home {
    shards: usize,
    ids: Ids,
    log: Log,
    merge: Merge,
    acks: Acks,
    sharing: Sharing,
    peers: BTreeMap<ReplicaId, Peer>,
    snapshot: Option<Snapshot>,
    next_snapshot: u64,
    next_replica: u64,
    rules: Rules,
    actions: Vec<Action>,
    marked: Vec<Marked>,
    last_tick_ms: u64,
    last_ping_ms: u64,
    /// When a cut that could not be made is asked for again.
    retry_cut_ms: Option<u64>,
    /// A snapshot to be kept is asked for.
    wants_save: bool,
    /// Snapshots whose pieces are all in their file, which is being finished; with those that wait for it.
    finishing: Vec<(u64, Vec<ReplicaId>)>,
    /// Files being sent, by snapshot: to how many replicas.
    file_readers: BTreeMap<u64, usize>,
    rng: fastrand::Rng,
    /// Clients whose wait is over.
    resolved: Vec<Resolved>,
    /// Where the stream ended when replicas were last asked for their offsets.
    asked_at: Option<u64>,
    failover: Failover,
    retention: Retention,
    protection: Protection,
    full_syncs: u64,
    partial_syncs: u64,
    refused_partial_syncs: u64,
    /// This node follows a master.
    relay: Option<Relay>,
    turn: Option<Turn>,
}

impl Home {
    pub fn new(shards: usize, rules: Rules, seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut log = Log::new(0, rules.backlog_bytes);
        log.set_disk_bytes(rules.backlog_disk_bytes);
        Self {
            shards,
            ids: Ids::new(&mut rng),
            log,
            merge: Merge::new(0, EARLY_TICKETS_MAX),
            acks: Acks::default(),
            sharing: Sharing::default(),
            peers: BTreeMap::new(),
            snapshot: None,
            next_snapshot: 0,
            next_replica: 0,
            rules,
            actions: Vec::new(),
            marked: Vec::new(),
            last_tick_ms: 0,
            last_ping_ms: 0,
            retry_cut_ms: None,
            wants_save: false,
            finishing: Vec::new(),
            file_readers: BTreeMap::new(),
            rng,
            resolved: Vec::new(),
            asked_at: None,
            failover: Failover::default(),
            retention: Retention::default(),
            protection: Protection::default(),
            full_syncs: 0,
            partial_syncs: 0,
            refused_partial_syncs: 0,
            relay: None,
            turn: None,
        }
    }

    /// Applies a changed configuration.
    pub fn set_rules(&mut self, rules: Rules) {
        if rules.backlog_bytes != self.rules.backlog_bytes {
            self.log.set_backlog_bytes(rules.backlog_bytes);
        }
        if rules.backlog_disk_bytes != self.rules.backlog_disk_bytes {
            self.log.set_disk_bytes(rules.backlog_disk_bytes);
        }
        self.rules = rules;
    }

    /// What has to be done since this was last asked.
    pub fn take_actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    /// Whether the stream is kept, for replicas that are there or may come back.
    pub fn is_followed(&self) -> bool {
        self.log.is_active()
    }

    pub fn end_offset(&self) -> u64 {
        self.log.end_offset()
    }

    pub fn log(&mut self) -> &mut Log {
        &mut self.log
    }

    /// A tick's effects arrive under their ticket.
    pub fn segment(&mut self, ticket: u64, segment: Segment, mark: Option<Mark>) {
        self.merge.submit(ticket, segment, mark, &mut self.log, &mut self.marked);
        if self.marked.is_empty() {
            return;
        }
        for marked in std::mem::take(&mut self.marked) {
            match marked.mark {
                Mark::Cut(snapshot) => self.cut(snapshot, marked.offset),
                Mark::Role => self.turned(marked.offset),
                Mark::Offset(STOP_MARK) => self.stream_stopped(),
                Mark::Offset(_) => {}
            }
        }
    }

    /// Lets go of what nobody needs; call it after a batch of segments.
    pub fn trim(&mut self) {
        self.log.trim();
    }

    /// A connection asks to become a replica, with the words of its `PSYNC` (without the name; None: `SYNC`). On
    /// success it is one from now on; otherwise the error to answer with.
    pub fn attach(
        &mut self,
        mut handshake: Replica,
        ip: &str,
        psync: Option<&[&[u8]]>,
        now_ms: u64,
    ) -> Result<ReplicaId, String> {
        self.admit(psync)?;
        let master = psync::Master {
            ids: &self.ids,
            log: &self.log,
            upstream: self.upstream(),
            is_failing_over: self.failover.is_under_way(),
            is_protected: self.refuses_history_of(psync),
            has_pending_output: false,
        };
        let outcome = match psync {
            Some(args) => handshake.psync(args, &master),
            None => handshake.sync(&master),
        };
        let mut peer = Peer {
            handshake,
            ip: ip.to_owned(),
            reader: None,
            queue: VecDeque::new(),
            queue_bytes: 0,
            bulk_ends: false,
            has_mark: false,
            stream_in_flight: 0,
            is_sending: false,
            stuck_since_ms: None,
            last_heard_ms: now_ms,
            file: None,
            is_closing: false,
        };
        let id = ReplicaId(self.next_replica);
        match outcome {
            Sync::Refuse(error) => return Err(error),
            Sync::Nothing => return Err("ERR already a replica".into()),
            Sync::Promote => return Err("ERR FAILOVER is not supported".into()),
            Sync::Continue { reply, position } => {
                self.partial_syncs += 1;
                peer.reader = Some(self.log.add_reader(position));
                peer.push(reply);
                self.acks.add_replica(id, now_ms);
            }
            Sync::Full { is_fallback } => {
                self.full_syncs += 1;
                self.refused_partial_syncs += u64::from(is_fallback);
                let request = Request {
                    replica: id,
                    needs: peer.handshake.needs(),
                    can_eof: peer.handshake.capabilities().eof,
                };
                let placement = self.sharing.request(request, now_ms);
                if let Placement::Joins { offset } = placement {
                    // Those it joins keep the log from this offset on: none of them was sent anything yet.
                    let reply = peer.handshake.cut(self.ids.current(), offset);
                    peer.push(reply);
                    peer.reader = Some(self.log.add_reader(offset));
                    self.join_snapshot(id);
                }
            }
        }
        if self.peers.is_empty() {
            // Nobody had to be pinged before.
            self.last_tick_ms = now_ms;
            self.last_ping_ms = now_ms;
        }
        self.next_replica += 1;
        self.log.is_back(&peer.name());
        self.peers.insert(id, peer);
        self.poll_sharing(now_ms);
        Ok(id)
    }

    /// A replica's connection is gone.
    pub fn detach(&mut self, id: ReplicaId) {
        let Some(mut peer) = self.peers.remove(&id) else { return };
        self.drop_reader(peer.file.take());
        if let Some(reader) = peer.reader {
            if peer.handshake.is_streaming() {
                self.log.expect_back(reader, peer.name());
            }
            self.log.remove_reader(reader);
        }
        self.acks.remove_replica(id);
        self.sharing.cancel(id);
        if let Some(snapshot) = &mut self.snapshot {
            snapshot.members.retain(|member| *member != id);
        }
        if let Some((_, members)) = self.finishing.last_mut() {
            members.retain(|member| *member != id);
            if members.is_empty() {
                // Nobody is left for whom the log is kept from that cut on.
                self.sharing.close();
            }
        }
        self.drop_unwanted_snapshot();
        // It may have been the one that the others' snapshot waited for.
        self.regulate();
    }

    /// Gives up a snapshot that nobody is left to receive. One that is not cut yet is given up at its cut.
    fn drop_unwanted_snapshot(&mut self) {
        if let Some(snapshot) = &self.snapshot
            && !snapshot.is_wanted()
            && snapshot.is_cut
        {
            self.abort_snapshot();
        }
    }

    /// A replica sent something, be it the empty line by which one that loads its snapshot says that it is alive.
    pub fn heard(&mut self, id: ReplicaId, now_ms: u64) {
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.last_heard_ms = now_ms;
        }
    }

    /// `REPLCONF` of an attached replica.
    pub fn replconf(&mut self, id: ReplicaId, args: &[&[u8]], now_ms: u64) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        if let Replconf::Ack { offset, durable_offset } = peer.handshake.replconf(args) {
            peer.last_heard_ms = now_ms;
            if peer.handshake.is_streaming() && self.acks.acked(id).is_none() {
                self.acks.add_replica(id, now_ms);
            }
            if let Some(reader) = peer.reader.filter(|_| peer.handshake.is_streaming()) {
                self.log.acked(reader, offset);
            }
            self.acks.ack(id, offset, durable_offset, now_ms, &mut self.resolved);
        }
    }

    fn poll_sharing(&mut self, now_ms: u64) {
        self.poll_save();
        let Some(start) = self.sharing.poll(self.rules.sharing, now_ms) else { return };
        if !self.log.is_active() {
            // A history that nobody has followed so far: it gets a name of its own.
            self.ids.renew(&mut self.rng);
            self.protection.add(self.ids.current());
            self.log.activate();
            self.begin_history();
            self.merge.forget_db();
        }
        let id = self.next_snapshot;
        self.next_snapshot += 1;
        let with_data = !start.needs.without_data;
        self.snapshot = Some(Snapshot {
            id,
            members: start.replicas,
            with_data,
            writer: Writer::new(self.writer_options()),
            mark: start.is_diskless.then(|| EofMark::random(&mut self.rng)),
            file: (!start.is_diskless).then_some(FileOut { keeps: false, unwritten_bytes: 0 }),
            shards_left: self.shards,
            early: Vec::new(),
            is_cut: false,
            is_paused: false,
        });
        if !start.is_diskless {
            self.actions.push(Action::File { snapshot: id, step: FileStep::Create { keeps: false } });
        }
        self.actions.push(Action::Cut { snapshot: id, with_data });
    }

    /// Nobody wants the snapshot in the making any more.
    fn abort_snapshot(&mut self) {
        if self.snapshot.as_ref().is_some_and(|snapshot| snapshot.file.is_some()) {
            return self.abort_file();
        }
        let snapshot = self.snapshot.take().expect("in the making");
        self.actions.push(Action::Abort { snapshot: snapshot.id });
        self.sharing.finish();
    }

    /// Adds a replica to the snapshot in the making, or to one whose file is being finished.
    fn join_snapshot(&mut self, id: ReplicaId) {
        match &mut self.snapshot {
            Some(snapshot) => snapshot.members.push(id),
            None => self.finishing.last_mut().expect("what can be joined is not finished").1.push(id),
        }
    }

    /// How the shards' pieces and the frame around them are written.
    pub fn writer_options(&self) -> WriterOptions {
        WriterOptions { version: RDB_VERSION, compress: self.rules.compress, checksum: self.rules.checksum }
    }

    /// The cut of a snapshot is merged: its offset is known.
    fn cut(&mut self, id: u64, offset: u64) {
        let Some(mut snapshot) = self.snapshot.take_if(|snapshot| snapshot.id == id) else {
            // It was given up while the cut was under way, and the shards have just begun it.
            return self.actions.push(Action::Abort { snapshot: id });
        };
        self.sharing.cut(offset);
        snapshot.is_cut = true;
        let current = self.ids.current();
        snapshot.writer.header();
        snapshot.writer.aux(b"redis-ver", b"7.0.0");
        snapshot.writer.aux(b"redis-bits", b"64");
        if let Some(db) = self.history_db() {
            snapshot.writer.aux(b"repl-stream-db", db.to_string().as_bytes());
            snapshot.writer.aux(b"repl-id", current.as_str().as_bytes());
            snapshot.writer.aux(b"repl-offset", offset.to_string().as_bytes());
        }
        for member in &snapshot.members {
            let peer = self.peers.get_mut(member).expect("members are attached");
            let reply = peer.handshake.cut(current, offset);
            peer.push(reply);
            peer.reader = Some(self.log.add_reader(offset));
            peer.has_mark = snapshot.mark.is_some();
            if let Some(mark) = &snapshot.mark {
                peer.push(mark.header());
                peer.handshake.begin_bulk();
            }
        }
        let header = snapshot.writer.take();
        self.snapshot = Some(snapshot);
        self.spread(Bytes::from(header));
        let snapshot = self.snapshot.as_mut().expect("just put back");
        if !snapshot.is_wanted() {
            self.abort_snapshot();
        } else if !snapshot.with_data {
            self.finish_snapshot();
        } else {
            for piece in std::mem::take(&mut snapshot.early) {
                self.piece(id, piece);
            }
        }
    }

    /// Gives bytes of the snapshot to all its members.
    fn spread(&mut self, bytes: Bytes) {
        let snapshot = self.snapshot.as_mut().expect("in the making");
        if snapshot.file.is_some() {
            return self.write_file(bytes);
        }
        for member in &snapshot.members {
            self.peers.get_mut(member).expect("members are attached").push(bytes.clone());
        }
    }

    /// A piece of a shard's slice arrives.
    pub fn piece(&mut self, id: u64, piece: Piece) {
        // Pieces of an aborted snapshot may still be on their way.
        let Some(snapshot) = self.snapshot.as_mut().filter(|snapshot| snapshot.id == id) else { return };
        if !snapshot.is_cut {
            return snapshot.early.push(piece);
        }
        snapshot.shards_left -= usize::from(piece.is_last);
        let is_complete = snapshot.shards_left == 0;
        snapshot.writer.append_piece(&piece.checksum);
        piece.chunks.into_iter().for_each(|chunk| self.spread(chunk));
        if is_complete {
            self.finish_snapshot();
        } else {
            self.regulate();
        }
    }

    /// Whether the shards should hand in no more pieces for now.
    pub fn is_snapshot_paused(&self) -> bool {
        self.snapshot.as_ref().is_some_and(|snapshot| snapshot.is_paused)
    }

    /// Pauses the shards' walk while the slowest member has much to read, and resumes it.
    fn regulate(&mut self) {
        let Some(snapshot) = &mut self.snapshot else { return };
        let unwritten = snapshot.file.as_ref().map_or(0, |file| file.unwritten_bytes);
        let queued =
            snapshot.members.iter().map(|member| self.peers[member].queue_bytes).fold(unwritten, u64::max);
        let pause = queued > SNAPSHOT_WINDOW_BYTES;
        if snapshot.is_paused && !pause {
            self.actions.push(Action::Resume { snapshot: snapshot.id });
        }
        snapshot.is_paused = pause;
    }

    fn finish_snapshot(&mut self) {
        let snapshot = self.snapshot.as_mut().expect("in the making");
        snapshot.writer.eof();
        let end = Bytes::from(snapshot.writer.take());
        if snapshot.file.is_some() {
            self.write_file(end);
            let snapshot = self.snapshot.take().expect("in the making");
            return self.finish_file(snapshot);
        }
        let snapshot = self.snapshot.take().expect("in the making");
        let mark = snapshot.mark.as_ref().expect("what goes into no file ends with a mark");
        for member in &snapshot.members {
            let peer = self.peers.get_mut(member).expect("members are attached");
            peer.push(end.clone());
            peer.push(mark.trailer());
            peer.bulk_ends = true;
        }
        self.sharing.finish();
    }

    /// Replicas that may have something to send and no send under way.
    pub fn idle_replicas(&self) -> impl Iterator<Item = ReplicaId> + '_ {
        self.peers.iter().filter(|(_, peer)| !peer.is_sending).map(|(id, _)| *id)
    }

    /// Whether a replica should be sent what there is for it though more is about to come.
    pub fn is_pressing(&self, id: ReplicaId) -> bool {
        let Some(peer) = self.peers.get(&id) else { return false };
        let pending = peer.reader.map_or(0, |reader| self.log.pending_bytes(reader));
        // Who waits for acknowledgements waits for what is not sent, too.
        !peer.queue.is_empty() || pending >= PRESSING_BYTES || (pending > 0 && self.acks.has_waiters())
    }

    /// What to send a replica next, appended to `out`. [`Home::sent`] is called when it has been sent. False: nothing.
    pub fn next_send(&mut self, id: ReplicaId, out: &mut Vec<Bytes>) -> bool {
        let Some(peer) = self.peers.get_mut(&id).filter(|peer| !peer.is_closing) else { return false };
        assert!(!peer.is_sending, "one send at a time");
        if !peer.queue.is_empty() {
            let mut len_bytes = 0;
            while len_bytes < SEND_MAX_BYTES
                && let Some(bytes) = peer.queue.pop_front()
            {
                len_bytes += bytes.len() as u64;
                out.push(bytes);
            }
            peer.queue_bytes -= len_bytes;
            peer.is_sending = true;
            self.regulate();
            self.read_on(id);
            return true;
        }
        let Some(reader) = peer.reader.filter(|_| peer.handshake.is_streaming()) else { return false };
        if self.log.pending_bytes(reader) == 0 {
            return false;
        }
        peer.stream_in_flight = self.log.reader_slices(reader, SEND_MAX_BYTES, SEND_MAX_PIECES, out);
        peer.is_sending = peer.stream_in_flight > 0;
        peer.is_sending
    }

    /// A send to a replica was completed.
    pub fn sent(&mut self, id: ReplicaId, now_ms: u64) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        peer.is_sending = false;
        peer.stuck_since_ms = None;
        if peer.stream_in_flight > 0 {
            let reader = peer.reader.expect("it reads the stream");
            self.log.advance(reader, std::mem::take(&mut peer.stream_in_flight));
        }
        if peer.bulk_ends && peer.queue.is_empty() {
            peer.bulk_ends = false;
            peer.handshake.end_bulk(peer.has_mark);
            peer.last_heard_ms = now_ms;
            if peer.handshake.is_rdb_only() {
                peer.is_closing = true;
                self.actions.push(Action::Close { replica: id, why: "it has its snapshot".into() });
            } else if peer.handshake.is_streaming() {
                self.acks.add_replica(id, now_ms);
            }
        }
    }

    /// A cut could not be made: what an aborted snapshot left behind is still being cleared away. It is asked for again,
    /// but not at once: the shards clear it away between two attempts, for each takes their slices from them.
    pub fn cut_refused(&mut self, now_ms: u64) {
        self.retry_cut_ms = Some(now_ms + CUT_RETRY_MS);
    }

    /// Time passes. To be called at least every second while there are replicas.
    pub fn tick(&mut self, now_ms: u64) {
        self.last_tick_ms = now_ms;
        self.log.tick(now_ms);
        self.acks.expire(now_ms, &mut self.resolved);
        self.keep_or_stop_stream(now_ms);
        self.poll_failover(now_ms);
        self.poll_sharing(now_ms);
        if self.retry_cut_ms.is_some_and(|at_ms| at_ms <= now_ms) {
            self.retry_cut_ms = None;
            // It may have been given up since.
            if let Some(snapshot) = self.snapshot.as_ref().filter(|snapshot| !snapshot.is_cut) {
                self.actions.push(Action::Cut { snapshot: snapshot.id, with_data: snapshot.with_data });
            }
        }
        if self.peers.is_empty() {
            return;
        }
        if now_ms.saturating_sub(self.last_ping_ms) >= self.rules.ping_period_ms {
            self.last_ping_ms = now_ms;
            if self.relay.is_none()
                && !self.failover.is_under_way()
                && self.log.is_active()
                && self.peers.values().any(|peer| peer.handshake.is_streaming())
            {
                self.merge.ping(&mut self.log);
            }
            for peer in self.peers.values_mut() {
                if peer.handshake.state() == State::WaitBgsave {
                    peer.push(Bytes::from_static(KEEPALIVE));
                }
            }
        }
        let timeout_ms = self.rules.timeout_ms;
        for (id, peer) in self.peers.iter_mut().filter(|(_, peer)| !peer.is_closing) {
            let silent_ms = now_ms.saturating_sub(peer.last_heard_ms);
            let stuck_ms = if peer.is_sending {
                now_ms.saturating_sub(*peer.stuck_since_ms.get_or_insert(now_ms))
            } else {
                0
            };
            let exceeded =
                peer.reader.and_then(|reader| self.log.check_limits(reader, self.rules.limits, now_ms));
            let why = if peer.handshake.acknowledges() && silent_ms > timeout_ms {
                "timeout".to_string()
            } else if peer.handshake.state() == State::SendBulk && stuck_ms > timeout_ms {
                // The others of its snapshot, and the next one, wait for it.
                "timeout while it was sent the snapshot".to_string()
            } else if let Some(exceeded) = exceeded {
                exceeded.to_string()
            } else {
                continue;
            };
            peer.is_closing = true;
            self.actions.push(Action::Close { replica: *id, why });
        }
    }

    /// When [`Home::tick`] has something to do; None: not before something happens.
    pub fn next_tick_ms(&self) -> Option<u64> {
        let start = self.sharing.next_start_ms(self.rules.sharing);
        let save = (self.wants_save && self.snapshot.is_none()).then_some(self.last_tick_ms);
        let period = (!self.peers.is_empty()).then_some(self.last_tick_ms + TICK_MS);
        let others = [
            save,
            self.retry_cut_ms,
            self.acks.next_deadline_ms(),
            self.next_retention_ms(),
            self.failover.next_deadline_ms(),
        ];
        start.into_iter().chain(period).chain(others.into_iter().flatten()).min()
    }

    pub fn replicas(&self) -> usize {
        self.peers.values().filter(|peer| !peer.handshake.is_rdb_only()).count()
    }

    /// The numbers of `INFO replication` and `ROLE`.
    pub fn report(&self, now_ms: u64) -> Report {
        let shown = self.peers.iter().filter(|(_, peer)| !peer.handshake.is_rdb_only());
        Report {
            id: self.ids.current().as_str().to_owned(),
            former_id: self.ids.former_text(),
            end_offset: self.log.end_offset(),
            fork_byte: self.ids.fork_byte(),
            is_backlog_active: self.log.is_active(),
            backlog_bytes: self.log.backlog_bytes(),
            first_byte: self.log.first_byte(),
            histlen_bytes: self.log.histlen_bytes(),
            disk_bytes: self.log.disk_bytes(),
            memory_bytes: self.log.memory_bytes(),
            replicas: shown
                .enumerate()
                .map(|(index, (id, peer))| {
                    let acked = self.acks.acked(*id);
                    ReplicaLine {
                        info: peer.handshake.info_line(index, &peer.ip, acked, now_ms),
                        role: peer.handshake.role_entry(&peer.ip, acked),
                    }
                })
                .collect(),
            acked_offsets: self.acked_offsets(),
            failover_state: self.failover_state(),
            is_protected: self.is_protected(),
            full_syncs: self.full_syncs,
            partial_syncs: self.partial_syncs,
            refused_partial_syncs: self.refused_partial_syncs,
        }
    }
}

#[cfg(test)]
mod tests;
