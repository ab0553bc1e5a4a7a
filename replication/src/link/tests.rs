use super::*;
use braid_core::command::{Args, CommandId};

mod parts;

const SECOND_MS: u64 = 1000;

fn rules() -> LinkRules {
    LinkRules {
        timeout_ms: 60 * SECOND_MS,
        user: String::new(),
        password: String::new(),
        listening_port: 7001,
        announced_ip: String::new(),
        version: "8.2.0".into(),
        databases: 16,
        connections: 0,
    }
}

fn id(digit: u8) -> ReplId {
    ReplId::parse(&[digit; 40]).expect("hex digits")
}

const OFFSET: u64 = 500;

fn position() -> Option<Position> {
    Some(Position { id: id(b'a'), offset: OFFSET, db: 3 })
}

/// Notes databases and first arguments of what it is given.
#[derive(Default)]
struct Keys(Vec<(u16, String)>);

impl Parts for Keys {
    fn fits(&self, _id: CommandId, _args: Args<'_>) -> bool {
        true
    }

    fn push(&mut self, _id: CommandId, db: u16, args: Args<'_>) -> bool {
        self.0.push((db, String::from_utf8_lossy(args[1]).into_owned()));
        true
    }
}

/// A link and the time.
struct World {
    link: Link,
    now_ms: u64,
    applied: u64,
    /// Notices and warnings, the other actions, and what was sent.
    said: Vec<String>,
    done: Vec<LinkAction>,
    sent: Vec<u8>,
}

impl World {
    fn with(rules: LinkRules) -> Self {
        Self::of(Link::new(Target { host: "master".into(), port: 6379 }, rules, 5000))
    }

    fn of(link: Link) -> Self {
        Self { link, now_ms: 5000, applied: OFFSET, said: vec![], done: vec![], sent: vec![] }
    }

    fn collect(&mut self) {
        for action in self.link.take_actions() {
            match action {
                LinkAction::Notice(text) | LinkAction::Warning(text) => self.said.push(text),
                LinkAction::Send(bytes) => self.sent.extend(bytes),
                other => self.done.push(other),
            }
        }
    }

    fn tick(&mut self) {
        self.link.tick(self.applied, self.now_ms);
        self.collect();
    }

    fn receive(&mut self, bytes: impl AsRef<[u8]>) {
        self.link.received(bytes.as_ref(), self.now_ms);
        self.collect();
    }

    fn take_done(&mut self) -> Vec<LinkAction> {
        std::mem::take(&mut self.done)
    }

    /// What was sent since this was last asked, words separated by blanks, commands by `|`.
    fn take_sent(&mut self) -> String {
        let sent = std::mem::take(&mut self.sent);
        let text = String::from_utf8(sent).expect("text");
        let words = text.split("\r\n").filter(|word| !word.starts_with('$') && !word.is_empty());
        words.map(|word| if word.starts_with('*') { "|" } else { word }).collect::<Vec<_>>().join(" ")
    }

    fn connect(&mut self, position: Option<Position>) {
        self.tick();
        self.sent.clear();
        assert_eq!(self.take_done(), [LinkAction::Connect]);
        assert_eq!(self.link.state(), LinkState::Connecting);
        self.link.connected(position, self.now_ms);
        self.collect();
        assert_eq!(self.take_sent(), "| PING");
    }

    /// Up to where `PSYNC` was sent.
    fn shake_hands(&mut self, position: Option<Position>) {
        self.connect(position);
        self.receive("+PONG\r\n");
        self.receive("+OK\r\n".repeat(2));
        assert!(!self.take_sent().contains("PSYNC"), "a master that owes an answer refuses it");
        self.receive("+OK\r\n");
        assert_eq!(self.link.state(), LinkState::Handshake);
        assert!(self.said.iter().all(|text| !text.contains("Non critical")));
    }

