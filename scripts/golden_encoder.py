#!/usr/bin/env python3
"""Makes tests/data/encoder: a tiny random-weight BERT with the vectors that sentence-transformers
gives for it, one folder a kind of pooling; a tiny random static model with the vectors that model2vec
gives; and, given the folder of all-MiniLM-L6-v2, that model's vectors for the same sentences.

    pip install torch transformers sentence-transformers model2vec
    python3 scripts/golden_encoder.py [MINILM_FOLDER]
"""

import json
import shutil
import sys
from pathlib import Path

import model2vec
import numpy as np
import sentence_transformers
import torch
import transformers
from sentence_transformers import SentenceTransformer, models
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers.models import WordPiece

HERE = Path(__file__).resolve().parent.parent / "tests" / "data" / "encoder"

# Uneven lengths, an empty-ish one, accents, capitals, unknown characters, and one far over the limit.
SENTENCES = [
    "A sidenote is text brought from elsewhere and set beside the line being read.",
    "April",
    "What similarity laws must be obeyed when constructing aeroelastic models of heated high speed aircraft?",
    "Zürich is the largest city of Switzerland; naïve CAFÉ owners know it.",
    "the boundary layer in simple shear flow past a flat plate",
    "!",
    "日本 and Ωmega, mixed in one line 1234567890",
    "Retrieval-augmented language models look things up while they write, "
    "and the words that they find stand beside the words that they make.",
    " ".join(f"The {n}th sentence of a long text has some words of its own." for n in range(60)),
    "The moon moves around the Earth in about 27 days.",
]


def tokenizer_of(sentences: list[str]) -> Tokenizer:
    """An uncased BERT tokenizer with a small vocabulary."""
    tokenizer = Tokenizer(WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator([s for s in sentences if "日" not in s] * 2, trainer)
    return tokenizer


def static(folder: Path) -> None:
    """A random model2vec model: eight-bit rows and a weight a token."""
    shutil.rmtree(folder, ignore_errors=True)
    tokenizer = tokenizer_of(SENTENCES)
    random = np.random.default_rng(3)
    vectors = random.integers(-127, 128, (tokenizer.get_vocab_size(), 11)).astype(np.int8)
    weights = random.random(len(vectors), dtype=np.float32)
    model = model2vec.StaticModel(vectors, tokenizer, {"model_type": "model2vec"}, normalize=True, weights=weights)
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    write(SENTENCES, model.encode(SENTENCES, max_length=None), folder / "golden.json")


def tiny(folder: Path, pooling: str, **sizes: int) -> None:
    """A random BERT of uneven sizes, saved as sentence-transformers does."""
    shutil.rmtree(folder, ignore_errors=True)
    tokenizer = tokenizer_of(SENTENCES)
    cls, sep = (tokenizer.token_to_id(t) for t in ("[CLS]", "[SEP]"))
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", sep), ("[CLS]", cls))
    torch.manual_seed({"mean": 1, "cls": 2}[pooling])
    config = transformers.BertConfig(
        vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=70, initializer_range=0.15,
        **sizes,
    )
    network = transformers.BertModel(config).eval()
    with torch.no_grad():  # norms and biases start as ones and zeros; make them count
        for name, parameter in network.named_parameters():
            if "LayerNorm" in name or "bias" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
    source = folder / "source"
    network.save_pretrained(source)
    fast = transformers.BertTokenizerFast(tokenizer_object=tokenizer)
    fast.save_pretrained(source)
    transformer = models.Transformer(str(source), max_seq_length=61)
    pool = models.Pooling(sizes["hidden_size"], pooling_mode=pooling)
    modules = [transformer, pool] + ([models.Normalize()] if pooling == "mean" else [])
    model = SentenceTransformer(modules=modules, device="cpu")
    model.save_pretrained(str(folder), create_model_card=False)
    shutil.rmtree(source)
    shutil.rmtree(folder / "2_Normalize", ignore_errors=True)  # holds nothing that is read
    golden(folder, folder / "golden.json")


def golden(folder: Path, out: Path) -> None:
    """Writes the sentences and their vectors."""
    model = SentenceTransformer(str(folder), device="cpu")
    vectors = model.encode(SENTENCES, batch_size=4, normalize_embeddings=True)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    write(SENTENCES, vectors, out)


def write(sentences: list[str], vectors: np.ndarray, out: Path) -> None:
    rows = ",\n".join(
        json.dumps({"text": text, "vector": [round(float(x), 7) for x in row]}, ensure_ascii=False)
        for text, row in zip(sentences, vectors)
    )
    packages = (sentence_transformers, transformers, torch, model2vec)
    made_with = {package.__name__: str(package.__version__) for package in packages}
    out.write_text(f'{{"made_with": {json.dumps(made_with)},\n"rows": [\n{rows}\n]}}\n')


if __name__ == "__main__":
    tiny(HERE / "bert_mean", "mean", hidden_size=48, num_hidden_layers=3, num_attention_heads=6,
         intermediate_size=100)
    tiny(HERE / "bert_cls", "cls", hidden_size=15, num_hidden_layers=2, num_attention_heads=5,
         intermediate_size=37)
    static(HERE / "model2vec")
    if len(sys.argv) > 1:
        golden(Path(sys.argv[1]), HERE / "minilm_golden.json")
