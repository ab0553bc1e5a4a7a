//! `DEBUG`, as far as it is about the server and not a key.

use super::control::Order;
use super::table::Call;
use crate::config::values::Permission;
use crate::engine::{Conn, Front};
use crate::startup::protected;
use braid_core::command::Error;
use braid_core::commands::object::help;
use braid_core::resp::number::{parse_f64, parse_i64};
use std::time::{Duration, Instant};

/// Whether this connection may use `DEBUG` (`enable-debug-command`).
///
/// # Errors
/// Redis's text.
pub fn permitted(front: &Front, conn: &Conn) -> Result<(), Error> {
    let permitted = match front.config.enable_debug_command {
        Permission::Yes => true,
        Permission::No => false,
        Permission::Local => protected::is_local(conn.session.info().peer.ip()),
    };
    let refusal = Error::text(
        "ERR DEBUG command not allowed. If the enable-debug-command option is set to \"local\", you can run it from a \
         local connection, otherwise you need to set this option in the configuration file, and then restart the server.",
    );
    if permitted { Ok(()) } else { Err(refusal) }
}

/// Longest sleep: a day.
const MAX_SLEEP_S: f64 = 86_400.0;

/// `DEBUG SLEEP|SET-ACTIVE-EXPIRE|HELP`
pub fn debug(call: &mut Call<'_>) -> Result<(), Error> {
    let Call { front, args, out, .. } = call;
    match () {
        () if args.is(1, "sleep") => {
            let seconds = parse_f64(args[2]).unwrap_or(0.0).clamp(0.0, MAX_SLEEP_S);
            let end = Instant::now() + Duration::from_secs_f64(seconds);
            // The whole server stands still, as others do: every shard sleeps.
            for shard in (0..front.node.map.shards() as u16).filter(|shard| *shard != front.id) {
                front.node.order(shard, Order::SleepUntil(end));
            }
            std::thread::sleep(end.saturating_duration_since(Instant::now()));
            out.ok();
        }
        () if args.is(1, "set-active-expire") => {
            let on = parse_i64(args[2]).unwrap_or(0) != 0;
            front.node.order_all(|| Order::ActiveExpire(on));
            out.ok();
        }
        () => help(
            out,
            "DEBUG",
            &[
                ("OBJECT <key>", "The internals of a key's value."),
                ("SET-ACTIVE-EXPIRE (0|1)", "Whether expired keys are removed in the background."),
                ("SLEEP <seconds>", "Let the server stand still; fractions allowed."),
            ],
        ),
    }
    Ok(())
}
