//! The stream from the master, cut into epochs: pieces that are applied as one, so that a reader sees the state between
//! two of them and nothing else (laws 2 and 3).
//!
//! An epoch ends with a command, never within `MULTI` … `EXEC`. Its bytes are those of the master, for the log; its
//! commands go into the parts of the shards concerned. Offsets are counted in bytes of the stream, whatever they mean.

use braid_core::command::{ArgList, Args, CommandId, Handler, registry};
use braid_core::resp::parse::{Arg, BIG_BULK_LEN_BYTES, ParseLimits, Parsed, Parser};
use braid_shards::{Decoded, Unit};
use bytes::{Bytes, BytesMut};
use smallvec::SmallVec;
use std::collections::VecDeque;

/// An epoch is closed when it has so many commands, or bytes.
pub const EPOCH_MAX_COMMANDS: u32 = 1024;
pub const EPOCH_MAX_BYTES: usize = 256 << 10;
/// Room made for what is received at a time.
const INPUT_BYTES: usize = 64 << 10;
/// A command is at most this long, but for its long values, and each of those: positions in it have 32 bits.
const COMMAND_MAX_BYTES: usize = u32::MAX as usize - 1;
const LIMITS: ParseLimits = ParseLimits { max_bulk_len_bytes: COMMAND_MAX_BYTES as u64, authenticated: true };

/// Where the commands of an epoch go.
pub trait Parts {
    /// Whether a command can be part of an epoch: each of its keys is dealt with by the shard that owns it. Others are
    /// transactions of their own.
    fn fits(&self, id: CommandId, args: Args<'_>) -> bool;

    /// Adds a command. False: it does not fit, and nothing was added.
    fn push(&mut self, id: CommandId, db: u16, args: Args<'_>) -> bool;
}

/// What an epoch does.
#[derive(Clone)]
pub enum EpochWork {
    /// What was pushed into the parts; that may be nothing.
    Parts,
    /// A transaction of its own over several shards; nothing was pushed.
    Alone(Unit),
}

/// A piece of the stream.
#[derive(Clone)]
pub struct Epoch {
    /// As the master sent it; a long value is a piece of its own, which it shares with the dataset. None is empty.
    pub pieces: SmallVec<[Bytes; 1]>,
    /// The stream's offset behind it.
    pub end_offset: u64,
    /// The database that is selected behind it.
    pub db: u16,
    /// The master wants to know at once when this is applied (`REPLCONF GETACK`).
    pub asks_ack: bool,
    pub work: EpochWork,
}

impl Epoch {
    pub fn len_bytes(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.len() as u64).sum()
    }
}

/// Why the stream cannot be followed any further.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamError {
    /// Offset before the command in question.
    pub offset: u64,
    pub text: String,
}

impl std::fmt::Display for StreamError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "at offset {}: {}", self.offset, self.text)
    }
}

/// A `MULTI` whose `EXEC` may not have come yet.
#[derive(Default)]
struct Block {
    unit: Unit,
    db: u16,
    fits: bool,
    is_complete: bool,
}

/// What a command of the stream means to its reader.
enum Meaning {
    Nothing,
    Select(u16),
    GetAck,
    Multi,
    Exec,
    Data(CommandId),
}

/// See the module.
pub struct Stream {
    parser: Parser,
    /// Received and not part of an epoch yet, without `values`.
    input: BytesMut,
    /// Bytes at the front of `input` that are parsed already: those of an open block.
    parsed: usize,
    /// Long values, which the parser put together, with the positions in `input` where they belong, ascending. Those of the
    /// command that is being parsed are empty as yet.
    values: VecDeque<(usize, Bytes)>,
    /// Their lengths, but for those that the parser still counts.
    values_bytes: usize,
    /// The parser has found a command, which is so long without its long values.
    found: Option<usize>,
    block: Option<Block>,
    /// Offset before `input`.
    offset: u64,
    db: u16,
    databases: u32,
    failed: Option<StreamError>,
    /// Nothing of what was received is complete.
    is_starved: bool,
}

impl Stream {
    /// The stream from `offset` on, where database `db` is selected. One that does not exist here, which a snapshot may
    /// name without a key in it, cannot be followed.
    pub fn new(offset: u64, db: u16, databases: u32) -> Self {
        let exists = u32::from(db) < databases;
        let failed = (!exists).then(|| StreamError { offset, text: no_such_database(databases) });
        Self {
            parser: Parser::new(),
            input: BytesMut::new(),
            parsed: 0,
            values: VecDeque::new(),
            values_bytes: 0,
            found: None,
            block: None,
            offset,
            db,
            databases,
            failed,
            is_starved: true,
        }
    }

    /// Takes bytes from the master.
    pub fn receive(&mut self, bytes: &[u8]) {
        let fed = self.parser.feed_big(bytes);
        let bytes = &bytes[fed..];
        if self.input.capacity() - self.input.len() < bytes.len() {
            self.input.reserve(bytes.len().max(INPUT_BYTES));
        }
        self.input.extend_from_slice(bytes);
        self.is_starved = false;
    }

