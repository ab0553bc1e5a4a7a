//! The replica: a link, the connections for parts, and who loads what they bring.

use crate::{Keys, Network};
use braid_core::rdb::{Decoder, Event, KeyHeader, Limits, Stop, load_value};
use braid_replication::link::part::PartLink;
use braid_replication::link::{Link, LinkAction, LinkRules, Target};
use braid_replication::parts::Token;
use std::collections::BTreeMap;

/// Reads an RDB stream.
struct Reader {
    decoder: Decoder,
    header: Option<Box<KeyHeader>>,
    keys: Keys,
    is_read: bool,
}

impl Reader {
    fn new() -> Self {
        Self {
            decoder: Decoder::new(Limits::default(), true),
            header: None,
            keys: Keys::new(),
            is_read: false,
        }
    }

    /// How many of these bytes are the stream's.
    fn feed(&mut self, bytes: &[u8]) -> Result<usize, String> {
        self.decoder.feed(bytes);
        match self.advance() {
            Ok(()) => Ok(bytes.len() - self.decoder.take_rest().len()),
            Err(Stop::NeedMore(_)) => Ok(bytes.len()),
            Err(Stop::Fault(fault)) => Err(fault.to_string()),
        }
    }

    fn advance(&mut self) -> Result<(), Stop> {
        loop {
            if let Some(header) = &self.header {
                let mut cursor = self.decoder.cursor();
                load_value(header.kind, self.decoder.version(), &mut cursor, &Default::default())?;
                let used_bytes = cursor.used_bytes();
                self.decoder.consume(used_bytes);
                let header = self.header.take().expect("just seen");
                // What was damaged may be no text; its checksum will tell.
                self.keys.insert(String::from_utf8_lossy(&header.key).into_owned());
            }
            match self.decoder.next_event()? {
                Event::Key(header) => self.header = Some(Box::new(header)),
                Event::End => {
                    self.is_read = true;
                    return Ok(());
                }
                _ => {}
            }
        }
    }
}

struct Part {
    token: Token,
    link: PartLink,
    reader: Reader,
    is_over: bool,
}

pub struct Replica {
    link: Link,
    wire: Option<u64>,
    main: Option<Reader>,
    parts: BTreeMap<u64, Part>,
    /// Keys of the parts that were loaded, of the snapshot under way.
    loaded: Keys,
    /// The dataset was put in place since this was asked.
    is_in_step: bool,
}

impl Replica {
    pub fn new(connections: usize, now_ms: u64) -> Self {
        let target = Target { host: "master".into(), port: 1 };
        let rules = LinkRules { timeout_ms: 5000, databases: 16, connections, ..LinkRules::default() };
        Self {
            link: Link::new(target, LinkRules { version: "8.2.0".into(), ..rules }, now_ms),
            wire: None,
            main: None,
            parts: BTreeMap::new(),
            loaded: Keys::new(),
            is_in_step: false,
        }
    }

    /// Whether the link is up behind a full sync.
    pub fn is_in_step(&self) -> bool {
        self.is_in_step && self.link.is_up()
    }

    /// Whether this connection carries a part.
    pub fn is_part(&self, id: u64) -> bool {
        self.parts.contains_key(&id)
    }

    pub fn start_over(&mut self, now_ms: u64) {
        self.is_in_step = false;
        self.link.distrust("another", now_ms);
    }

    /// One round.
    pub fn work(&mut self, network: &mut Network, cuts: &BTreeMap<u64, Keys>, now_ms: u64) {
        if self.link.next_tick_ms().is_some_and(|at_ms| at_ms <= now_ms) {
            self.link.tick(0, now_ms);
        }
        self.load_main(now_ms);
        for (wire, part) in self.parts.iter_mut().filter(|(_, part)| !part.is_over) {
            let output = part.link.take_output();
            if let Some(wire) = network.wire(*wire) {
                wire.up.extend(output);
            }
            let outcome = part.load(now_ms);
            let (token, index) = (part.token, part.link.index());
            if let Err(why) = outcome {
                part.is_over = true;
                self.link.part_failed(token, index, &why, now_ms);
                network.cut(*wire);
            } else if part.link.timeout_at_ms().is_some_and(|at_ms| at_ms <= now_ms) {
                part.is_over = true;
                self.link.part_failed(token, index, part.link.timeout_text(), now_ms);
                network.cut(*wire);
            } else if part.link.is_whole() {
                part.is_over = true;
                let len = self.loaded.len() + part.reader.keys.len();
                self.loaded.append(&mut part.reader.keys);
                assert_eq!(self.loaded.len(), len, "no key is in two parts");
                // If another part failed in this round it means nothing any more.
                self.link.part_loaded(token, index, part.link.read_bytes(), now_ms);
            } else {
                self.link.part_progress(token, index, part.link.read_bytes(), now_ms);
            }
        }
        for action in self.link.take_actions() {
            self.act(action, network, cuts, now_ms);
        }
    }

