use super::*;
use crate::testing::{CONN, Cluster};
use braid_core::rdb::{Writer, WriterOptions, kind};

fn header(key: &str) -> KeyHeader {
    KeyHeader { kind: kind::STRING, key: key.as_bytes().to_vec(), ..KeyHeader::default() }
}

fn value(text: &str) -> Vec<u8> {
    let mut writer = Writer::new(WriterOptions::default());
    writer.string(text.as_bytes());
    writer.take()
}

fn settle(cluster: &mut Cluster) {
    cluster.shards[0].settle(&mut cluster.told[0]);
}

/// Sends every shard the key that is its own, and lets them decode.
fn load(cluster: &mut Cluster, keys: &[String], number: u64) {
    cluster.shards[0].begin_load(number);
    for (shard, key) in (0..).zip(keys) {
        let mut batch = LoadBatch::new(10);
        batch.push_key(0, header(key), 0, &value("new"), true);
        cluster.shards[0].send_load_batch(number, 0, shard, batch);
    }
    cluster.shards[0].finish_load(number);
    settle(cluster);
    cluster.rest();
    for shard in &mut cluster.shards {
        while shard.load_some() {}
        shard.load_some();
    }
    settle(cluster);
    cluster.rest();
}

#[allow(clippy::vec_box, reason = "they travel as boxes")]
fn successors(cluster: &mut Cluster) -> Vec<Box<Keyspace>> {
    let mut whole: Vec<_> = cluster.told[0]
        .loads
        .drain(..)
        .filter_map(|(from, answer)| match answer {
            LoadAnswer::Whole { successor, .. } => Some((from, successor)),
            LoadAnswer::Batch { outcome, .. } => {
                assert_eq!(outcome, Ok(1));
                None
            }
        })
        .collect();
    whole.sort_by_key(|(from, _)| *from);
    whole.into_iter().map(|(_, successor)| successor).collect()
}

#[test]
fn no_loss_the_old_dataset_serves_until_the_new_one_takes_its_place_in_one_step() {
    let mut cluster = Cluster::new(3);
    let old: Vec<String> = (0..3).map(|shard| cluster.key(shard, "old")).collect();
    let new: Vec<String> = (0..3).map(|shard| cluster.key(shard, "new")).collect();
    for key in &old {
        cluster.ask(&format!("SET {key} old"));
    }
    load(&mut cluster, &new, 1);
    assert_eq!(cluster.ask(&format!("MGET {} {}", old[1], new[1])), "*2\r\n$3\r\nold\r\n$-1\r\n");
    let watcher = braid_core::keyspace::WatcherId { shard: 2, conn: CONN.0 };
    cluster.shards[1].keyspace.as_mut().unwrap().watches.watch(watcher, 0, new[1].as_bytes(), false);
    let successors = successors(&mut cluster);
    let called = std::rc::Rc::new(std::cell::Cell::new(0));
    let seen = std::rc::Rc::clone(&called);
    cluster.shards[0].begin_swap(successors, move |everything| {
        seen.set(everything.slices.iter().map(|slice| slice.len()).sum::<usize>());
    });
    settle(&mut cluster);
    cluster.rest();
    assert_eq!(called.get(), 3);
    for at in 0..3 {
        assert_eq!(cluster.ask(&format!("MGET {} {}", old[at], new[at])), "*2\r\n$-1\r\n$3\r\nnew\r\n");
        assert_eq!(cluster.shards[at].keyspace().unwrap().trash_len(), 1);
        while cluster.shards[at].background(10, &mut cluster.told[at]) {}
        assert!(!cluster.shards[at].has_trash());
    }
    assert!(cluster.shards[1].keyspace().unwrap().watch_is_dirty(watcher, 0));
}

