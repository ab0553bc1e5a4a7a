//! What the clients send. Every write can be recognized in the stream: by the value it sets, which names the operation,
//! or by the spelling of its verb in upper and lower case, which is unique among operations with the same words.

use crate::DATABASES;
use crate::model::Words;
use braid_core::resp::parse::BIG_BULK_LEN_BYTES;
use std::collections::BTreeMap;

/// How a replica refuses to write.
pub const READ_ONLY: &[u8] = b"-READONLY You can't write against a read only replica.\r\n";

/// What the clients of a run do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scenario {
    /// Everything at once.
    Mixed,
    /// The same, with little that concerns several shards but pipelines.
    Calm,
    /// Some set all keys to one value, the others read them all.
    AllOrNothing,
    /// All count up the same counters by `WATCH`, `GET`, `MULTI`, `SET`, `EXEC`.
    Counters,
    /// Transactions over several shards, and hardly anything else, on the same few keys everywhere.
    Crowded,
    /// Writers set objects and then name them in a queue; readers read the queue and then the object.
    Litmus { is_ordered: bool },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Plain,
    /// `MULTI`, the commands, `EXEC`.
    Exec,
    Watch,
    Unwatch,
}

/// One operation of a client: a command, or a transaction with its frame.
pub struct Op {
    pub client: usize,
    pub db: u16,
    pub kind: Kind,
    pub commands: Vec<Words>,
    /// Moments, in order of all sends and replies.
    pub sent: u64,
    pub replied: Option<u64>,
    pub sent_ms: u64,
    pub replied_ms: u64,
    /// The process that it was sent to, by its incarnation.
    pub process: usize,
    /// Whether that was a replica, and how often its role had changed.
    pub sent_role: (bool, u32),
    pub replied_role: (bool, u32),
    /// As a replica it had applied the stream up to here when this was sent.
    pub floor: u64,
    /// The last command's reply.
    pub reply: Vec<u8>,
}

impl Op {
    /// The commands without their frame.
    pub fn body(&self) -> &[Words] {
        match self.kind {
            Kind::Exec => &self.commands[1..self.commands.len() - 1],
            _ => &self.commands,
        }
    }

    pub fn is_aborted(&self) -> bool {
        self.kind == Kind::Exec && self.reply == b"*-1\r\n"
    }

    /// A replica refused what it was to write.
    pub fn is_refused(&self) -> bool {
        self.reply.windows(READ_ONLY.len()).any(|part| part == READ_ONLY)
    }

    /// It ran while its process was a replica, or while it became one or a master.
    pub fn may_be_replicas(&self) -> bool {
        self.sent_role.0 || self.sent_role != self.replied_role
    }

    /// It ran on a replica, from its sending to its reply.
    pub fn is_replicas(&self) -> bool {
        self.sent_role == self.replied_role && self.sent_role.0
    }
}

/// A client and where it stands.
pub struct Client {
    pub db: u16,
    pub index: usize,
    ops_left: usize,
    /// Keys of a `WATCH` whose `EXEC` is still to come, and whether they were read.
    watched: Option<(Vec<Vec<u8>>, bool)>,
    /// Sends nothing more before this operation is answered.
    awaited: Option<usize>,
    counter: usize,
}

/// Names for what is written.
#[derive(Default)]
pub struct Tags {
    pub verbatim: BTreeMap<Words, usize>,
}

pub fn words(line: &str) -> Words {
    line.split(' ').map(|word| word.as_bytes().to_vec()).collect()
}

impl Tags {
    /// Spells the verb as nobody did with these words. None: every spelling was used.
    fn tag(&mut self, op: usize, line: &str) -> Option<Words> {
        let mut words = words(line);
        for spelling in 1..1u32 << words[0].len() {
            for (bit, letter) in words[0].iter_mut().enumerate() {
                let is_lower = spelling >> bit & 1 == 1;
                *letter = if is_lower { letter.to_ascii_lowercase() } else { letter.to_ascii_uppercase() };
            }
            if !self.verbatim.contains_key(&words) {
                self.verbatim.insert(words.clone(), op);
                return Some(words);
            }
        }
        None
    }

