//! Starting and ending: what is wrong is said and ends the process with a non-zero status; signals end it in order.

mod common;

use braid_bench::client::Client;
use braid_bench::peers::{self, Peer};
use braid_bench::{sys, wait};
use common::{braid_builder, call, connect, start_braid};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(20);

fn server() -> Command {
    Command::new(env!("CARGO_BIN_EXE_braid-server"))
}

/// Runs to the end: for starts that fail, or that only print.
fn run(arguments: &[&str], input: &str) -> Output {
    let mut child = server()
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    // A start that fails early may not read its input.
    let _ = child.stdin.take().expect("piped").write_all(input.as_bytes());
    let (sender, ended) = std::sync::mpsc::channel();
    let pid = child.id();
    std::thread::spawn(move || sender.send(child.wait_with_output()));
    ended.recv_timeout(PATIENCE).map(|output| output.expect("the output is read")).unwrap_or_else(|_| {
        let _ = sys::send_signal(pid, sys::Signal::Term);
        panic!("{arguments:?} is still running")
    })
}

/// All that a failed start printed.
fn refused(arguments: &[&str], input: &str) -> String {
    let output = run(arguments, input);
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(!output.status.success(), "{arguments:?} ended with {}:\n{text}", output.status);
    assert!(output.status.code().is_some(), "{arguments:?} was killed by a signal: {}", output.status);
    assert!(!text.contains("panicked"), "{text}");
    text
}

fn free_port() -> String {
    peers::free_port().unwrap().to_string()
}

#[test]
fn a_bad_directive_is_named_with_its_file_and_line() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("braid.conf");
    let path = file.to_str().unwrap();
    for (text, line, expected) in [
        ("# a comment\n\nno-such-directive 1\n", 3, "Bad directive or wrong number of arguments"),
        ("port 6380\nmaxmemory many\n", 2, "memory"),
        ("port 70000\n", 1, "port"),
        ("port\n", 1, "wrong number of arguments"),
        ("shards many\n", 1, "shards"),
        ("bind \"127.0.0.1\n", 1, "nbalanced quotes"),
        ("appendonly perhaps\n", 1, "yes"),
    ] {
        std::fs::write(&file, text).unwrap();
        let said = refused(&[path], "");
        let offender = text.lines().nth(line - 1).unwrap();
        for part in [&format!("at line {line} of {path}"), &format!(">>> '{offender}'"), expected] {
            assert!(said.to_lowercase().contains(&part.to_lowercase()), "{part} is not in:\n{said}");
        }
    }
    // An included file is the one to look at.
    let inner = folder.path().join("inner.conf");
    std::fs::write(&inner, "port 1\nnonsense\n").unwrap();
    std::fs::write(&file, format!("include {}\n", inner.display())).unwrap();
    assert!(refused(&[path], "").contains(&format!("at line 2 of {}", inner.display())));
    // From the standard input.
    assert!(refused(&["-"], "port 1\nnonsense\n").contains("at line 2"));
    let missing = folder.path().join("missing.conf");
    assert!(refused(&[missing.to_str().unwrap()], "").contains("missing.conf"));
}

#[test]
fn a_bad_flag_is_named() {
    assert!(refused(&["--no-such-flag", "1"], "").contains("--no-such-flag"));
    let said = refused(&["--maxmemory", "many"], "");
    assert!(said.contains("maxmemory") && said.contains("many"), "{said}");
    assert!(refused(&["one.conf", "two.conf"], "").contains("two.conf"));
    assert!(refused(&["--bind", "not-an-address", "--port", &free_port()], "").contains("not-an-address"));
    assert!(refused(&["--dir", "/nonexistent", "--port", &free_port()], "").contains("/nonexistent"));
    assert!(
        refused(&["--logfile", "/nonexistent/log", "--port", &free_port()], "").contains("/nonexistent/log")
    );
    assert!(refused(&["--port", "0"], "").contains("not listen anywhere"));
    let said = refused(&["--unixsocket", "/nonexistent/socket", "--port", "0"], "");
    assert!(said.contains("Failed opening Unix socket"), "{said}");
}

#[test]
fn a_port_in_use_is_named() {
    let peer = start_braid(1);
    let said = refused(&["--bind", "127.0.0.1", "--port", &peer.port().to_string(), "--save", ""], "");
    assert!(said.contains("Could not create server TCP listening socket"), "{said}");
    assert!(said.contains(&peer.port().to_string()) && said.contains("Address already in use"), "{said}");
    // The one that has it goes on.
    assert_eq!(call(&mut connect(&peer), &["PING"]), "PONG");
}

#[test]
fn help_and_version_are_printed() {
    for flag in ["--help", "-h"] {
        let output = run(&[flag], "");
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success());
        for word in ["--port", "--shards", "braid.conf"] {
            assert!(text.contains(word), "{word} is not in the help");
        }
    }
    for flag in ["--version", "-v"] {
        let output = run(&[flag], "");
        assert!(output.status.success());
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains(env!("CARGO_PKG_VERSION")), "{text}");
    }
}

