//! A snapshot in parts, on the link.

use super::*;
use crate::framing::EofMark;
use crate::parts::{Token, end, header, offer};

struct Sync {
    world: World,
    token: Token,
    mark: EofMark,
}

/// A link that asked for a full sync and was offered three parts.
fn offered() -> Sync {
    let mut rng = fastrand::Rng::with_seed(4);
    let (token, mark) = (Token::random(&mut rng), EofMark::random(&mut rng));
    let mut world = World::with(LinkRules { connections: 3, ..rules() });
    world.connect(None);
    world.receive("+PONG\r\n");
    assert!(world.take_sent().contains("capa eof capa psync2 capa sync-parts:3 |"));
    world.receive("+OK\r\n".repeat(3));
    assert_eq!(world.take_sent(), "| PSYNC ? -1");
    world.receive(offer(token, 3));
    assert_eq!(world.take_done(), [LinkAction::OpenParts { token, count: 3 }]);
    Sync { world, token, mark }
}

impl Sync {
    fn full_resync(&mut self) {
        self.world.receive(format!("+FULLRESYNC {} {OFFSET}\r\n", id(b'b')));
        assert_eq!(self.world.take_done(), []);
    }

    /// The snapshot comes in parts, and what precedes them is loaded.
    fn begin(&mut self) {
        self.world.receive(header(&self.mark));
        let load_parts = LinkAction::LoadParts { token: self.token, count: 3 };
        assert_eq!(self.world.take_done(), [LinkAction::BeginLoading, load_parts]);
        self.world.receive("aux");
        assert_eq!(self.world.link.payload(), b"aux");
        self.world.link.consume_payload(3, true, self.world.now_ms);
        self.world.receive(self.mark.trailer());
        assert_eq!(self.world.link.payload(), b"");
    }

    fn end(&mut self) {
        self.world.receive("\n");
        self.world.receive(end(&[10, 11, 12]));
    }

    fn loaded(&mut self, index: usize) {
        self.world.link.part_loaded(self.token, index, 10 + index as u64, self.world.now_ms);
        self.world.collect();
    }

    fn failed(&mut self, index: usize) {
        self.world.link.part_failed(self.token, index, "reset", self.world.now_ms);
        self.world.collect();
    }
}

#[test]
fn law5_parts_are_swapped_in_when_all_are_loaded_and_the_master_has_said_so() {
    for said_at in 0..=3 {
        let mut sync = offered();
        sync.full_resync();
        sync.begin();
        for index in 0..3 {
            if index == said_at {
                sync.end();
            }
            assert_eq!(sync.world.take_done(), []);
            sync.loaded(index);
        }
        if said_at == 3 {
            assert_eq!(sync.world.take_done(), []);
            sync.end();
        }
        let swap = LinkAction::Swap { id: id(b'b'), offset: OFFSET };
        assert_eq!(sync.world.take_done(), [LinkAction::CloseParts, swap]);
        sync.world.link.swapped(Ok(3), sync.world.now_ms);
        sync.world.collect();
        assert_eq!(sync.world.take_sent(), format!("| REPLCONF ACK {OFFSET}"));
        assert!(sync.world.link.is_up());
    }
}

