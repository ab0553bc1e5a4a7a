//! A snapshot in parts ([`crate::parts`]), on the link: further connections are asked for when the master offers them, and what
//! they bring is a dataset when the master's last word agrees with it.

use super::{Framing, Gathering, Link, LinkAction, State};
use crate::framing::EOF_MARK_BYTES;
use crate::ids::ReplId;
use crate::parts::{Token, parse_end, parse_offer};

impl Link {
    /// The master offers its snapshot in parts, should there be one.
    pub(super) fn offered_parts(&mut self, line: &str, now_ms: u64) {
        let offer = parse_offer(line).filter(|(_, count)| *count <= self.rules.connections);
        match offer {
            Some((token, count)) if self.gathering.is_none() => {
                self.gathering = Some(Gathering::new(token, count));
                self.actions.push(LinkAction::OpenParts { token, count });
            }
            _ => self.fail(&format!("Master offers parts that were not asked for: {line}"), now_ms),
        }
    }

    /// The snapshot comes in parts, behind what is said about it here.
    pub(super) fn parts_header(&mut self, mark: [u8; EOF_MARK_BYTES], id: ReplId, offset: u64, now_ms: u64) {
        let Some(gathering) = &self.gathering else {
            return self.fail("Master sends its snapshot in parts, which it has not offered", now_ms);
        };
        let (token, count) = (gathering.token(), gathering.count());
        self.actions.push(LinkAction::Notice(format!(
            "MASTER <-> REPLICA sync: receiving streamed RDB from master on {count} connections"
        )));
        self.actions.push(LinkAction::BeginLoading);
        self.actions.push(LinkAction::LoadParts { token, count });
        self.last_sent_ms = now_ms;
        let framing = Framing::Mark(mark);
        self.state = State::Payload { id, offset, framing, in_parts: true, total: 0, read: 0 };
        self.check_parts(now_ms);
    }

    /// The master's last word about its parts.
    pub(super) fn parts_end(&mut self, line: &str, now_ms: u64) {
        let (State::Parts { is_told, .. }, Some(gathering), Some(lens_bytes)) =
            (&mut self.state, &mut self.gathering, parse_end(line))
        else {
            let line = line.to_owned();
            return self.fail(&format!("Master ends its snapshot with '{line}'"), now_ms);
        };
        *is_told = true;
        gathering.announce(lens_bytes);
        self.check_parts(now_ms);
    }

    /// So many bytes of a part are loaded.
    pub fn part_progress(&mut self, token: Token, index: usize, read_bytes: u64, now_ms: u64) {
        if let Some(gathering) = self.gathering.as_mut().filter(|gathering| gathering.token() == token) {
            self.last_io_ms = now_ms;
            gathering.progress(index, read_bytes);
        }
    }

    /// A part of this length is loaded. False: it is of an attempt before.
    pub fn part_loaded(&mut self, token: Token, index: usize, len_bytes: u64, now_ms: u64) -> bool {
        let Some(gathering) = self.gathering.as_mut().filter(|gathering| gathering.token() == token) else {
            return false;
        };
        self.last_io_ms = now_ms;
        gathering.loaded(index, len_bytes);
        self.check_parts(now_ms);
        true
    }

    /// A part's connection failed. Before the snapshot begins the master is to notice, and to send it on this one.
    pub fn part_failed(&mut self, token: Token, index: usize, why: &str, now_ms: u64) {
        if let Some(gathering) = self.gathering.as_mut().filter(|gathering| gathering.token() == token) {
            gathering.failed(index, why);
            self.check_parts(now_ms);
        }
    }

    /// Looks whether the parts are a dataset, or never will be.
    fn check_parts(&mut self, now_ms: u64) {
        let in_parts = match self.state {
            State::Payload { in_parts, .. } | State::Trailer { in_parts, .. } => in_parts,
            State::Parts { .. } => true,
            _ => false,
        };
        let Some(gathering) = self.gathering.as_ref().filter(|_| in_parts) else { return };
        match (gathering.is_whole(), &self.state) {
            (Ok(true), &State::Parts { id, offset, .. }) => {
                self.close_parts();
                self.begin_swap(id, offset);
            }
            (Ok(_), _) => {}
            (Err(why), _) => self.fail(&format!("MASTER <-> REPLICA sync failed: {why}"), now_ms),
        }
    }

    /// Further connections are not needed, or not any more.
    pub(super) fn close_parts(&mut self) {
        if self.gathering.take().is_some() {
            self.actions.push(LinkAction::CloseParts);
        }
    }
}
