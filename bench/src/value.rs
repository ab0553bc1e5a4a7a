//! A reply of either protocol version, and what tests ask of one.

use std::fmt;
use std::io;

/// One reply.
#[derive(Clone, PartialEq)]
pub enum Value {
    /// `_`, and RESP2's `$-1` and `*-1`.
    Null,
    /// `+OK`
    Simple(String),
    /// `-ERR …`, without the dash.
    Error(String),
    /// `!`: an error that may hold any bytes.
    BulkError(String),
    /// `:`
    Int(i64),
    /// `$`
    Bulk(Vec<u8>),
    /// `*`
    Array(Vec<Value>),
    /// `#`
    Bool(bool),
    /// `,`
    Double(f64),
    /// `(`: its digits.
    BigNumber(String),
    /// `=`: the three-letter format and the text.
    Verbatim(String, Vec<u8>),
    /// `%`, in the order sent.
    Map(Vec<(Value, Value)>),
    /// `~`, in the order sent.
    Set(Vec<Value>),
    /// `>`: out of band, not the reply to a command.
    Push(Vec<Value>),
    /// `|`: attributes and the reply they precede.
    Attribute(Vec<(Value, Value)>, Box<Value>),
}

impl Value {
    /// Whether the server refused the command.
    pub fn is_error(&self) -> bool {
        matches!(self, Value::Error(_) | Value::BulkError(_))
    }

    /// Whether this is any of the three ways to say "nothing".
    pub fn is_null(&self) -> bool {
        matches!(self, Value::Null)
    }

    /// The bytes of any reply that is text: status, error, bulk, verbatim, big number.
    pub fn as_bytes(&self) -> Option<&[u8]> {
        match self {
            Value::Simple(text) | Value::Error(text) | Value::BulkError(text) | Value::BigNumber(text) => {
                Some(text.as_bytes())
            }
            Value::Bulk(bytes) | Value::Verbatim(_, bytes) => Some(bytes),
            _ => None,
        }
    }

    /// The text of a reply, or an empty string where it is none.
    pub fn text(&self) -> String {
        self.as_bytes().map(|bytes| String::from_utf8_lossy(bytes).into_owned()).unwrap_or_default()
    }

    /// An integer reply, or text that is one.
    pub fn as_int(&self) -> Option<i64> {
        match self {
            Value::Int(number) => Some(*number),
            Value::Bool(truth) => Some(i64::from(*truth)),
            other => std::str::from_utf8(other.as_bytes()?).ok()?.parse().ok(),
        }
    }

    /// A double reply, or text that is one (`inf`, `-inf` and `nan` included).
    pub fn as_double(&self) -> Option<f64> {
        match self {
            Value::Double(number) => Some(*number),
            Value::Int(number) => Some(*number as f64),
            other => std::str::from_utf8(other.as_bytes()?).ok()?.parse().ok(),
        }
    }

    /// The elements of an array, a set or a push.
    pub fn items(&self) -> Option<&[Value]> {
        match self {
            Value::Array(items) | Value::Set(items) | Value::Push(items) => Some(items),
            _ => None,
        }
    }

    /// The elements of an array, a set or a push, by value.
    pub fn into_items(self) -> Option<Vec<Value>> {
        match self {
            Value::Array(items) | Value::Set(items) | Value::Push(items) => Some(items),
            _ => None,
        }
    }

    /// The pairs of a map, of an array of two-element arrays, or of a flat array `k v k v`: one meaning, whichever
    /// protocol version the connection speaks.
    pub fn into_pairs(self) -> Option<Vec<(Value, Value)>> {
        if let Value::Map(pairs) = self {
            return Some(pairs);
        }
        let items = self.into_items()?;
        if !items.is_empty() && items.iter().all(|item| item.items().is_some_and(|pair| pair.len() == 2)) {
            return items
                .into_iter()
                .map(|item| {
                    let mut pair = item.into_items()?.into_iter();
                    Some((pair.next()?, pair.next()?))
                })
                .collect();
        }
        if !items.len().is_multiple_of(2) {
            return None;
        }
        let mut flat = items.into_iter();
        let mut pairs = Vec::with_capacity(flat.len() / 2);
        while let (Some(key), Some(value)) = (flat.next(), flat.next()) {
            pairs.push((key, value));
        }
        Some(pairs)
    }

