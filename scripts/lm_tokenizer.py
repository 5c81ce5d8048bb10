"""Trains the byte-level BPE tokenizer of the language models."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

VOCABULARY = 4096
END_OF_TEXT = "<|endoftext|>"  # token 0


def train(texts):
    """A byte-level BPE as GPT-2's (Radford et al., 2019) of VOCABULARY tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    return tokenizer


def bytes_per_token(tokenizer, texts):
    """Bytes of UTF-8 a token stands for on average."""
    return sum(len(t.encode()) for t in texts) / sum(len(tokenizer.encode(t).ids) for t in texts)
