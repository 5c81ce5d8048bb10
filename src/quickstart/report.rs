//! The report as a person reads it.

use serde_json::Value;

use crate::reader::one_line;

const SYSTEMS: [(&str, &str); 5] = [
    ("plain", "plain decoder"),
    ("plain_longer", "plain, RETRO's extra time"),
    ("retrieval_on", "RETRO, retrieval on"),
    ("retrieval_off", "RETRO, retrieval off"),
    ("retrieval_shuffled", "RETRO, shuffled neighbours"),
];
/// Characters of a passage that are shown.
const SHOWN: usize = 160;
/// Tasks of the selection that are shown.
const TASKS: usize = 6;

/// Lays out a report.
pub fn human(report: &Value) -> String {
    let mut text = String::new();
    let mut line = |new: String| {
        text += &new;
        text += "\n";
    };
    let index = &report["index"];
    line(format!(
        "1. index   {} articles, {} chunks, {} index, {:.1} s",
        index["documents"],
        index["chunks"],
        plain(&index["kind"]),
        number(&index["seconds"])
    ));
    line(format!("2. search  {:?}", plain(&report["query"])));
    for hit in items(&report["search"]) {
        line(format!("     {:.3}  {} — {}", number(&hit["score"]), plain(&hit["title"]), cut(&hit["text"])));
    }
    let (plain_run, retro_run) = (&report["training"]["plain"], &report["training"]["retro"]);
    line(format!(
        "3. train   plain: {} parameters, {:.0} s; RETRO-fit on it, frozen: {} more, {:.0} s",
        plain_run["parameters"],
        number(&plain_run["seconds"]),
        retro_run["trained_parameters"],
        number(&retro_run["seconds"])
    ));
    let kinds = &report["held_out"]["kinds"];
    line(format!(
        "     {:<28}{:>22}{:>26}{:>26}",
        "held-out perplexity (bits)", "all", "ordinary articles", "templated articles"
    ));
    for (key, name) in SYSTEMS {
        let cell = |at: &Value| {
            format!("{:.2} ({:.3})", number(&at["perplexity"][key]), number(&at["bits_per_byte"][key]))
        };
        line(format!(
            "     {name:<28}{:>22}{:>26}{:>26}",
            cell(report),
            cell(&kinds["ordinary"]),
            cell(&kinds["templated"])
        ));
    }
    let share = |kind: &str| 100.0 * number(&kinds[kind]["sharing_an_eighth_with_a_neighbour"]);
    line(format!(
        "     Chunks that share an eighth of themselves or more with a neighbour: ordinary {:.0} %, templated {:.0} %.",
        share("ordinary"),
        share("templated")
    ));
    line(
        "     RETRO here is RETRO-fit: the plain decoder frozen, chunked cross-attention added with the copy"
            .into(),
    );
    line("     initialisation. Retrieval off is therefore the plain decoder itself.".into());
    line(format!("     curve: {}", plain(&report["training"]["curve"])));
    let ask = &report["ask"];
    line(format!("4. ask     {}", plain(&ask["question"])));
    line(format!("     {}  (reader: {})", one_line(plain(&ask["answer"])), plain(&ask["reader"])));
    for (i, source) in items(&ask["sources"]).enumerate() {
        let mark = if source["cited"] == true { "*" } else { " " };
        line(format!("    {mark}[{}] {} — {}", i + 1, plain(&source["title"]), cut(&source["text"])));
    }
    let select = &report["select"];
    line(format!(
        "5. select  {} instances for the target {}, from (beside them, the balanced random draw):",
        select["chosen"],
        plain(&select["target_task"])
    ));
    for (task, count) in select["tasks"].as_object().into_iter().flatten().take(TASKS) {
        let random = select["random_tasks"].get(task).and_then(Value::as_u64).unwrap_or(0);
        line(format!("     {count:>4}  {random:>3}  {task}"));
    }
    line(format!(
        "\nEverything is in {} ({:.0} s). The single commands that make the same (they never overwrite what is there;\ngive another --out, and `train` --set out=DIR):",
        plain(&report["folder"]),
        number(&report["seconds"])
    ));
    for command in items(&report["commands"]) {
        line(format!("  {}", plain(command)));
    }
    text
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or(f64::NAN)
}

fn plain(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn cut(value: &Value) -> String {
    let text = one_line(plain(value));
    match text.char_indices().nth(SHOWN) {
        Some((at, _)) => format!("{}…", text[..at].trim_end()),
        None => text.to_string(),
    }
}
