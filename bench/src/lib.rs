//! Load and replication scenarios, latency histograms, peers side by side.
