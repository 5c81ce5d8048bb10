//! Texts that must be one of given strings: a trie over their tokens.

use std::collections::BTreeMap;

use crate::corpus::Tokenizer;
use crate::error::{Error, Result};

/// The given strings as tokens. A path from the root (node 0) to a leaf is one of them; where one is the beginning
/// of another, the end of the text tells them apart.
#[derive(Debug)]
pub struct Choices {
    nodes: Vec<Node>,
    tokens: Vec<Vec<u32>>,
}

#[derive(Debug, Default)]
struct Node {
    next: BTreeMap<u32, usize>,
    choice: Option<usize>,
}

impl Choices {
    /// Reads `choices` with the model's tokenizer; `end` is a token that ends a text.
    ///
    /// # Errors
    /// When a choice is empty, two have the same tokens, or one is the beginning of another and no token ends a
    /// text.
    pub fn new(choices: &[String], tokenizer: &Tokenizer, end: Option<u32>) -> Result<Self> {
        let mut trie = Self { nodes: vec![Node::default()], tokens: Vec::new() };
        for (number, choice) in choices.iter().enumerate() {
            let tokens = tokenizer.encode(choice)?.ids;
            if tokens.is_empty() {
                return Err(Error::setting("choice", format!("number {} is empty", number + 1)));
            }
            let mut node = 0;
            for token in &tokens {
                let new = trie.nodes.len();
                node = *trie.nodes[node].next.entry(*token).or_insert(new);
                if node == new {
                    trie.nodes.push(Node::default());
                }
            }
            if let Some(earlier) = trie.nodes[node].choice.replace(number) {
                let why = format!("{choice:?} has the same tokens as {:?}", choices[earlier]);
                return Err(Error::setting("choice", why));
            }
            trie.tokens.push(tokens);
        }
        for node in trie.nodes.iter().filter(|node| !node.next.is_empty()) {
            let Some(choice) = node.choice else { continue };
            match end {
                // A path as scored: with the end where it is needed to tell.
                Some(end) => trie.tokens[choice].push(end),
                None => {
                    let why = format!(
                        "{:?} is the beginning of another, and this model ends no text",
                        choices[choice]
                    );
                    return Err(Error::setting("choice", why));
                }
            }
        }
        Ok(trie)
    }

    /// Tokens of the choices, in their order; with the end of text for those that are the beginning of another.
    pub fn paths(&self) -> &[Vec<u32>] {
        &self.tokens
    }

    /// The tokens that may come after `node`, apart from the end of text.
    pub fn next(&self, node: usize) -> impl Iterator<Item = u32> + '_ {
        self.nodes[node].next.keys().copied()
    }

    /// The node that `token` leads to.
    pub fn step(&self, node: usize, token: u32) -> Option<usize> {
        self.nodes[node].next.get(&token).copied()
    }

    /// The choice that ends at `node`.
    pub fn choice(&self, node: usize) -> Option<usize> {
        self.nodes[node].choice
    }

    /// Whether nothing comes after `node`.
    pub fn is_leaf(&self, node: usize) -> bool {
        self.nodes[node].next.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_ends() {
        let tokenizer = Tokenizer::default_lm().unwrap();
        let end = tokenizer.end_of_text();
        let choices = [" red", " green", " red deer"].map(String::from);
        let trie = Choices::new(&choices, &tokenizer, end).unwrap();
        for (number, path) in trie.paths().iter().enumerate() {
            let words = tokenizer.encode(&choices[number]).unwrap().ids;
            let node = words.iter().fold(0, |node, token| trie.step(node, *token).unwrap());
            assert_eq!(trie.choice(node), Some(number));
            assert_eq!(trie.is_leaf(node), number != 0);
            assert_eq!(path.len(), words.len() + usize::from(number == 0));
        }
        assert_eq!(trie.step(0, u32::MAX), None);
        let refused = |choices: &[&str], end| {
            let choices: Vec<String> = choices.iter().map(|choice| choice.to_string()).collect();
            Choices::new(&choices, &tokenizer, end).unwrap_err().to_string()
        };
        assert!(refused(&["a", ""], end).contains("number 2"));
        assert!(refused(&["a b", "c", "a b"], end).contains("same tokens"));
        assert!(refused(&[" red", " red deer"], None).contains("beginning"));
    }
}
