//! `WAIT` and `WAITAOF`: waiting for replicas.

use super::table::Call;
use crate::engine::stream::Wait;
use braid_core::command::Error;
use braid_core::resp::number::parse_i64;
use braid_replication::acks::Level;
use std::sync::PoisonError;

/// `WAIT numreplicas timeout`
pub fn wait(call: &mut Call<'_>) -> Result<(), Error> {
    let replicas = parse_i64(call.args[1]).ok_or(Error::NotInteger)?;
    let timeout_ms = timeout_ms(call.args[2])?;
    if call.front.node.is_replica() {
        return Err(Error::text(
            "ERR WAIT cannot be used with replica instances. Please also note that since Redis 4.0 if a replica is \
             configured to be writable (which is not the default) writes to replicas are just local and are not \
             propagated.",
        ));
    }
    begin(call, replicas.max(0) as usize, timeout_ms, Level::Applied);
    Ok(())
}

/// `WAITAOF numlocal numreplicas timeout`
pub fn waitaof(call: &mut Call<'_>) -> Result<(), Error> {
    let local = parse_i64(call.args[1]).ok_or(Error::NotInteger)?;
    if !(0..=1).contains(&local) {
        return Err(Error::text("ERR value is out of range, value must between 0 and 1"));
    }
    let replicas = parse_i64(call.args[2]).ok_or(Error::NotInteger)?;
    let replicas =
        usize::try_from(replicas).map_err(|_| Error::text("ERR value is out of range, must be positive"))?;
    let timeout_ms = timeout_ms(call.args[3])?;
    if call.front.node.is_replica() {
        return Err(Error::text(
            "ERR WAITAOF cannot be used with replica instances. Please also note that writes to replicas are just \
             local and are not propagated.",
        ));
    }
    if local > 0 {
        return Err(Error::text(
            "ERR WAITAOF cannot be used when numlocal is set but appendonly is disabled.",
        ));
    }
    begin(call, replicas, timeout_ms, Level::Durable);
    Ok(())
}

fn timeout_ms(arg: &[u8]) -> Result<u64, Error> {
    let timeout_ms =
        parse_i64(arg).ok_or_else(|| Error::text("ERR timeout is not an integer or out of range"))?;
    u64::try_from(timeout_ms).map_err(|_| Error::text("ERR timeout is negative"))
}

fn begin(call: &mut Call<'_>, replicas: usize, timeout_ms: u64, level: Level) {
    let offset = call.front.node.written_offset();
    if call.conn.in_exec {
        // A transaction does not wait: it is told what is known.
        let report = call.front.node.replication.lock().unwrap_or_else(PoisonError::into_inner);
        let acked = report.acked_offsets.iter().filter(|acked| **acked >= offset).count();
        return match level {
            Level::Applied => call.out.int(acked as i64),
            Level::Durable => {
                call.out.array(2);
                call.out.int(0);
                call.out.int(0);
            }
        };
    }
    let wait = Wait { conn: call.conn.id, offset, replicas, timeout_ms, level };
    call.front.begin_wait(call.conn, wait);
}
