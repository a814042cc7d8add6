//! Log lines: events as they come, spans with the time they took when they end.

use std::fmt::Write;
use std::time::Instant;

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

use super::progress::{SAID, say};

/// Writes what happens to stderr, a line each: seconds since the start, level, room, spans around
/// it, what.
#[derive(Debug)]
pub struct Lines {
    begin: Instant,
    /// Whether notes of progress are told here alone.
    quiet: bool,
}

impl Lines {
    /// Counts seconds from now.
    pub fn new(quiet: bool) -> Self {
        Lines {
            begin: Instant::now(),
            quiet,
        }
    }

    fn write(&self, about: &Metadata, spans: &str, what: &str) {
        let seconds = self.begin.elapsed().as_secs_f64();
        let level = about.level().as_str().to_lowercase();
        let (target, what) = (about.target(), plain(what));
        say(&format!("{seconds:9.3} {level:5} {target}: {spans}{what}"));
    }
}

/// What text keeps of a span while it lasts.
struct Open {
    about: String,
    begin: Instant,
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Lines {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = EventFields::default();
        attributes.record(&mut fields);
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(Open {
                about: fields.text,
                begin: Instant::now(),
            });
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        if let Some(open) = span.extensions_mut().get_mut::<Open>() {
            let mut fields = EventFields {
                text: std::mem::take(&mut open.about),
                message: String::new(),
            };
            values.record(&mut fields);
            open.about = fields.text;
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        // Warnings are told in any case, notes where nobody wants quiet.
        let is_told = !self.quiet || *event.metadata().level() <= Level::WARN;
        if event.metadata().target() == SAID && is_told {
            return;
        }
        let mut fields = EventFields::default();
        event.record(&mut fields);
        let around: Vec<&str> = context
            .event_scope(event)
            .into_iter()
            .flatten()
            .map(|span| span.metadata().name())
            .collect();
        let around: String = around
            .iter()
            .rev()
            .map(|name| format!("{name}: "))
            .collect();
        self.write(
            event.metadata(),
            &around,
            &format!("{}{}", fields.message, fields.text),
        );
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        let Some(span) = context.span(&id) else {
            return;
        };
        let extensions = span.extensions();
        let Some(open) = extensions.get::<Open>() else {
            return;
        };
        let around: Vec<&str> = span
            .scope()
            .skip(1)
            .map(|span| span.metadata().name())
            .collect();
        let around: String = around
            .iter()
            .rev()
            .map(|name| format!("{name}: "))
            .collect();
        let seconds = open.begin.elapsed().as_secs_f64();
        self.write(
            span.metadata(),
            &around,
            &format!(
                "{}{} took {seconds:.3} s",
                span.metadata().name(),
                open.about
            ),
        );
    }
}

/// Fields as `name=value`, a message without its name.
#[derive(Default)]
struct EventFields {
    message: String,
    text: String,
}

impl Visit for EventFields {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        // Writing into a string does not fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.text, " {name}={value:?}"),
        };
    }
}

/// Names out of files steer no terminal, and a line stays one.
fn plain(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '·' } else { c })
        .collect()
}
