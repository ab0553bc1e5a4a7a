//! Servers as child processes on free loopback ports, each in a directory of its own: Braid, Redis, Valkey, kevy.
//!
//! A peer dies with its [`Peer`], and with the process that started it, however that ends.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, OnceLock, mpsc};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::client::{Address, Client};
use crate::sys::{self, Signal, Usage};

/// How long a server may take until it answers, unless [`Builder::ready_timeout`] says otherwise.
const READY_TIMEOUT: Duration = Duration::from_secs(20);
/// Between two looks at a process or a socket.
const POLL_INTERVAL: Duration = Duration::from_millis(5);
/// Attempts to find a port that nobody takes between our look and the server's.
const PORT_ATTEMPTS: usize = 8;
/// Ports below those that the kernel gives to outgoing connections (32768 and up), so that a server can be
/// restarted on its port without finding it taken by some client.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// Which server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The binary `braid-server` at this path.
    Braid(PathBuf),
    /// Redis 7.0, as Debian 12 packages it.
    Redis7,
    Redis8,
    Valkey,
    Kevy,
}

/// Where the binary of a peer is looked for.
struct Location {
    variable: &'static str,
    /// In the peers' directory under `bin/`, and in `PATH`.
    file: &'static str,
    install: &'static str,
}

impl Kind {
    /// Braid, its binary found through `BRAID_SERVER`, beside the running executable (or one directory up, for
    /// tests), or in `PATH`.
    ///
    /// # Errors
    /// When it was not built.
    pub fn braid() -> io::Result<Kind> {
        if let Some(path) = std::env::var_os("BRAID_SERVER") {
            return existing(PathBuf::from(path), "BRAID_SERVER").map(Kind::Braid);
        }
        let executable = std::env::current_exe()?;
        let beside = executable.ancestors().skip(1).take(2).map(|dir| dir.join("braid-server"));
        beside
            .into_iter()
            .chain(in_path("braid-server"))
            .find(|path| path.is_file())
            .map(Kind::Braid)
            .ok_or_else(|| not_found("braid-server is not built: cargo build -p braid-net".into()))
    }

    /// From a name on the command line: braid, redis7, redis8, valkey, kevy.
    ///
    /// # Errors
    /// For another name, or when Braid was not built.
    pub fn from_name(name: &str) -> io::Result<Kind> {
        Ok(match name {
            "braid" => Kind::braid()?,
            "redis7" | "redis" => Kind::Redis7,
            "redis8" => Kind::Redis8,
            "valkey" => Kind::Valkey,
            "kevy" => Kind::Kevy,
            _ => {
                return Err(io::Error::other(format!(
                    "no peer is called {name}: braid, redis7, redis8, valkey or kevy"
                )));
            }
        })
    }

    /// The name that [`Kind::from_name`] takes.
    pub fn name(&self) -> &'static str {
        match self {
            Kind::Braid(_) => "braid",
            Kind::Redis7 => "redis7",
            Kind::Redis8 => "redis8",
            Kind::Valkey => "valkey",
            Kind::Kevy => "kevy",
        }
    }

    /// The server's binary: an environment variable, then the peers' directory (`BRAID_PEERS`, or `.peers` in the
    /// repository), then `PATH`.
    ///
    /// # Errors
    /// When it is not installed; the message names the script that does.
    pub fn binary(&self) -> io::Result<PathBuf> {
        let place = match self {
            Kind::Braid(path) => return existing(path.clone(), "the path given"),
            Kind::Redis7 => Location {
                variable: "BRAID_REDIS_SERVER",
                file: "redis-server",
                install: "scripts/setup-peers",
            },
            Kind::Redis8 => Location {
                variable: "BRAID_REDIS8_SERVER",
                file: "redis-server-8",
                install: "scripts/setup-peers",
            },
            Kind::Valkey => Location {
                variable: "BRAID_VALKEY_SERVER",
                file: "valkey-server",
                install: "scripts/setup-peers",
            },
            Kind::Kevy => Location {
                variable: "BRAID_KEVY_SERVER",
                file: "kevy",
                install: "scripts/setup-peers --with-kevy",
            },
        };
        if let Some(path) = std::env::var_os(place.variable) {
            return existing(PathBuf::from(path), place.variable);
        }
        let installed = peers_dir().map(|dir| dir.join("bin").join(place.file));
        installed.into_iter().chain(in_path(place.file)).find(|path| path.is_file()).ok_or_else(|| {
            let Location { variable, file, install } = place;
            not_found(format!("{file} is not installed: run {install}, or set {variable} to its path"))
        })
    }

    /// A peer of this kind with default options, answering.
    ///
    /// # Errors
    /// See [`Builder::start`].
    pub fn start(&self) -> io::Result<Peer> {
        Peer::builder(self.clone()).start()
    }

    /// Arguments that every peer of this kind gets.
    fn arguments(&self, port: u16, dir: &Path, threads: Option<usize>) -> Vec<OsString> {
        let mut args: Vec<OsString> = ["--bind", "127.0.0.1", "--port"].map(OsString::from).to_vec();
        args.push(port.to_string().into());
        args.push("--dir".into());
        args.push(dir.into());
        let threads_flag = match self {
            Kind::Braid(_) => "--shards",
            Kind::Kevy => "--threads",
            _ => "--io-threads",
        };
        if let Some(threads) = threads {
            args.push(threads_flag.into());
            args.push(threads.to_string().into());
        }
        match self {
            Kind::Braid(_) => args.extend(["--save", ""].map(OsString::from)),
            Kind::Kevy => args.push("--no-aof".into()),
            // Without the delay's end no replica is served: five seconds for every test that attaches one.
            _ => args.extend(
                ["--save", "", "--repl-diskless-sync-delay", "0", "--enable-debug-command", "yes"]
                    .map(OsString::from),
            ),
        }
        args
    }
}

