//! Waits, the end of a stream that nobody follows, and whose dataset is not replaced.

use super::*;
use crate::acks::{Level, WaiterId};

const GETACK: &str = "*3\r\n$8\r\nREPLCONF\r\n$6\r\nGETACK\r\n$1\r\n*\r\n";

#[test]
fn wait_asks_at_once_and_once_for_all_who_wait() {
    let mut world = World::new(1, rules());
    let (one, two) = (world.online(), world.online());
    world.take(one);
    world.write("write");
    let offset = world.home.end_offset();
    assert_eq!(world.home.wait(WaiterId(1), offset, 0, None, Level::Applied), Some(0));
    let deadline_ms = Some(world.now_ms + 100);
    assert_eq!(world.home.wait(WaiterId(1), offset, 1, None, Level::Applied), None);
    assert_eq!(world.home.wait(WaiterId(2), offset, 3, deadline_ms, Level::Applied), None);
    let sent = String::from_utf8(world.take(one)).unwrap();
    assert!(sent.ends_with(&format!("write{GETACK}")), "{sent}");
    world.ack(one, offset - 1);
    assert!(world.home.take_resolved().is_empty(), "one byte short");
    world.ack(one, offset);
    let resolved = world.home.take_resolved();
    assert_eq!(resolved.iter().map(|one| (one.waiter, one.replicas)).collect::<Vec<_>>(), [(WaiterId(1), 1)]);
    world.ack(two, offset + GETACK.len() as u64);
    assert_eq!(world.home.wait(WaiterId(3), offset, 2, None, Level::Applied), Some(2));
    // The third never comes.
    assert_eq!(world.home.next_tick_ms(), deadline_ms);
    world.pass(100);
    let resolved = world.home.take_resolved();
    assert_eq!(resolved.iter().map(|one| (one.waiter, one.replicas)).collect::<Vec<_>>(), [(WaiterId(2), 2)]);
    // Something was written since, so they are asked again.
    world.write("more");
    assert_eq!(world.home.wait(WaiterId(4), world.home.end_offset(), 1, None, Level::Durable), None);
    assert!(String::from_utf8(world.take(one)).unwrap().ends_with(GETACK));
    world.home.cancel_wait(WaiterId(4));
    world.home.replconf(one, &[b"ACK", b"900", b"FACK", b"900"], world.now_ms);
    assert!(world.home.take_resolved().is_empty(), "who is gone is not answered");
}

#[test]
fn a_stream_that_nobody_follows_ends_after_its_time_and_its_history_with_it() {
    let mut world = World::new(1, Rules { backlog_ttl_ms: 20 * SECOND_MS, ..rules() });
    let id = world.online();
    world.write("write");
    world.take(id);
    let (history, offset) = (world.id(), world.home.end_offset());
    world.home.detach(id);
    world.pass(19 * SECOND_MS);
    // One that comes back in time begins the count anew.
    let id = world.resume(&history, offset + 1);
    world.pass(10 * SECOND_MS);
    world.home.detach(id);
    world.pass(19 * SECOND_MS);
    assert_eq!(world.home.take_actions(), []);
    world.pass(2 * SECOND_MS);
    assert_eq!(world.home.take_actions(), [Action::StopStream]);
    let words: [&[u8]; 2] = [history.as_bytes(), b"1"];
    let refused = world.attach_as(CAPA, Some(&words)).unwrap_err();
    assert!(refused.starts_with("NOMASTERLINK"), "it keeps its data and asks again: {refused}");
    let ticket = world.take_ticket();
    world.home.segment(ticket, effect("last"), Some(Mark::Offset(STOP_MARK)));
    let report = world.home.report(world.now_ms);
    assert_eq!((report.is_backlog_active, report.histlen_bytes), (false, 0));
    assert_ne!(report.id, history);
    assert_eq!(world.home.next_tick_ms(), None, "nothing is left to do");
    // The old history cannot be continued, and the stream begins again with a snapshot.
    let id = world.attach_as(CAPA, Some(&words)).expect("attaches");
    let snapshot = world.cut();
    world.piece(snapshot, "a", true);
    let sent = world.take(id);
    let mut sent = sent.as_slice();
    assert_eq!(full_resync(&mut sent, &world.id()), world.home.end_offset());
}

#[test]
fn who_is_refused_does_not_keep_the_stream() {
    let mut world = World::new(1, Rules { backlog_ttl_ms: 20 * SECOND_MS, protects: true, ..rules() });
    let id = world.online();
    world.home.detach(id);
    let foreign = "1".repeat(40);
    let words: [&[u8]; 2] = [foreign.as_bytes(), b"100"];
    let stranger: &[&[u8]] = &[b"listening-port", b"7", b"capa", b"eof", b"capa", b"psync2"];
    for _ in 0..21 {
        assert!(world.attach_as(stranger, Some(&words)).unwrap_err().starts_with("NOMASTERLINK"));
        world.pass(SECOND_MS);
    }
    assert_eq!(world.home.take_actions(), [Action::StopStream]);
}

