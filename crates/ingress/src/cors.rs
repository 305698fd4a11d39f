//! Browsers: every origin may do everything that a client without a browser may.
//!
//! Source: HTTP reference 1.1. Does not own: authentication; the ingress has none.

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
};
use http::{HeaderMap, HeaderName, HeaderValue};

const MIRRORED: [(HeaderName, HeaderName); 3] = [
    (ORIGIN, ACCESS_CONTROL_ALLOW_ORIGIN),
    (ACCESS_CONTROL_REQUEST_METHOD, ACCESS_CONTROL_ALLOW_METHODS),
    (ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_ALLOW_HEADERS),
];

/// What a response says to a browser.
pub(crate) struct Cors([Option<HeaderValue>; 3]);

impl Cors {
    pub(crate) fn of(request: &HeaderMap) -> Self {
        Self(MIRRORED.map(|(asked, _)| request.get(asked).cloned()))
    }

    pub(crate) fn apply(self, response: &mut HeaderMap) {
        let vary = HeaderValue::from_static("origin, access-control-request-method, access-control-request-headers");
        response.insert(VARY, vary);
        response.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        for ((_, allowed), value) in MIRRORED.into_iter().zip(self.0) {
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
        let mut response = HeaderMap::new();
        Cors::of(&request).apply(&mut response);
        assert_eq!(response["access-control-allow-origin"], "http://x.y");
        assert_eq!(response["access-control-allow-methods"], "PUT");
        assert_eq!(response["access-control-allow-credentials"], "true");
        assert_eq!(response["vary"], "origin, access-control-request-method, access-control-request-headers");
        assert!(!response.contains_key("access-control-allow-headers"));
    }
}
