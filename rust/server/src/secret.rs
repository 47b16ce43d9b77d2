//! Keys, and how they are compared without telling anything about them.

use std::sync::Arc;

use sha2::{Digest, Sha256};
use subtle::{ConditionallySelectable, ConstantTimeEq};

use crate::token::TokenVerifier;

/// Whoever comes with a token.
const TOKEN: &str = "token";
/// Whoever comes to a server that asks for no key.
const NOBODY: &str = "none";
/// Longest name of a key.
const NAME_CHARACTERS: usize = 64;

/// An API key and the name it has in logs and metrics. The key itself is not kept, only its SHA-256
/// hash: all comparisons are over 32 bytes, and no memory dump shows it.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey {
    name: Arc<str>,
    digest: [u8; 32],
}

/// Why a list of keys cannot be used. No key is ever in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// There is nothing where a key should be.
    #[error("holds an empty key, at place {0}")]
    Empty(usize),
    /// In logs and metrics it would look like something else.
    #[error("calls a key `{0}`, which is a name of the server's own")]
    Reserved(Arc<str>),
    /// Two keys could not be told apart in logs and metrics.
    #[error("holds two keys called `{0}`")]
    SameName(Arc<str>),
    /// One would never be seen.
    #[error("holds the same key as `{0}` and as `{1}`")]
    SameKey(Arc<str>, Arc<str>),
}

impl ApiKey {
    /// The key `key`, called `name`.
    pub fn new(name: &str, key: &str) -> Self {
        Self { name: name.into(), digest: Sha256::digest(key).into() }
    }

    /// The keys of a list of `name:key` and of keys alone, which are called `key-N` by their place.
    ///
    /// # Errors
    /// When a key is empty, or two are the same or called the same.
    pub fn parse_all(list: &[String]) -> Result<Vec<Self>, KeyError> {
        let mut keys: Vec<Self> = Vec::with_capacity(list.len());
        for (place, text) in (1..).zip(list) {
            let by_place = || (format!("key-{place}"), text.as_str());
            let (name, key) = match text.split_once(':') {
                Some((name, key)) if is_name(name) => (name.to_string(), key),
                _ => by_place(),
            };
            if key.is_empty() {
                return Err(KeyError::Empty(place));
            }
            let key = Self::new(&name, key);
            if [TOKEN, NOBODY].contains(&name.as_str()) {
                return Err(KeyError::Reserved(key.name));
            }
            for other in &keys {
                if other.name == key.name {
                    return Err(KeyError::SameName(key.name));
                }
                if other.digest == key.digest {
                    return Err(KeyError::SameKey(Arc::clone(&other.name), key.name));
                }
            }
            keys.push(key);
        }
        Ok(keys)
    }
}

fn is_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    (1..=NAME_CHARACTERS).contains(&name.len()) && name.chars().all(allowed)
}

impl std::fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ApiKey({})", self.name)
    }
}

/// What opens a module: plain keys, and tokens where there is a secret they are signed with.
#[derive(Debug, Clone, Default)]
pub(crate) struct KeyRing {
    keys: Vec<ApiKey>,
    tokens: Option<TokenVerifier>,
}

impl KeyRing {
    pub(crate) fn new(keys: Vec<ApiKey>, tokens: Option<TokenVerifier>) -> Self {
        Self { keys, tokens }
    }

    /// Whether nobody needs a key, which the worker allows on loopback addresses only.
    pub(crate) fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.tokens.is_none()
    }

    /// Every name that [`KeyRing::owner`] may give.
    pub(crate) fn owners(&self) -> impl Iterator<Item = Arc<str>> {
        let token = self.tokens.is_some().then(|| TOKEN.into());
        let nobody = self.is_empty().then(|| NOBODY.into());
        self.keys.iter().map(|key| Arc::clone(&key.name)).chain(token).chain(nobody)
    }

    /// The name of whom `candidate` lets in. Looks at every key and every byte whatever it finds, so
    /// the time taken tells nothing about the keys but how many there are.
    pub(crate) fn owner(&self, candidate: Option<&str>) -> Option<Arc<str>> {
        if self.is_empty() {
            return Some(NOBODY.into());
        }
        let candidate = candidate?;
        let digest: [u8; 32] = Sha256::digest(candidate).into();
        let mut found = u64::MAX;
        for (index, key) in (0..).zip(&self.keys) {
            found.conditional_assign(&index, key.digest.ct_eq(&digest));
        }
        let found = usize::try_from(found).ok().and_then(|found| self.keys.get(found));
        match found {
            Some(key) => Some(Arc::clone(&key.name)),
            None => self.admits_token(candidate).then(|| TOKEN.into()),
        }
    }

    fn admits_token(&self, candidate: &str) -> bool {
        let Some(tokens) = &self.tokens else { return false };
        match tokens.check(candidate) {
            Ok(()) => true,
            Err(reason) => {
                tracing::debug!("refused: no plain key, and as a token it is {reason}");
                false
            }
        }
    }
}

#[cfg(test)]
#[path = "../tests/support/token.rs"]
mod made;

