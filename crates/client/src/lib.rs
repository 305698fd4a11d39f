//! Typed client of the ingress and admin APIs
