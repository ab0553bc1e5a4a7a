//! The connection to the master, on the home shard's ring: connecting, what waits to be sent, and how clients see it.

use super::{Engine, Front};
use crate::log_warning;
use crate::node::Node;
use crate::ring::{Event, Ring, SendBuffer, Token};
use crate::session::clients::{ClientInfo, Endpoint, conn_id, flag};
use crate::session::control::Order;
use crate::startup::sockets;
use braid_replication::link::Target;
use braid_shards::ConnId;
use braid_shards::stats::Counter;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// See the module.
#[derive(Default)]
pub struct LinkSocket {
    token: Option<Token>,
    /// As `CLIENT LIST` shows it, once it stands.
    info: Option<Arc<ClientInfo>>,
    out: Vec<u8>,
    is_sending: bool,
    is_paused: bool,
    /// Tells the answers to questions about names apart.
    lookup: u64,
}

impl LinkSocket {
    pub(super) fn is(&self, token: Token) -> bool {
        self.token == Some(token)
    }

    /// Begins to connect. [`Event::Connected`] is the answer.
    pub(super) fn open(&mut self, ring: &mut Ring, address: SocketAddr) -> io::Result<()> {
        self.token = Some(ring.connect(address, None)?);
        Ok(())
    }

    /// It stands: makes it known to all shards as a client with these flags, and begins to receive.
    pub(super) fn connected(&mut self, front: &mut Front, flags: u32) {
        if let Some(token) = self.token {
            self.info = front.register_link(token, flags);
            front.ring.start_recv(token);
        }
    }

    /// Whether clients know it by this id.
    pub(super) fn is_client(&self, id: ConnId) -> bool {
        self.info.as_ref().is_some_and(|info| info.conn == id)
    }

    /// Where it leads to.
    pub(super) fn peer(&self, ring: &Ring) -> Option<SocketAddr> {
        ring.socket(self.token?).and_then(sockets::peer_address)
    }

    /// So much arrived.
    pub(super) fn count_received(&self, len_bytes: usize, uptime_s: u32) {
        if let Some(info) = &self.info {
            info.net_in_bytes.add(len_bytes as u64);
            info.active_s.store(uptime_s, Ordering::Relaxed);
        }
    }

    /// A send ended.
    pub(super) fn sent(&mut self) {
        self.is_sending = false;
    }

    /// Adds to what is to be sent.
    pub(super) fn send(&mut self, bytes: &[u8]) {
        if self.token.is_some() {
            self.out.extend_from_slice(bytes);
        }
    }

    /// Sends what waits.
    pub(super) fn flush(&mut self, ring: &mut Ring, sent_bytes: &Counter) {
        if let Some(token) = self.token
            && !self.is_sending
            && !self.out.is_empty()
        {
            let bytes = std::mem::take(&mut self.out);
            sent_bytes.add(bytes.len() as u64);
            if let Some(info) = &self.info {
                info.net_out_bytes.add(bytes.len() as u64);
            }
            self.is_sending = ring.send(token, SendBuffer::with_pieces(bytes, Vec::new())).is_ok();
        }
    }

    /// Whether nothing more should be received for now.
    pub(super) fn pause(&mut self, ring: &mut Ring, is_paused: bool) {
        if let Some(token) = self.token
            && self.info.is_some()
            && is_paused != self.is_paused
        {
            self.is_paused = is_paused;
            if is_paused { ring.pause_recv(token) } else { ring.start_recv(token) }
        }
    }

    /// Closes it, at once.
    pub(super) fn close(&mut self, ring: &mut Ring, node: &Node) {
        if let Some(info) = self.info.take() {
            node.clients.remove(info.conn);
        }
        if let Some(token) = self.token.take() {
            ring.close(token);
        }
        self.lookup += 1;
        self.out.clear();
        self.is_sending = false;
        self.is_paused = false;
    }
}

/// The connection that an event is of, if it is one of those that lead to a master.
pub(super) fn token_of(event: &Event) -> Option<Token> {
    match event {
        Event::Connected { token, .. }
        | Event::Received { token, .. }
        | Event::Eof { token }
        | Event::RecvError { token, .. }
        | Event::Sent { token, .. }
        | Event::Closed { token } => Some(*token),
        _ => None,
    }
}

