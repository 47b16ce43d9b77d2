//! Keys, and how they are compared without telling anything about them.

use serde::Deserialize;
use subtle::{Choice, ConstantTimeEq};

use crate::token::TokenVerifier;

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

    /// Whether `candidate` opens a module. Looks at every key and every byte whatever it finds,
    /// so the time taken tells no more than a key's length.
    pub(crate) fn admits(&self, candidate: Option<&str>) -> bool {
        if self.is_empty() {
            return true;
        }
        let Some(candidate) = candidate else { return false };
        let found = self.keys.iter().fold(Choice::from(0), |found, key| {
            found | key.0.as_bytes().ct_eq(candidate.as_bytes())
        });
        bool::from(found) || self.admits_token(candidate)
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

    #[test]
    fn only_a_whole_key_opens() {
        let ring = KeyRing::new(vec![ApiKey::new("first"), ApiKey::new("second")], None);
        for good in ["first", "second"] {
            assert!(ring.admits(Some(good)));
        }
        for bad in [None, Some(""), Some("firs"), Some("first "), Some("First")] {
            assert!(!ring.admits(bad), "{bad:?}");
        }
    }

    #[test]
    fn debug_output_hides_the_key() {
        let tokens = TokenVerifier::new(b"canary");
        let ring = KeyRing::new(vec![ApiKey::new("canary")], Some(tokens));
        assert!(!format!("{ring:?}").contains("canary"));
        // The secret's bytes do not show either.
        assert!(!format!("{ring:?}").contains("99"));
    }

    fn ring(keys: &[&str]) -> KeyRing {
        let keys = keys.iter().map(|&key| ApiKey::new(key)).collect();
        KeyRing::new(keys, Some(TokenVerifier::new(SECRET.as_bytes())))
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
        assert!(!KeyRing::new(vec![ApiKey::new("first")], None).admits(Some(&token)));
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
