//! What a server holds, read over the wire in a form that can be compared: every database, every key with its
//! value, type and time of expiry.

use std::collections::BTreeMap;
use std::fmt;
use std::io;

use crate::client::{Client, Value};
use crate::cmd;

/// Keys asked for per `SCAN`, and so per pipeline.
const BATCH_KEYS: usize = 1000;
/// Differences that a report spells out; the others are counted.
const REPORT_LINES: usize = 20;
/// Bytes of a key or value that a report shows.
const SHOWN_BYTES: usize = 60;
/// Fields of `XINFO STREAM FULL` that belong to the data. The others say how a server stores the stream, or when
/// a consumer was last seen, which differs between a master and its replica.
const STREAM_FIELDS: [&str; 4] = ["last-generated-id", "max-deleted-entry-id", "entries-added", "groups"];
const STREAM_VOLATILE_FIELDS: [&str; 4] = ["seen-time", "active-time", "lag", "pel-count"];

type Bytes = Vec<u8>;

/// A value, normalised: two equal ones are the same data whatever order the server sent them in.
#[derive(Clone, Debug, PartialEq)]
pub enum Data {
    String(Bytes),
    /// In list order.
    List(Vec<Bytes>),
    /// Sorted.
    Set(Vec<Bytes>),
    /// Sorted by field; a field's own time of expiry in Unix milliseconds where the server knows such.
    Hash(BTreeMap<Bytes, (Bytes, Option<u64>)>),
    /// By member.
    Zset(BTreeMap<Bytes, f64>),
    /// Entries in order of their ids, then what else belongs to the stream: last id, groups, pending entries.
    Stream(Vec<(Bytes, Vec<Bytes>)>, Vec<(String, Value)>),
    /// A module's type: its name and what `DUMP` gives.
    Other(String, Bytes),
}

/// A key's value and its time of expiry in Unix milliseconds.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub data: Data,
    pub expires_at_ms: Option<u64>,
}

/// Everything that a server holds: by database, by key. Empty databases are absent.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Dataset {
    pub databases: BTreeMap<u32, BTreeMap<Bytes, Entry>>,
}

impl Dataset {
    /// Reads everything through `client`, which speaks either protocol version and is left in database 0. This is
    /// no snapshot: what is written meanwhile may or may not be in it. Keys that have expired are not in it.
    ///
    /// # Errors
    /// Of the connection, or an error reply of the server.
    pub fn read(client: &mut Client) -> io::Result<Dataset> {
        let keyspace = client.info("keyspace")?;
        let mut numbers: Vec<u32> =
            keyspace.keys().filter_map(|field| field.strip_prefix("db")?.parse().ok()).collect();
        numbers.sort_unstable();
        let field_expiry = knows_field_expiry(client)?;
        let mut databases = BTreeMap::new();
        for number in numbers {
            client.call(&cmd!["SELECT", number])?;
            let keys = read_database(client, field_expiry)?;
            if !keys.is_empty() {
                databases.insert(number, keys);
            }
        }
        client.call(&["SELECT", "0"])?;
        Ok(Dataset { databases })
    }

    /// The number of keys in all databases.
    pub fn len(&self) -> usize {
        self.databases.values().map(BTreeMap::len).sum()
    }

    /// Whether there is no key in any database.
    pub fn is_empty(&self) -> bool {
        self.databases.is_empty()
    }

    /// A key's entry.
    pub fn get(&self, database: u32, key: impl AsRef<[u8]>) -> Option<&Entry> {
        self.databases.get(&database)?.get(key.as_ref())
    }
}

/// Whether hashes can have fields that expire: Redis from 7.4, Valkey from 9.0.
fn knows_field_expiry(client: &mut Client) -> io::Result<bool> {
    let reply = client.command(&["COMMAND", "INFO", "HPEXPIRETIME"])?;
    Ok(reply.items().and_then(|items| items.first()).is_some_and(|info| !info.is_null()))
}

fn unexpected(what: &str, reply: &Value) -> io::Error {
    let mut shown = format!("{reply:?}");
    shown.truncate(shown.floor_char_boundary(200));
    io::Error::new(io::ErrorKind::InvalidData, format!("unexpected reply to {what}: {shown}"))
}

