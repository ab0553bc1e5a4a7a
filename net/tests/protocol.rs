//! The protocol end to end: requests in pieces, long pipelines, large values, slow readers, errors.

mod common;

use braid_bench::client::{Client, Stream, Value};
use braid_bench::cmd;
use braid_bench::peers::Peer;
use braid_bench::resp::encode;
use braid_bench::wait;
use common::{braid_builder, call, connect, start_braid, start_redis};
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

const SHARDS: [usize; 2] = [1, 3];
const PATIENCE: Duration = Duration::from_secs(20);

fn wire(commands: &[Vec<Vec<u8>>]) -> Vec<u8> {
    let mut wire = Vec::new();
    commands.iter().for_each(|command| encode(&mut wire, command));
    wire
}

fn socket(peer: &Peer) -> TcpStream {
    let stream = TcpStream::connect(peer.addr()).expect("the server accepts connections");
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// All that the server sends until it closes the connection.
fn read_to_end(stream: &mut TcpStream) -> Vec<u8> {
    let mut all = Vec::new();
    stream.read_to_end(&mut all).expect("the server closes the connection in order");
    all
}

/// Bytes that no compression and no accident repeats.
fn noise(len_bytes: usize, seed: u64) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut bytes = vec![0; len_bytes];
    rng.fill(&mut bytes);
    bytes
}

#[test]
fn requests_arrive_in_pieces_of_any_size() {
    for shards in SHARDS {
        let peer = start_braid(shards);
        let mut commands = vec![cmd!["PING"], cmd!["SET", "a", "1"], cmd!["SET", "b", noise(200, 1)]];
        commands.extend([
            cmd!["GET", "a"],
            cmd!["GET", "b"],
            cmd!["MGET", "a", "b", "c"],
            cmd!["ECHO", b"\r\n$3\r\n"],
        ]);
        let mut wire = wire(&commands);
        wire.extend_from_slice(b"PING\r\nSET inline \"a b\\x00\"\n\r\nGET inline\r\n*0\r\n*-1\r\nPING\r\n");
        let whole = {
            let mut stream = socket(&peer);
            stream.write_all(&wire).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            read_to_end(&mut stream)
        };
        assert!(whole.starts_with(b"+PONG\r\n+OK\r\n+OK\r\n$1\r\n1\r\n$200\r\n"), "{}", whole.escape_ascii());
        assert!(whole.ends_with(b"+PONG\r\n+OK\r\n$4\r\na b\0\r\n+PONG\r\n"), "{}", whole.escape_ascii());
        // Byte by byte, then in pieces of random sizes.
        for seed in 0..12 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut stream = socket(&peer);
            let mut rest = &wire[..];
            while !rest.is_empty() {
                let most = 1 << rng.u8(1..8);
                let len = if seed == 0 { 1 } else { rng.usize(1..=rest.len().min(most)) };
                stream.write_all(&rest[..len]).unwrap();
                rest = &rest[len..];
            }
            stream.shutdown(Shutdown::Write).unwrap();
            assert_eq!(read_to_end(&mut stream).escape_ascii().to_string(), whole.escape_ascii().to_string());
        }
    }
}

#[test]
fn law2_replies_to_a_pipeline_of_ten_thousand_commands_come_in_order() {
    for shards in SHARDS {
        let peer = start_braid(shards);
        let mut client = connect(&peer);
        let mut rng = fastrand::Rng::with_seed(7);
        let mut model = std::collections::HashMap::new();
        let mut commands = Vec::new();
        let mut expected = Vec::new();
        for n in 0..10_000 {
            let (key, other) = (format!("key{}", rng.u32(..500)), format!("key{}", rng.u32(..500)));
            match rng.u8(..5) {
                0 | 1 => {
                    commands.push(cmd!["SET", key, n]);
                    expected.push(Value::Simple("OK".into()));
                    model.insert(key, n);
                }
                2 => {
                    commands.push(cmd!["MSET", key, n, other, n]);
                    expected.push(Value::Simple("OK".into()));
                    model.insert(key, n);
                    model.insert(other, n);
                }
                3 => {
                    let number = *model.entry(key.clone()).and_modify(|number| *number += 1).or_insert(1);
                    commands.push(cmd!["INCR", key]);
                    expected.push(Value::Int(number));
                }
                _ => {
                    let bulk = |key| {
                        model.get(key).map_or(Value::Null, |n: &i64| Value::Bulk(n.to_string().into_bytes()))
                    };
                    expected.push(Value::Array(vec![bulk(&key), bulk(&other)]));
                    commands.push(cmd!["MGET", key, other]);
                }
            }
        }
        let replies = client.pipeline(&commands).unwrap();
        for (at, (reply, expected)) in replies.iter().zip(&expected).enumerate() {
            assert_eq!(reply, expected, "command {at}: {:?}", commands[at]);
        }
        assert_eq!(replies.len(), expected.len());
    }
}

