//! One part of a snapshot, on the shard that sends it: an RDB stream of what some of the shards hand in.

use crate::framing::EofMark;
use crate::home::Piece;
use crate::queue::SendQueue;
use braid_core::rdb::{Writer, WriterOptions};
use bytes::Bytes;

/// Bytes of one send.
const SEND_MAX_BYTES: u64 = 1 << 20;

/// See the module.
pub struct Outlet {
    writer: Writer,
    mark: EofMark,
    /// Shards that have not handed in their last piece.
    feeders_left: usize,
    queue: SendQueue,
    /// Of the RDB stream so far.
    len_bytes: u64,
    /// More than this should not wait to be sent.
    window_bytes: u64,
    is_sending: bool,
    /// When the send under way began.
    since_ms: u64,
    is_told: bool,
}

impl Outlet {
    /// A part that so many shards hand in pieces for; with none of them it is an empty dataset.
    pub fn new(options: WriterOptions, feeders: usize, window_bytes: u64, rng: &mut fastrand::Rng) -> Self {
        let mark = EofMark::random(rng);
        let mut outlet = Self {
            writer: Writer::new(options),
            mark,
            feeders_left: feeders,
            queue: SendQueue::default(),
            len_bytes: 0,
            window_bytes,
            is_sending: false,
            since_ms: 0,
            is_told: false,
        };
        outlet.queue.push(mark.header());
        outlet.writer.header();
        outlet.write();
        if feeders == 0 {
            outlet.end();
        }
        outlet
    }

    /// Passes on what the writer wrote.
    fn write(&mut self) {
        let bytes = Bytes::from(self.writer.take());
        self.push(bytes);
    }

    fn push(&mut self, bytes: Bytes) {
        self.len_bytes += bytes.len() as u64;
        self.queue.push(bytes);
    }

    fn end(&mut self) {
        self.writer.eof();
        self.write();
        self.queue.push(self.mark.trailer());
    }

    /// A shard hands in a piece.
    ///
    /// # Panics
    /// After the last piece of all.
    pub fn piece(&mut self, piece: Piece) {
        assert!(self.feeders_left > 0, "a piece behind the end");
        self.writer.append_piece(&piece.checksum);
        piece.chunks.into_iter().for_each(|chunk| self.push(chunk));
        self.feeders_left -= usize::from(piece.is_last);
        if self.feeders_left == 0 {
            self.end();
        }
    }

    /// What to send next, appended to `out`; [`Outlet::sent`] is called when that is done. False: nothing.
    pub fn next_send(&mut self, out: &mut Vec<Bytes>, now_ms: u64) -> bool {
        if self.is_sending || self.queue.is_empty() {
            return false;
        }
        self.queue.take(SEND_MAX_BYTES, out);
        (self.is_sending, self.since_ms) = (true, now_ms);
        true
    }

    /// The connection is gone: what is left, to be freed elsewhere where it is long.
    pub fn into_pieces(self) -> impl Iterator<Item = Bytes> {
        self.queue.into_pieces()
    }

    /// A long piece whose end was sent, which is to be freed elsewhere. To be asked for when a send was completed.
    pub fn take_dropped(&mut self) -> Option<Bytes> {
        self.queue.sent()
    }

    /// A send was completed. Returns, once, the RDB stream's length if that was its end.
    pub fn sent(&mut self) -> Option<u64> {
        self.is_sending = false;
        let is_end = self.feeders_left == 0 && self.queue.is_empty() && !self.is_told;
        self.is_told |= is_end;
        is_end.then_some(self.len_bytes)
    }

    /// What waits to be sent.
    pub fn queued_bytes(&self) -> u64 {
        self.queue.len_bytes()
    }

    /// So much waits that the shards should hand in no more for now. Who has handed in everything holds nobody up.
    pub fn is_full(&self) -> bool {
        self.feeders_left > 0 && self.queue.len_bytes() > self.window_bytes
    }

    /// Since when the send under way has not been completed.
    pub fn sending_since_ms(&self) -> Option<u64> {
        self.is_sending.then_some(self.since_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use braid_core::rdb::{Decoder, Event, Limits, kind};

    const OPTIONS: WriterOptions = WriterOptions { version: 10, compress: false, checksum: true };

    fn piece(key: &str, is_last: bool) -> Piece {
        let mut writer = Writer::new(OPTIONS);
        writer.select_db(0);
        writer.key(kind::STRING, key.as_bytes());
        writer.string(b"v");
        let (bytes, checksum) = writer.take_piece();
        Piece { chunks: vec![bytes.into()], checksum, is_last }
    }

    /// Sends all there is. Returns it, and what the last send told.
    fn drain(outlet: &mut Outlet) -> (Vec<u8>, Option<u64>) {
        let (mut bytes, mut told) = (Vec::new(), None);
        let mut pieces = Vec::new();
        while outlet.next_send(&mut pieces, 5) {
            assert_eq!(outlet.sending_since_ms(), Some(5));
            bytes.extend(pieces.drain(..).flatten());
            told = outlet.sent();
        }
        (bytes, told)
    }

    /// The keys of a part; its checksum and its frame are right.
    fn keys(bytes: &[u8], len_bytes: u64) -> Vec<String> {
        let (header, rest) = bytes.split_at(47);
        let mark = header.strip_prefix(b"$EOF:").unwrap().strip_suffix(b"\r\n").unwrap();
        let rdb = rest.strip_suffix(mark).unwrap();
        assert_eq!(rdb.len() as u64, len_bytes);
        let mut decoder = Decoder::new(Limits::default(), true);
        decoder.feed(rdb);
        let mut keys = Vec::new();
        loop {
            match decoder.next_event().unwrap() {
                Event::Key(header) => {
                    keys.push(String::from_utf8(header.key).unwrap());
                    // Its one-letter value.
                    decoder.consume(2);
                }
                Event::End => return keys,
                _ => {}
            }
        }
    }

    #[test]
    fn a_part_is_a_stream_of_its_own_of_what_its_shards_hand_in() {
        let mut outlet = Outlet::new(OPTIONS, 2, 1 << 20, &mut fastrand::Rng::with_seed(1));
        outlet.piece(piece("a", false));
        let (mut bytes, told) = drain(&mut outlet);
        assert_eq!(told, None, "more is to come");
        outlet.piece(piece("b", true));
        outlet.piece(Piece::end());
        let (rest, told) = drain(&mut outlet);
        bytes.extend(rest);
        assert_eq!(keys(&bytes, told.expect("it is complete")), ["a", "b"]);
        assert_eq!(outlet.sent(), None, "told once");
    }

    #[test]
    fn a_part_of_no_shard_is_an_empty_dataset() {
        let mut outlet = Outlet::new(OPTIONS, 0, 1 << 20, &mut fastrand::Rng::with_seed(1));
        let (bytes, told) = drain(&mut outlet);
        assert_eq!(keys(&bytes, told.unwrap()), [""; 0]);
    }

    #[test]
    fn what_waits_to_be_sent_is_bounded() {
        let mut outlet = Outlet::new(OPTIONS, 1, 100, &mut fastrand::Rng::with_seed(1));
        drain(&mut outlet);
        assert!(!outlet.is_full());
        outlet.piece(piece(&"k".repeat(101), false));
        assert!(outlet.is_full());
        assert!(outlet.next_send(&mut Vec::new(), 0));
        assert!(!outlet.is_full() && !outlet.next_send(&mut Vec::new(), 0), "one send at a time");
    }
}
