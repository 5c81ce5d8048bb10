//! Raw rows that templates are applied to: JSON Lines, a JSON array, Parquet or CSV.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use serde_json::{Map, Value};

use super::super::csv::{self, Table};
use super::json;
use crate::error::{Error, Result};

/// Hands each row at `path` to `visit`, with its number from 1.
pub fn read(path: &Path, visit: &mut dyn FnMut(u64, Map<String, Value>) -> Result<()>) -> Result<()> {
    if path.extension().is_some_and(|end| end.eq_ignore_ascii_case("parquet")) {
        return parquet(path, visit);
    }
    match csv::is(path) {
        true => table(Table::open(path)?, visit),
        false => json::records(path, "a row is an object", visit),
    }
}

/// The rows of a table. A column that has nothing but whole numbers is one of numbers, as labels are to templates.
fn table(table: Table, visit: &mut dyn FnMut(u64, Map<String, Value>) -> Result<()>) -> Result<()> {
    let whole = |field: &str| field.parse::<i64>().ok().filter(|number| number.to_string() == field);
    let numbers: Vec<bool> = (0..table.header.len())
        .map(|column| table.rows.iter().all(|(_, row)| whole(&row[column]).is_some()))
        .collect();
    for (number, (_, row)) in (1..).zip(table.rows) {
        let value = |(field, is_number): (String, &bool)| match whole(&field) {
            Some(number) if *is_number => number.into(),
            _ => Value::String(field),
        };
        visit(number, table.header.iter().cloned().zip(row.into_iter().zip(&numbers).map(value)).collect())?;
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;

    use super::*;

    #[test]
    fn columns_of_whole_numbers_are_numbers() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows.csv");
        std::fs::write(&path, "text,label,code\n\"a, b\",0,07\n5,-1,2\n").unwrap();
        let mut rows = Vec::new();
        read(&path, &mut |number, row| {
            rows.push((number, Value::Object(row)));
            Ok(())
        })
        .unwrap();
        let first = serde_json::json!({"text": "a, b", "label": 0, "code": "07"});
        assert_eq!(rows, [(1, first), (2, serde_json::json!({"text": "5", "label": -1, "code": "2"}))]);
    }

    #[test]
    fn parquet_and_json_give_the_same_rows_and_damage_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows.parquet");
        let schema = "message m { OPTIONAL BYTE_ARRAY text (UTF8); REQUIRED INT64 label; }";
        let schema = Arc::new(parse_message_type(schema).unwrap());
        let mut writer =
            SerializedFileWriter::new(File::create(&path).unwrap(), schema, Default::default()).unwrap();
        let mut rows = writer.next_row_group().unwrap();
        let mut column = rows.next_column().unwrap().unwrap();
        let texts = [ByteArray::from("é")];
        column.typed::<ByteArrayType>().write_batch(&texts, Some(&[1, 0]), None).unwrap();
        column.close().unwrap();
        let mut column = rows.next_column().unwrap().unwrap();
        column.typed::<Int64Type>().write_batch(&[0, 1], None, None).unwrap();
        column.close().unwrap();
        rows.close().unwrap();
        writer.close().unwrap();
        let json = dir.path().join("rows.jsonl");
        std::fs::write(&json, "{\"text\": \"é\", \"label\": 0}\n{\"text\": null, \"label\": 1}\n").unwrap();
        let all = |path: &Path| {
            let mut rows = Vec::new();
            read(path, &mut |number, row| {
                rows.push((number, row));
                Ok(())
            })
            .map(|()| rows)
        };
        assert_eq!(all(&path).unwrap(), all(&json).unwrap());
        let whole = std::fs::read(&path).unwrap();
        for at in (0..whole.len()).step_by(5) {
            std::fs::write(&path, &whole[..at]).unwrap();
            assert!(all(&path).unwrap_err().to_string().contains("rows.parquet"), "cut at {at}");
            let mut bytes = whole.clone();
            bytes[at] ^= 0x55;
            std::fs::write(&path, &bytes).unwrap();
            // Other rows or an error, but no panic.
            let _ = all(&path);
        }
    }
}
