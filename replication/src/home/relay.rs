//! A node that follows a master: its log is fed with the master's very bytes, under the master's id and at the master's
//! offsets (law 6), so whoever follows this node is on the master's history, and can move anywhere in the tree.
//!
//! A change of role is a transaction over everything whose ticket carries [`Mark::Role`](braid_shards::Mark::Role): its offset is where what this
//! node wrote of its own ends, or begins.

use super::{Action, Home};
use crate::ids::ReplId;
use crate::link::Position;
use crate::psync::{Master, Replica, Sync, Upstream};
use bytes::Bytes;

/// Which way the change of role under way goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// The master becomes a replica.
    Follow,
    /// The replica becomes a master.
    Promote,
}

/// What a replica's home knows of the stream.
pub(super) struct Relay {
    /// The database selected at the log's end.
    pub(super) db: u16,
    /// The link is up, so this node may serve replicas of its own.
    pub(super) is_up: bool,
    /// The dataset is not what its history says.
    pub(super) is_doubtful: bool,
}

impl Home {
    /// Whether this node follows a master.
    pub fn is_replica(&self) -> bool {
        self.relay.is_some()
    }

    /// A change of role begins; the transaction's mark completes it, which [`Action::Turned`] tells.
    ///
    /// # Panics
    /// If another is under way.
    pub fn begin_turn(&mut self, turn: Turn) {
        assert!(self.turn.replace(turn).is_none(), "one change of role at a time");
    }

    /// The mark of a change of role is merged: the log ended at `offset` then.
    pub(super) fn turned(&mut self, offset: u64) {
        let turn = self.turn.take().expect("a change of role is under way");
        // It is a master's time without replicas that is counted.
        self.retention.begin_anew();
        match turn {
            Turn::Follow => {
                self.relay = Some(Relay { db: 0, is_up: false, is_doubtful: false });
                let waiters = self.acks.let_all_go().into_iter();
                self.actions.extend(waiters.map(|waiter| Action::Unblock { waiter }));
            }
            Turn::Promote => {
                self.relay = None;
                // Whoever promotes it wants its dataset.
                self.confirm_dataset();
                if self.log.is_active() {
                    self.ids.promote(offset, &mut self.rng);
                    self.protection.add(self.ids.current());
                    // They learn the new id when they ask again.
                    self.close_replicas("this node is a master now");
                }
            }
        }
        self.actions.push(Action::Turned(turn));
    }

    /// What this node could go on from; None: nothing of its history was kept.
    pub fn position(&self) -> Option<Position> {
        let db = self.relay.as_ref().map_or(0, |relay| relay.db);
        self.log.is_active().then(|| Position { id: self.ids.current(), offset: self.log.end_offset(), db })
    }

    /// A node that is to start as a replica, without data of its own that anybody could have followed.
    pub fn start_as_replica(&mut self) {
        assert!(self.peers.is_empty() && self.relay.is_none());
        self.relay = Some(Relay { db: 0, is_up: false, is_doubtful: false });
    }

    /// The database that is selected where the stream stands, of a dataset that was loaded from a file.
    pub fn set_stream_db(&mut self, db: u16) {
        if let Some(relay) = &mut self.relay {
            relay.db = db;
        }
    }

    /// Whether these words of a `PSYNC` are our master's, which wants this node in its place: it becomes a master first, and
    /// then answers them without their `FAILOVER`.
    pub fn is_asked_to_take_over(&self, words: &[&[u8]]) -> bool {
        let master = Master {
            ids: &self.ids,
            log: &self.log,
            upstream: self.upstream(),
            is_failing_over: false,
            is_protected: false,
            has_pending_output: false,
        };
        Replica::default().psync(words, &master) == Sync::Promote
    }

    /// The database selected at the log's end; None: the dataset belongs to no history.
    pub(super) fn history_db(&self) -> Option<u16> {
        match &self.relay {
            // A master selects the database anew behind a cut; what is relayed cannot be added to.
            None => Some(0),
            Some(relay) => (!relay.is_doubtful).then_some(relay.db),
        }
        .filter(|_| self.log.is_active())
    }

