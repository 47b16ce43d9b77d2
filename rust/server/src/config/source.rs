//! The text of a configuration and where its keys are.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

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
        let table = DeTable::parse(text).map_err(|error| ConfigError {
            file: self.file.clone(),
            line: error.span().map(|span| line_of(text, span.start)),
            key: None,
            message: format!("not valid TOML: {}", one_line(error.message())),
            hint: None,
        })?;
        let table = table.into_inner();
        self.remember(text, &mut Vec::new(), &table);
        Ok(table)
    }

    fn remember(&mut self, text: &str, path: &mut Vec<String>, table: &DeTable<'_>) {
        for (key, value) in table {
            path.push(key.get_ref().to_string());
            self.lines.insert(path.clone(), line_of(text, key.span().start));
            if let DeValue::Table(table) = value.get_ref() {
                self.remember(text, path, table);
            }
            path.pop();
        }
    }

    /// The finding with its file and the line of its key or of the closest table around it.
    pub(super) fn locate(&self, finding: Finding) -> ConfigError {
        let Finding { key, message, hint } = finding;
        let line = (1..=key.len()).rev().find_map(|n| self.lines.get(&key[..n]).copied());
        let key = (!key.is_empty()).then(|| key.join("."));
        ConfigError { file: self.file.clone(), line, key, message, hint }
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    text.as_bytes()[..offset.min(text.len())].iter().filter(|&&byte| byte == b'\n').count() + 1
}

fn one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}
