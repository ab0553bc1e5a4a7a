//! The master's state machine, byte for byte as its replicas see it.

use super::*;
use crate::ids::ReplId;
use braid_core::rdb::{Decoder, Event, Limits, load_value};
use std::collections::{BTreeMap, VecDeque};

mod parts;

const SECOND_MS: u64 = 1000;

fn rules() -> Rules {
    Rules {
        backlog_bytes: 1 << 20,
        backlog_disk_bytes: 0,
        backlog_ttl_ms: 0,
        protects: false,
        ping_period_ms: 10 * SECOND_MS,
        timeout_ms: 60 * SECOND_MS,
        sharing: Policy { is_diskless: true, delay_ms: 0, max_replicas: 0 },
        limits: ReaderLimits { hard_bytes: 0, soft_bytes: 0, soft_ms: 0 },
        compress: false,
        checksum: true,
    }
}

/// A home, its shards in outline, and what every replica was sent.
struct World {
    home: Home,
    now_ms: u64,
    next_ticket: u64,
    received: BTreeMap<ReplicaId, Vec<u8>>,
}

impl World {
    fn new(shards: usize, rules: Rules) -> Self {
        let home = Home::new(shards, rules, 7);
        Self { home, now_ms: 50_000, next_ticket: 0, received: BTreeMap::new() }
    }

    fn attach_as(&mut self, options: &[&[u8]], psync: Option<&[&[u8]]>) -> Result<ReplicaId, String> {
        let mut handshake = Replica::default();
        assert_eq!(handshake.replconf(options), Replconf::Ok);
        let id = self.home.attach(handshake, "10.0.0.1", psync, self.now_ms)?;
        self.received.insert(id, Vec::new());
        Ok(id)
    }

    /// A replica of today that has nothing.
    fn attach(&mut self) -> ReplicaId {
        self.attach_as(CAPA, Some(&[b"?", b"-1"])).expect("attaches")
    }

    /// Asks for the stream from `next_byte` on.
    fn resume(&mut self, id: &str, next_byte: u64) -> ReplicaId {
        let words: [&[u8]; 2] =
            [id.as_bytes(), next_byte.to_string().as_bytes()].map(|word| word.to_vec().leak() as &[u8]);
        self.attach_as(CAPA, Some(&words)).expect("attaches")
    }

    fn take_ticket(&mut self) -> u64 {
        self.next_ticket += 1;
        self.next_ticket - 1
    }

    fn write(&mut self, text: &str) {
        let ticket = self.take_ticket();
        self.home.segment(ticket, effect(text), None);
    }

    /// The only action there is to do: a cut.
    fn wanted_cut(&mut self) -> u64 {
        match self.home.take_actions().as_slice() {
            [Action::Cut { snapshot, with_data: true }]
            | [
                Action::File { step: FileStep::Create { keeps: false }, .. },
                Action::Cut { snapshot, with_data: true },
            ] => *snapshot,
            actions => panic!("{actions:?}"),
        }
    }

    /// Makes the cut that is asked for.
    fn cut(&mut self) -> u64 {
        let snapshot = self.wanted_cut();
        let ticket = self.take_ticket();
        self.home.segment(ticket, Segment::default(), Some(Mark::Cut(snapshot)));
        snapshot
    }

    fn piece(&mut self, snapshot: u64, key: &str, is_last: bool) {
        let piece = piece(&self.home, key, is_last);
        self.home.piece(snapshot, piece);
    }

    /// Does what is asked for with files, as if they were in memory, until nothing more is.
    fn serve_files(&mut self) {
        let mut file = Vec::new();
        loop {
            let steps = file_steps(self);
            if steps.is_empty() {
                return;
            }
            for (snapshot, step) in steps {
                match step {
                    FileStep::Create { .. } | FileStep::Drop => {}
                    FileStep::Write(bytes) => {
                        file.extend_from_slice(&bytes);
                        self.home.file_written(snapshot, bytes.len() as u64);
                    }
                    FileStep::Finish => self.home.file_done(snapshot, Ok(file.len() as u64), self.now_ms),
                    FileStep::Read { replica, offset, len_bytes } => {
                        let bytes = file[offset as usize..][..len_bytes as usize].to_vec();
                        self.home.file_read(replica, Ok(bytes.into()));
                    }
                }
            }
        }
    }

    /// Sends everyone everything.
    fn drain(&mut self) {
        loop {
            let sent: Vec<_> = self.home.idle_replicas().collect();
            if !sent.into_iter().map(|id| self.send(id)).fold(false, |any, one| any | one) {
                return;
            }
        }
    }

