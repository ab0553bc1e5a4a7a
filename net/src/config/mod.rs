//! Configuration in the syntax of `redis.conf`.
//!
//! - [`directives`]: the table, and the [`Config`] it gives. Start there; to add a directive, add a row.
//! - [`stock`]: the rest of the stock directives, and what Braid says to each.
//! - [`table`], [`values`]: what a row means, and the types of values.
//! - [`parse`]: lines, words, quotes, `include`. [`cli`]: the same as flags.
//! - [`runtime`]: `CONFIG GET`, `CONFIG SET`, the shared current configuration. [`rewrite`]: `CONFIG REWRITE`.
//!
//! Only this file and the last function of [`rewrite`] touch the file system.

pub mod cli;
pub mod directives;
pub mod parse;
pub mod rewrite;
pub mod runtime;
pub mod stock;
pub mod table;
pub mod values;

pub use directives::Config;
pub use runtime::{Asker, Change, Shared};
pub use table::{Apply, Directive};

use braid_core::glob;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// A configuration file larger than this is surely not one.
const MAX_FILE_BYTES: u64 = 16 << 20;

/// What the server starts with.
pub struct Loaded {
    pub config: Config,
    /// The absolute path of the configuration file, if there is one; `CONFIG REWRITE` goes there.
    pub path: Option<PathBuf>,
    /// Lines for the log, at the level of warnings, once there is one.
    pub notes: Vec<String>,
}

/// Reads the configuration the command line asks for: the file, then the standard input, then the flags.
///
/// # Errors
/// The whole text for the operator, who should then see it and a non-zero status.
pub fn load(arguments: &cli::Arguments) -> Result<Loaded, String> {
    let mut include = include_files;
    let mut loader = parse::Loader::new(&mut include);
    let fatal = |message: String| format!("Fatal error, {message}");
    let mut absolute = None;
    if let Some(path) = &arguments.file {
        let name = path.display().to_string();
        let text = read_file(path).map_err(fatal)?;
        loader.text(&name, &text).map_err(|error| error.to_string())?;
        absolute =
            Some(std::path::absolute(path).map_err(|error| fatal(format!("no path to '{name}': {error}")))?);
    }
    if arguments.stdin {
        let text =
            read_text(io::stdin().lock()).map_err(|error| fatal(format!("can't read config: {error}")))?;
        loader.text("the standard input", &text).map_err(|error| error.to_string())?;
    }
    for flag in &arguments.flags {
        loader.flag(flag).map_err(|error| error.to_string())?;
    }
    let (config, notes) = loader.finish();
    Ok(Loaded { config, path: absolute, notes })
}

/// `CONFIG REWRITE`, from the running configuration to the file at `path` ([`Loaded::path`]).
///
/// # Errors
/// The text after `ERR `.
pub fn rewrite_file(config: &Config, path: Option<&Path>) -> Result<(), String> {
    let path = path.ok_or(rewrite::NO_FILE)?;
    let failed = |error: String| format!("Rewriting config file: {error}");
    let old = match fs::File::open(path) {
        Ok(file) => read_text(file).map_err(|error| failed(error.to_string()))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(failed(error.to_string())),
    };
    let new = rewrite::rewritten(&old, config, &mut include_files)
        .map_err(|error| failed(error.replace('\n', " ")))?;
    rewrite::replace_file(path, &new).map_err(|error| failed(error.to_string()))
}

fn read_file(path: &Path) -> Result<String, String> {
    let text = fs::File::open(path).and_then(read_text);
    text.map_err(|error| format!("can't open config file '{}': {}", path.display(), system_text(&error)))
}

fn read_text(from: impl Read) -> io::Result<String> {
    let mut text = String::new();
    from.take(MAX_FILE_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(io::Error::other(format!("more than {MAX_FILE_BYTES} bytes")));
    }
    Ok(text)
}

/// The system's words without the number Rust adds.
fn system_text(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}

