"""The jump: its size, its fold to one affine map, and its file."""

import copy

import pytest
import torch

from onejump.files.atomic import OnejumpError
from onejump.files.tensors import write_tensors
from onejump.jumps.jump import Jump, default_rank, load_folded_jumps, load_joint_jump, target_of
from onejump.models.unembedding import Unembedding

H, K = 24, 3


def make_head(sha256: str = "a" * 64, norm_kind: str = "rms", norm_bias: torch.Tensor | None = None) -> Unembedding:
    weight = torch.linspace(0.5, 1.5, H)
    metadata = {"model": "handmade", "sha256": sha256, "n_blocks": K}
    return Unembedding(norm_kind, weight, norm_bias, 1e-5, torch.zeros(7, H), None, metadata=metadata)


def make_jump(seed: int = 0, rank: int = 4, hidden_size: int = H) -> Jump:
    """A jump in evaluation mode whose every tensor matters."""
    generator = torch.Generator().manual_seed(seed)
    jump = Jump(hidden_size, rank)
    with torch.no_grad():
        jump.A.normal_(generator=generator)
        jump.B.normal_(generator=generator)
        jump.bn.weight.normal_(generator=generator)
        jump.bn.bias.normal_(generator=generator)
        jump.bn.running_mean.normal_(generator=generator)
        jump.bn.running_var.uniform_(0.1, 3.0, generator=generator)
    return jump.eval()


def facts(level: int | str, target: str = "pre_norm", sha256: str = "a" * 64) -> dict:
    return {"level": str(level), "target": target, "unembedding_sha256": sha256}


@pytest.fixture
def jump_files(tmp_path):
    """The files of jumps 0..K-1, for the pre-norm target."""
    paths = [tmp_path / f"level-{level:02d}.safetensors" for level in range(K)]
    for level, path in enumerate(paths):
        make_jump(level).save(path, facts(level))
    return paths


# ---------------------------------------------------------------------------------------------------------- its size


@pytest.mark.parametrize(
    ("hidden_size", "n_blocks", "rank", "one", "total"),
    [
        pytest.param(1600, 48, 16, 57_600, 2_764_800, id="gpt2-xl"),
        pytest.param(3072, 32, 30, 196_608, 6_291_456, id="phi-3-mini"),
        pytest.param(4096, 32, 40, 344_064, 11_010_048, id="llama-2-7b"),
    ],
)
def test_a_jump_has_the_papers_rank_and_number_of_parameters(tmp_path, hidden_size, n_blocks, rank, one, total):
    assert default_rank(hidden_size) == rank
    jump = make_jump(hidden_size=hidden_size, rank=rank)
    assert jump.n_parameters == one
    assert n_blocks * jump.n_parameters == total

    unembedding = make_head()
    jump.save(tmp_path / "jump.safetensors", facts(0))
    loaded, file = Jump.load(tmp_path / "jump.safetensors", unembedding)
    assert sum(tensor.numel() for tensor in file.tensors().values()) == one == loaded.n_parameters


@pytest.mark.parametrize(("hidden_size", "rank"), [(576, 5), (599, 5), (600, 6), (100, 1), (99, 1), (8, 1)])
def test_the_default_rank_is_a_hundredth_of_the_width_rounded_down_and_at_least_one(hidden_size, rank):
    assert default_rank(hidden_size) == rank


# ------------------------------------------------------------------------------------------------------ what it does


def formula(jump: Jump, h: torch.Tensor) -> torch.Tensor:
    """Eq. 1 as printed, with the running statistics, in float64."""
    bn = jump.bn
    normalised = (h.double() - bn.running_mean.double()) / (bn.running_var.double() + bn.eps).sqrt()
    return (normalised * bn.weight.double() + bn.bias.double()) @ jump.A.double() @ jump.B.double()