    /// Nothing is complete of what was received, so more of it must be.
    pub fn is_starved(&self) -> bool {
        self.is_starved
    }

    /// Something was received that may make an epoch.
    pub fn has_work(&self) -> bool {
        !self.is_starved && !self.input.is_empty()
    }

    /// Bytes received that are in no epoch yet.
    pub fn waiting_bytes(&self) -> usize {
        self.input.len() + self.values_bytes + self.parser.held_bytes()
    }

    /// The offset behind everything received (`slave_read_repl_offset`).
    pub fn read_offset(&self) -> u64 {
        self.offset + self.waiting_bytes() as u64
    }

    /// The offset behind the last epoch.
    #[cfg(test)]
    fn offset(&self) -> u64 {
        self.offset
    }

    /// The next epoch of what was received; None: there is no complete command.
    ///
    /// # Errors
    /// The bytes are no commands, or not such as a replica can apply. It stays that way.
    pub fn next_epoch(&mut self, parts: &mut impl Parts) -> Result<Option<Epoch>, StreamError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        if self.is_starved {
            return Ok(None);
        }
        let mut draft = Draft { end: 0, db: self.db, commands: 0, asks_ack: false, alone: None };
        while draft.alone.is_none() {
            if self.block.is_none() && (draft.commands >= EPOCH_MAX_COMMANDS || draft.end >= EPOCH_MAX_BYTES)
            {
                break;
            }
            match self.step(&mut draft, parts) {
                Ok(true) => {}
                Ok(false) => break,
                Err(text) => {
                    // Those of the command in question are within it.
                    let before = self.values.iter().filter(|(at, _)| *at < self.parsed);
                    let before_bytes = self.parsed + before.map(|(_, value)| value.len()).sum::<usize>();
                    let error = StreamError { offset: self.offset + before_bytes as u64, text };
                    self.failed = Some(error.clone());
                    if draft.end == 0 {
                        return Err(error);
                    }
                    break;
                }
            }
        }
        if draft.end == 0 {
            self.is_starved = true;
            return Ok(None);
        }
        let Draft { end, db, asks_ack, alone, .. } = draft;
        self.db = db;
        let work = alone.map_or(EpochWork::Parts, EpochWork::Alone);
        let pieces = self.split_to(end);
        let mut epoch = Epoch { pieces, end_offset: 0, db, asks_ack, work };
        self.offset += epoch.len_bytes();
        epoch.end_offset = self.offset;
        Ok(Some(epoch))
    }

    /// Takes the first `end` bytes of the input, with the long values among them.
    fn split_to(&mut self, end: usize) -> SmallVec<[Bytes; 1]> {
        let (mut pieces, mut at) = (SmallVec::new(), 0);
        // A line end stands behind each.
        while let Some((_, value)) = self.values.front_mut().filter(|(position, _)| *position < end) {
            let value = std::mem::take(value);
            let (position, _) = self.values.pop_front().expect("just seen");
            pieces.push(self.input.split_to(position - at).freeze());
            self.values_bytes -= value.len();
            pieces.push(value);
            at = position;
        }
        pieces.push(self.input.split_to(end - at).freeze());
        for (position, _) in &mut self.values {
            *position -= end;
        }
        self.parsed -= end;
        pieces
    }

    /// Goes on by one command. False: the epoch ends here.
    fn step(&mut self, draft: &mut Draft, parts: &mut impl Parts) -> Result<bool, String> {
        if self.block.as_ref().is_some_and(|block| block.is_complete) {
            return Ok(self.close_block(draft, parts));
        }
        let Some(len) = self.find()? else { return Ok(false) };
        if !self.take_command(len, draft, parts)? {
            // It begins the next epoch.
            self.found = Some(len);
            return Ok(false);
        }
        self.values_bytes += self.parser.held_bytes();
        self.parser.reset();
        self.parsed += len;
        if self.block.is_none() {
            draft.end = self.parsed;
        }
        Ok(true)
    }

    /// Finds the next command. Returns its length without its long values; None: it is not complete.
    fn find(&mut self) -> Result<Option<usize>, String> {
        if let Some(len) = self.found.take() {
            return Ok(Some(len));
        }
        let input = &self.input[self.parsed..];
        if input.len() > COMMAND_MAX_BYTES {
            return Err("a command is longer than 4 GiB".into());
        }
        match self.parser.parse(input, &LIMITS).map_err(|error| error.to_string())? {
            Parsed::Incomplete => Ok(None),
            Parsed::Assembling { keep, taken } => {
                assert_eq!(keep + taken, input.len(), "what was received ends within the value");
                self.input.truncate(self.parsed + keep);
                self.values.push_back((self.input.len(), Bytes::new()));
                Ok(None)
            }
            Parsed::Command { len } => {
                let found = self.parser.args().iter().cloned().filter_map(Arg::into_big);
                let missing = self.values.iter_mut().filter(|(_, value)| value.is_empty());
                for ((_, place), value) in missing.zip(found) {
                    *place = value;
                }
                Ok(Some(len))
            }
        }
    }

    /// Takes the command that the parser found. False: it cannot be in this epoch.
    fn take_command(
        &mut self,
        len: usize,
        draft: &mut Draft,
        parts: &mut impl Parts,
    ) -> Result<bool, String> {
        let mut list = ArgList::default();
        arguments(&self.parser, &self.input[self.parsed..][..len], &mut list);
        let args = list.args();
        let db = self.block.as_ref().map_or(draft.db, |block| block.db);
        match meaning(args, self.databases)? {
            Meaning::Nothing => {}
            Meaning::GetAck => draft.asks_ack = true,
            Meaning::Select(db) => match &mut self.block {
                Some(block) => block.db = db,
                None => draft.db = db,
            },
            Meaning::Multi if self.block.is_some() => return Err("MULTI within MULTI".into()),
            Meaning::Multi => self.block = Some(Block { db, fits: true, ..Block::default() }),
            Meaning::Exec => self.block.as_mut().ok_or("EXEC without MULTI")?.is_complete = true,
            Meaning::Data(id) => match &mut self.block {
                Some(block) => {
                    block.unit.push(id, db, args);
                    block.fits &= parts.fits(id, args);
                }
                None if parts.push(id, db, args) => draft.commands += 1,
                None if draft.end > 0 => return Ok(false),
                None => {
                    let mut unit = Unit::default();
                    unit.push(id, db, args);
                    draft.commands = 1;
                    draft.alone = Some(unit);
                }
            },
        }
        Ok(true)
    }

    /// Makes a complete block part of the epoch. False: it has to wait for the next one.
    fn close_block(&mut self, draft: &mut Draft, parts: &mut impl Parts) -> bool {
        let block = self.block.as_ref().expect("it is complete");
        if !block.fits && draft.end > 0 {
            return false;
        }
        let Block { unit, db, fits, .. } = self.block.take().expect("just seen");
        draft.commands += unit.count;
        if fits {
            let (mut commands, mut command) = (unit.commands(), Decoded::default());
            while commands.decode(&mut command) {
                let is_added = parts.push(command.id, command.db, command.args());
                assert!(is_added, "it fitted before");
            }
        } else {
            draft.alone = Some(unit);
        }
        draft.db = db;
        draft.end = self.parsed;
        true
    }
}

