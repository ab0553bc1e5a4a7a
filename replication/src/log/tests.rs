use super::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

fn bytes_from(log: &mut Log, offset: u64, max_bytes: u64, max_slices: usize) -> Vec<u8> {
    let mut slices = Vec::new();
    let len_bytes = log.slices(offset, max_bytes, max_slices, &mut slices);
    assert!(slices.len() <= max_slices && slices.iter().all(|slice| !slice.is_empty()));
    let bytes = slices.concat();
    assert_eq!(bytes.len() as u64, len_bytes);
    bytes
}

/// What the log is a compressed way to say: every byte ever, and each reader's position.
struct Model {
    first_offset: u64,
    stream: Vec<u8>,
    readers: Vec<(ReaderId, u64)>,
}

#[test]
fn one_stream_every_range_of_the_log_equals_the_model() {
    for seed in 0..60 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let first_offset = rng.u64(..1000);
        let mut log = Log::new(first_offset, rng.u64(1..5000));
        log.activate();
        let mut model = Model { first_offset, stream: Vec::new(), readers: Vec::new() };
        let mut start = first_offset;
        for _ in 0..400 {
            match rng.u8(..10) {
                0..4 => {
                    let bits = rng.u8(..11);
                    let len_bytes = rng.usize(..1 << bits);
                    let bytes: Vec<u8> = (0..len_bytes).map(|_| rng.u8(..)).collect();
                    model.stream.extend_from_slice(&bytes);
                    log.append(bytes.into());
                }
                4 => {
                    let position = rng.u64(log.first_byte() - 1..=log.end_offset());
                    model.readers.push((log.add_reader(position), position));
                }
                5 if !model.readers.is_empty() => {
                    let (id, _) = model.readers.swap_remove(rng.usize(..model.readers.len()));
                    log.remove_reader(id);
                }
                6 | 7 if !model.readers.is_empty() => {
                    let pick = rng.usize(..model.readers.len());
                    let (id, position) = &mut model.readers[pick];
                    let mut slices = Vec::new();
                    let got = log.reader_slices(*id, rng.u64(..3000), rng.usize(1..8), &mut slices);
                    let from = (*position - first_offset) as usize;
                    assert_eq!(slices.concat(), model.stream[from..from + got as usize]);
                    log.advance(*id, got);
                    *position += got;
                }
                8 => log.set_backlog_bytes(rng.u64(1..5000)),
                _ => log.trim(),
            }
            check(&mut log, &model, &mut start, &mut rng);
        }
    }
}

fn check(log: &mut Log, model: &Model, start: &mut u64, rng: &mut fastrand::Rng) {
    let end = model.first_offset + model.stream.len() as u64;
    assert_eq!(log.end_offset(), end);
    assert_eq!(log.first_byte() + log.histlen_bytes(), end + 1);
    log.trim();
    let slowest = model.readers.iter().map(|reader| reader.1).min().unwrap_or(end);
    *start = (*start).max(slowest.min(end.saturating_sub(log.backlog_bytes())));
    assert_eq!(log.first_byte(), *start + 1);
    for (id, position) in &model.readers {
        assert_eq!(log.reader(*id).position, *position);
        assert_eq!(log.pending_bytes(*id), end - position);
    }
    let offset = rng.u64(*start..=end);
    let max_bytes = rng.u64(..3000);
    let from = (offset - model.first_offset) as usize;
    let to = (from + max_bytes as usize).min(model.stream.len());
    assert_eq!(bytes_from(log, offset, max_bytes, usize::MAX), model.stream[from..to]);
}

#[test]
fn small_ranges_all_of_them() {
    let mut log = Log::new(10, 1 << 20);
    log.activate();
    let mut stream = Vec::new();
    for len_bytes in [1, 300, 2, 3, 257, 0, 4, 256, 255] {
        let bytes: Vec<u8> = (0..len_bytes).map(|i| (i + stream.len()) as u8).collect();
        stream.extend_from_slice(&bytes);
        log.append(bytes.into());
    }
    for from in 0..=stream.len() {
        for len_bytes in 0..=stream.len() - from {
            let got = bytes_from(&mut log, 10 + from as u64, len_bytes as u64, usize::MAX);
            assert_eq!(got, stream[from..from + len_bytes]);
        }
    }
}

