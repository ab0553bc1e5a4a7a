//! The connection to the master, on the home shard's ring: connecting, what waits to be sent, and how clients see it.

use super::follower::Follower;
use super::{Engine, Front};
use crate::log_warning;
use crate::node::Node;
use crate::ring::{Event, Ring, SendBuffer, Token};
use crate::session::clients::{ClientInfo, Endpoint, conn_id, flag};
use crate::session::control::Order;
use crate::startup::sockets;
use braid_shards::ConnId;
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
    pub(super) fn flush(&mut self, ring: &mut Ring) {
        if let Some(token) = self.token
            && !self.is_sending
            && !self.out.is_empty()
        {
            let bytes = std::mem::take(&mut self.out);
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
    pub(super) fn connect_link(&mut self, follower: &mut Follower) {
        follower.socket.close(&mut self.front.ring, &self.front.node);
        let target = follower.link.as_ref().expect("it asked for a connection").target();
        if let Ok(ip) = target.host.parse::<IpAddr>() {
            let address = SocketAddr::new(ip, target.port);
            return self.connect_link_to(follower, address);
        }
        // The system's resolver may take seconds.
        let (lookup, host, port) = (follower.socket.lookup, target.host.clone(), target.port);
        let (node, shard) = (Arc::clone(&self.front.node), self.front.id);
        let look_up = move || {
            let found = (host.as_str(), port).to_socket_addrs().map_err(|error| error.to_string());
            let found = found.and_then(|mut all| all.next().ok_or_else(|| "no such host".to_owned()));
            node.order(shard, Order::LookedUp { lookup, found });
        };
        if let Err(error) = std::thread::Builder::new().name("braid-resolve".into()).spawn(look_up) {
            self.link_closed(follower, &error.to_string());
        }
    }

    /// The master's address is known.
    pub(super) fn looked_up(&mut self, lookup: u64, found: Result<SocketAddr, String>) {
        let Some(mut follower) = self.front.follower.take() else { return };
        if follower.socket.lookup == lookup && follower.socket.token.is_none() {
            match found {
                Ok(address) => self.connect_link_to(&mut follower, address),
                Err(error) => self.link_closed(&mut follower, &error),
            }
        }
        self.front.follower = Some(follower);
    }

    fn connect_link_to(&mut self, follower: &mut Follower, address: SocketAddr) {
        if let Err(error) = follower.socket.open(&mut self.front.ring, address) {
            log_warning!("Unable to connect to MASTER: {error}");
            self.link_closed(follower, &error.to_string());
        }
    }

    fn link_closed(&mut self, follower: &mut Follower, why: &str) {
        follower.socket.close(&mut self.front.ring, &self.front.node);
        let now_ms = self.front.now_ms();
        if let Some(link) = &mut follower.link {
            link.closed(why, now_ms);
        }
    }

    /// Takes an event of the link's connection; gives back those of others.
    pub(super) fn link_event(&mut self, event: Event) -> Option<Event> {
        let Some(token) = token_of(&event) else { return Some(event) };
        if !self.front.follower.as_ref().is_some_and(|follower| follower.socket.is(token)) {
            return Some(event);
        }
        let mut follower = self.front.follower.take().expect("just seen");
        let now_ms = self.front.now_ms();
        match event {
            Event::Connected { result: Ok(()), .. } => {
                let position = self.front.home.as_ref().and_then(|home| home.position());
                self.front.register_link(&mut follower.socket, flag::MASTER);
                if let Some(link) = &mut follower.link {
                    link.connected(position, now_ms);
                }
            }
            Event::Connected { result: Err(error), .. } | Event::RecvError { error, .. } => {
                self.link_closed(&mut follower, &error.to_string());
            }
            Event::Eof { .. } => self.link_closed(&mut follower, "the master closed it"),
            Event::Received { data, .. } => {
                follower.socket.count_received(data.len(), self.front.uptime_s());
                if let Some(link) = &mut follower.link {
                    link.received(&data, now_ms);
                }
            }
            Event::Sent { result, .. } => {
                follower.socket.sent();
                if let Err(error) = result {
                    self.link_closed(&mut follower, &error.to_string());
                }
            }
            Event::Closed { .. } => self.link_closed(&mut follower, "it was closed"),
            _ => unreachable!("sorted out above"),
        }
        self.front.follower = Some(follower);
        None
    }

    /// `CLIENT KILL` of the link. False: the connection is another.
    pub(super) fn kill_link(&mut self, id: ConnId) -> bool {
        let Some(mut follower) = self.front.follower.take() else { return false };
        let is_link = follower.socket.is_client(id);
        if is_link {
            self.link_closed(&mut follower, "it was killed");
        }
        self.front.follower = Some(follower);
        is_link
    }
}

impl Front {
    /// The connection stands: makes it known to all shards as a client with these flags, and begins to receive.
    pub(super) fn register_link(&mut self, link: &mut LinkSocket, flags: u32) {
        let Some(token) = link.token else { return };
        let Some(socket) = self.ring.socket(token) else { return };
        let end = |address: Option<SocketAddr>| address.map_or(Endpoint::Unix, Endpoint::from);
        let (peer, local) = (end(sockets::peer_address(socket)), end(sockets::local_address(socket)));
        let fd = socket.as_raw_fd();
        let id = conn_id(self.id, self.next_conn_number(), token.slot());
        let client = self.node.next_client.fetch_add(1, Ordering::Relaxed);
        let info = Arc::new(ClientInfo::new(client, id, peer, local, fd, self.uptime_s()));
        info.flags.store(flags | flag::RECEIVING, Ordering::Relaxed);
        self.node.clients.add(Arc::clone(&info));
        link.info = Some(info);
        self.ring.start_recv(token);
    }
}
