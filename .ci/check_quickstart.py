"""Checks the report of `sidenote quickstart --json`: usage check_quickstart.py STDOUT SAVED."""

import json
import sys

printed, saved = (json.load(open(path)) for path in sys.argv[1:3])
assert printed == saved, "stdout and report.json differ"
systems = {"plain", "plain_longer", "retrieval_on", "retrieval_off", "retrieval_shuffled"}
for measure in ("perplexity", "bits_per_byte"):
    values = printed[measure]
    assert set(values) == systems, values
    for worse in ("plain", "retrieval_off", "retrieval_shuffled"):
        assert values["retrieval_on"] < values[worse], f"{measure}: on is not below {worse}: {values}"
    assert values["retrieval_off"] == values["plain"], "off is not the plain model"
assert printed["index"]["documents"] >= 1000 and printed["index"]["chunks"] > 1000
assert printed["index"]["seconds"] > 0
assert len(printed["search"]) == 3 and all(hit["title"] and hit["text"] for hit in printed["search"])
ask = printed["ask"]
assert ask["question"] and ask["answer"] and any(source["cited"] for source in ask["sources"])
select = printed["select"]
assert select["chosen"] == sum(select["tasks"].values()) == sum(select["random_tasks"].values())
print("1 passed, 0 failed")
