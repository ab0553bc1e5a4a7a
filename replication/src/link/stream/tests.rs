use super::*;

/// Notes what it is given; commands that move things between keys do not fit.
#[derive(Default)]
struct Notes {
    list: Vec<(u16, String)>,
}

fn text(args: Args<'_>) -> String {
    args.iter().map(|arg| String::from_utf8_lossy(arg)).collect::<Vec<_>>().join(" ")
}

impl Parts for Notes {
    fn fits(&self, id: CommandId, _args: Args<'_>) -> bool {
        !["rename", "flushall", "swapdb"].contains(&registry().get(id).name)
    }

    fn push(&mut self, id: CommandId, db: u16, args: Args<'_>) -> bool {
        let fits = self.fits(id, args);
        if fits {
            self.list.push((db, text(args)));
        }
        fits
    }
}

fn encode(line: &str) -> Vec<u8> {
    let words: Vec<&str> = line.split(' ').collect();
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        bytes.extend(format!("${}\r\n{word}\r\n", word.len()).into_bytes());
    }
    bytes
}

fn encode_all(lines: &[&str]) -> Vec<u8> {
    lines.iter().flat_map(|line| encode(line)).collect()
}

/// An epoch with its commands as text; `alone` ones in brackets.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    bytes: Vec<u8>,
    db: u16,
    commands: Vec<(u16, String)>,
    alone: bool,
    asks_ack: bool,
}

fn take(stream: &mut Stream) -> Result<Option<Seen>, StreamError> {
    let mut notes = Notes::default();
    let before = stream.offset();
    let Some(epoch) = stream.next_epoch(&mut notes)? else {
        assert!(notes.list.is_empty(), "nothing is pushed without an epoch");
        return Ok(None);
    };
    assert_eq!(epoch.end_offset, before + epoch.len_bytes());
    assert_eq!(epoch.end_offset, stream.offset());
    let alone = match &epoch.work {
        EpochWork::Parts => false,
        EpochWork::Alone(unit) => {
            assert!(notes.list.is_empty(), "an epoch is one or the other");
            notes.list = unit.commands().map(|command| (command.db, text(command.args()))).collect();
            true
        }
    };
    assert_eq!(epoch.commands as usize, notes.list.len());
    let (db, asks_ack) = (epoch.db, epoch.asks_ack);
    assert!(epoch.pieces.iter().all(|piece| !piece.is_empty()));
    Ok(Some(Seen { bytes: epoch.pieces.concat(), db, commands: notes.list, alone, asks_ack }))
}

fn take_all(stream: &mut Stream) -> Vec<Seen> {
    std::iter::from_fn(|| take(stream).expect("a valid stream")).collect()
}

fn new_stream() -> Stream {
    Stream::new(1000, 0, 16)
}

fn commands(seen: &[Seen]) -> Vec<(u16, &str)> {
    seen.iter().flat_map(|seen| &seen.commands).map(|(db, text)| (*db, text.as_str())).collect()
}

#[test]
fn what_is_complete_is_one_epoch_and_the_rest_waits() {
    let mut stream = new_stream();
    let bytes = encode_all(&["SELECT 3", "SET a 1", "PING", "DEL b", "SET c 2"]);
    stream.receive(&bytes[..bytes.len() - 1]);
    let seen = take_all(&mut stream);
    let last = encode("SET c 2").len();
    assert_eq!(
        seen,
        [Seen {
            bytes: bytes[..bytes.len() - last].to_vec(),
            db: 3,
            commands: vec![(3, "SET a 1".into()), (3, "DEL b".into())],
            alone: false,
            asks_ack: false,
        }]
    );
    assert_eq!(stream.read_offset(), 1000 + bytes.len() as u64 - 1);
    assert!(stream.is_starved());
    stream.receive(&bytes[bytes.len() - 1..]);
    assert!(!stream.is_starved());
    assert_eq!(commands(&take_all(&mut stream)), [(3, "SET c 2")]);
    assert_eq!(stream.offset(), 1000 + bytes.len() as u64);
}

#[test]
fn law3_a_transaction_is_never_split() {
    let block = ["SET a 1", "MULTI", "SET b 2", "SELECT 5", "SET c 3", "EXEC", "SET d 4"];
    let bytes = encode_all(&block);
    let before = encode("SET a 1").len();
    let inside = bytes.len() - encode("SET d 4").len();
    for cut in 0..=bytes.len() {
        let mut stream = new_stream();
        stream.receive(&bytes[..cut]);
        let first = take_all(&mut stream);
        let expected: &[(u16, &str)] = match cut {
            _ if cut < before => &[],
            _ if cut < inside => &[(0, "SET a 1")],
            _ if cut < bytes.len() => &[(0, "SET a 1"), (0, "SET b 2"), (5, "SET c 3")],
            _ => &[(0, "SET a 1"), (0, "SET b 2"), (5, "SET c 3"), (5, "SET d 4")],
        };
        assert_eq!(commands(&first), expected, "cut at {cut}");
        stream.receive(&bytes[cut..]);
        let second = take_all(&mut stream);
        assert_eq!(first.iter().chain(&second).map(|seen| seen.bytes.len()).sum::<usize>(), bytes.len());
        assert_eq!(commands(&first).len() + commands(&second).len(), 4);
        assert_eq!(stream.offset(), 1000 + bytes.len() as u64);
    }
}

