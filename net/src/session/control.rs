//! What one shard asks of another about connections and the server (never about keys), and the pause of all clients.

use crate::disk::Told;
use crate::engine::{Asker, Ending};
use crate::startup::signals::Stop;
use braid_replication::follower::RoleRequest;
use braid_shards::ConnId;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// A request to a shard, carried out in its next tick.
pub enum Order {
    /// Close a connection at once.
    Close(ConnId),
    /// The reply of a command that another thread carried out.
    Answer(ConnId, Vec<u8>),
    /// `CLIENT UNBLOCK`. `error`: it is told so instead of what its command got to.
    Unblock { conn: ConnId, error: bool },
    /// `DEBUG SLEEP`.
    SleepUntil(Instant),
    /// `DEBUG SET-ACTIVE-EXPIRE`.
    ActiveExpire(bool),
    /// Home: write the snapshot that was admitted, and answer who asks.
    Save(Option<Asker>),
    /// Home: end the process, and answer who asks if it does not.
    End(Ending, Option<Asker>),
    /// Home: the process was sent a signal to end.
    Signalled(Stop),
    /// Home: `SHUTDOWN ABORT`.
    AbortEnd(Asker),
    /// Home: a snapshot's file has something to tell.
    File(u64, Told),
    /// Home: the file of the snapshot that is being received has something to tell.
    Spooled(u64, Told),
    /// Home: a step with the part of the stream that is on disk was carried out.
    Spilled(braid_replication::log::spill::Told),
    /// Look whether there is something to do.
    Look,
    /// `REPLICAOF`, for the home shard.
    Role(RoleRequest),
    /// What the system's resolver says about the master's name.
    LookedUp { lookup: u64, found: Result<SocketAddr, String> },
    /// `MEMORY PURGE`.
    Purge,
    /// Listen on these sockets from now on, and no longer on the TCP ports so far.
    Listen(Vec<OwnedFd>),
}

/// The orders that a shard has yet to carry out.
#[derive(Default)]
pub struct Orders {
    any: AtomicBool,
    list: Mutex<Vec<Order>>,
}

impl Orders {
    /// Adds an order. The caller wakes the shard.
    pub fn push(&self, order: Order) {
        self.list.lock().unwrap_or_else(PoisonError::into_inner).push(order);
        self.any.store(true, Ordering::Release);
    }

    /// Whether there are any: one load.
    #[inline]
    pub fn any(&self) -> bool {
        self.any.load(Ordering::Acquire)
    }

