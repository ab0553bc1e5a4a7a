//! The command line: `braid-server [braid.conf | -] [--directive value ...]`.
//!
//! clap writes the help and checks the names; the flags come from the table. A directive may take several words
//! (`--save 900 1 300 10`) and words that begin with a hyphen (`--bind 127.0.0.1 -::1`), which no rule of clap can tell
//! from flags. So each `--directive` is first joined with its words into one argument, quoted as in a file.

use super::parse::quote;
use super::table::{Directive, Group, Support, directives};
use clap::{Arg, ArgAction, Command};
use std::ffi::OsString;
use std::path::PathBuf;

/// What the command line asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Arguments {
    /// The configuration file.
    pub file: Option<PathBuf>,
    /// Whether more configuration comes from the standard input, after the file.
    pub stdin: bool,
    /// A line as in a file for each flag, in the order given. They come last and win.
    pub flags: Vec<String>,
}

const AFTER_HELP: &str = "\
Every directive may stand in the file, one a line, or be given as a flag; flags come last and win.
Sizes take units: 1kb is 1024 bytes, 1k is 1000; mb, gb likewise.

Examples:
  braid-server
  braid-server /etc/braid/braid.conf --port 6380 --shards 4
  braid-server --port 6380 --save \"\" --replicaof 10.0.0.1 6379
  echo 'maxmemory 4gb' | braid-server -";

/// The whole command line as clap knows it.
pub fn command() -> Command {
    let mut command = Command::new("braid-server")
        .version(env!("CARGO_PKG_VERSION"))
        .about("An in-memory data store that speaks Redis's protocol, one shard per core")
        .override_usage("braid-server [braid.conf | -] [--directive value ...]")
        .after_help(AFTER_HELP)
        .disable_version_flag(true)
        .arg(
            Arg::new("version")
                .short('v')
                .short_alias('V')
                .long("version")
                .action(ArgAction::Version)
                .help("Print the version"),
        )
        .arg(
            Arg::new("file")
                .value_name("braid.conf")
                .num_args(0..=2)
                .action(ArgAction::Append)
                .value_parser(clap::value_parser!(PathBuf))
                .help("Configuration file in redis.conf syntax; - reads the standard input"),
        )
        .arg(
            Arg::new("include")
                .long("include")
                .value_name("path")
                .action(ArgAction::Append)
                .help("Read another configuration file; the name may be a pattern such as conf.d/*.conf"),
        );
    for directive in directives() {
        let mut arg = Arg::new(directive.name)
            .long(directive.name)
            .aliases(directive.aliases)
            .value_name(directive.expects())
            .action(ArgAction::Append)
            .help_heading(directive.group.heading())
            .help(help(directive));
        arg = match directive.group {
            Group::Stock => arg.hide(true),
            Group::Encodings | Group::Limits | Group::Monitoring | Group::AppendOnly => {
                arg.hide_short_help(true)
            }
            _ => arg,
        };
        command = command.arg(arg);
    }
    command
}

fn help(directive: &Directive) -> String {
    let default = if directive.default.is_empty() { "\"\"" } else { directive.default };
    match directive.support {
        Support::Only(values) => {
            format!("{} (only {} for now) [default: {default}]", directive.help, values.join(", "))
        }
        _ => format!("{} [default: {default}]", directive.help),
    }
}

/// Reads the command line, whose first argument is the program's name.
///
/// # Errors
/// What clap says about it, which includes the texts of `--help` and `--version`: `exit()` prints and ends.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Arguments, clap::Error> {
    let mut command = command();
    let joined =
        join(arguments).map_err(|message| command.error(clap::error::ErrorKind::InvalidUtf8, message))?;
    let matches = command.try_get_matches_from_mut(joined)?;
    let mut parsed = Arguments::default();
    for path in matches.get_many::<PathBuf>("file").into_iter().flatten() {
        if path.as_os_str() == "-" {
            parsed.stdin = true;
        } else if parsed.file.is_none() && !parsed.stdin {
            parsed.file = Some(path.clone());
        } else {
            let message =
                format!("one configuration file is enough, but '{}' was given too\n", path.display());
            return Err(command.error(clap::error::ErrorKind::TooManyValues, message));
        }
    }
    let mut flags: Vec<(usize, String)> = Vec::new();
    for name in directives().map(|directive| directive.name).chain(["include"]) {
        let words = matches.get_many::<String>(name).into_iter().flatten();
        let places = matches.indices_of(name).into_iter().flatten();
        flags.extend(
            places.zip(words).map(|(place, words)| (place, format!("{name} {words}").trim_end().to_owned())),
        );
    }
    flags.sort_by_key(|(place, _)| *place);
    parsed.flags = flags.into_iter().map(|(_, line)| line).collect();
    Ok(parsed)
}

