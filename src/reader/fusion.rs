//! Fusion in the decoder: an encoder-decoder that reads each passage by itself, and writes from all of them (Izacard
//! and Grave 2021, <https://arxiv.org/abs/2007.01282>).

use candle_core::Tensor;

use super::written::{Writing, answer, distribution};
use super::{Answer, Layout, Reader, Source, Templates};
use crate::error::Result;
use crate::model::EncoderDecoder;
use crate::model::generate::{Autoregressive, Generator};
use crate::model::t5::{State, T5};

/// A reader over an encoder-decoder. Without sources it answers from the question alone (closed book).
pub struct Fusion<'a> {
    model: &'a EncoderDecoder,
    name: String,
    templates: Templates,
}

impl<'a> Fusion<'a> {
    /// A reader over `model`, which the user calls `name`.
    pub fn new(model: &'a EncoderDecoder, name: impl Into<String>, templates: Templates) -> Self {
        Self { model, name: name.into(), templates }
    }

    /// The texts that are read for a question, and the network that writes after them.
    fn prepared(
        &self,
        question: &str,
        sources: &[Source<'_>],
    ) -> Result<(Vec<u32>, Generator<'_, FusionNetwork<'_>>)> {
        // What somebody else wrote spells no sentinel and ends no text.
        let question = self.model.tokenizer.unmarked(question);
        let texts = texts(self.model, &self.templates, &question, sources)?;
        let network = FusionNetwork {
            network: &self.model.network,
            end: self.model.tokenizer.end_of_text(),
            begun: self.model.tokenizer.encode_marked(&self.templates.answer)?,
        };
        let generator = Generator::new(network, &self.model.tokenizer, self.model.end_tokens().to_vec());
        Ok((texts.concat(), generator))
    }
}

/// The texts that an encoder-decoder reads for a question, a passage each, cut to length and ended; the query alone where there
/// are no passages. The question may spell sentinels such as `<extra_id_0>`, the passages may not.
///
/// # Errors
/// What the tokenizer refuses.
pub fn texts(
    model: &EncoderDecoder,
    templates: &Templates,
    question: &str,
    sources: &[Source<'_>],
) -> Result<Vec<Vec<u32>>> {
    let tokenizer = &model.tokenizer;
    let query = templates.query(Layout::Fusion, question);
    let mut texts: Vec<String> = sources
        .iter()
        .map(|source| {
            let (title, text) = (tokenizer.unmarked(source.title), tokenizer.unmarked(source.text));
            templates.passage(Layout::Fusion, &query, &Source { title: &title, text: &text, ..*source })
        })
        .collect();
    if texts.is_empty() {
        texts.push(query);
    }
    let encode = |text: &String| {
        let mut ids = tokenizer.encode_marked(text)?;
        ids.truncate(templates.passage_tokens);
        ids.extend(tokenizer.end_of_text());
        Ok(ids)
    };
    texts.iter().map(encode).collect()
}

impl Reader for Fusion<'_> {
    fn name(&self) -> String {
        format!("model {}", self.name)
    }

    fn answer(&self, question: &str, sources: &[Source<'_>]) -> Result<Answer> {
        let (prompt, generator) = self.prepared(question, sources)?;
        let options = Writing { tokens: self.templates.answer_tokens, one_line: false };
        answer(&generator, prompt, options, sources, self.name())
    }

    fn choose(&self, question: &str, sources: &[Source<'_>], choices: &[String]) -> Result<Vec<f64>> {
        let (prompt, generator) = self.prepared(question, sources)?;
        distribution(&generator, &prompt, choices)
    }
}

/// An encoder-decoder whose prompts are texts one after the other, each ended by the token that ends texts: they are read apart
/// from each other, and written from together.
struct FusionNetwork<'a> {
    network: &'a T5,
    end: Option<u32>,
    /// What every answer begins with.
    begun: Vec<u32>,
}

impl Autoregressive for FusionNetwork<'_> {
    type State = State;

    fn vocab_size(&self) -> usize {
        self.network.config().vocab_size
    }

    fn longest(&self) -> usize {
        usize::MAX
    }

    fn continues_prompt(&self) -> bool {
        false
    }

    fn start(&self, prompts: &[&[u32]]) -> Result<(State, Tensor)> {
        let split = |prompt: &&'_ [u32]| -> Vec<Vec<u32>> {
            prompt.split_inclusive(|token| Some(*token) == self.end).map(<[u32]>::to_vec).collect()
        };
        let mut texts: Vec<Vec<Vec<u32>>> = prompts.iter().map(split).collect();
        let most = texts.iter().map(Vec::len).max().unwrap_or(0);
        // A passage that is absent has no tokens, so that nothing of it is read.
        texts.iter_mut().for_each(|texts| texts.resize(most, Vec::new()));
        let flat: Vec<&[u32]> = texts.iter().flatten().map(Vec::as_slice).collect();
        let encoded = self.network.encoder().read(&flat, None)?.joined(most)?;
        let mut state = self.network.start(&encoded)?;
        let first = [&[self.network.config().start_token()], self.begun.as_slice()].concat();
        let width = first.len();
        let rows =
            Tensor::from_vec(first.repeat(prompts.len()), (prompts.len(), width), self.network.device())?;
        let hidden =
            self.network.decode(&rows, &mut state)?.narrow(1, width - 1, 1)?.squeeze(1)?.contiguous()?;
        Ok((state, hidden))
    }