#[cfg(test)]
mod tests {
    use hmac::{Hmac, Mac};
    use sha2::Sha512;

    use super::made::{HS256, encoded, expiring_in, message, now, signed};
    use super::*;
    use crate::token::TokenError;

    const SECRET: &str = "a secret of thirty-two bytes or more";

    impl KeyRing {
        fn admits(&self, candidate: Option<&str>) -> bool {
            self.owner(candidate).is_some()
        }
    }

    fn parsed(list: &[&str]) -> Result<Vec<ApiKey>, KeyError> {
        ApiKey::parse_all(&list.iter().map(ToString::to_string).collect::<Vec<_>>())
    }

    #[test]
    fn only_a_whole_key_opens_and_says_whose_it_is() {
        let ring = KeyRing::new(parsed(&["first", "phone:second", "a b:c"]).unwrap(), None);
        for (good, name) in [("first", "key-1"), ("second", "phone"), ("a b:c", "key-3")] {
            assert_eq!(ring.owner(Some(good)).as_deref(), Some(name));
        }
        for bad in ["", "firs", "first ", "First", "phone:second", "phone", "c"] {
            assert!(!ring.admits(Some(bad)), "{bad:?}");
        }
        assert!(!ring.admits(None));
        assert_eq!(KeyRing::default().owner(None).as_deref(), Some("none"));
    }

    #[test]
    fn lists_of_keys_that_cannot_be_used() {
        let same = |name: &str| KeyError::SameName(name.into());
        for (list, error) in [
            (&[""][..], KeyError::Empty(1)),
            (&["uno", "phone:"], KeyError::Empty(2)),
            (&["a:uno", "a:two"], same("a")),
            (&["uno", "key-1:two"], same("key-1")),
            (&["token:uno"], KeyError::Reserved("token".into())),
            (&["none:uno"], KeyError::Reserved("none".into())),
            (&["a:uno", "b:uno"], KeyError::SameKey("a".into(), "b".into())),
            (&["uno", "two", "uno"], KeyError::SameKey("key-1".into(), "key-3".into())),
        ] {
            assert_eq!(parsed(list).unwrap_err(), error);
            assert!(!error.to_string().contains("uno"), "{error}");
        }
    }

    #[test]
    fn the_time_to_refuse_does_not_tell_where_a_key_is_wrong() {
        // Long, so that a comparison that stops at the first difference is a thousand times faster.
        let key = "k".repeat(1 << 16);
        let ring =
            KeyRing::new(vec![ApiKey::new("long", &key), ApiKey::new("other", "other")], None);
        let wrong_first = format!("x{}", &key[1..]);
        let wrong_last = format!("{}x", &key[1..]);
        let mut ratios: Vec<f64> = Vec::new();
        for _ in 0..101 {
            let [first, last] = [&wrong_first, &wrong_last].map(|candidate| {
                let began = std::time::Instant::now();
                assert!(!std::hint::black_box(&ring).admits(Some(candidate)));
                began.elapsed().as_secs_f64()
            });
            ratios.push(last / first);
        }
        ratios.sort_by(f64::total_cmp);
        assert!((0.5..2.0).contains(&ratios[50]), "{ratios:?}");
    }

    #[test]
    fn debug_output_hides_the_key() {
        let tokens = TokenVerifier::new(b"canary");
        let ring = KeyRing::new(vec![ApiKey::new("name", "canary")], Some(tokens));
        assert!(!format!("{ring:?}").contains("canary"));
        // The secret's bytes do not show either.
        assert!(!format!("{ring:?}").contains("99"));
    }

    fn ring(keys: &[&str]) -> KeyRing {
        KeyRing::new(parsed(keys).unwrap(), Some(TokenVerifier::new(SECRET.as_bytes())))
    }

    #[test]
    fn a_token_opens_beside_the_keys() {
        let token = signed(SECRET, HS256, &expiring_in(60));
        for ring in [ring(&[]), ring(&["first"])] {
            assert!(!ring.is_empty());
            assert!(ring.admits(Some(&token)));
            assert!(!ring.admits(None));
            assert!(!ring.admits(Some("")));
        }
        assert!(ring(&["first"]).admits(Some("first")));
        assert!(!ring(&[]).admits(Some("first")));
        assert!(!ring(&[]).admits(Some(SECRET)));
        assert!(!KeyRing::new(parsed(&["first"]).unwrap(), None).admits(Some(&token)));
    }

