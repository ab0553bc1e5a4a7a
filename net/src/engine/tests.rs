//! One shard's engine, round by round, at times that the test chooses.

use super::*;
use crate::config::Config;
use crate::ring::RingConfig;
use braid_core::command::{Args, SHARED_ARG_LEN_BYTES, registry};
use braid_core::rdb::WriterOptions;
use braid_core::resp::Reply;
use braid_replication::psync::Replica;
use braid_shards::flight::Leg;
use braid_shards::locks::Claim;
use braid_shards::parcel::{Loan, Msg, TxMsg};
use braid_shards::{Caller, Host, Invocation, Outlet, Parcel, Ran, RunFlags};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

/// The first of several shards, of which the others exist as mailboxes only.
fn engine(config: Config, shards: usize) -> (Engine, Vec<Mailboxes>) {
    engine_of(0, config, shards)
}

/// As `engine`, another shard.
fn engine_of(id: ShardId, config: Config, shards: usize) -> (Engine, Vec<Mailboxes>) {
    let mut mailboxes = mailbox::connect_all(shards);
    let node = Arc::new(Node::new(config, None, shards));
    node.persistence.end_loading(0);
    let new_ring = || Ring::new(&RingConfig::default()).expect("a ring is set up");
    let mut own = mailboxes.remove(usize::from(id));
    own.set_wakers((0..shards).map(|_| new_ring().waker()).collect());
    let engine = Engine::new(id, node, new_ring(), own);
    (engine, mailboxes)
}

/// Runs a command whose keys are this shard's.
fn run(engine: &mut Engine, line: &str) {
    let args: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
    let args = Args::new(&args, &[]);
    let (id, _) = registry().find(args[0]).expect("a command");
    let (shard, front) = engine.parts();
    let caller = Caller::new(ConnId(1), RunFlags::default());
    let ran = shard.run(caller, Invocation { id, db: 0, args }, &mut Reply::default(), front);
    assert!(ran == Ran::Done);
}

#[test]
fn snapshots_that_are_given_up_in_the_same_round_are_all_given_up() {
    let (mut engine, _others) = engine(Config::default(), 2);
    let key = (0..).map(|n| format!("k{n}")).find(|key| engine.front.node.map.shard_of(key.as_bytes()) == 0);
    let members: Vec<String> = (0..30_000).map(|number| format!("member:{number}")).collect();
    run(&mut engine, &format!("SADD {} {}", key.expect("one of many"), members.join(" ")));
    let keyspace = engine.shard.keyspace_mut().expect("it is here");
    keyspace.begin_snapshot(WriterOptions { version: 10, compress: false, checksum: true }).unwrap();
    keyspace.snapshot_id = 6;
    for snapshot in [6, 7] {
        engine.front.upper(1, Box::new(replicas::Abort { snapshot }));
    }
    // One gives it up, the next clears it away; to walk the set takes more than ten.
    for _ in 0..2 {
        engine.round().unwrap();
    }
    assert!(!engine.shard.keyspace().expect("it is here").has_snapshot());
}

#[test]
fn law8_what_the_log_lets_go_is_freed_before_the_shard_sleeps() {
    let (mut engine, _others) = engine(Config::default(), 1);
    let home = engine.front.home.as_mut().expect("it is the home shard");
    home.log().activate();
    // Long enough to be kept by reference: many pieces in little memory.
    let piece = bytes::Bytes::from(vec![7; SHARED_ARG_LEN_BYTES]);
    (0..1000).for_each(|_| home.log().append(piece.clone()));
    home.trim();
    home.log().deactivate();
    let mut rounds = 0;
    while engine.round().unwrap() {
        rounds += 1;
    }
    assert!(!engine.front.home.as_ref().expect("as before").is_freeing());
    assert!(rounds > 10, "{rounds}");
}

#[test]
fn an_idle_server_falls_asleep_for_good() {
    let (mut engine, _others) = engine(Config::default(), 1);
    // What the beginning left to do is done soon, by timers or not.
    for _ in 0..10 {
        if engine.round().unwrap() {
            continue;
        }
        let Some(deadline) = engine.sleep_deadline() else { return };
        engine.front.ring.wait(Some(deadline), || false).unwrap();
    }
    panic!("something keeps waking it");
}

