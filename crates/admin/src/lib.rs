//! Operator API: registration, invocations, subscriptions, metrics
