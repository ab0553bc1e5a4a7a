//! Shards, the mailboxes between them, program order and multi-shard transactions.
