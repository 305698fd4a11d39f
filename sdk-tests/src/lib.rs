//! Process tests and conformance with published SDKs
