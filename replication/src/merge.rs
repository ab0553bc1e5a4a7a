//! The merge: braids what the shards wrote into one stream.
//!
//! A shard that wrote during a tick takes a ticket and hands in its segment under it. Tickets are dense, so the merge
//! emits ticket `n` when it has it, then `n + 1`, and never guesses. Nothing goes between the parts of one segment but
//! `SELECT`, so a `MULTI` … `EXEC` inside one stays whole. What several shards did under one ticket is woven together
//! ([`crate::weave`]). Long payload is passed on by reference; the log copies the rest.

use std::collections::VecDeque;

use braid_core::command::Segment;
use braid_shards::{Mark, Share};
use bytes::Bytes;

use crate::log::Log;
use crate::weave::weave;

const PING: &[u8] = b"*1\r\n$4\r\nPING\r\n";
const GETACK: &[u8] = b"*3\r\n$8\r\nREPLCONF\r\n$6\r\nGETACK\r\n$1\r\n*\r\n";

/// The answer: the stream's offset after the ticket's effects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marked {
    pub mark: Mark,
    pub offset: u64,
}

enum Arrival {
    Whole {
        segment: Segment,
        mark: Option<Mark>,
    },
    /// Of what several shards did, what came so far.
    Shares(Vec<Share>),
}

impl Arrival {
    fn is_complete(&self) -> bool {
        match self {
            Arrival::Whole { .. } => true,
            Arrival::Shares(shares) => {
                shares.first().is_some_and(|first| shares.len() == usize::from(first.shares))
            }
        }
    }
}

/// See the module.
pub struct Merge {
    next_ticket: u64,
    /// Tickets from `next_ticket` on that came before their turn.
    early: VecDeque<Option<Arrival>>,
    early_max: usize,
    /// The database that a reader of the stream is in, if every reader knows.
    stream_db: Option<u16>,
    /// The last piece of the stream that holds no effects, from where to where: signs of life, and questions.
    idle: (u64, u64),
}

impl Merge {
    /// Starts with `next_ticket`. `early_max` bounds how far ahead of the next ticket one may come. Nothing holds the shards
    /// back before that: each takes a ticket or two a tick and hands them in with it, or waits for the shards concerned before it
    /// gives its connections more to do. So for one to get there another has to have stopped.
    pub fn new(next_ticket: u64, early_max: usize) -> Self {
        assert!(early_max > 0);
        Merge { next_ticket, early: VecDeque::new(), early_max, stream_db: None, idle: (0, 0) }
    }

    /// The ticket that everything waits for.
    pub fn next_ticket(&self) -> u64 {
        self.next_ticket
    }

    /// A reader starts here who does not know the database, or the stream so far came from elsewhere (promotion): the
    /// next effect is preceded by `SELECT`.
    pub fn forget_db(&mut self) {
        self.stream_db = None;
    }

    /// The log has another history now: where this one had no effects that one may have some.
    pub fn forget_idle(&mut self) {
        self.idle = (0, 0);
    }

    /// A ticket arrives. It and all that waited only for it are appended to the log, and the marks among them
    /// answered in `marked`. Trim the log afterwards.
    ///
    /// # Panics
    /// If the ticket came before, is too far ahead, or its runs are not as long as its bytes: the caller is broken,
    /// and a stream in wrong order must not leave the node.
    pub fn submit(
        &mut self,
        ticket: u64,
        segment: Segment,
        mark: Option<Mark>,
        log: &mut Log,
        marked: &mut Vec<Marked>,
    ) {
        let runs_bytes: u64 = segment.runs.iter().map(|run| run.len_bytes).sum();
        assert_eq!(runs_bytes, segment.len_bytes(), "ticket {ticket}: runs and bytes differ");
        let arrival = Arrival::Whole { segment, mark };
        if ticket == self.next_ticket && self.early.is_empty() {
            self.emit(arrival, log, marked);
            return;
        }
        let replaced = self.place(ticket).replace(arrival);
        assert!(replaced.is_none(), "ticket {ticket} came twice");
        self.emit_complete(log, marked);
    }

