//! `SAVE`, `BGSAVE`, `LASTSAVE`, `SHUTDOWN`. The home shard does the work; see `engine::saving`.

use super::control::Order;
use super::table::Call;
use crate::engine::Ending;
use braid_core::command::{Args, Error};

/// The shard that makes snapshots.
const HOME: u16 = crate::engine::HOME;

/// The error for writes after a snapshot failed.
pub const MISCONF: &str = "MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk. \
     Commands that may modify the data set are disabled, because this instance is configured to report errors during \
     writes if RDB snapshotting fails (stop-writes-on-bgsave-error option). Please check the Redis logs for details about \
     the RDB error.";

const IN_PROGRESS: &str = "ERR Background save already in progress";

/// `LASTSAVE`: as long as nothing was saved, the time of the start, as in Redis.
pub fn lastsave(call: &mut Call<'_>) -> Result<(), Error> {
    let last_s = call.front.node.persistence.saves().last.unix_s;
    call.out.int(last_s as i64);
    Ok(())
}

/// `SAVE`: answered when the snapshot is on the disk. Unlike in Redis the others are served meanwhile.
pub fn save(call: &mut Call<'_>) -> Result<(), Error> {
    let node = &call.front.node;
    if !node.persistence.begin_save(call.front.moment()) {
        return Err(Error::text(IN_PROGRESS));
    }
    node.order(HOME, Order::Save(Some((call.front.id, call.conn.id))));
    call.conn.waiting = true;
    Ok(())
}

/// `BGSAVE [SCHEDULE]`. A snapshot for replicas that is being made does not hinder: this one begins when that is over. As
/// in Redis one that is to begin later may be scheduled any number of times, and within a transaction it always is.
pub fn bgsave(call: &mut Call<'_>) -> Result<(), Error> {
    if call.args.len() > 2 || call.args.len() == 2 && !call.args.is(1, "schedule") {
        return Err(Error::Syntax);
    }
    let node = &call.front.node;
    let may_be_later = call.conn.in_exec || call.args.len() == 2;
    if node.persistence.begin_save(call.front.moment()) {
        node.order(HOME, Order::Save(None));
        let answer =
            if call.conn.in_exec { "Background saving scheduled" } else { "Background saving started" };
        call.out.simple(answer);
    } else if may_be_later && node.persistence.saves().is_scheduled {
        call.out.simple("Background saving scheduled");
    } else {
        return Err(Error::text(IN_PROGRESS));
    }
    Ok(())
}

/// What `SHUTDOWN` was told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Shutdown {
    /// `SAVE` (true) or `NOSAVE` (false).
    save: Option<bool>,
    now: bool,
    force: bool,
    abort: bool,
}

fn parse_shutdown(args: Args<'_>) -> Result<Shutdown, Error> {
    let mut told = Shutdown::default();
    for (index, _) in args.iter().enumerate().skip(1) {
        match () {
            () if args.is(index, "nosave") && told.save != Some(true) => told.save = Some(false),
            () if args.is(index, "save") && told.save != Some(false) => told.save = Some(true),
            () if args.is(index, "force") => told.force = true,
            () if args.is(index, "now") => told.now = true,
            () if args.is(index, "abort") => told.abort = true,
            () => return Err(Error::Syntax),
        }
    }
    if told.abort && args.len() > 2 {
        return Err(Error::Syntax);
    }
    Ok(told)
}

/// `SHUTDOWN [NOSAVE|SAVE] [NOW] [FORCE] [ABORT]`
pub fn shutdown(call: &mut Call<'_>) -> Result<(), Error> {
    let told = parse_shutdown(call.args)?;
    let node = &call.front.node;
    let asker = (call.front.id, call.conn.id);
    if told.abort {
        node.order(HOME, Order::AbortEnd(asker));
        call.conn.waiting = true;
        return Ok(());
    }
    let saves = told.save.unwrap_or(!call.front.config.save.0.is_empty());
    let ending = Ending { saves, force: told.force, now: told.now };
    node.order(HOME, Order::End(ending, Some(asker)));
    call.conn.waiting = true;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Shutdown, Error> {
        let list: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        parse_shutdown(Args::new(&list, &[]))
    }

    #[test]
    fn shutdown_options() {
        assert_eq!(parsed("shutdown"), Ok(Shutdown::default()));
        let nosave = Shutdown { save: Some(false), now: true, force: true, abort: false };
        assert_eq!(parsed("shutdown NOSAVE now FORCE"), Ok(nosave));
        assert_eq!(parsed("shutdown abort"), Ok(Shutdown { abort: true, ..Shutdown::default() }));
        for line in ["shutdown save nosave", "shutdown nosave save", "shutdown abort now", "shutdown foo"] {
            assert_eq!(parsed(line), Err(Error::Syntax), "{line}");
        }
    }
}
