//! `CONFIG GET` and `CONFIG SET`, as functions from a [`Config`] to a [`Config`], and the place where the current one is.

use super::directives::Config;
use super::table::{self, Apply, Directive, Mutability, Support, directives};
use super::values::Permission;
use braid_core::glob;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// The directives whose names match any of `patterns`, each once, with their values. An alias that matches is listed
/// under its own name, as Redis does.
pub fn get(config: &Config, patterns: &[&[u8]]) -> Vec<(&'static str, String)> {
    let shown = directives().filter(|directive| !matches!(directive.support, Support::Refused(_)));
    let names = shown.flat_map(|directive| directive.names().map(move |name| (name, directive)));
    let wanted = names.filter(|(name, _)| {
        patterns.iter().any(|pattern| glob::matches_ignoring_case(pattern, name.as_bytes()))
    });
    wanted.map(|(name, directive)| (name, directive.get(config))).collect()
}

/// A changed configuration, and what changed.
pub struct Change {
    pub config: Config,
    /// The directives whose values differ now, in the order they were given.
    pub changed: Vec<&'static Directive>,
}

impl Change {
    /// What the server has to do, each thing once.
    pub fn apply(&self) -> Vec<Apply> {
        let mut hooks = Vec::new();
        for directive in &self.changed {
            if directive.apply != Apply::Nothing && !hooks.contains(&directive.apply) {
                hooks.push(directive.apply);
            }
        }
        hooks
    }
}

/// Who asks for a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asker {
    /// Whether the connection comes from this host (loopback or a Unix socket).
    pub local: bool,
}

/// `CONFIG SET`: takes all pairs or none.
///
/// # Errors
/// The text after `ERR `, as Redis 7 and newer give it.
pub fn set(config: &Config, pairs: &[(&[u8], &[u8])], asker: Asker) -> Result<Change, String> {
    let mut directives: Vec<&'static Directive> = Vec::with_capacity(pairs.len());
    for (name, _) in pairs {
        let text = String::from_utf8_lossy(name);
        let found = table::find(&text).filter(|directive| !matches!(directive.support, Support::Refused(_)));
        let directive = found
            .ok_or_else(|| format!("Unknown option or number of arguments for CONFIG SET - '{text}'"))?;
        let permitted = match directive.mutability {
            Mutability::Runtime => Ok(()),
            Mutability::Startup => Err("can't set immutable config"),
            Mutability::Protected => match config.enable_protected_configs {
                Permission::Yes => Ok(()),
                Permission::Local if asker.local => Ok(()),
                _ => Err("can't set protected config"),
            },
        };
        permitted.map_err(|error| failure(&text, error))?;
        if directives.iter().any(|other| other.name == directive.name) {
            return Err(failure(&text, "duplicate parameter"));
        }
        directives.push(directive);
    }
    let mut changed = config.clone();
    for (directive, (name, value)) in directives.iter().zip(pairs) {
        let outcome = match str::from_utf8(value) {
            Ok(value) => directive.set(&mut changed, &[value.to_owned()], true),
            Err(_) => Err("argument must be valid UTF-8".to_owned()),
        };
        outcome.map_err(|error| failure(&String::from_utf8_lossy(name), &error))?;
    }
    directives.retain(|directive| directive.get(config) != directive.get(&changed));
    Ok(Change { config: changed, changed: directives })
}

/// The error for one pair. Public because the server uses it where applying a change fails, for example on a port
/// that is taken.
pub fn failure(name: &str, error: &str) -> String {
    format!("CONFIG SET failed (possibly related to argument '{name}') - {error}")
}

/// The current configuration, shared by all threads: a snapshot is one reference count, and a shard learns with one
/// load of an integer whether its snapshot is still current.
pub struct Shared {
    current: Mutex<Arc<Config>>,
    version: AtomicU64,
}

impl Shared {
    /// Starts with `config` as version 0.
    pub fn new(config: Config) -> Self {
        Self { current: Mutex::new(Arc::new(config)), version: AtomicU64::new(0) }
    }

    /// Changes with every [`Shared::replace`].
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// The current configuration.
    pub fn snapshot(&self) -> Arc<Config> {
        self.lock().clone()
    }

    /// Puts a new configuration in place. Changes are made by one thread at a time: whoever reads, changes and replaces
    /// must be the only one, which in a server is the shard that serves `CONFIG`.
    pub fn replace(&self, config: Config) {
        *self.lock() = Arc::new(config);
        self.version.fetch_add(1, Ordering::Release);
    }

