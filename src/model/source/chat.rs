//! Chat templates: Jinja, as transformers' `apply_chat_template` renders it.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value};
use minijinja::{Environment, ErrorKind, context};
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

use crate::error::{Error, Result};

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Message {
    /// Who speaks: "system", "user" or "assistant".
    pub role: String,
    /// What is said.
    pub content: String,
}

impl Message {
    /// What `role` says.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}

/// How a model's conversations look as text.
#[derive(Clone)]
pub struct ChatTemplate {
    environment: Arc<Environment<'static>>,
    bos: Option<String>,
    eos: Option<String>,
}

const NAME: &str = "chat_template";

/// Steps that one rendering may take.
const FUEL: u64 = 10_000_000;

impl ChatTemplate {
    /// Compiles `template`; `bos` and `eos` are what it knows as `bos_token` and `eos_token`.
    ///
    /// # Errors
    /// A template that is no Jinja, or uses what is not known here.
    pub fn new(template: &str, bos: Option<String>, eos: Option<String>) -> Result<Self> {
        let mut environment = Environment::new();
        // A template comes with a model from anywhere: it may compute, but not for ever.
        environment.set_fuel(Some(FUEL));
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(failed)?;
        environment.set_syntax(syntax);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("tojson", to_json);
        environment.add_function("raise_exception", raise);
        environment.add_function("strftime_now", |format: &str| format_time(format, now()));
        environment.add_template_owned(NAME, template.to_string()).map_err(failed)?;
        Ok(Self { environment: Arc::new(environment), bos, eos })
    }

    /// The text of a conversation. With `answer`, it ends where the model is to speak.
    ///
    /// # Errors
    /// A conversation that the template refuses (`raise_exception`).
    pub fn render(&self, messages: &[Message], answer: bool) -> Result<String> {
        let template = self.environment.get_template(NAME).map_err(failed)?;
        let context = context! {
            messages => Serde(messages),
            add_generation_prompt => answer,
            bos_token => self.bos.as_deref().unwrap_or_default(),
            eos_token => self.eos.as_deref().unwrap_or_default(),
            tools => (),
            documents => (),
        };
        template.render(context).map_err(failed)
    }
}

impl fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChatTemplate").field("bos", &self.bos).field("eos", &self.eos).finish_non_exhaustive()
    }
}

fn failed(e: minijinja::Error) -> Error {
    Error::setting(NAME, format!("{e:#}"))
}

fn raise(why: String) -> std::result::Result<Value, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, why))
}

/// Python's `json.dumps(value, ensure_ascii=False, indent=indent)`.
fn to_json(value: &Value, arguments: Kwargs) -> std::result::Result<Value, minijinja::Error> {
    let indent: Option<usize> = arguments.get("indent")?;
    let mut text = Vec::new();
    let written = match indent {
        Some(width) => {
            let indent = " ".repeat(width.min(16));
            let pretty = PrettyFormatter::with_indent(indent.as_bytes());
            value.serialize(&mut Serializer::with_formatter(&mut text, pretty))
        }
        None => value.serialize(&mut Serializer::with_formatter(&mut text, Python)),
    };
    let wrong = |why: String| minijinja::Error::new(ErrorKind::InvalidOperation, why);
    written.map_err(|e| wrong(e.to_string()))?;
    String::from_utf8(text).map(Value::from).map_err(|e| wrong(e.to_string()))
}

/// Spaces where Python puts them.
struct Python;

impl Formatter for Python {
    fn begin_array_value<W: io::Write + ?Sized>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        out.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: io::Write + ?Sized>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        out.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: io::Write + ?Sized>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(b": ")
    }
}

/// Seconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// C's `strftime` of a time in UTC, as far as templates use it.
fn format_time(format: &str, seconds: u64) -> String {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];
    let days = seconds / 86_400;
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    let (year, month, day) = civil(days);
    let (month_name, day_name) = (MONTHS[month as usize - 1], DAYS[(days % 7) as usize]);
    let mut text = String::new();
    let mut letters = format.chars();
    while let Some(letter) = letters.next() {
        if letter != '%' {
            text.push(letter);
            continue;
        }
        match letters.next() {
            Some('Y') => text += &year.to_string(),
            Some('y') => text += &format!("{:02}", year % 100),
            Some('m') => text += &format!("{month:02}"),
            Some('B') => text += month_name,
            Some('b' | 'h') => text += &month_name[..3],
            Some('d') => text += &format!("{day:02}"),
            Some('A') => text += day_name,
            Some('a') => text += &day_name[..3],
            Some('H') => text += &format!("{hour:02}"),
            Some('M') => text += &format!("{minute:02}"),
            Some('S') => text += &format!("{second:02}"),
            Some('F') => text += &format!("{year}-{month:02}-{day:02}"),
            Some('T') => text += &format!("{hour:02}:{minute:02}:{second:02}"),
            Some('%') => text.push('%'),
            Some(other) => text.extend(['%', other]),
            None => text.push('%'),
        }
    }
    text
}

