//! The ring against the real kernel, inside a glommio executor, as a shard runs it. The peers are plain blocking
//! sockets on other threads.

use std::cell::Cell;
use std::collections::HashMap;
use std::future::Future;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use glommio::{LocalExecutorBuilder, Placement};

use super::*;

/// Nothing here takes long; a test that waits this long has found a lost event.
const PATIENCE: Duration = Duration::from_secs(20);

fn in_executor<T: 'static>(future: impl Future<Output = T>) -> T {
    LocalExecutorBuilder::new(Placement::Unbound)
        .io_memory(64 << 10)
        .ring_depth(16)
        .make()
        .expect("an executor starts")
        .run(future)
}

fn small_config() -> RingConfig {
    RingConfig { entries: 16, completion_entries: 64, recv_buffers: 8, recv_buffer_len_bytes: 512 }
}

fn tcp_listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// Bytes that differ by position, so that any loss, repetition or swap shows.
fn pattern(len_bytes: usize, seed: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    std::iter::repeat_with(|| random.u8(..)).take(len_bytes).collect()
}

/// Runs the ring, sleeping as a shard does, and feeds `handle` until it says stop.
fn drive(ring: &mut Ring, mut handle: impl FnMut(&mut Ring, Event) -> bool) {
    let start = Instant::now();
    loop {
        ring.poll().unwrap();
        while let Some(event) = ring.next() {
            if !handle(ring, event) {
                return;
            }
        }
        assert!(start.elapsed() < PATIENCE, "the awaited event did not come");
        ring.wait(Some(start + PATIENCE), || false).unwrap();
    }
}

/// Sends back what it receives, one send at a time per connection, and counts the sockets it closed.
#[derive(Default)]
struct Echo {
    waiting: HashMap<Token, (Vec<u8>, bool)>,
    is_at_eof: HashMap<Token, bool>,
    closed: usize,
}

impl Echo {
    fn handle(&mut self, ring: &mut Ring, event: Event) {
        match event {
            Event::Accepted { socket, .. } => {
                let token = ring.add(socket);
                self.waiting.insert(token, (Vec::new(), false));
                ring.start_recv(token);
            }
            Event::Received { token, data } => {
                let (bytes, is_sending) = self.waiting.get_mut(&token).unwrap();
                bytes.extend_from_slice(&data);
                if !*is_sending {
                    *is_sending = true;
                    ring.send(token, std::mem::take(bytes).into()).unwrap();
                }
            }
            Event::Sent { token, result, .. } => {
                result.unwrap();
                let (bytes, is_sending) = self.waiting.get_mut(&token).unwrap();
                if !bytes.is_empty() {
                    ring.send(token, std::mem::take(bytes).into()).unwrap();
                    return;
                }
                *is_sending = false;
                if self.is_at_eof.contains_key(&token) {
                    ring.close(token);
                }
            }
            Event::Eof { token } => {
                self.is_at_eof.insert(token, true);
                if !self.waiting[&token].1 {
                    ring.close(token);
                }
            }
            Event::Closed { token } => {
                self.waiting.remove(&token).unwrap();
                self.is_at_eof.remove(&token);
                self.closed += 1;
            }
            other => panic!("unexpected {other:?}"),
        }
    }
}

fn exchange(mut stream: impl Read + Write, seed: u64, len_bytes: usize) {
    let sent = pattern(len_bytes, seed);
    stream.write_all(&sent).unwrap();
    let mut received = vec![0; len_bytes];
    stream.read_exact(&mut received).unwrap();
    assert!(sent == received, "the echo of {len_bytes} bytes differs");
}

