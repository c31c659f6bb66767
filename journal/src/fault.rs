//! A disk in memory that fails on demand and forgets what was not synced.
