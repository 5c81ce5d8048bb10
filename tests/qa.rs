//! `sidenote eval qa` and what `ask` makes of it, through the command.

mod common;
mod tiny;

use std::fs;
use std::path::{Path, PathBuf};

use common::{fail, failure_of, json_of, said, sidenote, succeed, text_of, write_lines};
use serde_json::{Value, json};

const TOPICS: [&[&str]; 4] = [
    &["planet", "smallest", "mercury", "sun", "moons"],
    &["cheese", "made", "milk", "rennet", "cows"],
    &["turing", "mathematician", "computers", "born"],
    &["bridge", "longest", "river", "built"],
];

fn documents() -> Vec<Value> {
    vec![
        json!({"id": "m1", "title": "Mercury", "text": "Mercury is the smallest planet and nearest to the Sun. It has no moons."}),
        json!({"id": "c1", "title": "Cheese", "text": "Cheese is made from milk of cows. Rennet makes the milk thick."}),
        json!({"id": "t1", "title": "Alan Turing", "text": "Turing was a mathematician born in 1912. He built computers."}),
        json!({"id": "b1", "title": "Bridge", "text": "The longest bridge over the river was built in 1889."}),
    ]
}

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

const BUILD: &str = "index build corpus.jsonl --encoder encoder --chunk-tokens 64";

/// A folder with an index of four documents and questions about them; the last one is about nothing in the corpus.
fn workplace() -> tempfile::TempDir {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    tiny::write_encoder(&dir.join("encoder"), &TOPICS);
    write_lines(&dir.join("corpus.jsonl"), &documents());
    succeed(dir, &format!("{BUILD} --out index"));
    let questions = [
        json!({"id": "q1", "question": "Which planet is the smallest?", "answers": ["Mercury"], "source": "made up"}),
        json!({"question": "What is cheese made from?", "answers": ["wood", "milk"]}),
        json!({"question": "When was Turing born?", "answers": ["1912"], "passages": [{"title": "Born", "text": "It was 1912."}]}),
        json!({"question": "When was the longest bridge built?", "answers": ["1999"]}),
    ];
    write_lines(&dir.join("questions.jsonl"), &questions);
    place
}

