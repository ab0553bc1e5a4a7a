//! Commands about the server and its clients, on a running server of one shard and of several.

mod common;

use braid_bench::client::{Client, Value};
use braid_bench::peers::{self, Peer};
use braid_bench::wait;
use common::{braid_builder, call, connect, is_closed, key_per_shard, start_braid};
use std::collections::{HashMap, HashSet};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(20);
const SHARDS: [usize; 2] = [1, 3];

fn run(client: &mut Client, line: &str) -> Value {
    let args: Vec<&str> = line.split(' ').collect();
    client.command(&args).unwrap_or_else(|error| panic!("{line}: {error}"))
}

/// Runs a command that must succeed; gives its text, or the decimal of an integer.
fn text(client: &mut Client, line: &str) -> String {
    match run(client, line) {
        Value::Error(error) => panic!("{line}: {error}"),
        Value::Int(number) => number.to_string(),
        value => value.text(),
    }
}

/// Runs a command that must fail; gives its error.
fn refusal(client: &mut Client, line: &str) -> String {
    match run(client, line) {
        Value::Error(error) => error,
        value => panic!("{line}: {value:?}"),
    }
}

/// Connections to `peer`, at least one served by each of its shards.
fn connect_to_all_shards(peer: &Peer, shards: usize) -> Vec<Client> {
    let mut clients: Vec<Client> = Vec::new();
    let mut seen = HashSet::new();
    while seen.len() < shards {
        assert!(clients.len() < 20 * shards, "connections reach {seen:?} only");
        let mut client = connect(peer);
        seen.insert(client_fields(&mut client, "CLIENT INFO")[0]["io-thread"].clone());
        clients.push(client);
    }
    clients
}

/// The lines of a `CLIENT LIST` or `CLIENT INFO` as maps.
fn client_fields(client: &mut Client, line: &str) -> Vec<HashMap<String, String>> {
    let fields = |line: &str| {
        let fields = line.split(' ').map(|field| field.split_once('=').expect("name=value"));
        fields.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    };
    text(client, line).lines().map(fields).collect()
}

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    wait::until(what, PATIENCE, || Ok(condition())).unwrap_or_else(|error| panic!("{error}"));
}

fn assert_closed(client: &mut Client) {
    client.wait_closed().expect("the server closes the connection");
}

#[test]
fn clients_are_listed_named_and_found_whatever_their_shard() {
    for shards in SHARDS {
        let peer = start_braid(shards);
        let mut clients = connect_to_all_shards(&peer, shards);
        let count = clients.len();
        for (index, client) in clients.iter_mut().enumerate() {
            assert_eq!(text(client, &format!("CLIENT SETNAME c{index}")), "OK");
            assert_eq!(text(client, "CLIENT SETINFO LIB-NAME tests"), "OK");
            assert_eq!(text(client, "CLIENT SETINFO lib-ver 1.2"), "OK");
            assert_eq!(text(client, "CLIENT GETNAME"), format!("c{index}"));
        }
        let first = &mut clients[0];
        run(first, "SELECT 3");
        let listed = client_fields(first, "CLIENT LIST");
        assert_eq!(listed.len(), count);
        let ids: Vec<u64> = listed.iter().map(|fields| fields["id"].parse().unwrap()).collect();
        assert!(ids.is_sorted() && ids.len() == ids.iter().collect::<HashSet<_>>().len());
        for (index, fields) in listed.iter().enumerate() {
            assert_eq!((&*fields["name"], &*fields["lib-name"]), (&*format!("c{index}"), "tests"));
            assert_eq!((&*fields["lib-ver"], &*fields["user"], &*fields["flags"]), ("1.2", "default", "N"));
            assert_eq!(fields["laddr"], peer.addr().to_string());
        }
        assert_eq!((&*listed[0]["cmd"], &*listed[0]["db"]), ("client|list", "3"));
        assert_eq!(&*listed[0]["tot-cmds"], "6", "but this one");
        let own_id = text(first, "CLIENT ID");
        assert_eq!(client_fields(first, &format!("CLIENT LIST ID {own_id} 9999"))[0]["id"], own_id);
        assert_eq!(client_fields(first, "CLIENT LIST TYPE normal").len(), count);
        assert_eq!(text(first, "CLIENT LIST TYPE pubsub"), "");
        for (line, error) in [
            ("CLIENT LIST foo", "ERR syntax error"),
            ("CLIENT LIST TYPE foo", "ERR Unknown client type 'foo'"),
            ("CLIENT LIST ID x", "ERR Invalid client ID"),
            ("CLIENT SETINFO a b", "ERR Unrecognized option 'a'"),
            ("CLIENT NO-EVICT x", "ERR syntax error"),
            ("CLIENT foo", "ERR unknown subcommand 'foo'. Try CLIENT HELP."),
            ("CLIENT KILL", "ERR wrong number of arguments for 'client|kill' command"),
        ] {
            assert_eq!(refusal(first, line), error);
        }
        assert_eq!(text(first, "CLIENT NO-TOUCH ON"), "OK");
        assert_eq!(text(first, "CLIENT NO-EVICT ON"), "OK");
        run(first, "MULTI");
        run(first, "SET k v");
        let seen = &client_fields(&mut connect(&peer), "CLIENT LIST")[0];
        assert_eq!((&*seen["flags"], &*seen["multi"]), ("xeT", "1"));
    }
}