fn not_found(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, message)
}

fn existing(path: PathBuf, said_by: &str) -> io::Result<PathBuf> {
    if path.is_file() {
        Ok(path)
    } else {
        Err(not_found(format!("{} (from {said_by}) is not a file", path.display())))
    }
}

fn in_path(file: &str) -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|dir| dir.join(file)).collect()
}

/// The directory that scripts/setup-peers fills: `BRAID_PEERS`, or `.peers` above the package under test, the
/// working directory or the executable.
pub fn peers_dir() -> Option<PathBuf> {
    if let Some(dir) = std::env::var_os("BRAID_PEERS") {
        return Some(PathBuf::from(dir));
    }
    let starts = [
        std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from),
        std::env::current_dir().ok(),
        std::env::current_exe().ok(),
    ];
    starts.into_iter().flatten().find_map(|start| {
        start.ancestors().map(|dir| dir.join(".peers")).find(|candidate| candidate.is_dir())
    })
}

/// A loopback port that nobody listens on at this moment, outside the range of outgoing connections.
///
/// # Errors
/// When there is none.
pub fn free_port() -> io::Result<u16> {
    for _ in 0..1000 {
        let port = fastrand::u16(PORTS);
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    Err(io::Error::other("no free loopback port"))
}

/// Spawns from one thread that lives as long as the process: a child asks to be killed when its parent *thread*
/// ends, and a test's thread may end before the peers it started for others.
fn spawn(command: Command) -> io::Result<Child> {
    type Request = (Command, mpsc::Sender<io::Result<Child>>);
    static SPAWNER: OnceLock<Mutex<mpsc::Sender<Request>>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (requests, incoming) = mpsc::channel::<Request>();
        std::thread::Builder::new()
            .name("peers".into())
            .spawn(move || {
                for (mut command, answer) in incoming {
                    // Whoever asked is waiting; if it is gone, its child must not stay.
                    if let Err(mpsc::SendError(Ok(mut orphan))) = answer.send(command.spawn()) {
                        let _ = orphan.kill();
                    }
                }
            })
            .expect("a thread can be started");
        Mutex::new(requests)
    });
    let (answer, answered) = mpsc::channel();
    let sent = spawner.lock().map(|requests| requests.send((command, answer)).is_ok()).unwrap_or(false);
    assert!(sent, "the spawning thread never ends");
    answered.recv().expect("the spawning thread answers every request")
}

/// How a peer is to be started.
#[derive(Clone, Debug)]
pub struct Builder {
    kind: Kind,
    args: Vec<OsString>,
    cpus: Vec<usize>,
    threads: Option<usize>,
    port: Option<u16>,
    dir: Option<PathBuf>,
    unix_socket: bool,
    ready_timeout: Duration,
}

impl Builder {
    /// Appends one argument, after the defaults (`--bind --port --dir --save ""`).
    pub fn arg(mut self, arg: impl Into<OsString>) -> Builder {
        self.args.push(arg.into());
        self
    }

