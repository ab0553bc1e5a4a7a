//! Taking in a snapshot without memory for two datasets. It may go into a file and be checked on its way
//! (`repl-diskless-load disabled`): only when it is whole and what it should be does the present dataset go, and the file is
//! loaded. The file is the layer's around: what has to be done with it comes out as [`FollowerAction::Spool`], in order.
//! Or the dataset goes when the snapshot has begun to come (`flush-before-load`). In either case nothing is loaded before the old
//! dataset is freed, and until the new one is in place there is none: [`Follower::has_given_up_dataset`].

use super::whole::{Whole, flush, step};
use super::{FEED_BYTES, Follower, FollowerAction, Site};
use crate::ids::ReplId;
use crate::loader::Loader;
use crate::parts::Token;
use bytes::Bytes;
use std::cell::Cell;
use std::rc::Rc;

/// Bytes of a snapshot that wait for the disk before no more are taken from the link.
const WINDOW_BYTES: u64 = 16 << 20;
/// Between two looks whether the old dataset is freed.
const LOOK_PERIOD_MS: u64 = 5;

/// How a dataset and its successor share memory (`repl-diskless-load`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Intake {
    /// The successor is loaded beside it.
    #[default]
    Beside,
    /// So if there are no keys; otherwise as `FileFirst`.
    BesideIfEmpty,
    /// It goes when a file holds its successor.
    FileFirst,
    /// It goes as soon as its successor begins to come.
    FlushFirst,
}

/// What has to be done with the file of the snapshot that is being received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SpoolStep {
    /// Make it; what comes of it is told to [`Follower::spool_written`] and [`Follower::spool_done`].
    Create,
    Write(Bytes),
    /// It is complete: bring it to the disk.
    Finish,
    /// Feed it to [`Follower::loads`], to its end.
    Load,
    /// It is not needed any more, whatever is being done with it.
    Drop,
}

/// A snapshot on its way into a file.
pub(super) struct Spool {
    number: u64,
    /// Finds the snapshot's end and what is wrong with it; keeps nothing.
    checker: Loader,
    unwritten_bytes: u64,
    /// The file is complete, or could not be written.
    outcome: Option<Result<u64, String>>,
}

/// Where the successor of a dataset that goes first comes from.
#[derive(Clone, Copy)]
pub(super) enum Source {
    /// It is coming from the master: it is loaded as one beside the dataset would be, but later.
    Link,
    /// The file of this number, which holds the dataset of a history at an offset.
    File { number: u64, id: ReplId, offset: u64 },
}

/// The dataset goes before its successor is loaded.
pub(super) struct Refill {
    source: Source,
    phase: Phase,
}

enum Phase {
    /// The old dataset is taken out of the slices, and freed in slices of time.
    Flushing {
        done: Rc<Cell<bool>>,
    },
    /// It is asked whether that is over: None: no answer yet.
    Looking {
        is_freed: Rc<Cell<Option<bool>>>,
    },
    Waiting {
        until_ms: u64,
    },
    /// Of a file; what the link brings is loaded with the dataset left alone.
    Loading {
        number: u64,
        id: ReplId,
        offset: u64,
    },
}

impl Follower {
    fn spool_step(&mut self, number: u64, step: SpoolStep) {
        self.actions.push(FollowerAction::Spool { number, step });
    }

    /// A snapshot has begun to come.
    pub(super) fn begin_intake(&mut self, site: &mut Site<'_>) {
        match self.rules.intake {
            Intake::FileFirst => self.begin_spool(site),
            Intake::BesideIfEmpty if (site.has_keys)() => self.begin_spool(site),
            Intake::FlushFirst => self.wants_flush = true,
            Intake::Beside | Intake::BesideIfEmpty => self.loads.begin(site.shard),
        }
    }

