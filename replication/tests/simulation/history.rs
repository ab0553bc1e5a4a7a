//! What every history of the stream is, as its masters wrote it: its bytes, and the keyspace behind each of its items. Whoever
//! is on a history, at whatever process, is compared with that, byte for byte (law 6) and key for key (laws 5 and 7).

use crate::check::{Era, Witness, assert_same, check_replies, show_op};
use crate::env::Env;
use crate::hub::Capture;
use crate::model::State;
use crate::process::Process;
use crate::stream::{Item, items_in};
use braid_replication::ids::ReplId;
use std::collections::BTreeMap;

/// One history.
#[derive(Clone, Default)]
struct Track {
    /// Offset before the first byte that is known.
    start: u64,
    bytes: Vec<u8>,
    /// The bytes change the keyspace.
    has_effects: bool,
    /// Offset from which on the keyspace is known.
    known_from: Option<u64>,
    items: Vec<Item>,
    /// The keyspace there, and behind each item.
    states: Vec<State>,
    /// The database that is selected at the end.
    db: Option<u16>,
}

impl Track {
    fn from(start: u64) -> Self {
        Self { start, ..Self::default() }
    }

    fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }

    fn extend(&mut self, bytes: &[u8]) {
        let items = items_in(bytes, self.end(), &mut self.db);
        self.bytes.extend_from_slice(bytes);
        self.has_effects |= !items.is_empty();
        if self.known_from.is_some() {
            for item in items {
                self.states.push(item.after(self.states.last().expect("the first")));
                self.items.push(item);
            }
        }
    }

    /// The keyspace from `offset` on, up to the end, is this.
    fn know(&mut self, offset: u64, state: State) {
        self.known_from = Some(offset);
        self.items.clear();
        self.states = vec![state];
    }

    fn index_at(&self, offset: u64) -> Option<usize> {
        let is_known = self.known_from.is_some_and(|from| from <= offset) && offset <= self.end();
        is_known.then(|| self.items.partition_point(|item| item.end <= offset))
    }

    fn state_at(&self, offset: u64) -> Option<&State> {
        self.index_at(offset).map(|index| &self.states[index])
    }

    /// A history that goes its own way after `offset`.
    fn branch(&self, offset: u64) -> Self {
        assert!(offset <= self.end(), "law 6: a history branches off where its former one never was");
        let mut branch = self.clone();
        branch.bytes.truncate(offset.saturating_sub(self.start) as usize);
        // Who branches off selects its database anew.
        branch.db = None;
        match self.index_at(offset) {
            Some(index) => {
                branch.items.truncate(index);
                branch.states.truncate(index + 1);
            }
            None => branch = Self::from(offset),
        }
        branch
    }

    /// The bytes from `from` on that are known, with the offset they begin at.
    fn known(&self, from: u64, to: u64) -> (u64, &[u8]) {
        let (from, to) = (from.max(self.start).min(self.end()), to.min(self.end()));
        (from, &self.bytes[(from - self.start) as usize..(to.max(from) - self.start) as usize])
    }
}

/// What one process is on, since its dataset was last replaced.
struct Stretch {
    id: ReplId,
    start: u64,
    end: u64,
    opened: u64,
    /// Since when every operation is in the stream; None: it is not known yet.
    activated: Option<u64>,
    epochs: BTreeMap<u64, u64>,
    was_replica: bool,
}

/// See the module.
#[derive(Default)]
pub struct Histories {
    tracks: BTreeMap<String, Track>,
    /// By process.
    stretches: BTreeMap<usize, Stretch>,
    /// How much was compared.
    pub compared: Compared,
}

/// What was compared in a run.
#[derive(Debug, Default, Clone, Copy)]
pub struct Compared {
    /// Datasets of replicas, each with the stream up to there.
    pub replicas: u64,
    /// Datasets of masters.
    pub masters: u64,
    /// Bytes that replicas passed on.
    pub relayed_bytes: u64,
    /// Operations for which there is a point in the stream; on masters and replicas, and of these on replicas.
    pub ops: u64,
    pub replica_ops: u64,
    pub acks: u64,
}

