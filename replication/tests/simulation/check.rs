//! The stream as witness: it must be an order in which a single keyspace, running the clients' operations one after the
//! other, gives the replies that the clients got.
//!
//! Every operation gets a point in the stream. One with effects has its own; one without (a read, or a write that
//! changed nothing) gets the earliest at which it would have had this reply, but not before any operation that was
//! answered before it was sent (law 4), nor before an earlier one of its connection (law 2). As all conditions are of
//! the form "not before", taking the earliest point decides whether there is any order at all.

use crate::DATABASES;
use crate::env::Env;
use crate::model::{State, Words};
use crate::single::World;
use crate::stock::{FullSync, StockReplica};
use crate::stream::{self, Item};
use crate::workload::{Kind, Op, READ_ONLY};
use std::collections::BTreeMap;

/// The stream as witness.
pub struct Witness {
    items: Vec<Item>,
    /// The keyspace before the first item and after each.
    states: Vec<State>,
    /// By operation: the number of its item, from 1.
    item_of: Vec<Option<usize>>,
    /// By item, from 0.
    op_of: Vec<Option<usize>>,
}

/// Operations that one process answered while its dataset was that of one stretch of a stream.
pub struct Era {
    /// In the order in which they were sent.
    pub ops: Vec<usize>,
    /// Whatever was sent from this moment on has its effects in the stream.
    pub activated: u64,
    /// On a replica: the ends of epochs, each with the moment from which on readers may see it. They see nothing else.
    pub epochs: BTreeMap<u64, u64>,
}

/// Checks a run that has come to its end.
///
/// # Panics
/// With the law that was broken.
pub fn check(world: &mut World) {
    let (base, start, bytes) = log_of(world);
    let witness = Witness::of_log(base, start, &bytes, &world.env);
    for (offset, state) in world.rests.iter().filter(|(offset, _)| *offset >= start) {
        assert_same(&witness.at(*offset), state, "law 4: the stream and the shards, at rest");
    }
    check_replicas(world, &witness, start, &bytes);
    let activated = world.hub().activated.expect("a replica came");
    // Who closed its connection was not answered.
    let ops = (0..world.env.ops.len()).filter(|op| world.env.ops[*op].replied.is_some()).collect();
    check_replies(&world.env, &witness, &Era { ops, activated, epochs: BTreeMap::new() });
}

/// Tells what happened, for who replays one seed.
pub fn print(world: &mut World) {
    for (index, op) in world.env.ops.iter().enumerate() {
        eprintln!("operation {index}: {}", show_op(op));
    }
    let (base, start, bytes) = log_of(world);
    Witness::of_log(base, start, &bytes, &world.env).print();
}

/// The first cut: the dataset then, its offset, and the stream from there on.
fn log_of(world: &mut World) -> (State, u64, Vec<u8>) {
    let hub = world.hub();
    let base = hub.cuts.borrow()[0].clone();
    let start = FullSync::parse(&hub.links[0].received).expect("at rest").offset;
    let mut slices = Vec::new();
    hub.home.log().slices(start, u64::MAX, usize::MAX, &mut slices);
    (base, start, slices.concat())
}

/// # Panics
/// If they differ, with a key in which they do.
pub fn assert_same(left: &State, right: &State, what: &str) {
    if left == right {
        return;
    }
    for (db, (left, right)) in left.dbs.iter().zip(&right.dbs).enumerate() {
        for key in left.keys().chain(right.keys()) {
            let (left, right) = (left.get(key), right.get(key));
            assert_eq!(left, right, "{what}, differ in key {} of database {db}", key.escape_ascii());
        }
    }
}

/// A command that tells of a key whose time was over.
fn is_expiry(words: &Words) -> bool {
    words[0] == b"UNLINK"
}

impl Witness {
    fn of_log(base: State, start: u64, bytes: &[u8], env: &Env) -> Self {
        let items = stream::items(bytes, start);
        let mut states = vec![base];
        for item in &items {
            states.push(item.after(states.last().expect("the first")));
        }
        Self::new(items, states, env)
    }

