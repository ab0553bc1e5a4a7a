//! Full syncs: the handshake, the snapshot and the stream from the cut on; who shares a snapshot.

use super::*;
use crate::home::snapshots::CUT_RETRY_MS;
use braid_core::rdb::Checksum;

#[test]
fn law5_a_replica_is_sent_header_snapshot_mark_and_after_its_ack_the_stream_from_the_cut() {
    let mut world = World::new(2, rules());
    let id = world.attach();
    assert_eq!(world.states(), ["wait_bgsave"]);
    let snapshot = world.wanted_cut();
    // Tickets 0 and 1 came before the cut's, and come last; so does a piece of a shard that is ahead.
    let tickets: Vec<u64> = (0..4).map(|_| world.take_ticket()).collect();
    world.home.segment(tickets[3], effect("after"), None);
    world.piece(snapshot, "a", true);
    world.home.segment(tickets[2], Segment::default(), Some(Mark::Cut(snapshot)));
    world.piece(snapshot, "b", false);
    world.home.segment(tickets[1], effect("before2"), None);
    assert_eq!(world.take(id), b"", "nothing before the cut is known");
    world.home.segment(tickets[0], effect("before1"), None);
    let before_bytes = (SELECT_0.len() + "before1before2".len()) as u64;
    assert_eq!(world.states(), ["send_bulk"]);
    world.piece(snapshot, "c", true);
    let sent = world.take(id);
    let mut sent = sent.as_slice();
    assert_eq!(full_resync(&mut sent, &world.id()), before_bytes);
    let (keys, aux) = marked_snapshot(&mut sent);
    assert_eq!(keys, ["a", "b", "c"]);
    assert_eq!((aux["repl-id"].clone(), aux["repl-offset"].clone()), (world.id(), before_bytes.to_string()));
    assert_eq!(sent, b"", "the stream waits for the acknowledgement");
    assert_eq!(world.states(), ["online"]);
    assert!(world.home.take_actions().is_empty());

    world.ack(id, before_bytes);
    assert_eq!(world.take(id), format!("{SELECT_0}after").into_bytes());
    world.write("more");
    assert_eq!(world.take(id), b"more");
    let end = world.home.end_offset();
    assert_eq!(end, before_bytes + (SELECT_0.len() + "aftermore".len()) as u64);
    world.ack(id, end);
    let report = world.home.report(world.now_ms);
    assert_eq!(report.replicas[0].role, Some(["10.0.0.1".into(), "0".into(), end.to_string()]));
    assert_eq!((report.full_syncs, report.partial_syncs, report.refused_partial_syncs), (1, 0, 0));
}

#[test]
fn law5_any_order_of_tickets_and_pieces_gives_the_same_snapshot_and_stream() {
    for seed in 0..300 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let shards = rng.usize(1..8);
        let mut world = World::new(shards, rules());
        let id = world.attach();
        let snapshot = world.wanted_cut();
        // Every shard hands in its segments in order, its pieces in order, and both in any order.
        let (before, after) = (rng.usize(..20), rng.usize(1..20));
        let mut expected_keys = Vec::new();
        let mut queues: Vec<VecDeque<(u64, Segment, Option<Mark>)>> = vec![VecDeque::new(); shards];
        let mut stream = String::new();
        for n in 0..before + 1 + after {
            let ticket = world.take_ticket();
            let shard = rng.usize(..shards);
            let arrival = if n == before {
                (ticket, Segment::default(), Some(Mark::Cut(snapshot)))
            } else {
                let text = format!("<{n}>");
                if n > before {
                    stream += &text;
                }
                (ticket, effect(&text), None)
            };
            queues[shard].push_back(arrival);
        }
        let mut pieces: Vec<VecDeque<Piece>> = Vec::new();
        for shard in 0..shards {
            let count = rng.usize(1..5);
            pieces.push(
                (0..count)
                    .map(|n| {
                        let key = if rng.u8(..4) == 0 { String::new() } else { format!("{shard}-{n}") };
                        expected_keys.extend((!key.is_empty()).then(|| key.clone()));
                        piece(&world.home, &key, n + 1 == count)
                    })
                    .collect(),
            );
        }
        while queues.iter().any(|queue| !queue.is_empty()) || pieces.iter().any(|queue| !queue.is_empty()) {
            let shard = rng.usize(..shards);
            match rng.u8(..3) {
                0 => {
                    if let Some((ticket, segment, mark)) = queues[shard].pop_front() {
                        world.home.segment(ticket, segment, mark);
                    }
                }
                1 => {
                    if let Some(piece) = pieces[shard].pop_front() {
                        world.home.piece(snapshot, piece);
                    }
                }
                _ => {
                    world.send(id);
                    world.home.trim();
                }
            }
        }
        let sent = world.take(id);
        let mut sent = sent.as_slice();
        let offset = full_resync(&mut sent, &world.id());
        let (keys, _) = marked_snapshot(&mut sent);
        expected_keys.sort();
        assert_eq!((keys, sent), (expected_keys, &b""[..]), "seed {seed}");
        world.ack(id, offset);
        let followed = world.take(id);
        assert_eq!(followed, format!("{SELECT_0}{stream}").into_bytes(), "seed {seed}");
        assert_eq!(offset + followed.len() as u64, world.home.end_offset(), "seed {seed}");
    }
}

