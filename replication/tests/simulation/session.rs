//! One shard with its connections: what the network layer does around it, without the network.

use crate::hub::{Abort, Hub};
use crate::model::Words;
use braid_core::command::{
    Args, Command, CommandId, Handler, Outcome, SHARED_ARG_LEN_BYTES, Segment, Time, registry,
};
use braid_core::keyspace::WatcherId;
use braid_core::resp::Reply;
use braid_shards::{
    Admit, Caller, ConnId, EpochError, Host, Invocation, LoadAnswer, MASTER_CONN, Mark, Pipeline, Place,
    Plan, Ran, RunFlags, Shard, ShardId, Share, Target, Unit, Work, place,
};
use bytes::Bytes;
use std::any::Any;
use std::collections::{BTreeSet, VecDeque};

/// A connection as its shard sees it.
pub struct Conn {
    id: ConnId,
    /// Without program order, to prove that the tests notice.
    pub is_unordered: bool,
    /// Sent by the client and not run yet.
    pub input: VecDeque<Words>,
    /// Replies that leave when the tick has its ticket.
    pub out: Reply,
    db: u16,
    /// Answers that must come before anything more is run.
    awaited: usize,
    multi: Option<(Unit, u16)>,
    watched: Vec<Box<[u8]>>,
    watched_shards: BTreeSet<ShardId>,
    /// What is left to do of a WATCH over several shards.
    steps: Option<Vec<(ShardId, Unit)>>,
}

/// Everything of a shard's thread but the shard.
pub struct Front {
    id: ShardId,
    pub conns: Vec<Conn>,
    ready: Vec<usize>,
    /// On the home shard.
    pub hub: Option<Box<Hub>>,
    /// The snapshot is to be given up.
    pub aborted: Vec<u64>,
    now_us: u64,
}

/// What a thread of the process is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// Between ticks.
    Idle,
    /// Ran commands; has no ticket yet.
    Ran,
    /// Has its ticket; the replies have not left.
    Ended,
}

/// One shard's thread.
pub struct Thread {
    pub shard: Shard,
    pub front: Front,
    pub phase: Phase,
}

enum Flow {
    Done,
    Wait,
    Later,
}

impl Conn {
    pub fn new(id: u64, db: u16, is_unordered: bool) -> Self {
        Self {
            id: ConnId(id),
            is_unordered,
            input: VecDeque::new(),
            out: Reply::default(),
            db,
            awaited: 0,
            multi: None,
            watched: Vec::new(),
            watched_shards: BTreeSet::new(),
            steps: None,
        }
    }

    /// The client at its other end.
    pub fn client(&self) -> usize {
        self.id.0 as usize
    }

    pub fn is_idle(&self) -> bool {
        self.input.is_empty() && self.awaited == 0 && self.steps.is_none() && self.out.is_empty()
    }

    /// Commands of it are waited for, or it watches something.
    pub fn is_involved(&self) -> bool {
        self.awaited > 0 || !self.watched.is_empty()
    }

    pub fn can_go_on(&self) -> bool {
        !self.input.is_empty() && self.awaited == 0
    }
}

impl Front {
    pub fn new(id: ShardId, hub: Option<Box<Hub>>) -> Self {
        Self { id, conns: Vec::new(), ready: Vec::new(), hub, aborted: Vec::new(), now_us: 0 }
    }

    fn hub(&mut self) -> &mut Hub {
        self.hub.as_mut().expect("on the home shard")
    }

    fn watcher(&self, conn: ConnId) -> WatcherId {
        WatcherId { shard: self.id, conn: conn.0 }
    }
}

impl Thread {
    pub fn begin_tick(&mut self, now_us: u64) {
        assert_eq!(self.phase, Phase::Idle);
        self.front.now_us = now_us;
        self.shard.set_time(Time { us: now_us });
    }

    /// Goes on with the connections whose answers came.
    pub fn resume_ready(&mut self) {
        while let Some(index) = self.front.ready.pop() {
            if self.front.conns[index].steps.is_some() {
                self.next_step(index);
            }
            if self.front.conns[index].can_go_on() {
                self.consume(index);
            }
            self.shard.settle(&mut self.front);
        }
    }

    /// Runs what a connection has sent, as far as it goes.
    pub fn consume(&mut self, index: usize) {
        let mut pipeline = match self.front.conns[index].is_unordered {
            true => Pipeline::unordered(),
            false => Pipeline::default(),
        };
        // What is in the input may follow from a batch that has not run here.
        while self.front.conns[index].can_go_on() && !self.shard.is_behind() {
            let words = self.front.conns[index].input.pop_front().expect("it can go on");
            match self.command(index, &words, &mut pipeline) {
                Flow::Done => {}
                Flow::Wait => self.front.conns[index].awaited += 1,
                Flow::Later => {
                    self.front.conns[index].input.push_front(words);
                    break;
                }
            }
        }
        self.front.conns[index].awaited += usize::from(pipeline.is_open());
    }