#[test]
fn a_replica_sleeps_though_keys_of_its_master_expire() {
    let (mut engine, _others) = engine(Config::default(), 1);
    let deadline_ms = |engine: &Engine| {
        let in_time = engine.sleep_deadline()?.saturating_duration_since(engine.front.now);
        Some(in_time.as_millis()).filter(|ms| *ms <= SWEEP_PERIOD.as_millis())
    };
    while engine.round().unwrap() {}
    run(&mut engine, "SET k v PX 100000");
    assert!(deadline_ms(&engine).is_some(), "a master looks for what is over");
    engine.shard.replica = true;
    assert_eq!(deadline_ms(&engine), None, "it is the master's to remove");
    engine.shard.keyspace_mut().expect("it is here").replica = true;
    engine.shard.is_read_only = false;
    run(&mut engine, "SET own v PX 100000");
    assert!(deadline_ms(&engine).is_some());
}

/// Another shard sends a message to shard 1.
fn send(other: &mut Mailboxes, message: Msg) {
    let mut parcel = Box::<Parcel>::default();
    parcel.msgs.push(message);
    assert!(other.deliver(1, parcel).is_ok());
}

#[test]
fn law9_a_shard_that_cannot_hand_in_what_it_wrote_runs_nothing_more() {
    let (mut engine, mut others) = engine_of(1, Config::default(), 3);
    engine.round().unwrap();
    // The home shard borrows everything, as for a cut.
    engine.front.node.counters.sequencer.begin_unrest(1);
    let lock = TxMsg::Lock { token: 1, id: 1, claim: Claim::Everything, watcher: None };
    send(&mut others[0], Msg::Tx(Box::new(lock)));
    engine.round().unwrap();
    let (_, mut granted) = others[0].receive(&mut 1).expect("an answer");
    let Some(Msg::Tx(message)) = granted.msgs.pop() else { panic!("an answer to the request") };
    let TxMsg::Grant { loan: Loan::Everything(mut slice), .. } = *message else { panic!("a grant") };
    slice.stream = true;
    send(&mut others[0], Msg::Tx(Box::new(TxMsg::Return { id: 1, loan: Loan::Everything(slice) })));
    engine.round().unwrap();
    let key = (0..).map(|n| format!("k{n}")).find(|key| engine.front.node.map.shard_of(key.as_bytes()) == 1);
    let line = format!("SET {} {}", key.expect("one of many"), "x".repeat(1 << 20));
    // Nobody takes what lies in the ring to the home shard.
    for _ in 0..400 {
        if engine.shard.is_held_up() {
            break;
        }
        run(&mut engine, &line);
        engine.round().unwrap();
    }
    assert!(engine.shard.is_held_up());
    // Another shard has something for it.
    send(&mut others[1], Msg::Upper(Box::new(replicas::Abort { snapshot: 6 })));
    for _ in 0..10 {
        assert!(engine.round().unwrap(), "it does not sleep");
    }
    assert!(!engine.mailboxes.is_empty(), "it is not looked at");
    while others[0].receive(&mut 1).is_some() {}
    engine.round().unwrap();
    assert!(!engine.shard.is_held_up() && engine.mailboxes.is_empty());
}

#[test]
fn a_step_of_the_wall_clock_is_no_time_that_passes() {
    const DAY_US: i64 = 86_400_000_000;
    let mut config = Config::default();
    config.repl_diskless_sync_delay_s = 0;
    let (mut engine, _others) = engine(config, 1);
    let (start, date) = (Instant::now(), Time { us: 1_700_000_000_000_000 });
    let at = |engine: &mut Engine, in_ms: u64, step_us: i64| {
        let us = (date.us + in_ms * 1000).checked_add_signed(step_us).expect("after 1970");
        engine.tick(start + Duration::from_millis(in_ms), Time { us });
    };
    at(&mut engine, 0, 0);
    let (now_ms, psync): (_, [&[u8]; 2]) = (engine.front.now_ms(), [b"?", b"-1"]);
    let mut handshake = Replica::default();
    handshake.replconf(&[b"capa", b"eof", b"capa", b"psync2"]);
    let home = engine.front.home.as_mut().expect("shard 0 has it");
    let replica = home.attach(handshake, "10.0.0.1", Some(&psync), now_ms).expect("it attaches");
    for _ in 0..100 {
        at(&mut engine, 1, 0);
        let now_ms = engine.front.now_ms();
        let home = engine.front.home.as_mut().expect("shard 0 has it");
        while home.next_send(replica, &mut Vec::new()) {
            home.sent(replica, now_ms);
        }
        home.replconf(replica, &[b"ACK", b"0"], now_ms);
    }
    for (in_ms, step_us) in [(1000, DAY_US), (2000, -DAY_US), (3000, 0)] {
        at(&mut engine, in_ms, step_us);
        let lines =
            engine.front.home.as_ref().expect("shard 0 has it").report(engine.front.now_ms()).replicas;
        let expected = format!("state=online,offset=0,lag={}", (in_ms - 1) / 1000);
        assert!(lines[0].info.contains(&expected), "{lines:?}");
        let due = engine.sleep_deadline().expect("replicas are looked after each second");
        let from_now = due.saturating_duration_since(engine.front.now);
        assert!(from_now <= Duration::from_secs(1), "{from_now:?}");
    }
}

