//! The binary as a user runs it, against a real redis-server.

use std::process::{Command, Output};

use braid_bench::peers::{Kind, Peer};

fn bench(peer: &Peer, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_braid-bench"));
    command.args(&args[..1]).args(["--port", &peer.port().to_string()]).args(&args[1..]);
    command.output().expect("the binary runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The value of a column in the row of that name.
fn csv_value(csv: &str, row: &str, column: &str) -> f64 {
    let mut lines = csv.lines().map(|line| line.split(',').collect::<Vec<_>>());
    let header = lines.next().expect("a header");
    let at = header.iter().position(|name| *name == column).unwrap_or_else(|| panic!("no {column} in {csv}"));
    let line = lines.find(|line| line[0] == row).unwrap_or_else(|| panic!("no {row} in {csv}"));
    line[at].parse().expect("a number")
}

#[test]
fn load_reports_what_the_server_counted() {
    let peer = Kind::Redis7.start().unwrap();
    let pid = peer.pid().unwrap().to_string();
    let args = ["load", "--mix", "get=1,set=1", "--requests", "20000", "-P", "8", "-c", "10", "-t", "2"];
    let ended = bench(&peer, &[&args[..], &["--csv", "--quiet", "--server-pid", &pid]].concat());
    assert!(ended.status.success(), "{}", text(&ended.stderr));
    let csv = text(&ended.stdout);
    assert_eq!(csv_value(&csv, "all", "ops"), 20_000.0);
    assert_eq!(csv_value(&csv, "get", "ops") + csv_value(&csv, "set", "ops"), 20_000.0);
    assert!(csv_value(&csv, "all", "p50") <= csv_value(&csv, "all", "p99.9"));
    assert!(csv_value(&csv, "all", "cpu_us_per_op") >= 0.0);
    let stats = peer.client().unwrap().info("commandstats").unwrap();
    let calls = format!("calls={},", csv_value(&csv, "set", "ops"));
    assert!(stats["cmdstat_set"].starts_with(&calls), "{csv} {stats:?}");
}

#[test]
fn a_fixed_rate_load_keeps_its_rate_and_prints_progress() {
    let peer = Kind::Redis7.start().unwrap();
    // Room for a second's operations, should the machine be that busy.
    let room = ["load", "-P", "10", "--rate", "500", "--duration", "2"];
    let ended = bench(&peer, &[&room[..], &["--read-ratio", "0.9", "--json"]].concat());
    assert!(ended.status.success(), "{}", text(&ended.stderr));
    let json = text(&ended.stdout);
    assert!(json.contains("\"name\":\"all\",\"ops\":1000,"), "{json}");
    assert!(text(&ended.stderr).contains("ops/s"), "a progress line each second");
}

#[test]
fn fill_and_probe_print_their_tables() {
    let peer = Kind::Redis7.start().unwrap();
    let pid = peer.pid().unwrap().to_string();
    let ended = bench(&peer, &["fill", "--keys", "20000", "-q", "--server-pid", &pid]);
    let table = text(&ended.stdout);
    assert!(ended.status.success(), "{}", text(&ended.stderr));
    assert!(table.contains("new_keys 20000.0") && table.contains("rss_bytes_per_key"), "{table}");
    let ended = bench(&peer, &["probe", "--csv", "--", "sleep", "0.2"]);
    assert!(ended.status.success(), "{}", text(&ended.stderr));
    let rate = csv_value(&text(&ended.stdout), "probe", "ops_per_s");
    assert!((800.0..=1200.0).contains(&rate), "{rate} requests per second at one a millisecond");
}

#[test]
fn failures_are_one_clear_line_and_no_panic() {
    let mut peer = Kind::Redis7.start().unwrap();
    peer.client().unwrap().call(&["CONFIG", "SET", "maxmemory", "1"]).unwrap();
    let ended = bench(&peer, &["load", "--mix", "set", "--requests", "10", "-q"]);
    assert_eq!(ended.status.code(), Some(1));
    assert!(text(&ended.stderr).contains("10 error replies, the first: OOM"), "{}", text(&ended.stderr));

    peer.kill().unwrap();
    for args in [&["load", "--requests", "1"][..], &["probe"], &["fill"]] {
        let ended = bench(&peer, args);
        assert_eq!(ended.status.code(), Some(1), "{args:?}");
        let said = text(&ended.stderr);
        assert!(said.starts_with("braid-bench: cannot connect to 127.0.0.1:"), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
    let ended = bench(&peer, &["load", "--mix", "nosuch"]);
    assert_eq!(ended.status.code(), Some(2));
    assert!(text(&ended.stderr).contains("no operation is called \"nosuch\""), "{}", text(&ended.stderr));
}
