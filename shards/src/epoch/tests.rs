use super::*;
use crate::testing::{CONN, Cluster};
use bytes::Bytes;

/// Begins an epoch of commands at the home; no command of it may need a transaction.
fn apply(cluster: &mut Cluster, epoch: u64, lines: &str) {
    let mut builder = EpochBuilder::new(cluster.shards[0].map);
    for command in crate::testing::unit(lines).commands() {
        assert_eq!(builder.push(command.id, command.db, command.args()), Fit::Added);
    }
    cluster.shards[0].apply_epoch(epoch, builder.take(&mut Vec::new()));
    cluster.shards[0].settle(&mut cluster.told[0]);
}

fn replica(shards: usize) -> Cluster {
    let mut cluster = Cluster::new(shards);
    cluster.shards.iter_mut().for_each(|shard| shard.replica = true);
    cluster
}

#[test]
fn commands_are_split_by_the_owners_of_their_keys() {
    let cluster = Cluster::new(3);
    let (a, b) = (cluster.key(0, "a"), cluster.key(2, "b"));
    let mut builder = EpochBuilder::new(cluster.shards[0].map);
    let mut push = |line: &str| {
        let args: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        builder.push(registry().find(args[0]).unwrap().0, 1, Args::new(&args, &[]))
    };
    assert_eq!(push(&format!("SET {a} 1")), Fit::Added);
    assert_eq!(push(&format!("MSET {a} 1 {b} 2 {a} 3")), Fit::Added);
    assert_eq!(push(&format!("DEL {b} {a}")), Fit::Added);
    assert_eq!(push(&format!("MSET {b} 4 {b} 5")), Fit::Added);
    assert_eq!(push(&format!("RENAME {a} {b}")), Fit::Alone);
    assert_eq!(push("FLUSHALL"), Fit::Alone);
    assert_eq!(push("PING"), Fit::Unfit);
    assert_eq!(builder.commands(), 4);
    assert!(builder.len_bytes() > 20);
    let parts = builder.take(&mut Vec::new());
    assert!(builder.is_empty() && builder.len_bytes() == 0);
    let lines = |part: &Part| -> Vec<String> {
        let commands = part.unit.commands().map(|command| {
            assert_eq!(command.db, 1);
            let words: Vec<_> =
                command.args().iter().map(|arg| String::from_utf8(arg.to_vec()).unwrap()).collect();
            words.join(" ")
        });
        commands.collect()
    };
    assert_eq!(parts.iter().map(|(shard, _)| *shard).collect::<Vec<_>>(), [0, 2]);
    assert_eq!(lines(&parts[0].1), [format!("SET {a} 1"), format!("MSET {a} 1 {a} 3"), format!("DEL {a}")]);
    assert_eq!(lines(&parts[1].1), [format!("MSET {b} 2"), format!("DEL {b}"), format!("MSET {b} 4 {b} 5")]);
    assert_eq!(
        (parts[0].1.indexes.as_slice(), parts[1].1.indexes.as_slice()),
        (&[0, 1, 2][..], &[1, 2, 3][..])
    );
}

#[test]
fn law4_one_stream_a_part_that_is_used_again_holds_nothing_of_before() {
    let mut builder = EpochBuilder::new(SlotMap::new(1));
    let value = Bytes::from(vec![b'v'; 100]);
    let mut spare = Vec::new();
    for _ in 0..4 {
        for index in 0..2 {
            let args: &[&[u8]] = &[b"SET", b"key", &value];
            let fit = builder.push(
                registry().find(b"SET").unwrap().0,
                0,
                Args::new(args, &[(2, value.clone())][..index]),
            );
            assert_eq!(fit, Fit::Added);
        }
        let (_, part) = builder.take(&mut spare).pop().expect("one shard is concerned");
        assert_eq!(part.indexes, [0, 1]);
        assert_eq!((part.unit.count, part.unit.shared.len(), part.unit.commands().count()), (2, 1, 2));
        spare.push(part.cleared());
    }
}

