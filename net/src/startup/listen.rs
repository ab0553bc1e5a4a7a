//! The TCP addresses to listen on, from the configuration to sockets.

use super::sockets::listen_tcp;
use crate::config::Config;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// The addresses that `bind` and `port` name, each with whether this machine may lack it. None with port 0.
///
/// # Errors
/// What is no address.
pub fn addresses(config: &Config) -> Result<Vec<(SocketAddr, bool)>, String> {
    if config.port == 0 {
        return Ok(Vec::new());
    }
    let parse = |address: &String| {
        // A leading dash: not an error if this machine does not have that address.
        let (optional, text) = match address.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, address.as_str()),
        };
        let ip: IpAddr = match text {
            "*" => std::net::Ipv4Addr::UNSPECIFIED.into(),
            "::*" => std::net::Ipv6Addr::UNSPECIFIED.into(),
            other => other.parse().map_err(|_| format!("bind: '{other}' is not an IP address"))?,
        };
        Ok((SocketAddr::new(ip, config.port), optional))
    };
    config.bind.0.iter().map(parse).collect()
}

/// How long a start waits for an address that is in use. The kernel lets go of what a killed server's rings were accepting
/// on a little after the process is gone, and who restarts it at once shall not fail.
pub const START_PATIENCE: Duration = Duration::from_secs(2);

/// Listens on an address, waiting up to `patience` for whoever has it.
fn listen_patiently(address: SocketAddr, backlog: i32, patience: Duration) -> io::Result<OwnedFd> {
    const PAUSE: Duration = Duration::from_millis(20);
    let start = Instant::now();
    loop {
        match listen_tcp(address, backlog) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && start.elapsed() < patience => {
                std::thread::sleep(PAUSE);
            }
            outcome => return outcome,
        }
    }
}

/// Listens on all addresses, reusing the sockets that listen on one already, and waiting up to `patience` for each that is
/// in use.
///
/// # Errors
/// Redis's line for the address that is not to be had, or that there is none at all; then nothing has changed.
pub fn listen_all(
    config: &Config,
    present: &[(SocketAddr, OwnedFd)],
    patience: Duration,
) -> Result<Vec<(SocketAddr, OwnedFd)>, String> {
    let mut sockets = Vec::new();
    for (address, optional) in addresses(config)? {
        let socket = match present.iter().find(|(other, _)| *other == address) {
            Some((_, socket)) => socket.try_clone(),
            None => listen_patiently(address, config.tcp_backlog as i32, patience),
        };
        match socket {
            Ok(socket) => sockets.push((address, socket)),
            Err(error) if optional && error.kind() != io::ErrorKind::AddrInUse => {}
            Err(error) => {
                return Err(format!(
                    "Could not create server TCP listening socket {}:{}: bind: {error}",
                    address.ip(),
                    address.port()
                ));
            }
        }
    }
    if sockets.is_empty() && config.port != 0 {
        return Err("Configured to not listen anywhere, exiting.".into());
    }
    Ok(sockets)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    fn config(port: u16, bind: &str) -> Config {
        let mut config = Config::default();
        config.port = port;
        config.bind.0 = bind.split(' ').map(str::to_owned).collect();
        config
    }

    #[test]
    fn addresses_are_read_as_redis_reads_them() {
        let found = addresses(&config(7, "* -::* 127.0.0.1 -::1")).unwrap();
        let texts: Vec<String> =
            found.iter().map(|(address, optional)| format!("{address} {optional}")).collect();
        assert_eq!(texts, ["0.0.0.0:7 false", "[::]:7 true", "127.0.0.1:7 false", "[::1]:7 true"]);
        assert!(addresses(&config(0, "nonsense")).unwrap().is_empty());
        assert!(addresses(&config(7, "nonsense")).unwrap_err().contains("'nonsense' is not an IP address"));
    }

    #[test]
    fn a_socket_that_listens_is_kept() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let first = listen_all(&config(free, "127.0.0.1"), &[], Duration::ZERO).unwrap();
        // A second socket for the same address is not to be had: so this is the first one.
        let second = listen_all(&config(free, "127.0.0.1"), &first, Duration::ZERO).unwrap();
        assert_eq!(crate::startup::sockets::local_address(second[0].1.as_fd()), Some(first[0].0));
        let error = listen_all(&config(free, "127.0.0.1"), &[], Duration::ZERO).unwrap_err();
        assert!(error.contains("Address already in use"), "{error}");
        // 192.0.2.1 is no machine's: a dash makes that no error, but one address there must be.
        assert_eq!(
            listen_all(&config(free, "127.0.0.1 -192.0.2.1"), &first, Duration::ZERO).unwrap().len(),
            1
        );
        assert!(listen_all(&config(free, "192.0.2.1"), &[], Duration::ZERO).is_err());
        assert!(listen_all(&config(free, "-192.0.2.1"), &[], Duration::ZERO).is_err());
    }
}
