"""Files of a published jump: written whole or not at all, and refused when they are not what was written."""

import json
import shutil

import pytest
import torch
from refusals import error_of, files_under, flipped

import onejump
from onejump.files.sealed import read_sealed_json, write_sealed_json
from onejump.files.tensors import TensorFile, write_tensors
from onejump.sharing.folder import CARD, CONFIG, FIGURE, GENERATE, TENSORS

FILES = [CARD, CONFIG, TENSORS, FIGURE, "custom_generate", GENERATE]


@pytest.fixture
def copy(folder, tmp_path):
    """The published jump, to be damaged."""
    return shutil.copytree(folder, tmp_path / "copy")


def refusal(folder) -> str:
    return error_of(lambda: onejump.Jump.from_pretrained(folder))


def test_a_published_jump_is_five_files_of_some_hundred_kilobytes(folder):
    assert files_under(folder) == sorted(FILES)
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 150_000
    assert {file.stat().st_mode & 0o777 for file in files} == {0o644}


@pytest.mark.parametrize("path", ["text", "absolute"])
def test_a_folder_may_be_named_by_text(folder, monkeypatch, path):
    monkeypatch.chdir(folder.parent)
    assert onejump.Jump.from_pretrained(folder.name if path == "text" else str(folder)).levels == range(3)


@pytest.mark.parametrize("name", [CONFIG, TENSORS])
def test_a_missing_file_is_named(copy, name):
    (copy / name).unlink()
    assert refusal(copy) == (
        f"{copy}: has no {name}, so it is no published jump; give a folder that `onejump publish` made"
    )


def test_a_missing_folder_is_named(tmp_path):
    assert refusal(tmp_path / "none") == (
        f"jump {tmp_path / 'none'}: no such folder; correct the path, or give a hub id as 'owner/name'"
    )


@pytest.mark.parametrize("found", [3, 0, "1", None])
def test_another_format_is_refused(copy, found):
    content = json.loads((copy / CONFIG).read_text()) | {"format": found}
    (copy / CONFIG).write_text(json.dumps(content))
    expected = f"{copy / CONFIG}: has format {found}, expected 1 or 2; use the version of onejump that wrote it"
    assert refusal(copy) == expected


def test_another_target_is_refused(copy):
    write_sealed_json(copy / CONFIG, read_sealed_json(copy / CONFIG) | {"target": "middle"})
    assert refusal(copy) == (f"{copy / CONFIG}: its jump predicts the target middle, expected pre_norm or post_norm")


def test_tensors_of_another_jump_are_refused(copy, study, tmp_path):
    other = study.publish(tmp_path / "other", "paper")
    shutil.copy(other / TENSORS, copy / TENSORS)
    assert refusal(copy) == (
        f"{copy / TENSORS}: is not the file that {CONFIG} beside it was written with; download both again"
    )


def test_a_level_without_a_jump_is_refused(study, tmp_path):
    out = study.publish(tmp_path / "jump", "paper", "all")
    tensors = TensorFile(out / TENSORS).tensors()
    fewer = {name: tensor[:2].clone() if name in ("P", "q", "B") else tensor for name, tensor in tensors.items()}
    sha256 = write_tensors(out / TENSORS, fewer, {"kind": "published jump"})
    write_sealed_json(out / CONFIG, read_sealed_json(out / CONFIG) | {"tensors_sha256": sha256})
    assert refusal(out) == (
        f"{out / TENSORS}: has 2 jumps, expected one, or one for each of 3 levels; publish it again"
    )


def test_every_flipped_bit_is_noticed(copy):
    for name in (CONFIG, TENSORS):
        content = (copy / name).read_bytes()
        for position in range(0, len(content), max(1, len(content) // 40)):
            (copy / name).write_bytes(flipped(content, position, position % 8))
            assert name in refusal(copy)
        (copy / name).write_bytes(content)
    onejump.Jump.from_pretrained(copy)


def test_the_files_hold_what_the_jump_is(folder, study):
    file = TensorFile(folder / TENSORS)
    H, r, V = 32, 3, 97
    shapes = {"P": (1, H, r), "q": (1, r), "B": (1, r, H), "gates": (3,), "scales": (3, r), "probe": (H,)}
    config = read_sealed_json(folder / CONFIG)
    shapes["preview.E"] = (H, config["shortlist"]["width"] - 1)
    assert {name: file.shape(name) for name in file.names} == shapes
    base = config["base_model"]
    assert (base["hidden_size"], base["vocabulary"], config["rank"], config["levels"]) == (H, V, r, 3)
    assert config["format"] == 2
    assert (config["target"], config["jump"], config["gated"]) == ("post_norm", "joint", True)
    assert base["model"] == "model" and len(base["revision"]) == 64 and base["config"]["model_type"] == "llama"
    assert config["fitted_on"]["choices"]["fit"] == "kl" and config["fitted_on"]["seed"] == 0


def test_publishing_again_replaces_the_folder(study, tmp_path):
    out = study.publish(tmp_path / "jump", "paper", "all")
    (out / "left-over").write_text("")
    study.publish(out)
    assert files_under(tmp_path) == sorted(["jump", *(f"jump/{name}" for name in FILES)])
    assert onejump.Jump.from_pretrained(out).config["jump"] == "joint"


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_is_no_published_jump_is_not_replaced(study, tmp_path, kind):
    out = tmp_path / "mine"
    if kind == "folder":
        out.mkdir()
    (out / "notes" if kind == "folder" else out).write_text("dear")
    before = files_under(tmp_path)
    said = error_of(lambda: study.publish(out))
    assert said == f"{out}: exists and is no published jump; name a new folder"
    assert files_under(tmp_path) == before


def test_an_empty_folder_may_be_written_to(study, tmp_path):
    (tmp_path / "jump").mkdir()
    onejump.Jump.from_pretrained(study.publish(tmp_path / "jump"))


def test_other_onejump_files_are_no_published_jump(study, tmp_path):
    joint = study.folder / "tiny" / "seed-0" / "alone" / "jumps"
    assert "has no jump_config.json, so it is no published jump" in refusal(joint)


def test_a_tensor_file_alone_is_not_trusted(copy):
    file = TensorFile(copy / TENSORS)
    tensors = file.tensors()
    tensors["P"] = torch.zeros_like(tensors["P"])
    write_tensors(copy / TENSORS, tensors, {"kind": "published jump"})
    assert "is not the file that jump_config.json beside it was written with" in refusal(copy)
