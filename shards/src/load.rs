//! Loading a dataset beside the one that serves: each shard decodes the values of its keys into a successor of its slice.
//!
//! Whoever reads the dataset finds where the keys begin (the layer above does, which knows the format) and sends each owner
//! batches of them ([`Shard::send_load_batch`]); a shard decodes a batch per tick ([`Shard::load_some`]) and says so. A dataset
//! may come in several streams, each read by another shard. At the end the successors travel home ([`Shard::finish_load`]),
//! where one transaction over everything puts them in the slices' place ([`Shard::begin_swap`]). Until then nobody sees
//! anything of them, and [`Shard::drop_load`] leaves no trace.

use crate::parcel::Msg;
use crate::shard::{Host, Shard};
use crate::slots::ShardId;
use crate::tx::{Everything, Work};
use braid_core::keyspace::Keyspace;
use braid_core::rdb::{Cursor, Input, KeyHeader, Limits, Stop, ValueLoader};
use braid_core::table::OwnedValue;
use std::collections::{BTreeMap, VecDeque};
use std::fmt;

/// A stretch of keys for one shard, or a part of one large key.
#[derive(Default)]
pub struct LoadBatch {
    /// RDB version of what the values come from.
    version: u32,
    items: Vec<Item>,
    bytes: Vec<u8>,
}

struct Item {
    /// None: it goes on with the value that the item before began.
    key: Option<(u16, Box<KeyHeader>)>,
    /// Where in the file its bytes begin.
    position: u64,
    /// Where in the batch they end.
    end: usize,
    /// The value is complete with them.
    is_complete: bool,
}

impl LoadBatch {
    pub fn new(version: u32) -> Self {
        Self { version, ..Self::default() }
    }

    /// Adds a key, with its value or as much of it as is there.
    pub fn push_key(&mut self, db: u16, header: KeyHeader, position: u64, value: &[u8], is_complete: bool) {
        self.push(Some((db, Box::new(header))), position, value, is_complete);
    }

    /// Adds more of the value that was last begun.
    pub fn push_rest(&mut self, position: u64, value: &[u8], is_complete: bool) {
        self.push(None, position, value, is_complete);
    }

    fn push(&mut self, key: Option<(u16, Box<KeyHeader>)>, position: u64, value: &[u8], is_complete: bool) {
        self.bytes.extend_from_slice(value);
        self.items.push(Item { key, position, end: self.bytes.len(), is_complete });
    }

    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Memory it holds.
    pub fn len_bytes(&self) -> usize {
        let keys = self.items.iter().filter_map(|item| item.key.as_ref());
        let items = self.items.len() * (size_of::<Item>() + size_of::<KeyHeader>());
        self.bytes.len() + items + keys.map(|(_, header)| header.key.len()).sum::<usize>()
    }
}

/// Why a value could not be loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadFault {
    /// Byte of the file.
    pub position: u64,
    pub what: String,
}

impl fmt::Display for LoadFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at byte {}", self.what, self.position)
    }
}

impl std::error::Error for LoadFault {}

/// Messages about loading. `load` is the home's number for its attempt, higher each time; `stream` one of the streams that
/// the dataset comes in.
pub enum LoadMsg {
    Begin { load: u64 },
    Batch { load: u64, stream: u16, batch: LoadBatch },
    Finish { load: u64 },
    Drop { load: u64 },
    Answer(LoadAnswer),
}

/// What a shard tells who sent it a batch, and at the end the home.
pub enum LoadAnswer {
    /// A batch of this size is decoded: so many keys; or something in it was wrong, and nothing more is decoded.
    Batch { load: u64, stream: u16, len_bytes: usize, outcome: Result<u64, LoadFault> },
    /// All batches are decoded, and this is what they made.
    Whole { load: u64, successor: Box<Keyspace> },
}

/// A value of which more is to come.
struct Growing {
    db: u16,
    header: Box<KeyHeader>,
    position: u64,
    loader: ValueLoader,
    input: Input,
}

/// A batch that waits to be decoded.
struct Queued {
    /// Who sent it.
    from: ShardId,
    stream: u16,
    batch: LoadBatch,
}

/// A dataset in the making.
struct Successor {
    load: u64,
    keyspace: Box<Keyspace>,
    queue: VecDeque<Queued>,
    /// By stream.
    growing: BTreeMap<u16, Growing>,
    is_finished: bool,
    has_failed: bool,
}

/// What a shard has of datasets in the making.
#[derive(Default)]
pub(crate) struct Loads {
    successor: Option<Successor>,
    /// The last attempt that was given up or handed over here. What still comes of it, or of one before, is too late.
    ended: u64,
}

impl Shard {
    /// Home: begins to load a dataset on every shard. `load` is higher than any before. The caller then calls
    /// [`Shard::settle`], here and below.
    pub fn begin_load(&mut self, load: u64) {
        self.tell_all(|| LoadMsg::Begin { load });
    }

