//! A TCP proxy that breaks connections.

// Every test binary uses its own part of this.
#![allow(dead_code)]

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

#[derive(Default)]
struct Shared {
    /// Bytes that the next connections may carry from the server before they break. Beyond the list: without end.
    budgets: Mutex<VecDeque<u64>>,
    open: Mutex<Vec<[TcpStream; 2]>>,
    /// Bytes that all connections together may still carry from the server.
    held_after: AtomicU64,
    passed: AtomicU64,
    broken: AtomicU64,
    stopping: AtomicBool,
}

/// Passes connections on to a server until they are to break. Dropping it breaks all of them.
pub struct Proxy {
    shared: Arc<Shared>,
    address: SocketAddr,
}

impl Proxy {
    /// Listens on a free loopback port.
    pub fn start(server: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let shared = Arc::<Shared>::default();
        shared.held_after.store(u64::MAX, Ordering::SeqCst);
        let accepting = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming() {
                if accepting.stopping.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(client) = client else { continue };
                // A server that is gone is for the client to notice.
                if let Ok(server) = TcpStream::connect(server) {
                    accepting.pass(client, server);
                }
            }
        });
        Ok(Self { shared, address })
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// The connections after this break after so many bytes from the server each, one number for each.
    pub fn break_after(&self, budgets: impl IntoIterator<Item = u64>) {
        *lock(&self.shared.budgets) = budgets.into_iter().collect();
    }

    /// Connections that were broken because they had carried their bytes.
    pub fn broken(&self) -> u64 {
        self.shared.broken.load(Ordering::SeqCst)
    }

    /// Nothing more comes from the server once all connections together have carried about so many bytes from now on.
    pub fn hold_after(&self, bytes: u64) {
        self.shared.passed.store(0, Ordering::SeqCst);
        self.shared.held_after.store(bytes, Ordering::SeqCst);
    }

    /// Whether they have.
    pub fn holds(&self) -> bool {
        self.shared.holds()
    }

    /// Breaks all connections now.
    pub fn break_all(&self) {
        self.shared.break_all();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        self.shared.break_all();
        // Ends the thread that accepts; if that fails there is none.
        let _ = TcpStream::connect(self.address);
    }
}

impl Shared {
    fn holds(&self) -> bool {
        self.passed.load(Ordering::SeqCst) >= self.held_after.load(Ordering::SeqCst)
    }

    fn break_all(&self) {
        for socket in lock(&self.open).drain(..).flatten() {
            // Broken already is as good.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    fn pass(self: &Arc<Self>, client: TcpStream, server: TcpStream) {
        let budget = lock(&self.budgets).pop_front().unwrap_or(u64::MAX);
        let both = [&client, &server].map(|socket| socket.try_clone().expect("a socket can be cloned"));
        lock(&self.open).push(both);
        let (from_client, to_server) = (client.try_clone(), server.try_clone());
        let (from_client, to_server) = (from_client.expect("clones"), to_server.expect("clones"));
        thread::spawn(move || copy(from_client, to_server, u64::MAX, |_| {}));
        let shared = Arc::clone(self);
        thread::spawn(move || {
            let passed = |bytes| {
                shared.passed.fetch_add(bytes, Ordering::SeqCst);
                while shared.holds() && !shared.stopping.load(Ordering::SeqCst) {
                    thread::sleep(Duration::from_millis(1));
                }
            };
            if copy(server, client, budget, passed) {
                shared.broken.fetch_add(1, Ordering::SeqCst);
            }
        });
    }
}

/// Copies until either side ends or `budget` bytes were copied (true), and breaks both. `passed` is told of what was copied, and
/// may hold it up.
fn copy(mut from: TcpStream, mut to: TcpStream, mut budget: u64, passed: impl Fn(u64)) -> bool {
    let mut buffer = [0; 16 << 10];
    while budget > 0 {
        let room = buffer.len().min(usize::try_from(budget).unwrap_or(usize::MAX));
        match from.read(&mut buffer[..room]) {
            Ok(0) | Err(_) => break,
            Ok(len) if to.write_all(&buffer[..len]).is_ok() => {
                budget -= len as u64;
                passed(len as u64);
            }
            Ok(_) => break,
        }
    }
    for socket in [&from, &to] {
        let _ = socket.shutdown(Shutdown::Both);
    }
    budget == 0
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
