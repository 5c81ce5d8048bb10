//! Tiles multiplied by AMX, whose instructions Rust's stable compiler knows in assembly only.

use std::arch::asm;
use std::arch::x86_64::__cpuid_count;
use std::sync::OnceLock;

use super::pack::{Row, TILE};

/// Whether the processor has AMX for `bf16` and Linux lets this process use it.
pub fn available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| {
        // Leaf 7 is there (all processors with AVX-512 have it, and callers have looked for that); EDX bit 22 is AMX-BF16, bit
        // 24 AMX-TILE.
        let features = __cpuid_count(7, 0).edx;
        features >> 22 & 1 == 1 && features >> 24 & 1 == 1 && permitted()
    })
}

/// Asks Linux for the state of the tiles, which a process does not have of itself: for all its threads, once.
fn permitted() -> bool {
    const ARCH_PRCTL: i64 = 158;
    const REQUEST_PERMISSION: u64 = 0x1023;
    const TILE_DATA: u64 = 18;
    let mut result = ARCH_PRCTL;
    // SAFETY: a system call that reads no memory of ours, and overwrites these registers alone.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") result,
            in("rdi") REQUEST_PERMISSION,
            in("rsi") TILE_DATA,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result == 0
}

/// The processor's table of tiles: eight of 16 rows of 64 bytes.
#[repr(C, align(64))]
struct Shapes([u8; 64]);

static SHAPES: Shapes = {
    let mut bytes = [0; 64];
    bytes[0] = 1;
    let mut tile = 0;
    while tile < 8 {
        bytes[16 + 2 * tile] = 64;
        bytes[48 + tile] = 16;
        tile += 1;
    }
    Shapes(bytes)
};

/// While it lives, this thread's tiles have their shapes.
pub struct Tiles(());

impl Tiles {
    /// # Safety
    /// AMX must be [`available`].
    pub unsafe fn begin() -> Self {
        // SAFETY: as promised by the caller; the table is 64 bytes of a valid form.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &SHAPES, options(nostack, preserves_flags, readonly)) };
        Self(())
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // The system need not keep what they hold when it runs another thread.
        // SAFETY: they are configured, so AMX is there.
        unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) };
    }
}

/// Two tiles of lines by two of columns, `depth` deep in tiles: adds nothing, writes the four products `[2][2][16][16]`
/// to `sums`. In both operands the tiles of a depth lie side by side.
///
/// # Safety
/// [`Tiles`] have begun, `left` and `right` hold `2 * depth` tiles and `sums` 4, and `depth` is not zero.
pub unsafe fn multiply(depth: usize, left: *const Row, right: *const Row, sums: *mut f32) {
    const BYTES: usize = TILE * size_of::<Row>();
    // SAFETY: as promised by the caller. The compiler keeps nothing in tiles of itself.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "2:",
            "tileloadd tmm4, [{left} + {line}]",
            "tileloadd tmm6, [{right} + {line}]",
            "tileloadd tmm7, [{right} + {line} + {one}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm5, [{left} + {line} + {one}]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {left}, {two}",
            "add {right}, {two}",
            "dec {depth}",
            "jnz 2b",
            "tilestored [{sums} + {line}], tmm0",
            "tilestored [{sums} + {line} + {one}], tmm1",
            "tilestored [{sums} + {line} + {two}], tmm2",
            "tilestored [{sums} + {line} + {three}], tmm3",
            left = inout(reg) left => _,
            right = inout(reg) right => _,
            depth = inout(reg) depth => _,
            sums = in(reg) sums,
            line = in(reg) size_of::<Row>(),
            one = const BYTES,
            two = const 2 * BYTES,
            three = const 3 * BYTES,
            options(nostack),
        );
    }
}
