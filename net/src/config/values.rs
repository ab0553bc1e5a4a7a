//! The types of values a directive can have, and how each is read from and written as text.
//!
//! Everything here is a pure function on strings. Error texts are Redis's, because operators search for them.

use braid_replication::link::Target;
use std::fmt;

/// A value with a few named alternatives, such as `loglevel`.
pub trait Choice: Copy + 'static {
    /// The names in the order of the variants; an alternative's position is its index.
    const NAMES: &'static [&'static str];
    /// The alternative at `index`, which must be smaller than `NAMES.len()`.
    fn from_index(index: usize) -> Self;
    /// The position of this alternative in [`Choice::NAMES`].
    fn index(self) -> usize;
    /// The name as written in the configuration.
    fn name(self) -> &'static str {
        Self::NAMES[self.index()]
    }
}

/// Declares an enum and its [`Choice`] implementation from one list, so that names and variants cannot drift apart.
macro_rules! choice {
    ($(#[$meta:meta])* $type:ident { $($(#[$variant_meta:meta])* $variant:ident = $name:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $type { $($(#[$variant_meta])* $variant),+ }
        impl Choice for $type {
            const NAMES: &'static [&'static str] = &[$($name),+];
            fn from_index(index: usize) -> Self {
                [$($type::$variant),+][index]
            }
            fn index(self) -> usize {
                self as usize
            }
        }
        impl Default for $type {
            fn default() -> Self {
                Self::from_index(0)
            }
        }
    };
}

choice! {
    /// `maxmemory-policy`: which keys go when memory is full.
    EvictionPolicy {
        VolatileLru = "volatile-lru", VolatileLfu = "volatile-lfu", VolatileRandom = "volatile-random",
        VolatileTtl = "volatile-ttl", AllkeysLru = "allkeys-lru", AllkeysLfu = "allkeys-lfu",
        AllkeysRandom = "allkeys-random", NoEviction = "noeviction",
    }
}
choice! {
    /// `appendfsync`: when the append-only file reaches the disk.
    FsyncPolicy { EverySecond = "everysec", Always = "always", No = "no" }
}
choice! {
    /// `repl-diskless-load`: how a replica takes in a snapshot. See `braid_replication::follower::Intake`.
    DisklessLoad {
        Disabled = "disabled",
        OnEmptyDb = "on-empty-db",
        SwapDb = "swapdb",
        FlushBeforeLoad = "flush-before-load",
    }
}
choice! {
    /// `supervised`: whom to tell that the server is ready.
    Supervised { No = "no", Systemd = "systemd", Auto = "auto", Upstart = "upstart" }
}
choice! {
    /// Who may use a guarded command or directive: nobody, everybody, or connections from this host.
    Permission { No = "no", Yes = "yes", Local = "local" }
}
choice! {
    /// `loglevel`, from most to least talkative.
    LogLevel { Debug = "debug", Verbose = "verbose", Notice = "notice", Warning = "warning", Nothing = "nothing" }
}

/// A directive whose value has a shape of its own: a list, a pair, a set of letters.
pub trait Special: Clone + PartialEq {
    /// The placeholder shown in `--help`.
    const EXPECTS: &'static str;
    /// Takes the words of one line. With `replace` the former value is forgotten first; otherwise the line adds to it
    /// where the directive may be repeated. On an error `self` is unspecified; callers work on a copy.
    fn accept(&mut self, words: &[String], replace: bool) -> Result<(), String>;
    /// The value as `CONFIG GET` shows it.
    fn show(&self) -> String;
    /// The lines that give this value: the words of each, without the directive's name. `full` asks for lines that
    /// give it whatever came before them; otherwise they may count on the default.
    fn lines(&self, full: bool) -> Vec<Vec<String>>;
}

/// One `save` pair: snapshot after `seconds` if at least `changes` writes happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SavePoint {
    pub seconds: u32,
    pub changes: u64,
}

