//! The command table: one declaration per command, from which routing, arity and flag checks, `COMMAND` and the
//! documentation all come.
//!
//! A family declares its commands beside their implementations (`commands/strings.rs` and so on) as a static slice of
//! [`Command`]; [`registry`] joins the families and finds a command by name.

mod args;
mod context;
mod effects;
mod error;
pub mod flags;
mod keyspec;
mod registry;

pub use args::{ArgList, Args};
pub use context::{AccessClock, Ctx, Limits, Settings, Time, WholeCtx};
pub use effects::{Effects, Run, SHARED_ARG_LEN_BYTES, Segment};
pub use error::Error;
pub use flags::{Category, Flags};
pub use keyspec::{Begin, Find, KeyRef, KeySpec, Use};
pub use registry::{CommandId, Registry, registry};

/// What an implementation returns: its reply stands in the context, or the error that replaces it.
pub type Outcome = Result<(), Error>;

/// A command that walks the keyspace, in its two forms.
#[derive(Clone, Copy)]
pub struct Walk {
    /// On one shard's slice, that of its cursor.
    pub slice: fn(&mut Ctx<'_>, Args<'_>) -> Outcome,
    /// On all slices, within a transaction that has them all.
    pub whole: fn(&mut WholeCtx<'_>, Args<'_>) -> Outcome,
}

/// Who implements a command.
#[derive(Clone, Copy)]
pub enum Handler {
    /// Works on the keys its key specs name, on the shard that owns them (or on a transaction's scratch keyspace).
    Keys(fn(&mut Ctx<'_>, Args<'_>) -> Outcome),
    /// Works on the whole keyspace: every shard's slice at once.
    Whole(fn(&mut WholeCtx<'_>, Args<'_>) -> Outcome),
    /// Works on one shard's slice at a time, the shard being part of a cursor (`SCAN`), or on all in turn (`KEYS`).
    Cursor(Walk),
    /// Concerns the connection or the server; the layer that has those implements it under the command's name.
    Session,
}

/// One command, or one subcommand of a container such as `CLIENT`.
pub struct Command {
    /// Lower case, as `COMMAND` reports it. A subcommand's is its own word (`list`, not `client|list`).
    pub name: &'static str,
    /// Number of arguments with the name; negative: at least that many.
    pub arity: i16,
    pub flags: Flags,
    pub categories: Category,
    pub keys: &'static [KeySpec],
    pub handler: Handler,
    pub group: &'static str,
    /// Version of Redis (or Valkey) that introduced it.
    pub since: &'static str,
    pub summary: &'static str,
    pub complexity: &'static str,
    pub subcommands: &'static [Command],
}

impl Command {
    /// A declaration to be completed by the builder functions below, all usable in statics:
    /// `Command::new("get", 2, Handler::Keys(get)).readonly()…`.
    pub const fn new(name: &'static str, arity: i16, handler: Handler) -> Self {
        Command {
            name,
            arity,
            flags: Flags::NONE,
            categories: Category::NONE,
            keys: &[],
            handler,
            group: "generic",
            since: "1.0.0",
            summary: "",
            complexity: "O(1)",
            subcommands: &[],
        }
    }

    pub const fn flags(mut self, flags: Flags) -> Self {
        self.flags = flags;
        self
    }

    /// ACL categories beyond those that follow from the flags (`@read`, `@write`, `@fast`, `@slow`, …).
    pub const fn categories(mut self, categories: Category) -> Self {
        self.categories = categories;
        self
    }

    pub const fn keys(mut self, keys: &'static [KeySpec]) -> Self {
        self.keys = keys;
        self
    }

    /// What `COMMAND DOCS` tells: group, version, summary, complexity.
    pub const fn doc(
        mut self,
        group: &'static str,
        since: &'static str,
        summary: &'static str,
        complexity: &'static str,
    ) -> Self {
        self.group = group;
        self.since = since;
        self.summary = summary;
        self.complexity = complexity;
        self
    }

    pub const fn subcommands(mut self, subcommands: &'static [Command]) -> Self {
        self.subcommands = subcommands;
        self
    }

    /// Whether `count` arguments (with the name) are acceptable.
    pub fn accepts(&self, count: usize) -> bool {
        let arity = i64::from(self.arity);
        if arity >= 0 { count as i64 == arity } else { count as i64 >= -arity }
    }

    pub fn is_write(&self) -> bool {
        self.flags.has(Flags::WRITE)
    }

    /// The subcommand that `args` name, or the command itself if it has none (or none of that name).
    #[inline]
    pub fn resolve(&'static self, args: Args<'_>) -> &'static Command {
        if self.subcommands.is_empty() {
            return self;
        }
        args.get(1).and_then(|word| self.subcommand(word)).unwrap_or(self)
    }

    /// Finds a subcommand by its word, in any case.
    pub fn subcommand(&self, word: &[u8]) -> Option<&'static Command> {
        self.subcommands.iter().find(|sub| sub.name.as_bytes().eq_ignore_ascii_case(word))
    }
}