#[test]
fn clients_are_killed_whatever_their_shard() {
    for shards in SHARDS {
        let peer = start_braid(shards);
        let mut killer = connect(&peer);
        let mut victims = connect_to_all_shards(&peer, shards);
        for victim in &mut victims {
            let id = text(victim, "CLIENT ID");
            assert_eq!(text(&mut killer, &format!("CLIENT KILL ID {id}")), "1");
            assert_closed(victim);
        }
        let mut victim = connect(&peer);
        let addr = client_fields(&mut victim, "CLIENT INFO")[0]["addr"].clone();
        assert_eq!(text(&mut killer, &format!("CLIENT KILL {addr}")), "OK");
        assert_closed(&mut victim);
        until("they are gone", || client_fields(&mut killer, "CLIENT LIST").len() == 1);
        assert_eq!(refusal(&mut killer, "CLIENT KILL 1.2.3.4:5"), "ERR No such client");
        assert_eq!(text(&mut killer, "CLIENT KILL ID 9999"), "0");
        let mut others: Vec<Client> = (0..2 * shards).map(|_| connect(&peer)).collect();
        for other in &mut others {
            run(other, "PING");
        }
        assert_eq!(text(&mut killer, "CLIENT KILL TYPE normal"), others.len().to_string());
        others.iter_mut().for_each(assert_closed);
        let laddr = peer.addr().to_string();
        assert_eq!(text(&mut killer, &format!("CLIENT KILL LADDR {laddr} SKIPME no")), "1");
        assert_closed(&mut killer);
    }
}

#[test]
fn a_pause_holds_commands_back_until_it_ends() {
    for shards in SHARDS {
        let peer = start_braid(shards);
        let mut clients = connect_to_all_shards(&peer, shards);
        let mut other = connect(&peer);
        assert_eq!(text(&mut other, "CLIENT PAUSE 60000 WRITE"), "OK");
        for (index, client) in clients.iter_mut().enumerate() {
            assert_eq!(text(client, &format!("EXISTS k{index}")), "0", "reads go on");
            client.send(&["SET", &format!("k{index}"), "v"]).unwrap();
            client.send(&["GET", &format!("k{index}")]).unwrap();
        }
        // Blocked: the server says so, and nothing is written.
        let blocked = clients.len().to_string();
        until("all wait", || other.info("clients").unwrap()["blocked_clients"] == blocked);
        assert_eq!(text(&mut other, "DBSIZE"), "0");
        assert_eq!(client_fields(&mut other, "CLIENT LIST")[0]["flags"], "b");
        assert_eq!(text(&mut other, "CLIENT UNPAUSE"), "OK");
        for client in &mut clients {
            assert_eq!(client.receive().unwrap().text(), "OK");
            assert_eq!(client.receive().unwrap().text(), "v");
        }
        assert_eq!(other.info("clients").unwrap()["blocked_clients"], "0");
        // A timer ends it, too; everybody waits, and those who left meanwhile are no trouble.
        let start = Instant::now();
        assert_eq!(text(&mut other, "CLIENT PAUSE 300"), "OK");
        let mut leaver = connect(&peer);
        leaver.send(&["SET", "left", "v"]).unwrap();
        drop(leaver);
        for client in &mut clients {
            assert_eq!(run(client, "PING"), Value::Simple("PONG".into()));
        }
        assert!(start.elapsed() >= Duration::from_millis(300), "{:?}", start.elapsed());
        assert_eq!(refusal(&mut other, "CLIENT PAUSE x"), "ERR timeout is not an integer or out of range");
        assert_eq!(refusal(&mut other, "CLIENT PAUSE -1"), "ERR timeout is negative");
        assert_eq!(refusal(&mut other, "CLIENT PAUSE 1 2"), "ERR CLIENT PAUSE mode must be WRITE or ALL");
    }
}