/// `save`: when to write a snapshot without being asked. Empty means never.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SavePoints(pub Vec<SavePoint>);

/// More pairs than this are surely a mistake; the server looks at all of them up to once a second.
const MAX_SAVE_POINTS: usize = 64;

impl Special for SavePoints {
    const EXPECTS: &'static str = "seconds changes ...";

    fn accept(&mut self, words: &[String], replace: bool) -> Result<(), String> {
        let invalid = || "Invalid save parameters".to_owned();
        if words.is_empty() || words == [""] {
            self.0.clear();
            return Ok(());
        }
        if !words.len().is_multiple_of(2) {
            return Err(invalid());
        }
        if replace {
            self.0.clear();
        }
        for pair in words.chunks_exact(2) {
            let seconds =
                parse_integer(&pair[0]).ok().and_then(|n| u32::try_from(n).ok()).ok_or_else(invalid)?;
            let changes =
                parse_integer(&pair[1]).ok().and_then(|n| u64::try_from(n).ok()).ok_or_else(invalid)?;
            if seconds == 0 || self.0.len() == MAX_SAVE_POINTS {
                return Err(invalid());
            }
            self.0.push(SavePoint { seconds, changes });
        }
        Ok(())
    }

    fn show(&self) -> String {
        let pairs: Vec<String> = self.0.iter().map(|p| format!("{} {}", p.seconds, p.changes)).collect();
        pairs.join(" ")
    }

    fn lines(&self, full: bool) -> Vec<Vec<String>> {
        let mut lines = Vec::new();
        if full || self.0.is_empty() {
            lines.push(vec![String::new()]);
        }
        lines.extend(self.0.iter().map(|p| vec![p.seconds.to_string(), p.changes.to_string()]));
        lines
    }
}

/// `bind`: addresses to listen on. A leading `-` marks one that may be missing on this machine. Empty means no TCP.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BindAddresses(pub Vec<String>);

/// As many addresses as Redis takes.
const MAX_BIND_ADDRESSES: usize = 16;

impl Special for BindAddresses {
    const EXPECTS: &'static str = "address ...";

    fn accept(&mut self, words: &[String], _replace: bool) -> Result<(), String> {
        if words.len() > MAX_BIND_ADDRESSES {
            return Err("Too many bind addresses specified.".to_owned());
        }
        if words.iter().any(|word| word.contains(char::is_whitespace)) {
            return Err("argument must be a list of addresses".to_owned());
        }
        // `bind ""` means: listen on no address.
        self.0 = words.iter().filter(|word| !word.is_empty()).cloned().collect();
        Ok(())
    }

    fn show(&self) -> String {
        self.0.join(" ")
    }

    fn lines(&self, _full: bool) -> Vec<Vec<String>> {
        if self.0.is_empty() { vec![vec![String::new()]] } else { vec![self.0.clone()] }
    }
}

/// `replicaof`: the master to follow; `None` on a master.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReplicaOf(pub Option<Target>);

impl Special for ReplicaOf {
    const EXPECTS: &'static str = "host port";

    fn accept(&mut self, words: &[String], _replace: bool) -> Result<(), String> {
        if words.is_empty() || words == [""] {
            self.0 = None;
            return Ok(());
        }
        let [host, port] = words else { return Err("wrong number of arguments".to_owned()) };
        if host.eq_ignore_ascii_case("no") && port.eq_ignore_ascii_case("one") {
            self.0 = None;
            return Ok(());
        }
        let port = parse_integer(port).ok().and_then(|n| u16::try_from(n).ok()).filter(|&n| n > 0);
        let port = port.ok_or("Invalid master port")?;
        if host.is_empty() || host.contains(char::is_whitespace) {
            return Err("Invalid master host".to_owned());
        }
        self.0 = Some(Target { host: host.clone(), port });
        Ok(())
    }

    fn show(&self) -> String {
        self.0.as_ref().map_or_else(String::new, |master| format!("{} {}", master.host, master.port))
    }

