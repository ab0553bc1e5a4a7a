//! Connections to the master that bring a part of its snapshot, on the shard that reads it: each with a loader of its own, which
//! sends the keys to their owners.

use super::{HOME, PartMsg, Token};
use crate::engine::follower::load_rules;
use crate::engine::link_socket::{LinkSocket, token_of};
use crate::engine::{Engine, Front};
use crate::log_warning;
use crate::ring::Event;
use crate::session::clients::flag;
use braid_replication::link::LinkRules;
use braid_replication::link::part::PartLink;
use braid_replication::loader::{FEED_BYTES, Loader};
use braid_replication::loading::OWN_STREAM;
use braid_shards::{ConnId, LoadFault, ShardId};
use std::net::SocketAddr;

/// How much is loaded between two words to the home about it.
const PROGRESS_BYTES: u64 = 1 << 20;

/// One connection.
struct Part {
    token: Token,
    link: PartLink,
    socket: LinkSocket,
    /// The load that it is for, once that has begun.
    loading: Option<(u64, Loader)>,
    /// What an owner of keys found wrong.
    fault: Option<String>,
    told_bytes: u64,
    /// It is loaded, or has failed: the home knows.
    is_over: bool,
}

/// The shard's state for this file.
#[derive(Default)]
pub struct Receiving {
    parts: Vec<Part>,
}

impl Receiving {
    pub(super) fn next_tick_ms(&self) -> Option<u64> {
        let going = self.parts.iter().filter(|part| !part.is_over);
        going.filter_map(|part| part.link.timeout_at_ms()).min()
    }
}

/// The number of a part's stream among those that a dataset is loaded from.
fn stream_of(part: usize) -> u16 {
    OWN_STREAM + 1 + part as u16
}

impl Front {
    /// Home: the master offers its snapshot in so many parts.
    pub(in crate::engine) fn open_parts(
        &mut self,
        token: Token,
        count: usize,
        address: Option<SocketAddr>,
        rules: &LinkRules,
    ) {
        for part in 0..count {
            let Some(address) = address else {
                let why = "the link has no address".to_owned();
                self.parts.send(HOME, PartMsg::Failed { token, part, why });
                continue;
            };
            let to = (part % self.shards()) as ShardId;
            self.parts.send(to, PartMsg::Open { token, part, address, rules: Box::new(rules.clone()) });
        }
    }
}

impl Engine {
    pub(super) fn close_parts(&mut self) {
        for mut part in std::mem::take(&mut self.front.parts.receiving.parts) {
            part.socket.close(&mut self.front.ring, &self.front.node);
        }
    }

    pub(super) fn open_part(&mut self, token: Token, part: usize, address: SocketAddr, rules: LinkRules) {
        let mut opened = Part {
            token,
            link: PartLink::new(token, part, rules, self.front.now_ms()),
            socket: LinkSocket::default(),
            loading: None,
            fault: None,
            told_bytes: 0,
            is_over: false,
        };
        let outcome = opened.socket.open(&mut self.front.ring, address);
        self.front.parts.receiving.parts.push(opened);
        if let Err(error) = outcome {
            let at = self.front.parts.receiving.parts.len() - 1;
            self.part_failed(at, &error.to_string());
        }
    }

    /// Nothing will come of one of this shard's parts.
    fn part_failed(&mut self, at: usize, why: &str) {
        let part = &mut self.front.parts.receiving.parts[at];
        part.socket.close(&mut self.front.ring, &self.front.node);
        part.loading = None;
        if std::mem::replace(&mut part.is_over, true) {
            return;
        }
        let (token, part) = (part.token, part.link.index());
        log_warning!("Data connection {part} to the master failed: {why}");
        self.tell_home(PartMsg::Failed { token, part, why: why.to_owned() });
    }

    /// Takes an event of one of these connections; gives back those of others.
    pub(in crate::engine) fn part_event(&mut self, event: Event) -> Option<Event> {
        if self.front.parts.receiving.parts.is_empty() {
            return Some(event);
        }
        let Some(socket) = token_of(&event) else { return Some(event) };
        let its = self.front.parts.receiving.parts.iter().position(|part| part.socket.is(socket));
        let Some(at) = its else { return Some(event) };
        let (now_ms, uptime_s) = (self.front.now_ms(), self.front.uptime_s());
        let part = &mut self.front.parts.receiving.parts[at];
        let outcome = match event {
            Event::Connected { result: Ok(()), .. } => {
                part.link.connected(now_ms);
                let mut socket = std::mem::take(&mut part.socket);
                socket.connected(&mut self.front, flag::MASTER | flag::PART);
                self.front.parts.receiving.parts[at].socket = socket;
                Ok(())
            }
            Event::Connected { result: Err(error), .. } | Event::RecvError { error, .. } => {
                Err(error.to_string())
            }
            Event::Eof { .. } | Event::Closed { .. } => Err("it was closed".to_owned()),
            Event::Received { data, .. } => {
                part.socket.count_received(data.len(), uptime_s);
                let outcome = part.link.received(&data, now_ms);
                self.front.public().counters.net_repl_in_bytes.add(data.len() as u64);
                outcome
            }
            Event::Sent { result, .. } => {
                part.socket.sent();
                result.map_err(|error| error.to_string())
            }
            _ => unreachable!("a connection has no others"),
        };
        if let Err(why) = outcome {
            self.part_failed(at, &why);
        }
        None
    }