#[test]
fn echo_over_tcp_with_two_hundred_connections_and_few_buffers() {
    const CLIENTS: usize = 200;
    let (listener, address) = tcp_listener();
    let clients = thread::spawn(move || {
        let mut streams: Vec<_> = (0..CLIENTS).map(|_| TcpStream::connect(address).unwrap()).collect();
        // All at once first, so that 8 buffers serve 200 connections and the submission queue overflows.
        for (seed, stream) in streams.iter_mut().enumerate() {
            stream.write_all(&pattern(1500, seed as u64)).unwrap();
        }
        for (seed, mut stream) in streams.into_iter().enumerate() {
            let mut received = vec![0; 1500];
            stream.read_exact(&mut received).unwrap();
            assert!(received == pattern(1500, seed as u64));
            exchange(&mut stream, seed as u64, 1 + seed * 37);
        }
    });
    in_executor(async move {
        let mut ring = Ring::new(&small_config()).unwrap();
        ring.accept(listener.into());
        let mut echo = Echo::default();
        drive(&mut ring, |ring, event| {
            echo.handle(ring, event);
            echo.closed < CLIENTS
        });
        assert_eq!(ring.sockets(), 1, "only the listener is left");
    });
    clients.join().unwrap();
}

#[test]
fn echo_over_a_unix_socket() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let client = thread::spawn(move || exchange(UnixStream::connect(path).unwrap(), 3, 5000));
    in_executor(async move {
        let mut ring = Ring::new(&small_config()).unwrap();
        let listener = ring.accept(listener.into());
        let mut echo = Echo::default();
        drive(&mut ring, |ring, event| {
            echo.handle(ring, event);
            echo.closed == 0
        });
        ring.close(listener);
        drive(&mut ring, |_, event| !matches!(event, Event::Closed { token } if token == listener));
        assert_eq!(ring.sockets(), 0);
    });
    client.join().unwrap();
}

#[test]
fn a_gathered_send_of_thousands_of_pieces_arrives_whole_and_comes_back() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let mut buffer = SendBuffer::default();
    let mut expected = Vec::new();
    for index in 0..5000_usize {
        let piece = pattern(index % 900, index as u64);
        expected.extend_from_slice(&piece);
        if index % 3 == 0 {
            buffer.bytes.extend_from_slice(&piece);
        } else {
            buffer.push_shared(Bytes::from(piece));
        }
    }
    let len_bytes = buffer.len_bytes();
    assert_eq!(len_bytes, expected.len());
    let reader = thread::spawn(move || {
        let mut received = Vec::new();
        theirs.read_to_end(&mut received).unwrap();
        assert!(received == expected);
    });
    in_executor(async move {
        let mut ring = Ring::new(&small_config()).unwrap();
        let token = ring.add(ours.into());
        ring.send(token, buffer).unwrap();
        drive(&mut ring, |ring, event| match event {
            Event::Sent { buffer, result, .. } => {
                result.unwrap();
                assert_eq!(buffer.len_bytes(), len_bytes);
                ring.close(token);
                true
            }
            Event::Closed { .. } => false,
            other => panic!("unexpected {other:?}"),
        });
        assert!(ring.send(token, b"late".to_vec().into()).is_err(), "a stale token sends nothing");
    });
    reader.join().unwrap();
}

#[test]
fn a_slow_reader_shows_in_the_unsent_bytes_and_holds_up_nobody_else() {
    const LEN_BYTES: usize = 8 << 20;
    let (slow_ours, mut slow_theirs) = UnixStream::pair().unwrap();
    let (fast_ours, fast_theirs) = UnixStream::pair().unwrap();
    in_executor(async move {
        let mut ring = Ring::new(&small_config()).unwrap();
        let slow = ring.add(slow_ours.into());
        ring.send(slow, pattern(LEN_BYTES, 1).into()).unwrap();
        let fast = ring.add(fast_ours.into());
        ring.start_recv(fast);
        let client = thread::spawn(move || exchange(fast_theirs, 2, 100_000));
        let mut echo = Echo::default();
        echo.waiting.insert(fast, (Vec::new(), false));
        drive(&mut ring, |ring, event| {
            echo.handle(ring, event);
            echo.closed == 0
        });
        client.join().unwrap();
        let unsent_len_bytes = ring.unsent_len_bytes(slow);
        assert!(unsent_len_bytes > 0 && unsent_len_bytes < LEN_BYTES, "{unsent_len_bytes} unsent");

        let reader = thread::spawn(move || {
            let mut received = vec![0; LEN_BYTES];
            slow_theirs.read_exact(&mut received).unwrap();
            assert!(received == pattern(LEN_BYTES, 1));
        });
        drive(&mut ring, |_, event| !matches!(event, Event::Sent { result: Ok(()), .. }));
        assert_eq!(ring.unsent_len_bytes(slow), 0);
        reader.join().unwrap();
    });
}