    fn lines(&self, full: bool) -> Vec<Vec<String>> {
        match &self.0 {
            Some(master) => vec![vec![master.host.clone(), master.port.to_string()]],
            None if full => vec![vec!["no".to_owned(), "one".to_owned()]],
            None => vec![],
        }
    }
}

/// The output-buffer limit of one class of clients; 0 in a field means no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OutputLimit {
    /// The client is closed as soon as this much output waits for it.
    pub hard_bytes: u64,
    /// The client is closed when more than this waits for `soft_seconds` on end.
    pub soft_bytes: u64,
    pub soft_seconds: u64,
}

/// `client-output-buffer-limit` for every class of clients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OutputLimits {
    pub normal: OutputLimit,
    pub replica: OutputLimit,
    pub pubsub: OutputLimit,
}

impl OutputLimits {
    /// The text that gives the stock limits; the table and [`OutputLimits::lines`] share it.
    pub const DEFAULT: &'static str = "normal 0 0 0 replica 256mb 64mb 60 pubsub 32mb 8mb 60";

    fn class_mut(&mut self, class: &str) -> Option<&mut OutputLimit> {
        match class.to_ascii_lowercase().as_str() {
            "normal" => Some(&mut self.normal),
            "replica" | "slave" => Some(&mut self.replica),
            "pubsub" => Some(&mut self.pubsub),
            _ => None,
        }
    }
}

impl Special for OutputLimits {
    const EXPECTS: &'static str = "class hard soft seconds";

    fn accept(&mut self, words: &[String], _replace: bool) -> Result<(), String> {
        if words.is_empty() || !words.len().is_multiple_of(4) {
            return Err("Wrong number of arguments in buffer limit configuration.".to_owned());
        }
        for group in words.chunks_exact(4) {
            let limit = self.class_mut(&group[0]);
            let limit = limit.ok_or("Invalid client class specified in buffer limit configuration.")?;
            let error =
                || "Error in hard, soft or soft_seconds setting in buffer limit configuration.".to_owned();
            let soft_seconds = parse_integer(&group[3]).ok().and_then(|n| u64::try_from(n).ok());
            *limit = OutputLimit {
                hard_bytes: parse_size(&group[1]).map_err(|_| error())?,
                soft_bytes: parse_size(&group[2]).map_err(|_| error())?,
                soft_seconds: soft_seconds.ok_or_else(error)?,
            };
        }
        Ok(())
    }

    fn show(&self) -> String {
        let class =
            |name, l: &OutputLimit| format!("{name} {} {} {}", l.hard_bytes, l.soft_bytes, l.soft_seconds);
        // The word `slave` is what Redis still prints here, and what exporters look for.
        [class("normal", &self.normal), class("slave", &self.replica), class("pubsub", &self.pubsub)]
            .join(" ")
    }

    fn lines(&self, full: bool) -> Vec<Vec<String>> {
        let mut default = Self::default();
        let words: Vec<String> = Self::DEFAULT.split(' ').map(str::to_owned).collect();
        default.accept(&words, true).expect("the default limits are valid");
        let classes = [
            ("normal", self.normal, default.normal),
            ("replica", self.replica, default.replica),
            ("pubsub", self.pubsub, default.pubsub),
        ];
        let wanted = classes.iter().filter(|(_, now, default)| full || now != default);
        let line = |name: &str, l: &OutputLimit| {
            vec![
                name.to_owned(),
                format_size(l.hard_bytes),
                format_size(l.soft_bytes),
                l.soft_seconds.to_string(),
            ]
        };
        wanted.map(|(name, limit, _)| line(name, limit)).collect()
    }
}

/// `notify-keyspace-events`: which events are published, as a set of bits (Redis's letters, Redis's values).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeyspaceEvents(pub u32);