    /// The operation that an effect comes from. None: a key's time was over.
    pub fn op_of(&self, effect: &Words) -> Option<usize> {
        if let Some(op) = self.verbatim.get(effect) {
            return Some(*op);
        }
        effect[1..].iter().find_map(|word| {
            let digits = word.strip_prefix(b"v")?;
            let len = digits.iter().take_while(|byte| byte.is_ascii_digit()).count();
            std::str::from_utf8(&digits[..len]).ok()?.parse().ok()
        })
    }
}

/// The keys of a run.
pub fn key(n: usize) -> String {
    format!("k{n}")
}

impl Client {
    pub fn new(index: usize, db: u16, ops_left: usize) -> Self {
        Self { db, index, ops_left, watched: None, awaited: None, counter: 0 }
    }

    /// The same on another connection, by another name.
    pub fn on_another(&self, index: usize) -> Self {
        Self::new(index, self.db, self.ops_left)
    }

    pub fn is_done(&self) -> bool {
        self.ops_left == 0 && self.watched.is_none()
    }

    /// It begins nothing more.
    pub fn stop(&mut self) {
        self.ops_left = 0;
    }

    /// The next operation, if the client has one now. `id`: the number it will have.
    pub fn next(
        &mut self,
        scenario: Scenario,
        keys: usize,
        rng: &mut fastrand::Rng,
        tags: &mut Tags,
        ops: &[Op],
    ) -> Option<(Kind, Vec<Words>)> {
        let id = ops.len();
        if let Some(awaited) = self.awaited {
            ops[awaited].replied?;
            self.awaited = None;
        }
        if self.is_done() {
            return None;
        }
        self.ops_left = self.ops_left.saturating_sub(1);
        let (kind, commands) = match scenario {
            Scenario::Calm if self.watched.is_none() && rng.u8(..60) > 0 => {
                let roll = rng.u8(..SINGLE_KEY_ROLLS);
                (Kind::Plain, vec![plain(id, keys, roll, rng, tags)])
            }
            Scenario::Mixed | Scenario::Calm => self.mixed(id, keys, rng, tags),
            Scenario::AllOrNothing => self.all_or_nothing(id, keys, rng),
            Scenario::Counters => self.count_up(id, keys, rng, ops),
            Scenario::Crowded => self.crowded(id, keys, rng, tags),
            Scenario::Litmus { .. } => self.litmus(id),
        };
        let waits = match scenario {
            Scenario::Counters => true,
            Scenario::Litmus { .. } | Scenario::Crowded => rng.u8(..8) == 0,
            _ => rng.u8(..4) == 0,
        };
        if waits {
            self.awaited = Some(id);
        }
        Some((kind, commands))
    }

    fn mixed(
        &mut self,
        id: usize,
        keys: usize,
        rng: &mut fastrand::Rng,
        tags: &mut Tags,
    ) -> (Kind, Vec<Words>) {
        match self.watched.take() {
            Some((watched, false)) => {
                let name = String::from_utf8(watched[0].clone()).expect("text");
                self.watched = Some((watched, true));
                return (Kind::Plain, vec![words(&format!("GET {name}"))]);
            }
            Some((watched, true)) => {
                if rng.u8(..8) == 0 {
                    return (Kind::Unwatch, vec![words("UNWATCH")]);
                }
                let name = String::from_utf8(watched[0].clone()).expect("text");
                let mut body = vec![words(&format!("SET {name} v{id}"))];
                if rng.bool() {
                    body.insert(0, words(&format!("GET {name}")));
                    body.push(words(&format!("SET {} v{id}", key(rng.usize(..keys)))));
                }
                return (Kind::Exec, framed(body));
            }
            None => {}
        }
        match rng.u8(..20) {
            0 => {
                let names: Vec<String> = (0..rng.usize(1..4)).map(|_| key(rng.usize(..keys))).collect();
                self.watched =
                    Some((names.iter().map(|name| name.clone().into_bytes()).collect(), rng.bool()));
                (Kind::Watch, vec![words(&format!("WATCH {}", names.join(" ")))])
            }
            1..5 => {
                let mut body = Vec::new();
                for _ in 0..rng.usize(1..5) {
                    let roll = rng.u8(..100);
                    let command = plain(id, keys, roll, rng, tags);
                    // It counts keys whose time is over as long as nobody looked at them, and the next command may.
                    if command[0] != b"DBSIZE" {
                        body.push(command);
                    }
                }
                if rng.u8(..4) == 0 {
                    let name = key(rng.usize(..keys));
                    body.push(words(&format!("SET {name} v{id}.x")));
                    body.push(words(&format!("PEXPIRE {name} {}", rng.u32(1..20))));
                }
                if rng.u8(..6) == 0 {
                    let db = rng.usize(..DATABASES);
                    body.insert(rng.usize(..=body.len()), words(&format!("SELECT {db}")));
                    // Later commands of the connection are for the database it was in before.
                    body.push(words(&format!("SELECT {}", self.db)));
                }
                (Kind::Exec, framed(body))
            }
            _ => {
                let roll = rng.u8(..100);
                (Kind::Plain, vec![plain(id, keys, roll, rng, tags)])
            }
        }
    }

