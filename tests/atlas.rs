//! `sidenote train` with kind "atlas", through the command: a reader and its retriever, both tiny.

mod common;

use std::fs;
use std::path::Path;
use std::time::Duration;

use common::{fail, files, kill_at, sidenote, succeed, together, write_lines};
use serde_json::{Value, json};

const ATLAS: &str = r#"
    kind = "atlas"
    out = "atlas"
    base = "t5"
    index = "index"
    examples = "examples.jsonl"
    held_out = "held.jsonl"
    [atlas]
    loss = "pdist"
    passages = 3
    batch = 3
    target_tokens = 8
    [training]
    steps = 8
    learning_rate = 0.01
    evaluate_every = 4
    checkpoint_every = 4
"#;

fn copy(from: &str, to: &Path) {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(from);
    for (name, bytes) in files(&from) {
        let path = to.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}

/// A folder with a T5, an index by a BERT, and questions about its documents.
fn workplace() -> tempfile::TempDir {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    copy("models/t5_v1_0", &dir.join("t5"));
    copy("encoder/bert_mean", &dir.join("bert"));
    let things = ["the moon", "a king", "April", "the Earth", "a castle", "a month", "the line", "text"];
    let document = |i: usize| {
        let (a, b) = (things[i % 8], things[(i * 3 + 1) % 8]);
        json!({"id": format!("d{i}"), "title": a, "section": b,
            "text": format!("{a} moves around {b} in about {i} days and {b} is far from {a} in the month of April")})
    };
    write_lines(&dir.join("corpus.jsonl"), &(0..16).map(document).collect::<Vec<_>>());
    succeed(dir, "index build corpus.jsonl --encoder bert --chunk-tokens 64 --out index");
    let question = |i: usize| {
        let (a, b) = (things[i % 8], things[(i * 3 + 1) % 8]);
        json!({"question": format!("What does {a} move around?"), "answers": [b]})
    };
    write_lines(&dir.join("examples.jsonl"), &(0..12).map(question).collect::<Vec<_>>());
    write_lines(&dir.join("held.jsonl"), &(0..4).map(question).collect::<Vec<_>>());
    fs::write(dir.join("atlas.toml"), ATLAS).unwrap();
    place
}

/// What of `run`'s model differs from where it began: the reader's weights, and the retriever's.
fn learnt(dir: &Path, run: &str) -> (bool, bool) {
    let weights = |path: &str| fs::read(dir.join(path)).ok();
    let reader = weights(&format!("{run}/model/reader/model.safetensors"));
    let retriever = weights(&format!("{run}/model/retriever/model.safetensors"));
    assert!(reader.is_some());
    (
        reader != weights("t5/model.safetensors"),
        retriever.is_some() && retriever != weights("bert/model.safetensors"),
    )
}

fn metrics(dir: &Path, run: &str) -> Vec<Value> {
    let text = fs::read_to_string(dir.join(run).join("metrics.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn reader_and_retriever_learn_by_every_loss_and_answer() {
    let place = workplace();
    let dir = place.path();
    for loss in ["pdist", "emdr2", "emdr2-token", "adist", "loop"] {
        let settings = format!("--set atlas.loss={loss} --set out={loss} --set training.steps=4");
        let report = succeed(dir, &format!("train atlas.toml {settings}"));
        assert_eq!((&report["skipped_steps"], &report["tokens"]), (&json!(0), &json!(12)), "{report}");
        assert_eq!(learnt(dir, loss), (true, true), "{loss}");
    }
    // Without a loss the retriever stays, and any ranking serves.
    let alone = ATLAS.replace("loss = \"pdist\"", "ranking = \"hybrid\"");
    fs::write(dir.join("alone.toml"), alone).unwrap();
    let report = succeed(dir, "train alone.toml --set out=alone --set training.steps=160");
    assert_eq!(learnt(dir, "alone"), (true, false));
    let losses: Vec<f64> =
        metrics(dir, "alone").iter().filter_map(|line| line["held_out_loss"].as_f64()).collect();
    assert!(losses[losses.len() - 1] < losses[0] - 0.5, "{losses:?} {report}");
    // It answers better than what it began as, and is asked with the templates that it learnt with.
    let f1 = |model: &str, rest: &str| {
        let asked = format!(
            "eval qa {model} --index index --data held.jsonl -k 3 --ranking hybrid --max-tokens 8 {rest}"
        );
        succeed(dir, &asked)["f1"].as_f64().unwrap()
    };
    let (before, after) = (f1("t5", ""), f1("alone/model", ""));
    assert!(after > before, "{before} {after}");
}

/// A decoder reads the passages in its context, as many as it has room for.
#[test]
fn a_decoder_learns_with_its_retriever() {
    let place = workplace();
    let dir = place.path();
    for file in ["stories260K.bin", "tok512.bin"] {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/models/llama2c").join(file);
        fs::copy(from, dir.join(file)).unwrap();
    }
    for loss in ["pdist", "emdr2", "adist", "loop"] {
        let settings =
            "--set base=stories260K.bin --set training.learning_rate=0.001 --set training.steps=12";
        let report =
            succeed(dir, &format!("train atlas.toml {settings} --set atlas.loss={loss} --set out={loss}"));
        assert_eq!(report["skipped_steps"], 0, "{report}");
        let losses: Vec<f64> =
            metrics(dir, loss).iter().filter_map(|line| line["held_out_loss"].as_f64()).collect();
        assert!(losses[losses.len() - 1] < losses[0], "{loss}: {losses:?}");
        assert!(learnt(dir, loss).1, "{loss}: the retriever has learnt nothing");
    }
    let settings =
        "--set base=stories260K.bin --set atlas.query_side=true --set atlas.templates.context_tokens=90";
    succeed(dir, &format!("train atlas.toml {settings} --set out=queries --set training.steps=4"));
    let report = succeed(dir, "eval qa queries/model --index index --data held.jsonl -k 3 --max-tokens 4");
    assert_eq!(report["questions"], 4, "{report}");
    let said = fail(
        dir,
        "train atlas.toml --set base=stories260K.bin --set atlas.templates.context_tokens=2 --set out=failed",
    );
    assert!(said.contains("too long"), "{said}");
}

#[test]
fn query_side_tuning_leaves_the_index_as_it_is() {
    let place = workplace();
    let dir = place.path();
    let before = files(&dir.join("index"));
    succeed(dir, "train atlas.toml --set atlas.query_side=true --set out=queries");
    assert_eq!(files(&dir.join("index")), before);
    assert_eq!(learnt(dir, "queries"), (true, true));
    assert!(!dir.join("queries/generations").exists());
    succeed(dir, "eval qa queries/model --index index --data held.jsonl --max-tokens 3");
    let mut ask = sidenote(dir, "ask --index index --model queries/model");
    ask.arg("What does the moon move around?");
    assert_eq!(common::json_of(ask)["reader"], "model queries/model");
    // The queries are for these vectors and no others.
    copy("encoder/bert_cls", &dir.join("other"));
    succeed(dir, "index encode index --encoder other --out by-other");
    let said = fail(dir, "eval qa queries/model --index by-other --data held.jsonl");
    assert!(said.contains("queries/model") && said.contains("other"), "{said}");
}

#[test]
fn an_index_is_encoded_again_when_the_schedule_says() {
    let place = workplace();
    let dir = place.path();
    let before = files(&dir.join("index"));
    let refreshed = "train atlas.toml --set atlas.refresh=2-6:2,6-:5 --set atlas.rerank=6 --set out=fresh";
    succeed(dir, refreshed);
    assert_eq!(files(&dir.join("index")), before, "the given index is the user's");
    // Those at steps 2, 4 and 6 were made; a resumed run needs the last ones only.
    let mut made: Vec<_> = fs::read_dir(dir.join("fresh/generations"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    made.sort();
    assert_eq!(made.last().unwrap(), "step-0000006", "{made:?}");
    assert!(
        made.iter().all(|name| ["step-0000002", "step-0000004", "step-0000006"].contains(&name.as_str())),
        "{made:?}"
    );
    succeed(dir, "index verify fresh/generations/step-0000006/index");
    // Another index, other passages, other losses.
    succeed(dir, "train atlas.toml --set out=stale");
    let last = |run: &str| metrics(dir, run).pop().unwrap()["loss"].as_f64().unwrap();
    assert_ne!(last("fresh"), last("stale"));

    // The retriever's own vectors are wanted.
    let said = fail(dir, "eval qa fresh/model --index index --data held.jsonl");
    assert!(said.contains("index encode") && said.contains("fresh/model"), "{said}");
    succeed(dir, "index encode index --encoder fresh/model/retriever --out own");
    succeed(dir, "eval qa fresh/model --index own --data held.jsonl --max-tokens 3");
}

/// Two processes with a batch each take the steps of one with two, to the last bit, with the index that the first of them encodes; also
/// where they go on.
#[test]
fn processes_that_train_together_are_one_that_asks_as_much() {
    let place = workplace();
    let dir = place.path();
    for lag in [0, 1] {
        let settings = format!("--set atlas.refresh=3 --set atlas.refresh_lag={lag} --set atlas.rerank=5");
        let alone = succeed(
            dir,
            &format!("train atlas.toml {settings} --set training.accumulate=2 --set out=alone-{lag}"),
        );
        let run = format!("train atlas.toml {settings} --set out=together-{lag}");
        let report = together(dir, &run, 2);
        assert_eq!((&report["steps"], &report["tokens"]), (&alone["steps"], &alone["tokens"]));
        let model = |run: &str| files(&dir.join(format!("{run}-{lag}/model")));
        let whole = model("together");
        assert!(whole == model("alone"), "lag {lag}");
        // From step 4, when the index of step 3 is in use or just about to be.
        fs::remove_dir_all(dir.join(format!("together-{lag}/model"))).unwrap();
        together(dir, &format!("{run} --resume"), 2);
        assert!(whole == model("together"), "lag {lag}, resumed");
    }
}

#[test]
fn a_run_killed_again_and_again_ends_with_the_same_bytes() {
    let place = workplace();
    let dir = place.path();
    let settings = "--set atlas.refresh=3 --set atlas.refresh_lag=2 --set atlas.rerank=5 --set training.steps=24 --set training.checkpoint_every=2";
    succeed(dir, &format!("train atlas.toml {settings} --set out=whole"));
    let command = format!("train atlas.toml {settings} --set out=broken --resume");
    let mut kills = 0;
    for (step, delay) in [(2, 3), (6, 40), (10, 11), (14, 70)] {
        let sign = || (step..step + 8).any(|s| dir.join(format!("broken/checkpoints/step-{s:07}")).exists());
        kills += usize::from(kill_at(sidenote(dir, &command), sign, Duration::from_millis(delay)));
    }
    assert!(kills >= 2, "only {kills} kills met a run at work");
    succeed(dir, &command);
    let model = |run: &str| files(&dir.join(run).join("model"));
    assert!(model("whole") == model("broken"), "other weights after resuming");
    let lines = |run: &str| {
        let timeless = |mut line: Value| {
            line.as_object_mut().unwrap().remove("seconds");
            line
        };
        metrics(dir, run).into_iter().map(timeless).collect::<Vec<_>>()
    };
    assert_eq!(lines("whole"), lines("broken"));
}

#[test]
fn other_tasks_are_learnt_from_lines_and_from_the_text_itself() {
    let place = workplace();
    let dir = place.path();
    let text = ATLAS.replace("examples = \"examples.jsonl\"", "").replace("held_out = \"held.jsonl\"", "");
    fs::write(dir.join("text.toml"), text).unwrap();
    for task in ["section", "masked", "prefix"] {
        let report = succeed(
            dir,
            &format!("train text.toml --set out={task} --set atlas.task={task} --set training.steps=3"),
        );
        assert_eq!((&report["steps"], learnt(dir, task)), (&json!(3), (true, true)));
    }
    let choices: Vec<Value> = (0..4)
        .map(|i| json!({"question": "Which?", "options": {"A": "the moon", "B": "April"}, "answer": if i % 2 == 0 { "A" } else { "B" }}))
        .collect();
    write_lines(&dir.join("choices.jsonl"), &choices);
    let asked = "--set examples=choices.jsonl --set held_out=choices.jsonl --set atlas.task=multiple-choice";
    let report = succeed(
        dir,
        &format!(
            "train atlas.toml {asked} --set atlas.permutations=all --set out=choices --set training.steps=2"
        ),
    );
    assert_eq!(report["tokens"], 6);
    let evaluated =
        "eval qa choices/model --index own --data choices.jsonl --task multiple-choice --permutations cyclic";
    succeed(dir, "index encode index --encoder choices/model/retriever --out own");
    assert!(succeed(dir, evaluated)["debiased_accuracy"].is_number());
}

/// What a reader has learnt from passages that came with the questions, it reads out of any index: the answers are those of the
/// corpus that it is asked with, and follow when a document changes. Without passages all that it can learn is the question.
#[test]
fn a_reader_of_given_passages_answers_with_whatever_corpus_it_is_asked() {
    let place = workplace();
    let dir = place.path();
    let (things, question) = (["moon", "king"], "Where does it move?");
    let text = |thing: &str, day: usize| format!("in {day} days it moves around the {thing}");
    let lines = |days: std::ops::Range<usize>| -> Vec<Value> {
        let line = |day: usize| {
            let thing = things[day % 2];
            json!({"question": question, "answers": [thing], "passages": [{"title": "", "text": text(thing, day / 2)}]})
        };
        days.map(line).collect()
    };
    write_lines(&dir.join("given.jsonl"), &lines(0..16));
    write_lines(&dir.join("given-held.jsonl"), &lines(16..20));
    let given = ATLAS
        .replace("index = \"index\"", "")
        .replace("examples.jsonl", "given.jsonl")
        .replace("held.jsonl", "given-held.jsonl");
    let learn = |mode: &str, steps: usize| {
        fs::write(dir.join("given.toml"), given.replace("loss = \"pdist\"", &format!("mode = \"{mode}\"")))
            .unwrap();
        succeed(dir, &format!("train given.toml --set out={mode} --set training.steps={steps}"));
        assert_eq!(learnt(dir, mode), (true, false));
        let held =
            metrics(dir, mode).iter().filter_map(|line| line["held_out_loss"].as_f64()).collect::<Vec<_>>();
        held[held.len() - 1]
    };
    let (read, unread) = (learn("given-passages", 400), learn("closed-book", 200));
    assert!(unread > 0.15 && read < unread / 10.0, "{read} {unread}");

    let asked = |index: &str| {
        let asked = format!(
            "eval qa given-passages/model --index {index} --data asked.jsonl -k 1 --out answers.jsonl"
        );
        succeed(dir, &asked);
        let text = fs::read_to_string(dir.join("answers.jsonl")).unwrap();
        serde_json::from_str::<Value>(&text).unwrap()["generation"].as_str().unwrap().to_string()
    };
    write_lines(&dir.join("asked.jsonl"), &[json!({"question": question, "answers": ["moon"]})]);
    let document = |thing: &str| json!({"id": "where", "title": "", "text": text(thing, 9)});
    for thing in things {
        write_lines(&dir.join("swap.jsonl"), &[document(thing)]);
        succeed(dir, &format!("index build swap.jsonl --chunk-tokens 64 --out about-{thing}"));
        assert_eq!(asked(&format!("about-{thing}")), thing);
    }
    write_lines(&dir.join("swap.jsonl"), &[document("moon")]);
    succeed(dir, "index add about-king swap.jsonl");
    assert_eq!(asked("about-king"), "moon");

    write_lines(&dir.join("examples.jsonl"), &[json!({"question": "?", "answers": ["moon"]})]);
    for (settings, words) in [
        (
            "atlas.mode=given-passages --set examples=examples.jsonl --set atlas.batch=1",
            &["passages", "\"0\""][..],
        ),
        ("atlas.mode=retrieve-only", &["atlas.mode", "retrieve-only"]),
        ("atlas.mode=retrieve", &["index", "closed-book"]),
        ("index=index", &["index", "leave"]),
        ("atlas.loss=pdist", &["atlas.mode", "loss"]),
        ("atlas.task=prefix", &["atlas.mode", "index's text"]),
    ] {
        let said = fail(dir, &format!("train given.toml --set out=failed --set {settings}"));
        assert!(words.iter().all(|word| said.contains(word)), "{settings}: {said}");
    }
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let place = workplace();
    let dir = place.path();
    for (settings, words) in [
        ("atlas.passages=0", &["atlas.passages"][..]),
        ("atlas.batch=100", &["atlas.batch", "12"]),
        ("atlas.rerank=2", &["atlas.rerank"]),
        ("atlas.refresh=often", &["often", "schedule"]),
        ("atlas.refresh_lag=2", &["atlas.refresh_lag", "give refresh"]),
        ("atlas.loss=guess", &["guess"]),
        ("atlas.target_temperature=0", &["atlas.target_temperature"]),
        ("atlas.query_side=true --set atlas.refresh=2", &["atlas.query_side"]),
        ("atlas.task=section", &["examples"]),
        ("atlas.templates.query=hello", &["templates.query", "{question}"]),
        ("base=nowhere", &["nowhere"]),
        ("examples=corpus.jsonl", &["corpus.jsonl:1", "question"]),
        ("kind=t5", &["atlas"]),
    ] {
        let said = fail(dir, &format!("train atlas.toml --set out=failed --set {settings}"));
        assert!(words.iter().all(|word| said.contains(word)), "{settings}: {said}");
    }
    // A table has nothing to train, but serves where the retriever stays.
    succeed(dir, "index build corpus.jsonl --chunk-tokens 64 --out by-table");
    assert!(fail(dir, "train atlas.toml --set out=failed --set index=by-table").contains("table"));
    fs::write(dir.join("alone.toml"), ATLAS.replace("loss = \"pdist\"", "")).unwrap();
    succeed(dir, "train alone.toml --set out=alone --set index=by-table --set training.steps=1");
    let said = fail(dir, "train alone.toml --set out=failed --set atlas.rerank=9");
    assert!(said.contains("atlas.loss"), "{said}");
}
