"""Levels of tiny models by hooks on modules whose names are written down by hand, to compare with."""

import torch
from tiny_models import N_BLOCKS, VOCABULARY

# Where each architecture keeps its blocks and its final norm, written down by hand from its source.
PLACES = {
    "gpt2": ("transformer.h", "transformer.ln_f"),
    "gptj": ("transformer.h", "transformer.ln_f"),
    "gpt_neox": ("gpt_neox.layers", "gpt_neox.final_layer_norm"),
    "opt": ("model.decoder.layers", "model.decoder.final_layer_norm"),
    "phi": ("model.layers", "model.final_layernorm"),
}
LLAMA_LIKE = ("model.layers", "model.norm")


def random_ids(shape, seed=0):
    return torch.randint(0, VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


def relative_error(found, expected):
    return float((found.double() - expected.double()).abs().max() / expected.double().abs().max())


def run_with_hooks(model, family, ids):
    """What enters each block and the final norm, by hooks of the test's own, and the model's own logits."""
    blocks, norm = PLACES.get(family, LLAMA_LIKE)
    modules = [*model.get_submodule(blocks), model.get_submodule(norm)]
    entered, handles = {}, []
    for level, module in enumerate(modules):

        def keep(module, args, kwargs, level=level):
            entered[level] = args[0] if args else kwargs["hidden_states"]

        handles.append(module.register_forward_pre_hook(keep, with_kwargs=True))
    with torch.inference_mode():
        output = model(input_ids=ids, output_hidden_states=True, use_cache=False)
    for handle in handles:
        handle.remove()
    return entered, output


def levels_one_by_one(model, sentences, positions):
    """h^0 .. h^K at each position, from whole forward passes over single, uncut, unpadded sentences.

    h^k for k < K is Transformers' own hidden state; h^K is the output of the last block, by a hook there.
    """
    last_block = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == N_BLOCKS)[-1]
    rows = []
    for ids, position in zip(sentences, positions, strict=True):
        final = []
        handle = last_block.register_forward_hook(lambda module, args, out, final=final: final.append(out))
        with torch.inference_mode():
            states = model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
        handle.remove()
        (out,) = final
        levels = [*states[:N_BLOCKS], out[0] if isinstance(out, tuple) else out]
        rows.append(torch.stack([h[0, position] for h in levels]))
    return torch.stack(rows, 1)


def scaled_difference(found, expected):
    """The largest difference at each level, relative to the largest value there."""
    return max(float((f - e).abs().max() / e.abs().max()) for f, e in zip(found, expected, strict=True))
