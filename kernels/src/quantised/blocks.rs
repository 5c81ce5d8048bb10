//! The block formats that ggml writes into GGUF files, and what they hold.

use half::f16;

/// How many weights of a row share a scale, at most.
pub const GROUP: usize = 32;

/// How many weights a block of the `K` formats holds.
pub const SUPER: usize = 256;

/// A format of weights along a row: ggml's blocks, named as ggml names them, and the two halves of `f32`.
///
/// Blocks of `Q4_0` to `Q8_0` hold 32 weights, `weight = scale * code` with codes around zero where the name ends in
/// 0, `weight = scale * code + minimum` where it ends in 1; scale and minimum are in `f16`. Blocks of the `K` formats
/// hold 256 weights, whose scales and minima are small integers, themselves in units that the block gives in `f16`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names say it")]
pub enum BlockKind {
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q4K,
    Q5K,
    Q6K,
}

impl BlockKind {
    /// Of how many weights of a row a block consists; a row must be whole blocks.
    pub fn weights(self) -> usize {
        match self {
            Self::F16 | Self::BF16 => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 => GROUP,
            Self::Q4K | Self::Q5K | Self::Q6K => SUPER,
        }
    }

    /// How many bytes a block takes.
    pub fn bytes(self) -> usize {
        match self {
            Self::F16 | Self::BF16 => 2,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
        }
    }

    /// How many bits a code has; none in the halves of `f32`.
    pub(super) fn bits(self) -> usize {
        match self {
            Self::F16 | Self::BF16 => 0,
            Self::Q4_0 | Self::Q4_1 | Self::Q4K => 4,
            Self::Q5_0 | Self::Q5_1 | Self::Q5K => 5,
            Self::Q6K => 6,
            Self::Q8_0 => 8,
        }
    }

    /// What is added to a signed code, so that codes are not negative.
    pub(super) fn offset(self) -> i32 {
        match self {
            Self::Q4_0 => 8,
            Self::Q5_0 => 16,
            Self::Q6K => 32,
            Self::Q8_0 => 128,
            _ => 0,
        }
    }

    /// Whether groups have a minimum.
    pub(super) fn has_minimum(self) -> bool {
        matches!(self, Self::Q4_1 | Self::Q5_1 | Self::Q4K | Self::Q5K)
    }

    /// How many scales a group of 32 weights has.
    pub(super) fn scales(self) -> usize {
        if self == Self::Q6K { 2 } else { 1 }
    }
}

/// What a block holds.
#[derive(Clone, Debug)]
pub struct Block {
    /// Codes from zero up, with the offset of their kind; as many as the block has weights.
    pub codes: [u8; SUPER],
    /// The scale, or the unit of the scales, as `f16`.
    pub unit: u16,
    /// The minimum, or the unit of what is subtracted, as `f16`.
    pub minimum: u16,
    /// In the `K` formats the scale of each group (in `Q6_K` of each half of one, and signed).
    pub scales: [u8; 16],
    /// In the `K` formats what is subtracted from each group.
    pub minima: [u8; 8],
}

impl Block {
    /// Takes a block of `kind`, which is not one of the halves, apart.
    pub fn read(kind: BlockKind, bytes: &[u8]) -> Self {
        let mut block = Self { codes: [0; SUPER], unit: 0, minimum: 0, scales: [0; 16], minima: [0; 8] };
        let short = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let codes = &mut block.codes;
        block.unit = short(if kind == BlockKind::Q6K { 208 } else { 0 });
        if kind.has_minimum() {
            block.minimum = short(2);
        }
        match kind {
            BlockKind::F16 | BlockKind::BF16 => {}
            BlockKind::Q4_0 => nibbles(&bytes[2..18], codes),
            BlockKind::Q4_1 => nibbles(&bytes[4..20], codes),
            BlockKind::Q5_0 => {
                nibbles(&bytes[6..22], codes);
                fifth_bits(&bytes[2..6], codes);
            }
            BlockKind::Q5_1 => {
                nibbles(&bytes[8..24], codes);
                fifth_bits(&bytes[4..8], codes);
            }
            BlockKind::Q8_0 => (0..GROUP).for_each(|i| codes[i] = bytes[2 + i] ^ 0x80),
            BlockKind::Q4K | BlockKind::Q5K => {
                let packed = &bytes[4..16];
                for i in 0..8 {
                    (block.scales[i], block.minima[i]) = match i {
                        0..4 => (packed[i] & 63, packed[i + 4] & 63),
                        _ => (
                            packed[i + 4] & 15 | packed[i - 4] >> 6 << 4,
                            packed[i + 4] >> 4 | packed[i] >> 6 << 4,
                        ),
                    };
                }
                let low = if kind == BlockKind::Q4K { &bytes[16..144] } else { &bytes[48..176] };
                for (codes, low) in codes.chunks_exact_mut(64).zip(low.chunks_exact(32)) {
                    for i in 0..32 {
                        (codes[i], codes[32 + i]) = (low[i] & 15, low[i] >> 4);
                    }
                }
                if kind == BlockKind::Q5K {
                    for i in 0..SUPER {
                        codes[i] |= (bytes[16 + i % 32] >> (i / 32) & 1) << 4;
                    }
                }
            }
            BlockKind::Q6K => {
                for i in 0..SUPER {
                    let (part, i) = (i / 128, i % 128);
                    let low = bytes[part * 64 + i % 64] >> (i / 64 * 4) & 15;
                    let high = bytes[128 + part * 32 + i % 32] >> (i / 32 * 2) & 3;
                    codes[part * 128 + i] = low | high << 4;
                }
                block.scales.copy_from_slice(&bytes[192..208]);
            }
        }
        block
    }
}

/// The value of an `f16`.
pub fn widened(bits: u16) -> f32 {
    f16::from_bits(bits).to_f32()
}

/// 16 bytes of two codes each: the first half of the codes below, the second above.
fn nibbles(bytes: &[u8], codes: &mut [u8]) {
    for (i, byte) in bytes.iter().enumerate() {
        (codes[i], codes[i + 16]) = (byte & 15, byte >> 4);
    }
}

/// Adds the fifth bits of 32 codes.
fn fifth_bits(bytes: &[u8], codes: &mut [u8]) {
    for i in 0..GROUP {
        codes[i] |= (bytes[i / 8] >> (i % 8) & 1) << 4;
    }
}

/// Chooses the instance of a function for the kind of a weight: codes of so many bits, whether scales are in units,
/// and whether there are minima.
#[cfg(target_arch = "x86_64")]
macro_rules! for_kind {
    ($kind:expr, $function:ident, $arguments:tt) => {
        match $kind {
            BlockKind::Q4_0 => $function::<4, false, false> $arguments,
            BlockKind::Q4_1 => $function::<4, false, true> $arguments,
            BlockKind::Q5_0 => $function::<5, false, false> $arguments,
            BlockKind::Q5_1 => $function::<5, false, true> $arguments,
            BlockKind::Q8_0 => $function::<8, false, false> $arguments,
            BlockKind::Q4K => $function::<4, true, true> $arguments,
            BlockKind::Q5K => $function::<5, true, true> $arguments,
            BlockKind::Q6K => $function::<6, true, false> $arguments,
            BlockKind::F16 | BlockKind::BF16 => {}
        }
    };
}
#[cfg(target_arch = "x86_64")]
pub(super) use for_kind;
