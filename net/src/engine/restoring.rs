//! The snapshot file at the start: the home shard feeds it to all shards, and until it is in its place commands on keys get
//! the LOADING error. A file that is not whole ends the server: it never starts empty over data.

use super::replicas::HOME;
use super::{Engine, Front};
use crate::disk::FileReader;
use crate::log_notice;
use crate::session::control::Order;
use braid_replication::follower::{Follower, Restored};
use braid_replication::loading::Loads;
use braid_shards::{LoadFault, Shard};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bytes that are fed in one round at the start, where nobody is answered yet: some milliseconds of work.
const START_FEED_BYTES: usize = 128 << 10;
/// Between two lines about how far it is.
const REPORT_PERIOD: Duration = Duration::from_secs(2);

/// A snapshot file on its way into the shards.
pub struct Restoring {
    pub(super) path: PathBuf,
    reader: FileReader,
    /// What was read and not fed: the chunk, and how much of it was fed.
    chunk: Vec<u8>,
    fed: usize,
    fed_bytes: u64,
    begun: Instant,
    next_report: Instant,
}

impl Restoring {
    pub(super) fn new(path: PathBuf, reader: FileReader) -> Self {
        let now = Instant::now();
        let next_report = now + REPORT_PERIOD;
        Self { path, reader, chunk: Vec::new(), fed: 0, fed_bytes: 0, begun: now, next_report }
    }
}

impl Engine {
    /// Begins to load the snapshot file, if there is one. To be called once, on the home shard, before its first round.
    pub(super) fn begin_restore(&mut self) {
        let node = Arc::clone(&self.front.node);
        let path = PathBuf::from(&self.front.config.dbfilename);
        let waker = Arc::clone(&node);
        match FileReader::open(&path, move || waker.order(HOME, Order::Look)) {
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
                self.front.restoring = Some(Box::new(Restoring::new(path, reader)));
                self.with_follower(|follower, site| follower.begin_restore(site.shard));
                self.shard.settle(&mut self.front);
            }
        }
    }

    /// One round's work for loading at the start. Returns whether there is more to do at once.
    pub(super) fn restore(&mut self) -> bool {
        let Some(mut restoring) = self.front.restoring.take() else { return false };
        let outcome = self.feed_restore(&mut restoring, START_FEED_BYTES);
        let outcome = outcome.and_then(|more| {
            let restored = self.with_follower(Follower::restore).map_err(|fault| fault.to_string())?;
            self.shard.settle(&mut self.front);
            Ok((more, restored))
        });
        match outcome {
            Ok((_, Restored::Done { keys })) => {
                let took_s = restoring.begun.elapsed().as_secs_f64();
                log_notice!("Done loading RDB, keys loaded: {keys}, keys expired: 0.");
                log_notice!("DB loaded from disk: {took_s:.3} seconds");
                self.front.node.persistence.end_loading(keys);
                true
            }
            Ok((more, Restored::UnderWay { has_worked })) => {
                self.front.restoring = Some(restoring);
                more || has_worked
            }
            Err(why) => {
                let path = restoring.path.display();
                self.give_up(&format!(
                    "Fatal error loading the DB from {path}: {why}. The file was left as it is; exiting."
                ));
                true
            }
        }
    }

    /// Feeds so much of what was read, as far as the shards want it.
    pub(super) fn feed_restore(
        &mut self,
        restoring: &mut Restoring,
        feed_bytes: usize,
    ) -> Result<bool, String> {
        if !self.front.follower().loads.wants_more() {
            return Ok(false);
        }
        if restoring.fed == restoring.chunk.len() {
            match restoring.reader.take() {
                None => return Ok(false),
                Some(Err(error)) => return Err(format!("{error} after byte {}", restoring.fed_bytes)),
                Some(Ok(chunk)) if chunk.is_empty() => {
                    self.feed_loads(|loads, shard| loads.end_input(shard))?;
                    return Ok(true);
                }
                Some(Ok(chunk)) => {
                    restoring.chunk = chunk;
                    restoring.fed = 0;
                }
            }
        }
        let end = restoring.chunk.len().min(restoring.fed + feed_bytes);
        let piece = &restoring.chunk[restoring.fed..end];
        self.feed_loads(|loads, shard| loads.feed(shard, piece))?;
        restoring.fed_bytes += piece.len() as u64;
        restoring.fed = end;
        let keys = self.front.follower().loads.loader().map_or(0, |loader| loader.keys());
        self.front.report_progress(restoring, keys);
        Ok(true)
    }

    /// Gives the loader something, and its shards what comes of it.
    fn feed_loads<T>(
        &mut self,
        feed: impl FnOnce(&mut Loads, &mut Shard) -> Result<T, LoadFault>,
    ) -> Result<T, String> {
        let fed = self.with_follower(|follower, site| feed(&mut follower.loads, site.shard));
        self.shard.settle(&mut self.front);
        fed.map_err(|fault| fault.to_string())
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
