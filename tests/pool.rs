//! `sidenote pool build`, through the command: every format in small, what is left out, and errors.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};

fn run(dir: &Path, arguments: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sidenote"))
        .current_dir(dir)
        .args(["--quiet"])
        .args(arguments.split_whitespace())
        .output()
        .unwrap()
}

fn build(dir: &Path, arguments: &str) -> Value {
    let output = run(dir, &format!("pool build {arguments} --json"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn fail(dir: &Path, arguments: &str) -> String {
    let output = run(dir, &format!("pool build {arguments}"));
    assert_eq!(output.status.code(), Some(1), "{arguments}");
    String::from_utf8(output.stderr).unwrap()
}

/// The instances of the pool `name`, in order.
fn instances(dir: &Path, name: &str) -> Vec<Value> {
    let mut files: Vec<_> =
        fs::read_dir(dir.join(name)).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|end| end == "jsonl"));
    files.sort();
    let lines: Vec<String> = files.iter().map(|path| fs::read_to_string(path).unwrap()).collect();
    lines.iter().flat_map(|text| text.lines()).map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn one(file: &str, text: &str, source: &str) -> Vec<Value> {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(file), text).unwrap();
    build(dir.path(), &format!("{source} --out pool"));
    instances(dir.path(), "pool")
}

#[test]
fn each_format_is_found_by_its_content() {
    let p3 = one(
        "glue_qqp_answer.jsonl",
        r#"{"prompt": "Same?\n", "completion": "no<|endoftext|>"}"#,
        "glue_qqp_answer.jsonl",
    );
    let wanted = json!({"input": "Same?\n", "target": "no", "task": "glue_qqp", "template": "answer",
        "cluster": "paraphrase identification", "source": "p3"});
    assert_eq!(p3, [wanted]);

    let native =
        r#"{"inputs": [1, 2], "inputs_pretokenized": "Same?", "targets": [4], "targets_pretokenized": "no"}"#;
    let native = one("glue_qqp_answer.jsonl", native, "glue_qqp_answer.jsonl");
    assert_eq!((&native[0]["input"], &native[0]["target"]), (&json!("Same?"), &json!("no")));

    let recross = r#"{"input": "A or B?", "targets": ["A"], "id": "super_glue-copa|train|C1 or C2|#165"}"#;
    let recross = one("copa.jsonl", recross, "copa.jsonl");
    assert_eq!(
        (&recross[0]["task"], &recross[0]["template"]),
        (&json!("super_glue-copa"), &json!("C1 or C2"))
    );

    let sni = json!({"Definition": ["Name the capital."], "Categories": ["Question Answering"], "Source": ["atlas"],
        "Positive Examples": [{"input": "Spain", "output": "Madrid", "explanation": "It is."}],
        "Instances": [{"id": "1", "input": "France", "output": ["Paris", "Paris."]}]});
    let sni = serde_json::to_string_pretty(&sni).unwrap();
    let zero = one("task9_capital.json", &sni, "task9_capital.json");
    let input =
        "Definition: Name the capital.\n\nNow complete the following example -\nInput: France\nOutput:";
    assert_eq!((&zero[0]["input"], &zero[0]["target"]), (&json!(input), &json!("Paris")));
    assert_eq!(
        (&zero[0]["task"], &zero[0]["cluster"]),
        (&json!("task9_capital"), &json!("Question Answering"))
    );
    assert_eq!(zero[0]["own"], "France", "what is not the instruction is kept apart");
    let shown = one("task9_capital.json", &sni, "task9_capital.json --shots 3");
    assert_eq!(shown[0]["own"], "France");
    assert!(
        shown[0]["input"]
            .as_str()
            .unwrap()
            .contains("Positive Example 1 -\nInput: Spain\nOutput: Madrid\n\nNow")
    );

    // As they are, with Python's NaN; beside them lies a table, which is none of them.
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("tasks")).unwrap();
    let with_nan = sni.replacen("\"Source\"", "\"URL\": [NaN],\n\"Source\"", 1);
    fs::write(dir.path().join("tasks/task9_capital.json"), with_nan).unwrap();
    build(dir.path(), "tasks --out found");
    fs::write(dir.path().join("tasks/tasks.tsv"), "name\tcategory\n").unwrap();
    build(dir.path(), "sni:tasks --out said");
    assert_eq!(instances(dir.path(), "found"), zero);
    assert_eq!(instances(dir.path(), "said"), zero);

    let alpaca = json!([{"instruction": "Add.", "input": "1 1", "output": "2"}, {"instruction": "Sing.", "output": "La"}]);
    let alpaca = one("alpaca.json", &alpaca.to_string(), "alpaca.json");
    assert_eq!((&alpaca[0]["input"], &alpaca[1]["input"]), (&json!("Add.\n\n1 1"), &json!("Sing.")));
    assert_eq!((&alpaca[0]["own"], &alpaca[1]["own"]), (&json!("1 1"), &Value::Null));
    let own = r#"{"name": "t", "instruction": "Add.", "instances": [{"input": "1", "output": "2"}, {"input": "2", "output": "3"}]}"#;
    assert_eq!(one("seed.jsonl", own, "seed.jsonl").len(), 2);
    let unnatural = r#"{"instruction": "Add.", "instances": [{"instruction_with_input": "Add 1.", "input": "1", "constraints": "A number.", "output": "2"}], "reformulations": [{"instruction": "Plus.", "instruction_with_input": "Plus 1.", "input": "1", "output": "2"}]}"#;
    let unnatural = one("core.jsonl", unnatural, "core.jsonl");
    assert_eq!(
        (&unnatural[0]["input"], &unnatural[1]["input"]),
        (&json!("Add 1.\n\nA number."), &json!("Plus 1."))
    );

    let messages = r#"{"dataset": "talk", "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}"#;
    let messages = one("tulu.jsonl", messages, "tulu.jsonl");
    assert_eq!(messages, [json!({"input": "Hi", "target": "Ho", "source": "talk"})]);
    let parts = r#"{"messages": [{"role": "system", "content": null}, {"role": "user", "content": [{"type": "text", "text": "Hi"}]}, {"role": "assistant", "content": "Ho"}]}"#;
    assert_eq!(one("chat.jsonl", parts, "chat.jsonl")[0]["input"], "system: \n\nuser: Hi");

    let deft = r#"{"input": "Is it?", "answer_choices": ["no", "yes"], "target": "yes"}"#;
    assert_eq!(one("0_seed.jsonl", deft, "0_seed.jsonl")[0]["choices"], json!(["no", "yes"]));
    let array = format!("\u{FEFF}[{deft}, {}]", deft.replace("\"yes\"}", "0}"));
    let array = one("array.json", &array, "array.json");
    assert_eq!((&array[0]["target"], &array[1]["target"]), (&json!("yes"), &json!("no")));
    let induction =
        r#"{"metadata": {"num_examples": 1}, "examples": {"1": {"input": "sane", "output": "insane"}}}"#;
    assert_eq!(one("antonyms.json", induction, "antonyms.json")[0]["task"], "antonyms");
    let thought = "Is 2 prime?\\nOptions:\\n- yes\\n- no\tyes\tOnly 1 and 2 divide it.";
    let thought = one("prime_train.tsv", thought, "prime_train.tsv");
    assert_eq!(thought[0]["input"], "Is 2 prime?\nOptions:\n- yes\n- no\nLet's think step by step.");
    assert_eq!(thought[0]["own"], "Is 2 prime?\nOptions:\n- yes\n- no");
    assert_eq!(thought[0]["target"], "Only 1 and 2 divide it. The answer is yes.");
}

