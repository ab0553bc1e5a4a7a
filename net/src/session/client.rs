//! `CLIENT`: who is connected, and what a connection asks for itself.

use super::ReplyMode;
use super::clients::{Class, ClientInfo, Filter, flag, shard_of};
use super::connection::set_name;
use super::control::{Order, PauseMode, PausePurpose};
use super::table::{Call, subcommand_syntax};
use braid_core::command::{Args, Error};
use braid_core::commands::object::help;
use braid_core::resp::number::parse_i64;
use std::sync::Arc;

/// `CLIENT subcommand …`
pub fn client(call: &mut Call<'_>) -> Result<(), Error> {
    let args = call.args;
    match () {
        () if args.is(1, "id") => call.out.int(call.conn.session.client as i64),
        () if args.is(1, "getname") => {
            let name = call.conn.session.info().names().name;
            if name.is_empty() { call.out.null() } else { call.out.bulk(name.as_bytes()) }
        }
        () if args.is(1, "setname") => {
            set_name(&call.conn.session, args[2])?;
            call.out.ok();
        }
        () if args.is(1, "setinfo") => set_info(call)?,
        () if args.is(1, "info") => {
            let line = call.front.client_line(call.conn);
            call.out.verbatim(&format!("{line}\n"));
        }
        () if args.is(1, "list") => list(call)?,
        () if args.is(1, "kill") => kill(call)?,
        () if args.is(1, "no-evict") => {
            call.conn.session.no_evict = switch(args[2])?;
            call.out.ok();
        }
        () if args.is(1, "no-touch") => {
            call.conn.session.flags.no_touch = switch(args[2])?;
            call.out.ok();
        }
        () if args.is(1, "pause") => pause(call)?,
        () if args.is(1, "unpause") => {
            call.front.node.pause.end(PausePurpose::Client);
            call.front.node.wake_all();
            call.out.ok();
        }
        () if args.is(1, "reply") => reply(call)?,
        () if args.is(1, "unblock") => unblock(call)?,
        () => help(call.out, "CLIENT", HELP),
    }
    Ok(())
}

const HELP: &[(&str, &str)] = &[
    ("GETNAME", "The name of this connection."),
    ("ID", "The id of this connection."),
    ("INFO", "The line of this connection in CLIENT LIST."),
    ("KILL <ip:port>", "Close the connection from an address."),
    (
        "KILL <option> <value> [<option> <value> ...]",
        "Close connections by ID, TYPE (NORMAL|MASTER|REPLICA|PUBSUB), ADDR, LADDR, USER, MAXAGE; SKIPME (YES|NO) spares \
         this one (default: yes).",
    ),
    ("LIST [TYPE <type> | ID <id> [<id> ...]]", "A line for each connection."),
    ("NO-EVICT (ON|OFF)", "Protect this connection from eviction."),
    ("NO-TOUCH (ON|OFF)", "Leave the access times of keys alone."),
    ("PAUSE <milliseconds> [WRITE|ALL]", "Let all clients wait, or those that write."),
    ("REPLY (ON|OFF|SKIP)", "Whether commands are answered; SKIP: but for the next."),
    ("SETINFO (LIB-NAME|LIB-VER) <value>", "Tell the client's library."),
    ("SETNAME <name>", "Name this connection."),
    ("UNBLOCK <id> [TIMEOUT|ERROR]", "Let a client that waits in a blocking command go on."),
    ("UNPAUSE", "End a pause."),
];

/// `ON` or `OFF`.
fn switch(word: &[u8]) -> Result<bool, Error> {
    match () {
        () if word.eq_ignore_ascii_case(b"on") => Ok(true),
        () if word.eq_ignore_ascii_case(b"off") => Ok(false),
        () => Err(Error::Syntax),
    }
}

fn set_info(call: &mut Call<'_>) -> Result<(), Error> {
    let (option, value) = (call.args[2], call.args[3]);
    let is_name = option.eq_ignore_ascii_case(b"lib-name");
    if !is_name && !option.eq_ignore_ascii_case(b"lib-ver") {
        let option = String::from_utf8_lossy(option).into_owned();
        return Err(Error::owned(format!("ERR Unrecognized option '{option}'")));
    }
    if !value.iter().all(|byte| (b'!'..=b'~').contains(byte)) {
        let option = if is_name { "lib-name" } else { "lib-ver" };
        return Err(Error::owned(format!(
            "ERR {option} cannot contain spaces, newlines or special characters."
        )));
    }
    let value: Box<str> = String::from_utf8_lossy(value).into();
    call.conn.session.info().set_names(|names| {
        *(if is_name { &mut names.lib_name } else { &mut names.lib_ver }) = value;
    });
    call.out.ok();
    Ok(())
}