    /// Begins a send; true if there was something.
    fn begin_send(&mut self, id: ReplicaId) -> bool {
        let mut out = Vec::new();
        let is_sent = self.home.next_send(id, &mut out);
        self.received.get_mut(&id).expect("attached").extend(out.iter().flatten());
        is_sent
    }

    fn send(&mut self, id: ReplicaId) -> bool {
        let is_sent = self.begin_send(id);
        if is_sent {
            self.home.sent(id, self.now_ms);
        }
        is_sent
    }

    fn ack(&mut self, id: ReplicaId, offset: u64) {
        self.home.replconf(id, &[b"ACK", offset.to_string().as_bytes()], self.now_ms);
    }

    /// Lets time pass in the steps that the home asks for.
    fn pass(&mut self, ms: u64) {
        let end_ms = self.now_ms + ms;
        while let Some(at_ms) = self.home.next_tick_ms().filter(|at_ms| *at_ms <= end_ms) {
            self.now_ms = self.now_ms.max(at_ms);
            self.home.tick(self.now_ms);
            assert!(
                self.home.next_tick_ms().is_none_or(|at_ms| at_ms > self.now_ms),
                "no time for anything else"
            );
        }
        self.now_ms = end_ms;
    }

    /// What a replica was sent since this was last asked.
    fn take(&mut self, id: ReplicaId) -> Vec<u8> {
        self.drain();
        std::mem::take(self.received.get_mut(&id).expect("attached"))
    }

    fn id(&self) -> String {
        self.home.report(self.now_ms).id
    }

    /// The states of the replicas as INFO shows them.
    fn states(&self) -> Vec<String> {
        let state = |line: ReplicaLine| {
            line.info.split("state=").nth(1).expect("a state").split(',').next().map(str::to_owned)
        };
        self.home.report(self.now_ms).replicas.into_iter().filter_map(state).collect()
    }

    /// A replica with an empty snapshot that reads the stream.
    fn online(&mut self) -> ReplicaId {
        let id = self.attach();
        let snapshot = self.cut();
        (0..self.home.shards).for_each(|_| {
            self.home
                .piece(snapshot, Piece { chunks: Vec::new(), checksum: Checksum::default(), is_last: true })
        });
        self.drain();
        self.ack(id, self.home.end_offset());
        self.take(id);
        id
    }
}

const CAPA: &[&[u8]] = &[b"capa", b"eof", b"capa", b"psync2"];
const PING: &str = "*1\r\n$4\r\nPING\r\n";
const SELECT_0: &str = "*2\r\n$6\r\nSELECT\r\n$1\r\n0\r\n";

fn effect(text: &str) -> Segment {
    Segment::of(0, Bytes::copy_from_slice(text.as_bytes()))
}

fn piece(home: &Home, key: &str, is_last: bool) -> Piece {
    let mut writer = Writer::new(home.writer_options());
    if !key.is_empty() {
        writer.select_db(0);
        writer.key(braid_core::rdb::kind::STRING, key.as_bytes());
        writer.string(b"value");
    }
    let (bytes, checksum) = writer.take_piece();
    Piece { chunks: vec![bytes.into()], checksum, is_last }
}

/// Takes `+FULLRESYNC id offset` off; returns the offset.
fn full_resync(bytes: &mut &[u8], id: &str) -> u64 {
    let line = take_line(bytes);
    let offset = line.strip_prefix(&format!("+FULLRESYNC {id} ")).unwrap_or_else(|| panic!("{line}"));
    offset.parse().expect("an offset")
}

fn take_line(bytes: &mut &[u8]) -> String {
    let end = bytes.windows(2).position(|window| window == b"\r\n").expect("a line");
    let line = String::from_utf8(bytes[..end].to_vec()).expect("text");
    *bytes = &bytes[end + 2..];
    line
}

/// Takes a snapshot that ends with a mark off; returns its keys and its aux fields.
fn marked_snapshot(bytes: &mut &[u8]) -> (Vec<String>, BTreeMap<String, String>) {
    let header = take_line(bytes);
    let mark = header.strip_prefix("$EOF:").unwrap_or_else(|| panic!("{header}")).as_bytes();
    assert_eq!(mark.len(), 40);
    let end = bytes.windows(40).position(|window| window == mark).expect("the mark at the end");
    let read = read_rdb(&bytes[..end]);
    *bytes = &bytes[end + 40..];
    read
}