    /// On a replica the writes are refused, but only when they have what they lock.
    fn crowded(
        &mut self,
        id: usize,
        keys: usize,
        rng: &mut fastrand::Rng,
        tags: &mut Tags,
    ) -> (Kind, Vec<Words>) {
        let mut names: Vec<String> = (0..keys).map(key).collect();
        rng.shuffle(&mut names);
        names.truncate(rng.usize(2..5));
        let pairs: Vec<String> = names.iter().map(|name| format!("{name} v{id}")).collect();
        let each =
            |verb: &str, rest: &[String]| rest.iter().map(|rest| words(&format!("{verb} {rest}"))).collect();
        let mut block: Vec<Words> = match rng.u8(..16) {
            0..4 => return (Kind::Plain, vec![words(&format!("MGET {}", names.join(" ")))]),
            4..7 => return (Kind::Plain, vec![words(&format!("MSET {}", pairs.join(" ")))]),
            7..9 => {
                let verb = ["RENAME", "COPY"][rng.usize(..2)];
                let line = format!("{verb} {} {}", names[0], names[1]);
                let line = tags.tag(id, &line).unwrap_or_else(|| words(&format!("GET {}", names[0])));
                return (Kind::Plain, vec![line]);
            }
            9..10 => return (Kind::Plain, vec![words(&format!("MSETNX {}", pairs.join(" ")))]),
            10..12 => each("GET", &names),
            12..14 => each("SET", &pairs),
            _ => each("RPUSH", &pairs),
        };
        // A session's command makes it a transaction of several steps, though its keys may be one shard's.
        if rng.u8(..4) == 0 {
            block.push(words(&format!("SELECT {}", self.db)));
        }
        (Kind::Exec, framed(block))
    }

    fn all_or_nothing(&mut self, id: usize, keys: usize, rng: &mut fastrand::Rng) -> (Kind, Vec<Words>) {
        let names: Vec<String> = (0..keys).map(key).collect();
        let is_writer = self.index.is_multiple_of(2);
        let pairs: Vec<String> = names.iter().map(|name| format!("{name} v{id}")).collect();
        match (is_writer, rng.bool()) {
            (true, true) => (Kind::Plain, vec![words(&format!("MSET {}", pairs.join(" ")))]),
            (true, false) => {
                (Kind::Exec, framed(pairs.iter().map(|pair| words(&format!("SET {pair}"))).collect()))
            }
            (false, true) => (Kind::Plain, vec![words(&format!("MGET {}", names.join(" ")))]),
            (false, false) => {
                (Kind::Exec, framed(names.iter().map(|name| words(&format!("GET {name}"))).collect()))
            }
        }
    }

