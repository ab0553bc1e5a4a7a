//! The link to the master, as a replica keeps it: connecting, the handshake, the snapshot, the stream, and all over again
//! whenever it breaks.
//!
//! ```text
//! Waiting --> Connecting --> Handshake --+CONTINUE----------------------------> Streaming
//!    ^                           |                                                  ^
//!    |                           +--+FULLRESYNC--> Header --> Payload --> Swapping --+
//!    +---- any error, silence for `repl-timeout`, end of the connection
//! ```
//! A snapshot may come in parts on further connections ([`crate::parts`]); then `Payload` is what precedes them, and the state
//! behind it ends when all parts are loaded.
//!
//! Time and bytes come in; what has to be done comes out of [`Link::take_actions`]. A snapshot's bytes are taken out with
//! [`Link::payload`] and [`Link::consume_payload`], the stream's with [`Link::next_epoch`]: whoever applies them sets the
//! pace, and [`Link::is_full`] tells when nothing should be received before he has caught up.

mod frame;
mod gathering;
mod handshake;
mod history;
pub mod part;
mod parts;
pub mod stream;

use crate::framing::EOF_MARK_BYTES;
use crate::ids::ReplId;
use crate::parts::{self as wire, Token};
use bytes::{Buf, BytesMut};
use frame::{Framing, take_line, take_mark};
use gathering::Gathering;
use handshake::Step;
use history::History;
pub use history::HistoryReport;
use stream::{Epoch, Parts, Stream, StreamError};

/// Between two attempts to connect, and between two acknowledgements.
const RETRY_MS: u64 = 1000;
const ACK_PERIOD_MS: u64 = 1000;
/// Received bytes that wait to be applied or loaded: beyond this nothing more should be received.
const INPUT_MAX_BYTES: usize = 1 << 20;
/// Where the master is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub host: String,
    pub port: u16,
}

/// What the configuration says about the link.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkRules {
    pub timeout_ms: u64,
    /// `masteruser` and `masterauth`; empty: none.
    pub user: String,
    pub password: String,
    /// What the master is told about where to reach this node; an empty address: what it sees.
    pub listening_port: u16,
    pub announced_ip: String,
    /// The version this node says it is.
    pub version: String,
    pub databases: u32,
    /// So many connections are asked for to get a snapshot on; fewer than two: none but the link's own.
    pub connections: usize,
}

impl LinkRules {
    /// How a connection authenticates; nothing: it need not.
    fn auth_words(&self) -> Vec<&[u8]> {
        if self.password.is_empty() {
            return Vec::new();
        }
        let words = ["AUTH", &self.user, &self.password];
        words.into_iter().filter(|word| !word.is_empty()).map(str::as_bytes).collect()
    }
}

/// What this node has of a history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    pub id: ReplId,
    /// Bytes of the stream.
    pub offset: u64,
    /// The database selected there.
    pub db: u16,
}

/// What has to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkAction {
    /// Open a connection to the target; [`Link::connected`] or [`Link::closed`] is the answer.
    Connect,
    Send(Vec<u8>),
    /// Close the connection; there is no answer to this.
    Close,
    /// A snapshot has begun to come, which may be long after it was promised: begin a new dataset beside the present one.
    BeginLoading,
    /// The new dataset is whole: put it in the place of the present one, then call [`Link::swapped`].
    Swap {
        id: ReplId,
        offset: u64,
    },
    /// Nothing will come of the new dataset.
    AbandonLoading,
    /// Open so many further connections to the master, each with a [`part::PartLink`].
    OpenParts {
        token: Token,
        count: usize,
    },
    /// The parts that they bring belong to the new dataset, and may be loaded. What becomes of them is told with
    /// [`Link::part_progress`], [`Link::part_loaded`] and [`Link::part_failed`].
    LoadParts {
        token: Token,
        count: usize,
    },
    /// Close the further connections.
    CloseParts,
    /// The master continues our stream, under this id.
    Continue {
        id: ReplId,
    },
    /// The node that was to take over from us refused.
    FailoverRefused(String),
    /// Something for the log.
    Notice(String),
    Warning(String),
}

