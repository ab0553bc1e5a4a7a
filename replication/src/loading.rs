//! Loading a snapshot beside the dataset that serves, on the home shard: it feeds the bytes (of a master's link or a file),
//! every shard decodes its own keys, and one step puts the new dataset in the old one's place. See [`crate::loader`] and
//! `braid_shards::load`.
//!
//! How to use it: [`Loads::begin`]; [`Loads::feed`] while [`Loads::wants_more`]; [`Loads::end_input`] if the input ends;
//! [`Loads::work`] in every round; then [`Loads::take_outcome`] has something. If it is good [`Loads::swap`], otherwise the
//! attempt is over already. [`Loads::abandon`] gives up at any time before the swap. Whatever takes the shard has to be followed by
//! [`Shard::settle`].

use crate::loader::{Assembly, LoadedInfo, Loader};
use braid_core::keyspace::Keyspace;
use braid_shards::{Everything, LoadAnswer, LoadFault, Shard, ShardId, SlotMap};

/// What the configuration says about loading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadRules {
    pub databases: usize,
    /// No string in a snapshot may be longer.
    pub string_max_bytes: u64,
    /// A wrong checksum is a fault.
    pub verify: bool,
}

impl LoadRules {
    /// Reads one stream of a dataset for the owners of its keys.
    pub fn loader(&self, map: SlotMap) -> Loader {
        Loader::new(map, self.databases, self.string_max_bytes, self.verify)
    }
}

/// The stream that is fed here, of those that a dataset comes in.
pub const OWN_STREAM: u16 = 0;

/// A load under way.
struct Loading {
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

/// See the module.
pub struct Loads {
    rules: LoadRules,
    under_way: Option<Box<Loading>>,
    last: u64,
    outcome: Option<Result<LoadedInfo, LoadFault>>,
    /// What came home of a load that was given up.
    #[allow(clippy::vec_box, reason = "they travel as boxes")]
    late: Vec<Box<Keyspace>>,
}

impl Loads {
    pub fn new(rules: LoadRules) -> Self {
        Self { rules, under_way: None, last: 0, outcome: None, late: Vec::new() }
    }

    pub fn set_rules(&mut self, rules: LoadRules) {
        self.rules = rules;
    }

    /// Begins to load a snapshot.
    ///
    /// # Panics
    /// If one is being loaded.
    pub fn begin(&mut self, shard: &mut Shard) {
        assert!(self.under_way.is_none(), "one at a time");
        self.last += 1;
        self.under_way = Some(Box::new(Loading {
            load: self.last,
            loader: self.rules.loader(shard.map),
            assembly: Assembly::new(shard.map.shards()),
            awaits_parts: false,
            part_keys: 0,
            is_finishing: false,
            is_told: false,
            failed: None,
        }));
        self.outcome = None;
        shard.begin_load(self.last);
    }

    /// A loader that only finds out where a snapshot ends, and what is wrong with it.
    pub fn checker(&self, map: SlotMap) -> Loader {
        let LoadRules { databases, string_max_bytes, verify } = self.rules;
        Loader::checking(map, databases, string_max_bytes, verify)
    }

    /// Takes the next bytes; returns how many of them belong to the snapshot: all, until its end.
    ///
    /// # Errors
    /// It is not usable. The attempt is over, and the dataset is as it was.
    ///
    /// # Panics
    /// If nothing is being loaded, or after the snapshot's end.
    pub fn feed(&mut self, shard: &mut Shard, bytes: &[u8]) -> Result<usize, LoadFault> {
        let outcome = self.loading().loader.feed(bytes);
        self.end_on_fault(shard, outcome)
    }

    /// The input has ended.
    ///
    /// # Errors
    /// As [`Loads::feed`]: the snapshot had not.
    pub fn end_input(&mut self, shard: &mut Shard) -> Result<(), LoadFault> {
        let outcome = self.loading().loader.finish_input();
        self.end_on_fault(shard, outcome)
    }

    /// The dataset is not complete without what further connections bring: until [`Loads::parts_loaded`]. Returns the load's
    /// number, under which the shards that read them are to send it; None: nothing is being loaded.
    pub fn await_parts(&mut self) -> Option<u64> {
        let loading = self.under_way.as_mut()?;
        loading.awaits_parts = true;
        Some(loading.load)
    }

    /// So many keys came in a part.
    pub fn count_part_keys(&mut self, keys: u64) {
        if let Some(loading) = &mut self.under_way {
            loading.part_keys += keys;
        }
    }

