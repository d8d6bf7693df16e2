//! TLS settings of a connection: roots, client certificates, or no verification at all.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use super::{HostOptions, HttpError};

/// Settings for hosts that are never asked over TLS. Reading the system's roots takes milliseconds that a plain HTTP build
/// need not spend.
pub(super) fn unused() -> Result<ClientConfig, HttpError> {
    Ok(builder()?.with_root_certificates(RootCertStore::empty()).with_no_client_auth())
}

/// Settings from the system's roots, to which `root_files` belong, extra CA files and the host's own options.
pub(super) fn config(options: &HostOptions, root_files: &[PathBuf]) -> Result<ClientConfig, HttpError> {
    let mut roots = RootCertStore::empty();
    let more = root_files.iter().map(|path| rustls_native_certs::load_certs_from_paths(Some(path), None));
    for system in std::iter::once(rustls_native_certs::load_native_certs()).chain(more) {
        for error in &system.errors {
            tracing::debug!(%error, "part of the system's root certificates is unusable");
        }
        roots.add_parsable_certificates(system.certs);
    }
    for path in &options.ca_files {
        for certificate in certificates(path)? {
            roots.add(certificate).map_err(|error| unusable(path, error))?;
        }
    }
    let builder = if options.skip_tls_verify {
        let verifier = Arc::new(AnyCertificate(provider()));
        builder()?.dangerous().with_custom_certificate_verifier(verifier)
    } else {
        builder()?.with_root_certificates(roots)
    };
    let Some((chain_path, key_path)) = &options.client_certificate else {
        return Ok(builder.with_no_client_auth());
    };
    let chain = certificates(chain_path)?;
    let key = PrivateKeyDer::from_pem_file(key_path).map_err(|error| unusable(key_path, error))?;
    builder.with_client_auth_cert(chain, key).map_err(|error| unusable(chain_path, error))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn builder() -> Result<rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>, HttpError> {
    ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| HttpError::Setup { source: error.into() })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, HttpError> {
    let all: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<_, _>>)
        .map_err(|error| unusable(path, error))?;
    if all.is_empty() {
        return Err(HttpError::CertificateFile { path: path.to_owned(), source: "it holds no PEM certificate".into() });
    }
    Ok(all)
}

fn unusable(path: &Path, error: impl std::error::Error + Send + Sync + 'static) -> HttpError {
    HttpError::CertificateFile { path: path.to_owned(), source: error.into() }
}

/// Accepts every certificate, but still checks that the server holds its key.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
