//! Loading a snapshot beside the dataset that serves. The home shard feeds it (from a master's link or a file), every shard
//! decodes its own keys, and one step puts the new dataset in the old one's place. See `braid_replication::loader` and
//! `braid_shards::load`.
//!
//! How to use it, on the home shard: [`Engine::begin_load`]; [`Engine::feed_load`] while [`Engine::load_wants_more`];
//! [`Engine::end_load_input`] if the input ends; then [`Front::load_outcome`] is set in some later round. If it is good
//! [`Engine::swap_loaded`], otherwise the attempt is over already. [`Engine::drop_load`] gives up at any time before the swap.

use super::{Engine, Front};
use braid_core::keyspace::Keyspace;
use braid_replication::loader::{Assembly, LoadedInfo, Loader};
use braid_shards::{Everything, LoadAnswer, LoadFault, ShardId};

/// No string in a snapshot may be longer, unless the configuration allows clients longer ones.
const STRING_MAX_BYTES: u64 = 512 << 20;

/// The stream that comes from a file or on the link to the master.
const OWN_STREAM: u16 = 0;

/// A load under way, on the home shard.
pub struct Loading {
    load: u64,
    loader: Loader,
    assembly: Assembly,
    /// Streams that other connections bring are still to be loaded.
    awaits_parts: bool,
    /// Keys that they brought.
    part_keys: u64,
    is_finishing: bool,
    is_told: bool,
    failed: Option<LoadFault>,
}

/// The home shard's state for this file.
#[derive(Default)]
pub struct Loads {
    under_way: Option<Box<Loading>>,
    last: u64,
    /// What came home of a load that was given up.
    #[allow(clippy::vec_box, reason = "they travel as boxes")]
    late: Vec<Box<Keyspace>>,
}

impl Engine {
    /// Begins to load a snapshot.
    ///
    /// # Panics
    /// If one is being loaded.
    pub(super) fn begin_load(&mut self) {
        let loads = &mut self.front.loads;
        assert!(loads.under_way.is_none(), "one at a time");
        loads.last += 1;
        let load = loads.last;
        let loading = Loading {
            load,
            loader: self.front.new_loader(),
            assembly: Assembly::new(self.front.node.map.shards()),
            awaits_parts: false,
            part_keys: 0,
            is_finishing: false,
            is_told: false,
            failed: None,
        };
        self.front.loads.under_way = Some(Box::new(loading));
        self.front.load_outcome = None;
        self.shard.begin_load(load);
        self.shard.settle(&mut self.front);
    }

    /// Takes the next bytes; returns how many of them belong to the snapshot: all, until its end.
    ///
    /// # Errors
    /// It is not usable. The attempt is over, and the dataset is as it was.
    ///
    /// # Panics
    /// If nothing is being loaded, or after the snapshot's end.
    pub(super) fn feed_load(&mut self, bytes: &[u8]) -> Result<usize, LoadFault> {
        let outcome = self.front.loading().loader.feed(bytes);
        self.end_on_fault(outcome)
    }

    /// The input has ended.
    ///
    /// # Errors
    /// As [`Engine::feed_load`]: the snapshot had not.
    pub(super) fn end_load_input(&mut self) -> Result<(), LoadFault> {
        let outcome = self.front.loading().loader.finish_input();
        self.end_on_fault(outcome)
    }

    /// The dataset is not complete without what further connections bring ([`Engine::parts_loaded`]). Returns the load's
    /// number.
    ///
    /// # Panics
    /// If nothing is being loaded.
    pub(super) fn await_parts(&mut self) -> u64 {
        let loading = self.front.loading();
        loading.awaits_parts = true;
        loading.load
    }

    /// All that further connections brought is loaded.
    pub(super) fn parts_loaded(&mut self) {
        if let Some(loading) = &mut self.front.loads.under_way {
            loading.awaits_parts = false;
        }
    }

    fn end_on_fault<T>(&mut self, outcome: Result<T, LoadFault>) -> Result<T, LoadFault> {
        if outcome.is_err() {
            self.drop_load();
        }
        outcome
    }

    /// Whether more should be fed: the shards have not got more than they can decode soon.
    pub(super) fn load_wants_more(&self) -> bool {
        self.front
            .loads
            .under_way
            .as_ref()
            .is_some_and(|loading| loading.failed.is_none() && loading.loader.wants_more())
    }

