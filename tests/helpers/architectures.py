"""Tiny random models of many architectures, and their hidden states by Hugging Face alone, one prompt at a time."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM

from activation_store.capture.hidden_states import HiddenStates
from activation_store.models.loading import LoadedDecoder
from activation_store.models.structure import find_decoder

WINDOW = 5
VOCABULARY = 64
_TOKENS = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
_PLAIN = {
    **_TOKENS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
_GROUPED = {**_PLAIN, "num_key_value_heads": 2}
_HEADED = {**_GROUPED, "head_dim": 8}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_OPT = {
    **_TOKENS,
    "hidden_size": 32,
    "ffn_dim": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
_FALCON = {**_TOKENS, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
_MAMBA2 = {"mamba_d_state": 8, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_chunk_size": 4}
_VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 4,
    "long_factor": [4.0] * 4,
    "original_max_position_embeddings": 20,
}

# Name -> class of the configuration and its fields.
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", _HEADED),
    "mistral": ("MistralConfig", {**_HEADED, "sliding_window": None}),
    "mistral, window": ("MistralConfig", {**_HEADED, "sliding_window": WINDOW}),
    "qwen2": ("Qwen2Config", _HEADED),
    "qwen2, window": (
        "Qwen2Config",
        {**_HEADED, "use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3Config", _HEADED),
    "gemma2": ("Gemma2Config", {**_HEADED, "sliding_window": WINDOW}),
    "gemma3": ("Gemma3TextConfig", {**_HEADED, "sliding_window": WINDOW, "sliding_window_pattern": 2}),
    "gemma3, multimodal": (
        "Gemma3Config",
        {
            "text_config": {**_HEADED, "sliding_window": WINDOW},
            "vision_config": _VISION,
            "mm_tokens_per_image": 4,
            "boi_token_index": 60,
            "eoi_token_index": 61,
            "image_token_index": 62,
        },
    ),
    "phi3": ("Phi3Config", {**_HEADED, "sliding_window": None}),
    "phi3, longrope": (
        "Phi3Config",
        {**_HEADED, "sliding_window": None, "original_max_position_embeddings": 20, "rope_parameters": _LONGROPE},
    ),
    "gpt2": (
        "GPT2Config",
        {
            "vocab_size": VOCABULARY,
            "n_embd": 32,
            "n_layer": 3,
            "n_head": 4,
            "n_positions": 128,
            "bos_token_id": 0,
            "eos_token_id": 1,
        },
    ),
    "gpt_neox": ("GPTNeoXConfig", _PLAIN),
    "opt": ("OPTConfig", _OPT | {"word_embed_proj_dim": 32}),
    "opt, projected": ("OPTConfig", {**_OPT, "word_embed_proj_dim": 16}),
    "opt, post-norm": ("OPTConfig", {**_OPT, "word_embed_proj_dim": 16, "do_layer_norm_before": False}),
    "bloom": ("BloomConfig", {**_TOKENS, "hidden_size": 32, "n_layer": 3, "n_head": 4}),
    "falcon, alibi": ("FalconConfig", {**_FALCON, "alibi": True, "new_decoder_architecture": False}),
    "falcon": ("FalconConfig", {**_FALCON, "alibi": False, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "olmo2": ("Olmo2Config", _PLAIN),
    "mixtral": (
        "MixtralConfig",
        {**_HEADED, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    ),
    "qwen2_moe": (
        "Qwen2MoeConfig",
        {**_GROUPED, **_EXPERTS, "shared_expert_intermediate_size": 16, "decoder_sparse_step": 1},
    ),
    "qwen3_moe": ("Qwen3MoeConfig", {**_HEADED, **_EXPERTS, "decoder_sparse_step": 2}),
    "llama4": (
        "Llama4TextConfig",
        {
            **_HEADED,
            "intermediate_size_mlp": 48,
            "num_local_experts": 4,
            "num_experts_per_tok": 1,
            "attention_chunk_size": WINDOW,
            "interleave_moe_layer_step": 2,
        },
    ),
    "granite": ("GraniteConfig", _GROUPED),
    "smollm3": ("SmolLM3Config", {**_GROUPED, "no_rope_layer_interval": 2}),
    "mamba": ("MambaConfig", {**_TOKENS, "hidden_size": 32, "state_size": 8, "num_hidden_layers": 3}),
    "jamba": (
        "JambaConfig",
        {
            **_GROUPED,
            "num_experts": 4,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "mamba_d_state": 8,
            "mamba_dt_rank": 4,
            "use_mamba_kernels": False,
        },
    ),
    "zamba2": (
        "Zamba2Config",
        {
            **_PLAIN,
            "num_hidden_layers": 4,
            "num_key_value_heads": 4,
            "n_mamba_heads": 4,
            "mamba_d_state": 8,
            "mamba_headdim": 16,
            "mamba_ngroups": 1,
            "chunk_size": 4,
            "layers_block_type": ["mamba", "hybrid"] * 2,
            "use_mem_rope": True,
            "adapter_rank": 4,
            "num_mem_blocks": 1,
        },
    ),
    "falcon_h1": ("FalconH1Config", {**_GROUPED, **_MAMBA2, "mamba_d_ssm": 64}),
    "qwen3_next": (
        "Qwen3NextConfig",
        {
            **_HEADED,
            **_EXPERTS,
            "shared_expert_intermediate_size": 16,
            "layer_types": ["linear_attention", "full_attention", "linear_attention"],
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
        },
    ),
}
# Their caches hold more than a key and a value per token.
WITHOUT_PREFIX = {"mamba", "jamba", "zamba2", "falcon_h1", "qwen3_next"}
PROJECTED = {"opt, projected", "opt, post-norm"}


def build(name: str, dtype: torch.dtype = torch.float32, **changes: Any) -> nn.Module:
    """A random causal LM in which every layer, bias and position matters."""
    config_class, fields = CONFIGS[name]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(getattr(transformers, config_class)(**{**fields, **changes}))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            # Random weights of the usual scale leave the blocks nearly idle. A_log is a rate, not a weight.
            if parameter.ndim > 1 and "A_log" not in path:
                parameter.mul_(4)
            elif path.endswith("bias"):
                parameter.normal_(0, 0.3, generator=generator)
    return model.eval().requires_grad_(False).to(dtype)


def hidden_states(
    model: nn.Module, layers: Sequence[int] | None = None, positions: Sequence[int] = (-1,)
) -> HiddenStates:
    """What extract makes of a loaded model."""
    config = model.config.get_text_config(decoder=True)
    n_blocks = config.num_hidden_layers
    loaded = LoadedDecoder(find_decoder(model), torch.device("cpu"), model.dtype, "")
    layers = range(n_blocks + 1) if layers is None else layers
    return HiddenStates(loaded, layers, positions, n_blocks, config.hidden_size)


def run(states: HiddenStates, prompts: Sequence[np.ndarray]) -> np.ndarray:
    """Hidden states of some prompts, waited for."""
    return states.start(prompts)()


def one_by_one(model: nn.Module, prompts: Sequence[np.ndarray], positions: Sequence[int]) -> list[np.ndarray]:
    """Layers by ``model(ids, output_hidden_states=True)``: a list of [row, position, feature]."""
    rows = [hugging_face_layers(model, prompt) for prompt in prompts]
    layers = [torch.stack([row[layer][0, list(positions)] for row in rows]) for layer in range(len(rows[0]))]
    return [layer.float().numpy() for layer in layers]


@torch.inference_mode()
def hugging_face_layers(model: nn.Module, prompt: np.ndarray) -> list[torch.Tensor]:
    """Layers [1, token, feature] of one prompt in the convention of this package: 0 = embeddings."""
    ids = torch.from_numpy(prompt.astype(np.int64))[None]
    states = list(model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states)
    if model.config.model_type == "mamba":
        # Here Hugging Face begins with the output of block 0 and ends with that of the last block and the norm.
        return [model.get_input_embeddings()(ids), *states[:-2], states[-1]]
    return states


def random_prompts(lengths: Sequence[int], seed: int = 0) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [generator.integers(3, VOCABULARY - 4, length).astype(np.int32) for length in lengths]


def relative_errors(found: np.ndarray, expected: Sequence[np.ndarray]) -> np.ndarray:
    """Largest error of each layer over its root mean square; `found` is [row, layer, position, feature]."""
    by_layer = found.astype(np.float32).transpose(1, 0, 2, 3)
    rms = np.array([np.sqrt(np.square(layer).mean()) for layer in expected])
    return np.array([np.abs(a - b).max() for a, b in zip(by_layer, expected, strict=True)]) / rms


Changed = Callable[[np.ndarray], np.ndarray]