#[test]
fn promptsource_templates_are_applied_to_rows() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let yaml = r#"dataset: super_glue
subset: rte
templates:
  1-a: !Template
    answer_choices: Yes ||| No
    id: 1-a
    jinja: '{{premise}} Does it follow that "{{hypothesis.rstrip(".")}}"? ||| {% if label !=
      -1 %}{{ answer_choices[label] }}{% endif %}'
    metadata: !TemplateMetadata
      choices_in_prompt: true
    name: follows
  2-b: !Template
    answer_choices: '{{premise}} ||| {{hypothesis}}'
    jinja: 'Which is it: {{ answer_choices | join(" or ") }}? {{ ["a"] | choice }} ||| {{ answer_choices[0] }}'
    name: which
"#;
    fs::write(dir.join("templates.yaml"), yaml).unwrap();
    let rows = "{\"premise\": \"It ||| rains.\", \"hypothesis\": \"Wet.\", \"label\": false}\n\
        {\"premise\": \"Sun.\", \"hypothesis\": \"Dry.\", \"label\": -1}\n";
    fs::write(dir.join("rows.jsonl"), rows).unwrap();
    let report = build(dir, "promptsource:templates.yaml=rows.jsonl --out pool");
    assert_eq!(report["kept"], 3, "a template without an answer passes the row over: {report}");
    let found = instances(dir, "pool");
    assert_eq!(found[0]["input"], "It ||| rains. Does it follow that \"Wet\"?");
    assert_eq!((&found[0]["target"], &found[0]["choices"]), (&json!("Yes"), &json!(["Yes", "No"])));
    assert_eq!((&found[0]["task"], &found[0]["template"]), (&json!("super_glue_rte"), &json!("follows")));
    assert_eq!(found[1]["input"], "Which is it: It ||| rains. or Wet.? a");
    assert_eq!(found[1]["choices"], json!(["It ||| rains.", "Wet."]));
    assert_eq!(found[0]["own"], "It ||| rains.\nWet");
    assert_eq!(found[1]["own"], "It ||| rains.", "a word among the answers may be the template's");

    fs::write(dir.join("rows.jsonl"), "{\"premise\": \"It rains.\", \"label\": 0}\n").unwrap();
    let said = fail(dir, "promptsource:templates.yaml=rows.jsonl --out other");
    assert!(["row 1", "follows", "no field hypothesis"].iter().all(|word| said.contains(word)), "{said}");
    let named = |label: &str| {
        let row = json!({"premise": "It rains.", "hypothesis": "Wet.", "label": label});
        fs::write(dir.join("rows.jsonl"), row.to_string()).unwrap();
    };
    named("perhaps");
    let said = fail(dir, "promptsource:templates.yaml=rows.jsonl --out other");
    assert!(said.contains("the label is the text \"perhaps\"") && said.contains("number"), "{said}");
    // As SuperGLUE's own files have it.
    named("not_entailment");
    build(dir, "promptsource:templates.yaml=rows.jsonl --out of_names");
    assert_eq!(instances(dir, "of_names")[0]["target"], "No");
    assert!(fail(dir, "templates.yaml --out other").contains("TEMPLATES=ROWS"));
    assert!(fail(dir, "promptsource:templates.yaml --out other").contains("TEMPLATES=ROWS"));
}