    /// Appends arguments: `.args(["--appendonly", "yes"])`.
    pub fn args<A: Into<OsString>>(mut self, args: impl IntoIterator<Item = A>) -> Builder {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Shards of Braid, threads of kevy, io-threads of Redis and Valkey.
    pub fn threads(mut self, threads: usize) -> Builder {
        self.threads = Some(threads);
        self
    }

    /// The CPUs that the server may run on.
    pub fn cpus(mut self, cpus: &[usize]) -> Builder {
        self.cpus = cpus.to_vec();
        self
    }

    /// A fixed port instead of a free one.
    pub fn port(mut self, port: u16) -> Builder {
        self.port = Some(port);
        self
    }

    /// A directory that exists and stays, instead of a temporary one.
    pub fn dir(mut self, dir: impl Into<PathBuf>) -> Builder {
        self.dir = Some(dir.into());
        self
    }

    /// Listens on a unix socket too; see [`Peer::unix_socket`].
    pub fn unix_socket(mut self) -> Builder {
        self.unix_socket = true;
        self
    }

    /// How long the server may take until it answers (loading a snapshot included).
    pub fn ready_timeout(mut self, timeout: Duration) -> Builder {
        self.ready_timeout = timeout;
        self
    }

    /// Starts the server and waits until it answers `PING` and has loaded its data.
    ///
    /// # Errors
    /// When the binary is missing, or the server exits or does not answer in time; the message then ends with
    /// what it logged.
    pub fn start(self) -> io::Result<Peer> {
        let binary = self.kind.binary()?;
        let temporary = match self.dir {
            Some(_) => None,
            None => Some(tempfile::Builder::new().prefix("braid-peer-").tempdir()?),
        };
        let dir = match (&self.dir, &temporary) {
            (Some(dir), _) => dir.clone(),
            (None, Some(temporary)) => temporary.path().to_path_buf(),
            (None, None) => unreachable!("one of the two was just made"),
        };
        let fixed_port = self.port;
        let mut peer = Peer { options: self, binary, port: 0, dir, _temporary: temporary, child: None };
        let mut attempt = 1;
        loop {
            peer.port = fixed_port.map_or_else(free_port, Ok)?;
            match peer.launch() {
                Err(error)
                    if error.kind() == io::ErrorKind::AddrInUse
                        && fixed_port.is_none()
                        && attempt < PORT_ATTEMPTS =>
                {
                    attempt += 1;
                }
                Err(error) => return Err(error),
                Ok(()) => return Ok(peer),
            }
        }
    }
}

/// A running server. Dropping it kills it and removes its temporary directory.
pub struct Peer {
    options: Builder,
    binary: PathBuf,
    port: u16,
    dir: PathBuf,
    /// Removed last, when the server is gone.
    _temporary: Option<TempDir>,
    child: Option<Child>,
}

impl Peer {
    /// How to start a peer of this kind.
    pub fn builder(kind: Kind) -> Builder {
        Builder {
            kind,
            args: Vec::new(),
            cpus: Vec::new(),
            threads: None,
            port: None,
            dir: None,
            unix_socket: false,
            ready_timeout: READY_TIMEOUT,
        }
    }

    /// Which server it is.
    pub fn kind(&self) -> &Kind {
        &self.options.kind
    }

    /// The TCP port it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.port))
    }

    /// Its address as [`Client::connect_to`] takes it.
    pub fn address(&self) -> Address {
        Address::Tcp(self.addr())
    }

    /// Where its unix socket is, if [`Builder::unix_socket`] asked for one.
    pub fn unix_socket(&self) -> PathBuf {
        self.dir.join("socket")
    }