#[test]
fn law8_what_is_short_keeps_no_more_than_itself() {
    let mut log = Log::new(0, 1 << 20);
    log.activate();
    for len_bytes in [0, 1, COPY_BELOW_BYTES - 1, COPY_BELOW_BYTES] {
        let buffer = Bytes::from(vec![1; 64 << 10]);
        let mut piece = buffer.clone();
        log.append_first(&mut piece, len_bytes);
        assert_eq!(piece.len(), buffer.len() - len_bytes);
        drop(piece);
        assert_eq!(buffer.is_unique(), len_bytes < COPY_BELOW_BYTES, "{len_bytes}");
    }
}

#[test]
fn what_stands_behind_a_long_piece_is_kept_with_it() {
    let buffer = Bytes::from((0..=255).cycle().take(4 * COPY_BELOW_BYTES).collect::<Vec<u8>>());
    for (gap, len_bytes) in
        [(0, COPY_NEXT_BELOW_BYTES), (0, COPY_NEXT_BELOW_BYTES - 1), (1, COPY_NEXT_BELOW_BYTES)]
    {
        let mut log = Log::new(0, 1 << 20);
        log.activate();
        let mut rest = buffer.clone();
        log.append_first(&mut rest, COPY_BELOW_BYTES);
        rest.advance(gap);
        log.append_first(&mut rest, len_bytes);
        log.trim();
        let mut slices = Vec::new();
        log.slices(0, 1 << 20, 10, &mut slices);
        assert_eq!(
            slices.concat(),
            [&buffer[..COPY_BELOW_BYTES], &buffer[COPY_BELOW_BYTES + gap..][..len_bytes]].concat()
        );
        let is_kept = slices[1].as_ptr() == buffer[COPY_BELOW_BYTES + gap..].as_ptr();
        assert_eq!(is_kept, gap == 0 && len_bytes == COPY_NEXT_BELOW_BYTES, "{gap} {len_bytes}");
    }
}

#[test]
fn psync_range_is_that_of_redis() {
    let mut log = Log::new(100, 50);
    assert!(!log.can_continue_with(101), "inactive");
    log.activate();
    // Nothing written yet: the very next byte can be had, and only it.
    assert_eq!((log.first_byte(), log.histlen_bytes()), (101, 0));
    assert_eq!([100, 101, 102].map(|byte| log.can_continue_with(byte)), [false, true, false]);
    log.append(Bytes::from_static(&[7; 60]));
    log.trim();
    assert_eq!((log.first_byte(), log.histlen_bytes(), log.end_offset()), (111, 50, 160));
    assert_eq!([110, 111, 160, 161, 162].map(|b| log.can_continue_with(b)), [false, true, true, true, false]);
    assert!(!log.can_continue_with(0) && !log.can_continue_with(u64::MAX));
    log.deactivate();
    assert_eq!((log.first_byte(), log.end_offset()), (0, 160));
    log.append(Bytes::from_static(&[7; 5]));
    log.activate();
    assert_eq!((log.first_byte(), log.histlen_bytes(), log.end_offset()), (166, 0, 165));
}

#[test]
fn large_pieces_are_shared_and_small_ones_gathered() {
    let mut log = Log::new(0, 1 << 20);
    log.activate();
    let large = Bytes::from(vec![1; 1000]);
    let address = large.as_ptr();
    log.append(large);
    for _ in 0..100 {
        log.append(Bytes::from_static(&[2; 100]));
    }
    let mut slices = Vec::new();
    assert_eq!(log.slices(0, u64::MAX, 10, &mut slices), 11_000);
    assert_eq!(slices.len(), 2);
    assert_eq!(slices[0].as_ptr(), address);
}

#[test]
fn law8_long_pieces_are_dropped_elsewhere_and_whole() {
    let mut log = Log::new(0, 10);
    log.activate();
    let long = Bytes::from(vec![1; LONG_PIECE_LEN_BYTES]);
    let address = long.as_ptr();
    let dropped =
        |log: &mut Log| log.take_dropped().iter().map(|b| (b.as_ptr(), b.len())).collect::<Vec<_>>();
    log.append(long);
    log.append(Bytes::from(vec![2; LONG_PIECE_LEN_BYTES - 1]));
    log.append(Bytes::from(vec![3; 4]));
    log.trim();
    assert_eq!(dropped(&mut log), [(address, LONG_PIECE_LEN_BYTES)]);
    let offset = log.end_offset() - 10;
    assert_eq!(bytes_from(&mut log, offset, 100, 9), [2, 2, 2, 2, 2, 2, 3, 3, 3, 3]);
    log.append(Bytes::from(vec![4; LONG_PIECE_LEN_BYTES]));
    log.trim();
    // Its end is still kept.
    assert_eq!((dropped(&mut log), log.histlen_bytes()), (vec![], 10));
    log.reset(7);
    log.trim();
    assert_eq!(dropped(&mut log).len(), 1);
}

