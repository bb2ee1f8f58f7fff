"""Files and batches: what outlives the process, in SQLite and plain files under --state-dir."""
