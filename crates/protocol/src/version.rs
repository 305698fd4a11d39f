//! Versions of the service protocol: which this build speaks, how one is chosen, and the content type that names it.
//!
//! Does not own: which version an invocation is pinned to (`invoker`). Source: protocol reference sections 1.1 and 1.3.

/// The oldest version spoken.
pub const MIN_VERSION: u8 = 5;
/// The newest version spoken.
pub const MAX_VERSION: u8 = 6;

/// The newest version that a deployment with this range and this build have in common.
pub fn negotiate(min: i32, max: i32) -> Option<u8> {
    let common = max.min(i32::from(MAX_VERSION));
    let floor = min.max(i32::from(MIN_VERSION));
    if common >= floor { u8::try_from(common).ok() } else { None }
}

/// Whether a deployment with this range and this build both speak `version`.
pub fn is_supported(version: u8, min: i32, max: i32) -> bool {
    (MIN_VERSION..=MAX_VERSION).contains(&version) && (min..=max).contains(&i32::from(version))
}

/// The content type of both directions at one of the spoken versions.
pub fn content_type(version: u8) -> &'static str {
    match version {
        5 => "application/vnd.restate.invocation.v5",
        6 => "application/vnd.restate.invocation.v6",
        other => unreachable!("version {other} is never negotiated"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_common_version_is_chosen() {
        for (min, max, expected) in [
            (5, 7, Some(6)),
            (5, 6, Some(6)),
            (5, 5, Some(5)),
            (6, 6, Some(6)),
            (1, 5, Some(5)),
            (1, 4, None),
            (7, 8, None),
            (7, 5, None),
        ] {
            assert_eq!(negotiate(min, max), expected, "{min}..{max}");
        }
        assert!(is_supported(5, 5, 7));
        assert!(!is_supported(5, 6, 7));
        assert!(!is_supported(7, 5, 7));
    }
}
