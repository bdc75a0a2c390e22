"""Whether a model is the one that a jump was fitted for: by its config, its output embedding, and what it computes.

No file of weights is compared, so that the model may be loaded in any way and in any dtype.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from onejump.files.atomic import OnejumpError
from onejump.models.anatomy import Anatomy, tolerance_of
from onejump.models.devices import DTYPES
from onejump.models.unembedding import Unembedding, extract_unembedding

# Keys of a Transformers config that no hidden state depends on.
IRRELEVANT = {
    *("transformers_version", "architectures", "dtype", "torch_dtype", "id2label", "label2id", "problem_type"),
    *("return_dict", "output_hidden_states", "output_attentions", "use_cache", "initializer_range"),
    *("task_specific_params", "finetuning_task", "tokenizer_class"),
}
ROWS = 8192  # of an output embedding that are converted and hashed at a time
NAMED = 3  # differences that an error names


def config_facts(config) -> dict:
    """What a model's computation depends on in its Transformers config, as JSON has it."""
    facts = json.loads(json.dumps(config.get_text_config(decoder=True).to_dict(), default=str))
    kept = {key: value for key, value in facts.items() if key not in IRRELEVANT and not key.startswith("_")}
    return {key: value for key, value in sorted(kept.items()) if not key.endswith("_token_id")}


def unembedding_facts(unembedding: Unembedding) -> dict:
    """Form of a study's unembedding, and SHA-256 of its output embedding and bias in each dtype it may be loaded in.

    A product of two matrices (OPT-350m's head) differs in its last bits between machines, and has no digest.
    """
    form = {name: getattr(unembedding, name) for name in ("norm_kind", "eps", "scale", "softcap")}
    whole = len(unembedding.metadata["anatomy"]["head"]) == 1
    return form | {"sha256": {name: _digest(unembedding, name) for name in DTYPES} if whole else {}}


def _digest(unembedding: Unembedding, dtype: str) -> str:
    digest = hashlib.sha256(f"{dtype} {tuple(unembedding.weight.shape)}".encode())
    for tensor in (unembedding.weight, unembedding.bias):
        for rows in () if tensor is None else tensor.split(ROWS):
            digest.update(rows.to("cpu", DTYPES[dtype]).contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def require_base_model(
    model: nn.Module, base: Mapping, probe_ids: Sequence[int], probe: Tensor, versions: Mapping
) -> tuple[Unembedding, Anatomy]:
    """The unembedding and the parts of a model, if it is the base model of a jump.

    Args:
        model: a causal language model of Transformers, in evaluation mode.
        base: what `jump_config.json` says of the base model.
        probe_ids: the beginning of a sentence.
        probe: [H], the normalised final state of its last token, as the study had it.
        versions: of the packages that the jump was published with.

    Raises:
        OnejumpError: it is another model, naming what differs, or one that is not supported.
    """
    if not isinstance(model, nn.Module) or not hasattr(model, "config"):
        raise OnejumpError(f"attach takes a loaded causal language model of Transformers, found {type(model).__name__}")
    facts = (getattr(model.config, name, None) for name in ("_name_or_path", "_commit_hash"))
    name = " ".join(filter(None, facts)) or type(model).__name__
    about = f"model {name}: is not {base['model']} {base['revision']}, which this jump was fitted for"
    if model.training:
        raise OnejumpError(f"model {name}: is in training mode; call model.eval() first")
    differences = list(_differences(config_facts(model.config), base["config"]))
    if differences:
        more = f", and {len(differences) - NAMED} more" * (len(differences) > NAMED)
        raise OnejumpError(f"{about}: in its config, {', '.join(differences[:NAMED])}{more}; load that model")
    if offloaded := list(_offloaded(model, base["anatomy"])):
        raise OnejumpError(f"model {name}: {' and '.join(offloaded)} is offloaded; give it a device in device_map")
    unembedding, anatomy = extract_unembedding(model)
    own = str(unembedding.weight.dtype).removeprefix("torch.")
    known = base["unembedding"]["sha256"]
    checked = [dtype for dtype in dict.fromkeys((own, base["dtype"])) if dtype in known]
    if checked and all(_digest(unembedding, dtype) != known[dtype] for dtype in checked):
        raise OnejumpError(f"{about}: its output embedding has other values; load that model")
    found = _final_state(anatomy, unembedding, probe_ids)
    difference = float((found - probe).norm() / probe.norm())
    allowed = tolerance_of(model) if base["dtype"] == "float32" else max(tolerance_of(model), 5e-2)
    if not difference <= allowed:  # NaN too
        raise OnejumpError(
            f"{about}: config and output embedding are that model's, but what it computes differs by {difference:.1%}, "
            f"expected at most {allowed:.1%}; load that model, and if it is, the Transformers that the jump was "
            f"published with, {versions['transformers']}"
        )
    return unembedding, anatomy


def _differences(found: Mapping, expected: Mapping) -> Iterator[str]:
    """What differs between two configs; keys that only the one found has are those of a newer Transformers."""
    for key, value in expected.items():
        if key not in found:
            yield f"there is no {key}, expected {value}"
        elif found[key] != value:
            yield f"{key} is {found[key]}, expected {value}"


def _offloaded(model: nn.Module, anatomy: Mapping) -> Iterator[str]:
    """Those parts of the unembedding whose weights are on no device."""
    modules = dict(model.named_modules())
    for path in (anatomy["norm"], *anatomy["head"]):
        if path in modules and any(tensor.is_meta for tensor in modules[path].parameters()):
            yield path


@torch.inference_mode()
def _final_state(anatomy: Anatomy, unembedding: Unembedding, ids: Sequence[int]) -> Tensor:
    """The normalised final state of the last token, [H] float32 on the CPU."""
    states = {}
    anatomy.run(torch.tensor([list(ids)], device=anatomy.device), states.__setitem__)
    return unembedding.normalise(states[len(anatomy.blocks)][0, -1].cpu())