    /// Whether a history is the one that this node is on, or was on before.
    pub fn knows(&self, id: ReplId) -> bool {
        self.ids.is_ours(id, 0)
    }

    /// The link to the master came up, or went down.
    pub fn set_link(&mut self, is_up: bool) {
        if let Some(relay) = &mut self.relay {
            relay.is_up = is_up;
        }
    }

    pub(super) fn upstream(&self) -> Upstream {
        match &self.relay {
            None => Upstream::None,
            Some(Relay { is_up: true, .. }) => Upstream::Connected,
            Some(_) => Upstream::NotConnected,
        }
    }

    /// The stream goes on with these pieces, behind which the offset is `end_offset` and database `db` is selected. Trim the
    /// log afterwards.
    ///
    /// # Panics
    /// If they do not follow what is in the log: a stream with a gap must not leave the node.
    pub fn relay(&mut self, pieces: impl IntoIterator<Item = Bytes>, end_offset: u64, db: u16) {
        let relay = self.relay.as_mut().expect("only a replica relays");
        relay.db = db;
        for piece in pieces {
            self.log.append(piece);
        }
        assert_eq!(self.log.end_offset(), end_offset, "a gap in the stream");
    }

    /// The master goes on with our history, under this id from the log's end on.
    pub fn continue_as(&mut self, id: ReplId) {
        assert!(self.relay.is_some() && self.log.is_active(), "a position was asked to be continued");
        self.confirm_dataset();
        if id != self.ids.current() {
            self.ids.adopt(id, self.log.end_offset());
            self.close_replicas("the history goes on under another id");
        }
    }

    /// A full sync replaced the dataset: it is that of history `id` at `offset` now, where database `db` is selected.
    /// Whoever followed this node was on another one.
    pub fn replace_history(&mut self, id: ReplId, offset: u64, db: u16) {
        self.close_replicas("the dataset was replaced by a full synchronization");
        for peer in self.peers.values_mut() {
            // What is being sent to it is the ring's; nothing more will be.
            peer.stream_in_flight = 0;
            if let Some(reader) = peer.reader.take() {
                self.log.remove_reader(reader);
            }
        }
        // The slices of a snapshot in the making are gone, whoever wants it.
        if self.snapshot.as_ref().is_some_and(|snapshot| snapshot.is_cut) {
            self.abort_snapshot();
        }
        self.confirm_dataset();
        self.ids.replace(id);
        self.log.reset(offset);
        self.merge.forget_idle();
        self.log.activate();
        if let Some(relay) = &mut self.relay {
            relay.db = db;
            relay.is_doubtful = false;
        }
    }

    /// A replica's dataset is not what its history says, until another replaces it: a snapshot of it names no history, and
    /// nobody is handed it as the dataset at that offset.
    pub fn distrust_dataset(&mut self) {
        if let Some(relay) = &mut self.relay {
            relay.is_doubtful = true;
            self.close_replicas("the dataset is given up for another");
        }
    }

    /// The dataset is not what its history says: nobody may go on from here.
    pub fn abandon_history(&mut self) {
        let id = ReplId::random(&mut self.rng);
        self.replace_history(id, self.log.end_offset(), 0);
    }

    /// Closes the connections of all replicas, which will ask again. They are sent nothing more.
    fn close_replicas(&mut self, why: &str) {
        for (id, peer) in self.peers.iter_mut().filter(|(_, peer)| !peer.is_closing) {
            peer.is_closing = true;
            self.acks.remove_replica(*id);
            self.sharing.cancel(*id);
            self.actions.push(Action::Close { replica: *id, why: why.into() });
        }
        if let Some(snapshot) = &mut self.snapshot {
            snapshot.members.clear();
        }
        if let Some((_, members)) = &mut self.finishing {
            // Its file may be of a dataset that is gone.
            members.clear();
            self.sharing.close();
        }
        self.drop_unwanted_snapshot();
    }
}
