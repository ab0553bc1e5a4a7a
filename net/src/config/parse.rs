//! The `redis.conf` syntax: lines of words with quotes and escapes, comments, `include`.
//!
//! Reading is pure: whoever calls gives the texts, and a function that finds the texts of an `include`.

use super::directives::Config;
use super::table::{self, directives};
use std::collections::HashSet;
use std::fmt;

/// Includes may nest this deep; a file that includes itself ends here.
const MAX_INCLUDE_DEPTH: usize = 16;

/// A configuration the server cannot start with. Its `Display` is the whole text for the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FatalConfig {
    /// The file, or the command line.
    pub origin: String,
    /// Counted from 1; 0 where there are no lines.
    pub line: usize,
    /// The line itself.
    pub text: String,
    pub message: String,
}

impl fmt::Display for FatalConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "*** FATAL CONFIG FILE ERROR (Braid {}) ***", env!("CARGO_PKG_VERSION"))?;
        if self.line > 0 {
            writeln!(f, "Reading the configuration file, at line {} of {}", self.line, self.origin)?;
        } else {
            writeln!(f, "Reading {}", self.origin)?;
        }
        writeln!(f, ">>> '{}'", self.text)?;
        write!(f, "{}", self.message)
    }
}

/// Finds the texts for an `include`: the name of each file and what it holds, or why it cannot be read.
pub type Include<'a> = dyn FnMut(&str) -> Result<Vec<(String, String)>, String> + 'a;

/// Builds a [`Config`] from texts and flags, in the order in which they are given; later ones win.
pub struct Loader<'a> {
    config: Config,
    /// Directives met so far: the first line of a repeatable one replaces the default, the others add.
    seen: HashSet<&'static str>,
    include: &'a mut Include<'a>,
}

impl<'a> Loader<'a> {
    /// Starts from the defaults.
    pub fn new(include: &'a mut Include<'a>) -> Self {
        Self { config: Config::default(), seen: HashSet::new(), include }
    }

    /// Takes all lines of a file.
    ///
    /// # Errors
    /// The first bad line; the configuration is then of no use.
    pub fn text(&mut self, origin: &str, text: &str) -> Result<(), FatalConfig> {
        self.nested_text(origin, text, 0)
    }

    fn nested_text(&mut self, origin: &str, text: &str, depth: usize) -> Result<(), FatalConfig> {
        for (index, line) in text.split('\n').enumerate() {
            self.line(line, depth).map_err(|error| match error {
                LineError::Here(message) => FatalConfig {
                    origin: origin.to_owned(),
                    line: index + 1,
                    text: line.trim().to_owned(),
                    message,
                },
                LineError::Included(fatal) => fatal,
            })?;
        }
        Ok(())
    }

    /// Takes one flag of the command line: `line` is the directive's name and its words, quoted as in a file.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn flag(&mut self, line: &str) -> Result<(), FatalConfig> {
        self.line(line, 0).map_err(|error| match error {
            LineError::Here(message) => FatalConfig {
                origin: "the command line".to_owned(),
                line: 0,
                text: format!("--{line}"),
                message,
            },
            LineError::Included(fatal) => fatal,
        })
    }

    fn line(&mut self, line: &str, depth: usize) -> Result<(), LineError> {
        let line = line.trim_matches([' ', '\t', '\r', '\n']);
        if line.is_empty() || line.starts_with('#') {
            return Ok(());
        }
        let words = split_words(line).map_err(LineError::Here)?;
        let Some((name, arguments)) = words.split_first() else { return Ok(()) };
        if name.eq_ignore_ascii_case("include") {
            let [path] = arguments else { return Err(LineError::bad_directive()) };
            if depth == MAX_INCLUDE_DEPTH {
                return Err(LineError::Here(format!(
                    "more than {MAX_INCLUDE_DEPTH} files include each other"
                )));
            }
            for (origin, text) in (self.include)(path).map_err(LineError::Here)? {
                self.nested_text(&origin, &text, depth + 1).map_err(LineError::Included)?;
            }
            return Ok(());
        }
        let directive = table::find(name).ok_or_else(LineError::bad_directive)?;
        let first = self.seen.insert(directive.name);
        directive.set(&mut self.config, arguments, first).map_err(LineError::Here)
    }

    /// The configuration, and what the log should say about directives without effect.
    pub fn finish(self) -> (Config, Vec<String>) {
        let notes = directives().filter_map(|directive| directive.note(&self.config)).collect();
        (self.config, notes)
    }
}

