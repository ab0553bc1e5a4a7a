//! What the standard library does not offer of Linux: signals to children, CPU affinity, /proc, epoll. All of this
//! crate's `unsafe` stands here.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

/// The signals that tests send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    Term,
    Int,
    Kill,
    Stop,
    Cont,
}

/// Sends `signal` to the process `pid`.
///
/// # Errors
/// When there is no such process, or it is not ours.
pub fn send_signal(pid: u32, signal: Signal) -> io::Result<()> {
    let number = match signal {
        Signal::Term => libc::SIGTERM,
        Signal::Int => libc::SIGINT,
        Signal::Kill => libc::SIGKILL,
        Signal::Stop => libc::SIGSTOP,
        Signal::Cont => libc::SIGCONT,
    };
    // Zero and negative ids would address whole process groups.
    let pid = libc::pid_t::try_from(pid).ok().filter(|pid| *pid > 1);
    let pid = pid.ok_or_else(|| io::Error::other("not a process id"))?;
    // SAFETY: kill takes no pointers.
    check(unsafe { libc::kill(pid, number) }).map(|_| ())
}

/// Limits how many files the process `pid` may have open from now on.
///
/// # Errors
/// When there is no such process, or it is not ours.
pub fn limit_files(pid: u32, files: u64) -> io::Result<()> {
    let pid = libc::pid_t::try_from(pid).map_err(io::Error::other)?;
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the former limit is written to a live struct; no other is given.
    check(unsafe { libc::prlimit(pid, libc::RLIMIT_NOFILE, std::ptr::null(), &raw mut limit) })?;
    limit.rlim_cur = files;
    // SAFETY: the new limit is read from a live struct; the former one is not asked for.
    check(unsafe { libc::prlimit(pid, libc::RLIMIT_NOFILE, &raw const limit, std::ptr::null_mut()) })
        .map(|_| ())
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn cpu_set(cpus: &[usize]) -> io::Result<libc::cpu_set_t> {
    if let Some(cpu) = cpus.iter().find(|cpu| **cpu >= libc::CPU_SETSIZE as usize) {
        return Err(io::Error::other(format!("no CPU {cpu}")));
    }
    // SAFETY: cpu_set_t is a plain bit mask, for which all zeros is the empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    for &cpu in cpus {
        // SAFETY: the index was checked against CPU_SETSIZE above.
        unsafe { libc::CPU_SET(cpu, &mut set) };
    }
    Ok(set)
}

/// Restricts the calling thread, and the threads it starts later, to `cpus`. An empty list changes nothing.
///
/// # Errors
/// When none of them exists.
pub fn pin_current_thread(cpus: &[usize]) -> io::Result<()> {
    if cpus.is_empty() {
        return Ok(());
    }
    let set = cpu_set(cpus)?;
    // SAFETY: the set outlives the call and its true size is passed.
    check(unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set) })
        .map(|_| ())
        .map_err(|error| io::Error::new(error.kind(), format!("cannot pin to CPUs {cpus:?}: {error}")))
}

/// Lets the calling thread wake when its timers expire; by default Linux adds up to 50 us to save energy, which a
/// latency that counts from an intended time would include.
pub fn make_timers_precise() {
    // SAFETY: prctl with this option takes a number and no pointers. It cannot fail for a positive number.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1 as libc::c_ulong) };
}

/// Makes `command`'s process run on `cpus` only (anywhere when empty), and die when the thread that spawns it ends.
///
/// # Errors
/// When a CPU number is impossible. That it does not exist shows when the command is spawned.
pub fn prepare_child(command: &mut Command, cpus: &[usize]) -> io::Result<()> {
    let set = if cpus.is_empty() { None } else { Some(cpu_set(cpus)?) };
    // SAFETY: between fork and exec only async-signal-safe calls are made: prctl and sched_setaffinity are plain
    // system calls, and the set was built beforehand, so nothing is allocated and no lock is taken.
    unsafe {
        command.pre_exec(move || {
            check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL))?;
            if let Some(set) = &set {
                check(libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), set))?;
            }
            Ok(())
        });
    }
    Ok(())
}

/// What a process has used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// User and system time of all its threads, ended ones included. Ticks of 10 ms.
    pub cpu: Duration,
    /// Resident memory.
    pub rss_bytes: u64,
}

/// Reads what the process `pid` has used from /proc.
///
/// # Errors
/// When there is no such process.
pub fn usage(pid: u32) -> io::Result<Usage> {
    let read = |file: &str| {
        std::fs::read_to_string(format!("/proc/{pid}/{file}")).map_err(|error| {
            io::Error::new(error.kind(), format!("cannot read usage of process {pid}: {error}"))
        })
    };
    let stat = read("stat")?;
    let statm = read("statm")?;
    // SAFETY: sysconf takes no pointers.
    let (ticks_per_s, page_bytes) =
        unsafe { (libc::sysconf(libc::_SC_CLK_TCK), libc::sysconf(libc::_SC_PAGESIZE)) };
    parse_usage(&stat, &statm, ticks_per_s as u64, page_bytes as u64)
        .ok_or_else(|| io::Error::other(format!("cannot understand /proc/{pid}/stat")))
}

