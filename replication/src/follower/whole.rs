//! What is done to the dataset as a whole, between two epochs: each is a transaction over everything.

use super::refill::{Refill, Source};
use super::roles::RoleRequest;
use super::{Follower, FollowerAction, Site};
use crate::home::relay::Turn;
use crate::home::{Home, STOP_MARK};
use crate::ids::ReplId;
use crate::loader::LoadedInfo;
use braid_shards::{Everything, Mark, Shard, Work};
use std::cell::Cell;
use std::rc::Rc;

/// Runs in the very step in which a snapshot is cut, on what it holds.
pub type CutHook = Box<dyn FnOnce(&mut Everything<'_>)>;

/// A snapshot that is to be cut.
pub(super) struct WantedCut {
    snapshot: u64,
    with_data: bool,
    hook: Option<CutHook>,
}

/// How a cut went.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Cut {
    Made,
    /// What an aborted snapshot left behind is still being cleared away: the home tries again.
    Refused,
}

/// What is being done.
pub(super) enum Whole {
    Cut {
        outcome: Rc<Cell<Option<Cut>>>,
    },
    /// The stream is stopped.
    Step {
        done: Rc<Cell<bool>>,
    },
    Swap {
        done: Rc<Cell<bool>>,
        id: ReplId,
        offset: u64,
        db: u16,
        keys: u64,
    },
    /// The dataset goes before its successor is loaded.
    Refill(Refill),
    Turn {
        request: RoleRequest,
    },
}

impl Follower {
    /// A snapshot is to be cut as soon as it can be ([`crate::home::Action::Cut`]).
    pub fn want_cut(&mut self, snapshot: u64, with_data: bool, hook: Option<CutHook>) {
        self.wanted_cut = Some(WantedCut { snapshot, with_data, hook });
    }

    /// The shards are to collect no effects any more, as soon as they can be told ([`crate::home::Action::StopStream`]).
    pub fn want_stop(&mut self) {
        self.wants_stop = true;
    }

    /// The change of role is complete at home ([`crate::home::Action::Turned`]).
    pub fn turned(&mut self, turn: Turn) {
        self.turned = Some(turn);
    }

    /// A loaded dataset is being put in the place of the present one.
    pub fn is_swapping(&self) -> bool {
        matches!(self.whole, Some(Whole::Swap { .. }))
    }

    /// Begins what waits for the dataset to be left alone.
    pub(super) fn begin_whole(&mut self, site: &mut Site<'_>) -> bool {
        if !self.is_idle() {
            return false;
        }
        if self.wants_flush {
            self.flush(Source::Link, site);
        } else if self.wanted_cut.take_if(|wanted| site.home.gives_up_save(wanted.snapshot)).is_some() {
            // Nobody asked for a snapshot of what is left.
        } else if let Some(wanted) = self.wanted_cut.take_if(|_| !self.is_given_up) {
            self.notice(&format!("Starting snapshot number {}", wanted.snapshot));
            self.whole = Some(Whole::Cut { outcome: cut(site.shard, site.home, wanted) });
        } else if std::mem::take(&mut self.wants_stop) {
            if site.home.is_replica() {
                site.home.go_on_with_stream();
                return true;
            }
            let ttl_s = site.home.backlog_ttl_ms() / 1000;
            self.notice(&format!(
                "Replication backlog freed after {ttl_s} seconds without connected replicas."
            ));
            self.whole = Some(Whole::Step { done: stop_stream(site.shard) });
        } else if self.begin_refill(site) {
            return true;
        } else if let (Some((id, offset)), true) = (self.wanted_swap, self.loads.is_good()) {
            self.wanted_swap = None;
            self.begin_swap(site, id, offset);
        } else {
            return false;
        }
        true
    }

    /// Until another is in place the dataset is none, and nothing of its history can be continued.
    pub(super) fn give_up_dataset(&mut self, site: &mut Site<'_>) {
        site.home.give_up_dataset();
        self.is_given_up = true;
        if let Some(link) = &mut self.link {
            link.forget_position();
        }
    }

    /// Whether it is so: commands on keys are to be refused, and what there is should not be saved.
    pub fn has_given_up_dataset(&self) -> bool {
        self.is_given_up
    }

    pub(super) fn notice(&mut self, text: &str) {
        self.actions.push(FollowerAction::Notice(text.to_owned()));
    }

    /// Puts what was loaded in the place of the dataset, if it is accepted.
    fn begin_swap(&mut self, site: &mut Site<'_>, id: ReplId, offset: u64) {
        let info = self.loads.take_outcome().expect("it is good").expect("it is good");
        if info.keys == 0 && self.refuses_empty(site, id) {
            return;
        }
        self.swap(site, id, offset, &info);
    }

