"""Files of jumps: what is written comes back, and what does not belong together is refused."""

import pytest
import torch
from handmade import make_jump

from onejump.files.atomic import OnejumpError
from onejump.files.tensors import write_tensors
from onejump.jumps.lenses import AffineLens, save_lens
from onejump.jumps.storage import load_folded_jumps, load_joint_jump, load_jump, save_jump
from onejump.models.unembedding import Unembedding

H, K = 24, 3


def make_unembedding(sha256: str = "a" * 64) -> Unembedding:
    metadata = {"model": "handmade", "sha256": sha256, "n_blocks": K}
    return Unembedding("rms", torch.ones(H), None, 1e-5, torch.zeros(7, H), None, metadata=metadata)


def facts(level: int | str, target: str = "pre_norm", sha256: str = "a" * 64) -> dict:
    return {"level": str(level), "target": target, "unembedding_sha256": sha256}


@pytest.fixture
def jump_files(tmp_path):
    """The files of jumps 0..K-1, for the pre-norm target."""
    paths = [tmp_path / f"level-{level:02d}.safetensors" for level in range(K)]
    for level, path in enumerate(paths):
        save_jump(path, make_jump(level), facts(level))
    return paths


def test_a_saved_jump_comes_back_bit_by_bit_in_evaluation_mode(tmp_path):
    jump = make_jump()
    jump.bn.eps = 1e-3  # kept in the file, not assumed
    save_jump(tmp_path / "jump.safetensors", jump, facts(2, "post_norm") | {"note": "kept"})
    loaded, file = load_jump(tmp_path / "jump.safetensors", make_unembedding())
    assert not loaded.training
    assert file.metadata["note"] == "kept"
    assert (file.metadata["level"], file.metadata["target"]) == ("2", "post_norm")
    h = torch.randn(20, H, generator=torch.Generator().manual_seed(5))
    assert torch.equal(loaded(h), jump(h))
    for name in ("P", "q", "B"):
        assert torch.equal(getattr(loaded.fold(), name), getattr(jump.fold(), name))


def test_a_jump_of_another_unembedding_is_refused(jump_files):
    with pytest.raises(OnejumpError, match=r"was fitted for the unembedding a{64}, not for b{64}"):
        load_jump(jump_files[0], make_unembedding(sha256="b" * 64))
    with pytest.raises(OnejumpError, match=r"was fitted for the unembedding a{64}, not for b{64}"):
        load_folded_jumps(jump_files, make_unembedding(sha256="b" * 64), "pre_norm")


def test_jumps_in_order_are_loaded_as_the_folds_of_each(jump_files):
    for level, folded in enumerate(load_folded_jumps(jump_files, make_unembedding(), "pre_norm")):
        assert torch.equal(folded.P, make_jump(level).fold().P)
        assert torch.equal(folded.q, make_jump(level).fold().q)
        assert torch.equal(folded.B, make_jump(level).fold().B)


def test_jumps_out_of_order_are_refused(jump_files):
    with pytest.raises(OnejumpError, match=r"is the jump of level 1 .* expected level 0"):
        load_folded_jumps([jump_files[1], jump_files[0], jump_files[2]], make_unembedding(), "pre_norm")


def test_jumps_of_another_target_are_refused(jump_files):
    with pytest.raises(OnejumpError, match="for the pre_norm target, expected level 0 and post_norm"):
        load_folded_jumps(jump_files, make_unembedding(), "post_norm")


@pytest.mark.parametrize("count", [0, K - 1, K + 1])
def test_another_number_of_jumps_than_blocks_is_refused(jump_files, tmp_path, count):
    extra = tmp_path / "extra.safetensors"
    save_jump(extra, make_jump(), facts(K))
    with pytest.raises(OnejumpError, match=f"{count} jumps were given, but handmade has {K}"):
        load_folded_jumps([*jump_files, extra][:count], make_unembedding(), "pre_norm")


def test_the_joint_jump_is_told_from_the_jump_of_a_level(jump_files, tmp_path):
    joint = tmp_path / "joint.safetensors"
    save_jump(joint, make_jump(9), facts("joint"))
    assert torch.equal(load_joint_jump(joint, make_unembedding(), "pre_norm").P, make_jump(9).fold().P)
    with pytest.raises(OnejumpError, match=r"is the jump of level 0 .* expected level joint"):
        load_joint_jump(jump_files[0], make_unembedding(), "pre_norm")
    with pytest.raises(OnejumpError, match=r"is the jump of level joint .* expected level 0"):
        load_folded_jumps([joint, *jump_files[1:]], make_unembedding(), "pre_norm")


def test_a_lens_given_as_a_jump_is_refused(tmp_path):
    path = tmp_path / "jtc.safetensors"
    save_lens(path, "jtc", [AffineLens((torch.eye(H),), torch.zeros(H))], "pre_norm", make_unembedding(), {})
    with pytest.raises(OnejumpError, match="holds lens, expected a jump"):
        load_jump(path, make_unembedding())


def test_a_file_of_something_else_is_refused(tmp_path):
    path = tmp_path / "shard.safetensors"
    write_tensors(path, {"level.00": torch.eye(H)}, facts(0))
    with pytest.raises(OnejumpError, match="holds something else, expected a jump"):
        load_jump(path, make_unembedding())


@pytest.mark.parametrize("harm", ["flipped", "cut", "gone"])
def test_a_damaged_or_missing_jump_is_refused_by_name(jump_files, harm):
    content = bytearray(jump_files[1].read_bytes())
    if harm == "flipped":
        content[-5] ^= 1
        jump_files[1].write_bytes(content)
    elif harm == "cut":
        jump_files[1].write_bytes(content[:-8])
    else:
        jump_files[1].unlink()
    with pytest.raises(OnejumpError, match=r"level-01.safetensors: (damaged|no such file)"):
        load_folded_jumps(jump_files, make_unembedding(), "pre_norm")