#[test]
fn law3_a_reader_never_sees_half_an_epoch() {
    let mut cluster = replica(3);
    let (a, b) = (cluster.key(1, "a"), cluster.key(2, "b"));
    apply(&mut cluster, 7, &format!("SET {a} 1; SET {b} 1"));
    // Shard 1 has applied its part, shard 2 has not got it.
    cluster.pass(0, 1);
    assert_eq!(cluster.send(1, CONN, &format!("GET {a}")), None, "it waits");
    assert_eq!(cluster.send(2, CONN, &format!("GET {b}")), Some("$-1\r\n".into()), "not begun there");
    cluster.pass(1, 0);
    assert!(cluster.told[0].epochs.is_empty());
    cluster.deliver(0, 2);
    assert_eq!(cluster.send(2, CONN, &format!("GET {b}")), None);
    cluster.pass(2, 0);
    assert_eq!(cluster.told[0].epochs, [(7, Ok(()))]);
    // The next one's parts come with the release, and what waited sees the state between the two.
    apply(&mut cluster, 8, &format!("SET {a} 2; SET {b} 2"));
    cluster.pass(0, 1);
    cluster.deliver(0, 2);
    assert_eq!(cluster.replies(1), ["$1\r\n1\r\n"]);
    assert_eq!(cluster.replies(2), ["$1\r\n1\r\n"]);
    cluster.rest();
    assert_eq!(cluster.ask(&format!("MGET {a} {b}")), "*2\r\n$1\r\n2\r\n$1\r\n2\r\n");
}

#[test]
fn an_epoch_of_one_shard_holds_nobody() {
    let mut cluster = replica(2);
    let a = cluster.key(1, "a");
    apply(&mut cluster, 1, &format!("SET {a} 1"));
    cluster.pass(0, 1);
    assert_eq!(cluster.send(1, CONN, &format!("GET {a}")), Some("$1\r\n1\r\n".into()));
    cluster.rest();
    assert_eq!(cluster.told[0].epochs, [(1, Ok(()))]);
}

#[test]
fn no_loss_an_error_is_told_with_its_command_and_the_others_take_effect() {
    let mut cluster = replica(3);
    let (a, b) = (cluster.key(1, "a"), cluster.key(2, "b"));
    apply(&mut cluster, 1, &format!("SET {a} x; SET {b} x; INCR {b}; INCR {a}; INCR {a}; SET {b} y"));
    cluster.rest();
    let text = "ERR value is not an integer or out of range".to_owned();
    let error = EpochError { index: 2, shard: 2, text, count: 3 };
    assert_eq!(cluster.told[0].epochs, [(1, Err(error))]);
    assert_eq!(cluster.ask(&format!("MGET {a} {b}")), "*2\r\n$1\r\nx\r\n$1\r\ny\r\n");
}

#[test]
fn law3_a_transaction_that_waits_for_a_hold_gives_its_loans_back() {
    let mut cluster = replica(3);
    let (a, b) = (cluster.key(1, "a"), cluster.key(2, "b"));
    // The transaction gets `b`, which the epoch needs, and asks for `a` where the epoch is applied already.
    assert_eq!(cluster.send(0, CONN, &format!("MGET {a} {b}")), None);
    cluster.pass(0, 2);
    let late = cluster.take(0, 1);
    apply(&mut cluster, 1, &format!("SET {a} 1; SET {b} 1"));
    cluster.pass(0, 1);
    cluster.give(0, 1, late);
    cluster.deliver(0, 2);
    assert_eq!(cluster.send(2, CONN, &format!("GET {b}")), None, "the part waits, and others behind it");
    cluster.rest();
    assert_eq!(cluster.replies(0), ["*2\r\n$1\r\n1\r\n$1\r\n1\r\n"]);
    assert_eq!(cluster.replies(2), ["$1\r\n1\r\n"]);
    assert!(cluster.shards.iter().all(|shard| shard.borrowers.is_empty()));
}

#[test]
fn law3_a_transaction_that_has_everything_runs_before_the_epoch() {
    let mut cluster = replica(3);
    let (a, b) = (cluster.key(1, "a"), cluster.key(2, "b"));
    assert_eq!(cluster.send(0, CONN, &format!("MGET {a} {b}")), None);
    cluster.end_tick(0);
    for owner in [1, 2] {
        cluster.deliver(0, owner);
        cluster.end_tick(owner);
    }
    apply(&mut cluster, 1, &format!("SET {a} 1; SET {b} 1"));
    // The parts find the keys on loan, and recall them from who has them all by then.
    cluster.pass(0, 1);
    cluster.deliver(0, 2);
    cluster.rest();
    assert_eq!(cluster.replies(0), ["*2\r\n$-1\r\n$-1\r\n"]);
    assert_eq!(cluster.ask(&format!("MGET {a} {b}")), "*2\r\n$1\r\n1\r\n$1\r\n1\r\n");
}

#[test]
fn law3_an_epoch_takes_a_slice_back_that_is_on_loan_as_a_whole() {
    let mut cluster = replica(3);
    let (a, b) = (cluster.key(1, "a"), cluster.key(2, "b"));
    assert_eq!(cluster.send(1, CONN, "DBSIZE"), None);
    cluster.pass(1, 2);
    apply(&mut cluster, 1, &format!("SET {a} 1; SET {b} 1"));
    cluster.rest();
    assert_eq!(cluster.replies(1).len(), 1);
    assert_eq!(cluster.ask("DBSIZE"), ":2\r\n");
}

