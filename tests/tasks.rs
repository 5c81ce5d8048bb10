//! `sidenote eval tasks`, over the small models of tests/data/models; scripts/golden_tasks.py made tests/data/tasks.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{fail, succeed, write_lines};
use serde_json::{Value, json};

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

/// A small model in `dir`.
fn model(dir: &Path, name: &str) {
    let out = dir.join(name);
    fs::create_dir(&out).unwrap();
    for file in fs::read_dir(data("models").join(name)).unwrap().map(|entry| entry.unwrap().path()) {
        fs::copy(&file, out.join(file.file_name().unwrap())).unwrap();
    }
    if !name.starts_with("t5") {
        fs::copy(data("models/tokenizer.json"), out.join("tokenizer.json")).unwrap();
    }
}

fn lines(path: &Path) -> Vec<Value> {
    fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Fails when a choice is tokenised, scored or normalised otherwise than lm-evaluation-harness does it.
#[test]
fn the_numbers_are_those_of_lm_evaluation_harness() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    model(dir, "gpt2");
    fs::copy(data("tasks/items.jsonl"), dir.join("items.jsonl")).unwrap();
    let golden: Value = serde_json::from_slice(&fs::read(data("tasks/golden.json")).unwrap()).unwrap();
    let result = succeed(dir, "eval tasks gpt2 --data items.jsonl --out answers.jsonl");
    let answers = lines(&dir.join("answers.jsonl"));
    let expected = golden["logprobs"].as_array().unwrap();
    assert_eq!(answers.len(), expected.len());
    for (answer, expected) in answers.iter().zip(expected) {
        for (choice, expected) in
            answer["choices"].as_array().unwrap().iter().zip(expected.as_array().unwrap())
        {
            for (name, right) in ["logprob", "alone"].iter().zip(expected.as_array().unwrap()) {
                let (found, right) = (choice[name].as_f64().unwrap(), right.as_f64().unwrap());
                assert!((found - right).abs() < 1e-4, "{name}: {found} {right}: {answer}");
            }
        }
    }
    for task in result["tasks"].as_array().unwrap() {
        let expected = &golden["scores"][task["task"].as_str().unwrap()];
        for (ours, theirs) in [("sum", "acc"), ("per_character", "acc_norm"), ("pmi", "acc_mutual_info")] {
            let (found, right) =
                (task["scores"][ours]["mean"].as_f64().unwrap(), expected[theirs].as_f64().unwrap());
            assert!((found - right).abs() < 1e-9, "{ours}: {found} {right}");
        }
    }
    let entailed = &result["tasks"][1];
    assert_eq!(
        (&entailed["templates"], &entailed["examples"], &entailed["items"]),
        (&json!(2), &json!(15), &json!(30))
    );
}

/// Two tasks as the harness itself defines them, on real rows: MMLU's global facts after two examples, from its CSV, and COPA, whose
/// choices the harness puts after two spaces. Fails when a prompt differs in a character.
#[test]
fn tasks_of_the_harness_have_its_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let harness = data("tasks/harness");
    let golden: Value = serde_json::from_slice(&fs::read(harness.join("golden.json")).unwrap()).unwrap();
    let model = data("models/llama2c/stories260K.bin");
    let copa = lines(&harness.join("copa.jsonl"));
    let item = |row: &Value| {
        let text = |name: &str| row[name].as_str().unwrap();
        let premise = text("premise").trim_end_matches('.');
        let word = if text("question") == "cause" { "because" } else { "therefore" };
        let choice = |name: &str| text(name)[..1].to_lowercase() + &text(name)[1..];
        let choices = [choice("choice1"), choice("choice2")];
        let target = &choices[usize::try_from(row["label"].as_u64().unwrap()).unwrap()];
        json!({"task": "copa", "input": format!("{premise} {word}  "), "choices": choices, "target": target})
    };
    write_lines(&dir.join("copa.jsonl"), &copa.iter().map(item).collect::<Vec<_>>());
    let test = |name: &str| harness.join(format!("global_facts_{name}.csv")).display().to_string();
    let facts = ["--data", &test("test"), "--shots", &test("dev"), "-k", "2", "--preamble"]
        .map(String::from)
        .into_iter()
        .chain(
            ["The following are multiple choice questions (with answers) about {task}.\\n\\n".to_string()],
        );
    let of_copa = ["--data".to_string(), dir.join("copa.jsonl").display().to_string()];
    for (task, arguments) in [("global_facts", facts.collect::<Vec<_>>()), ("copa", of_copa.to_vec())] {
        let mut command = common::sidenote(dir, "eval tasks");
        command.arg(&model).args(arguments).args(["--out", "answers.jsonl"]);
        let found = common::json_of(command);
        let expected = golden[task]["logprobs"].as_array().unwrap();
        let answers = lines(&dir.join("answers.jsonl"));
        assert_eq!(answers.len(), expected.len());
        for (answer, expected) in answers.iter().zip(expected) {
            for (choice, right) in
                answer["choices"].as_array().unwrap().iter().zip(expected.as_array().unwrap())
            {
                let (found, right) = (choice["logprob"].as_f64().unwrap(), right.as_f64().unwrap());
                assert!((found - right).abs() < 1e-3, "{task}: {found} {right}: {answer}");
            }
        }
        let (ours, theirs) = (&found["tasks"][0]["scores"]["sum"]["mean"], &golden[task]["scores"]["acc"]);
        assert!((ours.as_f64().unwrap() - theirs.as_f64().unwrap()).abs() < 1e-9, "{task}: {ours} {theirs}");
    }
}

