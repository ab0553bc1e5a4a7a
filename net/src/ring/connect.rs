//! Addresses and sockets in the form the kernel takes and gives them.

use std::io;
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// A socket address as the C structure for its family.
pub(super) struct SocketAddress {
    storage: libc::sockaddr_storage,
    len_bytes: libc::socklen_t,
}

impl SocketAddress {
    pub(super) fn new(address: SocketAddr) -> Self {
        // SAFETY: sockaddr_storage is a C struct of integers, for which all-zero is valid.
        let mut storage: libc::sockaddr_storage = unsafe { MaybeUninit::zeroed().assume_init() };
        let start = &raw mut storage;
        let len_bytes = match address {
            SocketAddr::V4(address) => {
                let inet = libc::sockaddr_in {
                    sin_family: libc::AF_INET as _,
                    sin_port: address.port().to_be(),
                    sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(address.ip().octets()) },
                    sin_zero: [0; 8],
                };
                // SAFETY: a sockaddr_storage is large and aligned enough for the address of any family.
                unsafe { start.cast::<libc::sockaddr_in>().write(inet) };
                size_of::<libc::sockaddr_in>()
            }
            SocketAddr::V6(address) => {
                let inet6 = libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as _,
                    sin6_port: address.port().to_be(),
                    sin6_flowinfo: address.flowinfo(),
                    sin6_addr: libc::in6_addr { s6_addr: address.ip().octets() },
                    sin6_scope_id: address.scope_id(),
                };
                // SAFETY: as above.
                unsafe { start.cast::<libc::sockaddr_in6>().write(inet6) };
                size_of::<libc::sockaddr_in6>()
            }
        };
        Self { storage, len_bytes: len_bytes as libc::socklen_t }
    }

    pub(super) fn as_ptr(&self) -> *const libc::sockaddr {
        (&raw const self.storage).cast()
    }

    pub(super) fn len_bytes(&self) -> libc::socklen_t {
        self.len_bytes
    }
}

/// A TCP socket of the family of `address`, bound to `source` (any port) if one is given.
pub(super) fn new_tcp_socket(address: SocketAddr, source: Option<IpAddr>) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    // SAFETY: creates a descriptor, touches no memory.
    let fd = unsafe { libc::socket(family, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let socket = adopt(fd as u32);
    if let Some(source) = source {
        let local = SocketAddress::new(SocketAddr::new(source, 0));
        // SAFETY: the address is valid for its length during the call.
        if unsafe { libc::bind(socket.as_raw_fd(), local.as_ptr(), local.len_bytes()) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(socket)
}

/// Takes ownership of a descriptor that the kernel has just made for us.
pub(super) fn adopt(fd: u32) -> OwnedFd {
    // SAFETY: the callers pass the result of socket(2) or of an accept, seen once: open, and nobody else's.
    unsafe { OwnedFd::from_raw_fd(fd as RawFd) }
}
