"""Repairs what the extraction of Wikipedia's markup left behind in an article's text."""

import html
import re

# What tells an article whose markup did not survive the extraction.
BROKEN = re.compile(r"formula_\d|codice_\d|https?://|\[\[|\]\]|\{\{|\}\}|[<>|]|\ufffd")
SENTENCE_END = re.compile(r"(?<=[.!?]) (?=[A-Z\"(])")
# A number or name that a template held is missing here: "has an area of ."
HOLE = re.compile(r"\b(?:of|is|was|are|about|to|at|than|over|from|in|by|and|the|a|an) [.,;)]|, ;| of inhabitants/")
# A table row that came through as text.
ROW = re.compile(r"\|\||^[!|]|^\W*$")


def clean(title, text):
    """The article's text, repaired: entities resolved; empty brackets, table rows, sentences
    that lost a number, and closing headings without a section or list taken out; and the subject put back where the text begins with its verb."""
    text = html.unescape(text).replace("\u00a0", " ").replace("\ufeff", "")
    text = re.sub(r"[\u200b-\u200f]|</?(?:br|section|center|small|onlyinclude)\b[^<>]*>|\[\[Category:[^\]]*\]\]", "", text)
    text = re.sub(r"(?:, *){2,}", ", ", text)
    text = re.sub(r"(?:; *){2,}", "; ", text)
    text = re.sub(r"([(\[])[\s,;:]+", r"\1", text)
    text = re.sub(r"[\s,;:]+([)\]])", r"\1", text)
    text = re.sub(r" ?(?:\((?:or)?\)|\[\])", "", text)
    text = re.sub(r"[ \t]+", " ", text)
    lines = [line.strip() for line in text.split("\n")]
    lines = [line for line in lines if line and not ROW.search(line)]
    lines = [without_holes(line) for line in lines]
    lines = [line for line in lines if line]
    while len(lines) > 1 and (is_heading(lines[-1]) or lines[-1].endswith((":", "\u02d0"))):
        lines.pop()
    text = "\n".join(lines)
    subject = re.sub(r" \(.*\)$", "", title)
    if text.startswith(","):
        text = subject + text
    elif text.startswith("(") or re.match(r"(?:is|was|are|were) ", text):
        text = f"{subject} {text}"
    return text


def without_holes(line):
    """The line without the sentences in which a number or name is missing, and without
    the spaces that were left before punctuation."""
    line = " ".join(s for s in SENTENCE_END.split(line) if not HOLE.search(s))
    return re.sub(r" (?=[,.;:](?: |$))", "", line)


def is_heading(line):
    """Whether a line looks like a section's heading (the extraction ends headings with a full stop)."""
    return line.endswith(".") and len(line.split()) <= 4


def is_sound(text):
    """Whether a repaired text reads as a whole English article."""
    letters = sum(c.isalpha() for c in text)
    latin = sum(c.isalpha() and ord(c) < 0x250 for c in text)
    lines = text.split("\n")
    headings = sum(is_heading(line) for line in lines)
    return (
        not BROKEN.search(text)
        and latin > 0.93 * letters
        and letters > 0.65 * len(text)
        and headings <= 0.6 * len(lines)
        and text[-1] in ".!?\"')"
        and (text[0].isupper() or text[0].isdigit() or text[0] in "\"'")
    )