    /// `states`: the keyspace before the first item and after each.
    pub fn new(items: Vec<Item>, states: Vec<State>, env: &Env) -> Self {
        let mut item_of = vec![None; env.ops.len()];
        let mut op_of = vec![None; items.len()];
        for (index, item) in items.iter().enumerate() {
            for (_, words) in &item.commands {
                let Some(op) = env.tags.op_of(words) else {
                    let is_known = is_expiry(words) || item.commands.len() > 1;
                    assert!(is_known, "law 4: nobody wrote {}", show(words));
                    continue;
                };
                assert!(op_of[index].is_none_or(|other| other == op), "law 3: operations mixed in one block");
                let old = item_of[op].replace(index + 1);
                assert!(
                    old.is_none_or(|old| old == index + 1),
                    "law 3: operation {op} is in the stream in pieces: {}",
                    show_op(&env.ops[op])
                );
                op_of[index] = Some(op);
            }
            if let Some(op) = op_of[index] {
                assert_eq!(item.is_block, env.ops[op].kind == Kind::Exec, "law 3: {}", show_op(&env.ops[op]));
            }
        }
        Self { items, states, item_of, op_of }
    }

    pub fn print(&self) {
        for (index, item) in self.items.iter().enumerate() {
            let commands: Vec<String> =
                item.commands.iter().map(|(db, words)| format!("{db}: {}", show(words))).collect();
            eprintln!("{} to offset {}: {}", index + 1, item.end, commands.join("; "));
        }
    }

    /// The number of the state at an offset, which must be one between items.
    fn index_at(&self, offset: u64) -> usize {
        self.items.partition_point(|item| item.end <= offset)
    }

    /// The keyspace at an offset.
    fn at(&self, offset: u64) -> State {
        self.states[self.index_at(offset)].clone()
    }

    /// The keyspace that the operation of item `point` found: what was over by then is gone.
    fn before(&self, point: usize) -> State {
        let mut state = self.states[point - 1].clone();
        // Which database each was before the operation exchanged them.
        let mut before: Vec<u16> = (0..DATABASES as u16).collect();
        for (db, words) in &self.items[point - 1].commands {
            if is_expiry(words) {
                state.run(&mut before[usize::from(*db)].clone(), words);
            } else if words[0].eq_ignore_ascii_case(b"SWAPDB") {
                let [first, second] = stream::databases(words);
                before.swap(first, second);
            }
        }
        state
    }

    /// The last item up to `point` that touched one of the keys; 0 if none did.
    fn last_touch(&self, db: u16, keys: &[Vec<u8>], point: usize) -> usize {
        (1..=point).rev().find(|at| self.touches(db, keys, *at)).unwrap_or(0)
    }

    /// Whether item `at` touched one of the keys, be it only on the way.
    fn touches(&self, db: u16, keys: &[Vec<u8>], at: usize) -> bool {
        self.touches_what_lives(db, keys, at, 0)
    }

    /// As `touches`. That a key goes whose time was over before `then_ms` is none.
    fn touches_what_lives(&self, db: u16, keys: &[Vec<u8>], at: usize, then_ms: u64) -> bool {
        let mut state = self.states[at - 1].clone();
        self.items[at - 1].commands.iter().any(|(command_db, words)| {
            let before = state.clone();
            state.run(&mut command_db.clone(), words);
            let was_over = |key: &[u8]| {
                let expiry_ms = before.get(db, key).and_then(|value| value.expiry_ms);
                is_expiry(words) && expiry_ms.is_some_and(|at_ms| at_ms < then_ms)
            };
            keys.iter().any(|key| !state.is_untouched_since(&before, db, key) && !was_over(key))
        })
    }
}

fn show(words: &Words) -> String {
    words.iter().map(|word| word.escape_ascii().to_string()).collect::<Vec<_>>().join(" ")
}

pub fn show_op(op: &Op) -> String {
    let commands: Vec<String> = op.commands.iter().map(show).collect();
    let reply = op.reply.escape_ascii();
    format!(
        "client {} of process {} in database {}, sent at {}, answered at {:?}: {} -> {reply}",
        op.client,
        op.process,
        op.db,
        op.sent,
        op.replied,
        commands.join("; ")
    )
}

/// Runs an operation on a keyspace: its reply.
fn run_op(op: &Op, state: &mut State) -> Vec<u8> {
    let mut db = op.db;
    let is_refused = op.is_refused();
    let mut run = |words: &Words| match is_refused && is_write(words) {
        true => READ_ONLY.to_vec(),
        false => state.run(&mut db, words),
    };
    let replies: Vec<Vec<u8>> = op.body().iter().map(&mut run).collect();
    match op.kind {
        Kind::Exec => crate::model::array(&replies),
        _ => replies.concat(),
    }
}