#[test]
fn law7_what_a_transaction_tells_of_the_stream_waits_for_the_merge() {
    let (mut engine, _others) = engine(Config::default(), 1);
    engine.round().unwrap();
    let front = &mut engine.front;
    front.home.as_mut().expect("shard 0 has it").log().activate();
    let (socket, _peer) = UnixStream::pair().unwrap();
    let token = front.admit(socket.into(), crate::session::Session::new(1, true));
    let mut conn = front.take_conn(token).expect("just made");
    let exec = registry().find(b"exec").expect("a command").1;
    for (queued, is_behind) in [(&[b"GET".as_slice(), b"k"][..], false), (&[b"WAIT", b"1", b"0"], true)] {
        let mut unit = braid_shards::Unit::default();
        let id = registry().find(queued[0]).expect("a command").0;
        unit.push(id, 0, Args::new(queued, &[]));
        conn.session.multi = Some(Box::new(crate::session::Multi { unit, failed: false, db: 0 }));
        assert!(!front.is_behind(&mut conn, registry().find(queued[0]).expect("a command").1));
        assert_eq!(front.is_behind(&mut conn, exec), is_behind);
    }
    front.put_conn(conn);
    front.catch_up();
    let mut conn = front.take_conn(token).expect("it is there");
    assert!(!front.is_behind(&mut conn, exec), "all that was written is merged");
    front.put_conn(conn);
}

/// A replica's end of its connection: reads what comes, and acknowledges while there is nothing.
fn read_as_replica(engine: &mut Engine, peer: &mut UnixStream, until: &[u8]) {
    let mut got = Vec::new();
    let start = Instant::now();
    while !got.windows(until.len()).any(|window| window == until) {
        assert!(start.elapsed() < Duration::from_secs(10), "{}", String::from_utf8_lossy(&got));
        engine.round().unwrap();
        let mut buffer = [0; 4096];
        match peer.read(&mut buffer) {
            Ok(len) => got.extend_from_slice(&buffer[..len]),
            Err(_) => peer.write_all(b"*3\r\n$8\r\nREPLCONF\r\n$3\r\nACK\r\n$1\r\n0\r\n").unwrap(),
        }
    }
}

#[test]
fn law2_what_a_client_sent_runs_behind_the_batches_before_it() {
    let (mut engine, mut others) = engine(Config::default(), 2);
    engine.round().unwrap();
    let (socket, mut peer) = UnixStream::pair().unwrap();
    peer.set_nonblocking(true).unwrap();
    engine.front.admit(socket.into(), crate::session::Session::new(1, true));
    engine.round().unwrap();
    let map = engine.front.node.map;
    let key =
        (0..).map(|n| format!("k{n}")).find(|key| map.shard_of(key.as_bytes()) == 0).expect("one of many");
    // Shard 1 has run its part of a batch, and a client that saw that asks here, before this part has come.
    let set: [&[u8]; 3] = [b"SET", key.as_bytes(), b"new"];
    let mut unit = braid_shards::Unit::default();
    unit.push(registry().find(set[0]).expect("a command").0, 0, Args::new(&set, &[]));
    let leg = Leg { flight: 0, number: 0, place: 1, waits: false, next: None };
    let (caller, bytes) = (Caller::new(ConnId(1), RunFlags::default()), 0..unit.bytes.len());
    let mut parcel =
        Parcel { msgs: vec![Msg::Run { leg, caller, bytes }], arena: unit.bytes, ..Parcel::default() };
    let shares = [0].into_iter().zip(std::slice::from_mut(&mut parcel.after));
    parcel.batch = engine.front.node.counters.sequencer.sequence(false, shares);
    assert!(parcel.batch.is_some() && engine.shard.is_behind());
    assert!(others[0].deliver(0, Box::new(parcel)).is_ok());
    peer.write_all(format!("GET {key}\r\n").as_bytes()).unwrap();
    let (mut got, start) = (Vec::new(), Instant::now());
    while got.is_empty() {
        assert!(start.elapsed() < Duration::from_secs(10), "no answer");
        engine.round().unwrap();
        let mut buffer = [0; 100];
        let len = peer.read(&mut buffer).unwrap_or(0);
        got.extend_from_slice(&buffer[..len]);
    }
    assert_eq!(String::from_utf8_lossy(&got), "$3\r\nnew\r\n");
}

