"""Tiny models as GGUF files, written as llama.cpp's converter writes them."""

import json
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import torch
from tiny_models import FAMILIES, model_from, tiny_tokenizer
from transformers import Qwen3MoeConfig

CONFIGS = {
    "llama": FAMILIES["llama"],
    # Transformers takes the experts' width from no GGUF file, so that it must be the default.
    "qwen3moe": Qwen3MoeConfig(
        **FAMILIES["qwen3"].to_diff_dict() | {"model_type": "qwen3_moe"},
        num_experts=4,
        num_experts_per_tok=2,
        norm_topk_prob=True,
    ),
}


def write_tiny_gguf(
    path: str | Path, alter: Callable[[dict[str, np.ndarray]], object] | None = None, family: str = "llama"
) -> torch.nn.Module:
    """Write a tiny model and its tokenizer to a GGUF file, and return the model.

    Args:
        path: the file to write.
        alter: changes the tensors, by their GGUF names, before they are written.
        family: one of CONFIGS.
    """
    config, writer = CONFIGS[family], gguf.GGUFWriter(path, family)
    model = model_from(config)
    _add_config(writer, config)
    _add_tokenizer(writer)
    tensors = _tensors(model, family)
    if alter is not None:
        alter(tensors)
    for name, tensor in tensors.items():
        writer.add_tensor(name, np.ascontiguousarray(tensor))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def _add_config(writer: gguf.GGUFWriter, config) -> None:
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    if hasattr(config, "num_experts"):
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)


def _add_tokenizer(writer: gguf.GGUFWriter) -> None:
    model = json.loads(tiny_tokenizer().backend_tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    kinds = [gguf.TokenType.CONTROL if token.startswith("<") else gguf.TokenType.NORMAL for token in tokens]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def _tensors(model: torch.nn.Module, family: str) -> dict[str, np.ndarray]:
    """The model's weights under their GGUF names, rearranged as llama.cpp wants them."""
    config, tensors = model.config, {}
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[family.upper()], config.num_hidden_layers)
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for name, parameter in model.state_dict().items():
        weight = parameter.numpy()
        if name.endswith("gate_up_proj"):
            block = name.split(".")[2]
            tensors[f"blk.{block}.ffn_gate_exps.weight"], tensors[f"blk.{block}.ffn_up_exps.weight"] = np.split(
                weight, 2, 1
            )
            continue
        gguf_name = names.get_name(name.removesuffix(".weight")) + ".weight"
        kind = gguf_name.split(".")[-2]
        if family == "llama" and kind in heads:  # it rotates pairs of neighbours, Transformers the two halves of a head
            weight = weight.reshape(heads[kind], 2, -1, config.hidden_size).swapaxes(1, 2).reshape(weight.shape)
        tensors[gguf_name] = weight
    return tensors
