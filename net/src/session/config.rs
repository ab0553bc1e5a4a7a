//! `CONFIG`: reads and changes the configuration, and makes a change take effect.
//!
//! Most of the configuration is looked up when it is needed: shards take the new one with their next tick. What has to
//! be done once is done here ([`apply`]), before the change is in place, so that a failure changes nothing.

use super::control::Order;
use super::table::Call;
use crate::config::runtime::{self, Asker, Change, failure};
use crate::config::{self, Apply, Config};
use crate::node::Node;
use crate::startup::{limits, listen, process, protected};
use braid_core::command::Error;
use braid_core::commands::object::help;
use braid_core::resp::Reply;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};

/// `CONFIG GET|SET|RESETSTAT|REWRITE|HELP`
pub fn config(call: &mut Call<'_>) -> Result<(), Error> {
    let args = call.args;
    match () {
        () if args.is(1, "get") => {
            let found = runtime::get(&call.front.node.config.snapshot(), &args[2..]);
            call.out.map(found.len());
            for (name, value) in found {
                call.out.bulk(name.as_bytes());
                call.out.bulk(value.as_bytes());
            }
        }
        () if args.is(1, "set") => set(call)?,
        () if args.is(1, "resetstat") => {
            call.front.node.statistics.reset();
            call.out.ok();
        }
        () if args.is(1, "rewrite") => rewrite(call)?,
        () => help(
            call.out,
            "CONFIG",
            &[
                ("GET <pattern> [<pattern> ...]", "The directives that match, with their values."),
                ("SET <directive> <value> [<directive> <value> ...]", "Change directives, all or none."),
                ("RESETSTAT", "Begin to count anew what INFO shows."),
                ("REWRITE", "Write the configuration to its file."),
            ],
        ),
    }
    Ok(())
}

/// One change at a time: applying one takes more steps than replacing the configuration.
static CHANGING: Mutex<()> = Mutex::new(());

fn set(call: &mut Call<'_>) -> Result<(), Error> {
    let args = call.args;
    if !args.len().is_multiple_of(2) {
        return Err(Error::WrongArity("config|set".into()));
    }
    let pairs: Vec<(&[u8], &[u8])> = args[2..].chunks_exact(2).map(|pair| (pair[0], pair[1])).collect();
    let asker = Asker { local: protected::is_local(call.conn.session.info().peer.ip()) };
    let node = &call.front.node;
    let _alone = CHANGING.lock().unwrap_or_else(PoisonError::into_inner);
    let present = node.config.snapshot();
    let error = |text: String| Error::owned(format!("ERR {text}"));
    let mut change = runtime::set(&present, &pairs, asker).map_err(error)?;
    apply(node, &present, &mut change).map_err(error)?;
    node.config.replace(change.config);
    call.front.config = node.config.snapshot();
    node.wake_all();
    call.out.ok();
    Ok(())
}

/// Does what the changed directives ask for besides being looked up.
///
/// # Errors
/// The text after `ERR `; then nothing has been done.
fn apply(node: &Node, present: &Config, change: &mut Change) -> Result<(), String> {
    let name_of = |hook: Apply| {
        change.changed.iter().find(|directive| directive.apply == hook).map_or("", |directive| directive.name)
    };
    let hooks = change.apply();
    // What can fail comes first, and is undone if something after it fails.
    let mut listeners = None;
    if hooks.contains(&Apply::Listeners) {
        let name = name_of(Apply::Listeners);
        listeners = Some(prepare_listeners(node, &change.config).map_err(|error| failure(name, &error))?);
    }
    if hooks.contains(&Apply::MaxClients) {
        let wanted = change.config.maxclients;
        let (plan, _) = limits::adjust_files(wanted, node.map.shards() as u16)
            .map_err(|error| failure("maxclients", &error))?;
        if plan.maxclients < wanted {
            let text = format!(
                "The operating system is not able to handle the specified number of clients, try with {}",
                plan.maxclients
            );
            return Err(failure("maxclients", &text));
        }
    }
    if hooks.contains(&Apply::Dir) {
        change.config.dir = process::enter_dir(&change.config.dir).map_err(|error| failure("dir", &error))?;
    }
    // From here on nothing fails.
    if let Some(listeners) = listeners {
        let sockets =
            listeners.iter().map(|(_, socket)| socket.try_clone()).collect::<Result<Vec<OwnedFd>, _>>();
        match sockets {
            Ok(sockets) => {
                *node.tcp_listeners.lock().unwrap_or_else(PoisonError::into_inner) = listeners;
                node.order(LISTENING_SHARD, Order::Listen(sockets));
            }
            Err(error) => {
                if hooks.contains(&Apply::Dir) {
                    // It was the working directory a moment ago.
                    let _ = process::enter_dir(&present.dir);
                }
                return Err(failure("port", &error.to_string()));
            }
        }
    }
    if hooks.contains(&Apply::LogLevel) {
        crate::log::set_level(change.config.loglevel);
    }
    if hooks.contains(&Apply::SlowLog) {
        node.slowlog().trim(change.config.slowlog_max_len);
    }
    Ok(())
}

/// The shard whose ring accepts connections.
const LISTENING_SHARD: u16 = 0;

fn prepare_listeners(node: &Node, config: &Config) -> Result<Vec<(std::net::SocketAddr, OwnedFd)>, String> {
    let present = node.tcp_listeners.lock().unwrap_or_else(PoisonError::into_inner);
    listen::listen_all(config, &present, std::time::Duration::ZERO).map_err(|error| {
        crate::log_warning!("{error}");
        "Unable to listen on this port. Check server logs.".to_owned()
    })
}

/// `CONFIG REWRITE`. Writing a file takes longer than a shard may stand still, so another thread does it.
fn rewrite(call: &mut Call<'_>) -> Result<(), Error> {
    fn run(node: &Node) -> Result<(), Error> {
        let outcome = config::rewrite_file(&node.config.snapshot(), node.config_path.as_deref());
        match &outcome {
            Ok(()) => crate::log_notice!("CONFIG REWRITE executed with success."),
            Err(error) => crate::log_warning!("CONFIG REWRITE failed: {error}"),
        }
        outcome.map_err(|error| Error::owned(format!("ERR {error}")))
    }
    if call.conn.waiting {
        // Within a transaction there is no later.
        run(&call.front.node)?;
        call.out.ok();
        return Ok(());
    }
    let (node, shard, conn) = (call.front.node.clone(), call.front.id, call.conn.id);
    let work = move || {
        let mut out = Reply::default();
        match run(&node) {
            Ok(()) => out.ok(),
            Err(error) => out.error(&error.to_string()),
        }
        node.order(shard, Order::Answer(conn, out.buf));
    };
    let spawned = crate::background::spawn("braid-rewrite", work);
    spawned.map_err(|error| Error::owned(format!("ERR Rewriting config file: {error}")))?;
    call.conn.waiting = true;
    Ok(())
}
