// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is said of TLS on the command line.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use extfuse::remote::Address;
use extfuse::remote::tls::{ClientTls, ServerTls, TlsError};

/// Of `extfuse serve`.
#[derive(Debug, Args)]
pub struct ServeTls {
    /// Speak TLS 1.3 only, as who this certificate says: PEM; behind it those that lead to one that clients know
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The certificate's private key: PEM, for nobody else to read
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Serve only clients whose certificate one of these has signed: PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_client_ca: Option<PathBuf>,
}

impl ServeTls {
    /// Whether nobody can see what goes over the line.
    pub fn is_given(&self) -> bool {
        self.tls_cert.is_some()
    }

    /// Whether only those are let in who have a certificate.
    pub fn wants_certificates(&self) -> bool {
        self.tls_client_ca.is_some()
    }

    /// What the files have; none if nothing was said.
    pub fn load(&self) -> Result<Option<ServerTls>, TlsError> {
        let (Some(certificate), Some(key)) = (&self.tls_cert, &self.tls_key) else {
            return Ok(None);
        };
        ServerTls::new(certificate, key, self.tls_client_ca.as_deref()).map(Some)
    }
}

/// Of `extfuse mount`.
#[derive(Clone, Debug, Args)]
pub struct LineTls {
    /// Speak TLS 1.3, and with nobody whose certificate is not for HOST and signed by --tls-ca. It goes beyond this
    /// machine without --insecure
    #[arg(long, requires = "tls_ca")]
    tls: bool,
    /// Who may have signed the server's certificate, or that certificate itself: PEM. Nobody else is believed; those
    /// whom the system believes are in /etc/ssl/certs/ca-certificates.crt on Debian
    #[arg(long, value_name = "FILE", requires = "tls")]
    tls_ca: Option<PathBuf>,
    /// Whom the server's certificate has to be for, if not HOST
    #[arg(long, value_name = "NAME", requires = "tls")]
    tls_name: Option<String>,
    /// The certificate that the server wants of clients: PEM
    #[arg(long, value_name = "FILE", requires_all = ["tls", "tls_key"])]
    tls_cert: Option<PathBuf>,
    /// Its private key: PEM, for nobody else to read
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
}

impl LineTls {
    /// Whether nobody can see what goes over the line.
    pub fn is_given(&self) -> bool {
        self.tls
    }

    /// Whom the certificate has to be for.
    fn name<'a>(&'a self, address: &'a Address) -> anyhow::Result<&'a str> {
        let name = self.tls_name.as_deref().or_else(|| address.host());
        name.context("a socket has no host's name: say with --tls-name whom the certificate is for")
    }

    /// That what was said goes with this server.
    pub fn check(&self, address: &Address) -> anyhow::Result<()> {
        match self.tls {
            true => self.name(address).map(drop),
            false => Ok(()),
        }
    }

    /// What the files have; none if nothing was said.
    pub fn load(&self, address: &Address) -> anyhow::Result<Option<ClientTls>> {
        let Some(ca) = self.tls_ca.as_deref().filter(|_| self.tls) else {
            return Ok(None);
        };
        let own = self.tls_cert.as_deref().zip(self.tls_key.as_deref());
        Ok(Some(ClientTls::new(ca, self.name(address)?, own)?))
    }
}
