use moshi_ctl_core::ModelError;

/// Why a model could not be loaded or stepped.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct EngineError {
    message: String,
    hint: Option<String>,
    out_of_memory: bool,
}

impl EngineError {
    /// An error that says what happened, with the offending value.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None, out_of_memory: false }
    }

    /// The system refuses to give out so much memory.
    pub(crate) fn out_of_memory(bytes: u64) -> Self {
        let error =
            Self::new(format!("out of memory: {:.1} MB are not to be had", bytes as f64 / 1e6));
        Self { out_of_memory: true, ..error }
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

    /// Whether fewer lanes might have helped.
    pub fn is_out_of_memory(&self) -> bool {
        self.out_of_memory
    }

    /// What to do next, where that is known.
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }
}

impl From<candle_core::Error> for EngineError {
    fn from(error: candle_core::Error) -> Self {
        let text = error.to_string();
        // candle hands the driver's error on as text: CUDA_ERROR_OUT_OF_MEMORY and the like.
        let lower = text.to_ascii_lowercase();
        let out_of_memory = lower.contains("out_of_memory") || lower.contains("out of memory");
        Self { out_of_memory, ..Self::new(format!("tensor operation failed: {text}")) }
    }
}

impl From<EngineError> for ModelError {
    fn from(error: EngineError) -> Self {
        Self { message: error.message, hint: error.hint }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_card_without_memory_says_is_recognized() {
        for (text, expected) in [
            ("DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")", true),
            ("CUBLAS_STATUS_NOT_INITIALIZED", false),
        ] {
            let error = EngineError::from(candle_core::Error::Msg(text.into()));
            assert_eq!(error.is_out_of_memory(), expected, "{error}");
        }
    }
}
