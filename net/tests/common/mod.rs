//! Servers for the end-to-end tests.

// Every test binary uses its own part of this.
#![allow(dead_code)]

use braid_bench::client::{Client, Value};
use braid_bench::peers::{Builder, Kind, Peer};
use std::io;

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
