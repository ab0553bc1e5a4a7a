//! `COMMAND`: the command table as clients see it.

use super::table::Call;
use braid_core::command::{Args, Begin, Category, Command, Error, Find, Flags, Handler, KeySpec, registry};
use braid_core::commands::object::help;
use braid_core::resp::Reply;

/// The commands that clients can name.
fn all() -> impl Iterator<Item = &'static Command> {
    registry().all().iter().copied().filter(|command| !command.flags.has(Flags::INTERNAL))
}

/// `COMMAND [COUNT|DOCS|GETKEYS|GETKEYSANDFLAGS|INFO|LIST|HELP …]`
pub fn command(call: &mut Call<'_>) -> Result<(), Error> {
    let (args, out) = (call.args, &mut *call.out);
    match () {
        () if args.len() == 1 => infos(out, all().map(Some).collect()),
        () if args.is(1, "count") => out.int(all().count() as i64),
        () if args.is(1, "info") && args.len() == 2 => infos(out, all().map(Some).collect()),
        () if args.is(1, "info") => infos(out, args[2..].iter().map(|name| find(name)).collect()),
        () if args.is(1, "docs") => all_docs(out, args),
        () if args.is(1, "list") => list(out, args)?,
        () if args.is(1, "getkeys") => keys(out, args, false)?,
        () if args.is(1, "getkeysandflags") => keys(out, args, true)?,
        () => help(
            out,
            "COMMAND",
            &[
                ("(no subcommand)", "Information on all commands."),
                ("COUNT", "How many commands there are."),
                ("DOCS [<command> ...]", "Documentation of commands, or of all."),
                ("GETKEYS <full-command>", "The keys of a command."),
                ("GETKEYSANDFLAGS <full-command>", "The keys of a command, with what is done to them."),
                ("INFO [<command> ...]", "Information on commands, or on all."),
                (
                    "LIST [FILTERBY (MODULE <name>|ACLCAT <category>|PATTERN <pattern>)]",
                    "The names of commands.",
                ),
            ],
        ),
    }
    Ok(())
}

/// A command and, for a subcommand, its container.
#[derive(Clone, Copy)]
struct Named {
    command: &'static Command,
    container: Option<&'static Command>,
}

impl Named {
    fn full_name(self) -> String {
        match self.container {
            Some(container) => format!("{}|{}", container.name, self.command.name),
            None => self.command.name.to_owned(),
        }
    }
}

/// Finds a command by its name, or a subcommand as `container|name`.
fn find_named(name: &[u8]) -> Option<Named> {
    let mut words = name.splitn(2, |byte| *byte == b'|');
    let (_, container) = registry().find(words.next()?)?;
    if container.flags.has(Flags::INTERNAL) {
        return None;
    }
    match words.next() {
        None => Some(Named { command: container, container: None }),
        Some(word) => Some(Named { command: container.subcommand(word)?, container: Some(container) }),
    }
}

fn find(name: &[u8]) -> Option<&'static Command> {
    find_named(name).filter(|named| named.container.is_none()).map(|named| named.command)
}

fn infos(out: &mut Reply, commands: Vec<Option<&'static Command>>) {
    out.array(commands.len());
    for command in commands {
        match command {
            Some(command) => info(out, Named { command, container: None }),
            None => out.null_array(),
        }
    }
}

fn info(out: &mut Reply, named: Named) {
    let command = named.command;
    let (first, last, step) = command.legacy_key_range();
    out.array(10);
    out.bulk(named.full_name().as_bytes());
    out.int(i64::from(command.arity));
    status_set(out, flags_of(command).names());
    out.int(first);
    out.int(last);
    out.int(step);
    let categories = Category::of(command.flags, command.categories);
    let categories: Vec<String> = categories.names().map(|name| format!("@{name}")).collect();
    status_set(out, categories.iter().map(String::as_str));
    // Tips: how a client of many nodes should send it. None are given.
    out.array(0);
    out.array(command.keys.len());
    command.keys.iter().for_each(|spec| key_spec(out, spec));
    out.array(command.subcommands.len());
    for sub in command.subcommands {
        info(out, Named { command: sub, container: Some(command) });
    }
}

/// A command's flags, with what follows from its key specs.
fn flags_of(command: &Command) -> Flags {
    let movable =
        |spec: &KeySpec| matches!(spec.begin, Begin::Keyword(..)) || matches!(spec.find, Find::KeyNum { .. });
    let flags = command.flags;
    if command.keys.iter().any(movable) { flags.or(Flags::MOVABLEKEYS) } else { flags }
}

