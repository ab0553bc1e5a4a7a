//! Command flags and ACL categories, by the names that `COMMAND INFO` prints.

macro_rules! bits {
    ($(#[$doc:meta])* $name:ident: $repr:ty { $($(#[$flag_doc:meta])* $flag:ident = $bit:expr, $text:expr;)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub struct $name(pub $repr);

        impl $name {
            pub const NONE: Self = Self(0);
            $($(#[$flag_doc])* pub const $flag: Self = Self(1 << $bit);)*

            pub const fn or(self, other: Self) -> Self {
                Self(self.0 | other.0)
            }

            pub const fn has(self, other: Self) -> bool {
                self.0 & other.0 != 0
            }

            /// The names of the flags that are set, in the order of their declaration.
            pub fn names(self) -> impl Iterator<Item = &'static str> {
                [$((Self::$flag, $text)),*].into_iter().filter(move |(flag, _)| self.has(*flag)).map(|(_, name)| name)
            }

            /// The flag of that name.
            pub fn by_name(name: &[u8]) -> Option<Self> {
                [$((Self::$flag, $text)),*].into_iter()
                    .find(|(_, text)| text.as_bytes().eq_ignore_ascii_case(name)).map(|(flag, _)| flag)
            }
        }

        impl std::ops::BitOr for $name {
            type Output = Self;
            fn bitor(self, other: Self) -> Self {
                self.or(other)
            }
        }
    };
}

bits! {
    /// What a command does and where it may run; the names and meanings are Redis's.
    Flags: u32 {
        WRITE = 0, "write";
        READONLY = 1, "readonly";
        DENYOOM = 2, "denyoom";
        ADMIN = 3, "admin";
        PUBSUB = 4, "pubsub";
        NOSCRIPT = 5, "noscript";
        BLOCKING = 6, "blocking";
        LOADING = 7, "loading";
        STALE = 8, "stale";
        SKIP_MONITOR = 9, "skip_monitor";
        SKIP_SLOWLOG = 10, "skip_slowlog";
        ASKING = 11, "asking";
        FAST = 12, "fast";
        NO_AUTH = 13, "no_auth";
        MAY_REPLICATE = 14, "may_replicate";
        NO_ASYNC_LOADING = 15, "no_async_loading";
        NO_MULTI = 16, "no_multi";
        ALLOW_BUSY = 17, "allow_busy";
        MOVABLEKEYS = 18, "movablekeys";
        /// What a server says to itself: no client can name it.
        INTERNAL = 19, "internal";
    }
}

bits! {
    /// ACL categories.
    Category: u32 {
        KEYSPACE = 0, "keyspace";
        READ = 1, "read";
        WRITE = 2, "write";
        SET = 3, "set";
        SORTEDSET = 4, "sortedset";
        LIST = 5, "list";
        HASH = 6, "hash";
        STRING = 7, "string";
        BITMAP = 8, "bitmap";
        HYPERLOGLOG = 9, "hyperloglog";
        GEO = 10, "geo";
        STREAM = 11, "stream";
        PUBSUB = 12, "pubsub";
        ADMIN = 13, "admin";
        FAST = 14, "fast";
        SLOW = 15, "slow";
        BLOCKING = 16, "blocking";
        DANGEROUS = 17, "dangerous";
        CONNECTION = 18, "connection";
        TRANSACTION = 19, "transaction";
        SCRIPTING = 20, "scripting";
    }
}

impl Category {
    /// A command's categories: those declared, and those that follow from its flags as Redis derives them.
    pub fn of(flags: Flags, declared: Category) -> Category {
        let mut all = declared;
        for (flag, category) in [
            (Flags::WRITE, Category::WRITE),
            (Flags::ADMIN, Category::ADMIN.or(Category::DANGEROUS)),
            (Flags::PUBSUB, Category::PUBSUB),
            (Flags::FAST, Category::FAST),
            (Flags::BLOCKING, Category::BLOCKING),
        ] {
            if flags.has(flag) {
                all = all | category;
            }
        }
        if flags.has(Flags::READONLY) && !declared.has(Category::SCRIPTING) {
            all = all | Category::READ;
        }
        if !flags.has(Flags::FAST) {
            all = all | Category::SLOW;
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn categories_follow_from_flags() {
        let all = Category::of(Flags::WRITE | Flags::FAST, Category::STRING);
        assert_eq!(all.names().collect::<Vec<_>>(), ["write", "string", "fast"]);
        assert_eq!(Category::by_name(b"SortedSet"), Some(Category::SORTEDSET));
    }
}
