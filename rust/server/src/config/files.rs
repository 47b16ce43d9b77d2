//! The files a configuration names.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::error::Finding;
use super::{AsrModule, Config, ConfigError};

/// Marks a file of a model hub instead of this machine.
pub(super) const HUB_PREFIX: &str = "hf://";

/// A file that a module needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FileReference {
    /// Name of the module.
    pub module: String,
    /// The module's key, e.g. `lm_model_file`.
    pub key: String,
    /// A path, or `hf://org/repository/file`.
    pub value: String,
}

pub(super) fn files_mut(module: &mut AsrModule) -> [(&'static str, &mut String); 3] {
    [
        ("lm_model_file", &mut module.lm_model_file),
        ("text_tokenizer_file", &mut module.text_tokenizer_file),
        ("audio_tokenizer_file", &mut module.audio_tokenizer_file),
    ]
}

fn files(module: &AsrModule) -> [(&'static str, &String); 3] {
    [
        ("lm_model_file", &module.lm_model_file),
        ("text_tokenizer_file", &module.text_tokenizer_file),
        ("audio_tokenizer_file", &module.audio_tokenizer_file),
    ]
}

impl Config {
    /// Every file the modules need, on this machine or on a hub.
    pub fn files(&self) -> Vec<FileReference> {
        let mut references = Vec::new();
        for (name, module) in &self.modules {
            for (key, value) in files(module.asr()) {
                references.push(FileReference {
                    module: name.clone(),
                    key: key.to_string(),
                    value: value.clone(),
                });
            }
        }
        references
    }

    /// Replaces file strings (those of [`Config::files`]) by the local paths found for them.
    pub fn resolve(&mut self, resolved: &BTreeMap<String, PathBuf>) {
        for module in self.modules.values_mut() {
            for (_, value) in files_mut(module.asr_mut()) {
                if let Some(path) = resolved.get(value.as_str()) {
                    *value = path.to_string_lossy().into_owned();
                }
            }
        }
    }

    /// Checks that every file that is not on a hub exists.
    ///
    /// # Errors
    /// Names the first key whose file is missing or not a file.
    pub fn check_files(&self) -> Result<(), ConfigError> {
        for reference in self.files() {
            let FileReference { module, key, value } = reference;
            if value.starts_with(HUB_PREFIX) {
                continue;
            }
            let message = match std::fs::metadata(Path::new(&value)) {
                Ok(metadata) if metadata.is_file() => continue,
                Ok(_) => format!("`{value}` is not a file"),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    format!("`{value}` does not exist")
                }
                Err(error) => format!("`{value}` cannot be read: {error}"),
            };
            let finding = Finding::new(&["modules", &module, &key], message).with_hint(
                "give the path of a file (relative to where the server starts) or hf://org/repository/file",
            );
            return Err(self.source.locate(finding));
        }
        Ok(())
    }
}
