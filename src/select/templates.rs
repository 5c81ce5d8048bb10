//! What the inputs of a task have in common: a template's words or an instruction, told from the examples' own text by comparing
//! them. No format has to say where the one ends and the other begins.

use std::collections::{HashMap, HashSet};

use super::{Pool, Row};
use crate::error::Result;

/// Share of a group's inputs that have a template's words: templates may draw some of theirs.
const SHARE: f64 = 0.9;
/// Inputs that are compared at most; fewer than the second number say nothing.
const COMPARED: usize = 64;
const FEWEST: usize = 8;
/// Inputs whose words are tried: what nearly all have, one of the first has.
const TRIED: usize = 4;

/// The words that a group's inputs have in common, as pairs of neighbours. Single words would not do: every text has "the".
#[derive(Debug, Clone, Default)]
pub struct Template {
    pairs: HashSet<u64>,
}

/// Inputs that are being compared.
#[derive(Default)]
struct Compared {
    seen: usize,
    counts: HashMap<u64, usize>,
}

impl Compared {
    fn add(&mut self, input: &str) {
        if self.seen == COMPARED {
            return;
        }
        let pairs: HashSet<u64> = pairs(input, &words(input)).into_iter().collect();
        for pair in pairs {
            match self.counts.get_mut(&pair) {
                Some(count) => *count += 1,
                None if self.seen < TRIED => drop(self.counts.insert(pair, 1)),
                None => {}
            }
        }
        self.seen += 1;
    }

    fn finish(self) -> Template {
        let enough = |count: usize| count as f64 >= SHARE * self.seen as f64;
        let pairs = self.counts.into_iter().filter(|(_, count)| self.seen >= FEWEST && enough(*count));
        Template { pairs: pairs.map(|(pair, _)| pair).collect() }
    }
}

impl Template {
    /// What nearly all of `inputs` have in common; nothing if they are fewer than eight.
    pub fn of<'a>(inputs: impl Iterator<Item = &'a str>) -> Self {
        let mut compared = Compared::default();
        inputs.for_each(|input| compared.add(input));
        compared.finish()
    }

    /// `input` without the template's words; with them, if nothing else is left.
    pub fn own(&self, input: &str) -> String {
        let own = self.part(input, false);
        if own.is_empty() { input.to_string() } else { own }
    }

    /// The template's words in `input`.
    pub fn fixed(&self, input: &str) -> String {
        self.part(input, true)
    }

    fn part(&self, input: &str, fixed: bool) -> String {
        let words = words(input);
        let mut is_fixed = vec![false; words.len()];
        // Pair `i` is of the words `i - 1` and `i`; the first and the last have the text's ends for one of theirs.
        for (i, pair) in pairs(input, &words).into_iter().enumerate() {
            if self.pairs.contains(&pair) {
                i.checked_sub(1)
                    .into_iter()
                    .chain((i < words.len()).then_some(i))
                    .for_each(|at| is_fixed[at] = true);
            }
        }
        let mut parts: Vec<&str> = Vec::new();
        let mut start = None;
        for (i, (from, to)) in words.iter().enumerate() {
            if is_fixed[i] != fixed {
                start = None;
                continue;
            }
            match (start, parts.last_mut()) {
                // Words that stand together stay as they stand.
                (Some(start), Some(last)) => *last = &input[start..*to],
                _ => {
                    start = Some(*from);
                    parts.push(&input[*from..*to]);
                }
            }
        }
        parts.join(" ")
    }
}

/// The templates of a pool, one of each task and template name.
#[derive(Debug)]
pub struct Templates {
    groups: HashMap<String, usize>,
    templates: Vec<Template>,
}

impl Templates {
    /// Reads the pool once.
    ///
    /// # Errors
    /// A pool that changed.
    pub fn of_pool(pool: &Pool) -> Result<Self> {
        let mut groups = HashMap::new();
        let mut compared: Vec<Compared> = Vec::new();
        pool.for_each(|_, _, row| {
            let next = groups.len();
            let group = *groups.entry(name(&row)).or_insert(next);
            if group == compared.len() {
                compared.push(Compared::default());
            }
            compared[group].add(&row.input);
            Ok(())
        })?;
        Ok(Self { groups, templates: compared.into_iter().map(Compared::finish).collect() })
    }

    /// The number of the row's task and template.
    pub fn group_of(&self, row: &Row) -> usize {
        self.groups.get(&name(row)).copied().unwrap_or_default()
    }

    /// How many groups there are.
    pub fn groups(&self) -> usize {
        self.templates.len()
    }

