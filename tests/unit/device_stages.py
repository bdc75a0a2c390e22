"""All stages that compute on activations, for comparing what a device computes with what the CPU does."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from safetensors.torch import load_file
from tiny_models import N_BLOCKS

from onejump import exit_stages, stages
from onejump.files.tensors import TensorFile
from onejump.parameters import Dump
from onejump.study.fits import FITS


def stages_of(dump, folder: Path, compute) -> dict[str, partial]:
    """Each stage by name, with its arguments, writing into the folder."""
    train, test = (Dump(dump.unembedding, dump.positions, shards) for shards in (dump.train, dump.test))
    levels = [*map(str, range(N_BLOCKS)), "joint"]
    steps = {}
    for fit, facts in FITS.items():
        outs = [folder / fit / f"{level}.safetensors" for level in levels]
        steps[f"fit_jump {fit}"] = partial(stages.fit_jump, train, compute, levels, outs, fit)
        if facts.gated:
            out = folder / fit / "gated.safetensors"
            choices = {"target": "post_norm", "gate": "level", "inputs": "shuffled"}
            choices |= {"scales": "level"} if facts.scaled else {}
            steps[f"fit_jump {fit} gated"] = partial(stages.fit_jump, train, compute, ["joint"], [out], fit, **choices)
    *jumps, joint = (folder / "exact" / f"{level}.safetensors" for level in levels)
    cosines, selection = (folder / name for name in ("cosines.safetensors", "selection.json"))
    lenses = {lens: folder / f"{lens}.safetensors" for lens in ("jtc", "tuned_lens")}
    tables = ("scores", "oracle", "grid", "jumps", "joint", "gated", "references", "norms", "ranks", "post_norm")
    tables += ("held_out", "references_held_out", "shortlist", "shortlist_held_out", "shortlist_evaluation", *lenses)
    out = {name: folder / f"{name}.parquet" for name in tables}
    ranks = train, compute, dump.test, jumps, joint, dump.sentences, 16
    return steps | {
        "fit_jtc": partial(stages.fit_jtc, train, compute, lenses["jtc"]),
        "fit_kl_lens": partial(stages.fit_kl_lens, train, compute, "tuned_lens", lenses["tuned_lens"]),
        "score_jumps": partial(stages.score_jumps, train, compute, jumps, out["scores"], cosines),
        "select_jump": partial(stages.select_jump, cosines, dump.sentences, selection),
        "evaluate_oracle": partial(exit_stages.evaluate_oracle, train, compute, jumps, joint, cosines, out["oracle"]),
        "evaluate_jumps": partial(
            exit_stages.evaluate_jumps, test, compute, jumps, joint, selection, 8, out["jumps"], out["grid"]
        ),
        "evaluate_references": partial(
            *(exit_stages.evaluate_references, train, compute, dump.test),
            *(out["norms"], out["references_held_out"], out["references"]),
        ),
        **{
            f"evaluate_lens {lens}": partial(exit_stages.evaluate_lens, test, compute, file, out[lens])
            for lens, file in lenses.items()
        },
        "evaluate_joint_jump": partial(exit_stages.evaluate_joint_jump, test, compute, joint, out["joint"]),
        "evaluate_joint_jump gated": partial(
            exit_stages.evaluate_joint_jump, test, compute, joint.with_stem("gated"), out["gated"], "post_norm"
        ),
        "evaluate_held_out": partial(
            exit_stages.evaluate_held_out, train, compute, joint, out["held_out"], jumps, selection
        ),
        "evaluate_shortlist": partial(
            *(exit_stages.evaluate_shortlist, train, compute, dump.test, joint.with_stem("gated")),
            *(out["shortlist"], out["shortlist_held_out"], out["shortlist_evaluation"]),
            folder / "preview.safetensors",
            "post_norm",
        ),
        "evaluate_ranks": partial(exit_stages.evaluate_ranks, *ranks, out["ranks"]),
        "evaluate_ranks post_norm": partial(exit_stages.evaluate_ranks, *ranks, out["post_norm"], target="post_norm"),
    }


def require_alike(found: Path, expected: Path) -> None:
    """Compare the results in two folders: all numbers to a thousandth, and of KL fits how they begin.

    Roundings grow over the steps of a KL fit.
    """
    files = sorted(file for kind in ("parquet", "safetensors") for file in expected.rglob(f"*.{kind}"))
    assert len(files) == len(FITS) * (N_BLOCKS + 1) + 2 + 21
    for file in files:
        other = found / file.relative_to(expected)
        if file.parent.name == "kl":
            first, second = (json.loads(TensorFile(path).metadata["train_curve"])[0] for path in (file, other))
            assert np.isclose(first, second, rtol=1e-5), file.name
            continue
        numbers = numbers_of(other)
        for name, values in numbers_of(file).items():
            assert np.allclose(numbers[name], values, rtol=1e-3, atol=1e-3, equal_nan=True), (file.name, name)


def numbers_of(file: Path) -> dict[str, np.ndarray]:
    """Columns or tensors of numbers."""
    if file.suffix == ".safetensors":
        return {name: tensor.numpy() for name, tensor in load_file(file).items()}
    table = pq.read_table(file).to_pandas().select_dtypes("number")
    return {name: table[name].to_numpy(float, na_value=np.nan) for name in table}
