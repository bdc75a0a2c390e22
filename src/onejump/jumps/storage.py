"""Files of jumps: writing them, and reading them with a check that they belong together."""

from collections.abc import Iterable
from pathlib import Path

import torch

from onejump.files.atomic import OnejumpError
from onejump.files.tensors import TensorFile, write_tensors
from onejump.jumps.jump import FoldedJump, Jump
from onejump.models.unembedding import Unembedding


def save_jump(path: str | Path, jump: Jump, metadata: dict) -> None:
    """Write a jump's tensors; `metadata` must hold level, target and unembedding_sha256."""
    write_tensors(path, jump.tensors(), {"kind": "jump", "eps": jump.bn.eps} | metadata)


def load_jump(path: str | Path, unembedding: Unembedding) -> tuple[Jump, TensorFile]:
    """Read a jump, in evaluation mode, and the file that says how it was fitted.

    Raises:
        OnejumpError: the file is missing, damaged, not a jump, or was fitted for another unembedding.
    """
    file = open_fitted(path, unembedding, "jump")
    tensors = file.tensors()
    jump = Jump(*tensors["A"].shape, n_gates=len(tensors.get("gates", ())), n_scales=len(tensors.get("scales", ())))
    jump.bn.eps = file.value("eps")
    with torch.no_grad():
        for name, tensor in jump.tensors().items():
            tensor.copy_(tensors[name])
    return jump.eval(), file


def load_folded_jumps(paths: Iterable[str | Path], unembedding: Unembedding, target: str) -> list[FoldedJump]:
    """Jumps 0..K-1, folded.

    Raises:
        OnejumpError: as `load_jump`, or the files are not levels 0..K-1 in order, or were fitted to another target.
    """
    jumps = [_load_folded(path, unembedding, target, str(level)) for level, path in enumerate(paths)]
    n_blocks, model = (unembedding.metadata[name] for name in ("n_blocks", "model"))
    if len(jumps) != n_blocks:
        raise OnejumpError(f"{len(jumps)} jumps were given, but {model} has {n_blocks}")
    return jumps


def load_joint_jump(path: str | Path, unembedding: Unembedding, target: str) -> FoldedJump:
    """The joint jump, folded; errors as in `load_folded_jumps`."""
    return _load_folded(path, unembedding, target, "joint")


def _load_folded(path: str | Path, unembedding: Unembedding, target: str, level: str) -> FoldedJump:
    jump, file = load_jump(path, unembedding)
    found = (file.metadata["level"], file.metadata["target"])
    if found != (level, target):
        raise OnejumpError(
            f"{path}: is the jump of level {found[0]} for the {found[1]} target, expected level {level} and {target}; "
            "give the jumps of one variant, in order"
        )
    return jump.fold()


def open_fitted(path: str | Path, unembedding: Unembedding, kind: str) -> TensorFile:
    """Open the file of a `jump` or a `lens`, and check that it was made for this unembedding."""
    file, facts = TensorFile(path), unembedding.metadata
    if file.metadata.get("kind") != kind:
        raise OnejumpError(f"{path}: holds {file.metadata.get('kind', 'something else')}, expected a {kind}")
    if file.metadata["unembedding_sha256"] != facts["sha256"]:
        raise OnejumpError(
            f"{path}: was fitted for the unembedding {file.metadata['unembedding_sha256']}, not for {facts['sha256']} "
            f"of {facts['model']}; use it only with the model that it was fitted for"
        )
    return file
