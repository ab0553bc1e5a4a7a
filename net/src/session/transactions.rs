//! `MULTI`, `EXEC`, `WATCH`, and commands that take several steps.

use super::dispatch::{Flow, call};
use super::survey::Survey;
use super::table::Call;
use super::{Multi, Steps, watcher};
use crate::engine::{Conn, Engine};
use braid_core::command::{Args, Command, CommandId, Error, Flags, registry};
use braid_shards::{Caller, Host, Plan, RunFlags, ShardId, Unit, Work};

/// Bytes of queued commands a transaction may hold (Redis bounds them with the query buffer limit).
const QUEUE_MAX_LEN_BYTES: usize = 1 << 30;

impl Engine {
    /// A command of the connection, or any command within a transaction.
    pub(super) fn session_command(
        &mut self,
        conn: &mut Conn,
        id: CommandId,
        command: &'static Command,
        args: Args<'_>,
    ) -> Flow {
        let start_ns = self.front().clock.now_ns();
        let mark = conn.out.mark();
        let outcome = match command.name {
            "multi" => begin_multi(conn),
            "exec" => self.exec(conn),
            "discard" => self.discard(conn),
            "watch" if conn.session.multi.is_none() => self.watch(conn, args),
            // An error of the caller, but not one of the transaction, which may still be executed.
            "watch" => Err(Error::text("ERR WATCH inside MULTI is not allowed")),
            "unwatch" if conn.session.multi.is_none() => {
                self.drop_watches(conn);
                conn.out.ok();
                Ok(())
            }
            "quit" | "reset" => {
                conn.session.multi = None;
                self.drop_watches(conn);
                self.call_session(conn, id, args)
            }
            _ if conn.session.multi.is_some() => {
                // Counted when it is executed.
                if let Err(error) = queue(conn, id, command, args, self.front().config.databases as usize) {
                    let text = error.to_string();
                    self.shard().stats.rejected(id, command, &text);
                    conn.out.error(&text);
                }
                return Flow::Done;
            }
            _ if super::survey::is_needed(args) => {
                self.begin_survey(conn, id, args);
                return Flow::Wait;
            }
            _ => self.call_session(conn, id, args),
        };
        let failed = outcome.is_err();
        if let Err(error) = outcome {
            let text = error.to_string();
            self.shard().stats.error(&text);
            conn.out.truncate(mark);
            conn.out.error(&text);
        }
        self.count_session(conn, id, command, args, start_ns, failed);
        match () {
            () if conn.closing => Flow::Close,
            () if conn.waiting => Flow::Wait,
            () => Flow::Done,
        }
    }

    /// Counts a command that the session carried out.
    fn count_session(
        &mut self,
        conn: &Conn,
        id: CommandId,
        command: &'static Command,
        args: Args<'_>,
        start_ns: u64,
        failed: bool,
    ) {
        let (shard, front) = self.parts();
        let took_ns = front.clock.now_ns().saturating_sub(start_ns);
        shard.stats.called(id, command, took_ns, failed);
        front.took(conn.id, took_ns, args);
    }

    /// Begins a command that first reads the whole keyspace.
    fn begin_survey(&mut self, conn: &mut Conn, id: CommandId, args: Args<'_>) {
        let (survey, _) = registry().find(b"info|survey").expect("declared");
        let (mut command, mut unit) = (Unit::default(), Unit::default());
        command.push(id, conn.session.db, args);
        unit.push(survey, conn.session.db, Args::new(&[b"info|survey"], &[]));
        conn.session.steps = Some(Box::new(Steps::Survey { command, survey: Survey::default() }));
        let work = Work::Commands { caller: Caller::new(conn.id, RunFlags::default()), unit };
        self.shard().begin(None, work);
    }

    fn call_session(&mut self, conn: &mut Conn, id: CommandId, args: Args<'_>) -> Result<(), Error> {
        let mut out = std::mem::take(&mut conn.out);
        let outcome = call(self.front(), conn, id, args, &mut out);
        conn.out = out;
        // It may have been CONFIG SET, which holds for what follows in the pipeline.
        self.refresh_config();
        outcome
    }

    fn discard(&mut self, conn: &mut Conn) -> Result<(), Error> {
        if conn.session.multi.take().is_none() {
            return Err(Error::text("ERR DISCARD without MULTI"));
        }
        self.drop_watches(conn);
        conn.out.ok();
        Ok(())
    }