fn bytes(what: &str, value: Value) -> io::Result<Bytes> {
    match value {
        Value::Bulk(bytes) => Ok(bytes),
        other => other.as_bytes().map(<[u8]>::to_vec).ok_or_else(|| unexpected(what, &other)),
    }
}

fn byte_items(what: &str, value: Value) -> io::Result<Vec<Bytes>> {
    let items = match value {
        Value::Array(items) | Value::Set(items) => items,
        other => return Err(unexpected(what, &other)),
    };
    items.into_iter().map(|item| bytes(what, item)).collect()
}

/// A time of expiry: -1 is none, -2 a key or field that is gone.
fn expiry(value: &Value) -> Option<u64> {
    value.as_int().and_then(|at_ms| u64::try_from(at_ms).ok())
}

fn read_database(client: &mut Client, field_expiry: bool) -> io::Result<BTreeMap<Bytes, Entry>> {
    let mut all = BTreeMap::new();
    let mut cursor = b"0".to_vec();
    loop {
        let reply = client.call(&cmd!["SCAN", cursor, "COUNT", BATCH_KEYS])?;
        let shown = reply.clone();
        let [next, keys]: [Value; 2] = reply
            .into_items()
            .and_then(|items| items.try_into().ok())
            .ok_or_else(|| unexpected("SCAN", &shown))?;
        cursor = bytes("SCAN", next)?;
        let keys = byte_items("SCAN", keys)?;
        for batch in keys.chunks(BATCH_KEYS) {
            read_keys(client, batch, field_expiry, &mut all)?;
        }
        if cursor == b"0" {
            return Ok(all);
        }
    }
}

/// Two round trips for a whole batch: one for types and expiry, one for the values.
fn read_keys(
    client: &mut Client,
    keys: &[Bytes],
    field_expiry: bool,
    all: &mut BTreeMap<Bytes, Entry>,
) -> io::Result<()> {
    let questions: Vec<_> =
        keys.iter().flat_map(|key| [cmd!["TYPE", key], cmd!["PEXPIRETIME", key]]).collect();
    let answers = client.pipeline(&questions)?;
    let kinds: Vec<String> = answers
        .iter()
        .step_by(2)
        .map(|kind| kind.clone().ok().map(|kind| kind.text()))
        .collect::<io::Result<_>>()?;
    let questions: Vec<_> =
        keys.iter().zip(&kinds).flat_map(|(key, kind)| value_commands(key, kind)).collect();
    let mut values = client.pipeline(&questions)?.into_iter();
    for ((key, kind), expires_at) in keys.iter().zip(kinds).zip(answers.iter().skip(1).step_by(2)) {
        let replies: Vec<Value> = values.by_ref().take(value_commands(key, &kind).len()).collect();
        let Some(mut data) = normalise(&kind, replies)? else { continue };
        if let (Data::Hash(fields), true) = (&mut data, field_expiry) {
            read_field_expiry(client, key, fields)?;
        }
        let expires_at_ms = expiry(&expires_at.clone().ok()?);
        all.insert(key.clone(), Entry { data, expires_at_ms });
    }
    Ok(())
}

fn read_field_expiry(
    client: &mut Client,
    key: &[u8],
    fields: &mut BTreeMap<Bytes, (Bytes, Option<u64>)>,
) -> io::Result<()> {
    if fields.is_empty() {
        return Ok(());
    }
    let mut command = cmd!["HPEXPIRETIME", key, "FIELDS", fields.len()];
    command.extend(fields.keys().cloned());
    let reply = client.call(&command)?;
    let times = reply.items().unwrap_or_default();
    // Null or empty: the hash expired since it was read.
    for ((_, at_ms), time) in fields.values_mut().zip(times) {
        *at_ms = expiry(time);
    }
    Ok(())
}

fn value_commands(key: &[u8], kind: &str) -> Vec<Vec<Bytes>> {
    match kind {
        "none" => vec![],
        "string" => vec![cmd!["GET", key]],
        "list" => vec![cmd!["LRANGE", key, 0, -1]],
        "set" => vec![cmd!["SMEMBERS", key]],
        "hash" => vec![cmd!["HGETALL", key]],
        "zset" => vec![cmd!["ZRANGE", key, 0, -1, "WITHSCORES"]],
        "stream" => {
            vec![cmd!["XRANGE", key, "-", "+"], cmd!["XINFO", "STREAM", key, "FULL", "COUNT", 0]]
        }
        _ => vec![cmd!["DUMP", key]],
    }
}