/// The link in one word, as `ROLE` tells it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LinkState {
    #[default]
    Connect,
    Connecting,
    Handshake,
    Sync,
    Connected,
}

impl LinkState {
    pub fn name(self) -> &'static str {
        match self {
            LinkState::Connect => "connect",
            LinkState::Connecting => "connecting",
            LinkState::Handshake => "handshake",
            LinkState::Sync => "sync",
            LinkState::Connected => "connected",
        }
    }
}

/// The link's part of `INFO replication`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkReport {
    pub target: Target,
    pub state: LinkState,
    /// Since the link's last byte; None: it is not connected.
    pub last_io_ms: Option<u64>,
    pub history: HistoryReport,
    /// Length and received part of the snapshot under way. Of one that ends with a mark the length is told as 0; None: the
    /// master has not said yet.
    pub sync: Option<(Option<u64>, u64)>,
}

enum State {
    Waiting {
        until_ms: u64,
    },
    Connecting,
    Handshake {
        step: Step,
        position: Option<Position>,
    },
    Header {
        id: ReplId,
        offset: u64,
    },
    Payload {
        id: ReplId,
        offset: u64,
        framing: Framing,
        /// The dataset comes in parts, and this says only what it is.
        in_parts: bool,
        total: u64,
        read: u64,
    },
    /// The snapshot is loaded; its mark is still to come.
    Trailer {
        id: ReplId,
        offset: u64,
        mark: [u8; EOF_MARK_BYTES],
        in_parts: bool,
    },
    /// Its parts are under way.
    Parts {
        id: ReplId,
        offset: u64,
        /// The master has said how long they are.
        is_told: bool,
    },
    Swapping {
        offset: u64,
    },
    Streaming(Box<Stream>),
    /// The connection is gone. What it brought is applied first: the master may be gone with it.
    Draining {
        stream: Box<Stream>,
        until_ms: u64,
    },
}

/// See the module.
pub struct Link {
    target: Target,
    rules: LinkRules,
    state: State,
    /// Received and not looked at yet, but for the stream's.
    input: BytesMut,
    actions: Vec<LinkAction>,
    last_io_ms: u64,
    /// When the connection's latest state began, or its latest sign of life was sent.
    last_sent_ms: u64,
    history: History,
    /// A swap that was asked for is under way, be the connection gone or not.
    is_swapping: bool,
    /// What we have is in doubt: only a full sync will do.
    distrusts_position: bool,
    /// The first `PSYNC` tells the target to take over from us.
    is_failover: bool,
    /// Further connections were asked for.
    gathering: Option<Gathering>,
}

impl Link {
    /// A link that is to be made at once.
    pub fn new(target: Target, rules: LinkRules, now_ms: u64) -> Self {
        Self {
            target,
            rules,
            state: State::Waiting { until_ms: now_ms },
            input: BytesMut::new(),
            actions: Vec::new(),
            last_io_ms: now_ms,
            last_sent_ms: now_ms,
            history: History::default(),
            is_swapping: false,
            distrusts_position: false,
            is_failover: false,
            gathering: None,
        }
    }

    /// A link to a node that is to take over from this one, which has been its master.
    pub fn for_failover(target: Target, rules: LinkRules, now_ms: u64) -> Self {
        Self { is_failover: true, ..Self::new(target, rules, now_ms) }
    }

    /// A link in the place of another, whose master this node had reached before: it is down from the beginning.
    pub fn begins_down(&mut self, now_ms: u64) {
        self.history.is_down(now_ms);
    }

    /// Whether it is up, or was.
    pub fn has_been_up(&self) -> bool {
        self.history.has_been_up()
    }

    pub fn target(&self) -> &Target {
        &self.target
    }

