//! A small blocking client over TCP or a unix socket, for tests and tools.

use std::collections::{HashMap, VecDeque};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::resp::{self, Decoder};

pub use crate::value::Value;

/// How long a connection attempt and a wait for a reply may take unless [`Client::set_timeout`] says otherwise.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// Pipelines up to this size are written before the first reply is read: they fit in the socket's buffers, so
/// neither side can wait for the other to read.
const WRITE_AHEAD_BYTES: usize = 32 * 1024;

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Address::Tcp(addr) => write!(f, "{addr}"),
            Address::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

impl Address {
    /// Resolves `host` and `port`.
    ///
    /// # Errors
    /// When the name does not resolve.
    pub fn resolve(host: &str, port: u16) -> io::Result<Address> {
        let mut found = (host, port)
            .to_socket_addrs()
            .map_err(|error| io::Error::new(error.kind(), format!("cannot resolve {host}: {error}")))?;
        found.next().map(Address::Tcp).ok_or_else(|| io::Error::other(format!("{host} has no address")))
    }
}

/// A connected socket of either family.
pub enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    /// Connects; the error names the address.
    ///
    /// # Errors
    /// When the server cannot be reached within `timeout`.
    pub fn connect(address: &Address, timeout: Duration) -> io::Result<Stream> {
        let connected = match address {
            Address::Tcp(addr) => TcpStream::connect_timeout(addr, timeout).and_then(|stream| {
                stream.set_nodelay(true)?;
                Ok(Stream::Tcp(stream))
            }),
            Address::Unix(path) => UnixStream::connect(path).map(Stream::Unix),
        };
        connected
            .map_err(|error| io::Error::new(error.kind(), format!("cannot connect to {address}: {error}")))
    }

    /// Switches between blocking and non-blocking mode.
    ///
    /// # Errors
    /// The system's own.
    pub fn set_nonblocking(&self, on: bool) -> io::Result<()> {
        match self {
            Stream::Tcp(stream) => stream.set_nonblocking(on),
            Stream::Unix(stream) => stream.set_nonblocking(on),
        }
    }

    fn set_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        match self {
            Stream::Tcp(stream) => {
                stream.set_read_timeout(timeout).and_then(|()| stream.set_write_timeout(timeout))
            }
            Stream::Unix(stream) => {
                stream.set_read_timeout(timeout).and_then(|()| stream.set_write_timeout(timeout))
            }
        }
    }

    fn try_clone(&self) -> io::Result<Stream> {
        Ok(match self {
            Stream::Tcp(stream) => Stream::Tcp(stream.try_clone()?),
            Stream::Unix(stream) => Stream::Unix(stream.try_clone()?),
        })
    }
}

