//! How the process holds on to memory.

/// Tells glibc's allocator to keep freed memory for the next allocation instead of handing it back to
/// the kernel; nothing happens where the C library is another one.
///
/// A training step frees and allocates the same large buffers again and again. Handed back in between,
/// each page must be mapped and cleared anew, which can take longer than the arithmetic on it. Call
/// this once at the start of a program that trains or generates.
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