/// `None` for a key that is gone by the time its value was asked for.
fn normalise(kind: &str, replies: Vec<Value>) -> io::Result<Option<Data>> {
    let mut replies = replies.into_iter();
    let Some(first) = replies.next() else { return Ok(None) };
    let first = match first {
        Value::Error(text) if text.starts_with("ERR no such key") => return Ok(None),
        Value::Null => return Ok(None),
        other => other.ok()?,
    };
    let pairs = |value: Value| {
        let shown = value.clone();
        value.into_pairs().ok_or_else(|| unexpected(kind, &shown))
    };
    let data = match kind {
        "string" => Data::String(bytes(kind, first)?),
        "list" => Data::List(byte_items(kind, first)?),
        "set" => {
            let mut members = byte_items(kind, first)?;
            members.sort_unstable();
            Data::Set(members)
        }
        "hash" => Data::Hash(
            pairs(first)?
                .into_iter()
                .map(|(field, value)| Ok((bytes(kind, field)?, (bytes(kind, value)?, None))))
                .collect::<io::Result<_>>()?,
        ),
        "zset" => Data::Zset(
            pairs(first)?
                .into_iter()
                .map(|(member, score)| {
                    let number = score.as_double().ok_or_else(|| unexpected(kind, &score))?;
                    Ok((bytes(kind, member)?, number))
                })
                .collect::<io::Result<_>>()?,
        ),
        "stream" => {
            let entries = first
                .into_items()
                .unwrap_or_default()
                .into_iter()
                .map(|entry| {
                    let shown = entry.clone();
                    let [id, fields]: [Value; 2] = entry
                        .into_items()
                        .and_then(|entry| entry.try_into().ok())
                        .ok_or_else(|| unexpected(kind, &shown))?;
                    Ok((bytes(kind, id)?, byte_items(kind, fields)?))
                })
                .collect::<io::Result<_>>()?;
            let Some(about) = replies.next() else { return Err(unexpected(kind, &Value::Null)) };
            if matches!(&about, Value::Error(text) if text.starts_with("ERR no such key")) {
                return Ok(None);
            }
            let fields = pairs(about.ok()?)?
                .into_iter()
                .map(|(name, value)| (name.text(), value))
                .filter(|(name, _)| STREAM_FIELDS.contains(&name.as_str()))
                .map(|(name, value)| (name, without_volatile(value)))
                .collect();
            Data::Stream(entries, fields)
        }
        other => Data::Other(other.to_owned(), bytes(other, first)?),
    };
    // Collections are never empty: an empty one was deleted between the two round trips.
    let gone = match &data {
        Data::List(items) | Data::Set(items) => items.is_empty(),
        Data::Hash(fields) => fields.is_empty(),
        Data::Zset(members) => members.is_empty(),
        Data::String(_) | Data::Stream(..) | Data::Other(..) => false,
    };
    Ok(if gone { None } else { Some(data) })
}

/// Drops from nested maps (in RESP2: flat arrays that start with a name) what is not data, and gives both
/// protocol versions one form.
fn without_volatile(value: Value) -> Value {
    match value {
        Value::Map(pairs) => Value::Map(
            pairs
                .into_iter()
                .map(|(name, value)| (Value::Bulk(name.text().into_bytes()), value))
                .filter(|(name, _)| !STREAM_VOLATILE_FIELDS.contains(&name.text().as_str()))
                .map(|(name, value)| (name, without_volatile(value)))
                .collect(),
        ),
        // The maps in this reply all start with the name of a group or of a consumer.
        Value::Array(items)
            if items.len() > 2 && items.len().is_multiple_of(2) && items[0].as_bytes() == Some(b"name") =>
        {
            let mut items = items.into_iter();
            let mut pairs = Vec::new();
            while let (Some(name), Some(value)) = (items.next(), items.next()) {
                pairs.push((name, value));
            }
            without_volatile(Value::Map(pairs))
        }
        Value::Array(items) => Value::Array(items.into_iter().map(without_volatile).collect()),
        Value::Simple(text) => Value::Bulk(text.into_bytes()),
        other => other,
    }
}