    /// Changes the configuration in one step, for threads that are not alone.
    ///
    /// # Errors
    /// What `change` says; then nothing is changed.
    pub fn update<T, E>(&self, change: impl FnOnce(&mut Config) -> Result<T, E>) -> Result<T, E> {
        let mut current = self.lock();
        let mut config = Config::clone(&current);
        let outcome = change(&mut config)?;
        *current = Arc::new(config);
        self.version.fetch_add(1, Ordering::Release);
        Ok(outcome)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Arc<Config>> {
        // The value is replaced whole, so a panic elsewhere cannot have left it half changed.
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REMOTE: Asker = Asker { local: false };

    fn set_text(config: &Config, pairs: &[(&str, &str)]) -> Result<Change, String> {
        let pairs: Vec<(&[u8], &[u8])> = pairs.iter().map(|(n, v)| (n.as_bytes(), v.as_bytes())).collect();
        set(config, &pairs, REMOTE)
    }

    fn value(config: &Config, name: &str) -> String {
        let found = get(config, &[name.as_bytes()]);
        assert_eq!(found.len(), 1, "{name}");
        found[0].1.clone()
    }

    #[test]
    fn get_matches_patterns_and_lists_aliases() {
        let config = Config::default();
        assert_eq!(value(&config, "save"), "3600 1 300 100 60 10000");
        assert_eq!(value(&config, "PORT"), "6379");
        assert_eq!(value(&config, "slaveof"), "");
        assert_eq!(value(&config, "bind"), "* -::*");
        assert_eq!(value(&config, "auto-aof-rewrite-min-size"), "67108864");
        let names: Vec<&str> =
            get(&config, &[b"hash-max-*", b"hash-m*"]).iter().map(|(name, _)| *name).collect();
        assert_eq!(
            names,
            [
                "hash-max-listpack-entries",
                "hash-max-ziplist-entries",
                "hash-max-listpack-value",
                "hash-max-ziplist-value"
            ]
        );
        assert!(get(&config, &[b"nosuch", b"user"]).is_empty());
        assert!(get(&config, &[]).is_empty());
    }

    #[test]
    fn set_takes_all_pairs_and_reports_what_changed() {
        let config = Config::default();
        let pairs =
            [("maxmemory", "1mb"), ("SLAVE-priority", "5"), ("timeout", "0"), ("save", ""), ("port", "7")];
        let change = set_text(&config, &pairs).unwrap();
        let names: Vec<&str> = change.changed.iter().map(|directive| directive.name).collect();
        assert_eq!(names, ["maxmemory", "replica-priority", "save", "port"]);
        assert_eq!(change.apply(), [Apply::MaxMemory, Apply::SavePoints, Apply::Listeners]);
        assert_eq!(change.config.maxmemory_bytes, 1 << 20);
        assert_eq!(value(&change.config, "save"), "");
        let change = set_text(&change.config, &[("save", "1 2 3 4"), ("bind", "127.0.0.1 ::1")]).unwrap();
        assert_eq!(value(&change.config, "save"), "1 2 3 4");
        assert_eq!(change.config.bind.0.len(), 2);
    }

    #[test]
    fn set_changes_nothing_when_one_pair_is_bad() {
        let config = Config::default();
        let failed = |name: &str, error: &str| failure(name, error);
        for (pairs, error) in [
            (
                &[("hz", "20"), ("timeout", "-1")][..],
                failed("timeout", "argument must be between 0 and 2147483647 inclusive"),
            ),
            (
                &[("hz", "20"), ("Foo", "1")],
                "Unknown option or number of arguments for CONFIG SET - 'Foo'".to_owned(),
            ),
            (&[("hz", "20"), ("daemonize", "yes")], failed("daemonize", "can't set immutable config")),
            (&[("hz", "20"), ("dir", "/")], failed("dir", "can't set protected config")),
            (&[("hz", "20"), ("hz", "21")], failed("hz", "duplicate parameter")),
            (
                &[("zset-max-ziplist-value", "1"), ("zset-max-listpack-value", "2")],
                failed("zset-max-listpack-value", "duplicate parameter"),
            ),
            (&[("user", "x")], "Unknown option or number of arguments for CONFIG SET - 'user'".to_owned()),
            (&[("appendonly", "yes")], failed("appendonly", "appendonly yes is not supported yet")),
            (&[("save", "1 2 3")], failed("save", "Invalid save parameters")),
            (
                &[("client-output-buffer-limit", "normal 1 2 3 foo 1 2 3")],
                failed(
                    "client-output-buffer-limit",
                    "Invalid client class specified in buffer limit configuration.",
                ),
            ),
        ] {
            assert_eq!(set_text(&config, pairs).err(), Some(error), "{pairs:?}");
        }
        assert_eq!(config, Config::default());
        assert_eq!(
            set(&config, &[(b"requirepass", b"\xff")], REMOTE).err(),
            Some(failure("requirepass", "argument must be valid UTF-8"))
        );
    }

    #[test]
    fn protected_directives_open_to_those_who_may() {
        let mut config = Config { enable_protected_configs: Permission::Local, ..Config::default() };
        let pair: &[(&[u8], &[u8])] = &[(b"dbfilename", b"x.rdb")];
        assert!(set(&config, pair, REMOTE).is_err());
        assert!(set(&config, pair, Asker { local: true }).is_ok());
        config.enable_protected_configs = Permission::Yes;
        assert!(set(&config, pair, REMOTE).is_ok());
    }

    #[test]
    fn a_snapshot_stays_as_it_was() {
        let shared = Shared::new(Config::default());
        let before = shared.snapshot();
        let version = shared.version();
        let refused: Result<(), &str> = shared.update(|config| {
            config.hz = 77;
            Err("no")
        });
        assert!(refused.is_err());
        assert_eq!((shared.version(), shared.snapshot().hz), (version, 10));
        shared
            .update(|config| {
                config.hz = 77;
                Ok::<(), ()>(())
            })
            .unwrap();
        assert_ne!(shared.version(), version);
        assert_eq!((before.hz, shared.snapshot().hz), (10, 77));
    }
}