#[test]
fn what_was_answered_before_a_pause_or_a_wait_is_sent_at_once() {
    let peer = start_braid(2);
    let mut admin = connect(&peer);
    for mut client in connect_to_all_shards(&peer, 2) {
        client.send_raw(b"GET nothing\r\nSET some thing\r\nWAIT 1 0\r\n").expect("sent");
        assert_eq!(client.receive().expect("an answer"), Value::Null);
        assert_eq!(client.receive().expect("an answer"), "OK");
        run(&mut admin, "client pause 100000 write");
        let mut other = connect(&peer);
        other.send_raw(b"GET some\r\nSET some thing\r\n").expect("sent");
        assert_eq!(other.receive().expect("an answer"), "thing");
        run(&mut admin, "client unpause");
        assert_eq!(other.receive().expect("an answer"), "OK");
    }
}

#[test]
fn replies_can_be_switched_off() {
    for shards in SHARDS {
        let peer = start_braid(shards);
        let mut client = connect(&peer);
        let keys = key_per_shard("k", shards);
        let mut wire = vec![vec!["CLIENT".to_owned(), "REPLY".to_owned(), "SKIP".to_owned()]];
        for key in &keys {
            // Of each pair the first is not answered.
            wire.push(vec!["SET".into(), key.clone(), "silent".into()]);
            wire.push(vec!["GET".into(), key.clone()]);
            wire.push(vec!["CLIENT".into(), "REPLY".into(), "SKIP".into()]);
        }
        let mut many = vec!["DEL".to_owned()];
        many.extend(keys.iter().cloned());
        wire.push(many);
        wire.push(vec!["PING".into()]);
        wire.push(vec!["CLIENT".into(), "REPLY".into(), "OFF".into()]);
        for key in &keys {
            wire.push(vec!["SET".into(), key.clone(), "v".into()]);
            wire.push(vec!["GET".into(), key.clone()]);
            wire.push(vec!["NOSUCH".into()]);
        }
        wire.push(vec!["KEYS".into(), "*".into()]);
        wire.push(vec!["INFO".into()]);
        wire.push(vec!["CLIENT".into(), "REPLY".into(), "ON".into()]);
        wire.push(vec!["DBSIZE".into()]);
        for command in &wire {
            client.send(command).unwrap();
        }
        for _ in &keys {
            assert_eq!(client.receive().unwrap().text(), "silent");
        }
        assert_eq!(client.receive().unwrap().text(), "PONG");
        assert_eq!(client.receive().unwrap().text(), "OK");
        assert_eq!(client.receive().unwrap(), Value::Int(shards as i64));
    }
}

