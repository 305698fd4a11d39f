//! Which web pages may ask: a browser on the operator's machine reaches what is bound to loopback, for any page that it shows.
//!
//! Owns: the check of the name in `host`, against pages that have their own name resolve to this machine, and the check of the page's
//! origin. A client that is no browser sends no origin, and may name the server as it likes. Does not own: authentication.

use http::header::{HOST, HeaderName, ORIGIN};
use http::{HeaderMap, Uri};
use std::net::IpAddr;

const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
/// Names that nobody can have resolve to an address of another's choice: these are reserved.
const RESERVED: [&str; 2] = [".localhost", ".internal"];

/// Who may ask a port from a browser.
#[derive(Clone, Debug, Default)]
pub struct Visitors {
    /// The port is reached from this machine alone, by names that are known.
    is_loopback: bool,
    /// Names that the port may be called by, besides those of this machine.
    hosts: Vec<String>,
    /// Origins of pages that may ask; `*` is every one.
    origins: Vec<String>,
}

/// Why a request is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("'{0}' is no name of this server; a proxy's name has to be in `allowed-hosts`")]
    Host(String),
    #[error("pages of '{0}' may not ask; their origin has to be in `ingress.allowed-origins`")]
    Origin(String),
}

impl Visitors {
    /// `is_loopback`: the port is bound to this machine. `hosts` and `origins` are allowed besides what is by itself.
    pub fn new(is_loopback: bool, hosts: &[String], origins: &[String]) -> Self {
        let lowered = |texts: &[String]| texts.iter().map(|text| text.trim_end_matches('/').to_ascii_lowercase()).collect();
        Self { is_loopback, hosts: lowered(hosts), origins: lowered(origins) }
    }

    /// Whether a request may be looked at.
    pub fn check(&self, uri: &Uri, headers: &HeaderMap) -> Result<(), Refusal> {
        let host = host(uri, headers);
        if let Some(host) = host
            && self.is_loopback
            && !self.is_own(host)
        {
            return Err(Refusal::Host(host.to_owned()));
        }
        match text(headers, &ORIGIN) {
            Some(origin) if !self.allows(origin, host) => Err(Refusal::Origin(origin.to_owned())),
            // Pictures and links carry no origin, but modern browsers say that they stand on a foreign page.
            None if text(headers, &FETCH_SITE) == Some("cross-site") && !self.allows("null", host) => {
                Err(Refusal::Origin("another site".to_owned()))
            }
            _ => Ok(()),
        }
    }

    /// Whether the browser may send its user's credentials along: only where the origin is allowed by name.
    pub fn allows_credentials(&self, origin: &str) -> bool {
        self.origins.iter().any(|allowed| allowed.eq_ignore_ascii_case(origin))
    }

    /// Pages of the port itself, of this machine where the port is this machine's alone, and of whom the operator allows.
    fn allows(&self, origin: &str, host: Option<&str>) -> bool {
        let site = origin.split_once("://").map(|(_, site)| site);
        let is_same = site.is_some() && site == host;
        let is_near = self.is_loopback && site.is_some_and(|site| is_loopback_name(name(site)));
        is_same || is_near || self.allows_credentials(origin) || self.origins.iter().any(|allowed| allowed == "*")
    }

    fn is_own(&self, host: &str) -> bool {
        let name = name(host).trim_end_matches('.').to_ascii_lowercase();
        // A name without a dot is of this machine's own network.
        let is_local = !name.contains('.') || RESERVED.iter().any(|reserved| name.ends_with(reserved));
        is_local || is_address(&name) || self.hosts.contains(&name)
    }
}

fn host<'a>(uri: &'a Uri, headers: &'a HeaderMap) -> Option<&'a str> {
    // Over HTTP/2 it stands in the address.
    uri.authority().map(http::uri::Authority::as_str).or_else(|| text(headers, &HOST)).filter(|host| !host.is_empty())
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    // What is not ASCII is no name: it is told apart from all that are.
    headers.get(name).map(|value| value.to_str().unwrap_or("?.?"))
}

/// Without the port.
fn name(host: &str) -> &str {
    match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(rest),
        None => host.split(':').next().unwrap_or(host),
    }
}

fn is_address(name: &str) -> bool {
    name.parse::<IpAddr>().is_ok()
}

fn is_loopback_name(name: &str) -> bool {
    name == "localhost" || name.ends_with(".localhost") || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn asked(visitors: &Visitors, headers: &[(&'static str, &'static str)]) -> Result<(), Refusal> {
        let headers = headers.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
        visitors.check(&Uri::from_static("/"), &headers.collect())
    }

    #[test]
    fn a_port_of_this_machine_is_not_called_by_names_of_others() {
        let visitors = Visitors::new(true, &["flows.example.com".to_owned()], &[]);
        for host in [
            "localhost:8080",
            "127.0.0.1:8080",
            "[::1]:8080",
            "10.1.2.3",
            "surefoot",
            "a.localhost",
            "host.docker.internal:1",
            "Flows.Example.com:443",
        ] {
            assert_eq!(asked(&visitors, &[("host", host)]), Ok(()), "{host}");
        }
        for host in ["rebound.example.com", "localhost.example.com:8080", "127.0.0.1.example.com", "x.local"] {
            assert_eq!(asked(&visitors, &[("host", host)]), Err(Refusal::Host(host.to_owned())));
        }
        assert_eq!(
            visitors.check(&Uri::from_static("http://evil.example.com/"), &HeaderMap::new()),
            Err(Refusal::Host("evil.example.com".to_owned()))
        );
        assert_eq!(asked(&visitors, &[]), Ok(()));
        assert_eq!(asked(&Visitors::new(false, &[], &[]), &[("host", "flows.example.com")]), Ok(()));
    }

    #[test]
    fn pages_of_others_may_not_ask() {
        let visitors = Visitors::new(true, &[], &["https://app.example.com".to_owned()]);
        for origin in ["http://localhost:3000", "http://127.0.0.1:5173", "https://app.example.com", "https://APP.example.com"] {
            assert_eq!(asked(&visitors, &[("host", "localhost:8080"), ("origin", origin)]), Ok(()), "{origin}");
        }
        for origin in ["http://evil.example.com", "null", "https://app.example.com.evil.org", "http://localhost.evil.org"] {
            assert_eq!(
                asked(&visitors, &[("host", "localhost:8080"), ("origin", origin)]),
                Err(Refusal::Origin(origin.to_owned()))
            );
        }
        assert!(asked(&visitors, &[("sec-fetch-site", "cross-site")]).is_err());
        assert!(asked(&visitors, &[("sec-fetch-site", "same-origin")]).is_ok());
        let open = Visitors::new(false, &[], &["*".to_owned()]);
        assert_eq!(asked(&open, &[("origin", "http://anybody.example.com")]), Ok(()));
        assert_eq!(asked(&open, &[("sec-fetch-site", "cross-site")]), Ok(()));
        assert!(!open.allows_credentials("http://anybody.example.com") && visitors.allows_credentials("https://app.example.com"));
    }

    #[test]
    fn a_port_that_others_reach_takes_pages_of_itself() {
        let visitors = Visitors::new(false, &[], &[]);
        assert_eq!(asked(&visitors, &[("host", "flows.example.com"), ("origin", "https://flows.example.com")]), Ok(()));
        assert!(asked(&visitors, &[("host", "flows.example.com"), ("origin", "http://localhost:3000")]).is_err());
    }
}