    /// Sends a shard keys that it owns. It may hear of them before it hears from home that the load has begun.
    pub fn send_load_batch(&mut self, load: u64, stream: u16, to: ShardId, batch: LoadBatch) {
        self.send(to, Msg::Load(Box::new(LoadMsg::Batch { load, stream, batch })));
    }

    /// Home: every batch was answered, or was sent from here, and nothing more will be sent; the successors are to come home.
    pub fn finish_load(&mut self, load: u64) {
        self.tell_all(|| LoadMsg::Finish { load });
    }

    /// Home: gives the attempt up; what was loaded is freed in slices. Successors that came home go with it.
    pub fn drop_load(&mut self, load: u64, successors: Vec<Box<Keyspace>>) {
        self.dropped.extend(successors);
        self.tell_all(|| LoadMsg::Drop { load });
    }

    /// Home: puts the successors, in the order of their shards, in the slices' place, in one step for whoever looks.
    /// `with` runs in that step, on the new dataset.
    pub fn begin_swap(
        &mut self,
        successors: Vec<Box<Keyspace>>,
        with: impl FnOnce(&mut Everything<'_>) + 'static,
    ) {
        assert_eq!(successors.len(), self.map.shards(), "one for each slice");
        let swap = move |everything: &mut Everything<'_>| {
            for (slice, successor) in everything.slices.iter_mut().zip(successors) {
                slice.replace_with(*successor);
            }
            with(everything);
        };
        self.begin(None, Work::Action(Box::new(swap)));
    }

    /// Frees a dataset in slices.
    pub fn bury_later(&mut self, dataset: Box<Keyspace>) {
        self.dropped.push(dataset);
    }

    fn tell_all(&mut self, message: impl Fn() -> LoadMsg) {
        for to in 0..self.map.shards() as ShardId {
            self.send(to, Msg::Load(Box::new(message())));
        }
    }

    pub(crate) fn receive_load(&mut self, from: ShardId, message: LoadMsg, host: &mut impl Host) {
        match message {
            LoadMsg::Begin { load } => {
                self.successor(load);
            }
            LoadMsg::Batch { load, stream, batch } => {
                if let Some(successor) = self.successor(load) {
                    successor.queue.push_back(Queued { from, stream, batch });
                }
            }
            LoadMsg::Finish { load } => {
                if let Some(successor) = self.successor(load) {
                    successor.is_finished = true;
                }
            }
            LoadMsg::Drop { load } => self.end_loads(load),
            LoadMsg::Answer(answer) => host.load_answer(from, answer),
        }
    }

    /// The successor of an attempt, begun now if this is the first that is heard of it; None: the attempt is over.
    fn successor(&mut self, load: u64) -> Option<&mut Successor> {
        if load <= self.loads.ended {
            return None;
        }
        // A later attempt begins when the one before was given up, which may be on its way here from another shard.
        self.end_loads(load - 1);
        if self.loads.successor.is_none() {
            let keyspace = self.scratch.as_ref().expect("no transaction runs").successor();
            self.loads.successor = Some(Successor {
                load,
                keyspace: Box::new(keyspace),
                queue: VecDeque::new(),
                growing: BTreeMap::new(),
                is_finished: false,
                has_failed: false,
            });
        }
        self.loads.successor.as_mut()
    }

    /// Nothing comes any more of the attempts up to this one.
    fn end_loads(&mut self, load: u64) {
        self.loads.ended = self.loads.ended.max(load);
        if let Some(successor) = self.loads.successor.take_if(|successor| successor.load <= load) {
            self.dropped.push(successor.into_keyspace());
        }
    }

    /// A successor of this shard's slice is in the making.
    pub fn is_loading(&self) -> bool {
        self.loads.successor.is_some()
    }

    /// Decodes the next batch. True if there is more to do at once.
    pub fn load_some(&mut self) -> bool {
        let Some(successor) = &mut self.loads.successor else { return false };
        let load = successor.load;
        if let Some(Queued { from, stream, batch }) = successor.queue.pop_front() {
            let len_bytes = batch.len_bytes();
            let outcome = if successor.has_failed {
                Ok(0)
            } else {
                let now_ms = self.time.ms();
                successor.decode(stream, batch, now_ms, &self.settings)
            };
            successor.has_failed |= outcome.is_err();
            let more = !successor.queue.is_empty() || successor.is_finished;
            self.answer_load(from, LoadAnswer::Batch { load, stream, len_bytes, outcome });
            return more;
        }
        if let Some(whole) = self.loads.successor.take_if(|successor| successor.is_finished) {
            assert!(whole.growing.is_empty() || whole.has_failed, "the last value is complete");
            self.loads.ended = load;
            self.answer_load(self.home(), LoadAnswer::Whole { load, successor: whole.into_keyspace() });
        }
        false
    }