#[test]
fn large_values_arrive_in_pieces_and_are_read_slowly() {
    const LEN_BYTES: usize = 64 << 20;
    for shards in SHARDS {
        let peer = start_braid(shards);
        let value = noise(LEN_BYTES, 3);
        for key in common::key_per_shard("large", shards) {
            let mut stream = socket(&peer);
            let wire = wire(&[cmd!["SET", key, value], cmd!["STRLEN", key], cmd!["GET", key]]);
            let mut writer = stream.try_clone().unwrap();
            let sent = std::thread::spawn(move || {
                let mut rng = fastrand::Rng::with_seed(4);
                let mut rest = &wire[..];
                while !rest.is_empty() {
                    let len = rng.usize(1..=rest.len().min(300_000));
                    writer.write_all(&rest[..len]).unwrap();
                    rest = &rest[len..];
                }
            });
            let mut head = vec![0; format!("+OK\r\n:{LEN_BYTES}\r\n${LEN_BYTES}\r\n").len()];
            stream.read_exact(&mut head).unwrap();
            assert_eq!(String::from_utf8(head).unwrap(), format!("+OK\r\n:{LEN_BYTES}\r\n${LEN_BYTES}\r\n"));
            // Small reads: the server cannot send it in one go.
            let mut got = Vec::with_capacity(LEN_BYTES + 2);
            let mut piece = [0; 10_000];
            while got.len() < LEN_BYTES + 2 {
                let len = stream.read(&mut piece).unwrap();
                assert!(len > 0, "closed after {} bytes", got.len());
                got.extend_from_slice(&piece[..len]);
            }
            assert!(got.strip_suffix(b"\r\n") == Some(&value), "the value is not what was set");
            sent.join().unwrap();
            call(&mut connect(&peer), &["DEL", &key]);
        }
    }
}

#[test]
fn replies_larger_than_the_sockets_buffers_arrive_whole() {
    for shards in SHARDS {
        let peer = start_braid(shards);
        let mut client = connect(&peer);
        let value = noise(100_000, 5);
        let keys: Vec<String> = (0..200).map(|n| format!("key{n}")).collect();
        for key in &keys {
            call(&mut client, &cmd!["SET", key, value]);
        }
        let mut command = cmd!["MGET"];
        command.extend(keys.iter().map(|key| key.clone().into_bytes()));
        for _ in 0..3 {
            client.send(&command).unwrap();
            client.send(&["PING"]).unwrap();
            let items = client.receive().unwrap().into_items().unwrap();
            assert_eq!(items.len(), keys.len());
            assert!(items.iter().all(|item| item.as_bytes() == Some(&value)));
            assert_eq!(client.receive().unwrap(), "PONG");
        }
    }
}

#[test]
fn a_half_closed_connection_gets_all_its_replies() {
    for shards in SHARDS {
        let peer = start_braid(shards);
        let value = noise(50_000, 6);
        let mut commands: Vec<_> = (0..50).map(|n| cmd!["SET", format!("key{n}"), value]).collect();
        commands.extend((0..50).map(|n| cmd!["GET", format!("key{n}")]));
        commands.push(cmd!["MGET", "key0", "key1", "key2", "key3"]);
        commands.push(cmd!["PING", "last"]);
        let wire = wire(&commands);
        for round in 0..6 {
            let mut stream = socket(&peer);
            let mut writer = stream.try_clone().unwrap();
            let mut wire = wire.clone();
            if round % 2 == 1 {
                // What is cut off is no command, and keeps no connection open.
                wire.extend_from_slice(b"*2\r\n$3\r\nGET\r\n$4\r\nke");
            }
            let sent = std::thread::spawn(move || {
                writer.write_all(&wire).unwrap();
                writer.shutdown(Shutdown::Write).unwrap();
            });
            let all = read_to_end(&mut stream);
            sent.join().unwrap();
            let expected = 50 * 5 + 50 * (8 + 50_000 + 2) + 4 + 4 * (8 + 50_000 + 2) + 10;
            assert_eq!(all.len(), expected);
            assert!(all.ends_with(b"$4\r\nlast\r\n"));
        }
    }
}

