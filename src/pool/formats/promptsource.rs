//! promptsource's templates (Bach et al. 2022) over raw rows: YAML with Jinja, whose two parts `prompt ||| target` make an
//! instance of a row. Every template is applied to every row; a template that leaves the target empty passes the row over.

use std::path::Path;

use minijinja::value::{Rest, Serde, Value as Jinja};
use minijinja::{Environment, ErrorKind, UndefinedBehavior};
use serde_json::{Map, Value};
use yaml_rust2::{Yaml, YamlLoader};

use super::super::Instance;
use super::super::lines::reader;
use super::own::own_text;
use super::{Visit, rows, superglue, t0};
use crate::error::{Error, Result};

/// What stands between prompt and target, and between answer choices.
const BETWEEN: &str = "|||";
/// Stands for [`BETWEEN`] in the rows' own text while a template is rendered.
const PROTECTED: &str = "\u{E000}\u{E001}\u{E000}";
/// What templates call the answers to choose between.
const CHOICES: &str = "answer_choices";
/// Steps that one rendering may take.
const FUEL: u64 = 1_000_000;

/// One template.
struct Template {
    name: String,
    choices: Option<String>,
}

/// The templates of a file.
struct Templates {
    task: String,
    environment: Environment<'static>,
    templates: Vec<Template>,
}

pub fn read(path: &Path, data: &Path, seed: u64, visit: Visit) -> Result<()> {
    let templates = Templates::open(path)?;
    rows::read(data, &mut |number, row| {
        for (part, mut row) in (0..).zip(superglue::rows(&templates.task, row)) {
            protect(&mut row);
            let draw = seed ^ number.wrapping_add(part << 32).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            for i in 0..templates.templates.len() {
                let wrong = |e: minijinja::Error| {
                    let (name, why) = (&templates.templates[i].name, templates.why(i, &row, &e));
                    Error::file(data, format!("row {number}, template {name:?} of {}: {why}", path.display()))
                };
                if let Some(instance) = templates.apply(i, &row, draw).map_err(wrong)? {
                    visit(instance)?;
                }
            }
        }
        Ok(())
    })
}

impl Templates {
    fn open(path: &Path) -> Result<Self> {
        let mut text = String::new();
        std::io::Read::read_to_string(&mut reader(path)?, &mut text).map_err(Error::io(path))?;
        let wrong = |why: &str| Error::file(path, why);
        let documents = YamlLoader::load_from_str(&text)
            .map_err(|e| Error::line(path, e.marker().line() as u64, format!("not YAML: {e}")))?;
        let document =
            documents.first().ok_or_else(|| wrong("empty; a promptsource file has \"templates\""))?;
        let listed = document["templates"].as_hash().ok_or_else(|| wrong("no \"templates\" here"))?;
        let mut environment = environment();
        let mut templates = Vec::new();
        for (id, template) in listed {
            let number = templates.len();
            let name = scalar(&template["name"]).or_else(|| scalar(id)).unwrap_or_default();
            let wrong = |what: &str, e: minijinja::Error| {
                let detail = e.detail().unwrap_or_default();
                Error::file(path, format!("template {name:?}, {what}: {}: {detail}", e.kind()))
            };
            let jinja = scalar(&template["jinja"])
                .ok_or_else(|| Error::file(path, format!("template {name:?} has no \"jinja\"")))?;
            environment.add_template_owned(format!("{number}"), jinja).map_err(|e| wrong("jinja", e))?;
            let choices = match scalar(&template["answer_choices"]) {
                Some(choices) => {
                    let key = format!("{number} choices");
                    environment
                        .add_template_owned(key.clone(), choices)
                        .map_err(|e| wrong("answer_choices", e))?;
                    Some(key)
                }
                None => None,
            };
            templates.push(Template { name, choices });
        }
        let parts = [scalar(&document["dataset"]), scalar(&document["subset"])];
        let task = parts.into_iter().flatten().collect::<Vec<_>>().join("_");
        Ok(Self { task, environment, templates })
    }

    /// What is wrong with `row`, that template `i` fails on it with `e`.
    fn why(&self, i: usize, row: &Map<String, Value>, e: &minijinja::Error) -> String {
        let said = format!("{} {}", e.kind(), e.detail().unwrap_or_default()).trim_end().to_string();
        // A field that is not there is undefined, and has no methods either.
        if !matches!(e.kind(), ErrorKind::UndefinedError | ErrorKind::UnknownMethod) {
            return said;
        }
        let template = self.environment.get_template(&i.to_string());
        let names = template.map(|template| template.undeclared_variables(false)).unwrap_or_default();
        let given = |name: &String| {
            name == CHOICES
                || row.contains_key(name)
                || self.environment.globals().any(|(global, _)| global == name)
        };
        let mut missing: Vec<String> = names.into_iter().filter(|name| !given(name)).collect();
        missing.sort();
        match (missing.as_slice(), row.get("label")) {
            ([], Some(Value::String(label))) => {
                format!(
                    "{said}: the label is the text {label:?}, where templates want its number (0, 1, ...)"
                )
            }
            ([], _) => said,
            (missing, _) => format!("{said}: the row has no field {}", missing.join(", ")),
        }
    }

