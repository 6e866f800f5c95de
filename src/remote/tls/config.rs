// SPDX-License-Identifier: MIT OR Apache-2.0
//! Certificates, keys, and what is spoken.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use super::TlsError;

fn provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        cipher_suites: vec![ring::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256],
        ..ring::default_provider()
    })
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let broken = |error| TlsError::Pem {
        file: file.to_owned(),
        error,
    };
    let certificates = CertificateDer::pem_file_iter(file).map_err(broken)?;
    let certificates: Vec<_> = certificates.collect::<Result<_, _>>().map_err(broken)?;
    match certificates.is_empty() {
        true => Err(TlsError::NoCertificate(file.to_owned())),
        false => Ok(certificates),
    }
}

/// A key that only its owner, and perhaps a group, should be able to read.
fn key(file: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    if fs::metadata(file).is_ok_and(|about| about.permissions().mode() & 0o007 != 0) {
        tracing::warn!(
            "{}: everybody can read this key, or change it (chmod o=)",
            file.display()
        );
    }
    PrivateKeyDer::from_pem_file(file).map_err(|error| match error {
        pem::Error::NoItemsFound => TlsError::NoKey(file.to_owned()),
        error => TlsError::Pem {
            file: file.to_owned(),
            error,
        },
    })
}

/// Why a certificate does not go with its key.
fn unfit(certificate: &Path, key: &Path, error: rustls::Error) -> TlsError {
    match error {
        rustls::Error::InconsistentKeys(_) => TlsError::NotItsKey {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
        },
        error => TlsError::Unfit {
            file: certificate.to_owned(),
            error,
        },
    }
}

fn roots(file: &Path) -> Result<Arc<RootCertStore>, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(file)? {
        roots.add(certificate).map_err(|error| TlsError::Unfit {
            file: file.to_owned(),
            error,
        })?;
    }
    Ok(Arc::new(roots))
}

/// Who a server is, and whom it lets in.
#[derive(Clone, Debug)]
pub struct ServerTls(Arc<ServerConfig>);

impl ServerTls {
    /// From files (PEM): the server's certificate, and behind it those that lead to one that clients know; its
    /// key; and, if clients have to have a certificate, those that have to have signed it.
    ///
    /// # Errors
    ///
    /// If a file cannot be read or is not what it should be, or the key is not the certificate's.
    pub fn new(certificate: &Path, private: &Path, client_ca: Option<&Path>) -> Result<Self, TlsError> {
        let provider = provider();
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider));
        let builder = builder.with_protocol_versions(&[&TLS13])?;
        let builder = match client_ca {
            None => builder.with_no_client_auth(),
            Some(file) => {
                let verifier = WebPkiClientVerifier::builder_with_provider(roots(file)?, provider);
                // It has roots, and there are no lists of what was revoked.
                builder.with_client_cert_verifier(verifier.build().map_err(|error| match error {
                    VerifierBuilderError::InvalidCrl(error) => TlsError::Tls(error.into()),
                    _ => TlsError::NoCertificate(file.to_owned()),
                })?)
            }
        };
        let config = builder.with_single_cert(certificates(certificate)?, key(private)?);
        let mut config = config.map_err(|error| unfit(certificate, private, error))?;
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.enable_secret_extraction = true;
        Ok(Self(Arc::new(config)))
    }

    pub(super) fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.0)
    }
}

/// Whom a client believes, and who it is.
#[derive(Clone, Debug)]
pub struct ClientTls {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl ClientTls {
    /// From files (PEM): those who may have signed the server's certificate, which has to be for `name`, a name or a
    /// number; and, if the server wants one, a certificate of the client's own and its key.
    ///
    /// # Errors
    ///
    /// As [`ServerTls::new`]; [`TlsError::Name`].
    pub fn new(ca: &Path, name: &str, own: Option<(&Path, &Path)>) -> Result<Self, TlsError> {
        let shown = name;
        let name = ServerName::try_from(name.to_owned()).map_err(|_| TlsError::Name(shown.to_owned()))?;
        let builder = ClientConfig::builder_with_provider(provider()).with_protocol_versions(&[&TLS13])?;
        let builder = builder.with_root_certificates(roots(ca)?);
        let mut config = match own {
            None => builder.with_no_client_auth(),
            Some((certificate, private)) => {
                let config = builder.with_client_auth_cert(certificates(certificate)?, key(private)?);
                config.map_err(|error| unfit(certificate, private, error))?
            }
        };
        config.resumption = Resumption::disabled();
        config.enable_secret_extraction = true;
        Ok(Self {
            config: Arc::new(config),
            name,
        })
    }

    pub(super) fn config(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.config)
    }

    pub(super) fn name(&self) -> ServerName<'static> {
        self.name.clone()
    }
}
