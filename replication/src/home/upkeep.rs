//! How long the stream is kept without replicas (`repl-backlog-ttl`), and whose dataset a master may replace ("protected
//! restart").

use super::{Action, Home};
use crate::ids::ReplId;
use std::collections::VecDeque;

/// Histories of this process that are remembered.
const OWN_IDS_MAX: usize = 64;
/// Replicas that are remembered to have followed it.
const KNOWN_MAX: usize = 1024;

/// How long nobody has followed the stream.
#[derive(Default)]
pub(super) struct Retention {
    /// Since when there is no replica, as ticks tell.
    alone_since_ms: Option<u64>,
    /// The shards were asked to stop collecting effects.
    is_stopping: bool,
}

impl Retention {
    /// When nobody follows the stream, that is so from then on only.
    pub(super) fn begin_anew(&mut self) {
        self.alone_since_ms = None;
    }
}

/// Whether this master may replace the datasets of replicas that come with another history.
///
/// A master that lost its dataset and starts empty would wipe every replica it had: they come, are told to synchronize,
/// and drop what they hold. So it refuses whoever holds data of a history it did not begin itself, with the error after
/// which stock replicas keep their data and ask again. Who has followed it before held this dataset, and comes back from a
/// history of its own, as after a promotion: it is served.
#[derive(Default)]
pub(super) struct Protection {
    /// The dataset is what it should be: it was loaded, came from a master, or an operator said so.
    is_confirmed: bool,
    own_ids: VecDeque<ReplId>,
    /// Replicas that have acknowledged a history of this process, by [`super::peers::Peer::name`].
    known: VecDeque<String>,
}

impl Protection {
    /// A history begins in this process.
    pub(super) fn add(&mut self, id: ReplId) {
        if self.own_ids.len() == OWN_IDS_MAX {
            self.own_ids.pop_front();
        }
        self.own_ids.push_back(id);
    }

    /// A replica has our dataset.
    pub(super) fn know(&mut self, name: String) {
        if self.known.contains(&name) {
            return;
        }
        if self.known.len() == KNOWN_MAX {
            self.known.pop_front();
        }
        self.known.push_back(name);
    }
}

impl Home {
    /// The dataset is the one that replicas should have: it was loaded from a file or came from a master, or the operator
    /// says so (`REPLICAOF NO ONE`).
    pub fn confirm_dataset(&mut self) {
        self.protection.is_confirmed = true;
    }

    /// Whether replicas that come with an older history are refused.
    pub fn is_protected(&self) -> bool {
        self.rules.protects && !self.protection.is_confirmed && self.relay.is_none()
    }

    /// Whether who asks with these words is on a history that did not begin here, and has something of it. A stock server
    /// that never followed anybody asks for the first byte of its own history.
    pub(super) fn refuses_history_of(&self, name: &str, psync: Option<&[&[u8]]>) -> bool {
        let Some([id, next_byte, ..]) = psync else { return false };
        let Protection { own_ids, known, .. } = &self.protection;
        let is_own = |id: ReplId| self.ids.current() == id || own_ids.contains(&id);
        let is_known = || known.iter().any(|known| known == name);
        self.is_protected() && *next_byte != b"1" && !ReplId::parse(id).is_some_and(is_own) && !is_known()
    }

    /// A history begins. Its first bytes mean nothing, so that whoever has followed it, be it without a single write,
    /// never asks for its first byte again.
    pub(super) fn begin_history(&mut self) {
        if self.rules.protects {
            self.merge.ping(&mut self.log);
        }
    }

    /// Whether a replica may attach now, whatever it asks for.
    pub(super) fn admit(&self, psync: Option<&[&[u8]]>) -> Result<(), String> {
        if self.retention.is_stopping {
            // For some milliseconds. Who has no history yet asks again all the same.
            return Err(match psync {
                Some(_) => "NOMASTERLINK Can't SYNC while the backlog is being released".into(),
                None => "ERR Can't SYNC while the backlog is being released".into(),
            });
        }
        Ok(())
    }

    /// Whether the time without replicas is counted: they may come back for the stream only where it is kept.
    fn counts_time_alone(&self) -> bool {
        self.peers.is_empty()
            && self.log.is_active()
            // A replica keeps it: its own master may have to ask it for what it has.
            && self.relay.is_none()
            && self.rules.backlog_ttl_ms > 0
            && !self.retention.is_stopping
    }

    pub(crate) fn backlog_ttl_ms(&self) -> u64 {
        self.rules.backlog_ttl_ms
    }

    /// When the stream may have been kept for long enough.
    pub(super) fn next_retention_ms(&self) -> Option<u64> {
        let since_ms = self.retention.alone_since_ms;
        // The first tick alone begins the count.
        self.counts_time_alone()
            .then(|| since_ms.map_or(self.last_tick_ms, |since_ms| since_ms + self.rules.backlog_ttl_ms))
    }

    pub(super) fn keep_or_stop_stream(&mut self, now_ms: u64) {
        if !self.counts_time_alone() {
            return;
        }
        let since_ms = *self.retention.alone_since_ms.get_or_insert(now_ms);
        if now_ms >= since_ms + self.rules.backlog_ttl_ms {
            self.retention = Retention { alone_since_ms: None, is_stopping: true };
            self.actions.push(Action::StopStream);
        }
    }

    /// The stream is kept after all: this node has become a replica meanwhile.
    pub fn go_on_with_stream(&mut self) {
        self.retention.is_stopping = false;
    }

    /// The shards collect no effects any more, and what they collected before is merged.
    pub(super) fn stream_stopped(&mut self) {
        assert!(self.retention.is_stopping && self.peers.is_empty(), "nobody attached meanwhile");
        self.retention.is_stopping = false;
        self.log.deactivate();
        self.asked_at = None;
        // What is written from now on, at the same offsets, is not this history.
        self.ids.renew(&mut self.rng);
        self.protection.add(self.ids.current());
    }
}
