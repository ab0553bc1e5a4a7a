//! `braid-bench`: load, probes and fills against any server that speaks RESP.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use braid_bench::client::Address;
use braid_bench::fill;
use braid_bench::load::{self, Plan, Summary, Target, Tick};
use braid_bench::probe::Probe;
use braid_bench::report::{self, Row};
use braid_bench::workload::{Keys, Mix, Sizes, Workload};

/// Load, probes and fills against any server that speaks RESP.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Send a mix of commands, as fast as the server answers or at a fixed rate.
    Load(LoadArgs),
    /// Send one request each millisecond while something else happens.
    Probe(ProbeArgs),
    /// Set many keys as fast as possible, with a probe beside them.
    Fill(FillArgs),
}

/// Where the server is.
#[derive(Args)]
struct TargetArgs {
    #[arg(short = 'H', long, default_value = "127.0.0.1")]
    host: String,
    #[arg(short, long, default_value_t = 6379)]
    port: u16,
    /// A unix socket instead of host and port.
    #[arg(long, value_name = "PATH")]
    unix: Option<PathBuf>,
    /// Authenticate every connection.
    #[arg(short = 'a', long)]
    password: Option<String>,
    /// Database number.
    #[arg(short = 'n', long, default_value_t = 0)]
    db: u32,
}

impl TargetArgs {
    fn target(&self) -> io::Result<Target> {
        let address = match &self.unix {
            Some(path) => Address::Unix(path.clone()),
            None => Address::resolve(&self.host, self.port)?,
        };
        Ok(Target { address, password: self.password.clone(), database: self.db })
    }
}

/// What is common to `load` and `fill`.
#[derive(Args)]
struct ConnectionArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// Connections over all threads.
    #[arg(short, long, default_value_t = 50)]
    connections: usize,
    /// Threads that drive the connections.
    #[arg(short, long, default_value_t = 1)]
    threads: usize,
    /// Sizes of values in bytes, used in turn: 64 or 16,64,1024.
    #[arg(short = 'd', long, default_value = "64")]
    value_size: Sizes,
    /// Equal seeds send equal commands.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// CPUs for the threads: 1 or 1,3.
    #[arg(long, value_delimiter = ',')]
    cpus: Vec<usize>,
    /// The server's process id, to report its CPU time and memory.
    #[arg(long, value_name = "PID")]
    server_pid: Option<u32>,
    #[command(flatten)]
    output: OutputArgs,
}

impl ConnectionArgs {
    /// A plan without an end.
    fn plan(&self, mix: Mix, keys: Keys, key_space: u64, pipeline: usize) -> io::Result<Plan> {
        Ok(Plan {
            target: self.target.target()?,
            workload: Workload { mix, keys, key_space, sizes: self.value_size.clone() },
            connections: self.connections,
            threads: self.threads,
            pipeline,
            rate_per_s: None,
            duration: None,
            requests: None,
            seed: self.seed,
            cpus: self.cpus.clone(),
            server_pid: self.server_pid,
        })
    }
}

/// How results are printed. Latencies are in milliseconds in every format.
#[derive(Args)]
struct OutputArgs {
    /// Print the result as CSV.
    #[arg(long, conflicts_with = "json")]
    csv: bool,
    /// Print the result as one JSON object.
    #[arg(long)]
    json: bool,
    /// No line each second.
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Args)]
struct LoadArgs {
    #[command(flatten)]
    common: ConnectionArgs,
    /// Commands with weights, as get=9,set=1: get, set, incr, lpush, sadd, hset, zadd, mset, ping.
    #[arg(short, long, default_value = "get,set", conflicts_with = "read_ratio")]
    mix: Mix,
    /// Short for a mix of get and set, as 0.9.
    #[arg(long, value_name = "RATIO")]
    read_ratio: Option<f64>,
    /// Number of different keys.
    #[arg(short, long, default_value_t = 100_000)]
    keys: u64,
    /// uniform, zipf, zipf:EXPONENT or sequential.
    #[arg(long, default_value = "uniform")]
    distribution: Keys,
    /// Commands in flight per connection.
    #[arg(short = 'P', long, default_value_t = 1)]
    pipeline: usize,
    /// Operations per second, by a schedule: latency counts from when an operation was due.
    #[arg(short, long, value_name = "OPS_PER_S")]
    rate: Option<f64>,
    /// End after so many seconds [default: 10, unless --requests is given].
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    duration: Option<Duration>,
    /// End after so many operations.
    #[arg(long)]
    requests: Option<u64>,
}

