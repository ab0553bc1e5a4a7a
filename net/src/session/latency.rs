//! `LATENCY`: what held a shard up for longer than `latency-monitor-threshold`, and how long commands take.

use super::table::Call;
use braid_core::command::{Error, registry};
use braid_core::commands::object::help;
use braid_core::resp::Reply;
use braid_shards::stats::{CallTotals, slot_name};
use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;

/// Samples kept for each event, one a second at most.
const SAMPLES: usize = 160;

/// What can be recorded: an event's name in Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Event {
    Command,
    FastCommand,
    ExpireCycle,
}

impl Event {
    const ALL: [Self; 3] = [Event::Command, Event::FastCommand, Event::ExpireCycle];

    fn name(self) -> &'static str {
        match self {
            Event::Command => "command",
            Event::FastCommand => "fast-command",
            Event::ExpireCycle => "expire-cycle",
        }
    }

    fn by_name(name: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|event| event.name().as_bytes().eq_ignore_ascii_case(name))
    }
}

/// One event's samples: the longest duration of each second that had any.
#[derive(Default)]
struct Series {
    /// (seconds since the Unix epoch, milliseconds), oldest first.
    samples: VecDeque<(u64, u64)>,
    /// Of all time, even if no longer among the samples.
    max_ms: u64,
}

impl Series {
    fn add(&mut self, unix_s: u64, ms: u64) {
        self.max_ms = self.max_ms.max(ms);
        if let Some(last) = self.samples.back_mut().filter(|(at_s, _)| *at_s == unix_s) {
            last.1 = last.1.max(ms);
            return;
        }
        if self.samples.len() == SAMPLES {
            self.samples.pop_front();
        }
        self.samples.push_back((unix_s, ms));
    }
}

/// All events' samples.
#[derive(Default)]
pub struct Latency(BTreeMap<Event, Series>);

impl Latency {
    pub fn add(&mut self, event: Event, unix_s: u64, duration_ms: u64) {
        self.0.entry(event).or_default().add(unix_s, duration_ms);
    }

    fn latest(&self, out: &mut Reply) {
        out.array(self.0.len());
        for (event, series) in &self.0 {
            let (at_s, ms) = series.samples.back().expect("a series begins with a sample");
            out.array(4);
            out.bulk(event.name().as_bytes());
            out.int(*at_s as i64);
            out.int(*ms as i64);
            out.int(series.max_ms as i64);
        }
    }

    fn history(&self, event: Option<Event>, out: &mut Reply) {
        let series = event.and_then(|event| self.0.get(&event));
        out.array(series.map_or(0, |series| series.samples.len()));
        for (at_s, ms) in series.iter().flat_map(|series| &series.samples) {
            out.array(2);
            out.int(*at_s as i64);
            out.int(*ms as i64);
        }
    }

    /// Forgets the named events, or all; gives how many were forgotten.
    fn reset(&mut self, names: &[&[u8]]) -> usize {
        if names.is_empty() {
            return std::mem::take(&mut self.0).len();
        }
        let events = names.iter().filter_map(|name| Event::by_name(name));
        events.filter(|event| self.0.remove(event).is_some()).count()
    }

    /// A graph of an event's samples: time runs to the right, each column's age stands below it.
    fn graph(&self, event: Event, now_s: u64) -> Option<String> {
        const ROWS: u64 = 4;
        let series = self.0.get(&event)?;
        let low = series.samples.iter().map(|sample| sample.1).min()?;
        let high = series.samples.iter().map(|sample| sample.1).max()?;
        let mut text = format!(
            "{} - high {high} ms, low {low} ms (all time high {} ms)\n{}\n",
            event.name(),
            series.max_ms,
            "-".repeat(80)
        );
        // Half rows: a column ends in `_` (lower half) or `o`, or `#` at its top, with `|` below.
        let height = |ms: u64| (ms - low) * (2 * ROWS - 1) / (high - low).max(1);
        for row in (0..ROWS).rev() {
            let cell = |(_, ms): &(u64, u64)| match height(*ms) {
                h if h / 2 > row => '|',
                h if h / 2 < row => ' ',
                _ if *ms == high => '#',
                h if h % 2 == 1 => 'o',
                _ => '_',
            };
            text.extend(series.samples.iter().map(cell));
            text.push('\n');
        }
        let labels: Vec<String> =
            series.samples.iter().map(|(at_s, _)| age(now_s.saturating_sub(*at_s))).collect();
        let rows = labels.iter().map(String::len).max().unwrap_or(0);
        for row in 0..rows {
            text.push('\n');
            text.extend(
                labels.iter().map(|label| label.as_bytes().get(row).map_or(' ', |byte| char::from(*byte))),
            );
        }
        text.push('\n');
        Some(text)
    }

