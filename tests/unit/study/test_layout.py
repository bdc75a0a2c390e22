"""Where files lie: paths, and what variants share."""

from pathlib import Path

import pytest

from onejump.study.config import complete_config
from onejump.study.layout import FILES, JOINT_FIGURES, TABLES, Layout


@pytest.fixture
def layout():
    config = {
        "study": "s",
        "seeds": [0, 1],
        "corpus": {"source": {"files": {"paths": ["a.txt"]}}, "train": 10, "test": 5},
        "models": {"m": {"source": {"path": "m"}, "blocks": 2, "shards": {"train": 2}}},
        "variants": {
            "paper": {},
            "levels": {"score_levels": "0..K-1"},
            "batches": {"joint_batches": "per_level"},
            "exact": {"fit": "exact", "positions": "not_first", "seeds": [1]},
            "alone": {"jumps": "joint", "positions": "not_first", "seeds": [1]},
            "gated": {"jumps": "joint", "fit": "exact", "target": "post_norm", "gate": "level", "seeds": [1]},
        },
        "evaluation": {"transfer_sentences": 5},
    }
    return Layout(complete_config(config))


def test_branches_are_models_seeds_and_variants_that_run_for_the_seed(layout):
    found = [(branch["seed"], branch["variant"]) for branch in layout.branches()]
    assert found == [(0, "paper"), (0, "levels"), (0, "batches"), *((1, name) for name in layout.config["variants"])]


def test_variants_that_fit_alike_share_their_files(layout):
    own = Path("results/s/m/seed-0/paper")
    assert layout.jumps("m", 0, "levels") == [own / "jumps/level-00.safetensors", own / "jumps/level-01.safetensors"]
    assert layout.cosines("m", 0, "batches") == own / "cosines.safetensors"
    assert layout.joint("m", 0, "levels") == own / "jumps/joint.safetensors"
    assert layout.joint("m", 0, "batches") == Path("results/s/m/seed-0/batches/jumps/joint.safetensors")
    lenses = Path("results/s/m/seed-1/lenses")
    assert layout.lenses("lens", "m", 1, "exact") == {"jtc": lenses / "jtc.pre_norm.not_first.safetensors"}


def test_lenses_belong_to_seeds_and_only_jtc_is_fitted_to_either_target(layout):
    layout.config["evaluation"]["lenses"] = {"tuned_lens": {"seeds": [1]}, "jtc": {"seeds": None}}
    layout.config["variants"]["exact"]["target"] = "post_norm"
    folder = Path("results/s/m/seed-1/lenses")
    assert layout.lenses("lens_evaluation", "m", 1, "exact") == {
        "tuned_lens": folder / "tuned_lens.pre_norm.not_first.parquet",
        "jtc": folder / "jtc.post_norm.not_first.parquet",
    }
    assert list(layout.lenses("lens", "m", 0, "paper")) == ["jtc"]
    assert layout.lenses("lens", "m", 1, "alone") == {}
    assert len(layout.every("lens")) == 2 + 2 + 1  # JTC and, at seed 1, the tuned lens, for each choice of rows


def test_an_imported_lens_is_there_for_the_models_that_have_one(layout):
    layout.config["models"]["n"] = layout.config["models"]["m"]
    layout.config["evaluation"]["lenses"] = {"imported_tuned_lens": {"seeds": None, "sources": {"n": "theirs"}}}
    assert layout.lenses("lens", "m", 0, "paper") == {}
    own = Path("results/s/n/seed-0/lenses/imported_tuned_lens.pre_norm.all.safetensors")
    assert layout.lenses("lens", "n", 0, "paper") == {"imported_tuned_lens": own}


def test_every_kind_of_file_is_listed_once(layout):
    listed = {name: layout.every(name) for name in FILES if "{table}" not in FILES[name]}
    assert all(len(set(files)) == len(files) for files in listed.values())
    assert len(listed["shard"]) == 2 * 3
    # Shared levels with two joint jumps a seed; at one seed, exact, and two joint jumps alone.
    assert len(listed["jump"]) == 2 * (2 + 2) + 3 + 2
    assert listed["references"] == [
        *(Path(f"results/s/m/seed-{seed}/references/all.parquet") for seed in (0, 1)),
        Path("results/s/m/seed-1/references/not_first.parquet"),
    ]
    assert listed["ranks"] == [Path("results/s/m/seed-1/exact/ranks.parquet")]
    assert listed["unembedding"] == [Path("results/s/m/unembedding.safetensors")]
    assert layout.every("evaluation", "other") == []


def test_a_variant_with_the_joint_jump_alone_has_its_evaluation_and_nothing_about_a_choice(layout):
    alone = [
        path for name in FILES if "{table}" not in FILES[name] for path in layout.every(name) if "alone" in str(path)
    ]
    own = Path("results/s/m/seed-1/alone")
    figures = [Path(f"results/s/figures/m.seed-1.alone.{kind}.svg") for kind in JOINT_FIGURES]
    files = ("jumps/joint.safetensors", "evaluation.parquet", "held_out.parquet")
    assert alone == [*(own / name for name in files), *figures]
    assert layout.jumps("m", 1, "alone") == []
    assert not layout.has_all_jumps("alone")


def test_a_study_whose_models_write_has_their_texts_and_a_table_more(layout):
    assert (layout.texts, layout.tables) == ("sentences", TABLES)
    config = layout.config | {"corpus": layout.config["corpus"] | {"generated": {"tokens": 32, "temperature": 1}}}
    own = config["variants"]["paper"] | {"train_on": "generated"}
    writing = Layout(config | {"variants": config["variants"] | {"own": own}})
    assert (writing.texts, writing.tables) == ("texts", (*TABLES, "by_origin"))
    assert writing.path(writing.texts, model="m", seed=1) == Path("results/s/m/seed-1/texts.parquet")
    branch = Path("results/s/m/seed-1")
    assert writing.of_rows("references", "m", 1, "own") == branch / "references/all-generated.parquet"
    jtc = branch / "lenses/jtc.pre_norm.all-generated.safetensors"
    assert writing.lenses("lens", "m", 1, "own") == {"jtc": jtc}
    assert writing.joint("m", 1, "own") == branch / "own/jumps/joint.safetensors"


def test_a_joint_jump_alone_with_a_gate_for_each_level_has_a_check_with_a_shortlist(layout):
    assert [name for name in layout.config["variants"] if layout.has_shortlist(name)] == ["gated"]
    own = Path("results/s/m/seed-1/gated")
    assert layout.every("shortlist") == [own / "shortlist.parquet"]
    for name in ("shortlist_held_out", "shortlist_evaluation"):
        assert layout.every(name) == [own / f"{name}.parquet"]
    assert layout.every("preview") == [own / "preview.safetensors"]


def test_a_pattern_keeps_its_wildcards_and_its_paths_follow_it(layout):
    assert layout.pattern("shard") == "results/s/{model}/seed-{seed}/activations/{split}/shard-{shard}.safetensors"
    path = layout.path("shard", model="m", seed=3, split="test", shard=7)
    assert path == Path("results/s/m/seed-3/activations/test/shard-07.safetensors")