/// How two datasets differ.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diff {
    /// Keys that differ in anything.
    pub keys: usize,
    /// The first of them in words.
    pub lines: Vec<String>,
}

impl Diff {
    /// Whether the datasets are equal.
    pub fn is_empty(&self) -> bool {
        self.keys == 0
    }

    fn add(&mut self, describe: impl FnOnce() -> String) {
        self.keys += 1;
        if self.lines.len() < REPORT_LINES {
            self.lines.push(describe());
        }
    }
}

impl fmt::Display for Diff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("no difference");
        }
        write!(f, "{} keys differ:", self.keys)?;
        for line in &self.lines {
            write!(f, "\n  {line}")?;
        }
        match self.keys - self.lines.len() {
            0 => Ok(()),
            more => write!(f, "\n  and {more} more"),
        }
    }
}

/// Compares two datasets; `left` and `right` in the report are `a` and `b`.
pub fn diff(a: &Dataset, b: &Dataset) -> Diff {
    let mut found = Diff::default();
    let none = BTreeMap::new();
    let numbers: std::collections::BTreeSet<u32> =
        a.databases.keys().chain(b.databases.keys()).copied().collect();
    for number in numbers {
        let left = a.databases.get(&number).unwrap_or(&none);
        let right = b.databases.get(&number).unwrap_or(&none);
        let name = |key: &[u8]| format!("db{number} {}", show(key));
        for (key, entry) in left {
            match right.get(key) {
                None => found.add(|| format!("{}: only left, {}", name(key), summary(&entry.data))),
                Some(other) if other != entry => {
                    found.add(|| format!("{}: {}", name(key), entry_difference(entry, other)));
                }
                Some(_) => {}
            }
        }
        for (key, entry) in right.iter().filter(|(key, _)| !left.contains_key(*key)) {
            found.add(|| format!("{}: only right, {}", name(key), summary(&entry.data)));
        }
    }
    found
}

/// Reads both servers and panics with a report where they differ. For servers at rest.
///
/// # Errors
/// As [`Dataset::read`].
///
/// # Panics
/// When the datasets differ.
pub fn assert_same(left: &mut Client, right: &mut Client) -> io::Result<()> {
    let found = diff(&Dataset::read(left)?, &Dataset::read(right)?);
    assert!(found.is_empty(), "{} (left) and {} (right): {found}", left.address(), right.address());
    Ok(())
}

fn show(bytes: &[u8]) -> String {
    let shown = &bytes[..bytes.len().min(SHOWN_BYTES)];
    let rest = bytes.len() - shown.len();
    let more = if rest > 0 { format!("+{rest} bytes") } else { String::new() };
    format!("\"{}\"{more}", shown.escape_ascii())
}

fn summary(data: &Data) -> String {
    match data {
        Data::String(text) => format!("string {}", show(text)),
        Data::List(items) => format!("list of {}", items.len()),
        Data::Set(items) => format!("set of {}", items.len()),
        Data::Hash(fields) => format!("hash of {}", fields.len()),
        Data::Zset(members) => format!("zset of {}", members.len()),
        Data::Stream(entries, _) => format!("stream of {}", entries.len()),
        Data::Other(kind, dump) => format!("{kind} of {} bytes", dump.len()),
    }
}

fn show_expiry(at_ms: Option<u64>) -> String {
    at_ms.map_or_else(|| "never".to_owned(), |at_ms| format!("at {at_ms} ms"))
}

fn entry_difference(a: &Entry, b: &Entry) -> String {
    let mut parts = Vec::new();
    if a.expires_at_ms != b.expires_at_ms {
        let (left, right) = (show_expiry(a.expires_at_ms), show_expiry(b.expires_at_ms));
        parts.push(format!("expires {left} left, {right} right"));
    }
    if a.data != b.data {
        parts.push(data_difference(&a.data, &b.data));
    }
    parts.join("; ")
}