#[test]
fn info_tells_of_keys_and_commands_at_once() {
    for shards in SHARDS {
        let peer = start_braid(shards);
        let mut client = connect(&peer);
        let keys: Vec<String> = (0..100).map(|n| format!("k{n}")).collect();
        for round in 0..20 {
            let mut mset = vec!["MSET".to_owned()];
            mset.extend(keys.iter().take(5 * (round + 1)).flat_map(|key| [key.clone(), "v".to_owned()]));
            call(&mut client, &mset);
            let info = client.info("keyspace").unwrap();
            assert_eq!(info["db0"], format!("keys={},expires=0,avg_ttl=0,subexpiry=0", 5 * (round + 1)));
        }
        run(&mut client, "PEXPIRE k1 100000");
        run(&mut client, "GET k1");
        run(&mut client, "GET none");
        run(&mut client, "LPUSHX k1 v");
        run(&mut client, "GET");
        run(&mut client, "NOSUCH");
        let info = client.info("everything").unwrap();
        assert!(info["db0"].starts_with("keys=100,expires=1,avg_ttl="), "{}", info["db0"]);
        assert_eq!((&*info["keyspace_hits"], &*info["keyspace_misses"]), ("1", "1"));
        assert_eq!((&*info["shards"], &*info["redis_mode"]), (&*shards.to_string(), "standalone"));
        assert_eq!((&*info["role"], &*info["connected_slaves"]), ("master", "0"));
        assert_eq!(info["tcp_port"], peer.port().to_string());
        assert_eq!(info["connected_clients"], "1");
        assert!(info["cmdstat_mset"].starts_with("calls=20,usec="), "{}", info["cmdstat_mset"]);
        assert!(info["cmdstat_get"].ends_with("rejected_calls=1,failed_calls=0"), "{}", info["cmdstat_get"]);
        assert!(info["latency_percentiles_usec_get"].starts_with("p50="));
        assert!(info["errorstat_ERR"].starts_with("count="));
        let before: u64 = info["total_commands_processed"].parse().unwrap();
        assert!(before >= 43, "{before}");
        assert!(info["total_net_input_bytes"].parse::<u64>().unwrap() > 1000);
        assert!(info["used_memory"].parse::<u64>().unwrap() > 100_000);
        assert_eq!(text(&mut client, "CONFIG RESETSTAT"), "OK");
        let info = client.info("all").unwrap();
        assert_eq!((&*info["keyspace_hits"], &*info["total_connections_received"]), ("0", "0"));
        assert!(info["total_commands_processed"].parse::<u64>().unwrap() <= 1);
        assert!(!info.contains_key("cmdstat_mset") && !info.contains_key("errorstat_ERR"));
        assert!(info["db0"].starts_with("keys=100,"));
        assert_eq!(text(&mut client, "INFO nosuchsection"), "");
        // Inside a transaction it is answered, too.
        run(&mut client, "MULTI");
        run(&mut client, "INFO keyspace");
        let answers = run(&mut client, "EXEC").into_items().unwrap();
        assert!(answers[0].text().contains("db0:keys=100,expires=1"), "{answers:?}");
        // Nobody else can name what the server says to itself.
        assert!(refusal(&mut client, "info|survey").starts_with("ERR unknown command"));
        assert!(refusal(&mut client, "watch|here k").starts_with("ERR unknown command"));
    }
}

#[test]
fn memory_in_use_follows_the_data_and_is_limited() {
    for shards in SHARDS {
        let peer = start_braid(shards);
        let mut client = connect(&peer);
        let used =
            |client: &mut Client| client.info("memory").unwrap()["used_memory"].parse::<i64>().unwrap();
        let before = used(&mut client);
        let value = "x".repeat(1000);
        for batch in 0..100 {
            let commands: Vec<Vec<String>> =
                (0..100).map(|n| vec!["SET".into(), format!("key:{batch}:{n}"), value.clone()]).collect();
            assert!(client.pipeline(&commands).unwrap().iter().all(|reply| !reply.is_error()));
        }
        // 10,000 values of 1000 bytes: 1024 each with its key, or the next size class of the allocator. The buffers of the
        // pipelines stay in the shards' pools.
        const POOLS_BYTES: i64 = 6_000_000;
        let grown = used(&mut client) - before;
        assert!((10_000_000..14_000_000 + POOLS_BYTES).contains(&grown), "{grown}");
        let limit = before + grown / 2;
        assert_eq!(text(&mut client, &format!("CONFIG SET maxmemory {limit}")), "OK");
        let oom = "OOM command not allowed when used memory > 'maxmemory'.";
        for key in key_per_shard("more", shards) {
            assert_eq!(refusal(&mut client, &format!("SET {key} v")), oom);
        }
        assert_eq!(run(&mut client, "DEL key:0:0"), Value::Int(1));
        run(&mut client, "FLUSHALL");
        until("the memory is free again", || used(&mut client) < before + POOLS_BYTES);
        assert_eq!(text(&mut client, "SET more v"), "OK");
        let stats = run(&mut client, "MEMORY STATS").into_items().unwrap();
        let names: Vec<String> = stats.iter().step_by(2).map(Value::text).collect();
        assert!(names.contains(&"keys.count".to_owned()) && names.contains(&"db.0".to_owned()), "{names:?}");
        assert_eq!(text(&mut client, "MEMORY PURGE"), "OK");
        assert!(text(&mut client, "MEMORY DOCTOR").contains("very little memory"));
        assert!(!text(&mut client, "MEMORY MALLOC-STATS").is_empty());
    }
}