/// A piece that counts when it is freed.
struct Counted(Arc<AtomicUsize>);

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &[7; 300]
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn law8_many_pieces_are_freed_some_at_a_time() {
    const PIECES: usize = 10_000;
    for way in ["it ends", "a reader goes", "the backlog shrinks"] {
        let freed = Arc::new(AtomicUsize::new(0));
        let mut log = Log::new(0, if way == "a reader goes" { 300 } else { 1 << 30 });
        log.activate();
        let reader = log.add_reader(0);
        (0..PIECES).for_each(|_| log.append(Bytes::from_owner(Counted(Arc::clone(&freed)))));
        log.trim();
        assert_eq!(freed.load(Ordering::Relaxed), 0);
        log.remove_reader(reader);
        match way {
            "it ends" => log.deactivate(),
            "a reader goes" => log.trim(),
            _ => log.set_backlog_bytes(300),
        }
        let kept = usize::from(way != "it ends");
        assert_eq!(log.histlen_bytes(), kept as u64 * 300);
        let mut before = 0;
        for _ in 0..PIECES {
            let now = freed.load(Ordering::Relaxed);
            assert!(now - before < 1000, "{way}: {now}");
            before = now;
            if !log.is_freeing() {
                break;
            }
            log.trim();
        }
        assert_eq!(before, PIECES - kept, "{way}");
    }
}

#[test]
fn what_is_let_go_is_freed_faster_than_more_is_written() {
    let freed = Arc::new(AtomicUsize::new(0));
    let mut log = Log::new(0, 300);
    log.activate();
    let reader = log.add_reader(0);
    let mut written = 0;
    let mut write = |log: &mut Log, pieces: usize| {
        (0..pieces).for_each(|_| log.append(Bytes::from_owner(Counted(Arc::clone(&freed)))));
        log.trim();
        written += pieces;
        written - freed.load(Ordering::Relaxed)
    };
    let mut left = write(&mut log, 10_000);
    log.remove_reader(reader);
    while left > 5000 {
        let now_left = write(&mut log, 2000);
        assert!(now_left < left, "{now_left}");
        left = now_left;
    }
}

#[test]
fn no_loss_a_reader_keeps_what_it_has_not_had() {
    let mut log = Log::new(0, 10);
    log.activate();
    let slow = log.add_reader(0);
    log.append(Bytes::from_static(&[1; 1000]));
    log.trim();
    assert_eq!(log.histlen_bytes(), 1000);
    log.advance(slow, 600);
    log.trim();
    assert_eq!(log.first_byte(), 601);
    log.remove_reader(slow);
    log.trim();
    assert_eq!(log.first_byte(), 991);
}

#[test]
fn limits_cut_off_at_once_or_after_a_time() {
    let limits = ReaderLimits { hard_bytes: 1000, soft_bytes: 100, soft_ms: 5000 };
    let mut log = Log::new(0, 10);
    log.activate();
    let id = log.add_reader(0);
    log.append(Bytes::from_static(&[1; 100]));
    assert_eq!(log.check_limits(id, limits, 0), None);
    log.append(Bytes::from_static(&[1; 1]));
    assert_eq!(log.check_limits(id, limits, 1000), None);
    assert_eq!(log.check_limits(id, limits, 6000), None);
    assert_eq!(log.check_limits(id, limits, 6001), Some(Exceeded::Soft));
    // A moment below the limit starts the time anew.
    log.advance(id, 1);
    assert_eq!(log.check_limits(id, limits, 6002), None);
    log.append(Bytes::from_static(&[1; 900]));
    assert_eq!(log.check_limits(id, limits, 11_100), None);
    log.append(Bytes::from_static(&[1; 1]));
    assert_eq!(log.check_limits(id, limits, 11_101), Some(Exceeded::Hard));
    log.set_backlog_bytes(1001);
    assert_eq!(log.check_limits(id, limits, 11_101), None, "the backlog's size counts if it is larger");
    let none = ReaderLimits { hard_bytes: 0, soft_bytes: 0, soft_ms: 0 };
    assert_eq!(log.check_limits(id, none, 99_999), None);
}