#[test]
fn protocol_errors_are_answered_as_redis_does_and_end_the_connection() {
    let redis = start_redis();
    let long_line = [vec![b'a'; 70_000], b"\r\n".to_vec()].concat();
    let long_count = [b"*".to_vec(), vec![b'1'; 70_000]].concat();
    let long_bulk = [b"*1\r\n$".to_vec(), vec![b'1'; 70_000]].concat();
    let cases: Vec<&[u8]> = vec![
        b"*x\r\n",
        b"*1\r\nx\r\n",
        b"*1\r\n:1\r\n",
        b"*1\r\n$x\r\n",
        b"*1\r\n$-1\r\n",
        b"*1\r\n$999999999999\r\n",
        b"*2147483648\r\n",
        b"*99999999999999999999\r\n",
        b"*\r\n",
        b"*1\r\n$\r\n",
        b"* 1\r\n",
        b"*+1\r\n",
        b"*01\r\n",
        b"*1\r\n$04\r\nPING\r\n",
        b"PING \"unbalanced\r\n",
        b"PING 'unbalanced\r\n",
        b"PING \"a\"b\r\n",
        b"*1\r\n$4\r\nPING\r\n*3\r\n$3\r\nSET\r\n$1\r\na\r\n!1\r\n",
        b"SET a 1\r\nGET a\r\n*1\r\n\r\n",
        b"*-5\r\n*0\r\nPING\r\n",
        b"\r\n\n\r\nPING\r\n",
        b"\0\0\r\n",
        b"GET / HTTP/1.0\r\n\r\n",
        &long_line,
        &long_count,
        &long_bulk,
    ];
    let braids: Vec<Peer> = SHARDS.iter().map(|shards| start_braid(*shards)).collect();
    let answer = |peer: &Peer, case: &[u8]| {
        let mut stream = socket(peer);
        // The server may close before it has read all.
        let _ = stream.write_all(case);
        let _ = stream.shutdown(Shutdown::Write);
        let mut all = Vec::new();
        let mut piece = [0; 4096];
        loop {
            match stream.read(&mut piece) {
                Ok(0) => return all,
                Ok(len) => all.extend_from_slice(&piece[..len]),
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return all,
                Err(error) => panic!("{error}: {}", case.escape_ascii()),
            }
        }
    };
    for case in cases {
        let shown = case[..case.len().min(60)].escape_ascii().to_string();
        let model = answer(&redis, case).escape_ascii().to_string();
        for braid in &braids {
            assert_eq!(answer(braid, case).escape_ascii().to_string(), model, "{shown}");
        }
    }
    // The connection is closed although the client's side stays open.
    for braid in &braids {
        let mut client = connect(braid);
        client.send_raw(b"*1\r\n$4\r\nPING\r\n*x\r\n").unwrap();
        assert_eq!(client.receive().unwrap(), "PONG");
        assert_eq!(client.receive().unwrap(), "ERR Protocol error: invalid multibulk length");
        client.wait_closed().unwrap();
    }
}

#[test]
fn a_unix_socket_serves_the_same() {
    for shards in SHARDS {
        let peer = braid_builder(shards).unix_socket().start().unwrap();
        let mut local = Client::connect_unix(peer.unix_socket()).unwrap();
        call(&mut local, &["SET", "a", "1"]);
        assert_eq!(call(&mut connect(&peer), &["GET", "a"]), "1");
        let commands: Vec<_> = (0..5000).map(|n| cmd!["SET", format!("key{n}"), n]).collect();
        assert!(local.pipeline(&commands).unwrap().iter().all(|reply| reply == "OK"));
        // Without TCP too.
        let path = peer.dir().join("only");
        let mut only = std::process::Command::new(env!("CARGO_BIN_EXE_braid-server"))
            .args(["--port", "0", "--save", "", "--shards", &shards.to_string(), "--unixsocket"])
            .arg(&path)
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let answered = wait::until("the unix socket answers", PATIENCE, || {
            Ok(Client::connect_unix(&path)
                .and_then(|mut client| client.command(&["PING"]))
                .is_ok_and(|reply| reply == "PONG"))
        });
        only.kill().unwrap();
        only.wait().unwrap();
        answered.unwrap();
    }
}

