//! Documents out of Parquet files.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{ByteArray, DataType};
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, RowGroupReader, SerializedFileReader};

use super::record::Record;

/// The columns that are read, where they are there.
const COLUMNS: [&str; 4] = ["id", "title", "section", "text"];

/// The rows of a Parquet file with a `text` column, read a row group at a time. The columns
/// `id`, `title` and `section` are used where they are there; others are not read.
pub(super) struct ParquetRows {
    reader: SerializedFileReader<File>,
    /// Where in the file each of [`COLUMNS`] is.
    columns: [Option<usize>; COLUMNS.len()],
    next_group: usize,
    rows: std::vec::IntoIter<Record>,
}

impl ParquetRows {
    /// Reads the file's footer. Errors are texts without the file's name.
    pub fn open(path: &Path) -> Result<Self, String> {
        let file = File::open(path).map_err(|e| e.to_string())?;
        let reader = guarded(|| SerializedFileReader::new(file))?;
        let schema = reader.metadata().file_metadata().schema_descr();
        let named = |name: &str| {
            // A path of one part and no repetition: a plain column, not one inside a list.
            schema.columns().iter().position(|c| c.path().parts() == [name] && c.max_rep_level() == 0)
        };
        let columns = COLUMNS.map(named);
        if named("text").is_none() {
            let names: Vec<_> = schema.columns().iter().map(|c| c.path().string()).collect();
            return Err(format!("no column \"text\" of strings; the columns are {}", names.join(", ")));
        }
        Ok(Self { reader, columns, next_group: 0, rows: Vec::new().into_iter() })
    }

    /// The next row. After an error the file has no more to give.
    pub fn next(&mut self) -> Option<Result<Record, String>> {
        loop {
            if let Some(record) = self.rows.next() {
                return Some(Ok(record));
            }
            if self.next_group >= self.reader.num_row_groups() {
                return None;
            }
            match guarded(|| self.read_group()) {
                Ok(rows) => self.rows = rows.into_iter(),
                Err(e) => return Some(Err(format!("row group {}: {e}", self.next_group))),
            }
            self.next_group += 1;
        }
    }

    fn read_group(&self) -> Result<Vec<Record>, ParquetError> {
        let group = self.reader.get_row_group(self.next_group)?;
        let mut records = Vec::new();
        for (name, column) in COLUMNS.iter().zip(self.columns) {
            let Some(column) = column else { continue };
            let values = read_column(group.as_ref(), column)?;
            if records.is_empty() {
                records.resize_with(values.len(), Record::default);
            }
            if values.len() != records.len() {
                return Err(ParquetError::General(format!("column {name:?} is of another length")));
            }
            for (record, value) in records.iter_mut().zip(values) {
                match *name {
                    "id" => record.id = value,
                    "title" => record.title = value,
                    "section" => record.section = value,
                    _ => record.text = value,
                }
            }
        }
        Ok(records)
    }
}

/// Reads a column of strings or whole numbers as strings, null as `None`.
fn read_column(group: &dyn RowGroupReader, column: usize) -> Result<Vec<Option<String>>, ParquetError> {
    let description = group.metadata().schema_descr().column(column);
    let full = description.max_def_level();
    let name = description.name();
    match group.get_column_reader(column)? {
        ColumnReader::ByteArrayColumnReader(reader) => read_values(reader, full, |bytes: ByteArray| {
            String::from_utf8(bytes.data().to_vec())
                .map_err(|e| ParquetError::General(format!("column {name:?} is not UTF-8: {e}")))
        }),
        ColumnReader::Int32ColumnReader(reader) => read_values(reader, full, |n| Ok(n.to_string())),
        ColumnReader::Int64ColumnReader(reader) => read_values(reader, full, |n| Ok(n.to_string())),
        _ => Err(ParquetError::General(format!("column {name:?} holds neither strings nor whole numbers"))),
    }
}

fn read_values<T: DataType>(
    mut reader: ColumnReaderImpl<T>,
    full: i16,
    text: impl Fn(T::T) -> Result<String, ParquetError>,
) -> Result<Vec<Option<String>>, ParquetError> {
    let mut rows = Vec::new();
    loop {
        let (mut levels, mut values) = (Vec::new(), Vec::new());
        let wanted = (full > 0).then_some(&mut levels);
        let (records, _, _) = reader.read_records(4096, wanted, None, &mut values)?;
        if records == 0 {
            return Ok(rows);
        }
        if full == 0 {
            levels = vec![0; records];
        }
        let mut values = values.into_iter();
        for level in levels {
            let value = if level == full {
                let value =
                    values.next().ok_or_else(|| ParquetError::General("values are missing".into()))?;
                Some(text(value)?)
            } else {
                None
            };
            rows.push(value);
        }
    }
}