impl KeyspaceEvents {
    pub const KEYSPACE: u32 = 1;
    pub const KEYEVENT: u32 = 1 << 1;
    pub const GENERIC: u32 = 1 << 2;
    pub const STRING: u32 = 1 << 3;
    pub const LIST: u32 = 1 << 4;
    pub const SET: u32 = 1 << 5;
    pub const HASH: u32 = 1 << 6;
    pub const ZSET: u32 = 1 << 7;
    pub const EXPIRED: u32 = 1 << 8;
    pub const EVICTED: u32 = 1 << 9;
    pub const STREAM: u32 = 1 << 10;
    pub const KEY_MISS: u32 = 1 << 11;
    pub const MODULE: u32 = 1 << 13;
    pub const NEW: u32 = 1 << 14;
    /// The letter `A`: every class of events but key misses and new keys.
    pub const ALL: u32 = Self::GENERIC
        | Self::STRING
        | Self::LIST
        | Self::SET
        | Self::HASH
        | Self::ZSET
        | Self::EXPIRED
        | Self::EVICTED
        | Self::STREAM
        | Self::MODULE;

    /// Letters in the order in which `CONFIG GET` prints them.
    const LETTERS: [(char, u32); 14] = [
        ('g', Self::GENERIC),
        ('$', Self::STRING),
        ('l', Self::LIST),
        ('s', Self::SET),
        ('h', Self::HASH),
        ('z', Self::ZSET),
        ('x', Self::EXPIRED),
        ('e', Self::EVICTED),
        ('t', Self::STREAM),
        ('d', Self::MODULE),
        ('n', Self::NEW),
        ('K', Self::KEYSPACE),
        ('E', Self::KEYEVENT),
        ('m', Self::KEY_MISS),
    ];

    /// Whether any of `bits` is on.
    pub fn any(self, bits: u32) -> bool {
        self.0 & bits != 0
    }
}

impl fmt::Display for KeyspaceEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = self.0 & Self::ALL == Self::ALL;
        if all {
            f.write_str("A")?;
        }
        for (letter, bit) in Self::LETTERS {
            if self.any(bit) && !(all && bit & Self::ALL != 0) {
                write!(f, "{letter}")?;
            }
        }
        Ok(())
    }
}

impl Special for KeyspaceEvents {
    const EXPECTS: &'static str = "letters";

    fn accept(&mut self, words: &[String], _replace: bool) -> Result<(), String> {
        let letters = match words {
            [] => "",
            [letters] => letters,
            _ => return Err("wrong number of arguments".to_owned()),
        };
        self.0 = 0;
        for letter in letters.chars() {
            self.0 |= match Self::LETTERS.iter().find(|(known, _)| *known == letter) {
                Some((_, bit)) => *bit,
                None if letter == 'A' => Self::ALL,
                None => return Err("Invalid event class character. Use 'Ag$lshzxeKEtmdn'.".to_owned()),
            };
        }
        Ok(())
    }

    fn show(&self) -> String {
        self.to_string()
    }

    fn lines(&self, _full: bool) -> Vec<Vec<String>> {
        vec![vec![self.to_string()]]
    }
}

/// Reads `yes` or `no`, in any case.
pub fn parse_flag(word: &str) -> Result<bool, String> {
    if word.eq_ignore_ascii_case("yes") {
        Ok(true)
    } else if word.eq_ignore_ascii_case("no") {
        Ok(false)
    } else {
        Err("argument must be 'yes' or 'no'".to_owned())
    }
}

/// Writes a flag as the configuration does.
pub fn format_flag(value: bool) -> &'static str {
    if value { "yes" } else { "no" }
}

/// Reads a decimal integer strictly: no sign but a minus, no leading zeros, no blanks.
pub fn parse_integer(word: &str) -> Result<i64, String> {
    let number = word.parse::<i64>().ok().filter(|number| number.to_string() == word);
    number.ok_or_else(|| "argument couldn't be parsed into an integer".to_owned())
}

