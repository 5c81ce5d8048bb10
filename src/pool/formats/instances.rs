//! Plain instances: lines of `{"input", "target"}`, with whatever else an [`Instance`] has. DEFT's pools and few-shot
//! files are such lines too; a number as the target is that of the right choice.

use std::path::Path;

use serde_json::Value;

use super::super::instance::{few_shot_task, name_choice};
use super::super::lines::{Lines, reason};
use super::{Visit, json};
use crate::error::Error;
use crate::pool::Instance;

const WANTED: &str = "an instance is an object with the strings \"input\" and \"target\"";

pub fn read(path: &Path, visit: Visit) -> crate::error::Result<()> {
    let task = few_shot_task(path);
    let mut named = |mut instance: Instance| {
        if instance.task.is_none() {
            instance.task.clone_from(&task);
        }
        visit(instance)
    };
    if json::is_array(path)? {
        return json::records(path, WANTED, &mut |number, value: Value| {
            named(numbered(value).map_err(|why| Error::file(path, format!("record {number}: {why}")))?)
        });
    }
    let mut lines = Lines::open(path)?;
    while let Some((line, text)) = lines.next()? {
        named(parse(text).map_err(|why| Error::line(path, line, why))?)?;
    }
    Ok(())
}

/// An instance whose target may be a number.
fn numbered(mut value: Value) -> Result<Instance, String> {
    name_choice(&mut value)?;
    serde_json::from_value(value).map_err(|why| format!("{why}; {WANTED}"))
}

fn parse(text: &str) -> Result<Instance, String> {
    // Nearly all lines are what they should be.
    let why = match serde_json::from_str(text) {
        Ok(instance) => return Ok(instance),
        Err(why) => why,
    };
    match serde_json::from_str::<Value>(text) {
        Ok(value) if value["target"].is_u64() => numbered(value),
        _ => Err(format!("{}; {WANTED}", reason(&why))),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    /// The first lines of DEFT's `casehold/32_shot/0_seed.jsonl` look like this.
    #[test]
    fn files_that_t_few_has_drawn() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("casehold/32_shot/0_seed.jsonl");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let all = |text: &str| {
            fs::write(&path, text).unwrap();
            let mut all = Vec::new();
            super::read(&path, &mut |instance| {
                all.push(instance);
                Ok(())
            })
            .map(|()| all)
        };
        let line = |target: &str| {
            format!("{{\"input\": \"a\", \"target\": {target}, \"answer_choices\": [\"x\", \"y\"]}}\n")
        };
        let found = all(&(line("1") + &line("\"x\""))).unwrap();
        assert_eq!((found[0].target.as_str(), found[1].target.as_str()), ("y", "x"));
        assert_eq!(found[0].task.as_deref(), Some("casehold"));
        let said = all(&(line("0") + &line("2"))).unwrap_err().to_string();
        assert!(said.contains("0_seed.jsonl:2") && said.contains("target 2"), "{said}");
        let said = all("{\"input\": \"a\", \"target\": 1.5}").unwrap_err().to_string();
        assert!(said.contains("target"), "{said}");
    }
}