    /// The instance that template `i` makes of `row`, if it makes one.
    fn apply(
        &self,
        i: usize,
        row: &Map<String, Value>,
        seed: u64,
    ) -> std::result::Result<Option<Instance>, minijinja::Error> {
        let template = &self.templates[i];
        let mut context = row.clone();
        // Templates draw with `choice`; the same row draws the same for a seed.
        context.insert("__seed".to_string(), seed.into());
        let mut choices: Vec<String> = Vec::new();
        if let Some(key) = &template.choices {
            let rendered = self.environment.get_template(key)?.render(Serde(&context))?;
            choices = rendered.split(BETWEEN).map(|choice| choice.trim().to_string()).collect();
            context.insert(CHOICES.to_string(), choices.clone().into());
        }
        let rendered = self.environment.get_template(&i.to_string())?.render(Serde(&context))?;
        let mut parts = rendered.split(BETWEEN).map(str::trim);
        let (Some(input), Some(target)) = (parts.next(), parts.next()) else { return Ok(None) };
        if input.is_empty() || target.is_empty() {
            return Ok(None);
        }
        let answers: Vec<&str> = choices.iter().map(String::as_str).chain([target]).collect();
        Ok(Some(Instance {
            own: own_text(row, input, &answers).map(|own| restored(&own)),
            input: restored(input),
            target: restored(target),
            task: Some(self.task.clone()),
            template: Some(template.name.clone()),
            cluster: t0::cluster(&self.task).map(str::to_string),
            source: Some("promptsource".to_string()),
            choices: choices.iter().map(|choice| restored(choice)).collect(),
        }))
    }
}

/// Jinja with what promptsource adds to it.
fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_fuel(Some(FUEL));
    // A field that a row does not have is an error where it is written out, not an empty text.
    environment.set_undefined_behavior(UndefinedBehavior::SemiStrict);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_filter("choice", choice);
    environment.add_filter("random", choice);
    environment.add_function("choice", choice);
    environment.add_filter("shuffle", |state: &minijinja::State, list: Vec<Jinja>| {
        let mut list = list;
        let mut draw = seed_of(state);
        for i in (1..list.len()).rev() {
            draw = next(draw);
            list.swap(i, (draw >> 33) as usize % (i + 1));
        }
        list
    });
    environment.add_filter("most_frequent", |list: Vec<Jinja>| {
        let count = |item: &Jinja| list.iter().filter(|other| *other == item).count();
        let most = list.iter().map(count).max().unwrap_or(0);
        let mut found: Vec<Jinja> = Vec::new();
        for item in list.iter().filter(|item| count(item) == most) {
            if !found.contains(item) {
                found.push(item.clone());
            }
        }
        found
    });
    environment.add_function("enumerate", |list: Vec<Jinja>| {
        list.into_iter().enumerate().map(|(i, item)| vec![Jinja::from(i), item]).collect::<Vec<_>>()
    });
    environment.add_function("zip", |lists: Rest<Vec<Jinja>>| {
        let length = lists.iter().map(Vec::len).min().unwrap_or(0);
        (0..length).map(|i| lists.iter().map(|list| list[i].clone()).collect()).collect::<Vec<Vec<Jinja>>>()
    });
    environment
}

/// One of a list, by the row's seed.
fn choice(state: &minijinja::State, list: Vec<Jinja>) -> std::result::Result<Jinja, minijinja::Error> {
    let at = (next(seed_of(state)) >> 33) as usize;
    let none = || minijinja::Error::new(ErrorKind::InvalidOperation, "choice of an empty list");
    list.get(at % list.len().max(1)).cloned().ok_or_else(none)
}

fn seed_of(state: &minijinja::State) -> u64 {
    state.lookup("__seed").and_then(|seed| u64::try_from(seed).ok()).unwrap_or(0)
}

/// SplitMix's step.
fn next(x: u64) -> u64 {
    let x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9)
}

/// A YAML scalar as text.
fn scalar(yaml: &Yaml) -> Option<String> {
    match yaml {
        Yaml::String(text) | Yaml::Real(text) => Some(text.clone()),
        Yaml::Integer(n) => Some(n.to_string()),
        // YAML's `Yes` is a word here; only `true` and `false` come so.
        Yaml::Boolean(truth) => Some(if *truth { "True" } else { "False" }.to_string()),
        _ => None,
    }
}

/// Hides the separator in a row's texts, and makes labels that are truths into the numbers that the data sets' libraries have.
fn protect(row: &mut Map<String, Value>) {
    fn hide(value: &mut Value) {
        match value {
            Value::String(text) if text.contains(BETWEEN) => *text = text.replace(BETWEEN, PROTECTED),
            Value::Array(list) => list.iter_mut().for_each(hide),
            Value::Object(fields) => fields.values_mut().for_each(hide),
            _ => {}
        }
    }
    row.values_mut().for_each(hide);
    if let Some(label) = row.get_mut("label")
        && let Some(truth) = label.as_bool()
    {
        *label = u8::from(truth).into();
    }
}

fn restored(text: &str) -> String {
    text.replace(PROTECTED, BETWEEN)
}