impl std::ops::AddAssign for Compared {
    fn add_assign(&mut self, other: Self) {
        self.replicas += other.replicas;
        self.masters += other.masters;
        self.relayed_bytes += other.relayed_bytes;
        self.ops += other.ops;
        self.replica_ops += other.replica_ops;
        self.acks += other.acks;
    }
}

impl Compared {
    /// Enough for a run of many seeds to mean something.
    pub fn is_plenty(&self) -> bool {
        let Self { replicas, masters, relayed_bytes, ops, replica_ops, acks } = *self;
        [replicas, masters, relayed_bytes, ops, replica_ops, acks].iter().all(|count| *count > 1000)
    }
}

impl Histories {
    /// A process's log has changed.
    pub fn observe(&mut self, env: &Env, process: usize, capture: Capture) {
        let Capture {
            id,
            former,
            is_replica,
            has_reset,
            start,
            bytes,
            cut,
            doubtful_since,
            has_stopped,
            moment,
        } = capture;
        if env.is_loud {
            let what = if has_stopped {
                "stops"
            } else if has_reset {
                "begins"
            } else {
                "goes on"
            };
            let role = if is_replica { "replica" } else { "master" };
            eprintln!(
                "at {moment}: process {process}, {role}, {what} at {id}:{start}: {} {}",
                bytes.escape_ascii(),
                if cut.is_some() { "cut" } else { "" }
            );
        }
        if has_stopped {
            return self.close(env, process, doubtful_since.unwrap_or(moment));
        }
        let name = id.to_string();
        let is_new = !self.tracks.contains_key(&name);
        if is_new {
            let from = former.and_then(|(former, fork)| Some((self.tracks.get(former.as_str())?, fork)));
            let track = match from {
                // As a replica it would have been told of it by a master.
                Some((former, fork)) if !is_replica => former.branch(fork),
                _ => Track::from(start),
            };
            self.tracks.insert(name.clone(), track);
        }
        let was_master = self.stretches.get(&process).is_some_and(|stretch| !stretch.was_replica);
        let track = self.tracks.get_mut(&name).expect("just made");
        let end = start + bytes.len() as u64;
        let (from, known) = track.known(start, end);
        let own = bytes.get((from.saturating_sub(start)) as usize..).unwrap_or_default();
        assert!(
            own.len() >= known.len() && own[..known.len()] == *known,
            "law 6: process {process} has other bytes at {id}:{from}: {} and not {}",
            own.escape_ascii(),
            known.escape_ascii()
        );
        if is_replica {
            self.compared.relayed_bytes += known.len() as u64;
        }
        if end > track.end() {
            assert!(
                !is_replica || was_master || is_new,
                "law 6: process {process} is at {end} of {id}, which ends at {}",
                track.end()
            );
            assert!(track.end() >= start, "law 6: a gap in {id}");
            let new = &own[known.len()..];
            track.extend(new);
        }
        if let Some(cut) = cut
            && !is_replica
            && track.known_from.is_none()
            && !track.has_effects
        {
            track.know(track.start, cut);
        }
        // Of a history that began with this cut the dataset is known.
        let is_known = track.state_at(end).is_some();
        // A history that branched off this one has its beginning.
        let state_of = |id: &ReplId, offset| self.tracks[id.as_str()].state_at(offset);
        let goes_on = !has_reset
            && self.stretches.get(&process).is_some_and(|Stretch { id: before, start, .. }| {
                let state = state_of(&id, *start);
                *before == id || (state.is_some() && state == state_of(before, *start))
            });
        if !goes_on {
            self.close(env, process, doubtful_since.unwrap_or(moment));
            self.stretches.insert(
                process,
                Stretch {
                    id,
                    start,
                    end,
                    opened: moment,
                    activated: None,
                    epochs: BTreeMap::from([(start, moment)]),
                    was_replica: is_replica,
                },
            );
        }
        let stretch = self.stretches.get_mut(&process).expect("just made");
        stretch.id = id;
        stretch.end = end;
        stretch.was_replica = is_replica;
        stretch.epochs.entry(end).or_insert(moment);
        if is_known {
            stretch.activated.get_or_insert(moment);
        }
    }