    fn begin_streaming(&mut self) {
        self.shake_hands(position());
        self.take_sent();
        self.receive("+CONTINUE\r\n");
        assert_eq!(self.take_done(), [LinkAction::Continue { id: id(b'a') }]);
        assert!(self.link.is_up());
        self.tick();
        assert_eq!(self.take_sent(), "| REPLCONF ACK 500");
    }

    /// Up to where a snapshot's frame is awaited.
    fn begin_full_sync(&mut self) {
        self.shake_hands(None);
        assert_eq!(self.take_sent(), "| PSYNC ? -1");
        self.receive(format!("+FULLRESYNC {} 777\r\n", id(b'b')));
        assert_eq!(self.take_done(), [LinkAction::BeginLoading]);
        assert_eq!(self.link.state(), LinkState::Sync);
    }

    /// Loads whatever is there of a snapshot of `len` bytes in all, of which `loaded` are.
    fn load(&mut self, loaded: &mut usize, len: usize) {
        let taken = self.link.payload().len().min(len - *loaded);
        assert!(self.link.payload()[..taken].iter().all(|byte| *byte == b'r'));
        *loaded += taken;
        if taken > 0 {
            self.link.consume_payload(taken, *loaded == len, self.now_ms);
        }
        self.collect();
    }

    fn epochs(&mut self) -> Vec<(u16, String)> {
        let mut keys = Keys::default();
        while self.link.next_epoch(&mut keys).expect("valid").is_some() {}
        keys.0
    }

    /// Whether the link gave up and said why; it then tries again a second later.
    fn assert_given_up(&mut self, why: &str) {
        assert!(self.said.last().is_some_and(|text| text.contains(why)), "{why}: {:?}", self.said);
        assert!(self.take_done().contains(&LinkAction::Close), "{why}");
        assert_eq!(self.link.state(), LinkState::Connect);
        assert_eq!(self.link.next_tick_ms(), Some(self.now_ms + SECOND_MS));
        self.tick();
        assert_eq!(self.take_done(), [], "not at once");
        self.now_ms += SECOND_MS;
        self.tick();
        assert_eq!(self.take_done(), [LinkAction::Connect]);
    }
}

const SET: &[u8] = b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1\r\nv\r\n";

#[test]
fn the_handshake_introduces_us_and_asks_for_what_we_lack() {
    let mut world = World::with(rules());
    world.connect(position());
    world.receive("+PONG\r\n");
    assert_eq!(
        world.take_sent(),
        "| REPLCONF listening-port 7001 | REPLCONF capa eof capa psync2 | REPLCONF version 8.2.0"
    );
    world.receive("+OK\r\n".repeat(3));
    assert_eq!(world.take_sent(), format!("| PSYNC {} 501", id(b'a')));
    let mut world = World::with(LinkRules {
        user: "u".into(),
        password: "p".into(),
        announced_ip: "10.0.0.9".into(),
        ..rules()
    });
    world.connect(None);
    world.receive("-NOAUTH Authentication required.\r\n");
    assert_eq!(
        world.take_sent(),
        "| AUTH u p | REPLCONF listening-port 7001 | REPLCONF ip-address 10.0.0.9 | REPLCONF capa eof capa psync2 | \
         REPLCONF version 8.2.0"
    );
    // An old master knows none of these.
    world.receive("+OK\r\n-ERR a\r\n-ERR b\r\n-ERR c\r\n-ERR d\r\n");
    assert_eq!(world.link.state(), LinkState::Handshake);
    assert_eq!(world.take_sent(), "| PSYNC ? -1");
    world.receive(format!("\n\n+FULLRESYNC {} 0\r\n", id(b'b')));
    assert_eq!(world.take_done(), [LinkAction::BeginLoading]);
    let mut world = World::with(LinkRules { password: "p".into(), ..rules() });
    world.connect(None);
    world.receive("+PONG\r\n");
    assert!(world.take_sent().starts_with("| AUTH p |"));
    world.receive("-WRONGPASS invalid\r\n");
    world.assert_given_up("Unable to AUTH to MASTER: -WRONGPASS invalid");
}

