//! Loading a snapshot in parallel, as a state machine: it finds where the keys of an RDB stream begin and end, and hands the
//! owners' shards the bytes of their values, which they decode.
//!
//! Bytes go in through [`Loader::feed`], batches for the shards come out of [`Loader::take_batches`], the shards' answers go
//! into [`Loader::decoded`]. When the stream has ended, its checksum was right and every batch is decoded,
//! [`Loader::is_settled`]. What is wrong is told with its position in the stream, and ends the attempt. A dataset may come in
//! several streams, each with a loader of its own; the slices' successors gather in an [`Assembly`].

use crate::ids::ReplId;
use braid_core::keyspace::Keyspace;
use braid_core::rdb::{Decoder, Event, KeyHeader, Limits, Stop, ValueSkipper};
use braid_shards::{LoadBatch, LoadFault, ShardId, SlotMap};

/// Bytes that one round of a shard feeds to its loaders: who waits for its sockets waits as long.
pub const FEED_BYTES: usize = 32 << 10;
/// A batch is sent when it has this size: decoding it takes some 100 us.
const BATCH_BYTES: usize = 16 << 10;
/// Bytes that the shards were sent and have not decoded before the feeders are asked to pause.
pub const IN_FLIGHT_BYTES: usize = 16 << 20;

/// What a snapshot says about itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LoadedInfo {
    /// RDB version.
    pub version: u32,
    /// The history that it belongs to, and where in it it was cut.
    pub repl_id: Option<ReplId>,
    pub repl_offset: Option<u64>,
    /// The database that the stream has selected there; None: the stream selects one before it changes anything.
    pub stream_db: Option<u16>,
    /// Keys loaded.
    pub keys: u64,
}

/// The value that the stream is in the midst of.
struct Passing {
    owner: ShardId,
    db: u16,
    /// Until the value's first bytes are handed on.
    header: Option<KeyHeader>,
    skipper: ValueSkipper,
}

/// See the module.
pub struct Loader {
    map: SlotMap,
    databases: usize,
    decoder: Decoder,
    db: u16,
    passing: Option<Passing>,
    /// By shard, being filled.
    filling: Vec<LoadBatch>,
    ready: Vec<(ShardId, LoadBatch)>,
    /// Of the batches sent and not answered, and how many they may be.
    in_flight_bytes: usize,
    in_flight_max_bytes: usize,
    /// The stream ended as it should.
    is_read: bool,
    /// What is found is not kept.
    only_checks: bool,
    info: LoadedInfo,
}

/// The successors of all slices, as they come home.
pub struct Assembly {
    successors: Vec<Option<Box<Keyspace>>>,
}

impl Assembly {
    /// Of a node with so many shards.
    pub fn new(shards: usize) -> Self {
        Self { successors: (0..shards).map(|_| None).collect() }
    }

    /// A shard's slice has its successor.
    ///
    /// # Panics
    /// If it has one already.
    pub fn add(&mut self, from: ShardId, successor: Box<Keyspace>) {
        let former = self.successors[usize::from(from)].replace(successor);
        assert!(former.is_none(), "a shard finishes once");
    }

    /// Every slice's successor is here.
    pub fn is_whole(&self) -> bool {
        self.successors.iter().all(Option::is_some)
    }

    /// Gives up the successors that came, in the order of their shards: all of them, if it is whole.
    pub fn into_successors(self) -> Vec<Box<Keyspace>> {
        self.successors.into_iter().flatten().collect()
    }
}

impl Loader {
    /// For a node with so many databases. `string_max_bytes`: longer strings are refused. `verify`: a wrong checksum is a
    /// fault (`rdbchecksum`).
    pub fn new(map: SlotMap, databases: usize, string_max_bytes: u64, verify: bool) -> Self {
        Self {
            map,
            databases,
            decoder: Decoder::new(Limits { string_bytes: string_max_bytes }, verify),
            db: 0,
            passing: None,
            filling: (0..map.shards()).map(|_| LoadBatch::default()).collect(),
            ready: Vec::new(),
            in_flight_bytes: 0,
            in_flight_max_bytes: IN_FLIGHT_BYTES,
            is_read: false,
            only_checks: false,
            info: LoadedInfo::default(),
        }
    }

    /// One of so many streams that share the room for what is under way.
    pub fn sharing_room(mut self, streams: usize) -> Self {
        self.in_flight_max_bytes = IN_FLIGHT_BYTES / streams.max(1);
        self
    }

    /// One that hands nothing out: it finds the snapshot's end, what is wrong with it, and how many keys it has.
    pub fn checking(map: SlotMap, databases: usize, string_max_bytes: u64, verify: bool) -> Self {
        Self { only_checks: true, ..Self::new(map, databases, string_max_bytes, verify) }
    }

    /// Takes the next bytes of the stream. Returns how many of them belong to the snapshot: all, until it ends.
    ///
    /// # Errors
    /// The stream is not usable; nothing more may be fed.
    ///
    /// # Panics
    /// After the end.
    pub fn feed(&mut self, chunk: &[u8]) -> Result<usize, LoadFault> {
        assert!(!self.is_read, "fed after the end");
        self.decoder.feed(chunk);
        self.advance()?;
        if !self.is_read {
            return Ok(chunk.len());
        }
        Ok(chunk.len() - self.decoder.take_rest().len())
    }