/// A whole file, its checksum verified.
fn read_rdb(rdb: &[u8]) -> (Vec<String>, BTreeMap<String, String>) {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    let mut decoder = Decoder::new(Limits::default(), true);
    decoder.feed(rdb);
    decoder.finish();
    let (mut keys, mut aux) = (Vec::new(), BTreeMap::new());
    loop {
        match decoder.next_event().expect("a sound file") {
            Event::Aux { name, value } => {
                aux.insert(text(name), text(value));
            }
            Event::Key(header) => {
                let mut cursor = decoder.cursor();
                load_value(header.kind, decoder.version(), &mut cursor, &Default::default())
                    .expect("a value");
                let used_bytes = cursor.used_bytes();
                decoder.consume(used_bytes);
                keys.push(text(header.key));
            }
            Event::End => break,
            _ => {}
        }
    }
    assert!(decoder.take_rest().is_empty());
    keys.sort();
    (keys, aux)
}

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
    assert_eq!(world.home.take_actions(), [Action::Resume { snapshot }]);
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
    assert_eq!(world.home.take_actions(), [Action::Resume { snapshot }]);
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
    // It goes away and comes back: as long as nothing is trimmed it continues.
    world.home.sent(slow, world.now_ms);
    world.home.detach(slow);
    world.home.trim();
    assert_eq!(world.home.report(world.now_ms).histlen_bytes, 1000);
}

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

/// What the home asked to be done with files since it was last asked; other actions are left out.
fn file_steps(world: &mut World) -> Vec<(u64, FileStep)> {
    let actions = world.home.take_actions().into_iter();
    actions
        .filter_map(|action| match action {
            Action::File { snapshot, step } => Some((snapshot, step)),
            _ => None,
        })
        .collect()
}

/// Makes the cut of a snapshot that goes into a file, and its only piece. Returns the file.
fn make_file(world: &mut World, keeps: bool) -> (u64, Vec<u8>) {
    let snapshot = match world.home.take_actions().as_slice() {
        [
            Action::File { snapshot, step: FileStep::Create { keeps: is_kept } },
            Action::Cut { snapshot: cut, with_data: true },
        ] if snapshot == cut && keeps == *is_kept => *snapshot,
        actions => panic!("{actions:?}"),
    };
    let ticket = world.take_ticket();
    world.home.segment(ticket, Segment::default(), Some(Mark::Cut(snapshot)));
    world.piece(snapshot, "key", true);
    let mut file = Vec::new();
    for (id, step) in file_steps(world) {
        assert_eq!(id, snapshot);
        match step {
            FileStep::Write(bytes) => {
                file.extend_from_slice(&bytes);
                world.home.file_written(snapshot, bytes.len() as u64);
            }
            FileStep::Finish => return (snapshot, file),
            step => panic!("{step:?}"),
        }
    }
    panic!("never finished");
}

#[test]
fn law5_a_snapshot_is_saved_with_nobody_following_and_says_nothing_of_a_history() {
    let mut world = World::new(1, rules());
    assert!(world.home.request_save(world.now_ms));
    assert!(!world.home.request_save(world.now_ms), "one at a time");
    let (snapshot, file) = make_file(&mut world, true);
    assert!(!world.home.is_saving());
    world.home.file_done(snapshot, Ok(file.len() as u64), world.now_ms);
    let text = String::from_utf8_lossy(&file).into_owned();
    assert!(text.starts_with("REDIS0010") && text.contains("key") && !text.contains("repl-id"));
    assert!(!world.home.log().is_active());
}

#[test]
fn a_save_waits_for_the_replicas_snapshot_and_they_for_it() {
    let mut world = World::new(1, rules());
    let replica = world.attach();
    let first = world.cut();
    assert!(world.home.request_save(world.now_ms));
    assert!(world.home.take_actions().is_empty());
    world.piece(first, "a", true);
    world.drain();
    assert_eq!(world.home.next_tick_ms().map(|at_ms| at_ms <= world.now_ms), Some(true));
    world.home.tick(world.now_ms);
    let second = world.attach();
    let (_, file) = make_file(&mut world, true);
    assert!(String::from_utf8_lossy(&file).contains("repl-id"), "there is a history by now");
    world.home.tick(world.now_ms);
    let third = world.cut();
    world.piece(third, "c", true);
    world.drain();
    assert!(world.received[&replica].starts_with(b"+FULLRESYNC"));
    assert!(world.received[&second].starts_with(b"+FULLRESYNC"));
}

