//! What a row of the directive table says, and how a value gets from words into a [`Config`] and back.

use super::directives::{Config, IMPLEMENTED};
use super::stock::STOCK;
use super::values::{
    format_flag, format_size, in_range, parse_choice, parse_flag, parse_integer, parse_octal, parse_size,
};
use std::collections::HashMap;
use std::fmt;
use std::sync::LazyLock;

/// The part of the help a directive stands in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    Shards,
    Network,
    Security,
    General,
    Memory,
    Snapshots,
    Replication,
    AppendOnly,
    Limits,
    Monitoring,
    Encodings,
    /// Directives of stock configuration files that Braid has no use for; not shown in the help.
    Stock,
}

impl Group {
    /// The heading in `--help`.
    pub fn heading(self) -> &'static str {
        match self {
            Group::Shards => "Shards",
            Group::Network => "Network",
            Group::Security => "Security",
            Group::General => "General",
            Group::Memory => "Memory and eviction",
            Group::Snapshots => "Snapshots",
            Group::Replication => "Replication",
            Group::AppendOnly => "Append-only file",
            Group::Limits => "Limits and timeouts",
            Group::Monitoring => "Monitoring",
            Group::Encodings => "Encodings of small values",
            Group::Stock => "Stock directives without a use here",
        }
    }
}

/// Whether `CONFIG SET` may change a directive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutability {
    /// At any time.
    Runtime,
    /// Only in the file or on the command line.
    Startup,
    /// At run time only where `enable-protected-configs` allows it.
    Protected,
}

/// What a server has to do after a directive changed. Directives that are looked up when needed have [`Apply::Nothing`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Apply {
    Nothing,
    /// Close and open listening sockets: `port`, `bind`.
    Listeners,
    /// Raise the limit of open files: `maxclients`.
    MaxClients,
    /// Existing connections stay, new ones need the new password.
    Password,
    /// The logger's threshold.
    LogLevel,
    /// Evict at once if memory is over the new limit.
    MaxMemory,
    /// Tell the shards the new thresholds of compact encodings.
    Encodings,
    /// Timers that run `hz` times a second.
    Timers,
    /// Change the working directory.
    Dir,
    /// Snapshot rules.
    SavePoints,
    /// Output-buffer limits of connections.
    OutputLimits,
    /// What the shards publish about keys.
    KeyspaceEvents,
    /// Trim or extend the slow log.
    SlowLog,
    /// The log kept for partial resynchronization, in memory or on disk.
    Backlog,
    /// Timeouts, acknowledgements and announcements of replication.
    Replication,
    /// Socket options of connections made from now on.
    Connections,
    /// Switch the append-only file.
    AppendOnly,
}

/// How far a directive goes in Braid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Support {
    Implemented,
    /// Any valid value is taken and kept, and does nothing; the text says why.
    NoEffect(&'static str),
    /// Only the listed values (as `CONFIG GET` shows them) are taken: the others would promise what Braid does not do.
    Only(&'static [&'static str]),
    /// Any use is an error; the text says what to do instead.
    Refused(&'static str),
}

/// Reads and writes one field of a [`Config`].
pub struct Field<T> {
    pub get: fn(&Config) -> T,
    pub set: fn(&mut Config, T),
}

// Derived, these would ask for a `T` that is `Copy`; the functions always are.
impl<T> Clone for Field<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Field<T> {}

/// The functions behind a [`super::values::Special`] field.
#[derive(Clone, Copy)]
pub struct SpecialField {
    pub expects: &'static str,
    pub accept: fn(&mut Config, &[String], bool) -> Result<(), String>,
    pub show: fn(&Config) -> String,
    pub lines: fn(&Config, bool) -> Vec<Vec<String>>,
}

/// The shape of a value that is checked and kept as text, because nothing in Braid reads it.
#[derive(Clone, Copy, Debug)]
pub enum Shape {
    Flag,
    Integer(i64, i64),
    Size,
    OneOf(&'static [&'static str]),
    Text,
    /// Any number of words without blanks in them.
    Words,
}

