//! How a line looks: text for people, JSON for programs.

use std::fmt;

use chrono::Local;
use serde::Serialize;
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::span::Record;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::format::{DefaultFields, Format, Full, Writer};
use tracing_subscriber::fmt::time::{ChronoLocal, FormatTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields};
use tracing_subscriber::registry::LookupSpan;

use super::{CONTROLLER, CONTROLLER_NOT_ON_CONSOLE, LogFormat};

const TEXT_TIME: &str = "%Y-%m-%d %H:%M:%S%.3f";
const JSON_TIME: &str = "%Y-%m-%dT%H:%M:%S%.3f%:z";

/// The field with the target that is known only when the program runs; the crate `tracing-log`
/// calls it so.
const TARGET_FIELD: &str = "log.target";

/// Keys of a line that are taken.
const KEYS: [&str; 5] = ["timestamp", "level", "target", "message", "span"];

/// `2026-01-31 12:00:00.123  INFO session{id=7}: target: message field=1`.
pub(super) struct Text {
    timer: ChronoLocal,
    inner: Format<Full, ChronoLocal>,
}

impl Text {
    pub(super) fn new() -> Self {
        let timer = ChronoLocal::new(TEXT_TIME.into());
        Self { inner: Format::default().with_timer(timer.clone()), timer }
    }
}

impl<S, N> FormatEvent<S, N> for Text
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        ctx: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        if !is_controllers(event) {
            return self.inner.format_event(ctx, writer, event);
        }
        let said = Fields::of(event);
        let level = *event.metadata().level();
        let [dim, colour, end] = match (writer.has_ansi_escapes(), level) {
            (false, _) => ["", "", ""],
            (true, Level::ERROR) => ["\x1b[2m", "\x1b[31m", "\x1b[0m"],
            (true, Level::WARN) => ["\x1b[2m", "\x1b[33m", "\x1b[0m"],
            (true, Level::INFO) => ["\x1b[2m", "\x1b[32m", "\x1b[0m"],
            (true, _) => ["\x1b[2m", "\x1b[34m", "\x1b[0m"],
        };
        write!(writer, "{dim}")?;
        self.timer.format_time(&mut writer)?;
        let target = said.target.unwrap_or_default();
        write!(writer, "{end} {colour}{level:>5}{end} {dim}{target}:{end} ")?;
        writeln!(writer, "{}", Printable(&said.message))
    }
}

/// Lines break and tabs are kept; nothing else may steer a terminal.
struct Printable<'a>(&'a str);

impl fmt::Display for Printable<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for char in self.0.chars() {
            match char {
                '\n' | '\t' => write!(out, "{char}")?,
                char if char.is_control() => write!(out, "{}", char.escape_default())?,
                char => write!(out, "{char}")?,
            }
        }
        Ok(())
    }
}

/// [`DefaultFields`] under a name of its own: a span keeps what it was formatted to by type, and a
/// file must not get the console's colours.
#[derive(Default)]
pub(super) struct FileFields(DefaultFields);

impl<'w> FormatFields<'w> for FileFields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'w>, fields: R) -> fmt::Result {
        self.0.format_fields(writer, fields)
    }
}

/// One object per line, with what its spans say in `span`; an inner span's word counts.
pub(super) struct Json;

#[derive(Serialize)]
struct JsonLine<'a> {
    timestamp: String,
    level: &'a str,
    target: &'a str,
    message: &'a str,
    #[serde(flatten)]
    fields: Map<String, Value>,
    #[serde(skip_serializing_if = "Map::is_empty")]
    span: Map<String, Value>,
}

impl<S> FormatEvent<S, JsonFields> for Json
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn format_event(
        &self,
        ctx: &FmtContext<'_, S, JsonFields>,
        writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut span = Map::new();
        for each in ctx.event_scope().into_iter().flat_map(|scope| scope.from_root()) {
            if let Some(fields) = each.extensions().get::<FormattedFields<JsonFields>>() {
                span.extend(parse(&fields.fields));
            }
            span.insert("name".into(), each.name().into());
        }
        let said = Fields::of(event);
        let metadata = event.metadata();
        JsonLine {
            timestamp: json_time(),
            level: metadata.level().as_str(),
            target: said.target.as_deref().unwrap_or(metadata.target()),
            message: &said.message,
            fields: said.others,
            span,
        }
        .write(writer)
    }
}

impl JsonLine<'_> {
    fn write(&self, mut writer: impl fmt::Write) -> fmt::Result {
        let line = serde_json::to_string(self).map_err(|_| fmt::Error)?;
        writeln!(writer, "{line}")
    }
}

/// A span's fields as a JSON object.
#[derive(Default)]
pub(super) struct JsonFields;

impl<'w> FormatFields<'w> for JsonFields {
    fn format_fields<R: RecordFields>(&self, mut writer: Writer<'w>, fields: R) -> fmt::Result {
        let mut said = Fields::default();
        fields.record(&mut said);
        write!(writer, "{}", Value::Object(said.others))
    }

    fn add_fields(
        &self,
        current: &'w mut FormattedFields<Self>,
        fields: &Record<'_>,
    ) -> fmt::Result {
        let mut said = Fields { others: parse(&current.fields), ..Fields::default() };
        fields.record(&mut said);
        current.fields = Value::Object(said.others).to_string();
        Ok(())
    }
}

fn parse(fields: &str) -> Map<String, Value> {
    serde_json::from_str(fields).unwrap_or_default()
}