#[test]
fn close_with_a_send_in_flight_drains_before_the_slot_is_reused() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    in_executor(async move {
        let mut ring = Ring::new(&small_config()).unwrap();
        let token = ring.add(ours.into());
        ring.start_recv(token);
        ring.send(token, vec![7; 8 << 20].into()).unwrap();
        ring.poll().unwrap();
        assert!(ring.next().is_none() && ring.unsent_len_bytes(token) > 0);
        ring.close(token);
        ring.close(token);
        let (other, _keep) = UnixStream::pair().unwrap();
        assert_ne!(ring.add(other.into()).slot(), token.slot(), "the slot is still draining");
        drive(&mut ring, |_, event| match event {
            Event::Closed { token: closed } => closed != token,
            other => panic!("unexpected {other:?}"),
        });
        let mut rest = Vec::new();
        theirs.read_to_end(&mut rest).unwrap();
        assert!(rest.len() < 8 << 20, "the peer sees the end of the stream");
        let (next, _keep) = UnixStream::pair().unwrap();
        let next = ring.add(next.into());
        assert_eq!(next.slot(), token.slot());
        assert_ne!(next, token);
        assert_eq!(ring.unsent_len_bytes(token), 0);
    });
}

#[test]
fn a_peer_that_vanishes_fails_the_send_and_not_the_process() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    drop(theirs);
    in_executor(async move {
        let mut ring = Ring::new(&small_config()).unwrap();
        let token = ring.add(ours.into());
        ring.send(token, vec![1; 10].into()).unwrap();
        drive(&mut ring, |_, event| match event {
            Event::Sent { result, buffer, .. } => {
                assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EPIPE));
                assert_eq!(buffer.len_bytes(), 10);
                false
            }
            other => panic!("unexpected {other:?}"),
        });
    });
}

/// Runs rounds until the kernel has answered everything it was given except `left` standing operations.
fn settle(ring: &mut Ring, left: usize) -> Vec<Event> {
    let start = Instant::now();
    let mut events = Vec::new();
    loop {
        ring.poll().unwrap();
        events.extend(std::iter::from_fn(|| ring.next()));
        // The timer of an earlier sleep may be left; it is not a socket's.
        // Neither is the poll for wake-ups.
        if ring.in_flight - 1 - usize::from(ring.timer_deadline.is_some()) == left {
            return events;
        }
        assert!(start.elapsed() < PATIENCE, "{} operations stay in flight", ring.in_flight);
    }
}

#[test]
fn a_paused_connection_receives_nothing_until_it_resumes() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    in_executor(async move {
        let mut ring = Ring::new(&small_config()).unwrap();
        let token = ring.add(ours.into());
        ring.start_recv(token);
        assert!(settle(&mut ring, 1).is_empty());
        ring.pause_recv(token);
        assert!(settle(&mut ring, 0).is_empty());
        theirs.write_all(b"held back").unwrap();
        assert!(settle(&mut ring, 0).is_empty());
        ring.start_recv(token);
        drive(&mut ring, |_, event| match event {
            Event::Received { data, .. } => {
                assert_eq!(&data[..], b"held back");
                false
            }
            other => panic!("unexpected {other:?}"),
        });
        // Any order of pausing and resuming within and across rounds ends in what was asked last.
        let mut random = fastrand::Rng::with_seed(11);
        for _ in 0..500 {
            let mut is_paused = false;
            for _ in 0..random.usize(1..6) {
                match random.u8(0..3) {
                    0 => {
                        ring.pause_recv(token);
                        is_paused = true;
                    }
                    1 => {
                        ring.start_recv(token);
                        is_paused = false;
                    }
                    _ => {
                        ring.poll().unwrap();
                        while ring.next().is_some() {}
                    }
                }
            }
            if is_paused {
                settle(&mut ring, 0);
                theirs.write_all(b"x").unwrap();
                assert!(settle(&mut ring, 0).is_empty(), "received while paused");
            } else {
                ring.start_recv(token);
                theirs.write_all(b"x").unwrap();
            }
            ring.start_recv(token);
            drive(&mut ring, |_, event| !matches!(event, Event::Received { .. }));
        }
    });
}

