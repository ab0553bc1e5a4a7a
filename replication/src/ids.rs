//! Replication ids: which history a dataset belongs to.

use crate::hex::{HEX_LEN, Hex};

/// The id of one replication history.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ReplId(Hex);

impl ReplId {
    /// A fresh one.
    pub fn random(rng: &mut fastrand::Rng) -> Self {
        ReplId(Hex::random(rng))
    }

    /// From the wire: 40 hex digits of either case.
    pub fn parse(text: &[u8]) -> Option<Self> {
        Hex::parse(text).map(ReplId)
    }

    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl std::fmt::Display for ReplId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::fmt::Debug for ReplId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The history a node is on, and the one it was on before: up to the fork they are the same bytes, so a replica that
/// followed the former and did not pass the fork continues on the latter.
#[derive(Clone, Debug)]
pub struct Ids {
    current: ReplId,
    former: Option<(ReplId, u64)>,
}

impl Ids {
    /// A node that starts a history.
    pub fn new(rng: &mut fastrand::Rng) -> Self {
        Ids { current: ReplId::random(rng), former: None }
    }

    /// `master_replid`.
    pub fn current(&self) -> ReplId {
        self.current
    }

    /// `master_replid2` as INFO prints it: zeros if there is none.
    pub fn former_text(&self) -> String {
        self.former.map_or_else(|| "0".repeat(HEX_LEN), |(id, _)| id.to_string())
    }

    /// `second_repl_offset`: the first byte, counted from 1, that the two histories do not share; -1 if there is no
    /// former one.
    pub fn fork_byte(&self) -> i64 {
        self.former.map_or(-1, |(_, byte)| byte as i64)
    }

    /// A replica is promoted after `end_offset` bytes: a new history begins, its siblings continue partially.
    pub fn promote(&mut self, end_offset: u64, rng: &mut fastrand::Rng) {
        self.adopt(ReplId::random(rng), end_offset);
    }

    /// The master continued our stream under a new id (`+CONTINUE id`) after the `end_offset` bytes we have.
    pub fn adopt(&mut self, id: ReplId, end_offset: u64) {
        if id != self.current {
            self.former = Some((self.current, end_offset + 1));
            self.current = id;
        }
    }

    /// A full sync put us on the history of `id`; what was before is gone.
    pub fn replace(&mut self, id: ReplId) {
        self.current = id;
        self.former = None;
    }

    /// The log was dropped, so that nothing can be continued: who comes later must not take the next stream, at the
    /// same offsets, for the old one.
    pub fn renew(&mut self, rng: &mut fastrand::Rng) {
        self.replace(ReplId::random(rng));
    }

    /// Whether someone on history `id` who wants `next_byte` (counted from 1) next is on ours. Whether the log still has
    /// that byte is another question.
    pub fn is_ours(&self, id: ReplId, next_byte: u64) -> bool {
        id == self.current || self.former.is_some_and(|(former, fork)| id == former && next_byte <= fork)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relay_siblings_of_a_promoted_replica_continue_up_to_the_fork_and_not_beyond() {
        let mut rng = fastrand::Rng::with_seed(1);
        let mut ids = Ids::new(&mut rng);
        assert_eq!((ids.former_text(), ids.fork_byte()), ("0".repeat(40), -1));
        let old = ids.current();
        ids.promote(100, &mut rng);
        assert_ne!(ids.current(), old);
        assert_eq!((ids.former_text(), ids.fork_byte()), (old.to_string(), 101));
        // 100 bytes are shared, so byte 101 may be the next one wanted.
        assert!(ids.is_ours(old, 101));
        assert!(!ids.is_ours(old, 102));
        assert!(ids.is_ours(ids.current(), 102));
        assert!(!ids.is_ours(ReplId::random(&mut rng), 50));
    }

    #[test]
    fn the_same_id_again_is_no_fork_and_a_full_sync_forgets_the_former() {
        let mut rng = fastrand::Rng::with_seed(2);
        let mut ids = Ids::new(&mut rng);
        ids.adopt(ids.current(), 7);
        assert_eq!(ids.fork_byte(), -1);
        let old = ids.current();
        ids.promote(7, &mut rng);
        ids.replace(ReplId::random(&mut rng));
        assert!(!ids.is_ours(old, 1));
    }

    #[test]
    fn ids_are_forty_hex_digits_of_either_case() {
        let id = ReplId::random(&mut fastrand::Rng::with_seed(3));
        assert_eq!(ReplId::parse(id.as_str().to_uppercase().as_bytes()), Some(id));
        assert_eq!(ReplId::parse(&id.as_str().as_bytes()[1..]), None);
        assert_eq!(ReplId::parse(&[b'g'; 40]), None);
        assert_eq!(ReplId::parse(b"?"), None);
    }
}