#[test]
fn changes_of_the_configuration_take_effect() {
    for shards in SHARDS {
        let peer = braid_builder(shards).start().unwrap();
        let mut client = connect(&peer);
        assert_eq!(text(&mut client, "CONFIG SET hash-max-listpack-entries 2 timeout 100"), "OK");
        let found = run(&mut client, "CONFIG GET timeout hash-max-l*-entries").into_items().unwrap();
        let found: Vec<String> = found.iter().map(Value::text).collect();
        assert_eq!(found, ["timeout", "100", "hash-max-listpack-entries", "2"]);
        for (line, error) in [
            ("CONFIG SET nosuch 1", "ERR Unknown option or number of arguments for CONFIG SET - 'nosuch'"),
            ("CONFIG SET port", "ERR wrong number of arguments for 'config|set' command"),
            ("CONFIG SET hz 10 hz", "ERR wrong number of arguments for 'config|set' command"),
            ("CONFIG REWRITE", "ERR The server is running without a config file"),
            ("CONFIG foo", "ERR unknown subcommand 'foo'. Try CONFIG HELP."),
        ] {
            assert_eq!(refusal(&mut client, line), error);
        }
        assert!(refusal(&mut client, "CONFIG SET timeout 7 hz abc").starts_with("ERR CONFIG SET failed"));
        assert_eq!(
            run(&mut client, "CONFIG GET timeout").into_items().unwrap()[1].text(),
            "100",
            "all or none"
        );
        assert!(refusal(&mut client, "CONFIG SET maxmemory-policy allkeys-lru").contains("not supported"));
        // A password: who is connected stays, who comes has to give it.
        assert_eq!(text(&mut client, "CONFIG SET requirepass secret"), "OK");
        assert_eq!(text(&mut client, "SET k v"), "OK");
        for mut other in (0..shards + 1).map(|_| connect(&peer)) {
            assert_eq!(refusal(&mut other, "GET k"), "NOAUTH Authentication required.");
            assert_eq!(text(&mut other, "AUTH secret"), "OK");
            assert_eq!(text(&mut other, "GET k"), "v");
        }
        assert_eq!(text(&mut client, "CONFIG SET requirepass "), "OK");
        // Another port: the old one is closed, connections stay.
        let port = peers::free_port().unwrap();
        assert_eq!(text(&mut client, &format!("CONFIG SET port {port}")), "OK");
        until("the new port answers", || {
            Client::connect(("127.0.0.1", port)).is_ok_and(|mut other| other.command(&["PING"]).is_ok())
        });
        until("the old port is closed", || peer.client().is_err());
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let line = format!("CONFIG SET port {}", taken.local_addr().unwrap().port());
        assert!(refusal(&mut client, &line).contains("Unable to listen on this port"));
        assert_eq!(run(&mut client, "CONFIG GET port").into_items().unwrap()[1].text(), port.to_string());
        assert!(Client::connect(("127.0.0.1", port)).is_ok());
        assert_eq!(text(&mut client, "CONFIG SET loglevel debug"), "OK");
        assert_eq!(text(&mut client, "GET k"), "v");
    }
}

/// A process that ends with the test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_configuration_is_rewritten() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("braid.conf");
    std::fs::write(&file, "# mine\nhz 20\n").unwrap();
    let port = peers::free_port().unwrap();
    let child = Command::new(env!("CARGO_BIN_EXE_braid-server"))
        .arg(&file)
        .args(["--port", &port.to_string(), "--shards", "2", "--bind", "127.0.0.1"])
        .stdout(Stdio::null())
        .spawn()
        .expect("the binary runs");
    let _child = Killed(child);
    until("it answers", || Client::connect(("127.0.0.1", port)).is_ok());
    let mut client = Client::connect(("127.0.0.1", port)).unwrap();
    assert_eq!(text(&mut client, "CONFIG SET timeout 77"), "OK");
    let replies = client.pipeline(&[vec!["CONFIG", "REWRITE"], vec!["PING"]]).unwrap();
    assert_eq!((replies[0].text(), replies[1].text()), ("OK".to_owned(), "PONG".to_owned()));
    let written = std::fs::read_to_string(&file).unwrap();
    assert!(written.starts_with("# mine\nhz 20\n") && written.contains("\ntimeout 77\n"), "{written}");
}