#[test]
fn configuration_from_a_file_the_standard_input_and_flags() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("braid.conf");
    let port = free_port();
    std::fs::write(&file, "port 1\nbind 127.0.0.1\nshards 2\nrequirepass from-file\n").unwrap();
    let mut child = server()
        .arg(&file)
        .args(["--port", &port, "--save", "", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"requirepass from-input\n").unwrap();
    let address = format!("127.0.0.1:{port}");
    let answered = wait::until("the server answers", PATIENCE, || {
        Ok(Client::connect(&address)
            .and_then(|mut client| client.command(&["AUTH", "from-input"]))
            .is_ok_and(|reply| reply == "OK"))
    });
    child.kill().unwrap();
    child.wait().unwrap();
    answered.unwrap();
}

/// Starts with limits of locked memory, and without the capability that lifts them.
fn with_memlock(limit_bytes: u64, arguments: &[&str]) -> Command {
    const CAP_IPC_LOCK: libc::c_ulong = 14;
    const CAP_SYS_RESOURCE: libc::c_ulong = 24;
    let mut command = server();
    command.args(arguments);
    // SAFETY: between fork and exec only system calls are made, which is allowed there; they touch no memory but the
    // limit on this stack.
    unsafe {
        command.pre_exec(move || {
            let limit = libc::rlimit { rlim_cur: limit_bytes, rlim_max: limit_bytes };
            if libc::setrlimit(libc::RLIMIT_MEMLOCK, &limit) != 0 {
                return Err(std::io::Error::last_os_error());
            }
            // What is not in the bounding set is not regained by exec, not even by root. Who is not root has neither.
            libc::prctl(libc::PR_CAPBSET_DROP, CAP_IPC_LOCK, 0, 0, 0);
            libc::prctl(libc::PR_CAPBSET_DROP, CAP_SYS_RESOURCE, 0, 0, 0);
            Ok(())
        });
    }
    command
}

#[test]
fn too_little_locked_memory_is_explained() {
    let port = free_port();
    let output = with_memlock(64 << 10, &["--port", &port, "--shards", "4", "--save", ""])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    for part in ["4 shards", "locked memory", "limit is 64 kB", "ulimit -l", "LimitMEMLOCK="] {
        assert!(said.contains(part), "{part} is not in:\n{said}");
    }
    assert!(!said.contains("panicked"), "{said}");
}

#[test]
fn sigterm_and_sigint_end_the_server_with_status_zero() {
    for shards in [1, 3] {
        let mut peer = braid_builder(shards).unix_socket().start().unwrap();
        let mut client = connect(&peer);
        call(&mut client, &["SET", "a", "1"]);
        let status = peer.terminate(PATIENCE).unwrap();
        assert_eq!(status.code(), Some(0), "{}", peer.log());
        let log = peer.log();
        for line in ["Received Terminate scheduling shutdown...", "Braid is now ready to exit, bye bye..."] {
            assert!(log.contains(line), "{line} is not in:\n{log}");
        }
        client.wait_closed().unwrap();
        assert!(!peer.unix_socket().exists(), "the socket's file stays");
    }
    let mut peer = start_braid(2);
    // SAFETY: the call touches no memory; the process is our child, which has not been waited for.
    assert_eq!(unsafe { libc::kill(peer.pid().unwrap() as i32, libc::SIGINT) }, 0);
    assert_eq!(peer.wait_exit(PATIENCE).unwrap().code(), Some(0), "{}", peer.log());
    // The loss of a terminal is no reason to end.
    let peer = start_braid(2);
    // SAFETY: as above.
    assert_eq!(unsafe { libc::kill(peer.pid().unwrap() as i32, libc::SIGHUP) }, 0);
    assert_eq!(call(&mut connect(&peer), &["PING"]), "PONG");
}

fn read_pid(path: &Path) -> Option<u32> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[test]
fn the_pid_file_holds_the_process_and_goes_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("braid.pid");
    let mut peer = braid_builder(1).arg("--pidfile").arg(&path).start().unwrap();
    assert_eq!(read_pid(&path), peer.pid());
    assert!(peer.terminate(PATIENCE).unwrap().success());
    assert!(!path.exists());
}

