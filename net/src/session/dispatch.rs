//! From a parsed command to the shard that runs it, in program order (law 2).
//!
//! The rule itself is in [`braid_shards::pipeline`]: a pipeline's commands go to their shards at once. ARCHITECTURE.md tells
//! what that was measured against.

use super::table::{Call, implementation};
use super::{Multi, ReplyMode, Session, Steps, watcher};
use crate::engine::{Conn, Engine, Front};
use braid_core::command::{Args, Command, CommandId, Error, Flags, Handler, Outcome, registry};
use braid_core::resp::Reply;
use braid_shards::stats::slot;
use braid_shards::{
    Admit, Caller, Invocation, LockKey, Pipeline, Place, Ran, RunFlags, Shard, ShardId, Target, Unit, Work,
    place,
};
use std::sync::atomic::Ordering;

/// What became of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// Answered, or sent where more of this connection's commands may follow.
    Done,
    /// Nothing further may be run before its answer comes.
    Wait,
    /// Not run: it has to wait for the answer to what was sent before.
    Later,
    Close,
}

/// A command with the id of its container.
type Found = (CommandId, &'static Command);

impl Engine {
    /// Runs or sends one parsed command. `pipeline`: what earlier commands of this batch opened.
    pub(crate) fn command(&mut self, conn: &mut Conn, args: Args<'_>, pipeline: &mut Pipeline) -> Flow {
        if conn.out.buf.capacity() == 0 {
            conn.out.buf = self.front().buffer();
        }
        conn.out.resp3 = conn.session.flags.resp3;
        let (mark, reply_mode) = (conn.out.mark(), conn.session.reply);
        let flow = self.check_and_dispatch(conn, args, pipeline);
        if reply_mode != ReplyMode::On && reply_mode == conn.session.reply && flow != Flow::Later {
            return mute(conn, mark, flow, pipeline.is_open());
        }
        flow
    }

    fn check_and_dispatch(&mut self, conn: &mut Conn, args: Args<'_>, pipeline: &mut Pipeline) -> Flow {
        match self.check(conn, args) {
            Ok((id, command)) => {
                conn.session.info().command.store(slot(id, command) as u32 + 1, Ordering::Relaxed);
                let flow = self.dispatch(conn, id, command, args, pipeline);
                conn.session.info().commands.add(u64::from(flow != Flow::Later));
                flow
            }
            // An error is an answer too, and waits for its turn.
            Err(_) if pipeline.is_open() => Flow::Later,
            Err((id, error)) => {
                let text = self.refused(conn, id.map(|(id, _)| id), error);
                match id {
                    Some((id, command)) => self.parts().0.stats.rejected(id, command, &text),
                    None => self.parts().0.stats.error(&text),
                }
                conn.out.error(&text);
                if let Some(multi) = &mut conn.session.multi {
                    multi.failed = true;
                }
                Flow::Done
            }
        }
    }

    /// The text for a command that is refused before it runs. An `EXEC` that is refused ends its transaction.
    fn refused(&mut self, conn: &mut Conn, id: Option<CommandId>, error: Error) -> String {
        let text = error.to_string();
        if id.is_none_or(|id| registry().get(id).name != "exec") {
            return text;
        }
        conn.session.multi = None;
        self.drop_watches(conn);
        format!("EXECABORT Transaction discarded because of: {}", text.strip_prefix("ERR ").unwrap_or(&text))
    }

    /// Everything that can be said of a command before it runs.
    fn check(&mut self, conn: &Conn, args: Args<'_>) -> Result<Found, (Option<Found>, Error)> {
        let known = registry().find(args[0]).filter(|(_, command)| !command.flags.has(Flags::INTERNAL));
        let Some((id, container)) = known else {
            return Err((None, unknown_command(args)));
        };
        let command = container.resolve(args);
        let refuse = |error| Err((Some((id, command)), error));
        if !container.subcommands.is_empty() && args.len() > 1 && std::ptr::eq(command, container) {
            return refuse(Error::unknown_subcommand(container.name, args[1]));
        }
        if !command.accepts(args.len()) {
            let name = if std::ptr::eq(command, container) {
                command.name.to_string()
            } else {
                format!("{}|{}", container.name, command.name)
            };
            return refuse(Error::WrongArity(name.into()));
        }
        if !conn.session.authenticated && !command.flags.has(Flags::NO_AUTH) {
            return refuse(Error::text("NOAUTH Authentication required."));
        }
        self.front().admits(conn, container, command).map_err(|error| (Some((id, command)), error))?;
        Ok((id, command))
    }

    fn dispatch(
        &mut self,
        conn: &mut Conn,
        id: CommandId,
        command: &'static Command,
        args: Args<'_>,
        pipeline: &mut Pipeline,
    ) -> Flow {
        if self.front().node.pause.is_set()
            && let Some(mode) = self.front().held_back_by(conn, command)
        {
            if !pipeline.is_open() {
                self.front().suspend(conn, mode);
            }
            return Flow::Later;
        }
        let is_session = matches!(command.handler, Handler::Session);
        if pipeline.is_open() && (is_session || conn.session.multi.is_some()) {
            return Flow::Later;
        }
        if is_session || conn.session.multi.is_some() {
            if self.front().is_behind(conn, command) {
                return Flow::Later;
            }
            return self.session_command(conn, id, command, args);
        }
        let map = self.front().node.map;
        let here = self.front().id;
        let place = match command.handler {
            _ if matches!(command.handler, Handler::Cursor(_)) || command.name == "keys" => {
                if pipeline.is_open() {
                    return Flow::Later;
                }
                match self.place_cursor(conn, command, args) {
                    Ok(Some(to)) => Place::One(to),
                    Ok(None) => return Flow::Wait,
                    Err(error) => {
                        conn.out.error(&error.to_string());
                        return Flow::Done;
                    }
                }
            }
            _ => place(command, args, map, here),
        };
        let caller = Caller::new(conn.id, conn.session.flags);
        let call = Invocation { id, db: conn.session.db, args };
        let target = match place {
            Place::One(to) if to == here => Target::Here,
            Place::One(to) => Target::Shard(to),
            Place::Several(_) | Place::Everywhere => Target::Alone,
        };
        let admit = pipeline.admit(target);
        match place {
            _ if admit == Admit::Later => Flow::Later,
            Place::One(_) if admit == Admit::Run => {
                let (shard, front) = self.parts();
                match shard.run(caller, call, &mut conn.out, front) {
                    Ran::Done => Flow::Done,
                    Ran::Parked => Flow::Wait,
                }
            }
            Place::One(to) => {
                self.parts().0.submit(pipeline, to, caller, call);
                Flow::Done
            }
            Place::Several(keys) => self.begin(conn, Some(keys), id, args),
            Place::Everywhere => self.begin(conn, None, id, args),
        }
    }

    /// Begins a transaction of one command over several shards.
    fn begin(&mut self, conn: &mut Conn, keys: Option<Vec<LockKey>>, id: CommandId, args: Args<'_>) -> Flow {
        let mut unit = Unit::default();
        unit.push(id, conn.session.db, args);
        let work = Work::Commands { caller: Caller::new(conn.id, conn.session.flags), unit };
        self.parts().0.begin(keys, work);
        Flow::Wait
    }

    /// The shard that a cursor command goes to; None: it is done in steps that have been begun.
    fn place_cursor(
        &mut self,
        conn: &mut Conn,
        command: &Command,
        args: Args<'_>,
    ) -> Result<Option<ShardId>, Error> {
        if command.name == "keys" {
            conn.session.steps = Some(Box::new(Steps::Keys {
                pattern: args[1].into(),
                found: Vec::new(),
                count: 0,
                cursor: None,
            }));
            self.scan_step(conn, 0);
            return Ok(None);
        }
        let shards = self.front().node.map.shards() as u16;
        braid_core::commands::scan::scan_shard(args, shards).map(Some)
    }

    /// Sends a command of this connection to a shard, here or elsewhere, whose answer a step waits for.
    pub(super) fn send_step(&mut self, conn: &mut Conn, to: ShardId, id: CommandId, args: Args<'_>) {
        let (shard, front) = self.parts();
        let caller =
            Caller { conn: conn.id, flags: RunFlags::default(), watcher: Some(watcher(front.id, conn.id)) };
        let call = Invocation { id, db: conn.session.db, args };
        conn.waiting = true;
        if to == front.id {
            let mut unit = Unit::default();
            unit.add(call);
            shard.run_later(caller, unit);
        } else {
            shard.submit(&mut Pipeline::default(), to, caller, call);
        }
    }

    pub(crate) fn front(&mut self) -> &mut Front {
        self.parts().1
    }

    pub(crate) fn shard(&mut self) -> &mut Shard {
        self.parts().0
    }
}

impl Front {
    /// Whether the node's state lets a command run now.
    fn admits(&mut self, conn: &Conn, container: &Command, command: &Command) -> Result<(), Error> {
        if command.flags.has(Flags::ADMIN) && container.name == "debug" {
            super::debug::permitted(self, conn)?;
        }
        let persistence = &self.node.persistence;
        if persistence.is_broken()
            && (command.flags.has(Flags::WRITE) || command.name == "ping")
            && self.config.stop_writes_on_bgsave_error
            && !self.config.save.0.is_empty()
        {
            return Err(Error::text(super::saving::MISCONF));
        }
        if command.flags.has(Flags::DENYOOM) && self.node.is_out_of_memory(self.config.maxmemory_bytes) {
            return Err(Error::OutOfMemory);
        }
        if self.config.min_replicas_to_write > 0 && self.lacks_replicas(conn, command) {
            return Err(Error::text("NOREPLICAS Not enough good replicas to write."));
        }
        if self.node.is_replica() {
            self.role_admits(conn, command)?;
        }
        if self.node.persistence.is_loading() {
            self.loading_admits(conn, command)?;
        }
        Ok(())
    }
}

impl Front {
    /// Whether a node without a dataset lets a client's command run.
    #[cold]
    fn loading_admits(&self, conn: &Conn, command: &Command) -> Result<(), Error> {
        let needs_dataset = |command: &Command| !command.flags.has(Flags::LOADING);
        // A master that never sends one can be left, which in Redis has to wait.
        let leaves = self.node.persistence.has_gone() && matches!(command.name, "replicaof" | "slaveof");
        if (needs_dataset(command) && !leaves) || any_queued(conn, command, needs_dataset) {
            return Err(Error::Loading);
        }
        Ok(())
    }

    /// Whether a replica lets a client's command run.
    #[cold]
    fn role_admits(&self, conn: &Conn, command: &Command) -> Result<(), Error> {
        let any = |matches| any_queued(conn, command, matches);
        if self.config.replica_read_only && (command.is_write() || any(Command::is_write)) {
            return Err(Error::ReadOnly);
        }
        let is_stale = !self.config.replica_serve_stale_data && !self.node.is_link_up.load(Ordering::Relaxed);
        let needs_fresh = |command: &Command| !command.flags.has(Flags::STALE);
        if is_stale && (needs_fresh(command) || any(needs_fresh)) {
            return Err(Error::text(
                "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
            ));
        }
        Ok(())
    }
}

/// Of a transaction its commands count: whether one of them is such, if `EXEC` is to run them.
fn any_queued(conn: &Conn, command: &Command, matches: fn(&Command) -> bool) -> bool {
    let queued = conn.session.multi.as_ref().filter(|_| command.name == "exec");
    queued.is_some_and(|multi| {
        multi.unit.commands().any(|queued| matches(registry().get(queued.id).resolve(queued.args())))
    })
}

fn unknown_command(args: Args<'_>) -> Error {
    const QUOTED_MAX_LEN_BYTES: usize = 128;
    let clip = |arg: &[u8], len: usize| arg[..arg.len().min(len)].to_vec();
    let mut rest = Vec::new();
    for arg in &args[1..] {
        if rest.len() >= QUOTED_MAX_LEN_BYTES {
            break;
        }
        let arg = clip(arg, QUOTED_MAX_LEN_BYTES - rest.len());
        rest.extend_from_slice(&[b"'", &arg[..], b"' "].concat());
    }
    let name = clip(args[0], QUOTED_MAX_LEN_BYTES);
    let (name, rest) = (String::from_utf8_lossy(&name), String::from_utf8_lossy(&rest));
    Error::owned(format!("ERR unknown command '{name}', with args beginning with: {rest}"))
}

/// Keeps the answer to a command back, wherever it is (`CLIENT REPLY`).
fn mute(conn: &mut Conn, mark: (usize, usize), flow: Flow, is_on_its_way: bool) -> Flow {
    if conn.session.reply == ReplyMode::SkipNext {
        conn.session.reply = ReplyMode::On;
    }
    if flow == Flow::Wait || is_on_its_way {
        conn.muted = true;
        // What follows may have to be answered, so it must not travel with this.
        return Flow::Wait;
    }
    conn.out.truncate(mark);
    flow
}

/// Runs a command of the connection or the server.
///
/// # Errors
/// The command's; what it wrote before is then to be taken back.
pub fn call(front: &mut Front, conn: &mut Conn, id: CommandId, args: Args<'_>, out: &mut Reply) -> Outcome {
    let implementation = implementation(id).expect("every session command has one");
    implementation(&mut Call { front, conn, args, out })
}

impl Session {
    /// The transaction under construction, which must exist.
    pub(super) fn multi_mut(&mut self) -> &mut Multi {
        self.multi.as_deref_mut().expect("in a transaction")
    }
}