#[test]
fn replicas_that_come_together_share_a_snapshot_and_one_that_comes_later_gets_its_own() {
    let mut world = World::new(1, Rules { sharing: Policy { delay_ms: 5000, ..rules().sharing }, ..rules() });
    let first = world.attach();
    world.pass(3000);
    let second = world.attach();
    assert!(world.home.take_actions().is_empty());
    world.pass(1999);
    assert!(world.home.take_actions().is_empty(), "the delay is not over");
    world.pass(1);
    let snapshot = world.cut();
    let third = world.attach();
    world.pass(5000);
    assert!(world.home.take_actions().is_empty(), "one at a time");
    world.write("during");
    world.piece(snapshot, "a", true);
    assert_eq!(world.received[&third], b"");
    for id in [first, second] {
        let sent = world.take(id);
        let mut sent = sent.as_slice();
        assert_eq!(full_resync(&mut sent, &world.id()), 0);
        assert_eq!(marked_snapshot(&mut sent).0, ["a"]);
        assert_eq!(sent, b"");
        world.ack(id, 0);
        assert_eq!(world.take(id), format!("{SELECT_0}during").into_bytes());
    }
    world.pass(1000);
    let snapshot = world.cut();
    world.piece(snapshot, "b", true);
    let sent = world.take(third);
    let mut sent = sent.trim_ascii_start();
    assert_eq!(full_resync(&mut sent, &world.id()), world.home.end_offset());
    assert_eq!(marked_snapshot(&mut sent).0, ["b"]);
    assert_eq!(world.home.report(world.now_ms).full_syncs, 3);
}

#[test]
fn a_snapshot_is_given_up_when_its_last_member_goes_and_its_late_pieces_are_ignored() {
    let mut world = World::new(2, rules());
    let id = world.attach();
    let first = world.cut();
    world.piece(first, "a", true);
    world.home.detach(id);
    assert_eq!(world.home.take_actions(), [Action::Abort { snapshot: first }]);
    world.home.detach(id);
    assert!(world.home.take_actions().is_empty(), "once");
    let id = world.attach();
    let second = world.wanted_cut();
    assert_ne!(second, first);
    // Before and after the cut.
    world.piece(first, "b", true);
    let ticket = world.take_ticket();
    world.home.segment(ticket, Segment::default(), Some(Mark::Cut(second)));
    world.piece(first, "b", true);
    world.piece(second, "c", true);
    world.piece(first, "b", true);
    world.piece(second, "d", true);
    let sent = world.take(id);
    let mut sent = sent.as_slice();
    full_resync(&mut sent, &world.id());
    assert_eq!(marked_snapshot(&mut sent).0, ["c", "d"]);
}

#[test]
fn a_snapshot_whose_only_member_goes_before_the_cut_is_given_up_at_the_cut() {
    let mut world = World::new(1, rules());
    let id = world.attach();
    let snapshot = world.wanted_cut();
    world.home.detach(id);
    assert!(world.home.take_actions().is_empty(), "the cut is under way");
    let other = world.attach();
    let ticket = world.take_ticket();
    world.home.segment(ticket, Segment::default(), Some(Mark::Cut(snapshot)));
    assert_eq!(world.home.take_actions(), [Action::Abort { snapshot }]);
    world.home.tick(world.now_ms);
    let snapshot = world.cut();
    world.piece(snapshot, "a", true);
    let sent = world.take(other);
    let mut sent = sent.as_slice();
    full_resync(&mut sent, &world.id());
    assert_eq!(marked_snapshot(&mut sent).0, ["a"]);
}

