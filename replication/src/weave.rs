//! Puts the effects of a batch, which several shards ran at the same time, into the order in which its commands were sent.
//!
//! Each shard hands in one segment with the ends of its legs in it. The legs of all shards are numbered as they were sent, so
//! the stream has them by number: program order for whoever follows it (law 2).

use braid_core::command::{Run, Segment};
use braid_shards::{Cut, Share};
use bytes::Bytes;
use smallvec::SmallVec;

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

    /// Gives so much to `emit`.
    fn pass(&mut self, mut len_bytes: u64, emit: &mut impl FnMut(u16, &mut Bytes, usize)) {
        while len_bytes > 0 {
            if self.run.len_bytes == 0 {
                self.run = self.runs.next().expect("the runs are as long as the legs");
            }
            if self.piece.is_empty() {
                self.piece = self.pieces.next().expect("the pieces are as long as the runs");
            }
            let part = len_bytes.min(self.run.len_bytes).min(self.piece.len() as u64);
            emit(self.run.db, &mut self.piece, part as usize);
            self.run.len_bytes -= part;
            len_bytes -= part;
        }
    }
}

/// See the module. Stretches of the stream are given to `emit` one after the other: each is so many bytes, on this
/// database, which it takes off the front of a piece.
///
/// # Panics
/// If a share's cuts are not within it: the caller is broken, and a stream in wrong order must not leave the node.
pub(crate) fn weave(shares: Vec<Share>, mut emit: impl FnMut(u16, &mut Bytes, usize)) {
    let mut rests: SmallVec<[Rest; 8]> = shares.into_iter().map(Rest::new).collect();
    while let Some(next) = rests.iter_mut().min_by_key(|rest| rest.next_place()) {
        let Some(len_bytes) = next.take_leg() else { break };
        next.pass(len_bytes, &mut emit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use braid_core::command::{Effects, SHARED_ARG_LEN_BYTES};
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
            let (mut woven, model) = (Segment::default(), all.take());
            weave(shares, |db, piece, len_bytes| {
                woven.pieces.push(piece.split_to(len_bytes));
                match woven.runs.last_mut() {
                    Some(run) if run.db == db => run.len_bytes += len_bytes as u64,
                    _ => woven.runs.push(Run { db, len_bytes: len_bytes as u64 }),
                }
            });
            assert_eq!(woven.runs, model.runs, "seed {seed}");
            assert!(woven.pieces.concat() == model.pieces.concat(), "seed {seed}");
        }
    }
}