/// Finds the files of an `include`: one, or in the order of their names those that match a pattern in the last part of
/// the path.
fn include_files(pattern: &str) -> Result<Vec<(String, String)>, String> {
    let path = Path::new(pattern);
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    if !name.contains(['*', '?', '[']) {
        return Ok(vec![(pattern.to_owned(), read_file(path)?)]);
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let entries = fs::read_dir(folder).map_err(|error| {
        format!("can't open config folder '{}': {}", folder.display(), system_text(&error))
    })?;
    let mut paths: Vec<PathBuf> = Vec::new();
    for entry in entries {
        let found = entry.map_err(|error| error.to_string())?;
        let found_name = found.file_name();
        let hidden = found_name.to_string_lossy().starts_with('.') && !name.starts_with('.');
        if !hidden && glob::matches(name.as_bytes(), found_name.to_string_lossy().as_bytes()) {
            paths.push(found.path());
        }
    }
    paths.sort();
    paths.iter().map(|path| Ok((path.display().to_string(), read_file(path)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(file: &Path, flags: &[&str]) -> cli::Arguments {
        let flags = flags.iter().map(|&flag| flag.to_owned()).collect();
        cli::Arguments { file: Some(file.to_owned()), stdin: false, flags }
    }

    #[test]
    fn flags_win_over_the_file_and_includes_may_be_patterns() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        write("b.inc", "hz 30");
        write("a.inc", "hz 20\ntimeout 5");
        write("main.conf", &format!("port 1\ninclude {}/*.inc\nio-threads 4\n", folder.path().display()));
        let main = folder.path().join("main.conf");
        let loaded = load(&arguments(&main, &["port 2"])).unwrap_or_else(|error| panic!("{error}"));
        let config = &loaded.config;
        assert_eq!((config.port, config.hz, config.timeout_s), (2, 30, 5));
        assert_eq!(loaded.path.as_deref(), Some(main.as_path()));
        assert_eq!(
            loaded.notes,
            ["Configuration: io-threads has no effect: the number of shards is set with shards"]
        );
        rewrite_file(config, Some(&main)).unwrap();
        assert!(fs::read_to_string(&main).unwrap().starts_with("port 2\ninclude "));
        assert_eq!(load(&arguments(&main, &[])).unwrap_or_else(|error| panic!("{error}")).config, *config);
    }

    #[test]
    fn files_that_cannot_be_read_are_named() {
        let error = load(&arguments(Path::new("/nonexistent.conf"), &[])).err().unwrap();
        assert_eq!(
            error,
            "Fatal error, can't open config file '/nonexistent.conf': No such file or directory"
        );
        assert_eq!(rewrite_file(&Config::default(), None), Err(rewrite::NO_FILE.to_owned()));
    }

    /// Debian's file, where it is installed, must load whole.
    #[test]
    fn debians_file_loads() {
        let Ok(text) = fs::read_to_string("/etc/redis/redis.conf") else { return };
        let mut none = |path: &str| Err(format!("no file {path}"));
        let mut loader = parse::Loader::new(&mut none);
        loader.text("redis.conf", &text).unwrap_or_else(|error| panic!("{error}"));
        let (config, notes) = loader.finish();
        assert_eq!(config.dir, "/var/lib/redis");
        assert!(config.daemonize);
        assert_eq!(notes, Vec::<String>::new());
    }

    /// The directives that stock files of Redis 7 and 8 set or show, with their stock values.
    #[test]
    fn stock_directives_load() {
        let text = include_str!("stock_sample.conf");
        let mut none = |path: &str| Err(format!("no file {path}"));
        let mut loader = parse::Loader::new(&mut none);
        loader.text("stock_sample.conf", text).unwrap_or_else(|error| panic!("{error}"));
        let (config, notes) = loader.finish();
        assert_eq!(notes, Vec::<String>::new());
        assert_eq!((config.port, config.replica_priority, config.hz), (6379, 100, 10));
    }
}