#[test]
fn one_member_that_goes_does_not_stop_the_others_snapshot() {
    let mut world = World::new(1, Rules { sharing: Policy { delay_ms: 1000, ..rules().sharing }, ..rules() });
    let [gone, slow, stays] = [(); 3].map(|()| world.attach());
    world.pass(1000);
    let snapshot = world.cut();
    world.home.detach(gone);
    // One is stuck while the window fills up; the other has read everything.
    world.begin_send(slow);
    let key = "k".repeat(1 << 20);
    for _ in 0..17 {
        world.piece(snapshot, &key, false);
    }
    world.drain();
    assert!(world.home.is_snapshot_paused());
    world.home.detach(slow);
    assert!(!world.home.is_snapshot_paused(), "nobody is left who does not read");
    world.piece(snapshot, "a", true);
    let sent = world.take(stays);
    let mut sent = sent.as_slice();
    full_resync(&mut sent, &world.id());
    assert_eq!(marked_snapshot(&mut sent).0.len(), 18);
}

#[test]
fn the_walk_waits_while_the_slowest_member_has_much_to_read() {
    let mut world = World::new(1, rules());
    let id = world.attach();
    let snapshot = world.cut();
    world.begin_send(id);
    let key = "k".repeat(1 << 20);
    (0..16).for_each(|_| world.piece(snapshot, &key, false));
    assert!(world.home.is_snapshot_paused());
    world.home.sent(id, world.now_ms);
    while world.home.is_snapshot_paused() {
        assert!(world.send(id));
    }
}

#[test]
fn who_reads_no_mark_gets_a_length() {
    let mut world = World::new(2, rules());
    let plain = world.attach_as(&[b"capa", b"psync2"], Some(&[b"?", b"-1"])).unwrap();
    let snapshot = world.cut();
    world.write("after");
    world.piece(snapshot, "a", true);
    assert_eq!(world.states(), ["wait_bgsave"]);
    world.pass(10_000);
    world.piece(snapshot, "b", true);
    world.serve_files();
    let sent = world.take(plain);
    let mut sent = sent.as_slice();
    assert_eq!(full_resync(&mut sent, &world.id()), 0);
    let mut sent = sent.strip_prefix(b"\n").expect("a sign of life meanwhile");
    let len: usize = take_line(&mut sent).strip_prefix('$').unwrap().parse().unwrap();
    assert_eq!(read_rdb(&sent[..len]).0, ["a", "b"]);
    // Nothing to search for in what follows, so it need not wait.
    assert_eq!(sent[len..], *format!("{SELECT_0}after").as_bytes());
    assert_eq!(world.states(), ["online"]);
}

#[test]
fn sync_of_old_gets_a_snapshot_and_the_stream_and_no_reply() {
    let mut world = World::new(1, rules());
    let old = world.attach_as(&[], None).unwrap();
    let snapshot = world.cut();
    world.piece(snapshot, "a", true);
    world.serve_files();
    world.write("after");
    let sent = world.take(old);
    let mut sent = sent.as_slice();
    let len: usize = take_line(&mut sent).strip_prefix('$').unwrap().parse().unwrap();
    assert_eq!(read_rdb(&sent[..len]).0, ["a"]);
    assert_eq!(sent[len..], *format!("{SELECT_0}after").as_bytes());
    world.pass(200_000);
    assert_eq!(world.home.take_actions(), [], "it never acknowledges, and that says nothing");
}

#[test]
fn a_filtered_snapshot_has_no_data_and_needs_no_walk() {
    let mut world = World::new(3, rules());
    let options: &[&[u8]] = &[b"capa", b"eof", b"rdb-filter-only", b""];
    let id = world.attach_as(options, Some(&[b"?", b"-1"])).unwrap();
    let actions = world.home.take_actions();
    let [Action::Cut { snapshot, with_data: false }] = actions[..] else { panic!("{actions:?}") };
    let ticket = world.take_ticket();
    world.home.segment(ticket, Segment::default(), Some(Mark::Cut(snapshot)));
    let sent = world.take(id);
    let mut sent = sent.as_slice();
    full_resync(&mut sent, &world.id());
    assert_eq!(marked_snapshot(&mut sent).0, Vec::<String>::new());
    assert_eq!(world.states(), ["online"]);
    let refused = world.attach_as(&[b"rdb-filter-only", b""], Some(&[b"?", b"-1"]));
    assert_eq!(refused.unwrap_err(), "ERR Filtered replica requires EOF capability");
}

