//! Settings of the command line, on top of the file's.

use crate::error::{Error, Result};

/// Applies `a.b=value`; the value is TOML, or a string where it is not.
pub fn set(table: &mut toml::Table, setting: &str) -> Result<()> {
    let (path, value) = setting
        .split_once('=')
        .ok_or_else(|| Error::setting("--set", format!("{setting:?} is not key=value")))?;
    let value = match format!("v = {value}").parse::<toml::Table>() {
        Ok(mut parsed) => parsed.remove("v"),
        Err(_) => None,
    };
    let value = value.unwrap_or_else(|| toml::Value::String(setting[path.len() + 1..].to_string()));
    let mut keys: Vec<&str> = path.split('.').collect();
    let last = keys.pop().unwrap_or_default();
    let mut at = table;
    for key in keys {
        let entry = at.entry(key).or_insert_with(|| toml::Value::Table(toml::Table::new()));
        at = entry
            .as_table_mut()
            .ok_or_else(|| Error::setting("--set", format!("{key:?} in {path:?} is not a section")))?;
    }
    at.insert(last.to_string(), value);
    Ok(())
}