#[test]
fn any_other_reply_is_tried_again_each_second_for_ever() {
    for (reply, why) in [
        ("-NOMASTERLINK Can't SYNC\r\n", "Master is currently unable to PSYNC but should be in the future"),
        ("-LOADING Redis is loading\r\n", "Master is currently unable to PSYNC but should be in the future"),
        ("-ERR unknown command\r\n", "Unexpected reply to PSYNC"),
        ("hello\r\n", "Unexpected reply to PSYNC"),
        ("+CONTINUE xyz\r\n", "faulty id"),
        ("+FULLRESYNC xyz 1\r\n", "wrong +FULLRESYNC syntax"),
        (
            "+FULLRESYNC aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa 18446744073709551615\r\n",
            "wrong +FULLRESYNC syntax",
        ),
    ] {
        let mut world = World::with(rules());
        world.shake_hands(position());
        world.receive(reply);
        world.assert_given_up(why);
    }
    for bad in ["-ERR go away\r\n", "*1\r\n"] {
        let mut world = World::with(rules());
        world.connect(position());
        world.receive(bad);
        world.assert_given_up("Error reply to PING");
    }
    let mut world = World::with(rules());
    world.connect(position());
    world.receive("x".repeat(2000));
    world.assert_given_up("too long");
    let mut world = World::with(rules());
    world.shake_hands(None);
    world.receive("+CONTINUE\r\n");
    world.assert_given_up("not asked for");
}

#[test]
fn a_link_that_cannot_be_made_is_tried_each_second_and_a_lost_one_at_once() {
    let mut world = World::with(rules());
    for _ in 0..5 {
        world.tick();
        assert_eq!(world.take_done(), [LinkAction::Connect]);
        world.link.closed("refused", world.now_ms);
        world.tick();
        assert_eq!(world.take_done(), []);
        world.now_ms += SECOND_MS;
    }
    world.begin_streaming();
    world.link.closed("reset", world.now_ms);
    assert_eq!(world.link.report(world.now_ms + 10).history.down_since_ms, Some(10));
    world.tick();
    assert_eq!(world.take_done(), [LinkAction::Connect]);
}

#[test]
fn law4_the_stream_goes_on_where_it_stood_under_a_new_id_too() {
    let mut world = World::with(rules());
    world.shake_hands(position());
    // The stream's first bytes come with the reply.
    world.receive([format!("+CONTINUE {}\r\n", id(b'c')).as_bytes(), SET, &SET[..5]].concat());
    assert_eq!(world.take_done(), [LinkAction::Continue { id: id(b'c') }]);
    assert_eq!(world.epochs(), [(3, "k".to_owned())]);
    assert_eq!(world.link.read_offset(), Some(OFFSET + SET.len() as u64 + 5));
    world.receive(&SET[5..]);
    assert_eq!(world.epochs(), [(3, "k".to_owned())]);
}

/// Its master may never come back: all that it said is worth having.
#[test]
fn no_loss_what_came_before_the_link_was_lost_is_applied_before_it_is_made_again() {
    let mut world = World::with(rules());
    world.begin_streaming();
    world.receive([SET, SET, &SET[..7]].concat());
    world.link.closed("reset", world.now_ms);
    assert!(!world.link.is_up());
    world.tick();
    assert_eq!((world.take_done(), world.link.next_tick_ms()), (vec![], None), "not before that");
    world.receive(SET);
    assert_eq!(world.epochs(), [(3, "k".to_owned()), (3, "k".to_owned())]);
    assert_eq!(world.link.report(world.now_ms + 10).history.down_since_ms, Some(10));
    world.connect(position());
    // What is in doubt is not gone on with.
    for doubt in [Link::forget_position, |link: &mut Link| link.fail("enough", 0)] {
        let mut world = World::with(rules());
        world.begin_streaming();
        world.receive(SET);
        doubt(&mut world.link);
        world.link.closed("reset", world.now_ms);
        assert_eq!(world.epochs(), []);
    }
}

