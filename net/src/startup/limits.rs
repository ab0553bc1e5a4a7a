//! Resource limits: open files for clients, locked memory for the rings.

use std::fs;
use std::io;

/// Files the server needs besides its clients, as Redis counts them: listeners, snapshots, logs.
pub const RESERVED_FILES: u64 = 32;
/// Files each shard needs on top: two rings, an event counter, timers and the runtime's own.
pub const FILES_PER_SHARD: u64 = 16;
/// The locked memory glommio insists on for each executor.
pub const MEMLOCK_PER_SHARD_BYTES: u64 = 512 << 10;

/// A soft and a hard limit; `u64::MAX` is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    pub soft: u64,
    pub hard: u64,
}

/// What the limit of open files allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilePlan {
    /// The soft limit to set, if it has to change.
    pub raise_to: Option<u64>,
    /// The clients there is room for.
    pub maxclients: u32,
    /// Lines for the log, at the level of warnings.
    pub warnings: Vec<String>,
}

/// Plans the limit of open files for `maxclients` clients and `shards` shards.
///
/// # Errors
/// When there is not even room for one client.
pub fn plan_files(limit: Limit, maxclients: u32, shards: u16) -> Result<FilePlan, String> {
    let reserved = RESERVED_FILES + FILES_PER_SHARD * u64::from(shards);
    let wanted = u64::from(maxclients) + reserved;
    if limit.soft >= wanted {
        return Ok(FilePlan { raise_to: None, maxclients, warnings: vec![] });
    }
    let raise_to = (limit.hard > limit.soft).then_some(limit.hard.min(wanted));
    let reached = raise_to.unwrap_or(limit.soft);
    if reached >= wanted {
        return Ok(FilePlan { raise_to, maxclients, warnings: vec![] });
    }
    if reached <= reserved {
        return Err(format!(
            "Your current 'ulimit -n' of {reached} is not enough for the server to start. Please increase your open file \
             limit to at least {}. Exiting.",
            reserved + 1
        ));
    }
    let reduced = u32::try_from(reached - reserved).expect("less than maxclients, which is a u32");
    let warnings = vec![
        format!("You requested maxclients of {maxclients} requiring at least {wanted} max file descriptors."),
        format!(
            "Server can't set maximum open files to {wanted} because of OS error: the hard limit is {}.",
            limit.hard
        ),
        format!(
            "Current maximum open files is {reached}. maxclients has been reduced to {reduced} to compensate for low \
             ulimit. If you need higher maxclients increase 'ulimit -n'."
        ),
    ];
    Ok(FilePlan { raise_to, maxclients: reduced, warnings })
}

/// Makes room for `maxclients` clients. Also raises the hard limit where the process may.
///
/// Gives the number of clients there is room for, notices and warnings for the log.
///
/// # Errors
/// One line when the server cannot start.
pub fn adjust_files(maxclients: u32, shards: u16) -> Result<(FilePlan, Vec<String>), String> {
    let failed = |error: io::Error| format!("the limit of open files cannot be read or set: {error}");
    let mut limit = read(libc::RLIMIT_NOFILE).map_err(failed)?;
    let original = limit.soft;
    let wanted = u64::from(maxclients) + RESERVED_FILES + FILES_PER_SHARD * u64::from(shards);
    // Only root may do this; the others live with their hard limit.
    if limit.hard < wanted && write(libc::RLIMIT_NOFILE, Limit { soft: wanted, hard: wanted }).is_ok() {
        limit = Limit { soft: wanted, hard: wanted };
    }
    let plan = plan_files(limit, maxclients, shards)?;
    if let Some(soft) = plan.raise_to {
        write(libc::RLIMIT_NOFILE, Limit { soft, ..limit }).map_err(failed)?;
        limit.soft = soft;
    }
    let mut notices = Vec::new();
    if limit.soft != original {
        notices.push(format!(
            "Increased maximum number of open files to {} (it was originally set to {original}).",
            limit.soft
        ));
    }
    Ok((plan, notices))
}

/// Checks the limit of locked memory. `privileged` is whether the process has `CAP_IPC_LOCK`, which lifts the kernel's
/// limit; but the runtime looks at the number itself, so it must allow for one executor even then.
///
/// # Errors
/// One line with the numbers and the remedy.
pub fn check_memlock(limit_bytes: u64, shards: u16, privileged: bool) -> Result<(), String> {
    let all = MEMLOCK_PER_SHARD_BYTES * u64::from(shards.max(1));
    let need = if privileged { MEMLOCK_PER_SHARD_BYTES } else { all };
    if limit_bytes >= need {
        return Ok(());
    }
    let kb = |bytes: u64| bytes.div_ceil(1024);
    Err(format!(
        "{shards} shards need {} kB of locked memory and the limit is {} kB: raise it with 'ulimit -l {}' or \
         LimitMEMLOCK={}K in the service, or start fewer shards",
        kb(need),
        kb(limit_bytes),
        kb(need),
        kb(need)
    ))
}