    pub fn set_rules(&mut self, rules: LinkRules) {
        self.rules = rules;
    }

    pub fn take_actions(&mut self) -> Vec<LinkAction> {
        std::mem::take(&mut self.actions)
    }

    pub fn state(&self) -> LinkState {
        match self.state {
            State::Waiting { .. } | State::Draining { .. } => LinkState::Connect,
            State::Connecting => LinkState::Connecting,
            State::Handshake { .. } => LinkState::Handshake,
            State::Header { .. }
            | State::Payload { .. }
            | State::Trailer { .. }
            | State::Parts { .. }
            | State::Swapping { .. } => LinkState::Sync,
            State::Streaming(_) => LinkState::Connected,
        }
    }

    pub fn is_up(&self) -> bool {
        matches!(self.state, State::Streaming(_))
    }

    pub fn report(&self, now_ms: u64) -> LinkReport {
        let sync = match &self.state {
            State::Header { .. } => Some((None, 0)),
            State::Payload { total, read, .. } => Some((Some(*total), *read)),
            State::Parts { .. } => Some((Some(0), self.gathering.as_ref().map_or(0, Gathering::read_bytes))),
            State::Trailer { .. } | State::Swapping { .. } => Some((Some(0), 0)),
            _ => None,
        };
        let is_connected = !matches!(self.state(), LinkState::Connect | LinkState::Connecting);
        LinkReport {
            target: self.target.clone(),
            state: self.state(),
            last_io_ms: is_connected.then(|| now_ms.saturating_sub(self.last_io_ms)),
            history: self.history.report(now_ms),
            sync,
        }
    }

    /// The offset behind what was received of the stream, while the link is up.
    pub fn read_offset(&self) -> Option<u64> {
        match &self.state {
            State::Streaming(stream) => Some(stream.read_offset()),
            _ => None,
        }
    }

    /// The connection stands. `position`: what this node has and could go on from.
    pub fn connected(&mut self, position: Option<Position>, now_ms: u64) {
        assert!(matches!(self.state, State::Connecting), "a connection that was asked for");
        self.last_io_ms = now_ms;
        self.last_sent_ms = now_ms;
        let position = position.filter(|_| !self.distrusts_position);
        self.state = State::Handshake { step: Step::Pong, position };
        self.send(&[b"PING"]);
    }

    /// The connection could not be made, or is gone.
    pub fn closed(&mut self, why: &str, now_ms: u64) {
        match self.state {
            State::Waiting { .. } | State::Draining { .. } => return,
            State::Connecting => {
                self.actions.push(LinkAction::Warning(format!("Error condition on socket for SYNC: {why}")));
            }
            _ => self.actions.push(LinkAction::Warning(format!("Connection with master lost: {why}"))),
        }
        self.drain_or_disconnect(now_ms);
    }

    /// The connection is gone; what it brought of the stream is not.
    fn drain_or_disconnect(&mut self, now_ms: u64) {
        self.state = match std::mem::replace(&mut self.state, State::Connecting) {
            State::Streaming(stream) if !self.distrusts_position && stream.has_work() => {
                self.history.is_down(now_ms);
                State::Draining { stream, until_ms: now_ms }
            }
            other => {
                self.state = other;
                return self.disconnect(now_ms);
            }
        };
    }

    /// Nothing more is to be taken from the master. Returns whether something that was received is still to be applied, which
    /// goes on as ever.
    pub fn drain(&mut self, now_ms: u64) -> bool {
        if self.is_up() {
            self.actions.push(LinkAction::Close);
            self.drain_or_disconnect(now_ms);
        }
        matches!(self.state, State::Draining { .. })
    }

    /// Breaks the connection, to make another.
    pub fn fail(&mut self, why: &str, now_ms: u64) {
        self.actions.push(LinkAction::Warning(why.to_owned()));
        if !matches!(self.state, State::Waiting { .. }) {
            self.actions.push(LinkAction::Close);
            self.disconnect(now_ms);
        }
    }

