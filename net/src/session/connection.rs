//! Commands about the connection: who it is and how it speaks.

use super::{Call, Session};
use braid_core::command::Error;
use braid_core::resp::number::parse_i64;

/// `PING [message]`
pub fn ping(call: &mut Call<'_>) -> Result<(), Error> {
    match call.args.len() {
        1 => call.out.simple("PONG"),
        2 => call.out.bulk(call.args[1]),
        _ => return Err(Error::WrongArity("ping".into())),
    }
    Ok(())
}

/// `ECHO message`
pub fn echo(call: &mut Call<'_>) -> Result<(), Error> {
    call.out.bulk(call.args[1]);
    Ok(())
}

/// The database that an argument names.
///
/// # Errors
/// Redis's texts for what is no number and for what is out of range.
pub fn parse_db(arg: &[u8], databases: usize) -> Result<u16, Error> {
    let index = parse_i64(arg).ok_or(Error::NotInteger)?;
    if i32::try_from(index).is_err() {
        return Err(Error::text("ERR value is out of range, value must between -2147483648 and 2147483647"));
    }
    usize::try_from(index)
        .ok()
        .filter(|index| *index < databases)
        .map(|index| index as u16)
        .ok_or(Error::text("ERR DB index is out of range"))
}

/// `SELECT index`
pub fn select(call: &mut Call<'_>) -> Result<(), Error> {
    call.conn.session.db = parse_db(call.args[1], call.front.config.databases as usize)?;
    call.out.ok();
    Ok(())
}

/// `QUIT`
pub fn quit(call: &mut Call<'_>) -> Result<(), Error> {
    call.out.ok();
    call.conn.closing = true;
    Ok(())
}

/// Compares without telling by its duration where the difference is.
fn same_secret(given: &[u8], wanted: &[u8]) -> bool {
    let mut difference = given.len() ^ wanted.len();
    for (index, byte) in given.iter().enumerate() {
        difference |= usize::from(byte ^ wanted.get(index).copied().unwrap_or(0));
    }
    difference == 0
}

fn authenticate(call: &mut Call<'_>, user: &[u8], password: &[u8]) -> Result<(), Error> {
    let wanted = &call.front.config.requirepass;
    if user == b"default" && (wanted.is_empty() || same_secret(password, wanted.as_bytes())) {
        call.conn.session.authenticated = true;
        return Ok(());
    }
    Err(Error::text("WRONGPASS invalid username-password pair or user is disabled."))
}

/// `AUTH [username] password`
pub fn auth(call: &mut Call<'_>) -> Result<(), Error> {
    match call.args.list() {
        [_, password] => {
            if call.front.config.requirepass.is_empty() {
                return Err(Error::text(
                    "ERR AUTH <password> called without any password configured for the default user. Are you sure your configuration is correct?",
                ));
            }
            authenticate(call, b"default", password)?;
        }
        [_, user, password] => authenticate(call, user, password)?,
        _ => return Err(Error::Syntax),
    }
    call.out.ok();
    Ok(())
}

/// `HELLO [protover [AUTH username password] [SETNAME clientname]]`
pub fn hello(call: &mut Call<'_>) -> Result<(), Error> {
    let args = call.args;
    let mut resp3 = call.conn.session.flags.resp3;
    let (mut credentials, mut name) = (None, None);
    if let Some(version) = args.get(1) {
        resp3 = match parse_i64(version) {
            Some(2) => false,
            Some(3) => true,
            Some(_) => return Err(Error::text("NOPROTO unsupported protocol version")),
            None => return Err(Error::text("ERR Protocol version is not an integer or out of range")),
        };
        let mut at = 2;
        while at < args.len() {
            if args.is(at, "auth") && args.len() > at + 2 {
                credentials = Some((args[at + 1], args[at + 2]));
                at += 3;
            } else if args.is(at, "setname") && args.len() > at + 1 {
                check_name(args[at + 1])?;
                name = Some(args[at + 1]);
                at += 2;
            } else {
                let option = String::from_utf8_lossy(args[at]).into_owned();
                return Err(Error::owned(format!("ERR Syntax error in HELLO option '{option}'")));
            }
        }
    }
    if let Some((user, password)) = credentials {
        authenticate(call, user, password)?;
    }
    if !call.conn.session.authenticated {
        return Err(Error::text(
            "NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO <proto> AUTH <user> <pass> option can be used to authenticate the client and select the RESP protocol version at the same time",
        ));
    }
    if let Some(name) = name {
        set_name(&call.conn.session, name)?;
    }
    call.conn.session.flags.resp3 = resp3;
    let out = &mut *call.out;
    out.resp3 = resp3;
    out.map(7);
    out.bulk(b"server");
    out.bulk(b"redis");
    out.bulk(b"version");
    out.bulk(crate::node::REDIS_VERSION.as_bytes());
    out.bulk(b"proto");
    out.int(if resp3 { 3 } else { 2 });
    out.bulk(b"id");
    out.int(call.conn.session.client as i64);
    out.bulk(b"mode");
    out.bulk(b"standalone");
    out.bulk(b"role");
    out.bulk(if call.front.node.is_replica() { b"replica" } else { b"master" });
    out.bulk(b"modules");
    out.array(0);
    Ok(())
}

/// Refuses names with spaces or control characters.
fn check_name(name: &[u8]) -> Result<(), Error> {
    if !name.iter().all(|byte| (b'!'..=b'~').contains(byte)) {
        return Err(Error::text("ERR Client names cannot contain spaces, newlines or special characters."));
    }
    Ok(())
}

/// Sets a connection's name (`CLIENT SETNAME`, `HELLO … SETNAME`). An empty one removes it.
///
/// # Errors
/// Redis's text for names with spaces or control characters.
pub fn set_name(session: &Session, name: &[u8]) -> Result<(), Error> {
    check_name(name)?;
    let name = String::from_utf8_lossy(name);
    session.info().set_names(|names| names.name = name.into());
    Ok(())
}

/// `RESET`. The dispatcher has already left a transaction and its watches.
pub fn reset(call: &mut Call<'_>) -> Result<(), Error> {
    let session = &mut call.conn.session;
    session.db = 0;
    session.flags = Default::default();
    session.info().set_names(|names| names.name = "".into());
    session.reply = super::ReplyMode::On;
    session.no_evict = false;
    session.authenticated = call.front.config.requirepass.is_empty();
    call.out.resp3 = false;
    call.out.simple("RESET");
    Ok(())
}