/// The fields as proc(5) numbers them: utime is 14, stime 15, counted after the command's name, which is in
/// parentheses and may itself hold any character.
fn parse_usage(stat: &str, statm: &str, ticks_per_s: u64, page_bytes: u64) -> Option<Usage> {
    let mut fields = stat[stat.rfind(')')? + 1..].split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    let resident: u64 = statm.split_ascii_whitespace().nth(1)?.parse().ok()?;
    let cpu = Duration::from_nanos((user + system) * (1_000_000_000 / ticks_per_s.max(1)));
    Some(Usage { cpu, rss_bytes: resident * page_bytes })
}

/// What [`Poller::wait`] reports of one socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ready {
    /// The token given at registration.
    pub token: u64,
    /// There is something to read, or the connection ended.
    pub readable: bool,
    pub writable: bool,
}

/// A level-triggered epoll instance.
pub struct Poller {
    epoll: OwnedFd,
    events: Vec<libc::epoll_event>,
}

impl Poller {
    /// A poller that reports up to `batch` sockets per wait.
    ///
    /// # Errors
    /// When the process is out of file descriptors.
    pub fn new(batch: usize) -> io::Result<Poller> {
        // SAFETY: no pointers; the returned descriptor is new and owned by nobody else.
        let epoll = unsafe { OwnedFd::from_raw_fd(check(libc::epoll_create1(libc::EPOLL_CLOEXEC))?) };
        Ok(Poller { epoll, events: vec![libc::epoll_event { events: 0, u64: 0 }; batch.max(1)] })
    }

    /// Registers a socket for reading.
    ///
    /// # Errors
    /// The system's own.
    pub fn add(&self, fd: RawFd, token: u64) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, token, false)
    }

    /// Says whether a registered socket is also waited on for writing.
    ///
    /// # Errors
    /// The system's own.
    pub fn set_writing(&self, fd: RawFd, token: u64, writing: bool) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, fd, token, writing)
    }

    fn control(&self, operation: libc::c_int, fd: RawFd, token: u64, writing: bool) -> io::Result<()> {
        let events = libc::EPOLLIN | if writing { libc::EPOLLOUT } else { 0 };
        let mut event = libc::epoll_event { events: events as u32, u64: token };
        // SAFETY: the event outlives the call.
        check(unsafe { libc::epoll_ctl(self.epoll.as_raw_fd(), operation, fd, &mut event) }).map(|_| ())
    }

    /// Waits up to `timeout_ns` nanoseconds for registered sockets.
    ///
    /// # Errors
    /// The system's own.
    pub fn wait(&mut self, timeout_ns: u64) -> io::Result<impl Iterator<Item = Ready> + '_> {
        let timeout = libc::timespec {
            tv_sec: (timeout_ns / 1_000_000_000) as libc::time_t,
            tv_nsec: (timeout_ns % 1_000_000_000) as libc::c_long,
        };
        // epoll_wait counts milliseconds, too coarse to keep a schedule by; epoll_pwait2 (Linux 5.11) counts
        // nanoseconds.
        // SAFETY: the event array is as long as said and outlives the call, as does the timeout; the signal mask is
        // null, for which the kernel ignores the size.
        let count = unsafe {
            libc::syscall(
                libc::SYS_epoll_pwait2,
                self.epoll.as_raw_fd(),
                self.events.as_mut_ptr(),
                self.events.len() as libc::c_int,
                &timeout as *const libc::timespec,
                std::ptr::null::<libc::sigset_t>(),
                0usize,
            )
        };
        let count = match check(count as libc::c_int) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            other => other? as usize,
        };
        Ok(self.events[..count].iter().map(|event| {
            let events = event.events as libc::c_int;
            Ready {
                token: event.u64,
                readable: events & (libc::EPOLLIN | libc::EPOLLHUP | libc::EPOLLERR) != 0,
                writable: events & libc::EPOLLOUT != 0,
            }
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_is_read_past_an_awkward_command_name() {
        let stat = "7 (a) b (c)) S 1 7 7 0 -1 4194304 100 0 0 0 250 50 0 0 20 0 1 0 100 1000 25 0";
        let usage = parse_usage(stat, "1000 25 10 1 0 5 0", 100, 4096).unwrap();
        assert_eq!(usage, Usage { cpu: Duration::from_secs(3), rss_bytes: 25 * 4096 });
        assert_eq!(parse_usage("7 (x", "1 2", 100, 4096), None);
    }

    #[test]
    fn this_process_has_used_memory() {
        assert!(super::usage(std::process::id()).unwrap().rss_bytes > 100_000);
        assert!(super::usage(u32::MAX - 1).is_err());
    }

    #[test]
    fn signals_never_address_a_group() {
        assert!(send_signal(0, Signal::Term).is_err());
        assert!(send_signal(u32::MAX, Signal::Term).is_err());
    }

    #[test]
    fn a_poller_reports_what_is_ready() {
        use std::io::Write;
        use std::os::unix::net::UnixStream;
        let (mut here, there) = UnixStream::pair().unwrap();
        let mut poller = Poller::new(4).unwrap();
        poller.add(there.as_raw_fd(), 7).unwrap();
        assert_eq!(poller.wait(0).unwrap().count(), 0);
        here.write_all(b"x").unwrap();
        let ready: Vec<Ready> = poller.wait(1_000_000_000).unwrap().collect();
        assert_eq!(ready, [Ready { token: 7, readable: true, writable: false }]);
        poller.set_writing(there.as_raw_fd(), 7, true).unwrap();
        assert!(poller.wait(1_000_000_000).unwrap().all(|ready| ready.writable));
    }
}