enum LineError {
    /// The line at hand is wrong.
    Here(String),
    /// The line includes a file in which something is wrong.
    Included(FatalConfig),
}

impl LineError {
    fn bad_directive() -> Self {
        LineError::Here("Bad directive or wrong number of arguments".to_owned())
    }
}

/// Splits a line into words. `"..."` knows `\n \r \t \b \a \\ \" \xHH`, `'...'` only `\'`; a closing quote must be
/// followed by a blank or the end.
///
/// # Errors
/// Quotes that do not close, or bytes written as `\xHH` that are no UTF-8 together.
pub fn split_words(line: &str) -> Result<Vec<String>, String> {
    let unbalanced = || "Unbalanced quotes in configuration line".to_owned();
    let mut words = Vec::new();
    let mut rest = line.as_bytes().trim_ascii_start();
    while !rest.is_empty() {
        let mut word = Vec::new();
        while let [byte, after @ ..] = rest
            && !byte.is_ascii_whitespace()
        {
            rest = after;
            match byte {
                b'"' | b'\'' => {
                    rest = quoted(rest, *byte, &mut word).ok_or_else(unbalanced)?;
                    if rest.first().is_some_and(|byte| !byte.is_ascii_whitespace()) {
                        return Err(unbalanced());
                    }
                }
                byte => word.push(*byte),
            }
        }
        words.push(String::from_utf8(word).map_err(|_| "argument must be valid UTF-8".to_owned())?);
        rest = rest.trim_ascii_start();
    }
    Ok(words)
}

/// Reads up to the closing quote and gives what follows it; `None` where there is no closing quote.
fn quoted<'a>(mut rest: &'a [u8], quote: u8, word: &mut Vec<u8>) -> Option<&'a [u8]> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    loop {
        let (&byte, after) = rest.split_first()?;
        rest = after;
        if byte == quote {
            return Some(rest);
        }
        match (byte, rest) {
            (b'\\', [b'\'', after @ ..]) if quote == b'\'' => {
                word.push(b'\'');
                rest = after;
            }
            (b'\\', [b'x', high, low, after @ ..])
                if quote == b'"' && high.is_ascii_hexdigit() && low.is_ascii_hexdigit() =>
            {
                word.push(digit(*high)? << 4 | digit(*low)?);
                rest = after;
            }
            (b'\\', [escaped, after @ ..]) if quote == b'"' => {
                word.push(match escaped {
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'b' => 8,
                    b'a' => 7,
                    other => *other,
                });
                rest = after;
            }
            _ => word.push(byte),
        }
    }
}