fn lines(path: &Path) -> Vec<Value> {
    fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn every_answer_is_written_as_atlas_does_and_summed_up() {
    let place = workplace();
    let dir = place.path();
    let summary =
        succeed(dir, "eval qa default --index index --data questions.jsonl -k 3 --out answers.jsonl");
    let answers = lines(&dir.join("answers.jsonl"));
    assert_eq!((answers.len(), summary["questions"].as_u64()), (4, Some(4)));
    let first = &answers[0];
    for field in ["query", "answers", "generation", "passages", "metadata", "id"] {
        assert!(first.get(field).is_some(), "{field}: {first}");
    }
    assert_eq!((&first["id"], &first["metadata"]), (&json!("q1"), &json!({"source": "made up"})));
    assert_eq!(first["generation"], "Mercury is the smallest planet and nearest to the Sun.");
    let passages = first["passages"].as_array().unwrap();
    assert_eq!(
        (passages.len(), &passages[0]["id"], &passages[0]["title"]),
        (3, &json!("m1"), &json!("Mercury"))
    );
    assert_eq!(answers[1]["id"], "1");
    // F1 by hand: 1 of 8 words that are no article ("Mercury is smallest planet and nearest to Sun"), and 1 of 1.
    assert!((first["scores"]["f1"].as_f64().unwrap() - 2.0 / 9.0).abs() < 1e-9, "{first}");
    // The last answer is in no passage; the other three are in the first ones.
    assert_eq!((&summary["recall_at_1"], &summary["exact_match"]), (&json!(0.75), &json!(0.0)));
    assert_eq!((&summary["cited"], &summary["attribution"]), (&json!(1.0), &json!(0.75)));

    succeed(
        dir,
        "eval qa default --index index --data questions.jsonl --out bare.jsonl --no-passages --limit 2",
    );
    let bare = lines(&dir.join("bare.jsonl"));
    assert!(bare.len() == 2 && bare.iter().all(|line| line.get("passages").is_none()));
    let text = text_of(sidenote(dir, "eval qa default --index index --data questions.jsonl"));
    assert!(text.contains("exact_match") && text.contains("recall_at_1"), "{text}");
}

#[test]
fn passages_come_from_the_index_or_the_file_or_nowhere() {
    let place = workplace();
    let dir = place.path();
    let only = succeed(dir, "eval qa default --index index --data questions.jsonl --mode retrieve-only -k 2");
    assert!(only.get("f1").is_none() && only["recall_at_1"] == 0.75, "{only}");
    let words = succeed(
        dir,
        "eval qa default --index index --data questions.jsonl --mode retrieve-only --ranking words",
    );
    assert_eq!(words["recall_at_1"], 0.75, "{words}");

    let t5 = data("models/t5_v1_0");
    let run = |rest: &str| {
        succeed(
            dir,
            &format!("eval qa {} --data questions.jsonl --max-tokens 4 {rest} --out t5.jsonl", t5.display()),
        )
    };
    run("--index index -k 2");
    let read = lines(&dir.join("t5.jsonl"));
    run("--mode closed-book");
    let closed = lines(&dir.join("t5.jsonl"));
    assert_eq!((read[0]["passages"].as_array().unwrap().len(), &closed[0]["passages"]), (2, &json!([])));
    assert_ne!(read[0]["confidence"], closed[0]["confidence"], "what was read changes nothing");
    run("--mode closed-book --decoder-prompt moon");
    assert_ne!(lines(&dir.join("t5.jsonl"))[0]["confidence"], closed[0]["confidence"]);

    // A decoder reads what it is told to, before it is asked.
    let decoder = data("models/llama2c/stories260K.bin");
    let confidence = |rest: &str| {
        let asked =
            format!("eval qa {} --data questions.jsonl --index index -k 1 --max-tokens 4", decoder.display());
        let mut command = sidenote(dir, &asked);
        command.args(rest.split('|').filter(|word| !word.is_empty())).args(["--out", "decoder.jsonl"]);
        common::json_of(command);
        lines(&dir.join("decoder.jsonl"))[0]["confidence"].clone()
    };
    let usual = confidence("");
    assert_eq!(confidence("--qa-prompt|question: {question}\nanswer:"), usual);
    assert_eq!(confidence("--encoder-format|title: {title}\ncontext: {text}\n\n"), usual);
    assert_ne!(confidence("--qa-prompt|Q {question} A"), usual);
    assert_ne!(confidence("--encoder-format|{text}\n"), usual);
    assert!(
        fail(dir, "eval qa default --index index --data questions.jsonl --qa-prompt {question}")
            .contains("--qa-prompt")
    );

    let given = json!({"question": "When was Turing born?", "answers": ["1912"],
        "passages": [{"id": "x", "title": "Born", "text": "Turing was born in 1912."}]});
    write_lines(&dir.join("given.jsonl"), &[given]);
    let report =
        succeed(dir, "eval qa default --data given.jsonl --mode given-passages --out given-answers.jsonl");
    assert_eq!(report["attribution"], 1.0, "{report}");
    assert_eq!(lines(&dir.join("given-answers.jsonl"))[0]["passages"][0]["id"], "x");

    let without = fail(dir, "eval qa default --data questions.jsonl --mode given-passages");
    assert!(without.contains("passages") && without.contains("q1"), "{without}");
    assert!(fail(dir, "eval qa default --data questions.jsonl").contains("index"));
    let said = fail(
        dir,
        &format!("eval qa {} --data given.jsonl --mode closed-book --qa-prompt hello", t5.display()),
    );
    assert!(said.contains("templates.query"), "{said}");
    failure_of(sidenote(dir, "eval qa default"), 2);
}

#[test]
fn choices_are_asked_in_every_order() {
    let place = workplace();
    let dir = place.path();
    let question = |answer: &str| json!({"question": "Which moon?", "options": {"A": "the Earth", "B": "Zürich", "C": "a city"}, "answer": answer});
    write_lines(&dir.join("choices.jsonl"), &["A", "B", "C"].map(question));
    let model = data("models/llama2c/stories260K.bin");
    let run = |rest: &str| {
        let command = format!(
            "eval qa {} --data choices.jsonl --task multiple-choice --mode closed-book",
            model.display()
        );
        succeed(dir, &format!("{command} --out choices-{rest}.jsonl --permutations {rest}"))
    };
    let single = run("single");
    // The same question three times, each with another answer: one of them is right.
    assert!((single["accuracy"].as_f64().unwrap() - 1.0 / 3.0).abs() < 1e-9, "{single}");
    assert!(single.get("debiased_accuracy").is_none());
    let all = run("all");
    assert!((all["debiased_accuracy"].as_f64().unwrap() - 1.0 / 3.0).abs() < 1e-9, "{all}");
    let shares = |rest: &str| {
        let line = lines(&dir.join(format!("choices-{rest}.jsonl"))).remove(0);
        let shares = line["choice_probs"].as_object().unwrap().clone();
        assert!((shares.values().map(|share| share.as_f64().unwrap()).sum::<f64>() - 1.0).abs() < 1e-6);
        shares
    };
    run("cyclic");
    assert!(shares("single") != shares("all") && shares("cyclic") != shares("single"));
    assert!(
        fail(dir, "eval qa default --data choices.jsonl --task multiple-choice --mode closed-book")
            .contains("model")
    );

    write_lines(&dir.join("claims.jsonl"), &[json!({"claim": "The moon is a city.", "label": "REFUTES"})]);
    let claims =
        format!("eval qa {} --data claims.jsonl --task fact-checking --index index -k 2", model.display());
    assert!(succeed(dir, &claims)["accuracy"].is_number());
}

/// The same questions of the same model have other answers where a fact of the corpus is another.
#[test]
fn another_corpus_gives_its_own_answers() {
    let place = workplace();
    let dir = place.path();
    let answer = || {
        let mut command = sidenote(dir, "ask");
        command.args(["When was Turing born?", "--index", "index", "-k", "2"]);
        common::json_of(command)
    };
    let before = answer();
    assert!(before["answer"].as_str().unwrap().contains("1912"), "{before}");
    let edited = json!({"id": "t1", "title": "Alan Turing", "text": "Turing was a mathematician born in 1913. He built computers."});
    write_lines(&dir.join("edit.jsonl"), &[edited]);
    let report = succeed(dir, "index add index edit.jsonl");
    assert_eq!(report["replaced"], 1, "{report}");
    let after = answer();
    assert!(after["answer"].as_str().unwrap().contains("1913"), "{after}");
    assert!(!after.to_string().contains("1912"), "the old fact is still read: {after}");
    let others = |answer: &Value| {
        answer["sources"].as_array().unwrap().iter().map(|s| s["id"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(others(&before), others(&after));
    // The whole evaluation follows: the old answer is no longer found, and the other questions are answered as before.
    let summary = succeed(dir, "eval qa default --index index --data questions.jsonl -k 3");
    assert_eq!(summary["recall_at_1"], 0.5, "{summary}");
}

#[test]
fn what_is_not_supported_is_not_found() {
    let place = workplace();
    let dir = place.path();
    let questions: Vec<Value> = (0..24)
        .map(|i| match i / 2 % 3 {
            0 => json!({"question": "Which planet is the smallest?", "answers": ["Mercury"]}),
            1 => json!({"question": "What is cheese made from?", "answers": ["milk"]}),
            _ => json!({"question": "Which computers has the mathematician broken on the moons?", "answers": ["none"]}),
        })
        .collect();
    write_lines(&dir.join("held.jsonl"), &questions);
    let report = succeed(dir, "eval qa default --index index --data held.jsonl --calibrate sure.json");
    let stored: Value = serde_json::from_slice(&fs::read(dir.join("sure.json")).unwrap()).unwrap();
    assert_eq!(report["calibration"], stored);
    assert_eq!((&stored["precision"], &stored["recall"]), (&json!(1.0), &json!(1.0)), "{stored}");
    assert!(stored["questions"] == 12 && stored["answered"] == 8, "{stored}");
    let ask = |question: &str| {
        let mut command = sidenote(dir, "ask");
        command.args([question, "--index", "index", "--sure", "sure.json"]);
        common::json_of(command)
    };
    let answered = ask("Which planet is the smallest?");
    assert!(
        answered["found"] == true && answered["answer"].as_str().unwrap().contains("Mercury"),
        "{answered}"
    );
    assert_eq!(answered["calibration"]["precision"], 1.0);
    let refused = ask("Which computers has the mathematician broken on the moons?");
    assert_eq!((&refused["answer"], &refused["found"]), (&json!("Not found in the corpus."), &json!(false)));
    assert!(refused["sources"].as_array().unwrap().iter().all(|source| source["cited"] == false));
    // Another reader's answers are not sure in the same way, which is said before it is asked: this question it could not read.
    let mut command = sidenote(dir, "ask");
    command.arg("Which planet? ".repeat(200)).args(["--index", "index", "--sure", "sure.json", "--model"]);
    command.arg(data("models/llama2c/stories260K.bin"));
    assert!(failure_of(command, 1).contains("calibrat"));
    // What a model says may be said by nothing that it read.
    let mut command = sidenote(dir, "ask");
    command.args(["When was Turing born?", "--index", "index", "--model"]);
    command.arg(data("models/llama2c/stories260K.bin"));
    assert!(text_of(command).contains("\nNo passage that was read says this.\n"));
}

/// Fails when a passage of a text without sentences is widened to all of it, a document steers the terminal, or what a model had no
/// room for is listed as read.
#[test]
fn a_log_is_read_by_its_passages() {
    let place = workplace();
    let dir = place.path();
    let log: String = (0..2000).map(|i| format!("{i:05} cheese milk cows\n")).collect();
    write_lines(&dir.join("log.jsonl"), &[json!({"id": "log", "title": "A\n\u{1b}[31mlog", "text": log})]);
    succeed(dir, "index build log.jsonl --encoder encoder --chunk-tokens 16 --out log");
    let ask = |rest: &[&str]| {
        let mut command = sidenote(dir, "ask");
        command.args(["What is made of milk?", "--index", "log"]).args(rest);
        command
    };
    let text = text_of(ask(&[]));
    assert!(text.len() < 1000 && text.lines().count() == 9 && !text.contains('\u{1b}'), "{text}");
    assert_eq!(text.matches("] A [31mlog — ").count(), 5, "{text}");

    let model = data("models/llama2c/stories260K.bin").display().to_string();
    let rest = ["-k", "50", "--model", &model];
    let report = json_of(ask(&rest));
    let (read, unread) = (report["sources"].as_array().unwrap().len(), report["unread"].as_u64().unwrap());
    assert!(read > 0 && unread > 0 && read as u64 + unread == 50, "{read} {unread}");
    let text = text_of(ask(&rest));
    assert!(text.contains(&format!("({unread} more were found that the model has no room for)")), "{text}");
}

#[test]
fn questions_without_answers_are_not_asked_silently() {
    let place = workplace();
    let dir = place.path();
    let slip = json!({"question": "Which planet is the smallest?", "answer": "Mercury"});
    write_lines(&dir.join("slip.jsonl"), std::slice::from_ref(&slip));
    let asked = "eval qa default --index index --data";
    let said = fail(dir, &format!("{asked} slip.jsonl"));
    assert!(said.contains("slip.jsonl: none of 1 questions has \"answers\""), "{said}");
    assert!(said.contains("(but \"answer\", which is not read)"), "{said}");
    write_lines(&dir.join("kilt.jsonl"), &[json!({"id": "k", "input": "Which planet?", "output": []})]);
    let said = fail(dir, &format!("{asked} kilt.jsonl --task kilt"));
    assert!(said.contains("\"output\"") && !said.contains("\"answer\", which"), "{said}");
    assert_eq!(succeed(dir, &format!("{asked} slip.jsonl --out answers.jsonl"))["judged"], 0);

    let good = json!({"question": "What is cheese made from?", "answers": ["milk"]});
    write_lines(&dir.join("some.jsonl"), &[good, slip]);
    assert_eq!(succeed(dir, &format!("{asked} some.jsonl"))["judged"], 1);
    let text = text_of(sidenote(dir, &format!("{asked} some.jsonl")));
    assert!(text.starts_with("2 questions (1 judged, "), "{text}");
    failure_of(sidenote(dir, &format!("{asked} some.jsonl --limit 0")), 2);
}

/// No index is opened: what cannot be done is said before.
#[test]
fn what_an_evaluation_could_not_write_is_refused_before_it() {
    let place = workplace();
    let dir = place.path();
    let questions = fs::read(dir.join("questions.jsonl")).unwrap();
    let refused =
        |rest: &str| fail(dir, &format!("eval qa default --index nowhere --data questions.jsonl {rest}"));
    for precision in ["0", "1.5", "NaN"] {
        let said = refused(&format!("--calibrate sure.json --precision {precision}"));
        assert!(said.contains("--precision: "), "{said}");
    }
    assert!(refused("--calibrate none/sure.json").contains("there is no folder none"));
    assert!(refused("--calibrate index").contains("this is a folder"));
    for option in ["--out", "--calibrate"] {
        let said = refused(&format!("{option} ./questions.jsonl"));
        assert!(said.contains("questions.jsonl: this is read"), "{said}");
    }
    assert!(fs::read(dir.join("questions.jsonl")).unwrap() == questions);
    assert!(refused("--permutations all").contains("--permutations: is for --task multiple-choice"));
}

#[test]
fn what_was_measured_is_reported_though_it_cannot_be_calibrated() {
    let place = workplace();
    let dir = place.path();
    let wrong = json!({"question": "Which planet is the smallest?", "answers": ["Venus"]});
    write_lines(&dir.join("wrong.jsonl"), &[wrong]);
    let mut command = sidenote(dir, "eval qa default --index index --data wrong.jsonl --calibrate sure.json");
    let output = command.args(["--json", "--quiet"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(report["questions"] == 1 && report["f1"] == 0.0 && report["calibration"].is_null(), "{report}");
    assert!(said(&output).contains("calibrate: no answer"), "{}", said(&output));
    assert!(!dir.join("sure.json").exists());
}
