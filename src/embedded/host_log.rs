//! What the follower's threads warn of goes to the host's log, where an application looks for it.

use std::fmt::{self, Write as _};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

/// Passes warnings and errors on, one line each.
pub(super) struct HostLog {
    /// What each line begins with: the replica's file.
    pub db: String,
    /// Takes the lines.
    pub report: fn(&str),
}

impl Subscriber for HostLog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::WARN && metadata.target().starts_with("mycelite")
    }

    fn event(&self, event: &Event<'_>) {
        let mut line = Line::default();
        event.record(&mut line);
        // SQLite cuts a line after some 200 bytes: what tells apart comes first.
        (self.report)(&format!(
            "mycelite: {}: {}{}",
            self.db, line.fields, line.message
        ));
    }

    // Nothing here opens a span.
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

#[derive(Default)]
struct Line {
    message: String,
    fields: String,
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a string cannot fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            // Each line says it already.
            "database" => Ok(()),
            name => write!(self.fields, "{name} {value:?}: "),
        };
    }
}