#[test]
fn clients_beyond_maxclients_are_refused() {
    for shards in SHARDS {
        let peer = braid_builder(shards).args(["--maxclients", "10"]).start().unwrap();
        let mut clients: Vec<Client> = Vec::new();
        // The connection that found the server ready may still be counted.
        wait::until("ten clients are connected", PATIENCE, || {
            clients.clear();
            clients.extend((0..10).map(|_| connect(&peer)));
            Ok(clients.iter_mut().all(|client| client.command(&["PING"]).is_ok_and(|reply| reply == "PONG")))
        })
        .unwrap();
        for _ in 0..3 {
            let mut refused = connect(&peer);
            assert_eq!(refused.receive().unwrap(), "ERR max number of clients reached");
            refused.wait_closed().unwrap();
        }
        assert!(clients.iter_mut().all(|client| client.command(&["PING"]).unwrap() == "PONG"));
        clients.pop();
        wait::until("there is room again", PATIENCE, || {
            Ok(connect(&peer).command(&["PING"]).is_ok_and(|reply| reply == "PONG"))
        })
        .unwrap();
    }
}

#[test]
fn a_thousand_connections_are_served_at_once() {
    for shards in SHARDS {
        let peer = start_braid(shards);
        let mut clients: Vec<Client> = (0..1000).map(|_| connect(&peer)).collect();
        for round in 0..3 {
            for (n, client) in clients.iter_mut().enumerate() {
                client
                    .send_raw(&wire(&[
                        cmd!["INCR", format!("key{}", n % 100)],
                        cmd!["ECHO", format!("{round} {n}")],
                    ]))
                    .unwrap();
            }
            for (n, client) in clients.iter_mut().enumerate() {
                assert!(matches!(client.receive().unwrap(), Value::Int(_)));
                assert_eq!(client.receive().unwrap(), format!("{round} {n}").as_str());
            }
        }
        let total: i64 =
            (0..100).filter_map(|n| call(&mut clients[0], &["GET", &format!("key{n}")]).as_int()).sum();
        assert_eq!(total, 3000);
    }
}

/// Fills a connection with requests whose replies nobody reads, until the server takes no more.
fn stuff(stream: &mut Stream, request: &[u8], bytes_max: usize) -> usize {
    stream.set_nonblocking(true).unwrap();
    let mut sent = 0;
    let mut full_since: Option<std::time::Instant> = None;
    while sent < bytes_max {
        // A request that was cut goes on where it was cut.
        match stream.write(&request[sent % request.len()..]) {
            Ok(len) => {
                sent += len;
                full_since = None;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let since = full_since.get_or_insert_with(std::time::Instant::now);
                if since.elapsed() > Duration::from_millis(300) {
                    break;
                }
                std::thread::yield_now();
            }
            Err(error) => panic!("{error}"),
        }
    }
    stream.set_nonblocking(false).unwrap();
    sent
}

#[test]
fn law9_who_does_not_read_is_not_read_and_resumes() {
    const VALUE_BYTES: usize = 10_000;
    for shards in SHARDS {
        let peer = start_braid(shards);
        let value = noise(VALUE_BYTES, 8);
        let keys = common::key_per_shard("key", shards);
        let mut other = connect(&peer);
        for key in &keys {
            call(&mut other, &cmd!["SET", key, value]);
        }
        let before = peer.usage().unwrap().rss_bytes;
        let request = wire(&keys.iter().map(|key| cmd!["GET", key]).collect::<Vec<_>>());
        let mut stream = connect(&peer).into_stream();
        // Enough requests for gigabytes of replies.
        let sent = stuff(&mut stream, &request, 40 << 20);
        assert!(
            sent < 40 << 20,
            "the server read {sent} bytes of requests although nobody reads the replies"
        );
        let grown = peer.usage().unwrap().rss_bytes.saturating_sub(before);
        assert!(grown < 48 << 20, "{grown} bytes more in memory");
        assert_eq!(call(&mut other, &["PING"]), "PONG");
        // What was sent whole is answered whole.
        let per_key = request.len() / keys.len();
        assert!(keys.iter().all(|key| key.len() == keys[0].len()), "requests of one length");
        let expected = sent / per_key * (format!("${VALUE_BYTES}\r\n").len() + VALUE_BYTES + 2);
        let mut reader = stream;
        let mut left = expected;
        let mut piece = vec![0; 1 << 20];
        while left > 0 {
            let len = reader.read(&mut piece).unwrap_or_else(|error| {
                let clients = call(&mut other, &["CLIENT", "LIST"]).text();
                panic!("{error} with {left} of {expected} bytes missing, {shards} shards:\n{clients}")
            });
            assert!(len > 0, "closed with {left} of {expected} bytes missing");
            left = left.checked_sub(len).expect("no more replies than requests");
        }
        // The request that was cut, if one was, then one more: the connection is in order.
        let cut = sent % request.len();
        if cut > 0 {
            reader.write_all(&request[cut..]).unwrap();
            let rest = (request.len() - cut).div_ceil(per_key);
            let mut tail = vec![0; rest * (format!("${VALUE_BYTES}\r\n").len() + VALUE_BYTES + 2)];
            reader.read_exact(&mut tail).unwrap();
        }
        reader.write_all(b"PING\r\n").unwrap();
        let mut pong = [0; 7];
        reader.read_exact(&mut pong).unwrap();
        assert_eq!(&pong, b"+PONG\r\n");
    }
}

