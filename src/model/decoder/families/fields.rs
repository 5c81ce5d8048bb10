//! Reading the fields of a `config.json`. A field that is null counts as absent.

use serde_json::{Map, Value};
use sidenote_kernels::Activation;

use crate::error::{Error, Result};

/// The fields of a JSON object.
#[derive(Clone, Copy)]
pub struct Fields<'a>(pub &'a Map<String, Value>);

impl<'a> Fields<'a> {
    /// The field, if it is there.
    pub fn get(&self, name: &str) -> Option<&'a Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    /// An object inside.
    pub fn object(&self, name: &str) -> Result<Option<Fields<'a>>> {
        self.typed(name, "an object", |value| value.as_object().map(Fields))
    }

    /// A count that must be there.
    pub fn size(&self, name: &str) -> Result<usize> {
        self.optional_size(name)?.ok_or_else(|| Error::setting(name, "this field is missing"))
    }

    /// A count that may be there.
    pub fn optional_size(&self, name: &str) -> Result<Option<usize>> {
        self.typed(name, "a whole number, 0 or more", |value| {
            value.as_u64().and_then(|n| usize::try_from(n).ok())
        })
    }

    /// A number that must be there.
    pub fn number(&self, name: &str) -> Result<f64> {
        self.optional_number(name)?.ok_or_else(|| Error::setting(name, "this field is missing"))
    }

    /// A number that may be there.
    pub fn optional_number(&self, name: &str) -> Result<Option<f64>> {
        self.typed(name, "a number", Value::as_f64)
    }

    /// A number, or what it is if the field is absent.
    pub fn number_or(&self, name: &str, default: f64) -> Result<f64> {
        Ok(self.optional_number(name)?.unwrap_or(default))
    }

    /// A flag, or what it is if the field is absent.
    pub fn flag_or(&self, name: &str, default: bool) -> Result<bool> {
        Ok(self.typed(name, "true or false", Value::as_bool)?.unwrap_or(default))
    }

    /// A text that may be there.
    pub fn text(&self, name: &str) -> Result<Option<&'a str>> {
        self.typed(name, "a text", Value::as_str)
    }

    /// A list of texts that may be there.
    pub fn texts(&self, name: &str) -> Result<Option<Vec<&'a str>>> {
        self.typed(name, "a list of texts", |value| value.as_array()?.iter().map(Value::as_str).collect())
    }

    /// An activation function, or what it is if the field is absent.
    pub fn activation(&self, name: &str, default: Activation) -> Result<Activation> {
        match self.text(name)? {
            None => Ok(default),
            Some("silu" | "swish") => Ok(Activation::Silu),
            Some("gelu") => Ok(Activation::Gelu),
            Some("gelu_new" | "gelu_pytorch_tanh" | "gelu_fast") => Ok(Activation::GeluTanh),
            Some("relu") => Ok(Activation::Relu),
            Some(other) => {
                let why =
                    format!("{other:?} is not known; silu, gelu, gelu_new, gelu_pytorch_tanh and relu are");
                Err(Error::setting(name, why))
            }
        }
    }

    /// The tokens of a sliding window: transformers takes 4096 where the field is absent, and none where it is null.
    pub fn window(&self) -> Result<Option<usize>> {
        match self.0.contains_key("sliding_window") {
            true => self.optional_size("sliding_window"),
            false => Ok(Some(4096)),
        }
    }

    /// Refuses settings that would change the result: each must be absent, null, false, empty, or a text that says
    /// "absolute" or "none".
    pub fn refuse(&self, names: &[&str]) -> Result<()> {
        for name in names {
            let harmless = match self.get(name) {
                None => true,
                Some(Value::Bool(on)) => !on,
                Some(Value::Object(fields)) => fields.is_empty(),
                Some(Value::Array(values)) => values.is_empty(),
                Some(Value::String(text)) => matches!(text.as_str(), "absolute" | "none"),
                Some(Value::Number(number)) => number.as_f64() == Some(0.0),
                Some(Value::Null) => true,
            };
            if !harmless {
                let why = format!("{} is not supported; results would differ", self.0[*name]);
                return Err(Error::setting(*name, why));
            }
        }
        Ok(())
    }

    /// Refuses a flag that is not `expected`, if it is there.
    pub fn expect_flag(&self, name: &str, expected: bool) -> Result<()> {
        if self.flag_or(name, expected)? == expected {
            return Ok(());
        }
        Err(Error::setting(name, format!("{} is not supported; results would differ", !expected)))
    }

    fn typed<T>(&self, name: &str, kind: &str, read: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>> {
        match self.get(name) {
            None => Ok(None),
            Some(value) => match read(value) {
                Some(read) => Ok(Some(read)),
                None => Err(Error::setting(name, format!("{value} is not {kind}"))),
            },
        }
    }
}

/// An activation's name in transformers.
pub fn activation_name(activation: Activation) -> &'static str {
    match activation {
        Activation::Silu => "silu",
        Activation::Gelu => "gelu",
        Activation::GeluTanh => "gelu_pytorch_tanh",
        Activation::Relu => "relu",
    }
}
