"""Run all stages that compute on a tiny model's activations on the CPU and on a strange device.

Run as a script, in a process of its own, since PyTorch keeps a device that was made up; prints, as JSON, what went
wrong in each stage that failed there.
"""

import json
import sys
import traceback
from functools import partial
from pathlib import Path

import strange_device
import torch
from tiny_models import N_BLOCKS, make_dump

from onejump import stages
from onejump.parameters import Compute, Dump
from onejump.study.fits import FITS


def stages_of(dump, folder: Path, compute) -> dict[str, partial]:
    """Each stage by name, with its arguments, writing into the folder."""
    train, test = (Dump(dump.unembedding, dump.positions, shards) for shards in (dump.train, dump.test))
    levels = [*map(str, range(N_BLOCKS)), "joint"]
    steps = {}
    for fit in FITS:
        outs = [folder / fit / f"{level}.safetensors" for level in levels]
        steps[f"fit_jump {fit}"] = partial(stages.fit_jump, train, compute, levels, outs, fit)
    *jumps, joint = (folder / "exact" / f"{level}.safetensors" for level in levels)
    cosines, selection, jtc = (folder / name for name in ("cosines.safetensors", "selection.json", "jtc.safetensors"))
    tables = ("scores", "oracle", "grid", "jumps", "joint", "references", "jtc", "ranks", "post_norm")
    out = {name: folder / f"{name}.parquet" for name in tables}
    ranks = train, compute, dump.test, jumps, joint, dump.sentences, 16
    return steps | {
        "fit_jtc": partial(stages.fit_jtc, train, compute, jtc),
        "score_jumps": partial(stages.score_jumps, train, compute, jumps, out["scores"], cosines),
        "select_jump": partial(stages.select_jump, cosines, dump.sentences, selection),
        "evaluate_oracle": partial(stages.evaluate_oracle, train, compute, jumps, joint, cosines, out["oracle"]),
        "evaluate_jumps": partial(
            stages.evaluate_jumps, test, compute, jumps, joint, selection, 8, out["jumps"], out["grid"]
        ),
        "evaluate_references": partial(stages.evaluate_references, train, compute, dump.test, out["references"]),
        "evaluate_jtc": partial(stages.evaluate_jtc, test, compute, jtc, out["jtc"]),
        "evaluate_joint_jump": partial(stages.evaluate_joint_jump, test, compute, joint, out["joint"]),
        "evaluate_ranks": partial(stages.evaluate_ranks, *ranks, out["ranks"]),
        "evaluate_ranks post_norm": partial(stages.evaluate_ranks, *ranks, out["post_norm"], target="post_norm"),
    }


class OnStrangeDevice:
    """In place of the options --device and --threads."""

    def start(self) -> torch.device:
        """The strange device."""
        return strange_device.DEVICE


def main(folder: Path) -> dict[str, str]:
    """What went wrong in each stage that failed on the strange device.

    That device goes first: PyTorch counts devices when it first computes gradients.
    """
    dump = make_dump(folder, 60, 20)
    failed = {}
    with strange_device.strange_device():
        for name, stage in stages_of(dump, folder / "strange", OnStrangeDevice()).items():
            try:
                stage()
            except Exception as error:
                traceback.print_exc()
                failed[name] = repr(error)
    for stage in stages_of(dump, folder / "cpu", Compute("cpu")).values():
        stage()
    return failed


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