impl Engine {
    /// Opens the connection, after looking up the master's name if it has one.
    pub(super) fn connect_link(&mut self, target: &Target) {
        let socket = &mut self.front.following.as_mut().expect("on the home shard").socket;
        socket.close(&mut self.front.ring, &self.front.node);
        if let Ok(ip) = target.host.parse::<IpAddr>() {
            return self.connect_link_to(SocketAddr::new(ip, target.port));
        }
        // The system's resolver may take seconds.
        let (lookup, host, port) = (socket.lookup, target.host.clone(), target.port);
        let (node, shard) = (Arc::clone(&self.front.node), self.front.id);
        let look_up = move || {
            let found = (host.as_str(), port).to_socket_addrs().map_err(|error| error.to_string());
            let found = found.and_then(|mut all| all.next().ok_or_else(|| "no such host".to_owned()));
            node.order(shard, Order::LookedUp { lookup, found });
        };
        if let Err(error) = crate::background::spawn("braid-resolve", look_up) {
            self.link_closed(&error.to_string());
        }
    }

    /// The master's address is known.
    pub(super) fn looked_up(&mut self, lookup: u64, found: Result<SocketAddr, String>) {
        let is_awaited =
            self.front.following.as_ref().is_some_and(|following| {
                following.socket.lookup == lookup && following.socket.token.is_none()
            });
        match found {
            _ if !is_awaited => {}
            Ok(address) => self.connect_link_to(address),
            Err(error) => self.link_closed(&error),
        }
    }

    fn connect_link_to(&mut self, address: SocketAddr) {
        let following = self.front.following.as_mut().expect("on the home shard");
        if let Err(error) = following.socket.open(&mut self.front.ring, address) {
            log_warning!("Unable to connect to MASTER: {error}");
            self.link_closed(&error.to_string());
        }
    }

    fn link_closed(&mut self, why: &str) {
        let now_ms = self.front.now_ms();
        let following = self.front.following.as_mut().expect("on the home shard");
        following.socket.close(&mut self.front.ring, &self.front.node);
        following.machine.closed(why, now_ms);
    }

    /// Takes an event of the link's connection; gives back those of others.
    pub(super) fn link_event(&mut self, event: Event) -> Option<Event> {
        let Some(token) = token_of(&event) else { return Some(event) };
        let (now_ms, uptime_s) = (self.front.now_ms(), self.front.uptime_s());
        let Front { following, home, .. } = &mut self.front;
        let Some(following) = following.as_mut().filter(|following| following.socket.is(token)) else {
            return Some(event);
        };
        match event {
            Event::Connected { result: Ok(()), .. } => {
                following.machine.connected(home.as_ref().expect("on the home shard"), now_ms);
                let mut socket = std::mem::take(&mut following.socket);
                socket.connected(&mut self.front, flag::MASTER);
                self.front.following.as_mut().expect("on the home shard").socket = socket;
            }
            Event::Connected { result: Err(error), .. } | Event::RecvError { error, .. } => {
                self.link_closed(&error.to_string());
            }
            Event::Eof { .. } => self.link_closed("the master closed it"),
            Event::Received { data, .. } => {
                following.socket.count_received(data.len(), uptime_s);
                following.machine.received(&data, now_ms);
                self.front.public().counters.net_repl_in_bytes.add(data.len() as u64);
            }
            Event::Sent { result, .. } => {
                following.socket.sent();
                if let Err(error) = result {
                    self.link_closed(&error.to_string());
                }
            }
            Event::Closed { .. } => self.link_closed("it was closed"),
            _ => unreachable!("sorted out above"),
        }
        None
    }

    /// `CLIENT KILL` of the link. False: the connection is another.
    pub(super) fn kill_link(&mut self, id: ConnId) -> bool {
        let is_link = self.front.following.as_ref().is_some_and(|following| following.socket.is_client(id));
        if is_link {
            self.link_closed("it was killed");
        }
        is_link
    }
}

impl Front {
    /// Makes a connection to a master known to all shards as a client.
    fn register_link(&mut self, token: Token, flags: u32) -> Option<Arc<ClientInfo>> {
        let socket = self.ring.socket(token)?;
        let end = |address: Option<SocketAddr>| address.map_or(Endpoint::Unix, Endpoint::from);
        let (peer, local) = (end(sockets::peer_address(socket)), end(sockets::local_address(socket)));
        let fd = socket.as_raw_fd();
        let id = conn_id(self.id, self.next_conn_number(), token.slot());
        let client = self.node.next_client.fetch_add(1, Ordering::Relaxed);
        let info = Arc::new(ClientInfo::new(client, id, peer, local, fd, self.uptime_s()));
        info.flags.store(flags | flag::RECEIVING, Ordering::Relaxed);
        self.node.clients.add(Arc::clone(&info));
        Some(info)
    }
}