    fn command(&mut self, index: usize, words: &Words, pipeline: &mut Pipeline) -> Flow {
        let Self { shard, front, .. } = self;
        // Long arguments come in buffers of their own.
        let is_long = |(_, word): &(u32, &Vec<u8>)| word.len() >= SHARED_ARG_LEN_BYTES;
        let shared: Vec<(u32, Bytes)> = (0..)
            .zip(words)
            .filter(is_long)
            .map(|(index, word)| (index, Bytes::from(word.clone())))
            .collect();
        let mut list: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
        for (index, value) in &shared {
            list[*index as usize] = value;
        }
        let args = Args::new(&list, &shared);
        let (id, command) = registry().find(args[0]).expect("a known command");
        assert!(command.accepts(args.len()), "{}", command.name);
        let conn = &mut front.conns[index];
        let is_session = matches!(command.handler, Handler::Session);
        if is_session || conn.multi.is_some() {
            return if pipeline.is_open() {
                Flow::Later
            } else {
                self.session_command(index, id, command, args)
            };
        }
        let (map, here) = (shard.map, shard.id);
        let place = place(command, args, map, here);
        let target = match place {
            Place::One(to) if to == here => Target::Here,
            Place::One(to) => Target::Shard(to),
            Place::Several(_) | Place::Everywhere => Target::Alone,
        };
        let admit = pipeline.admit(target);
        if admit == Admit::Later {
            return Flow::Later;
        }
        let caller = Caller::new(conn.id, RunFlags::default());
        let call = Invocation { id, db: conn.db, args };
        let keys = match place {
            Place::One(_) if admit == Admit::Run => {
                let mut out = std::mem::take(&mut conn.out);
                let ran = shard.run(caller, call, &mut out, front);
                front.conns[index].out = out;
                return if ran == Ran::Done { Flow::Done } else { Flow::Wait };
            }
            Place::One(to) => {
                shard.submit(pipeline, to, caller, call);
                return Flow::Done;
            }
            Place::Several(keys) => Some(keys),
            Place::Everywhere => None,
        };
        let mut unit = Unit::default();
        unit.add(call);
        shard.begin(keys, Work::Commands { caller, unit });
        Flow::Wait
    }

    fn session_command(&mut self, index: usize, id: CommandId, command: &Command, args: Args<'_>) -> Flow {
        let conn = &mut self.front.conns[index];
        match (command.name, &mut conn.multi) {
            ("multi", None) => {
                conn.multi = Some((Unit::default(), conn.db));
                conn.out.ok();
            }
            ("exec", Some(_)) => return self.exec(index),
            ("discard", Some(_)) => {
                conn.multi = None;
                conn.out.ok();
                self.drop_watches(index);
            }
            ("unwatch", None) => {
                conn.out.ok();
                self.drop_watches(index);
            }
            ("watch", None) => return self.watch(index, args),
            ("select", None) => {
                conn.db = database(args);
                conn.out.ok();
            }
            (name, Some((unit, db))) => {
                if name == "select" {
                    *db = database(args);
                }
                unit.push(id, *db, args);
                conn.out.simple("QUEUED");
            }
            (name, None) => panic!("the session does not know {name}"),
        }
        Flow::Done
    }

    /// A connection ends in the midst of whatever it has under way, and its client makes another, which is to be called `id`.
    /// Returns what the former was to those whose keys it watches.
    pub fn reconnect(&mut self, index: usize, id: u64) -> WatcherId {
        self.drop_watches(index);
        let conn = &mut self.front.conns[index];
        let old = std::mem::replace(conn, Conn::new(id, conn.db, conn.is_unordered));
        self.front.watcher(old.id)
    }

    fn drop_watches(&mut self, index: usize) {
        let conn = &mut self.front.conns[index];
        conn.watched.clear();
        let (id, shards) = (conn.id, std::mem::take(&mut conn.watched_shards));
        self.shard.unwatch(self.front.watcher(id), shards);
    }

