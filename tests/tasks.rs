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

/// The share of `answers` whose highest choice by `score` is the right one.
fn share_right(answers: &[Value], score: impl Fn(&Value) -> f64) -> f64 {
    let is_right = |answer: &&Value| {
        let scores: Vec<f64> = answer["choices"].as_array().unwrap().iter().map(&score).collect();
        let highest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        answer["right"] == json!(scores.iter().position(|score| *score == highest).unwrap())
    };
    answers.iter().filter(is_right).count() as f64 / answers.len() as f64
}

fn number(choice: &Value, name: &str) -> f64 {
    choice[name].as_f64().unwrap()
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
        let asked = format!("eval tasks {name} --data cb.jsonl --choices-from-targets --out cb.answers");
        let cb = succeed(dir, &asked);
        let task = &cb["tasks"][0];
        assert_eq!(
            (&task["templates"], &task["examples"], &task["items"]),
            (&json!(2), &json!(6), &json!(12))
        );
        // Both templates have as many items.
        let answers = lines(&dir.join("cb.answers"));
        let per_token = |choice: &Value| number(choice, "logprob") / number(choice, "tokens");
        let (found, right) = (number(&task["scores"]["per_token"], "mean"), share_right(&answers, per_token));
        assert!((found - right).abs() < 1e-9, "{found} {right}: {cb}");
        let written = succeed(
            dir,
            &format!("eval tasks {name} --data cb.jsonl --max-tokens 4 --limit 2 --out w.jsonl"),
        );
        assert!(written["tasks"][0]["scores"]["rougeL"]["mean"].is_f64(), "{written}");
        assert_eq!(lines(&dir.join("w.jsonl")).len(), 4);
        let shown = "eval tasks {} --data sky_test.csv --shots sky_dev.csv -k 1 --calibrate --out s.jsonl --max-question-tokens 60";
        let mmlu = succeed(dir, &shown.replace("{}", name));
        assert_eq!(mmlu["tasks"][0]["task"], "sky");
        let with = lines(&dir.join("s.jsonl"));
        let calibrated = |choice: &Value| number(choice, "logprob") - number(choice, "without_content");
        let found = number(&mmlu["tasks"][0]["scores"]["calibrated"], "mean");
        assert_eq!(found, share_right(&with, calibrated), "{mmlu}");
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
    let items = fs::read(dir.join("cb.jsonl")).unwrap();
    let said = fail(dir, "eval tasks llama --data cb.jsonl --choices-from-targets --out ./cb.jsonl");
    assert!(said.contains("cb.jsonl: this is read"), "{said}");
    assert!(fs::read(dir.join("cb.jsonl")).unwrap() == items);
}

/// Fails when what choices are calibrated by is read after anything else than the question with N/A in place of what it is about.
#[test]
fn a_choice_is_calibrated_by_its_question_s_format() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    fs::write(dir.join("sky_test.csv"), "question,choice0,choice1,answer\n\"blue, or?\",b,c,0\n").unwrap();
    fs::write(dir.join("ade.csv"), "Sentence,ID,Label\nThe moon,0,far\na king,1,near\n").unwrap();
    let item =
        |input: &str, choices: [&str; 2]| json!({"input": input, "target": choices[0], "choices": choices});
    let mut own = item("Moon and text. Is it so?", ["yes", "no"]);
    own["own"] = "Moon and text.".into();
    write_lines(&dir.join("items.jsonl"), &[own, item("Is it so?", ["yes", "no"])]);
    let by_hand = [
        item("N/A\nA. N/A\nB. N/A\nAnswer:", ["A", "B"]),
        item("Sentence: N/A\nLabel:", ["far", "near"]),
        item("Sentence: N/A\nLabel:", ["far", "near"]),
        item("N/A Is it so?", ["yes", "no"]),
        item("N/A", ["yes", "no"]),
    ];
    write_lines(&dir.join("by_hand.jsonl"), &by_hand);
    for name in ["llama", "t5_v1_1"] {
        model(dir, name);
        let asked = format!("eval tasks {name} --out answers --data");
        let choices = |data: &str| -> Vec<Value> {
            succeed(dir, &format!("{asked} {data}"));
            let answers = lines(&dir.join("answers"));
            answers.iter().flat_map(|answer| answer["choices"].as_array().unwrap().clone()).collect()
        };
        let found = choices("sky_test.csv ade.csv items.jsonl --calibrate");
        let by_hand = choices("by_hand.jsonl");
        assert_eq!((found.len(), by_hand.len()), (10, 10));
        for (found, by_hand) in found.iter().zip(&by_hand) {
            let (found, right) = (number(found, "without_content"), number(by_hand, "logprob"));
            assert!((found - right).abs() < 1e-4, "{name}: {found} {right}");
        }
    }
}

/// The model of llama2.c reads 512 tokens.
#[test]
fn what_does_not_fit_the_model_is_named_by_its_line() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let model = data("models/llama2c/stories260K.bin");
    let long = "moon ".repeat(700);
    let item = |input: &str, wrong: &str| json!({"input": input, "own": "It is.", "target": "yes", "choices": ["yes", wrong]});
    let fine = item("It is. Is it so?", "no");
    write_lines(&dir.join("choices.jsonl"), &[fine.clone(), item("It is. Is it so?", &long)]);
    write_lines(&dir.join("asked.jsonl"), &[fine, item(&format!("It is. {long}"), "no")]);
    let said = fail(dir, &format!("eval tasks {} --data choices.jsonl", model.display()));
    assert!(said.contains("choices.jsonl:2: choices: ") && said.contains("reads at most 512"), "{said}");
    // Of what is asked the beginning is left out; an instruction that is scored has to fit.
    let asked = format!("eval tasks {} --data asked.jsonl", model.display());
    assert_eq!(succeed(dir, &asked)["tasks"][0]["items"], 2);
    let said = fail(dir, &format!("{asked} --flipped"));
    assert!(said.contains("asked.jsonl:2: instruction: ") && said.contains("reads at most 512"), "{said}");
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