#[test]
fn who_wants_the_snapshot_only_is_closed_after_it_and_is_no_replica() {
    let mut world = World::new(1, rules());
    let id = world.attach_as(&[b"rdb-only", b"1"], None).unwrap();
    let snapshot = world.cut();
    world.piece(snapshot, "a", true);
    world.serve_files();
    assert_eq!((world.home.replicas(), world.states().len()), (0, 0));
    world.write("after");
    let sent = world.take(id);
    let mut sent = sent.as_slice();
    let len: usize = take_line(&mut sent).strip_prefix('$').unwrap().parse().unwrap();
    assert_eq!((read_rdb(&sent[..len]).0, sent.len()), (vec!["a".to_owned()], len));
    let actions = world.home.take_actions();
    assert!(matches!(actions[..], [Action::Close { replica, .. }] if replica == id), "{actions:?}");
}

#[test]
fn for_who_wants_the_snapshot_only_nothing_of_the_stream_is_kept() {
    let limits = ReaderLimits { hard_bytes: 5000, soft_bytes: 0, soft_ms: 0 };
    let mut world = World::new(1, Rules { backlog_bytes: 100, limits, ..rules() });
    let id = world.attach_as(&[b"capa", b"eof", b"rdb-only", b"1"], None).unwrap();
    let snapshot = world.cut();
    world.begin_send(id);
    world.write(&"x".repeat(10_000));
    world.home.trim();
    assert_eq!(world.home.report(world.now_ms).histlen_bytes, 100);
    world.pass(2 * SECOND_MS);
    assert_eq!(world.home.take_actions(), [], "it is not behind");
    world.home.sent(id, world.now_ms);
    world.piece(snapshot, "a", true);
    let sent = world.take(id);
    assert_eq!(marked_snapshot(&mut sent.as_slice()).0, ["a"]);
}

#[test]
fn law8_a_long_element_is_sent_in_parts_and_handed_back_whole_to_be_freed() {
    for breaks in [false, true] {
        let mut world = World::new(1, rules());
        let id = world.attach();
        let snapshot = world.cut();
        world.take(id);
        let long = Bytes::from(vec![b'x'; 10 << 20]);
        let is_long = |piece: &Bytes| (piece.as_ptr(), piece.len()) == (long.as_ptr(), long.len());
        let piece = Piece { chunks: vec![long.clone()], checksum: Checksum::default(), is_last: false };
        world.home.piece(snapshot, piece);
        let mut sends = 0;
        while world.begin_send(id) {
            sends += 1;
            if breaks && sends == 5 {
                world.home.detach(id);
                break;
            }
            assert!(!world.home.take_dropped().iter().any(is_long), "not all of it is sent");
            // Twice the time that a send may take, for all of it.
            world.pass(12 * SECOND_MS);
            world.home.sent(id, world.now_ms);
        }
        assert_eq!(sends, if breaks { 5 } else { 10 });
        assert_eq!(world.home.take_dropped().iter().filter(|piece| is_long(piece)).count(), 1);
        let closes = |action: &Action| matches!(action, Action::Close { .. });
        assert!(!world.home.take_actions().iter().any(closes), "it gets on");
    }
}

#[test]
fn a_cut_that_was_refused_is_asked_for_again_after_a_pause() {
    let mut world = World::new(1, rules());
    let id = world.attach();
    let snapshot = world.wanted_cut();
    world.home.cut_refused(world.now_ms);
    world.home.tick(world.now_ms);
    assert_eq!(world.home.take_actions(), []);
    assert_eq!(world.home.next_tick_ms(), Some(world.now_ms + CUT_RETRY_MS));
    world.pass(CUT_RETRY_MS);
    assert_eq!(world.cut(), snapshot);
    world.piece(snapshot, "a", true);
    assert!(world.take(id).starts_with(b"+FULLRESYNC"));
}