#[test]
fn idle_clients_and_those_beyond_their_limits_are_closed() {
    for shards in SHARDS {
        let peer = start_braid(shards);
        let mut watcher = connect(&peer);
        assert_eq!(text(&mut watcher, "CONFIG SET loglevel verbose"), "OK");
        let mut idle = connect_to_all_shards(&peer, shards);
        assert_eq!(text(&mut watcher, "CONFIG SET timeout 1"), "OK");
        let mut closed = 0;
        until("idle clients are closed", || {
            // The watcher is not idle.
            closed = idle.len() + 1 - client_fields(&mut watcher, "CLIENT LIST").len();
            closed == idle.len()
        });
        idle.iter_mut().for_each(assert_closed);
        assert_eq!(text(&mut watcher, "CONFIG SET timeout 0"), "OK");
        assert_eq!(text(&mut watcher, "CONFIG SET maxclients 2"), "OK");
        let mut second = connect(&peer);
        run(&mut second, "PING");
        let mut third = connect(&peer);
        assert_eq!(third.receive().unwrap(), Value::Error("ERR max number of clients reached".into()));
        assert_closed(&mut third);
        assert_eq!(watcher.info("stats").unwrap()["rejected_connections"], "1");
        assert_eq!(text(&mut watcher, "CONFIG SET maxclients 100"), "OK");
        // A reply beyond the hard limit closes the one who asked for it, and nobody else.
        call(&mut watcher, &["SET", "large", &"x".repeat(300_000)]);
        assert_eq!(
            call(&mut watcher, &["CONFIG", "SET", "client-output-buffer-limit", "normal 100000 0 0"]).text(),
            "OK"
        );
        second.send(&["GET", "large"]).unwrap();
        assert_closed(&mut second);
        assert_eq!(text(&mut watcher, "PING"), "PONG");
        assert_eq!(watcher.info("stats").unwrap()["client_output_buffer_limit_disconnections"], "1");
        // A request without an end.
        assert_eq!(text(&mut watcher, "CONFIG SET client-query-buffer-limit 1048576"), "OK");
        let mut endless = connect(&peer);
        let outcome = (0..64).try_for_each(|_| {
            endless.send_raw(&[b'*'; 1]).and_then(|()| {
                endless.send_raw(format!("1\r\n$3000000\r\n{}", "x".repeat(1 << 20)).as_bytes())
            })
        });
        assert!(outcome.is_err() || endless.wait_closed().is_ok());
        // One of whose arguments each is whole.
        let mut endless = connect(&peer);
        endless.send_raw(b"*100\r\n$4\r\nMSET\r\n").unwrap();
        let whole = format!("$300000\r\n{}\r\n", "x".repeat(300_000));
        let outcome = (0..64).try_for_each(|_| endless.send_raw(whole.as_bytes()));
        assert!(outcome.is_err() || endless.wait_closed().is_ok());
        let stats = watcher.info("stats").unwrap();
        assert_eq!(stats["client_query_buffer_limit_disconnections"], "2");
        for directive in ["client-query-buffer-limit", "proto-max-bulk-len"] {
            assert!(watcher.call(&["CONFIG", "SET", directive, "4gb"]).is_err(), "{directive}");
            assert_eq!(call(&mut watcher, &["CONFIG", "SET", directive, "3gb"]).text(), "OK", "{directive}");
        }
        // Who leaves by itself is told apart.
        let mut leaver = connect(&peer);
        run(&mut leaver, "PING");
        drop(leaver);
        until("the log tells", || {
            let log = peer.log();
            log.contains("Closing idle client")
                && log.contains("scheduled to be closed ASAP for overcoming of output buffer limits.")
                && log.contains("Closing client that reached max query buffer length: id=")
                && log.contains("Accepted 127.0.0.1:")
                && log.contains("Client closed connection id=")
        });
    }
}

