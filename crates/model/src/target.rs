//! What an invocation invokes.

use crate::{ObjectKey, Text};
use minicbor::{Decode, Encode};
use std::fmt;

/// A service's type and a handler's type, as far as they decide how an invocation runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode)]
#[cbor(index_only)]
pub enum TargetKind {
    #[n(0)]
    Service,
    /// One at a time per key, in order of arrival; may write state.
    #[n(1)]
    ObjectExclusive,
    /// Any number at a time; reads state.
    #[n(2)]
    ObjectShared,
    /// Once per key; may write state.
    #[n(3)]
    WorkflowRun,
    /// Any number at a time, beside the run; reads state.
    #[n(4)]
    WorkflowShared,
}

impl TargetKind {
    pub fn is_keyed(self) -> bool {
        self != Self::Service
    }

    pub fn writes_state(self) -> bool {
        matches!(self, Self::ObjectExclusive | Self::WorkflowRun)
    }
}

/// One handler of one service, and the key where the service has keys.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Target {
    #[n(0)]
    pub kind: TargetKind,
    #[n(1)]
    pub service: Text,
    /// Empty for plain services; may be empty for keyed ones, too.
    #[n(2)]
    pub key: Text,
    #[n(3)]
    pub handler: Text,
}

impl Target {
    pub fn new(kind: TargetKind, service: impl Into<Text>, key: impl Into<Text>, handler: impl Into<Text>) -> Self {
        Self { kind, service: service.into(), key: key.into(), handler: handler.into() }
    }

    /// The key whose state the invocation reads.
    pub fn object_key(&self) -> ObjectKey {
        ObjectKey { service: self.service.clone(), key: self.key.clone() }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.kind.is_keyed() {
            write!(f, "{}/{}/{}", self.service, self.key, self.handler)
        } else {
            write!(f, "{}/{}", self.service, self.handler)
        }
    }
}
