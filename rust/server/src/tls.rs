//! The certificate that connections are encrypted with, read again when its files change.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest, Sha256};
use tokio::time::{MissedTickBehavior, interval};
use tokio_rustls::TlsAcceptor;

use crate::limits::CERTIFICATE_LOOKS;
use crate::lock::lock;

/// The files of a certificate, in PEM.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// The certificate, then those that sign it.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// Why a certificate cannot be used. Nothing of the key is ever in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct TlsError {
    pub(crate) message: String,
    pub(crate) hint: &'static str,
}

/// A certificate, and the files it came from.
pub(crate) struct Certificate {
    files: TlsFiles,
    loaded: Mutex<Loaded>,
}

/// What connections that begin now are encrypted with.
struct Loaded {
    config: Arc<ServerConfig>,
    of: Fingerprint,
}

/// Tells the contents of two files from others.
type Fingerprint = [u8; 32];

impl Certificate {
    pub(crate) fn load(files: TlsFiles) -> Result<Self, TlsError> {
        let loaded = Mutex::new(load(&files)?);
        Ok(Self { files, loaded })
    }

    /// For the next connection.
    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        Arc::clone(&lock(&self.loaded).config).into()
    }

    /// Reads the files again; what was read before stays where they cannot be used.
    pub(crate) fn reload(&self) {
        match load(&self.files) {
            Ok(loaded) => {
                let is_new = loaded.of != self.fingerprint();
                *lock(&self.loaded) = loaded;
                let file = self.files.cert.display();
                tracing::info!(%file, "certificate {}", if is_new { "reloaded" } else { "unchanged" });
            }
            Err(error) => {
                tracing::error!("certificate not reloaded, the old one stays: {error}");
            }
        }
    }

    /// Reads the files again whenever they changed and then stay as they are: certificate and key are
    /// two files, and for a moment do not match.
    pub(crate) async fn follow(self: Arc<Self>) {
        let mut looks = interval(CERTIFICATE_LOOKS);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut before = self.fingerprint();
        let mut given_up = before;
        loop {
            looks.tick().await;
            let this = Arc::clone(&self);
            // A file may be on a disk that is not there at the moment.
            let look = move || {
                let now = this.look();
                if now == before && now != this.fingerprint() && now != given_up {
                    this.reload();
                    given_up = now;
                }
                (now, given_up)
            };
            if let Ok(looked) = tokio::task::spawn_blocking(look).await {
                (before, given_up) = looked;
            }
        }
    }

    fn fingerprint(&self) -> Fingerprint {
        lock(&self.loaded).of
    }

    /// What the files are now; one that cannot be read is like an empty one.
    fn look(&self) -> Fingerprint {
        let read = |path: &Path| std::fs::read(path).unwrap_or_default();
        fingerprint(&read(&self.files.cert), &read(&self.files.key))
    }
}

fn fingerprint(cert: &[u8], key: &[u8]) -> Fingerprint {
    Sha256::new()
        .chain_update(Sha256::digest(cert))
        .chain_update(Sha256::digest(key))
        .finalize()
        .into()
}

fn load(files: &TlsFiles) -> Result<Loaded, TlsError> {
    let error = |path: &Path, what: String, hint| TlsError {
        message: format!("{}: {what}", path.display()),
        hint,
    };
    let read = |path: &Path| {
        std::fs::read(path).map_err(|cause| {
            error(path, format!("cannot be read: {cause}"), "give files that this user may read")
        })
    };
    let (cert, key) = (read(&files.cert)?, read(&files.key)?);
    let of = fingerprint(&cert, &key);
    let no_certificate = |what: &str| {
        error(&files.cert, what.into(), "give a certificate in PEM: -----BEGIN CERTIFICATE-----")
    };
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&cert)
        .collect::<Result<_, _>>()
        .map_err(|_| no_certificate("is not PEM"))?;
    if chain.is_empty() {
        return Err(no_certificate("holds no certificate"));
    }
    // In words of our own, so that no message shows anything of the key.
    let key = PrivateKeyDer::from_pem_slice(&key).map_err(|_| {
        let hint = "give its key in PEM, without a password: -----BEGIN PRIVATE KEY-----";
        error(&files.key, "holds no private key".into(), hint)
    })?;
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map(|builder| builder.with_no_client_auth())
        .and_then(|builder| builder.with_single_cert(chain, key));
    let mut config = config.map_err(|cause| {
        let what = format!("cannot be used with the key in {}: {cause}", files.key.display());
        error(&files.cert, what, "give a certificate and the key it was made for")
    })?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Loaded { config: Arc::new(config), of })
}
