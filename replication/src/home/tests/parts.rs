//! Snapshots in parts, as home coordinates them.

use super::*;
use crate::parts::rendezvous::GATHER_MS;
use crate::parts::{Token, parse_header, parse_offer};

const WISH: &[&[u8]] = &[b"capa", b"eof", b"capa", b"psync2", b"capa", b"sync-parts:3"];
const PARTS: usize = 3;

/// A world with a replica that was offered parts, and the token.
fn offered(shards: usize) -> (World, ReplicaId, Token) {
    let mut world = World::new(shards, rules());
    let (id, token) = offer(&mut world);
    (world, id, token)
}

fn offer(world: &mut World) -> (ReplicaId, Token) {
    let id = world.attach_as(WISH, Some(&[b"?", b"-1"])).expect("attaches");
    let line = world.take(id);
    let line = String::from_utf8(line).expect("text");
    let (token, count) = parse_offer(line.trim_end()).expect("an offer");
    assert_eq!(count, PARTS);
    (id, token)
}

fn come(world: &mut World, id: ReplicaId, token: Token) {
    for index in 0..PARTS {
        assert_eq!(world.home.part_come(token, index, world.now_ms), Ok(id));
    }
}

/// The shards are done with a snapshot that they sent themselves.
fn walked(world: &mut World, snapshot: u64) {
    for _ in 0..world.home.shards {
        world.home.piece(snapshot, Piece::end());
    }
}

/// Takes off what the first connection says about a snapshot in parts; returns its aux fields.
fn head(bytes: &mut &[u8]) -> BTreeMap<String, String> {
    let mark = parse_header(&take_line(bytes)).expect("parts");
    let end = bytes.windows(40).position(|window| window == mark).expect("the mark");
    let (keys, aux) = read_rdb(&bytes[..end]);
    *bytes = &bytes[end + 40..];
    assert!(keys.is_empty());
    aux
}

#[test]
fn law5_a_snapshot_in_parts_is_cut_once_and_ends_with_the_length_of_each() {
    for sends_early in [false, true] {
        let (mut world, id, token) = offered(2);
        assert!(world.home.take_actions().is_empty(), "its connections are waited for");
        world.write("before");
        come(&mut world, id, token);
        let snapshot = world.wanted_cut();
        let plan = world.home.parts_plan(snapshot).expect("in parts");
        assert_eq!(plan.members, [(id, PARTS)]);
        let send = |world: &mut World| {
            walked(world, snapshot);
            (0..PARTS).for_each(|index| world.home.part_sent(id, index, 10 + index as u64));
        };
        if sends_early {
            // The shards are faster than the merge.
            send(&mut world);
            assert_eq!(world.take(id), b"");
        }
        let ticket = world.take_ticket();
        world.home.segment(ticket, Segment::default(), Some(Mark::Cut(snapshot)));
        world.write("after");
        if !sends_early {
            send(&mut world);
        }
        let sent = world.take(id);
        let mut sent = sent.as_slice();
        let offset = full_resync(&mut sent, &world.id());
        assert_eq!(head(&mut sent)["repl-offset"], offset.to_string());
        assert_eq!(sent, b"+ENDPARTS 10 11 12\r\n");
        assert_eq!(world.states(), ["online"]);
        world.ack(id, offset);
        assert_eq!(world.home.take_actions(), [Action::EndParts { replica: id }]);
        assert_eq!(world.take(id), format!("{SELECT_0}after").into_bytes());
        // The next full sync finds nothing in its way.
        world.attach();
        world.cut();
    }
}

#[test]
fn the_first_connection_is_alive_while_the_others_send() {
    let (mut world, id, token) = offered(1);
    come(&mut world, id, token);
    let snapshot = world.cut();
    walked(&mut world, snapshot);
    world.take(id);
    assert_eq!(world.states(), ["send_bulk"]);
    world.pass(30 * SECOND_MS);
    assert_eq!(world.take(id), b"\n");
    (0..PARTS).for_each(|index| world.home.part_sent(id, index, 1));
    assert_eq!(world.take(id), b"+ENDPARTS 1 1 1\r\n");
}

#[test]
fn who_does_not_get_its_connections_together_gets_the_snapshot_on_the_first() {
    for lost in [false, true] {
        let (mut world, id, token) = offered(1);
        world.home.part_come(token, 2, world.now_ms).unwrap();
        if lost {
            world.home.part_gone(id, 2, "reset", world.now_ms);
        } else {
            world.pass(GATHER_MS - 1);
            assert!(world.home.take_actions().is_empty());
            world.pass(1);
        }
        let actions = world.home.take_actions();
        let [Action::EndParts { replica }, Action::Cut { snapshot, .. }] = actions[..] else {
            panic!("{actions:?}")
        };
        assert_eq!(replica, id);
        assert!(world.home.part_come(token, 0, world.now_ms).is_err(), "too late");
        assert!(world.home.parts_plan(snapshot).is_none());
        let ticket = world.take_ticket();
        world.home.segment(ticket, Segment::default(), Some(Mark::Cut(snapshot)));
        world.piece(snapshot, "a", true);
        let sent = world.take(id);
        let mut sent = sent.as_slice();
        full_resync(&mut sent, &world.id());
        assert_eq!(marked_snapshot(&mut sent).0, ["a"]);
    }
}