#[test]
fn no_loss_what_is_dropped_leaves_the_old_dataset_and_the_next_attempt_works() {
    let mut cluster = Cluster::new(2);
    let keys: Vec<String> = (0..2).map(|shard| cluster.key(shard, "k")).collect();
    for key in &keys {
        cluster.ask(&format!("SET {key} old"));
    }
    load(&mut cluster, &keys, 1);
    let mut late = successors(&mut cluster);
    late.truncate(1);
    cluster.shards[0].drop_load(1, late);
    settle(&mut cluster);
    cluster.rest();
    assert!(cluster.shards[0].has_trash());
    assert_eq!(cluster.ask(&format!("MGET {} {}", keys[0], keys[1])), "*2\r\n$3\r\nold\r\n$3\r\nold\r\n");
    load(&mut cluster, &keys, 2);
    let whole = successors(&mut cluster);
    cluster.shards[0].begin_swap(whole, |_| {});
    settle(&mut cluster);
    cluster.rest();
    assert_eq!(cluster.ask(&format!("MGET {} {}", keys[0], keys[1])), "*2\r\n$3\r\nnew\r\n$3\r\nnew\r\n");
}

#[test]
fn a_snapshot_under_way_is_given_up_by_the_swap_and_the_next_is_complete() {
    let options = WriterOptions { version: 10, compress: false, checksum: true };
    let mut cluster = Cluster::new(2);
    let keys: Vec<String> = (0..2).map(|shard| cluster.key(shard, "k")).collect();
    for key in &keys {
        cluster.ask(&format!("SET {key} old"));
    }
    load(&mut cluster, &keys, 1);
    for shard in &mut cluster.shards {
        shard.keyspace.as_mut().unwrap().begin_snapshot(options).unwrap();
    }
    // Part of it is emptied and owed to the snapshot.
    cluster.ask("FLUSHALL");
    let whole = successors(&mut cluster);
    cluster.shards[0].begin_swap(whole, |_| {});
    settle(&mut cluster);
    cluster.rest();
    for (shard, key) in cluster.shards.iter_mut().zip(&keys) {
        let keyspace = shard.keyspace.as_mut().unwrap();
        assert!(!keyspace.has_snapshot());
        keyspace.begin_snapshot(options).unwrap();
        keyspace.snapshot_slice(1 << 20, 1 << 20);
        let piece = keyspace.take_snapshot_output().unwrap();
        let text = String::from_utf8_lossy(&piece.chunks.concat()).into_owned();
        assert!(piece.is_last && text.contains(key.as_str()) && text.contains("new"));
    }
}

#[test]
fn a_value_in_pieces_is_read_as_one_and_what_is_wrong_has_its_position() {
    let mut cluster = Cluster::new(1);
    let mut writer = Writer::new(WriterOptions::default());
    writer.length(3);
    for member in ["a", "b", "c"] {
        writer.string(member.as_bytes());
    }
    let set = writer.take();
    let set_header = |key: &str| KeyHeader { kind: kind::SET, ..header(key) };
    cluster.shards[0].begin_load(1);
    let mut batch = LoadBatch::new(10);
    batch.push_key(0, set_header("s"), 100, &set[..3], false);
    cluster.shards[0].send_load_batch(1, 0, 0, batch);
    let mut batch = LoadBatch::new(10);
    batch.push_rest(103, &set[3..], true);
    batch.push_key(0, header("t"), 120, &value("text"), true);
    let bytes = batch.len_bytes();
    cluster.shards[0].send_load_batch(1, 0, 0, batch);
    let mut batch = LoadBatch::new(10);
    batch.push_key(0, set_header("u"), 200, &[1, 0x40], true);
    cluster.shards[0].send_load_batch(1, 0, 0, batch);
    settle(&mut cluster);
    while cluster.shards[0].load_some() {}
    settle(&mut cluster);
    let outcomes: Vec<_> = cluster.told[0]
        .loads
        .iter()
        .map(|(_, answer)| match answer {
            LoadAnswer::Batch { outcome, len_bytes, .. } => (outcome.clone(), *len_bytes),
            LoadAnswer::Whole { .. } => panic!("not finished"),
        })
        .collect();
    assert_eq!(outcomes[0].0, Ok(0));
    assert_eq!(outcomes[1], (Ok(2), bytes));
    let fault = outcomes[2].0.clone().unwrap_err();
    assert_eq!(fault.to_string(), "Unexpected end of RDB at byte 202");
    cluster.rest();
}

