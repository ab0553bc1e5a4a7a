//! The processors this process may use.

use std::fs;
use std::io;

/// The numbers of the processors this process may run on, in order.
///
/// # Errors
/// What the system says.
pub fn allowed() -> io::Result<Vec<usize>> {
    // SAFETY: `cpu_set_t` is an array of integers, for which all zeros are valid.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a live set of exactly the size given; 0 is the calling thread.
    if unsafe { libc::sched_getaffinity(0, size_of_val(&set), &mut set) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let limit = usize::try_from(libc::CPU_SETSIZE).unwrap_or(0);
    // SAFETY: every number is below CPU_SETSIZE, so inside the set.
    Ok((0..limit).filter(|&cpu| unsafe { libc::CPU_ISSET(cpu, &set) }).collect())
}

/// Lets the calling thread run on these processors only.
///
/// # Errors
/// What the system says, as when none of them is allowed.
pub fn run_on(cpus: &[usize]) -> io::Result<()> {
    // SAFETY: `cpu_set_t` is an array of integers, for which all zeros are valid.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    let limit = usize::try_from(libc::CPU_SETSIZE).unwrap_or(0);
    for cpu in cpus.iter().filter(|cpu| **cpu < limit) {
        // SAFETY: the number is below CPU_SETSIZE, so inside the set.
        unsafe { libc::CPU_SET(*cpu, &mut set) };
    }
    // SAFETY: the pointer is to a live set of exactly the size given; 0 is the calling thread.
    match unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The share of processors a control group allows, from its `cpu.max` (`200000 100000` is two); `None` is no limit.
pub fn parse_quota(cpu_max: &str) -> Option<f64> {
    let (quota, period) = cpu_max.trim().split_once(' ')?;
    let (quota, period): (f64, f64) = (quota.parse().ok()?, period.parse().ok()?);
    (quota > 0.0 && period > 0.0).then_some(quota / period)
}

/// The smallest share any control group around this process allows (cgroup version 2).
pub fn quota() -> Option<f64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let mut path = groups.lines().find_map(|line| line.strip_prefix("0::"))?.trim_end_matches('/').to_owned();
    let mut smallest: Option<f64> = None;
    loop {
        let here = fs::read_to_string(format!("/sys/fs/cgroup{path}/cpu.max")).ok();
        if let Some(share) = here.as_deref().and_then(parse_quota) {
            smallest = Some(smallest.map_or(share, |least| least.min(share)));
        }
        match path.rfind('/') {
            Some(parent) => path.truncate(parent),
            None => return smallest,
        }
    }
}

/// The processors of the shards, one each.
#[derive(Clone, Debug, PartialEq)]
pub struct Placement {
    /// The processor of each shard, by its number.
    pub cpus: Vec<usize>,
    /// A line for the log, at the level of warnings.
    pub warning: Option<String>,
}

/// Places `wanted` shards (0: as many as fit) on the `allowed` processors.
///
/// # Errors
/// When there is no processor at all.
pub fn place(wanted: u16, allowed: &[usize], quota: Option<f64>) -> Result<Placement, String> {
    if allowed.is_empty() {
        return Err("the process may not run on any processor: look at its affinity".to_owned());
    }
    let shards = if wanted == 0 { allowed.len().min(1024) } else { usize::from(wanted) };
    let warning = match quota {
        _ if shards > allowed.len() => Some(format!(
            "{shards} shards share {} cores: start at most one shard per core for the best latency",
            allowed.len()
        )),
        Some(quota) if quota < shards as f64 => Some(format!(
            "{shards} shards run under a quota of {quota:.1} cores and will be stopped whenever it is used up: set \
             shards to at most the quota, or raise it"
        )),
        _ => None,
    };
    Ok(Placement { cpus: (0..shards).map(|shard| allowed[shard % allowed.len()]).collect(), warning })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_runs_where_it_is_told_to() {
        let all = allowed().unwrap();
        let one = [*all.last().unwrap()];
        // A thread of its own: others would be left where it was sent.
        let then = std::thread::spawn(move || {
            run_on(&one).unwrap();
            let pinned = allowed().unwrap();
            assert_eq!(pinned, one);
            let inherited = std::thread::spawn(|| allowed().unwrap()).join().unwrap();
            assert_eq!(inherited, pinned);
            run_on(&all).unwrap();
            assert_eq!(allowed().unwrap(), all);
        });
        then.join().unwrap();
        assert!(run_on(&[]).is_err());
    }

    #[test]
    fn quotas() {
        assert_eq!(parse_quota("200000 100000\n"), Some(2.0));
        assert_eq!(parse_quota("50000 100000"), Some(0.5));
        for text in ["max 100000", "", "1", "0 0", "x y"] {
            assert_eq!(parse_quota(text), None, "{text}");
        }
    }

    #[test]
    fn shards_get_a_processor_each_while_there_are_some() {
        let place = |wanted, quota| place(wanted, &[2, 3, 7], quota).unwrap();
        assert_eq!(place(0, None), Placement { cpus: vec![2, 3, 7], warning: None });
        assert_eq!(place(2, Some(2.0)), Placement { cpus: vec![2, 3], warning: None });
        let crowded = place(4, None);
        assert_eq!(crowded.cpus, [2, 3, 7, 2]);
        assert!(crowded.warning.unwrap().contains("4 shards share 3 cores"));
        assert!(place(0, Some(1.5)).warning.unwrap().contains("quota of 1.5 cores"));
        assert!(super::place(1, &[], None).is_err());
    }

    #[test]
    fn this_process_runs_somewhere() {
        let cpus = allowed().unwrap();
        assert!(!cpus.is_empty() && cpus.is_sorted());
        assert!(quota().is_none_or(|share| share > 0.0));
    }
}