    fn count_up(
        &mut self,
        id: usize,
        keys: usize,
        rng: &mut fastrand::Rng,
        ops: &[Op],
    ) -> (Kind, Vec<Words>) {
        match self.watched.take() {
            None => {
                self.counter = rng.usize(..keys.min(2));
                // A key of another shard in the same watch.
                let names = [key(self.counter), key(rng.usize(..keys))];
                self.watched = Some((names.iter().map(|name| name.clone().into_bytes()).collect(), false));
                (Kind::Watch, vec![words(&format!("WATCH {}", names.join(" ")))])
            }
            Some((watched, false)) => {
                self.watched = Some((watched, true));
                (Kind::Plain, vec![words(&format!("GET {}", key(self.counter)))])
            }
            Some(_) => {
                let read = ops.iter().rfind(|op| op.client == self.index).expect("the read came before");
                let count = count_in(&read.reply).unwrap_or(0) + 1;
                (Kind::Exec, framed(vec![words(&format!("SET {} v{id}.{count}", key(self.counter)))]))
            }
        }
    }

    /// Writers: `SET obj i`, `SET queue i`. Readers: `GET queue`, `GET obj`.
    fn litmus(&mut self, id: usize) -> (Kind, Vec<Words>) {
        self.counter += 1;
        let is_first = self.counter % 2 == 1;
        let line = match (self.index.is_multiple_of(2), is_first) {
            // One writer, so that the numbers only grow.
            (true, true) => format!("SET obj v{id}.{}", self.counter.div_ceil(2)),
            (true, false) => format!("SET queue v{id}.{}", self.counter.div_ceil(2)),
            (false, true) => "GET queue".into(),
            (false, false) => "GET obj".into(),
        };
        (Kind::Plain, vec![words(&line)])
    }
}

/// The count behind the point of a value `v12.3` in a reply.
pub fn count_in(reply: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(reply).expect("text");
    text.lines().nth(1)?.split_once('.')?.1.parse().ok()
}

fn framed(body: Vec<Words>) -> Vec<Words> {
    [vec![words("MULTI")], body, vec![words("EXEC")]].concat()
}

/// The first so many kinds of [`plain`] have one key each.
const SINGLE_KEY_ROLLS: u8 = 50;

/// `roll`: one of a hundred kinds.
fn plain(id: usize, keys: usize, roll: u8, rng: &mut fastrand::Rng, tags: &mut Tags) -> Words {
    let name = |rng: &mut fastrand::Rng| key(rng.usize(..keys));
    let (a, b) = (name(rng), name(rng));
    let some: Vec<String> = (0..rng.usize(1..5)).map(|_| name(rng)).collect();
    let pairs: Vec<String> =
        some.iter().enumerate().map(|(index, name)| format!("{name} v{id}.{index}")).collect();
    let (some, pairs) = (some.join(" "), pairs.join(" "));
    let db = rng.usize(..DATABASES);
    let line = match roll {
        0..15 => format!("GET {a}"),
        // Long enough to go into the stream, and out of it, by reference.
        15 if rng.u8(..16) == 0 => format!("SET {a} v{id}.{}", "x".repeat(BIG_BULK_LEN_BYTES)),
        15..32 => format!("SET {a} v{id}"),
        32..37 => format!("SET {a} v{id} PX {}", rng.u32(1..20)),
        37..40 => format!("GETSET {a} v{id}"),
        40..44 => format!("RPUSH {a} v{id}"),
        44..46 => format!("LPUSH {a} v{id}.1 v{id}.2"),
        46..50 => format!("LRANGE {a} 0 -1"),
        50..58 => format!("MSET {pairs}"),
        58..60 => format!("MSETNX {pairs}"),
        60..63 => format!("EXISTS {some}"),
        63..65 => "DBSIZE".into(),
        65..75 => format!("MGET {some}"),
        other => {
            let tagged = match other {
                75..80 => format!("DEL {some}"),
                80..86 => format!("RENAME {a} {b}"),
                86..89 => format!("COPY {a} {b}"),
                89..91 => format!("COPY {a} {b} DB {db} REPLACE"),
                91..93 => format!("MOVE {a} {db}"),
                93..94 => format!("PERSIST {a}"),
                94..97 => format!("LPOP {a}"),
                97..98 => format!("INCR {a}"),
                98..99 => "FLUSHALL".into(),
                _ => format!("SWAPDB {} {db}", rng.usize(..DATABASES)),
            };
            return tags.tag(id, &tagged).unwrap_or_else(|| words("DBSIZE"));
        }
    };
    words(&line)
}
