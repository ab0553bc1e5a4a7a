//! Running commands: alone, in a row, as a transaction whose keys all live here.

use super::{Host, ParkedRun, Ran, Shard};
use crate::parcel::{Caller, RunFlags};
use crate::unit::{Commands, Decoded, Invocation, Unit};
use braid_core::command::{Args, Command, Ctx, Error, Flags, Handler, Walk, WholeCtx, registry};
use braid_core::keyspace::{Keys, Keyspace, WatcherId};
use braid_core::resp::Reply;

/// Whether a command looks at all keys of a slice: one on loan is among them.
pub(super) fn walks_keys(command: &Command) -> bool {
    matches!(command.handler, Handler::Cursor(_))
}

impl Shard {
    /// Whether a command must wait for a transaction to return one of its keys, or for a snapshot to write it.
    fn is_blocked(&mut self, command: &Command, args: Args<'_>) -> bool {
        let is_walked = self.keyspace.as_ref().is_some_and(|keyspace| keyspace.has_snapshot());
        if is_walked && command.flags.has(Flags::WRITE) {
            let keys = command.find_keys(args).unwrap_or_default();
            if self.awaits_walk(keys.iter().map(|key| args[key.index])) {
                return true;
            }
        }
        if self.locks.is_empty() {
            return false;
        }
        self.locks.blocks_all()
            || walks_keys(command) && self.locks.has_loans()
            || command
                .find_keys(args)
                .is_some_and(|keys| keys.iter().any(|key| self.locks.blocks(args[key.index])))
    }

    /// Runs a command of this shard's own connection on this shard's keys.
    #[inline]
    pub fn run(
        &mut self,
        caller: Caller,
        call: Invocation<'_>,
        out: &mut Reply,
        host: &mut impl Host,
    ) -> Ran {
        let command = registry().get(call.id).resolve(call.args);
        if self.is_blocked(command, call.args) {
            let mut unit = Unit::default();
            unit.add(call);
            let done = Reply::new(caller.flags.resp3);
            self.park(ParkedRun::new(self.id, caller, None, unit, done));
            return Ran::Parked;
        }
        let start_ns = host.monotonic_ns();
        self.run_now(start_ns, caller, call, out, host);
        Ran::Done
    }

    /// Runs one command that nothing blocks; see [`Shard::run_since`].
    #[inline]
    fn run_now(
        &mut self,
        start_ns: u64,
        caller: Caller,
        call: Invocation<'_>,
        out: &mut Reply,
        host: &mut impl Host,
    ) -> u64 {
        let mut keyspace = self.keyspace.take().expect("not on loan: nothing blocks");
        let end_ns = self.run_since(start_ns, &mut keyspace, caller, call, out, host);
        self.keyspace = Some(keyspace);
        end_ns
    }

    /// Runs one command on a keyspace: this shard's slice, or a transaction's scratch.
    #[inline]
    pub(crate) fn run_on(
        &mut self,
        keyspace: &mut Keyspace,
        caller: Caller,
        call: Invocation<'_>,
        out: &mut Reply,
        host: &mut impl Host,
    ) {
        let start_ns = host.monotonic_ns();
        self.run_since(start_ns, keyspace, caller, call, out, host);
    }

    /// As [`Shard::run_on`], for one of several commands in a row: its time is counted from `start_ns`, and what is returned is
    /// when it ended, which is when the next one starts. To read the clock takes as long as a tenth of a command.
    #[inline]
    pub(crate) fn run_since(
        &mut self,
        start_ns: u64,
        keyspace: &mut Keyspace,
        caller: Caller,
        call: Invocation<'_>,
        out: &mut Reply,
        host: &mut impl Host,
    ) -> u64 {
        let (Caller { conn, flags, watcher }, Invocation { id, db, args }) = (caller, call);
        let mark = out.mark();
        let command = registry().get(id).resolve(args);
        let replica = self.replica;
        let refusal = self.refusal(command, flags);
        let outcome = match command.handler {
            _ if let Some(error) = refusal => Err(error),
            Handler::Keys(run) | Handler::Cursor(Walk { slice: run, .. }) => run(
                &mut Ctx {
                    keys: Keys {
                        space: keyspace,
                        effects: &mut self.effects,
                        settings: &self.settings,
                        db,
                        now_ms: self.time.ms(),
                        replica,
                        from_master: flags.from_master,
                        no_touch: flags.no_touch,
                    },
                    out,
                    rng: &mut self.rng,
                    time: self.time,
                    watcher,
                    shard: self.id,
                    shards: self.map.shards() as u16,
                },
                args,
            ),
            Handler::Whole(run) => run(
                &mut WholeCtx {
                    slices: &mut [keyspace],
                    effects: &mut self.effects,
                    out,
                    rng: &mut self.rng,
                    settings: &self.settings,
                    db,
                    time: self.time,
                    replica,
                },
                args,
            ),
            Handler::Session => host.session(conn, id, args, out),
        };
        let failed = outcome.is_err();
        if let Err(error) = outcome {
            out.truncate(mark);
            self.failed(flags, &error, out);
        }
        let end_ns = host.monotonic_ns();
        let took_ns = end_ns.saturating_sub(start_ns);
        self.stats.called(id, command, took_ns, failed);
        host.took(conn, took_ns, args);
        end_ns
    }

