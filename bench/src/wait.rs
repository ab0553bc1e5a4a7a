//! Waiting for a condition, with an end.

use std::io;
use std::time::{Duration, Instant};

use crate::client::Client;

/// Between two looks.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Looks until `condition` holds. It looks at least once, whatever the timeout.
///
/// # Errors
/// The condition's own, or `TimedOut` with `what` was waited for.
pub fn until(
    what: &str,
    timeout: Duration,
    mut condition: impl FnMut() -> io::Result<bool>,
) -> io::Result<()> {
    let deadline = Instant::now() + timeout;
    while !condition()? {
        if Instant::now() >= deadline {
            let message = format!("waited {timeout:?} in vain until {what}");
            return Err(io::Error::new(io::ErrorKind::TimedOut, message));
        }
        std::thread::sleep(POLL_INTERVAL);
    }
    Ok(())
}

/// Waits until `replica` is connected and has applied all that `master` had in its stream when this was called.
///
/// # Errors
/// Of the connections, or `TimedOut`.
pub fn until_caught_up(master: &mut Client, replica: &mut Client, timeout: Duration) -> io::Result<()> {
    let offset = |info: &std::collections::HashMap<String, String>, field: &str| {
        info.get(field).and_then(|value| value.parse::<u64>().ok())
    };
    let what = format!("{} caught up with {}", replica.address(), master.address());
    // A master without a replica may have no history yet: its offset counts from when the replica is there.
    let mut wanted = None;
    until(&what, timeout, || {
        let there = replica.info("replication")?;
        if there.get("master_link_status").is_none_or(|status| status != "up") {
            return Ok(false);
        }
        if wanted.is_none() {
            wanted = offset(&master.info("replication")?, "master_repl_offset");
        }
        Ok(wanted.is_some() && offset(&there, "slave_repl_offset") >= wanted)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cmd;
    use crate::dataset;
    use crate::peers::Kind;

    #[test]
    fn what_never_happens_times_out_and_is_named() {
        let error = until("pigs fly", Duration::from_millis(1), || Ok(false)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(error.to_string().contains("pigs fly"));
        let mut looks = 0;
        until("the third look", Duration::from_secs(10), || {
            looks += 1;
            Ok(looks == 3)
        })
        .unwrap();
        let error = until("", Duration::ZERO, || Err(io::Error::other("broken"))).unwrap_err();
        assert_eq!(error.to_string(), "broken");
    }

    /// Replicas of other kinds and versions hold the same data, and reading it shows that it is the same.
    #[test]
    fn a_replica_of_another_kind_holds_the_same_dataset() {
        let master = Kind::Redis7.start().unwrap();
        let mut source = master.client().unwrap();
        for n in 0..300 {
            let commands = [
                cmd!["SET", format!("string:{n}"), n, "PX", 1_000_000 + n],
                cmd!["RPUSH", "list", n],
                cmd!["HSET", format!("hash:{}", n % 7), n, n * 2],
                cmd!["SADD", "set", n],
                cmd!["ZADD", "zset", f64::from(n) / 3.0, n],
                cmd!["XADD", "stream", "*", "n", n],
            ];
            for reply in source.pipeline(&commands).unwrap() {
                reply.ok().unwrap();
            }
        }
        source.call(&["XGROUP", "CREATE", "stream", "group", "0"]).unwrap();
        source
            .call(&cmd!["XREADGROUP", "GROUP", "group", "me", "COUNT", 3, "STREAMS", "stream", ">"])
            .unwrap();
        for kind in [Kind::Redis8, Kind::Valkey] {
            let replica = kind.start().unwrap();
            let mut copy = replica.client().unwrap();
            copy.call(&cmd!["REPLICAOF", "127.0.0.1", master.port()]).unwrap();
            until_caught_up(&mut source, &mut copy, Duration::from_secs(20)).unwrap();
            source.call(&["INCR", "counter"]).unwrap();
            until_caught_up(&mut source, &mut copy, Duration::from_secs(20)).unwrap();
            dataset::assert_same(&mut source, &mut copy).unwrap();
        }
    }
}
