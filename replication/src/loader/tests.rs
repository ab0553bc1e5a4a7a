//! Whole snapshots through a loader into shards, in pieces, damaged and cut off.

use super::*;
use braid_core::command::{Args, CommandId, Outcome, Segment, Time};
use braid_core::rdb::{Writer, WriterOptions, kind};
use braid_core::resp::Reply;
use braid_core::table::HashKey;
use braid_shards::{ConnId, Host, LoadAnswer, Mark, Outlet, Parcel, Shard, ShardConfig};
use bytes::Bytes;
use std::any::Any;
use std::collections::VecDeque;

#[derive(Default)]
struct Told {
    answers: Vec<(ShardId, LoadAnswer)>,
}

impl Host for Told {
    fn reply(&mut self, _: ConnId, _: &[u8], _: Vec<(usize, Bytes)>, _: bool) {}
    fn session(&mut self, _: ConnId, _: CommandId, _: Args<'_>, _: &mut Reply) -> Outcome {
        Ok(())
    }
    fn upper(&mut self, _: ShardId, _: Box<dyn Any + Send>) {}
    fn segment(&mut self, _: u64, _: Segment, _: Option<Mark>) {}
    fn load_answer(&mut self, from: ShardId, answer: LoadAnswer) {
        self.answers.push((from, answer));
    }
    fn took(&mut self, _: ConnId, _: u64, _: Args<'_>) {}
    fn monotonic_ns(&mut self) -> u64 {
        0
    }
}

#[derive(Default)]
struct Out(VecDeque<(ShardId, Box<Parcel>)>);

impl Outlet for Out {
    fn deliver(&mut self, to: ShardId, parcel: Box<Parcel>) -> Result<(), Box<Parcel>> {
        self.0.push_back((to, parcel));
        Ok(())
    }
}

struct Node {
    shards: Vec<Shard>,
    told: Told,
    map: SlotMap,
    load: u64,
}

impl Node {
    fn new(shards: usize) -> Self {
        let map = SlotMap::new(shards);
        let counters = std::sync::Arc::new(braid_shards::Counters::new(shards));
        let config = |id: usize| ShardConfig {
            id: id as ShardId,
            map,
            databases: 4,
            hash: HashKey::from_seed(5),
            seed: 6,
            settings: Default::default(),
            counters: std::sync::Arc::clone(&counters),
            home: 0,
        };
        let shards = (0..shards).map(|id| Shard::new(config(id))).collect();
        Self { shards, told: Told::default(), map, load: 0 }
    }

    fn exchange(&mut self) {
        let mut out = Out::default();
        loop {
            for from in 0..self.shards.len() {
                self.shards[from].set_time(Time { us: 1_000_000 });
                self.shards[from].load_some();
                self.shards[from].settle(&mut self.told);
                self.shards[from].end_tick(&mut out, &mut self.told);
                while let Some((to, parcel)) = out.0.pop_front() {
                    self.shards[usize::from(to)].receive(from as ShardId, parcel, &mut self.told);
                }
            }
            if !self.shards.iter().any(Shard::has_outgoing) {
                return;
            }
        }
    }

    /// Feeds a whole snapshot in pieces. Returns what it said and how many bytes of the input were behind its end.
    fn load(&mut self, file: &[u8], rng: &mut fastrand::Rng) -> Result<(LoadedInfo, usize), LoadFault> {
        self.load += 1;
        let load = self.load;
        let mut loader = Loader::new(self.map, 4, 1 << 20, true);
        self.shards[0].begin_load(load);
        self.shards[0].settle(&mut self.told);
        let mut assembly = Assembly::new(self.map.shards());
        let outcome = self.drive(&mut loader, &mut assembly, file, rng);
        self.exchange();
        self.told.answers.clear();
        let successors = assembly.into_successors();
        if outcome.is_ok() {
            self.shards[0].begin_swap(successors, |_| {});
        } else {
            self.shards[0].drop_load(load, successors);
        }
        self.shards[0].settle(&mut self.told);
        for _ in 0..10 {
            self.exchange();
        }
        outcome
    }

    fn drive(
        &mut self,
        loader: &mut Loader,
        assembly: &mut Assembly,
        file: &[u8],
        rng: &mut fastrand::Rng,
    ) -> Result<(LoadedInfo, usize), LoadFault> {
        let mut rest = file;
        while !loader.is_read() {
            if rest.is_empty() {
                loader.finish_input()?;
                unreachable!("a file that ends early is a fault");
            }
            let (chunk, tail) = rest.split_at(rng.usize(1..=rest.len().min(5000)));
            let consumed = loader.feed(chunk)?;
            rest = if loader.is_read() { &rest[consumed..] } else { tail };
            self.step(loader, assembly)?;
        }
        self.shards[0].finish_load(self.load);
        self.shards[0].settle(&mut self.told);
        for _ in 0..1000 {
            if assembly.is_whole() {
                assert!(loader.is_settled());
                return Ok((loader.info().clone(), rest.len()));
            }
            self.step(loader, assembly)?;
        }
        panic!("a load that never ends");
    }

    fn step(&mut self, loader: &mut Loader, assembly: &mut Assembly) -> Result<(), LoadFault> {
        for (to, batch) in loader.take_batches() {
            self.shards[0].send_load_batch(self.load, 0, to, batch);
        }
        self.exchange();
        for (from, answer) in std::mem::take(&mut self.told.answers) {
            match answer {
                LoadAnswer::Batch { len_bytes, outcome, .. } => loader.decoded(len_bytes, outcome)?,
                LoadAnswer::Whole { successor, .. } => assembly.add(from, successor),
            }
        }
        Ok(())
    }

    fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.keyspace().unwrap().len()).sum()
    }
}

fn file(keys: u32, rng: &mut fastrand::Rng) -> Vec<u8> {
    let mut writer = Writer::new(WriterOptions { version: 10, compress: true, checksum: true });
    writer.header();
    writer.aux(b"redis-ver", b"7.0.15");
    writer.aux(b"repl-stream-db", b"3");
    writer.aux(b"repl-id", &[b'a'; 40]);
    writer.aux(b"repl-offset", b"1234");
    for number in 0..keys {
        if number % 50 == 0 {
            writer.select_db(u64::from(number / 50 % 4));
            writer.resize_db(50, 0);
        }
        if rng.bool() {
            writer.expire_at_ms(rng.i64(1..1 << 45));
        }
        let key = format!("key{number}");
        if number % 40 == 7 {
            // Longer than a batch.
            writer.key(kind::SET, key.as_bytes());
            writer.length(2000);
            (0..2000)
                .for_each(|member| writer.string(format!("a member of some length {member}").as_bytes()));
        } else {
            writer.key(kind::STRING, key.as_bytes());
            writer.string(&vec![b'v'; rng.usize(0..300)]);
        }
    }
    writer.eof();
    writer.take()
}

#[test]
fn a_snapshot_is_loaded_whatever_the_pieces_and_the_number_of_shards() {
    let mut rng = fastrand::Rng::with_seed(3);
    for shards in [1, 2, 5] {
        let mut node = Node::new(shards);
        let mut file = file(300, &mut rng);
        file.extend_from_slice(b"*1\r\n$4\r\nPING\r\n");
        let (info, behind) = node.load(&file, &mut rng).unwrap();
        assert_eq!((info.keys, behind), (300, 14));
        assert_eq!((info.repl_offset, info.stream_db, info.version), (Some(1234), Some(3), 10));
        assert_eq!(info.repl_id, ReplId::parse(&[b'a'; 40]));
        assert_eq!(node.len(), 300);
        let mut checker = Loader::checking(node.map, 4, 1 << 20, true);
        let used = file.chunks(1000).map(|chunk| match checker.is_read() {
            true => 0,
            false => checker.feed(chunk).unwrap(),
        });
        assert_eq!(used.sum::<usize>(), file.len() - 14);
        assert!(checker.is_settled() && checker.take_batches().is_empty(), "it keeps nothing");
        assert_eq!(checker.keys(), 300);
    }
}

#[test]
fn no_loss_a_damaged_snapshot_is_refused_with_its_position_and_the_dataset_stays() {
    let mut rng = fastrand::Rng::with_seed(4);
    let mut node = Node::new(3);
    let good = file(120, &mut rng);
    node.load(&good, &mut rng).unwrap();
    for _ in 0..300 {
        let mut bad = good.clone();
        let at = rng.usize(..bad.len());
        if rng.bool() {
            bad.truncate(at);
        } else {
            bad[at] ^= 1 << rng.u8(..8);
            if at < 9 {
                // A version, which may be another that is read.
                continue;
            }
        }
        let fault = node.load(&bad, &mut rng).expect_err("damaged");
        assert!(fault.position <= bad.len() as u64, "{fault}");
        assert_eq!(node.len(), 120);
    }
    let (info, _) = node.load(&good, &mut rng).unwrap();
    assert_eq!(info.keys, 120);
}

#[test]
fn what_this_node_lacks_is_named() {
    let mut rng = fastrand::Rng::with_seed(5);
    let mut node = Node::new(2);
    let mut refused = |write: &dyn Fn(&mut Writer)| {
        let mut writer = Writer::new(WriterOptions::default());
        writer.header();
        write(&mut writer);
        writer.eof();
        node.load(&writer.take(), &mut rng).unwrap_err().to_string()
    };
    assert_eq!(refused(&|writer| writer.function(b"#!lua")), "Functions are not supported at byte 9");
    assert_eq!(
        refused(&|writer| writer.select_db(4)),
        "Database 4 does not exist here: there are 4 at byte 9"
    );
    let stream = |writer: &mut Writer| writer.key(kind::STREAM_LISTPACKS_3, b"s");
    assert_eq!(refused(&stream), "Values of type stream are not supported at byte 9");
    let twice = |writer: &mut Writer| {
        for _ in 0..2 {
            writer.key(kind::STRING, b"k");
            writer.string(b"v");
        }
    };
    assert_eq!(refused(&twice), "Key 'k' comes twice at byte 17");
}

#[test]
fn the_feeder_is_asked_to_pause_when_much_is_under_way() {
    let mut loader = Loader::new(SlotMap::new(2), 4, 1 << 30, true);
    let mut writer = Writer::new(WriterOptions { version: 10, compress: false, checksum: true });
    writer.header();
    for number in 0..30 {
        writer.key(kind::STRING, format!("key{number}").as_bytes());
        writer.string(&vec![b'v'; 1 << 20]);
    }
    let bytes = writer.take();
    let mut fed = 0;
    for chunk in bytes.chunks(100_000) {
        if !loader.wants_more() {
            break;
        }
        fed += loader.feed(chunk).unwrap();
    }
    assert!((16 << 20..20 << 20).contains(&fed), "{fed}");
    let sent: usize = loader.take_batches().iter().map(|(_, batch)| batch.len_bytes()).sum();
    assert_eq!(sent, loader.in_flight_bytes);
    loader.decoded(4 << 20, Ok(1)).unwrap();
    assert!(loader.wants_more());
}