/// Raises the limit of locked memory as far as this process may, then checks it.
///
/// # Errors
/// See [`check_memlock`].
pub fn adjust_memlock(shards: u16) -> Result<(), String> {
    let failed = |error: io::Error| format!("the limit of locked memory cannot be read: {error}");
    let mut limit = read(libc::RLIMIT_MEMLOCK).map_err(failed)?;
    let need = MEMLOCK_PER_SHARD_BYTES * u64::from(shards.max(1));
    if limit.soft < need {
        let hard = limit.hard.max(need);
        // The first try needs a privilege, the second does not; if both fail the check below says so.
        let raised = write(libc::RLIMIT_MEMLOCK, Limit { soft: need, hard })
            .or_else(|_| write(libc::RLIMIT_MEMLOCK, Limit { soft: limit.hard, hard: limit.hard }));
        if raised.is_ok() {
            limit = read(libc::RLIMIT_MEMLOCK).map_err(failed)?;
        }
    }
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    check_memlock(limit.soft, shards, has_ipc_lock(&status))
}

/// Whether `/proc/self/status` shows `CAP_IPC_LOCK` in the effective set.
pub fn has_ipc_lock(status: &str) -> bool {
    const CAP_IPC_LOCK: u32 = 14;
    let set = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let set = set.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    set.is_some_and(|set| set >> CAP_IPC_LOCK & 1 == 1)
}

fn read(resource: libc::__rlimit_resource_t) -> io::Result<Limit> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to a live rlimit, which the call fills.
    if unsafe { libc::getrlimit(resource, &mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Limit { soft: limit.rlim_cur, hard: limit.rlim_max })
}

fn write(resource: libc::__rlimit_resource_t, limit: Limit) -> io::Result<()> {
    let limit = libc::rlimit { rlim_cur: limit.soft, rlim_max: limit.hard };
    // SAFETY: the pointer is to a live rlimit, which the call only reads.
    if unsafe { libc::setrlimit(resource, &limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_raised_as_far_as_needed() {
        let wanted = 10_000 + RESERVED_FILES + 2 * FILES_PER_SHARD;
        let plan = |soft, hard| plan_files(Limit { soft, hard }, 10_000, 2);
        assert_eq!(plan(u64::MAX, u64::MAX).unwrap().raise_to, None);
        assert_eq!(
            plan(wanted, wanted).unwrap(),
            FilePlan { raise_to: None, maxclients: 10_000, warnings: vec![] }
        );
        assert_eq!(plan(1024, u64::MAX).unwrap().raise_to, Some(wanted));
        let low = plan(1024, 4096).unwrap();
        assert_eq!((low.raise_to, low.maxclients), (Some(4096), 4096 - 64));
        assert!(
            low.warnings[2].contains("maxclients has been reduced to 4032 to compensate for low ulimit.")
        );
        assert_eq!(plan(1024, 1024).unwrap().maxclients, 1024 - 64);
        assert!(plan(64, 64).unwrap_err().contains("at least 65"));
        assert_eq!(plan(65, 65).unwrap().maxclients, 1);
    }

    #[test]
    fn locked_memory() {
        assert!(check_memlock(u64::MAX, 64, false).is_ok());
        assert!(check_memlock(1 << 20, 2, false).is_ok());
        let error = check_memlock((1 << 20) - 1, 2, false).unwrap_err();
        assert!(error.contains("ulimit -l 1024") && error.contains("LimitMEMLOCK=1024K"), "{error}");
        assert!(check_memlock(512 << 10, 64, true).is_ok());
        assert!(check_memlock(64 << 10, 64, true).is_err());
    }

    #[test]
    fn capabilities() {
        assert!(has_ipc_lock("Name:\tx\nCapEff:\t0000000000004000\n"));
        assert!(!has_ipc_lock("CapPrm:\t0000000000004000\nCapEff:\t0000000000003fff\n"));
        assert!(!has_ipc_lock(""));
    }

    #[test]
    fn limits_can_be_read_and_written_back() {
        let limit = read(libc::RLIMIT_NOFILE).unwrap();
        assert!(limit.soft > 0 && limit.soft <= limit.hard);
        write(libc::RLIMIT_NOFILE, limit).unwrap();
        assert_eq!(read(libc::RLIMIT_NOFILE).unwrap(), limit);
    }
}
