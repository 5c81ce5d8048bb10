//! Making a pool.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::duplicates::{Duplicates, Seen, Stretches};
use super::read;
use crate::artefact::{check_replaceable, sync_dir};
use crate::error::{Error, Result};
use crate::interrupt;
use crate::progress::Progress;

/// Instances between looks at whether somebody wants it to stop.
const LOOK: usize = 1024;

/// What to make a pool of.
pub struct BuildOptions<'a> {
    /// Files and folders of instances.
    pub sources: &'a [PathBuf],
    /// Files and folders of instances that models will be evaluated on.
    pub evaluation: &'a [PathBuf],
    /// Whether instances that hold a stretch of those are left out.
    pub drop_contaminated: bool,
    /// Tasks that are left out, by name.
    pub without: &'a [String],
    /// Positive examples that are shown before each instance of Super-NaturalInstructions.
    pub examples: usize,
    /// The file to write.
    pub out: &'a Path,
}

/// What came of it.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Report {
    /// Instances read.
    pub read: usize,
    /// Instances written.
    pub written: usize,
    /// Left out because another was the same.
    pub same: usize,
    /// Left out because another was nearly the same.
    pub nearly_same: usize,
    /// Left out because their task was not wanted.
    pub without: usize,
    /// Instances whose input holds a stretch of 13 words of an evaluation file.
    pub contaminated: usize,
    /// Instances written of each task.
    pub tasks: BTreeMap<String, usize>,
}

/// Reads all sources and writes what is left, a line each; the file appears whole or not at all.
///
/// # Errors
/// Names the file and line that cannot be read; a full disk.
pub fn build(options: &BuildOptions, progress: Progress) -> Result<Report> {
    let out = options.out;
    check_replaceable(out)?;
    let mut evaluated = Stretches::default();
    read(options.evaluation, 0, &mut |instance| {
        evaluated.add(&instance.input);
        Ok(())
    })?;
    let name = out.file_name().ok_or_else(|| Error::file(out, "this is no name for a file to write"))?;
    let temporary = out.with_file_name(format!(".{}.tmp.{}", name.to_string_lossy(), std::process::id()));
    let written = write(options, &evaluated, &temporary, progress);
    match written {
        Ok(report) => {
            std::fs::rename(&temporary, out).map_err(Error::io(out))?;
            sync_dir(out.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new(".")))?;
            Ok(report)
        }
        Err(e) => {
            let _ = std::fs::remove_file(&temporary);
            Err(e)
        }
    }
}

fn write(options: &BuildOptions, evaluated: &Stretches, path: &Path, progress: Progress) -> Result<Report> {
    let mut file = BufWriter::new(File::create(path).map_err(Error::io(path))?);
    let (mut report, mut duplicates) = (Report::default(), Duplicates::default());
    let task = progress.task("build the pool", 0, "instances");
    read(options.sources, options.examples, &mut |instance| {
        report.read += 1;
        task.advance(1);
        if report.read.is_multiple_of(LOOK) && interrupt::requested() {
            return Err(Error::Interrupted("nothing was written; run the command again".into()));
        }
        if options.without.iter().any(|name| *name == instance.task) {
            report.without += 1;
            return Ok(());
        }
        match duplicates.seen(&instance.input, &instance.target) {
            Some(Seen::Exactly) => report.same += 1,
            Some(Seen::Nearly) => report.nearly_same += 1,
            None => {
                let contaminated = evaluated.are_in(&instance.input);
                report.contaminated += usize::from(contaminated);
                if !(contaminated && options.drop_contaminated) {
                    *report.tasks.entry(instance.task.clone()).or_default() += 1;
                    report.written += 1;
                    serde_json::to_writer(&mut file, &instance)
                        .map_err(std::io::Error::from)
                        .and_then(|()| file.write_all(b"\n"))
                        .map_err(Error::io(path))?;
                }
            }
        }
        Ok(())
    })?;
    if report.written == 0 {
        return Err(Error::setting("sources", "hold no instance that is left"));
    }
    let file = file.into_inner().map_err(|e| Error::io(path)(e.into_error()))?;
    file.sync_all().map_err(Error::io(path))?;
    Ok(report)
}
