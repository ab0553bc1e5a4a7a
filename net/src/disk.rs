//! Snapshot files, written and read by a thread of their own: a shard's thread must never wait for a disk, and opening,
//! renaming and syncing have no form that does not block.
//!
//! Bytes go to the disk past the page cache (`O_DIRECT`) where the file system allows it: a snapshot is not read again soon,
//! and must not push out what is. The last bytes, which fill no block, go through the cache.

pub mod segments;

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Direct writes begin and end at multiples of this, in the file and in memory.
const BLOCK_BYTES: usize = 4096;
/// Bytes of one write or read.
const CHUNK_BYTES: usize = 1 << 20;

/// What a file's thread tells.
pub enum Told {
    /// So many bytes more are on their way to the disk.
    Written(u64),
    /// The file is complete, and where it belongs; or something failed, and nothing more will be told but this.
    Done(Result<u64, String>),
    /// What [`SnapshotFile::read`] asked for; `reader` is the asker's own name for it.
    Read { reader: u64, outcome: Result<Bytes, String> },
}

enum Command {
    Write(Bytes),
    Finish,
    Read { reader: u64, offset: u64, len_bytes: u64 },
}

/// A snapshot file in the making. What is asked for is done in order. It ends with [`SnapshotFile::give_up`]
/// or [`SnapshotFile::close`]: a file that is not in its place is then removed.
pub struct SnapshotFile {
    temporary: PathBuf,
    commands: Sender<Command>,
    is_given_up: Arc<AtomicBool>,
    /// None: it could not even be begun, which was told.
    thread: Option<std::thread::JoinHandle<()>>,
}

impl SnapshotFile {
    /// Begins a file at `temporary`; when it is complete it is renamed to `target`, or, without one, stays to be read from
    /// until it is dropped. Both are where they are now though the process may change its directory. Whatever fails is
    /// told.
    pub fn create(
        temporary: PathBuf,
        target: Option<PathBuf>,
        tell: impl Fn(Told) + Send + Sync + 'static,
    ) -> Self {
        let (commands, received) = unbounded();
        let is_given_up = Arc::new(AtomicBool::new(false));
        let tell = Arc::new(tell);
        let begin = || {
            let temporary = std::path::absolute(&temporary)?;
            let target = target.map(std::path::absolute).transpose()?;
            let (path, seen, tell) = (temporary.clone(), Arc::clone(&is_given_up), Arc::clone(&tell));
            let thread = crate::background::spawn("braid-snapshot", move || {
                let mut placed = false;
                let outcome = work(&path, target.as_deref(), &received, &seen, &*tell, &mut placed);
                if let Err(error) = outcome {
                    tell(Told::Done(Err(error.to_string())));
                }
                if !placed {
                    let _ = std::fs::remove_file(&path);
                }
            })?;
            Ok((temporary, thread))
        };
        match begin() {
            Ok((temporary, thread)) => Self { temporary, commands, is_given_up, thread: Some(thread) },
            Err(error) => {
                let error: io::Error = error;
                tell(Told::Done(Err(error.to_string())));
                Self { temporary, commands, is_given_up, thread: None }
            }
        }
    }

    /// Where it is until it is in its place.
    pub fn temporary(&self) -> &Path {
        &self.temporary
    }

    pub fn write(&self, bytes: Bytes) {
        self.ask(Command::Write(bytes));
    }

    /// Nothing more will be written.
    pub fn finish(&self) {
        self.ask(Command::Finish);
    }

    /// Reads from a file that is complete and has no other place.
    pub fn read(&self, reader: u64, offset: u64, len_bytes: u64) {
        self.ask(Command::Read { reader, offset, len_bytes });
    }

    /// Nobody needs it any more, whatever has been asked for.
    pub fn give_up(self) {
        self.is_given_up.store(true, Ordering::Relaxed);
    }

    /// Gives the file up and waits until it is removed. Before the process ends, and never while a shard serves.
    pub fn close(self) {
        let Self { commands, is_given_up, thread, .. } = self;
        is_given_up.store(true, Ordering::Relaxed);
        drop(commands);
        // It has told what went wrong, if anything did.
        let _ = thread.map(std::thread::JoinHandle::join);
    }

    fn ask(&self, command: Command) {
        // A thread that failed has told so and is gone.
        let _ = self.commands.send(command);
    }
}

