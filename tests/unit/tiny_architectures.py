"""Every causal language model of Transformers, tiny and with random weights, and a check of what is read off it."""

import dataclasses

import torch
from tiny_models import model_from
from transformers import CONFIG_MAPPING, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from onejump.activations.dump import gather_levels
from onejump.files.atomic import OnejumpError
from onejump.models.fused import fuse
from onejump.models.unembedding import Unembedding, extract_unembedding

ARCHITECTURES: dict[str, str] = dict(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)  # model type -> class
VERDICTS = SUPPORTED, REFUSED, DOES_NOT_RUN, WRONG, CRASHED = "supported", "refused", "does not run", "wrong", "crashed"
TOLERANCE = 1e-3
N_BLOCKS, HIDDEN_SIZE, VOCABULARY = 4, 32, 97

# Norms of each kind and place, factors, soft caps, projections, experts, recurrences, shared blocks, vision towers.
TRIED = [
    "bart", "bert", "bigbird_pegasus", "biogpt", "bloom", "cohere", "ctrl", "deepseek_v3", "falcon_h1", "gemma2",
    "gemma3", "gemma4_text", "gpt_neo", "gpt_oss", "granite", "granitemoehybrid", "jamba", "lfm2", "llama4_text",
    "mamba2", "minicpm3", "modernbert-decoder", "nanochat", "nemotron", "olmo", "openai-gpt", "opt",
    "recurrent_gemma", "roberta", "rwkv", "whisper", "xglm", "xlstm", "zamba2",
]  # fmt: skip

# Value -> the keys of a config that have it here, under all their names.
SIZES = [
    (N_BLOCKS, "num_hidden_layers n_layer n_layers num_layers num_blocks decoder_layers encoder_layers"),
    (N_BLOCKS, "num_decoder_layers num_encoder_layers"),
    (HIDDEN_SIZE, "hidden_size d_model n_embd emb_dim embedding_size embedding_dim input_embedding_size"),
    (HIDDEN_SIZE, "output_embedding_size word_embed_proj_dim lru_width attention_hidden_size"),
    (VOCABULARY, "vocab_size vocab_size_per_layer_input pronunciation_vocab_size shape_vocab_size"),
    (64, "intermediate_size ffn_dim encoder_ffn_dim decoder_ffn_dim n_inner d_inner dff dim_ff feed_forward_size"),
    (64, "ffn_hidden_size intermediate_size_mlp dense_intermediate_size max_position_embeddings n_positions n_ctx"),
    (64, "max_seq_len context_length max_target_positions model_max_length mamba_d_ssm"),
    (16, "moe_intermediate_size shared_expert_intermediate_size shared_intermediate_size qk_head_dim ple_embed_dim"),
    (16, "moe_shared_expert_intermediate_size expert_ffn_hidden_size shared_experts_intermediate_size"),
    (8, "head_dim kv_channels swa_head_dim global_head_dim v_head_dim linear_key_head_dim linear_value_head_dim"),
    (8, "linear_head_dim attention_head_size d_head dim_head mamba_d_head mamba_head_dim kv_lora_rank q_lora_rank"),
    (8, "o_lora_rank index_head_dim qk_nope_head_dim qk_rope_head_dim hc_lowrank laurel_rank adapter_rank d_rel"),
    (8, "gated_norm_rank router_hidden_size hidden_size_per_layer_input mamba_chunk_size chunk_size block_size"),
    (8, "sliding_window sliding_window_size attention_window_size window_size prompt_mid_dim prompt_length"),
    (8, "pronunciation_embed_dim shape_embed_dim"),
    (4, "num_attention_heads n_head n_heads num_heads attention_heads encoder_attention_heads num_experts"),
    (4, "decoder_attention_heads num_decoder_attention_heads num_encoder_attention_heads swa_num_attention_heads"),
    (4, "num_local_experts n_routed_experts moe_num_experts linear_num_value_heads linear_num_heads state_size"),
    (4, "mamba_d_state ssm_state_size index_n_heads mamba_dt_rank time_step_rank rotary_dim"),
    (2, "num_key_value_heads swa_num_key_value_heads num_experts_per_tok num_experts_per_token moe_topk moe_k"),
    (2, "linear_num_key_heads n_mamba_heads index_topk index_topk_blocks"),
    (1, "num_kv_heads n_group topk_group num_expert_group n_groups mamba_n_groups mamba_ngroups num_dense_layers"),
    (1, "first_k_dense_replace num_shared_experts n_shared_experts moe_num_shared_experts"),
]
TINY = {key: value for value, keys in SIZES for key in keys.split()}
SET_WHERE_NONE = {"num_key_value_heads", "head_dim", "n_routed_experts"}