impl AsRawFd for Stream {
    fn as_raw_fd(&self) -> RawFd {
        match self {
            Stream::Tcp(stream) => stream.as_raw_fd(),
            Stream::Unix(stream) => stream.as_raw_fd(),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => stream.read(room),
            Stream::Unix(stream) => stream.read(room),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => stream.write(bytes),
            Stream::Unix(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// One connection.
pub struct Client {
    address: Address,
    decoder: Decoder<Stream>,
    /// Push messages that arrived while a reply was awaited.
    pushes: VecDeque<Value>,
}

impl Client {
    /// Connects over TCP to the first address that `addr` resolves to, within [`DEFAULT_TIMEOUT`].
    ///
    /// # Errors
    /// When the name does not resolve or the server cannot be reached; the message names the address.
    pub fn connect(addr: impl ToSocketAddrs) -> io::Result<Client> {
        let addr = addr.to_socket_addrs()?.next().ok_or_else(|| io::Error::other("no address"))?;
        Client::connect_to(&Address::Tcp(addr))
    }

    /// Connects over a unix socket.
    ///
    /// # Errors
    /// When the server cannot be reached; the message names the path.
    pub fn connect_unix(path: impl AsRef<Path>) -> io::Result<Client> {
        Client::connect_to(&Address::Unix(path.as_ref().to_path_buf()))
    }

    /// Connects to an address of either family.
    ///
    /// # Errors
    /// When the server cannot be reached; the message names the address.
    pub fn connect_to(address: &Address) -> io::Result<Client> {
        let stream = Stream::connect(address, DEFAULT_TIMEOUT)?;
        stream.set_timeout(Some(DEFAULT_TIMEOUT))?;
        Ok(Client { address: address.clone(), decoder: Decoder::new(stream), pushes: VecDeque::new() })
    }

    /// Where this client is connected to.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// How long a read or write may wait before it fails with `WouldBlock` or `TimedOut`; `None` is for ever. A
    /// reply that was cut by a timeout is whole at the next attempt.
    ///
    /// # Errors
    /// The system's own; a timeout of zero is refused.
    pub fn set_timeout(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.decoder.source().set_timeout(timeout)
    }

    /// Sends one command and returns its reply; an error reply is a [`Value::Error`]. Push messages that come
    /// first are kept for [`Client::push`]. (In RESP3 `SUBSCRIBE` is answered by pushes alone: use
    /// [`Client::send`] and [`Client::push`].)
    ///
    /// # Errors
    /// Only of the connection: closed, timed out, not RESP.
    pub fn command<A: AsRef<[u8]>>(&mut self, args: &[A]) -> io::Result<Value> {
        self.send(args)?;
        self.receive()
    }

    /// As [`Client::command`], but an error reply is an `Err` that names the command.
    ///
    /// # Errors
    /// Of the connection, or the server's error reply.
    pub fn call<A: AsRef<[u8]>>(&mut self, args: &[A]) -> io::Result<Value> {
        let reply = self.command(args)?;
        reply.ok().map_err(|error| {
            let name = args.first().map(|arg| arg.as_ref().escape_ascii().to_string()).unwrap_or_default();
            io::Error::other(format!("{name}: {error}"))
        })
    }

    /// Sends all commands in one go and returns all replies in order. Replies are read while a large pipeline is
    /// still being written, so its size is not limited by what the server buffers.
    ///
    /// # Errors
    /// Only of the connection.
    pub fn pipeline<C: AsRef<[A]>, A: AsRef<[u8]>>(&mut self, commands: &[C]) -> io::Result<Vec<Value>> {
        let mut wire = Vec::new();
        for command in commands {
            resp::encode(&mut wire, command.as_ref());
        }
        if wire.len() <= WRITE_AHEAD_BYTES {
            self.send_raw(&wire)?;
            return (0..commands.len()).map(|_| self.receive()).collect();
        }
        let mut writer = self.decoder.source().try_clone()?;
        std::thread::scope(|scope| {
            let sent = scope.spawn(move || writer.write_all(&wire));
            let replies: io::Result<Vec<Value>> = (0..commands.len()).map(|_| self.receive()).collect();
            // The write can fail only with the connection, and the replies' error then says so too.
            match sent.join().expect("writing a pipeline does not panic") {
                Ok(()) => replies,
                Err(error) => replies.and(Err(error)),
            }
        })
    }

    /// Sends one command and does not wait.
    ///
    /// # Errors
    /// Only of the connection.
    pub fn send<A: AsRef<[u8]>>(&mut self, args: &[A]) -> io::Result<()> {
        let mut wire = Vec::new();
        resp::encode(&mut wire, args);
        self.send_raw(&wire)
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// Only of the connection.
    pub fn send_raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.decoder.source_mut().write_all(bytes)
    }

    /// The next reply that is not a push message; those are kept for [`Client::push`].
    ///
    /// # Errors
    /// Only of the connection.
    pub fn receive(&mut self) -> io::Result<Value> {
        loop {
            match self.decoder.value()? {
                push @ Value::Push(_) => self.pushes.push_back(push),
                reply => return Ok(reply),
            }
        }
    }

    /// The next push message: the oldest one kept, or the next to arrive.
    ///
    /// # Errors
    /// Of the connection; `InvalidData` when something else arrives.
    pub fn push(&mut self) -> io::Result<Vec<Value>> {
        let value = match self.pushes.pop_front() {
            Some(kept) => kept,
            None => self.decoder.value()?,
        };
        match value {
            Value::Push(items) => Ok(items),
            other => {
                Err(io::Error::new(io::ErrorKind::InvalidData, format!("not a push message: {other:?}")))
            }
        }
    }

    /// The exact bytes of the next reply.
    ///
    /// # Errors
    /// Only of the connection.
    pub fn receive_frame(&mut self) -> io::Result<Vec<u8>> {
        self.decoder.frame()
    }

    /// Exactly `len` bytes, whatever they are (a snapshot's payload, say).
    ///
    /// # Errors
    /// Only of the connection.
    pub fn receive_exact(&mut self, len: usize) -> io::Result<Vec<u8>> {
        self.decoder.exact(len)
    }

    /// Bytes up to and including the next `\n`.
    ///
    /// # Errors
    /// Of the connection; `InvalidData` for a line beyond 1 MiB.
    pub fn receive_line(&mut self) -> io::Result<Vec<u8>> {
        self.decoder.raw_line()
    }

    /// Whatever has arrived, after waiting for at least one byte; empty when the server closed the connection.
    ///
    /// # Errors
    /// Only of the connection.
    pub fn receive_available(&mut self) -> io::Result<Vec<u8>> {
        self.decoder.available()
    }

    /// Reads and drops bytes until the server closes the connection.
    ///
    /// # Errors
    /// When it does not within the timeout of the connection. A reset counts as closed.
    pub fn wait_closed(&mut self) -> io::Result<()> {
        loop {
            match self.decoder.available() {
                Ok(bytes) if bytes.is_empty() => return Ok(()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    /// The bare socket, for whoever drives it differently.
    ///
    /// # Panics
    /// When replies have arrived that were not taken.
    pub fn into_stream(self) -> Stream {
        assert!(self.decoder.buffered().is_empty() && self.pushes.is_empty(), "replies would be lost");
        self.decoder.into_source()
    }

    /// `INFO section` as a map from field to value.
    ///
    /// # Errors
    /// Of the connection, or the server's error reply.
    pub fn info(&mut self, section: &str) -> io::Result<HashMap<String, String>> {
        let text = self.call(&["INFO", section])?.text();
        Ok(text
            .lines()
            .filter_map(|line| line.split_once(':'))
            .map(|(field, value)| (field.to_owned(), value.trim_end().to_owned()))
            .collect())
    }
}

/// Something that can stand as an argument in [`cmd!`](crate::cmd).
pub trait Argument {
    /// Its bytes on the wire.
    fn to_argument(&self) -> Vec<u8>;
}

macro_rules! argument_as_bytes {
    ($($kind:ty),*) => { $(impl Argument for $kind {
        fn to_argument(&self) -> Vec<u8> { let bytes: &[u8] = self.as_ref(); bytes.to_vec() }
    })* };
}
macro_rules! argument_as_text {
    ($($kind:ty),*) => { $(impl Argument for $kind {
        fn to_argument(&self) -> Vec<u8> { self.to_string().into_bytes() }
    })* };
}
argument_as_bytes!(str, String, [u8], Vec<u8>);
argument_as_text!(i32, i64, u16, u32, u64, usize, f64);

impl<const N: usize> Argument for [u8; N] {
    fn to_argument(&self) -> Vec<u8> {
        self.to_vec()
    }
}

impl<T: Argument + ?Sized> Argument for &T {
    fn to_argument(&self) -> Vec<u8> {
        (**self).to_argument()
    }
}

/// A command of mixed arguments, as `Vec<Vec<u8>>`: `client.command(&cmd!["EXPIRE", key, 10])`.
#[macro_export]
macro_rules! cmd {
    ($($arg:expr),+ $(,)?) => {
        ::std::vec::Vec::from([$($crate::client::Argument::to_argument(&$arg)),+])
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    /// A peer that reads `expect_len` bytes, then sends `reply`, then closes.
    fn scripted(expect_len: usize, reply: &'static [u8]) -> (SocketAddr, std::thread::JoinHandle<Vec<u8>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let peer = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut got = vec![0; expect_len];
            stream.read_exact(&mut got).unwrap();
            stream.write_all(reply).unwrap();
            got
        });
        (addr, peer)
    }

    #[test]
    fn pushes_are_kept_apart_from_replies() {
        let wire = b"*1\r\n$4\r\nPING\r\n";
        let (addr, peer) = scripted(wire.len(), b">2\r\n+invalidate\r\n+a\r\n+PONG\r\n>1\r\n+b\r\n");
        let mut client = Client::connect(addr).unwrap();
        assert_eq!(client.command(&["PING"]).unwrap(), "PONG");
        assert_eq!(client.push().unwrap()[1], "a");
        assert_eq!(client.push().unwrap()[0], "b");
        client.wait_closed().unwrap();
        assert_eq!(peer.join().unwrap(), wire);
    }

    #[test]
    fn an_error_reply_is_a_value_for_command_and_an_error_for_call() {
        let wire_len = b"*1\r\n$4\r\nPING\r\n".len();
        let (addr, _peer) = scripted(2 * wire_len, b"-ERR no\r\n-ERR no\r\n");
        let mut client = Client::connect(addr).unwrap();
        client.send(&["PING"]).unwrap();
        assert_eq!(client.command(&["PING"]).unwrap(), Value::Error("ERR no".into()));
        assert_eq!(client.receive().unwrap().ok().unwrap_err().to_string(), "ERR no");
    }

    #[test]
    fn a_refused_connection_names_the_address() {
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = free.local_addr().unwrap();
        drop(free);
        let error = Client::connect(addr).err().expect("nobody listens");
        assert!(error.to_string().contains(&addr.to_string()), "{error}");
    }

    #[test]
    fn arguments_of_mixed_types_become_bytes() {
        let key = String::from("k");
        assert_eq!(cmd!["SET", key, 12, 1.5, b"\xff"], vec![&b"SET"[..], b"k", b"12", b"1.5", b"\xff"]);
    }
}
