//! Raw rows that templates are applied to: JSON Lines, a JSON array, or Parquet.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use serde_json::{Map, Value};

use super::json;
use crate::error::{Error, Result};

/// Hands each row at `path` to `visit`, with its number from 1.
pub fn read(path: &Path, visit: &mut dyn FnMut(u64, Map<String, Value>) -> Result<()>) -> Result<()> {
    match path.extension().is_some_and(|end| end.eq_ignore_ascii_case("parquet")) {
        false => json::records(path, "a row is an object", visit),
        true => parquet(path, visit),
    }
}

fn parquet(path: &Path, visit: &mut dyn FnMut(u64, Map<String, Value>) -> Result<()>) -> Result<()> {
    let wrong = |why: String| Error::file(path, format!("not readable as Parquet: {why}"));
    let file = File::open(path).map_err(Error::io(path))?;
    // The reader panics on some damaged files.
    let reader = guarded(|| SerializedFileReader::new(file).map_err(|e| e.to_string())).map_err(wrong)?;
    let mut rows = guarded(|| reader.get_row_iter(None).map_err(|e| e.to_string())).map_err(wrong)?;
    let mut number = 0;
    while let Some(row) = guarded(|| rows.next().transpose().map_err(|e| e.to_string())).map_err(wrong)? {
        number += 1;
        let row = row.get_column_iter().map(|(name, field)| (name.clone(), value(field))).collect();
        visit(number, row)?;
    }
    Ok(())
}

fn guarded<T>(read: impl FnOnce() -> std::result::Result<T, String>) -> std::result::Result<T, String> {
    catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|_| Err("damaged".to_string()))
}

fn value(field: &Field) -> Value {
    match field {
        Field::Null => Value::Null,
        Field::Bool(x) => (*x).into(),
        Field::Byte(x) => (*x).into(),
        Field::Short(x) => (*x).into(),
        Field::Int(x) => (*x).into(),
        Field::Long(x) => (*x).into(),
        Field::UByte(x) => (*x).into(),
        Field::UShort(x) => (*x).into(),
        Field::UInt(x) => (*x).into(),
        Field::ULong(x) => (*x).into(),
        Field::Float(x) => (*x).into(),
        Field::Double(x) => (*x).into(),
        Field::Str(x) => x.as_str().into(),
        Field::Bytes(x) => String::from_utf8_lossy(x.data()).into(),
        Field::Group(row) => {
            Value::Object(row.get_column_iter().map(|(name, field)| (name.clone(), value(field))).collect())
        }
        Field::ListInternal(list) => list.elements().iter().map(value).collect(),
        other => other.to_string().into(),
    }
}
