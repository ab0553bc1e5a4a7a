//! The ring alone under load: answers `+PONG` for every "PING" it receives, to measure what a request costs before any
//! store is involved. `ring_ping PORT CPU [BUFFERS [BUFFER_LEN_BYTES]]`; measure with `redis-benchmark -t ping_mbulk`.

use std::net::{Ipv4Addr, TcpListener};

use braid_net::ring::{Event, Ring, RingConfig, SendBuffer, Token, check_support};
use glommio::{LocalExecutorBuilder, Placement};

#[derive(Default)]
struct Connection {
    replies: SendBuffer,
    is_sending: bool,
}

struct Server {
    ring: Ring,
    connections: Vec<Connection>,
    spare: Vec<SendBuffer>,
    dirty: Vec<Token>,
}

impl Server {
    fn handle(&mut self, event: Event) {
        match event {
            Event::Accepted { socket, .. } => {
                let stream = std::net::TcpStream::from(socket);
                stream.set_nodelay(true).expect("a connected socket");
                let token = self.ring.add(stream.into());
                if self.connections.len() <= token.slot() {
                    self.connections.resize_with(token.slot() + 1, Connection::default);
                }
                self.connections[token.slot()] = Connection::default();
                self.ring.start_recv(token);
            }
            Event::Received { token, data } => {
                let connection = &mut self.connections[token.slot()];
                if connection.replies.is_empty() {
                    connection.replies = self.spare.pop().unwrap_or_default();
                    self.dirty.push(token);
                }
                for window in data.windows(4) {
                    // redis-benchmark asks for the configuration first and accepts an error.
                    let reply: &[u8] = match window {
                        b"PING" => b"+PONG\r\n",
                        b"CONF" => b"-ERR unknown command\r\n",
                        _ => continue,
                    };
                    connection.replies.bytes.extend_from_slice(reply);
                }
            }
            Event::Sent { token, mut buffer, .. } => {
                buffer.clear();
                self.spare.push(buffer);
                self.connections[token.slot()].is_sending = false;
                self.dirty.push(token);
            }
            Event::Eof { token } | Event::RecvError { token, .. } => self.ring.close(token),
            Event::Closed { token } => self.connections[token.slot()] = Connection::default(),
            _ => {}
        }
    }

    fn send_replies(&mut self) {
        for token in self.dirty.drain(..) {
            let connection = &mut self.connections[token.slot()];
            if !connection.is_sending && !connection.replies.is_empty() {
                let replies = std::mem::take(&mut connection.replies);
                connection.is_sending = self.ring.send(token, replies).is_ok();
            }
        }
    }
}

fn main() {
    let arguments: Vec<usize> =
        std::env::args().skip(1).map(|text| text.parse().expect("numbers only")).collect();
    let [port, cpu, sizes @ ..] = &arguments[..] else { panic!("usage: ring_ping PORT CPU [BUFFERS [LEN]]") };
    let mut config = RingConfig::default();
    if let Some(buffers) = sizes.first() {
        config.recv_buffers = u16::try_from(*buffers).expect("at most 32768 buffers");
    }
    if let Some(len_bytes) = sizes.get(1) {
        config.recv_buffer_len_bytes = u32::try_from(*len_bytes).expect("a buffer length");
    }
    check_support().unwrap_or_else(|reason| panic!("{reason}"));
    let port = u16::try_from(*port).expect("a port number");
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).expect("a free port");
    let executor = LocalExecutorBuilder::new(Placement::Fixed(*cpu))
        .io_memory(64 << 10)
        .ring_depth(64)
        .make()
        .expect("an executor starts");
    executor.run(async move {
        let mut ring = Ring::new(&config).expect("a ring");
        ring.accept(listener.into());
        let mut server = Server { ring, connections: Vec::new(), spare: Vec::new(), dirty: Vec::new() };
        loop {
            server.ring.poll().expect("the ring works");
            while let Some(event) = server.ring.next() {
                server.handle(event);
            }
            server.send_replies();
            server.ring.wait(None, || false).expect("the ring works");
        }
    });
}