    /// All that further connections brought is loaded.
    pub fn parts_loaded(&mut self) {
        if let Some(loading) = &mut self.under_way {
            loading.awaits_parts = false;
        }
    }

    fn end_on_fault<T>(&mut self, shard: &mut Shard, outcome: Result<T, LoadFault>) -> Result<T, LoadFault> {
        if outcome.is_err() {
            self.abandon(shard);
        }
        outcome
    }

    /// Whether more should be fed: the shards have not got more than they can decode soon.
    pub fn wants_more(&self) -> bool {
        self.under_way.as_ref().is_some_and(|loading| loading.failed.is_none() && loading.loader.wants_more())
    }

    /// The loader of the load under way, until it is swapped in or given up.
    pub fn loader(&self) -> Option<&Loader> {
        self.under_way.as_ref().map(|loading| &loading.loader)
    }

    /// Gives up what is being loaded, if anything is, and what became of it.
    pub fn abandon(&mut self, shard: &mut Shard) {
        self.outcome = None;
        if let Some(loading) = self.under_way.take() {
            shard.drop_load(loading.load, loading.assembly.into_successors());
        }
    }

    /// Puts what was loaded in the dataset's place. `with` runs in that very step, on the new dataset.
    ///
    /// # Panics
    /// If the outcome was not good.
    pub fn swap(&mut self, shard: &mut Shard, with: impl FnOnce(&mut Everything<'_>) + 'static) {
        let loading = self.under_way.take().expect("something was loaded");
        assert!(loading.is_told && loading.failed.is_none(), "it is whole and accepted");
        shard.begin_swap(loading.assembly.into_successors(), with);
    }

    /// One round's work, beside [`Shard::load_some`]. Returns whether there is more to do at once.
    pub fn work(&mut self, shard: &mut Shard) -> bool {
        let mut more = false;
        for late in std::mem::take(&mut self.late) {
            shard.bury_later(late);
        }
        let Some(loading) = &mut self.under_way else { return more };
        for (to, batch) in loading.loader.take_batches() {
            shard.send_load_batch(loading.load, OWN_STREAM, to, batch);
            more = true;
        }
        if let Some(fault) = loading.failed.take() {
            self.abandon(shard);
            self.outcome = Some(Err(fault));
        } else if loading.loader.is_read() && !loading.is_finishing && !loading.awaits_parts {
            loading.is_finishing = true;
            shard.finish_load(loading.load);
            more = true;
        } else if loading.assembly.is_whole() && !loading.is_told {
            loading.is_told = true;
            let mut info = loading.loader.info().clone();
            info.keys += loading.part_keys;
            self.outcome = Some(Ok(info));
            more = true;
        }
        more
    }

    fn loading(&mut self) -> &mut Loading {
        self.under_way.as_mut().expect("something is being loaded")
    }

    /// A shard decoded a batch of the stream that is fed here, or handed over its successor.
    pub fn answer(&mut self, from: ShardId, answer: LoadAnswer) {
        let (LoadAnswer::Batch { load, .. } | LoadAnswer::Whole { load, .. }) = &answer;
        let current = self.under_way.as_mut().filter(|loading| loading.load == *load);
        match (current, answer) {
            (Some(loading), LoadAnswer::Batch { len_bytes, outcome, .. }) => {
                if let Err(fault) = loading.loader.decoded(len_bytes, outcome) {
                    loading.failed.get_or_insert(fault);
                }
            }
            (Some(loading), LoadAnswer::Whole { successor, .. }) => loading.assembly.add(from, successor),
            (None, LoadAnswer::Whole { successor, .. }) => self.late.push(successor),
            (None, LoadAnswer::Batch { .. }) => {}
        }
    }

    /// Whether what was loaded is whole, and waits to be swapped in.
    pub(crate) fn is_good(&self) -> bool {
        matches!(self.outcome, Some(Ok(_)))
    }

    /// What became of the load that was last begun: set once it is whole, or once a shard found something wrong. A fault
    /// that [`Loads::feed`] returned is not told again.
    pub fn take_outcome(&mut self) -> Option<Result<LoadedInfo, LoadFault>> {
        self.outcome.take()
    }

    /// As [`Loads::take_outcome`], of a fault only.
    pub(crate) fn take_fault(&mut self) -> Option<LoadFault> {
        self.outcome.take_if(|outcome| outcome.is_err())?.err()
    }
}