    /// One round's work for this shard's parts. Returns whether there is more to do at once.
    pub(super) fn receive_parts(&mut self) -> bool {
        let mut worked = false;
        let count = self.front.parts.receiving.parts.len();
        for at in 0..count {
            match self.receive_part(at, FEED_BYTES / count) {
                Ok(more) => worked |= more,
                Err(why) => self.part_failed(at, &why),
            }
        }
        worked
    }

    fn receive_part(&mut self, at: usize, feed_bytes: usize) -> Result<bool, String> {
        let now_ms = self.front.now_ms();
        let Front { parts, ring, node, id, .. } = &mut self.front;
        let Part { token, link, socket, loading, fault, told_bytes, is_over } =
            &mut parts.receiving.parts[at];
        if *is_over {
            return Ok(false);
        }
        if let Some(fault) = fault.take() {
            return Err(fault);
        }
        if link.timeout_at_ms().is_some_and(|at_ms| at_ms <= now_ms) {
            return Err(link.timeout_text().to_owned());
        }
        let (mut worked, mut news) = (false, None);
        if let Some((load, loader)) = loading {
            let fed = link.payload().len().min(feed_bytes);
            if fed > 0 && loader.wants_more() {
                worked = true;
                let used = loader.feed(&link.payload()[..fed]).map_err(|fault| fault.to_string())?;
                link.consume_payload(used, loader.is_read(), now_ms)?;
            }
            let (token, part, read_bytes) = (*token, link.index(), link.read_bytes());
            for (to, batch) in loader.take_batches() {
                self.shard.send_load_batch(*load, stream_of(part), to, batch);
            }
            if link.is_whole() && loader.is_settled() {
                *is_over = true;
                let keys = loader.keys();
                news = Some(PartMsg::Loaded { token, part, len_bytes: read_bytes, keys });
            } else if read_bytes - *told_bytes >= PROGRESS_BYTES {
                *told_bytes = read_bytes;
                news = Some(PartMsg::Progress { token, part, read_bytes });
            }
        }
        socket.send(&link.take_output());
        socket.flush(ring, &node.statistics.shards[usize::from(*id)].counters.net_out_bytes);
        socket.pause(ring, link.is_full());
        if let Some(news) = news {
            parts.send(HOME, news);
        }
        Ok(worked)
    }

    /// Home: news of a part.
    pub(super) fn part_news(&mut self, news: PartMsg) {
        let now_ms = self.front.now_ms();
        let follower = self.front.follower();
        match news {
            PartMsg::Progress { token, part, read_bytes } => {
                follower.part_progress(token, part, read_bytes, now_ms);
            }
            PartMsg::Loaded { token, part, len_bytes, keys } => {
                follower.part_loaded(token, part, len_bytes, keys, now_ms);
            }
            PartMsg::Failed { token, part, why } => follower.part_failed(token, part, &why, now_ms),
            _ => unreachable!("news are of these kinds"),
        }
    }

    /// `CLIENT KILL` of a connection that brings a part. False: it is another.
    pub(in crate::engine) fn kill_part(&mut self, id: ConnId) -> bool {
        let its = self.front.parts.receiving.parts.iter().position(|part| part.socket.is_client(id));
        if let Some(at) = its {
            self.part_failed(at, "it was killed");
        }
        its.is_some()
    }
}

impl Front {
    /// What this shard's parts bring may be loaded.
    pub(super) fn load_parts(&mut self, token: Token, load: u64, count: usize) {
        let now_ms = self.now_ms();
        let rules = load_rules(&self.config);
        for part in self.parts.receiving.parts.iter_mut().filter(|part| part.token == token && !part.is_over)
        {
            part.link.begin_load(now_ms);
            part.loading = Some((load, rules.loader(self.node.map).sharing_room(count)));
        }
    }

    /// A shard decoded a batch of one of this shard's parts.
    pub(in crate::engine) fn part_batch_answered(
        &mut self,
        load: u64,
        stream: u16,
        len_bytes: usize,
        outcome: Result<u64, LoadFault>,
    ) {
        let mut parts = self.parts.receiving.parts.iter_mut();
        let is_its = |part: &&mut Part| {
            let is_loading = part.loading.as_ref().is_some_and(|(of, _)| *of == load);
            is_loading && stream_of(part.link.index()) == stream
        };
        let Some(part) = parts.find(is_its) else { return };
        let Some((_, loader)) = &mut part.loading else { return };
        if let Err(fault) = loader.decoded(len_bytes, outcome) {
            part.fault = Some(fault.to_string());
        }
    }
}