fn status_set<'a>(out: &mut Reply, names: impl Iterator<Item = &'a str>) {
    let names: Vec<&str> = names.collect();
    out.set(names.len());
    names.into_iter().for_each(|name| out.simple(name));
}

fn key_spec(out: &mut Reply, spec: &KeySpec) {
    out.map(3);
    out.bulk(b"flags");
    status_set(out, key_flags(spec));
    out.bulk(b"begin_search");
    out.map(2);
    out.bulk(b"type");
    match spec.begin {
        Begin::Index(index) => {
            out.bulk(b"index");
            out.bulk(b"spec");
            out.map(1);
            out.bulk(b"index");
            out.int(i64::from(index));
        }
        Begin::Keyword(word, from) => {
            out.bulk(b"keyword");
            out.bulk(b"spec");
            out.map(2);
            out.bulk(b"keyword");
            out.bulk(word.as_bytes());
            out.bulk(b"startfrom");
            out.int(i64::from(from));
        }
    }
    out.bulk(b"find_keys");
    out.map(2);
    out.bulk(b"type");
    let (kind, fields): (&str, [(&str, i64); 3]) = match spec.find {
        Find::Range { last, step, limit } => {
            ("range", [("lastkey", last.into()), ("keystep", step.into()), ("limit", limit.into())])
        }
        Find::KeyNum { at, first, step } => {
            ("keynum", [("keynumidx", at.into()), ("firstkey", first.into()), ("keystep", step.into())])
        }
    };
    out.bulk(kind.as_bytes());
    out.bulk(b"spec");
    out.map(fields.len());
    for (name, value) in fields {
        out.bulk(name.as_bytes());
        out.int(value);
    }
}

fn key_flags(spec: &KeySpec) -> impl Iterator<Item = &'static str> {
    std::iter::once(spec.usage.name()).chain(spec.more.iter().copied())
}

fn all_docs(out: &mut Reply, args: Args<'_>) {
    let commands: Vec<Named> = if args.len() == 2 {
        all().map(|command| Named { command, container: None }).collect()
    } else {
        args[2..].iter().filter_map(|name| find_named(name)).collect()
    };
    out.map(commands.len());
    commands.into_iter().for_each(|named| docs(out, named));
}

fn docs(out: &mut Reply, named: Named) {
    let command = named.command;
    out.bulk(named.full_name().as_bytes());
    let fields = [
        ("summary", command.summary),
        ("since", command.since),
        ("group", command.group),
        ("complexity", command.complexity),
    ];
    out.map(fields.len() + usize::from(!command.subcommands.is_empty()));
    for (name, value) in fields {
        out.bulk(name.as_bytes());
        out.bulk(value.as_bytes());
    }
    if !command.subcommands.is_empty() {
        out.bulk(b"subcommands");
        out.map(command.subcommands.len());
        for sub in command.subcommands {
            docs(out, Named { command: sub, container: Some(command) });
        }
    }
}

fn list(out: &mut Reply, args: Args<'_>) -> Result<(), Error> {
    let mut named: Vec<Named> = Vec::new();
    for command in all() {
        named.push(Named { command, container: None });
        named.extend(command.subcommands.iter().map(|sub| Named { command: sub, container: Some(command) }));
    }
    let names: Vec<String> = match args.len() {
        // Without a filter only whole commands are listed.
        2 => all().map(|command| command.name.to_owned()).collect(),
        5 if args.is(2, "filterby") && args.is(3, "module") => Vec::new(),
        5 if args.is(2, "filterby") && args.is(3, "aclcat") => {
            let wanted = Category::by_name(args[4]);
            let has = |named: &Named| {
                let categories = Category::of(named.command.flags, named.command.categories);
                wanted.is_some_and(|wanted| categories.has(wanted))
            };
            named.into_iter().filter(has).map(Named::full_name).collect()
        }
        5 if args.is(2, "filterby") && args.is(3, "pattern") => {
            let matches = |name: &String| braid_core::glob::matches_ignoring_case(args[4], name.as_bytes());
            named.into_iter().map(Named::full_name).filter(matches).collect()
        }
        _ => return Err(Error::Syntax),
    };
    out.array(names.len());
    names.iter().for_each(|name| out.bulk(name.as_bytes()));
    Ok(())
}

