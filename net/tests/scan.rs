//! What `SCAN` and `KEYS` promise while the tables grow and shrink, over all shards.

mod common;

use braid_bench::client::Client;
use braid_bench::cmd;
use common::{call, connect, start_braid};
use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

const SHARDS: [usize; 3] = [1, 3, 5];
/// No scan of these few keys needs more calls.
const CALLS_MAX: usize = 1_000_000;

type Key = Vec<u8>;

/// A whole iteration. `after_call` runs after every call, with its number.
fn scan(client: &mut Client, options: &[&str], mut after_call: impl FnMut(&mut Client, usize)) -> Vec<Key> {
    let mut found = Vec::new();
    let mut cursor = b"0".to_vec();
    for calls in 0..CALLS_MAX {
        let mut command = cmd!["SCAN", cursor];
        command.extend(options.iter().map(|option| option.as_bytes().to_vec()));
        let items = call(client, &command).into_items().unwrap();
        cursor = items[0].as_bytes().unwrap().to_vec();
        found.extend(items[1].items().unwrap().iter().map(|key| key.as_bytes().unwrap().to_vec()));
        if cursor == b"0" {
            return found;
        }
        after_call(client, calls);
    }
    panic!("the iteration does not end");
}

fn set_all(client: &mut Client, keys: impl Iterator<Item = String>) {
    let commands: Vec<_> = keys.map(|key| cmd!["SET", key, "x"]).collect();
    assert!(client.pipeline(&commands).unwrap().iter().all(|reply| reply == "OK"));
}

fn delete_all(client: &mut Client, keys: impl Iterator<Item = String>) {
    let commands: Vec<_> = keys.map(|key| cmd!["DEL", key]).collect();
    client.pipeline(&commands).unwrap();
}

fn stable() -> impl Iterator<Item = String> {
    (0..2000).map(|n| format!("stable:{n}"))
}

fn assert_all_stable(found: &[Key]) {
    let found: HashSet<&[u8]> = found.iter().map(Vec::as_slice).collect();
    let missing: Vec<String> = stable().filter(|key| !found.contains(key.as_bytes())).collect();
    assert!(
        missing.is_empty(),
        "{} keys were there all the time and not returned: {:?}",
        missing.len(),
        &missing[..1]
    );
}

#[test]
fn a_scan_of_a_dataset_at_rest_returns_every_key_once() {
    for shards in SHARDS {
        let peer = start_braid(shards);
        let mut client = connect(&peer);
        assert_eq!(scan(&mut client, &[], |_, _| ()), Vec::<Key>::new());
        set_all(&mut client, stable());
        for count in ["1", "10", "977", "100000"] {
            let mut found = scan(&mut client, &["COUNT", count], |_, _| ());
            assert_all_stable(&found);
            let all = found.len();
            found.sort_unstable();
            found.dedup();
            assert_eq!((all, found.len()), (2000, 2000));
        }
        let keys = call(&mut client, &["KEYS", "*"]).into_items().unwrap();
        assert_eq!(keys.len(), 2000);
        // Databases are apart.
        call(&mut client, &["SELECT", "3"]);
        assert_eq!(scan(&mut client, &[], |_, _| ()), Vec::<Key>::new());
        assert_eq!(call(&mut client, &["KEYS", "*"]).into_items().unwrap().len(), 0);
    }
}

#[test]
fn keys_present_from_start_to_end_are_returned_while_the_table_grows_and_shrinks() {
    for shards in SHARDS {
        let peer = start_braid(shards);
        let mut client = connect(&peer);
        let mut other = connect(&peer);
        set_all(&mut client, stable());
        // Grows to twenty times its size during the iteration.
        let found = scan(&mut client, &["COUNT", "50"], |_, calls| {
            set_all(
                &mut other,
                (0..1000).map(|n| format!("new:{calls}:{n}")).take(if calls < 40 { 1000 } else { 0 }),
            );
        });
        assert_all_stable(&found);
        // And back.
        let found = scan(&mut client, &["COUNT", "500"], |_, calls| {
            delete_all(&mut other, (0..1000).map(|n| format!("new:{calls}:{n}")));
        });
        assert_all_stable(&found);
        for calls in 0..60 {
            delete_all(&mut other, (0..1000).map(|n| format!("new:{calls}:{n}")));
        }
        assert_eq!(call(&mut client, &["DBSIZE"]), 2000);
    }
}

#[test]
fn keys_present_from_start_to_end_are_returned_while_others_write() {
    for shards in SHARDS {
        let peer = start_braid(shards);
        let mut client = connect(&peer);
        set_all(&mut client, stable());
        let scanning = AtomicBool::new(true);
        thread::scope(|scope| {
            for writer in 0..2 {
                let (peer, scanning) = (&peer, &scanning);
                scope.spawn(move || {
                    let mut client = connect(peer);
                    while scanning.load(Ordering::Relaxed) {
                        set_all(&mut client, (0..3000).map(|n| format!("new:{writer}:{n}")));
                        delete_all(&mut client, (0..3000).map(|n| format!("new:{writer}:{n}")));
                    }
                });
            }
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                for _ in 0..5 {
                    assert_all_stable(&scan(&mut client, &["COUNT", "40"], |_, _| ()));
                    let keys = call(&mut client, &["KEYS", "stable:*"]).into_items().unwrap();
                    let keys: Vec<Key> = keys.iter().map(|key| key.as_bytes().unwrap().to_vec()).collect();
                    assert_all_stable(&keys);
                }
            }));
            scanning.store(false, Ordering::Relaxed);
            if let Err(panic) = outcome {
                std::panic::resume_unwind(panic);
            }
        });
    }
}

#[test]
fn match_and_type_choose_among_the_keys() {
    for shards in SHARDS {
        let peer = start_braid(shards);
        let mut client = connect(&peer);
        set_all(&mut client, stable());
        let others: Vec<_> = (0..300)
            .flat_map(|n| {
                [cmd!["LPUSH", format!("list:{n}"), "x"], cmd!["HSET", format!("hash:{n}"), "f", "x"]]
            })
            .collect();
        client.pipeline(&others).unwrap();
        let count = |client: &mut Client, options: &[&str]| {
            let found = scan(client, options, |_, _| ());
            let set: HashSet<Key> = found.iter().cloned().collect();
            assert_eq!(set.len(), found.len(), "{options:?}");
            set.len()
        };
        for (options, expected) in [
            (&["MATCH", "*"][..], 2600),
            (&["MATCH", "list:*"], 300),
            (&["MATCH", "list:?"], 10),
            (&["MATCH", "list:7"], 1),
            (&["MATCH", "nothing*"], 0),
            (&["TYPE", "list"], 300),
            (&["TYPE", "hash", "COUNT", "1000"], 300),
            (&["TYPE", "string", "MATCH", "*:1?"], 10),
            (&["COUNT", "7", "MATCH", "hash:[0-4]"], 5),
            (&["TYPE", "zset"], 0),
        ] {
            assert_eq!(count(&mut client, options), expected, "{options:?}");
        }
        for (pattern, expected) in [("*", 2600), ("stable:1[0-9]", 10), ("h*9", 30), ("[^s]*", 600), ("x", 0)]
        {
            assert_eq!(
                call(&mut client, &["KEYS", pattern]).into_items().unwrap().len(),
                expected,
                "{pattern}"
            );
        }
    }
}
