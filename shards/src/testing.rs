//! Shards whose messages a test delivers one by one.

use crate::epoch::EpochError;
use crate::load::LoadAnswer;
use crate::locks::LockKey;
use crate::parcel::{Caller, ConnId, Mark, Parcel, RunFlags, Share};
use crate::pipeline::{Admit, Pipeline, Place, Target, place};
use crate::shard::{Counters, Host, Outlet, Ran, Shard, ShardConfig};
use crate::slots::{ShardId, SlotMap};
use crate::tx::Work;
use crate::unit::{Invocation, Unit};
use braid_core::command::{Args, CommandId, Outcome, Segment, Time, registry};
use braid_core::resp::Reply;
use braid_core::table::HashKey;
use bytes::Bytes;
use std::any::Any;
use std::collections::VecDeque;

/// What a shard told the layer above.
#[derive(Default)]
pub struct Told {
    pub replies: Vec<(ConnId, String)>,
    /// Ticket, effects, mark.
    pub segments: Vec<(u64, String, Option<Mark>)>,
    pub shares: Vec<(u64, Share)>,
    /// Epochs that ended.
    pub epochs: Vec<(u64, Result<(), EpochError>)>,
    pub loads: Vec<(ShardId, LoadAnswer)>,
    /// Blocks that were given away to be freed.
    pub freed_bytes: usize,
}

impl Host for Told {
    fn reply(&mut self, conn: ConnId, bytes: &[u8], _: Vec<(usize, Bytes)>, _: bool) {
        self.replies.push((conn, String::from_utf8(bytes.to_vec()).unwrap()));
    }

    fn session(&mut self, _: ConnId, _: CommandId, _: Args<'_>, _: &mut Reply) -> Outcome {
        Ok(())
    }

    fn upper(&mut self, _: ShardId, _: Box<dyn Any + Send>) {}

    fn segment(&mut self, ticket: u64, segment: Segment, mark: Option<Mark>) {
        self.segments.push((ticket, String::from_utf8(segment.pieces.concat()).unwrap(), mark));
    }

    fn share(&mut self, ticket: u64, share: Share) {
        self.shares.push((ticket, share));
    }

    fn epoch_applied(&mut self, epoch: u64, outcome: Result<(), EpochError>) {
        self.epochs.push((epoch, outcome));
    }

    fn load_answer(&mut self, from: ShardId, answer: LoadAnswer) {
        self.loads.push((from, answer));
    }

    fn free_block(&mut self, block: Bytes) {
        self.freed_bytes += block.len();
    }

    fn took(&mut self, _: ConnId, _: u64, _: Args<'_>) {}

    fn monotonic_ns(&mut self) -> u64 {
        0
    }
}

struct Rings<'a>(&'a mut [VecDeque<Box<Parcel>>]);

impl Outlet for Rings<'_> {
    fn deliver(&mut self, to: ShardId, parcel: Box<Parcel>) -> Result<(), Box<Parcel>> {
        self.0[usize::from(to)].push_back(parcel);
        Ok(())
    }
}

/// Some shards; shard 0 is the home.
pub struct Cluster {
    pub shards: Vec<Shard>,
    pub told: Vec<Told>,
    /// By sender, by receiver.
    rings: Vec<Vec<VecDeque<Box<Parcel>>>>,
}

/// Commands, separated by `; `.
pub fn unit(lines: &str) -> Unit {
    let mut unit = Unit::default();
    for line in lines.split("; ") {
        let args: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        unit.push(registry().find(args[0]).unwrap().0, 0, Args::new(&args, &[]));
    }
    unit
}

pub const CONN: ConnId = ConnId(7);
pub const ATOMIC: RunFlags = RunFlags { resp3: false, atomic: true, no_touch: false, from_master: false };

impl Cluster {
    pub fn new(shards: usize) -> Self {
        let counters = std::sync::Arc::new(Counters::new(shards));
        let config = |id: usize| ShardConfig {
            id: id as ShardId,
            map: SlotMap::new(shards),
            databases: 2,
            hash: HashKey::from_seed(5),
            seed: 6,
            settings: Default::default(),
            counters: std::sync::Arc::clone(&counters),
            home: 0,
        };
        let mut cluster = Self {
            shards: (0..shards).map(|id| Shard::new(config(id))).collect(),
            told: (0..shards).map(|_| Told::default()).collect(),
            rings: (0..shards).map(|_| (0..shards).map(|_| VecDeque::new()).collect()).collect(),
        };
        cluster.set_time_ms(1_000_000);
        cluster
    }

    pub fn set_time_ms(&mut self, ms: u64) {
        self.shards.iter_mut().for_each(|shard| shard.set_time(Time { us: ms * 1000 }));
    }

    /// A key of a shard, one of many.
    pub fn key(&self, shard: usize, name: &str) -> String {
        let map = self.shards[0].map;
        let mut names = (0..).map(|n| format!("{name}{n}"));
        names.find(|key| usize::from(map.shard_of(key.as_bytes())) == shard).unwrap()
    }

