//! A connection: a plain struct that completions advance.

use crate::ring::Token;
use crate::session::Session;
use braid_core::resp::{Batch, Parser, Reply};
use braid_shards::ConnId;

/// Input that waits while a command is under way is held up to this; then the connection is not read until it drains.
pub const HELD_INPUT_MAX_LEN_BYTES: usize = 256 * 1024;
/// Replies are held back up to this while further ones of the same pipeline are about to come.
pub const HELD_OUTPUT_MAX_LEN_BYTES: usize = 16 * 1024;
/// Replies that wait behind a send under way: beyond this no further command is run for the connection.
pub const WAITING_OUTPUT_MAX_LEN_BYTES: usize = 256 * 1024;

/// One client's connection.
pub struct Conn {
    pub token: Token,
    pub id: ConnId,
    pub parser: Parser,
    /// Received and not yet parsed; starts with the command under way.
    pub input: Vec<u8>,
    /// Commands at the front of `input` that are parsed and wait for their turn.
    pub batch: Option<Box<Batch>>,
    pub out: Reply,
    /// A send is under way.
    pub sending: bool,
    /// Commands are with another shard, or wait here for a transaction; nothing more is run before the answer.
    pub waiting: bool,
    /// It waits for acknowledgements of replicas (it is waiting, too).
    pub awaits_replicas: bool,
    /// The stream is as far as what this connection has seen: the next command may show where it is.
    pub caught_up: bool,
    /// A transaction of it is being executed.
    pub in_exec: bool,
    /// A pause holds its command back (it is waiting, too).
    pub suspended: bool,
    /// The answer under way is not to be sent (`CLIENT REPLY`).
    pub muted: bool,
    /// Since when more output waits than the soft limit allows, seconds since the server's start.
    pub over_soft_since_s: Option<u32>,
    /// Receiving is paused because nobody reads the replies, or too much input waits.
    pub paused: bool,
    /// In the list of connections with something to send.
    pub listed: bool,
    /// Close when everything has been sent.
    pub closing: bool,
    /// The peer sends no more.
    pub eof: bool,
    pub session: Session,
}

impl Conn {
    pub fn new(token: Token, id: ConnId, session: Session) -> Self {
        Self {
            token,
            id,
            parser: Parser::new(),
            input: Vec::new(),
            batch: None,
            out: Reply::default(),
            sending: false,
            waiting: false,
            awaits_replicas: false,
            caught_up: false,
            in_exec: false,
            suspended: false,
            muted: false,
            over_soft_since_s: None,
            paused: false,
            listed: false,
            closing: false,
            eof: false,
            session,
        }
    }

    /// Bytes received for commands that were not run yet.
    pub fn held_input_bytes(&self) -> usize {
        self.input.len() + self.parser.held_bytes()
    }

    /// Whether so much waits to be sent that nothing more may be run first: even within one tick, a pipeline of short
    /// requests can ask for gigabytes of replies.
    pub fn is_full(&self) -> bool {
        self.out.len_bytes() > WAITING_OUTPUT_MAX_LEN_BYTES
    }

    /// Whether its command waits for something that may never happen: what was answered before must not wait with it.
    pub fn waits_long(&self) -> bool {
        self.suspended || self.awaits_replicas
    }

    /// Whether replies pile up because the peer does not read them.
    pub fn is_congested(&self) -> bool {
        self.sending && self.is_full()
    }
}