#[test]
fn law7_what_was_applied_is_acknowledged_each_second() {
    let mut world = World::with(rules());
    world.begin_streaming();
    world.receive(SET);
    world.now_ms += SECOND_MS - 1;
    world.tick();
    assert_eq!(world.take_sent(), "");
    world.now_ms += 1;
    assert_eq!(world.link.next_tick_ms(), Some(world.now_ms));
    world.tick();
    assert_eq!(world.take_sent(), "| REPLCONF ACK 500", "received is not applied");
    world.applied += SET.len() as u64;
    world.link.acknowledge(world.applied, world.now_ms);
    world.collect();
    assert_eq!(world.take_sent(), "| REPLCONF ACK 527");
}

#[test]
fn law7_a_continued_stream_acknowledges_no_more_than_is_applied() {
    let mut world = World::with(rules());
    // The end of what was received is still being applied when the link is made anew.
    world.applied = OFFSET - 10;
    world.shake_hands(position());
    world.take_sent();
    world.receive("+CONTINUE\r\n");
    assert_eq!(world.take_sent(), "");
    assert!(world.link.next_tick_ms().is_some_and(|at_ms| at_ms <= world.now_ms), "it is told at once");
    world.tick();
    assert_eq!(world.take_sent(), "| REPLCONF ACK 490");
}

#[test]
fn silence_breaks_the_link_in_every_state() {
    let silent = |mut world: World, why: &str, is_up: bool| {
        let last_ms = world.now_ms;
        world.now_ms = last_ms + 60 * SECOND_MS;
        world.tick();
        assert_ne!(world.link.state(), LinkState::Connect, "{why}");
        world.now_ms += 1;
        world.tick();
        assert!(world.said.last().is_some_and(|text| text.contains(why)), "{why}: {:?}", world.said);
        assert!(world.take_done().contains(&LinkAction::Close));
        let retry_ms = if is_up { 0 } else { SECOND_MS };
        assert_eq!(world.link.next_tick_ms(), Some(world.now_ms + retry_ms));
    };
    let mut world = World::with(rules());
    world.tick();
    silent(world, "Timeout connecting", false);
    let mut world = World::with(rules());
    world.shake_hands(None);
    silent(world, "Timeout connecting", false);
    let mut world = World::with(rules());
    world.begin_full_sync();
    silent(world, "Timeout receiving bulk data", false);
    let mut world = World::with(rules());
    world.begin_full_sync();
    world.receive("$100\r\n");
    silent(world, "Timeout receiving bulk data", false);
    let mut world = World::with(rules());
    world.begin_streaming();
    silent(world, "MASTER timeout", true);
    // An empty line is a sign of life.
    let mut world = World::with(rules());
    world.begin_full_sync();
    for _ in 0..10 {
        world.now_ms += 59 * SECOND_MS;
        world.receive("\n");
        world.tick();
        assert_eq!(world.link.state(), LinkState::Sync);
    }
}

#[test]
fn law5_a_snapshot_framed_either_way_ends_exactly_where_the_stream_begins() {
    const LEN: usize = 300;
    let mark = [b'm'; EOF_MARK_BYTES];
    let snapshot = [b'r'; LEN];
    let by_length = [b"\n\n$300\r\n", &snapshot[..], SET].concat();
    let by_mark = [b"\n$EOF:", &mark[..], b"\r\n", &snapshot[..], &mark[..], SET].concat();
    let mut rng = fastrand::Rng::with_seed(3);
    for wire in [by_length, by_mark] {
        for _ in 0..100 {
            let mut world = World::with(rules());
            world.begin_full_sync();
            let (mut at, mut loaded) = (0, 0);
            while at < wire.len() {
                let to = (at + rng.usize(1..80)).min(wire.len());
                world.receive(&wire[at..to]);
                at = to;
                if rng.bool() {
                    world.load(&mut loaded, LEN);
                }
            }
            world.load(&mut loaded, LEN);
            assert_eq!(world.take_done(), [LinkAction::Swap { id: id(b'b'), offset: 777 }]);
            assert_eq!(world.link.state(), LinkState::Sync);
            assert_eq!(world.epochs(), [], "not before the swap");
            world.take_sent();
            world.link.swapped(Ok(7), world.now_ms);
            world.collect();
            assert_eq!(world.take_sent(), "| REPLCONF ACK 777", "a master may wait for it");
            assert_eq!(world.epochs(), [(7, "k".to_owned())]);
            assert_eq!(world.link.read_offset(), Some(777 + SET.len() as u64));
        }
    }
}

