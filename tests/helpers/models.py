"""Tiny random models with a real tokenizer and chat template."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
N_BLOCKS = 3
_COMMON = {
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": N_BLOCKS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
_NO_GQA = {key: value for key, value in _COMMON.items() if key not in ("num_key_value_heads", "head_dim")}
CONFIGS = {
    "llama": lambda: LlamaConfig(**_COMMON),
    "qwen2": lambda: Qwen2Config(**_COMMON),
    "qwen3": lambda: Qwen3Config(**_COMMON),
    "gemma": lambda: GemmaConfig(**_COMMON),
    "gemma2": lambda: Gemma2Config(**_COMMON, sliding_window=8),
    "gpt_neox": lambda: GPTNeoXConfig(**_NO_GQA),
    "gpt2": lambda: GPT2Config(
        vocab_size=400, n_embd=32, n_layer=N_BLOCKS, n_head=4, n_positions=256, bos_token_id=0, eos_token_id=1
    ),
}
QUESTIONS = [
    "What is 2 + 3?",
    "Name the capital of France.",
    "Which of these numbers is the largest: 17, 94, 32, 8?",
    "Hi",
    "A farmer has seven sheep and buys three more, then gives two away. How many sheep does the farmer have now?",
    "¿Qué hora es?  ",
    "Write the letters of the word apple in reverse order.",
    "1, 4, 9, 16, ...",
    "x",
    "What comes after Monday, and what comes before it? Answer with both days, please.",
    "日本の首都はどこ",
]


def train_tokenizer(chat_template: str | None = CHATML, *, bos: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with ChatML's control tokens."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    backend.train_from_iterator(QUESTIONS * 5 + ["user\n", "assistant\n"] * 20, trainer)
    if bos:
        from tokenizers.processors import TemplateProcessing

        backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="</s>", chat_template=chat_template
    )


def save_model(
    folder: Path, family: str, *, dtype: torch.dtype = torch.float32, tokenizer: PreTrainedTokenizerFast | None = None
) -> Path:
    """Write a random model of one architecture and its tokenizer, as a hub download would lie on disk."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[family]())
    # Random weights of the usual scale leave the blocks nearly idle; larger ones make every layer matter.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    model.to(dtype).save_pretrained(folder)
    (tokenizer or train_tokenizer()).save_pretrained(folder)
    return folder
