//! Paths of the ingress.
//!
//! Owns: which path means what, before and after the service's type is known. Does not own: methods, or the catalog.

use crate::Error;
use percent_encoding::percent_decode_str;
use std::borrow::Cow;

/// Slashes that a path may hold.
const SLASHES: std::ops::RangeInclusive<usize> = 2..=7;
const SEND: &str = "send";

/// What a path means.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Route<'a> {
    Health,
    Invoke { spelling: Spelling, service: &'a str, rest: Vec<&'a str> },
}

/// How a path says whether it is a call or a send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spelling {
    /// `/{service}/…`, a send with `/send` at its end.
    Plain,
    /// `/restate/call/{service}/…`
    Call,
    /// `/restate/send/{service}/…`
    Send,
}

/// A path whose service is known.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Point<'a> {
    /// Decoded; empty for plain services.
    pub(crate) key: Cow<'a, str>,
    pub(crate) handler: &'a str,
    pub(crate) is_send: bool,
}

/// Reads a path that has no slash at its end.
pub(crate) fn parse(path: &str) -> Result<Route<'_>, Error> {
    let mut segments = path.split('/').skip(1);
    if !SLASHES.contains(&path.bytes().filter(|b| *b == b'/').count()) {
        return Err(Error::PathLength);
    }
    let (first, second) = (segments.next().unwrap_or_default(), segments.next().unwrap_or_default());
    if first == "openapi" {
        return Err(Error::RouteNotFound);
    }
    if first != "restate" {
        return Ok(Route::Invoke {
            spelling: Spelling::Plain,
            service: first,
            rest: std::iter::once(second).chain(segments).collect(),
        });
    }
    match second {
        "health" if segments.next().is_none() => Ok(Route::Health),
        "call" | "send" => {
            let spelling = if second == "call" { Spelling::Call } else { Spelling::Send };
            let service = segments.next().ok_or(Error::PathShape)?;
            Ok(Route::Invoke { spelling, service, rest: segments.collect() })
        }
        "scope" => Err(Error::Scoped),
        "a" | "awakeables" => Err(Error::NotSupportedYet("awakeables")),
        "attach" | "output" | "lookup" | "invocation" | "workflow" => Err(Error::NotSupportedYet("attach, output and lookup")),
        _ => Err(Error::RouteNotFound),
    }
}

/// Reads what follows the service, now that it is known whether it has keys.
pub(crate) fn point<'a>(spelling: Spelling, is_keyed: bool, rest: &[&'a str]) -> Result<Point<'a>, Error> {
    let (rest, is_send) = match (spelling, rest, is_keyed) {
        (Spelling::Plain, [handler, SEND], false) => (&[*handler][..], true),
        (Spelling::Plain, [key, handler, SEND], true) => (&[*key, *handler][..], true),
        _ => (rest, spelling == Spelling::Send),
    };
    match (rest, is_keyed) {
        ([handler], false) => Ok(Point { key: Cow::Borrowed(""), handler, is_send }),
        ([key, handler], true) => {
            let key = percent_decode_str(key).decode_utf8().map_err(|_| Error::KeyNotUtf8)?;
            Ok(Point { key, handler, is_send })
        }
        _ => Err(Error::PathShape),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parses a path of a service that is keyed or not.
    fn read(path: &str, is_keyed: bool) -> Result<(String, String, String, bool), Error> {
        match parse(path)? {
            Route::Health => panic!("{path} is the health route"),
            Route::Invoke { spelling, service, rest } => point(spelling, is_keyed, &rest)
                .map(|p| (service.to_owned(), p.key.into_owned(), p.handler.to_owned(), p.is_send)),
        }
    }

    #[test]
    fn both_spellings_reach_handlers() {
        let is = |service: &str, key: &str, handler: &str, is_send| Ok((service.into(), key.into(), handler.into(), is_send));
        assert_eq!(read("/Svc/echo", false), is("Svc", "", "echo", false));
        assert_eq!(read("/Svc/echo/send", false), is("Svc", "", "echo", true));
        assert_eq!(read("/Obj/k/get", true), is("Obj", "k", "get", false));
        assert_eq!(read("/Obj/k/get/send", true), is("Obj", "k", "get", true));
        assert_eq!(read("/restate/call/Svc/echo", false), is("Svc", "", "echo", false));
        assert_eq!(read("/restate/send/Svc/echo", false), is("Svc", "", "echo", true));
        assert_eq!(read("/restate/call/Obj/k/get", true), is("Obj", "k", "get", false));
        assert_eq!(read("/restate/send/Obj/k/get", true), is("Obj", "k", "get", true));
    }

    #[test]
    fn a_handler_or_a_key_may_be_called_send() {
        assert_eq!(read("/Svc/send", false).unwrap().2, "send");
        assert_eq!(read("/Obj/k/send", true), Ok(("Obj".into(), "k".into(), "send".into(), false)));
        assert_eq!(read("/Obj/send/get", true), Ok(("Obj".into(), "send".into(), "get".into(), false)));
        assert_eq!(read("/restate/call/Obj/get/send", true), Ok(("Obj".into(), "get".into(), "send".into(), false)));
    }

    #[test]
    fn keys_are_decoded_and_names_are_not() {
        assert_eq!(read("/Obj/a%2Fb%20c+%C3%A9/get", true).unwrap().1, "a/b c+é");
        assert_eq!(read("/Obj//get", true).unwrap().1, "");
        assert_eq!(read("/Sv%63/ec%68o", false).unwrap().2, "ec%68o");
        assert_eq!(read("/Obj/%FF/get", true), Err(Error::KeyNotUtf8));
    }

    #[test]
    fn paths_that_do_not_fit_are_refused() {
        for path in ["", "/", "/Svc", "/restate", "/openapi", "/health", "/a/b/c/d/e/f/g/h"] {
            assert_eq!(parse(path), Err(Error::PathLength), "{path}");
        }
        for (path, is_keyed) in [
            ("/Svc/k/echo", false),
            ("/Obj/get", true),
            ("/Obj/k/get/x", true),
            ("/restate/call/Svc/echo/send", false),
            ("/restate/call/Svc", false),
        ] {
            assert_eq!(read(path, is_keyed), Err(Error::PathShape), "{path}");
        }
        assert_eq!(parse("/restate/call"), Err(Error::PathShape));
    }

    #[test]
    fn reserved_paths() {
        assert_eq!(parse("/restate/health"), Ok(Route::Health));
        for path in ["/openapi/Svc", "/restate/nope/x", "/restate/health/x"] {
            assert_eq!(parse(path), Err(Error::RouteNotFound), "{path}");
        }
        assert_eq!(parse("/restate/scope/s/call/Svc/echo"), Err(Error::Scoped));
        for path in [
            "/restate/a/sign_1x/resolve",
            "/restate/awakeables/x/reject",
            "/restate/attach/inv_1",
            "/restate/workflow/W/k/output",
        ] {
            assert!(matches!(parse(path), Err(Error::NotSupportedYet(_))), "{path}");
        }
    }
}
