//! Segment files, in which the replication stream waits for slow replicas (`braid_replication::log::spill`), by a thread of
//! their own. A file loses its name as soon as it is open, so nothing of it outlives the process, however that ends.

use super::DirectWriter;
use braid_replication::log::spill::{Step, Told};
use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, unbounded};
use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// How segment files are called for the moment that they have a name.
const NAME_PREFIX: &str = "temp-stream-";

/// The thread that carries out steps in their order. It ends when this is dropped.
pub struct Segments {
    steps: Sender<Step>,
}

impl Segments {
    /// Begins a thread that makes its files in `folder`. `tell` is called with what came of each write and read.
    ///
    /// # Errors
    /// No thread could be started.
    pub fn start(folder: PathBuf, tell: impl Fn(Told) + Send + 'static) -> io::Result<Self> {
        let (steps, received) = unbounded();
        crate::background::spawn("braid-stream", move || work(&folder, &received, &tell))?;
        Ok(Self { steps })
    }

    /// # Errors
    /// The step comes back if the thread is gone.
    pub fn carry_out(&self, step: Step) -> Result<(), Step> {
        self.steps.send(step).map_err(|refused| refused.0)
    }
}

fn work(folder: &Path, steps: &Receiver<Step>, tell: &impl Fn(Told)) {
    remove_left_over(folder);
    let mut segments = BTreeMap::new();
    for step in steps {
        match step {
            Step::Write { segment, bytes } => {
                let outcome = write(folder, &mut segments, segment, &bytes);
                drop(bytes);
                tell(Told::Written(outcome.map_err(|error| error.to_string())));
            }
            Step::Read { read, segment, at_bytes, len_bytes } => {
                let outcome = read_at(&segments, segment, at_bytes, len_bytes);
                tell(Told::Read { read, outcome: outcome.map_err(|error| error.to_string()) });
            }
            Step::Delete { segment } => drop(segments.remove(&segment)),
            Step::Warn(_) => {}
        }
    }
}

/// A process that ended between making a file and taking its name away has left it. One that another process is just making
/// may go as well: that one makes another.
fn remove_left_over(folder: &Path) {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    for entry in
        entries.filter(|entry| entry.file_name().as_encoded_bytes().starts_with(NAME_PREFIX.as_bytes()))
    {
        let _ = std::fs::remove_file(entry.path());
    }
}

fn write(
    folder: &Path,
    segments: &mut BTreeMap<u64, DirectWriter>,
    segment: u64,
    bytes: &[Bytes],
) -> io::Result<()> {
    let writer = match segments.entry(segment) {
        std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
        std::collections::btree_map::Entry::Vacant(entry) => {
            let path = folder.join(format!("{NAME_PREFIX}{}-{segment}", std::process::id()));
            let writer = DirectWriter::create(&path)?;
            std::fs::remove_file(&path)?;
            entry.insert(writer)
        }
    };
    bytes.iter().try_for_each(|bytes| writer.write(bytes))?;
    writer.flush()
}

fn read_at(
    segments: &BTreeMap<u64, DirectWriter>,
    segment: u64,
    at_bytes: u64,
    len_bytes: u64,
) -> io::Result<Bytes> {
    let Some(writer) = segments.get(&segment) else { return Err(io::ErrorKind::NotFound.into()) };
    let mut bytes = vec![0; len_bytes as usize];
    writer.file.read_exact_at(&mut bytes, at_bytes)?;
    Ok(bytes.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back_and_no_file_can_be_seen() {
        let folder = tempfile::tempdir().unwrap();
        let left_over = folder.path().join(format!("{NAME_PREFIX}7-7"));
        std::fs::write(&left_over, b"old").unwrap();
        let (sender, told) = unbounded();
        let segments = Segments::start(folder.path().into(), move |told| drop(sender.send(told))).unwrap();
        let mut rng = fastrand::Rng::with_seed(5);
        let mut all = Vec::new();
        for chunks in [1, 3, 2] {
            let bytes: Vec<u8> = (0..chunks << 20).map(|_| rng.u8(..)).collect();
            all.extend_from_slice(&bytes);
            let bytes = bytes.chunks(100_001).map(Bytes::copy_from_slice).collect();
            segments.carry_out(Step::Write { segment: 3, bytes }).unwrap();
            assert_eq!(told.recv(), Ok(Told::Written(Ok(()))));
            assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        }
        for read in 0..50 {
            let at_bytes = rng.u64(..all.len() as u64);
            let len_bytes = rng.u64(..all.len() as u64 - at_bytes);
            segments.carry_out(Step::Read { read, segment: 3, at_bytes, len_bytes }).unwrap();
            let expected = Bytes::copy_from_slice(&all[at_bytes as usize..][..len_bytes as usize]);
            assert_eq!(told.recv(), Ok(Told::Read { read, outcome: Ok(expected) }));
        }
        segments.carry_out(Step::Delete { segment: 3 }).unwrap();
        segments.carry_out(Step::Read { read: 99, segment: 3, at_bytes: 0, len_bytes: 1 }).unwrap();
        assert!(matches!(told.recv(), Ok(Told::Read { read: 99, outcome: Err(_) })));
    }

    #[test]
    fn a_folder_that_does_not_exist_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let (sender, told) = unbounded();
        let segments =
            Segments::start(folder.path().join("none"), move |told| drop(sender.send(told))).unwrap();
        let bytes = vec![Bytes::from(vec![0; 1 << 20])];
        segments.carry_out(Step::Write { segment: 0, bytes }).unwrap();
        assert!(matches!(told.recv(), Ok(Told::Written(Err(why))) if why.contains("No such file")));
    }
}