    /// Puts what was loaded and accepted in the place of the dataset.
    pub(super) fn swap(&mut self, site: &mut Site<'_>, id: ReplId, offset: u64, info: &LoadedInfo) {
        self.notice(&format!("MASTER <-> REPLICA sync: {} keys loaded, putting them in place", info.keys));
        let done = Rc::<Cell<bool>>::default();
        let (db, keys) = (info.stream_db.unwrap_or(0), info.keys);
        self.whole = Some(Whole::Swap { done: Rc::clone(&done), id, offset, db, keys });
        self.loads.swap(site.shard, move |everything| {
            everything.slices.iter_mut().for_each(|slice| slice.is_gone = false);
            done.set(true);
        });
    }

    /// Whether an empty dataset is not taken in the place of ours: a master that lost its own would wipe us. Without data,
    /// or on an order to follow that very master, there is nothing to lose.
    pub(super) fn refuses_empty(&mut self, site: &mut Site<'_>, id: ReplId) -> bool {
        let refuses = self.rules.protects && !self.accepts_empty && !site.home.knows(id) && (site.has_keys)();
        if refuses {
            self.has_refused = true;
            self.loads.abandon(site.shard);
            if let Some(link) = &mut self.link {
                let why = "The master has an empty dataset of another history: refused, for this node holds data \
                           (protected-restart). REPLICAOF with its address confirms that it is to be followed";
                link.swapped(Err(why), site.now_ms);
            }
        }
        refuses
    }

    /// What was done to the dataset as a whole may be over.
    pub(super) fn finish_whole(&mut self, site: &mut Site<'_>) -> bool {
        match self.whole.take() {
            Some(Whole::Cut { outcome }) if let Some(outcome) = outcome.get() => {
                if outcome == Cut::Refused {
                    site.home.cut_refused(site.now_ms);
                }
                true
            }
            Some(Whole::Step { done }) if done.get() => true,
            Some(Whole::Swap { done, id, offset, db, keys }) if done.get() => {
                self.actions.push(FollowerAction::Loaded { keys });
                site.home.replace_history(id, offset, db);
                self.applied_offset = offset;
                self.is_given_up = false;
                (self.accepts_empty, self.has_refused) = (false, false);
                if let Some(link) = &mut self.link {
                    link.swapped(Ok(db), site.now_ms);
                }
                true
            }
            Some(Whole::Refill(refill)) => self.go_on_refill(refill, site),
            Some(Whole::Turn { request }) if let Some(turn) = self.turned.take() => {
                self.complete_turn(site, turn, request);
                true
            }
            other => {
                self.whole = other;
                false
            }
        }
    }
}

/// Gives the dataset up, so that memory need not hold two. From here on no client sees what is left.
pub(super) fn flush(shard: &mut Shard) -> Rc<Cell<bool>> {
    step(shard, |everything| {
        for slice in &mut *everything.slices {
            slice.is_gone = true;
            (0..slice.databases() as u16).for_each(|db| slice.clear(db));
        }
    })
}

/// From here on the shards collect no effects.
fn stop_stream(shard: &mut Shard) -> Rc<Cell<bool>> {
    step(shard, |everything| {
        everything.slices.iter_mut().for_each(|slice| slice.stream = false);
        *everything.mark = Some(Mark::Offset(STOP_MARK));
    })
}

/// Begins a transaction over everything, and returns what says that it has run.
pub(super) fn step(shard: &mut Shard, work: impl FnOnce(&mut Everything<'_>) + 'static) -> Rc<Cell<bool>> {
    let done = Rc::<Cell<bool>>::default();
    let is_done = Rc::clone(&done);
    shard.begin(
        None,
        Work::Action(Box::new(move |everything: &mut Everything<'_>| {
            is_done.set(true);
            work(everything);
        })),
    );
    done
}

/// A transaction over everything that fixes the cut: before its ticket is what the snapshot holds, after it what the stream
/// brings.
fn cut(shard: &mut Shard, home: &Home, wanted: WantedCut) -> Rc<Cell<Option<Cut>>> {
    let WantedCut { snapshot, with_data, hook } = wanted;
    let options = home.writer_options();
    // A save alone makes no history that anybody could follow.
    let streams = home.is_followed() && !shard.replica;
    let outcome = Rc::<Cell<Option<Cut>>>::default();
    let told = Rc::clone(&outcome);
    shard.begin(
        None,
        Work::Action(Box::new(move |everything: &mut Everything<'_>| {
            if everything.slices.iter().any(|slice| slice.has_snapshot()) {
                return told.set(Some(Cut::Refused));
            }
            told.set(Some(Cut::Made));
            for slice in &mut *everything.slices {
                // A replica's log is fed by its master.
                slice.stream |= streams && !slice.replica;
                if with_data {
                    slice.begin_snapshot(options).expect("checked above");
                    slice.snapshot_id = snapshot;
                }
            }
            *everything.mark = Some(Mark::Cut(snapshot));
            if let Some(hook) = hook {
                hook(everything);
            }
        })),
    );
    outcome
}