#[test]
fn what_moves_between_shards_stands_alone_with_its_transaction() {
    let mut stream = new_stream();
    stream.receive(&encode_all(&[
        "SET a 1",
        "RENAME a b",
        "RENAME b c",
        "SET d 1",
        "MULTI",
        "SET e 1",
        "FLUSHALL",
        "EXEC",
        "SET f 1",
    ]));
    let shape: Vec<(bool, usize)> =
        take_all(&mut stream).iter().map(|seen| (seen.alone, seen.commands.len())).collect();
    assert_eq!(shape, [(false, 1), (true, 1), (true, 1), (false, 1), (true, 2), (false, 1)]);
}

#[test]
fn epochs_are_bounded_but_for_one_transaction() {
    let mut stream = new_stream();
    for n in 0..EPOCH_MAX_COMMANDS + 10 {
        stream.receive(&encode(&format!("SET k {n}")));
    }
    let lens: Vec<usize> = take_all(&mut stream).iter().map(|seen| seen.commands.len()).collect();
    assert_eq!(lens, [EPOCH_MAX_COMMANDS as usize, 10]);
    let value = "x".repeat(EPOCH_MAX_BYTES);
    for _ in 0..2 {
        stream.receive(&encode(&format!("SET k {value}")));
    }
    assert_eq!(take_all(&mut stream).len(), 2);
    stream.receive(&encode("MULTI"));
    for n in 0..EPOCH_MAX_COMMANDS * 2 {
        stream.receive(&encode(&format!("SET k {n}")));
        // Asking in between costs no new look at the block.
        assert_eq!(take(&mut stream), Ok(None));
    }
    stream.receive(&encode("EXEC"));
    let lens: Vec<usize> = take_all(&mut stream).iter().map(|seen| seen.commands.len()).collect();
    assert_eq!(lens, [EPOCH_MAX_COMMANDS as usize * 2]);
}

#[test]
fn what_is_no_data_counts_as_bytes_and_is_passed_on() {
    let mut stream = new_stream();
    let bytes = [
        &b"\r\n\n"[..],
        &encode_all(&["PING", "REPLCONF GETACK *", "PUBLISH c m", "MULTI", "EXEC"]),
        b"PING\r\n",
    ]
    .concat();
    stream.receive(&bytes);
    let seen = take_all(&mut stream);
    assert_eq!(seen.len(), 1);
    assert_eq!((seen[0].bytes.len(), seen[0].commands.len(), seen[0].asks_ack), (bytes.len(), 0, true));
}

#[test]
fn law8_a_long_value_is_the_very_buffer_in_the_dataset_and_in_the_log() {
    #[derive(Default)]
    struct Shared(Vec<Bytes>);
    impl Parts for Shared {
        fn fits(&self, _id: CommandId, _args: Args<'_>) -> bool {
            true
        }
        fn push(&mut self, _id: CommandId, _db: u16, args: Args<'_>) -> bool {
            self.0.push(args.shared(2).expect("shared"));
            true
        }
    }
    let value = "v".repeat(BIG_BULK_LEN_BYTES);
    let bytes = encode_all(&[&format!("SET k {value}"), "MULTI", &format!("MSET k {value} b c"), "EXEC"]);
    let mut stream = new_stream();
    let mut parts = Shared::default();
    let mut pieces = Vec::new();
    // In small pieces, as it arrives.
    for piece in bytes.chunks(1000) {
        stream.receive(piece);
        pieces.extend(stream.next_epoch(&mut parts).unwrap().into_iter().flat_map(|epoch| epoch.pieces));
    }
    assert_eq!(pieces.concat(), bytes);
    assert_eq!(parts.0.len(), 2);
    for value in &parts.0 {
        assert_eq!(value.len(), BIG_BULK_LEN_BYTES);
        assert!(pieces.iter().any(|piece| piece.as_ptr() == value.as_ptr()));
    }
    // One that came whole is copied.
    let mut parts = Shared::default();
    stream.receive(&encode(&format!("SET k {value}")));
    assert_eq!(stream.next_epoch(&mut parts).unwrap().unwrap().pieces.len(), 1);
    assert_eq!(parts.0[0].len(), BIG_BULK_LEN_BYTES);
}