/// Runs the Parquet reader, which panics on some damaged files.
fn guarded<T>(read: impl FnOnce() -> Result<T, ParquetError>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(read)) {
        Ok(outcome) => outcome.map_err(|e| format!("not readable as Parquet: {e}")),
        Err(_) => Err("not readable as Parquet: damaged".into()),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::Arc;

    use parquet::basic::Compression;
    use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
    use parquet::file::properties::WriterProperties;
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;

    use super::*;
    use crate::corpus::{Documents, OnError};

    /// Two row groups of five rows; the third row's text is null.
    fn write(path: &Path, compression: Compression) {
        let schema =
            "message m { REQUIRED INT64 id; REQUIRED DOUBLE score; OPTIONAL BYTE_ARRAY text (UTF8); }";
        let schema = Arc::new(parse_message_type(schema).unwrap());
        let properties = Arc::new(WriterProperties::builder().set_compression(compression).build());
        let file = File::create(path).unwrap();
        let mut writer = SerializedFileWriter::new(file, schema, properties).unwrap();
        for group in 0..2i64 {
            let ids: Vec<_> = (0..5).map(|i| group * 5 + i).collect();
            let mut rows = writer.next_row_group().unwrap();
            let mut column = rows.next_column().unwrap().unwrap();
            column.typed::<Int64Type>().write_batch(&ids, None, None).unwrap();
            column.close().unwrap();
            let mut column = rows.next_column().unwrap().unwrap();
            column.typed::<parquet::data_type::DoubleType>().write_batch(&[0.5; 5], None, None).unwrap();
            column.close().unwrap();
            let texts: Vec<_> = ids
                .iter()
                .filter(|&&i| i != 2)
                .map(|i| ByteArray::from(format!("text {i} é").as_str()))
                .collect();
            let levels: Vec<_> = ids.iter().map(|&i| i16::from(i != 2)).collect();
            let mut column = rows.next_column().unwrap().unwrap();
            column.typed::<ByteArrayType>().write_batch(&texts, Some(&levels), None).unwrap();
            column.close().unwrap();
            rows.close().unwrap();
        }
        writer.close().unwrap();
    }

    fn open(path: &Path) -> Documents<'static> {
        Documents::open(&[PathBuf::from(path)], OnError::Skip).unwrap()
    }

    #[test]
    fn rows_become_documents() {
        let dir = tempfile::tempdir().unwrap();
        for compression in
            [Compression::UNCOMPRESSED, Compression::SNAPPY, Compression::ZSTD(Default::default())]
        {
            let path = dir.path().join("a.parquet");
            write(&path, compression);
            let mut documents = open(&path);
            let all: Vec<_> = documents.by_ref().map(Result::unwrap).collect();
            let ids: Vec<_> = all.iter().map(|d| d.id.as_str()).collect();
            assert_eq!(ids, ["0", "1", "3", "4", "5", "6", "7", "8", "9"]);
            assert_eq!(all[8].text, "text 9 é");
            assert!(documents.skipped().first[0].ends_with("a.parquet:3: no field \"text\""));
        }
    }

    #[test]
    fn damaged_bytes_give_errors_or_other_texts_but_no_panic() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.parquet");
        write(&path, Compression::SNAPPY);
        let whole = std::fs::read(&path).unwrap();
        for at in (0..whole.len()).step_by(3) {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x55;
            std::fs::write(&path, &bytes).unwrap();
            open(&path).for_each(drop);
            std::fs::write(&path, &whole[..at]).unwrap();
            assert!(open(&path).any(|d| d.is_err()), "cut at {at}");
        }
    }

    #[test]
    fn a_file_without_text_names_its_columns() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.parquet");
        let schema = Arc::new(parse_message_type("message m { REQUIRED INT64 body; }").unwrap());
        let file = File::create(&path).unwrap();
        SerializedFileWriter::new(file, schema, Default::default()).unwrap().close().unwrap();
        let error = open(&path).next().unwrap().unwrap_err().to_string();
        assert!(error.contains("no column \"text\"") && error.contains("body"), "{error}");
    }
}