/// A directive's type and the place of its value.
#[derive(Clone, Copy)]
pub enum Kind {
    Flag(Field<bool>),
    Integer { field: Field<i64>, min: i64, max: i64 },
    Size { field: Field<u64>, min: u64, max: u64 },
    Octal { field: Field<u32>, max: u32 },
    Choice { field: Field<usize>, names: &'static [&'static str] },
    Text(Field<String>),
    Special(SpecialField),
    Kept(Shape),
}

/// One row of the table.
pub struct Directive {
    pub name: &'static str,
    /// Older or other names; `CONFIG GET` lists them too.
    pub aliases: &'static [&'static str],
    pub group: Group,
    pub kind: Kind,
    /// The default as it would stand in the file, after the name.
    pub default: &'static str,
    pub mutability: Mutability,
    pub apply: Apply,
    pub support: Support,
    pub help: &'static str,
}

impl fmt::Debug for Directive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// Every directive: those Braid implements, then the rest of the stock ones.
pub fn directives() -> impl Iterator<Item = &'static Directive> {
    IMPLEMENTED.iter().chain(STOCK)
}

/// Finds a directive by its name or an alias, in any case.
pub fn find(name: &str) -> Option<&'static Directive> {
    static BY_NAME: LazyLock<HashMap<&'static str, &'static Directive>> = LazyLock::new(|| {
        let mut map = HashMap::new();
        for directive in directives() {
            for name in directive.names() {
                let former = map.insert(name, directive);
                assert!(former.is_none(), "two directives are called {name}");
            }
        }
        map
    });
    BY_NAME.get(name.to_ascii_lowercase().as_str()).copied()
}