#[test]
fn a_client_that_reads_too_slowly_for_too_long_is_closed() {
    let peer = start_braid(2);
    let mut watcher = connect(&peer);
    call(&mut watcher, &["SET", "large", &"x".repeat(200_000)]);
    call(&mut watcher, &["CONFIG", "SET", "client-output-buffer-limit", "normal 0 100000 1"]);
    let mut slow = connect(&peer);
    // More than any socket buffer holds, and nothing is read.
    for _ in 0..400 {
        slow.send(&["GET", "large"]).unwrap();
    }
    until("it is closed", || {
        watcher.info("stats").unwrap()["client_output_buffer_limit_disconnections"] == "1"
    });
    assert_closed(&mut slow);
    assert_eq!(text(&mut watcher, "PING"), "PONG");
}

#[test]
fn slow_commands_are_noted_with_who_sent_them() {
    for shards in SHARDS {
        let peer = braid_builder(shards).args(["--enable-debug-command", "local"]).start().unwrap();
        let mut client = connect(&peer);
        run(&mut client, "CLIENT SETNAME slow");
        assert_eq!(
            text(&mut client, "CONFIG SET slowlog-log-slower-than 0 latency-monitor-threshold 10"),
            "OK"
        );
        run(&mut client, "SLOWLOG RESET");
        let keys = key_per_shard("k", shards);
        for key in &keys {
            run(&mut client, &format!("SET {key} v"));
        }
        assert_eq!(text(&mut client, "DEBUG SLEEP 0.05"), "OK");
        assert_eq!(text(&mut client, "CONFIG SET slowlog-log-slower-than -1"), "OK");
        let entries = run(&mut client, "SLOWLOG GET -1").into_items().unwrap();
        // RESET, the SETs, SLEEP, and CONFIG SET itself unless it switched itself off.
        assert!(entries.len() >= keys.len() + 2, "{entries:?}");
        let fields: Vec<Vec<Value>> = entries.into_iter().map(|entry| entry.into_items().unwrap()).collect();
        let words =
            |entry: &[Value]| -> Vec<String> { entry[3].items().unwrap().iter().map(Value::text).collect() };
        let addr = client_fields(&mut client, "CLIENT INFO")[0]["addr"].clone();
        for key in &keys {
            let set =
                fields.iter().find(|entry| words(entry) == ["SET", key, "v"]).expect("every SET is there");
            assert_eq!((set[4].text(), set[5].text()), (addr.clone(), "slow".to_owned()), "{key}");
        }
        let sleep = fields.iter().find(|entry| words(entry)[0] == "DEBUG").unwrap();
        assert!(sleep[2].as_int().unwrap() >= 50_000);
        assert_eq!(run(&mut client, "SLOWLOG GET 1").into_items().unwrap().len(), 1);
        let len = text(&mut client, "SLOWLOG LEN");
        assert_eq!(len, fields.len().to_string());
        assert_eq!(text(&mut client, "CONFIG SET slowlog-max-len 1"), "OK");
        assert_eq!(text(&mut client, "SLOWLOG LEN"), "1");
        assert_eq!(text(&mut client, "SLOWLOG RESET"), "OK");
        assert_eq!(text(&mut client, "SLOWLOG LEN"), "0");
        let latest = run(&mut client, "LATENCY LATEST").into_items().unwrap();
        let command =
            latest.iter().map(|event| event.items().unwrap()).find(|event| event[0].text() == "command");
        assert!(command.expect("noted")[3].as_int().unwrap() >= 50);
        assert_eq!(run(&mut client, "LATENCY HISTORY command").into_items().unwrap().len(), 1);
        assert!(text(&mut client, "LATENCY GRAPH command").starts_with("command - high"));
        assert!(text(&mut client, "LATENCY DOCTOR").contains("command: 1 latency spikes"));
        let histogram = run(&mut client, "LATENCY HISTOGRAM set").into_items().unwrap();
        assert_eq!(histogram[0].text(), "set");
        assert_eq!(histogram[1].items().unwrap()[1], Value::Int(shards as i64));
        assert!(text(&mut client, "LATENCY RESET command").parse::<u64>().unwrap() == 1);
        assert_eq!(refusal(&mut client, "SLOWLOG GET x"), "ERR count should be greater than or equal to -1");
    }
}