/// What a shard has been told about the batches that it sent.
fn told(cluster: &mut Cluster, shard: usize) -> Vec<(u16, Result<u64, LoadFault>)> {
    let answers = cluster.told[shard].loads.drain(..);
    answers
        .map(|(_, answer)| match answer {
            LoadAnswer::Batch { stream, outcome, .. } => (stream, outcome),
            LoadAnswer::Whole { .. } => panic!("not finished"),
        })
        .collect()
}

#[test]
fn streams_from_several_shards_meet_at_an_owner_and_each_is_answered_where_it_is_read() {
    let mut cluster = Cluster::new(3);
    let set = {
        let mut writer = Writer::new(WriterOptions::default());
        writer.length(2);
        writer.string(b"a");
        writer.string(b"b");
        writer.take()
    };
    let names = [cluster.key(2, "a"), cluster.key(2, "b")];
    // Nobody has told the owner yet that a load begins, and the values that the streams are in the midst of are two.
    for part in [&set[..2], &set[2..]] {
        for from in 0..2_u16 {
            let mut batch = LoadBatch::new(10);
            if part.len() == 2 {
                let header = KeyHeader { kind: kind::SET, ..header(&names[usize::from(from)]) };
                batch.push_key(0, header, 0, part, false);
            } else {
                batch.push_rest(2, part, true);
            }
            let shard = usize::from(from);
            cluster.shards[shard].send_load_batch(1, from + 1, 2, batch);
            cluster.shards[shard].settle(&mut cluster.told[shard]);
        }
        cluster.rest();
    }
    while cluster.shards[2].load_some() {}
    cluster.rest();
    for from in 0..2 {
        let stream = from as u16 + 1;
        assert_eq!(told(&mut cluster, from), [(stream, Ok(0)), (stream, Ok(1))]);
    }
    cluster.shards[0].begin_load(1);
    cluster.shards[0].finish_load(1);
    settle(&mut cluster);
    cluster.rest();
    for shard in &mut cluster.shards {
        while shard.load_some() {}
    }
    settle(&mut cluster);
    cluster.rest();
    let whole = successors(&mut cluster);
    assert_eq!(whole.iter().map(|successor| successor.len()).collect::<Vec<_>>(), [0, 0, 2]);
}

#[test]
fn what_comes_late_of_an_attempt_that_is_over_is_neither_loaded_nor_answered() {
    let mut cluster = Cluster::new(2);
    let key = cluster.key(1, "k");
    let send = |cluster: &mut Cluster, load| {
        let mut batch = LoadBatch::new(10);
        batch.push_key(0, header(&key), 0, &value("v"), true);
        cluster.shards[0].send_load_batch(load, 1, 1, batch);
        settle(cluster);
        cluster.rest();
        cluster.shards[1].load_some();
        cluster.rest();
        told(cluster, 0).len()
    };
    cluster.shards[0].begin_load(1);
    assert_eq!(send(&mut cluster, 1), 1);
    cluster.shards[0].drop_load(1, Vec::new());
    assert_eq!(send(&mut cluster, 1), 0);
    // The next attempt's batch may come before the word that this one is over.
    cluster.shards[0].begin_load(2);
    assert_eq!(send(&mut cluster, 2), 1);
    assert_eq!(send(&mut cluster, 4), 1);
    cluster.shards[0].drop_load(2, Vec::new());
    settle(&mut cluster);
    cluster.rest();
    assert_eq!(send(&mut cluster, 2), 0);
    assert!(matches!(&cluster.shards[1].loads.successor, Some(successor) if successor.load == 4));
    assert!(cluster.shards[1].has_trash());
}

