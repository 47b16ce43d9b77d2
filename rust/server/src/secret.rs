//! Keys, and how they are compared without telling anything about them.

use serde::Deserialize;
use subtle::{Choice, ConstantTimeEq};

/// An API key. It never shows in debug output and cannot be serialized.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct ApiKey(String);

impl ApiKey {
    /// A key with these characters.
    pub fn new(key: impl Into<String>) -> Self {
        Self(key.into())
    }

    /// Whether the key has no characters at all.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl std::fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ApiKey(…)")
    }
}

/// The keys that open a module.
#[derive(Debug, Clone, Default)]
pub(crate) struct KeyRing(Vec<ApiKey>);

impl KeyRing {
    pub(crate) fn new(keys: Vec<ApiKey>) -> Self {
        Self(keys)
    }

    /// Whether nobody needs a key, which the worker allows on loopback addresses only.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `candidate` opens a module. Looks at every key and every byte whatever it finds,
    /// so the time taken tells no more than a key's length.
    pub(crate) fn admits(&self, candidate: Option<&str>) -> bool {
        let Some(candidate) = candidate else { return self.is_empty() };
        let found = self.0.iter().fold(Choice::from(0), |found, key| {
            found | key.0.as_bytes().ct_eq(candidate.as_bytes())
        });
        self.is_empty() || bool::from(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_key_opens() {
        let ring = KeyRing::new(vec![ApiKey::new("first"), ApiKey::new("second")]);
        for good in ["first", "second"] {
            assert!(ring.admits(Some(good)));
        }
        for bad in [None, Some(""), Some("firs"), Some("first "), Some("First")] {
            assert!(!ring.admits(bad), "{bad:?}");
        }
    }

    #[test]
    fn debug_output_hides_the_key() {
        let ring = KeyRing::new(vec![ApiKey::new("canary")]);
        assert!(!format!("{ring:?}").contains("canary"));
    }
}