    /// Nothing more will come.
    ///
    /// # Errors
    /// The snapshot is not complete.
    pub fn finish_input(&mut self) -> Result<(), LoadFault> {
        if self.is_read {
            return Ok(());
        }
        self.decoder.finish();
        self.advance()
    }

    fn advance(&mut self) -> Result<(), LoadFault> {
        match self.step() {
            Ok(()) | Err(Stop::NeedMore(_)) => Ok(()),
            Err(Stop::Fault(fault)) => {
                let what = fault.to_string();
                let place = format!(" at byte {}", fault.position);
                let what = what.strip_suffix(&place).unwrap_or(&what).to_owned();
                Err(LoadFault { position: fault.position, what })
            }
        }
    }

    /// Works through what has arrived.
    fn step(&mut self) -> Result<(), Stop> {
        loop {
            if let Some(passing) = &mut self.passing {
                let position = self.decoder.position();
                let mut cursor = self.decoder.cursor();
                let start = cursor.clone();
                let outcome = passing.skipper.skip(&mut cursor);
                let used_bytes = cursor.used_bytes();
                let is_complete = outcome.is_ok();
                if used_bytes > 0 || is_complete {
                    let owner = passing.owner;
                    let mut is_full = false;
                    if self.only_checks {
                        self.info.keys += u64::from(passing.header.take().is_some());
                    } else {
                        let value = start.clone().bytes(used_bytes)?;
                        let batch = &mut self.filling[usize::from(owner)];
                        match passing.header.take() {
                            Some(header) => batch.push_key(passing.db, header, position, value, is_complete),
                            None => batch.push_rest(position, value, is_complete),
                        }
                        is_full = batch.len_bytes() >= BATCH_BYTES;
                    }
                    self.decoder.consume(used_bytes);
                    if is_full {
                        self.send(owner);
                    }
                }
                outcome?;
                self.passing = None;
            }
            let position = self.decoder.position();
            let refuse = |what: String| {
                Stop::Fault(braid_core::rdb::Fault {
                    position,
                    kind: braid_core::rdb::FaultKind::Unsupported(what),
                })
            };
            match self.decoder.next_event()? {
                Event::Version(version) => {
                    self.info.version = version;
                    self.filling.iter_mut().for_each(|batch| *batch = LoadBatch::new(version));
                }
                Event::Aux { name, value } => self.aux(&name, &value),
                Event::SelectDb(db) => match u16::try_from(db) {
                    Ok(db) if usize::from(db) < self.databases => self.db = db,
                    _ => {
                        let databases = self.databases;
                        return Err(refuse(format!(
                            "Database {db} does not exist here: there are {databases}"
                        )));
                    }
                },
                Event::Function(_) => return Err(refuse("Functions are not supported".into())),
                Event::ResizeDb { .. } | Event::SlotInfo { .. } | Event::ModuleAux(_) => {}
                Event::Key(header) => {
                    let skipper = ValueSkipper::new(header.kind, self.info.version)
                        .map_err(|kind| Stop::Fault(braid_core::rdb::Fault { position, kind }))?;
                    let owner = self.map.shard_of(&header.key);
                    self.passing = Some(Passing { owner, db: self.db, header: Some(header), skipper });
                }
                Event::End => {
                    self.is_read = true;
                    for shard in 0..self.map.shards() as ShardId {
                        self.send(shard);
                    }
                    return Ok(());
                }
            }
        }
    }

    fn aux(&mut self, name: &[u8], value: &[u8]) {
        let text = || String::from_utf8_lossy(value).into_owned();
        match name {
            b"repl-id" => self.info.repl_id = ReplId::parse(value),
            b"repl-offset" => self.info.repl_offset = text().parse().ok(),
            b"repl-stream-db" => self.info.stream_db = text().parse().ok(),
            _ => {}
        }
    }

    fn send(&mut self, to: ShardId) {
        let fresh = LoadBatch::new(self.info.version);
        let batch = std::mem::replace(&mut self.filling[usize::from(to)], fresh);
        if !batch.is_empty() {
            self.in_flight_bytes += batch.len_bytes();
            self.ready.push((to, batch));
        }
    }

    /// What the shards have to be sent.
    pub fn take_batches(&mut self) -> Vec<(ShardId, LoadBatch)> {
        std::mem::take(&mut self.ready)
    }

    /// Whether more should be fed for now.
    pub fn wants_more(&self) -> bool {
        !self.is_read && self.in_flight_bytes < self.in_flight_max_bytes
    }

    /// The stream has ended as it should; when its last batches are sent, the shards can be told to finish.
    pub fn is_read(&self) -> bool {
        self.is_read
    }

    /// Keys that the shards have loaded so far.
    pub fn keys(&self) -> u64 {
        self.info.keys
    }

    /// A shard decoded a batch of this size, with so many keys in it.
    ///
    /// # Errors
    /// A value was none.
    pub fn decoded(&mut self, len_bytes: usize, outcome: Result<u64, LoadFault>) -> Result<(), LoadFault> {
        self.in_flight_bytes -= len_bytes;
        self.info.keys += outcome?;
        Ok(())
    }

    /// The stream has ended as it should, and all of it is decoded.
    pub fn is_settled(&self) -> bool {
        self.is_read && self.in_flight_bytes == 0 && self.ready.is_empty()
    }

    /// What the stream said about itself so far.
    pub fn info(&self) -> &LoadedInfo {
        &self.info
    }
}

#[cfg(test)]
mod tests;
