//! Puts the effects of a batch, which several shards ran at the same time, into the order in which its commands were sent.
//!
//! Each shard hands in one segment with the ends of its legs in it. The legs of all shards are numbered as they were sent, so
//! the stream has them by number: program order for whoever follows it (law 2).

use braid_core::command::{Run, SHARED_ARG_LEN_BYTES, Segment};
use braid_shards::{Cut, Share};
use bytes::{Buf, Bytes, BytesMut};

/// The buffer that short pieces are copied into: a reference to each would cost everybody behind more.
const CHUNK_BYTES: usize = 64 << 10;

/// What is left of a share.
struct Rest {
    /// The legs that are left, and where the one before ended.
    cuts: std::vec::IntoIter<Cut>,
    start_bytes: u64,
    pieces: smallvec::IntoIter<[Bytes; 1]>,
    piece: Bytes,
    runs: smallvec::IntoIter<[Run; 2]>,
    run: Run,
}

impl Rest {
    fn new(share: Share) -> Self {
        let len_bytes = share.cuts.last().map_or(0, |cut| cut.end_bytes);
        assert_eq!(len_bytes, share.segment.len_bytes(), "every effect belongs to a leg");
        let Segment { pieces, runs } = share.segment;
        let run = Run { db: 0, len_bytes: 0 };
        let (pieces, runs) = (pieces.into_iter(), runs.into_iter());
        let cuts = share.cuts.into_iter();
        Self { cuts, start_bytes: 0, pieces, piece: Bytes::new(), runs, run }
    }

    /// The next leg's place in the batch; behind all others if there is none.
    fn next_place(&self) -> u32 {
        self.cuts.as_slice().first().map_or(u32::MAX, |cut| cut.place)
    }

    /// Goes on to the next leg. Returns how long it is.
    fn take_leg(&mut self) -> Option<u64> {
        let end_bytes = self.cuts.next()?.end_bytes;
        Some(end_bytes - std::mem::replace(&mut self.start_bytes, end_bytes))
    }
}

/// See the module.
#[derive(Default)]
pub(crate) struct Weaver {
    buf: BytesMut,
}

impl Weaver {
    /// # Panics
    /// If a share's cuts are not within it: the caller is broken, and a stream in wrong order must not leave the node.
    pub fn weave(&mut self, shares: Vec<Share>) -> Segment {
        let mut written = shares.iter().filter(|share| share.segment.len_bytes() > 0);
        if let (Some(_), None) | (None, _) = (written.next(), written.next()) {
            let only = shares.into_iter().find(|share| share.segment.len_bytes() > 0);
            return only.map_or_else(Segment::default, |share| share.segment);
        }
        let mut rests: Vec<Rest> = shares.into_iter().map(Rest::new).collect();
        let mut woven = Segment::default();
        while let Some(next) = rests.iter_mut().min_by_key(|rest| rest.next_place()) {
            let Some(len_bytes) = next.take_leg() else { break };
            self.pass(next, len_bytes, &mut woven);
        }
        self.cut_piece(&mut woven);
        woven
    }

    /// Takes so much of a segment.
    fn pass(&mut self, rest: &mut Rest, mut len_bytes: u64, woven: &mut Segment) {
        while len_bytes > 0 {
            if rest.run.len_bytes == 0 {
                rest.run = rest.runs.next().expect("the runs are as long as the legs");
            }
            if rest.piece.is_empty() {
                rest.piece = rest.pieces.next().expect("the pieces are as long as the runs");
            }
            let part = len_bytes.min(rest.run.len_bytes).min(rest.piece.len() as u64);
            let db = rest.run.db;
            match woven.runs.last_mut() {
                Some(run) if run.db == db => run.len_bytes += part,
                _ => woven.runs.push(Run { db, len_bytes: part }),
            }
            rest.run.len_bytes -= part;
            len_bytes -= part;
            if part as usize >= SHARED_ARG_LEN_BYTES {
                self.cut_piece(woven);
                woven.pieces.push(rest.piece.split_to(part as usize));
            } else {
                if self.buf.capacity() - self.buf.len() < part as usize {
                    self.cut_piece(woven);
                    self.buf.reserve(CHUNK_BYTES);
                }
                self.buf.extend_from_slice(&rest.piece[..part as usize]);
                rest.piece.advance(part as usize);
            }
        }
    }

    fn cut_piece(&mut self, woven: &mut Segment) {
        if !self.buf.is_empty() {
            woven.pieces.push(self.buf.split().freeze());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use braid_core::command::Effects;
    use braid_shards::Cut;

    /// Legs in random order over shards; their effects are random commands on random databases, some with long arguments.
    #[test]
    fn law2_the_effects_of_a_batch_are_in_the_order_of_its_legs() {
        for seed in 0..300 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let shards = rng.usize(2..5);
            let mut own: Vec<(Effects, Vec<Cut>)> = (0..shards).map(|_| Default::default()).collect();
            let mut all = Effects::default();
            all.set_enabled(true);
            own.iter_mut().for_each(|(effects, _)| effects.set_enabled(true));
            // What one shard did before the batch comes before everything.
            for place in 0..rng.u32(1..60) {
                let (effects, cuts) = &mut own[rng.usize(..shards)];
                for _ in 0..rng.usize(..3) {
                    let long = if rng.u8(..20) == 0 { SHARED_ARG_LEN_BYTES } else { 30 };
                    let value = Bytes::from(vec![rng.alphanumeric() as u8; rng.usize(..2 * long)]);
                    let (args, db) = ([&b"SET"[..], b"k", &value], rng.u16(..2));
                    for effects in [&mut *effects, &mut all] {
                        effects.push_sharing(db, &args, &[(2, value.clone())]);
                    }
                }
                if effects.len_bytes() > cuts.last().map_or(0, |cut: &Cut| cut.end_bytes) {
                    cuts.push(Cut { place, end_bytes: effects.len_bytes() });
                }
            }
            let mut shares: Vec<Share> = own
                .into_iter()
                .map(|(mut effects, cuts)| Share { segment: effects.take(), cuts, shares: shards as u16 })
                .collect();
            rng.shuffle(&mut shares);
            let (woven, model) = (Weaver::default().weave(shares), all.take());
            assert_eq!(woven.runs, model.runs, "seed {seed}");
            assert!(woven.pieces.concat() == model.pieces.concat(), "seed {seed}");
            assert!(woven.pieces.iter().all(|piece| !piece.is_empty()));
        }
    }
}
