"""Finished studies of tiny models that a jump can be published from."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import tiny_study
from tiny_models import Dump, make_dump
from transformers import AutoModelForCausalLM

from onejump import study_stages
from onejump.files.sealed import write_sealed_json

K = tiny_study.K
VARIANTS = {name: tiny_study.VARIANTS[name] for name in ("paper", "gated")}  # target pre_norm, and gates with post_norm
VARIANTS["alone"] = tiny_study.VARIANTS["alone"] | {"fit": "kl", "scales": "level"}
CONFIG = tiny_study.CONFIG | {
    "corpus": {
        "source": {"files": {"paths": ["/home/someone/texts/one.txt"]}},
        "train": 80,
        "test": 25,
        "language": "en",
    },
    "models": {
        "tiny": {
            "source": {"path": "/home/someone/models/tiny"},
            "blocks": K,
            "shards": {"train": 2, "test": 1},
            "trust_remote_code": False,
        }
    },
    "seeds": [0],
    "variants": VARIANTS,
}


@dataclass(frozen=True)
class Study:
    """A finished study of one model."""

    folder: Path  # results/study
    dump: Dump

    def publish(self, out: Path, variant: str = "alone", jump: str = "joint", **options) -> Path:
        """The stage; the folder that it writes."""
        given = {"model": "tiny", "base": self.dump.source.location, "jump": jump} | options
        study_stages.publish(self.folder, self.folder / "config.json", variant=variant, out=out, **given)
        return out

    def load_model(self, **options):
        """The base model, in evaluation mode."""
        return AutoModelForCausalLM.from_pretrained(self.dump.source.location, **options).eval()


def finish(root: Path, family: str) -> Study:
    """All stages of a study of one tiny model."""
    made, folder = make_dump(root / "dump", 80, 25, family), root / "results" / "study"
    branch, sentences = folder / "tiny" / "seed-0", folder / "corpus" / "seed-0" / "sentences.parquet"
    for source, place in (
        (made.positions, branch / "positions.parquet"),
        (made.unembedding, folder / "tiny" / "unembedding.safetensors"),
        (made.sentences, sentences),
        (made.test[0], branch / "activations" / "test" / "shard-00.safetensors"),
    ):
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, place)
    write_sealed_json(folder / "config.json", CONFIG)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_study, "VARIANTS", VARIANTS)
        patch.setattr("onejump.analysis.claims.RESAMPLES", 400)
        for variant in VARIANTS:
            tiny_study.run_variant(branch, made, sentences, 0, variant)
    study_stages.summarise(folder, folder / "config.json", folder / "summary")
    for variant in VARIANTS:
        kind = "joint_jump" if variant == "alone" else "methods"
        study_stages.plot_figures(folder / "summary", "tiny", [kind], folder / "figures", 0, variant)
    return Study(folder, made)