_MAMBA_2 = {"mamba_n_heads": 8, "mamba_d_head": 8}
_HYBRID = {"layers_block_type": ["linear_attention", "hybrid"] * 2}
_ROPE = {"rope_theta": 1e4, "rope_type": "default"}
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_shared_experts": 1}
# What a kind of model needs beside its sizes, by model type.
PECULIAR = {
    "bamba": _MAMBA_2,
    "blt_global_transformer": {"hidden_size": 64},
    "blt_local_decoder": {"hidden_size_global": 64},
    "cohere_compass_text": {"rope_parameters": {"full_attention": _ROPE}},
    "deepseek_v2": _EXPERTS,
    "dots1": _EXPERTS,
    "falcon_h1": _MAMBA_2,
    "glm_moe_dsa": {"index_topk": 64},  # with a choice of two, equal scores are chosen from by the shape of the batch
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granitemoehybrid": _MAMBA_2 | {"layer_types": ["linear_attention", "full_attention"] * 2},
    "hunyuan_v1_moe": {"moe_topk": 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "mamba2": {"num_heads": 8},
    "qwen4_exp_text": {
        "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 8,
        "indexer_compress_ratio": 2,
    },
    "reformer": {"axial_pos_embds": False},
    "xmod": {"default_language": "en_XX"},
    "zamba": _HYBRID,
    "zamba2": _HYBRID,
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip


def tiny_config(kind: type[PretrainedConfig]) -> PretrainedConfig:
    """A config with its sizes, and those of the configs in it, made tiny."""
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    given = {
        key: value
        for key, value in TINY.items()
        if key in defaults and (type(defaults[key]) is int or (defaults[key] is None and key in SET_WHERE_NONE))
    }
    if "kv_lora_rank" in defaults:
        given["num_key_value_heads"] = TINY["num_attention_heads"]
    if "pad_token_id" in defaults:
        given["pad_token_id"] = 0
    given |= {key: id for id, key in ((1, "bos_token_id"), (2, "eos_token_id")) if isinstance(defaults.get(key), int)}
    if "is_decoder" in defaults:
        given["is_decoder"] = True
    if inner := sorted(defaults.keys() & getattr(kind, "sub_configs", {}).keys()):
        default = kind()
        given |= {key: tiny_config(type(getattr(default, key))) for key in inner if getattr(default, key) is not None}
    return kind(**given | PECULIAR.get(kind.model_type, {}))


def tiny_architecture(model_type: str, seed: int = 0) -> torch.nn.Module:
    """A tiny model of one of ARCHITECTURES, with noise on norms and biases too."""
    return model_from(tiny_config(CONFIG_MAPPING[model_type]), seed)


@torch.inference_mode()
def check(model: torch.nn.Module) -> Unembedding:
    """Compare what is read off a model with the model itself.

    Dumped levels, from padded batches, must be those of each sentence alone, and the unembedding of h^K the model's own
    logits there. The unembedding of any other state, fused and whole, must be what the model makes of it after its
    last block.

    Raises:
        OnejumpError: the model is refused.
        AssertionError: something differs.
    """
    unembedding, anatomy = extract_unembedding(model)
    generator = torch.Generator().manual_seed(1)
    lengths = [5, 1, 9, 3, 12, 7, 2, 9]
    sentences = [torch.randint(3, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]
    levels, _ = gather_levels(anatomy, sentences, 24)
    for n, ids in enumerate(sentences):
        ids, alone = torch.tensor([ids]), {}
        anatomy.run(ids, alone.__setitem__)
        expected = torch.stack([alone[level][0, -1] for level in range(len(levels))])
        _compare(levels[:, n], expected, "levels")
        _compare(unembedding.logits(levels[-1, n]), model(input_ids=ids, use_cache=False).logits[0, -1], "logits")
    z, B = (torch.randn(shape, generator=generator) for shape in ((6, 3), (3, anatomy.hidden_size)))
    for size in (1e-2, 1.0, 1e2):
        own = _logits_after(anatomy, size * z @ B)
        _compare(unembedding.logits(size * z @ B), own, f"unembedding of states of size {size}")
        _compare(fuse(unembedding, [B], "pre_norm")[0].logits(size * z), own, f"fused at size {size}")
    return unembedding


def attempt(model_type: str) -> tuple[str, str]:
    """A verdict and what there is to say about it, in one line."""
    try:
        model = tiny_architecture(model_type)
    except Exception as error:  # Transformers' own
        return DOES_NOT_RUN, _one_line(error)
    try:
        return SUPPORTED, describe(check(model))
    except OnejumpError as error:
        return REFUSED, str(error).split(" is not supported: ")[-1]
    except AssertionError as error:
        return WRONG, str(error)
    except Exception as error:
        return CRASHED, f"{type(error).__name__}: {_one_line(error)}"


def describe(unembedding: Unembedding) -> str:
    """The form of an unembedding in a few words."""
    parts = [{"rms": "RMSNorm", "layer": "LayerNorm", "none": "no final norm"}[unembedding.norm_kind]]
    if unembedding.bias is not None:
        parts.append("output bias")
    if unembedding.scale != 1:
        parts.append(f"factor {unembedding.scale:.4g}")
    if unembedding.softcap is not None:
        parts.append(f"soft cap {unembedding.softcap:g}")
    return ", ".join(parts)


def _logits_after(anatomy, states: torch.Tensor) -> torch.Tensor:
    """What the model makes of states [T, H] in place of h^K: [T, V]."""

    def replace(module, args):
        return (states[None],)

    handle = (anatomy.norm or anatomy.head[0]).register_forward_pre_hook(replace)
    try:
        return anatomy.model(input_ids=torch.arange(3, 3 + len(states))[None], use_cache=False).logits[0]
    finally:
        handle.remove()


def _compare(found: torch.Tensor, expected: torch.Tensor, what: str) -> None:
    difference = float((found - expected).abs().max() / expected.abs().max())
    assert difference < TOLERANCE, f"{what} differ by {difference:.1e}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
