//! Many keys as fast as possible, with a probe beside them, and what a key costs in memory.

use std::io;
use std::time::Duration;

use crate::client::Client;
use crate::cmd;
use crate::load::{self, Plan, Summary, Tick};
use crate::probe::Probe;
use crate::report::Row;
use crate::workload::{Keys, Mix, Op, Workload};

/// The outcome of a fill.
#[derive(Clone, Debug)]
pub struct Filled {
    pub load: Summary,
    /// What the probe saw meanwhile.
    pub probe: Row,
    /// Keys that the server has more than before.
    pub new_keys: u64,
    /// Growth of resident memory per new key, where the server's process is known.
    pub rss_bytes_per_key: Option<f64>,
}

/// Sets keys `0..plan.workload.key_space` once each. The plan's mix, distribution and end are not looked at.
///
/// # Errors
/// As [`load::run`]; also when the probe fails.
pub fn run(plan: &Plan, probe_interval: Duration, progress: &mut dyn FnMut(&Tick)) -> io::Result<Filled> {
    let plan = Plan {
        workload: Workload { mix: Mix::only(Op::Set), keys: Keys::Sequential, ..plan.workload.clone() },
        requests: Some(plan.workload.key_space),
        duration: None,
        rate_per_s: None,
        ..plan.clone()
    };
    let mut control = plan.target.client()?;
    let keys_before = key_count(&mut control)?;
    let probe = Probe::start(plan.target.client()?, cmd!["GET", "key:000000000000"], probe_interval)?;
    let load = load::run(&plan, progress)?;
    let latencies_ns = probe.stop()?;
    let new_keys = key_count(&mut control)?.saturating_sub(keys_before);
    let grown_bytes = load.server.map(|(before, after)| after.rss_bytes.saturating_sub(before.rss_bytes));
    Ok(Filled {
        probe: Row { name: "probe".into(), latencies_ns, elapsed: load.all.elapsed, server_cpu_us: None },
        rss_bytes_per_key: grown_bytes.filter(|_| new_keys > 0).map(|bytes| bytes as f64 / new_keys as f64),
        load,
        new_keys,
    })
}

fn key_count(client: &mut Client) -> io::Result<u64> {
    let reply = client.call(&["DBSIZE"])?;
    reply
        .as_int()
        .and_then(|count| u64::try_from(count).ok())
        .ok_or_else(|| io::Error::other(format!("unexpected reply to DBSIZE: {reply:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::Target;
    use crate::peers::Kind;

    #[test]
    fn every_key_is_set_once_and_costs_memory() {
        let peer = Kind::Redis7.start().unwrap();
        let plan = Plan {
            target: Target { address: peer.address(), password: None, database: 2 },
            workload: Workload {
                mix: "get".parse().unwrap(),
                keys: Keys::Uniform,
                key_space: 50_001,
                sizes: "100".parse().unwrap(),
            },
            connections: 4,
            threads: 2,
            pipeline: 64,
            rate_per_s: None,
            duration: None,
            requests: None,
            seed: 1,
            cpus: vec![],
            server_pid: peer.pid(),
        };
        let filled = run(&plan, Duration::from_millis(1), &mut |_| {}).unwrap();
        assert_eq!((filled.new_keys, filled.load.all.ops()), (50_001, 50_001));
        let bytes = filled.rss_bytes_per_key.unwrap();
        assert!((100.0..1000.0).contains(&bytes), "{bytes} bytes per key");
        assert!(filled.probe.ops() > 0);
        // Again: nothing new.
        assert_eq!(run(&plan, Duration::from_millis(1), &mut |_| {}).unwrap().rss_bytes_per_key, None);
    }
}