    /// A share of a ticket that several shards have together arrives; with the last of them all is as in [`Merge::submit`].
    ///
    /// # Panics
    /// As there.
    pub fn submit_share(&mut self, ticket: u64, share: Share, log: &mut Log, marked: &mut Vec<Marked>) {
        match self.place(ticket).get_or_insert_with(|| Arrival::Shares(Vec::new())) {
            Arrival::Shares(shares) if shares.len() < usize::from(share.shares) => shares.push(share),
            _ => panic!("ticket {ticket} came twice"),
        }
        self.emit_complete(log, marked);
    }

    /// Where a ticket waits for its turn.
    fn place(&mut self, ticket: u64) -> &mut Option<Arrival> {
        let ahead = ticket.checked_sub(self.next_ticket).expect("a ticket that was merged already");
        assert!(ahead < self.early_max as u64, "ticket {ticket} is {ahead} ahead of the next one");
        let ahead = ahead as usize;
        if self.early.len() <= ahead {
            self.early.resize_with(ahead + 1, || None);
        }
        &mut self.early[ahead]
    }

    /// Emits what has its turn and is whole.
    fn emit_complete(&mut self, log: &mut Log, marked: &mut Vec<Marked>) {
        while let Some(arrival) =
            self.early.front_mut().and_then(|first| first.take_if(|it| it.is_complete()))
        {
            self.early.pop_front();
            self.emit(arrival, log, marked);
        }
    }

    fn emit(&mut self, arrival: Arrival, log: &mut Log, marked: &mut Vec<Marked>) {
        let mark = match arrival {
            Arrival::Whole { segment, mark } => {
                self.append(segment, log);
                mark
            }
            Arrival::Shares(shares) => {
                weave(shares, |db, piece, len_bytes| {
                    self.select(db, log);
                    log.append_first(piece, len_bytes);
                });
                None
            }
        };
        if let Some(mark) = mark {
            marked.push(Marked { mark, offset: log.end_offset() });
            if matches!(mark, Mark::Cut(_) | Mark::Role) {
                self.forget_db();
            }
        }
        self.next_ticket += 1;
    }

    fn append(&mut self, segment: Segment, log: &mut Log) {
        let mut pieces = segment.pieces.into_iter();
        let mut rest = Bytes::new();
        for run in segment.runs.iter().filter(|run| run.len_bytes > 0) {
            self.select(run.db, log);
            let mut left_bytes = run.len_bytes as usize;
            while left_bytes > 0 {
                if rest.is_empty() {
                    rest = pieces.next().expect("the pieces are as long as the runs");
                }
                let len_bytes = left_bytes.min(rest.len());
                log.append_first(&mut rest, len_bytes);
                left_bytes -= len_bytes;
            }
        }
        debug_assert!(rest.is_empty() && pieces.next().is_none());
    }

    /// What follows is on this database.
    #[inline]
    fn select(&mut self, db: u16, log: &mut Log) {
        if self.stream_db != Some(db) {
            log.append(select(db));
            self.stream_db = Some(db);
        }
    }

    /// Puts a `PING` into the stream here: replicas notice a dead link by its absence.
    pub fn ping(&mut self, log: &mut Log) {
        self.append_idle(PING, log);
    }

    /// Puts `REPLCONF GETACK *` into the stream here: every replica answers with its offset when it has applied what
    /// comes before.
    pub fn get_ack(&mut self, log: &mut Log) {
        self.append_idle(GETACK, log);
    }

    fn append_idle(&mut self, bytes: &'static [u8], log: &mut Log) {
        let before = log.end_offset();
        log.append(Bytes::from_static(bytes));
        let start = if self.idle.1 == before { self.idle.0 } else { before };
        self.idle = (start, log.end_offset());
    }

    /// Behind the log's last effect: who has applied the stream up to there has all that was written.
    pub fn written_offset(&self, log: &Log) -> u64 {
        let (start, end) = self.idle;
        if end == log.end_offset() { start } else { log.end_offset() }
    }
}