/// What an event or a span says.
#[derive(Default)]
struct Fields {
    message: String,
    target: Option<String>,
    others: Map<String, Value>,
}

impl Fields {
    fn of(event: &Event<'_>) -> Self {
        let mut fields = Self::default();
        event.record(&mut fields);
        fields
    }

    fn put(&mut self, field: &Field, value: Value) {
        let text = |value: Value| match value {
            Value::String(text) => text,
            other => other.to_string(),
        };
        match field.name() {
            "message" => self.message = text(value),
            TARGET_FIELD => self.target = Some(text(value)),
            name if name.starts_with("log.") => {}
            name if KEYS.contains(&name) => _ = self.others.insert(format!("{name}_"), value),
            name => _ = self.others.insert(name.into(), value),
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}").into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }
}

fn is_controllers(event: &Event<'_>) -> bool {
    [CONTROLLER, CONTROLLER_NOT_ON_CONSOLE].contains(&event.metadata().target())
}

fn json_time() -> String {
    Local::now().format(JSON_TIME).to_string()
}

/// The line of a file that says that lines before it are missing.
pub(super) fn lost_note(format: LogFormat, lost: u64, reason: &str) -> String {
    let (level, target) = (Level::WARN.as_str(), module_path!());
    let message = format!("{lost} lines are missing here, they could not be written: {reason}");
    let mut line = String::new();
    match format {
        LogFormat::Text => {
            let time = Local::now().format(TEXT_TIME);
            line = format!("{time} {level:>5} {target}: {message}\n");
        }
        LogFormat::Json => {
            let fields = Map::from_iter([("lines".into(), lost.into())]);
            let timestamp = json_time();
            let span = Map::new();
            let parts = JsonLine { timestamp, level, target, message: &message, fields, span };
            // Writing to a string does not fail.
            let _ = parts.write(&mut line);
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::layer::SubscriberExt;

    use super::super::{LevelFilter, console_layer, file_layer, log};
    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Written {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    /// What is written to the console, in colours, and to the file.
    fn logged(format: LogFormat, say: impl FnOnce()) -> (String, String) {
        let (console, file) = (Written::default(), Written::default());
        let (to_console, to_file) = (console.clone(), file.clone());
        let subscriber = tracing_subscriber::registry()
            .with(console_layer(format, LevelFilter::INFO, true, move || to_console.clone()))
            .with(file_layer(format, LevelFilter::INFO, move || to_file.clone()));
        tracing::subscriber::with_default(subscriber, say);
        (console.text(), file.text())
    }

    fn say_something() {
        let span =
            tracing::info_span!("session", id = 7, module = "asr", lane = tracing::field::Empty);
        let _inside = span.enter();
        span.record("lane", 2);
        tracing::info!(steps = 3, peer = %"127.0.0.1", late = 0.5, level = "mine", "it's \"over\"");
        tracing::warn_span!("inner", id = 8).in_scope(|| tracing::warn!("inside\nof it"));
    }

    #[test]
    fn a_file_has_no_colours_where_the_console_has() {
        let (console, file) = logged(LogFormat::Text, || {
            say_something();
            log("error", "moshi_ctl.worker", "broken \u{1b}[31mred\nsecond", true);
        });
        assert!(console.contains("\u{1b}["), "{console}");
        assert!(!file.contains('\u{1b}'), "{file}");
        assert!(file.contains(r#" INFO session{id=7 module="asr" lane=2}: "#), "{file}");
        assert!(file.contains("ERROR moshi_ctl.worker: broken \\u{1b}[31mred\nsecond\n"), "{file}");
        assert_eq!(file.lines().count(), console.lines().count());
    }

    #[test]
    fn a_json_line_has_the_fields_of_its_event_and_of_its_spans() {
        let (console, file) = logged(LogFormat::Json, say_something);
        for text in [console, file] {
            let lines: Vec<Value> =
                text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
            let [over, inside] = &lines[..] else { panic!("{text}") };
            chrono::DateTime::parse_from_rfc3339(over["timestamp"].as_str().unwrap()).unwrap();
            assert_eq!(over["level"], "INFO");
            assert_eq!(over["target"], module_path!());
            assert_eq!(over["message"], "it's \"over\"");
            assert_eq!((&over["steps"], &over["late"]), (&3.into(), &0.5.into()));
            assert_eq!((&over["peer"], &over["level_"]), (&"127.0.0.1".into(), &"mine".into()));
            let span = serde_json::json!({"name": "session", "id": 7, "module": "asr", "lane": 2});
            assert_eq!(over["span"], span);
            assert_eq!(inside["message"], "inside\nof it");
            assert_eq!((&inside["span"]["id"], &inside["span"]["lane"]), (&8.into(), &2.into()));
        }
    }

    #[test]
    fn an_error_that_is_printed_anyway_is_on_consoles_of_programs_only() {
        let say = || log("error", "moshi_ctl", "the end", false);
        let (console, file) = logged(LogFormat::Text, say);
        assert_eq!(console, "");
        assert!(file.ends_with(" ERROR moshi_ctl: the end\n"), "{file}");
        let (console, _) = logged(LogFormat::Json, say);
        assert_eq!(parse(&console)["target"], "moshi_ctl");
    }

    #[test]
    fn a_note_of_lost_lines_is_a_line_like_all() {
        let text = lost_note(LogFormat::Text, 3, "no space");
        assert!(text.contains("  WARN ") && text.ends_with("no space\n"), "{text}");
        assert_eq!(parse(&lost_note(LogFormat::Json, 3, "no space"))["lines"], 3);
    }
}