    /// The dataset is in doubt: breaks the connection and goes on with a full sync.
    pub fn distrust(&mut self, why: &str, now_ms: u64) {
        self.distrusts_position = true;
        self.fail(why, now_ms);
    }

    /// The dataset is being given up: whatever happens, only a full sync will do.
    pub fn forget_position(&mut self) {
        self.distrusts_position = true;
    }

    fn disconnect(&mut self, now_ms: u64) {
        let was_up = self.is_up();
        if matches!(self.state, State::Payload { .. } | State::Trailer { .. } | State::Parts { .. }) {
            self.actions.push(LinkAction::AbandonLoading);
        }
        if was_up {
            self.history.is_down(now_ms);
        }
        self.close_parts();
        self.input.clear();
        // A link that worked is made again at once; what failed to come up, or will cost a full sync, is not tried more
        // often than each second.
        let delay_ms = if was_up && !self.distrusts_position { 0 } else { RETRY_MS };
        self.state = State::Waiting { until_ms: now_ms + delay_ms };
    }

    /// Time passes. `applied`: the offset up to which everything has been applied.
    pub fn tick(&mut self, applied: u64, now_ms: u64) {
        match self.state {
            State::Waiting { until_ms } => {
                if until_ms <= now_ms && !self.is_swapping {
                    let Target { host, port } = &self.target;
                    self.actions.push(LinkAction::Notice(format!("Connecting to MASTER {host}:{port}")));
                    self.actions.push(LinkAction::Connect);
                    self.history.attempted();
                    self.state = State::Connecting;
                    self.last_io_ms = now_ms;
                }
                return;
            }
            State::Draining { .. } => return,
            // Nothing is expected from the master meanwhile.
            State::Swapping { .. } => self.last_io_ms = now_ms,
            // Nothing is read: it is not the master that is silent.
            _ if self.is_full() => self.last_io_ms = now_ms,
            _ => {}
        }
        if now_ms.saturating_sub(self.last_io_ms) > self.rules.timeout_ms {
            let what = match self.state() {
                LinkState::Connecting | LinkState::Handshake => "Timeout connecting to the MASTER...",
                LinkState::Sync => "Timeout receiving bulk data from MASTER...",
                _ => "MASTER timeout: no data nor PING received...",
            };
            if !self.is_up() {
                return self.fail(what, now_ms);
            }
            self.actions.extend([LinkAction::Warning(what.to_owned()), LinkAction::Close]);
            return self.drain_or_disconnect(now_ms);
        }
        if now_ms.saturating_sub(self.last_sent_ms) < ACK_PERIOD_MS {
            return;
        }
        match self.state {
            State::Streaming(_) => self.acknowledge(applied, now_ms),
            // A sign of life, for a master that has a timeout, too.
            State::Payload { .. } | State::Trailer { .. } | State::Parts { .. } | State::Swapping { .. } => {
                self.last_sent_ms = now_ms;
                self.actions.push(LinkAction::Send(b"\n".to_vec()));
            }
            _ => {}
        }
    }

    /// When [`Link::tick`] has something to do.
    pub fn next_tick_ms(&self) -> Option<u64> {
        let timeout_ms = self.last_io_ms + self.rules.timeout_ms + 1;
        match self.state {
            State::Waiting { until_ms } => (!self.is_swapping).then_some(until_ms),
            State::Draining { .. } => None,
            State::Connecting | State::Handshake { .. } | State::Header { .. } => Some(timeout_ms),
            State::Swapping { .. } => Some(self.last_sent_ms + ACK_PERIOD_MS),
            State::Payload { .. } | State::Trailer { .. } | State::Parts { .. } | State::Streaming(_) => {
                Some(timeout_ms.min(self.last_sent_ms + ACK_PERIOD_MS))
            }
        }
    }