/// The first difference of two values.
fn data_difference(a: &Data, b: &Data) -> String {
    match (a, b) {
        (Data::List(left), Data::List(right)) => {
            sequence_difference("element", left, right, |item| show(item))
        }
        (Data::Set(left), Data::Set(right)) => {
            let only = |these: &[Bytes], those: &[Bytes]| {
                these.iter().find(|item| those.binary_search(item).is_err()).map(|item| show(item))
            };
            match (only(left, right), only(right, left)) {
                (Some(item), _) => {
                    format!("set member {item} only left ({} and {})", left.len(), right.len())
                }
                (_, Some(item)) => {
                    format!("set member {item} only right ({} and {})", left.len(), right.len())
                }
                (None, None) => format!("a set with members twice ({} and {})", left.len(), right.len()),
            }
        }
        (Data::Hash(left), Data::Hash(right)) => map_difference("field", left, right, |(value, expires)| {
            let expires = expires.map(|at_ms| format!(" expires at {at_ms} ms")).unwrap_or_default();
            format!("{}{expires}", show(value))
        }),
        (Data::Zset(left), Data::Zset(right)) => map_difference("member", left, right, f64::to_string),
        (Data::Stream(left, left_about), Data::Stream(right, right_about)) => {
            if left != right {
                return sequence_difference("entry", left, right, |(id, fields)| {
                    format!(
                        "{} {}",
                        id.escape_ascii(),
                        fields.iter().map(|f| show(f)).collect::<Vec<_>>().join(" ")
                    )
                });
            }
            sequence_difference("property", left_about, right_about, |(name, value)| {
                let mut shown = format!("{name} {value:?}");
                shown.truncate(shown.floor_char_boundary(4 * SHOWN_BYTES));
                shown
            })
        }
        (left, right) => format!("{} left, {} right", summary(left), summary(right)),
    }
}

fn sequence_difference<T: PartialEq>(
    what: &str,
    left: &[T],
    right: &[T],
    show_item: impl Fn(&T) -> String,
) -> String {
    let at = left.iter().zip(right).take_while(|(a, b)| a == b).count();
    let side = |items: &[T]| items.get(at).map_or_else(|| "nothing".to_owned(), &show_item);
    format!("{what} {at} is {} left, {} right ({} and {})", side(left), side(right), left.len(), right.len())
}