fn class(name: &[u8]) -> Result<Class, Error> {
    Class::by_name(name)
        .ok_or_else(|| Error::owned(format!("ERR Unknown client type '{}'", String::from_utf8_lossy(name))))
}

fn positive(text: &[u8]) -> Option<u64> {
    parse_i64(text).and_then(|number| u64::try_from(number).ok()).filter(|number| *number > 0)
}

fn list(call: &mut Call<'_>) -> Result<(), Error> {
    let args = call.args;
    let mut filter = Filter::default();
    match args.len() {
        2 => {}
        4 if args.is(2, "type") => filter.class = Some(class(args[3])?),
        4.. if args.is(2, "id") => {
            for id in &args[3..] {
                filter.ids.push(positive(id).ok_or(Error::text("ERR Invalid client ID"))?);
            }
        }
        _ => return Err(Error::Syntax),
    }
    // What this connection does now is not published before it is done.
    call.front.publish_client(call.conn);
    let mut text = String::new();
    for info in matching(call, &filter) {
        text.push_str(&info.line(call.front.uptime_s(), &call.front.config.unixsocket));
        text.push('\n');
    }
    call.out.verbatim(&text);
    Ok(())
}

fn matching(call: &Call<'_>, filter: &Filter) -> Vec<Arc<ClientInfo>> {
    let (now_s, unixsocket) = (call.front.uptime_s(), &call.front.config.unixsocket);
    let mut all = call.front.node.clients.all();
    all.retain(|info| filter.matches(info, now_s, unixsocket));
    all
}

/// Reads the filters of `CLIENT KILL`.
fn kill_filter(args: Args<'_>, own_id: u64) -> Result<Filter, Error> {
    if args.len() == 3 {
        return Ok(Filter { addr: Some(String::from_utf8_lossy(args[2]).into_owned()), ..Filter::default() });
    }
    let mut filter = Filter { skip: Some(own_id), ..Filter::default() };
    for pair in args[2..].chunks(2) {
        let &[option, value] = pair else { return Err(Error::Syntax) };
        let is = |word: &str| option.eq_ignore_ascii_case(word.as_bytes());
        let text = || Some(String::from_utf8_lossy(value).into_owned());
        match () {
            () if is("id") => {
                filter.ids =
                    vec![positive(value).ok_or(Error::text("ERR client-id should be greater than 0"))?];
            }
            () if is("maxage") => {
                let error = Error::text("ERR maxage is not an integer or out of range");
                let age_s = parse_i64(value).ok_or(error)?;
                let positive = u64::try_from(age_s).ok().filter(|age_s| *age_s > 0);
                filter.min_age_s = Some(positive.ok_or(Error::text("ERR maxage should be greater than 0"))?);
            }
            () if is("type") => filter.class = Some(class(value)?),
            () if is("addr") => filter.addr = text(),
            () if is("laddr") => filter.laddr = text(),
            // Every client is this user.
            () if is("user") && value == b"default" => {}
            () if is("user") => {
                let name = String::from_utf8_lossy(value).into_owned();
                return Err(Error::owned(format!("ERR No such user '{name}'")));
            }
            () if is("skipme") && value.eq_ignore_ascii_case(b"yes") => filter.skip = Some(own_id),
            () if is("skipme") && value.eq_ignore_ascii_case(b"no") => filter.skip = None,
            () => return Err(Error::Syntax),
        }
    }
    Ok(filter)
}

fn kill(call: &mut Call<'_>) -> Result<(), Error> {
    let own_id = call.conn.session.client;
    let filter = kill_filter(call.args, own_id)?;
    let victims = matching(call, &filter);
    for victim in &victims {
        if victim.id == own_id {
            // The answer goes out first.
            call.conn.closing = true;
        } else {
            call.front.node.order(super::clients::shard_of(victim.conn), Order::Close(victim.conn));
        }
    }
    match (call.args.len() == 3, victims.is_empty()) {
        (true, true) => return Err(Error::text("ERR No such client")),
        (true, false) => call.out.ok(),
        (false, _) => call.out.int(victims.len() as i64),
    }
    Ok(())
}

