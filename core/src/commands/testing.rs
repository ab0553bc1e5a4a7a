//! A node of one keyspace for the tests of commands: runs a command line, hands back its reply and its effects; the
//! clock stands still until a test moves it.

use crate::command::{Args, Ctx, Effects, Error, Handler, Settings, Time, Walk, WholeCtx, registry};
use crate::keyspace::{Keys, Keyspace, WatcherId};
use crate::resp::Reply;
use crate::table::HashKey;
use bytes::Bytes;

/// Where a node's clock starts, milliseconds since the Unix epoch.
pub const START_MS: u64 = 1_700_000_000_000;

/// The node under test. Its fields are free to be changed between commands.
pub struct Node {
    pub space: Keyspace,
    pub effects: Effects,
    pub settings: Settings,
    pub rng: fastrand::Rng,
    pub time: Time,
    pub db: u16,
    pub resp3: bool,
    pub replica: bool,
    pub from_master: bool,
    pub watcher: Option<WatcherId>,
}

impl Default for Node {
    fn default() -> Self {
        Self::new()
    }
}

impl Node {
    /// An empty master of 16 databases that speaks RESP2 and collects effects.
    pub fn new() -> Self {
        let mut effects = Effects::default();
        effects.set_enabled(true);
        Self {
            space: Keyspace::new(16, HashKey::from_seed(1)),
            effects,
            settings: Settings::default(),
            rng: fastrand::Rng::with_seed(1),
            time: Time { us: START_MS * 1000 },
            db: 0,
            resp3: false,
            replica: false,
            from_master: false,
            watcher: None,
        }
    }

    pub fn now_ms(&self) -> u64 {
        self.time.ms()
    }

    /// Moves the clock forward.
    pub fn advance_ms(&mut self, ms: u64) {
        self.time.us += ms * 1000;
    }

    /// Runs a command line, words separated by blanks: the reply as it goes over the wire.
    pub fn run(&mut self, line: &str) -> String {
        let args: Vec<&[u8]> = line.split_ascii_whitespace().map(str::as_bytes).collect();
        text(&self.run_args(&args))
    }

    /// As [`Node::run`], the reply in RESP3.
    pub fn run3(&mut self, line: &str) -> String {
        let resp3 = std::mem::replace(&mut self.resp3, true);
        let reply = self.run(line);
        self.resp3 = resp3;
        reply
    }

    /// Runs a command given as arguments of any bytes: the reply as it goes over the wire.
    pub fn run_args(&mut self, args: &[&[u8]]) -> Vec<u8> {
        self.run_shared(args, &[])
    }

    /// As [`Node::run_args`], with some arguments in buffers of their own.
    pub fn run_shared(&mut self, list: &[&[u8]], shared: &[(u32, Bytes)]) -> Vec<u8> {
        let mut reply = Reply::new(self.resp3);
        if let Err(error) = self.call(Args::new(list, shared), &mut reply) {
            reply = Reply::new(self.resp3);
            reply.error(&error.to_string());
        }
        reply.to_wire()
    }

    fn call(&mut self, args: Args<'_>, out: &mut Reply) -> Result<(), Error> {
        let name = String::from_utf8_lossy(args[0]).into_owned();
        let (_, mut command) = registry().find(args[0]).unwrap_or_else(|| panic!("no command {name}"));
        let mut full_name = command.name.to_owned();
        if let Some(sub) = args.get(1).and_then(|word| command.subcommand(word)) {
            full_name = format!("{}|{}", command.name, sub.name);
            command = sub;
        }
        if !command.accepts(args.len()) {
            return Err(Error::WrongArity(full_name.into()));
        }
        let (time, db, replica, settings) = (self.time, self.db, self.replica, &self.settings);
        match command.handler {
            Handler::Keys(run) | Handler::Cursor(Walk { slice: run, .. }) => {
                let keys = Keys {
                    space: &mut self.space,
                    effects: &mut self.effects,
                    settings,
                    db,
                    now_ms: time.ms(),
                    replica,
                    from_master: self.from_master,
                    no_touch: false,
                };
                let (rng, watcher) = (&mut self.rng, self.watcher);
                run(&mut Ctx { keys, out, rng, time, watcher, shard: 0, shards: 1 }, args)
            }
            Handler::Whole(run) => run(
                &mut WholeCtx {
                    slices: &mut [&mut self.space],
                    effects: &mut self.effects,
                    out,
                    rng: &mut self.rng,
                    settings,
                    db,
                    time,
                    replica,
                },
                args,
            ),
            Handler::Session => panic!("{name} needs a connection"),
        }
    }

    /// The effects since last asked, one command a line, its arguments separated by blanks.
    pub fn effects(&mut self) -> String {
        let commands = commands(&self.effect_bytes());
        commands.iter().map(|args| text(&args.join(&b' '))).collect::<Vec<_>>().join("\n")
    }

    /// The effects since last asked, as the bytes of the stream.
    pub fn effect_bytes(&mut self) -> Vec<u8> {
        self.effects.take().pieces.concat()
    }

    /// Changes counted since the node was made.
    pub fn dirty(&self) -> u64 {
        self.space.stats.dirty
    }
}

/// Bytes as text; what is not UTF-8 is escaped.
pub fn text(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.escape_ascii().to_string(),
    }
}

/// The commands in a stretch of the stream.
pub fn commands(mut stream: &[u8]) -> Vec<Vec<Vec<u8>>> {
    let mut commands = Vec::new();
    while !stream.is_empty() {
        let count = header(&mut stream, b'*');
        let mut args = Vec::with_capacity(count);
        for _ in 0..count {
            let len = header(&mut stream, b'$');
            args.push(stream[..len].to_vec());
            stream = stream[len..].strip_prefix(b"\r\n").expect("a bulk ends its line");
        }
        commands.push(args);
    }
    commands
}

fn header(stream: &mut &[u8], kind: u8) -> usize {
    let end = memchr::memmem::find(stream, b"\r\n").expect("a whole line");
    assert_eq!(stream[0], kind);
    let number = std::str::from_utf8(&stream[1..end]).ok().and_then(|text| text.parse().ok());
    *stream = &stream[end + 2..];
    number.expect("a length")
}

/// The bulk string reply of a text.
pub fn bulk(value: &str) -> String {
    format!("${}\r\n{value}\r\n", value.len())
}

pub const OK: &str = "+OK\r\n";
pub const NULL: &str = "$-1\r\n";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_runs_commands_and_tells_their_effects() {
        let mut node = Node::new();
        assert_eq!(node.run("SET k v"), OK);
        assert_eq!(node.effects(), "SET k v");
        assert_eq!(node.effects(), "");
        assert_eq!(node.dirty(), 1);
        assert_eq!(node.run("get k"), bulk("v"));
        assert_eq!(node.run("get none"), NULL);
        assert_eq!(node.run3("get none"), "_\r\n");
        assert_eq!(node.run("get"), "-ERR wrong number of arguments for 'get' command\r\n");
    }
}