    fn load_main(&mut self, now_ms: u64) {
        let Some(reader) = self.main.as_mut().filter(|reader| !reader.is_read) else { return };
        let used = reader.feed(self.link.payload()).expect("nothing is damaged on the first connection");
        self.link.consume_payload(used, reader.is_read, now_ms);
    }

    fn act(&mut self, action: LinkAction, network: &mut Network, cuts: &BTreeMap<u64, Keys>, now_ms: u64) {
        match action {
            LinkAction::Connect => {
                self.wire = Some(network.open());
                self.link.connected(None, now_ms);
            }
            LinkAction::Send(bytes) => {
                if let Some(wire) = self.wire.and_then(|id| network.wire(id)) {
                    wire.up.extend(bytes);
                }
            }
            LinkAction::Close => {
                if let Some(id) = self.wire.take() {
                    network.cut(id);
                }
            }
            LinkAction::BeginLoading => {
                self.main = Some(Reader::new());
                self.loaded.clear();
            }
            LinkAction::AbandonLoading => self.main = None,
            LinkAction::OpenParts { token, count } => {
                assert!(self.parts.is_empty());
                for index in 0..count {
                    let rules = LinkRules { timeout_ms: 5000, ..LinkRules::default() };
                    let mut link = PartLink::new(token, index, rules, now_ms);
                    link.connected(now_ms);
                    let part = Part { token, link, reader: Reader::new(), is_over: false };
                    self.parts.insert(network.open(), part);
                }
            }
            LinkAction::LoadParts { .. } => {
                self.parts.values_mut().for_each(|part| part.link.begin_load(now_ms));
            }
            LinkAction::CloseParts => {
                for (id, _) in std::mem::take(&mut self.parts) {
                    network.cut(id);
                }
            }
            LinkAction::Swap { offset, .. } => {
                let mut keys = self.main.take().expect("it was loaded").keys;
                assert!(keys.is_empty() || self.loaded.is_empty(), "in one piece, or in parts");
                keys.append(&mut self.loaded);
                assert_eq!(&keys, &cuts[&offset], "the dataset at offset {offset}");
                self.link.swapped(Ok(0), now_ms);
                self.is_in_step = true;
            }
            LinkAction::Continue { .. } | LinkAction::FailoverRefused(_) => panic!("nobody asked for it"),
            LinkAction::Notice(_) | LinkAction::Warning(_) => {}
        }
    }

    pub fn received(&mut self, id: u64, bytes: &[u8], now_ms: u64) {
        if bytes.is_empty() {
            return;
        }
        if self.wire == Some(id) {
            self.link.received(bytes, now_ms);
        } else if let Some(part) = self.parts.get_mut(&id).filter(|part| !part.is_over)
            && let Err(why) = part.link.received(bytes, now_ms)
        {
            part.is_over = true;
            self.link.part_failed(part.token, part.link.index(), &why, now_ms);
        }
    }

    pub fn closed(&mut self, id: u64, now_ms: u64) {
        if self.wire == Some(id) {
            self.wire = None;
            self.link.closed("it broke", now_ms);
        } else if let Some(part) = self.parts.get_mut(&id)
            && !std::mem::replace(&mut part.is_over, true)
        {
            self.link.part_failed(part.token, part.link.index(), "it broke", now_ms);
        }
    }
}

impl Part {
    fn load(&mut self, now_ms: u64) -> Result<(), String> {
        if self.link.payload().is_empty() {
            return Ok(());
        }
        let used = self.reader.feed(self.link.payload())?;
        self.link.consume_payload(used, self.reader.is_read, now_ms)
    }
}