    /// Parts of the snapshot may be loaded, as soon as their load has begun.
    pub(super) fn load_parts(&mut self, token: Token, count: usize, now_ms: u64) {
        if self.wants_flush {
            self.wanted_parts = Some((token, count));
        } else if let Some(load) = self.loads.await_parts() {
            self.actions.push(FollowerAction::LoadParts { token, load, count });
        } else {
            let why = "What goes into a file first (repl-diskless-load) can't come in parts";
            self.link.as_mut().expect("it asked").fail(why, now_ms);
        }
    }

    /// Nothing will come of the snapshot that is being taken in: the dataset stays, unless it has gone already.
    pub(super) fn abandon_intake(&mut self, site: &mut Site<'_>) {
        (self.wants_flush, self.wanted_parts, self.wanted_swap) = (false, None, None);
        self.loads.abandon(site.shard);
        self.abandon_spool();
    }

    /// Begins to replace the dataset by one that is loaded when it has gone.
    pub(super) fn flush(&mut self, source: Source, site: &mut Site<'_>) {
        self.notice("MASTER <-> REPLICA sync: Flushing old data");
        self.give_up_dataset(site);
        let phase = Phase::Flushing { done: flush(site.shard) };
        self.whole = Some(Whole::Refill(Refill { source, phase }));
    }

    fn begin_spool(&mut self, site: &Site<'_>) {
        self.spools += 1;
        let checker = self.loads.checker(site.shard.map);
        self.spool = Some(Spool { number: self.spools, checker, unwritten_bytes: 0, outcome: None });
        self.spool_step(self.spools, SpoolStep::Create);
    }

    fn abandon_spool(&mut self) {
        if let Some(spool) = self.spool.take() {
            self.spool_step(spool.number, SpoolStep::Drop);
        }
    }

    fn spool(&mut self, number: u64) -> Option<&mut Spool> {
        self.spool.as_mut().filter(|spool| spool.number == number)
    }

    /// So many bytes more of a file are written.
    pub fn spool_written(&mut self, number: u64, len_bytes: u64) {
        if let Some(spool) = self.spool(number) {
            spool.unwritten_bytes -= len_bytes;
        }
    }

    /// A file is complete and this long, or could not be written.
    pub fn spool_done(&mut self, number: u64, outcome: Result<u64, String>) {
        if let Some(spool) = self.spool(number) {
            spool.outcome = Some(outcome);
        }
    }

    /// The file that is being loaded cannot be read.
    pub fn spool_unreadable(&mut self, why: &str, site: &mut Site<'_>) {
        if let Some(Whole::Refill(Refill { phase: Phase::Loading { number, .. }, .. })) = self.whole {
            self.whole = None;
            self.loads.abandon(site.shard);
            self.fail_refill(number, why, site.now_ms);
        }
    }

    /// Gives the file what there is of the snapshot. Returns whether that was anything.
    pub(super) fn feed_spool(&mut self, now_ms: u64) -> bool {
        let (Some(link), Some(spool)) = (&mut self.link, &mut self.spool) else { return false };
        let mut steps = Vec::new();
        let why = match spool.outcome.take_if(|outcome| outcome.is_err()) {
            Some(Err(why)) => format!(
                "Write error or short write writing to the DB file needed for MASTER <-> REPLICA synchronization: {why}"
            ),
            _ if link.payload().is_empty() || spool.unwritten_bytes > WINDOW_BYTES => return false,
            _ => {
                let len = link.payload().len().min(FEED_BYTES);
                let bytes = &link.payload()[..len];
                match spool.checker.feed(bytes) {
                    Ok(used) => {
                        spool.unwritten_bytes += used as u64;
                        steps.push(SpoolStep::Write(Bytes::copy_from_slice(&bytes[..used])));
                        let is_whole = spool.checker.is_read();
                        if is_whole {
                            steps.push(SpoolStep::Finish);
                        }
                        let number = spool.number;
                        link.consume_payload(used, is_whole, now_ms);
                        steps.into_iter().for_each(|step| self.spool_step(number, step));
                        return true;
                    }
                    Err(fault) => format!("Failed trying to load the MASTER synchronization DB: {fault}"),
                }
            }
        };
        if self.wanted_swap.take().is_some() {
            link.swapped(Err(&why), now_ms);
        } else {
            link.fail(&why, now_ms);
        }
        self.abandon_spool();
        true
    }