fn is_write(words: &Words) -> bool {
    const READS: [&[u8]; 7] = [b"GET", b"MGET", b"EXISTS", b"DBSIZE", b"LRANGE", b"SELECT", b"PING"];
    !READS.iter().any(|name| words[0].eq_ignore_ascii_case(name))
}

/// Whether an operation without effects would have had its reply in this state.
fn is_answer_in(op: &Op, state: &State) -> bool {
    let has_reply = |seen: &State| {
        let mut after = seen.clone();
        run_op(op, &mut after) == op.reply && after.has_same_data(seen)
    };
    if has_reply(state) {
        return true;
    }
    // A replica hides what is over, and keeps it until its master says so. It counts it.
    let counts = op.body().iter().any(|words| words[0].eq_ignore_ascii_case(b"DBSIZE"));
    op.may_be_replicas()
        && !counts
        && state
            .ends_within(op.sent_ms, op.replied_ms)
            .into_iter()
            .any(|at_ms| has_reply(&state.hidden(at_ms)))
}

/// What a connection watches.
struct Watch {
    keys: Vec<Vec<u8>>,
    /// The operation, and its earliest point.
    op: usize,
    point: usize,
    /// What was read since.
    reads: Vec<(usize, usize)>,
}

/// Looks for a point in the stream for every operation.
///
/// # Panics
/// With the law that was broken, if there is none.
pub fn check_replies(env: &Env, witness: &Witness, era: &Era) {
    let ops = &env.ops;
    let activated = era.activated;
    // By state: from when on readers of a replica may see it.
    let mut seen_since = vec![None; witness.states.len()];
    for (end, moment) in &era.epochs {
        seen_since[witness.index_at(*end)].get_or_insert(*moment);
    }
    let mut events: Vec<(u64, usize, bool)> = Vec::new();
    for index in era.ops.iter().copied() {
        let op = &ops[index];
        events.push((op.sent, index, false));
        events.push((op.replied.expect("at rest"), index, true));
    }
    events.sort_unstable();
    // What is sent now comes behind this.
    let mut answered = 0;
    let mut bounds = vec![0; ops.len()];
    let clients = era.ops.iter().map(|op| ops[*op].client + 1).max().unwrap_or(0);
    let mut last_point = vec![0; clients];
    let mut watches: Vec<Option<Watch>> = (0..clients).map(|_| None).collect();
    for (_, index, is_reply) in events {
        if !is_reply {
            bounds[index] = answered;
            continue;
        }
        let op = &ops[index];
        assert!(!op.is_refused() || op.may_be_replicas(), "law 4: a master refuses {}", show_op(op));
        // What its process said it had applied, too.
        let floor = if op.is_replicas() { witness.index_at(op.floor) } else { 0 };
        let lower = last_point[op.client].max(bounds[index]).max(floor);
        let point = match (op.kind, witness.item_of[index]) {
            (_, Some(point)) => {
                assert!(
                    point > lower,
                    "law {}: the stream has operation {index} at {point}, though it comes behind {lower}: {}",
                    if point > bounds[index] { 2 } else { 4 },
                    show_op(op)
                );
                let mut state = witness.before(point);
                let reply = run_op(op, &mut state);
                assert_eq!(
                    reply.escape_ascii().to_string(),
                    op.reply.escape_ascii().to_string(),
                    "law 4: at its point in the stream operation {index} is answered otherwise: {}",
                    show_op(op)
                );
                assert!(
                    state.has_same_data(&witness.states[point]),
                    "law 4: operation {index} and its effects differ: {}",
                    show_op(op)
                );
                point
            }
            (Kind::Watch | Kind::Unwatch, None) => lower,
            (_, None) if op.sent <= activated => lower,
            (_, None) if op.is_aborted() => lower,
            (_, None) => {
                let replied = op.replied.expect("it was answered");
                let may_see =
                    |at: usize| !op.is_replicas() || seen_since[at].is_some_and(|moment| moment <= replied);
                let is_found = |at: &usize| may_see(*at) && is_answer_in(op, &witness.states[*at]);
                (lower..witness.states.len()).find(is_found).unwrap_or_else(|| {
                    witness.print();
                    panic!(
                        "law 2, 3, 4 or 7: operation {index}, behind {lower} (client {}, answered {}, applied \
                         {floor}), has no point: {}",
                        last_point[op.client],
                        bounds[index],
                        show_op(op)
                    )
                })
            }
        };
        match op.kind {
            Kind::Watch => {
                let keys = op.body()[0][1..].to_vec();
                watches[op.client] = Some(Watch { keys, op: index, point, reads: Vec::new() });
            }
            Kind::Unwatch => watches[op.client] = None,
            Kind::Exec => {
                if let Some(watch) = watches[op.client].take()
                    && ops[watch.op].sent > activated
                    && !op.may_be_replicas()
                {
                    check_watch(env, witness, &watch, index, point);
                }
            }
            Kind::Plain => {
                if let Some(watch) = &mut watches[op.client]
                    && op.body()[0][0] == b"GET"
                {
                    watch.reads.push((index, point));
                }
            }
        }
        last_point[op.client] = point;
        answered = answered.max(point);
    }
}