#[test]
fn what_is_written_just_after_a_send_waits_for_more_but_not_for_long() {
    let mut config = Config::default();
    config.save.0.clear();
    config.repl_diskless_sync_delay_s = 0;
    let (mut engine, _others) = engine(config, 1);
    engine.round().unwrap();
    let (socket, mut peer) = UnixStream::pair().unwrap();
    peer.set_nonblocking(true).unwrap();
    let front = &mut engine.front;
    let token = front.admit(socket.into(), crate::session::Session::new(1, true));
    let mut conn = front.take_conn(token).expect("just made");
    let replica = conn.session.replica.get_or_insert_default();
    replica.handshake.replconf(&[b"capa", b"eof", b"capa", b"psync2"]);
    let words = vec![b"?".to_vec(), b"-1".to_vec()];
    front.attach_replica(&mut conn, Some(words)).expect("it attaches");
    front.put_conn(conn);
    run(&mut engine, "SET k first");
    read_as_replica(&mut engine, &mut peer, b"first");
    run(&mut engine, "SET k second");
    // The snapshot has the first, and the stream the second.
    read_as_replica(&mut engine, &mut peer, b"second");
    let later = Instant::now() + Duration::from_secs(5);
    engine.front.next_feed = later;
    run(&mut engine, "SET k third");
    engine.round().unwrap();
    assert!(engine.front.feed_waits);
    // Whatever else it looks after.
    (engine.front.next_home_tick_ms, engine.front.stale_report_ms) = (None, None);
    assert_eq!(engine.sleep_deadline(), Some(later));
    engine.front.next_feed = Instant::now();
    read_as_replica(&mut engine, &mut peer, b"third");
    assert!(!engine.front.feed_waits && engine.front.next_feed < later);
}

#[test]
fn a_snapshot_that_ends_while_replicas_are_waited_for_does_not_end_the_process() {
    let mut config = Config::default();
    config.repl_diskless_sync_delay_s = 0;
    let (mut engine, _others) = engine(config, 1);
    engine.round().unwrap();
    let now = engine.front.moment();
    assert!(engine.front.node.persistence.begin_save(now));
    engine.save(None);
    engine.round().unwrap();
    let now_ms = engine.front.now_ms();
    let home = engine.front.home.as_mut().expect("shard 0 has it");
    home.attach(Replica::default(), "10.0.0.1", Some(&[b"?", b"-1"]), now_ms).expect("it attaches");
    engine.begin_ending(Ending { saves: true, force: false, now: false }, None);
    engine.file_told(0, crate::disk::Told::Done(Err("no room".into())));
    assert!(engine.front.leaving.ending.is_some(), "it was not the snapshot for the end");
    assert!(engine.front.node.pause.is_set() && !engine.front.node.stopping.load(Ordering::Relaxed));
    engine.front.close_files();
}

#[test]
fn no_loss_a_save_that_is_being_finished_gives_way_to_the_one_before_the_end() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut config = Config::default();
    config.dbfilename = folder.path().join("dump.rdb").display().to_string();
    let (mut engine, _others) = engine(config, 1);
    engine.round().unwrap();
    let now = engine.front.moment();
    assert!(engine.front.node.persistence.begin_save(now));
    engine.save(None);
    for _ in 0..20 {
        engine.round().unwrap();
        if !engine.front.home.as_ref().expect("shard 0 has it").is_saving() {
            break;
        }
    }
    // All of it is in its file; that this is on the disk is heard in another round.
    assert_eq!(engine.front.open_files(), [0]);
    engine.save_before_end();
    assert_eq!(engine.front.open_files(), [0; 0], "nobody would ever let go of it");
}