#[test]
fn held_buffers_starve_the_receivers_and_releasing_them_feeds_them() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    in_executor(async move {
        let config = RingConfig { recv_buffers: 2, ..small_config() };
        let mut ring = Ring::new(&config).unwrap();
        let token = ring.add(ours.into());
        ring.start_recv(token);
        theirs.write_all(&pattern(2000, 5)).unwrap();
        let mut held = Vec::new();
        drive(&mut ring, |_, event| {
            if let Event::Received { data, .. } = event {
                held.push(data);
            }
            held.len() < 2
        });
        assert!(settle(&mut ring, 0).is_empty(), "no buffer, no receive, and no busy retry");
        let mut received: Vec<u8> = held.drain(..).flat_map(|data| data.to_vec()).collect();
        drive(&mut ring, |_, event| {
            if let Event::Received { data, .. } = event {
                received.extend_from_slice(&data);
            }
            received.len() < 2000
        });
        assert!(received == pattern(2000, 5));
    });
}

#[test]
fn a_detached_socket_works_in_another_ring_even_if_non_blocking() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    in_executor(async move {
        let mut first = Ring::new(&small_config()).unwrap();
        let token = first.add(ours.into());
        first.start_recv(token);
        first.poll().unwrap();
        first.detach(token);
        let mut socket: Option<OwnedFd> = None;
        drive(&mut first, |_, event| match event {
            Event::Detached { token: detached, socket: detached_socket } => {
                assert_eq!(detached, token);
                socket = Some(detached_socket);
                false
            }
            other => panic!("unexpected {other:?}"),
        });
        let mut second = Ring::new(&small_config()).unwrap();
        let token = second.add(socket.unwrap());
        second.start_recv(token);
        // Received only after a wait, which a non-blocking descriptor must not turn into an error.
        assert!(settle(&mut second, 1).is_empty());
        theirs.write_all(b"moved").unwrap();
        drive(&mut second, |_, event| match event {
            Event::Received { data, .. } => {
                assert_eq!(&data[..], b"moved");
                false
            }
            other => panic!("unexpected {other:?}"),
        });
    });
}

#[test]
fn connect_reaches_a_listener_and_reports_a_refusal() {
    let (listener, address) = tcp_listener();
    let (closed, refusing_address) = tcp_listener();
    drop(closed);
    in_executor(async move {
        let mut ring = Ring::new(&small_config()).unwrap();
        ring.accept(listener.into());
        let good = ring.connect(address, Some(Ipv4Addr::LOCALHOST.into())).unwrap();
        let bad = ring.connect(refusing_address, None).unwrap();
        let mut seen = [false; 4];
        drive(&mut ring, |ring, event| {
            match event {
                Event::Connected { token, result: Ok(()) } => {
                    assert_eq!(token, good);
                    ring.send(good, b"hello".to_vec().into()).unwrap();
                    seen[0] = true;
                }
                Event::Connected { token, result: Err(error) } => {
                    assert_eq!((token, error.raw_os_error()), (bad, Some(libc::ECONNREFUSED)));
                    ring.close(bad);
                }
                Event::Accepted { socket, .. } => {
                    let token = ring.add(socket);
                    ring.start_recv(token);
                }
                Event::Received { data, .. } => {
                    assert_eq!(&data[..], b"hello");
                    seen[1] = true;
                }
                Event::Sent { result, .. } => {
                    result.unwrap();
                    seen[2] = true;
                }
                Event::Closed { token } => {
                    assert_eq!(token, bad);
                    seen[3] = true;
                }
                other => panic!("unexpected {other:?}"),
            }
            seen != [true; 4]
        });
        assert!(ring.connects.is_empty());
    });
}