#[test]
fn law9_a_connection_lost_before_its_part_is_sent_ends_the_replicas_sync_and_no_other() {
    for lost in 0..PARTS {
        for sent in 0..PARTS {
            let (mut world, id, token) = offered(1);
            let (other, token2) = offer(&mut world);
            come(&mut world, id, token);
            assert!(world.home.take_actions().is_empty(), "the other is waited for");
            come(&mut world, other, token2);
            let snapshot = world.cut();
            let members = world.home.parts_plan(snapshot).expect("in parts").members;
            assert_eq!(members, [(id, PARTS), (other, PARTS)]);
            (0..sent).for_each(|index| world.home.part_sent(id, index, 5));
            world.home.part_gone(id, lost, "reset", world.now_ms);
            (sent..PARTS).for_each(|index| world.home.part_sent(id, index, 5));
            let actions = world.home.take_actions();
            if lost < sent {
                assert_eq!(actions, []);
                continue;
            }
            let [Action::Close { replica, why }] = &actions[..] else { panic!("{actions:?}") };
            assert_eq!(
                (*replica, why.as_str()),
                (id, &*format!("its data connection {lost} was lost: reset"))
            );
            world.home.detach(id);
            assert_eq!(world.home.take_actions(), [Action::EndParts { replica: id }]);
            walked(&mut world, snapshot);
            (0..PARTS).for_each(|index| world.home.part_sent(other, index, 5));
            assert!(world.take(other).ends_with(b"+ENDPARTS 5 5 5\r\n"));
        }
    }
}

#[test]
fn a_replica_that_takes_it_in_one_piece_only_decides_for_all() {
    let mut world = World::new(1, Rules { sharing: Policy { delay_ms: 1000, ..rules().sharing }, ..rules() });
    let (id, token) = offer(&mut world);
    come(&mut world, id, token);
    let stock = world.attach();
    world.pass(1000);
    let actions = world.home.take_actions();
    let [Action::EndParts { .. }, Action::Cut { snapshot, .. }] = actions[..] else { panic!("{actions:?}") };
    let ticket = world.take_ticket();
    world.home.segment(ticket, Segment::default(), Some(Mark::Cut(snapshot)));
    world.piece(snapshot, "a", true);
    for replica in [id, stock] {
        let sent = world.take(replica);
        let mut sent = sent.as_slice();
        full_resync(&mut sent, &world.id());
        assert_eq!(marked_snapshot(&mut sent).0, ["a"]);
    }
}

#[test]
fn who_cannot_be_meant_is_refused() {
    let (mut world, id, token) = offered(1);
    let foreign = Token::random(&mut fastrand::Rng::with_seed(99));
    assert!(world.home.part_come(foreign, 0, world.now_ms).is_err());
    assert!(world.home.part_come(token, PARTS, world.now_ms).is_err());
    world.home.part_come(token, 0, world.now_ms).unwrap();
    assert!(world.home.part_come(token, 0, world.now_ms).is_err(), "once");
    world.home.detach(id);
    assert_eq!(world.home.take_actions(), [Action::EndParts { replica: id }]);
    assert!(world.home.part_come(token, 1, world.now_ms).is_err(), "the replica is gone");
    // What is told of it later means nothing.
    world.home.part_gone(id, 0, "closed", world.now_ms);
    world.home.part_sent(id, 1, 7);
    assert!(world.home.take_actions().is_empty());
}

#[test]
fn parts_are_offered_to_nobody_else() {
    let mut world = World::new(1, rules());
    for options in [CAPA, &[b"capa", b"eof", b"capa", b"sync-parts:1"]] {
        let id = world.attach_as(options, Some(&[b"?", b"-1"])).unwrap();
        assert_eq!(world.take(id), b"");
    }
    let old = world.attach_as(WISH, None).unwrap();
    assert_eq!(world.take(old), b"", "SYNC knows no offers");
    let mut by_file =
        World::new(1, Rules { sharing: Policy { is_diskless: false, ..rules().sharing }, ..rules() });
    let id = by_file.attach_as(WISH, Some(&[b"?", b"-1"])).unwrap();
    assert_eq!(by_file.take(id), b"");
}

#[test]
fn every_shard_has_one_connection_and_every_connection_one_host() {
    for shards in 1..9 {
        for count in 2..=crate::parts::PARTS_MAX {
            let feeders: usize = (0..count).map(|part| PartsPlan::feeders(part, count, shards)).sum();
            assert_eq!(feeders, shards);
            for shard in 0..shards {
                let part = PartsPlan::part_of(shard, count);
                let host = PartsPlan::host_of(part, shards);
                assert!(part < count && host < shards);
                assert!(count < shards || host == shard, "core to core");
            }
        }
    }
}
