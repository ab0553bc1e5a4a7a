//! Replication as `INFO` and `ROLE` show it.

use super::Home;

/// A replica's line of `INFO replication` and `ROLE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicaLine {
    pub info: String,
    pub role: Option<[String; 3]>,
}

/// Numbers of `INFO replication`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    pub id: String,
    pub former_id: String,
    pub end_offset: u64,
    pub fork_byte: i64,
    pub is_backlog_active: bool,
    pub backlog_bytes: u64,
    pub first_byte: u64,
    pub histlen_bytes: u64,
    /// Of the stream, what is on disk, and what is in memory; some may be in both.
    pub disk_bytes: u64,
    pub memory_bytes: u64,
    /// What waits in memory for replicas beyond the backlog: of the stream, and of snapshots at the home shard.
    pub waiting_bytes: u64,
    pub replicas: Vec<ReplicaLine>,
    /// What the replicas that are online have acknowledged.
    pub acked_offsets: Vec<u64>,
    /// `master_failover_state`.
    pub failover_state: &'static str,
    /// Replicas of other histories are refused, see [`Home::confirm_dataset`].
    pub is_protected: bool,
    pub full_syncs: u64,
    pub partial_syncs: u64,
    pub refused_partial_syncs: u64,
    /// Of the full syncs, those that went out in parts.
    pub syncs_in_parts: u64,
}

impl Home {
    pub fn replicas(&self) -> usize {
        self.peers.values().filter(|peer| !peer.handshake.is_rdb_only()).count()
    }

    /// The numbers of `INFO replication` and `ROLE`.
    pub fn report(&self, now_ms: u64) -> Report {
        let shown = self.peers.iter().filter(|(_, peer)| !peer.handshake.is_rdb_only());
        Report {
            id: self.ids.current().as_str().to_owned(),
            former_id: self.ids.former_text(),
            end_offset: self.log.end_offset(),
            fork_byte: self.ids.fork_byte(),
            is_backlog_active: self.log.is_active(),
            backlog_bytes: self.log.backlog_bytes(),
            first_byte: self.log.first_byte(),
            histlen_bytes: self.log.histlen_bytes(),
            disk_bytes: self.log.disk_bytes(),
            memory_bytes: self.log.memory_bytes(),
            waiting_bytes: self.log.memory_bytes().saturating_sub(self.log.backlog_bytes())
                + self.peers.values().map(|peer| peer.queue.len_bytes()).sum::<u64>(),
            replicas: shown
                .enumerate()
                .map(|(index, (id, peer))| {
                    let acked = self.acks.acked(*id);
                    ReplicaLine {
                        info: peer.handshake.info_line(index, &peer.ip, acked, now_ms),
                        role: peer.handshake.role_entry(&peer.ip, acked),
                    }
                })
                .collect(),
            acked_offsets: self.acked_offsets(),
            failover_state: self.failover_state(),
            is_protected: self.is_protected(),
            full_syncs: self.full_syncs,
            partial_syncs: self.partial_syncs,
            refused_partial_syncs: self.refused_partial_syncs,
            syncs_in_parts: self.syncs_in_parts,
        }
    }
}