fn map_difference<V: PartialEq>(
    what: &str,
    left: &BTreeMap<Bytes, V>,
    right: &BTreeMap<Bytes, V>,
    show_value: impl Fn(&V) -> String,
) -> String {
    let key = left.keys().chain(right.keys()).find(|key| left.get(*key) != right.get(*key));
    let key = key.expect("only maps that differ are compared");
    let side = |map: &BTreeMap<Bytes, V>| map.get(key).map_or_else(|| "absent".to_owned(), &show_value);
    format!(
        "{what} {} is {} left, {} right ({} and {})",
        show(key),
        side(left),
        side(right),
        left.len(),
        right.len()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peers::Kind;

    /// One key of every type, in two databases, with and without expiry.
    fn fill(client: &mut Client) {
        let far_ms = 4_000_000_000_000u64;
        let commands = [
            cmd!["SET", "string", b"a\x00\xff"],
            cmd!["SET", "expiring", "x", "PXAT", far_ms],
            cmd!["RPUSH", "list", "b", "a", "b"],
            cmd!["SADD", "set", "3", "1", "x"],
            cmd!["HSET", "hash", "f", "1", "g", "2"],
            cmd!["ZADD", "zset", 1.5, "a", "-inf", "b", 1.5, "c"],
            cmd!["XADD", "stream", "1-1", "f", "v", "g", "w"],
            cmd!["XADD", "stream", "2-1", "f", "v"],
            cmd!["XGROUP", "CREATE", "stream", "group", "0"],
            cmd!["XREADGROUP", "GROUP", "group", "me", "COUNT", 1, "STREAMS", "stream", ">"],
            cmd!["SELECT", 5],
            cmd!["SET", "elsewhere", "1"],
            cmd!["SELECT", 0],
        ];
        for (command, reply) in commands.iter().zip(client.pipeline(&commands).unwrap()) {
            assert!(!reply.is_error(), "{command:?}: {reply:?}");
        }
    }

    #[test]
    fn every_kind_of_difference_is_found_and_named() {
        let (a, b) = (Kind::Redis7.start().unwrap(), Kind::Redis7.start().unwrap());
        let (mut left, mut right) = (a.client().unwrap(), b.client().unwrap());
        fill(&mut left);
        // A copy by DUMP and RESTORE: the same data to the last millisecond and pending entry.
        for (database, key) in ["string", "expiring", "list", "set", "hash", "zset", "stream"]
            .map(|key| (0, key))
            .into_iter()
            .chain([(5, "elsewhere")])
        {
            left.call(&cmd!["SELECT", database]).unwrap();
            right.call(&cmd!["SELECT", database]).unwrap();
            let Value::Bulk(dump) = left.call(&["DUMP", key]).unwrap() else { panic!("no dump of {key}") };
            let at_ms = left.call(&["PEXPIRETIME", key]).unwrap().as_int().unwrap().max(0);
            right.call(&cmd!["RESTORE", key, at_ms, dump, "ABSTTL"]).unwrap();
        }
        let original = Dataset::read(&mut left).unwrap();
        assert_eq!(original.len(), 8);
        assert_eq!(original.get(0, "expiring").unwrap().expires_at_ms, Some(4_000_000_000_000));
        assert_same(&mut left, &mut right).unwrap();
        // The other protocol version gives the same.
        right.call(&["HELLO", "3"]).unwrap();
        assert_same(&mut left, &mut right).unwrap();

        let changes: [(&[&str], &str); 10] = [
            (&["APPEND", "string", "x"], "string \"a\\x00\\xff\" left, string \"a\\x00\\xffx\" right"),
            (&["PERSIST", "expiring"], "expires at 4000000000000 ms left, never right"),
            (&["LSET", "list", "1", "z"], "element 1 is \"a\" left, \"z\" right (3 and 3)"),
            (&["SREM", "set", "x"], "set member \"x\" only left (3 and 2)"),
            (&["HSET", "hash", "g", "3"], "field \"g\" is \"2\" left, \"3\" right"),
            (&["ZADD", "zset", "1.25", "c"], "member \"c\" is 1.5 left, 1.25 right"),
            (&["XADD", "stream", "9-1", "f", "v"], "entry 2 is nothing left, 9-1 \"f\" \"v\" right"),
            (&["XACK", "stream", "group", "1-1"], "property"),
            (&["SET", "new", "1"], "db0 \"new\": only right, string \"1\""),
            (&["DEL", "hash"], "db0 \"hash\": only left, hash of 2"),
        ];
        for (change, expected) in changes {
            let key = if change[0] == "XACK" { "stream" } else { change[1] };
            right.call(change).unwrap();
            let found = diff(&original, &Dataset::read(&mut right).unwrap());
            assert_eq!(found.keys, 1, "{change:?}: {found}");
            assert!(found.to_string().contains(expected), "{change:?}: {found}");
            // Back to what it was.
            right.call(&["DEL", key]).unwrap();
            if let Value::Bulk(dump) =
                left.call(&["SELECT", "0"]).and_then(|_| left.call(&["DUMP", key])).unwrap()
            {
                let at_ms = left.call(&["PEXPIRETIME", key]).unwrap().as_int().unwrap().max(0);
                right.call(&cmd!["RESTORE", key, at_ms, dump, "ABSTTL"]).unwrap();
            }
        }
        assert_same(&mut left, &mut right).unwrap();
    }

    #[test]
    fn two_hundred_thousand_keys_are_read_completely() {
        let peer = Kind::Redis7.start().unwrap();
        let mut client = peer.client().unwrap();
        client.call(&["DEBUG", "POPULATE", "200000"]).unwrap();
        let dataset = Dataset::read(&mut client).unwrap();
        assert_eq!(dataset.len(), 200_000);
        assert_eq!(dataset.get(0, "key:199999").unwrap().data, Data::String(b"value:199999".to_vec()));
    }

    #[test]
    fn a_long_report_is_cut_and_says_so() {
        let entry = Entry { data: Data::String(vec![b'x'; 500]), expires_at_ms: None };
        let keys = (0..50).map(|n: u32| (n.to_string().into_bytes(), entry.clone())).collect();
        let full = Dataset { databases: BTreeMap::from([(3, keys)]) };
        let report = diff(&full, &Dataset::default()).to_string();
        assert!(report.starts_with("50 keys differ:"), "{report}");
        assert!(report.ends_with("and 30 more"), "{report}");
        assert!(report.contains("+440 bytes"), "{report}");
        assert_eq!(diff(&full, &full).to_string(), "no difference");
    }
}