    /// A connection of shard `at` sends a command. None: its answer comes later.
    pub fn send(&mut self, at: usize, conn: ConnId, line: &str) -> Option<String> {
        let caller = Caller::new(conn, RunFlags::default());
        let (shard, told) = (&mut self.shards[at], &mut self.told[at]);
        let args: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        let args = Args::new(&args, &[]);
        let (id, command) = registry().find(args[0]).unwrap();
        match place(command, args, shard.map, shard.id) {
            Place::One(to) if usize::from(to) == at => {
                let mut out = Reply::default();
                let ran = shard.run(caller, Invocation { id, db: 0, args }, &mut out, told);
                return (ran == Ran::Done).then(|| String::from_utf8(out.to_wire()).unwrap());
            }
            Place::One(to) => {
                shard.submit(&mut Pipeline::default(), to, caller, Invocation { id, db: 0, args });
            }
            Place::Several(keys) => self.begin(at, caller, Some(keys), line),
            Place::Everywhere => self.begin(at, caller, None, line),
        }
        None
    }

    /// A connection of shard `at` sends commands that each have one key, in one go. Gives what is answered at once.
    pub fn pipeline(&mut self, at: usize, conn: ConnId, lines: &[String]) -> String {
        let (shard, told) = (&mut self.shards[at], &mut self.told[at]);
        let caller = Caller::new(conn, RunFlags::default());
        let mut pipeline = Pipeline::default();
        let mut out = Reply::default();
        for line in lines {
            let args: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
            let args = Args::new(&args, &[]);
            let (id, command) = registry().find(args[0]).unwrap();
            let Place::One(to) = place(command, args, shard.map, shard.id) else { panic!("one key") };
            let target = if to == shard.id { Target::Here } else { Target::Shard(to) };
            match pipeline.admit(target) {
                Admit::Run => {
                    assert_eq!(shard.run(caller, Invocation { id, db: 0, args }, &mut out, told), Ran::Done);
                }
                Admit::Send => {
                    shard.submit(&mut pipeline, to, caller, Invocation { id, db: 0, args });
                }
                Admit::Later => panic!("too many commands"),
            }
        }
        String::from_utf8(out.to_wire()).unwrap()
    }

    /// A transaction of several shards.
    pub fn begin(&mut self, at: usize, caller: Caller, keys: Option<Vec<LockKey>>, lines: &str) {
        let work = Work::Commands { caller, unit: unit(lines) };
        self.shards[at].begin(keys, work);
        self.shards[at].settle(&mut self.told[at]);
    }

    /// Ends a tick: the messages are on their way.
    pub fn end_tick(&mut self, at: usize) {
        self.shards[at].end_tick(&mut Rings(&mut self.rings[at]), &mut self.told[at]);
    }

    /// `to` receives the next parcel of `from`, without ending its tick.
    pub fn deliver(&mut self, from: usize, to: usize) {
        let parcel = self.rings[from][to].pop_front().expect("something is on its way");
        self.shards[to].receive(from as ShardId, parcel, &mut self.told[to]);
    }

    /// Takes a parcel off its way, to be given back later.
    pub fn take(&mut self, from: usize, to: usize) -> Box<Parcel> {
        self.end_tick(from);
        self.rings[from][to].pop_front().expect("something is on its way")
    }

    pub fn give(&mut self, from: usize, to: usize, parcel: Box<Parcel>) {
        self.shards[to].receive(from as ShardId, parcel, &mut self.told[to]);
    }

    pub fn is_on_its_way(&self, from: usize, to: usize) -> bool {
        !self.rings[from][to].is_empty()
    }

    /// As `end_tick` of the sender, then `deliver`.
    pub fn pass(&mut self, from: usize, to: usize) {
        self.end_tick(from);
        self.deliver(from, to);
    }

    /// Everything under way comes to its end.
    pub fn rest(&mut self) {
        for _ in 0..1000 {
            for at in 0..self.shards.len() {
                for from in 0..self.shards.len() {
                    if !self.rings[from][at].is_empty() {
                        self.deliver(from, at);
                    }
                }
                self.end_tick(at);
            }
            if self.rings.iter().flatten().all(VecDeque::is_empty) {
                assert!(self.shards.iter().all(Shard::is_quiet), "law 3: something is never finished");
                return;
            }
        }
        panic!("law 3: something is never finished");
    }

    /// What a connection of shard `at` was told since this was last asked.
    pub fn replies(&mut self, at: usize) -> Vec<String> {
        self.told[at].replies.drain(..).map(|(_, reply)| reply).collect()
    }

    /// Sends a command and takes its answer, with nothing else under way.
    pub fn ask(&mut self, line: &str) -> String {
        if let Some(reply) = self.send(0, CONN, line) {
            return reply;
        }
        self.rest();
        self.replies(0).pop().expect("an answer")
    }
}