#[test]
fn an_error_behind_a_long_value_has_its_offset() {
    let value = "v".repeat(BIG_BULK_LEN_BYTES);
    let good = encode_all(&["MULTI", &format!("SET k {value}")]);
    let mut stream = new_stream();
    for piece in [&good[..100], &good[100..], &encode(&format!("NOSUCH {value}"))] {
        stream.receive(piece);
        assert_eq!(stream.read_offset(), stream.offset() + stream.waiting_bytes() as u64);
        let outcome = take(&mut stream);
        assert_eq!(outcome.is_err(), piece.len() > 200 && piece.starts_with(b"*2"), "{outcome:?}");
        if let Err(error) = outcome {
            assert_eq!(error.offset, 1000 + good.len() as u64);
        }
    }
    assert!(take(&mut stream).is_err());
}

#[test]
fn what_cannot_be_applied_is_an_error_with_its_offset_behind_what_can() {
    for (bad, why) in [
        (encode("NOSUCH a"), "unknown command 'NOSUCH'"),
        (encode("SET a"), "wrong number of arguments for 'SET'"),
        (encode("CLIENT LIST"), "'CLIENT' is no command of a stream"),
        (encode("SCAN 0"), "'SCAN' is no command of a stream"),
        (encode("SELECT 16"), "SELECT of a database beyond the 16 here"),
        (encode("SELECT x"), "SELECT of a database beyond the 16 here"),
        (encode("EXEC"), "EXEC without MULTI"),
        (encode_all(&["MULTI", "MULTI"]), "MULTI within MULTI"),
        (b"*1\r\n+OK\r\n".to_vec(), "Protocol error: expected '$', got '+'"),
        (b"*x\r\n".to_vec(), "Protocol error: invalid multibulk length"),
    ] {
        let mut stream = new_stream();
        let good = encode("SET a 1");
        stream.receive(&good);
        stream.receive(&bad);
        assert_eq!(take(&mut stream).unwrap().unwrap().bytes.len(), good.len());
        let error = take(&mut stream).unwrap_err();
        let within = if why.starts_with("MULTI") { encode("MULTI").len() } else { 0 };
        assert_eq!(error, StreamError { offset: 1000 + (good.len() + within) as u64, text: why.into() });
        assert_eq!(take(&mut stream), Err(error), "it stays that way");
    }
}

#[test]
fn law2_any_split_of_the_bytes_gives_the_same_commands_at_the_same_offsets() {
    let mut rng = fastrand::Rng::with_seed(11);
    for _ in 0..200 {
        let (mut bytes, mut model, mut db) = (Vec::new(), Vec::new(), 0);
        for n in 0..rng.u32(1..60) {
            match rng.u8(..8) {
                0 => {
                    db = rng.u16(..16);
                    bytes.extend(encode(&format!("SELECT {db}")));
                }
                1 => bytes.extend(encode("PING")),
                2 => bytes.extend(b"\n"),
                3 => {
                    bytes.extend(encode("MULTI"));
                    for _ in 0..rng.u32(..4) {
                        let line =
                            if rng.u8(..5) == 0 { format!("RENAME x {n}") } else { format!("SET t {n}") };
                        bytes.extend(encode(&line));
                        model.push((db, line));
                    }
                    bytes.extend(encode("EXEC"));
                }
                4 => {
                    bytes.extend(encode(&format!("RENAME a {n}")));
                    model.push((db, format!("RENAME a {n}")));
                }
                kind => {
                    // Some are long enough to be buffers of their own.
                    let is_long = kind == 5 && rng.u8(..4) == 0;
                    let len_bytes =
                        if is_long { BIG_BULK_LEN_BYTES - 50 + rng.usize(..100) } else { rng.usize(1..200) };
                    let line = format!("SET k {}", "v".repeat(len_bytes));
                    bytes.extend(encode(&line));
                    model.push((db, line));
                }
            }
        }
        let (mut stream, mut seen, mut at) = (new_stream(), Vec::new(), 0);
        let most_bytes = [300, 30_000, 200_000][rng.usize(..3)];
        while at < bytes.len() {
            let to = (at + rng.usize(1..most_bytes)).min(bytes.len());
            stream.receive(&bytes[at..to]);
            at = to;
            assert_eq!(stream.read_offset(), 1000 + at as u64);
            if rng.bool() {
                seen.extend(take_all(&mut stream));
            }
        }
        seen.extend(take_all(&mut stream));
        let relayed: Vec<&[u8]> = seen.iter().map(|seen| &seen.bytes[..]).collect();
        assert!(relayed.concat() == bytes, "the very bytes are passed on");
        let flat: Vec<(u16, String)> = seen.into_iter().flat_map(|seen| seen.commands).collect();
        assert_eq!(flat, model);
        assert_eq!(stream.offset(), 1000 + bytes.len() as u64);
    }
}

#[test]
fn a_database_that_is_selected_from_the_start_must_exist() {
    let mut stream = Stream::new(1000, 16, 16);
    stream.receive(&encode("SET key value"));
    let error = take(&mut stream).expect_err("there is no such database");
    assert_eq!((error.offset, &*error.text), (1000, "SELECT of a database beyond the 16 here"));
}