    /// A process's dataset is another one, or gone: what it answered before `moment` is judged.
    pub fn close(&mut self, env: &Env, process: usize, moment: u64) {
        let Some(stretch) = self.stretches.remove(&process) else { return };
        let Some(activated) = stretch.activated else { return };
        let track = &self.tracks[stretch.id.as_str()];
        let start = stretch.start.max(track.known_from.unwrap_or(u64::MAX));
        let (Some(first), Some(last)) = (track.index_at(start), track.index_at(stretch.end)) else { return };
        let is_in = |index: &usize| {
            let op = &env.ops[*index];
            // A replica may not have applied the stream up to where its states are known.
            let is_known = start == stretch.start || !op.may_be_replicas() || op.floor >= start;
            let is_within = op.sent > stretch.opened && op.replied.is_some_and(|at| at <= moment);
            op.process == process && is_known && is_within
        };
        let ops: Vec<usize> = (0..env.ops.len()).filter(is_in).collect();
        self.compared.ops += ops.len() as u64;
        self.compared.replica_ops += ops.iter().filter(|op| env.ops[**op].is_replicas()).count() as u64;
        let witness =
            Witness::new(track.items[first..last].to_vec(), track.states[first..=last].to_vec(), env);
        if env.is_loud {
            witness.print();
            ops.iter().for_each(|op| eprintln!("operation {op}: {}", show_op(&env.ops[*op])));
        }
        check_replies(env, &witness, &Era { ops, activated, epochs: stretch.epochs });
    }

    /// What a process holds must be what its offset says, if it can be read as a whole now.
    pub fn check_dataset(&mut self, env: &Env, process: &mut Process) {
        let hub = process.hub();
        if !hub.follower.is_idle() || hub.home.is_doubtful() {
            return;
        }
        let (is_replica, applied) = (hub.home.is_replica(), hub.follower.applied_offset());
        let Some(position) = hub.home.position() else { return };
        if !is_replica && !process.is_streamed() {
            return;
        }
        assert!(!is_replica || applied <= position.offset, "law 7: applied beyond the log");
        let Some(whole) = process.whole() else { return };
        let Some(track) = self.tracks.get_mut(position.id.as_str()) else { return };
        let what = format!(
            "law {}: process {} at {}:{}",
            if is_replica { "5 or 7" } else { "4" },
            process.incarnation,
            position.id,
            position.offset
        );
        match track.state_at(position.offset) {
            Some(state) => {
                assert_same(state, &whole, &what);
                let count = if is_replica { &mut self.compared.replicas } else { &mut self.compared.masters };
                *count += 1;
            }
            None if !is_replica && track.end() == position.offset => {
                track.know(position.offset, whole);
                if let Some(stretch) = self.stretches.get_mut(&process.incarnation) {
                    stretch.activated = Some(env.clock);
                }
            }
            None => {}
        }
    }

    /// What a replica acknowledged was applied by every shard.
    pub fn check_ack(&mut self, process: &mut Process) {
        let hub = process.hub();
        let Some(ack) = hub.acked.take() else { return };
        let is_settled = !hub.home.is_doubtful() && !hub.follower.is_swapping();
        let Some(position) = hub.home.position().filter(|_| is_settled) else { return };
        assert!(ack <= position.offset, "law 7: {ack} acknowledged, {} received", position.offset);
        let Some(track) = self.tracks.get(position.id.as_str()) else { return };
        let (Some(first), Some(last)) = (track.index_at(ack), track.index_at(position.offset)) else {
            return;
        };
        self.compared.acks += 1;
        for shard in 0..process.shards() {
            let Some(part) = process.part(shard) else { continue };
            let has = |index: usize| process.own_part(shard, &track.states[index]) == part;
            if !(first..=last).any(has) {
                let what = format!(
                    "law 7: process {} acknowledged {ack} of {}, which shard {shard} has not applied",
                    process.incarnation, position.id
                );
                assert_same(&process.own_part(shard, &track.states[first]), &part, &what);
            }
        }
    }
}
