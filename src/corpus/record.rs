//! A line or row before it becomes a document.

use serde::Deserialize;

/// What a line or row says about a document.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Record {
    #[serde(default, deserialize_with = "text_or_number")]
    pub id: Option<String>,
    pub title: Option<String>,
    pub section: Option<String>,
    pub text: Option<String>,
}

fn text_or_number<'de, D: serde::Deserializer<'de>>(
    input: D,
) -> std::result::Result<Option<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Id {
        Text(String),
        Number(serde_json::Number),
    }
    let id = Option::<Id>::deserialize(input)
        .map_err(|_| serde::de::Error::custom("\"id\" is neither a string nor a number"))?;
    Ok(id.map(|id| match id {
        Id::Text(text) => text,
        Id::Number(number) => number.to_string(),
    }))
}