/// An `EXEC` that came through saw no change of what was watched; one that did not had a reason.
fn check_watch(env: &Env, witness: &Witness, watch: &Watch, exec: usize, point: usize) {
    let (ops, op) = (&env.ops, &env.ops[exec]);
    let watched_at = ops[watch.op].replied.expect("at rest");
    if op.is_aborted() {
        let is_reason = |at: usize| witness.touches(op.db, &watch.keys, at);
        let has_expiry = |at: usize| {
            watch
                .keys
                .iter()
                .any(|key| witness.states[at].get(op.db, key).is_some_and(|value| value.expiry_ms.is_some()))
        };
        let has_reason = (watch.point + 1..witness.states.len()).any(is_reason) || has_expiry(watch.point);
        assert!(has_reason, "law 3: nothing watched was touched, and yet: {}", show_op(op));
        return;
    }
    if witness.item_of[exec].is_none() {
        return;
    }
    // What was over when its watch began may go.
    let then_ms = ops[watch.op].replied_ms;
    let touches = |at: &usize| witness.touches_what_lives(op.db, &watch.keys, *at, then_ms);
    for at in (watch.point + 1..point).filter(touches) {
        let Some(writer) = witness.op_of[at - 1] else { continue };
        assert!(
            ops[writer].sent < watched_at,
            "law 3: {} came through, though behind its WATCH there is {}",
            show_op(op),
            show_op(&ops[writer])
        );
    }
    let touched = witness.last_touch(op.db, &watch.keys, point - 1);
    for (read, read_point) in &watch.reads {
        let read = &ops[*read];
        let holds = ((*read_point).max(touched)..point)
            .any(|at| run_op(read, &mut witness.states[at].clone()) == read.reply);
        assert!(
            holds,
            "law 3: {} came through, though this was no longer true: {}",
            show_op(op),
            show_op(read)
        );
        // What the transaction itself found over was watched while it was there.
        let is_over = witness.items[point - 1]
            .commands
            .iter()
            .any(|(db, words)| *db == op.db && is_expiry(words) && words[1] == read.body()[0][1]);
        assert!(
            !is_over || read.reply == b"$-1\r\n",
            "law 3: {} came through with an expired key",
            show_op(op)
        );
    }
}

/// Every replica has loaded the dataset at its offset, and has had the stream from there on.
fn check_replicas(world: &mut World, witness: &Witness, start: u64, bytes: &[u8]) {
    for link in world.hub().links.iter().filter(|link| !link.is_closed) {
        let sync = FullSync::parse(&link.received).expect("at rest");
        let mut follower = StockReplica::new(sync.rdb);
        assert_same(
            &follower.state(),
            &witness.at(sync.offset),
            "law 5: a snapshot and the stream at its offset",
        );
        // The stream begins with SELECT, which who follows from the start may not need.
        assert!(sync.offset >= start);
        assert_eq!(
            sync.stream,
            &bytes[(sync.offset - start) as usize..],
            "law 4: a replica has another stream"
        );
        for (words, _) in stream::commands(sync.stream, sync.offset) {
            follower.apply(&words);
        }
        let last = witness.states.last().expect("the first");
        assert_same(&follower.state(), last, "law 4: a replica and the stream, in the end");
    }
}
