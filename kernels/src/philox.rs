//! Random factors that are a function of a seed and a place: Philox 4x32 with 10 rounds (Salmon et al. 2011, "Parallel random
//! numbers: as easy as 1, 2, 3").

/// What elements `0..n` are multiplied by.
pub fn mask(n: usize, rate: f32, seed: u64) -> Vec<f32> {
    (0..n.div_ceil(4)).flat_map(|block| factors(block as u64, rate, seed)).take(n).collect()
}

/// What elements `4 * block..4 * block + 4` are multiplied by.
pub fn factors(block: u64, rate: f32, seed: u64) -> [f32; 4] {
    let keep = 1.0 / (1.0 - rate);
    // Below this, of 2^32, an element goes.
    let threshold = (f64::from(rate) * 4_294_967_296.0) as u32;
    philox([block as u32, (block >> 32) as u32, 0, 0], [seed as u32, (seed >> 32) as u32])
        .map(|bits| if bits < threshold { 0.0 } else { keep })
}

/// Philox 4x32-10.
fn philox(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let ([mut a, mut b, mut c, mut d], [mut k0, mut k1]) = (counter, key);
    for _ in 0..10 {
        let (x, y) = (u64::from(a) * 0xD251_1F53, u64::from(c) * 0xCD9E_8D57);
        (a, b, c, d) = ((y >> 32) as u32 ^ b ^ k0, y as u32, (x >> 32) as u32 ^ d ^ k1, x as u32);
        (k0, k1) = (k0.wrapping_add(0x9E37_79B9), k1.wrapping_add(0xBB67_AE85));
    }
    [a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers of the generator's authors (Random123, kat_vectors).
    #[test]
    fn philox_gives_the_known_answers() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(
            philox([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
    }

    #[test]
    fn as_many_go_as_the_rate_says() {
        for rate in [0.1f32, 0.5, 0.9] {
            let gone = mask(100_000, rate, 3).iter().filter(|&&factor| factor == 0.0).count();
            assert!((gone as f32 / 1e5 - rate).abs() < 0.006, "{gone} of 100000 at rate {rate}");
        }
        assert_ne!(mask(64, 0.5, 1), mask(64, 0.5, 2));
    }
}
