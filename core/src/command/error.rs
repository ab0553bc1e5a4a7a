//! Errors as clients read them: Redis's code and text.

use std::borrow::Cow;
use std::fmt;

/// An error reply. `Display` gives the whole line behind the `-`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    WrongType,
    Syntax,
    NotInteger,
    NotFloat,
    NoSuchKey,
    OutOfRange,
    /// A number out of the range its meaning allows.
    ValueOutOfRange,
    WrongArity(Cow<'static, str>),
    InvalidExpire(Cow<'static, str>),
    OutOfMemory,
    /// A replica takes writes from its master only.
    ReadOnly,
    /// There is no dataset yet.
    Loading,
    TooLong,
    /// Any other, with its code (`ERR …`).
    Text(Cow<'static, str>),
}

impl Error {
    /// An error by its whole text, code included.
    pub const fn text(text: &'static str) -> Self {
        Error::Text(Cow::Borrowed(text))
    }

    pub fn owned(text: String) -> Self {
        Error::Text(Cow::Owned(text))
    }

    /// The error for a container's unknown subcommand, or one with the wrong number of arguments.
    pub fn unknown_subcommand(container: &str, word: &[u8]) -> Self {
        let word = String::from_utf8_lossy(&word[..word.len().min(128)]).into_owned();
        Error::owned(format!("ERR unknown subcommand '{word}'. Try {} HELP.", container.to_uppercase()))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::WrongType => {
                f.write_str("WRONGTYPE Operation against a key holding the wrong kind of value")
            }
            Error::Syntax => f.write_str("ERR syntax error"),
            Error::NotInteger => f.write_str("ERR value is not an integer or out of range"),
            Error::NotFloat => f.write_str("ERR value is not a valid float"),
            Error::NoSuchKey => f.write_str("ERR no such key"),
            Error::OutOfRange => f.write_str("ERR index out of range"),
            Error::ValueOutOfRange => f.write_str("ERR value is out of range"),
            Error::WrongArity(name) => write!(f, "ERR wrong number of arguments for '{name}' command"),
            Error::InvalidExpire(name) => write!(f, "ERR invalid expire time in '{name}' command"),
            Error::OutOfMemory => f.write_str("OOM command not allowed when used memory > 'maxmemory'."),
            Error::Loading => f.write_str("LOADING Redis is loading the dataset in memory"),
            Error::ReadOnly => f.write_str("READONLY You can't write against a read only replica."),
            Error::TooLong => f.write_str("ERR string exceeds maximum allowed size (proto-max-bulk-len)"),
            Error::Text(text) => f.write_str(text),
        }
    }
}

impl From<&'static str> for Error {
    fn from(text: &'static str) -> Self {
        Error::text(text)
    }
}