fn work(
    temporary: &Path,
    target: Option<&Path>,
    commands: &Receiver<Command>,
    is_given_up: &AtomicBool,
    tell: &impl Fn(Told),
    placed: &mut bool,
) -> io::Result<()> {
    let mut writer = DirectWriter::create(temporary)?;
    for command in commands {
        if is_given_up.load(Ordering::Relaxed) {
            return Ok(());
        }
        match command {
            Command::Write(bytes) => {
                writer.write(&bytes)?;
                tell(Told::Written(bytes.len() as u64));
            }
            Command::Finish => {
                let len_bytes = writer.finish()?;
                if let Some(target) = target {
                    *placed = place(temporary, target, is_given_up)?;
                    if !*placed {
                        return Ok(());
                    }
                    sync_folder(target)?;
                    tell(Told::Done(Ok(len_bytes)));
                    return Ok(());
                }
                tell(Told::Done(Ok(len_bytes)));
            }
            Command::Read { reader, offset, len_bytes } => {
                let mut bytes = vec![0; len_bytes as usize];
                let outcome = writer.file.read_exact_at(&mut bytes, offset);
                let outcome = outcome.map(|()| bytes.into()).map_err(|error| error.to_string());
                tell(Told::Read { reader, outcome });
            }
        }
    }
    Ok(())
}

/// Puts a file where it belongs, unless it was given up while it was brought to the disk: another may be there by then.
fn place(temporary: &Path, target: &Path, is_given_up: &AtomicBool) -> io::Result<bool> {
    let is_wanted = !is_given_up.load(Ordering::Relaxed);
    if is_wanted {
        std::fs::rename(temporary, target)?;
    }
    Ok(is_wanted)
}

/// The rename itself has to reach the disk.
fn sync_folder(file: &Path) -> io::Result<()> {
    let folder = match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    File::open(folder)?.sync_all()
}

/// Writes whole blocks past the page cache.
struct DirectWriter {
    path: PathBuf,
    /// Also read from, through the cache.
    file: File,
    direct: Option<File>,
    /// Longer than a chunk, so that a chunk of it begins at a block's address.
    buffer: Vec<u8>,
    start: usize,
    filled: usize,
    written: u64,
}

impl DirectWriter {
    fn create(path: &Path) -> io::Result<Self> {
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o644).open(path)?;
        // Not every file system can.
        let direct = OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(path).ok();
        let buffer = vec![0; CHUNK_BYTES + BLOCK_BYTES];
        let start = buffer.as_ptr().align_offset(BLOCK_BYTES);
        assert!(start < BLOCK_BYTES, "bytes can be aligned to any block");
        Ok(Self { path: path.into(), file, direct, buffer, start, filled: 0, written: 0 })
    }

    fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let len = bytes.len().min(CHUNK_BYTES - self.filled);
            let (head, tail) = bytes.split_at(len);
            let at = self.start + self.filled;
            self.buffer[at..at + len].copy_from_slice(head);
            self.filled += len;
            bytes = tail;
            if self.filled == CHUNK_BYTES {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Writes the chunk, which is full or holds nothing.
    fn flush(&mut self) -> io::Result<()> {
        assert!(self.filled.is_multiple_of(BLOCK_BYTES), "what fills no block is for the end");
        let chunk = &self.buffer[self.start..self.start + self.filled];
        let mut outcome = self.direct.as_ref().unwrap_or(&self.file).write_all_at(chunk, self.written);
        let is_refused = outcome.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::EINVAL));
        if is_refused && self.direct.take().is_some() {
            // It opens files so and cannot write to them so.
            outcome = self.file.write_all_at(chunk, self.written);
        }
        outcome?;
        self.written += self.filled as u64;
        self.filled = 0;
        Ok(())
    }

    /// Brings everything to the disk; returns the file's length.
    fn finish(&mut self) -> io::Result<u64> {
        let rest = &self.buffer[self.start..self.start + self.filled];
        self.file.write_all_at(rest, self.written)?;
        self.written += self.filled as u64;
        self.filled = 0;
        self.direct = None;
        self.file.sync_all()?;
        let len_bytes = self.file.metadata()?.len();
        if len_bytes != self.written {
            let path = self.path.display();
            return Err(io::Error::other(format!("{path} has {len_bytes} bytes and not {}", self.written)));
        }
        Ok(len_bytes)
    }
}

/// Reads a file from its beginning to its end ahead of who takes it.
pub struct FileReader {
    pub len_bytes: u64,
    chunks: Receiver<io::Result<Vec<u8>>>,
}

/// Chunks that are read ahead.
const AHEAD_CHUNKS: usize = 8;