/// Checks a range; the error names both ends.
pub fn in_range<T: PartialOrd + fmt::Display>(value: T, min: T, max: T) -> Result<T, String> {
    if value < min || value > max {
        return Err(format!("argument must be between {min} and {max} inclusive"));
    }
    Ok(value)
}

/// Reads an octal number, as `unixsocketperm` has.
pub fn parse_octal(word: &str) -> Result<u32, String> {
    let digits_only = !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit());
    let number = if digits_only { u32::from_str_radix(word, 8).ok() } else { None };
    number.ok_or_else(|| "argument couldn't be parsed into an integer".to_owned())
}

/// Units of a memory size. The longer spellings are powers of 1024, the shorter ones powers of 1000, as in Redis.
const UNITS: [(&str, u64); 8] = [
    ("gb", 1 << 30),
    ("mb", 1 << 20),
    ("kb", 1 << 10),
    ("g", 1_000_000_000),
    ("m", 1_000_000),
    ("k", 1000),
    ("b", 1),
    ("", 1),
];

/// Reads a memory size such as `100mb`, in bytes.
pub fn parse_size(word: &str) -> Result<u64, String> {
    let error = || "argument must be a memory value".to_owned();
    let unit_at = word.bytes().position(|byte| !byte.is_ascii_digit()).unwrap_or(word.len());
    let (digits, unit) = word.split_at(unit_at);
    let (_, factor) = UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)).ok_or_else(error)?;
    digits.parse::<u64>().ok().and_then(|number| number.checked_mul(*factor)).ok_or_else(error)
}

/// Writes a size in bytes with the largest unit of 1024 that gives a whole number.
pub fn format_size(bytes: u64) -> String {
    let unit = UNITS[..3].iter().find(|(_, factor)| bytes != 0 && bytes.is_multiple_of(*factor));
    unit.map_or_else(|| bytes.to_string(), |(name, factor)| format!("{}{name}", bytes / factor))
}

