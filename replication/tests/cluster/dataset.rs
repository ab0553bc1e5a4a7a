//! What a node holds, and how it travels.

use braid_core::rdb::{Decoder, Event, Limits, Stop, Writer, kind, load_value};
use braid_core::table::OwnedValue;
use braid_replication::home::Piece;
use std::collections::BTreeMap;

/// Values by database and key. Whatever is written is appended, so that nothing is applied twice or in another order without
/// being noticed.
pub type Dataset = BTreeMap<(u16, Vec<u8>), Vec<u8>>;

/// The only piece of a snapshot.
pub fn piece(data: &Dataset, mut writer: Writer) -> Piece {
    let mut db = None;
    for ((at, key), value) in data {
        if db != Some(*at) {
            writer.select_db(u64::from(*at));
            db = Some(*at);
        }
        writer.key(kind::STRING, key);
        writer.string(value);
    }
    let (bytes, checksum) = writer.take_piece();
    Piece { chunks: vec![bytes.into()], checksum, is_last: true }
}

/// A snapshot that was read.
pub struct Read {
    pub data: Dataset,
    pub stream_db: u16,
    /// Its length.
    pub len: usize,
}

/// Reads a snapshot from the front of `bytes`. None: it is not complete.
pub fn read(bytes: &[u8]) -> Option<Read> {
    let mut decoder = Decoder::new(Limits::default(), true);
    decoder.feed(bytes);
    let (mut data, mut db, mut stream_db) = (Dataset::new(), 0, 0);
    loop {
        match decoder.next_event() {
            Ok(Event::Aux { name, value }) if name == b"repl-stream-db" => {
                stream_db = String::from_utf8(value).expect("text").parse().expect("a number");
            }
            Ok(Event::SelectDb(at)) => db = at as u16,
            Ok(Event::Key(header)) => {
                let mut cursor = decoder.cursor();
                let loaded = load_value(header.kind, decoder.version(), &mut cursor, &Default::default());
                let used_bytes = cursor.used_bytes();
                let value = match loaded {
                    Ok(OwnedValue::Int(value)) => value.to_string().into_bytes(),
                    Ok(OwnedValue::Str(value)) => value.to_vec(),
                    Err(Stop::NeedMore(_)) => return None,
                    _ => panic!("a string"),
                };
                decoder.consume(used_bytes);
                data.insert((db, header.key.to_vec()), value);
            }
            Ok(Event::End) => break,
            Ok(_) => {}
            Err(Stop::NeedMore(_)) => return None,
            Err(Stop::Fault(fault)) => panic!("{fault}"),
        }
    }
    Some(Read { data, stream_db, len: bytes.len() - decoder.take_rest().len() })
}
