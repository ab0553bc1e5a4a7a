//! The snapshot file at the start: the home shard feeds it to all shards, and until it is in its place commands on keys get
//! the LOADING error. A file that is not whole ends the server: it never starts empty over data.

use super::{Engine, Front};
use crate::disk::FileReader;
use crate::log_notice;
use braid_replication::loader::LoadedInfo;
use braid_shards::LoadFault;
use std::cell::Cell;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bytes that are fed in one round: some milliseconds of work.
const FEED_BYTES: usize = 128 << 10;
/// Between two lines about how far it is.
const REPORT_PERIOD: Duration = Duration::from_secs(2);

/// Loading at the start.
pub struct Restoring {
    path: PathBuf,
    reader: FileReader,
    /// What was read and not fed: the chunk, and how much of it was fed.
    chunk: Vec<u8>,
    fed: usize,
    fed_bytes: u64,
    begun: Instant,
    next_report: Instant,
    /// Set by the step that puts the dataset in its place.
    is_there: Rc<Cell<bool>>,
    keys: u64,
}

impl Engine {
    /// Begins to load the snapshot file, if there is one. To be called once, on the home shard, before its first round.
    pub(super) fn begin_restore(&mut self) {
        let node = Arc::clone(&self.front.node);
        let path = PathBuf::from(&self.front.config.dbfilename);
        let waker = Arc::clone(&node);
        let opened = FileReader::open(&path, move || {
            waker.order(super::replicas::HOME, crate::session::control::Order::Look)
        });
        match opened {
            Ok(None) => node.persistence.end_loading(0),
            Err(error) => {
                self.give_up(&format!("Fatal error loading the DB, can't open {}: {error}", path.display()))
            }
            Ok(Some(reader)) => {
                log_notice!(
                    "Loading {}, {} bytes, into {} shards",
                    path.display(),
                    reader.len_bytes,
                    node.map.shards()
                );
                node.persistence.set_progress(0, reader.len_bytes);
                let now = Instant::now();
                self.front.restoring = Some(Box::new(Restoring {
                    path,
                    reader,
                    chunk: Vec::new(),
                    fed: 0,
                    fed_bytes: 0,
                    begun: now,
                    next_report: now + REPORT_PERIOD,
                    is_there: Rc::default(),
                    keys: 0,
                }));
                self.begin_load();
            }
        }
    }

    /// One round's work for loading at the start. Returns whether there is more to do at once.
    pub(super) fn restore(&mut self) -> bool {
        let Some(mut restoring) = self.front.restoring.take() else { return false };
        if restoring.is_there.get() {
            let took_s = restoring.begun.elapsed().as_secs_f64();
            log_notice!("Done loading RDB, keys loaded: {}, keys expired: 0.", restoring.keys);
            log_notice!("DB loaded from disk: {took_s:.3} seconds");
            self.front.node.persistence.end_loading(restoring.keys);
            return true;
        }
        let outcome = self.feed_restore(&mut restoring);
        let outcome = outcome.and_then(|more| match self.front.take_load_outcome() {
            None => Ok(more),
            Some(Ok(info)) => {
                restoring.keys = info.keys;
                self.put_in_place(&info, &restoring);
                Ok(true)
            }
            Some(Err(fault)) => Err(fault.to_string()),
        });
        match outcome {
            Ok(more) => {
                self.front.restoring = Some(restoring);
                more
            }
            Err(why) => {
                self.drop_load();
                let path = restoring.path.display();
                self.give_up(&format!(
                    "Fatal error loading the DB from {path}: {why}. The file was left as it is; exiting."
                ));
                true
            }
        }
    }

    /// Feeds what was read, as far as the shards want it.
    fn feed_restore(&mut self, restoring: &mut Restoring) -> Result<bool, String> {
        if !self.load_wants_more() {
            return Ok(false);
        }
        if restoring.fed == restoring.chunk.len() {
            match restoring.reader.take() {
                None => return Ok(false),
                Some(Err(error)) => return Err(format!("{error} after byte {}", restoring.fed_bytes)),
                Some(Ok(chunk)) if chunk.is_empty() => {
                    self.end_load_input().map_err(|fault| fault.to_string())?;
                    return Ok(true);
                }
                Some(Ok(chunk)) => {
                    restoring.chunk = chunk;
                    restoring.fed = 0;
                }
            }
        }
        let end = restoring.chunk.len().min(restoring.fed + FEED_BYTES);
        let piece = &restoring.chunk[restoring.fed..end];
        self.feed_load(piece).map_err(|fault: LoadFault| fault.to_string())?;
        restoring.fed_bytes += piece.len() as u64;
        restoring.fed = end;
        self.front.report_progress(restoring, self.loader().map_or(0, |loader| loader.keys()));
        Ok(true)
    }

    /// The snapshot is whole: its history is ours, and it becomes the dataset.
    fn put_in_place(&mut self, info: &LoadedInfo, restoring: &Restoring) {
        let is_replica = self.front.config.replicaof.0.is_some();
        let history = info.repl_id.zip(info.repl_offset);
        let home = self.front.home.as_mut().expect("on the home shard");
        if info.keys > 0 {
            home.confirm_dataset();
        }
        if let Some((id, offset)) = history {
            home.resume(id, offset, is_replica);
            home.set_stream_db(info.stream_db.unwrap_or(0));
        }
        let streams = history.is_some() && !is_replica;
        let is_there = Rc::clone(&restoring.is_there);
        self.swap_loaded(move |everything| {
            for slice in &mut *everything.slices {
                slice.stream = streams;
            }
            is_there.set(true);
        });
    }

    fn give_up(&mut self, why: &str) {
        self.front.node.persistence.fail(why.to_owned());
        self.front.node.stop();
    }
}

impl Front {
    fn report_progress(&mut self, restoring: &mut Restoring, keys: u64) {
        let total = restoring.reader.len_bytes;
        self.node.persistence.set_progress(restoring.fed_bytes, total);
        if self.now >= restoring.next_report {
            restoring.next_report = self.now + REPORT_PERIOD;
            let percent = restoring.fed_bytes as f64 * 100.0 / total.max(1) as f64;
            log_notice!("Loading the DB: {percent:.1}% of {total} bytes, {keys} keys");
        }
    }
}