    /// Its working directory, where snapshots and append-only files go.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// A new connection to it.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub fn client(&self) -> io::Result<Client> {
        Client::connect(self.addr())
    }

    /// What it has used so far.
    ///
    /// # Errors
    /// When it is not running.
    pub fn usage(&self) -> io::Result<Usage> {
        sys::usage(self.running()?)
    }

    /// What it wrote to its standard output and error, over all its starts.
    pub fn log(&self) -> String {
        std::fs::read(self.log_path())
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// Replaces the arguments that follow the defaults, for the next [`Peer::restart`].
    pub fn set_args<A: Into<OsString>>(&mut self, args: impl IntoIterator<Item = A>) {
        self.options.args = args.into_iter().map(Into::into).collect();
    }

    /// Appends arguments, for the next [`Peer::restart`].
    pub fn add_args<A: Into<OsString>>(&mut self, args: impl IntoIterator<Item = A>) {
        self.options.args.extend(args.into_iter().map(Into::into));
    }

    /// Replaces the number of threads, for the next [`Peer::restart`].
    pub fn set_threads(&mut self, threads: usize) {
        self.options.threads = Some(threads);
    }

    /// Starts it again on the same port and directory; kills it first if it runs.
    ///
    /// # Errors
    /// As [`Builder::start`].
    pub fn restart(&mut self) -> io::Result<()> {
        self.kill()?;
        self.launch()
    }

    /// SIGKILL, and waits until the process is gone. Nothing happens if it is not running.
    ///
    /// # Errors
    /// The system's own.
    pub fn kill(&mut self) -> io::Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// SIGTERM, and waits for the process to end by itself.
    ///
    /// # Errors
    /// When it is not running, or does not end within `timeout`.
    pub fn terminate(&mut self, timeout: Duration) -> io::Result<ExitStatus> {
        self.signal(Signal::Term)?;
        self.wait_exit(timeout)
    }

    /// Sends a signal, and waits for nothing.
    ///
    /// # Errors
    /// When it is not running.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        sys::send_signal(self.running()?, signal)
    }

    /// From now on it may open at least so many files more than it has open, and not many more than that.
    ///
    /// # Errors
    /// When it is not running.
    pub fn limit_files(&self, more: u64) -> io::Result<()> {
        let pid = self.running()?;
        let open = std::fs::read_dir(format!("/proc/{pid}/fd"))?.count() as u64;
        sys::limit_files(pid, open + more)
    }

    /// Waits for the process to end by itself.
    ///
    /// # Errors
    /// When it is not running, or does not end within `timeout`.
    pub fn wait_exit(&mut self, timeout: Duration) -> io::Result<ExitStatus> {
        self.running()?;
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(status) = self.exited()? {
                return Ok(status);
            }
            if Instant::now() >= deadline {
                let message = format!("{} is still running after {timeout:?}", self.kind().name());
                return Err(io::Error::new(io::ErrorKind::TimedOut, message));
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    /// SIGSTOP: it keeps its connections and answers nothing.
    ///
    /// # Errors
    /// When it is not running.
    pub fn stop(&self) -> io::Result<()> {
        self.signal(Signal::Stop)
    }

    /// SIGCONT.
    ///
    /// # Errors
    /// When it is not running.
    pub fn cont(&self) -> io::Result<()> {
        self.signal(Signal::Cont)
    }

    fn running(&self) -> io::Result<u32> {
        self.pid().ok_or_else(|| io::Error::other(format!("{} is not running", self.kind().name())))
    }

    fn log_path(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// The status of a process that ended; from then on there is none.
    fn exited(&mut self) -> io::Result<Option<ExitStatus>> {
        let Some(child) = &mut self.child else { return Ok(None) };
        let status = child.try_wait()?;
        if status.is_some() {
            self.child = None;
        }
        Ok(status)
    }

    fn launch(&mut self) -> io::Result<()> {
        assert!(self.child.is_none(), "a running peer is not started twice");
        let log = File::options().create(true).append(true).open(self.log_path())?;
        let log_start = log.metadata()?.len() as usize;
        let mut command = Command::new(&self.binary);
        command
            .args(self.options.kind.arguments(self.port, &self.dir, self.options.threads))
            .args(&self.options.args)
            .current_dir(&self.dir)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        if self.options.unix_socket {
            command.arg("--unixsocket").arg(self.unix_socket());
        }
        sys::prepare_child(&mut command, &self.options.cpus)?;
        let child = spawn(command).map_err(|error| {
            io::Error::new(error.kind(), format!("cannot start {}: {error}", self.binary.display()))
        })?;
        self.child = Some(child);
        let deadline = Instant::now() + self.options.ready_timeout;
        while !self.is_ready()? {
            let status = self.exited()?;
            let timed_out = Instant::now() >= deadline;
            if status.is_none() && !timed_out {
                std::thread::sleep(POLL_INTERVAL);
                continue;
            }
            let log = self.log();
            let log = log.get(log_start..).unwrap_or(&log);
            let what = match status {
                Some(status) => format!("ended with {status}"),
                None => format!("did not answer within {:?}", self.options.ready_timeout),
            };
            let port_taken = log.to_ascii_lowercase().contains("in use");
            self.kill()?;
            return Err(io::Error::new(
                if port_taken { io::ErrorKind::AddrInUse } else { io::ErrorKind::Other },
                format!("{} {what}; its log ends:\n{}", self.options.kind.name(), tail(log)),
            ));
        }
        Ok(())
    }

    /// Whether our process answers, and has loaded its data.
    fn is_ready(&mut self) -> io::Result<bool> {
        let Ok(mut client) = self.client() else { return Ok(false) };
        client.set_timeout(Some(Duration::from_secs(1)))?;
        let Ok(reply) = client.command(&["PING"]) else { return Ok(false) };
        if reply.is_error() && reply.text().starts_with("LOADING") {
            return Ok(false);
        }
        // Somebody else may have taken the port in between; then our process is about to end.
        let other = client
            .info("server")
            .ok()
            .and_then(|info| info.get("process_id").and_then(|pid| pid.parse::<u32>().ok()))
            .is_some_and(|pid| Some(pid) != self.pid());
        Ok(!other)
    }
}

fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

impl Drop for Peer {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "--- log of {} on port {}, its end ---\n{}",
                self.kind().name(),
                self.port,
                tail(&self.log())
            );
        }
        // Nothing to be done about an error here: the process is gone already, or will be with ours.
        let _ = self.kill();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_starts_pauses_restarts_and_ends() {
        let mut peer = Peer::builder(Kind::Redis7).unix_socket().start().unwrap();
        let mut client = peer.client().unwrap();
        assert_eq!(client.command(&["SET", "a", "1"]).unwrap(), "OK");
        assert_eq!(client.command(&["SAVE"]).unwrap(), "OK");
        assert_eq!(Client::connect_unix(peer.unix_socket()).unwrap().command(&["GET", "a"]).unwrap(), "1");
        assert!(peer.usage().unwrap().rss_bytes > 1_000_000);

        peer.stop().unwrap();
        client.set_timeout(Some(Duration::from_millis(50))).unwrap();
        let error = client.command(&["PING"]).unwrap_err();
        assert!(matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut), "{error}");
        peer.cont().unwrap();
        client.set_timeout(None).unwrap();
        assert_eq!(client.receive().unwrap(), "PONG");

        let (port, pid) = (peer.port(), peer.pid());
        peer.restart().unwrap();
        assert_eq!(peer.port(), port);
        assert_ne!(peer.pid(), pid);
        client.wait_closed().unwrap();
        assert_eq!(peer.client().unwrap().command(&["GET", "a"]).unwrap(), "1");

        assert!(peer.terminate(Duration::from_secs(10)).unwrap().success());
        assert_eq!(peer.pid(), None);
        assert!(peer.client().is_err());
        assert!(peer.usage().is_err());
    }

    #[test]
    fn dropping_a_peer_ends_its_process_and_removes_its_directory() {
        let peer = Kind::Redis7.start().unwrap();
        let (addr, dir) = (peer.addr(), peer.dir().to_path_buf());
        assert!(dir.exists());
        drop(peer);
        assert!(Client::connect(addr).is_err());
        assert!(!dir.exists());
    }

    #[test]
    fn a_peer_runs_where_it_is_pinned() {
        let peer = Peer::builder(Kind::Redis7).cpus(&[0]).start().unwrap();
        let status = std::fs::read_to_string(format!("/proc/{}/status", peer.pid().unwrap())).unwrap();
        let allowed = status.lines().find(|line| line.starts_with("Cpus_allowed_list:")).unwrap();
        assert_eq!(allowed.split_ascii_whitespace().nth(1), Some("0"));
    }

    #[test]
    fn a_server_that_refuses_its_arguments_is_reported_with_its_log() {
        let error = Peer::builder(Kind::Redis7).args(["--no-such-directive", "x"]).start().err().unwrap();
        assert!(error.to_string().contains("no-such-directive"), "{error}");
    }

    #[test]
    fn a_missing_binary_is_an_error_that_says_what_to_do() {
        let error = Kind::Braid("/nonexistent/braid-server".into()).start().err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(error.to_string().contains("/nonexistent/braid-server"), "{error}");
        assert!(Kind::from_name("memcached").unwrap_err().to_string().contains("valkey"));
    }

    #[test]
    fn a_fixed_port_that_is_taken_is_an_error() {
        let first = Kind::Redis7.start().unwrap();
        let error = Peer::builder(Kind::Redis7).port(first.port()).start().err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse, "{error}");
    }
}
