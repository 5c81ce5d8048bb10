//! Plain instances: lines of `{"input", "target"}`, with whatever else an [`Instance`] has. DEFT's pools and few-shot
//! files are such lines too.

use std::path::Path;

use super::super::Instance;
use super::super::lines::{Lines, reason};
use super::Visit;
use crate::error::{Error, Result};

pub fn read(path: &Path, visit: Visit) -> Result<()> {
    let mut lines = Lines::open(path)?;
    while let Some((line, text)) = lines.next()? {
        let instance: Instance = serde_json::from_str(text).map_err(|why| {
            let wanted = "an instance is an object with the strings \"input\" and \"target\"";
            Error::line(path, line, format!("{}; {wanted}", reason(&why)))
        })?;
        visit(instance)?;
    }
    Ok(())
}
