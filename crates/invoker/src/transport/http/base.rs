//! The address of an endpoint, taken apart.
//!
//! Owns: what connections are pooled by, and the requests' own addresses. Does not own: which addresses may be registered (`admin`).

use super::TransportError;
use ::http::uri::{Authority, PathAndQuery, Scheme};
use ::http::{HeaderMap, Method, Request, Uri};
use std::fmt;

/// Where to connect to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Address {
    pub(super) tls: bool,
    /// A name or an IP address, the latter without brackets.
    pub(super) host: String,
    pub(super) port: u16,
}

/// What the addresses of an endpoint's requests have in common.
#[derive(Clone, Debug)]
pub(super) struct Base {
    pub(super) address: Address,
    scheme: Scheme,
    authority: Authority,
    /// Path without a slash at its end; empty as a rule.
    prefix: String,
    /// With its question mark, or empty.
    query: String,
}

impl Base {
    pub(super) fn parse(uri: &str) -> Result<Self, TransportError> {
        let base = Self::parse_or_none(uri).ok_or_else(|| TransportError::Address(uri.to_owned()))?;
        if base.address.port == 0 {
            return Err(TransportError::Address(format!("{uri} (its port is none of 1 to 65535)")));
        }
        Ok(base)
    }

    /// With port 0 where there is one that cannot be.
    fn parse_or_none(uri: &str) -> Option<Self> {
        let base: Uri = uri.parse().ok()?;
        let scheme = base.scheme()?.clone();
        let tls = match scheme.as_str() {
            "http" => false,
            "https" => true,
            _ => return None,
        };
        let authority = base.authority()?;
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        let port = authority.port_u16();
        let authority = match authority.as_str().rsplit_once('@') {
            // Credentials in an address are not for requests.
            Some((_, host_and_port)) => host_and_port.parse().ok()?,
            None => authority.clone(),
        };
        let has_port = authority.as_str().rsplit_once(':').is_some_and(|(_, port)| !port.is_empty() && !port.ends_with(']'));
        let port = match port {
            Some(port) => port,
            None if has_port => 0,
            None if tls => 443,
            None => 80,
        };
        let prefix = base.path().trim_end_matches('/').to_owned();
        let query = base.query().map(|query| format!("?{query}")).unwrap_or_default();
        Some(Self { address: Address { tls, host, port }, scheme, authority, prefix, query })
    }

    /// The address of a request to `path`, which begins with a slash, below the endpoint's own path.
    pub(super) fn uri(&self, path: &str) -> Result<Uri, TransportError> {
        let refuse = |error: ::http::Error| TransportError::Address(format!("{}{} ({error})", self.address, path));
        let path = PathAndQuery::try_from([&self.prefix, path, &self.query].concat()).map_err(|e| refuse(e.into()))?;
        let uri = Uri::builder().scheme(self.scheme.clone()).authority(self.authority.clone()).path_and_query(path);
        uri.build().map_err(refuse)
    }
}

pub(super) fn request(method: Method, uri: Uri, headers: HeaderMap) -> Request<()> {
    let mut head = Request::new(());
    *head.method_mut() = method;
    *head.uri_mut() = uri;
    *head.headers_mut() = headers;
    head
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        let (open, close) = if self.host.contains(':') { ("[", "]") } else { ("", "") };
        write!(f, "{scheme}://{open}{}{close}:{}", self.host, self.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_go_below_the_endpoints_own_path() {
        for (uri, address, request) in [
            ("http://h:1/", "http://h:1", "http://h:1/invoke/S/h"),
            ("http://h", "http://h:80", "http://h/invoke/S/h"),
            ("https://h/a/b/", "https://h:443", "https://h/a/b/invoke/S/h"),
            ("http://h:1/p?q=1", "http://h:1", "http://h:1/p/invoke/S/h?q=1"),
            ("http://[::1]:9080/", "http://[::1]:9080", "http://[::1]:9080/invoke/S/h"),
            ("http://me:secret@h:1/", "http://h:1", "http://h:1/invoke/S/h"),
            ("http://me:secret@h/", "http://h:80", "http://h/invoke/S/h"),
        ] {
            let base = Base::parse(uri).unwrap();
            assert_eq!(base.address.to_string(), address);
            assert_eq!(base.uri("/invoke/S/h").unwrap().to_string(), request);
        }
        // A port that is out of range is not the default one.
        for uri in
            ["", "h:1", "/x", "ftp://h/", "http://", "http://h:99999/", "http://h:0/", "http://[::1]:70000/", "https://me:1@h:x/"]
        {
            assert!(matches!(Base::parse(uri), Err(TransportError::Address(_))), "{uri}");
        }
    }
}
