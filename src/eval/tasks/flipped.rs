//! Flipped Learning (Ye et al. 2023, "Guess the instruction! Flipped Learning makes language models stronger zero-shot learners",
//! <https://arxiv.org/abs/2210.02969>): the model reads an instance's own text and an answer, and guesses the instruction;
//! the answer that makes the instruction likeliest is taken for the right one. The same texts are learnt and asked.

use super::item::{Item, around};
use crate::error::Result;

/// What is read before the instruction, for the answer `choice` to a text that is the instance's own.
pub fn question(own: &str, choice: &str) -> String {
    format!("Input: {}\nOutput: {}\nInstruction:", own.trim(), choice.trim())
}

/// The instruction of `item` and its own text.
///
/// # Errors
/// Names the line where the own text is not said, is not part of the input, or is all of it.
pub fn parts(item: &Item) -> Result<(String, &str)> {
    let why =
        "does not say which part of its input is its own text (field own), the rest being the instruction";
    let own =
        item.instance.own.as_deref().filter(|own| !own.trim().is_empty()).ok_or_else(|| item.fault(why))?;
    let instruction = without(&item.instance.input, own)
        .ok_or_else(|| item.fault("its own text (field own) is not found in its input"))?;
    match instruction.is_empty() {
        true => Err(item.fault("its own text is all of its input, so that there is no instruction")),
        false => Ok((instruction, own)),
    }
}

/// `input` without the text `own`.
fn without(input: &str, own: &str) -> Option<String> {
    let left = around(input, own)?.into_iter().map(str::trim).filter(|text| !text.is_empty());
    Some(left.collect::<Vec<_>>().join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_instruction_is_what_is_not_the_instance_s_own() {
        let of = |input, own| without(input, own);
        let sni =
            "Definition: Say who it is.\n\nNow complete the following example -\nInput: Ann came.\nOutput:";
        let instruction =
            "Definition: Say who it is.\n\nNow complete the following example -\nInput: Output:";
        assert_eq!(of(sni, " Ann came.\n").unwrap(), instruction);
        assert_eq!(
            of("Given A b. Does it follow that C d? Yes or no?", "A b.\nC d").unwrap(),
            "Given Does it follow that ? Yes or no?"
        );
        assert_eq!(of("all", "all").unwrap(), "");
        assert_eq!(of("something", "other"), None);
        // In turn: a piece that only stands before another is not found.
        assert_eq!(of("C d, A b", "A b\nC d"), None);
    }
}