#[test]
fn law9_a_snapshot_that_is_not_whole_is_given_up() {
    let load = |header: &str, body: &[u8], len: usize| {
        let mut world = World::with(rules());
        world.begin_full_sync();
        world.receive(header);
        world.receive(body);
        world.load(&mut 0, len);
        world
    };
    let given_up = |mut world: World, why: &str| {
        assert!(world.done.contains(&LinkAction::AbandonLoading), "{why}: {:?}", world.done);
        world.assert_given_up(why);
    };
    given_up(load("$10\r\n", b"rrrrrrrrrr", 11), "longer than announced");
    given_up(load("$10\r\n", b"rrrrrrrrrr", 9), "shorter than announced");
    given_up(load(&format!("$EOF:{}\r\n", "m".repeat(40)), b"rrrmmmmx", 3), "does not end with its mark");
    for (header, why) in [
        ("$x\r\n", "Bad protocol from MASTER"),
        ("$EOF:abc\r\n", "Bad protocol from MASTER"),
        ("OK\r\n", "Bad protocol from MASTER"),
        ("-ERR no space\r\n", "MASTER aborted replication with an error: ERR no space"),
    ] {
        let mut world = World::with(rules());
        world.begin_full_sync();
        world.receive(header);
        given_up(world, why);
    }
    let mut world = World::with(rules());
    world.begin_full_sync();
    world.receive("$100\r\nrrr");
    world.link.closed("reset", world.now_ms);
    world.collect();
    assert_eq!(world.take_done(), [LinkAction::AbandonLoading]);
}

#[test]
fn who_loads_shows_that_he_lives_and_reports_how_far_he_is() {
    let mut world = World::with(rules());
    world.begin_full_sync();
    assert_eq!(world.link.report(world.now_ms).sync, Some((None, 0)));
    world.receive("$100\r\nrrr");
    world.link.consume_payload(3, false, world.now_ms);
    assert_eq!(world.link.report(world.now_ms).sync, Some((Some(100), 3)));
    world.now_ms += SECOND_MS;
    world.tick();
    assert_eq!(std::mem::take(&mut world.sent), b"\n");
    let rest = "r".repeat(97);
    world.receive(&rest);
    world.link.consume_payload(97, true, world.now_ms);
    world.collect();
    // The swap may take its time: that is no silence of the master's.
    for _ in 0..200 {
        world.now_ms += SECOND_MS;
        world.tick();
    }
    assert_eq!(world.link.state(), LinkState::Sync);
    assert_eq!(world.sent, [b'\n'; 200]);
}

#[test]
fn a_swap_outlives_its_connection_and_holds_back_the_next() {
    for outcome in [Ok(0), Err("refused")] {
        let mut world = World::with(rules());
        world.begin_full_sync();
        world.receive("$1\r\nr");
        world.link.consume_payload(1, true, world.now_ms);
        world.collect();
        world.link.closed("reset", world.now_ms);
        world.take_done();
        assert_eq!(world.link.next_tick_ms(), None);
        world.now_ms += 100 * SECOND_MS;
        world.tick();
        assert_eq!(world.take_done(), []);
        world.link.swapped(outcome, world.now_ms);
        world.tick();
        assert_eq!(world.take_done(), [LinkAction::Connect]);
    }
    let mut world = World::with(rules());
    world.begin_full_sync();
    world.receive("$1\r\nr");
    world.link.consume_payload(1, true, world.now_ms);
    world.collect();
    world.take_done();
    world.link.swapped(Err("it is empty"), world.now_ms);
    world.collect();
    world.assert_given_up("it is empty");
}

