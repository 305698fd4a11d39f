//! HTTP in: route, submit, await the result
