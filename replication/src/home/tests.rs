//! The master's state machine, byte for byte as its replicas see it.

use super::*;
use crate::ids::ReplId;
use crate::psync::{Replconf, Replica};
use braid_core::rdb::{Decoder, Event, Limits, Writer, load_value};
use std::collections::BTreeMap;
use std::collections::VecDeque;

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
        (0..self.home.shards).for_each(|_| self.home.piece(snapshot, Piece::end()));
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

mod absence;
mod files;
mod full_sync;
mod partial_sync;
mod parts;
mod relay;
mod silence;
mod upkeep;
