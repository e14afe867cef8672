//! What the targets share: no input may take more memory than is in proportion to it.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

/// For every byte of the input. A reading of six bytes may be the only one of a record, which has room for eight; a byte
/// of a topic may be a level of it.
const BYTES_PER_INPUT_BYTE: usize = 512;

/// Runs a target, and panics if it took too much at any time: more than `free_bytes`, and what the input accounts for.
pub fn bounded(free_bytes: usize, input: &[u8], run: impl FnOnce(&[u8])) {
    let before = IN_USE.load(Relaxed);
    MOST.store(before, Relaxed);
    run(input);
    let taken = MOST.load(Relaxed).saturating_sub(before);
    let most = free_bytes + BYTES_PER_INPUT_BYTE * input.len();
    assert!(taken <= most, "{taken} bytes for an input of {}", input.len());
}

#[global_allocator]
static COUNTING: Counting = Counting;
static IN_USE: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

struct Counting;

impl Counting {
    fn takes(bytes: usize) {
        let in_use = IN_USE.fetch_add(bytes, Relaxed) + bytes;
        MOST.fetch_max(in_use, Relaxed);
    }
}

// SAFETY: the system's allocator does all of it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::takes(layout.size());
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(layout.size(), Relaxed);
        unsafe { System.dealloc(place, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        Self::takes(layout.size());
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        Self::takes(bytes);
        IN_USE.fetch_sub(layout.size(), Relaxed);
        unsafe { System.realloc(place, layout, bytes) }
    }
}
