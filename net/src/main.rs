//! `braid-server`: reads the configuration, checks the machine, starts a thread for each shard, waits for the end.

use braid_net::config::{self, Config};
use braid_net::engine::mailbox;
use braid_net::engine::{Engine, HOME};
use braid_net::node::Node;
use braid_net::ring::{Ring, RingConfig, Waker};
use braid_net::session::control::Order;
use braid_net::{log_notice, log_warning, startup};
use crossbeam_channel::{Receiver, Sender, bounded};
use glommio::{LocalExecutorBuilder, Placement};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::sync::Arc;

#[global_allocator]
static ALLOCATOR: braid_net::memory::CountingAllocator = braid_net::memory::CountingAllocator;

fn main() -> ExitCode {
    braid_net::memory::give_back_soon();
    let arguments = config::cli::parse(std::env::args_os()).unwrap_or_else(|error| error.exit());
    let loaded = match config::load(&arguments) {
        Ok(loaded) => loaded,
        Err(text) => {
            eprintln!("{text}");
            return ExitCode::FAILURE;
        }
    };
    match serve(loaded) {
        Ok(()) => {
            log_warning!("Braid is now ready to exit, bye bye...");
            braid_net::log::flush();
            ExitCode::SUCCESS
        }
        Err(text) => {
            log_warning!("{text}");
            braid_net::log::flush();
            eprintln!("braid-server: {text}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the server to its end. The error is one line for the operator.
fn serve(loaded: config::Loaded) -> Result<(), String> {
    let config::Loaded { mut config, path, notes } = loaded;
    let target = braid_net::log::Target::open(&config.logfile)?;
    if config.daemonize {
        startup::process::daemonize().map_err(|error| format!("can't daemonize: {error}"))?;
    }
    if config.disable_thp {
        startup::process::disable_huge_pages();
    }
    braid_net::log::init(target, config.loglevel);
    startup::signals::ignore_hangups();
    let signals = startup::signals::block_stops().map_err(|error| format!("can't block signals: {error}"))?;
    let allowed =
        startup::cpus::allowed().map_err(|error| format!("can't read the CPU affinity: {error}"))?;
    braid_net::background::allow(allowed.clone());
    braid_net::niceness::learn();
    let quota = startup::cpus::quota();
    let placement = startup::cpus::place(config.shards, &allowed, quota)?;
    // Who has used up a quota waits as for a processor, and other processors are of no use to it.
    let may_roam = quota.is_none_or(|quota| quota >= allowed.len() as f64);
    let shards = placement.cpus.len();
    startup::kernel::check()?;
    startup::limits::adjust_memlock(shards as u16)?;
    let (files, notices) = startup::limits::adjust_files(config.maxclients, shards as u16)?;
    config.maxclients = files.maxclients;
    config.shards = shards as u16;
    config.dir = startup::process::enter_dir(&config.dir)?;
    let (tcp_listeners, listeners) = listen(&config)?;
    let pidfile = startup::process::PidFile::write(&config.pidfile, config.daemonize)?;
    braid_net::log::start_writer().map_err(|error| format!("can't start the log's thread: {error}"))?;
    braid_net::log::install_panic_hook();

    let version = env!("CARGO_PKG_VERSION");
    log_notice!("oO0OoO0OoO0Oo Braid is starting oO0OoO0OoO0Oo");
    log_notice!("Braid version={version}, bits=64, pid={}, just started", std::process::id());
    for line in notes.iter().chain(&files.warnings).chain(&placement.warning) {
        log_warning!("{line}");
    }
    for line in &notices {
        log_notice!("{line}");
    }
    log_notice!("Running mode=standalone, port={}, shards={shards}.", config.port);

    let unixsocket = config.unixsocket.clone();
    let has_tcp = config.port != 0;
    let node = Arc::new(Node::new(config, path, shards));
    *node.tcp_listeners.lock().expect("nobody else has it yet") = tcp_listeners;
    let mut threads = Vec::new();
    let (started, ready) = bounded::<Result<(usize, Waker), String>>(shards);
    let mut starts: Vec<Sender<Vec<Waker>>> = Vec::new();
    let mut listeners = Some(listeners);
    for (id, (cpu, mailboxes)) in placement.cpus.iter().zip(mailbox::connect_all(shards)).enumerate() {
        let (start, wakers) = bounded(1);
        starts.push(start);
        let listeners = listeners.take().unwrap_or_default();
        let cpus = may_roam.then(|| (*cpu, allowed.clone()));
        let shard = ShardThread { id, node: Arc::clone(&node), mailboxes, listeners, cpus };
        let (started, node) = (started.clone(), Arc::clone(&node));
        let handle = LocalExecutorBuilder::new(Placement::Fixed(*cpu))
            .name(&format!("braid-shard-{id}"))
            .ring_depth(128)
            .io_memory(64 << 10)
            .spawn(move || async move {
                let outcome = shard.run(started, wakers);
                node.stop();
                outcome
            })
            .map_err(|error| format!("can't start shard {id}: {error}"))?;
        threads.push(handle);
    }
    let mut wakers: Vec<Option<Waker>> = (0..shards).map(|_| None).collect();
    for _ in 0..shards {
        let (id, waker) = ready.recv().map_err(|_| "a shard did not start")??;
        wakers[id] = Some(waker);
    }
    let wakers: Vec<Waker> =
        wakers.into_iter().map(|waker| waker.expect("each shard reported once")).collect();
    node.wakers.set(wakers.clone()).ok().expect("set once");
    node.set_replica(node.config.snapshot().replicaof.0.is_some());
    log_notice!("Server initialized");
    node.startup_memory_bytes.store(node.refresh_memory(), std::sync::atomic::Ordering::Relaxed);
    for start in starts {
        start.send(wakers.clone()).map_err(|_| "a shard ended before it began")?;
    }
    let watcher = Arc::clone(&node);
    std::thread::Builder::new()
        .name("braid-signals".into())
        .spawn(move || {
            while let Ok(stop) = signals.wait() {
                watcher.order(HOME, Order::Signalled(stop));
            }
        })
        .map_err(|error| format!("can't start the thread for signals: {error}"))?;
    if node.persistence.wait_loaded() {
        if has_tcp {
            log_notice!("Ready to accept connections tcp");
        }
        if !unixsocket.is_empty() {
            log_notice!("Ready to accept connections unix");
        }
        let _ = startup::process::notify_systemd("READY=1");
    }
    let mut outcome = Ok(());
    for handle in threads {
        match handle.join() {
            Ok(Ok(())) => {}
            Ok(Err(error)) => outcome = Err(format!("a shard failed: {error}")),
            Err(error) => outcome = Err(format!("a shard failed: {error}")),
        }
    }
    if let Some(why) = node.persistence.failure() {
        outcome = Err(why);
    }
    if !unixsocket.is_empty() {
        let _ = std::fs::remove_file(&unixsocket);
    }
    if let Some(pidfile) = pidfile {
        pidfile.remove();
    }
    outcome
}

/// What a shard's thread starts with.
struct ShardThread {
    id: usize,
    node: Arc<Node>,
    mailboxes: mailbox::Mailboxes,
    listeners: Vec<OwnedFd>,
    /// The shard's own processor, and all that the process may use, if it may roam.
    cpus: Option<(usize, Vec<usize>)>,
}

impl ShardThread {
    fn run(
        mut self,
        started: Sender<Result<(usize, Waker), String>>,
        wakers: Receiver<Vec<Waker>>,
    ) -> std::io::Result<()> {
        let ring = match Ring::new(&RingConfig::default()) {
            Ok(ring) => ring,
            Err(error) => {
                let _ = started.send(Err(format!("can't set up the network ring: {error}")));
                return Err(error);
            }
        };
        let _ = started.send(Ok((self.id, ring.waker())));
        // Only start-up waits like this: nothing runs on this thread yet.
        let Ok(wakers) = wakers.recv() else { return Ok(()) };
        self.mailboxes.set_wakers(wakers);
        let mut engine = Engine::new(self.id as u16, self.node, ring, self.mailboxes);
        for listener in self.listeners {
            engine.listen(listener);
        }
        if let Some((own, all)) = self.cpus {
            engine.roam(own, &all);
        }
        engine.run()
    }
}

/// A listening socket with its address.
type TcpListener = (SocketAddr, OwnedFd);

/// Opens the listening sockets: those of TCP, then all.
fn listen(config: &Config) -> Result<(Vec<TcpListener>, Vec<OwnedFd>), String> {
    let tcp = startup::listen::listen_all(config, &[], startup::listen::START_PATIENCE)?;
    let mut all = Vec::new();
    for (_, socket) in &tcp {
        all.push(socket.try_clone().map_err(|error| format!("no file descriptor is left: {error}"))?);
    }
    if !config.unixsocket.is_empty() {
        let socket = startup::sockets::listen_unix(
            &config.unixsocket,
            config.unixsocketperm,
            config.tcp_backlog as i32,
        )
        .map_err(|error| format!("Failed opening Unix socket: bind: {error}"))?;
        all.push(socket);
    }
    if all.is_empty() {
        return Err("Configured to not listen anywhere, exiting.".into());
    }
    Ok((tcp, all))
}