fn keys(out: &mut Reply, args: Args<'_>, with_flags: bool) -> Result<(), Error> {
    let words = Args::new(&args.list()[2..], &[]);
    let known = registry().find(words[0]).filter(|(_, command)| !command.flags.has(Flags::INTERNAL));
    let Some((_, container)) = known else { return Err(Error::text("ERR Invalid command specified")) };
    let command = container.resolve(words);
    if command.keys.is_empty() {
        return Err(Error::text("ERR The command has no key arguments"));
    }
    if !command.accepts(words.len()) {
        return Err(Error::text("ERR Invalid number of arguments specified for command"));
    }
    debug_assert!(!matches!(command.handler, Handler::Whole(_)), "those have no keys");
    let found = command.find_keys(words).filter(|found| !found.is_empty());
    let found = found.ok_or(Error::text("ERR Invalid arguments specified for command"))?;
    out.array(found.len());
    for key in found {
        if with_flags {
            out.array(2);
        }
        out.bulk(words[key.index]);
        if with_flags {
            status_set(out, key_flags(&key.spec));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(run: impl FnOnce(&mut Reply)) -> String {
        let mut out = Reply::default();
        run(&mut out);
        String::from_utf8(out.to_wire()).unwrap()
    }

    fn with_args<T>(line: &str, run: impl FnOnce(Args<'_>) -> T) -> T {
        let list: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        run(Args::new(&list, &[]))
    }

    #[test]
    fn information_has_redis_shape() {
        let text = reply(|out| infos(out, vec![find(b"GET"), find(b"none"), find(b"info|survey")]));
        let key_spec = "*6\r\n$5\r\nflags\r\n*2\r\n+RO\r\n+access\r\n$12\r\nbegin_search\r\n*4\r\n$4\r\ntype\r\n$5\r\nindex\r\n\
                        $4\r\nspec\r\n*2\r\n$5\r\nindex\r\n:1\r\n$9\r\nfind_keys\r\n*4\r\n$4\r\ntype\r\n$5\r\nrange\r\n\
                        $4\r\nspec\r\n*6\r\n$7\r\nlastkey\r\n:0\r\n$7\r\nkeystep\r\n:1\r\n$5\r\nlimit\r\n:0\r\n";
        let get = format!(
            "*10\r\n$3\r\nget\r\n:2\r\n*2\r\n+readonly\r\n+fast\r\n:1\r\n:1\r\n:1\r\n*3\r\n+@read\r\n+@string\r\n+@fast\r\n\
             *0\r\n*1\r\n{key_spec}*0\r\n"
        );
        assert_eq!(text, format!("*3\r\n{get}*-1\r\n*-1\r\n"));
    }

    #[test]
    fn keys_are_found() {
        let run = |line: &str, flags| {
            let mut out = Reply::default();
            let outcome = with_args(line, |args| keys(&mut out, args, flags));
            outcome.map(|()| String::from_utf8(out.buf).unwrap()).map_err(|error| error.to_string())
        };
        assert_eq!(run("command getkeys get a", false).unwrap(), "*1\r\n$1\r\na\r\n");
        assert_eq!(
            run("command getkeysandflags get a", true).unwrap(),
            "*1\r\n*2\r\n$1\r\na\r\n*2\r\n+RO\r\n+access\r\n"
        );
        for (line, error) in [
            ("command getkeys none a", "ERR Invalid command specified"),
            ("command getkeys watch|here a", "ERR Invalid command specified"),
            ("command getkeys ping", "ERR The command has no key arguments"),
            ("command getkeys get", "ERR Invalid number of arguments specified for command"),
        ] {
            assert_eq!(run(line, false).unwrap_err(), error);
        }
    }

    #[test]
    fn lists_can_be_filtered() {
        let run = |line: &str| {
            let mut out = Reply::default();
            with_args(line, |args| list(&mut out, args)).map(|()| String::from_utf8(out.buf).unwrap())
        };
        assert_eq!(
            run("command list filterby pattern client|i*").unwrap(),
            "*2\r\n$9\r\nclient|id\r\n$11\r\nclient|info\r\n"
        );
        assert_eq!(run("command list filterby module x").unwrap(), "*0\r\n");
        assert!(run("command list filterby aclcat transaction").unwrap().contains("$5\r\nmulti\r\n"));
        assert_eq!(run("command list filterby aclcat none").unwrap(), "*0\r\n");
        assert!(!run("command list").unwrap().contains('|'));
        assert!(run("command list filterby what x").is_err());
    }

    #[test]
    fn documents_name_subcommands_in_full() {
        let text =
            reply(|out| with_args("command docs slowlog slowlog|get none", |args| all_docs(out, args)));
        assert!(text.starts_with("*4\r\n$7\r\nslowlog\r\n*10\r\n$7\r\nsummary\r\n"), "{text}");
        assert_eq!(text.matches("$11\r\nslowlog|get\r\n").count(), 2);
    }
}
