"""A published jump as a folder: what its files are called, writing them, and reading them with all checks.

`jump.safetensors` holds folded jumps, `z = s_k (h P + q)` and `y = z B + a_k norm(h)`: P [J, H, r], q [J, r],
B [J, r, H], for one jump at all levels (J = 1) or one a level (J = K), and, where there are any, `scales` [K, r] and
`gates` [K]; `probe` [H], by which the base model is recognised; and, where its check has a shortlist, `preview.E`
[H, w - 1], which a `Preview` follows from. `jump_config.json` says everything else.
"""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from onejump.files.atomic import OnejumpError, read_json, temporary_folder, write_text
from onejump.files.sealed import read_sealed_json, write_sealed_json
from onejump.files.tensors import TensorFile, write_tensors
from onejump.jumps.jump import FoldedJump
from onejump.study.variants import TARGETS

FORMAT, SCALED = 1, 2  # a new one where an older onejump would misread the files: it would leave scales out
CONFIG, TENSORS, CARD, FIGURE = "jump_config.json", "jump.safetensors", "README.md", "figure.svg"
GENERATE = "custom_generate/generate.py"  # where Transformers looks for it


@dataclass(frozen=True)
class Content:
    """What `jump.safetensors` holds.

    Attributes:
        jumps: one for all levels, or one for each.
        probe: [H] float32, by which the base model is recognised.
        preview: E [H, w - 1] float32 of a check with a shortlist; or None.
    """

    jumps: list[FoldedJump]
    probe: Tensor
    preview: Tensor | None


def write_published(folder: Path, config: Mapping, content: Content, card: str, figure: bytes, generate: str) -> None:
    """Write a published jump, whole or not at all; an older one in the folder is replaced.

    Args:
        folder: where to.
        config: what `jump_config.json` says besides the format and the digest of the tensors.
        content: the jump.
        card: the text of README.md.
        figure: the SVG file that the card shows.
        generate: the Python file for Transformers' `custom_generate`.

    Raises:
        OnejumpError: the folder holds something else.
    """
    folder = folder.resolve()
    if folder.exists() and not (folder / CONFIG).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise OnejumpError(f"{folder}: exists and is no published jump; name a new folder")
    jumps = content.jumps
    tensors = {name: torch.stack([getattr(jump, name) for jump in jumps]) for name in ("P", "q", "B")}
    if jumps[0].gates:
        tensors["gates"] = torch.tensor([_at(jumps, level).gate(level) for level in range(config["levels"])])
    if jumps[0].scales is not None:
        tensors["scales"] = jumps[0].scales
    if content.preview is not None:
        tensors["preview.E"] = content.preview
    with temporary_folder(folder) as scratch:
        temporary = scratch / folder.name
        temporary.mkdir()
        sha256 = write_tensors(temporary / TENSORS, tensors | {"probe": content.probe}, {"kind": "published jump"})
        config = {"format": SCALED if "scales" in tensors else FORMAT, **config, "tensors_sha256": sha256}
        write_sealed_json(temporary / CONFIG, config)
        write_text(temporary / CARD, card)
        (temporary / FIGURE).write_bytes(figure)
        (temporary / GENERATE).parent.mkdir()
        write_text(temporary / GENERATE, generate)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)


def read_published(folder: Path) -> tuple[dict, Content]:
    """What `write_published` wrote: the config and the jump.

    Raises:
        OnejumpError: a file is missing, damaged, of another format, or does not fit the other.
    """
    for name in (CONFIG, TENSORS):
        if not (folder / name).is_file():
            raise OnejumpError(
                f"{folder}: has no {name}, so it is no published jump; give a folder that `onejump publish` made"
            )
    found = read_json(folder / CONFIG).get("format")
    if found not in (FORMAT, SCALED):
        raise OnejumpError(
            f"{folder / CONFIG}: has format {found}, expected {FORMAT} or {SCALED}; use the version of onejump that "
            "wrote it"
        )
    config, file = read_sealed_json(folder / CONFIG), TensorFile(folder / TENSORS)
    if config["target"] not in TARGETS:
        raise OnejumpError(
            f"{folder / CONFIG}: its jump predicts the target {config['target']}, expected {' or '.join(TARGETS)}"
        )
    if config["tensors_sha256"] != file.sha256:
        raise OnejumpError(
            f"{folder / TENSORS}: is not the file that {CONFIG} beside it was written with; download both again"
        )
    tensors = file.tensors()
    if len(tensors["P"]) not in (1, config["levels"]):
        raise OnejumpError(
            f"{folder / TENSORS}: has {len(tensors['P'])} jumps, expected one, or one for each of {config['levels']} "
            "levels; publish it again"
        )
    gates = tuple(tensors["gates"].tolist()) if "gates" in tensors else ()
    parts = zip(tensors["P"], tensors["q"], tensors["B"], strict=True)
    jumps = [FoldedJump(*part, gates, tensors.get("scales")) for part in parts]
    return config, Content(jumps, tensors["probe"], tensors.get("preview.E"))


def _at(jumps: list[FoldedJump], level: int) -> FoldedJump:
    return jumps[level if len(jumps) > 1 else 0]
