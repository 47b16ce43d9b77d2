//! The keys that hold now: whose key a request has, and how many sessions each of them has.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::http::HeaderMap;
use serde::Deserialize;

use crate::lock::lock;
use crate::secret::{ApiKey, KeyRing};
use crate::token::TokenVerifier;

/// Where a key is looked for first.
pub(crate) const KEY_HEADER: &str = "kyutai-api-key";

/// What opens a server.
#[derive(Debug, Clone, Default)]
pub struct Credentials {
    /// Plain keys.
    pub keys: Vec<ApiKey>,
    /// Secret of JSON Web Tokens (HS256) that are keys beside the plain ones; blank is none.
    pub jwt_secret: Option<String>,
}

/// Says what opens the server; asked at the start and whenever keys are to be read again. An error
/// is a message that repeats no key.
pub type ReadCredentials = Box<dyn Fn() -> Result<Credentials, String> + Send + Sync>;

/// Browsers cannot set headers on a WebSocket, so the key may be in the query.
#[derive(Default, Deserialize)]
pub(crate) struct KeyQuery {
    auth_id: Option<String>,
}

/// The keys of a server.
pub(crate) struct Keys {
    read: ReadCredentials,
    ring: Mutex<Arc<KeyRing>>,
    in_query: bool,
    sessions_each: usize,
    sessions: Arc<Mutex<BTreeMap<Arc<str>, usize>>>,
}

/// A session that counts among those of its key.
pub(crate) struct KeyUse {
    pub(crate) name: Arc<str>,
    sessions: Arc<Mutex<BTreeMap<Arc<str>, usize>>>,
}

impl Keys {
    /// Keys that `read` says now; `in_query` lets them come in the query too, and each may have
    /// `sessions_each` at the same time.
    pub(crate) fn new(
        read: ReadCredentials,
        in_query: bool,
        sessions_each: usize,
    ) -> Result<Self, String> {
        let ring = Mutex::new(Arc::new(ring(read()?)));
        Ok(Self { read, ring, in_query, sessions_each, sessions: Arc::default() })
    }

    /// Whether nobody needs a key.
    pub(crate) fn is_empty(&self) -> bool {
        self.ring().is_empty()
    }

    /// Reads the keys again. Those that hold stay where that fails, or where none would be left:
    /// a file that is empty for a moment must not open the server to everybody.
    pub(crate) fn reload(&self) {
        match (self.read)().map(ring) {
            Ok(ring) if ring.is_empty() && !self.is_empty() => {
                tracing::error!(
                    "keys not reloaded: there is none any more; the old ones still hold"
                );
            }
            Ok(ring) => {
                let names: Vec<_> = ring.names().collect();
                tracing::info!(
                    keys = names.join(","),
                    tokens = ring.takes_tokens(),
                    "keys reloaded"
                );
                *lock(&self.ring) = Arc::new(ring);
            }
            Err(error) => {
                tracing::error!("keys not reloaded, the old ones still hold: {error}");
            }
        }
    }

    /// The name of the key that a request has, if it is one that holds. A request with several is
    /// refused: what is in front of this server may have looked at another one.
    pub(crate) fn owner(&self, headers: &HeaderMap, query: Option<&KeyQuery>) -> Option<Arc<str>> {
        let mut headers = headers.get_all(KEY_HEADER).iter();
        let key = match (headers.next(), headers.next()) {
            (Some(_), Some(_)) => return None,
            (Some(key), None) => key.to_str().ok(),
            (None, _) if self.in_query => query.and_then(|query| query.auth_id.as_deref()),
            (None, _) => None,
        };
        self.ring().owner(key)
    }

    /// Counts a session of the key called `name`, until what this gives is dropped; none if there
    /// are too many already.
    pub(crate) fn enter(&self, name: Arc<str>) -> Option<KeyUse> {
        let mut sessions = lock(&self.sessions);
        let open = sessions.entry(Arc::clone(&name)).or_default();
        if *open >= self.sessions_each {
            return None;
        }
        *open += 1;
        Some(KeyUse { name, sessions: Arc::clone(&self.sessions) })
    }

    /// Sessions of every key that ever had one.
    pub(crate) fn sessions(&self) -> BTreeMap<Arc<str>, usize> {
        lock(&self.sessions).clone()
    }

    fn ring(&self) -> Arc<KeyRing> {
        Arc::clone(&lock(&self.ring))
    }
}

impl Drop for KeyUse {
    fn drop(&mut self) {
        if let Some(open) = lock(&self.sessions).get_mut(&self.name) {
            *open -= 1;
        }
    }
}

fn ring(credentials: Credentials) -> KeyRing {
    let secret = credentials.jwt_secret.filter(|secret| !secret.trim().is_empty());
    KeyRing::new(credentials.keys, secret.map(|secret| TokenVerifier::new(secret.as_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(lists: &'static [&'static [&'static str]], sessions_each: usize) -> Keys {
        let turn = Mutex::new(lists.iter());
        let read = move || {
            let list = lock(&turn).next().ok_or("the file is gone")?;
            let list: Vec<_> = list.iter().map(ToString::to_string).collect();
            let keys = ApiKey::parse_all(&list).map_err(|error| error.to_string())?;
            Ok(Credentials { keys, jwt_secret: Some(" ".into()) })
        };
        Keys::new(Box::new(read), true, sessions_each).unwrap()
    }

    fn header(keys: &[&'static str]) -> HeaderMap {
        keys.iter().map(|key| (KEY_HEADER.parse().unwrap(), key.parse().unwrap())).collect()
    }

    #[test]
    fn reloading_keeps_the_old_keys_when_the_new_ones_cannot_be_used() {
        let keys = keys(&[&["a:one"], &["b:two"], &[], &["b:", "c:three"]], 1);
        let owner = |key| keys.owner(&header(&[key]), None);
        assert_eq!(owner("one").as_deref(), Some("a"));
        keys.reload();
        assert_eq!((owner("one"), owner("two").as_deref()), (None, Some("b")));
        for _ in ["none left", "an empty one", "no file"] {
            keys.reload();
            assert_eq!(owner("two").as_deref(), Some("b"));
            assert_eq!(owner("three"), None);
        }
    }

    #[test]
    fn a_request_has_one_key() {
        let keys = keys(&[&["a:one", "b:two"]], 1);
        let query = KeyQuery { auth_id: Some("two".into()) };
        let owner = |list: &[&'static str]| keys.owner(&header(list), Some(&query));
        assert_eq!(owner(&[]).as_deref(), Some("b"));
        assert_eq!(owner(&["one"]).as_deref(), Some("a"));
        // The header is what counts where there is one.
        assert_eq!(owner(&["three"]), None);
        assert_eq!(owner(&["one", "one"]), None);
        assert_eq!(owner(&["one", "two"]), None);
        let closed = Keys { in_query: false, ..keys };
        assert_eq!(closed.owner(&header(&[]), Some(&query)), None);
    }

    #[test]
    fn sessions_are_counted_by_key() {
        let keys = keys(&[&["a:one"]], 2);
        let first = keys.enter("a".into()).unwrap();
        let _second = keys.enter("a".into()).unwrap();
        assert!(keys.enter("a".into()).is_none());
        let _other = keys.enter("b".into()).unwrap();
        drop(first);
        assert_eq!(keys.sessions(), [("a".into(), 1), ("b".into(), 1)].into());
        assert!(keys.enter("a".into()).is_some());
    }
}