#[test]
fn flans_pairs_have_options_and_inverted_forms() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let patterns = json!({"rte": [["{premise} So {hypothesis}?\n{options_}", "{answer}"], ["Write a {{premise}}: {answer}", "{premise}"]]});
    fs::write(dir.join("flan.json"), patterns.to_string()).unwrap();
    let row = json!({"premise": "Rain.", "hypothesis": "wet", "options": ["yes", "no"], "answer": "yes"});
    fs::write(dir.join("rows.jsonl"), row.to_string()).unwrap();
    build(dir, "flan:flan.json=rows.jsonl --out pool");
    let found = instances(dir, "pool");
    assert_eq!(found[0]["input"], "Rain. So wet?\nOPTIONS:\n- yes\n- no");
    assert_eq!((&found[0]["target"], &found[0]["choices"]), (&json!("yes"), &json!(["yes", "no"])));
    assert_eq!(
        (&found[1]["input"], &found[1]["target"]),
        (&json!("Write a {premise}: yes"), &json!("Rain."))
    );
    assert_eq!(found[1]["template"], "2, inverted");
    assert_eq!(found[0]["own"], "Rain.\nwet");
    fs::write(dir.join("rows.jsonl"), "{\"premise\": \"Rain.\"}").unwrap();
    assert!(fail(dir, "flan:flan.json=rows.jsonl --out other").contains("hypothesis"));
    fs::write(dir.join("rows.jsonl"), "{\"premise\": \"Rain.\", \"hypothesis\": \"wet\"}").unwrap();
    assert!(fail(dir, "flan:flan.json=rows.jsonl --out other").contains("\"options\""));
}

