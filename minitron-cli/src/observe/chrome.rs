//! Spans as trace events, in the JSON format that browsers' trace viewers open.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use minitron_core::error::{Error, IoContext, Result};
use minitron_core::files::open_regular;
use serde_json::{Map, Value, json};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

/// Between two writes to the file.
const PAUSE: Duration = Duration::from_millis(200);
/// Waits for the next write at most.
const ROOM: usize = 1 << 16;
const HEAD: &str = "{\"displayTimeUnit\":\"ms\",\"traceEvents\":[";
const TAIL: &str = "\n]}\n";

/// The file. Every write ends with the tail, over which the next one begins: a process that ends at
/// any time leaves JSON.
#[derive(Debug, Clone)]
pub struct TraceFile(Arc<Mutex<TraceState>>);

#[derive(Debug)]
struct TraceState {
    file: File,
    path: PathBuf,
    /// Where the tail begins.
    end: u64,
    waiting: String,
    is_first: bool,
    written: Instant,
    failure: Option<io::Error>,
}

/// Whether a file begins as this program's traces do.
fn is_trace(path: &Path) -> bool {
    let mut start = vec![0; HEAD.len()];
    let read = open_regular(path).and_then(|mut file| file.read_exact(&mut start));
    read.is_ok() && start == HEAD.as_bytes()
}

impl TraceFile {
    /// Takes the place of an earlier file.
    ///
    /// # Errors
    /// `Io` where it cannot be written.
    pub fn create(path: &Path) -> Result<Self> {
        let about = path.symlink_metadata();
        let is_taken = about.is_ok_and(|about| !about.is_file() || about.len() > 0);
        if is_taken && !is_trace(path) {
            return Err(Error::Recipe(format!(
                "--trace: `{}` exists and is no trace; give another name",
                path.display()
            )));
        }
        let file = File::create(path).at_path(path)?;
        let mut state = TraceState {
            file,
            path: path.to_path_buf(),
            end: 0,
            waiting: HEAD.to_owned(),
            is_first: true,
            written: Instant::now(),
            failure: None,
        };
        state.flush();
        match state.failure.take() {
            Some(error) => Err(Error::io(path, error)),
            None => Ok(TraceFile(Arc::new(Mutex::new(state)))),
        }
    }

    /// Writes what waits; tells what went wrong, if anything did.
    pub fn finish(&self) -> Option<Error> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.flush();
        let failure = state.failure.take();
        failure.map(|error| Error::io(&state.path, error))
    }

    fn add(&self, event: &Value) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let between = if state.is_first { "\n" } else { ",\n" };
        state.waiting += between;
        state.waiting += &event.to_string();
        state.is_first = false;
        if state.waiting.len() >= ROOM || state.written.elapsed() >= PAUSE {
            state.flush();
        }
    }
}

impl TraceState {
    /// A file that cannot be written does not end the work; what came before the fault stays as it
    /// is.
    fn flush(&mut self) {
        let waiting = std::mem::take(&mut self.waiting);
        self.written = Instant::now();
        if self.failure.is_some() {
            return;
        }
        let n_bytes = waiting.len() as u64;
        let text = waiting + TAIL;
        let sought = self.file.seek(SeekFrom::Start(self.end));
        match sought.and_then(|_| self.file.write_all(text.as_bytes())) {
            Ok(()) => self.end = self.end.saturating_add(n_bytes),
            Err(error) => self.failure = Some(error),
        }
    }
}

/// Writes spans with their begin and duration, events as moments, and the threads' names.
#[derive(Debug)]
pub struct Chrome {
    file: TraceFile,
    begin: Instant,
}

static N_THREADS: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// Number of this thread, and whether the file has its name.
    static THREAD: u64 = N_THREADS.fetch_add(1, Ordering::Relaxed);
    static IS_NAMED: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// What a span keeps.
struct OpenSpan {
    args: Map<String, Value>,
    entered: Option<Instant>,
}

impl Chrome {
    /// Counts time from now.
    pub fn new(file: TraceFile) -> Self {
        Chrome {
            file,
            begin: Instant::now(),
        }
    }

    /// Microseconds, as the format counts.
    fn at(&self, time: Instant) -> f64 {
        micros(time.saturating_duration_since(self.begin))
    }

    fn thread(&self) -> u64 {
        let id = THREAD.with(|id| *id);
        if !IS_NAMED.with(|is_named| is_named.replace(true)) {
            let thread = std::thread::current();
            let name = thread
                .name()
                .map_or_else(|| format!("thread {id}"), str::to_owned);
            self.file.add(&json!({
                "ph": "M", "name": "thread_name", "pid": 1, "tid": id, "args": { "name": name },
            }));
        }
        id
    }
}

fn micros(duration: Duration) -> f64 {
    duration.as_nanos() as f64 / 1e3
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Chrome {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = SpanArgs::default();
        attributes.record(&mut fields);
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(OpenSpan {
                args: fields.0,
                entered: None,
            });
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        if let Some(open) = span.extensions_mut().get_mut::<OpenSpan>() {
            let mut fields = SpanArgs(std::mem::take(&mut open.args));
            values.record(&mut fields);
            open.args = fields.0;
        }
    }

    fn on_enter(&self, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        if let Some(open) = span.extensions_mut().get_mut::<OpenSpan>() {
            open.entered = Some(Instant::now());
        }
    }

    fn on_exit(&self, id: &Id, context: Context<'_, S>) {
        let end = Instant::now();
        let Some(span) = context.span(id) else { return };
        let (tid, about) = (self.thread(), span.metadata());
        let mut extensions = span.extensions_mut();
        let Some(open) = extensions.get_mut::<OpenSpan>() else {
            return;
        };
        let Some(begin) = open.entered.take() else {
            return;
        };
        // Which stage, reconstruction or evaluator: what one looks for in a picture.
        let name = match open.args.get("name").and_then(Value::as_str) {
            Some(which) => format!("{} {which}", about.name()),
            None => about.name().to_owned(),
        };
        self.file.add(&json!({
            "ph": "X", "name": name, "cat": about.target(), "pid": 1, "tid": tid,
                "ts": self.at(begin),
            "dur": micros(end.saturating_duration_since(begin)), "args": open.args,
        }));
    }

    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        let mut fields = SpanArgs::default();
        event.record(&mut fields);
        let (tid, about) = (self.thread(), event.metadata());
        let message = fields.0.remove("message");
        let name = message
            .as_ref()
            .and_then(Value::as_str)
            .unwrap_or(about.name());
        self.file.add(&json!({
            "ph": "i", "s": "t", "name": name, "cat": about.target(), "pid": 1, "tid": tid,
            "ts": self.at(Instant::now()), "args": fields.0,
        }));
    }
}

/// Fields as JSON.
#[derive(Default)]
struct SpanArgs(Map<String, Value>);

impl SpanArgs {
    fn put(&mut self, field: &Field, value: Value) {
        self.0.insert(field.name().to_owned(), value);
    }
}

impl Visit for SpanArgs {
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value.into());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.put(field, format!("{value:?}").into());
    }
}