/// Joins each `--directive` with the words after it, up to the next argument with two hyphens. A single hyphen at the
/// very end is no word: it asks for the standard input.
fn join(arguments: impl IntoIterator<Item = OsString>) -> Result<Vec<OsString>, String> {
    let mut arguments: Vec<OsString> = arguments.into_iter().collect();
    let stdin = arguments.len() > 2 && arguments.last().is_some_and(|last| last == "-");
    if stdin {
        arguments.pop();
    }
    let mut joined: Vec<OsString> = Vec::new();
    // The flag under way: `--name=`, to be followed by its words.
    let mut flag: Option<(String, Vec<String>)> = None;
    let finished = |(name, words): (String, Vec<String>)| OsString::from(name + &words.join(" "));
    for argument in arguments {
        let text = argument.to_str();
        if let Some(name) = text.and_then(|text| text.strip_prefix("--")) {
            joined.extend(flag.take().map(finished));
            let (name, words) = match name.split_once('=') {
                Some((name, value)) => (name, vec![quote(value)]),
                None => (name, vec![]),
            };
            match name {
                "help" | "version" => joined.push(argument),
                _ => flag = Some((format!("--{}=", name.to_ascii_lowercase()), words)),
            }
        } else if let Some((_, words)) = &mut flag {
            let text =
                text.ok_or_else(|| format!("'{}' is not valid UTF-8\n", argument.to_string_lossy()))?;
            words.push(quote(text));
        } else {
            joined.push(argument);
        }
    }
    joined.extend(flag.map(finished));
    joined.extend(stdin.then(|| OsString::from("-")));
    Ok(joined)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(arguments: &[&str]) -> Result<Arguments, clap::Error> {
        parse(["braid-server"].iter().chain(arguments).map(OsString::from))
    }

    fn flags(arguments: &[&str]) -> Vec<String> {
        parsed(arguments).unwrap_or_else(|error| panic!("{error}")).flags
    }

    #[test]
    fn clap_accepts_the_table() {
        command().debug_assert();
    }

    #[test]
    fn a_flag_takes_all_words_up_to_the_next() {
        assert_eq!(flags(&["--port", "6380", "--save", ""]), ["port 6380", "save \"\""]);
        assert_eq!(
            flags(&[
                "--save",
                "1",
                "2",
                "--bind",
                "127.0.0.1",
                "-::1",
                "--SAVE",
                "3 4",
                "--list-max-listpack-size",
                "-5"
            ]),
            ["save 1 2", "bind 127.0.0.1 -::1", "save \"3 4\"", "list-max-listpack-size -5"]
        );
        assert_eq!(
            flags(&["--requirepass=--x y=", "--slaveof", "h", "1"]),
            ["requirepass \"--x y=\"", "replicaof h 1"]
        );
        assert_eq!(flags(&["--requirepass", "a=", "b"]), ["requirepass a= b"]);
        assert_eq!(flags(&["--daemonize"]), ["daemonize"]);
        assert_eq!(flags(&["--tls-port", "0", "--include", "a b"]), ["tls-port 0", "include \"a b\""]);
    }

    #[test]
    fn the_file_comes_first_and_a_hyphen_is_the_standard_input() {
        let file = |path: &str| Some(PathBuf::from(path));
        let given = parsed(&["b.conf", "--port", "1"]).unwrap();
        assert_eq!((given.file, given.stdin), (file("b.conf"), false));
        let given = parsed(&["-", "--port", "1"]).unwrap();
        assert_eq!((given.file, given.stdin), (None, true));
        let given = parsed(&["b.conf", "--port", "1", "-"]).unwrap();
        assert_eq!((given.file, given.stdin, given.flags), (file("b.conf"), true, vec!["port 1".to_owned()]));
        assert_eq!(parsed(&["-"]).unwrap(), Arguments { stdin: true, ..Arguments::default() });
        assert_eq!(parsed(&[]).unwrap(), Arguments::default());
        assert!(parsed(&["a.conf", "b.conf"]).is_err());
    }

    #[test]
    fn mistakes_are_explained() {
        let error = parsed(&["--prot", "1"]).unwrap_err();
        assert_ne!(error.exit_code(), 0);
        assert!(error.to_string().contains("--port"), "{error}");
    }

    #[test]
    fn help_and_version_are_no_failures() {
        for arguments in [["--version"], ["-v"], ["-V"], ["--help"], ["-h"]] {
            assert_eq!(parsed(&arguments).unwrap_err().exit_code(), 0);
        }
        let help = parsed(&["--help"]).unwrap_err().to_string();
        for part in [
            "--shards <0..1024>",
            "[default: 6379]",
            "Memory and eviction",
            "volatile-lru|",
            "--hll-sparse-max-bytes",
        ] {
            assert!(help.contains(part), "{part} is missing from\n{help}");
        }
        assert!(!help.contains("--tls-port"));
    }
}
