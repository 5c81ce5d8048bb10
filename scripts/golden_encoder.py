#!/usr/bin/env python3
"""Makes tests/data/encoder: tiny random-weight encoders with the vectors that sentence-transformers and transformers
give for them, one folder a family or kind of pooling; a tiny random static model with the vectors that model2vec
gives; and the vectors of real models, given their folders, for the same sentences.

    pip install torch transformers sentence-transformers model2vec
    python3 scripts/golden_encoder.py [FOLDER_NAME | minilm=MODEL_FOLDER | mpnet=MODEL_FOLDER ...]

Without arguments it makes all the folders.
"""

import json
import shutil
import sys
from pathlib import Path

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
    import model2vec

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


def shaken(network: torch.nn.Module) -> torch.nn.Module:
    """Norms and biases start as ones and zeros; makes them count."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "norm" in name.lower() or "emb_ln" in name or "bias" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return network.eval()


def bert_tokenizer() -> Tokenizer:
    tokenizer = tokenizer_of(SENTENCES)
    cls, sep = (tokenizer.token_to_id(t) for t in ("[CLS]", "[SEP]"))
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", sep), ("[CLS]", cls))
    return tokenizer


def roberta_tokenizer(cls: str, sep: str) -> Tokenizer:
    """The same words under the ids of RoBERTa's and MPNet's special tokens, padding being 1."""
    tokenizer = Tokenizer(WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = [cls, "<pad>", sep, "[UNK]", "<mask>"]
    trainer = trainers.WordPieceTrainer(vocab_size=280, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator([s for s in SENTENCES if "日" not in s] * 2, trainer)
    tokenizer.post_processor = processors.BertProcessing((sep, 2), (cls, 0))
    return tokenizer


def plain(folder: Path, network: torch.nn.Module, tokenizer: Tokenizer, dtype: torch.dtype = torch.float32,
          files: dict[str, dict] | None = None, mode: str = "mean", unit: bool = False, query: str = "",
          document: str = "") -> None:
    """A model as transformers saves it, perhaps with some of sentence-transformers' files, and the vectors that its
    hidden states give: masked mean or first token, after the prompts, at unit length or as they are."""
    shutil.rmtree(folder, ignore_errors=True)
    network.to(dtype).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    for name, content in (files or {}).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content, indent=1) + "\n")
    network = network.float()
    limit = network.config.max_position_embeddings - (2 if tokenizer.token_to_id("<pad>") == 1 else 0)
    tokenizer.enable_truncation(limit)

    def vectors(prompt: str) -> np.ndarray:
        rows = []
        for text in SENTENCES:
            ids = torch.tensor([tokenizer.encode(prompt + text).ids])
            with torch.no_grad():
                states = network(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0]
            rows.append(states.mean(0) if mode == "mean" else states[0])
        rows = torch.stack(rows)
        return (torch.nn.functional.normalize(rows) if unit else rows).numpy()

    write(SENTENCES, vectors(document), folder / "golden.json")
    if query:
        write(SENTENCES, vectors(query), folder / "golden_queries.json")


def sentence_files(mode: str, prompts: dict[str, str]) -> dict[str, dict]:
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    return {
        "modules.json": [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (path, kind) in enumerate(kinds)
        ],
        "1_Pooling/config.json": {"word_embedding_dimension": 0, f"pooling_mode_{mode}_token{'s' * (mode == 'mean')}": True},
        "config_sentence_transformers.json": {"prompts": prompts, "default_prompt_name": None},
    }


def contriever(folder: Path) -> None:
    """BERT without any file about pooling, as Contriever is published: the masked mean, not normalised."""
    tokenizer = bert_tokenizer()
    torch.manual_seed(4)
    config = transformers.BertConfig(
        vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=70, initializer_range=0.15, hidden_size=24,
        num_hidden_layers=2, num_attention_heads=3, intermediate_size=51, hidden_act="gelu_new")
    plain(folder, shaken(transformers.BertModel(config, add_pooling_layer=False)), tokenizer)


def bge(folder: Path) -> None:
    """BERT in bf16 with the first token's state and a prompt for queries, as BGE and E5 ask for."""
    tokenizer = bert_tokenizer()
    torch.manual_seed(5)
    config = transformers.BertConfig(
        vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=77, initializer_range=0.15, hidden_size=20,
        num_hidden_layers=2, num_attention_heads=2, intermediate_size=33)
    prompts = {"query": "what is near: ", "passage": "the text: "}
    plain(folder, shaken(transformers.BertModel(config, add_pooling_layer=False)), tokenizer, torch.bfloat16,
          sentence_files("cls", prompts), "cls", True, prompts["query"], prompts["passage"])


def xlm_roberta(folder: Path) -> None:
    """XLM-R in f16: BERT whose positions begin after the padding's."""
    tokenizer = roberta_tokenizer("<s>", "</s>")
    torch.manual_seed(6)
    config = transformers.XLMRobertaConfig(
        vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=72, initializer_range=0.15, hidden_size=28,
        num_hidden_layers=2, num_attention_heads=4, intermediate_size=45, type_vocab_size=1)
    plain(folder, shaken(transformers.XLMRobertaModel(config, add_pooling_layer=False)), tokenizer, torch.float16)


def mpnet(folder: Path) -> None:
    """MPNet, long enough for its last bucket of distances."""
    tokenizer = roberta_tokenizer("<s>", "</s>")
    torch.manual_seed(7)
    config = transformers.MPNetConfig(
        vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=182, initializer_range=0.15, hidden_size=21,
        num_hidden_layers=3, num_attention_heads=3, intermediate_size=50)
    network = shaken(transformers.MPNetModel(config, add_pooling_layer=False))
    with torch.no_grad():
        network.encoder.relative_attention_bias.weight.normal_(0, 1)
    plain(folder, network, tokenizer)


def nomic(folder: Path) -> None:
    """nomic-bert."""
    tokenizer = bert_tokenizer()
    torch.manual_seed(8)
    config = transformers.NomicBertConfig(
        vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=80, initializer_range=0.15, hidden_size=24,
        num_hidden_layers=2, num_attention_heads=3, intermediate_size=40)
    plain(folder, shaken(transformers.NomicBertModel(config, add_pooling_layer=False)), tokenizer)


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
    packages = [sentence_transformers, transformers, torch]
    packages += [sys.modules[name] for name in ["model2vec"] if name in sys.modules]
    made_with = {package.__name__: str(package.__version__) for package in packages}
    out.write_text(f'{{"made_with": {json.dumps(made_with)},\n"rows": [\n{rows}\n]}}\n')


FOLDERS = {
    "bert_mean": lambda folder: tiny(folder, "mean", hidden_size=48, num_hidden_layers=3, num_attention_heads=6,
                                     intermediate_size=100),
    "bert_cls": lambda folder: tiny(folder, "cls", hidden_size=15, num_hidden_layers=2, num_attention_heads=5,
                                    intermediate_size=37),
    "contriever": contriever,
    "bge": bge,
    "xlm_roberta": xlm_roberta,
    "mpnet": mpnet,
    "nomic": nomic,
    "model2vec": static,
}

if __name__ == "__main__":
    for wanted in sys.argv[1:] or FOLDERS:
        if "=" in wanted:
            name, source = wanted.split("=")
            golden(Path(source), HERE / f"{name}_golden.json")
        else:
            FOLDERS[wanted](HERE / wanted)
