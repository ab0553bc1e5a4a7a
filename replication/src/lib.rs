//! The merge stage, the ordered log, PSYNC and snapshots.
