//! The log: lines in Redis's form, `PID:ROLE DD Mon YYYY HH:MM:SS.mmm L message`.
//!
//! A shard must not wait for a disk. Once [`start_writer`] was called, a line goes into a bounded queue and a thread of
//! its own writes it; when the queue is full the line is dropped and counted, and the count is logged. Before that, while
//! the process has one thread and may yet fork, lines are written at once.
//!
//! The file is opened for each batch of lines and closed after it, so it can be rotated by renaming it.

use crate::config::values::LogLevel;
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use std::fmt::{self, Write as _};
use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Lines that may wait for the writer.
const QUEUE_LINES: usize = 8192;
/// Longest message in bytes; the rest is cut off.
const MAX_MESSAGE_BYTES: usize = 4096;
/// How long [`flush`] waits for the writer: a disk that hangs must not keep the server from stopping.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// The letter after the process id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Master,
    Replica,
    /// Starting up, or a process about to end.
    Child,
}

impl Role {
    fn letter(self) -> u8 {
        match self {
            Role::Master => b'M',
            Role::Replica => b'S',
            Role::Child => b'C',
        }
    }
}

/// Where lines go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    Stdout,
    File(PathBuf),
}

impl Target {
    /// As `logfile` gives it: empty is the standard output. The path is made absolute, because the working directory
    /// changes later.
    ///
    /// # Errors
    /// What to tell the operator if the file cannot be opened.
    pub fn open(logfile: &str) -> Result<Self, String> {
        if logfile.is_empty() || logfile == "stdout" {
            return Ok(Target::Stdout);
        }
        let failed = |error: io::Error| format!("Can't open the log file '{logfile}': {error}");
        let path = std::path::absolute(logfile).map_err(failed)?;
        OpenOptions::new().append(true).create(true).open(&path).map_err(failed)?;
        Ok(Target::File(path))
    }

    fn write(&self, text: &[u8]) -> io::Result<()> {
        match self {
            Target::Stdout => {
                let mut stdout = io::stdout().lock();
                stdout.write_all(text)?;
                stdout.flush()
            }
            Target::File(path) => OpenOptions::new().append(true).create(true).open(path)?.write_all(text),
        }
    }
}

struct Record {
    unix_ms: u64,
    role: u8,
    level: LogLevel,
    message: String,
}

enum Item {
    Record(Record),
    /// Answered when everything before it was written.
    Flush(Sender<()>),
}

struct Logger {
    target: Target,
    /// Serializes writes from before the writer started, and from a crash.
    direct: Mutex<()>,
    queue: OnceLock<Sender<Item>>,
    /// Lines lost because the queue was full or the target refused them.
    dropped: AtomicU64,
}

static LOGGER: OnceLock<Logger> = OnceLock::new();
static LEVEL: AtomicU8 = AtomicU8::new(LogLevel::Notice as u8);
static ROLE: AtomicU8 = AtomicU8::new(b'C');

/// Says where lines go. Until then they go to the standard output. To be called once; later calls change nothing.
pub fn init(target: Target, level: LogLevel) {
    set_level(level);
    let _ = LOGGER.set(Logger::new(target));
}

/// Changes the threshold at run time.
pub fn set_level(level: LogLevel) {
    LEVEL.store(level as u8, Ordering::Relaxed);
}

/// Changes the role that lines show.
pub fn set_role(role: Role) {
    ROLE.store(role.letter(), Ordering::Relaxed);
}

/// Whether lines of this level are logged; for messages that are dear to build.
pub fn enabled(level: LogLevel) -> bool {
    level as u8 >= LEVEL.load(Ordering::Relaxed) && level != LogLevel::Nothing
}

/// Lines dropped since the start because the queue was full or the target refused them.
pub fn dropped_lines() -> u64 {
    logger().dropped.load(Ordering::Relaxed)
}

/// Logs a line. Never blocks once the writer runs. Use the `log_*` macros.
pub fn write(level: LogLevel, message: fmt::Arguments<'_>) {
    if !enabled(level) {
        return;
    }
    let unix_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let record = Record {
        unix_ms: u64::try_from(unix_ms).unwrap_or(u64::MAX),
        role: ROLE.load(Ordering::Relaxed),
        level,
        message: message.to_string(),
    };
    logger().accept(record);
}

/// Starts the writer thread. After daemonizing: a thread does not survive a fork.
///
/// # Errors
/// When no thread can be made.
pub fn start_writer() -> io::Result<()> {
    logger().start_writer()
}

/// Waits until everything logged so far was written, but not for ever. For exits.
pub fn flush() {
    logger().flush();
}

/// Logs the place and the message of a panic, then what the hook before did, and ends the process: its shards could not go
/// on without the one that panicked. (A release aborts by itself; here the other builds do as well.)
pub fn install_panic_hook() {
    let former = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let thread = std::thread::current();
        write(
            LogLevel::Warning,
            format_args!(
                "Braid {} crashed in thread {}: {panic}",
                env!("CARGO_PKG_VERSION"),
                thread.name().unwrap_or("?")
            ),
        );
        flush();
        former(panic);
        std::process::abort();
    }));
}

