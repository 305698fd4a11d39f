//! Write-back tables over an embedded engine