/// An epoch in the making.
struct Draft {
    /// Where it ends in the input.
    end: usize,
    db: u16,
    commands: u32,
    asks_ack: bool,
    alone: Option<Unit>,
}

/// Adds the arguments of the command the parser has found to `list`. Long values are buffers of their own, which the dataset
/// keeps.
fn arguments<'a>(parser: &'a Parser, command: &'a [u8], list: &mut ArgList<'a>) {
    let base = parser.base(command);
    for arg in parser.args() {
        match arg {
            Arg::Big(value) => list.push_shared(value, value.clone()),
            Arg::Range { start, len } => {
                let value = &base[*start as usize..][..*len as usize];
                if value.len() >= BIG_BULK_LEN_BYTES {
                    // It came whole, so it is no longer than what may wait.
                    list.push_shared(value, Bytes::copy_from_slice(value));
                } else {
                    list.push(value);
                }
            }
        }
    }
}

fn no_such_database(databases: u32) -> String {
    format!("SELECT of a database beyond the {databases} here")
}

/// Tells what a command of the stream is.
fn meaning(args: Args<'_>, databases: u32) -> Result<Meaning, String> {
    let Some(name) = args.first() else { return Ok(Meaning::Nothing) };
    let is = |word: &str| name.eq_ignore_ascii_case(word.as_bytes());
    // The longest of the names below.
    if name.len() <= 8 {
        match () {
            () if is("ping") => return Ok(Meaning::Nothing),
            // Nobody can have subscribed here: there is nothing to do but to pass it on.
            () if is("publish") || is("spublish") => return Ok(Meaning::Nothing),
            () if is("replconf") && args.is(1, "getack") => return Ok(Meaning::GetAck),
            () if is("replconf") => return Ok(Meaning::Nothing),
            () if is("multi") => return Ok(Meaning::Multi),
            () if is("exec") => return Ok(Meaning::Exec),
            () if is("select") => {
                let db = args.get(1).and_then(|db| std::str::from_utf8(db).ok()?.parse::<u16>().ok());
                return match db {
                    Some(db) if u32::from(db) < databases => Ok(Meaning::Select(db)),
                    _ => Err(no_such_database(databases)),
                };
            }
            () => {}
        }
    }
    let shown = || String::from_utf8_lossy(&name[..name.len().min(64)]).into_owned();
    let (id, container) = registry().find(name).ok_or_else(|| format!("unknown command '{}'", shown()))?;
    let command = container.resolve(args);
    if !command.accepts(args.len()) {
        return Err(format!("wrong number of arguments for '{}'", shown()));
    }
    if matches!(command.handler, Handler::Session | Handler::Cursor(_)) {
        return Err(format!("'{}' is no command of a stream", shown()));
    }
    Ok(Meaning::Data(id))
}

#[cfg(test)]
mod tests;
