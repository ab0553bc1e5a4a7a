//! Listening sockets.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;

/// The address of a TCP socket's peer; None for unix sockets.
pub fn peer_address(socket: BorrowedFd<'_>) -> Option<SocketAddr> {
    let socket = TcpStream::from(socket.try_clone_to_owned().ok()?);
    socket.peer_addr().ok()
}

/// A TCP socket's own address; None for unix sockets.
pub fn local_address(socket: BorrowedFd<'_>) -> Option<SocketAddr> {
    let socket = TcpStream::from(socket.try_clone_to_owned().ok()?);
    socket.local_addr().ok()
}

/// A TCP socket that listens on `address`.
///
/// # Errors
/// The system's, mostly that the address is in use.
pub fn listen_tcp(address: SocketAddr, backlog: i32) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    // SAFETY: creates a descriptor, touches no memory.
    let fd = unsafe { libc::socket(family, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just created and is nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let set = |level, name| {
        let on: i32 = 1;
        // SAFETY: the option's value is an int that lives through the call.
        let outcome = unsafe {
            libc::setsockopt(fd, level, name, (&raw const on).cast(), size_of::<i32>() as libc::socklen_t)
        };
        if outcome < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    };
    set(libc::SOL_SOCKET, libc::SO_REUSEADDR)?;
    if address.is_ipv6() {
        set(libc::IPPROTO_IPV6, libc::IPV6_V6ONLY)?;
    }
    let outcome = match address {
        SocketAddr::V4(v4) => {
            let raw = libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: v4.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from(*v4.ip()).to_be() },
                sin_zero: [0; 8],
            };
            // SAFETY: the address is of the type its length says and lives through the call.
            unsafe { libc::bind(fd, (&raw const raw).cast(), size_of_val(&raw) as libc::socklen_t) }
        }
        SocketAddr::V6(v6) => {
            let raw = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: v6.port().to_be(),
                sin6_flowinfo: v6.flowinfo(),
                sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                sin6_scope_id: v6.scope_id(),
            };
            // SAFETY: as above.
            unsafe { libc::bind(fd, (&raw const raw).cast(), size_of_val(&raw) as libc::socklen_t) }
        }
    };
    if outcome < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: works on the descriptor alone.
    if unsafe { libc::listen(fd, backlog) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // Accepting is the ring's business; the standard library's type only proves that this is a listener.
    let listener = TcpListener::from(socket);
    listener.local_addr()?;
    Ok(listener.into())
}

/// A unix socket that listens at `path`, replacing what a dead server left there. `mode` 0 keeps the umask's.
///
/// # Errors
/// The system's.
pub fn listen_unix(path: &str, mode: u32, backlog: i32) -> io::Result<OwnedFd> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    // SAFETY: works on the descriptor alone.
    if unsafe { libc::listen(listener.as_raw_fd(), backlog) } < 0 {
        return Err(io::Error::last_os_error());
    }
    if mode != 0 {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    }
    Ok(listener.into())
}
