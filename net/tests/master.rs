//! The master role beyond the stream itself: who waits for replicas, when writes are refused, how long the stream is kept,
//! and whose data a master that restarted empty leaves alone.

mod common;
#[allow(dead_code)]
#[path = "replication/fake.rs"]
mod fake;
#[path = "common/replicas.rs"]
mod replicas;

use braid_bench::client::{Client, Value};
use braid_bench::cmd;
use braid_bench::peers::{Kind, Peer};
use common::{call, connect, key_per_shard, start, wait_until};
use fake::Fake;
use replicas::master;
use std::thread;
use std::time::{Duration, Instant};

const SHARDS: usize = 2;

fn field(client: &mut Client, name: &str) -> String {
    common::field(client, "replication", name)
}

/// A stock replica of `port`, in step.
fn replica_of(kind: Kind, port: u16) -> Peer {
    replicas::replica_of(Peer::builder(kind), port)
}

fn error_of(reply: Value) -> String {
    match reply {
        Value::Error(text) => text,
        other => panic!("{other:?}"),
    }
}

/// The lines of `CLIENT LIST` of one class.
fn clients(client: &mut Client, class: &str) -> Vec<String> {
    let text = call(client, &["CLIENT", "LIST", "TYPE", class]);
    let Value::Bulk(text) = text else { panic!("{text:?}") };
    String::from_utf8(text).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn law7_who_waits_is_told_when_the_master_becomes_a_replica() {
    for shards in [1, SHARDS] {
        let (braid, other) = (start(master(shards)), start(master(1)));
        let mut waiting: Vec<Client> = (0..shards).map(|_| connect(&braid)).collect();
        for client in &mut waiting {
            call(client, &["SET", "key", "value"]);
            client.send(&["WAIT", "1", "0"]).expect("sent");
        }
        let mut client = connect(&braid);
        let want = shards.to_string();
        wait_until("all wait", || client.info("clients").unwrap()["blocked_clients"] == want);
        call(&mut client, &cmd!["REPLICAOF", "127.0.0.1", other.port()]);
        for client in &mut waiting {
            assert_eq!(
                error_of(client.receive().unwrap()),
                "UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)"
            );
        }
        assert_eq!(client.info("clients").unwrap()["blocked_clients"], "0");
    }
}

#[test]
fn law7_wait_counts_replicas_that_have_applied_and_comes_back_in_time() {
    for shards in [1, SHARDS] {
        let braid = start(master(shards));
        // Connections of every shard, for they are placed in turn.
        let mut connections: Vec<Client> = (0..shards * 2).map(|_| connect(&braid)).collect();
        for client in &mut connections {
            assert_eq!(call(client, &["WAIT", "0", "0"]), Value::Int(0));
            assert_eq!(call(client, &["WAIT", "1", "20"]), Value::Int(0));
        }
        let replicas: Vec<Peer> =
            [Kind::Redis7, Kind::Valkey].into_iter().map(|kind| replica_of(kind, braid.port())).collect();
        let mut readers: Vec<Client> = replicas.iter().map(connect).collect();
        let (mut asked, mut late) = (0, 0);
        for _ in 0..20 {
            for client in &mut connections {
                // A write for each shard, so that each takes tickets, and the question, in one pipeline.
                let value = fastrand::u64(..).to_string();
                let keys = key_per_shard("key", shards);
                let mut pipeline: Vec<Vec<&str>> =
                    keys.iter().map(|key| vec!["SET", key.as_str(), value.as_str()]).collect();
                pipeline.push(vec!["WAIT", "2", "30000"]);
                let start = Instant::now();
                let replies = client.pipeline(&pipeline).expect("the server stays");
                assert_eq!(replies.last(), Some(&Value::Int(2)));
                asked += 1;
                late += usize::from(start.elapsed() >= Duration::from_millis(500));
                for reader in &mut readers {
                    for key in &keys {
                        assert_eq!(call(reader, &["GET", key]), value.as_str());
                    }
                }
            }
        }
        // They acknowledge once a second if they are not asked; a machine may be late, but not half of the time.
        assert!(late * 2 < asked, "{late} of {asked}");
        // A replica that is stopped acknowledges nothing.
        replicas[0].stop().expect("a signal");
        let client = &mut connections[0];
        call(client, &["SET", "key", "value"]);
        assert_eq!(call(client, &["WAIT", "1", "30000"]), Value::Int(1));
        // The question that put into the stream is nothing that anybody has to apply.
        let start = Instant::now();
        assert_eq!(call(client, &["WAIT", "2", "150"]), Value::Int(1));
        assert!(start.elapsed() >= Duration::from_millis(150));
        // Others are served meanwhile, on every shard; and who waits can be let go.
        let id = call(client, &["CLIENT", "ID"]);
        let Value::Int(id) = id else { panic!("{id:?}") };
        for reason in ["TIMEOUT", "ERROR"] {
            let client = &mut connections[0];
            call(client, &["SET", "key", "other"]);
            // The other replica has it before anybody counts.
            assert_eq!(call(client, &["WAIT", "1", "30000"]), Value::Int(1));
            client.send(&["WAIT", "2", "0"]).expect("sent");
            let (waiting, others) = connections.split_first_mut().expect("some");
            for other in others.iter_mut() {
                assert_eq!(call(other, &["PING"]), Value::Simple("PONG".into()));
            }
            wait_until("the client is blocked", || {
                clients(&mut others[0], "normal")
                    .iter()
                    .any(|line| line.starts_with(&format!("id={id} ")) && line.contains(" flags=b "))
            });
            assert_eq!(others[0].info("clients").unwrap()["blocked_clients"], "1");
            assert_eq!(call(&mut others[0], &cmd!["CLIENT", "UNBLOCK", id, reason]), Value::Int(1));
            match reason {
                "TIMEOUT" => assert_eq!(waiting.receive().unwrap(), Value::Int(1)),
                _ => assert_eq!(
                    error_of(waiting.receive().unwrap()),
                    "UNBLOCKED client unblocked via CLIENT UNBLOCK"
                ),
            }
            assert_eq!(call(&mut others[0], &cmd!["CLIENT", "UNBLOCK", id]), Value::Int(0));
        }
        // One that goes away while it waits leaves nothing behind.
        let mut leaving = connect(&braid);
        call(&mut leaving, &["SET", "key", "more"]);
        leaving.send(&["WAIT", "2", "0"]).expect("sent");
        drop(leaving);
        let client = &mut connections[0];
        wait_until("nobody is blocked", || client.info("clients").unwrap()["blocked_clients"] == "0");
        // In a transaction it does not wait: it is told what is known, which may be a moment old.
        wait_until("the replica that runs is counted", || {
            call(client, &["MULTI"]);
            call(client, &["WAIT", "5", "0"]);
            let reply = call(client, &["EXEC"]);
            assert!(reply != Value::Array(vec![Value::Int(2)]), "the one that is stopped has not applied it");
            reply == Value::Array(vec![Value::Int(1)])
        });
        replicas[0].cont().expect("a signal");
        for (words, error) in [
            ("WAIT x 1", "ERR value is not an integer or out of range"),
            ("WAIT 1 x", "ERR timeout is not an integer or out of range"),
            ("WAIT 1 -1", "ERR timeout is negative"),
            ("WAITAOF 1 0 0", "ERR WAITAOF cannot be used when numlocal is set but appendonly is disabled."),
            ("WAITAOF 2 0 0", "ERR value is out of range, value must between 0 and 1"),
            ("WAITAOF 0 -1 0", "ERR value is out of range, must be positive"),
        ] {
            let words: Vec<&str> = words.split(' ').collect();
            assert_eq!(error_of(client.command(&words).unwrap()), error);
        }
        assert_eq!(
            call(client, &["WAITAOF", "0", "0", "0"]),
            Value::Array(vec![Value::Int(0), Value::Int(0)])
        );
    }
}

#[test]
fn who_is_unblocked_just_when_replicas_acknowledge_gets_one_answer() {
    let braid = start(master(SHARDS));
    let mut admin = connect(&braid);
    let mut replica = Fake::attach(&braid).expect("a full sync");
    replica.ack().expect("sent");
    for _ in 0..SHARDS {
        let mut waiter = connect(&braid);
        let Value::Int(id) = call(&mut waiter, &["CLIENT", "ID"]) else { panic!("no id") };
        let id = id.to_string();
        for round in 0..300 {
            call(&mut waiter, &["SET", "key", "value"]);
            replica.offset = field(&mut admin, "master_repl_offset").parse().expect("a number");
            waiter.send(&["WAIT", "1", "0"]).expect("sent");
            wait_until("it is blocked", || admin.info("clients").expect("INFO")["blocked_clients"] == "1");
            // Whichever comes first.
            if round % 2 == 0 {
                replica.ack().expect("sent");
                admin.send(&["CLIENT", "UNBLOCK", &id, "ERROR"]).expect("sent");
            } else {
                admin.send(&["CLIENT", "UNBLOCK", &id, "ERROR"]).expect("sent");
                replica.ack().expect("sent");
            }
            let answer = waiter.receive().expect("an answer");
            assert!(matches!(answer, Value::Int(1) | Value::Error(_)), "{answer:?}");
            assert!(admin.receive().expect("an answer").as_int().is_some());
            assert_eq!(call(&mut waiter, &["PING"]), Value::Simple("PONG".into()));
        }
    }
}

#[test]
fn law4_info_and_role_show_no_less_of_the_stream_than_was_answered() {
    let braid = start(master(SHARDS));
    let _replica = replica_of(Kind::Redis7, braid.port());
    let mut connections: Vec<Client> = (0..SHARDS).map(|_| connect(&braid)).collect();
    let offset = |client: &mut Client| field(client, "master_repl_offset").parse::<i64>().unwrap();
    let mut before = offset(&mut connections[0]);
    // The length of the effect in the stream, without a SELECT.
    for round in 0..500usize {
        let key = &key_per_shard("key", SHARDS)[round % SHARDS];
        let command = format!("*3\r\n$3\r\nSET\r\n${}\r\n{key}\r\n$5\r\nvalue\r\n", key.len());
        let (writer, reader) = (round / 2 % SHARDS, round / 3 % SHARDS);
        call(&mut connections[writer], &["SET", key, "value"]);
        let after = if round % 2 == 0 {
            offset(&mut connections[reader])
        } else {
            let role = call(&mut connections[reader], &["ROLE"]);
            let Value::Array(words) = role else { panic!("{role:?}") };
            let Value::Int(offset) = words[1] else { panic!("{words:?}") };
            offset
        };
        assert!(after >= before + command.len() as i64, "round {round}: {before} {after}");
        before = after;
    }
}

#[test]
fn writes_are_refused_while_too_few_replicas_are_in_step() {
    let braid = start(master(SHARDS).args(["--min-replicas-to-write", "1", "--min-replicas-max-lag", "2"]));
    let refused = "NOREPLICAS Not enough good replicas to write.";
    let mut client = connect(&braid);
    let mut other = connect(&braid);
    for client in [&mut client, &mut other] {
        assert_eq!(error_of(client.command(&["SET", "key", "value"]).unwrap()), refused);
        assert_eq!(call(client, &["GET", "key"]), Value::Null);
    }
    assert_eq!(field(&mut client, "min_slaves_good_slaves"), "0");
    let mut replica = replica_of(Kind::Redis7, braid.port());
    wait_until("a replica is in step", || {
        client.command(&["SET", "key", "value"]).unwrap() == Value::Simple("OK".into())
    });
    call(&mut other, &["MULTI"]);
    call(&mut other, &["SET", "key", "queued"]);
    // One that is silent is not in step after two seconds.
    replica.stop().expect("a signal");
    wait_until("the silence is noticed", || {
        client.command(&["SET", "key", "value"]).unwrap() == Value::Error(refused.into())
    });
    let exec = error_of(other.command(&["EXEC"]).unwrap());
    assert_eq!(exec, format!("EXECABORT Transaction discarded because of: {refused}"));
    // All of it can be changed at run time.
    call(&mut client, &["CONFIG", "SET", "min-replicas-max-lag", "0"]);
    call(&mut client, &["SET", "key", "value"]);
    call(&mut client, &["CONFIG", "SET", "min-replicas-max-lag", "2"]);
    wait_until("refused again", || {
        client.command(&["SET", "key", "value"]).unwrap() == Value::Error(refused.into())
    });
    replica.cont().expect("a signal");
    wait_until("in step again", || {
        client.command(&["SET", "key", "value"]).unwrap() == Value::Simple("OK".into())
    });
    replica.kill().expect("killed");
    wait_until("gone", || client.command(&["SET", "key", "value"]).unwrap() == Value::Error(refused.into()));
    call(&mut client, &["CONFIG", "SET", "min-replicas-to-write", "0"]);
    call(&mut client, &["SET", "key", "value"]);
}

#[test]
fn the_stream_is_kept_for_its_time_after_the_last_replica() {
    let braid = start(master(SHARDS).args(["--repl-backlog-ttl", "2", "--protected-restart", "no"]));
    let mut client = connect(&braid);
    assert_eq!(field(&mut client, "repl_backlog_active"), "0");
    let replica = replica_of(Kind::Redis7, braid.port());
    call(&mut client, &["SET", "key", "value"]);
    let history = field(&mut client, "master_replid");
    let mut follower = connect(&replica);
    call(&mut follower, &["REPLICAOF", "NO", "ONE"]);
    wait_until("the backlog is freed", || field(&mut client, "repl_backlog_active") == "0");
    assert_ne!(field(&mut client, "master_replid"), history);
    // What is written now is not kept, and the next replica begins with a snapshot that has it.
    let offset = field(&mut client, "master_repl_offset");
    for key in key_per_shard("later", SHARDS) {
        call(&mut client, &["SET", &key, "value"]);
    }
    assert_eq!(field(&mut client, "master_repl_offset"), offset);
    call(&mut follower, &cmd!["REPLICAOF", "127.0.0.1", braid.port()]);
    wait_until("the replica is back", || field(&mut follower, "master_link_status") == "up");
    assert_eq!(client.info("stats").unwrap()["sync_full"], "2");
    for key in key_per_shard("later", SHARDS) {
        assert_eq!(call(&mut follower, &["GET", &key]), "value");
    }
    call(&mut client, &["SET", "key", "streamed"]);
    assert_eq!(call(&mut client, &["WAIT", "1", "30000"]), Value::Int(1));
    assert_eq!(call(&mut follower, &["GET", "key"]), "streamed");
}

#[test]
fn no_loss_an_empty_restarted_master_does_not_wipe_its_replicas() {
    let mut braid = start(master(SHARDS));
    let mut client = connect(&braid);
    assert_eq!(field(&mut client, "protected_restart"), "1");
    call(&mut client, &["SET", "key", "precious"]);
    let replicas: Vec<Peer> = [Kind::Redis7, Kind::Redis8, Kind::Valkey]
        .into_iter()
        .map(|kind| replica_of(kind, braid.port()))
        .collect();
    call(&mut client, &["SET", "other", "precious"]);
    assert_eq!(call(&mut client, &["WAIT", "3", "30000"]), Value::Int(3));
    braid.kill().expect("killed");
    // The kernel may hold on to the port for a moment after the process has gone.
    wait_until("it starts again, empty", || braid.restart().is_ok());
    let mut client = connect(&braid);
    assert_eq!(call(&mut client, &["DBSIZE"]), Value::Int(0));
    // They ask, are refused, and keep what they have.
    wait_until("every replica was refused", || {
        replicas.iter().all(|replica| replica.log().matches("NOMASTERLINK").count() >= 2)
    });
    for replica in &replicas {
        let mut reader = connect(replica);
        assert_eq!(call(&mut reader, &["GET", "key"]), "precious");
        assert_eq!(call(&mut reader, &["DBSIZE"]), Value::Int(2));
        assert_eq!(field(&mut reader, "master_link_status"), "down");
    }
    // One that has nothing is served.
    let _fresh = replica_of(Kind::Redis7, braid.port());
    // The operator says that it is meant to be so.
    call(&mut client, &["CONFIG", "SET", "protected-restart", "no"]);
    for replica in &replicas {
        let mut reader = connect(replica);
        wait_until("the replica synchronizes", || field(&mut reader, "master_link_status") == "up");
        assert_eq!(call(&mut reader, &["DBSIZE"]), Value::Int(0));
    }
}

#[test]
fn replicas_are_shown_as_such_and_can_be_killed_by_their_class() {
    let braid = start(master(SHARDS).args(["--repl-disable-tcp-nodelay", "yes"]));
    let mut client = connect(&braid);
    let replica = replica_of(Kind::Redis7, braid.port());
    let lines = clients(&mut client, "replica");
    assert!(matches!(&lines[..], [line] if line.contains(" flags=S ")), "{lines:?}");
    assert_eq!(clients(&mut client, "slave").len(), 1);
    assert!(clients(&mut client, "master").is_empty());
    assert!(clients(&mut client, "normal").iter().all(|line| !line.contains(" flags=S ")));
    assert_eq!(call(&mut client, &["CLIENT", "KILL", "TYPE", "master"]), Value::Int(0));
    assert_eq!(call(&mut client, &["CLIENT", "KILL", "TYPE", "replica"]), Value::Int(1));
    // It comes back, and goes on where it was.
    let mut follower = connect(&replica);
    wait_until("the replica is back", || {
        client.info("stats").unwrap()["sync_partial_ok"] == "1"
            && field(&mut follower, "master_link_status") == "up"
    });
    assert_eq!(client.info("stats").unwrap()["sync_full"], "1");
    // A limit that is set at run time holds for those that are there. The backlog's size is what it cannot go below.
    call(&mut client, &["CONFIG", "SET", "repl-backlog-size", "16kb", "repl-backlog-disk-size", "0"]);
    call(&mut client, &["CONFIG", "SET", "client-output-buffer-limit", "replica 1mb 0 0"]);
    replica.stop().expect("a signal");
    let value = "x".repeat(1 << 20);
    let closed = |client: &mut Client| clients(client, "replica").is_empty();
    for _ in 0..200 {
        call(&mut client, &["SET", "big", &value]);
    }
    wait_until("the replica is cut off", || closed(&mut client));
    replica.cont().expect("a signal");
}

/// A Braid that follows `port`, in step.
fn braid_replica_of(shards: usize, port: u16) -> Peer {
    replicas::replica_of(master(shards).args(["--protected-restart", "no"]), port)
}

/// Counts up at a master until it is one no longer. Returns the last count that was confirmed.
fn count_until_refused(peer: &Peer) -> i64 {
    let mut client = connect(peer);
    let mut last = 0;
    loop {
        match client.command(&["INCR", "counter"]).expect("the server stays") {
            Value::Int(count) => last = count,
            Value::Error(text) => {
                assert!(text.starts_with("READONLY"), "{text}");
                return last;
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn no_loss_a_master_hands_over_to_a_replica_and_follows_it_without_a_full_sync() {
    for (number, to_stock) in [(0, true), (1, false), (2, false)] {
        let old = start(master(SHARDS));
        let new =
            if to_stock { replica_of(Kind::Redis7, old.port()) } else { braid_replica_of(3, old.port()) };
        let mut client = connect(&old);
        wait_until("the replica is online", || field(&mut client, "slave0").contains("state=online"));
        let last = thread::scope(|scope| {
            let writers: Vec<_> = (0..4).map(|_| scope.spawn(|| count_until_refused(&old))).collect();
            wait_until(
                "some was written",
                || matches!(call(&mut client, &["GET", "counter"]), Value::Bulk(count) if count.len() > 2),
            );
            let reply = match number {
                2 => call(&mut client, &["FAILOVER", "TIMEOUT", "30000"]),
                _ => call(&mut client, &cmd!["FAILOVER", "TO", "127.0.0.1", new.port(), "TIMEOUT", 30_000]),
            };
            assert_eq!(reply, Value::Simple("OK".into()));
            writers.into_iter().map(|writer| writer.join().expect("counts")).max()
        });
        let mut heir = connect(&new);
        assert_eq!(field(&mut heir, "role"), "master");
        assert_eq!(field(&mut client, "role"), "slave");
        wait_until("it follows", || field(&mut client, "master_link_status") == "up");
        wait_until("it is over", || field(&mut client, "master_failover_state") == "no-failover");
        assert_eq!(call(&mut heir, &["GET", "counter"]), last.expect("four").to_string().as_str());
        call(&mut heir, &["SET", "new", "value"]);
        assert_eq!(call(&mut heir, &["WAIT", "1", "30000"]), Value::Int(1));
        assert_eq!(call(&mut client, &["GET", "new"]), "value");
        assert_eq!(call(&mut client, &["GET", "counter"]), call(&mut heir, &["GET", "counter"]));
        assert_eq!(heir.info("stats").unwrap()["sync_full"], "0");
        assert_eq!(heir.info("stats").unwrap()["sync_partial_ok"], "1");
    }
}

#[test]
fn no_other_change_of_role_comes_between_a_failover_however_soon() {
    let braid = start(master(SHARDS));
    let mut replica = Fake::attach(&braid).expect("a full sync");
    replica.ack().expect("sent");
    for _ in 0..SHARDS {
        let mut client = connect(&braid);
        wait_until("the replica is online", || field(&mut client, "slave0").contains("state=online"));
        // It has not applied this.
        call(&mut client, &["SET", "key", "value"]);
        let nobody = ["REPLICAOF", "127.0.0.1", "1"];
        let replies = client.pipeline(&[&["FAILOVER"][..], &nobody, &["FAILOVER", "ABORT"]]).unwrap();
        let refused = Value::Error("ERR REPLICAOF not allowed while failing over.".into());
        assert_eq!(replies, [Value::Simple("OK".into()), refused, Value::Simple("OK".into())]);
        assert_eq!(field(&mut client, "role"), "master");
    }
}

#[test]
fn a_failover_that_does_not_come_off_leaves_the_master_as_it_was() {
    let braid = start(master(SHARDS));
    let mut client = connect(&braid);
    let mut other = connect(&braid);
    let refused = "ERR FAILOVER requires connected replicas.";
    assert_eq!(error_of(client.command(&["FAILOVER"]).unwrap()), refused);
    assert_eq!(error_of(client.command(&["FAILOVER", "ABORT"]).unwrap()), "ERR No failover in progress.");
    assert_eq!(error_of(client.command(&["FAILOVER", "FOO"]).unwrap()), "ERR syntax error");
    let replica = replica_of(Kind::Valkey, braid.port());
    replica.stop().expect("a signal");
    for aborts in [false, true] {
        call(&mut other, &["SET", "key", "before"]);
        let timeout = if aborts { "60000" } else { "300" };
        assert_eq!(call(&mut client, &["FAILOVER", "TIMEOUT", timeout]), Value::Simple("OK".into()));
        other.send(&["SET", "key", "after"]).expect("sent");
        // Readers are served meanwhile.
        assert_eq!(call(&mut client, &["GET", "key"]), "before");
        if aborts {
            wait_until("it is under way", || {
                field(&mut client, "master_failover_state") == "waiting-for-sync"
            });
            let again = error_of(client.command(&["FAILOVER"]).unwrap());
            assert_eq!(again, "ERR FAILOVER already in progress.");
            call(&mut client, &["FAILOVER", "ABORT"]);
        }
        assert_eq!(other.receive().expect("an answer"), Value::Simple("OK".into()));
        assert_eq!(call(&mut client, &["GET", "key"]), "after");
        wait_until("it is over", || field(&mut client, "master_failover_state") == "no-failover");
        assert_eq!(field(&mut client, "role"), "master");
    }
    replica.cont().expect("a signal");
    call(&mut client, &["SET", "key", "streamed"]);
    assert_eq!(call(&mut client, &["WAIT", "1", "30000"]), Value::Int(1));
    assert_eq!(client.info("stats").unwrap()["sync_full"], "1");
}

#[test]
fn a_slow_replica_is_no_reason_to_refuse_writes() {
    let braid = start(master(SHARDS).args(["--rdbcompression", "no"]));
    let mut client = connect(&braid);
    let value = "x".repeat(1000);
    let commands: Vec<_> = (0..40_000).map(|key| cmd!["SET", format!("key:{key}"), value]).collect();
    for batch in commands.chunks(1000) {
        assert!(client.pipeline(batch).unwrap().iter().all(|reply| !reply.is_error()));
    }
    let memory = |client: &mut Client, name: &str| -> u64 {
        client.info("memory").unwrap()[name].parse().expect("a number")
    };
    let limit_bytes = memory(&mut client, "used_memory") + (4 << 20);
    call(&mut client, &cmd!["CONFIG", "SET", "maxmemory", limit_bytes]);
    // It asks for everything, and reads nothing. (What is being sent, and what shards are writing, does count.)
    let replica = Fake::ask(connect(&braid), "?", -1).expect("asked");
    wait_until("more waits for it than memory is left", || {
        memory(&mut client, "mem_clients_slaves") > 8 << 20
            && memory(&mut client, "used_memory") > limit_bytes
    });
    for key in key_per_shard("more", SHARDS) {
        assert_eq!(call(&mut client, &["SET", &key, "value"]), Value::Simple("OK".into()));
    }
    drop(replica);
    wait_until("nothing waits any more", || memory(&mut client, "mem_clients_slaves") == 0);
}
