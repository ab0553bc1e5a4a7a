//! The stream, taken apart.

use crate::model::{State, Words};

/// One command of the stream, or one `MULTI` … `EXEC` block.
#[derive(Clone)]
pub struct Item {
    /// Each command with its database. Without the frame.
    pub commands: Vec<(u16, Words)>,
    pub is_block: bool,
    /// Offset behind it.
    pub end: u64,
}

impl Item {
    /// The keyspace behind it.
    pub fn after(&self, before: &State) -> State {
        let mut state = before.clone();
        for (db, words) in &self.commands {
            state.run(&mut db.clone(), words);
        }
        state
    }
}

/// The database that a `SELECT` names.
pub fn database(words: &Words) -> u16 {
    std::str::from_utf8(&words[1]).expect("a number").parse().expect("a database")
}

/// The databases that a `SWAPDB` names.
pub fn databases(words: &Words) -> [usize; 2] {
    [1, 2].map(|at| std::str::from_utf8(&words[at]).expect("a number").parse().expect("a database"))
}

/// The commands of a stretch of the stream, each with the offset behind it.
pub fn commands(mut bytes: &[u8], start: u64) -> Vec<(Words, u64)> {
    let whole = bytes.len();
    let mut commands = Vec::new();
    while !bytes.is_empty() {
        let words = (0..header(&mut bytes, b'*'))
            .map(|_| {
                let len = header(&mut bytes, b'$');
                let word = bytes[..len].to_vec();
                bytes = bytes[len..].strip_prefix(b"\r\n").expect("a bulk ends its line");
                word
            })
            .collect();
        commands.push((words, start + (whole - bytes.len()) as u64));
    }
    commands
}

fn header(bytes: &mut &[u8], kind: u8) -> usize {
    let end = bytes.iter().position(|byte| *byte == b'\r').expect("a whole line");
    assert_eq!(bytes[0], kind, "in {}", bytes.escape_ascii());
    let number = std::str::from_utf8(&bytes[1..end]).expect("a number").parse().expect("a number");
    *bytes = &bytes[end + 2..];
    number
}

/// Joins blocks, tracks databases, and leaves out what is no effect.
///
/// # Panics
/// If a block is left open, nested, or empty; if an effect comes before its database is selected.
pub fn items(bytes: &[u8], start: u64) -> Vec<Item> {
    items_in(bytes, start, &mut None)
}

/// As [`items`], of a stretch before which `db` is selected; behind it `db` is what is selected there.
pub fn items_in(bytes: &[u8], start: u64, db: &mut Option<u16>) -> Vec<Item> {
    let mut items = Vec::new();
    let mut block: Option<Vec<(u16, Words)>> = None;
    for (words, end) in commands(bytes, start) {
        match words[0].as_slice() {
            b"PING" | b"REPLCONF" => assert!(block.is_none(), "law 3: {words:?} within a transaction"),
            b"SELECT" => *db = Some(database(&words)),
            b"MULTI" => assert!(block.replace(Vec::new()).is_none(), "law 3: a transaction within another"),
            b"EXEC" => {
                let commands = block.take().expect("law 3: EXEC without MULTI");
                assert!(!commands.is_empty());
                items.push(Item { commands, is_block: true, end });
            }
            _ => {
                let command = (db.expect("an effect on a database that nobody selected"), words);
                match &mut block {
                    Some(commands) => commands.push(command),
                    None => items.push(Item { commands: vec![command], is_block: false, end }),
                }
            }
        }
    }
    assert!(block.is_none(), "law 3: the stream ends within a transaction");
    items
}

/// Splits the first reply off.
pub fn reply(bytes: &[u8]) -> usize {
    let line_end = bytes.iter().position(|byte| *byte == b'\n').expect("a whole line") + 1;
    let number =
        || std::str::from_utf8(&bytes[1..line_end - 2]).expect("a number").parse::<i64>().expect("a number");
    match bytes[0] {
        b'+' | b'-' | b':' => line_end,
        b'$' => line_end + usize::try_from(number() + 2).unwrap_or(0) * usize::from(number() >= 0),
        b'*' => (0..number()).fold(line_end, |at, _| at + reply(&bytes[at..])),
        _ => panic!("no reply: {}", bytes.escape_ascii()),
    }
}
