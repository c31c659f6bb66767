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
        let mut line = Line(format!("mycelite: {}:", self.db));
        event.record(&mut line);
        (self.report)(&line.0);
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

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a string cannot fail.
        let _ = match field.name() {
            "message" => write!(self.0, " {value:?}"),
            name => write!(self.0, " {name}={value:?}"),
        };
    }
}