#[test]
fn duplicates_excluded_tasks_and_evaluated_texts_are_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let long: Vec<String> = (0..60).map(|i| format!("w{i}")).collect();
    let long = long.join(" ");
    let line = |task: &str, input: &str| {
        json!({"input": input, "target": "yes", "task": task, "source": "s"}).to_string()
    };
    let evaluated = "The man turned on the faucet.";
    let lines = [
        line("a", &long),
        line("a", &long),
        line("a", &format!("{long}!")),
        line("b", &format!("{long}?")),
        line("c", "short one"),
        line("b", &format!("Why? {evaluated}")),
    ];
    fs::write(dir.join("a.jsonl"), lines.join("\n")).unwrap();
    fs::write(dir.join("out.txt"), "c # not this\nd*\n").unwrap();
    fs::write(dir.join("eval.jsonl"), json!({"premise": evaluated, "label": 0}).to_string()).unwrap();
    let options = "a.jsonl --exclude out.txt --evaluation eval.jsonl";
    let report = build(dir, &format!("{options} --out pool"));
    assert_eq!((&report["read"], &report["kept"], &report["duplicates"]), (&json!(6), &json!(3), &json!(1)));
    assert_eq!(report["near_duplicates"], json!({"a": 1}));
    assert_eq!(report["excluded"], json!({"c": 1}));
    assert!(report["unused_patterns"][0].as_str().unwrap().ends_with("out.txt:2: d*"));
    assert_eq!((&report["tasks"], &report["sources"]), (&json!({"a": 1, "b": 2}), &json!({"s": 3})));
    assert_eq!(report["contamination"][0]["tasks"], json!({"b": 1}));
    assert_eq!((&report["contamination"][0]["found"], &report["contaminated"]), (&json!(1), &json!(1)));
    assert!(fail(dir, &format!("{options} --out pool")).contains("holds something"));

    // What is evaluated may be a table or another pool.
    fs::write(
        dir.join("eval.csv"),
        format!("premise,label\n\"{evaluated}\",0\n\"Nothing, that the pool has.\",1\n"),
    )
    .unwrap();
    let report = build(dir, "a.jsonl --evaluation eval.csv --evaluation pool --out of-both");
    let found =
        |file: usize| (&report["contamination"][file]["examples"], &report["contamination"][file]["found"]);
    assert_eq!((found(0), found(1)), ((&json!(2), &json!(1)), (&json!(3), &json!(3))), "{report}");

    let report = build(dir, &format!("{options} --drop-contaminated --keep-near --out second"));
    assert_eq!((&report["kept"], &report["contaminated"]), (&json!(3), &json!(1)));
    let human = run(dir, &format!("pool build {options} --out third"));
    let human = String::from_utf8(human.stdout).unwrap();
    assert!(human.contains("3 instances of 2 tasks") && human.contains("1 of 1 examples"), "{human}");
    let same = |name: &str| fs::read(dir.join(name).join("manifest.json")).unwrap();
    assert_eq!(same("pool"), same("third"), "the same pool has the same bytes");

    // Selection reads the folder as it reads a file.
    let chosen = run(dir, "select pool --method random -n 2 --out chosen.jsonl --json");
    assert!(chosen.status.success(), "{}", String::from_utf8_lossy(&chosen.stderr));
    assert_eq!(fs::read_to_string(dir.join("chosen.jsonl")).unwrap().lines().count(), 2);
    let part = fs::read_dir(dir.join("pool"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .find(|p| p.extension().is_some_and(|e| e == "jsonl"));
    fs::write(part.unwrap(), "").unwrap();
    let broken = run(dir, "select pool --method random -n 2 --out chosen.jsonl");
    assert!(String::from_utf8_lossy(&broken.stderr).contains("damaged"));
}

/// The instruction is long, what tells the instances apart is short.
#[test]
fn what_an_instruction_is_asked_of_is_no_duplicate_and_what_nobody_can_learn_is_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let instruction: String = (0..80).map(|i| format!("word{i} ")).collect();
    let of = |country: &str| {
        let input = format!("{country} is rich");
        json!({"instruction_with_input": format!("{instruction}{input}"), "input": input, "output": "yes"})
    };
    let instances = ["Spain", "Norway", "Peru", "Peru,"].map(of);
    let record = json!({"instruction": instruction, "instances": instances});
    fs::write(dir.join("core.jsonl"), record.to_string()).unwrap();
    let report = build(dir, "core.jsonl --out pool");
    assert_eq!(
        (&report["kept"], &report["near_duplicates"]),
        (&json!(3), &json!({"unknown": 1})),
        "{report}"
    );

    let lines = [
        json!({"input": "which?", "target": "maybe", "choices": ["yes", "no"], "task": "t"}),
        json!({"input": " ", "target": "yes", "task": "t"}),
        json!({"input": "which?", "target": "no", "choices": ["yes", "no"], "task": "t"}),
    ];
    fs::write(dir.join("lines.jsonl"), lines.map(|line| line.to_string()).join("\n")).unwrap();
    let report = build(dir, "lines.jsonl --out sound");
    assert_eq!((&report["kept"], &report["unsound"]), (&json!(1), &json!({"t": 2})), "{report}");

    // The beginning of a file that is sorted by its labels.
    let of = |i: usize| json!({"input": format!("{i}?"), "target": "no", "task": "sorted"}).to_string();
    fs::write(dir.join("sorted.jsonl"), (0..24).map(of).collect::<Vec<_>>().join("\n")).unwrap();
    let report = build(dir, "sorted.jsonl lines.jsonl --out constant");
    assert_eq!(report["one_answer"], json!({"sorted": 24}), "{report}");
}