#[test]
fn no_wake_up_from_another_thread_is_lost() {
    const MESSAGES: usize = 20_000;
    in_executor(async move {
        let mut ring = Ring::new(&small_config()).unwrap();
        let posted = Arc::new(AtomicUsize::new(0));
        let taken = Arc::new(AtomicUsize::new(0));
        let sender = thread::spawn({
            let (waker, posted, taken) = (ring.waker(), Arc::clone(&posted), Arc::clone(&taken));
            move || {
                for message in 1..=MESSAGES {
                    posted.store(message, Ordering::Release);
                    waker.wake();
                    // The next only when this one was seen: a lost wake-up stops the test.
                    while taken.load(Ordering::Acquire) != message {
                        std::hint::spin_loop();
                        thread::yield_now();
                    }
                }
            }
        });
        let mut seen = 0;
        let sleeps = Cell::new(0_usize);
        let start = Instant::now();
        while seen < MESSAGES {
            ring.poll().unwrap();
            assert!(ring.next().is_none());
            seen = posted.load(Ordering::Acquire);
            taken.store(seen, Ordering::Release);
            assert!(start.elapsed() < PATIENCE * 3, "stopped at message {seen}");
            let has_work = || seen == MESSAGES || posted.load(Ordering::Acquire) != seen;
            ring.wait(Some(start + PATIENCE * 3), || {
                let has_work = has_work();
                sleeps.set(sleeps.get() + usize::from(!has_work));
                has_work
            })
            .unwrap();
        }
        sender.join().unwrap();
        assert!(sleeps.get() > 0, "the test must have slept to prove anything");
    });
}

fn thread_cpu_time() -> Duration {
    // SAFETY: rusage is a C struct of integers, and the call writes one to the address of a live one.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        assert_eq!(libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage), 0);
        usage
    };
    let duration = |time: libc::timeval| {
        Duration::from_secs(time.tv_sec as u64) + Duration::from_micros(time.tv_usec as u64)
    };
    duration(usage.ru_utime) + duration(usage.ru_stime)
}

#[test]
fn an_idle_ring_sleeps_until_its_deadline_and_uses_no_cpu() {
    let (listener, address) = tcp_listener();
    in_executor(async move {
        let mut ring = Ring::new(&small_config()).unwrap();
        ring.accept(listener.into());
        let _idle_client = TcpStream::connect(address).unwrap();
        drive(&mut ring, |ring, event| {
            let Event::Accepted { socket, .. } = event else { panic!("unexpected {event:?}") };
            let token = ring.add(socket);
            ring.start_recv(token);
            false
        });
        let start = Instant::now();
        let cpu_before = thread_cpu_time();
        let deadline = start + Duration::from_millis(500);
        let mut rounds = 0;
        while Instant::now() < deadline {
            rounds += 1;
            ring.poll().unwrap();
            assert!(ring.next().is_none());
            ring.wait(Some(deadline), || false).unwrap();
        }
        assert!(start.elapsed() < PATIENCE);
        let cpu = thread_cpu_time() - cpu_before;
        // On a virtual machine, what its host takes may be counted as the thread's.
        assert!(cpu < Duration::from_millis(100), "{cpu:?} of CPU in half a second of idleness");
        assert!(rounds < 20, "{rounds} rounds without work");
    });
}