    /// Tells the master up to where everything has been applied.
    pub fn acknowledge(&mut self, applied: u64, now_ms: u64) {
        if self.is_up() {
            self.last_sent_ms = now_ms;
            self.send(&[b"REPLCONF", b"ACK", applied.to_string().as_bytes()]);
        }
    }

    /// Bytes arrived. Afterwards see to [`Link::payload`] and [`Link::next_epoch`].
    pub fn received(&mut self, bytes: &[u8], now_ms: u64) {
        if matches!(self.state, State::Waiting { .. } | State::Draining { .. } | State::Connecting) {
            // Of a connection that was given up.
            return;
        }
        self.last_io_ms = now_ms;
        match &mut self.state {
            State::Streaming(stream) => return stream.receive(bytes),
            _ => self.input.extend_from_slice(bytes),
        }
        self.advance(now_ms);
    }

    /// Goes on with what was received, but for what others take.
    fn advance(&mut self, now_ms: u64) {
        self.trailer(now_ms);
        while let State::Handshake { .. } | State::Header { .. } | State::Parts { is_told: false, .. } =
            self.state
        {
            match take_line(&mut self.input) {
                Ok(Some(line)) => self.line(&line, now_ms),
                Ok(None) => return,
                Err(why) => return self.fail(why, now_ms),
            }
        }
    }

    fn line(&mut self, line: &str, now_ms: u64) {
        match self.state {
            // A sign of life.
            _ if line.is_empty() => {}
            State::Handshake { step: Step::Psync, position } => self.psync_reply(line, position, now_ms),
            State::Handshake { step, position } => self.handshake_reply(step, line, position, now_ms),
            State::Header { id, offset } => self.payload_header(line, id, offset, now_ms),
            State::Parts { .. } => self.parts_end(line, now_ms),
            _ => unreachable!("lines are read in these states"),
        }
    }

    fn payload_header(&mut self, line: &str, id: ReplId, offset: u64, now_ms: u64) {
        if let Some(mark) = wire::parse_header(line) {
            return self.parts_header(mark, id, offset, now_ms);
        }
        let framing = Framing::parse(line);
        let Some(framing) = framing else {
            let why = match line.strip_prefix('-') {
                Some(error) => format!("MASTER aborted replication with an error: {error}"),
                None => format!("Bad protocol from MASTER, the first byte is not '$': {line}"),
            };
            return self.fail(&why, now_ms);
        };
        let total = match framing {
            Framing::Length { left } => left,
            Framing::Mark(_) => 0,
        };
        let what = match total {
            0 => "streamed RDB from master with EOF".to_owned(),
            total => format!("{total} bytes from master"),
        };
        self.actions.push(LinkAction::Notice(format!("MASTER <-> REPLICA sync: receiving {what}")));
        self.last_sent_ms = now_ms;
        // The master has decided otherwise.
        self.close_parts();
        self.actions.push(LinkAction::BeginLoading);
        self.state = State::Payload { id, offset, framing, in_parts: false, total, read: 0 };
    }

    /// Bytes of the snapshot that wait to be loaded. With a mark at its end they may be more than the snapshot's: whoever
    /// loads them knows where it ends.
    pub fn payload(&self) -> &[u8] {
        match &self.state {
            State::Payload { framing, .. } => framing.payload(&self.input),
            _ => &[],
        }
    }

    /// So many bytes of the payload were loaded; `is_whole`: with them the snapshot is complete.
    pub fn consume_payload(&mut self, len: usize, is_whole: bool, now_ms: u64) {
        assert!(len <= self.payload().len());
        let State::Payload { id, offset, framing, in_parts, read, .. } = &mut self.state else {
            assert!(len == 0 && !is_whole, "there is no payload");
            return;
        };
        let (id, offset, in_parts) = (*id, *offset, *in_parts);
        self.input.advance(len);
        *read += len as u64;
        if let Framing::Length { left } = framing {
            *left -= len as u64;
        }
        match (*framing, is_whole) {
            (Framing::Length { left: 0 }, false) => {
                self.fail("The snapshot is longer than announced", now_ms)
            }
            (Framing::Length { left: 0 }, true) => self.begin_swap(id, offset),
            (Framing::Length { .. }, true) => self.fail("The snapshot is shorter than announced", now_ms),
            (Framing::Mark(mark), true) => {
                self.state = State::Trailer { id, offset, mark, in_parts };
                self.advance(now_ms);
            }
            (_, false) => {}
        }
    }

