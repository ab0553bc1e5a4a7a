//! Signs of life, and what becomes of replicas that are silent, slow or behind.

use super::*;

#[test]
fn replicas_are_pinged_each_period_however_busy_the_master_is() {
    let mut world = World::new(1, rules());
    let id = world.online();
    let mut pings = 0;
    // As the engine does it: a look at every tick of a busy shard, far more often than once a second.
    for _ in 0..60_000 / 10 {
        if world.home.next_tick_ms().is_some_and(|at_ms| at_ms <= world.now_ms) {
            world.home.tick(world.now_ms);
        }
        world.now_ms += 10;
        world.ack(id, world.home.end_offset());
        let sent = world.take(id);
        assert!(sent.is_empty() || sent == PING.as_bytes(), "{}", sent.escape_ascii());
        pings += usize::from(!sent.is_empty());
    }
    assert!((5..=6).contains(&pings), "{pings} in a minute");
    assert_eq!(world.home.take_actions(), []);
    assert_eq!(world.home.end_offset(), (pings * PING.len()) as u64);
}

#[test]
fn who_waits_for_a_snapshot_is_sent_signs_of_life() {
    let mut world = World::new(1, rules());
    let id = world.attach();
    let snapshot = world.wanted_cut();
    world.pass(35_000);
    assert_eq!(world.take(id), b"\n\n\n");
    let ticket = world.take_ticket();
    world.home.segment(ticket, Segment::default(), Some(Mark::Cut(snapshot)));
    world.pass(35_000);
    world.piece(snapshot, "", true);
    let sent = world.take(id);
    let mut sent = sent.as_slice();
    full_resync(&mut sent, &world.id());
    marked_snapshot(&mut sent);
    assert_eq!(sent, b"");
}

#[test]
fn a_silent_replica_is_closed_once_and_one_that_loads_its_snapshot_is_not() {
    let mut world = World::new(1, rules());
    let id = world.online();
    world.pass(60_000);
    world.drain();
    assert_eq!(world.home.take_actions(), []);
    // An empty line, as a replica sends while it loads.
    world.home.heard(id, world.now_ms);
    world.pass(60_000);
    world.drain();
    assert_eq!(world.home.take_actions(), []);
    world.pass(10_000);
    assert_eq!(world.home.take_actions(), [Action::Close { replica: id, why: "timeout".into() }]);
    world.write("more");
    assert!(!world.begin_send(id), "nothing more is sent");
    world.home.detach(id);
    assert_eq!(world.home.next_tick_ms(), None, "nothing is left to look after");
}

#[test]
fn who_stops_reading_its_snapshot_does_not_hold_it_up_for_ever() {
    let mut world = World::new(1, rules());
    let stuck = world.attach();
    let snapshot = world.cut();
    world.begin_send(stuck);
    let next = world.attach();
    world.pass(50_000);
    assert_eq!(world.home.take_actions(), []);
    world.pass(15_000);
    let actions = world.home.take_actions();
    assert!(matches!(actions[..], [Action::Close { replica, .. }] if replica == stuck), "{actions:?}");
    world.home.detach(stuck);
    assert_eq!(world.home.take_actions(), [Action::Abort { snapshot }]);
    world.home.tick(world.now_ms);
    world.cut();
    world.drain();
    assert!(world.received[&next].trim_ascii_start().starts_with(b"+FULLRESYNC"));
}

#[test]
fn a_reader_too_far_behind_is_closed() {
    let limits = ReaderLimits { hard_bytes: 5000, soft_bytes: 2000, soft_ms: 10_000 };
    let mut world = World::new(1, Rules { backlog_bytes: 100, limits, ..rules() });
    let [slow, fast] = [(); 2].map(|()| world.online());
    world.write("x");
    assert!(world.begin_send(slow));
    world.write(&"y".repeat(3000));
    world.pass(5_000);
    assert_eq!(world.home.take_actions(), [], "not for long enough");
    world.take(fast);
    world.pass(7_000);
    assert_eq!(
        world.home.take_actions(),
        [Action::Close { replica: slow, why: "output buffer limit: Soft".into() }]
    );
    world.home.detach(slow);
    world.take(fast);
    world.write("x");
    assert!(world.begin_send(fast));
    world.write(&"y".repeat(5001));
    world.pass(1_000);
    assert_eq!(
        world.home.take_actions(),
        [Action::Close { replica: fast, why: "output buffer limit: Hard".into() }]
    );
}