    pub fn take(&self) -> Vec<Order> {
        // First the mark: an order that comes between is taken now and finds an empty list next time.
        self.any.store(false, Ordering::Release);
        std::mem::take(&mut *self.list.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What a pause holds back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum PauseMode {
    Write,
    All,
}

/// The end of a pause that lasts until [`Pause::end`].
pub const UNTIL_ENDED_MS: u64 = u64::MAX;

/// Who pauses clients. The pauses of one end nobody else's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PausePurpose {
    /// `CLIENT PAUSE`, until `CLIENT UNPAUSE`.
    Client,
    Failover,
    Shutdown,
}

/// Pauses of clients, one for each purpose. Times are milliseconds of the node's own clock.
#[derive(Default)]
pub struct Pause {
    purposes: [PauseOf; 3],
}

/// The pause of one purpose.
#[derive(Default)]
struct PauseOf {
    /// 0: none, 1: writes, 2: everything.
    mode: AtomicU8,
    end_ms: AtomicU64,
}

impl PauseOf {
    fn mode(&self) -> Option<PauseMode> {
        match self.mode.load(Ordering::Acquire) {
            0 => None,
            1 => Some(PauseMode::Write),
            _ => Some(PauseMode::All),
        }
    }

    fn mode_at(&self, now_ms: u64) -> Option<PauseMode> {
        self.mode().filter(|_| now_ms < self.end_ms.load(Ordering::Acquire))
    }
}

impl Pause {
    fn of(&self, purpose: PausePurpose) -> &PauseOf {
        &self.purposes[purpose as usize]
    }

    /// Pauses clients until `end_ms`. A pause under way is never made shorter or milder, as in Redis.
    pub fn begin(&self, purpose: PausePurpose, mode: PauseMode, end_ms: u64, now_ms: u64) {
        let pause = self.of(purpose);
        if pause.mode_at(now_ms).is_none() {
            pause.end_ms.store(0, Ordering::Relaxed);
            pause.mode.store(0, Ordering::Relaxed);
        }
        pause.end_ms.fetch_max(end_ms, Ordering::AcqRel);
        pause.mode.fetch_max(mode as u8 + 1, Ordering::AcqRel);
    }

    pub fn end(&self, purpose: PausePurpose) {
        self.of(purpose).mode.store(0, Ordering::Release);
    }

    /// Whether there may be a pause; the cheap question.
    #[inline]
    pub fn is_set(&self) -> bool {
        self.purposes.iter().any(|pause| pause.mode.load(Ordering::Relaxed) != 0)
    }

    /// The strictest mode that was begun and not ended, be its time over or not.
    pub fn mode(&self) -> Option<PauseMode> {
        self.purposes.iter().filter_map(PauseOf::mode).max()
    }

    pub fn mode_at(&self, now_ms: u64) -> Option<PauseMode> {
        self.purposes.iter().filter_map(|pause| pause.mode_at(now_ms)).max()
    }

    /// When the next of the pauses is over.
    pub fn next_end_ms(&self, now_ms: u64) -> Option<u64> {
        let under_way = self.purposes.iter().filter(|pause| pause.mode_at(now_ms).is_some());
        under_way.map(|pause| pause.end_ms.load(Ordering::Acquire)).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_only_extended() {
        const CLIENT: PausePurpose = PausePurpose::Client;
        let pause = Pause::default();
        assert!(!pause.is_set());
        pause.begin(CLIENT, PauseMode::All, 100, 0);
        pause.begin(CLIENT, PauseMode::Write, 50, 10);
        assert_eq!((pause.mode_at(99), pause.mode_at(100)), (Some(PauseMode::All), None));
        // The former one is over: a new one starts afresh.
        pause.begin(CLIENT, PauseMode::Write, 300, 200);
        assert_eq!(pause.mode_at(200), Some(PauseMode::Write));
        pause.begin(CLIENT, PauseMode::All, 250, 210);
        assert_eq!((pause.mode_at(299), pause.next_end_ms(299)), (Some(PauseMode::All), Some(300)));
        pause.end(CLIENT);
        assert_eq!((pause.mode_at(220), pause.next_end_ms(220)), (None, None));
    }

    #[test]
    fn pauses_of_different_purposes_do_not_end_each_other() {
        let pause = Pause::default();
        pause.begin(PausePurpose::Client, PauseMode::All, 100, 0);
        pause.begin(PausePurpose::Failover, PauseMode::Write, u64::MAX, 0);
        assert_eq!((pause.mode_at(99), pause.next_end_ms(99)), (Some(PauseMode::All), Some(100)));
        assert_eq!((pause.mode_at(100), pause.next_end_ms(100)), (Some(PauseMode::Write), Some(u64::MAX)));
        pause.end(PausePurpose::Failover);
        assert_eq!((pause.mode_at(99), pause.mode_at(100)), (Some(PauseMode::All), None));
        pause.begin(PausePurpose::Failover, PauseMode::Write, u64::MAX, 0);
        pause.end(PausePurpose::Client);
        assert_eq!(pause.mode_at(50), Some(PauseMode::Write));
    }

    #[test]
    fn orders_are_taken_once() {
        let orders = Orders::default();
        assert!(!orders.any());
        orders.push(Order::Purge);
        orders.push(Order::Close(ConnId(7)));
        assert!(orders.any());
        assert!(matches!(orders.take().as_slice(), [Order::Purge, Order::Close(ConnId(7))]));
        assert!(!orders.any() && orders.take().is_empty());
    }
}