/// A set of so many members, as it stands in a file.
fn set_of(members: u64) -> Vec<u8> {
    let mut writer = Writer::new(WriterOptions::default());
    writer.length(members);
    (0..members).for_each(|member| writer.string(format!("member:{member}").as_bytes()));
    writer.take()
}

/// Loads values of one shard, of which some are not complete, until nothing is left to do.
fn load_pieces(cluster: &mut Cluster, pieces: &[(&str, u8, &[u8], bool)]) {
    cluster.shards[0].begin_load(1);
    for (number, (key, kind, bytes, is_complete)) in (0..).zip(pieces) {
        let mut batch = LoadBatch::new(10);
        batch.push_key(0, KeyHeader { kind: *kind, ..header(key) }, 0, &bytes[..5], false);
        batch.push_rest(5, &bytes[5..], *is_complete);
        cluster.shards[0].send_load_batch(1, number, 0, batch);
    }
    settle(cluster);
    while cluster.shards[0].load_some() {}
}

/// Values that wait to be freed, once what was dropped has come to them.
fn trash_len(cluster: &mut Cluster) -> usize {
    cluster.shards[0].background(0, &mut cluster.told[0]);
    cluster.shards[0].keyspace().unwrap().trash_len()
}

#[test]
fn law8_values_of_which_the_rest_does_not_come_are_freed_in_slices() {
    let set = set_of(1000);
    let mut writer = Writer::new(WriterOptions { compress: false, ..WriterOptions::default() });
    writer.string(&[b'x'; 3 << 20]);
    let text = writer.take();
    let pieces: [(&str, u8, &[u8], bool); 2] =
        [("s", kind::SET, &set[..5000], false), ("t", kind::STRING, &text[..2 << 20], false)];
    for finishes in [false, true] {
        let mut cluster = Cluster::new(1);
        load_pieces(&mut cluster, &pieces);
        if finishes {
            // One that cannot be read makes the attempt fail, which is finished nevertheless.
            let mut batch = LoadBatch::new(10);
            batch.push_key(0, header("u"), 0, &[], true);
            cluster.shards[0].send_load_batch(1, 2, 0, batch);
            cluster.shards[0].finish_load(1);
            settle(&mut cluster);
            while cluster.shards[0].load_some() {}
            cluster.shards[0].load_some();
            settle(&mut cluster);
            let answers = std::mem::take(&mut cluster.told[0].loads);
            let whole = answers.into_iter().find_map(|(_, answer)| match answer {
                LoadAnswer::Whole { successor, .. } => Some(successor),
                LoadAnswer::Batch { .. } => None,
            });
            cluster.shards[0].bury_later(whole.expect("it is finished"));
        } else {
            cluster.shards[0].drop_load(1, Vec::new());
            settle(&mut cluster);
        }
        // The set, the text as far as it came, and the buffer that its last piece came in.
        assert_eq!(trash_len(&mut cluster), 3);
        while cluster.shards[0].background(10, &mut cluster.told[0]) {}
        assert!(cluster.told[0].freed_bytes > 1 << 20, "a block of megabytes is freed elsewhere");
    }
}

#[test]
fn law8_values_that_are_refused_are_freed_in_slices() {
    let (set, longer) = (set_of(1000), [set_of(1000), vec![0]].concat());
    let twice: [(&str, u8, &[u8], bool); 2] = [("s", kind::SET, &set, true), ("s", kind::SET, &set, true)];
    for (pieces, refused) in [(&twice[..], "twice"), (&[("s", kind::SET, &longer[..], true)], NOT_THE_END)] {
        let mut cluster = Cluster::new(1);
        load_pieces(&mut cluster, pieces);
        settle(&mut cluster);
        let last = told(&mut cluster, 0).pop().expect("an answer");
        assert!(last.1.unwrap_err().what.contains(refused));
        let successor = cluster.shards[0].loads.successor.as_ref().expect("not given up yet");
        assert_eq!(successor.keyspace.trash_len(), 1, "{refused}");
    }
}
