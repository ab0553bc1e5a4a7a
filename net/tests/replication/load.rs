//! A write load over all families of commands, until it is told to stop.

// Every test binary uses its own part of this.
#![allow(dead_code)]

use super::common::{TIMEOUT, call, key_per_shard, number_from_env, wait_until};
use braid_bench::client::{Client, Value};
use braid_bench::cmd;
use braid_bench::peers::Peer;
use braid_bench::wait;
use braid_core::command::registry;
use fastrand::Rng;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::Duration;

/// Keys per family and database.
const KEYS: u32 = 60;
/// Databases that are written to. 5 and 6 are also exchanged, 7 is also emptied.
const DATABASES: [u32; 6] = [0, 1, 5, 6, 7, 15];

type Words = Vec<Vec<u8>>;

/// Threads that write until they are told to stop.
pub struct Load<'scope> {
    state: &'scope State,
    threads: Vec<ScopedJoinHandle<'scope, ()>>,
}

/// What its threads share.
#[derive(Default)]
pub struct State {
    stopping: AtomicBool,
    /// Between two pipelines of a thread: where many servers share the machine, all of them have to follow.
    pub pause: Duration,
    /// The server may be killed and started again: who was writing to it goes on.
    pub may_die: AtomicBool,
    pub has_failed: AtomicBool,
    pub commands: AtomicU64,
}

/// How many commands the load runs before something ends.
pub fn enough() -> u64 {
    number_from_env("BRAID_REPLICATION_COMMANDS", 5_000)
}

impl State {
    /// Waits until so many commands more were run.
    pub fn pass(&self, commands: u64) {
        let end = self.commands.load(Ordering::Relaxed) + commands;
        wait_until("the load has run", || {
            assert!(!self.has_failed.load(Ordering::Relaxed), "the load failed");
            self.commands.load(Ordering::Relaxed) >= end
        });
    }
}

impl<'scope> Load<'scope> {
    pub fn start(scope: &'scope Scope<'scope, '_>, peer: &Peer, shards: usize, state: &'scope State) -> Self {
        let address = peer.addr();
        let threads =
            (0..3).map(|thread| scope.spawn(move || write(address, shards, thread, state))).collect();
        Self { state, threads }
    }

    pub fn stop(mut self) {
        self.state.stopping.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|thread| thread.join().expect("a writer succeeds"));
    }
}

impl Drop for Load<'_> {
    fn drop(&mut self) {
        // A test that fails in between must not wait for its threads for ever.
        self.state.stopping.store(true, Ordering::Relaxed);
    }
}

/// Says that a thread of the load failed, should it.
struct Alarm<'a>(&'a State);

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.has_failed.store(true, Ordering::Relaxed);
        }
    }
}

/// Sends a pipeline until the server has answered it.
fn exchange(client: &mut Client, address: SocketAddr, pipeline: &[Words], state: &State) -> Vec<Value> {
    let may_die = || state.may_die.load(Ordering::Relaxed);
    let mut replies = client.pipeline(pipeline);
    if replies.is_err() && may_die() {
        wait::until("the server is there again", TIMEOUT, || {
            let Ok(mut fresh) = Client::connect(address) else { return Ok(false) };
            let Ok(pong) = fresh.command(&["GET", "marker"]) else { return Ok(false) };
            *client = fresh;
            Ok(!pong.is_error())
        })
        .unwrap_or_else(|error| panic!("{error}"));
        replies = client.pipeline(pipeline);
    }
    replies.expect("the server stays")
}

fn write(address: SocketAddr, shards: usize, thread: u64, state: &State) {
    let _alarm = Alarm(state);
    let mut rng = Rng::with_seed(thread);
    let mut client = Client::connect(address).expect("the server accepts connections");
    // Families that do not exist yet are left out.
    let names = call(&mut client, &["COMMAND", "LIST"]);
    let names: BTreeSet<String> =
        names.items().expect("an array").iter().map(|name| name.text().to_ascii_uppercase()).collect();
    let spread = key_per_shard("tx:", shards.max(2));
    while !state.stopping.load(Ordering::Relaxed) {
        let mut pipeline: Vec<Words> = vec![cmd!["SELECT", DATABASES[rng.usize(..DATABASES.len())]]];
        for _ in 0..rng.usize(1..40) {
            match rng.u8(..20) {
                0 => transaction(&mut rng, &spread, &mut pipeline),
                1 => {
                    let value = rng.u32(..);
                    let mut mset = cmd!["MSET"];
                    spread.iter().for_each(|key| mset.extend(cmd![format!("m{key}"), value]));
                    pipeline.push(mset);
                }
                2 => pipeline.push(cmd!["SELECT", DATABASES[rng.usize(..DATABASES.len())]]),
                3 => pipeline.extend(seldom(&mut rng)),
                _ => {
                    let command = command(&mut rng);
                    // Whoever writes, Braid has to follow.
                    let is_followed = registry().find(&command[0]).is_some();
                    if is_followed && names.contains(&*String::from_utf8_lossy(&command[0])) {
                        pipeline.push(command);
                    }
                }
            }
        }
        let count = pipeline.len() as u64;
        for (command, reply) in pipeline.iter().zip(exchange(&mut client, address, &pipeline, state)) {
            if reply.is_error() {
                let text = reply.text();
                let is_expected = [
                    "WRONGTYPE",
                    "ERR no such key",
                    "ERR hash value is not",
                    "ERR value is not",
                    "ERR increment",
                    "ERR index out of",
                    "ERR source and destination",
                ]
                .iter()
                .any(|start| text.starts_with(start));
                assert!(is_expected, "{text}: {}", command.join(&b' ').escape_ascii());
            }
        }
        state.commands.fetch_add(count, Ordering::Relaxed);
        std::thread::sleep(state.pause);
    }
}

