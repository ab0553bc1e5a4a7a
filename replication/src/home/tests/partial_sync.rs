//! Replicas that continue where they were.

use super::*;

#[test]
fn a_replica_continues_from_any_byte_that_is_kept_and_from_no_other() {
    let mut world = World::new(1, Rules { backlog_bytes: 1000, ..rules() });
    let first = world.online();
    (0..40).for_each(|n| world.write(&format!("{n:050}")));
    let all = world.take(first);
    world.home.trim();
    let (end, id) = (world.home.end_offset(), world.id());
    assert_eq!(all.len() as u64, end);
    let oldest = world.home.report(world.now_ms).first_byte;
    assert_eq!(oldest, end - 1000 + 1);
    for next_byte in [oldest, oldest + 1, end - 1, end, end + 1] {
        let replica = world.resume(&id, next_byte);
        let expected = [format!("+CONTINUE {id}\r\n").as_bytes(), &all[next_byte as usize - 1..]].concat();
        assert_eq!(world.take(replica), expected, "from byte {next_byte}");
        assert!(world.home.take_actions().is_empty());
    }
    assert_eq!(world.home.report(world.now_ms).partial_syncs, 5);
    let other = "0".repeat(40);
    let refused = [(&id, oldest - 1), (&id, end + 2), (&id, 0), (&other, end)];
    for (history, next_byte) in refused {
        let replica = world.resume(history, next_byte);
        let snapshot = world.cut();
        world.piece(snapshot, "", true);
        let sent = world.take(replica);
        assert_eq!(full_resync(&mut sent.as_slice(), &id), end, "{history} from byte {next_byte}");
        world.home.detach(replica);
    }
    let report = world.home.report(world.now_ms);
    assert_eq!((report.full_syncs, report.refused_partial_syncs), (5, 4));
}

#[test]
fn what_a_reader_has_not_had_is_kept_beyond_the_backlog() {
    let mut world = World::new(1, Rules { backlog_bytes: 1000, ..rules() });
    let slow = world.online();
    world.write("first");
    assert!(world.begin_send(slow));
    (0..100).for_each(|n| world.write(&format!("{n:0100}")));
    world.home.trim();
    let report = world.home.report(world.now_ms);
    assert_eq!(report.histlen_bytes, world.home.end_offset(), "all of it waits for the slow one");
    world.home.sent(slow, world.now_ms);
    let received = SELECT_0.len() + "first".len();
    assert_eq!(world.received[&slow].len(), received);
    // It goes away and comes back: as long as nothing is trimmed it continues.
    let history = world.id();
    world.home.detach(slow);
    let back = world.resume(&history, received as u64 + 1);
    let continued = world.take(back);
    assert!(continued.starts_with(b"+CONTINUE"));
    assert!(continued.ends_with(format!("{:0100}", 99).as_bytes()));
    // Without a disk nobody is waited for, once the log is trimmed.
    world.home.detach(back);
    world.home.trim();
    assert_eq!(world.home.report(world.now_ms).histlen_bytes, 1000);
    let late = world.resume(&history, received as u64 + 1);
    assert_eq!(world.take(late), b"", "it gets a snapshot");
}

#[test]
fn a_loaded_history_is_continued_by_who_has_no_more_of_it() {
    let old = ReplId::parse(&[b'a'; 40]).unwrap();
    for (next_byte, continues) in [(1235, true), (1236, false), (1234, false)] {
        let mut world = World::new(1, rules());
        world.home.resume(old, 1234, false);
        assert_eq!(world.home.end_offset(), 1234);
        let replica = world.resume(old.as_str(), next_byte);
        world.drain();
        let reply = String::from_utf8_lossy(&world.received[&replica]).into_owned();
        assert_eq!(reply.starts_with("+CONTINUE"), continues, "{next_byte}: {reply}");
    }
}