def test_a_jump_in_evaluation_mode_is_equation_1_with_running_statistics():
    jump, h = make_jump(), torch.randn(50, H, generator=torch.Generator().manual_seed(1))
    expected = formula(jump, h)
    torch.testing.assert_close(jump(h).double(), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(copy.deepcopy(jump).double()(h.double()), expected, rtol=1e-12, atol=1e-12)


def test_the_folded_jump_followed_by_B_is_the_jump():
    jump, h = make_jump(), torch.randn(50, H, generator=torch.Generator().manual_seed(1))
    folded = jump.fold()
    assert folded.P.shape == (H, 4) and folded.q.shape == (4,) and folded.B.shape == (4, H)
    torch.testing.assert_close((folded(h) @ folded.B).double(), formula(jump, h), rtol=1e-4, atol=1e-4)


def test_the_folded_jump_is_the_jump_also_with_massive_activations():
    generator = torch.Generator().manual_seed(2)
    h = torch.randn(400, H, generator=generator)
    h[::10, 3] += 8000.0  # a first token's massive channels
    h[::10, 7] -= 3000.0
    jump = make_jump()
    with torch.no_grad():
        jump.bn.running_mean.copy_(h.mean(0))
        jump.bn.running_var.copy_(h.var(0, unbiased=False))
    folded = jump.fold()
    expected = formula(jump, h)
    assert expected.std() > 1
    torch.testing.assert_close((folded(h) @ folded.B).double(), expected, rtol=1e-4, atol=1e-4)


def test_the_folded_jump_is_the_jump_also_where_an_input_has_a_large_mean_and_a_small_spread():
    generator = torch.Generator().manual_seed(3)
    h = torch.randn(400, H, generator=generator)
    h[:, 5] = 300.0 + 0.5 * h[:, 5]
    jump = make_jump()
    with torch.no_grad():
        jump.bn.running_mean.copy_(h.mean(0))
        jump.bn.running_var.copy_(h.var(0, unbiased=False))
    folded = jump.fold()
    torch.testing.assert_close((folded(h) @ folded.B).double(), formula(jump, h), rtol=1e-3, atol=2e-3)


def test_folding_changes_neither_the_jump_nor_its_mode():
    jump = make_jump().train()
    before = copy.deepcopy(jump.state_dict())
    jump.fold()
    assert jump.training
    assert all(torch.equal(before[name], value) for name, value in jump.state_dict().items())


def test_the_post_norm_target_is_the_final_norm_of_the_pre_norm_target():
    final = 3 * torch.randn(20, H, generator=torch.Generator().manual_seed(4)) + 1
    unembedding = make_head(norm_kind="layer", norm_bias=torch.linspace(-1, 1, H))
    assert torch.equal(target_of(final, unembedding, "pre_norm"), final)
    assert target_of(final.bfloat16(), unembedding, "pre_norm").dtype == torch.float32
    wide = final.double()
    centred = wide - wide.mean(1, keepdim=True)
    normed = (
        centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt() * unembedding.norm_weight
        + unembedding.norm_bias
    )
    torch.testing.assert_close(target_of(final, unembedding, "post_norm").double(), normed, rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------------------------------------------------- its file


def test_a_saved_jump_comes_back_bit_by_bit_in_evaluation_mode(tmp_path):
    jump = make_jump()
    jump.bn.eps = 1e-3  # kept in the file, not assumed
    jump.save(tmp_path / "jump.safetensors", facts(2, "post_norm") | {"note": "kept"})
    loaded, file = Jump.load(tmp_path / "jump.safetensors", make_head())
    assert not loaded.training
    assert file.metadata["note"] == "kept"
    assert (file.metadata["level"], file.metadata["target"]) == ("2", "post_norm")
    h = torch.randn(20, H, generator=torch.Generator().manual_seed(5))
    assert torch.equal(loaded(h), jump(h))
    for name in ("P", "q", "B"):
        assert torch.equal(getattr(loaded.fold(), name), getattr(jump.fold(), name))


def test_a_jump_of_another_head_is_refused(jump_files):
    with pytest.raises(OnejumpError, match="was trained for the head a{64}, not for b{64}"):
        Jump.load(jump_files[0], make_head(sha256="b" * 64))
    with pytest.raises(OnejumpError, match="was trained for the head a{64}, not for b{64}"):
        load_folded_jumps(jump_files, make_head(sha256="b" * 64), "pre_norm")


def test_jumps_in_order_are_loaded_as_the_folds_of_each(jump_files):
    for level, folded in enumerate(load_folded_jumps(jump_files, make_head(), "pre_norm")):
        assert torch.equal(folded.P, make_jump(level).fold().P)
        assert torch.equal(folded.q, make_jump(level).fold().q)
        assert torch.equal(folded.B, make_jump(level).fold().B)


def test_jumps_out_of_order_are_refused(jump_files):
    with pytest.raises(OnejumpError, match="is the jump of level 1 .* expected level 0"):
        load_folded_jumps([jump_files[1], jump_files[0], jump_files[2]], make_head(), "pre_norm")


def test_jumps_of_another_target_are_refused(jump_files):
    with pytest.raises(OnejumpError, match="for the pre_norm target, expected level 0 and post_norm"):
        load_folded_jumps(jump_files, make_head(), "post_norm")


@pytest.mark.parametrize("count", [0, K - 1, K + 1])
def test_another_number_of_jumps_than_blocks_is_refused(jump_files, tmp_path, count):
    extra = tmp_path / "extra.safetensors"
    make_jump().save(extra, facts(K))
    with pytest.raises(OnejumpError, match=f"{count} jumps were given, but handmade has {K}"):
        load_folded_jumps([*jump_files, extra][:count], make_head(), "pre_norm")


def test_the_joint_jump_is_told_from_the_jump_of_a_level(jump_files, tmp_path):
    joint = tmp_path / "joint.safetensors"
    make_jump(9).save(joint, facts("joint"))
    assert torch.equal(load_joint_jump(joint, make_head(), "pre_norm").P, make_jump(9).fold().P)
    with pytest.raises(OnejumpError, match="is the jump of level 0 .* expected level joint"):
        load_joint_jump(jump_files[0], make_head(), "pre_norm")
    with pytest.raises(OnejumpError, match="is the jump of level joint .* expected level 0"):
        load_folded_jumps([joint, *jump_files[1:]], make_head(), "pre_norm")


def test_a_full_rank_map_given_as_a_jump_is_refused(tmp_path):
    path = tmp_path / "jtc.safetensors"
    write_tensors(
        path,
        {"level.00.weight": torch.eye(H), "level.00.bias": torch.zeros(H)},
        {"kind": "jtc", "target": "pre_norm", "unembedding_sha256": "a" * 64},
    )
    with pytest.raises(OnejumpError, match="holds jtc, expected jump"):
        Jump.load(path, make_head())


def test_a_file_of_something_else_is_refused(tmp_path):
    path = tmp_path / "shard.safetensors"
    write_tensors(path, {"level.00": torch.eye(H)}, facts(0))
    with pytest.raises(OnejumpError, match="holds something else, expected jump"):
        Jump.load(path, make_head())


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
        load_folded_jumps(jump_files, make_head(), "pre_norm")
