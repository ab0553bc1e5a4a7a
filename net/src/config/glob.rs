//! Glob patterns as `CONFIG GET` and `include` take them: `*`, `?`, `[a-z]`, `[^a]`, `\` before a literal.

/// Whether `text` matches `pattern`, byte by byte and without regard to ASCII case.
///
/// Time is bounded by the product of the lengths: on a mismatch only the last `*` is tried again, which is enough,
/// because an earlier star could only give the later one a longer text to search.
pub fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut retry: Option<(usize, usize)> = None;
    loop {
        if pattern.get(p) == Some(&b'*') {
            retry = Some((p + 1, t));
            p += 1;
            continue;
        }
        if t == text.len() {
            return p == pattern.len();
        }
        match one(&pattern[p..], text[t]) {
            Some(used) => {
                p += used;
                t += 1;
            }
            None => match retry {
                Some((after_star, from)) => {
                    retry = Some((after_star, from + 1));
                    (p, t) = (after_star, from + 1);
                }
                None => return false,
            },
        }
    }
}

/// Matches the first item of `pattern` (not a star) against one byte; gives the length of the item.
fn one(pattern: &[u8], byte: u8) -> Option<usize> {
    let byte = byte.to_ascii_lowercase();
    match *pattern.first()? {
        b'?' => Some(1),
        b'[' => class(pattern, byte),
        b'\\' if pattern.len() > 1 => (pattern[1].to_ascii_lowercase() == byte).then_some(2),
        literal => (literal.to_ascii_lowercase() == byte).then_some(1),
    }
}

/// Matches a `[...]` at the start of `pattern`; one that is never closed ends with the pattern.
fn class(pattern: &[u8], byte: u8) -> Option<usize> {
    let negated = pattern.get(1) == Some(&b'^');
    let mut at = if negated { 2 } else { 1 };
    let mut found = false;
    while let Some(&first) = pattern.get(at) {
        if first == b']' {
            break;
        }
        if first == b'\\' && at + 1 < pattern.len() {
            found |= pattern[at + 1].to_ascii_lowercase() == byte;
            at += 2;
        } else if pattern.get(at + 1) == Some(&b'-') && at + 2 < pattern.len() {
            let (low, high) = (first.to_ascii_lowercase(), pattern[at + 2].to_ascii_lowercase());
            found |= (low.min(high)..=low.max(high)).contains(&byte);
            at += 3;
        } else {
            found |= first.to_ascii_lowercase() == byte;
            at += 1;
        }
    }
    (found != negated).then_some((at + 1).min(pattern.len()))
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn patterns() {
        for (pattern, text) in [
            ("*", ""),
            ("*", "port"),
            ("PORT", "port"),
            ("po?t", "port"),
            ("por[a-z]", "port"),
            ("por[^a-s]", "port"),
            ("*-max-*-value", "hash-max-listpack-value"),
            ("a**b", "ab"),
            ("\\*", "*"),
            ("[\\]]", "]"),
            ("[abc", "c"),
        ] {
            assert!(matches(pattern.as_bytes(), text.as_bytes()), "{pattern} {text}");
        }
        for (pattern, text) in
            [("", "a"), ("a", ""), ("po?t", "pot"), ("*a", "b"), ("[^p]ort", "port"), ("a*b*c", "acb")]
        {
            assert!(!matches(pattern.as_bytes(), text.as_bytes()), "{pattern} {text}");
        }
    }

    #[test]
    fn many_stars_take_no_exponential_time() {
        assert!(!matches("*a".repeat(200).as_bytes(), "a".repeat(199).as_bytes()));
    }
}