    /// Why this node's role does not let a command run, if so. Its connection was asked before, but the role may have
    /// changed while it was on its way, or the dataset may have gone.
    #[inline]
    pub(crate) fn refusal(&self, command: &Command, flags: RunFlags) -> Option<Error> {
        if !self.replica || flags.from_master {
            return None;
        }
        if self.is_gone && !command.flags.has(Flags::LOADING) && !command.flags.has(Flags::INTERNAL) {
            return Some(Error::Loading);
        }
        (self.is_read_only && command.is_write()).then_some(Error::ReadOnly)
    }

    /// A command failed: answers with the error and counts it.
    #[cold]
    pub(crate) fn failed(&mut self, flags: RunFlags, error: &Error, out: &mut Reply) {
        let text = error.to_string();
        out.error(&text);
        self.stats.error(&text);
        if flags.from_master {
            self.stream_fault.get_or_insert(text);
        }
    }

    /// The first error of a command of the master's stream that ran here since this was last asked.
    pub fn take_stream_fault(&mut self) -> Option<String> {
        self.stream_fault.take()
    }

    /// Runs commands until the end (true) or until one is blocked; then `commands` stands before that one.
    pub(super) fn run_commands(
        &mut self,
        caller: Caller,
        commands: &mut Commands<'_>,
        out: &mut Reply,
        host: &mut impl Host,
    ) -> bool {
        let watcher = caller.watcher;
        if caller.flags.atomic {
            let all = Commands::new(commands.rest(), commands.shared());
            let mut count = 0;
            for command in all {
                count += 1;
                if self.is_blocked(registry().get(command.id).resolve(command.args()), command.args()) {
                    return false;
                }
            }
            // A watched key on loan may have been changed already, though that is not known here before it is back.
            if self.locks.blocks_all() || watcher.is_some_and(|watcher| self.is_watched_on_loan(watcher)) {
                return false;
            }
            if watcher.is_some_and(|watcher| self.forget_watcher(watcher)) {
                out.null_array();
                return true;
            }
            out.array(count);
            self.effects.begin_multi();
            let (mut command, mut now_ns) = (Decoded::default(), host.monotonic_ns());
            while commands.decode(&mut command) {
                now_ns = self.run_now(now_ns, caller, command.invocation(), out, host);
            }
            self.effects.end_multi();
            return true;
        }
        let (mut command, mut now_ns) = (Decoded::default(), host.monotonic_ns());
        loop {
            let rest = commands.rest();
            if !commands.decode(&mut command) {
                return true;
            }
            if self.is_blocked(registry().get(command.id).resolve(command.args()), command.args()) {
                commands.rewind(rest);
                return false;
            }
            now_ns = self.run_now(now_ns, caller, command.invocation(), out, host);
        }
    }

    /// Whether something that a connection watches here is on loan.
    fn is_watched_on_loan(&self, watcher: WatcherId) -> bool {
        let keyspace = self.keyspace.as_ref().expect("not on loan as a whole");
        !self.locks.is_empty() && keyspace.watches.keys(watcher).any(|key| self.locks.blocks(key))
    }

    /// Ends a connection's watch over this slice; true if something it watched changed.
    pub(crate) fn forget_watcher(&mut self, watcher: WatcherId) -> bool {
        let now_ms = self.time.ms();
        let keyspace = self.keyspace.as_mut().expect("not on loan");
        let dirty = keyspace.watch_is_dirty(watcher, now_ms);
        keyspace.watches.unwatch(watcher);
        dirty
    }
}