    /// The loader of the load under way, until it is swapped in or dropped.
    pub(super) fn loader(&self) -> Option<&Loader> {
        self.front.loads.under_way.as_ref().map(|loading| &loading.loader)
    }

    /// Gives up what is being loaded, if anything is.
    pub(super) fn drop_load(&mut self) {
        let Some(loading) = self.front.loads.under_way.take() else { return };
        self.shard.drop_load(loading.load, loading.assembly.into_successors());
        self.shard.settle(&mut self.front);
    }

    /// Puts what was loaded in the dataset's place. `with` runs in that very step, on the new dataset.
    ///
    /// # Panics
    /// If [`Front::load_outcome`] was not good.
    pub(super) fn swap_loaded(&mut self, with: impl FnOnce(&mut Everything<'_>) + 'static) {
        let loading = self.front.loads.under_way.take().expect("something was loaded");
        assert!(loading.is_told && loading.failed.is_none(), "it is whole and accepted");
        self.shard.begin_swap(loading.assembly.into_successors(), with);
        self.shard.settle(&mut self.front);
    }

    /// One round's work for what is being loaded. Returns whether there is more to do at once.
    pub(super) fn load(&mut self) -> bool {
        let mut more = self.shard.load_some();
        for late in std::mem::take(&mut self.front.loads.late) {
            self.shard.bury_later(late);
        }
        if let Some(loading) = &mut self.front.loads.under_way {
            for (to, batch) in loading.loader.take_batches() {
                self.shard.send_load_batch(loading.load, OWN_STREAM, to, batch);
                more = true;
            }
            if let Some(fault) = loading.failed.take() {
                self.front.load_outcome = Some(Err(fault));
                self.drop_load();
            } else if loading.loader.is_read() && !loading.is_finishing && !loading.awaits_parts {
                loading.is_finishing = true;
                self.shard.finish_load(loading.load);
                more = true;
            } else if loading.assembly.is_whole() && !loading.is_told {
                loading.is_told = true;
                let mut info = loading.loader.info().clone();
                info.keys += loading.part_keys;
                self.front.load_outcome = Some(Ok(info));
                more = true;
            }
        }
        self.shard.settle(&mut self.front);
        more
    }
}

impl Front {
    fn loading(&mut self) -> &mut Loading {
        self.loads.under_way.as_mut().expect("something is being loaded")
    }

    /// Reads one stream of a dataset.
    pub(super) fn new_loader(&self) -> Loader {
        Loader::new(
            self.node.map,
            self.config.databases as usize,
            self.config.proto_max_bulk_len_bytes.max(STRING_MAX_BYTES),
            self.config.rdbchecksum,
        )
    }

    /// Home: so many keys came in a part.
    pub(super) fn count_part_keys(&mut self, keys: u64) {
        if let Some(loading) = &mut self.loads.under_way {
            loading.part_keys += keys;
        }
    }

    /// A shard decoded a batch that was sent from here, or handed over its successor.
    pub(super) fn load_answered(&mut self, from: ShardId, answer: LoadAnswer) {
        let answer = match answer {
            LoadAnswer::Batch { load, stream, len_bytes, outcome } if stream != OWN_STREAM => {
                return self.part_batch_answered(load, stream, len_bytes, outcome);
            }
            answer => answer,
        };
        let (LoadAnswer::Batch { load, .. } | LoadAnswer::Whole { load, .. }) = &answer;
        let current = self.loads.under_way.as_mut().filter(|loading| loading.load == *load);
        match (current, answer) {
            (Some(loading), LoadAnswer::Batch { len_bytes, outcome, .. }) => {
                if let Err(fault) = loading.loader.decoded(len_bytes, outcome) {
                    loading.failed.get_or_insert(fault);
                }
            }
            (Some(loading), LoadAnswer::Whole { successor, .. }) => loading.assembly.add(from, successor),
            (None, LoadAnswer::Whole { successor, .. }) => self.loads.late.push(successor),
            (None, LoadAnswer::Batch { .. }) => {}
        }
    }

    /// What became of the load that was last begun: set once it is whole, or once a shard found something wrong. A fault
    /// that [`Engine::feed_load`] returned is not told again.
    pub(super) fn take_load_outcome(&mut self) -> Option<Result<LoadedInfo, LoadFault>> {
        self.load_outcome.take()
    }
}