#[test]
fn an_earlier_deadline_replaces_a_later_one() {
    in_executor(async move {
        let mut ring = Ring::new(&small_config()).unwrap();
        let start = Instant::now();
        // A timer that would fire much later is set, as by an earlier sleep.
        ring.wait(Some(start + PATIENCE * 9), || true).unwrap();
        ring.poll().unwrap();
        let deadline = start + Duration::from_millis(50);
        while Instant::now() < deadline {
            ring.poll().unwrap();
            assert!(ring.next().is_none());
            ring.wait(Some(deadline), || false).unwrap();
        }
        assert!(start.elapsed() < PATIENCE);
    });
}

#[test]
fn dropping_a_busy_ring_ends_its_operations_and_closes_its_sockets() {
    let (listener, address) = tcp_listener();
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    in_executor(async move {
        let mut ring = Ring::new(&small_config()).unwrap();
        ring.accept(listener.into());
        let token = ring.add(ours.into());
        ring.start_recv(token);
        ring.send(token, vec![7; 8 << 20].into()).unwrap();
        ring.poll().unwrap();
        let mut unanswered = TcpStream::connect(address).unwrap();
        theirs.write_all(b"kept").unwrap();
        let mut kept = None;
        drive(&mut ring, |_, event| {
            if let Event::Received { data, .. } = event {
                kept = Some(data);
            }
            kept.is_none()
        });
        // One operation the kernel has not been given.
        let (unsubmitted, _peer) = UnixStream::pair().unwrap();
        let unsubmitted = ring.add(unsubmitted.into());
        ring.start_recv(unsubmitted);
        let pool = Rc::downgrade(&ring.pool);
        drop(ring);
        let kept = kept.unwrap();
        assert_eq!(&kept[..], b"kept", "received bytes outlive their ring");
        drop(kept);
        assert!(pool.upgrade().is_none(), "the kernel has let go of the buffers");
        let mut rest = Vec::new();
        theirs.read_to_end(&mut rest).unwrap();
        assert!(rest.len() < 8 << 20);
        assert!(!matches!(unanswered.read(&mut [0]), Ok(1..)), "the accepted connection ends");
    });
}

#[test]
fn bytes_before_a_half_close_arrive_before_the_eof() {
    let is_done = Arc::new(AtomicBool::new(false));
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    theirs.write_all(b"last words").unwrap();
    theirs.shutdown(Shutdown::Write).unwrap();
    let done = Arc::clone(&is_done);
    in_executor(async move {
        let mut ring = Ring::new(&small_config()).unwrap();
        let token = ring.add(ours.into());
        ring.start_recv(token);
        let mut words = Vec::new();
        drive(&mut ring, |ring, event| match event {
            Event::Received { data, .. } => {
                words.extend_from_slice(&data);
                true
            }
            Event::Eof { token } => {
                assert_eq!(words, b"last words");
                ring.send(token, b"reply".to_vec().into()).unwrap();
                true
            }
            Event::Sent { result, .. } => {
                result.unwrap();
                done.store(true, Ordering::Relaxed);
                false
            }
            other => panic!("unexpected {other:?}"),
        });
    });
    assert!(is_done.load(Ordering::Relaxed));
    let mut reply = Vec::new();
    theirs.read_to_end(&mut reply).unwrap();
    assert_eq!(reply, b"reply");
}

#[test]
fn a_slot_is_used_again_only_when_its_owner_has_heard_of_the_end() {
    in_executor(async {
        for detaches in [false, true] {
            let mut ring = Ring::new(&small_config()).unwrap();
            let add = |ring: &mut Ring| {
                let (ours, theirs) = UnixStream::pair().unwrap();
                std::mem::forget(theirs);
                ring.add(OwnedFd::from(ours))
            };
            // Nothing of it is in flight, so that it ends at once.
            let first = add(&mut ring);
            if detaches {
                ring.detach(first)
            } else {
                ring.close(first)
            }
            let second = add(&mut ring);
            assert_ne!(first.slot(), second.slot());
            assert!(matches!(
                ring.next(),
                Some(Event::Closed { token } | Event::Detached { token, .. }) if token == first
            ));
            assert_eq!(add(&mut ring).slot(), first.slot());
        }
    });
}
