//! Makes JSON Web Tokens, good and bad.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, Mac};
use sha2::Sha256;

/// What most tokens begin with.
pub(crate) const HS256: &str = r#"{"alg":"HS256","typ":"JWT"}"#;

/// A token with this header and these claims, signed with HMAC-SHA256 whatever the header says.
pub(crate) fn signed(secret: &str, header: &str, claims: &str) -> String {
    let message = message(header, claims);
    let mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap().chain_update(&message);
    format!("{message}.{}", encoded(mac.finalize().into_bytes()))
}

/// Header and claims, as they are signed.
pub(crate) fn message(header: &str, claims: &str) -> String {
    format!("{}.{}", encoded(header), encoded(claims))
}

/// As a part of a token.
pub(crate) fn encoded(part: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(part)
}

/// What `encoded` was given.
pub(crate) fn decoded(part: &str) -> Vec<u8> {
    URL_SAFE_NO_PAD.decode(part).unwrap()
}

/// Claims of a token that ends in so many seconds, or ended before.
pub(crate) fn expiring_in(seconds: i64) -> String {
    format!(r#"{{"exp":{}}}"#, now() + seconds)
}

/// Seconds since 1970.
pub(crate) fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs().try_into().unwrap()
}
