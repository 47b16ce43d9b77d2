use moshi_ctl_core::ModelError;

/// Why a model could not be loaded or stepped.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct EngineError {
    message: String,
    hint: Option<String>,
}

impl EngineError {
    /// An error that says what happened, with the offending value.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None }
    }

    /// Adds what to do next.
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Says in which tensor it happened.
    pub(crate) fn in_tensor(self, name: &str) -> Self {
        Self { message: format!("tensor `{name}`: {}", self.message), ..self }
    }

    /// What to do next, where that is known.
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }
}

impl From<candle_core::Error> for EngineError {
    fn from(error: candle_core::Error) -> Self {
        Self::new(format!("tensor operation failed: {error}"))
    }
}

impl From<EngineError> for ModelError {
    fn from(error: EngineError) -> Self {
        Self { message: error.message, hint: error.hint }
    }
}
