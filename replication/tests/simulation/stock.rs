//! A stock replica as the tests see it: the bytes it was sent, and a dataset of one shard that loads a snapshot and applies a
//! stream.

use crate::model::{Data, State, Value, Words};
use crate::{DATABASES, stream};
use braid_core::command::{Args, Outcome, Segment, Time, registry};
use braid_core::keyspace::Keyspace;
use braid_core::rdb::{Decoder, Event, Limits, load_value};
use braid_core::resp::Reply;
use braid_core::table::{HashKey, ValueRef};
use braid_core::types::Object;
use braid_replication::acks::ReplicaId;
use braid_shards::{
    Caller, ConnId, Counters, Everything, Host, Invocation, Mark, Outlet, Parcel, Ran, RunFlags, Shard,
    ShardConfig, ShardId, SlotMap, Work,
};
use bytes::Bytes;
use std::any::Any;
use std::rc::Rc;

/// One replica's connection: what it was sent, byte for byte.
pub struct StockLink {
    pub id: ReplicaId,
    pub received: Vec<u8>,
    pub is_sending: bool,
    pub has_acked: bool,
    pub is_closed: bool,
}

impl StockLink {
    pub fn explain(&self) -> String {
        let sync =
            FullSync::parse(&self.received).map(|sync| (sync.offset, sync.rdb.len(), sync.stream.len()));
        let Self { id, is_sending, has_acked, is_closed, received } = self;
        let received = received.escape_ascii();
        format!("{id:?}: sending {is_sending}, acked {has_acked}, closed {is_closed}, {sync:?} of {received}")
    }
}

/// A full resynchronization, taken apart.
pub struct FullSync<'a> {
    pub offset: u64,
    pub rdb: &'a [u8],
    pub stream: &'a [u8],
}

impl<'a> FullSync<'a> {
    /// None: the snapshot is not complete yet.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let bytes = bytes.trim_ascii_start();
        let line_end = bytes.iter().position(|byte| *byte == b'\n')?;
        let line = std::str::from_utf8(&bytes[..line_end]).expect("text").trim_end();
        let mut words = line.split(' ');
        assert_eq!(words.next(), Some("+FULLRESYNC"), "{line}");
        let offset = words.nth(1).and_then(|word| word.parse().ok()).expect("an offset");
        let bytes = bytes[line_end + 1..].trim_ascii_start();
        let mark_end = bytes.iter().position(|byte| *byte == b'\n')? + 1;
        let mark =
            bytes[..mark_end].strip_prefix(b"$EOF:").expect("a snapshot up to a mark").trim_ascii_end();
        let rest = &bytes[mark_end..];
        let end = rest.windows(mark.len()).position(|window| window == mark)?;
        Some(Self { offset, rdb: &rest[..end], stream: &rest[end + mark.len()..] })
    }
}

/// What slices hold together. `each` sees every key with the index of its slice.
pub fn dump<'a>(slices: impl IntoIterator<Item = &'a Keyspace>, mut each: impl FnMut(usize, &[u8])) -> State {
    let mut state = State::new(DATABASES);
    for (index, slice) in slices.into_iter().enumerate() {
        for db in 0..DATABASES as u16 {
            for entry in slice.db(db).table.iter() {
                each(index, entry.key());
                let data = match entry.value() {
                    ValueRef::Str(text) => Data::Text(text.to_vec()),
                    ValueRef::Int(number) => Data::Text(number.to_string().into_bytes()),
                    ValueRef::Boxed(Object::Str(text)) => Data::Text(text.to_vec()),
                    ValueRef::Boxed(Object::List(list)) => {
                        Data::List(list.iter().map(|element| element.to_vec()).collect())
                    }
                    _ => panic!("a type that the workload does not know"),
                };
                let value = Value { data, expiry_ms: entry.expiry_ms() };
                let old = state.dbs[usize::from(db)].insert(entry.key().into(), Rc::new(value));
                assert!(old.is_none(), "law 1: key {} has two owners", entry.key().escape_ascii());
            }
        }
    }
    state
}