#[test]
fn a_save_that_is_given_up_leaves_nothing_wherever_it_was() {
    let mut world = World::new(1, rules());
    world.home.request_save(world.now_ms);
    let snapshot = match world.home.take_actions().as_slice() {
        [Action::File { .. }, Action::Cut { snapshot, .. }] => *snapshot,
        actions => panic!("{actions:?}"),
    };
    // The cut is under way.
    world.home.cancel_save();
    let dropped = Action::File { snapshot, step: FileStep::Drop };
    assert_eq!(world.home.take_actions(), [Action::Abort { snapshot }, dropped]);
    let ticket = world.take_ticket();
    world.home.segment(ticket, Segment::default(), Some(Mark::Cut(snapshot)));
    assert_eq!(world.home.take_actions(), [Action::Abort { snapshot }]);
    // The next one works.
    world.home.request_save(world.now_ms);
    let (next, file) = make_file(&mut world, true);
    assert!(next > snapshot && !file.is_empty());
}

#[test]
fn a_file_is_written_once_and_sent_to_all_who_came_in_time() {
    let to_disk = Rules { sharing: Policy { is_diskless: false, ..rules().sharing }, ..rules() };
    let mut world = World::new(1, to_disk);
    let first = world.attach();
    let (snapshot, file) = make_file(&mut world, false);
    // It joins while the file is being finished.
    let second = world.attach();
    assert!(file_steps(&mut world).is_empty());
    world.home.file_done(snapshot, Ok(file.len() as u64), world.now_ms);
    for _ in 0..10 {
        for (id, step) in file_steps(&mut world) {
            assert_eq!(id, snapshot);
            match step {
                FileStep::Read { replica, offset, len_bytes } => {
                    let bytes = file[offset as usize..][..len_bytes as usize].to_vec();
                    world.home.file_read(replica, Ok(bytes.into()));
                }
                FileStep::Drop => {
                    for replica in [first, second] {
                        world.drain();
                        let received = &world.received[&replica];
                        let header = format!("${}\r\n", file.len());
                        let at = received.windows(header.len()).position(|part| part == header.as_bytes());
                        assert_eq!(&received[at.unwrap() + header.len()..], file);
                    }
                    world.write("after");
                    world.drain();
                    assert!(
                        world.received[&second]
                            .ends_with(&world.received[&first][world.received[&first].len() - 5..])
                    );
                    return;
                }
                step => panic!("{step:?}"),
            }
        }
        world.drain();
    }
    panic!("the file is never dropped");
}

#[test]
fn nobody_joins_a_file_whose_readers_left_while_it_was_finished() {
    let sharing = Policy { is_diskless: false, ..rules().sharing };
    for is_replaced in [false, true] {
        let mut world = World::new(1, Rules { sharing, backlog_bytes: 1000, ..rules() });
        if is_replaced {
            world.home.start_as_replica();
            world.home.set_link(true);
            world.home.replace_history(ReplId::parse(&[b'a'; 40]).unwrap(), 100, 0);
        }
        let first = world.attach();
        let (snapshot, file) = make_file(&mut world, false);
        if is_replaced {
            // What is in the file is not the dataset any more.
            world.home.replace_history(ReplId::parse(&[b'b'; 40]).unwrap(), 90, 0);
        } else {
            world.home.detach(first);
            // The log has the bytes behind the cut no longer.
            (0..3).for_each(|_| world.write(&"x".repeat(600)));
            world.home.trim();
        }
        let second = world.attach();
        assert_eq!(world.take(second), b"", "it gets a snapshot of its own");
        world.home.take_actions();
        world.home.file_done(snapshot, Ok(file.len() as u64), world.now_ms);
        let actions = world.home.take_actions();
        assert!(actions.contains(&Action::File { snapshot, step: FileStep::Drop }));
        assert!(actions.contains(&Action::Cut { snapshot: snapshot + 1, with_data: true }));
    }
}

#[test]
fn no_loss_a_file_that_cannot_be_written_closes_those_who_wait_for_it() {
    let to_disk = Rules { sharing: Policy { is_diskless: false, ..rules().sharing }, ..rules() };
    let mut world = World::new(1, to_disk);
    let replica = world.attach();
    let snapshot = match world.home.take_actions().as_slice() {
        [Action::File { .. }, Action::Cut { snapshot, .. }] => *snapshot,
        actions => panic!("{actions:?}"),
    };
    let ticket = world.take_ticket();
    world.home.segment(ticket, Segment::default(), Some(Mark::Cut(snapshot)));
    world.home.file_done(snapshot, Err("disk full".into()), world.now_ms);
    let actions = world.home.take_actions();
    let why = "its snapshot failed: disk full".to_owned();
    assert!(
        actions.contains(&Action::Abort { snapshot }) && actions.contains(&Action::Close { replica, why })
    );
    world.home.detach(replica);
    world.attach();
    make_file(&mut world, false);
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

mod absence;
mod relay;
mod upkeep;
