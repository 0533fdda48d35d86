"""Tokenizers of every kind, small and real, for the tests of prompts."""

import functools
import json

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import ByT5Tokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from activation_store.models.loading import load_tokenizer
from activation_store.models.source import ModelSource
from tests.helpers.models import CHATML, QUESTIONS, train_tokenizer

CONTROL = ["<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>"]
# As Llama 2's and Mistral's: the template writes the BOS, and there is a space where the text begins.
LLAMA = "{{ bos_token }}{% for m in messages %}<|im_start|> {{ m['content'] | trim }} <|im_end|>{% endfor %}"


def _fast(backend: Tokenizer, template: str, *, bos: bool) -> PreTrainedTokenizerFast:
    if bos:
        backend.post_processor = TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", chat_template=template
    )


def unigram() -> PreTrainedTokenizerFast:
    """SentencePiece's Unigram with a space before the text, a BOS by post-processor and one by the template."""
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    letters = [chr(code) for code in range(33, 127)]
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=CONTROL, unk_token="<unk>", initial_alphabet=letters, show_progress=False
    )
    backend.train_from_iterator([*QUESTIONS * 5, *letters], trainer)
    return _fast(backend, LLAMA, bos=True)


def metaspace_bpe() -> PreTrainedTokenizerFast:
    """As Llama 2's: BPE over whole texts with spaces as letters, unknown characters as bytes."""
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=CONTROL, initial_alphabet=list(map(chr, range(33, 127))), show_progress=False
    )
    learner.train_from_iterator(QUESTIONS * 5, trainer)
    learned = json.loads(learner.to_str())["model"]
    vocabulary = dict(learned["vocab"])
    for byte in range(256):
        vocabulary[f"<0x{byte:02X}>"] = len(vocabulary)
    merges = [tuple(pair) for pair in learned["merges"]]
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(CONTROL)
    return _fast(backend, LLAMA, bos=True)


def word_level(*, split_at_punctuation: bool = True) -> PreTrainedTokenizerFast:
    """Whole words; split at spaces alone, its vocabulary holds control strings as words."""
    pre_tokenizer = pre_tokenizers.Whitespace() if split_at_punctuation else pre_tokenizers.WhitespaceSplit()
    words = [word for text in QUESTIONS for word, _ in pre_tokenizer.pre_tokenize_str(text)]
    vocabulary = dict.fromkeys([*CONTROL, *words, "<", "|", "im_end", "im_start", ">", "|>", "<|", "user"])
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(vocabulary)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizer
    backend.add_special_tokens([AddedToken(name, special=True) for name in CONTROL])
    return _fast(backend, LLAMA, bos=False)


def unmarked() -> PreTrainedTokenizerFast:
    """As DeepSeek's: turn markers are added tokens, but not special ones; so are a line break and a word."""
    tokenizer = train_tokenizer("<s>{% for m in messages %}<|User|>{{ m['content'] }}\n{% endfor %}<|Assistant|>user")
    tokenizer.add_tokens([AddedToken(name, normalized=False) for name in ("<|User|>", "<|Assistant|>", "\n\n", "user")])
    return tokenizer


def uncased() -> PreTrainedTokenizerFast:
    """Texts are lowercased before control strings are looked for."""
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=CONTROL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(QUESTIONS * 5, trainer)
    backend.add_special_tokens([AddedToken(name, special=True, normalized=True) for name in CONTROL])
    return _fast(backend, CHATML, bos=False)


def slow() -> PreTrainedTokenizerBase:
    """A tokenizer written in Python: bytes, and no offsets."""
    tokenizer = ByT5Tokenizer(extra_ids=0)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHATML
    return tokenizer


@functools.cache
def smollm2() -> PreTrainedTokenizerBase:
    """The real one, out of the GGUF file."""
    return load_tokenizer(ModelSource.parse("smollm2"))


KINDS = {
    "smollm2": smollm2,
    "byte_level": functools.cache(lambda: train_tokenizer("<s>" + CHATML, bos=True)),
    "unigram": functools.cache(unigram),
    "metaspace_bpe": functools.cache(metaspace_bpe),
    "word_level": functools.cache(word_level),
    "word_level_at_spaces": functools.cache(lambda: word_level(split_at_punctuation=False)),
    "unmarked": functools.cache(unmarked),
    "uncased": functools.cache(uncased),
    "slow": functools.cache(slow),
}