#[test]
fn in_the_background_the_server_serves_and_ends_when_told() {
    let folder = tempfile::tempdir().unwrap();
    let (pidfile, logfile) = (folder.path().join("pid"), folder.path().join("log"));
    let port = free_port();
    let mut arguments =
        vec!["--daemonize", "yes", "--bind", "127.0.0.1", "--port", &port, "--shards", "2", "--save", ""];
    arguments.extend(["--pidfile", pidfile.to_str().unwrap(), "--logfile", logfile.to_str().unwrap()]);
    arguments.extend(["--dir", folder.path().to_str().unwrap()]);
    let started = server().args(&arguments).stdin(Stdio::null()).status().unwrap();
    assert!(started.success());
    let address = format!("127.0.0.1:{port}");
    wait::until("the server answers", PATIENCE, || {
        Ok(Client::connect(&address)
            .and_then(|mut client| client.command(&["PING"]))
            .is_ok_and(|reply| reply == "PONG"))
    })
    .unwrap();
    let pid = read_pid(&pidfile).expect("the file holds the process id");
    // SAFETY: the calls touch no memory.
    assert_ne!(
        unsafe { libc::getsid(pid as i32) },
        unsafe { libc::getsid(0) },
        "it has a session of its own"
    );
    sys::send_signal(pid, sys::Signal::Term).unwrap();
    wait::until("the process is gone", PATIENCE, || {
        Ok(!pidfile.exists() && Client::connect(&address).is_err())
    })
    .unwrap();
    let log = || std::fs::read_to_string(&logfile).unwrap_or_default();
    wait::until("the last line is logged", PATIENCE, || Ok(log().contains("bye bye"))).unwrap();
    assert!(log().contains("Ready to accept connections tcp"), "{}", log());
}

#[test]
fn the_log_has_the_lines_that_tools_look_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("braid.log");
    let peer = braid_builder(2).unix_socket().arg("--logfile").arg(&path).start().unwrap();
    let lines = || std::fs::read_to_string(&path).unwrap_or_default();
    wait::until("the log is written", PATIENCE, || Ok(lines().contains("Ready to accept connections unix")))
        .unwrap();
    let log = lines();
    for part in [
        "* oO0OoO0OoO0Oo Braid is starting oO0OoO0OoO0Oo",
        "* Server initialized",
        &format!("{}:M ", peer.pid().unwrap()),
        "* Ready to accept connections tcp",
        &format!("Running mode=standalone, port={}", peer.port()),
    ] {
        assert!(log.contains(part), "{part} is not in:\n{log}");
    }
    // pid:role day month year time level message
    for line in log.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let (pid, role) = words[0].split_once(':').unwrap_or_else(|| panic!("{line}"));
        assert_eq!(pid.parse(), Ok(peer.pid().unwrap()), "{line}");
        let is_up = line.contains("initialized") || line.contains("Ready");
        assert!(if is_up { role == "M" } else { ["C", "M"].contains(&role) }, "{line}");
        assert!(words[4].len() == "00:00:00.000".len() && ["#", "*", "-", "."].contains(&words[5]), "{line}");
    }
}

#[test]
fn more_shards_than_cores_is_a_warning() {
    let cores = std::thread::available_parallelism().unwrap().get();
    let warns =
        |peer: &Peer| peer.log().lines().any(|line| line.contains(" # ") && line.contains("shards share"));
    let crowded = start_braid(cores + 3);
    wait::until("the warning is logged", PATIENCE, || Ok(warns(&crowded))).unwrap();
    assert!(
        crowded.log().contains(&format!("{} shards share {cores} cores", cores + 3)),
        "{}",
        crowded.log()
    );
    assert!(!warns(&start_braid(1)));
}

/// The child of the test below; without its variable it does nothing.
#[test]
fn a_thread_panics_if_told_to() {
    let Some(path) = std::env::var_os("BRAID_TEST_PANIC_LOG") else { return };
    let target = braid_net::log::Target::open(path.to_str().unwrap()).unwrap();
    braid_net::log::init(target, Default::default());
    braid_net::log::start_writer().unwrap();
    braid_net::log::install_panic_hook();
    let shard = std::thread::Builder::new()
        .name("braid-shard-0".into())
        .spawn(|| panic!("a broken\ninvariant"))
        .unwrap();
    let _ = shard.join();
    // Reached only if a panic does not end the process.
    println!("still running");
}

#[test]
fn a_panic_is_logged_and_ends_the_process() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_thread_panics_if_told_to", "--nocapture"])
        .env("BRAID_TEST_PANIC_LOG", &path)
        .output()
        .unwrap();
    let log = std::fs::read_to_string(&path).unwrap();
    assert!(log.contains("crashed in thread braid-shard-0") && log.contains("a broken"), "{log}");
    assert!(!output.status.success(), "the process went on after a panic");
    assert!(!String::from_utf8_lossy(&output.stdout).contains("still running"));
}

#[test]
fn huge_pages_are_switched_off_unless_wanted() {
    for (directive, expected) in [("yes", "THP_enabled:\t0"), ("no", "THP_enabled:\t1")] {
        let peer = braid_builder(1).args(["--disable-thp", directive]).start().unwrap();
        let status = std::fs::read_to_string(format!("/proc/{}/status", peer.pid().unwrap())).unwrap();
        assert!(status.contains(expected), "{directive}: {status}");
    }
}