#[test]
fn a_dataset_in_doubt_is_replaced_by_a_full_sync() {
    let mut world = World::with(rules());
    world.begin_streaming();
    world.receive("*1\r\n$6\r\nNOSUCH\r\n");
    let error = world.link.next_epoch(&mut Keys::default()).map(|_| ()).unwrap_err();
    assert_eq!((error.offset, error.text.as_str()), (OFFSET, "unknown command 'NOSUCH'"));
    world.link.distrust(&error.to_string(), world.now_ms);
    world.collect();
    assert_eq!(world.take_done(), [LinkAction::Close]);
    assert_eq!(
        world.link.next_tick_ms(),
        Some(world.now_ms + SECOND_MS),
        "full syncs do not follow each other at once"
    );
    world.now_ms += SECOND_MS;
    for _ in 0..3 {
        world.shake_hands(position());
        assert_eq!(world.take_sent(), "| PSYNC ? -1", "whatever we have");
        world.link.closed("reset", world.now_ms);
        world.now_ms += SECOND_MS;
    }
    world.begin_full_sync();
    world.receive("$1\r\nr");
    world.link.consume_payload(1, true, world.now_ms);
    world.link.swapped(Ok(0), world.now_ms);
    world.collect();
    world.link.closed("reset", world.now_ms);
    world.take_done();
    world.shake_hands(position());
    assert!(world.take_sent().ends_with(" 501"), "trusted again");
}

#[test]
fn who_falls_behind_receives_no_more_but_what_completes_a_piece() {
    let mut world = World::with(rules());
    world.begin_streaming();
    let commands = SET.repeat(INPUT_MAX_BYTES / SET.len() + 1);
    world.receive(&commands);
    assert!(world.link.is_full());
    world.epochs();
    assert!(!world.link.is_full());
    let long = format!(
        "*3\r\n$3\r\nSET\r\n$1\r\nk\r\n${}\r\n{}",
        3 * INPUT_MAX_BYTES,
        "v".repeat(2 * INPUT_MAX_BYTES)
    );
    world.receive(&long);
    assert_eq!(world.epochs(), []);
    assert!(!world.link.is_full(), "nothing can be done without the rest");
    let mut world = World::with(rules());
    world.begin_full_sync();
    world.receive("$9999999\r\n");
    world.receive("r".repeat(INPUT_MAX_BYTES + 1));
    assert!(world.link.is_full());
}

#[test]
fn a_failover_is_asked_for_once_and_refused_by_any_other_answer() {
    let target = || Target { host: "heir".into(), port: 1 };
    let mut world = World::of(Link::for_failover(target(), rules(), 5000));
    world.shake_hands(position());
    assert!(world.take_sent().ends_with(" 501 FAILOVER"));
    world.receive(format!("+CONTINUE {}\r\n", id(b'd')));
    assert_eq!(world.take_done(), [LinkAction::Continue { id: id(b'd') }]);
    world.link.closed("reset", world.now_ms);
    world.collect();
    world.shake_hands(position());
    assert!(world.take_sent().ends_with(" 501"), "it is an ordinary master now");
    for reply in ["-ERR no\r\n".to_owned(), format!("+FULLRESYNC {} 1\r\n", id(b'd'))] {
        let mut world = World::of(Link::for_failover(target(), rules(), 5000));
        world.shake_hands(position());
        world.receive(&reply);
        let done = world.take_done();
        assert_eq!(done, [LinkAction::FailoverRefused(reply.trim_end().into()), LinkAction::Close]);
    }
}

#[test]
fn bytes_of_a_connection_that_was_given_up_mean_nothing() {
    let mut world = World::with(rules());
    world.receive("+PONG\r\n");
    world.begin_streaming();
    world.link.fail("enough", world.now_ms);
    world.receive(SET);
    assert_eq!(world.epochs(), []);
}
