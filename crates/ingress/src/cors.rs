//! Browsers: what a page that may ask is told, so that its browser lets it.
//!
//! Source: HTTP reference 1.1. Does not own: which pages may ask (`listener`), or authentication; the ingress has none.

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
};
use http::{HeaderMap, HeaderName, HeaderValue};
use surefoot_listener::Visitors;

const MIRRORED: [(HeaderName, HeaderName); 3] = [
    (ORIGIN, ACCESS_CONTROL_ALLOW_ORIGIN),
    (ACCESS_CONTROL_REQUEST_METHOD, ACCESS_CONTROL_ALLOW_METHODS),
    (ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_ALLOW_HEADERS),
];

/// What a response says to a browser.
pub(crate) struct Cors {
    mirrored: [Option<HeaderValue>; 3],
    allows_credentials: bool,
}

impl Cors {
    /// Of a request that may be looked at.
    pub(crate) fn of(request: &HeaderMap, visitors: &Visitors) -> Self {
        let origin = request.get(ORIGIN).and_then(|origin| origin.to_str().ok());
        let allows_credentials = origin.is_some_and(|origin| visitors.allows_credentials(origin));
        let mirrored = MIRRORED.map(|(asked, _)| request.get(asked).filter(|_| origin.is_some()).cloned());
        Self { mirrored, allows_credentials }
    }

    pub(crate) fn apply(self, response: &mut HeaderMap) {
        let vary = HeaderValue::from_static("origin, access-control-request-method, access-control-request-headers");
        response.insert(VARY, vary);
        if self.allows_credentials {
            response.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        }
        for ((_, allowed), value) in MIRRORED.into_iter().zip(self.mirrored) {
            if let Some(value) = value {
                response.insert(allowed, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_browser_asks_for_is_mirrored() {
        let mut request = HeaderMap::new();
        request.insert(ORIGIN, HeaderValue::from_static("http://x.y"));
        request.insert(ACCESS_CONTROL_REQUEST_METHOD, HeaderValue::from_static("PUT"));
        let told = |visitors: &Visitors| {
            let mut response = HeaderMap::new();
            Cors::of(&request, visitors).apply(&mut response);
            response
        };
        let response = told(&Visitors::new(true, &[], &["http://x.y".to_owned()]));
        assert_eq!(response["access-control-allow-origin"], "http://x.y");
        assert_eq!(response["access-control-allow-methods"], "PUT");
        assert_eq!(response["access-control-allow-credentials"], "true");
        assert_eq!(response["vary"], "origin, access-control-request-method, access-control-request-headers");
        assert!(!response.contains_key("access-control-allow-headers"));
        let anybody = told(&Visitors::new(true, &[], &["*".to_owned()]));
        assert!(!anybody.contains_key("access-control-allow-credentials"), "only to those allowed by name");
    }
}