    fn watch(&mut self, index: usize, args: Args<'_>) -> Flow {
        let map = self.shard.map;
        let (id, _) = registry().find(b"watch|here").expect("declared");
        let conn = &mut self.front.conns[index];
        let mut steps = Vec::new();
        for shard in 0..map.shards() as ShardId {
            let mut list: Vec<&[u8]> = vec![b"watch|here"];
            list.extend(args[1..].iter().filter(|key| map.shard_of(key) == shard));
            if list.len() > 1 {
                conn.watched.extend(list[1..].iter().map(|key| Box::from(*key)));
                conn.watched_shards.insert(shard);
                let mut unit = Unit::default();
                unit.push(id, conn.db, Args::new(&list, &[]));
                steps.push((shard, unit));
            }
        }
        conn.steps = Some(steps);
        self.next_step(index);
        Flow::Done
    }

    fn next_step(&mut self, index: usize) {
        let conn = &mut self.front.conns[index];
        let Some((to, unit)) = conn.steps.as_mut().expect("in steps").pop() else {
            conn.steps = None;
            return conn.out.ok();
        };
        conn.awaited += 1;
        let (conn, flags) = (conn.id, RunFlags::default());
        let caller = Caller { conn, flags, watcher: Some(self.front.watcher(conn)) };
        if to == self.shard.id {
            return self.shard.run_later(caller, unit);
        }
        let command = unit.commands().next().expect("one command");
        self.shard.submit(&mut Pipeline::default(), to, caller, command.invocation());
    }

    fn exec(&mut self, index: usize) -> Flow {
        let here = self.shard.id;
        let conn = &mut self.front.conns[index];
        let (unit, _) = conn.multi.take().expect("in a transaction");
        let watched = std::mem::take(&mut conn.watched);
        conn.watched_shards.clear();
        let plan = Plan::of(&unit, watched.iter().map(|key| &**key), self.shard.map);
        let (conn, flags) = (conn.id, RunFlags { atomic: true, ..RunFlags::default() });
        let watcher = (!watched.is_empty()).then(|| self.front.watcher(conn));
        let caller = Caller { conn, flags, watcher };
        let shard = &mut self.shard;
        match plan.owners.as_slice() {
            _ if plan.everywhere => shard.begin(None, Work::Commands { caller, unit }),
            [] => shard.run_later(caller, unit),
            [owner] if *owner == here => shard.run_later(caller, unit),
            [owner] if !plan.has_session => shard.dispatch_atomic(*owner, caller, &unit),
            _ => shard.begin(Some(plan.keys), Work::Commands { caller, unit }),
        }
        Flow::Wait
    }
}

fn database(args: Args<'_>) -> u16 {
    std::str::from_utf8(args[1]).expect("a number").parse().expect("a database")
}

impl Host for Front {
    fn reply(&mut self, conn: ConnId, bytes: &[u8], pieces: Vec<(usize, Bytes)>, is_last: bool) {
        if conn == MASTER_CONN {
            return self.hub().follower.epoch_applied(Ok(()));
        }
        // It may have ended.
        let Some(index) = self.conns.iter().position(|other| other.id == conn) else { return };
        let conn = &mut self.conns[index];
        conn.awaited = conn.awaited.checked_sub(usize::from(is_last)).expect("an answer that was awaited");
        if conn.steps.is_none() {
            conn.out.append_encoded(bytes, pieces);
        } else {
            assert_eq!(bytes, b"+OK\r\n", "a step of WATCH");
        }
        if conn.awaited == 0 {
            self.ready.push(index);
        }
    }

    fn session(&mut self, conn: ConnId, id: CommandId, args: Args<'_>, out: &mut Reply) -> Outcome {
        assert_eq!(registry().get(id).name, "select");
        if let Some(conn) = self.conns.iter_mut().find(|other| other.id == conn) {
            conn.db = database(args);
        }
        out.ok();
        Ok(())
    }

    fn upper(&mut self, _from: ShardId, message: Box<dyn Any + Send>) {
        match message.downcast::<Abort>() {
            Ok(abort) => self.aborted.push(abort.snapshot),
            Err(message) => self.hub().message(message),
        }
    }

    fn segment(&mut self, ticket: u64, segment: Segment, mark: Option<Mark>) {
        self.hub().segment(ticket, segment, mark);
    }

    fn share(&mut self, ticket: u64, share: Share) {
        self.hub().share(ticket, share);
    }

    fn epoch_applied(&mut self, _epoch: u64, outcome: Result<(), EpochError>) {
        self.hub().follower.epoch_applied(outcome);
    }

    fn load_answer(&mut self, from: ShardId, answer: LoadAnswer) {
        self.hub().follower.loads.answer(from, answer);
    }

    fn took(&mut self, _: ConnId, _: u64, _: Args<'_>) {}

    fn monotonic_ns(&mut self) -> u64 {
        self.now_us * 1000
    }
}