    /// What can be said of the samples in words.
    fn doctor(&self, threshold_ms: u64, slowlog_us: i64, now_s: u64) -> String {
        if threshold_ms == 0 {
            return "Latency monitoring is off: nothing is recorded. Switch it on with CONFIG SET \
                    latency-monitor-threshold <milliseconds>.\n"
                .to_owned();
        }
        if self.0.is_empty() {
            return format!(
                "No event took {threshold_ms} ms or longer since the server started or LATENCY RESET.\n"
            );
        }
        let mut text = String::from("Events that took longer than the threshold:\n\n");
        for (number, (event, series)) in self.0.iter().enumerate() {
            let count = series.samples.len() as u64;
            let average = series.samples.iter().map(|sample| sample.1).sum::<u64>() / count;
            let deviation =
                series.samples.iter().map(|sample| sample.1.abs_diff(average)).sum::<u64>() / count;
            let first_s = series.samples.front().expect("a series begins with a sample").0;
            let period_s = now_s.saturating_sub(first_s) as f64 / count as f64;
            let _ = writeln!(
                text,
                "{}. {}: {count} latency spikes (average {average}ms, mean deviation {deviation}ms, period {period_s:.2} \
                 sec). Worst all time event {}ms.",
                number + 1,
                event.name(),
                series.max_ms
            );
        }
        text.push_str("\nWhat to do:\n\n");
        let has = |event| self.0.contains_key(&event);
        if has(Event::Command) {
            if slowlog_us < 0 || slowlog_us as u64 > threshold_ms * 1000 {
                let _ = writeln!(
                    text,
                    "- The slow log does not hold all of these commands: CONFIG SET slowlog-log-slower-than {}.",
                    threshold_ms * 1000
                );
            }
            text.push_str("- See SLOWLOG GET for the commands. Those that walk a large value or many keys hold up their shard.\n");
        }
        if has(Event::FastCommand) {
            text.push_str(
                "- Commands of constant time were slow: the machine is probably short of processors. Start no more shards \
                 than there are free ones, and look for other processes and for a hypervisor that takes time away.\n",
            );
        }
        if has(Event::ExpireCycle) {
            text.push_str(
                "- Removing expired keys took long: spread the expiry of keys that are set together.\n",
            );
        }
        text
    }
}

