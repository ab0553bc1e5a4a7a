//! Every command that is compared, as templates; see [`super::grammar`].

use super::grammar::{Keys, Template};
use fastrand::Rng;

/// Commands on one type of value, or about one thing.
pub struct Family {
    pub name: &'static str,
    pub keys: Keys,
    pub templates: Vec<Template>,
    /// How often it is chosen when it is not the one a round is about.
    weight: u32,
}

/// Name, prefix of its keys, weight, commands.
///
/// Left out: `AUTH`, for Redis 8.2 does not answer the second wrong password on a connection, and what is told apart in
/// `super::compare` as different by intention.
const FAMILIES: &[(&str, char, u32, &str)] = &[
    (
        "strings",
        's',
        8,
        "APPEND k v
         DECR k
         DECRBY k int
         GET k
         GETDEL k
         GETEX k [EX s|PX ms|EXAT at|PXAT atms|PERSIST] [PERSIST]
         GETRANGE k i i
         SUBSTR k int i
         GETSET k v
         INCR k
         INCRBY k int
         INCRBYFLOAT k f
         MGET k...
         MSET (k v)...
         MSETNX (k v)...
         PSETEX k ms v
         SET k v
         SET k v [NX|XX] [GET] [EX s|PX ms|EXAT at|PXAT atms|KEEPTTL]
         SET k v [GET] [KEEPTTL|EX s] [XX]
         SETEX k s v
         SETNX k v
         SETRANGE k n v
         SETRANGE k bit v
         STRLEN k
         LCS k k [LEN] [IDX] [MINMATCHLEN i] [WITHMATCHLEN]",
    ),
    (
        "bitmaps",
        's',
        3,
        "BITCOUNT k [i i [BYTE|BIT]]
         BITFIELD k (GET bittype bit|SET bittype bit int|INCRBY bittype bit i|OVERFLOW (WRAP|SAT|FAIL))...
         BITFIELD k (GET bittype #1|INCRBY bittype #2 int)...
         BITFIELD_RO k (GET bittype bit)...
         BITOP (AND|OR|XOR|NOT|DIFF|DIFF1|ANDOR|ONE) k k...
         BITOP NOT k k
         BITPOS k (0|1) [i [i [BYTE|BIT]]]
         GETBIT k bit
         SETBIT k bit (0|1)
         SETBIT k bit n
         SET k v
         SETRANGE k n v",
    ),
    (
        "generic",
        ' ',
        5,
        "COPY k k [DB db] [REPLACE]
         DEL k...
         UNLINK k...
         EXISTS k...
         TOUCH k...
         TYPE k
         RENAME k k
         RENAMENX k k
         DUMP k
         RESTORE k (0|ms) payload [REPLACE] [ABSTTL] [IDLETIME 700000]
         RESTORE k (4000000000000|1000000000000) payload ABSTTL REPLACE
         RESTORE k 0 payload REPLACE
         MOVE k db
         RANDOMKEY
         KEYS pat
         DBSIZE
         OBJECT ENCODING k
         OBJECT REFCOUNT k
         OBJECT IDLETIME k
         OBJECT FREQ k
         OBJECT HELP
         OBJECT v k
         SCAN 0 [MATCH pat] [COUNT n] [TYPE (STRING|LIST|HASH|SET|ZSET|v)]
         SWAPDB db db
         SELECT db
         SELECT 0
         FLUSHDB [ASYNC|SYNC]
         SET k v [EX s]
         DEL k",
    ),
    (
        "expiry",
        ' ',
        4,
        "EXPIRE k s [NX|XX|GT|LT]
         PEXPIRE k ms [NX|XX|GT|LT]
         EXPIREAT k at [NX|XX|GT|LT] [GT|XX]
         PEXPIREAT k atms [NX|XX|GT|LT]
         EXPIREAT k at [GT|LT]
         TTL k
         PTTL k
         EXPIRETIME k
         PEXPIRETIME k
         PERSIST k
         SET k v",
    ),
    (
        "lists",
        'l',
        6,
        "LPUSH k m...
         RPUSH k m...
         LPUSHX k m...
         RPUSHX k m...
         RPUSH k v...
         LPOP k [n]
         RPOP k [n]
         LLEN k
         LINDEX k i
         LINSERT k (BEFORE|AFTER) m v
         LRANGE k i i
         LREM k i m
         LSET k i v
         LTRIM k i i
         LPOS k m [RANK i] [COUNT n] [MAXLEN n]
         LMOVE k k (LEFT|RIGHT) (LEFT|RIGHT)
         RPOPLPUSH k k
         LMPOP n k... (LEFT|RIGHT) [COUNT n]
         LMPOP 2 k k (LEFT|RIGHT) [COUNT n]
         SORT k [ALPHA] [ASC|DESC] [LIMIT i n]
         SORT_RO k [ALPHA] [DESC]
         SORT k ALPHA STORE k",
    ),
    (
        "hashes",
        'h',
        6,
        "HSET k (m v)...
         HMSET k (m v)...
         HSETNX k m v
         HGET k m
         HMGET k m...
         HGETALL k
         HKEYS k
         HVALS k
         HLEN k
         HSTRLEN k m
         HEXISTS k m
         HDEL k m...
         HINCRBY k m int
         HINCRBYFLOAT k m f
         HRANDFIELD k [draws [WITHVALUES]]
         HSCAN k 0 [MATCH pat] [COUNT n] [NOVALUES]
         HEXPIRE k s [NX|XX|GT|LT] FIELDS 1 m
         HPEXPIRE k ms FIELDS 2 m m
         HEXPIREAT k at [GT|LT] FIELDS 1 m
         HPEXPIREAT k atms FIELDS 1 m
         HTTL k FIELDS 2 m m
         HPTTL k FIELDS n m...
         HEXPIRETIME k FIELDS 2 m m
         HPEXPIRETIME k FIELDS 2 m m
         HPERSIST k FIELDS 2 m m
         HGETDEL k FIELDS 2 m m
         HGETEX k [EX s|PX ms|EXAT at|PXAT atms|PERSIST] FIELDS 2 m m
         HSETEX k [FNX|FXX] [EX s|PX ms|EXAT at|KEEPTTL] FIELDS 2 m v m v",
    ),
    (
        "sets",
        't',
        6,
        "SADD k m...
         SADD k i...
         SREM k m...
         SISMEMBER k m
         SMISMEMBER k m...
         SMEMBERS k
         SCARD k
         SMOVE k k m
         SPOP k [i]
         SRANDMEMBER k [draws]
         SINTER k...
         SINTERCARD n k... [LIMIT n]
         SINTERCARD 2 k k [LIMIT n]
         SINTERSTORE k k...
         SUNION k...
         SUNIONSTORE k k...
         SDIFF k...
         SDIFFSTORE k k...
         SSCAN k 0 [MATCH pat] [COUNT n]",
    ),
    (
        "sorted sets",
        'z',
        8,
        "ZADD k (f m)...
         ZADD k (i m)...
         ZADD k [NX|XX] [GT|LT] [CH] (i m)...
         ZADD k [NX|XX] [GT|LT] [CH] INCR i m
         ZADD k (0 m)...
         ZCARD k
         ZCOUNT k score score
         ZINCRBY k f m
         ZSCORE k m
         ZMSCORE k m...
         ZRANK k m [WITHSCORE]
         ZREVRANK k m [WITHSCORE]
         ZREM k m...
         ZREMRANGEBYRANK k i i
         ZREMRANGEBYSCORE k score score
         ZRANGE k i i [REV] [WITHSCORES]
         ZRANGE k score score BYSCORE [REV] [LIMIT i i] [WITHSCORES]
         ZRANGESTORE k k i i [REV]
         ZRANGESTORE k k score score BYSCORE [LIMIT i i]
         ZREVRANGE k i i [WITHSCORES]
         ZRANGEBYSCORE k score score [WITHSCORES] [LIMIT i i]
         ZREVRANGEBYSCORE k score score [WITHSCORES] [LIMIT i i]
         ZPOPMIN k [n]
         ZPOPMAX k [n]
         ZMPOP 2 k k (MIN|MAX) [COUNT n]
         ZRANDMEMBER k [draws [WITHSCORES]]
         ZINTER 2 k k [WEIGHTS i f] [AGGREGATE (SUM|MIN|MAX)] [WITHSCORES]
         ZINTERCARD 2 k k [LIMIT n]
         ZINTERSTORE k 2 k k [WEIGHTS f i] [AGGREGATE (SUM|MIN|MAX)]
         ZUNION 2 k k [WEIGHTS i f] [AGGREGATE (SUM|MIN|MAX)] [WITHSCORES]
         ZUNIONSTORE k n k... [AGGREGATE (SUM|MIN|MAX)]
         ZDIFF 2 k k [WITHSCORES]
         ZDIFFSTORE k n k...
         ZSCAN k 0 [MATCH pat] [COUNT n]",
    ),
    (
        // Apart from other sorted sets: with scores that are not all the same, such a range is anybody's guess.
        "ranges of text",
        'x',
        2,
        "ZADD k (0 m)...
         ZREM k m...
         ZLEXCOUNT k lex lex
         ZREMRANGEBYLEX k lex lex
         ZRANGE k lex lex BYLEX [REV] [LIMIT i i]
         ZRANGESTORE k k lex lex BYLEX [REV] [LIMIT i i]
         ZRANGEBYLEX k lex lex [LIMIT i i]
         ZREVRANGEBYLEX k lex lex [LIMIT i i]
         ZCARD k",
    ),
    (
        "connection",
        ' ',
        1,
        "PING [v]
         PING v v
         ECHO v
         HELLO [2|3]
         HELLO (1|4|X|3 SETNAME name)
         HELLO 3 SETNAME name
         SELECT db
         RESET
         NOSUCH v...
         CLIENT GETNAME
         CLIENT SETNAME name
         GET",
    ),
    (
        "transactions",
        ' ',
        4,
        "MULTI
         EXEC
         DISCARD
         WATCH k...
         UNWATCH
         MULTI
         EXEC",
    ),
];

/// All families.
pub fn all() -> Vec<Family> {
    FAMILIES
        .iter()
        .map(|&(name, prefix, weight, templates)| Family {
            name,
            keys: Keys::of(prefix),
            templates: templates.lines().map(Template::parse).collect(),
            weight,
        })
        .collect()
}

/// One of them: mostly the one in focus.
pub fn choose<'a>(families: &'a [Family], focus: usize, rng: &mut Rng) -> &'a Family {
    if rng.u8(..) < 140 {
        return &families[focus];
    }
    let weights: u32 = families.iter().map(|family| family.weight).sum();
    let mut at = rng.u32(..weights);
    families
        .iter()
        .find(|family| match at.checked_sub(family.weight) {
            Some(left) => {
                at = left;
                false
            }
            None => true,
        })
        .expect("the weights' sum bounds the number")
}
