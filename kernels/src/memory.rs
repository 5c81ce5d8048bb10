//! How the process holds on to memory.

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Tells glibc's allocator to keep freed memory for the next allocation instead of handing it back to
/// the kernel, up to 32 MiB a block; nothing happens where the C library is another one.
///
/// A training step frees and allocates the same large buffers again and again. Handed back in between,
/// each page must be mapped and cleared anew, which can take longer than the arithmetic on it. Call
/// this once at the start of a program that trains or generates; see [`LargeBlocks`] for larger blocks.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        use std::ffi::c_int;
        unsafe extern "C" {
            fn mallopt(parameter: c_int, value: c_int) -> c_int;
        }
        const M_TRIM_THRESHOLD: c_int = -1;
        const M_MMAP_THRESHOLD: c_int = -3;
        // The largest that glibc accepts on 64-bit machines.
        const LARGEST_MMAP_THRESHOLD: c_int = 32 << 20;
        // SAFETY: glibc's mallopt takes two integers, may be called at any time, and reports an
        // unknown parameter by its result, which changes nothing that we rely on.
        unsafe {
            mallopt(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD);
            mallopt(M_TRIM_THRESHOLD, c_int::MAX);
        }
    }
}

/// From how many bytes on a block is large.
const LARGE: usize = 1 << 20;

/// The size of a huge page.
const HUGE: usize = 2 << 20;

/// An allocator that, once it has been [started](Self::start), puts blocks of a mebibyte and more on huge pages
/// (where Linux has them) and keeps them when they are freed. Everything else is the system allocator's.
///
/// ```no_run
/// #[global_allocator]
/// static ALLOCATOR: sidenote_kernels::LargeBlocks = sidenote_kernels::LargeBlocks;
///
/// sidenote_kernels::LargeBlocks::start();
/// ```
///
/// On huge pages the processor finds an address without walking tables, of which matrix products have thousands in
/// flight.
///
/// As with any lock, a child that was forked while another thread held it must not allocate before it executes another
/// program (`std::process::Command` does not).
#[derive(Debug)]
pub struct LargeBlocks;

impl LargeBlocks {
    /// From now on takes care of large blocks. Call it where training or generation begins: what is freed stays
    /// with the process for the next block of the same size, as long as that and what is in use are no more than
    /// five quarters of the most that was in use at a time.
    pub fn start() {
        STARTED.store(cfg!(target_os = "linux"), Ordering::Relaxed);
    }
}

static STARTED: AtomicBool = AtomicBool::new(false);

/// How many blocks are kept at most.
///
/// The list of them must itself never become a large block: growing it would ask for the lock that is held.
const KEPT: usize = 4096;
const _: () = assert!(2 * KEPT * size_of::<(usize, usize)>() < LARGE);

/// The blocks of [`LargeBlocks`], on which its soundness rests:
///
/// 1. An address is in `live` from when [`take`] hands it out until it is freed, in `free` from then until it is handed
///    out again or unmapped, and never in both. The size with it is that of the whole mapping, `taken` of what was asked.
/// 2. Blocks that are not in `live` are the system allocator's, of any size: those from before the start, and those with
///    an alignment above 4096.
/// 3. Everything in here is read and changed under the lock, and no code under the lock asks for a large block: nodes of
///    the tree are small, and the list is bounded by [`KEPT`].
/// 4. Nothing under the lock panics, for an allocator must not unwind.
struct Blocks {
    /// Address and size of those in use.
    live: BTreeMap<usize, usize>,
    /// Of those that are kept, the longest kept first.
    free: Vec<(usize, usize)>,
    /// The bytes in use, those kept, and the most that were in use at a time.
    used: usize,
    kept: usize,
    most: usize,
}

static BLOCKS: Mutex<Blocks> =
    Mutex::new(Blocks { live: BTreeMap::new(), free: Vec::new(), used: 0, kept: 0, most: 0 });

fn blocks() -> MutexGuard<'static, Blocks> {
    BLOCKS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether a new block would be ours.
fn ours(layout: Layout) -> bool {
    layout.size() >= LARGE && layout.align() <= 4096 && STARTED.load(Ordering::Relaxed)
}

