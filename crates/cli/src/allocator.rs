//! How the C library's allocator keeps memory that the process has freed.
//!
//! Owns: its settings. Left to itself it raises the size from which an allocation is given back on its own, after the first large one
//! that is freed, up to 32 MiB: bodies and results then lie between small allocations. Each arena would keep the
//! largest number of bytes that it ever held, and the process would take more than `memory-size` says. Does not own: the allocations.

#![allow(unsafe_code, reason = "the settings of the allocator are functions of the C library")]

/// From this size on an allocation is a mapping of its own, which goes back to the system with it.
const OWN_MAPPING_BYTES: libc::c_int = 128 << 10;
/// So much free memory at the end of an arena is kept.
const KEPT_BYTES: libc::c_int = 1 << 20;
/// Arenas: the threads of the process share them.
const ARENAS: libc::c_int = 4;

/// To be called before there are threads.
pub(crate) fn give_back() {
    for (setting, value) in
        [(libc::M_MMAP_THRESHOLD, OWN_MAPPING_BYTES), (libc::M_TRIM_THRESHOLD, KEPT_BYTES), (libc::M_ARENA_MAX, ARENAS)]
    {
        // SAFETY: it only sets a number within the allocator. One that is not taken leaves the default, which works as well.
        let _ = unsafe { libc::mallopt(setting, value) };
    }
}
