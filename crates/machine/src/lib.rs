//! The state machines: apply(state, record) to effects
