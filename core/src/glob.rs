//! Glob patterns over bytes, as `KEYS`, `SCAN … MATCH`, `PSUBSCRIBE` and `CONFIG GET` take them.
//!
//! `*` any bytes, `?` one byte, `[abc]` `[a-z]` `[^x]` one byte in or not in a class, `\x` the byte x itself. The odd
//! corners are Redis's: a class without its end extends to the pattern's; a range is valid either way round and may
//! swallow the bracket (`[a-]`); a lone `\` at the end means itself. Bytes compare unsigned.
//!
//! Only the latest `*` is ever tried again (whatever an earlier one could reach, the latest reaches too), so a match
//! costs at most pattern length times text length, and no stack.

/// Whether the whole of `text` matches `pattern`.
pub fn matches(pattern: &[u8], text: &[u8]) -> bool {
    run::<false>(pattern, text)
}

/// As [`matches`], with ASCII letters of either case equal.
pub fn matches_ignoring_case(pattern: &[u8], text: &[u8]) -> bool {
    run::<true>(pattern, text)
}

fn run<const FOLD: bool>(pattern: &[u8], text: &[u8]) -> bool {
    let (mut at, mut pos) = (0, 0);
    // Behind the latest star, and how much of the text that star leaves to it.
    let mut retry: Option<(usize, usize)> = None;
    while pos < text.len() {
        if pattern.get(at) == Some(&b'*') {
            while pattern.get(at) == Some(&b'*') {
                at += 1;
            }
            if at == pattern.len() {
                return true;
            }
            retry = Some((at, pos));
            continue;
        }
        if let Some(next) = match_one::<FOLD>(pattern, at, text[pos]) {
            at = next;
            pos += 1;
            continue;
        }
        let Some((behind, from)) = &mut retry else { return false };
        *from += 1;
        (at, pos) = (*behind, *from);
    }
    pattern[at..].iter().all(|&byte| byte == b'*')
}

fn fold<const FOLD: bool>(byte: u8) -> u8 {
    if FOLD { byte.to_ascii_lowercase() } else { byte }
}

/// Matches one byte with the element at `at`, which is no star: the position behind the element.
fn match_one<const FOLD: bool>(pattern: &[u8], at: usize, byte: u8) -> Option<usize> {
    match *pattern.get(at)? {
        b'?' => Some(at + 1),
        b'[' => {
            let (within, next) = match_class::<FOLD>(pattern, at + 1, byte);
            within.then_some(next)
        }
        b'\\' if at + 1 < pattern.len() => {
            (fold::<FOLD>(pattern[at + 1]) == fold::<FOLD>(byte)).then_some(at + 2)
        }
        literal => (fold::<FOLD>(literal) == fold::<FOLD>(byte)).then_some(at + 1),
    }
}

/// Whether the class whose inside begins at `at` takes `byte`, and the position behind the class.
fn match_class<const FOLD: bool>(pattern: &[u8], mut at: usize, byte: u8) -> (bool, usize) {
    let negated = pattern.get(at) == Some(&b'^');
    at += usize::from(negated);
    let byte = fold::<FOLD>(byte);
    let mut found = false;
    loop {
        match pattern[at.min(pattern.len())..] {
            [] => return (found != negated, at),
            // An escape within a class is exact even where case is ignored.
            [b'\\', escaped, ..] => {
                found |= escaped == byte;
                at += 2;
            }
            [b']', ..] => return (found != negated, at + 1),
            [one, b'-', other, ..] => {
                let (low, high) = (fold::<FOLD>(one.min(other)), fold::<FOLD>(one.max(other)));
                found |= (low..=high).contains(&byte);
                at += 3;
            }
            [literal, ..] => {
                found |= fold::<FOLD>(literal) == byte;
                at += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition, by recursion: slow, but plainly right.
    fn model(pattern: &[u8], text: &[u8]) -> bool {
        match (pattern, text) {
            ([b'*', rest @ ..], _) => (0..=text.len()).any(|skip| model(rest, &text[skip..])),
            ([], text) => text.is_empty(),
            (_, []) => false,
            (pattern, [byte, tail @ ..]) => {
                match_one::<false>(pattern, 0, *byte).is_some_and(|next| model(&pattern[next..], tail))
            }
        }
    }

    #[test]
    fn elements() {
        for (pattern, text, want) in [
            ("", "", true),
            ("", "a", false),
            ("*", "", true),
            ("**", "abc", true),
            ("?", "", false),
            ("h?llo", "hello", true),
            ("h*llo", "heeeello", true),
            ("h*llo", "hllo!", false),
            ("h[ae]llo", "hallo", true),
            ("h[ae]llo", "hillo", false),
            ("h[^e]llo", "hello", false),
            ("h[^e]llo", "hbllo", true),
            ("h[a-c]llo", "hbllo", true),
            ("h[c-a]llo", "hbllo", true),
            ("h[a-c]llo", "hdllo", false),
            ("\\*", "*", true),
            ("\\*", "a", false),
            ("\\", "\\", true),
            ("a\\", "a\\", true),
            ("[\\]]", "]", true),
            ("[]", "a", false),
            ("[^]", "a", true),
            ("[ab", "b", true),
            ("[ab", "c", false),
            ("[", "[", false),
            ("[a-]", "]", true),
            ("[a-]", "-", false),
            ("[a-]x", "ax", false),
            ("[-a]", "-", true),
            ("*a", "bab", false),
            ("*a*", "bab", true),
            ("*[^", "x", true),
            ("a*[0-9]", "a1b2", true),
        ] {
            assert_eq!(matches(pattern.as_bytes(), text.as_bytes()), want, "{pattern} on {text}");
        }
        assert!(matches(&[b'?', 0xff, b'*'], &[0, 0xff, 0xfe]));
        assert!(matches(b"[\x80-\xff]", &[0xc3]));
    }

    #[test]
    fn case_can_be_ignored() {
        assert!(matches_ignoring_case(b"MaxMemory*", b"maxmemory-policy"));
        assert!(matches_ignoring_case(b"[A-C]\\X", b"bx") && !matches(b"[A-C]", b"b"));
    }

    #[test]
    fn the_star_agrees_with_its_definition() {
        let mut rng = fastrand::Rng::with_seed(7);
        let mut matched = 0;
        for _ in 0..200_000 {
            let mut pick = |of: &[u8], max: usize| -> Vec<u8> {
                (0..rng.usize(..=max)).map(|_| of[rng.usize(..of.len())]).collect()
            };
            let (pattern, text) = (pick(b"*?ab[^]-\\*", 9), pick(b"ab-]", 8));
            let want = model(&pattern, &text);
            assert_eq!(
                matches(&pattern, &text),
                want,
                "{:?} on {:?}",
                pattern.escape_ascii(),
                text.escape_ascii()
            );
            matched += usize::from(want);
        }
        assert!(matched > 10_000, "the sample must hold matches: {matched}");
    }

    #[test]
    fn many_stars_cost_no_more_than_the_product_of_the_lengths() {
        // Exponential for a naive matcher: it would not end in a lifetime.
        let pattern = b"a*".repeat(2000);
        let text = b"a".repeat(1999);
        assert!(!matches(&pattern, &text));
        assert!(!matches(&[&b"*a".repeat(500)[..], b"b"].concat(), &text));
    }
}