/// Whether this block is.
fn held(block: *mut u8, layout: Layout) -> bool {
    layout.size() >= LARGE && blocks().live.contains_key(&(block as usize))
}

/// The size that a block of ours takes: few different ones, so that a freed block soon fits again.
fn taken(size: usize) -> usize {
    size.next_multiple_of((size.next_power_of_two() / 16).max(1 << 16))
}

/// A block of at least this size; if `zeroed`, of zeros. Null where there is none.
fn take(size: usize, zeroed: bool) -> *mut u8 {
    let whole = taken(size);
    let mut blocks = blocks();
    let kept = blocks.free.iter().rposition(|&(_, other)| other == whole);
    let block = match kept {
        Some(at) => {
            blocks.kept -= whole;
            blocks.free.remove(at).0 as *mut u8
        }
        None => fresh(whole, &mut blocks),
    };
    if !block.is_null() {
        blocks.live.insert(block as usize, whole);
        blocks.used += whole;
        blocks.most = blocks.most.max(blocks.used);
        // Blocks of sizes that are not asked for again must not pile up.
        let most = blocks.most + blocks.most / 4;
        blocks.drop_kept(most);
    }
    drop(blocks);
    if zeroed && kept.is_some() {
        // SAFETY: the block is at least this long, and just ours.
        unsafe { block.write_bytes(0, size) };
    }
    block
}

impl Blocks {
    /// Hands kept blocks back to the system, the longest kept first, until all together take no more than `most`.
    fn drop_kept(&mut self, most: usize) {
        let mut dropped = 0;
        for &(block, size) in &self.free {
            if self.used + self.kept <= most {
                break;
            }
            #[cfg(target_os = "linux")]
            // SAFETY: the block was mapped with this size, and belongs to nobody.
            unsafe {
                linux::unmap(block as *mut u8, size);
            }
            #[cfg(not(target_os = "linux"))]
            let _ = block;
            self.kept -= size;
            dropped += 1;
        }
        self.free.drain(..dropped);
    }
}

/// A new block from the system, of zeros.
fn fresh(size: usize, blocks: &mut Blocks) -> *mut u8 {
    #[cfg(target_os = "linux")]
    // SAFETY: the size is a multiple of 64 KiB.
    unsafe {
        let block = linux::map(size, HUGE);
        if !block.is_null() {
            return block;
        }
        // What is kept may be in the way.
        blocks.drop_kept(0);
        linux::map(size, HUGE)
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = (size, blocks);
        std::ptr::null_mut()
    }
}

