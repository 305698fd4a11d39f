//! TLS to handlers: the web's certificate authorities, and the version by ALPN.
//!
//! Owns: the clients' settings, made once. A build without the feature `tls` says so at the first https:// address.

use super::connect::{Offer, QuickAck, Socket};
use std::io;

#[cfg(feature = "tls")]
pub(super) use with_tls::Tls;
#[cfg(not(feature = "tls"))]
pub(super) use without_tls::Tls;

#[cfg(feature = "tls")]
mod with_tls {
    use super::{Offer, QuickAck, Socket, io};
    use std::sync::Arc;
    use surefoot_model::catalog::HttpVersion;
    use tokio_rustls::TlsConnector;
    use tokio_rustls::rustls::pki_types::ServerName;
    use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto};

    const HTTP2: &[u8] = b"h2";
    const HTTP11: &[u8] = b"http/1.1";

    /// One client for each offer, with roots and resumable sessions in common.
    pub(in super::super) struct Tls {
        http2: TlsConnector,
        http11: TlsConnector,
        both: TlsConnector,
    }

    impl Tls {
        pub(in super::super) fn trusting_the_web() -> Self {
            Self::trusting(RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() })
        }

        pub(in super::super) fn trusting(roots: RootCertStore) -> Self {
            let config = ClientConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()
                .expect("ring has suites for the default versions")
                .with_root_certificates(roots)
                .with_no_client_auth();
            let offering = |versions: &[&[u8]]| {
                let mut config = config.clone();
                config.alpn_protocols = versions.iter().map(|version| version.to_vec()).collect();
                TlsConnector::from(Arc::new(config))
            };
            Self { http2: offering(&[HTTP2]), http11: offering(&[HTTP11]), both: offering(&[HTTP2, HTTP11]) }
        }

        pub(in super::super) async fn connect(&self, tcp: QuickAck, host: &str, offer: Offer) -> io::Result<Socket> {
            let client = match offer {
                Offer::Http2 => &self.http2,
                Offer::Http11 => &self.http11,
                Offer::Both => &self.both,
            };
            let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
            let stream = client.connect(name, tcp).await?;
            let chosen = stream.get_ref().1.alpn_protocol().and_then(|version| match version {
                HTTP2 => Some(HttpVersion::Http2),
                HTTP11 => Some(HttpVersion::Http11),
                _ => None,
            });
            Ok(Socket { io: Box::pin(stream), chosen })
        }
    }
}

#[cfg(not(feature = "tls"))]
mod without_tls {
    use super::{Offer, QuickAck, Socket, io};

    pub(in super::super) struct Tls;

    impl Tls {
        pub(in super::super) fn trusting_the_web() -> Self {
            Self
        }

        pub(in super::super) async fn connect(&self, _: QuickAck, _: &str, _: Offer) -> io::Result<Socket> {
            Err(io::Error::other("this build has no TLS: use an http:// address, or a build with the feature `tls`"))
        }
    }
}
