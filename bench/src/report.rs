//! Latency histograms and how results are printed: a table, CSV, JSON.

use std::fmt::{self, Write as _};
use std::time::Duration;

use hdrhistogram::Histogram;

/// Latencies beyond this are counted as this.
const LATENCY_MAX_NS: u64 = 600_000_000_000;

/// The percentiles of every report.
const PERCENTILES: [(&str, f64); 4] = [("p50", 50.0), ("p90", 90.0), ("p99", 99.0), ("p99.9", 99.9)];

/// An empty latency histogram in nanoseconds, exact to three digits.
pub fn latency_histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_MAX_NS, 3).expect("the bounds are valid")
}

/// Counts one latency.
pub fn record(histogram: &mut Histogram<u64>, latency_ns: u64) {
    histogram.saturating_record(latency_ns);
}

/// One line of a report.
#[derive(Clone)]
pub struct Row {
    /// What was measured: an operation, `all`, `probe`.
    pub name: String,
    pub latencies_ns: Histogram<u64>,
    /// The time over which the operations were counted.
    pub elapsed: Duration,
    /// CPU time of the server per operation, where a process id was given.
    pub server_cpu_us: Option<f64>,
}

/// Without the histogram's thousands of buckets.
impl fmt::Debug for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.name, self.columns())
    }
}

impl Row {
    /// Operations that were answered.
    pub fn ops(&self) -> u64 {
        self.latencies_ns.len()
    }