#[test]
fn law9_a_part_that_fails_at_any_moment_ends_the_sync() {
    for lost in 0..3 {
        for at in 0..6 {
            let mut sync = offered();
            let steps: [&dyn Fn(&mut Sync); 5] = [
                &|sync| sync.full_resync(),
                &|sync| sync.begin(),
                &|sync| sync.loaded((lost + 1) % 3),
                &|sync| sync.loaded((lost + 2) % 3),
                &|sync| sync.end(),
            ];
            steps[..at.min(5)].iter().for_each(|step| step(&mut sync));
            sync.failed(lost);
            if at < 2 {
                // The master notices, too, and sends it on this connection.
                assert_eq!(sync.world.take_done(), []);
                if at == 0 {
                    sync.full_resync();
                }
                if lost == 0 {
                    sync.world.receive("$1000\r\n");
                    assert_eq!(sync.world.take_done(), [LinkAction::CloseParts, LinkAction::BeginLoading]);
                    assert_eq!(sync.world.link.state(), LinkState::Sync);
                    continue;
                }
                // It has not noticed.
                sync.world.receive(header(&sync.mark));
                let done = sync.world.take_done();
                assert_eq!(done[1], LinkAction::LoadParts { token: sync.token, count: 3 });
                sync.world.done = done[2..].to_vec();
            }
            let expected = [LinkAction::Close, LinkAction::AbandonLoading, LinkAction::CloseParts];
            assert_eq!(sync.world.take_done(), expected, "{lost} at {at}");
            assert!(
                sync.world.said.iter().any(|said| said.contains(&format!("data connection {lost}: reset")))
            );
            // What comes late of it means nothing.
            sync.loaded(lost);
            sync.end();
            assert_eq!(sync.world.take_done(), []);
        }
    }
}

#[test]
fn law9_parts_of_other_lengths_than_announced_are_not_taken() {
    let mut sync = offered();
    sync.full_resync();
    sync.begin();
    (0..3).for_each(|index| sync.loaded(index));
    sync.world.receive(end(&[10, 11, 13]));
    sync.world.assert_given_up("brought 12 bytes, and the master sent 13");
    for wrong in ["+ENDPARTS x\r\n", "+CONTINUE\r\n"] {
        let mut sync = offered();
        sync.full_resync();
        sync.begin();
        sync.world.receive(wrong);
        sync.world.assert_given_up("Master ends its snapshot with");
    }
}

#[test]
fn parts_that_were_not_asked_for_are_refused() {
    let mut rng = fastrand::Rng::with_seed(4);
    let token = Token::random(&mut rng);
    let world = |connections| {
        let mut world = World::with(LinkRules { connections, ..rules() });
        world.shake_hands(None);
        world
    };
    for (connections, count) in [(0, 2), (1, 2), (3, 4)] {
        let mut world = world(connections);
        world.receive(offer(token, count));
        assert!(world.said.last().unwrap().contains("parts that were not asked for"));
        assert_eq!(world.take_done(), [LinkAction::Close]);
    }
    let mut world = world(3);
    world.receive(format!("+FULLRESYNC {} {OFFSET}\r\n", id(b'b')));
    world.receive(header(&EofMark::random(&mut rng)));
    world.assert_given_up("which it has not offered");
}

#[test]
fn what_parts_bring_is_life_and_is_reported() {
    let mut sync = offered();
    sync.full_resync();
    sync.begin();
    for second in 1..100 {
        sync.world.now_ms += SECOND_MS;
        sync.world.link.part_progress(sync.token, 0, second, sync.world.now_ms);
        sync.world.tick();
        assert_eq!(sync.world.link.report(sync.world.now_ms).sync, Some((Some(0), second)));
    }
    assert!(sync.world.take_done().is_empty());
    assert_eq!(sync.world.sent, "\n".repeat(99).as_bytes());
    sync.world.now_ms += 61 * SECOND_MS;
    sync.world.tick();
    sync.world.assert_given_up("Timeout receiving bulk data");
}

#[test]
fn news_of_an_attempt_before_mean_nothing() {
    let mut sync = offered();
    sync.full_resync();
    sync.begin();
    let other = Token::random(&mut fastrand::Rng::with_seed(5));
    sync.world.link.part_failed(other, 0, "reset", sync.world.now_ms);
    sync.world.collect();
    assert_eq!(sync.world.take_done(), []);
}

#[test]
fn a_link_that_goes_takes_its_parts_along() {
    let mut sync = offered();
    sync.world.link.closed("reset", sync.world.now_ms);
    sync.world.collect();
    assert_eq!(sync.world.take_done(), [LinkAction::CloseParts]);
}