    /// Forgets what a connection watches, here and at the owners.
    pub(crate) fn drop_watches(&mut self, conn: &mut Conn) {
        let Some(watching) = conn.session.watching.take() else { return };
        let (shard, front) = self.parts();
        shard.unwatch(watcher(front.id, conn.id), watching.shards);
    }

    fn watch(&mut self, conn: &mut Conn, args: Args<'_>) -> Result<(), Error> {
        let map = self.front().node.map;
        let (id, _) = registry().find(b"watch|here").expect("declared");
        let mut by_shard: Vec<(ShardId, Vec<&[u8]>)> = Vec::new();
        for key in &args[1..] {
            let owner = map.shard_of(key);
            match by_shard.iter_mut().find(|(shard, _)| *shard == owner) {
                Some((_, list)) => list.push(key),
                None => by_shard.push((owner, vec![b"watch|here", key])),
            }
        }
        let db = conn.session.db;
        let watching = conn.session.watching.get_or_insert_default();
        for key in &args[1..] {
            watching.keys.push((*key).into());
        }
        let mut steps = Vec::new();
        for (shard, list) in &by_shard {
            if !watching.shards.contains(shard) {
                watching.shards.push(*shard);
            }
            let mut unit = Unit::default();
            unit.push(id, db, Args::new(list, &[]));
            steps.push((*shard, unit));
        }
        conn.session.steps = Some(Box::new(Steps::Watch(steps)));
        self.next_step(conn);
        conn.waiting = true;
        Ok(())
    }

    /// Goes on with a command that takes several steps, after the answer to one of them.
    pub(crate) fn next_step(&mut self, conn: &mut Conn) {
        let Some(mut steps) = conn.session.steps.take() else { return };
        match &mut *steps {
            Steps::Watch(left) => match left.pop() {
                None => conn.out.ok(),
                Some((shard, unit)) => {
                    let command = unit.commands().next().expect("one command");
                    conn.session.steps = Some(steps);
                    self.send_step(conn, shard, command.id, command.args());
                }
            },
            Steps::Survey { command, survey } => {
                let start_ns = self.front().clock.now_ns();
                let queued = command.commands().next().expect("one command");
                let declared = registry().get(queued.id).resolve(queued.args());
                super::survey::answer(self.front(), conn, queued.args(), survey);
                self.count_session(conn, queued.id, declared, queued.args(), start_ns, false);
            }
            Steps::Refused(error) => conn.out.append_encoded(error, Vec::new()),
            Steps::Keys { found, count, cursor, .. } => match *cursor {
                Some(0) => {
                    let (found, count) = (std::mem::take(found), *count);
                    conn.out.array(count);
                    conn.out.append_encoded(&found, Vec::new());
                }
                next => {
                    conn.session.steps = Some(steps);
                    self.scan_step(conn, next.unwrap_or(0));
                }
            },
        }
    }

    /// One step of `KEYS`: a stretch of the keyspace from a SCAN cursor on.
    pub(super) fn scan_step(&mut self, conn: &mut Conn, cursor: u64) {
        const STEP_COUNT: &[u8] = b"1000";
        let Some(Steps::Keys { pattern, .. }) = conn.session.steps.as_deref() else {
            unreachable!("a step of KEYS")
        };
        let cursor = cursor.to_string();
        let pattern = pattern.clone();
        let args: [&[u8]; 6] = [b"scan", cursor.as_bytes(), b"match", &pattern, b"count", STEP_COUNT];
        let args = Args::new(&args, &[]);
        let (id, _) = registry().find(b"scan").expect("declared");
        let shards = self.front().node.map.shards() as u16;
        let to = braid_core::commands::scan::scan_shard(args, shards).expect("a cursor that a shard gave");
        self.send_step(conn, to, id, args);
    }

