//! The process: going to the background, the file with its id, the working directory, and systemd.

use std::env;
use std::fs;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};

/// Has the kernel give this process memory in small pages only. It clears a huge page when it is first touched, which held up
/// a shard with a growing dataset for 5 to 8 ms each time (law 8): the slowest of a hundred replies took 6.6 ms with huge pages
/// and 0.3 ms without. A kernel that refuses this has no huge pages.
pub fn disable_huge_pages() {
    // SAFETY: sets a flag of this process and touches no memory.
    unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) };
}

/// Where Redis writes its id when it is in the background and nothing else was said; here under Braid's own name.
pub const DEFAULT_PIDFILE: &str = "/var/run/braid.pid";

/// Goes to the background: forks twice, so that the process has no terminal and cannot get one, and points its standard
/// input and output to `/dev/null`. Only the last process returns.
///
/// # Errors
/// What the system says, or that there is more than one thread: the others would vanish in the middle of their work.
pub fn daemonize() -> io::Result<()> {
    if threads()? != 1 {
        return Err(io::Error::other("threads run already; the server must go to the background before"));
    }
    fork_and_leave()?;
    // SAFETY: the call takes no arguments and touches no memory.
    if unsafe { libc::setsid() } < 0 {
        return Err(io::Error::last_os_error());
    }
    fork_and_leave()?;
    let null = fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    for standard in 0..=2 {
        // SAFETY: both numbers are of open files, or of closed ones that the call opens; no memory is touched.
        if unsafe { libc::dup2(std::os::fd::AsRawFd::as_raw_fd(&null), standard) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Forks; the parent ends.
fn fork_and_leave() -> io::Result<()> {
    // SAFETY: the process has one thread (checked by the caller), so the child's memory is as consistent as the parent's.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(()),
        // SAFETY: `_exit` ends the process without running anything the child will run as well.
        _ => unsafe { libc::_exit(0) },
    }
}

fn threads() -> io::Result<usize> {
    Ok(fs::read_dir("/proc/self/task")?.count())
}

/// The file with the process id; removed by [`PidFile::remove`], not by a drop, because exits do not run drops.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PidFile(PathBuf);

impl PidFile {
    /// Writes the id. `None` where no file is wanted: in the foreground with no `pidfile`.
    ///
    /// # Errors
    /// A line for the log. Redis goes on without the file, and so may the caller.
    pub fn write(pidfile: &str, daemonize: bool) -> Result<Option<Self>, String> {
        let path = match (pidfile, daemonize) {
            ("", false) => return Ok(None),
            ("", true) => Path::new(DEFAULT_PIDFILE),
            (path, _) => Path::new(path),
        };
        let failed = |error: io::Error| format!("Failed to write PID file '{}': {error}", path.display());
        let path = std::path::absolute(path).map_err(failed)?;
        fs::write(&path, format!("{}\n", std::process::id())).map_err(failed)?;
        Ok(Some(Self(path)))
    }

    /// Removes the file if it still holds this process's id.
    pub fn remove(&self) {
        let own = fs::read_to_string(&self.0).is_ok_and(|text| text.trim() == std::process::id().to_string());
        if own {
            // The server is ending; a file that stays is overwritten by the next start.
            let _ = fs::remove_file(&self.0);
        }
    }
}

/// Makes `dir` the working directory and gives its absolute path, which is what `CONFIG GET dir` shows.
///
/// # Errors
/// One line.
pub fn enter_dir(dir: &str) -> Result<String, String> {
    env::set_current_dir(dir).map_err(|error| format!("Can't chdir to '{dir}': {error}"))?;
    let path =
        env::current_dir().map_err(|error| format!("the working directory '{dir}' has no path: {error}"))?;
    path.into_os_string().into_string().map_err(|_| format!("the path of '{dir}' is not valid UTF-8"))
}

/// Tells systemd about the state of the server, such as `READY=1`, if it asked to be told (`NOTIFY_SOCKET`).
/// Gives whether it did.
///
/// # Errors
/// What the system says.
pub fn notify_systemd(state: &str) -> io::Result<bool> {
    let Some(address) = env::var_os("NOTIFY_SOCKET") else { return Ok(false) };
    notify(address.as_encoded_bytes(), state)?;
    Ok(true)
}

fn notify(address: &[u8], state: &str) -> io::Result<()> {
    // A leading @ stands for the zero byte of an abstract address.
    let address = match address {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        path => SocketAddr::from_pathname(std::ffi::OsStr::new(
            str::from_utf8(path).map_err(|_| io::ErrorKind::InvalidInput)?,
        ))?,
    };
    UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pid_file_is_written_and_removed_by_its_owner() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pid");
        let file = PidFile::write(path.to_str().unwrap(), false).unwrap().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{}\n", std::process::id()));
        fs::write(&path, "1\n").unwrap();
        file.remove();
        assert!(path.exists(), "another process's file must stay");
        fs::write(&path, format!("{}\n", std::process::id())).unwrap();
        file.remove();
        assert!(!path.exists());
        assert_eq!(PidFile::write("", false), Ok(None));
        let error = PidFile::write("/nonexistent/pid", true).unwrap_err();
        assert!(error.starts_with("Failed to write PID file '/nonexistent/pid': "), "{error}");
    }

    #[test]
    fn daemonizing_with_threads_is_refused() {
        // The test runner has threads, so this must not fork.
        let here = std::process::id();
        let _other = std::thread::spawn(std::thread::park);
        assert!(daemonize().is_err());
        assert_eq!(std::process::id(), here);
    }

    #[test]
    fn systemd_hears_the_state() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        notify(path.as_os_str().as_encoded_bytes(), "READY=1").unwrap();
        let mut buffer = [0; 16];
        let length = socket.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"READY=1");
        assert!(notify(b"/nonexistent/socket", "x").is_err());
    }

    #[test]
    fn a_missing_directory_is_named() {
        assert!(
            enter_dir("/nonexistent").unwrap_err().starts_with("Can't chdir to '/nonexistent': No such file")
        );
    }
}
