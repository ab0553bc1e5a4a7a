//! The handshake with a master: who we are, and what we want of its stream.

use super::{ACK_PERIOD_MS, Link, LinkAction, LinkRules, Position, State};
use crate::ids::ReplId;
use crate::parts::CAPABILITY;

/// The replies of the handshake, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Pong,
    Auth,
    Port,
    Address,
    Capabilities,
    Version,
    Psync,
}

impl Step {
    fn option(self) -> &'static str {
        match self {
            Step::Port => "listening-port",
            Step::Address => "ip-address",
            Step::Capabilities => "capa",
            Step::Version => "version",
            Step::Pong | Step::Auth | Step::Psync => "",
        }
    }
}

impl Link {
    pub(super) fn handshake_reply(
        &mut self,
        step: Step,
        line: &str,
        position: Option<Position>,
        now_ms: u64,
    ) {
        let is_error = line.starts_with('-');
        match step {
            Step::Pong => {
                // A master that wants to know who we are first is alive, too.
                let is_fine = line.starts_with('+')
                    || ["-NOAUTH", "-NOPERM", "-ERR operation not permitted"]
                        .iter()
                        .any(|fine| line.starts_with(fine));
                if !is_fine {
                    return self.fail(&format!("Error reply to PING from master: '{line}'"), now_ms);
                }
                self.actions
                    .push(LinkAction::Notice("Master replied to PING, replication can continue...".into()));
                self.introduce();
            }
            Step::Auth if is_error => {
                return self.fail(&format!("Unable to AUTH to MASTER: {line}"), now_ms);
            }
            // The master may be older than these options.
            Step::Port | Step::Address | Step::Capabilities | Step::Version if is_error => {
                self.actions.push(LinkAction::Notice(format!(
                    "(Non critical) Master does not understand REPLCONF {}: {line}",
                    step.option()
                )));
            }
            _ => {}
        }
        let step = self.next_step(step);
        self.state = State::Handshake { step, position };
        // A master takes it only when it owes no other answer.
        if step == Step::Psync {
            self.ask(position);
        }
    }

    /// The step whose reply comes behind that of `step`.
    fn next_step(&self, step: Step) -> Step {
        match step {
            Step::Pong if !self.rules.password.is_empty() => Step::Auth,
            Step::Pong | Step::Auth => Step::Port,
            Step::Port if !self.rules.announced_ip.is_empty() => Step::Address,
            Step::Port | Step::Address => Step::Capabilities,
            Step::Capabilities => Step::Version,
            Step::Version | Step::Psync => Step::Psync,
        }
    }

    /// Says who we are.
    fn introduce(&mut self) {
        let rules = self.rules.clone();
        let auth = rules.auth_words();
        if !auth.is_empty() {
            self.send(&auth);
        }
        let LinkRules { listening_port, announced_ip, version, connections, .. } = &rules;
        self.send(&[b"REPLCONF", b"listening-port", listening_port.to_string().as_bytes()]);
        if !announced_ip.is_empty() {
            self.send(&[b"REPLCONF", b"ip-address", announced_ip.as_bytes()]);
        }
        let mut capabilities: Vec<&[u8]> = vec![b"REPLCONF", b"capa", b"eof", b"capa", b"psync2"];
        let parts = format!("{CAPABILITY}{connections}");
        if *connections > 1 {
            capabilities.extend([b"capa".as_slice(), parts.as_bytes()]);
        }
        self.send(&capabilities);
        self.send(&[b"REPLCONF", b"version", version.as_bytes()]);
    }

    /// Says what we want.
    fn ask(&mut self, position: Option<Position>) {
        match position {
            Some(Position { id, offset, .. }) => {
                let next_byte = (offset + 1).to_string();
                self.actions.push(LinkAction::Notice(format!(
                    "Trying a partial resynchronization (request {id}:{next_byte})."
                )));
                let mut words = vec![b"PSYNC".as_slice(), id.as_str().as_bytes(), next_byte.as_bytes()];
                if self.is_failover {
                    words.push(b"FAILOVER");
                }
                self.send(&words);
            }
            None => {
                self.actions.push(LinkAction::Notice(
                    "Partial resynchronization not possible (no cached master)".into(),
                ));
                self.send(&[b"PSYNC", b"?", b"-1"]);
            }
        }
    }

    pub(super) fn psync_reply(&mut self, line: &str, position: Option<Position>, now_ms: u64) {
        let mut words = line.split(' ');
        let kind = words.next().unwrap_or_default();
        if self.is_failover && kind != "+CONTINUE" {
            self.is_failover = false;
            self.actions.push(LinkAction::FailoverRefused(line.to_owned()));
            return self.fail(&format!("Failover target rejected psync request: {line}"), now_ms);
        }
        match kind {
            "+SYNCPARTS" => self.offered_parts(line, now_ms),
            "+FULLRESYNC" => {
                let id = words.next().and_then(|word| ReplId::parse(word.as_bytes()));
                // As everywhere on the wire an offset is a signed number; beyond that there is no room for a stream.
                let offset = words.next().and_then(|word| word.parse::<i64>().ok());
                let offset = offset.and_then(|offset| u64::try_from(offset).ok());
                let (Some(id), Some(offset)) = (id, offset) else {
                    // What the next attempt would claim to have is no longer known to be on the master's mind.
                    return self
                        .distrust(&format!("Master replied with wrong +FULLRESYNC syntax: {line}"), now_ms);
                };
                self.actions.push(LinkAction::Notice(format!("Full resync from master: {id}:{offset}")));
                self.state = State::Header { id, offset };
            }
            "+CONTINUE" => {
                let Some(position) = position else {
                    return self.fail("Master continues a stream that was not asked for", now_ms);
                };
                let id = match words.next() {
                    None => position.id,
                    Some(word) => match ReplId::parse(word.as_bytes()) {
                        Some(id) => id,
                        None => {
                            return self.fail(&format!("Master continues under a faulty id: {line}"), now_ms);
                        }
                    },
                };
                self.is_failover = false;
                self.close_parts();
                self.actions
                    .push(LinkAction::Notice("Successful partial resynchronization with master.".into()));
                if id != position.id {
                    self.actions.push(LinkAction::Notice(format!("Master replication ID changed to {id}")));
                }
                self.actions.push(LinkAction::Continue { id });
                self.begin_stream(position.offset, position.db, now_ms);
                // What the connection before brought may not be applied yet: the next tick tells what is.
                self.last_sent_ms = now_ms.saturating_sub(ACK_PERIOD_MS);
            }
            "-NOMASTERLINK" | "-LOADING" => {
                self.fail(
                    &format!("Master is currently unable to PSYNC but should be in the future: {line}"),
                    now_ms,
                );
            }
            _ => self.fail(&format!("Unexpected reply to PSYNC from master: {line}"), now_ms),
        }
    }
}