    #[test]
    fn audience_issuer_and_other_claims_are_the_signer_s_business() {
        let (past, soon) = (now() - 60, now() + 60);
        for claims in [
            format!(r#"{{"exp":{soon},"nbf":{past},"iat":{past}}}"#),
            format!(r#"{{"exp":{soon},"nbf":{}}}"#, now()),
            format!(r#"{{"exp":{soon}.5}}"#),
            format!(r#"{{"exp":{soon},"aud":"another","iss":"anybody","sub":"user"}}"#),
            format!(r#"{{"exp":{soon},"aud":["a","b"],"name":"{}"}}"#, "x".repeat(50_000)),
            format!(r#"{{"exp":{}}}"#, u64::MAX),
        ] {
            assert!(ring(&[]).admits(Some(&signed(SECRET, HS256, &claims))), "{claims:.100}");
        }
        let without_type = signed(SECRET, r#"{"alg":"HS256"}"#, &expiring_in(60));
        assert!(ring(&[]).admits(Some(&without_type)));
    }

    #[test]
    fn what_a_token_does_not_hold_for() {
        use TokenError::{Algorithm, Expired, Extensions, Malformed, NoExpiry, NotYet, Signature};
        let good = expiring_in(60);
        let claims = |claims: String| signed(SECRET, HS256, &claims);
        let header = |header: &str| signed(SECRET, header, &good);
        let whole = claims(good.clone());
        let (unsigned, signature) = whole.rsplit_once('.').unwrap();
        let soon = now() + 60;
        let hs512 = {
            let message = message(r#"{"alg":"HS512","typ":"JWT"}"#, &good);
            let mac = Hmac::<Sha512>::new_from_slice(SECRET.as_bytes()).unwrap();
            let mac = mac.chain_update(&message).finalize().into_bytes();
            format!("{message}.{}", encoded(mac))
        };
        for (token, reason) in [
            (claims(expiring_in(-3600)), Expired),
            (claims(expiring_in(-1)), Expired),
            // No leeway, not even the second it ends in.
            (claims(expiring_in(0)), Expired),
            (claims("{}".into()), NoExpiry),
            (claims(r#"{"exp":null}"#.into()), NoExpiry),
            (claims(format!(r#"{{"exp":"{soon}"}}"#)), NoExpiry),
            (claims(r#"{"exp":-1}"#.into()), NoExpiry),
            (claims(r#"{"exp":1e300}"#.into()), NoExpiry),
            (claims(format!(r#"{{"exp":{soon},"nbf":{soon}}}"#)), NotYet),
            (claims(format!(r#"{{"exp":{soon},"nbf":"{soon}"}}"#)), NotYet),
            (claims(format!(r#"{{"exp":1,"exp":{soon}}}"#)), Malformed),
            (claims("no JSON".into()), Malformed),
            (claims("[".repeat(100_000)), Malformed),
            (signed("another secret", HS256, &good), Signature),
            (signed("", HS256, &good), Signature),
            (format!("{unsigned}."), Signature),
            (format!("{unsigned}.{}", &signature[..40]), Signature),
            (format!("{}.{signature}", message(HS256, &expiring_in(3600))), Signature),
            (format!("{}.{signature}", message(r#"{"alg":"HS256"}"#, &good)), Signature),
            (hs512, Algorithm),
            (header(r#"{"alg":"HS384"}"#), Algorithm),
            (header(r#"{"alg":"HS512"}"#), Algorithm),
            // The secret as if it were a public key.
            (header(r#"{"alg":"RS256","typ":"JWT"}"#), Algorithm),
            (header(r#"{"alg":"ES256","jwk":{"kty":"oct","k":"AAAA"}}"#), Algorithm),
            (format!("{}.", message(r#"{"alg":"none"}"#, &good)), Malformed),
            (header(r#"{"alg":"none"}"#), Malformed),
            (header(r#"{"alg":"hs256"}"#), Malformed),
            (header(r#"{"alg":["HS256"]}"#), Malformed),
            (header(r#"{"typ":"JWT"}"#), Malformed),
            (header(r#"{"alg":"HS256","crit":["b64"],"b64":false}"#), Extensions),
            (unsigned.to_string(), Malformed),
            (format!("{whole}."), Malformed),
            (format!("{whole}="), Malformed),
            (format!(" {whole}"), Malformed),
            (format!("Bearer {whole}"), Malformed),
            (whole[1..].to_string(), Malformed),
            ("..".into(), Malformed),
            ("a.b.c".into(), Malformed),
            ("ü.ü.ü".into(), Malformed),
            ("no token".into(), Malformed),
            (String::new(), Malformed),
            ("A".repeat(10_000_000), Malformed),
            (format!("{0}.{0}.{0}", "A".repeat(1_000_000)), Malformed),
            (".".repeat(1_000_000), Malformed),
        ] {
            let checked = TokenVerifier::new(SECRET.as_bytes()).check(&token);
            assert_eq!(checked, Err(reason), "{token:.200}");
            assert!(!ring(&["first"]).admits(Some(&token)), "{token:.200}");
        }
    }

    #[test]
    fn the_example_of_rfc_7515() {
        // Appendix A.1: a good signature of 2011.
        let token = "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4\
                     MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.dBjftJeZ4CVP-mB92K\
                     27uhbUJU1p1r_wW1gFWFOEjXk";
        let key = "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr\
                   1Z9CAow";
        let key = made::decoded(key);
        assert_eq!(TokenVerifier::new(&key).check(token), Err(TokenError::Expired));
        assert_eq!(TokenVerifier::new(&key[1..]).check(token), Err(TokenError::Signature));
    }
}