    /// Begins to replace the dataset if the file with its successor is complete and the link wants that in place.
    pub(super) fn begin_refill(&mut self, site: &mut Site<'_>) -> bool {
        let is_complete = self.spool.as_ref().is_some_and(|spool| matches!(spool.outcome, Some(Ok(_))));
        let Some((id, offset)) = self.wanted_swap.take_if(|_| is_complete) else { return false };
        let spool = self.spool.as_ref().expect("just seen");
        let (number, keys) = (spool.number, spool.checker.keys());
        if keys == 0 && self.refuses_empty(site, id) {
            self.abandon_spool();
            return true;
        }
        self.spool = None;
        self.flush(Source::File { number, id, offset }, site);
        true
    }

    /// Goes on with replacing the dataset. Returns whether there was anything to do.
    pub(super) fn go_on_refill(&mut self, mut refill: Refill, site: &mut Site<'_>) -> bool {
        let next = match &refill.phase {
            Phase::Flushing { done } if done.get() => Some(look(site)),
            Phase::Waiting { until_ms } if *until_ms <= site.now_ms => Some(look(site)),
            Phase::Looking { is_freed } => match is_freed.get() {
                None => None,
                Some(false) => Some(Phase::Waiting { until_ms: site.now_ms + LOOK_PERIOD_MS }),
                Some(true) => match refill.source {
                    Source::Link => {
                        self.begin_late_load(site);
                        return true;
                    }
                    Source::File { number, id, offset } => {
                        self.notice("MASTER <-> REPLICA sync: Loading DB in memory");
                        self.loads.begin(site.shard);
                        self.spool_step(number, SpoolStep::Load);
                        Some(Phase::Loading { number, id, offset })
                    }
                },
            },
            &Phase::Loading { number, id, offset } => match self.loads.take_outcome() {
                Some(Ok(info)) => {
                    self.spool_step(number, SpoolStep::Drop);
                    self.swap(site, id, offset, &info);
                    return true;
                }
                Some(Err(fault)) => {
                    self.fail_refill(number, &fault.to_string(), site.now_ms);
                    return true;
                }
                None => None,
            },
            Phase::Flushing { .. } | Phase::Waiting { .. } => None,
        };
        let has_worked = next.is_some();
        if let Some(phase) = next {
            refill.phase = phase;
        }
        self.whole = Some(Whole::Refill(refill));
        has_worked
    }

    /// The old dataset is freed: what the link brings may be loaded, if it still comes.
    fn begin_late_load(&mut self, site: &mut Site<'_>) {
        if !std::mem::take(&mut self.wants_flush) {
            return;
        }
        self.notice("MASTER <-> REPLICA sync: Loading DB in memory");
        self.loads.begin(site.shard);
        if let Some((token, count)) = self.wanted_parts.take() {
            self.load_parts(token, count, site.now_ms);
        }
    }

    /// What was whole and checked cannot be loaded: there is no dataset until the master has sent another.
    fn fail_refill(&mut self, number: u64, why: &str, now_ms: u64) {
        self.spool_step(number, SpoolStep::Drop);
        if let Some(link) = &mut self.link {
            link.swapped(Err(&format!("Failed trying to load the MASTER synchronization DB: {why}")), now_ms);
        }
    }

    /// When a dataset that is being replaced is to be looked at again.
    pub(super) fn next_refill_ms(&self) -> Option<u64> {
        match &self.whole {
            Some(Whole::Refill(Refill { phase: Phase::Waiting { until_ms }, .. })) => Some(*until_ms),
            _ => None,
        }
    }
}

/// Asks all shards whether the old dataset is freed.
fn look(site: &mut Site<'_>) -> Phase {
    let is_freed = Rc::<Cell<Option<bool>>>::default();
    let told = Rc::clone(&is_freed);
    step(site.shard, move |everything| {
        told.set(Some(!everything.slices.iter().any(|slice| slice.has_trash())));
    });
    Phase::Looking { is_freed }
}