/// Writes a word so that [`split_words`] reads it back, with quotes only where they are needed.
pub fn quote(word: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\'' | b'\\' | b'#');
    if !word.is_empty() && word.bytes().all(plain) {
        return word.to_owned();
    }
    let mut quoted = String::with_capacity(word.len() + 2);
    quoted.push('"');
    for letter in word.chars() {
        match letter {
            '"' | '\\' => quoted.extend(['\\', letter]),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            control if control.is_ascii_control() => {
                quoted.push_str(&format!("\\x{:02x}", u32::from(control)))
            }
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}

/// A line of a directive.
pub fn format_line(name: &str, words: &[String]) -> String {
    let mut line = name.to_owned();
    for word in words {
        line.push(' ');
        line.push_str(&quote(word));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::values::LogLevel;

    fn load(text: &str) -> Result<Config, FatalConfig> {
        let mut none = |path: &str| Err(format!("no file {path}"));
        let mut loader = Loader::new(&mut none);
        loader.text("test.conf", text)?;
        Ok(loader.finish().0)
    }

    fn error(text: &str) -> (usize, String) {
        let fatal = load(text).expect_err(text);
        (fatal.line, fatal.message)
    }

    #[test]
    fn words_with_quotes_and_escapes() {
        for (line, words) in [
            ("", &[][..]),
            ("  a\tb ", &["a", "b"]),
            (r#"a "b c" 'd e'"#, &["a", "b c", "d e"]),
            (r#"save "" x"#, &["save", "", "x"]),
            (r#""\x41\n\"\\\q""#, &["A\n\"\\q"]),
            (r#""\xzz""#, &["xzz"]),
            (r"'it\'s' '\n'", &["it's", "\\n"]),
            (r#""\xc3\xa9""#, &["é"]),
            ("a#b", &["a#b"]),
        ] {
            assert_eq!(split_words(line).expect(line), words, "{line}");
        }
        for line in ["\"a", "'a", "\"a\"b", r#""a\"#, "'a\\'"] {
            assert_eq!(
                split_words(line),
                Err("Unbalanced quotes in configuration line".to_owned()),
                "{line}"
            );
        }
        assert_eq!(split_words(r#""\xff""#), Err("argument must be valid UTF-8".to_owned()));
    }

    #[test]
    fn every_type_reads_and_shows_its_value() {
        let config = load(
            "# comment\n\n  PORT 7000  \r\nmaxmemory 100mb\nloglevel Warning\nunixsocketperm 770\nrequirepass 'a b'\n\
             daemonize yes\nbind 127.0.0.1 -::1\nsave 900 1\nsave 30 20\nslave-priority 7\nslaveof 10.0.0.1 6380\n\
             client-output-buffer-limit slave 1mb 2mb 3\nio-threads 4\ntimeout 3\n\
             slowlog-log-slower-than -1\noom-score-adj-values 1 2 3",
        )
        .unwrap();
        assert_eq!(config.port, 7000);
        assert_eq!(config.maxmemory_bytes, 100 << 20);
        assert_eq!(config.loglevel, LogLevel::Warning);
        assert_eq!(config.unixsocketperm, 0o770);
        assert_eq!(config.requirepass, "a b");
        assert!(config.daemonize);
        assert_eq!(config.bind.0, ["127.0.0.1", "-::1"]);
        assert_eq!(config.replica_priority, 7);
        assert_eq!(config.replicaof.0.as_ref().unwrap().port, 6380);
        assert_eq!(config.slowlog_log_slower_than_us, -1);
        for (name, value) in [
            ("save", "900 1 30 20"),
            ("unixsocketperm", "770"),
            ("daemonize", "yes"),
            ("maxmemory", "104857600"),
            ("io-threads", "4"),
            ("oom-score-adj-values", "1 2 3"),
            ("client-output-buffer-limit", "normal 0 0 0 slave 1048576 2097152 3 pubsub 33554432 8388608 60"),
        ] {
            assert_eq!(table::find(name).unwrap().get(&config), value, "{name}");
        }
    }

    #[test]
    fn errors_name_the_line() {
        for (line, message) in [
            ("foo bar", "Bad directive or wrong number of arguments"),
            ("include", "Bad directive or wrong number of arguments"),
            ("port abc", "argument couldn't be parsed into an integer"),
            ("port 70000", "argument must be between 0 and 65535 inclusive"),
            ("daemonize", "wrong number of arguments"),
            ("hz 10 11", "wrong number of arguments"),
            ("port \"1", "Unbalanced quotes in configuration line"),
            (
                "loglevel x",
                "argument(s) must be one of the following: debug, verbose, notice, warning, nothing",
            ),
            ("maxmemory 3q", "argument must be a memory value"),
            ("daemonize maybe", "argument must be 'yes' or 'no'"),
            ("unixsocketperm 999", "argument couldn't be parsed into an integer"),
            ("unixsocketperm 1777", "argument must be between 0 and 511 inclusive"),
            ("appendonly yes", "appendonly yes is not supported yet"),
            ("cluster-enabled yes", "cluster-enabled yes is not supported yet"),
            ("tls-port 6390", "tls-port 6390 is not supported yet"),
            ("supervised upstart", "supervised upstart is not supported yet"),
            ("rename-command CONFIG \"\"", "rename-command is not supported: commands keep their names"),
        ] {
            assert_eq!(error(&format!("# x\n\n{line}\nport 1")), (3, message.to_owned()), "{line}");
        }
    }

    #[test]
    fn the_fatal_text_is_redis_style_and_names_the_file() {
        assert_eq!(
            load("port 1\nfoo bar").unwrap_err().to_string(),
            format!(
                "*** FATAL CONFIG FILE ERROR (Braid {}) ***\nReading the configuration file, at line 2 of test.conf\n\
                 >>> 'foo bar'\nBad directive or wrong number of arguments",
                env!("CARGO_PKG_VERSION")
            )
        );
    }

    #[test]
    fn values_that_ask_for_nothing_are_taken() {
        let config =
            load("appendonly no\ntls-port 0\ncluster-enabled no\nactivedefrag no\naclfile \"\"").unwrap();
        assert_eq!(config, Config::default());
    }

    #[test]
    fn a_list_that_is_only_kept_has_no_empty_words() {
        let directive = table::find("oom-score-adj-values").expect("it is in the table");
        let config = load(r#"oom-score-adj-values "" "1  2" 3"#).expect("it is valid");
        assert_eq!(directive.get(&config), "1 2 3");
    }

    #[test]
    fn includes_nest_and_errors_name_the_included_file() {
        let mut files = |path: &str| match path {
            "a" => Ok(vec![("a".to_owned(), "port 1\ninclude b".to_owned())]),
            "b" => Ok(vec![
                ("b".to_owned(), "hz 20".to_owned()),
                ("b2".to_owned(), "hz 30\nsave 1 1".to_owned()),
            ]),
            "bad" => Ok(vec![("bad".to_owned(), "\nhz 0".to_owned())]),
            "loop" => Ok(vec![("loop".to_owned(), "include loop".to_owned())]),
            _ => Err(format!("can't open config file '{path}'")),
        };
        let mut loader = Loader::new(&mut files);
        loader.text("main", "save 2 2\ninclude a\nport 5").unwrap();
        let bad = loader.text("main", "include bad").unwrap_err();
        assert_eq!((bad.origin.as_str(), bad.line), ("bad", 2));
        let missing = loader.text("main", "include c").unwrap_err();
        assert_eq!((missing.origin.as_str(), missing.line), ("main", 1));
        assert!(loader.text("main", "include loop").unwrap_err().message.contains("include each other"));
        let flag = loader.flag("port x").unwrap_err().to_string();
        assert!(flag.contains("Reading the command line\n>>> '--port x'\n"), "{flag}");
        let config = loader.finish().0;
        assert_eq!((config.port, config.hz), (5, 30));
        assert_eq!(table::find("save").unwrap().get(&config), "2 2 1 1");
    }

    #[test]
    fn every_directive_takes_its_default_and_shows_it() {
        for directive in directives().filter(|d| !matches!(d.support, table::Support::Refused(_))) {
            for full in [false, true] {
                let text: Vec<String> = directive
                    .lines(&Config::default(), full)
                    .iter()
                    .map(|w| format_line(directive.name, w))
                    .collect();
                let config = load(&text.join("\n")).unwrap_or_else(|error| panic!("{error}"));
                assert_eq!(config, Config::default(), "{}", directive.name);
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn quoted_words_read_back(word in "\\PC*|[\\x00-\\x7f]*") {
            proptest::prop_assert_eq!(split_words(&quote(&word)), Ok(vec![word]));
        }

        #[test]
        fn reading_never_panics(text in "[\\PC\\n]*") {
            let _ = load(&text);
        }

        #[test]
        fn no_value_of_a_directive_panics(
            index in 0..directives().count(),
            words in proptest::collection::vec("\\PC*|-?[0-9]{1,20}|[0-9]{1,3}[kmgb]{0,2}", 0..6),
        ) {
            let directive = directives().nth(index).expect("index is in range");
            let line = format_line(directive.name, &words);
            if let Ok(config) = load(&line) {
                let lines: Vec<String> =
                    directive.lines(&config, true).iter().map(|words| format_line(directive.name, words)).collect();
                proptest::prop_assert_eq!(load(&lines.join("\n")), Ok(config));
            }
        }
    }
}