    fn read(&self, tokens: &Tensor, state: &mut State) -> Result<Tensor> {
        self.network.decode(tokens, state)
    }

    fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        self.network.logits(hidden)
    }

    fn pick(&self, state: &State, rows: &[usize]) -> Result<State> {
        state.pick(rows)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use candle_core::Device;

    use super::*;

    const SOURCES: [Source<'static>; 3] = [
        Source { title: "Moon", text: "The moon moves around the Earth.", score: 0.9 },
        Source { title: "", text: "Zürich is a city </s> of Switzerland.", score: 0.5 },
        Source { title: "Sidenote", text: "A sidenote is text set beside the line being read.", score: 0.1 },
    ];

    fn model() -> EncoderDecoder {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/models/t5_v1_0");
        EncoderDecoder::load(folder, false, &Device::Cpu).unwrap()
    }

    /// Greedy writing by hand: every passage alone through the encoder, the states side by side without padding.
    fn by_hand(model: &EncoderDecoder, texts: &[Vec<u32>], begun: &[u32], count: usize) -> Vec<u32> {
        let network = &model.network;
        let states: Vec<Tensor> =
            texts.iter().map(|text| network.encoder().read(&[text], None).unwrap().states).collect();
        let encoded = crate::model::t5::Encoded { states: Tensor::cat(&states, 1).unwrap(), mask: None };
        let mut written = begun.to_vec();
        for _ in 0..count {
            let read = [&[network.config().start_token()], written.as_slice()].concat();
            let read = Tensor::new(&read[..], &Device::Cpu).unwrap().unsqueeze(0).unwrap();
            let hidden = network.decode(&read, &mut network.start(&encoded).unwrap()).unwrap();
            let last = hidden.narrow(1, hidden.dim(1).unwrap() - 1, 1).unwrap().contiguous().unwrap();
            let logits = network.logits(&last).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let best = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap();
            written.push(best as u32);
        }
        written[begun.len()..].to_vec()
    }

    /// Fails when a passage sees another one in the encoder, padding is read, or the answer's beginning is not.
    #[test]
    fn passages_are_read_apart_and_written_from_together() {
        let model = model();
        for (answer, sources) in [("", &SOURCES[..]), ("A sidenote", &SOURCES[..2]), ("", &[])] {
            let templates = Templates { answer: answer.into(), answer_tokens: 6, ..Templates::default() };
            let fusion = Fusion::new(&model, "t5", templates.clone());
            let (prompt, generator) = fusion.prepared("What is a sidenote?", sources).unwrap();
            let read = texts(&model, &templates, "What is a sidenote?", sources).unwrap();
            assert_eq!(read.len(), sources.len().max(1));
            let options = crate::model::generate::Options { max_tokens: 6, ..Default::default() };
            let written = generator.generate(&[prompt], &options, &mut |_| true).unwrap();
            let begun = model.tokenizer.encode_marked(answer).unwrap();
            let mut expected = by_hand(&model, &read, &begun, 6);
            if let Some(end) = expected.iter().position(|token| model.end_tokens().contains(token)) {
                expected.truncate(end);
            }
            assert_eq!(written[0][0].tokens, expected, "{answer:?}");
        }
    }

    #[test]
    fn questions_side_by_side_do_not_matter_to_each_other() {
        let model = model();
        let fusion = Fusion::new(&model, "t5", Templates::default());
        let (many, generator) = fusion.prepared("What is a sidenote?", &SOURCES).unwrap();
        let (one, _) = fusion.prepared("Which moon?", &SOURCES[..1]).unwrap();
        let options = crate::model::generate::Options { max_tokens: 5, ..Default::default() };
        let write = |prompts: &[Vec<u32>]| generator.generate(prompts, &options, &mut |_| true).unwrap();
        let together = write(&[many.clone(), one.clone()]);
        assert_eq!(together[0][0].tokens, write(&[many])[0][0].tokens);
        assert_eq!(together[1][0].tokens, write(&[one])[0][0].tokens);
    }

    #[test]
    fn texts_are_cut_and_end_once() {
        let model = model();
        let templates = Templates { passage_tokens: 9, ..Templates::default() };
        let texts = texts(&model, &templates, "Which moon?", &SOURCES).unwrap();
        let end = model.tokenizer.end_of_text().unwrap();
        for text in &texts {
            assert_eq!((text.len(), text.iter().position(|token| *token == end)), (10, Some(9)));
        }
    }

    #[test]
    fn choices_have_probabilities() {
        let model = model();
        let fusion = Fusion::new(&model, "t5", Templates::default());
        let choices = ["moon".to_string(), "city".into(), "text".into()];
        let shares = fusion.choose("Which?", &SOURCES, &choices).unwrap();
        assert!(shares.len() == 3 && (shares.iter().sum::<f64>() - 1.0).abs() < 1e-9, "{shares:?}");
        let answer = fusion.answer("Which?", &SOURCES).unwrap();
        assert!((0.0..=1.0).contains(&answer.confidence) && answer.reader == "model t5");
    }
}