#[test]
fn no_loss_a_master_that_started_empty_wipes_nobody_who_has_a_history() {
    let mut world = World::new(1, Rules { protects: true, ..rules() });
    let foreign = "1".repeat(40);
    let words: [&[u8]; 2] = [foreign.as_bytes(), b"100"];
    assert!(world.attach_as(CAPA, Some(&words)).unwrap_err().starts_with("NOMASTERLINK"));
    // Who has nothing loses nothing, whether it says so as a replica that never synchronized or as a server that never
    // was one.
    let words: [&[u8]; 2] = [foreign.as_bytes(), b"1"];
    let id = world.attach_as(CAPA, Some(&words)).expect("attaches");
    let snapshot = world.cut();
    world.piece(snapshot, "", true);
    let sent = world.take(id);
    assert!(
        full_resync(&mut sent.as_slice(), &world.id()) > 0,
        "who follows from here on does not look like that"
    );
    world.home.detach(id);
    let id = world.online();
    assert!(world.home.report(world.now_ms).is_protected);
    // Who followed this process is not a stranger, also when it has missed too much.
    let own = world.id();
    world.home.detach(id);
    let words: [&[u8]; 2] = [own.as_bytes(), b"999999"];
    let id = world.attach_as(CAPA, Some(&words)).expect("attaches");
    world.home.detach(id);
    world.cut();
    world.home.take_actions();
    let words: [&[u8]; 2] = [foreign.as_bytes(), b"100"];
    let stranger: &[&[u8]] = &[b"listening-port", b"7", b"capa", b"eof", b"capa", b"psync2"];
    assert!(world.attach_as(stranger, Some(&words)).is_err());
    // Nor is it when it has begun a history of its own meanwhile.
    let id = world.attach_as(CAPA, Some(&words)).expect("it had this dataset before");
    world.home.detach(id);
    world.home.confirm_dataset();
    assert!(world.attach_as(stranger, Some(&words)).is_ok());
    // Or it is switched off.
    let mut world = World::new(1, Rules { protects: true, ..rules() });
    world.home.set_rules(rules());
    assert!(world.attach_as(CAPA, Some(&words)).is_ok());
}

#[test]
fn the_end_waits_for_replicas_that_lag_and_for_no_more_than_its_time() {
    for in_time in [true, false] {
        let mut world = World::new(1, rules());
        let (one, two) = (world.online(), world.online());
        let deadline_ms = world.now_ms + 5000;
        world.drain();
        for id in [one, two] {
            world.ack(id, world.home.end_offset());
        }
        assert!(!world.home.begin_farewell(deadline_ms), "nobody lags");
        let before = world.home.end_offset();
        world.write("write");
        let offset = world.home.end_offset();
        assert!(world.home.begin_farewell(deadline_ms));
        world.home.poll_farewell(world.now_ms);
        assert!(String::from_utf8(world.take(one)).unwrap().ends_with(&format!("write{GETACK}")), "at once");
        world.home.poll_farewell(world.now_ms);
        assert!(world.take(one).is_empty(), "and once");
        // The question is not part of what they need.
        world.ack(one, offset);
        world.home.poll_farewell(world.now_ms);
        assert_eq!(world.home.take_actions(), []);
        if in_time {
            world.ack(two, offset);
            world.home.poll_farewell(world.now_ms);
        } else {
            assert!(world.home.next_tick_ms().is_some_and(|at_ms| at_ms <= deadline_ms));
            world.pass(5000);
        }
        let left = world.home.take_actions().into_iter().find_map(|action| match action {
            Action::Leave(attendance) => Some(attendance),
            _ => None,
        });
        let Attendance { in_step, replicas, lagging } = left.expect("it is over");
        assert_eq!((in_step, replicas, lagging.len()), (1 + usize::from(in_time), 2, usize::from(!in_time)));
        if let [line] = &lagging[..] {
            let lag = format!("reported offset {} behind master, lag=5, state=online.", offset - before);
            assert_eq!(*line, format!("Lagging replica 10.0.0.1:0 {lag}"));
        }
        world.home.poll_farewell(world.now_ms);
        assert_eq!(world.home.take_actions(), [], "once");
        assert!(!world.home.cancel_farewell());
    }
}

#[test]
fn the_end_does_not_wait_for_a_sign_of_life_to_be_acknowledged() {
    let mut world = World::new(1, rules());
    let id = world.online();
    world.write("write");
    world.take(id);
    world.ack(id, world.home.end_offset());
    world.pass(10 * SECOND_MS);
    assert_eq!(world.take(id), PING.as_bytes());
    assert!(!world.home.begin_farewell(world.now_ms + 5000));
}