/// Year, month and day of the month, `days` after 1 January 1970.
fn civil(days: u64) -> (u64, u64, u64) {
    let leap = |year: u64| year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400);
    // 400 years have 146,097 days; what is left is walked through.
    let (mut year, mut left) = (1970 + days / 146_097 * 400, days % 146_097);
    loop {
        let length = 365 + u64::from(leap(year));
        if left < length {
            break;
        }
        left -= length;
        year += 1;
    }
    let mut month = 1;
    for length in [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if left < length {
            break;
        }
        left -= length;
        month += 1;
    }
    (year, month, left + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn talk() -> Vec<Message> {
        vec![
            Message::new("user", "Hello, <there> & \"you\""),
            Message::new("assistant", " Yes? "),
            Message::new("user", "Naïve?"),
        ]
    }

    fn render(template: &str, answer: bool) -> Result<String> {
        ChatTemplate::new(template, Some("<s>".into()), Some("</s>".into()))?.render(&talk(), answer)
    }

    #[test]
    fn templates_are_rendered_as_transformers_does() {
        // ChatML, as SmolLM2 has it.
        let chatml = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}\
            {{ '<|im_start|>system\\nBe kind.<|im_end|>\\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\\n' \
            + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}{% if add_generation_prompt %}\
            {{ '<|im_start|>assistant\\n' }}{% endif %}";
        let expected = "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHello, <there> & \"you\"<|im_end|>\n\
            <|im_start|>assistant\n Yes? <|im_end|>\n<|im_start|>user\nNaïve?<|im_end|>\n";
        assert_eq!(render(chatml, false).unwrap(), expected);
        assert_eq!(render(chatml, true).unwrap(), format!("{expected}<|im_start|>assistant\n"));
        // What the templates of Llama 2 and 3, Gemma and Qwen use besides.
        for (template, expected) in [
            ("{{ bos_token }}|{{ eos_token }}", "<s>|</s>"),
            ("{{ messages[1].content.strip() }}.", "Yes?."),
            ("{{ messages[1]['content'] | trim }}.", "Yes?."),
            ("{{ messages[2].content.startswith('Na') and not messages[2].content.endswith('x') }}", "True"),
            ("{% set loop_messages = messages[1:] %}{{ loop_messages | length }}", "2"),
            ("{% for m in messages[::-1] %}{{ m.role[0] }}{% endfor %}", "uau"),
            (
                "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
                "3",
            ),
            (
                "{% for m in messages %}{% if loop.index0 == 1 %}{% break %}{% endif %}{{ m.role }}{% endfor %}",
                "user",
            ),
            ("{% if tools is not none and tools %}no{% else %}yes{% endif %}", "yes"),
            ("{% if custom_tools is defined %}no{% else %}yes{% endif %}", "yes"),
            ("{% macro say(x) %}[{{ x }}]{% endmacro %}{{ say('a') }}", "[a]"),
            ("{{ messages[0] | tojson }}", r#"{"role": "user", "content": "Hello, <there> & \"you\""}"#),
            ("{{ [1, 'é'] | tojson(indent=2) }}", "[\n  1,\n  \"é\"\n]"),
            ("{%- if true %}\n    {{- 'a' }}\n{%- endif %}\nb", "ab"),
            ("  {% if true %}\na\n  {% endif %}\nb", "a\nb"),
            ("{{ messages[0].content.split(',')[0].upper() }}", "HELLO"),
        ] {
            assert_eq!(render(template, false).unwrap(), expected, "{template}");
        }
        assert!(render("{{ strftime_now('%Y') }}", false).unwrap().starts_with("20"));
    }

    #[test]
    fn what_a_template_refuses_or_gets_wrong_is_an_error() {
        let said = |template: &str| render(template, false).unwrap_err().to_string();
        assert!(said("{{ raise_exception('roles must alternate') }}").contains("roles must alternate"));
        assert!(said("{% for m in messages %}").contains("chat_template"));
        assert!(said("{{ nothing.at.all }}").contains("undefined"));
        assert!(
            said("{% for i in range(100000) %}{% for j in range(100000) %}{{ j }}{% endfor %}{% endfor %}")
                .contains("fuel")
        );
    }

    #[test]
    fn times_are_formatted_as_in_c() {
        let time = |seconds| format_time("%a %A %d %b %B %Y-%m-%dT%H:%M:%S %y %% %q", seconds);
        assert_eq!(time(0), "Thu Thursday 01 Jan January 1970-01-01T00:00:00 70 % %q");
        assert_eq!(time(951_782_400), "Tue Tuesday 29 Feb February 2000-02-29T00:00:00 00 % %q");
        assert_eq!(time(1_767_225_599), "Wed Wednesday 31 Dec December 2025-12-31T23:59:59 25 % %q");
    }
}