/// Everything at once, from a seed: epochs that write the same number to one key of each shard, readers and transactions
/// that must find the same number everywhere.
#[test]
fn law3_readers_and_transactions_meet_epochs_in_any_order() {
    for seed in 0..300 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let shards = rng.usize(2..5);
        let mut cluster = replica(shards);
        let keys: Vec<String> = (0..shards).map(|shard| cluster.key(shard, "k")).collect();
        let (mut epoch, mut reads) = (0, 0);
        let mut next_conn = 100;
        for _ in 0..rng.usize(50..300) {
            match rng.u8(..8) {
                0 if !cluster.shards[0].has_epoch() => {
                    epoch += 1;
                    let lines: Vec<String> = keys.iter().map(|key| format!("SET {key} {epoch}")).collect();
                    let some = rng.usize(1..=lines.len());
                    let lines = if rng.u8(..4) == 0 { lines[..some].join("; ") } else { lines.join("; ") };
                    // A part of the keys is put right again in the same epoch.
                    let lines = if lines.matches("SET").count() < shards {
                        epoch -= 1;
                        let back: Vec<String> = keys.iter().map(|key| format!("SET {key} {epoch}")).collect();
                        format!("{lines}; {}", back.join("; "))
                    } else {
                        lines
                    };
                    apply(&mut cluster, epoch, &lines);
                }
                1 => {
                    next_conn += 1;
                    let at = rng.usize(..shards);
                    let line = match rng.u8(..5) {
                        0 => "DBSIZE".to_owned(),
                        _ => format!("MGET {}", keys.join(" ")),
                    };
                    let line = if rng.bool() { line } else { format!("MGET {} {}", keys[0], keys[1]) };
                    if let Some(reply) = cluster.send(at, ConnId(next_conn), &line) {
                        cluster.told[at].replies.push((ConnId(next_conn), reply));
                    }
                    reads += 1;
                }
                _ => {
                    let (from, to) = (rng.usize(..shards), rng.usize(..shards));
                    cluster.end_tick(from);
                    if cluster.is_on_its_way(from, to) {
                        cluster.deliver(from, to);
                    }
                }
            }
        }
        cluster.rest();
        let mut answered = 0;
        for at in 0..shards {
            for reply in cluster.replies(at) {
                answered += 1;
                if reply.starts_with('*') {
                    let values: Vec<&str> = reply
                        .split("\r\n")
                        .skip(1)
                        .filter(|w| !w.starts_with('$') && !w.is_empty())
                        .collect();
                    assert!(values.windows(2).all(|pair| pair[0] == pair[1]), "seed {seed}: {reply:?}");
                    // Before the first epoch there is nothing anywhere.
                    let missing = reply.matches("$-1").count();
                    assert!(missing == 0 || values.is_empty(), "seed {seed}: {reply:?}");
                }
            }
        }
        assert_eq!(answered, reads, "seed {seed}");
    }
}

#[test]
fn law3_a_transaction_on_keys_that_every_epoch_writes_is_not_put_off_for_ever() {
    let mut worst = 0;
    for seed in 0..300 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut cluster = replica(5);
        let keys: Vec<String> = (1..5).map(|shard| cluster.key(shard, "k")).collect();
        let at = rng.usize(1..5);
        assert_eq!(cluster.send(at, CONN, &format!("MGET {}", keys.join(" "))), None);
        let mut epoch = 0;
        while cluster.told[at].replies.is_empty() {
            // The next epoch begins as soon as the one before is over.
            if !cluster.shards[0].has_epoch() {
                epoch += 1;
                let lines: Vec<String> = keys.iter().map(|key| format!("SET {key} {epoch}")).collect();
                apply(&mut cluster, epoch, &lines.join("; "));
            }
            // The home's messages travel fast, the others' as it comes.
            for to in 1..5 {
                cluster.end_tick(0);
                while cluster.is_on_its_way(0, to) {
                    cluster.deliver(0, to);
                }
                cluster.end_tick(to);
                while cluster.is_on_its_way(to, 0) {
                    cluster.deliver(to, 0);
                }
            }
            for from in 1..5 {
                for to in 1..5 {
                    if cluster.is_on_its_way(from, to) && rng.u8(..3) == 0 {
                        cluster.deliver(from, to);
                    }
                }
            }
        }
        worst = worst.max(epoch);
        cluster.rest();
    }
    assert!(worst < EPOCHS_BEFORE, "{worst}");
}

/// Epochs that may pass a transaction whose messages take some time each.
const EPOCHS_BEFORE: u64 = 25;