/// A replica of one shard that loads a snapshot and applies a stream, with the code of the shards.
pub struct StockReplica {
    shard: Shard,
    db: u16,
}

impl StockReplica {
    pub fn new(rdb: &[u8]) -> Self {
        let mut shard = Shard::new(ShardConfig {
            id: 0,
            map: SlotMap::new(1),
            databases: DATABASES,
            hash: HashKey::from_seed(1),
            seed: 2,
            settings: Default::default(),
            counters: std::sync::Arc::new(Counters::new(1)),
            home: 0,
        });
        shard.replica = true;
        shard.set_time(Time { us: 1 });
        let rdb = rdb.to_vec();
        let load = move |everything: &mut Everything<'_>| load_rdb(everything.slices[0], &rdb);
        shard.begin(None, Work::Action(Box::new(load)));
        shard.settle(&mut Nobody);
        Self { shard, db: 0 }
    }

    pub fn apply(&mut self, words: &Words) {
        let list: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
        match list[0] {
            b"SELECT" => self.db = stream::database(words),
            b"MULTI" | b"EXEC" | b"PING" => {}
            _ => {
                let (id, _) = registry().find(list[0]).expect("a known command");
                let flags = RunFlags { from_master: true, ..RunFlags::default() };
                let mut out = Reply::default();
                let args = Args::new(&list, &[]);
                let ran = self.shard.run(
                    Caller::new(ConnId(0), flags),
                    Invocation { id, db: self.db, args },
                    &mut out,
                    &mut Nobody,
                );
                if ran == Ran::Parked {
                    panic!("nothing blocks a replica of one shard");
                }
                self.shard.settle(&mut Nobody);
                assert_ne!(out.buf.first(), Some(&b'-'), "the stream holds a command that fails: {words:?}");
            }
        }
        self.shard.end_tick(&mut Nobody, &mut Nobody);
    }

    pub fn state(&self) -> State {
        dump([self.shard.keyspace().expect("not on loan")], |_, _| {})
    }
}

fn load_rdb(space: &mut Keyspace, rdb: &[u8]) {
    let mut decoder = Decoder::new(Limits::default(), true);
    decoder.feed(rdb);
    decoder.finish();
    let mut db = None;
    loop {
        match decoder.next_event().expect("a sound snapshot") {
            Event::SelectDb(number) => db = Some(number as u16),
            Event::Key(header) => {
                let mut cursor = decoder.cursor();
                let limits = braid_core::types::Limits::default();
                let value =
                    load_value(header.kind, decoder.version(), &mut cursor, &limits).expect("a value");
                let used_bytes = cursor.used_bytes();
                decoder.consume(used_bytes);
                let expiry_ms = header.expire_at_ms.map(|at_ms| at_ms as u64);
                let is_new = space.load_key(db.expect("selected"), &header.key, value, expiry_ms, 0);
                assert!(is_new, "law 5: {} stands twice in a snapshot", header.key.escape_ascii());
            }
            Event::End => return,
            _ => {}
        }
    }
}

/// The world of a replica that is alone.
struct Nobody;

impl Host for Nobody {
    fn reply(&mut self, _: ConnId, _: &[u8], _: Vec<(usize, Bytes)>, _: bool) {}
    fn session(&mut self, _: ConnId, _: u16, _: Args<'_>, _: &mut Reply) -> Outcome {
        Ok(())
    }
    fn upper(&mut self, _: ShardId, _: Box<dyn Any + Send>) {}
    fn segment(&mut self, _: u64, _: Segment, _: Option<Mark>) {}
    fn took(&mut self, _: ConnId, _: u64, _: Args<'_>) {}
    fn monotonic_ns(&mut self) -> u64 {
        0
    }
}

impl Outlet for Nobody {
    fn deliver(&mut self, _: ShardId, _: Box<Parcel>) -> Result<(), Box<Parcel>> {
        panic!("there is no other shard")
    }
}