fn logger() -> &'static Logger {
    LOGGER.get_or_init(|| Logger::new(Target::Stdout))
}

impl Logger {
    fn new(target: Target) -> Self {
        Self { target, direct: Mutex::new(()), queue: OnceLock::new(), dropped: AtomicU64::new(0) }
    }

    fn accept(&self, record: Record) {
        let Some(queue) = self.queue.get() else {
            let _turn = self.direct.lock().unwrap_or_else(PoisonError::into_inner);
            let mut text = String::new();
            format_record(&mut text, &record);
            self.put(text.as_bytes(), 1);
            return;
        };
        match queue.try_send(Item::Record(record)) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn start_writer(&'static self) -> io::Result<()> {
        let (sender, receiver) = bounded(QUEUE_LINES);
        std::thread::Builder::new().name("log".to_owned()).spawn(move || self.run(&receiver))?;
        // A second call's thread finds its queue closed and ends.
        let _ = self.queue.set(sender);
        Ok(())
    }

    fn flush(&self) {
        let Some(queue) = self.queue.get() else { return };
        let (sender, receiver) = bounded(1);
        if queue.send_timeout(Item::Flush(sender), FLUSH_TIMEOUT).is_ok() {
            // Too late or ended: either way there is nothing more to wait for.
            let _ = receiver.recv_timeout(FLUSH_TIMEOUT);
        }
    }

    /// The writer's loop: everything that waits goes out in one write.
    fn run(&self, queue: &Receiver<Item>) {
        let mut reported = 0;
        let mut batch = String::new();
        while let Ok(first) = queue.recv() {
            batch.clear();
            let mut lines = 0;
            let mut waiting: Vec<Sender<()>> = Vec::new();
            for item in std::iter::once(first).chain(queue.try_iter().take(QUEUE_LINES)) {
                match item {
                    Item::Record(record) => {
                        format_record(&mut batch, &record);
                        lines += 1;
                    }
                    Item::Flush(done) => waiting.push(done),
                }
            }
            let dropped = self.dropped.load(Ordering::Relaxed);
            if dropped > reported {
                format_record(&mut batch, &dropped_record(dropped - reported));
                reported = dropped;
            }
            self.put(batch.as_bytes(), lines);
            for done in waiting {
                // Whoever waited may have given up.
                let _ = done.try_send(());
            }
        }
    }

    fn put(&self, text: &[u8], lines: u64) {
        if !text.is_empty() && self.target.write(text).is_err() {
            // There is nowhere to say so but the count, which the next batch that gets through reports.
            self.dropped.fetch_add(lines, Ordering::Relaxed);
        }
    }
}

fn dropped_record(count: u64) -> Record {
    let unix_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    Record {
        unix_ms: u64::try_from(unix_ms).unwrap_or(u64::MAX),
        role: ROLE.load(Ordering::Relaxed),
        level: LogLevel::Warning,
        message: format!("{count} log lines were dropped because they could not be written in time"),
    }
}

fn format_record(out: &mut String, record: &Record) {
    let local = local_time(record.unix_ms / 1000);
    format_line(
        out,
        std::process::id(),
        record.role,
        &local,
        record.unix_ms % 1000,
        record.level,
        &record.message,
    );
}

/// A time of day as the log shows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct LocalTime {
    year: i32,
    /// From 0.
    month: usize,
    day: i32,
    hour: i32,
    minute: i32,
    second: i32,
}

fn local_time(unix_s: u64) -> LocalTime {
    let seconds = libc::time_t::try_from(unix_s).unwrap_or(libc::time_t::MAX);
    // SAFETY: `tm` is a struct of integers and a pointer for which all zeros are valid.
    let mut parts: libc::tm = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to live values of the right types; localtime_r keeps neither.
    let filled = unsafe { libc::localtime_r(&seconds, &mut parts) };
    if filled.is_null() {
        return LocalTime::default();
    }
    LocalTime {
        year: parts.tm_year.saturating_add(1900),
        month: usize::try_from(parts.tm_mon).unwrap_or(0),
        day: parts.tm_mday,
        hour: parts.tm_hour,
        minute: parts.tm_min,
        second: parts.tm_sec,
    }
}

fn format_line(
    out: &mut String,
    pid: u32,
    role: u8,
    time: &LocalTime,
    millisecond: u64,
    level: LogLevel,
    message: &str,
) {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let mark = match level {
        LogLevel::Debug => '.',
        LogLevel::Verbose => '-',
        LogLevel::Notice => '*',
        LogLevel::Warning | LogLevel::Nothing => '#',
    };
    let LocalTime { year, month, day, hour, minute, second } = *time;
    let month = MONTHS[month % 12];
    let role = char::from(role);
    // Writing to a String cannot fail.
    let _ = write!(
        out,
        "{pid}:{role} {day:02} {month} {year} {hour:02}:{minute:02}:{second:02}.{millisecond:03} {mark} "
    );
    let cut = message.floor_char_boundary(MAX_MESSAGE_BYTES);
    for letter in message[..cut].chars() {
        // One message is one line, whatever a client put into it.
        match letter {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            control if control.is_control() => {
                let _ = write!(out, "\\x{:02x}", u32::from(control));
            }
            other => out.push(other),
        }
    }
    if cut < message.len() {
        out.push_str("...");
    }
    out.push('\n');
}

