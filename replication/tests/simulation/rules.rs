//! How processes are configured, but for what a run varies.

use crate::DATABASES;
use braid_replication::follower::{FollowerRules, Intake};
use braid_replication::home::Rules;
use braid_replication::link::LinkRules;
use braid_replication::loading::LoadRules;
use braid_replication::log::ReaderLimits;
use braid_replication::sharing::Policy;

/// `repl-timeout`.
pub const TIMEOUT_MS: u64 = 20_000;

/// A master that keeps its stream for ever.
pub fn rules() -> Rules {
    Rules {
        backlog_bytes: 1 << 40,
        backlog_disk_bytes: 0,
        backlog_ttl_ms: 0,
        protects: false,
        ping_period_ms: 1_000,
        timeout_ms: u64::MAX,
        sharing: Policy { is_diskless: true, delay_ms: 0, max_replicas: 0 },
        limits: ReaderLimits { hard_bytes: 0, soft_bytes: 0, soft_ms: 0 },
        compress: true,
        checksum: true,
    }
}

/// A node that is reached under the number `node`.
pub fn follower_rules(node: usize) -> FollowerRules {
    FollowerRules {
        link: LinkRules {
            timeout_ms: TIMEOUT_MS,
            user: String::new(),
            password: String::new(),
            listening_port: 1,
            announced_ip: node.to_string(),
            version: "8.2.0".into(),
            databases: DATABASES as u32,
            connections: 0,
        },
        load: LoadRules { databases: DATABASES, string_max_bytes: 1 << 20, verify: true },
        protects: false,
        intake: Intake::Beside,
    }
}