/// Real formats, an encoder-decoder, an adapter, shots, and answers in writing.
#[test]
fn every_format_is_asked_and_answered() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    model(dir, "llama");
    model(dir, "t5_v1_1");
    let recross = |template: &str, i: usize, target: &str| json!({"input": format!("{template} moon {i}"), "targets": [target], "id": format!("cb|validation|{template}|#{i}")});
    let items: Vec<Value> = (0..6)
        .flat_map(|i| [recross("one", i, ["Yes", "No"][i % 2]), recross("two", i, ["True", "False"][i % 2])])
        .collect();
    write_lines(&dir.join("cb.jsonl"), &items);
    fs::write(
        dir.join("sky_test.csv"),
        "question,choice0,choice1,choice2,answer\nblue?,a,b,c,0\n\"red, or?\",d,e,f,2\n",
    )
    .unwrap();
    fs::write(
        dir.join("sky_dev.csv"),
        "question,choice0,choice1,choice2,answer\ndark?,g,h,i,1\nlight?,k,l,m,2\n",
    )
    .unwrap();
    for name in ["llama", "t5_v1_1"] {
        let cb = succeed(dir, &format!("eval tasks {name} --data cb.jsonl --choices-from-targets"));
        let task = &cb["tasks"][0];
        assert_eq!(
            (&task["templates"], &task["examples"], &task["items"]),
            (&json!(2), &json!(6), &json!(12))
        );
        assert!(task["scores"]["per_token"]["mean"].is_f64(), "{cb}");
        let written = succeed(
            dir,
            &format!("eval tasks {name} --data cb.jsonl --max-tokens 4 --limit 2 --out w.jsonl"),
        );
        assert!(written["tasks"][0]["scores"]["rougeL"]["mean"].is_f64(), "{written}");
        assert_eq!(lines(&dir.join("w.jsonl")).len(), 4);
        let shown = "eval tasks {} --data sky_test.csv --shots sky_dev.csv -k 1 --calibrate --out s.jsonl --max-question-tokens 60";
        let mmlu = succeed(dir, &shown.replace("{}", name));
        assert!(mmlu["tasks"][0]["scores"]["calibrated"]["mean"].is_f64(), "{mmlu}");
        assert_eq!(mmlu["tasks"][0]["task"], "sky");
        let with = lines(&dir.join("s.jsonl"));
        succeed(
            dir,
            &format!("eval tasks {name} --data sky_test.csv --out s.jsonl --max-question-tokens 60"),
        );
        let without = lines(&dir.join("s.jsonl"));
        assert_ne!(
            with[0]["choices"][0]["logprob"], without[0]["choices"][0]["logprob"],
            "shots change nothing"
        );
        assert_eq!(with[0]["choices"][0]["alone"], without[0]["choices"][0]["alone"]);
    }
    let adapter = data("adapters/llama_ia3");
    let scored = |more: &str| {
        succeed(
            dir,
            &format!("eval tasks llama --data cb.jsonl --choices-from-targets --out a.jsonl {more}"),
        );
        lines(&dir.join("a.jsonl"))[0]["choices"][0]["logprob"].as_f64().unwrap()
    };
    assert_ne!(scored(""), scored(&format!("--adapter {}", adapter.display())));
    assert!(
        fail(dir, "eval tasks llama --data sky_test.csv --shots sky_dev.csv -k 3").contains("sky_test.csv:2")
    );
    write_lines(&dir.join("bad.jsonl"), &[json!({"input": "a"})]);
    assert!(fail(dir, "eval tasks llama --data bad.jsonl").contains("bad.jsonl:1"));
}