/// Logs what only developers look for.
#[macro_export]
macro_rules! log_debug {
    ($($message:tt)*) => { $crate::log::write($crate::config::values::LogLevel::Debug, format_args!($($message)*)) };
}
/// Logs what happens often.
#[macro_export]
macro_rules! log_verbose {
    ($($message:tt)*) => { $crate::log::write($crate::config::values::LogLevel::Verbose, format_args!($($message)*)) };
}
/// Logs what an operator should know.
#[macro_export]
macro_rules! log_notice {
    ($($message:tt)*) => { $crate::log::write($crate::config::values::LogLevel::Notice, format_args!($($message)*)) };
}
/// Logs what an operator should do something about.
#[macro_export]
macro_rules! log_warning {
    ($($message:tt)*) => { $crate::log::write($crate::config::values::LogLevel::Warning, format_args!($($message)*)) };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(message: &str) -> Record {
        Record { unix_ms: 0, role: b'M', level: LogLevel::Notice, message: message.to_owned() }
    }

    fn leaked(target: Target) -> &'static Logger {
        Box::leak(Box::new(Logger::new(target)))
    }

    #[test]
    fn lines_have_redis_form() {
        let time = LocalTime { year: 2026, month: 10, day: 2, hour: 8, minute: 5, second: 9 };
        for (role, level, line) in [
            (Role::Master, LogLevel::Notice, "7:M 02 Nov 2026 08:05:09.007 * hi\n"),
            (Role::Replica, LogLevel::Warning, "7:S 02 Nov 2026 08:05:09.007 # hi\n"),
            (Role::Child, LogLevel::Debug, "7:C 02 Nov 2026 08:05:09.007 . hi\n"),
            (Role::Child, LogLevel::Verbose, "7:C 02 Nov 2026 08:05:09.007 - hi\n"),
        ] {
            let mut out = String::new();
            format_line(&mut out, 7, role.letter(), &time, 7, level, "hi");
            assert_eq!(out, line);
        }
    }

    #[test]
    fn a_message_is_one_line_of_bounded_length() {
        let mut out = String::new();
        format_line(&mut out, 1, b'M', &LocalTime::default(), 0, LogLevel::Notice, "a\nb\r\u{1b}");
        assert!(out.ends_with("* a\\nb\\r\\x1b\n"), "{out}");
        out.clear();
        format_line(
            &mut out,
            1,
            b'M',
            &LocalTime::default(),
            0,
            LogLevel::Notice,
            &"é".repeat(MAX_MESSAGE_BYTES),
        );
        assert!(out.ends_with("é...\n") && out.len() < MAX_MESSAGE_BYTES + 64);
    }

    #[test]
    fn lines_reach_the_file_in_order_before_and_after_the_writer_starts() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let logger = leaked(Target::open(path.to_str().unwrap()).unwrap());
        logger.accept(record("line 0;"));
        logger.start_writer().unwrap();
        for number in 1..500 {
            logger.accept(record(&format!("line {number};")));
        }
        logger.flush();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 500);
        for (number, line) in text.lines().enumerate() {
            assert!(line.ends_with(&format!("* line {number};")), "{line}");
        }
        // Rotation: the file moves away, the next line makes a new one.
        std::fs::rename(&path, folder.path().join("old")).unwrap();
        logger.accept(record("fresh"));
        logger.flush();
        assert!(std::fs::read_to_string(&path).unwrap().ends_with("* fresh\n"));
    }

    #[test]
    fn a_full_queue_drops_and_counts() {
        let logger = leaked(Target::Stdout);
        let (sender, receiver) = bounded(2);
        logger.queue.set(sender).unwrap();
        for _ in 0..5 {
            logger.accept(record("x"));
        }
        assert_eq!(receiver.len(), 2);
        assert_eq!(logger.dropped.load(Ordering::Relaxed), 3);
    }

    #[test]
    fn a_log_file_that_cannot_be_opened_is_an_error() {
        assert!(
            Target::open("/nonexistent/log")
                .unwrap_err()
                .starts_with("Can't open the log file '/nonexistent/log'")
        );
        assert_eq!(Target::open(""), Ok(Target::Stdout));
    }

    #[test]
    fn local_time_is_a_date() {
        let time = local_time(1_700_000_000);
        assert_eq!((time.year, time.month), (2023, 10));
        assert!((13..=16).contains(&time.day));
    }
}
