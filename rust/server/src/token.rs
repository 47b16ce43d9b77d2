//! JSON Web Tokens as keys: those signed with HMAC-SHA256 by one secret, and no others.

use hmac::{Hmac, Mac};
use jsonwebtoken::crypto::{CryptoProvider, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::{Error, ErrorKind};
use jsonwebtoken::signature::{self, Verifier};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode};
use serde::de::IgnoredAny;
use sha2::Sha256;

/// Says which tokens are signed by a secret and hold now. Debug output does not show the secret.
#[derive(Clone)]
pub(crate) struct TokenVerifier {
    key: DecodingKey,
    rules: Validation,
}

/// Why a token is refused. Nothing of the token is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TokenError {
    #[error("malformed, or of an unknown algorithm")]
    Malformed,
    #[error("of another algorithm than HS256")]
    Algorithm,
    #[error("not signed with the secret")]
    Signature,
    #[error("marked with extensions that must be understood (`crit`)")]
    Extensions,
    #[error("without a time in `exp`")]
    NoExpiry,
    #[error("expired")]
    Expired,
    #[error("not valid yet, or without a time in `nbf`")]
    NotYet,
}

impl TokenVerifier {
    /// For tokens signed by `secret`.
    pub(crate) fn new(secret: &[u8]) -> Self {
        // The library has one provider per process; a second verifier finds it there already.
        let _ = HS256_ONLY.install_default();
        let mut rules = Validation::new(Algorithm::HS256);
        rules.leeway = 0;
        // From the second of `exp` on (RFC 7519, 4.1.4); the library lets that one second pass.
        rules.reject_tokens_expiring_in_less_than = 1;
        rules.validate_nbf = true;
        // A token is a key here: whoever holds the secret says who gets one.
        rules.validate_aud = false;
        Self { key: DecodingKey::from_secret(secret), rules }
    }

    /// Checks algorithm, signature and times; the library compares signatures in constant time.
    pub(crate) fn check(&self, token: &str) -> Result<(), TokenError> {
        let data = decode::<IgnoredAny>(token, &self.key, &self.rules)?;
        match data.header.crit {
            None => Ok(()),
            Some(_) => Err(TokenError::Extensions),
        }
    }
}

impl std::fmt::Debug for TokenVerifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TokenVerifier(…)")
    }
}

impl From<Error> for TokenError {
    /// In words of our own: the library's repeat parts of a token.
    fn from(error: Error) -> Self {
        match error.into_kind() {
            ErrorKind::InvalidAlgorithm | ErrorKind::UnsupportedAlgorithm => Self::Algorithm,
            ErrorKind::InvalidSignature => Self::Signature,
            ErrorKind::MissingRequiredClaim(_) => Self::NoExpiry,
            ErrorKind::ExpiredSignature => Self::Expired,
            ErrorKind::ImmatureSignature | ErrorKind::InvalidClaimFormat(_) => Self::NotYet,
            _ => Self::Malformed,
        }
    }
}

/// All the cryptography there is for the library, so that no token can choose another.
static HS256_ONLY: CryptoProvider = CryptoProvider {
    signer_factory: |_, _| Err(ErrorKind::UnsupportedAlgorithm.into()),
    verifier_factory: |algorithm, key| match algorithm {
        Algorithm::HS256 => Hmac::new_from_slice(key.try_get_as_bytes()?)
            .map(|keyed| Box::new(Hs256(keyed)) as Box<dyn JwtVerifier>)
            .map_err(|_| ErrorKind::InvalidKeyFormat.into()),
        _ => Err(ErrorKind::UnsupportedAlgorithm.into()),
    },
    key_utils: KeyUtils::new_unimplemented(),
};

/// HMAC-SHA256 that has its key and no message yet.
struct Hs256(Hmac<Sha256>);

impl Verifier<Vec<u8>> for Hs256 {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> Result<(), signature::Error> {
        let mac = self.0.clone().chain_update(message);
        mac.verify_slice(signature).map_err(|_| signature::Error::new())
    }
}

impl JwtVerifier for Hs256 {
    fn algorithm(&self) -> Algorithm {
        Algorithm::HS256
    }
}