/// An age in at most three characters: seconds, minutes, hours or days.
fn age(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86_400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

fn histogram(call: &mut Call<'_>) {
    let totals = call.front.node.statistics.commands();
    let wanted = &call.args[2..];
    let is_wanted = |slot: usize| {
        let name = slot_name(slot);
        let named = |word: &&[u8]| {
            let container = name.split('|').next().unwrap_or_default();
            word.eq_ignore_ascii_case(name.as_bytes())
                || (word.eq_ignore_ascii_case(container.as_bytes()) && registry().find(word).is_some())
        };
        wanted.is_empty() || wanted.iter().any(named)
    };
    let found: Vec<(usize, &CallTotals)> = totals.histograms().filter(|(slot, _)| is_wanted(*slot)).collect();
    let out = &mut *call.out;
    out.map(found.len());
    for (slot, totals) in found {
        out.bulk(slot_name(slot).as_bytes());
        out.map(2);
        out.bulk(b"calls");
        out.int(totals.tracked() as i64);
        out.bulk(b"histogram_usec");
        let steps = totals.cumulative();
        out.map(steps.len());
        for (us, count) in steps {
            out.int(us as i64);
            out.int(count as i64);
        }
    }
}

/// `LATENCY DOCTOR|GRAPH|HISTOGRAM|HISTORY|LATEST|RESET|HELP`
pub fn latency(call: &mut Call<'_>) -> Result<(), Error> {
    let args = call.args;
    if args.is(1, "histogram") {
        histogram(call);
        return Ok(());
    }
    let now_s = crate::node::unix_us() / 1_000_000;
    let Call { front, out, .. } = call;
    let mut latency = front.node.latency();
    match () {
        () if args.is(1, "latest") => latency.latest(out),
        () if args.is(1, "history") => latency.history(Event::by_name(args[2]), out),
        () if args.is(1, "reset") => out.int(latency.reset(&args[2..]) as i64),
        () if args.is(1, "graph") => {
            let graph = Event::by_name(args[2]).and_then(|event| latency.graph(event, now_s));
            let name = String::from_utf8_lossy(args[2]).into_owned();
            let missing = || Error::owned(format!("ERR No samples available for event '{name}'"));
            out.verbatim(&graph.ok_or_else(missing)?);
        }
        () if args.is(1, "doctor") => {
            let config = &front.config;
            let text =
                latency.doctor(config.latency_monitor_threshold_ms, config.slowlog_log_slower_than_us, now_s);
            out.verbatim(&text);
        }
        () => help(
            out,
            "LATENCY",
            &[
                ("DOCTOR", "A report in words."),
                ("GRAPH <event>", "A graph of an event's samples."),
                ("HISTOGRAM [<command> ...]", "How many calls of commands took how long."),
                ("HISTORY <event>", "An event's samples: time and milliseconds."),
                ("LATEST", "The latest sample of every event."),
                ("RESET [<event> ...]", "Forget the samples of events, or of all."),
            ],
        ),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled() -> Latency {
        let mut latency = Latency::default();
        for i in 0..200 {
            latency.add(Event::Command, 1000 + i / 2, 10 + i);
        }
        latency.add(Event::FastCommand, 1000, 7);
        latency
    }

    #[test]
    fn a_second_has_one_sample_and_old_ones_go() {
        let mut latency = filled();
        let series = &latency.0[&Event::Command];
        assert_eq!((series.samples.len(), series.samples[0], series.max_ms), (100, (1000, 11), 209));
        for i in 0..SAMPLES as u64 {
            latency.add(Event::Command, 5000 + i, 1);
        }
        let series = &latency.0[&Event::Command];
        assert_eq!((series.samples.len(), series.samples[0], series.max_ms), (SAMPLES, (5000, 1), 209));
        let mut out = Reply::default();
        latency.latest(&mut out);
        let text = String::from_utf8(out.buf).unwrap();
        assert_eq!(
            text,
            "*2\r\n*4\r\n$7\r\ncommand\r\n:5159\r\n:1\r\n:209\r\n*4\r\n$12\r\nfast-command\r\n:1000\r\n:7\r\n:7\r\n"
        );
        assert_eq!(latency.reset(&[b"COMMAND", b"none"]), 1);
        assert_eq!(latency.reset(&[]), 1);
    }

    #[test]
    fn a_graph_has_a_column_for_each_sample() {
        let mut latency = Latency::default();
        for (at_s, ms) in [(100, 10), (160, 40), (162, 80), (165, 10)] {
            latency.add(Event::ExpireCycle, at_s, ms);
        }
        let graph = latency.graph(Event::ExpireCycle, 165).unwrap();
        let wanted = format!(
            "expire-cycle - high 80 ms, low 10 ms (all time high 80 ms)\n{}\n  # \n  | \n o| \n_||_\n\n1530\nmsss\n",
            "-".repeat(80)
        );
        assert_eq!(graph, wanted);
        assert_eq!(latency.graph(Event::Command, 165), None);
    }

    #[test]
    fn the_doctor_tells_what_it_knows() {
        assert!(filled().doctor(0, 10_000, 2000).contains("latency-monitor-threshold"));
        assert!(Latency::default().doctor(5, 10_000, 2000).starts_with("No event took 5 ms"));
        let text = filled().doctor(5, 10_000, 1200);
        assert!(text.contains("1. command: 100 latency spikes"), "{text}");
        assert!(
            text.contains("slowlog-log-slower-than 5000") && text.contains("2. fast-command: 1 "),
            "{text}"
        );
        assert!(!filled().doctor(50, 10_000, 1200).contains("slowlog-log-slower-than"));
    }
}