    fn trailer(&mut self, now_ms: u64) {
        let State::Trailer { id, offset, mark, in_parts } = self.state else { return };
        match take_mark(&mut self.input, &mark) {
            Ok(true) if in_parts => self.state = State::Parts { id, offset, is_told: false },
            Ok(true) => self.begin_swap(id, offset),
            Ok(false) => {}
            Err(why) => self.fail(why, now_ms),
        }
    }

    fn begin_swap(&mut self, id: ReplId, offset: u64) {
        self.is_swapping = true;
        self.state = State::Swapping { offset };
        self.actions.push(LinkAction::Swap { id, offset });
    }

    /// The new dataset is in place, and with it the stream begins in database `db`; or it was refused.
    pub fn swapped(&mut self, outcome: Result<u16, &str>, now_ms: u64) {
        assert!(self.is_swapping, "a swap that was asked for");
        self.is_swapping = false;
        match outcome {
            Ok(db) => {
                self.distrusts_position = false;
                if let State::Swapping { offset } = self.state {
                    self.actions
                        .push(LinkAction::Notice("MASTER <-> REPLICA sync: Finished with success".into()));
                    self.begin_stream(offset, db, now_ms);
                    // A master that sent a mark waits for this.
                    self.acknowledge(offset, now_ms);
                }
            }
            Err(why) => {
                if matches!(self.state, State::Swapping { .. }) {
                    self.fail(why, now_ms);
                }
            }
        }
    }

    fn begin_stream(&mut self, offset: u64, db: u16, now_ms: u64) {
        let mut stream = Box::new(Stream::new(offset, db, self.rules.databases));
        stream.receive(&self.input);
        self.input.clear();
        self.state = State::Streaming(stream);
        self.history.is_up(now_ms);
    }

    /// The next piece of the stream to be applied.
    ///
    /// # Errors
    /// See [`Stream::next_epoch`]. The caller then calls [`Link::distrust`].
    pub fn next_epoch(&mut self, parts: &mut impl Parts) -> Result<Option<Epoch>, StreamError> {
        match &mut self.state {
            State::Streaming(stream) => stream.next_epoch(parts),
            State::Draining { stream, until_ms } => {
                let epoch = stream.next_epoch(parts)?;
                if epoch.is_none() {
                    self.state = State::Waiting { until_ms: *until_ms };
                }
                Ok(epoch)
            }
            _ => Ok(None),
        }
    }

    /// So much waits to be applied or loaded that nothing more should be received.
    pub fn is_full(&self) -> bool {
        match &self.state {
            // What is longer than the limit and one piece has to be received whole.
            State::Streaming(stream) => stream.waiting_bytes() > INPUT_MAX_BYTES && !stream.is_starved(),
            _ => self.input.len() > INPUT_MAX_BYTES,
        }
    }

    fn send(&mut self, words: &[&[u8]]) {
        let mut bytes = Vec::new();
        command(&mut bytes, words);
        match self.actions.last_mut() {
            Some(LinkAction::Send(last)) => last.extend_from_slice(&bytes),
            _ => self.actions.push(LinkAction::Send(bytes)),
        }
    }
}

/// Appends a command.
fn command(out: &mut Vec<u8>, words: &[&[u8]]) {
    out.extend_from_slice(format!("*{}\r\n", words.len()).as_bytes());
    for word in words {
        out.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        out.extend_from_slice(word);
        out.extend_from_slice(b"\r\n");
    }
}

#[cfg(test)]
mod tests;