fn select(db: u16) -> Bytes {
    let digits = db.to_string();
    Bytes::from(format!("*2\r\n$6\r\nSELECT\r\n${}\r\n{digits}\r\n", digits.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use braid_core::command::Run;
    use braid_shards::Cut;

    fn stream(log: &mut Log) -> Vec<u8> {
        let mut slices = Vec::new();
        log.slices(0, u64::MAX, usize::MAX, &mut slices);
        slices.concat()
    }

    fn new_log() -> Log {
        let mut log = Log::new(0, 1 << 30);
        log.activate();
        log
    }

    fn random_segment(rng: &mut fastrand::Rng) -> Segment {
        let mut segment = Segment::default();
        let mut bytes = Vec::new();
        for _ in 0..rng.usize(..4) {
            let len_bytes = rng.u64(..700);
            bytes.extend((0..len_bytes).map(|_| rng.u8(..)));
            segment.runs.push(Run { db: rng.u16(..3), len_bytes });
        }
        let mut rest = Bytes::from(bytes);
        while !rest.is_empty() {
            segment.pieces.push(rest.split_to(rng.usize(1..=rest.len())));
        }
        segment
    }

    /// The same stream by sorting.
    fn expected(tickets: &[(Segment, Option<Mark>)]) -> (Vec<u8>, Vec<Marked>) {
        let (mut stream, mut marked, mut db) = (Vec::new(), Vec::new(), None);
        for (segment, mark) in tickets {
            let (mut at, bytes) = (0, segment.pieces.concat());
            for run in &segment.runs {
                let to = at + run.len_bytes as usize;
                if at < to && db != Some(run.db) {
                    stream
                        .extend_from_slice(format!("*2\r\n$6\r\nSELECT\r\n$1\r\n{}\r\n", run.db).as_bytes());
                    db = Some(run.db);
                }
                stream.extend_from_slice(&bytes[at..to]);
                at = to;
            }
            marked.extend(mark.map(|mark| Marked { mark, offset: stream.len() as u64 }));
            db = db.filter(|_| !matches!(mark, Some(Mark::Cut(_))));
        }
        (stream, marked)
    }

    #[test]
    fn one_stream_any_arrival_order_of_k_shards_merges_to_ticket_order() {
        for seed in 0..200 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let tickets: Vec<_> = (0..rng.u64(1..120))
                .map(|i| {
                    let mark = [Some(Mark::Offset(i)), Some(Mark::Cut(i)), None, None, None][rng.usize(..5)];
                    (random_segment(&mut rng), mark)
                })
                .collect();
            // Each shard hands in its own tickets in order; the shards run at random speeds.
            let shards = rng.usize(1..9);
            let mut queues = vec![VecDeque::new(); shards];
            for ticket in 0..tickets.len() {
                queues[rng.usize(..shards)].push_back(ticket);
            }
            let mut merge = Merge::new(1000, tickets.len());
            let (mut log, mut marked) = (new_log(), Vec::new());
            let mut merged = vec![false; tickets.len()];
            while queues.iter().any(|queue| !queue.is_empty()) {
                if let Some(ticket) = queues[rng.usize(..shards)].pop_front() {
                    let (segment, mark) = tickets[ticket].clone();
                    merge.submit(1000 + ticket as u64, segment, mark, &mut log, &mut marked);
                    merged[ticket] = true;
                    let whole = merged.iter().take_while(|is| **is).count();
                    assert_eq!(merge.next_ticket(), 1000 + whole as u64);
                }
            }
            assert!(merge.early.is_empty(), "nothing waits");
            assert_eq!((stream(&mut log), marked), expected(&tickets));
        }
    }

    #[test]
    fn cut_names_the_offset_after_its_ticket_and_what_follows_selects_its_database() {
        let (mut merge, mut log, mut marked) = (Merge::new(5, 10), new_log(), Vec::new());
        merge.submit(6, Segment::default(), Some(Mark::Cut(77)), &mut log, &mut marked);
        merge.submit(7, Segment::of(0, Bytes::from_static(b"after")), None, &mut log, &mut marked);
        assert!(marked.is_empty());
        merge.submit(5, Segment::of(0, Bytes::from_static(b"before")), None, &mut log, &mut marked);
        let select_bytes = select(0).len() as u64;
        assert_eq!(marked, [Marked { mark: Mark::Cut(77), offset: select_bytes + 6 }]);
        assert_eq!(log.end_offset(), 2 * select_bytes + 11);
    }

    #[test]
    fn atomicity_pings_and_acks_stand_between_segments_and_change_no_database() {
        let (mut merge, mut log, mut marked) = (Merge::new(0, 10), new_log(), Vec::new());
        let transaction = |db| Segment::of(db, Bytes::from_static(b"MULTI..EXEC"));
        merge.submit(0, transaction(12), None, &mut log, &mut marked);
        merge.submit(2, transaction(12), None, &mut log, &mut marked);
        let written = log.end_offset();
        merge.ping(&mut log);
        merge.get_ack(&mut log);
        assert_eq!(merge.written_offset(&log), written, "they are nothing to wait for");
        merge.submit(1, Segment::default(), None, &mut log, &mut marked);
        merge.forget_db();
        merge.submit(3, transaction(12), None, &mut log, &mut marked);
        let select = b"*2\r\n$6\r\nSELECT\r\n$2\r\n12\r\n";
        assert_eq!(merge.written_offset(&log), log.end_offset());
        let block = b"MULTI..EXEC";
        assert_eq!(stream(&mut log), [select, &block[..], PING, GETACK, block, select, block].concat());
    }

    #[test]
    fn one_stream_no_payload_byte_is_copied() {
        let payload = Bytes::from(vec![b'x'; 100_000]);
        let (mut merge, mut log) = (Merge::new(0, 10), new_log());
        merge.submit(0, Segment::of(0, payload.clone()), None, &mut log, &mut Vec::new());
        let mut slices = Vec::new();
        log.slices(0, u64::MAX, 10, &mut slices);
        assert_eq!(slices[1].as_ptr(), payload.as_ptr());
    }

    fn share(place: u32, bytes: &'static [u8]) -> Share {
        let cuts = vec![Cut { place, end_bytes: bytes.len() as u64 }];
        Share { segment: Segment::of(0, Bytes::from_static(bytes)), cuts, shares: 2 }
    }

    #[test]
    fn one_stream_a_ticket_of_several_shards_waits_for_all_of_them() {
        let (mut merge, mut log, mut marked) = (Merge::new(0, 10), new_log(), Vec::new());
        merge.submit(1, Segment::of(0, Bytes::from_static(b"third")), None, &mut log, &mut marked);
        merge.submit_share(0, share(7, b"second"), &mut log, &mut marked);
        assert_eq!((log.end_offset(), merge.next_ticket()), (0, 0));
        merge.submit_share(0, share(3, b"first"), &mut log, &mut marked);
        assert_eq!(stream(&mut log), [&select(0)[..], b"first", b"second", b"third"].concat());
        assert_eq!(merge.next_ticket(), 2);
    }

    #[test]
    #[should_panic(expected = "came twice")]
    fn a_share_comes_once() {
        let (mut merge, mut log) = (Merge::new(0, 3), new_log());
        for _ in 0..3 {
            merge.submit_share(1, share(1, b"x"), &mut log, &mut Vec::new());
        }
    }

    #[test]
    #[should_panic(expected = "ahead of the next one")]
    fn early_tickets_are_bounded() {
        Merge::new(0, 3).submit(3, Segment::default(), None, &mut new_log(), &mut Vec::new());
    }

    #[test]
    #[should_panic(expected = "came twice")]
    fn a_ticket_comes_once() {
        let (mut merge, mut log) = (Merge::new(0, 3), new_log());
        merge.submit(1, Segment::default(), None, &mut log, &mut Vec::new());
        merge.submit(1, Segment::default(), None, &mut log, &mut Vec::new());
    }
}
