"""Chooses a multitask pool and a held-out target task from Super-NaturalInstructions."""

import ast
import csv
import hashlib
import json
import re

import assets_io

TARGET = "task1388_cb_entailment"
TARGET_EXAMPLES = 40
INSTANCES = 31  # a task
LONGEST_INPUT, LONGEST_TARGET = 1200, 300  # characters
TASKS_A_SOURCE, TASKS_A_CATEGORY = 2, 5  # but every task of the target's category
TASKS_QUESTION_ANSWERING = 16  # the largest category has more

ALLOWED = re.compile(r"CC0(: Public Domain| 1\.0 Universal)?|CC BY(-SA)?( \d\.\d)?|MIT|Apache 2\.0|BSD( 2-Clause)?")
# Kept out whatever licence is stated.
SOURCES_LEFT_OUT = {
    "the target task's own data set": {"cb"},
    "test sets that must stay out of training": {"measuring_massive_multitask_language_understanding", "big_bench"},
    "text of third parties (news, reviews, posts, stories) that the stated licence may not cover": {
        "amazon_and_yelp_summarization_dataset", "amazon_fine_food_reviews", "amazon_polarity", "broad_twitter_corpus",
        "cls", "codexglue", "conllpp", "cosmosqa", "craigslist_bargains", "dualrl", "gigaword", "go_emotions",
        "help!_need_advice_on_identifying_advice", "hope_edi", "mocha", "peer_read", "pib", "points_of_correspondence",
        "reddit_tifu_dataset", "scruples", "swag", "timetravel", "tweetqa", "xlsum", "xsum",
    },
    "offensive text": {"google_wellformed_query", "stereoset", "crows_pairs", "md_gender_bias"},
}  # fmt: skip
CATEGORIES_LEFT_OUT = {"Toxic Language Detection", "Stereotype Detection"}  # offensive text


def rank(key):
    """The place of a task or an instance in the hash order."""
    return hashlib.sha256(f"sidenote sni {key}".encode()).digest()


def table_licences(folder):
    """Each task's licences as tasks.tsv states them."""
    with open(folder / "tasks.tsv", encoding="utf-8", newline="") as lines:
        rows = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        stated = {row["task"]: row["instance_license"] for row in rows}
    return {t: ast.literal_eval(s) if s.startswith("[") else [s] for t, s in stated.items()}


def is_allowed(licences):
    """Whether there is a licence and every one of them allows use in the product."""
    return bool(licences) and all(ALLOWED.fullmatch(licence) for licence in licences)


def examples(task):
    """The task's instances in zero-shot form, those short enough, in hash order, each input once."""
    definition = "\n".join(task["Definition"]).strip()
    result = {}
    for instance in sorted(task["Instances"], key=lambda i: rank(i["id"])):
        prompt = f"Definition: {definition}\n\nInput: {instance['input'].strip()}\nOutput:"
        target = instance["output"][0].strip()
        if len(prompt) <= LONGEST_INPUT and 0 < len(target) <= LONGEST_TARGET:
            result.setdefault(prompt, target)
    return list(result.items())


def read(folder):
    """The usable tasks by name: those under allowed licences in both places and not left out."""
    stated = table_licences(folder)
    left_out = set().union(*SOURCES_LEFT_OUT.values())
    tasks = {}
    for path in sorted((folder / "tasks_en").glob("*.json")):
        task = json.loads(path.read_text(encoding="utf-8"))
        task["sources"] = sorted({s.strip(" ,") for entry in task["Source"] for s in entry.split(";")})
        task["category"] = task["Categories"][0]
        usable = task["category"] not in CATEGORIES_LEFT_OUT and not left_out & set(task["sources"])
        licensed = is_allowed(task["Instance License"]) and is_allowed(stated[path.stem])
        if licensed and (usable or path.stem == TARGET):
            tasks[path.stem] = task
    return tasks


def choose(tasks, kindred):
    """The names of the pool's tasks: all of category `kindred`, and few of each other source and category."""
    chosen, sources, categories = [], {}, {}
    for name in sorted(tasks, key=rank):
        task = tasks[name]
        source, category = task["sources"][0], task["category"]
        if name == TARGET or len(examples(task)) < INSTANCES:
            continue
        limit = TASKS_QUESTION_ANSWERING if category == "Question Answering" else TASKS_A_CATEGORY
        room = sources.get(source, 0) < TASKS_A_SOURCE and categories.get(category, 0) < limit
        if category == kindred or room:
            chosen.append(name)
            if category != kindred:
                sources[source] = sources.get(source, 0) + 1
            categories[category] = categories.get(category, 0) + 1
    return sorted(chosen)


def licence_table(tasks, names):
    """Attribution of each task, as a Markdown table."""
    rows = ["| task | category | source data set | address | licence |", "|---|---|---|---|---|"]
    for name in names:
        task = tasks[name]
        address = " ".join(f"<{url}>" for url in task["URL"] if url.startswith("http"))
        cells = [name, task["category"], ", ".join(task["sources"]), address, ", ".join(task["Instance License"])]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows) + "\n"


def make(folder, assets):
    """Writes the pool, the target examples and the attribution; returns the counts."""
    tasks = read(folder)
    kindred = tasks[TARGET]["category"]
    chosen = choose(tasks, kindred)
    pool = [
        {
            "input": prompt,
            "target": target,
            "task": name,
            "category": tasks[name]["category"],
            "licence": ", ".join(tasks[name]["Instance License"]),
        }
        for name in chosen
        for prompt, target in examples(tasks[name])[:INSTANCES]
    ]
    pool.sort(key=lambda record: rank(record["task"] + record["input"]))
    target = [{"input": prompt} for prompt, _ in examples(tasks[TARGET])[:TARGET_EXAMPLES]]
    same = [name for name in chosen if tasks[name]["category"] == kindred]
    meta = {
        "task": TARGET,
        "category": kindred,
        "source": tasks[TARGET]["sources"],
        "licence": ", ".join(tasks[TARGET]["Instance License"]),
        "examples": len(target),
        "pool_tasks_of_the_category": same,
        "pool_instances_of_the_category": len(same) * INSTANCES,
        "pool_instances": len(pool),
    }
    assets_io.write_zst(assets / "pool.jsonl.zst", pool)
    assets_io.write_text(assets / "target.jsonl", assets_io.lines(target))
    assets_io.write_text(assets / "target_meta.json", json.dumps(meta, indent=2) + "\n")
    left_out = "\n".join(f"- {why}: {', '.join(sorted(which))};" for why, which in SOURCES_LEFT_OUT.items())
    text = (assets_io.TEMPLATES / "sni_licenses.md").read_text(encoding="utf-8")
    text = text.replace("{left_out}", left_out).replace("{table}", licence_table(tasks, sorted([*chosen, TARGET])))
    assets_io.write_text(assets / "LICENSES.md", text)
    return {
        "pool_instances": len(pool),
        "pool_tasks": len(chosen),
        "pool_categories": len({tasks[name]["category"] for name in chosen}),
        "pool_text_bytes": len(assets_io.lines(pool).encode()),
        "target_meta": meta,
    }