    /// Operations per second.
    pub fn rate_per_s(&self) -> f64 {
        self.ops() as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    /// Column names, values and decimals, in the order of every format. Latencies are in milliseconds.
    fn columns(&self) -> Vec<(&'static str, f64, usize)> {
        let ms = |ns: u64| ns as f64 / 1e6;
        let mut columns = vec![("ops", self.ops() as f64, 0), ("ops_per_s", self.rate_per_s(), 0)];
        for (name, percentile) in PERCENTILES {
            columns.push((name, ms(self.latencies_ns.value_at_percentile(percentile)), 3));
        }
        columns.push(("max", ms(self.latencies_ns.max()), 3));
        columns
    }
}

/// The column that only some rows have.
const CPU_COLUMN: &str = "cpu_us_per_op";

fn has_cpu(rows: &[Row]) -> bool {
    rows.iter().any(|row| row.server_cpu_us.is_some())
}

/// A table for people: latencies in milliseconds.
pub fn table(rows: &[Row]) -> String {
    let mut out = String::new();
    let Some(first) = rows.first() else { return out };
    let width = rows.iter().map(|row| row.name.len()).max().unwrap_or(0).max(8);
    let _ = write!(out, "{:width$}", "latency ms");
    for (name, _, _) in first.columns() {
        let _ = write!(out, " {name:>13}");
    }
    let with_cpu = has_cpu(rows);
    if with_cpu {
        let _ = write!(out, " {CPU_COLUMN:>13}");
    }
    for row in rows {
        let _ = write!(out, "\n{:width$}", row.name, width = width.max("latency ms".len()));
        for (_, value, decimals) in row.columns() {
            let _ = write!(out, " {value:>13.decimals$}");
        }
        match row.server_cpu_us {
            Some(cpu_us) => drop(write!(out, " {cpu_us:>13.3}")),
            None if with_cpu => drop(write!(out, " {:>13}", "-")),
            None => {}
        }
    }
    out.push('\n');
    out
}

/// CSV with a header line; latencies in milliseconds.
pub fn csv(rows: &[Row]) -> String {
    let mut out = String::new();
    let Some(first) = rows.first() else { return out };
    out.push_str("name");
    for (name, _, _) in first.columns() {
        let _ = write!(out, ",{name}");
    }
    let with_cpu = has_cpu(rows);
    if with_cpu {
        let _ = write!(out, ",{CPU_COLUMN}");
    }
    for row in rows {
        let _ = write!(out, "\n{}", row.name);
        for (_, value, decimals) in row.columns() {
            let _ = write!(out, ",{value:.decimals$}");
        }
        match row.server_cpu_us {
            Some(cpu_us) => drop(write!(out, ",{cpu_us:.3}")),
            None if with_cpu => out.push(','),
            None => {}
        }
    }
    out.push('\n');
    out
}

/// One JSON object: `{"rows":[…], …extra}`; latencies in milliseconds. `extra` holds further numbers by name.
pub fn json(rows: &[Row], extra: &[(&str, f64)]) -> String {
    let mut out = String::from("{\"rows\":[");
    for (index, row) in rows.iter().enumerate() {
        let _ =
            write!(out, "{}{{\"name\":\"{}\"", if index > 0 { "," } else { "" }, row.name.escape_default());
        for (name, value, decimals) in row.columns() {
            let _ = write!(out, ",\"{name}\":{value:.decimals$}");
        }
        if let Some(cpu_us) = row.server_cpu_us {
            let _ = write!(out, ",\"{CPU_COLUMN}\":{cpu_us:.3}");
        }
        out.push('}');
    }
    out.push(']');
    for (name, value) in extra {
        // JSON has no infinities.
        let value = if value.is_finite() { *value } else { 0.0 };
        let _ = write!(out, ",\"{name}\":{value:.3}");
    }
    out.push_str("}\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(latencies_ms: impl Iterator<Item = u64>) -> Row {
        let mut latencies_ns = latency_histogram();
        latencies_ms.for_each(|ms| record(&mut latencies_ns, ms * 1_000_000));
        Row { name: "get".into(), latencies_ns, elapsed: Duration::from_secs(2), server_cpu_us: Some(1.5) }
    }

    #[test]
    fn percentiles_are_those_of_the_recorded_latencies() {
        let row = row(1..=1000);
        for (name, value, _) in row.columns() {
            let expected = match name {
                "ops" => 1000.0,
                "ops_per_s" => 500.0,
                "p50" => 500.0,
                "p90" => 900.0,
                "p99" => 990.0,
                "p99.9" => 999.0,
                "max" => 1000.0,
                other => panic!("{other}"),
            };
            assert!((value - expected).abs() <= expected * 0.002, "{name}: {value}, {expected}");
        }
    }

    #[test]
    fn a_latency_beyond_the_limit_is_counted_as_the_limit() {
        let mut latencies_ns = latency_histogram();
        record(&mut latencies_ns, u64::MAX);
        assert_eq!(latencies_ns.len(), 1);
        assert!(latencies_ns.max() >= LATENCY_MAX_NS);
    }

    #[test]
    fn all_formats_hold_the_same_columns() {
        let rows = [row(1..=2), Row { server_cpu_us: None, ..row(1..=2) }];
        assert_eq!(
            csv(&rows).lines().collect::<Vec<_>>(),
            [
                "name,ops,ops_per_s,p50,p90,p99,p99.9,max,cpu_us_per_op",
                "get,2,1,1.000,2.001,2.001,2.001,2.001,1.500",
                "get,2,1,1.000,2.001,2.001,2.001,2.001,"
            ]
        );
        assert!(!csv(&rows[1..]).contains(CPU_COLUMN));
        let json = json(&rows[..1], &[("rss_bytes", 12.0), ("bad", f64::NAN)]);
        assert!(json.starts_with("{\"rows\":[{\"name\":\"get\",\"ops\":2,\"ops_per_s\":1,"), "{json}");
        assert!(json.ends_with("}],\"rss_bytes\":12.000,\"bad\":0.000}\n"), "{json}");
        let table = table(&rows);
        assert_eq!(table.lines().count(), 3);
        let lengths: Vec<_> = table.lines().map(str::len).collect();
        assert!(lengths.iter().all(|len| *len == lengths[0]), "{table}");
        assert_eq!(csv(&[]), "");
    }
}