#[derive(Args)]
struct ProbeArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// Milliseconds between requests.
    #[arg(long, default_value_t = 1.0)]
    interval_ms: f64,
    /// Probe for so many seconds [default: 10]; not with a command to run.
    #[arg(long, value_name = "SECONDS", value_parser = seconds, conflicts_with = "run")]
    duration: Option<Duration>,
    /// The request.
    #[arg(long, default_value = "GET key:000000000001")]
    request: String,
    #[command(flatten)]
    output: OutputArgs,
    /// A command to run meanwhile; the probe ends with it.
    #[arg(last = true)]
    run: Vec<String>,
}

#[derive(Args)]
struct FillArgs {
    #[command(flatten)]
    common: ConnectionArgs,
    /// Number of keys to set.
    #[arg(short, long, default_value_t = 1_000_000)]
    keys: u64,
    /// Commands in flight per connection.
    #[arg(short = 'P', long, default_value_t = 64)]
    pipeline: usize,
    /// Milliseconds between the requests of the probe.
    #[arg(long, default_value_t = 1.0)]
    interval_ms: f64,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let number: f64 = text.parse().map_err(|_| format!("{text:?} is no number of seconds"))?;
    if !(0.001..=1e6).contains(&number) {
        return Err("between 0.001 and 1000000 seconds".into());
    }
    Ok(Duration::from_secs_f64(number))
}

fn milliseconds(number: f64) -> io::Result<Duration> {
    if !(0.001..=1e6).contains(&number) {
        return Err(io::Error::other("an interval is between 0.001 and 1000000 milliseconds"));
    }
    Ok(Duration::from_secs_f64(number / 1e3))
}

fn print_tick(tick: &Tick) {
    let at = |percentile| tick.latencies_ns.value_at_percentile(percentile) as f64 / 1e6;
    let cpus = tick.server_cpus.map(|cpus| format!("  server {cpus:.2} CPUs")).unwrap_or_default();
    let errors = if tick.errors > 0 { format!("  {} errors", tick.errors) } else { String::new() };
    eprintln!(
        "{:6.1} s {:10.0} ops/s  p50 {:.3}  p99 {:.3}  max {:.3} ms{cpus}{errors}",
        tick.elapsed.as_secs_f64(),
        tick.rate_per_s,
        at(50.0),
        at(99.0),
        tick.latencies_ns.max() as f64 / 1e6,
    );
}

/// Standard output, where a closed pipe is an error and no panic.
fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

fn print_rows(output: &OutputArgs, rows: &[Row], extra: &[(&str, f64)]) -> io::Result<()> {
    if output.json {
        return print(&report::json(rows, extra));
    }
    if output.csv {
        return print(&report::csv(rows));
    }
    let extra: String = extra.iter().map(|(name, value)| format!("{name} {value:.1}\n")).collect();
    print(&format!("{}{extra}", report::table(rows)))
}

fn extra_of(summary: &Summary) -> Vec<(&'static str, f64)> {
    let mut extra = vec![("seconds", summary.all.elapsed.as_secs_f64()), ("errors", summary.errors as f64)];
    if summary.unsent > 0 {
        extra.push(("unsent", summary.unsent as f64));
    }
    if let Some((_, after)) = summary.server {
        extra.push(("server_rss_bytes", after.rss_bytes as f64));
    }
    extra
}

/// Error replies and unsent operations make a result worthless: say so, and exit with failure.
fn verdict(summary: &Summary) -> ExitCode {
    if summary.unsent > 0 {
        eprintln!(
            "braid-bench: {} operations were due but not sent, every connection being full: the server is slower \
             than the rate, or more connections or a deeper pipeline are needed",
            summary.unsent
        );
    }
    match &summary.first_error {
        Some(error) => {
            eprintln!("braid-bench: {} error replies, the first: {error}", summary.errors);
            ExitCode::FAILURE
        }
        None => ExitCode::SUCCESS,
    }
}