/// Fails when what is read before an instruction, or the instruction itself, is not what flipped.rs says.
#[test]
fn an_answer_is_scored_by_the_instruction_that_it_makes_likely() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    for name in ["gpt2", "t5_v1_1"] {
        model(dir, name);
        let item = json!({"input": "Moon and text. Is it so?", "own": "Moon and text.", "target": "no", "choices": ["yes", "no"]});
        write_lines(&dir.join("item.jsonl"), &[item]);
        let asked = |answer: &str| {
            let input = format!("Input: Moon and text.\nOutput: {answer}\nInstruction:");
            json!({"input": input, "target": "Is it so?", "choices": ["Is it so?"]})
        };
        write_lines(&dir.join("by_hand.jsonl"), &[asked("yes"), asked("no")]);
        let result = succeed(
            dir,
            &format!("eval tasks {name} --data item.jsonl --flipped --out flipped.answers.jsonl"),
        );
        succeed(dir, &format!("eval tasks {name} --data by_hand.jsonl --out answers.jsonl"));
        let choices = lines(&dir.join("flipped.answers.jsonl"))[0]["choices"].clone();
        let by_hand: Vec<f64> = lines(&dir.join("answers.jsonl"))
            .iter()
            .map(|line| line["choices"][0]["logprob"].as_f64().unwrap())
            .collect();
        for (choice, expected) in choices.as_array().unwrap().iter().zip(&by_hand) {
            let found = choice["instruction"].as_f64().unwrap();
            assert!((found - expected).abs() < 1e-4, "{found} {expected}");
        }
        let right = f64::from(u8::from(by_hand[1] > by_hand[0]));
        assert_eq!(result["tasks"][0]["scores"]["flipped"]["mean"], right);
        write_lines(
            &dir.join("unsaid.jsonl"),
            &[json!({"input": "a b", "target": "x", "choices": ["x", "y"]})],
        );
        let said = fail(dir, &format!("eval tasks {name} --data unsaid.jsonl --flipped"));
        assert!(said.contains("unsaid.jsonl:1: does not say"), "{said}");
    }
}

/// RAFT's files: labels are the choices, what has none is predicted, and written as RAFT wants it.
#[test]
fn what_has_no_label_is_predicted() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    model(dir, "llama");
    fs::create_dir(dir.join("ade")).unwrap();
    fs::write(
        dir.join("ade/train.csv"),
        "Sentence,ID,Label\n\"The moon, the Earth\",0,far\na king,1,\"near, by\"\nthe line,2,far\n",
    )
    .unwrap();
    fs::write(dir.join("ade/test_unlabeled.csv"), "Sentence,ID\na castle,50\nthe month,51\n").unwrap();
    let asked = "eval tasks llama --shots ade/train.csv -k 1 --out answers.jsonl --predictions ade.csv";
    let known = succeed(dir, &format!("{asked} --data ade/train.csv"));
    let task = &known["tasks"][0];
    assert_eq!((&task["task"], &task["examples"]), (&json!("ade"), &json!(3)));
    assert!(task["scores"]["sum"]["mean"].is_f64(), "{known}");
    let unknown = succeed(dir, &format!("{asked} --data ade/test_unlabeled.csv"));
    assert_eq!(unknown["tasks"][0]["scores"], json!({}), "{unknown}");
    let text = fs::read_to_string(dir.join("ade.csv")).unwrap();
    let mut rows = text.lines();
    assert_eq!(rows.next(), Some("ID,Label"));
    let labels = ["far", "near, by"];
    for (answer, (row, id)) in lines(&dir.join("answers.jsonl")).iter().zip(rows.zip(["50", "51"])) {
        let score = |choice: usize| answer["choices"][choice]["logprob"].as_f64().unwrap();
        let label = labels[usize::from(score(1) > score(0))];
        assert_eq!(row, if label == "far" { format!("{id},far") } else { format!("{id},\"near, by\"") });
    }
    let said = fail(dir, "eval tasks llama --data ade/test_unlabeled.csv --predictions ade.csv");
    assert!(said.contains("test_unlabeled.csv:2") && said.contains("--shots"), "{said}");
    fs::write(dir.join("tune.toml"), "kind = \"tune\"\nout = \"tuned\"\nbase = \"llama\"\n[tune]\ndata = [\"ade/test_unlabeled.csv\"]\n[training]\nsteps = 1").unwrap();
    let said = fail(dir, "train tune.toml");
    assert!(said.contains("test_unlabeled.csv:2") && said.contains("label"), "{said}");
}
