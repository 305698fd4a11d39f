//! Where memory comes from, and how it goes back to the system.
//!
//! Owns: who serves an allocation, by its size. Small ones are mimalloc's: most of what an invocation needs is freed by another thread than
//! took it, which the C library does behind locks. All others are the C library's: mimalloc keeps more of them than it gives back, and the
//! process would take more than `memory-size` says. The largest are mappings of their own. Does not own: the allocations.

#![allow(unsafe_code, reason = "an allocator is an unsafe trait, and the settings of the C library's are functions of it")]

use mimalloc::MiMalloc;
use std::alloc::{GlobalAlloc, Layout, System};

/// An allocation up to this size is a small one. Mimalloc serves them from pages of 64 KiB, and larger ones from pages of 512 KiB.
const SMALL_BYTES_MAX: usize = 8 << 10;
/// From this size on an allocation of the C library is a mapping of its own, which goes back to the system with it. Left to itself it
/// raises this size after the first large one that is freed, up to 32 MiB.
#[cfg(target_env = "gnu")]
const OWN_MAPPING_BYTES: libc::c_int = 128 << 10;
/// So much free memory at the end of an arena of it is kept.
#[cfg(target_env = "gnu")]
const KEPT_BYTES: libc::c_int = 1 << 20;
/// Its arenas: the threads of the process share them. Each keeps the largest number of bytes that it ever held.
#[cfg(target_env = "gnu")]
const ARENAS: libc::c_int = 4;

/// Sets the C library's allocator so that freed memory goes back to the system. Must be called before the process has threads.
#[cfg(target_env = "gnu")]
pub(crate) fn give_back() {
    for (setting, value) in
        [(libc::M_MMAP_THRESHOLD, OWN_MAPPING_BYTES), (libc::M_TRIM_THRESHOLD, KEPT_BYTES), (libc::M_ARENA_MAX, ARENAS)]
    {
        // SAFETY: it only sets a number within the allocator. One that is not taken leaves the default, which works as well.
        let _ = unsafe { libc::mallopt(setting, value) };
    }
}

/// Serves small allocations from mimalloc, and all others from the C library.
pub(crate) struct BySize;

fn is_small(bytes: usize) -> bool {
    bytes <= SMALL_BYTES_MAX
}

// SAFETY: each block is resized and freed by who served it. Its size tells who that is, and comes with every call. All else is the promise
// of the two allocators.
unsafe impl GlobalAlloc for BySize {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are those that both ask for.
        unsafe { if is_small(layout.size()) { MiMalloc.alloc(layout) } else { System.alloc(layout) } }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as in `alloc`.
        unsafe { if is_small(layout.size()) { MiMalloc.alloc_zeroed(layout) } else { System.alloc_zeroed(layout) } }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as in `alloc`, and who served a block of this size is the one that is asked.
        unsafe { if is_small(layout.size()) { MiMalloc.dealloc(block, layout) } else { System.dealloc(block, layout) } }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        // SAFETY: as in `dealloc`. The new size is not zero and fits its alignment, as the caller promises.
        unsafe {
            match (is_small(layout.size()), is_small(bytes)) {
                (true, true) => MiMalloc.realloc(block, layout, bytes),
                (false, false) => System.realloc(block, layout, bytes),
                _ => {
                    let moved = self.alloc(Layout::from_size_align_unchecked(bytes, layout.align()));
                    if !moved.is_null() {
                        moved.copy_from_nonoverlapping(block, layout.size().min(bytes));
                        self.dealloc(block, layout);
                    }
                    moved
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_survives_every_change_of_size() {
        for sizes in [[1, 100], [100, SMALL_BYTES_MAX + 1], [SMALL_BYTES_MAX + 1, 100], [1 << 16, 1 << 20]] {
            let [before, after] = sizes;
            let layout = |bytes| Layout::from_size_align(bytes, 8).unwrap();
            // SAFETY: the layouts are those of the block at each time, and only bytes that were written are read.
            unsafe {
                let block = BySize.alloc(layout(before));
                block.write_bytes(7, before);
                let block = BySize.realloc(block, layout(before), after);
                let kept = std::slice::from_raw_parts(block, before.min(after));
                assert!(kept.iter().all(|byte| *byte == 7), "{sizes:?}");
                BySize.dealloc(block, layout(after));
                let zeroed = BySize.alloc_zeroed(layout(before));
                assert!(std::slice::from_raw_parts(zeroed, before).iter().all(|byte| *byte == 0), "{sizes:?}");
                BySize.dealloc(zeroed, layout(before));
            }
        }
    }
}