    fn answer_load(&mut self, to: ShardId, answer: LoadAnswer) {
        self.send(to, Msg::Load(Box::new(LoadMsg::Answer(answer))));
    }

    /// Something is left to be freed in slices.
    pub fn has_trash(&self) -> bool {
        !self.dropped.is_empty() || self.keyspace().is_some_and(Keyspace::has_trash)
    }
}

impl Successor {
    /// What was decoded so far. Values that are not complete go with it, to be freed in slices.
    fn into_keyspace(mut self) -> Box<Keyspace> {
        for Growing { loader, input, .. } in self.growing.into_values() {
            if let Some(object) = loader.into_unfinished() {
                self.keyspace.discard_value(object);
            }
            self.keyspace.discard_owned(OwnedValue::Str(input.into_buffer()));
        }
        self.keyspace
    }

    /// Decodes a batch; returns how many keys it brought.
    fn decode(
        &mut self,
        stream: u16,
        batch: LoadBatch,
        now_ms: u64,
        settings: &braid_core::command::Settings,
    ) -> Result<u64, LoadFault> {
        let LoadBatch { version, items, bytes } = batch;
        let mut keys = 0;
        let mut start = 0;
        for Item { key, position, end, is_complete } in items {
            let value = &bytes[start..end];
            start = end;
            let fault = |what: &str, at: u64| LoadFault { position: position + at, what: what.to_owned() };
            let (db, header, at, value) = match (key, is_complete) {
                (Some((db, header)), true) => {
                    let mut cursor = Cursor::whole(value, UNLIMITED);
                    let mut loader = ValueLoader::new(header.kind, version)
                        .map_err(|kind| stopped(cursor.fault(kind), position))?;
                    let loaded =
                        loader.read(&mut cursor, &settings.limits).map_err(|stop| stopped(stop, position))?;
                    if cursor.remaining_bytes() > 0 {
                        return Err(fault(NOT_THE_END, cursor.used_bytes() as u64));
                    }
                    (db, header, position, loaded)
                }
                (key, is_complete) => {
                    if let Some((db, header)) = key {
                        let loader = ValueLoader::new(header.kind, version)
                            .map_err(|kind| fault(&fault_text(kind), 0))?;
                        let input = Input::new(UNLIMITED, false);
                        let former =
                            self.growing.insert(stream, Growing { db, header, position, loader, input });
                        assert!(former.is_none(), "one value at a time");
                    }
                    let growing = self.growing.get_mut(&stream).expect("its beginning came before");
                    growing.input.feed(value);
                    if is_complete {
                        growing.input.finish();
                    }
                    let mut cursor = growing.input.cursor();
                    let outcome = growing.loader.read(&mut cursor, &settings.limits);
                    let used_bytes = cursor.used_bytes();
                    growing.input.consume(used_bytes);
                    let at = growing.position;
                    let loaded = match outcome {
                        Ok(loaded) if is_complete && growing.input.buffered_bytes() == 0 => loaded,
                        Ok(loaded) => {
                            self.keyspace.discard_owned(loaded);
                            return Err(fault(NOT_THE_END, 0));
                        }
                        Err(Stop::NeedMore(_)) => continue,
                        Err(stop) => return Err(stopped(stop, at)),
                    };
                    let Growing { db, header, .. } = self.growing.remove(&stream).expect("just used");
                    (db, header, at, loaded)
                }
            };
            if matches!(value, OwnedValue::None) {
                // An empty collection, which old servers wrote by mistake: there is no such key.
                continue;
            }
            let lru = settings.access_clock.loaded(now_ms, header.idle_s, header.freq);
            // A time before 1970 is over, too.
            let expiry_ms = header.expire_at_ms.map(|at_ms| u64::try_from(at_ms).unwrap_or(0));
            if !self.keyspace.load_key(db, &header.key, value, expiry_ms, lru) {
                let what = format!("Key '{}' comes twice", header.key.escape_ascii());
                return Err(LoadFault { position: at, what });
            }
            keys += 1;
        }
        Ok(keys)
    }
}

/// Who found the values was bounded already.
const UNLIMITED: Limits = Limits { string_bytes: u64::MAX };

const NOT_THE_END: &str = "Value ends elsewhere than its elements say";

fn fault_text(kind: braid_core::rdb::FaultKind) -> String {
    let text = braid_core::rdb::Fault { position: 0, kind }.to_string();
    text.trim_end_matches(" at byte 0").to_owned()
}

/// What a decoder's stop says about the file, if the value begins at `position`.
fn stopped(stop: Stop, position: u64) -> LoadFault {
    match stop {
        Stop::Fault(fault) => LoadFault { position: position + fault.position, what: fault_text(fault.kind) },
        Stop::NeedMore(_) => LoadFault { position, what: "Unexpected end of value".to_owned() },
    }
}

#[cfg(test)]
mod tests;
