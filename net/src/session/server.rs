//! `SHUTDOWN`, `TIME`, `LASTSAVE`, `LOLWUT`.

use super::table::Call;
use crate::node::unix_us;
use crate::{log_notice, log_warning};
use braid_core::command::{Args, Error};
use braid_core::resp::number::parse_i64;

/// `TIME`
pub fn time(call: &mut Call<'_>) -> Result<(), Error> {
    let now_us = unix_us();
    call.out.array(2);
    call.out.bulk_int((now_us / 1_000_000) as i64);
    call.out.bulk_int((now_us % 1_000_000) as i64);
    Ok(())
}

/// `LASTSAVE`: as long as nothing was saved, the time of the start, as in Redis.
pub fn lastsave(call: &mut Call<'_>) -> Result<(), Error> {
    call.out.int(call.front.node.started_unix_s as i64);
    Ok(())
}

/// What `SHUTDOWN` was told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Shutdown {
    /// `SAVE` (true) or `NOSAVE` (false).
    save: Option<bool>,
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
            // There is no waiting that it could cut short.
            () if args.is(index, "now") => {}
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
///
/// Snapshots cannot be written yet. Who asks for one, or has `save` points that ask for it, is told so and the server
/// goes on: data that was to be kept must not vanish with a shutdown that looked orderly.
pub fn shutdown(call: &mut Call<'_>) -> Result<(), Error> {
    let told = parse_shutdown(call.args)?;
    if told.abort {
        return Err(Error::text("ERR No shutdown in progress."));
    }
    log_warning!("User requested shutdown...");
    let wants_save = told.save.unwrap_or(!call.front.config.save.0.is_empty());
    if wants_save && !told.force {
        log_warning!("Snapshots cannot be written: refusing to shut down. SHUTDOWN NOSAVE ends without one.");
        return Err(Error::text(
            "ERR Errors trying to SHUTDOWN: snapshots cannot be written yet. SHUTDOWN NOSAVE ends without one.",
        ));
    }
    log_notice!("Shutting down without a snapshot.");
    call.front.node.stop();
    call.conn.closing = true;
    Ok(())
}

/// Rows of a drawing, and the most that can be asked for.
const ROWS: i64 = 12;
const MAX_ROWS: i64 = 200;

/// `LOLWUT [VERSION version] [rows]`: a braid of three strands.
pub fn lolwut(call: &mut Call<'_>) -> Result<(), Error> {
    let args = call.args;
    let rest = if args.is(1, "version") && args.len() > 2 {
        parse_i64(args[2]).ok_or(Error::NotInteger)?;
        3
    } else {
        1
    };
    let rows = match args.get(rest) {
        Some(text) => parse_i64(text).ok_or(Error::NotInteger)?.clamp(1, MAX_ROWS),
        None => ROWS,
    };
    let text = format!(
        "{}\nRedis ver. {}, Braid {}\n",
        braid(rows),
        crate::node::REDIS_VERSION,
        env!("CARGO_PKG_VERSION")
    );
    call.out.verbatim(&text);
    Ok(())
}

/// Three strands; in turn the right pair and the left pair cross, the outer strand over the middle one.
fn braid(rows: i64) -> String {
    const LEFT: [&str; 4] = ["  \\ \\   /  ", "   \\ \\ /   ", "    \\ /    ", "    / \\    "];
    const RIGHT: [&str; 4] = ["  \\   / /  ", "   \\ / /   ", "    \\ /    ", "    / \\    "];
    let mut text = String::new();
    for row in 0..rows as usize {
        let pattern = if (row / LEFT.len()).is_multiple_of(2) { LEFT } else { RIGHT };
        text.push_str(pattern[row % LEFT.len()].trim_end());
        text.push('\n');
    }
    text
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
        let nosave = Shutdown { save: Some(false), force: true, abort: false };
        assert_eq!(parsed("shutdown NOSAVE now FORCE"), Ok(nosave));
        assert_eq!(parsed("shutdown abort"), Ok(Shutdown { abort: true, ..Shutdown::default() }));
        for line in ["shutdown save nosave", "shutdown nosave save", "shutdown abort now", "shutdown foo"] {
            assert_eq!(parsed(line), Err(Error::Syntax), "{line}");
        }
    }

    #[test]
    fn a_braid_has_as_many_rows_as_asked_for() {
        assert_eq!(braid(9).lines().count(), 9);
    }
}