#[test]
fn debug_is_refused_unless_allowed() {
    let peer = start_braid(1);
    let mut client = connect(&peer);
    for line in ["DEBUG SLEEP 0", "DEBUG OBJECT k", "DEBUG HELP"] {
        assert!(refusal(&mut client, line).starts_with("ERR DEBUG command not allowed. If the"), "{line}");
    }
    drop(peer);
    let peer = braid_builder(3).args(["--enable-debug-command", "yes"]).start().unwrap();
    let mut client = connect(&peer);
    run(&mut client, "SET k v");
    assert!(text(&mut client, "DEBUG OBJECT k").contains("encoding:embstr"));
    assert_eq!(text(&mut client, "DEBUG SET-ACTIVE-EXPIRE 0"), "OK");
    for n in 0..50 {
        run(&mut client, &format!("SET gone{n} v PX 1"));
    }
    assert_eq!(text(&mut client, "DBSIZE"), "51", "nothing removes them");
    assert_eq!(text(&mut client, "DEBUG SET-ACTIVE-EXPIRE 1"), "OK");
    until("expired keys are removed", || text(&mut client, "DBSIZE") == "1");
    assert_eq!(client.info("stats").unwrap()["expired_keys"], "50");
}

#[test]
fn the_command_table_describes_itself() {
    let peer = start_braid(2);
    let mut client = connect(&peer);
    let count: usize = text(&mut client, "COMMAND COUNT").parse().unwrap();
    let all = run(&mut client, "COMMAND").into_items().unwrap();
    assert_eq!(all.len(), count);
    assert_eq!(run(&mut client, "COMMAND LIST").into_items().unwrap().len(), count);
    assert_eq!(run(&mut client, "COMMAND DOCS").into_items().unwrap().len(), 2 * count);
    let keys = run(&mut client, "COMMAND GETKEYS MSET a 1 b 2").into_items().unwrap();
    assert_eq!(keys.iter().map(Value::text).collect::<Vec<_>>(), ["a", "b"]);
    run(&mut client, "HELLO 3");
    let info = run(&mut client, "COMMAND INFO client").into_items().unwrap();
    assert_eq!(info[0].items().unwrap()[0].text(), "client");
}

#[test]
fn a_shutdown_ends_the_server_with_a_snapshot_or_without() {
    for shards in SHARDS {
        let mut peer = start_braid(shards);
        let mut client = connect(&peer);
        assert_eq!(refusal(&mut client, "SHUTDOWN foo"), "ERR syntax error");
        assert_eq!(refusal(&mut client, "SHUTDOWN ABORT"), "ERR No shutdown in progress.");
        for (how, saves) in [("NOSAVE", false), ("SAVE", true)] {
            connect(&peer).send(&["SHUTDOWN", how]).unwrap();
            let error = client.receive().expect_err("no reply comes");
            assert!(is_closed(&error), "{error}");
            assert!(peer.wait_exit(PATIENCE).unwrap().success());
            assert_eq!(peer.dir().join("dump.rdb").exists(), saves);
            peer.restart().unwrap();
            client = connect(&peer);
        }
    }
}

#[test]
fn the_small_ones_answer() {
    let peer = start_braid(1);
    let mut client = connect(&peer);
    let time = run(&mut client, "TIME").into_items().unwrap();
    let seconds: u64 = time[0].text().parse().unwrap();
    assert!(time[1].text().parse::<u64>().unwrap() < 1_000_000 && seconds > 1_700_000_000);
    let lastsave: u64 = text(&mut client, "LASTSAVE").parse().unwrap();
    assert!((seconds - 600..=seconds).contains(&lastsave));
    assert!(text(&mut client, "LOLWUT").contains("Redis ver. "));
    assert_eq!(text(&mut client, "CLIENT UNBLOCK 1"), "0");
    for container in ["CLIENT", "CONFIG", "COMMAND", "SLOWLOG", "LATENCY", "MEMORY"] {
        let lines = run(&mut client, &format!("{container} HELP")).into_items().unwrap();
        assert!(lines[0].text().starts_with(&format!("{container} <subcommand>")));
    }
}