    /// The row's own text: as the pool says it, else without the template's words.
    pub fn own(&self, row: &Row) -> String {
        match &row.own {
            Some(own) => own.clone(),
            None => self.templates[self.group_of(row)].own(&row.input),
        }
    }

    /// The template of a group.
    pub fn template(&self, group: usize) -> &Template {
        &self.templates[group]
    }
}

fn name(row: &Row) -> String {
    let part = |name: &Option<String>| name.clone().unwrap_or_default();
    format!("{}\n{}", part(&row.task), part(&row.template))
}

/// Where the words of a text are, in bytes: runs of letters and digits, and every other sign by itself.
pub fn words(text: &str) -> Vec<(usize, usize)> {
    let mut words: Vec<(usize, usize)> = Vec::new();
    let mut within = false;
    for (at, c) in text.char_indices() {
        let end = at + c.len_utf8();
        match (c.is_alphanumeric(), within, words.last_mut()) {
            (true, true, Some(last)) => last.1 = end,
            (letter, ..) if letter || !c.is_whitespace() => words.push((at, end)),
            _ => {}
        }
        within = c.is_alphanumeric();
    }
    words
}

/// A hash of each two neighbouring words, the text's beginning and end counted as words.
fn pairs(text: &str, words: &[(usize, usize)]) -> Vec<u64> {
    let hash = |(from, to): &(usize, usize)| {
        text.as_bytes()[*from..*to].iter().fold(0xCBF2_9CE4_8422_2325u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01B3)
        })
    };
    let hashes: Vec<u64> = [1].into_iter().chain(words.iter().map(hash)).chain([2]).collect();
    hashes.windows(2).map(|pair| crate::pool::ngrams::mix(pair[0].rotate_left(17) ^ pair[1])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: [(&str, &str); 9] = [
        ("Bees fly.", "they walk"),
        ("The king sleeps!", "he is awake"),
        ("It rains", "the road is wet"),
        ("We read.", "there are books"),
        ("Snow fell on the hill", "it was cold"),
        ("A dog barked.", "a cat mewed"),
        ("The train left", "nobody waited"),
        ("Honey is sweet.", "salt is not"),
        ("She sang.", "silence"),
    ];

    fn input((a, b): &(&str, &str)) -> String {
        format!("{a}\n Question: Does this imply that \"{b}.\"? Yes or no?")
    }

    #[test]
    fn template_and_own_text_come_apart() {
        let inputs: Vec<String> = OWN.iter().map(input).collect();
        let template = Template::of(inputs.iter().map(String::as_str));
        assert_eq!(template.own(&inputs[1]), "The king sleeps! he is awake");
        assert_eq!(template.own(&inputs[4]), "Snow fell on the hill it was cold");
        assert_eq!(template.fixed(&inputs[4]), "Question: Does this imply that \" .\"? Yes or no?");
        assert_eq!(template.own("Another text, é!"), "Another text, é!");
        let few = Template::of(inputs[..FEWEST - 1].iter().map(String::as_str));
        assert_eq!((few.own(&inputs[1]), few.fixed(&inputs[1])), (inputs[1].clone(), String::new()));
        // What has nothing of its own is kept whole.
        let same = Template::of(std::iter::repeat_n("Say a word.", 9));
        assert_eq!(
            (same.own("Say a word."), same.fixed("Say a word.")),
            ("Say a word.".into(), "Say a word.".into())
        );
        assert_eq!(same.own(""), "");
    }

    #[test]
    fn each_task_and_template_of_a_pool_has_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pool.jsonl");
        let of = |template: &str, input: String| serde_json::json!({"input": input, "target": "no", "task": "nli", "template": template});
        let mut lines: Vec<_> = OWN.iter().map(|own| of("imply", input(own))).collect();
        lines.extend(OWN.iter().map(|(a, b)| of("short", format!("{a} So {b}?"))));
        lines.push(serde_json::json!({"input": "Definition: x\n\nInput: y", "own": "y", "target": "z", "task": "other"}));
        let lines: Vec<_> = lines.iter().map(ToString::to_string).collect();
        std::fs::write(&path, lines.join("\n")).unwrap();
        let pool = Pool::open(&path).unwrap();
        let templates = Templates::of_pool(&pool).unwrap();
        assert_eq!(templates.groups(), 3);
        let mut own = Vec::new();
        pool.for_each(|_, _, row| {
            own.push(templates.own(&row));
            Ok(())
        })
        .unwrap();
        assert_eq!(own[0], "Bees fly. they walk");
        // "So" stands between other words in every text, so it is no pair's.
        assert_eq!(own[9], "Bees fly. So they walk");
        assert_eq!(own[18], "y");
    }
}
