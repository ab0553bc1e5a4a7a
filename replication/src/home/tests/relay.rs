//! Laws 6 and 7: what a node that follows a master passes on, and when it changes sides.

use super::*;
use crate::acks::{Level, WaiterId};
use crate::home::relay::Turn;
use crate::ids::ReplId;
use crate::link::Position;

fn id(digit: u8) -> ReplId {
    ReplId::parse(&[digit; 40]).expect("hex digits")
}

impl World {
    fn turn(&mut self, turn: Turn) {
        self.home.begin_turn(turn);
        let ticket = self.take_ticket();
        self.home.segment(ticket, Segment::default(), Some(Mark::Role));
        assert!(self.home.take_actions().contains(&Action::Turned(turn)));
    }

    /// A replica whose full sync has just ended at offset 500 of history `a`, in database 4.
    fn replica() -> Self {
        let mut world = World::new(2, rules());
        world.turn(Turn::Follow);
        world.home.replace_history(id(b'a'), 500, 4);
        world.home.set_link(true);
        world
    }

    fn relay(&mut self, text: &str, db: u16) {
        let end_offset = self.home.end_offset() + text.len() as u64;
        self.home.relay([Bytes::copy_from_slice(text.as_bytes())], end_offset, db);
    }

    fn closed(&mut self) -> Vec<ReplicaId> {
        let closed: Vec<ReplicaId> = self
            .home
            .take_actions()
            .into_iter()
            .filter_map(|action| match action {
                Action::Close { replica, .. } => Some(replica),
                _ => None,
            })
            .collect();
        closed.iter().for_each(|replica| self.home.detach(*replica));
        closed
    }
}

#[test]
fn law6_the_masters_bytes_are_passed_on_at_its_offsets_under_its_id() {
    let mut world = World::replica();
    assert_eq!(world.home.position(), Some(Position { id: id(b'a'), offset: 500, db: 4 }));
    assert_eq!(world.id(), id(b'a').to_string());
    let replica = world.resume(id(b'a').as_str(), 501);
    assert_eq!(world.take(replica), format!("+CONTINUE {}\r\n", id(b'a')).into_bytes());
    world.relay("one", 4);
    world.relay("two", 7);
    assert_eq!(world.take(replica), b"onetwo");
    assert_eq!(world.home.position(), Some(Position { id: id(b'a'), offset: 506, db: 7 }));
    // The stream is the master's: not even a PING is added to it.
    world.pass(30 * SECOND_MS);
    assert_eq!(world.take(replica), b"");
    assert_eq!(world.home.end_offset(), 506);
}

#[test]
fn law5_a_snapshot_of_a_replica_names_the_database_that_its_stream_is_in() {
    let mut world = World::replica();
    world.relay("one", 9);
    let replica = world.attach();
    let snapshot = world.cut();
    (0..2).for_each(|_| world.piece(snapshot, "", true));
    let sent = world.take(replica);
    let mut sent = sent.as_slice();
    assert_eq!(full_resync(&mut sent, id(b'a').as_str()), 503);
    let (_, aux) = marked_snapshot(&mut sent);
    assert_eq!((aux["repl-stream-db"].as_str(), aux["repl-offset"].as_str()), ("9", "503"));
    world.ack(replica, 503);
    world.relay("two", 9);
    assert_eq!(world.take(replica), b"two", "without a SELECT");
}

#[test]
fn who_has_no_link_serves_no_new_replica_and_keeps_those_he_has() {
    let mut world = World::replica();
    let replica = world.resume(id(b'a').as_str(), 501);
    world.take(replica);
    world.home.set_link(false);
    let refused = world.attach_as(CAPA, Some(&[b"?", b"-1"]));
    assert_eq!(refused, Err("NOMASTERLINK Can't SYNC while not connected with my master".into()));
    assert!(world.home.take_actions().is_empty());
    world.home.set_link(true);
    world.relay("one", 4);
    assert_eq!(world.take(replica), b"one");
}

#[test]
fn law6_a_new_id_of_the_master_is_told_to_those_below() {
    let mut world = World::replica();
    let replica = world.resume(id(b'a').as_str(), 501);
    world.home.continue_as(id(b'a'));
    assert_eq!(world.closed(), []);
    world.home.continue_as(id(b'c'));
    world.relay("new", 0);
    assert_eq!(world.closed(), [replica]);
    let replica = world.resume(id(b'a').as_str(), 501);
    assert_eq!(world.take(replica), format!("+CONTINUE {}\r\nnew", id(b'c')).into_bytes());
    // Beyond the fork the old name is another history.
    let late = world.resume(id(b'a').as_str(), 502);
    assert_eq!(world.states(), ["online", "wait_bgsave"]);
    world.home.detach(late);
}

