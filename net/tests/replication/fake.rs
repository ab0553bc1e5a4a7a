//! A replica made of bytes: it sees exactly what the master sends.

use braid_bench::client::Client;
use braid_bench::peers::Peer;
use std::io;

pub type Words = Vec<Vec<u8>>;

/// A connection that went through the replica's side of the handshake.
pub struct Fake {
    pub client: Client,
    pub id: String,
    /// Offset after the last command read.
    pub offset: u64,
    pub rdb: Vec<u8>,
}

/// One command of the stream, or one `MULTI` … `EXEC` block without its frame.
#[derive(Debug)]
pub struct Item {
    pub db: u16,
    pub commands: Vec<Words>,
    pub is_block: bool,
}

impl Fake {
    /// Asks for everything and reads the snapshot. The stream begins with [`Fake::ack`].
    pub fn attach(peer: &Peer) -> io::Result<Self> {
        let mut fake = Self::ask(peer.client()?, "?", -1)?;
        let (id, offset) = fake.full_resync()?;
        (fake.id, fake.offset) = (id, offset);
        fake.read_snapshot()?;
        Ok(fake)
    }

    /// Sends `PSYNC` after the usual words.
    pub fn ask(mut client: Client, id: &str, next_byte: i64) -> io::Result<Self> {
        client.call(&["REPLCONF", "listening-port", "7777"])?;
        client.call(&["REPLCONF", "capa", "eof", "capa", "psync2"])?;
        client.send(&["PSYNC", id, &next_byte.to_string()])?;
        Ok(Self { client, id: id.to_owned(), offset: 0, rdb: Vec::new() })
    }

    /// The next line that is no sign of life.
    pub fn line(&mut self) -> io::Result<String> {
        loop {
            let line = self.client.receive_line()?;
            let line = line.trim_ascii_end();
            if !line.is_empty() {
                return Ok(String::from_utf8_lossy(line).into_owned());
            }
        }
    }

    pub fn full_resync(&mut self) -> io::Result<(String, u64)> {
        let line = self.line()?;
        let words: Vec<&str> = line.split(' ').collect();
        let ["+FULLRESYNC", id, offset] = words[..] else {
            return Err(io::Error::other(format!("not a full resync: {line}")));
        };
        Ok((id.to_owned(), offset.parse().map_err(io::Error::other)?))
    }

    /// Up to the mark, and not a byte beyond it may follow before the acknowledgement.
    pub fn read_snapshot(&mut self) -> io::Result<()> {
        let line = self.line()?;
        let mark = line.strip_prefix("$EOF:").ok_or_else(|| io::Error::other(line.clone()))?.as_bytes();
        loop {
            let bytes = self.client.receive_available()?;
            if bytes.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.rdb.extend(bytes);
            if self.rdb.ends_with(mark) {
                self.rdb.truncate(self.rdb.len() - mark.len());
                return Ok(());
            }
        }
    }

    /// Acknowledges what was read.
    pub fn ack(&mut self) -> io::Result<()> {
        self.client.send(&["REPLCONF", "ACK", &self.offset.to_string()])
    }

    /// The next command; its bytes count.
    pub fn command(&mut self) -> io::Result<Words> {
        let frame = self.client.receive_frame()?;
        self.offset += frame.len() as u64;
        Ok(words(&frame))
    }

    /// Reads the stream up to a `SET` of `key` in any database: every command that is no `PING`, with blocks joined.
    ///
    /// # Panics
    /// If a block is nested or empty, holds what is no effect, or an effect comes before a database is selected.
    pub fn items_until_set(&mut self, key: &str) -> io::Result<Vec<Item>> {
        let (mut items, mut db, mut block) = (Vec::new(), None, None::<Item>);
        loop {
            let words = self.command()?;
            match words[0].as_slice() {
                b"PING" => assert!(block.is_none(), "a PING within a transaction"),
                b"SELECT" => db = Some(String::from_utf8_lossy(&words[1]).parse().expect("a database")),
                b"MULTI" => {
                    assert!(block.is_none(), "nested");
                    block = Some(Item { db: 0, commands: Vec::new(), is_block: true });
                }
                b"EXEC" => {
                    let item = block.take().expect("a block");
                    assert!(!item.commands.is_empty(), "an empty block");
                    items.push(item);
                }
                _ => {
                    let db = db.expect("a database is selected first");
                    let is_end = words[0] == b"SET" && words[1] == key.as_bytes();
                    match &mut block {
                        Some(block) => {
                            block.db = db;
                            block.commands.push(words);
                        }
                        None => items.push(Item { db, commands: vec![words], is_block: false }),
                    }
                    if is_end {
                        return Ok(items);
                    }
                }
            }
        }
    }
}

fn words(mut frame: &[u8]) -> Words {
    let header = |frame: &mut &[u8]| -> usize {
        let end = frame.iter().position(|byte| *byte == b'\r').expect("a line");
        let number = std::str::from_utf8(&frame[1..end]).expect("text").parse().expect("a number");
        *frame = &frame[end + 2..];
        number
    };
    (0..header(&mut frame))
        .map(|_| {
            let len = header(&mut frame);
            let word = frame[..len].to_vec();
            frame = &frame[len + 2..];
            word
        })
        .collect()
}
