//! Snapshots that go into files, for the disk or for replicas.

use super::*;

/// Makes the cut of a snapshot that goes into a file, and its only piece. Returns the file.
fn make_file(world: &mut World, keeps: bool) -> (u64, Vec<u8>) {
    let snapshot = match world.home.take_actions().as_slice() {
        [
            Action::File { snapshot, step: FileStep::Create { keeps: is_kept } },
            Action::Cut { snapshot: cut, with_data: true },
        ] if snapshot == cut && keeps == *is_kept => *snapshot,
        actions => panic!("{actions:?}"),
    };
    let ticket = world.take_ticket();
    world.home.segment(ticket, Segment::default(), Some(Mark::Cut(snapshot)));
    world.piece(snapshot, "key", true);
    let mut file = Vec::new();
    for (id, step) in file_steps(world) {
        assert_eq!(id, snapshot);
        match step {
            FileStep::Write(bytes) => {
                file.extend_from_slice(&bytes);
                world.home.file_written(snapshot, bytes.len() as u64);
            }
            FileStep::Finish => return (snapshot, file),
            step => panic!("{step:?}"),
        }
    }
    panic!("never finished");
}

#[test]
fn law5_a_snapshot_is_saved_with_nobody_following_and_says_nothing_of_a_history() {
    let mut world = World::new(1, rules());
    assert!(world.home.request_save(world.now_ms));
    assert!(!world.home.request_save(world.now_ms), "one at a time");
    let (snapshot, file) = make_file(&mut world, true);
    assert!(!world.home.is_saving());
    world.home.file_done(snapshot, Ok(file.len() as u64), world.now_ms);
    let text = String::from_utf8_lossy(&file).into_owned();
    assert!(text.starts_with("REDIS0010") && text.contains("key") && !text.contains("repl-id"));
    assert!(!world.home.log().is_active());
}

#[test]
fn a_save_waits_for_the_replicas_snapshot_and_they_for_it() {
    let mut world = World::new(1, rules());
    let replica = world.attach();
    let first = world.cut();
    assert!(world.home.request_save(world.now_ms));
    assert!(world.home.take_actions().is_empty());
    world.piece(first, "a", true);
    world.drain();
    assert_eq!(world.home.next_tick_ms().map(|at_ms| at_ms <= world.now_ms), Some(true));
    world.home.tick(world.now_ms);
    let second = world.attach();
    let (_, file) = make_file(&mut world, true);
    assert!(String::from_utf8_lossy(&file).contains("repl-id"), "there is a history by now");
    world.home.tick(world.now_ms);
    let third = world.cut();
    world.piece(third, "c", true);
    world.drain();
    assert!(world.received[&replica].starts_with(b"+FULLRESYNC"));
    assert!(world.received[&second].starts_with(b"+FULLRESYNC"));
}

#[test]
fn a_save_that_is_given_up_leaves_nothing_wherever_it_was() {
    let mut world = World::new(1, rules());
    world.home.request_save(world.now_ms);
    let snapshot = match world.home.take_actions().as_slice() {
        [Action::File { .. }, Action::Cut { snapshot, .. }] => *snapshot,
        actions => panic!("{actions:?}"),
    };
    // The cut is under way.
    world.home.cancel_save();
    let dropped = Action::File { snapshot, step: FileStep::Drop };
    assert_eq!(world.home.take_actions(), [Action::Abort { snapshot }, dropped]);
    let ticket = world.take_ticket();
    world.home.segment(ticket, Segment::default(), Some(Mark::Cut(snapshot)));
    assert_eq!(world.home.take_actions(), [Action::Abort { snapshot }]);
    // The next one works.
    world.home.request_save(world.now_ms);
    let (next, file) = make_file(&mut world, true);
    assert!(next > snapshot && !file.is_empty());
}

#[test]
fn a_file_is_written_once_and_sent_to_all_who_came_in_time() {
    let to_disk = Rules { sharing: Policy { is_diskless: false, ..rules().sharing }, ..rules() };
    let mut world = World::new(1, to_disk);
    let first = world.attach();
    let (snapshot, file) = make_file(&mut world, false);
    // It joins while the file is being finished.
    let second = world.attach();
    assert!(file_steps(&mut world).is_empty());
    world.home.file_done(snapshot, Ok(file.len() as u64), world.now_ms);
    for _ in 0..10 {
        for (id, step) in file_steps(&mut world) {
            assert_eq!(id, snapshot);
            match step {
                FileStep::Read { replica, offset, len_bytes } => {
                    let bytes = file[offset as usize..][..len_bytes as usize].to_vec();
                    world.home.file_read(replica, Ok(bytes.into()));
                }
                FileStep::Drop => {
                    for replica in [first, second] {
                        world.drain();
                        let received = &world.received[&replica];
                        let header = format!("${}\r\n", file.len());
                        let at = received.windows(header.len()).position(|part| part == header.as_bytes());
                        assert_eq!(&received[at.unwrap() + header.len()..], file);
                    }
                    world.write("after");
                    world.drain();
                    assert!(
                        world.received[&second]
                            .ends_with(&world.received[&first][world.received[&first].len() - 5..])
                    );
                    return;
                }
                step => panic!("{step:?}"),
            }
        }
        world.drain();
    }
    panic!("the file is never dropped");
}