#[test]
fn law5_a_full_sync_cuts_off_whoever_followed_the_history_before() {
    let mut world = World::replica();
    let online = world.resume(id(b'a').as_str(), 501);
    world.take(online);
    world.relay("old", 4);
    assert!(world.begin_send(online), "a send is under way");
    let waiting = world.attach();
    let receiving = world.attach();
    let snapshot = world.wanted_cut();
    world.home.replace_history(id(b'b'), 10, 2);
    world.relay("new", 2);
    // The cut of a snapshot that nobody wants any more comes behind.
    let ticket = world.take_ticket();
    world.home.segment(ticket, Segment::default(), Some(Mark::Cut(snapshot)));
    world.home.sent(online, world.now_ms);
    assert!(!world.begin_send(online), "of the new history it gets nothing");
    let actions = world.home.take_actions();
    assert!(actions.contains(&Action::Abort { snapshot }));
    for replica in [online, waiting, receiving] {
        assert!(
            actions
                .iter()
                .any(|action| matches!(action, Action::Close { replica: id, .. } if *id == replica))
        );
        world.home.detach(replica);
    }
    // The next one has a snapshot of its own.
    let replica = world.resume(id(b'a').as_str(), 504);
    assert_ne!(world.wanted_cut(), snapshot);
    world.home.detach(replica);
    let replica = world.resume(id(b'b').as_str(), 11);
    assert_eq!(world.take(replica), format!("+CONTINUE {}\r\nnew", id(b'b')).into_bytes());
}

#[test]
fn law6_siblings_of_a_promoted_replica_continue_and_its_own_writes_come_behind_the_fork() {
    let mut world = World::replica();
    world.relay("shared", 4);
    let below = world.resume(id(b'a').as_str(), 507);
    world.take(below);
    world.turn(Turn::Promote);
    assert!(!world.home.is_replica());
    // Whether written in the same tick as the change of role or later: behind the fork, and with its database.
    world.write("own");
    assert!(!world.begin_send(below), "under its old id it gets nothing more");
    world.home.detach(below);
    let sibling = world.resume(id(b'a').as_str(), 504);
    let sent = String::from_utf8(world.take(sibling)).unwrap();
    assert_eq!(sent, format!("+CONTINUE {}\r\nred{SELECT_0}own", world.id()));
    assert_ne!(world.id(), id(b'a').to_string());
    let report = world.home.report(world.now_ms);
    assert_eq!((report.former_id, report.fork_byte), (id(b'a').to_string(), 507));
}

#[test]
fn law5_a_dataset_in_doubt_is_not_handed_on_and_not_saved_under_its_history() {
    let mut world = World::replica();
    let online = world.resume(id(b'a').as_str(), 501);
    let waiting = world.attach();
    let snapshot = world.wanted_cut();
    world.home.distrust_dataset();
    assert_eq!(world.closed(), [online, waiting]);
    // The cut that was wanted comes behind: nobody is there for it.
    let ticket = world.take_ticket();
    world.home.segment(ticket, Segment::default(), Some(Mark::Cut(snapshot)));
    assert!(world.home.take_actions().contains(&Action::Abort { snapshot }));
    world.home.request_save(world.now_ms);
    let snapshot = snapshot + 1;
    let ticket = world.take_ticket();
    world.home.segment(ticket, Segment::default(), Some(Mark::Cut(snapshot)));
    (0..2).for_each(|_| world.piece(snapshot, "", true));
    let saved: Vec<u8> = file_steps(&mut world)
        .into_iter()
        .filter_map(|(_, step)| match step {
            FileStep::Write(bytes) => Some(bytes),
            _ => None,
        })
        .flatten()
        .collect();
    let (_, aux) = read_rdb(&saved);
    assert!(!aux.contains_key("repl-id"), "{aux:?}");
    world.home.replace_history(id(b'b'), 10, 0);
    assert!(world.home.history_db().is_some(), "the dataset that came is trusted");
}

#[test]
fn law6_a_dataset_in_doubt_is_nobodys_history() {
    let mut world = World::replica();
    let below = world.resume(id(b'a').as_str(), 501);
    world.home.abandon_history();
    assert_eq!(world.closed(), [below]);
    world.turn(Turn::Promote);
    let sibling = world.resume(id(b'a').as_str(), 501);
    assert_eq!(world.states(), ["wait_bgsave"], "what it has may be better");
    world.home.detach(sibling);
}

