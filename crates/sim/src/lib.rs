//! Deterministic simulation of whole nodes
