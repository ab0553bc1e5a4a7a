//! Laws 2 and 3 on the real server: many connections, all shards, real threads.
//!
//! `BRAID_ATOMICITY_ROUNDS=n` multiplies the number of iterations.

mod common;

use braid_bench::client::{Client, Value};
use braid_bench::cmd;
use braid_bench::peers::Peer;
use common::{call, connect, key_per_shard, number_from_env, start_braid};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

const SHARDS: [usize; 3] = [1, 2, 5];

fn iterations(default: u64) -> u64 {
    default * number_from_env("BRAID_ATOMICITY_ROUNDS", 1)
}

/// `name` followed by each key and, for a write, `value`.
fn over(name: &str, keys: &[String], value: Option<&str>) -> Vec<Vec<u8>> {
    let mut command = cmd![name];
    for key in keys {
        command.push(key.clone().into_bytes());
        command.extend(value.map(|value| value.as_bytes().to_vec()));
    }
    command
}

/// The one value that all keys have.
fn common_value(reply: &Value) -> String {
    let items = reply.items().unwrap_or_else(|| panic!("{reply:?}"));
    let first = items[0].text();
    assert!(items.iter().all(|item| item.text() == first), "a mix: {reply:?}");
    first
}

/// Runs `write` on some threads a fixed number of times, `read` on others until they have ended.
fn writers_and_readers(
    peer: &Peer,
    writes: u64,
    write: impl Fn(&mut Client, u64) + Sync,
    read: impl Fn(&mut Client) + Sync,
) {
    let writing = AtomicBool::new(true);
    let reads = AtomicU64::new(0);
    thread::scope(|scope| {
        let writers: Vec<_> = (0..3u64)
            .map(|writer| {
                let write = &write;
                scope.spawn(move || {
                    let mut client = connect(peer);
                    (0..writes).for_each(|n| write(&mut client, writer * writes + n));
                })
            })
            .collect();
        for _ in 0..3 {
            let (writing, reads, read) = (&writing, &reads, &read);
            scope.spawn(move || {
                let mut client = connect(peer);
                while writing.load(Ordering::Relaxed) {
                    read(&mut client);
                    reads.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        // Readers end whatever became of the writers.
        let ended: Vec<_> = writers.into_iter().map(|writer| writer.join()).collect();
        writing.store(false, Ordering::Relaxed);
        ended.into_iter().for_each(|writer| writer.expect("a writer succeeds"));
    });
    assert!(reads.load(Ordering::Relaxed) > 10, "nothing was read while it was written");
}

#[test]
fn law3_mset_and_mget_over_all_shards_never_mix() {
    for shards in SHARDS {
        let peer = start_braid(shards);
        let keys = key_per_shard("key", shards.max(2));
        call(&mut connect(&peer), &over("MSET", &keys, Some("start")));
        let mut reversed = keys.clone();
        reversed.reverse();
        writers_and_readers(
            &peer,
            iterations(700),
            |client, n| {
                // Orders that would deadlock if locks were taken in the order of the arguments.
                let keys = if n % 2 == 0 { &keys } else { &reversed };
                assert_eq!(client.command(&over("MSET", keys, Some(&n.to_string()))).unwrap(), "OK");
            },
            |client| {
                common_value(&client.command(&over("MGET", &keys, None)).unwrap());
            },
        );
    }
}

#[test]
fn law3_transactions_over_all_shards_never_mix() {
    for shards in SHARDS {
        let peer = start_braid(shards);
        let keys = key_per_shard("key", shards.max(3));
        call(&mut connect(&peer), &over("MSET", &keys, Some("start")));
        let in_transaction = |commands: Vec<Vec<Vec<u8>>>| {
            let mut all = vec![cmd!["MULTI"]];
            all.extend(commands);
            all.push(cmd!["EXEC"]);
            all
        };
        writers_and_readers(
            &peer,
            iterations(400),
            |client, n| {
                // Deletes and sets again: who sees the state between sees nothing where a value must be.
                let value = n.to_string();
                let mut commands: Vec<_> = keys.iter().map(|key| cmd!["DEL", key]).collect();
                commands.extend(keys.iter().map(|key| cmd!["SET", key, value]));
                let replies = client.pipeline(&in_transaction(commands)).unwrap();
                assert_eq!(
                    replies.last().unwrap().items().map(<[_]>::len),
                    Some(2 * keys.len()),
                    "{replies:?}"
                );
            },
            |client| {
                let gets = keys.iter().map(|key| cmd!["GET", key]).collect();
                let replies = client.pipeline(&in_transaction(gets)).unwrap();
                let seen = common_value(replies.last().unwrap());
                assert!(!seen.is_empty(), "the middle of a transaction was seen");
                // A command over several shards is no less isolated.
                assert!(!common_value(&client.command(&over("MGET", &keys, None)).unwrap()).is_empty());
                assert_eq!(client.command(&over("EXISTS", &keys, None)).unwrap(), keys.len() as i64);
            },
        );
    }
}

#[test]
fn law3_what_moves_between_shards_is_in_one_place() {
    for shards in SHARDS {
        let peer = start_braid(shards);
        let keys = key_per_shard("key", shards.max(2));
        call(&mut connect(&peer), &["SET", &keys[0], "token"]);
        writers_and_readers(
            &peer,
            iterations(700),
            |client, n| {
                let (from, to) = (&keys[n as usize % keys.len()], &keys[(n as usize * 7 + 1) % keys.len()]);
                // There or not: it may be elsewhere at this moment.
                let reply = client.command(&["RENAME", from, to]).unwrap();
                assert!(reply == "OK" || reply == "ERR no such key", "{reply:?}");
            },
            |client| {
                let there = client.command(&over("MGET", &keys, None)).unwrap();
                let tokens = there.items().unwrap().iter().filter(|value| **value == "token").count();
                assert_eq!(tokens, 1, "{there:?}");
            },
        );
    }
}

#[test]
fn law2_who_sees_the_queue_sees_the_object() {
    for shards in SHARDS {
        let peer = start_braid(shards);
        // Objects on one shard, queues on others, and back: both directions must hold.
        let names = key_per_shard("name", shards.max(2));
        let rounds = iterations(1500);
        for (object, queue) in [(0, 1), (1, 0), (0, names.len() - 1)] {
            let (object, queue) =
                (format!("{{{}}}object", names[object]), format!("{{{}}}queue", names[queue]));
            if object == queue {
                continue;
            }
            call(&mut connect(&peer), &["DEL", &object, &queue]);
            thread::scope(|scope| {
                let (object, queue, peer) = (&object, &queue, &peer);
                scope.spawn(move || {
                    let mut client = connect(peer);
                    for n in 1..=rounds {
                        let replies =
                            client.pipeline(&[cmd!["SET", object, n], cmd!["SET", queue, n]]).unwrap();
                        assert!(replies.iter().all(|reply| reply == "OK"));
                    }
                });
                for _ in 0..2 {
                    scope.spawn(move || {
                        let mut client = connect(peer);
                        let number = |value: &Value| value.as_int().unwrap_or(0) as u64;
                        loop {
                            // In one pipeline the second must not overtake the first either.
                            let replies =
                                client.pipeline(&[cmd!["GET", queue], cmd!["GET", object]]).unwrap();
                            let (queued, set) = (number(&replies[0]), number(&replies[1]));
                            assert!(set >= queued, "{queued} was queued, and its object is {set}");
                            if queued == rounds {
                                break;
                            }
                        }
                    });
                }
            });
        }
    }
}

#[test]
fn law2_a_pipelines_writes_are_seen_in_order_by_everyone() {
    for shards in [2, 5] {
        let peer = start_braid(shards);
        let keys = key_per_shard("key", shards);
        let rounds = iterations(400);
        let writing = AtomicBool::new(true);
        thread::scope(|scope| {
            let (keys, peer, writing) = (&keys, &peer, &writing);
            let writer = scope.spawn(move || {
                let mut client = connect(peer);
                for n in 0..rounds {
                    let commands: Vec<_> = keys.iter().map(|key| cmd!["SET", key, n]).collect();
                    client.pipeline(&commands).unwrap();
                }
            });
            for _ in 0..2 {
                scope.spawn(move || {
                    let mut client = connect(peer);
                    while writing.load(Ordering::Relaxed) {
                        let seen = client.command(&over("MGET", keys, None)).unwrap();
                        let numbers: Vec<i64> =
                            seen.items().unwrap().iter().map(|value| value.as_int().unwrap_or(-1)).collect();
                        // A prefix of the writer's history: no later key is ahead of an earlier one.
                        assert!(numbers.windows(2).all(|pair| pair[0] >= pair[1]), "{numbers:?}");
                        assert!(numbers[0] - numbers[numbers.len() - 1] <= 1, "{numbers:?}");
                    }
                });
            }
            let ended = writer.join();
            writing.store(false, Ordering::Relaxed);
            ended.expect("the writer succeeds");
        });
    }
}

#[test]
fn law3_counters_incremented_by_optimistic_locking_add_up() {
    for shards in SHARDS {
        let peer = start_braid(shards);
        let keys = key_per_shard("counter", shards.max(2));
        let successes = AtomicU64::new(0);
        let wanted = iterations(150);
        thread::scope(|scope| {
            for _ in 0..4 {
                let (peer, keys, successes) = (&peer, &keys, &successes);
                scope.spawn(move || {
                    let mut client = connect(peer);
                    let mut done = 0;
                    while done < wanted {
                        // All counters are equal, so one that is read tells what all become.
                        let watch = over("WATCH", keys, None);
                        let replies = client.pipeline(&[watch, cmd!["GET", keys[0]]]).unwrap();
                        let next = (replies[1].as_int().unwrap_or(0) + 1).to_string();
                        let mut commands = vec![cmd!["MULTI"]];
                        commands.extend(keys.iter().map(|key| cmd!["SET", key, next]));
                        commands.push(cmd!["EXEC"]);
                        let replies = client.pipeline(&commands).unwrap();
                        match replies.last().unwrap() {
                            Value::Null => {}
                            Value::Array(items) => {
                                assert!(items.iter().all(|item| *item == "OK"), "{items:?}");
                                done += 1;
                                successes.fetch_add(1, Ordering::Relaxed);
                            }
                            other => panic!("{other:?}"),
                        }
                    }
                });
            }
        });
        let total = common_value(&call(&mut connect(&peer), &over("MGET", &keys, None)));
        assert_eq!(total, successes.load(Ordering::Relaxed).to_string());
    }
}
