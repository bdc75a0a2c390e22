"""`--cache`: what two studies share is made once, and what differs is not taken from the cache."""

import shutil
from copy import deepcopy
from pathlib import Path

import pytest
from studies import Study
from tiny_models import save_tiny_model

pytestmark = pytest.mark.xdist_group("cache")

COMMITS = ["a" * 40, "b" * 40]
SHARED = ["corpus/seed-{seed}/sentences.parquet", "tiny/unembedding.safetensors", "tiny/seed-{seed}/positions.parquet"]
SHARDS = [f"tiny/seed-{{seed}}/activations/{split}/shard-00.safetensors" for split in ("train", "test")]


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> Path:
    """A local copy of a hub that has one model with two commits of different weights."""
    folder = tmp_path_factory.mktemp("hub")
    for seed, commit in enumerate(COMMITS):
        save_tiny_model("gpt2", folder / "hub" / "models--tiny--gpt2" / "snapshots" / commit, seed)
    return folder


class CachedStudy(Study):
    """A study that takes part in a cache between studies."""

    def make_activations(self) -> None:
        seed = self.config["seeds"][0]
        targets = [f"results/{self.config['study']}/{path.format(seed=seed)}" for path in SHARDS]
        cache = self.folder.parent / "cache"  # made by the first run
        variables = {"SNAKEMAKE_OUTPUT_CACHE": str(cache), "HF_HOME": str(self.folder.parent / "hub")}
        self.snakemake("--cache", "--", *targets, **variables)

    def entries(self) -> dict[str, str]:
        """Entry of the cache that each shared file is."""
        paths = [path.format(seed=self.config["seeds"][0]) for path in SHARED + SHARDS]
        links = {path: self.results(path) for path in paths}
        assert all(link.is_symlink() for link in links.values())
        return {path: link.resolve().name for path, link in links.items()}


def test_studies_share_what_does_not_depend_on_their_variants_and_nothing_else(tiny_folder, hub, tmp_path):
    shutil.copytree(hub, tmp_path / "hub")
    config = {
        "study": "first",
        "seeds": [0],
        "corpus": {"source": {"files": {"paths": ["texts/one.txt", "texts/two.txt"]}}, "train": 30, "test": 10},
        "models": {"tiny": {"source": {"hub": {"id": "tiny/gpt2", "revision": COMMITS[0]}}, "blocks": 3}},
        "variants": {"exact": {"fit": "exact"}},
        "evaluation": {"transfer_sentences": 5},
    }

    def study(name: str, change=lambda config: None) -> CachedStudy:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "texts").symlink_to(tiny_folder / "texts")
        mine = deepcopy(config) | {"study": name}
        change(mine)
        made = CachedStudy(folder, mine)
        made.make_activations()
        return made

    first = study("first").entries()
    assert len(set(first.values())) == len(first)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}

    second = study("second", lambda config: config.update(variants={"other": {"fit": "exact", "rank": 2}}))
    assert second.entries() == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()} == times  # no forward pass

    def changed(name: str, change) -> set[str]:
        """Which files are not the first study's."""
        other = study(name, change)
        seed = str(other.config["seeds"][0])
        found = {path.replace(f"seed-{seed}", "seed-0"): entry for path, entry in other.entries().items()}
        return {path for path in found if found[path] != first[path]}

    corpus, unembedding, positions = (path.format(seed=0) for path in SHARED)
    shards = {path.format(seed=0) for path in SHARDS}
    revision = {"source": {"hub": {"id": "tiny/gpt2", "revision": COMMITS[1]}}}
    assert changed("revision", lambda c: c["models"]["tiny"].update(revision)) == {unembedding, positions, *shards}
    assert changed("dtype", lambda c: c["models"]["tiny"].update(dtype="bfloat16")) == {unembedding, *shards}
    assert changed("seed", lambda c: c.update(seeds=[1])) == {corpus, positions, *shards}


def test_a_cache_without_a_folder_is_refused_before_the_first_job(tiny_study):
    done = tiny_study.snakemake("--cache", check=False)
    assert done.returncode != 0 and "--cache: SNAKEMAKE_OUTPUT_CACHE is not set; set it to" in done.stdout
    file = tiny_study.folder / "config.yaml"
    done = tiny_study.snakemake("--cache", check=False, SNAKEMAKE_OUTPUT_CACHE=str(file / "cache"))
    assert done.returncode != 0 and f"{file}/cache: Not a directory; make room" in done.stdout
    assert not tiny_study.results().exists()
