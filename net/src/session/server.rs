//! `TIME`, `LOLWUT`.

use super::table::Call;
use crate::node::unix_us;
use braid_core::command::Error;
use braid_core::resp::number::parse_i64;

/// `TIME`
pub fn time(call: &mut Call<'_>) -> Result<(), Error> {
    let now_us = unix_us();
    call.out.array(2);
    call.out.bulk_int((now_us / 1_000_000) as i64);
    call.out.bulk_int((now_us % 1_000_000) as i64);
    Ok(())
}

/// Rows of a drawing, and the most that can be asked for.
const ROWS: i64 = 12;
const MAX_ROWS: i64 = 200;

/// `LOLWUT [VERSION version] [rows]`: a braid of three strands.
pub fn lolwut(call: &mut Call<'_>) -> Result<(), Error> {
    let args = call.args;
    let rest = if args.is(1, "version") && args.len() > 2 {
        parse_i64(args[2]).ok_or(Error::NotInteger)?;
        3
    } else {
        1
    };
    let rows = match args.get(rest) {
        Some(text) => parse_i64(text).ok_or(Error::NotInteger)?.clamp(1, MAX_ROWS),
        None => ROWS,
    };
    let text = format!(
        "{}\nRedis ver. {}, Braid {}\n",
        braid(rows),
        crate::node::REDIS_VERSION,
        env!("CARGO_PKG_VERSION")
    );
    call.out.verbatim(&text);
    Ok(())
}

/// Three strands; in turn the right pair and the left pair cross, the outer strand over the middle one.
fn braid(rows: i64) -> String {
    const LEFT: [&str; 4] = ["  \\ \\   /  ", "   \\ \\ /   ", "    \\ /    ", "    / \\    "];
    const RIGHT: [&str; 4] = ["  \\   / /  ", "   \\ / /   ", "    \\ /    ", "    / \\    "];
    let mut text = String::new();
    for row in 0..rows as usize {
        let pattern = if (row / LEFT.len()).is_multiple_of(2) { LEFT } else { RIGHT };
        text.push_str(pattern[row % LEFT.len()].trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_braid_has_as_many_rows_as_asked_for() {
        assert_eq!(braid(9).lines().count(), 9);
    }
}
