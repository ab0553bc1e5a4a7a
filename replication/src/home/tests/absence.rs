//! Replicas that fall behind memory, or go away and come back, with a disk that is a map of vectors.

use super::*;
use crate::log::spill::{Step, Told};

const MEGABYTE: usize = 1 << 20;

/// Carries out what the log wants of the disk, until it wants nothing more.
pub(super) fn serve_disk(world: &mut World, files: &mut BTreeMap<u64, Vec<u8>>) {
    loop {
        world.home.trim();
        let steps = world.home.log().take_steps();
        if steps.is_empty() {
            return;
        }
        for step in steps {
            match step {
                Step::Write { segment, bytes } => {
                    files.entry(segment).or_default().extend(bytes.concat());
                    world.home.log().told(Told::Written(Ok(())), world.now_ms);
                }
                Step::Read { read, segment, at_bytes, len_bytes } => {
                    let bytes = files[&segment][at_bytes as usize..][..len_bytes as usize].to_vec();
                    world.home.log().told(Told::Read { read, outcome: Ok(bytes.into()) }, world.now_ms);
                }
                Step::Delete { segment } => drop(files.remove(&segment)),
                Step::Warn(line) => panic!("{line}"),
            }
        }
    }
}

#[test]
fn a_replica_that_was_away_continues_from_disk_as_long_as_it_is_expected() {
    let mut world = World::new(1, Rules { backlog_bytes: 1 << 20, backlog_disk_bytes: 64 << 20, ..rules() });
    let mut files = BTreeMap::new();
    let gone = world.online();
    let (history, end) = (world.id(), world.home.end_offset());
    world.write("sent and not acknowledged");
    world.take(gone);
    world.home.detach(gone);
    let mut written = Vec::new();
    for n in 0..30 {
        let text = n.to_string().repeat(MEGABYTE / 2);
        world.write(&text);
        written.push(text);
        serve_disk(&mut world, &mut files);
    }
    let report = world.home.report(world.now_ms);
    assert!(report.disk_bytes > 10 << 20 && !files.is_empty(), "{}", report.disk_bytes);
    assert!(report.memory_bytes < 25 << 20, "{}", report.memory_bytes);
    assert_eq!((report.first_byte, report.histlen_bytes), (end + 1, report.end_offset - end));
    let back = world.resume(&history, end + 1);
    let mut received = Vec::new();
    while world.home.end_offset() - end > received.len() as u64 {
        serve_disk(&mut world, &mut files);
        let sent = world.take(back);
        assert!(!sent.is_empty(), "it is stuck after {}", received.len());
        let reply = if received.is_empty() { format!("+CONTINUE {history}\r\n").len() } else { 0 };
        received.extend_from_slice(&sent[reply..]);
    }
    let stream = String::from_utf8(received).expect("is text");
    let mut rest = stream.as_str();
    for text in std::iter::once("sent and not acknowledged").chain(written.iter().map(String::as_str)) {
        rest = &rest[rest.find(text).expect("everything is there, in order") + text.len()..];
    }
    world.ack(back, world.home.end_offset());
    serve_disk(&mut world, &mut files);
    assert!(files.is_empty());
    assert_eq!(world.home.report(world.now_ms).disk_bytes, 0);
    assert_eq!(world.home.report(world.now_ms).full_syncs, 1);
    // It is there, so nobody is expected.
    for _ in 0..30 {
        world.write(&"x".repeat(MEGABYTE));
        world.take(back);
        world.ack(back, world.home.end_offset());
        serve_disk(&mut world, &mut files);
        assert!(files.is_empty());
    }
}

#[test]
fn a_disk_that_failed_once_is_tried_again_with_nobody_there() {
    let mut world = World::new(1, Rules { backlog_bytes: 1 << 20, backlog_disk_bytes: 64 << 20, ..rules() });
    let gone = world.online();
    world.home.detach(gone);
    world.write(&"x".repeat(10 * MEGABYTE));
    world.home.trim();
    let is_write = |step: &Step| matches!(step, Step::Write { .. });
    assert!(world.home.log().take_steps().iter().any(is_write));
    world.home.log().told(Told::Written(Err("disk full".into())), world.now_ms);
    world.home.trim();
    assert!(!world.home.log().take_steps().iter().any(is_write), "not at once");
    world.pass(11 * SECOND_MS);
    world.home.trim();
    assert!(world.home.log().take_steps().iter().any(is_write));
    assert_eq!(world.home.next_tick_ms(), None, "nothing is left to look after");
}