fn load(args: &LoadArgs) -> io::Result<ExitCode> {
    let mix = match args.read_ratio {
        Some(ratio) => Mix::read_ratio(ratio)?,
        None => args.mix.clone(),
    };
    let ends = args.duration.is_some() || args.requests.is_some();
    let plan = Plan {
        rate_per_s: args.rate,
        duration: if ends { args.duration } else { Some(Duration::from_secs(10)) },
        requests: args.requests,
        ..args.common.plan(mix, args.distribution, args.keys, args.pipeline)?
    };
    let output = &args.common.output;
    let summary = load::run(&plan, &mut |tick| {
        if !output.quiet {
            print_tick(tick);
        }
    })?;
    // One kind of operation is all there is: a second row would repeat it.
    let mut rows = if summary.rows.len() > 1 { summary.rows.clone() } else { vec![] };
    let alone = rows.is_empty();
    rows.push(summary.all.clone());
    if alone {
        rows[0].name = summary.rows[0].name.clone();
    }
    print_rows(output, &rows, &extra_of(&summary))?;
    Ok(verdict(&summary))
}

fn probe(args: &ProbeArgs) -> io::Result<ExitCode> {
    let request: Vec<Vec<u8>> = args.request.split_ascii_whitespace().map(|word| word.into()).collect();
    if request.is_empty() {
        return Err(io::Error::other("an empty request"));
    }
    let probe = Probe::start(args.target.target()?.client()?, request, milliseconds(args.interval_ms)?)?;
    let start = std::time::Instant::now();
    let mut exit = ExitCode::SUCCESS;
    if let [program, arguments @ ..] = args.run.as_slice() {
        // Its output must not mix with a result that is to be parsed.
        let status = Command::new(program)
            .args(arguments)
            .stdout(io::stderr())
            .status()
            .map_err(|error| io::Error::new(error.kind(), format!("cannot run {program}: {error}")))?;
        if !status.success() {
            eprintln!("braid-bench: {program} ended with {status}");
            exit = ExitCode::FAILURE;
        }
    } else {
        let end = start + args.duration.unwrap_or(Duration::from_secs(10));
        while !probe.has_failed() && std::time::Instant::now() < end {
            let left = end.saturating_duration_since(std::time::Instant::now());
            std::thread::sleep(left.min(Duration::from_millis(50)));
        }
    }
    let latencies_ns = probe.stop()?;
    let row = Row { name: "probe".into(), latencies_ns, elapsed: start.elapsed(), server_cpu_us: None };
    print_rows(&args.output, &[row], &[])?;
    Ok(exit)
}

fn fill(args: &FillArgs) -> io::Result<ExitCode> {
    // Of mix and distribution only the placeholders are needed: a fill sets each key once.
    let placeholder = Mix::only(braid_bench::workload::Op::Set);
    let plan = args.common.plan(placeholder, Keys::Sequential, args.keys, args.pipeline)?;
    let output = &args.common.output;
    let filled = fill::run(&plan, milliseconds(args.interval_ms)?, &mut |tick| {
        if !output.quiet {
            print_tick(tick);
        }
    })?;
    let rows = [Row { name: "fill".into(), ..filled.load.all.clone() }, filled.probe];
    let mut extra = extra_of(&filled.load);
    extra.push(("new_keys", filled.new_keys as f64));
    extra.push(("value_bytes_per_key", plan.workload.sizes.mean_bytes()));
    if let Some(bytes) = filled.rss_bytes_per_key {
        extra.push(("rss_bytes_per_key", bytes));
    }
    print_rows(output, &rows, &extra)?;
    Ok(verdict(&filled.load))
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Action::Load(args) => load(&args),
        Action::Probe(args) => probe(&args),
        Action::Fill(args) => fill(&args),
    };
    result.unwrap_or_else(|error| {
        eprintln!("braid-bench: {error}");
        ExitCode::FAILURE
    })
}