#[test]
fn what_cannot_be_read_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    for (name, text, source, wanted) in [
        ("a.jsonl", "{\"prompt\": \"a\", \"completion\": \"b\"}\n{\"prompt\": 1}", "a.jsonl", "a.jsonl:2:"),
        ("b.jsonl", "{\"some\": 1}", "b.jsonl", "FORMAT:PATH"),
        ("c.json", "{\"Definition\": [], \"Instances\": []}", "c.json", "Definition"),
        (
            "d.json",
            "{\"Definition\": [\"x\"], \"Instances\": [{\"input\": \"a\", \"output\": []}]}",
            "d.json",
            "instance 1",
        ),
        (
            "e.json",
            "[{\"instruction\": \"x\", \"output\": \"y\"}, {\"instruction\": 3}]",
            "e.json",
            "record 2",
        ),
        ("f.tsv", "a\tb", "f.tsv", "f.tsv:1:"),
        ("g.jsonl", "{\"messages\": []}", "g.jsonl", "no answer"),
        ("h.txt", "x", "h.txt", "FORMAT:PATH"),
        ("i.jsonl", "{\"input\": \"\u{1}", "instances:i.jsonl", "i.jsonl:1:"),
        ("j.yaml", "a: [", "promptsource:j.yaml=a.jsonl", "j.yaml"),
        ("k.parquet", "PAR1", "promptsource:l.yaml=k.parquet", "k.parquet"),
        ("empty.jsonl", "", "instances:empty.jsonl", "nothing is left"),
    ] {
        fs::write(dir.join(name), text).unwrap();
        fs::write(dir.join("l.yaml"), "templates:\n  a:\n    jinja: 'x ||| y'\n").unwrap();
        let said = fail(dir, &format!("{source} --out pool"));
        assert!(said.contains(wanted), "{name}: {said}");
        assert!(!dir.join("pool/manifest.json").exists());
    }
    assert!(fail(dir, "none.jsonl --out pool").contains("none.jsonl"));
}

/// The words that the names and sources of tasks have which are derived from the study's target data sets.
const TARGETS: [&str; 18] = [
    "rte",
    "cb",
    "copa",
    "xcopa",
    "trianglecopa",
    "trainglecopa",
    "wic",
    "xlwic",
    "wsc",
    "mwsc",
    "wscfixed",
    "winograd",
    "winowhy",
    "winogrande",
    "swag",
    "hellaswag",
    "anli",
    "casehold",
];

/// Whether a name or a source is derived from a target data set.
fn is_of_target(name: &str) -> bool {
    let words = name.split(|c: char| !c.is_alphanumeric()).map(str::to_lowercase);
    words.into_iter().any(|word| TARGETS.contains(&word.as_str()))
}

#[test]
fn no_task_of_a_target_remains_in_the_studys_pool() {
    let quality = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/quality");
    let table = fs::read_to_string(quality.join("selection.tasks.tsv")).unwrap();
    let tasks: Vec<Vec<&str>> = table.lines().skip(1).map(|line| line.split('\t').collect()).collect();
    assert_eq!(tasks.len(), 925);
    let of_target = tasks.iter().filter(|task| is_of_target(task[0]) || is_of_target(task[1])).count();
    assert!(of_target >= 35, "{of_target}");
    let dir = tempfile::tempdir().unwrap();
    let lines: Vec<String> = tasks
        .iter()
        .map(|task| {
            json!({"input": task[0], "target": "x", "task": task[0], "source": format!("sni/{}", task[1])})
                .to_string()
        })
        .collect();
    fs::write(dir.path().join("tasks.jsonl"), lines.join("\n")).unwrap();
    let list = quality.join("selection.left_out.txt");
    let report = build(dir.path(), &format!("tasks.jsonl --out pool --exclude {}", list.display()));
    assert_eq!(report["unused_patterns"], json!([]), "every line names a task");
    let left = instances(dir.path(), "pool");
    assert_eq!(left.len() + report["excluded"].as_object().unwrap().len(), 925);
    for task in left {
        let (name, source) = (task["task"].as_str().unwrap(), task["source"].as_str().unwrap());
        assert!(!is_of_target(name) && !is_of_target(source), "{name} of {source} is in the pool");
    }
}