impl Directive {
    /// The name and the aliases.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        std::iter::once(self.name).chain(self.aliases.iter().copied())
    }

    /// Whether a line may have several words; then one word with blanks in it is taken as several.
    pub fn takes_words(&self) -> bool {
        matches!(self.kind, Kind::Special(_) | Kind::Kept(Shape::Words))
    }

    /// Sets the value from the words that follow the name. With `replace` a repeatable directive forgets its former
    /// value. On an error `config` is as it was.
    ///
    /// # Errors
    /// Redis's text on a bad value, or why Braid does not take this one.
    pub fn set(&self, config: &mut Config, words: &[String], replace: bool) -> Result<(), String> {
        if let Support::Refused(why) = self.support {
            return Err(format!("{} is not supported: {why}", self.name));
        }
        let split: Vec<String>;
        let words = match words {
            [one] if self.takes_words() && one.contains(char::is_whitespace) => {
                split = one.split_whitespace().map(str::to_owned).collect();
                &split[..]
            }
            _ => words,
        };
        let mut changed = config.clone();
        self.set_kind(&mut changed, words, replace)?;
        if let Support::Only(values) = self.support {
            let value = self.get(&changed);
            if !values.contains(&value.as_str()) {
                return Err(format!("{} {value} is not supported yet", self.name));
            }
        }
        *config = changed;
        Ok(())
    }

    fn set_kind(&self, config: &mut Config, words: &[String], replace: bool) -> Result<(), String> {
        if let Kind::Special(field) = self.kind {
            return (field.accept)(config, words, replace);
        }
        if let Kind::Kept(Shape::Words) = self.kind {
            let words: Vec<&str> = words.iter().flat_map(|word| word.split_whitespace()).collect();
            self.keep(config, words.join(" "));
            return Ok(());
        }
        let [word] = words else { return Err("wrong number of arguments".to_owned()) };
        match self.kind {
            Kind::Flag(field) => (field.set)(config, parse_flag(word)?),
            Kind::Integer { field, min, max } => {
                (field.set)(config, in_range(parse_integer(word)?, min, max)?)
            }
            Kind::Size { field, min, max } => (field.set)(config, in_range(parse_size(word)?, min, max)?),
            Kind::Octal { field, max } => (field.set)(config, in_range(parse_octal(word)?, 0, max)?),
            Kind::Choice { field, names } => (field.set)(config, parse_choice(names, word)?),
            Kind::Text(field) => (field.set)(config, word.clone()),
            Kind::Kept(shape) => {
                let text = match shape {
                    Shape::Flag => format_flag(parse_flag(word)?).to_owned(),
                    Shape::Integer(min, max) => in_range(parse_integer(word)?, min, max)?.to_string(),
                    Shape::Size => parse_size(word)?.to_string(),
                    Shape::OneOf(names) => names[parse_choice(names, word)?].to_owned(),
                    Shape::Text | Shape::Words => word.clone(),
                };
                self.keep(config, text);
            }
            Kind::Special(_) => unreachable!("specials were handled above"),
        }
        Ok(())
    }

    /// Keeps a value nothing reads. The default is kept as absence, so that equal configurations compare equal.
    fn keep(&self, config: &mut Config, text: String) {
        if text == self.shown_default() {
            config.kept.remove(self.name);
        } else {
            config.kept.insert(self.name, text);
        }
    }

    /// The default as `CONFIG GET` shows it. Only for kept values: the others show what their field holds.
    fn shown_default(&self) -> String {
        match self.kind {
            Kind::Kept(Shape::Size) => parse_size(self.default).expect("defaults are valid").to_string(),
            _ => self.default.to_owned(),
        }
    }

    /// The value as `CONFIG GET` shows it: sizes in bytes, flags as `yes` and `no`.
    pub fn get(&self, config: &Config) -> String {
        match self.kind {
            Kind::Flag(field) => format_flag((field.get)(config)).to_owned(),
            Kind::Integer { field, .. } => (field.get)(config).to_string(),
            Kind::Size { field, .. } => (field.get)(config).to_string(),
            Kind::Octal { field, .. } => format!("{:o}", (field.get)(config)),
            Kind::Choice { field, names } => names[(field.get)(config)].to_owned(),
            Kind::Text(field) => (field.get)(config),
            Kind::Special(field) => (field.show)(config),
            Kind::Kept(_) => config.kept.get(self.name).cloned().unwrap_or_else(|| self.shown_default()),
        }
    }

    /// The words of the lines that give this value in a file, without the name. See
    /// [`super::values::Special::lines`] for `full`. No line means that the default says it all.
    pub fn lines(&self, config: &Config, full: bool) -> Vec<Vec<String>> {
        let value = match self.kind {
            Kind::Special(field) => return (field.lines)(config, full),
            Kind::Size { field, .. } => format_size((field.get)(config)),
            Kind::Kept(Shape::Words) => {
                let words: Vec<String> = self.get(config).split_whitespace().map(str::to_owned).collect();
                return vec![words];
            }
            Kind::Text(_) | Kind::Kept(Shape::Text) => {
                let text = self.get(config);
                if text.is_empty() && self.default.is_empty() && !full {
                    return vec![];
                }
                text
            }
            _ => self.get(config),
        };
        vec![vec![value]]
    }

    /// What `--help` shows in the place of the value.
    pub fn expects(&self) -> String {
        match self.kind {
            Kind::Flag(_) | Kind::Kept(Shape::Flag) => "yes|no".to_owned(),
            Kind::Integer { min, max, .. } | Kind::Kept(Shape::Integer(min, max)) => {
                // Limits that only stand for "as large as the type" tell a reader nothing.
                match (min, max >= i64::from(i32::MAX)) {
                    (0 | 1, true) => "number".to_owned(),
                    (_, true) => format!("{min}.."),
                    (_, false) => format!("{min}..{max}"),
                }
            }
            Kind::Size { .. } | Kind::Kept(Shape::Size) => "size".to_owned(),
            Kind::Octal { .. } => "octal".to_owned(),
            Kind::Choice { names, .. } | Kind::Kept(Shape::OneOf(names)) => names.join("|"),
            Kind::Text(_) | Kind::Kept(Shape::Text) => "text".to_owned(),
            Kind::Special(field) => field.expects.to_owned(),
            Kind::Kept(Shape::Words) => "words".to_owned(),
        }
    }

    /// A line for the log when a value was given that does nothing here.
    pub fn note(&self, config: &Config) -> Option<String> {
        match self.support {
            Support::NoEffect(why) if self.get(config) != self.get(&Config::default()) => {
                Some(format!("Configuration: {} has no effect: {why}", self.name))
            }
            _ => None,
        }
    }
}