    /// Turns an error reply into an `Err` that holds its text.
    pub fn ok(self) -> io::Result<Value> {
        match self {
            Value::Error(text) | Value::BulkError(text) => Err(io::Error::other(text)),
            other => Ok(other),
        }
    }
}

/// Text equals a reply whose bytes it is, whatever the reply's type.
impl PartialEq<str> for Value {
    fn eq(&self, other: &str) -> bool {
        self.as_bytes() == Some(other.as_bytes())
    }
}

impl PartialEq<&str> for Value {
    fn eq(&self, other: &&str) -> bool {
        self == *other
    }
}

/// A number equals an integer reply only: `:1`, not `$1`.
impl PartialEq<i64> for Value {
    fn eq(&self, other: &i64) -> bool {
        matches!(self, Value::Int(number) if number == other)
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Null => f.write_str("(nil)"),
            Value::Simple(text) => write!(f, "+{text}"),
            Value::Error(text) => write!(f, "-{text}"),
            Value::BulkError(text) => write!(f, "!{text}"),
            Value::Int(number) => write!(f, ":{number}"),
            Value::Bulk(bytes) => write!(f, "\"{}\"", bytes.escape_ascii()),
            Value::Array(items) => f.debug_list().entries(items).finish(),
            Value::Bool(truth) => write!(f, "#{truth}"),
            Value::Double(number) => write!(f, ",{number}"),
            Value::BigNumber(digits) => write!(f, "({digits}"),
            Value::Verbatim(format, bytes) => write!(f, "={format}:\"{}\"", bytes.escape_ascii()),
            Value::Map(pairs) => f.debug_map().entries(pairs.iter().map(|(k, v)| (k, v))).finish(),
            Value::Set(items) => f.debug_set().entries(items).finish(),
            Value::Push(items) => write!(f, ">{items:?}"),
            Value::Attribute(pairs, value) => {
                f.write_str("|")?;
                f.debug_map().entries(pairs.iter().map(|(k, v)| (k, v))).finish()?;
                write!(f, " {value:?}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bulk(text: &str) -> Value {
        Value::Bulk(text.as_bytes().to_vec())
    }

    #[test]
    fn pairs_have_one_meaning_in_both_protocols() {
        let expected = vec![(bulk("a"), bulk("1")), (bulk("b"), bulk("2"))];
        let flat = Value::Array(vec![bulk("a"), bulk("1"), bulk("b"), bulk("2")]);
        let nested = Value::Array(vec![
            Value::Array(vec![bulk("a"), bulk("1")]),
            Value::Array(vec![bulk("b"), bulk("2")]),
        ]);
        for value in [flat, nested, Value::Map(expected.clone())] {
            assert_eq!(value.into_pairs().unwrap(), expected);
        }
        assert_eq!(Value::Array(vec![bulk("odd")]).into_pairs(), None);
    }

    #[test]
    fn text_and_numbers_compare_with_replies() {
        assert_eq!(bulk("7"), "7");
        assert_eq!(Value::Simple("OK".into()), "OK");
        assert_eq!(Value::Int(7), 7);
        assert_ne!(bulk("7"), 7);
        assert_ne!(Value::Int(7), "7");
        assert_eq!((bulk("7").as_int(), bulk("x").as_int(), Value::Null.as_int()), (Some(7), None, None));
        assert_eq!(
            (bulk("-inf").as_double(), Value::Int(2).as_double()),
            (Some(f64::NEG_INFINITY), Some(2.0))
        );
        assert_eq!(Value::Error("ERR no".into()).ok().unwrap_err().to_string(), "ERR no");
    }
}