#[test]
fn law6_a_master_that_becomes_a_replica_can_go_on_from_its_own_history() {
    let mut world = World::new(2, rules());
    assert_eq!(world.home.position(), None, "nobody followed it");
    let replica = world.online();
    world.write("mine");
    let end = world.home.end_offset();
    let own = world.home.ids.current();
    world.turn(Turn::Follow);
    assert_eq!(world.home.position(), Some(Position { id: own, offset: end, db: 0 }));
    assert_eq!(world.take(replica), format!("{SELECT_0}mine").into_bytes());
    world.home.continue_as(id(b'c'));
    world.home.set_link(true);
    assert_eq!(world.closed(), [replica]);
    world.relay("theirs", 0);
    let replica = world.resume(own.as_str(), end + 1);
    assert_eq!(world.take(replica), format!("+CONTINUE {}\r\ntheirs", id(b'c')).into_bytes());
}

#[test]
fn a_dataset_from_a_file_goes_on_with_its_history() {
    let mut world = World::new(1, rules());
    world.home.start_as_replica();
    world.home.resume(id(b'f'), 90, true);
    world.home.set_stream_db(3);
    assert_eq!(world.home.position(), Some(Position { id: id(b'f'), offset: 90, db: 3 }));
}

#[test]
fn law6_a_failover_cannot_begin_while_the_role_changes() {
    let mut world = World::new(2, rules());
    world.online();
    world.home.begin_turn(Turn::Follow);
    let request = crate::failover::Request::Begin(crate::failover::Order::default());
    let refused = Err("ERR FAILOVER is not valid when server is a replica.");
    assert_eq!(
        world.home.failover(request.clone(), world.now_ms),
        refused,
        "its questions would go into its master's stream"
    );
    let ticket = world.take_ticket();
    world.home.segment(ticket, Segment::default(), Some(Mark::Role));
    assert_eq!(world.home.failover(request, world.now_ms), refused);
}

#[test]
#[should_panic(expected = "a gap in the stream")]
fn law6_a_gap_is_never_passed_on() {
    let mut world = World::replica();
    world.home.relay([Bytes::from_static(b"x")], 502, 0);
}

/// A client that waits for one replica.
fn wait(world: &mut World, offset: u64) -> Option<usize> {
    world.home.wait(WaiterId(1), offset, 1, None, Level::Applied)
}

#[test]
fn law7_a_waiting_client_is_let_go_when_its_master_becomes_a_replica() {
    let mut world = World::new(2, rules());
    world.online();
    world.write("mine");
    let written = world.home.written_offset();
    assert_eq!(wait(&mut world, written), None);
    world.home.begin_turn(Turn::Follow);
    let ticket = world.take_ticket();
    world.home.segment(ticket, Segment::default(), Some(Mark::Role));
    assert!(world.home.take_actions().contains(&Action::Unblock { waiter: WaiterId(1) }));
    // What is acknowledged from now on may be of a history without that write.
    world.home.replace_history(id(b'b'), 5000, 0);
    world.closed();
    world.home.set_link(true);
    let below = world.resume(id(b'b').as_str(), 5001);
    world.take(below);
    world.ack(below, 5000);
    assert!(world.home.take_resolved().is_empty());
}

#[test]
fn law7_what_was_acknowledged_of_another_history_is_not_counted() {
    let mut world = World::replica();
    let below = world.resume(id(b'a').as_str(), 501);
    world.relay("twenty bytes of old s", 4);
    world.take(below);
    world.ack(below, 520);
    world.home.replace_history(id(b'b'), 10, 0);
    // It was on its way.
    world.ack(below, 521);
    world.turn(Turn::Promote);
    world.write("own");
    let written = world.home.written_offset();
    assert_eq!(wait(&mut world, written), None, "it never had this write");
}

#[test]
fn law7_signs_of_life_of_another_history_hide_no_writes() {
    let mut world = World::new(2, rules());
    world.online();
    world.write("mine");
    world.home.merge.get_ack(&mut world.home.log);
    let end = world.home.end_offset();
    world.turn(Turn::Follow);
    world.home.replace_history(id(b'b'), end - 7, 0);
    world.closed();
    world.relay("effects", 0);
    assert_eq!((world.home.end_offset(), world.home.written_offset()), (end, end));
}

#[test]
fn no_loss_the_time_alone_counts_a_masters_time_only() {
    let mut world = World::new(2, Rules { backlog_ttl_ms: 20 * SECOND_MS, ..rules() });
    world.home.resume(id(b'a'), 500, false);
    world.pass(10 * SECOND_MS);
    world.turn(Turn::Follow);
    world.home.replace_history(id(b'b'), 700, 0);
    world.pass(60 * SECOND_MS);
    world.turn(Turn::Promote);
    world.pass(19 * SECOND_MS);
    assert_eq!(world.home.take_actions(), [], "its siblings come with this history");
    world.pass(2 * SECOND_MS);
    assert_eq!(world.home.take_actions(), [Action::StopStream]);
}