/// `MULTI` … `EXEC` that sets one key per shard to the same number.
fn transaction(rng: &mut Rng, keys: &[String], pipeline: &mut Vec<Words>) {
    let value = rng.u32(..);
    pipeline.push(cmd!["MULTI"]);
    pipeline.extend(keys.iter().map(|key| cmd!["SET", key, value]));
    pipeline.push(cmd!["EXEC"]);
}

fn seldom(rng: &mut Rng) -> Vec<Words> {
    match rng.u8(..12) {
        0 => vec![cmd!["SWAPDB", 5, 6]],
        1 => vec![cmd!["SELECT", 7], cmd!["FLUSHDB"]],
        _ => vec![],
    }
}

fn command(rng: &mut Rng) -> Words {
    let n = rng.u32(..KEYS);
    let key = |family: &str| format!("{family}:{n}");
    let any = {
        let families = ["string", "number", "bits", "list", "hash", "set", "zset"];
        format!("{}:{}", families[rng.usize(..families.len())], rng.u32(..KEYS))
    };
    let value = rng.u32(..1000);
    let mut binary = key("string").into_bytes();
    binary.extend([0, 0xff, b'\r', b'\n', rng.u8(..2)]);
    match rng.u8(..52) {
        0 => cmd!["SET", key("string"), value],
        1 => cmd!["SET", key("string"), "x".repeat(value as usize), "EX", 1000 + value],
        2 => cmd!["SET", key("string"), value, "PX", 1 + value % 100],
        3 => cmd!["SET", binary, vec![rng.u8(..); 20]],
        4 => cmd!["APPEND", key("string"), value],
        5 => cmd!["SETRANGE", key("string"), value % 50, "range"],
        6 => cmd!["GETSET", key("string"), value],
        7 => cmd!["GETEX", key("string"), "PX", 100_000 + value],
        8 => cmd!["GETDEL", key("string")],
        9 => cmd!["SET", key("string"), value, "KEEPTTL"],
        10 => cmd!["INCRBY", key("number"), value],
        11 => cmd!["INCRBYFLOAT", key("number"), f64::from(value) / 7.0],
        12 => cmd!["DECR", key("number")],
        13 => cmd!["SETBIT", key("bits"), value, 1],
        14 => cmd!["BITOP", "XOR", key("bits"), any, format!("bits:{}", value % KEYS)],
        15 => cmd!["BITFIELD", key("bits"), "INCRBY", "u8", value % 100, 7],
        16 | 17 => cmd!["RPUSH", key("list"), value, value + 1],
        18 => cmd!["LPUSH", key("list"), "y".repeat(value as usize % 200)],
        19 => cmd!["LPOP", key("list"), 2],
        20 => cmd!["RPOPLPUSH", key("list"), format!("list:{}", value % KEYS)],
        21 => cmd!["LTRIM", key("list"), 0, 100],
        22 => cmd!["LSET", key("list"), 0, value],
        23 => cmd!["LINSERT", key("list"), "BEFORE", value, "inserted"],
        24 => cmd!["LREM", key("list"), 0, value],
        25 | 26 => cmd!["HSET", key("hash"), value % 50, value, "f", n],
        27 => cmd!["HINCRBYFLOAT", key("hash"), "float", 0.1],
        28 => cmd!["HINCRBY", key("hash"), "int", value],
        29 => cmd!["HDEL", key("hash"), value % 50],
        30 | 31 => cmd!["SADD", key("set"), value, value + 1, "member"],
        32 => cmd!["SPOP", key("set")],
        33 => cmd!["SPOP", key("set"), 3],
        34 => cmd!["SMOVE", key("set"), format!("set:{}", value % KEYS), value],
        35 => cmd!["SREM", key("set"), value],
        36 => cmd!["SUNIONSTORE", key("set"), format!("set:{}", value % KEYS), key("set")],
        37 => cmd!["SINTERSTORE", format!("set:{}", value % KEYS), key("set"), key("set")],
        38 | 39 => cmd!["ZADD", key("zset"), f64::from(value) / 3.0, value % 80],
        40 => cmd!["ZINCRBY", key("zset"), 0.1, value % 80],
        41 => cmd!["ZPOPMIN", key("zset"), 2],
        42 => cmd!["ZREMRANGEBYRANK", key("zset"), 50, -1],
        43 => cmd!["ZUNIONSTORE", key("zset"), 2, key("zset"), format!("zset:{}", value % KEYS)],
        44 => cmd!["PEXPIRE", any, 1 + value % 200],
        45 => cmd!["EXPIRE", any, 10_000 + value],
        46 => cmd!["PERSIST", any],
        47 => cmd!["RENAME", any, key("string")],
        48 => cmd!["COPY", any, key("list"), "REPLACE"],
        49 => cmd!["MOVE", any, 1],
        50 => cmd!["DEL", any, key("hash")],
        _ => cmd!["UNLINK", any, key("set")],
    }
}