/// `CLIENT PAUSE timeout [WRITE|ALL]`
fn pause(call: &mut Call<'_>) -> Result<(), Error> {
    let args = call.args;
    let mode = match args.len() {
        3 => PauseMode::All,
        4 if args.is(3, "write") => PauseMode::Write,
        4 if args.is(3, "all") => PauseMode::All,
        4 => return Err(Error::text("ERR CLIENT PAUSE mode must be WRITE or ALL")),
        _ => return Err(subcommand_syntax("CLIENT", args[1])),
    };
    let number = parse_i64(args[2]).ok_or(Error::text("ERR timeout is not an integer or out of range"))?;
    let timeout_ms = u64::try_from(number).map_err(|_| Error::text("ERR timeout is negative"))?;
    let now_ms = call.front.now_ms();
    // The millisecond under way does not count: a pause is never shorter than asked for.
    let end_ms = now_ms.saturating_add(timeout_ms).saturating_add(u64::from(timeout_ms > 0));
    call.front.node.pause.begin(PausePurpose::Client, mode, end_ms, now_ms);
    call.out.ok();
    Ok(())
}

fn reply(call: &mut Call<'_>) -> Result<(), Error> {
    let args = call.args;
    let mode = &mut call.conn.session.reply;
    match () {
        () if args.is(2, "on") => {
            *mode = ReplyMode::On;
            call.out.ok();
        }
        () if args.is(2, "off") => *mode = ReplyMode::Off,
        () if args.is(2, "skip") => {
            if *mode != ReplyMode::Off {
                *mode = ReplyMode::SkipNext;
            }
        }
        () => return Err(Error::Syntax),
    }
    Ok(())
}

/// `CLIENT UNBLOCK id [TIMEOUT|ERROR]`. A pause is no such wait.
fn unblock(call: &mut Call<'_>) -> Result<(), Error> {
    let args = call.args;
    let known = args.len() == 3 || args.len() == 4 && (args.is(3, "timeout") || args.is(3, "error"));
    if args.len() > 4 {
        return Err(subcommand_syntax("CLIENT", args[1]));
    }
    if !known {
        return Err(Error::text("ERR CLIENT UNBLOCK reason should be TIMEOUT or ERROR"));
    }
    let id = parse_i64(args[2]).ok_or(Error::NotInteger)?;
    let waiting = call.front.node.clients.all().into_iter().find(|info| info.id as i64 == id);
    let waiting = waiting.filter(|info| info.has(flag::AWAITS_REPLICAS));
    call.out.int(i64::from(waiting.is_some()));
    if let Some(info) = waiting {
        let error = args.len() == 4 && args.is(3, "error");
        call.front.node.order(shard_of(info.conn), Order::Unblock { conn: info.conn, error });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Filter, String> {
        let list: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        kill_filter(Args::new(&list, &[]), 7).map_err(|error| error.to_string())
    }

    #[test]
    fn kill_takes_an_address_or_filters() {
        let old = parsed("client kill 1.2.3.4:5").unwrap();
        assert_eq!((old.addr.as_deref(), old.skip), (Some("1.2.3.4:5"), None));
        let new = parsed("client kill ID 3 TYPE replica LADDR 1.1.1.1:1 MAXAGE 9 USER default").unwrap();
        assert_eq!(
            (new.ids, new.class, new.min_age_s, new.skip),
            (vec![3], Some(Class::Replica), Some(9), Some(7))
        );
        assert_eq!(parsed("client kill skipme no addr x:1").unwrap().skip, None);
        for (line, error) in [
            ("client kill id 0", "ERR client-id should be greater than 0"),
            ("client kill id x", "ERR client-id should be greater than 0"),
            ("client kill type foo", "ERR Unknown client type 'foo'"),
            ("client kill user foo", "ERR No such user 'foo'"),
            ("client kill skipme maybe", "ERR syntax error"),
            ("client kill maxage 0", "ERR maxage should be greater than 0"),
            ("client kill maxage x", "ERR maxage is not an integer or out of range"),
            ("client kill id 1 addr", "ERR syntax error"),
            ("client kill what 1", "ERR syntax error"),
        ] {
            assert_eq!(parsed(line).unwrap_err(), error, "{line}");
        }
    }
}
