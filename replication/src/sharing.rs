//! Which replicas share a snapshot. Those that arrive together get one, and one is made at a time.

use crate::acks::ReplicaId;
use crate::parts::rendezvous::GATHER_MS;
use crate::psync::Needs;

/// `repl-diskless-sync` and what belongs to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Straight from memory to the sockets: nobody can join after the start, so the start waits for others.
    pub is_diskless: bool,
    /// `repl-diskless-sync-delay`.
    pub delay_ms: u64,
    /// `repl-diskless-sync-max-replicas`: start when so many wait. 0: wait for the delay in any case.
    pub max_replicas: usize,
}

impl Default for Policy {
    /// Redis's.
    fn default() -> Self {
        Policy { is_diskless: true, delay_ms: 5000, max_replicas: 0 }
    }
}

/// A replica that needs a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    pub replica: ReplicaId,
    pub needs: Needs,
    /// Reads up to a mark.
    pub can_eof: bool,
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// [`Sharing::poll`] will start a snapshot for it.
    Waits,
    /// It gets the snapshot in the making, cut at this offset.
    Joins { offset: u64 },
}

/// Start a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    pub replicas: Vec<ReplicaId>,
    pub needs: Needs,
    /// Stream it, ended by a mark. Otherwise make a file first and send its length.
    pub is_diskless: bool,
}

struct Waiting {
    request: Request,
    since_ms: u64,
    /// It is about to open further connections for its snapshot.
    gathers: bool,
}

struct Running {
    needs: Needs,
    is_diskless: bool,
    /// Known when the cut is made.
    offset: Option<u64>,
}

/// See the module.
#[derive(Default)]
pub struct Sharing {
    waiting: Vec<Waiting>,
    running: Option<Running>,
}

impl Sharing {
    /// A replica needs a snapshot. `is_kept`: whether the log has what it needs behind this offset, for it to join a snapshot
    /// that was cut there.
    ///
    /// # Panics
    /// If it waits for one already.
    pub fn request(&mut self, request: Request, is_kept: impl FnOnce(u64) -> bool, now_ms: u64) -> Placement {
        assert!(self.waiting.iter().all(|waiting| waiting.request.replica != request.replica));
        if let Some(Running { needs, is_diskless: false, offset: Some(offset) }) = self.running
            && needs == request.needs
            && is_kept(offset)
        {
            return Placement::Joins { offset };
        }
        self.waiting.push(Waiting { request, since_ms: now_ms, gathers: false });
        Placement::Waits
    }

    /// A replica that waits is about to open further connections: that is waited for, for a while.
    pub fn gathers(&mut self, replica: ReplicaId) {
        self.set_gathers(replica, true);
    }

    /// It has done so, or will not.
    pub fn gathered(&mut self, replica: ReplicaId) {
        self.set_gathers(replica, false);
    }

    fn set_gathers(&mut self, replica: ReplicaId, gathers: bool) {
        let its = self.waiting.iter_mut().find(|waiting| waiting.request.replica == replica);
        its.into_iter().for_each(|waiting| waiting.gathers = gathers);
    }

    /// A replica is gone. A snapshot in the making goes on; who makes it decides whether it is worth it.
    pub fn cancel(&mut self, replica: ReplicaId) {
        self.waiting.retain(|waiting| waiting.request.replica != replica);
    }

    /// Starts a snapshot if it is time: for whoever has waited longest and all who want the same.
    pub fn poll(&mut self, policy: Policy, now_ms: u64) -> Option<Start> {
        if self.next_start_ms(policy)? > now_ms {
            return None;
        }
        let needs = self.waiting[0].request.needs;
        let (members, others) =
            std::mem::take(&mut self.waiting).into_iter().partition(|waiting| waiting.request.needs == needs);
        self.waiting = others;
        let members: Vec<Waiting> = members;
        // What is filtered is never made into a file.
        let is_filtered = needs != Needs::default();
        let is_diskless =
            (policy.is_diskless || is_filtered) && members.iter().all(|waiting| waiting.request.can_eof);
        self.running = Some(Running { needs, is_diskless, offset: None });
        let replicas = members.iter().map(|waiting| waiting.request.replica).collect();
        Some(Start { replicas, needs, is_diskless })
    }

    /// When [`Sharing::poll`] starts something, if nobody else comes. `None` while a snapshot is in the making or nobody
    /// waits.
    pub fn next_start_ms(&self, policy: Policy) -> Option<u64> {
        let first = self.waiting.first().filter(|_| self.running.is_none())?;
        let alike = self.waiting.iter().filter(|waiting| waiting.request.needs == first.request.needs);
        let is_full = policy.max_replicas > 0 && alike.clone().count() >= policy.max_replicas;
        let waits_for_others = policy.is_diskless && first.request.can_eof && !is_full;
        let start_ms = first.since_ms + if waits_for_others { policy.delay_ms } else { 0 };
        let gathering = alike.filter(|waiting| waiting.gathers).map(|waiting| waiting.since_ms + GATHER_MS);
        // Who comes late does not hold up the others for ever.
        Some(gathering.max().map_or(start_ms, |end_ms| end_ms.clamp(start_ms, start_ms + GATHER_MS)))
    }

