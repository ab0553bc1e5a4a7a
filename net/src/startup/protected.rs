//! Protected mode: a server without a password that anyone can reach answers only its own host.

use std::net::IpAddr;

/// What a refused client is told, as an error reply without its end of line. The first sentence is Redis's, because
/// clients and operators look for it.
pub const DENIED: &str = "-DENIED Redis is running in protected mode because protected mode is enabled and no password \
    is set for the default user. In this mode connections are only accepted from the loopback interface. To connect from \
    other hosts, do one of these: 1) set a password with the requirepass directive, or from this host with 'CONFIG SET \
    requirepass'; 2) if no stranger can reach this port, switch protected mode off: 'protected-mode no' in the \
    configuration file, '--protected-mode no' on the command line, or 'CONFIG SET protected-mode no' from this host. \
    'CONFIG REWRITE' keeps such a change.";

/// Whether a connection must be refused. `peer` is `None` for a Unix socket.
pub fn refuses(protected_mode: bool, requirepass: &str, peer: Option<IpAddr>) -> bool {
    protected_mode && requirepass.is_empty() && !is_local(peer)
}

/// Whether a peer is on this host: a Unix socket or a loopback address, also in its IPv6 form.
pub fn is_local(peer: Option<IpAddr>) -> bool {
    peer.is_none_or(|address| address.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_host_is_served_without_a_password() {
        let peer = |text: &str| Some(text.parse::<IpAddr>().unwrap());
        for local in [None, peer("127.0.0.1"), peer("127.9.9.9"), peer("::1"), peer("::ffff:127.0.0.1")] {
            assert!(!refuses(true, "", local), "{local:?}");
        }
        for remote in [peer("10.0.0.1"), peer("::ffff:10.0.0.1"), peer("fe80::1"), peer("0.0.0.0")] {
            assert!(refuses(true, "", remote), "{remote:?}");
            assert!(!refuses(true, "secret", remote));
            assert!(!refuses(false, "", remote));
        }
        assert!(!DENIED.contains('\n') && !DENIED.contains("  "));
    }
}