    fn exec(&mut self, conn: &mut Conn) -> Result<(), Error> {
        let Some(multi) = conn.session.multi.take() else {
            return Err(Error::text("ERR EXEC without MULTI"));
        };
        let watching = conn.session.watching.take();
        if multi.failed {
            conn.session.watching = watching;
            self.drop_watches(conn);
            return Err(Error::text("EXECABORT Transaction discarded because of previous errors."));
        }
        let (map, here) = (self.front().node.map, self.front().id);
        let who = watching.as_ref().map(|_| watcher(here, conn.id));
        let flags = RunFlags { atomic: true, ..conn.session.flags };
        let watched = watching.iter().flat_map(|watching| watching.keys.iter().map(|key| &**key));
        let Plan { everywhere, keys, owners, has_session } = Plan::of(&multi.unit, watched, map);
        let unit = multi.unit;
        let caller = Caller { conn: conn.id, flags, watcher: who };
        let shard = self.shard();
        match owners.as_slice() {
            _ if everywhere => shard.begin(None, Work::Commands { caller, unit }),
            [] => shard.run_later(caller, unit),
            [owner] if *owner == here => shard.run_later(caller, unit),
            [owner] if !has_session => shard.dispatch_atomic(*owner, caller, &unit),
            _ => shard.begin(Some(keys), Work::Commands { caller, unit }),
        }
        conn.waiting = true;
        Ok(())
    }
}

/// `UNWATCH` within a transaction: when it is executed, nothing is watched any more.
///
/// # Errors
/// None.
pub fn unwatch(call: &mut Call<'_>) -> Result<(), Error> {
    call.out.ok();
    Ok(())
}

fn begin_multi(conn: &mut Conn) -> Result<(), Error> {
    if conn.session.multi.is_some() {
        return Err(Error::text("ERR MULTI calls can not be nested"));
    }
    conn.session.multi = Some(Box::new(Multi { db: conn.session.db, ..Multi::default() }));
    conn.out.ok();
    Ok(())
}

fn queue(
    conn: &mut Conn,
    id: CommandId,
    command: &Command,
    args: Args<'_>,
    databases: usize,
) -> Result<(), Error> {
    let multi = conn.session.multi_mut();
    let refused = match command.name {
        "watch" => Some(Error::text("ERR WATCH inside MULTI is not allowed")),
        _ if command.flags.has(Flags::NO_MULTI) => {
            Some(Error::text("ERR Command not allowed inside a transaction"))
        }
        _ => None,
    };
    if let Some(error) = refused {
        multi.failed = true;
        return Err(error);
    }
    if multi.unit.len_bytes() > QUEUE_MAX_LEN_BYTES {
        multi.failed = true;
        return Err(Error::text("ERR transaction queue is too large"));
    }
    // What follows a SELECT in the queue is for the database it selects; a bad index fails when it is executed.
    if command.name == "select"
        && let Ok(db) = super::connection::parse_db(args[1], databases)
    {
        multi.db = db;
    }
    multi.unit.push(id, multi.db, args);
    conn.out.simple("QUEUED");
    Ok(())
}

/// Notes the answer to a step.
pub fn step_answered(conn: &mut Conn, answer: &[u8]) {
    let steps = conn.session.steps.as_deref_mut();
    if let Some(steps @ Steps::Keys { .. }) = steps
        && answer.first() == Some(&b'-')
    {
        // There is no dataset any more.
        *steps = Steps::Refused(answer.to_vec());
    } else if let Some(Steps::Survey { survey, .. }) = conn.session.steps.as_deref_mut() {
        *survey = Survey::read(answer);
    } else if let Some(Steps::Keys { found, count, cursor, .. }) = conn.session.steps.as_deref_mut() {
        let (next, keys, elements) = read_scan_answer(answer);
        *cursor = Some(next);
        *count += elements;
        found.extend_from_slice(keys);
    }
}

/// Takes a SCAN reply apart: the cursor, the encoded elements, how many there are.
fn read_scan_answer(answer: &[u8]) -> (u64, &[u8], usize) {
    let mut lines = answer.splitn(5, |byte| *byte == b'\n');
    let mut line = || lines.next().map(|line| line.strip_suffix(b"\r").unwrap_or(line)).expect("five lines");
    assert_eq!(line(), b"*2", "the shape of a SCAN reply");
    line();
    let number = |text: &[u8]| std::str::from_utf8(text).ok().and_then(|text| text.parse::<u64>().ok());
    let cursor = number(line()).expect("a cursor");
    let count = number(&line()[1..]).expect("a count");
    (cursor, lines.next().unwrap_or_default(), count as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scan_reply_is_taken_apart() {
        let reply = b"*2\r\n$2\r\n17\r\n*2\r\n$1\r\na\r\n$1\r\nb\r\n";
        assert_eq!(read_scan_answer(reply), (17, &b"$1\r\na\r\n$1\r\nb\r\n"[..], 2));
        assert_eq!(read_scan_answer(b"*2\r\n$1\r\n0\r\n*0\r\n"), (0, &b""[..], 0));
    }
}
