//! Configuration and wiring of a node
