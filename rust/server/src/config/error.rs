use std::path::PathBuf;

/// What is wrong with a configuration, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// The configuration file.
    pub file: PathBuf,
    /// Line in that file, from 1, where it is known.
    pub line: Option<usize>,
    /// Dotted path of the key, e.g. `modules.asr.batch_size`.
    pub key: Option<String>,
    /// What happened, with the value that is wrong; one line.
    pub message: String,
    /// What to do next.
    pub hint: Option<String>,
}

impl std::fmt::Display for ConfigError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        if let Some(key) = &self.key {
            write!(f, ": {key}")?;
        }
        write!(f, ": {}", self.message)
    }
}

impl std::error::Error for ConfigError {}

/// A [`ConfigError`] before it is known which file and line it belongs to.
#[derive(Debug)]
pub(super) struct Finding {
    /// Path of the key, from the top of the file.
    pub(super) key: Vec<String>,
    pub(super) message: String,
    pub(super) hint: Option<String>,
}

impl Finding {
    pub(super) fn new(key: &[&str], message: impl Into<String>) -> Self {
        let key = key.iter().flat_map(|part| part.split('.')).map(str::to_string).collect();
        Self { key, message: message.into(), hint: None }
    }

    pub(super) fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}
