//! The service protocol with handlers
