//! Signals as something to read: SIGTERM and SIGINT arrive on a file descriptor, so no code runs in a signal handler.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};

/// A request to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// SIGTERM.
    Terminate,
    /// SIGINT, as from Ctrl-C.
    Interrupt,
}

/// The descriptor on which stops arrive; it can be polled, and never blocks.
pub struct StopSignals {
    file: File,
}

/// Ignores SIGPIPE and SIGHUP: a write to a closed connection is an error like any other, and losing the terminal is no
/// reason to stop.
pub fn ignore_hangups() {
    for signal in [libc::SIGPIPE, libc::SIGHUP] {
        // SAFETY: ignoring a signal installs no handler, so nothing can run at a bad moment.
        let former = unsafe { libc::signal(signal, libc::SIG_IGN) };
        assert_ne!(former, libc::SIG_ERR, "the signal number is valid");
    }
}

/// Blocks SIGTERM and SIGINT in this thread, and so in all threads it starts from now on, and gives the descriptor on
/// which they arrive instead. To be called before any other thread exists: a thread that does not block them would be
/// killed by them, and the process with it.
///
/// # Errors
/// What the system says.
pub fn block_stops() -> io::Result<StopSignals> {
    let set = stop_set();
    // SAFETY: the set is live and initialized; the former mask is not asked for.
    let failed = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) };
    if failed != 0 {
        return Err(io::Error::from_raw_os_error(failed));
    }
    // SAFETY: -1 asks for a new descriptor; the set is live and initialized.
    let fd = unsafe { libc::signalfd(-1, &set, libc::SFD_NONBLOCK | libc::SFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    Ok(StopSignals { file: unsafe { File::from_raw_fd(fd) } })
}

fn stop_set() -> libc::sigset_t {
    // SAFETY: `sigset_t` is an array of integers; sigemptyset then gives it its proper empty value, and sigaddset adds
    // valid numbers to it.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGTERM);
        libc::sigaddset(&mut set, libc::SIGINT);
        set
    }
}

impl StopSignals {
    /// The next stop that arrived, if any; does not wait.
    ///
    /// # Errors
    /// What the system says.
    pub fn try_next(&self) -> io::Result<Option<Stop>> {
        let mut info = [0; size_of::<libc::signalfd_siginfo>()];
        match (&self.file).read(&mut info) {
            Ok(length) => {
                // The kernel writes whole records; the number of the signal is their first field.
                assert_eq!(length, info.len());
                let number = u32::from_ne_bytes([info[0], info[1], info[2], info[3]]);
                let interrupt = i32::try_from(number) == Ok(libc::SIGINT);
                Ok(Some(if interrupt { Stop::Interrupt } else { Stop::Terminate }))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Waits for the next stop.
    ///
    /// # Errors
    /// What the system says.
    pub fn wait(&self) -> io::Result<Stop> {
        loop {
            if let Some(stop) = self.try_next()? {
                return Ok(stop);
            }
            let mut poll = libc::pollfd { fd: self.file.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: the pointer is to one live pollfd, as the count says.
            let ready = unsafe { libc::poll(&mut poll, 1, -1) };
            if ready < 0 {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}

impl AsRawFd for StopSignals {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raise(signal: libc::c_int) {
        // SAFETY: the signal is blocked in this thread, so it only becomes pending for it.
        assert_eq!(unsafe { libc::pthread_kill(libc::pthread_self(), signal) }, 0);
    }

    #[test]
    fn blocked_signals_arrive_as_data() {
        // Sent to this thread alone, so that the other tests' threads, which do not block them, are safe.
        let signals = block_stops().unwrap();
        assert_eq!(signals.try_next().unwrap(), None);
        raise(libc::SIGTERM);
        assert_eq!(signals.wait().unwrap(), Stop::Terminate);
        raise(libc::SIGINT);
        assert_eq!(signals.wait().unwrap(), Stop::Interrupt);
        assert_eq!(signals.try_next().unwrap(), None);
    }

    #[test]
    fn a_closed_pipe_does_not_kill() {
        ignore_hangups();
        raise(libc::SIGPIPE);
        raise(libc::SIGHUP);
    }
}