#[test]
fn law9_a_limit_of_the_output_buffer_closes_only_the_offender() {
    for shards in SHARDS {
        let peer = braid_builder(shards)
            .args(["--client-output-buffer-limit", "normal", "1mb", "0", "0"])
            .start()
            .unwrap();
        let value = noise(300_000, 9);
        let mut other = connect(&peer);
        let mut many = cmd!["MGET"];
        for n in 0..30 {
            call(&mut other, &cmd!["SET", format!("key{n}"), value]);
            many.extend(cmd![format!("key{n}")]);
        }
        // Within the limit each time.
        let mut reader = connect(&peer);
        for _ in 0..20 {
            assert_eq!(call(&mut reader, &["GET", "key1"]).as_bytes(), Some(&value[..]));
        }
        let mut offender = connect(&peer);
        offender.send(&many).unwrap();
        offender.wait_closed().unwrap();
        wait::until("it is logged", PATIENCE, || {
            Ok(peer.log().contains("overcoming of output buffer limits"))
        })
        .unwrap();
        for client in [&mut other, &mut reader] {
            assert_eq!(call(client, &["GET", "key2"]).as_bytes(), Some(&value[..]));
        }
    }
}

#[test]
fn connections_that_end_in_whatever_way_watch_nothing_any_more() {
    for shards in SHARDS {
        let peer = start_braid(shards);
        let keys = common::key_per_shard("key", shards);
        let all: Vec<&str> = keys.iter().map(String::as_str).collect();
        let everything = [vec!["MSET"], all.iter().flat_map(|key| [*key, "x"]).collect()].concat();
        let watch = [vec!["WATCH"], all].concat();
        let mut busy = connect(&peer);
        for round in 0..120 {
            let mut stream = socket(&peer);
            // Keys are on loan now and then when the watch comes for them.
            (0..round % 7).for_each(|_| busy.send(&everything).unwrap());
            stream.write_all(&wire(&[watch.iter().map(|word| word.as_bytes().to_vec()).collect()])).unwrap();
            if round % 3 == 0 {
                // Half-closed: it has its answer first.
                stream.shutdown(std::net::Shutdown::Write).unwrap();
                assert_eq!(read_to_end(&mut stream), b"+OK\r\n");
            }
            drop(stream);
            (0..round % 7).for_each(|_| assert_eq!(busy.receive().unwrap(), "OK"));
        }
        wait::until("nothing is watched", PATIENCE, || {
            Ok(busy.info("clients")?.get("total_watched_keys").is_some_and(|count| count == "0"))
        })
        .unwrap();
    }
}

#[test]
fn connections_that_end_with_transactions_under_way_leave_nothing_behind() {
    for shards in SHARDS {
        let peer = start_braid(shards);
        let keys = common::key_per_shard("key", shards);
        let mut mset = cmd!["MSET"];
        let mut mget = cmd!["MGET"];
        for key in &keys {
            mset.extend(cmd![key, "x"]);
            mget.extend(cmd![key]);
        }
        for round in 0..100 {
            let mut stream = socket(&peer);
            let mut commands =
                vec![cmd!["WATCH", keys[0]], cmd!["MULTI"], mset.clone(), cmd!["INCR", "count"]];
            if round % 2 == 0 {
                commands.push(cmd!["EXEC"]);
            }
            for _ in 0..50 {
                commands.push(mset.clone());
            }
            let wire = wire(&commands);
            let len = if round % 3 == 0 { wire.len() - 7 } else { wire.len() };
            stream.write_all(&wire[..len]).unwrap();
            // Closed at once, with replies unread: the server sees a reset.
        }
        // No key stays locked, and every EXEC was executed once.
        let mut client = connect(&peer);
        assert_eq!(call(&mut client, &mset), "OK");
        assert!(call(&mut client, &mget).items().unwrap().iter().all(|value| *value == "x"));
        wait::until("all transactions are executed", PATIENCE, || {
            Ok(client.command(&["GET", "count"])?.as_int().is_some_and(|count| (1..=50).contains(&count)))
        })
        .unwrap();
        call(&mut client, &["MULTI"]);
        call(&mut client, &mset);
        assert!(call(&mut client, &["EXEC"]).items().is_some());
    }
}
