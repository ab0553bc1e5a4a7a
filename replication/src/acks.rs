//! What the replicas have acknowledged, and who waits for it (`WAIT`, `min-replicas-to-write`).

use std::collections::BTreeMap;

/// Names a replica among those of this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplicaId(pub u64);

/// Names a blocked `WAIT`, chosen by the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WaiterId(pub u64);

/// The last word of one replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Acked {
    /// Bytes of the stream it has applied.
    pub offset: u64,
    /// Bytes it has made durable (`FACK`), 0 if it never said.
    pub durable_offset: u64,
    /// When it last spoke.
    pub at_ms: u64,
}

/// An answer to `WAIT` or `WAITAOF`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resolved {
    pub waiter: WaiterId,
    /// How many replicas have acknowledged the offset.
    pub replicas: usize,
    pub level: Level,
}

/// What an acknowledgement says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Level {
    /// The stream was applied (`WAIT`).
    #[default]
    Applied,
    /// It was made durable, too (`WAITAOF`).
    Durable,
}

impl Acked {
    /// Seconds since the replica last spoke (`lag` in INFO).
    pub fn lag_s(&self, now_ms: u64) -> u64 {
        now_ms.saturating_sub(self.at_ms) / 1000
    }

    fn offset_at(&self, level: Level) -> u64 {
        match level {
            Level::Applied => self.offset,
            Level::Durable => self.durable_offset,
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Waiter {
    level: Level,
    offset: u64,
    replicas_wanted: usize,
    /// `None`: for ever.
    deadline_ms: Option<u64>,
}

/// See the module. Holds online replicas only: who still receives a snapshot has acknowledged nothing.
#[derive(Default)]
pub struct Acks {
    replicas: BTreeMap<ReplicaId, Acked>,
    waiters: BTreeMap<WaiterId, Waiter>,
}

impl Acks {
    /// A replica is online. It counts as having spoken now.
    pub fn add_replica(&mut self, id: ReplicaId, now_ms: u64) {
        self.replicas.insert(id, Acked { offset: 0, durable_offset: 0, at_ms: now_ms });
    }

    /// A replica is gone. Waiters go on waiting: another may take its place.
    pub fn remove_replica(&mut self, id: ReplicaId) {
        self.replicas.remove(&id);
    }

    /// `REPLCONF ACK offset [FACK durable_offset]`. Appends the waiters it releases to `resolved`. Offsets never go
    /// back, as in Redis. A replica that is not online is ignored.
    pub fn ack(
        &mut self,
        id: ReplicaId,
        offset: u64,
        durable_offset: Option<u64>,
        now_ms: u64,
        resolved: &mut Vec<Resolved>,
    ) {
        let Some(acked) = self.replicas.get_mut(&id) else { return };
        acked.at_ms = now_ms;
        let before = *acked;
        acked.durable_offset = acked.durable_offset.max(durable_offset.unwrap_or(0));
        acked.offset = acked.offset.max(offset);
        if (acked.offset, acked.durable_offset) != (before.offset, before.durable_offset) {
            self.resolve(|_| false, resolved);
        }
    }

    /// What a replica last acknowledged.
    pub fn acked(&self, id: ReplicaId) -> Option<Acked> {
        self.replicas.get(&id).copied()
    }

    /// How many replicas have applied the stream up to `offset`, or made it durable.
    pub fn count(&self, offset: u64, level: Level) -> usize {
        self.replicas.values().filter(|acked| acked.offset_at(level) >= offset).count()
    }

    /// Replicas that spoke within the last `max_lag_s` seconds (`min-replicas-max-lag`): writes are accepted while
    /// these are at least `min-replicas-to-write`.
    pub fn good_replicas(&self, max_lag_s: u64, now_ms: u64) -> usize {
        self.replicas.values().filter(|acked| acked.lag_s(now_ms) <= max_lag_s).count()
    }

    /// `WAIT replicas_wanted timeout` of a client whose last write ends at `offset`. Answers at once if it is so
    /// already; otherwise the waiter is kept until [`Acks::ack`] or [`Acks::expire`] resolves it, and the caller puts
    /// `GETACK` into the stream. `deadline_ms`: `None` waits for ever (a timeout of 0).
    ///
    /// # Panics
    /// If the waiter waits already.
    pub fn wait(
        &mut self,
        waiter: WaiterId,
        offset: u64,
        replicas_wanted: usize,
        deadline_ms: Option<u64>,
        level: Level,
    ) -> Option<usize> {
        let replicas = self.count(offset, level);
        if replicas >= replicas_wanted {
            return Some(replicas);
        }
        let before = self.waiters.insert(waiter, Waiter { level, offset, replicas_wanted, deadline_ms });
        assert!(before.is_none(), "{waiter:?} waits already");
        None
    }

    /// The client is gone or was unblocked. Returns what it got to, if it was still waiting.
    pub fn cancel(&mut self, waiter: WaiterId) -> Option<Resolved> {
        let Waiter { level, offset, .. } = self.waiters.remove(&waiter)?;
        Some(Resolved { waiter, replicas: self.count(offset, level), level })
    }

    /// Nobody waits any more: what is acknowledged from now on may be of another history. Returns who did.
    pub fn let_all_go(&mut self) -> Vec<WaiterId> {
        std::mem::take(&mut self.waiters).into_keys().collect()
    }

    /// Releases whose time is over, with the count they got to.
    pub fn expire(&mut self, now_ms: u64, resolved: &mut Vec<Resolved>) {
        self.resolve(|waiter| waiter.deadline_ms.is_some_and(|deadline_ms| deadline_ms <= now_ms), resolved);
    }

    /// When [`Acks::expire`] has something to do.
    pub fn next_deadline_ms(&self) -> Option<u64> {
        self.waiters.values().filter_map(|waiter| waiter.deadline_ms).min()
    }

    /// Whether anybody waits for acknowledgements.
    pub fn has_waiters(&self) -> bool {
        !self.waiters.is_empty()
    }

    fn resolve(&mut self, is_over: impl Fn(&Waiter) -> bool, resolved: &mut Vec<Resolved>) {
        let replicas_by_offset = &self.replicas;
        self.waiters.retain(|id, waiter| {
            let level = waiter.level;
            let has_it = |acked: &&Acked| acked.offset_at(level) >= waiter.offset;
            let replicas = replicas_by_offset.values().filter(has_it).count();
            let stays = replicas < waiter.replicas_wanted && !is_over(waiter);
            if !stays {
                resolved.push(Resolved { waiter: *id, replicas, level });
            }
            stays
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn applied_not_received_wait_counts_acknowledged_replicas_only() {
        let mut acks = Acks::default();
        let mut resolved = Vec::new();
        acks.add_replica(ReplicaId(1), 0);
        acks.add_replica(ReplicaId(2), 0);
        assert_eq!(acks.wait(WaiterId(1), 100, 0, None, Level::Applied), Some(0));
        assert_eq!(acks.wait(WaiterId(1), 100, 1, Some(50), Level::Applied), None);
        assert_eq!(acks.wait(WaiterId(2), 100, 2, None, Level::Applied), None);
        acks.ack(ReplicaId(1), 99, None, 10, &mut resolved);
        assert!(resolved.is_empty(), "one byte short");
        acks.ack(ReplicaId(1), 100, None, 11, &mut resolved);
        assert_eq!(resolved, [Resolved { waiter: WaiterId(1), replicas: 1, level: Level::Applied }]);
        acks.ack(ReplicaId(1), 5, None, 12, &mut resolved);
        assert_eq!(acks.count(100, Level::Applied), 1, "an offset does not go back");
        acks.ack(ReplicaId(9), 500, None, 12, &mut resolved);
        assert_eq!(acks.count(100, Level::Applied), 1, "not a replica that is online");
        acks.ack(ReplicaId(2), 101, Some(7), 13, &mut resolved);
        assert_eq!(resolved[1..], [Resolved { waiter: WaiterId(2), replicas: 2, level: Level::Applied }]);
        assert!(!acks.has_waiters());
        assert_eq!((acks.count(7, Level::Durable), acks.count(8, Level::Durable)), (1, 0));
        assert_eq!(acks.wait(WaiterId(3), 100, 2, None, Level::Applied), Some(2));
    }

    #[test]
    fn wait_is_over_at_its_deadline_with_what_it_got() {
        let mut acks = Acks::default();
        let mut resolved = Vec::new();
        acks.add_replica(ReplicaId(1), 0);
        acks.ack(ReplicaId(1), 100, None, 0, &mut resolved);
        assert_eq!(acks.wait(WaiterId(1), 100, 2, Some(50), Level::Applied), None);
        assert_eq!(acks.wait(WaiterId(2), 200, 2, Some(60), Level::Applied), None);
        assert_eq!(acks.wait(WaiterId(3), 200, 2, None, Level::Applied), None);
        assert_eq!(acks.next_deadline_ms(), Some(50));
        acks.expire(49, &mut resolved);
        assert!(resolved.is_empty());
        acks.expire(50, &mut resolved);
        acks.expire(1000, &mut resolved);
        assert_eq!(
            resolved,
            [
                Resolved { waiter: WaiterId(1), replicas: 1, level: Level::Applied },
                Resolved { waiter: WaiterId(2), replicas: 0, level: Level::Applied }
            ]
        );
        acks.cancel(WaiterId(3));
        assert!(!acks.has_waiters());
    }

    #[test]
    fn who_waits_for_durability_is_not_content_with_less() {
        let mut acks = Acks::default();
        let mut resolved = Vec::new();
        acks.add_replica(ReplicaId(1), 0);
        assert_eq!(acks.wait(WaiterId(1), 100, 1, None, Level::Durable), None);
        acks.ack(ReplicaId(1), 100, Some(99), 1, &mut resolved);
        assert!(resolved.is_empty());
        // The applied offset is the same.
        acks.ack(ReplicaId(1), 100, Some(100), 2, &mut resolved);
        assert_eq!(resolved, [Resolved { waiter: WaiterId(1), replicas: 1, level: Level::Durable }]);
    }

    #[test]
    fn a_replica_is_good_while_its_lag_is_small() {
        let mut acks = Acks::default();
        acks.add_replica(ReplicaId(1), 1000);
        acks.add_replica(ReplicaId(2), 5000);
        assert_eq!(acks.good_replicas(10, 11_999), 2);
        assert_eq!(acks.good_replicas(10, 12_000), 1);
        assert_eq!(acks.acked(ReplicaId(1)).map(|acked| acked.lag_s(12_000)), Some(11));
        acks.remove_replica(ReplicaId(2));
        assert_eq!(acks.good_replicas(10, 12_000), 0);
    }

    #[test]
    fn random_waits_end_as_in_a_model() {
        let mut rng = fastrand::Rng::with_seed(5);
        let mut acks = Acks::default();
        let mut offsets = [0u64; 4];
        (0..4).for_each(|i| acks.add_replica(ReplicaId(i), 0));
        let mut waiting: Vec<(WaiterId, u64, usize, u64)> = Vec::new();
        for now_ms in 0..5000 {
            let mut resolved = Vec::new();
            match rng.u8(..3) {
                0 => {
                    let (offset, wanted) = (rng.u64(..1500), rng.usize(1..5));
                    let deadline_ms = now_ms + rng.u64(1..200);
                    let count = offsets.iter().filter(|acked| **acked >= offset).count();
                    let id = WaiterId(now_ms);
                    let answer = acks.wait(id, offset, wanted, Some(deadline_ms), Level::Applied);
                    assert_eq!(answer, (count >= wanted).then_some(count));
                    if answer.is_none() {
                        waiting.push((id, offset, wanted, deadline_ms));
                    }
                }
                1 => {
                    let (replica, offset) = (rng.usize(..4), rng.u64(..now_ms / 4 + 1));
                    offsets[replica] = offsets[replica].max(offset);
                    acks.ack(ReplicaId(replica as u64), offset, None, now_ms, &mut resolved);
                }
                _ => {}
            }
            acks.expire(now_ms, &mut resolved);
            let mut expected = Vec::new();
            waiting.retain(|(waiter, offset, wanted, deadline_ms)| {
                let replicas = offsets.iter().filter(|acked| *acked >= offset).count();
                let is_over = replicas >= *wanted || *deadline_ms <= now_ms;
                if is_over {
                    expected.push(Resolved { waiter: *waiter, replicas, level: Level::Applied });
                }
                !is_over
            });
            resolved.sort_by_key(|resolved| resolved.waiter);
            assert_eq!(resolved, expected);
        }
    }
}