// SAFETY: a block is the system allocator's, or it is a mapping of at least its size, aligned to huge pages, that
// nobody else holds: it has come from the system, or from the list of kept ones, which gives each only once.
unsafe impl GlobalAlloc for LargeBlocks {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if ours(layout) {
            return take(layout.size(), false);
        }
        // SAFETY: handed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if ours(layout) {
            return take(layout.size(), true);
        }
        // SAFETY: handed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if layout.size() >= LARGE {
            let mut blocks = blocks();
            if let Some(size) = blocks.live.remove(&(block as usize)) {
                blocks.free.push((block as usize, size));
                blocks.used -= size;
                blocks.kept += size;
                if blocks.free.len() > KEPT {
                    let most = blocks.used + blocks.kept / 2;
                    blocks.drop_kept(most);
                }
                return;
            }
        }
        // SAFETY: not ours, so the system's; handed on.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller promises that `size`, rounded up to the alignment, is in range.
        let new = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        let held = held(block, layout);
        if !held && !ours(new) {
            // SAFETY: the system's, and to stay so; handed on.
            return unsafe { System.realloc(block, layout, size) };
        }
        if held && size >= LARGE && taken(layout.size()) == taken(size) {
            return block;
        }
        // SAFETY: the new block does not overlap the old one, and both hold what is copied.
        unsafe {
            let to = self.alloc(new);
            if !to.is_null() {
                to.copy_from_nonoverlapping(block, layout.size().min(size));
                self.dealloc(block, layout);
            }
            to
        }
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use std::ffi::{c_int, c_long, c_void};

    unsafe extern "C" {
        fn mmap(
            at: *mut c_void,
            size: usize,
            protection: c_int,
            flags: c_int,
            file: c_int,
            from: c_long,
        ) -> *mut c_void;
        fn munmap(at: *mut c_void, size: usize) -> c_int;
        fn madvise(at: *mut c_void, size: usize, advice: c_int) -> c_int;
    }
    const PROT_READ_WRITE: c_int = 1 | 2;
    const MAP_PRIVATE_ANONYMOUS: c_int = 0x02 | 0x20;
    const MADV_HUGEPAGE: c_int = 14;

    /// Maps memory, whose size is a multiple of 64 KiB; null where there is none.
    ///
    /// # Safety
    /// `align` must be a power of two and a multiple of the size of a page.
    pub unsafe fn map(size: usize, align: usize) -> *mut u8 {
        // SAFETY: a new anonymous mapping touches nobody's memory; what is unmapped again is part of it.
        unsafe {
            let all = mmap(std::ptr::null_mut(), size + align, PROT_READ_WRITE, MAP_PRIVATE_ANONYMOUS, -1, 0);
            if all as isize == -1 {
                return std::ptr::null_mut();
            }
            let before = all.align_offset(align);
            let block = all.byte_add(before);
            if before > 0 {
                munmap(all, before);
            }
            if align > before {
                munmap(block.byte_add(size), align - before);
            }
            // Advice: without it the block is as good, only slower.
            madvise(block, size, MADV_HUGEPAGE);
            block.cast()
        }
    }

    /// Gives a mapping back.
    ///
    /// # Safety
    /// It must be one of [`map`]'s, whole, and no longer in use.
    pub unsafe fn unmap(block: *mut u8, size: usize) {
        // SAFETY: as promised by the caller.
        unsafe {
            munmap(block.cast(), size);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(size: usize, align: usize) -> Layout {
        Layout::from_size_align(size, align).unwrap()
    }

    /// The tests share the one list of blocks, so they take turns.
    static TURN: Mutex<()> = Mutex::new(());

    fn turn() -> MutexGuard<'static, ()> {
        LargeBlocks::start();
        TURN.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[test]
    fn blocks_grow_shrink_and_come_back_zeroed() {
        let _turn = turn();
        let layout = |size| layout(size, 4);
        for size in [100, LARGE - 1, LARGE, LARGE + 1, 3 * HUGE + 5] {
            // SAFETY: every block is used within its size and freed with its layout, once.
            unsafe {
                let mut block = LargeBlocks.alloc_zeroed(layout(size));
                let mut len = size;
                for next in [size, 2 * size + 7, LARGE - 3, 5 * LARGE, 17] {
                    let bytes = std::slice::from_raw_parts_mut(block, len);
                    if next == size {
                        assert!(bytes.iter().all(|&byte| byte == 0), "not zeroed");
                        bytes.iter_mut().enumerate().for_each(|(i, byte)| *byte = i as u8);
                    }
                    block = LargeBlocks.realloc(block, layout(len), next);
                    let kept = std::slice::from_raw_parts(block, len.min(next));
                    assert!(kept.iter().take(17).enumerate().all(|(i, &byte)| byte == i as u8));
                    len = next;
                }
                LargeBlocks.dealloc(block, layout(len));
                // The same sizes once more: kept blocks are zeroed.
                let block = LargeBlocks.alloc_zeroed(layout(size));
                assert!(std::slice::from_raw_parts(block, size).iter().all(|&byte| byte == 0));
                block.write_bytes(1, size);
                LargeBlocks.dealloc(block, layout(size));
            }
        }
    }

    /// Every alignment is kept to, by new blocks and grown ones, ours and the system's.
    #[test]
    fn blocks_are_aligned() {
        let _turn = turn();
        for align in (0..16).map(|bit| 1 << bit) {
            for size in [1, LARGE - 1, LARGE, 2 * HUGE + 1] {
                // SAFETY: every block is freed with its layout, once.
                unsafe {
                    let block = LargeBlocks.alloc(layout(size, align));
                    assert_eq!(block.align_offset(align), 0, "{size} bytes at {align}");
                    let grown = LargeBlocks.realloc(block, layout(size, align), size + LARGE);
                    assert_eq!(grown.align_offset(align), 0, "{size} bytes at {align}, grown");
                    LargeBlocks.dealloc(grown, layout(size + LARGE, align));
                }
            }
        }
    }

    /// Threads allocate, free what others allocated, and never see each other's bytes.
    #[test]
    fn threads_get_blocks_of_their_own() {
        let _turn = turn();
        let (sender, receiver) = std::sync::mpsc::channel::<(usize, usize, u8)>();
        let receiver = Mutex::new(receiver);
        std::thread::scope(|scope| {
            for thread in 0..4u8 {
                let (sender, receiver) = (sender.clone(), &receiver);
                scope.spawn(move || {
                    for round in 0..50usize {
                        let size = LARGE / 2 + (round * 7 + usize::from(thread)) % 5 * LARGE / 2;
                        let mark = thread * 50 + round as u8;
                        // SAFETY: written within its size; freed once, by whoever receives it.
                        unsafe {
                            let block = LargeBlocks.alloc(layout(size, 8));
                            block.write(mark);
                            block.add(size / 2).write(mark);
                            block.add(size - 1).write(mark);
                            sender.send((block as usize, size, mark)).unwrap();
                        }
                        let (block, size, mark) = receiver.lock().unwrap().recv().unwrap();
                        let block = block as *mut u8;
                        // SAFETY: as above.
                        unsafe {
                            for at in [0, size / 2, size - 1] {
                                assert_eq!(block.add(at).read(), mark);
                            }
                            LargeBlocks.dealloc(block, layout(size, 8));
                        }
                    }
                });
            }
        });
    }

    /// Hands all kept blocks back, and forgets how much was in use.
    #[cfg(target_os = "linux")]
    fn forget() {
        let mut blocks = blocks();
        blocks.drop_kept(0);
        blocks.most = blocks.used;
    }

    /// What is kept stays below a quarter of the most that was in use.
    #[cfg(target_os = "linux")]
    #[test]
    fn memory_is_given_back() {
        let _turn = turn();
        forget();
        let kept = || blocks().kept;
        assert_eq!(kept(), 0);
        // SAFETY: every block is freed with its layout, once.
        unsafe {
            let many: Vec<*mut u8> = (0..8).map(|_| LargeBlocks.alloc(layout(HUGE, 8))).collect();
            many.into_iter().for_each(|block| LargeBlocks.dealloc(block, layout(HUGE, 8)));
            assert!(kept() >= 8 * HUGE);
            // Of another size, so that what is kept does not fit.
            let other = LargeBlocks.alloc(layout(6 * HUGE, 8));
            let Blocks { used, kept: now, most, .. } = *blocks();
            assert!(used + now <= most + most / 4, "{used} in use, {now} kept, {most} at most");
            LargeBlocks.dealloc(other, layout(6 * HUGE, 8));
        }
    }

    /// Freeing more blocks than are kept neither hangs nor loses one.
    #[cfg(target_os = "linux")]
    #[test]
    fn the_list_of_kept_blocks_is_bounded() {
        let _turn = turn();
        // SAFETY: every block is freed with its layout, once. (Untouched, they take no memory.)
        unsafe {
            let many: Vec<*mut u8> = (0..KEPT + 100).map(|_| LargeBlocks.alloc(layout(LARGE, 8))).collect();
            assert!(many.iter().all(|block| !block.is_null()));
            many.into_iter().for_each(|block| LargeBlocks.dealloc(block, layout(LARGE, 8)));
        }
        {
            let blocks = blocks();
            assert_eq!(blocks.kept, blocks.free.iter().map(|&(_, size)| size).sum::<usize>());
            assert!(blocks.free.len() <= KEPT);
        }
        forget();
    }

    /// More than there is, is null, and nothing is lost by asking.
    #[test]
    fn too_much_is_null() {
        let _turn = turn();
        // SAFETY: nothing is used.
        assert!(unsafe { LargeBlocks.alloc(layout(isize::MAX as usize - (1 << 20), 8)) }.is_null());
        // SAFETY: freed with its layout, once.
        unsafe {
            let block = LargeBlocks.alloc(layout(LARGE, 8));
            block.write(7);
            let none = LargeBlocks.realloc(block, layout(LARGE, 8), isize::MAX as usize - (1 << 20));
            assert!(none.is_null());
            assert_eq!(block.read(), 7, "a block that could not grow stays as it is");
            LargeBlocks.dealloc(block, layout(LARGE, 8));
        }
    }
}
