//! Tasks that a pool leaves out.

use std::path::{Path, PathBuf};

use super::Instance;
use super::lines::Lines;
use crate::error::Result;

/// Patterns of names, `*` standing for anything: of tasks, or after `source:` of sources.
#[derive(Debug, Default)]
pub struct Patterns {
    patterns: Vec<Pattern>,
}

#[derive(Debug)]
struct Pattern {
    file: PathBuf,
    line: u64,
    text: String,
    used: bool,
}

impl Patterns {
    /// Reads files of one pattern a line; what follows a `#` is a remark.
    pub fn open(files: &[PathBuf]) -> Result<Self> {
        let mut patterns = Vec::new();
        for file in files {
            let mut lines = Lines::open(file)?;
            while let Some((line, text)) = lines.next()? {
                let text = text.split('#').next().unwrap_or_default().trim();
                if !text.is_empty() {
                    patterns.push(Pattern { file: file.clone(), line, text: text.to_string(), used: false });
                }
            }
        }
        Ok(Self { patterns })
    }

    /// Whether `instance` is left out.
    pub fn excludes(&mut self, instance: &Instance) -> bool {
        let mut out = false;
        for pattern in &mut self.patterns {
            let (pattern_text, name) = match pattern.text.strip_prefix("source:") {
                Some(text) => (text, &instance.source),
                None => (pattern.text.as_str(), &instance.task),
            };
            if name.as_deref().is_some_and(|name| like(pattern_text, name)) {
                pattern.used = true;
                out = true;
            }
        }
        out
    }

    /// Patterns that nothing was like: perhaps misspelt.
    pub fn unused(&self) -> Vec<String> {
        let place = |p: &Pattern| format!("{}:{}: {}", Path::new(&p.file).display(), p.line, p.text);
        self.patterns.iter().filter(|p| !p.used).map(place).collect()
    }
}

/// Whether `name` is like `pattern`.
fn like(pattern: &str, name: &str) -> bool {
    let mut pieces = pattern.split('*');
    let first = pieces.next().unwrap_or_default();
    let Some(mut rest) = name.strip_prefix(first) else { return false };
    let pieces: Vec<_> = pieces.collect();
    let Some((last, middle)) = pieces.split_last() else { return rest.is_empty() };
    for piece in middle {
        let Some(at) = rest.find(piece) else { return false };
        rest = &rest[at + piece.len()..];
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_anything() {
        for (pattern, name, is) in [
            ("rte", "rte", true),
            ("rte", "rte2", false),
            ("task138*_*", "task1385_anli", true),
            ("*copa*", "super_glue_copa", true),
            ("*copa*", "xcop", false),
            ("a*a", "a", false),
            ("*", "", true),
        ] {
            assert_eq!(like(pattern, name), is, "{pattern} {name}");
        }
    }

    #[test]
    fn tasks_and_sources_are_left_out_and_misspelt_patterns_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.txt");
        std::fs::write(&path, "# heading\nrte*  # entailment\nsource:sni/copa\nwicc\n").unwrap();
        let mut patterns = Patterns::open(&[path]).unwrap();
        let of = |task: &str, source: &str| Instance {
            task: Some(task.to_string()),
            source: Some(source.to_string()),
            ..Instance::default()
        };
        assert!(patterns.excludes(&of("rte_de", "x")));
        assert!(patterns.excludes(&of("task9", "sni/copa")));
        assert!(!patterns.excludes(&of("wic", "sni/rte")));
        assert!(!patterns.excludes(&Instance::default()));
        let unused = patterns.unused();
        assert!(unused.len() == 1 && unused[0].ends_with("out.txt:4: wicc"), "{unused:?}");
    }
}
