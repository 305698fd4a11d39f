//! What a request must satisfy before it becomes a submission.
//!
//! Owns: who may call what, idempotency keys, content types and bodies. Source: HTTP reference 1.3 and 1.7, protocol reference
//! 2.7. Does not own: the order in which HTTP asks (`service`).

use crate::Error;
use std::sync::Arc;
use surefoot_model::TargetKind;
use surefoot_model::catalog::{Catalog, Handler, InputRule, OutputRule, Service};

/// The service of that name.
pub(crate) fn service<'a>(catalog: &'a Catalog, name: &str) -> Result<&'a Arc<Service>, Error> {
    catalog.services.get(name).ok_or_else(|| Error::ServiceNotFound(name.to_owned()))
}

/// The handler of that name, if clients may call it.
pub(crate) fn handler<'a>(service: &'a Service, name: &str) -> Result<&'a Handler, Error> {
    let of_service = || service.name.to_string();
    let handler =
        service.handlers.get(name).ok_or_else(|| Error::HandlerNotFound { service: of_service(), handler: name.to_owned() })?;
    if !service.is_public(handler) {
        return Err(Error::Private { service: of_service(), handler: name.to_owned() });
    }
    Ok(handler)
}

/// Whether an idempotency key may stand beside this handler, and is one.
pub(crate) fn idempotency_key(handler: &Handler, key: Option<&[u8]>) -> Result<(), Error> {
    match key {
        Some(key) if !key.iter().all(|b| (0x20..0x7f).contains(b)) => Err(Error::IdempotencyKeyNotAscii),
        Some(_) if handler.target == TargetKind::WorkflowRun => Err(Error::IdempotencyKeyOnWorkflow),
        _ => Ok(()),
    }
}

/// Whether a handler takes a body of this content type.
pub(crate) fn input(rule: &InputRule, content_type: Option<&str>, body_is_empty: bool) -> Result<(), Error> {
    let refuse = |message: String| Err(Error::Input(message));
    let given = content_type.unwrap_or_default();
    if !body_is_empty && given.trim().is_empty() {
        return refuse("a body needs a content-type header".to_owned());
    }
    let is_nothing = body_is_empty && content_type.is_none();
    if !rule.declared || (is_nothing && !rule.required) {
        return Ok(());
    }
    let Some(pattern) = &rule.content_type else {
        return refuse(if rule.required {
            "the handler needs an input but names no content type for it".to_owned()
        } else {
            "the handler takes no input: send neither body nor content-type".to_owned()
        });
    };
    if !matches(pattern, given) {
        return refuse(format!("content-type '{given}' does not match '{pattern}'"));
    }
    if body_is_empty && rule.json_schema.is_some() {
        return refuse(format!("the handler needs a body of type '{pattern}'"));
    }
    Ok(())
}

/// Parameters do not count; type and subtype may be `*` in the pattern.
fn matches(pattern: &str, content_type: &str) -> bool {
    let parts = |text| -> Option<(&str, &str)> {
        let essence: &str = str::split(text, ';').next()?;
        essence.trim().split_once('/')
    };
    let fits = |pattern: &str, part: &str| pattern == "*" || pattern.eq_ignore_ascii_case(part);
    match (parts(pattern), parts(content_type)) {
        (Some((ty, subtype)), Some((given_ty, given_subtype))) => fits(ty, given_ty) && fits(subtype, given_subtype),
        _ => false,
    }
}

/// The content type of a handler's output.
pub(crate) fn output_type(rule: &OutputRule, body_is_empty: bool) -> Option<&str> {
    if !rule.declared {
        return (!body_is_empty).then_some("application/json");
    }
    rule.content_type.as_deref().filter(|_| !body_is_empty || rule.set_content_type_if_empty)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn declared(required: bool, content_type: Option<&str>, schema: bool) -> InputRule {
        InputRule {
            declared: true,
            required,
            content_type: content_type.map(str::to_owned),
            json_schema: schema.then(|| "{}".to_owned()),
        }
    }

    fn passes(rule: &InputRule, content_type: Option<&str>, body: &str) -> bool {
        input(rule, content_type, body.is_empty()).is_ok()
    }

    #[test]
    fn declared_types_rule_what_passes() {
        for (pattern, good, bad) in [
            ("application/json", "application/json", "text/plain"),
            ("application/json", "Application/JSON; charset=utf-8", "application/x-www-form-urlencoded"),
            ("application/octet-stream", "application/octet-stream", "application/json"),
            ("text/*", "text/x", "application/json"),
            ("*/*", "a/b", "nonsense"),
        ] {
            let rule = declared(false, Some(pattern), false);
            assert!(passes(&rule, None, ""), "{pattern}: nothing at all");
            assert!(passes(&rule, Some(good), "x"), "{pattern}: {good}");
            assert!(passes(&rule, Some(good), ""), "{pattern}: a type without body");
            assert!(!passes(&rule, Some(bad), "x"), "{pattern}: {bad}");
            assert!(!passes(&rule, None, "x"), "{pattern}: a body without type");
            assert!(!passes(&rule, Some(""), "x"), "{pattern}: a body with an empty type");
        }
    }

    #[test]
    fn nothing_declared_lets_any_type_through() {
        let rule = InputRule::default();
        assert!(passes(&rule, None, ""));
        assert!(passes(&rule, Some("a/b"), "x"));
        assert!(!passes(&rule, None, "x"));
    }

    #[test]
    fn required_and_empty_inputs() {
        let schema = declared(true, Some("application/json"), true);
        assert!(!passes(&schema, None, ""));
        assert!(!passes(&schema, Some("application/json"), ""));
        assert!(passes(&schema, Some("application/json"), "1"));
        let none = declared(false, None, false);
        assert!(passes(&none, None, ""));
        assert!(!passes(&none, Some("application/json"), ""));
        assert!(!passes(&none, Some("application/json"), "1"));
        assert!(!passes(&declared(true, None, false), None, ""));
    }

    #[test]
    fn output_types() {
        let rule = |content_type: Option<&str>, set_content_type_if_empty| OutputRule {
            declared: true,
            content_type: content_type.map(str::to_owned),
            set_content_type_if_empty,
            json_schema: None,
        };
        assert_eq!(output_type(&OutputRule::default(), false), Some("application/json"));
        assert_eq!(output_type(&OutputRule::default(), true), None);
        assert_eq!(output_type(&rule(None, false), false), None);
        assert_eq!(output_type(&rule(Some("a/b"), false), false), Some("a/b"));
        assert_eq!(output_type(&rule(Some("a/b"), false), true), None);
        assert_eq!(output_type(&rule(Some("a/b"), true), true), Some("a/b"));
    }

    #[test]
    fn idempotency_keys_are_visible_ascii_and_not_for_runs() {
        let of = |target| Handler::new("h", target);
        let service = of(TargetKind::Service);
        assert_eq!(idempotency_key(&service, Some(b"")), Ok(()));
        assert_eq!(idempotency_key(&service, Some("é".as_bytes())), Err(Error::IdempotencyKeyNotAscii));
        assert_eq!(idempotency_key(&of(TargetKind::WorkflowRun), None), Ok(()));
        assert_eq!(idempotency_key(&of(TargetKind::WorkflowRun), Some(b"k")), Err(Error::IdempotencyKeyOnWorkflow));
        assert_eq!(idempotency_key(&of(TargetKind::WorkflowShared), Some(b"k")), Ok(()));
    }
}