impl FileReader {
    /// Opens a file; None: there is none. `tell` is called after each chunk that can be taken.
    ///
    /// # Errors
    /// It cannot be opened, or no thread could be started.
    pub fn open(path: &Path, tell: impl Fn() + Send + 'static) -> io::Result<Option<Self>> {
        let mut file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let len_bytes = file.metadata()?.len();
        let (sender, chunks) = bounded(AHEAD_CHUNKS);
        crate::background::spawn("braid-load", move || {
            loop {
                let mut chunk = Vec::with_capacity(CHUNK_BYTES);
                let outcome = file.by_ref().take(CHUNK_BYTES as u64).read_to_end(&mut chunk);
                let is_last = chunk.is_empty() || outcome.is_err();
                if sender.send(outcome.map(|_| chunk)).is_err() {
                    return;
                }
                tell();
                if is_last {
                    return;
                }
            }
        })?;
        Ok(Some(Self { len_bytes, chunks }))
    }

    /// The next chunk, if it has been read; an empty one is the end.
    pub fn take(&self) -> Option<io::Result<Vec<u8>>> {
        self.chunks.try_recv().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(
        file: impl FnOnce(Box<dyn Fn(Told) + Send + Sync>) -> SnapshotFile,
    ) -> (SnapshotFile, Receiver<Told>) {
        let (sender, receiver) = unbounded();
        let file = file(Box::new(move |told| drop(sender.send(told))));
        (file, receiver)
    }

    fn done(receiver: &Receiver<Told>) -> Result<u64, String> {
        loop {
            match receiver.recv().expect("it ends with this") {
                Told::Done(outcome) => return outcome,
                Told::Written(_) => {}
                Told::Read { .. } => panic!("nobody reads"),
            }
        }
    }

    #[test]
    fn what_is_written_in_pieces_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("dump.rdb");
        let mut rng = fastrand::Rng::with_seed(8);
        for len_max in [1, 5000, 300_000] {
            let temporary = folder.path().join("temp.rdb");
            let (file, receiver) =
                told(|tell| SnapshotFile::create(temporary.clone(), Some(target.clone()), tell));
            let mut all = Vec::new();
            for _ in 0..rng.usize(0..30) {
                let piece: Vec<u8> = (0..rng.usize(0..len_max)).map(|_| rng.u8(..)).collect();
                all.extend_from_slice(&piece);
                file.write(piece.into());
            }
            file.finish();
            assert_eq!(done(&receiver), Ok(all.len() as u64));
            assert!(!temporary.exists());
            let (sender, chunks) = unbounded();
            let reader = FileReader::open(&target, move || {
                let _ = sender.send(());
            })
            .unwrap()
            .unwrap();
            assert_eq!(reader.len_bytes, all.len() as u64);
            let mut read = Vec::new();
            loop {
                chunks.recv().unwrap();
                let chunk = reader.take().unwrap().unwrap();
                if chunk.is_empty() {
                    break;
                }
                read.extend_from_slice(&chunk);
            }
            assert!(read == all);
        }
    }

    #[test]
    fn no_loss_what_is_given_up_leaves_the_old_file_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("dump.rdb");
        std::fs::write(&target, b"old").unwrap();
        let (file, receiver) =
            told(|tell| SnapshotFile::create(folder.path().join("temp"), Some(target.clone()), tell));
        file.write(Bytes::from_static(&[7; 100_000]));
        file.give_up();
        // The thread is gone when nobody can tell anything any more.
        while receiver.recv().is_ok() {}
        assert_eq!(std::fs::read(&target).unwrap(), b"old");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn no_loss_what_is_given_up_while_it_is_finished_replaces_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let [temporary, target] = ["temp", "dump.rdb"].map(|name| folder.path().join(name));
        std::fs::write(&target, b"newer").unwrap();
        for (is_given_up, expected) in [(true, "newer"), (false, "older")] {
            std::fs::write(&temporary, b"older").unwrap();
            let placed = place(&temporary, &target, &AtomicBool::new(is_given_up)).unwrap();
            assert_eq!(placed, !is_given_up);
            assert_eq!(std::fs::read(&target).unwrap(), expected.as_bytes());
        }
    }

    #[test]
    fn a_file_without_a_place_is_read_from_and_goes_when_it_is_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let temporary = folder.path().join("temp");
        let (file, receiver) = told(|tell| SnapshotFile::create(temporary.clone(), None, tell));
        file.write(Bytes::from_static(b"0123456789"));
        file.finish();
        assert_eq!(done(&receiver), Ok(10));
        file.read(3, 2, 5);
        let Ok(Told::Read { reader: 3, outcome }) = receiver.recv() else { panic!("a read is answered") };
        assert_eq!(outcome.unwrap(), "23456");
        file.close();
        assert!(!temporary.exists());
    }

    #[test]
    fn a_folder_that_does_not_exist_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let (_file, receiver) = told(|tell| {
            SnapshotFile::create(folder.path().join("none/temp"), Some(folder.path().join("x")), tell)
        });
        assert!(done(&receiver).unwrap_err().contains("No such file"));
        assert!(FileReader::open(&folder.path().join("none"), || {}).unwrap().is_none());
    }
}
