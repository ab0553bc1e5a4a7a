//! Servers for the end-to-end tests.

// Every test binary uses its own part of this.
#![allow(dead_code)]

use braid_bench::client::{Client, Value};
use braid_bench::cmd;
use braid_bench::peers::{Builder, Kind, Peer};
use braid_bench::wait;
use std::io;
use std::time::Duration;

/// How long anything may take that is waited for.
pub const TIMEOUT: Duration = Duration::from_secs(60);

/// The server under test.
pub fn braid() -> Kind {
    Kind::Braid(env!("CARGO_BIN_EXE_braid-server").into())
}

/// How to start the server under test with so many shards.
pub fn braid_builder(shards: usize) -> Builder {
    Peer::builder(braid()).threads(shards)
}

/// The server under test with so many shards, answering.
pub fn start_braid(shards: usize) -> Peer {
    braid_builder(shards).start().expect("braid-server starts")
}

pub fn start(builder: Builder) -> Peer {
    builder.start().unwrap_or_else(|error| panic!("the server starts: {error}"))
}

/// Kills and starts again. The kernel may keep the listening socket for a moment after the process is gone.
pub fn restart(peer: &mut Peer) {
    wait_until("it starts again", || peer.restart().is_ok());
}

pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    wait::until(what, TIMEOUT, || Ok(condition())).unwrap_or_else(|error| panic!("{error}"));
}

/// Waits for a line of the log: a thread of its own writes it, after what it tells.
pub fn wait_told(peer: &Peer, text: &str) {
    wait_until(text, || peer.log().contains(text));
}

/// A field of `INFO`.
pub fn field(client: &mut Client, section: &str, name: &str) -> String {
    client.info(section).expect("INFO").remove(name).unwrap_or_else(|| panic!("no {name} in INFO {section}"))
}

/// Values of every size and shape that a load of small ones does not bring: the largest of so many bytes.
pub fn fill(peer: &Peer, largest_bytes: usize) {
    let mut client = connect(peer);
    let mut rng = fastrand::Rng::with_seed(1);
    let big: Vec<u8> = (0..largest_bytes).map(|_| rng.u8(..)).collect();
    let mut commands = vec![cmd!["SET", "big:string", big], cmd!["SET", "number", 1_234_567]];
    for n in 0..20_000u32 {
        commands.push(cmd!["RPUSH", "big:list", format!("element {n}")]);
        commands.push(cmd!["HSET", "big:hash", n, format!("value {n}")]);
        commands.push(cmd!["ZADD", "big:zset", f64::from(n) / 7.0, n]);
        commands.push(cmd!["SADD", "big:set", u64::from(n) * 1_000_003]);
    }
    for db in 0..16 {
        commands.push(cmd!["SELECT", db]);
        commands.push(cmd!["SET", "here", db, "PX", 10_000_000 + db]);
        commands.push(cmd!["SET", b"\x00\xff\r\n$-1", db]);
        commands.push(cmd!["SET", b"", "an empty name"]);
    }
    for reply in client.pipeline(&commands).expect("the server stays") {
        reply.ok().expect("the dataset is accepted");
    }
}

/// No key is about to expire while datasets are compared.
pub fn settle(peer: &Peer) {
    let mut client = connect(peer);
    for db in 0..16 {
        call(&mut client, &cmd!["SELECT", db]);
        for key in call(&mut client, &["KEYS", "*"]).items().expect("an array") {
            let key = key.text();
            let left_ms = call(&mut client, &cmd!["PTTL", &*key]).as_int().expect("a number");
            if (0..600_000).contains(&left_ms) {
                call(&mut client, &cmd!["PERSIST", &*key]);
            }
        }
    }
}

/// The server whose behaviour is the model.
pub fn start_redis() -> Peer {
    Kind::Redis8.start().expect("Redis 8 starts")
}

/// A number from the environment, for longer runs than the default.
pub fn number_from_env(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")),
        Err(_) => default,
    }
}

/// A connection to a peer.
pub fn connect(peer: &Peer) -> Client {
    peer.client().expect("the server accepts connections")
}

/// A count that a key holds; 0 if there is none yet.
pub fn count(value: &Value) -> u64 {
    match value {
        Value::Null => 0,
        other => other.text().parse().unwrap_or_else(|_| panic!("{other:?} is no count")),
    }
}

/// Runs a command that must not fail.
pub fn call<A: AsRef<[u8]>>(client: &mut Client, args: &[A]) -> Value {
    client.call(args).expect("the command succeeds")
}

/// One key for every shard: `shards` keys with this prefix, no two of the same shard.
///
/// The owner of a slot is the shard whose range of slots holds it; ranges are equal but for one slot.
pub fn key_per_shard(prefix: &str, shards: usize) -> Vec<String> {
    let mut keys = vec![None; shards];
    let mut left = shards;
    for n in 0.. {
        let key = format!("{prefix}{n}");
        let shard = shard_of(&key, shards);
        if keys[shard].is_none() {
            keys[shard] = Some(key);
            left -= 1;
            if left == 0 {
                break;
            }
        }
    }
    keys.into_iter().map(|key| key.expect("every shard has one")).collect()
}

fn shard_of(key: &str, shards: usize) -> usize {
    usize::from(braid_shards::SlotMap::new(shards).shard_of(key.as_bytes()))
}

/// Whether a read failed because the peer closed the connection.
pub fn is_closed(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
    )
}
