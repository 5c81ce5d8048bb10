//! Runs of words as numbers: what texts are compared by.

/// Words in a run (Brown et al. 2020, appendix C; Lee et al. 2022).
pub const WORDS: usize = 13;

/// A hash of each of a text's words: runs of letters and digits, in lower case.
pub fn words(text: &str) -> Vec<u64> {
    text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).map(hash).collect()
}

/// A hash of each run of `n` words, in order.
pub fn runs(words: &[u64], n: usize) -> impl Iterator<Item = u64> + '_ {
    words.windows(n).map(|run| run.iter().fold(0x243F_6A88_85A3_08D3, |all, word| mix(all ^ word)))
}

/// The set of a text's runs of [`WORDS`] words, sorted; of a shorter text the one run of them all.
pub fn set(text: &str) -> Vec<u64> {
    let words = words(text);
    let mut set: Vec<u64> = runs(&words, WORDS.min(words.len()).max(1)).collect();
    set.sort_unstable();
    set.dedup();
    set
}

/// FNV-1a over the lower-case form, mixed.
fn hash(word: &str) -> u64 {
    let start = 0xCBF2_9CE4_8422_2325u64;
    let fold = |hash: u64, c: char| (hash ^ u64::from(c)).wrapping_mul(0x100_0000_01B3);
    mix(word.chars().flat_map(char::to_lowercase).fold(start, fold))
}

/// SplitMix's finaliser.
pub fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_of_words_whatever_stands_between() {
        assert_eq!(words("The hive, the HIVE!"), words("the hive — The hive"));
        assert_ne!(set("one two three"), set("three two one"));
        assert_eq!(set("one two").len(), 1);
        assert!(set(" -- ").is_empty());
        let long: Vec<String> = (0..20).map(|i| format!("w{i}")).collect();
        assert_eq!(set(&long.join(" ")).len(), 20 - WORDS + 1);
    }
}