    /// No snapshot is in the making, nor a file for replicas being finished. One to be kept is finished beside the next.
    pub fn is_free(&self) -> bool {
        self.running.is_none()
    }

    /// Keeps the place for a snapshot that is no replica's; nobody joins it. False: another is in the making.
    pub fn try_reserve(&mut self) -> bool {
        let is_free = self.is_free();
        if is_free {
            self.running = Some(Running { needs: Needs::default(), is_diskless: true, offset: None });
        }
        is_free
    }

    /// The snapshot in the making is cut at `offset`.
    pub fn cut(&mut self, offset: u64) {
        self.running.as_mut().expect("a snapshot in the making").offset = Some(offset);
    }

    /// Nobody is to join the snapshot in the making any more.
    pub fn close(&mut self) {
        if let Some(running) = &mut self.running {
            running.offset = None;
        }
    }

    /// The snapshot is done, or failed: the next may start. After it nobody joins.
    pub fn finish(&mut self) {
        assert!(self.running.take().is_some(), "no snapshot in the making");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEPT: fn(u64) -> bool = |_| true;

    fn plain(replica: u64) -> Request {
        Request { replica: ReplicaId(replica), needs: Needs::default(), can_eof: true }
    }

    fn ids(start: &Start) -> Vec<u64> {
        start.replicas.iter().map(|id| id.0).collect()
    }

    #[test]
    fn replicas_that_come_within_the_delay_share_a_snapshot_and_later_ones_get_the_next() {
        let policy = Policy::default();
        let mut sharing = Sharing::default();
        assert_eq!(sharing.next_start_ms(policy), None);
        assert_eq!(sharing.request(plain(1), KEPT, 1000), Placement::Waits);
        sharing.request(plain(2), KEPT, 3000);
        sharing.request(plain(3), KEPT, 3000);
        sharing.cancel(ReplicaId(3));
        assert_eq!(sharing.next_start_ms(policy), Some(6000));
        assert_eq!(sharing.poll(policy, 5999), None);
        let start = sharing.poll(policy, 6000).unwrap();
        assert_eq!((ids(&start), start.is_diskless), (vec![1, 2], true));
        sharing.cut(77);
        assert_eq!(
            sharing.request(plain(4), KEPT, 6001),
            Placement::Waits,
            "a stream under way cannot be joined"
        );
        assert_eq!(sharing.poll(policy, 60_000), None);
        sharing.finish();
        assert_eq!(ids(&sharing.poll(policy, 60_000).unwrap()), [4]);
    }

    #[test]
    fn enough_replicas_do_not_wait() {
        let policy = Policy { max_replicas: 2, ..Policy::default() };
        let mut sharing = Sharing::default();
        sharing.request(plain(1), KEPT, 1000);
        assert_eq!(sharing.poll(policy, 1000), None);
        sharing.request(plain(2), KEPT, 1001);
        assert_eq!(ids(&sharing.poll(policy, 1001).unwrap()), [1, 2]);
    }

    #[test]
    fn a_snapshot_on_disk_starts_at_once_and_can_be_joined() {
        let policy = Policy { is_diskless: false, ..Policy::default() };
        let mut sharing = Sharing::default();
        sharing.request(plain(1), KEPT, 1000);
        assert!(!sharing.poll(policy, 1000).unwrap().is_diskless);
        assert_eq!(sharing.request(plain(2), KEPT, 1001), Placement::Waits, "no cut yet");
        sharing.cut(77);
        assert_eq!(sharing.request(plain(3), KEPT, 1002), Placement::Joins { offset: 77 });
        let lost = |offset| offset != 77;
        assert_eq!(sharing.request(plain(5), lost, 1002), Placement::Waits);
        let filtered = Needs { without_data: true, without_functions: false };
        assert_eq!(sharing.request(Request { needs: filtered, ..plain(4) }, KEPT, 1003), Placement::Waits);
        sharing.finish();
        assert_eq!(ids(&sharing.poll(policy, 1004).unwrap()), [2, 5]);
        sharing.finish();
        let start = sharing.poll(policy, 1005).unwrap();
        assert_eq!((ids(&start), start.needs, start.is_diskless), (vec![4], filtered, true));
    }

    #[test]
    fn who_cannot_read_up_to_a_mark_gets_a_length() {
        let policy = Policy::default();
        let mut sharing = Sharing::default();
        sharing.request(Request { can_eof: false, ..plain(1) }, KEPT, 1000);
        sharing.request(plain(2), KEPT, 1000);
        let start = sharing.poll(policy, 1000).unwrap();
        assert_eq!((ids(&start), start.is_diskless), (vec![1, 2], false));
    }
}