/// Finds a choice by its name, in any case; gives its index.
pub fn parse_choice(names: &[&str], word: &str) -> Result<usize, String> {
    let index = names.iter().position(|name| name.eq_ignore_ascii_case(word));
    index.ok_or_else(|| format!("argument(s) must be one of the following: {}", names.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn sizes_have_units_of_1000_and_1024() {
        for (text, bytes) in [
            ("0", 0),
            ("12", 12),
            ("12b", 12),
            ("3k", 3000),
            ("3kb", 3072),
            ("2M", 2_000_000),
            ("2MB", 2 << 20),
            ("1g", 1_000_000_000),
            ("1gB", 1 << 30),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in
            ["", "mb", "-1", "1.5gb", "10%", "3q", "1 mb", "18446744073709551616", "18446744073709551615kb"]
        {
            assert_eq!(parse_size(text), Err("argument must be a memory value".to_owned()), "{text}");
        }
    }

    #[test]
    fn sizes_are_written_with_the_largest_whole_unit() {
        for (bytes, text) in
            [(0, "0"), (1000, "1000"), (1024, "1kb"), (3 << 20, "3mb"), (5 << 30, "5gb"), (1025, "1025")]
        {
            assert_eq!(format_size(bytes), text);
            assert_eq!(parse_size(text), Ok(bytes));
        }
    }

    #[test]
    fn integers_are_strict() {
        assert_eq!(parse_integer("-12"), Ok(-12));
        assert_eq!(parse_integer("0"), Ok(0));
        for text in ["", "+1", "01", "-0", " 1", "1 ", "1x", "0x10", "9223372036854775808"] {
            assert_eq!(
                parse_integer(text),
                Err("argument couldn't be parsed into an integer".to_owned()),
                "{text}"
            );
        }
        assert_eq!(in_range(11, 0, 10), Err("argument must be between 0 and 10 inclusive".to_owned()));
    }

    #[test]
    fn octal_numbers() {
        assert_eq!(parse_octal("700"), Ok(0o700));
        assert_eq!(parse_octal("0755"), Ok(0o755));
        for text in ["", "8", "+7", "-1", "0o7"] {
            assert!(parse_octal(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_choice_lists_its_alternatives_on_error() {
        assert_eq!(parse_choice(LogLevel::NAMES, "Verbose"), Ok(LogLevel::Verbose.index()));
        assert_eq!(
            parse_choice(FsyncPolicy::NAMES, "x"),
            Err("argument(s) must be one of the following: everysec, always, no".to_owned())
        );
        for index in 0..EvictionPolicy::NAMES.len() {
            assert_eq!(EvictionPolicy::from_index(index).index(), index);
        }
    }

    #[test]
    fn save_points_replace_or_add() {
        let mut save = SavePoints::default();
        save.accept(&words("3600 1 300 100"), true).unwrap();
        assert_eq!(save.show(), "3600 1 300 100");
        save.accept(&words("60 0"), false).unwrap();
        assert_eq!(save.show(), "3600 1 300 100 60 0");
        assert_eq!(save.lines(false).len(), 3);
        save.accept(&words("7 8"), true).unwrap();
        assert_eq!(save.show(), "7 8");
        save.accept(&[String::new()], false).unwrap();
        assert_eq!(save.show(), "");
        for text in ["1", "a b", "0 1", "1 -1", "1 2 3", "4294967296 1", "9223372036854775807 1"] {
            assert_eq!(
                save.clone().accept(&words(text), true),
                Err("Invalid save parameters".to_owned()),
                "{text}"
            );
        }
    }

    #[test]
    fn output_limits_change_one_class() {
        let mut limits = OutputLimits::default();
        limits.accept(&words(OutputLimits::DEFAULT), true).unwrap();
        assert_eq!(limits.lines(false), Vec::<Vec<String>>::new());
        assert_eq!(limits.lines(true).len(), 3);
        limits.accept(&words("slave 1mb 2kb 3"), false).unwrap();
        assert_eq!(limits.show(), "normal 0 0 0 slave 1048576 2048 3 pubsub 33554432 8388608 60");
        assert_eq!(limits.lines(false), vec![words("replica 1mb 2kb 3")]);
        for (text, error) in [
            ("normal 1 2", "Wrong number of arguments"),
            ("foo 1 2 3", "Invalid client class"),
            ("master 1 2 3", "Invalid client class"),
            ("normal 1 2 -3", "Error in hard, soft or soft_seconds"),
        ] {
            assert!(limits.clone().accept(&words(text), false).unwrap_err().starts_with(error), "{text}");
        }
    }

    #[test]
    fn keyspace_events_print_in_redis_order() {
        for (given, printed) in
            [("", ""), ("KEA", "AKE"), ("lKg$m", "g$lKm"), ("g$lshzxetdE", "AE"), ("mKnA", "AnKm")]
        {
            let mut events = KeyspaceEvents::default();
            events.accept(&[given.to_owned()], true).unwrap();
            assert_eq!(events.show(), printed, "{given}");
            let mut again = KeyspaceEvents::default();
            again.accept(&[printed.to_owned()], true).unwrap();
            assert_eq!(again, events);
        }
        assert!(KeyspaceEvents::default().accept(&["Kq".to_owned()], true).is_err());
    }

    #[test]
    fn replicaof_takes_a_host_and_port_or_no_one() {
        let mut of = ReplicaOf::default();
        of.accept(&words("10.0.0.1 6379"), true).unwrap();
        assert_eq!(of.show(), "10.0.0.1 6379");
        assert_eq!(of.accept(&words("h 99999"), true), Err("Invalid master port".to_owned()));
        assert_eq!(of.accept(&words("h"), true), Err("wrong number of arguments".to_owned()));
        of.accept(&words("NO ONE"), true).unwrap();
        assert_eq!(of, ReplicaOf(None));
    }
}
