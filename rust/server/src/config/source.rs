//! The text of a configuration and where its keys are.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use moshi_ctl_core::one_line;
use toml::de::{DeTable, DeValue};

use super::error::{ConfigError, Finding};

/// Which file a configuration came from and on which line each of its keys is.
#[derive(Debug, Clone, Default)]
pub(super) struct Source {
    file: PathBuf,
    lines: BTreeMap<Vec<String>, usize>,
}

impl Source {
    pub(super) fn new(file: &Path) -> Self {
        Self { file: file.to_path_buf(), lines: BTreeMap::new() }
    }

    pub(super) fn file(&self) -> &Path {
        &self.file
    }

    /// Parses `text` and remembers the line of every key.
    pub(super) fn parse<'t>(&mut self, text: &'t str) -> Result<DeTable<'t>, ConfigError> {
        let ends: Vec<usize> = text.match_indices('\n').map(|(at, _)| at).collect();
        let table = DeTable::parse(text).map_err(|error| ConfigError {
            file: self.file.clone(),
            line: error.span().map(|span| line_of(&ends, span.start)),
            key: None,
            message: one_line(&format!("not valid TOML: {}", words(error.message()))),
            hint: None,
        })?;
        let table = table.into_inner();
        self.remember(&ends, &mut Vec::new(), &table);
        Ok(table)
    }

    /// `ends`: where lines end, in order.
    fn remember(&mut self, ends: &[usize], path: &mut Vec<String>, table: &DeTable<'_>) {
        for (key, value) in table {
            path.push(key.get_ref().to_string());
            self.lines.insert(path.clone(), line_of(ends, key.span().start));
            if let DeValue::Table(table) = value.get_ref() {
                self.remember(ends, path, table);
            }
            path.pop();
        }
    }

    /// The finding with its file and the line of its key or of the closest table around it.
    pub(super) fn locate(&self, finding: Finding) -> ConfigError {
        let Finding { key, message, hint } = finding;
        let line = (1..=key.len()).rev().find_map(|n| self.lines.get(&key[..n]).copied());
        let key = (!key.is_empty()).then(|| one_line(&key.join(".")));
        let (message, hint) = (one_line(&message), hint.as_deref().map(one_line));
        ConfigError { file: self.file.clone(), line, key, message, hint }
    }
}

/// The line of a place in the text, counted from 1; `ends` is where lines end, in order.
fn line_of(ends: &[usize], offset: usize) -> usize {
    ends.partition_point(|end| *end < offset) + 1
}

/// The parser's message without its line breaks.
fn words(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> BTreeMap<Vec<String>, usize> {
        let mut source = Source::new(Path::new("config.toml"));
        source.parse(text).unwrap();
        source.lines
    }

    #[test]
    fn keys_are_found_on_their_lines() {
        let lines = lines("a = 1\r\n\n[b]\n# c\nc.d = 2 # e\n\"f\\ng\" = { h = 3 }");
        let line = |path: &[&str]| {
            lines.get(&path.iter().map(ToString::to_string).collect::<Vec<_>>()).copied()
        };
        assert_eq!(line(&["a"]), Some(1));
        assert_eq!(line(&["b"]), Some(3));
        assert_eq!(line(&["b", "c", "d"]), Some(5));
        assert_eq!(line(&["b", "f\ng", "h"]), Some(6));
    }

    #[test]
    fn an_error_is_one_line_whatever_a_key_is() {
        let mut source = Source::new(Path::new("config.toml"));
        let key = "a\nb\u{1b}".repeat(1000);
        source.parse("x = 1").unwrap();
        let error = source.locate(Finding::new(&[&key], key.clone()).with_hint(key.clone()));
        for text in [error.to_string(), error.hint.unwrap()] {
            assert!(!text.contains(char::is_control) && text.len() < 2000, "{text}");
        }
    }

    #[test]
    fn many_keys_take_little_and_deep_ones_are_refused() {
        // A search for each key through all lines before it would take minutes.
        let many: String = (0..100_000).map(|n| format!("k{n} = 0\n")).collect();
        assert_eq!(lines(&many).len(), 100_000);
        // The parser sees to it that nothing nests deeper.
        let mut source = Source::new(Path::new("config.toml"));
        for deep in
            [format!("{}z = 1", "a.".repeat(100_000)), "z = ".to_string() + &"[".repeat(100_000)]
        {
            let error = source.parse(&deep).unwrap_err().to_string();
            assert!(error.contains("not valid TOML: "), "{error}");
        }
    }
}