#[test]
fn nobody_joins_a_file_whose_readers_left_while_it_was_finished() {
    let sharing = Policy { is_diskless: false, ..rules().sharing };
    for is_replaced in [false, true] {
        let mut world = World::new(1, Rules { sharing, backlog_bytes: 1000, ..rules() });
        if is_replaced {
            world.home.start_as_replica();
            world.home.set_link(true);
            world.home.replace_history(ReplId::parse(&[b'a'; 40]).unwrap(), 100, 0);
        }
        let first = world.attach();
        let (snapshot, file) = make_file(&mut world, false);
        if is_replaced {
            // What is in the file is not the dataset any more.
            world.home.replace_history(ReplId::parse(&[b'b'; 40]).unwrap(), 90, 0);
        } else {
            world.home.detach(first);
            // The log has the bytes behind the cut no longer.
            (0..3).for_each(|_| world.write(&"x".repeat(600)));
            world.home.trim();
        }
        let second = world.attach();
        assert_eq!(world.take(second), b"", "it gets a snapshot of its own");
        world.home.take_actions();
        world.home.file_done(snapshot, Ok(file.len() as u64), world.now_ms);
        let actions = world.home.take_actions();
        assert!(actions.contains(&Action::File { snapshot, step: FileStep::Drop }));
        assert!(actions.contains(&Action::Cut { snapshot: snapshot + 1, with_data: true }));
    }
}

#[test]
fn nobody_joins_a_file_behind_whose_cut_the_log_lost_something() {
    let sharing = Policy { is_diskless: false, ..rules().sharing };
    let with_disk = Rules { sharing, backlog_disk_bytes: 64 << 20, ..rules() };
    for is_lost in [false, true] {
        let mut world = World::new(1, with_disk);
        let first = world.attach();
        let (snapshot, file) = make_file(&mut world, false);
        let mut segments = BTreeMap::new();
        (0..20).for_each(|_| {
            world.write(&"x".repeat(1 << 20));
            super::absence::serve_disk(&mut world, &mut segments);
        });
        assert!(!segments.is_empty());
        if is_lost {
            world.home.set_rules(Rules { backlog_disk_bytes: 0, ..with_disk });
        }
        let second = world.attach();
        assert_eq!(world.take(second).is_empty(), is_lost, "it gets a snapshot of its own");
        world.home.file_done(snapshot, Ok(file.len() as u64), world.now_ms);
        let actions = world.home.take_actions();
        assert_eq!(actions.contains(&Action::Cut { snapshot: snapshot + 1, with_data: true }), is_lost);
        world.home.detach(first);
    }
}

#[test]
fn no_loss_a_file_that_cannot_be_written_closes_those_who_wait_for_it() {
    let to_disk = Rules { sharing: Policy { is_diskless: false, ..rules().sharing }, ..rules() };
    let mut world = World::new(1, to_disk);
    let replica = world.attach();
    let snapshot = match world.home.take_actions().as_slice() {
        [Action::File { .. }, Action::Cut { snapshot, .. }] => *snapshot,
        actions => panic!("{actions:?}"),
    };
    let ticket = world.take_ticket();
    world.home.segment(ticket, Segment::default(), Some(Mark::Cut(snapshot)));
    world.home.file_done(snapshot, Err("disk full".into()), world.now_ms);
    let actions = world.home.take_actions();
    let why = "its snapshot failed: disk full".to_owned();
    assert!(
        actions.contains(&Action::Abort { snapshot }) && actions.contains(&Action::Close { replica, why })
    );
    let drops = |action: &&Action| **action == Action::File { snapshot, step: FileStep::Drop };
    assert_eq!(actions.iter().filter(drops).count(), 1);
    world.home.detach(replica);
    world.attach();
    make_file(&mut world, false);
}

#[test]
fn nothing_is_due_while_a_save_waits_for_a_file_that_is_being_finished() {
    let to_disk = Rules { sharing: Policy { is_diskless: false, ..rules().sharing }, ..rules() };
    let mut world = World::new(1, to_disk);
    world.attach();
    let (snapshot, file) = make_file(&mut world, false);
    assert!(world.home.request_save(world.now_ms));
    world.now_ms += 10;
    world.home.tick(world.now_ms);
    assert!(
        world.home.next_tick_ms().is_none_or(|at_ms| at_ms > world.now_ms),
        "it would be asked again and again"
    );
    world.home.file_done(snapshot, Ok(file.len() as u64), world.now_ms);
    let begins =
        |action: &Action| matches!(action, Action::File { step: FileStep::Create { keeps: true }, .. });
    assert!(world.home.take_actions().iter().any(begins));
}
