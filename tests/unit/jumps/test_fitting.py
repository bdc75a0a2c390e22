"""Fits from activations: what is fitted, from which rows, and what the jump's file says of it."""

import numpy as np
import pytest
import torch
from handmade import (
    CPU,
    EPS,
    make_activations,
    make_levels,
    mean_error,
    naive_optimum,
    naive_ridge,
    slices,
)

from onejump.files.atomic import OnejumpError
from onejump.jumps import exact as exact_module
from onejump.jumps.fitting import fit_jtc, fit_jump
from onejump.jumps.jump import Jump
from onejump.jumps.settings import EPOCHS, KL_STEPS, KL_VALIDATE_EVERY, RIDGES
from onejump.study.fits import FITS


@pytest.mark.parametrize("target", ["pre_norm", "post_norm"])
@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("level", [0, 2, None], ids=["first", "last", "joint"])
def test_a_fitted_jump_has_the_errors_that_its_file_reports(study, fitted, level, fit, target):
    jump, file = fitted(level, fit, target)
    levels = range(3) if level is None else [level]
    errors, means = [], []
    with torch.no_grad():
        jump = jump.double()
        for found in levels:
            x, y, validation_x, validation_y = slices(study, found, target)
            errors.append((mean_error(jump(x), y), mean_error(jump(validation_x), validation_y)))
            means.append(mean_error(y.mean(0).expand_as(y), y))
    train_mse, validation_mse = np.mean(errors, 0)
    assert file.value("train_mse") == pytest.approx(train_mse, rel=1e-4)
    assert file.value("validation_mse") == pytest.approx(validation_mse, rel=1e-4)
    assert file.value("mean_mse") == pytest.approx(np.mean(means), rel=1e-6)
    x = torch.cat([slices(study, found, target)[0] for found in levels])
    y = torch.cat([slices(study, found, target)[1] for found in levels])
    optimum = naive_optimum(x, y, 3)
    assert file.value("optimum_mse") == pytest.approx(optimum, rel=1e-6)
    assert file.value("gap") == pytest.approx((train_mse - optimum) / (np.mean(means) - optimum), abs=1e-4)


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("level", [1, None], ids=["level", "joint"])
def test_a_fitted_jumps_file_says_all_that_it_was_made_from(study, fitted, level, fit):
    _, file = fitted(level, fit, seed=4)
    assert file.metadata["kind"] == "jump"
    assert file.metadata["level"] == ("joint" if level is None else "1")
    assert (file.metadata["fit"], file.metadata["target"]) == (fit, "pre_norm")
    assert file.metadata["unembedding_sha256"] == study[1].metadata["sha256"]
    found = {name: file.value(name) for name in ("n_blocks", "rank", "seed", "n_rows", "eps")}
    assert found == {"n_blocks": 3, "rank": 3, "seed": 4, "n_rows": 203, "eps": EPS}


@pytest.mark.parametrize("fit", ["exact", "exact_logits"])
def test_the_file_of_a_closed_form_holds_its_ridge(fitted, fit):
    assert fitted(1, fit, seed=4)[1].value("ridge") in RIDGES


@pytest.mark.parametrize("fit", FITS)
def test_a_file_holds_the_course_of_an_iterative_fit(fitted, fit):
    file, course = fitted(1, fit, seed=4)[1], FITS[fit].course
    if course is None:
        assert "validation_curve" not in file.metadata
        return
    steps, curve = file.value("curve_steps"), file.value("validation_curve")
    if course.unit == "epoch":
        assert steps == [*range(1, EPOCHS + 1)]
    else:
        assert steps == [*range(0, KL_VALIDATE_EVERY * len(curve), KL_VALIDATE_EVERY)]
        assert file.value("converged") == (steps[-1] < KL_STEPS)
    assert len(steps) == len(curve)
    assert curve[steps.index(file.value(f"best_{course.unit}"))] == min(curve)
    if course.column == "validation_mse":
        assert file.value("validation_mse") == min(curve)


@pytest.mark.parametrize("fit", [name for name, fit in FITS.items() if fit.course])
def test_the_seed_determines_the_bytes_of_the_file(fitted, fit):
    same, again, other = (fitted(1, fit, **more)[1] for more in ({}, {"again": 1}, {"seed": 1}))
    assert same.path.read_bytes() == again.path.read_bytes()
    assert same.value("train_curve") != other.value("train_curve")


@pytest.fixture
def asked(monkeypatch):
    """The problems that are given to the Adam fit, which does nothing else."""
    problems = []

    def note(problem):
        problems.append(problem)
        raise OnejumpError("far enough")

    monkeypatch.setattr("onejump.jumps.adam.fit", note)
    return problems


def test_no_two_fits_start_from_the_same_weights(study, asked):
    for seed in (0, 1):
        for level in (0, 1, 2, None):
            with pytest.raises(OnejumpError, match="far enough"):
                fit_jump(*study, level, "adam", "pre_norm", 3, "mixed", seed, CPU)
    assert len({problem.seed for problem in asked}) == 8


@pytest.mark.parametrize("joint_batches", ["mixed", "per_level"])
def test_only_the_joint_fit_takes_batches_of_one_level_and_only_where_the_variant_says_so(study, asked, joint_batches):
    for level, levels in ((1, 1), (None, 3)):
        with pytest.raises(OnejumpError, match="far enough"):
            fit_jump(*study, level, "adam", "pre_norm", 3, joint_batches, 0, CPU)
        fitting, validation = asked[-1].rows()
        assert (len(fitting.x), len(fitting.y), len(validation.y)) == (levels, 183, 20)
        assert asked[-1].per_level == (level is None and joint_batches == "per_level")


@pytest.mark.parametrize("fit", FITS)
def test_the_joint_jump_depends_on_what_a_batch_holds_where_the_registry_says_so(fitted, fit):
    mixed, per_level = (fitted(None, fit, joint_batches=choice)[0].A for choice in ("mixed", "per_level"))
    assert torch.equal(mixed, per_level) != FITS[fit].joint_batches


def test_the_rank_is_the_one_asked_for_or_the_papers(tmp_path):
    study = make_activations(tmp_path, make_levels(60, n_blocks=2, hidden_size=210), [60])
    for rank, expected in ((None, 2), (7, 7)):
        jump, metadata = fit_jump(*study, 0, "exact", "pre_norm", rank, "mixed", 0, CPU)
        assert jump.A.shape == (210, expected)
        assert jump.B.shape == (expected, 210)
        assert metadata["rank"] == expected


def test_the_exact_joint_jump_is_the_fit_of_the_stacked_rows(study, fitted):
    file = fitted(None)[1]
    x, y, validation_x, validation_y = (
        torch.cat(parts) for parts in zip(*(slices(study, k) for k in range(3)), strict=True)
    )
    errors = {r: mean_error(naive_ridge(x, y, 3, r, validation_x), validation_y) for r in RIDGES}
    ridge = min(errors, key=errors.get)
    assert file.value("ridge") == ridge
    with torch.no_grad():
        found = fitted(None)[0].double()(validation_x)
    torch.testing.assert_close(found, naive_ridge(x, y, 3, ridge, validation_x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fit", ["exact", "adam"])
def test_no_single_jump_used_at_all_levels_has_a_lower_mean_training_error_than_the_joint_optimum(study, fitted, fit):
    def level_averaged(jump: Jump) -> float:
        with torch.no_grad():
            return float(
                np.mean([mean_error(jump.double()(slices(study, k)[0]), slices(study, k)[1]) for k in range(3)])
            )

    joint, file = fitted(None, fit)
    singles = [level_averaged(fitted(level, fit)[0]) for level in range(3)]
    optimum = file.value("optimum_mse")
    assert min(singles) > 1.05 * optimum
    assert optimum * (1 - 1e-6) <= level_averaged(joint) < min(singles)


def test_rows_of_the_validation_slice_never_enter_a_fit(tmp_path, monkeypatch):
    monkeypatch.setattr(exact_module, "RIDGES", (0.0,))
    levels = make_levels(203)
    changed = levels.clone()
    changed[:, -20:] = make_levels(20, seed=9) * 5
    same, different = [], []
    for name, rows in (("before", levels), ("after", changed)):
        study = make_activations(tmp_path / name, rows, [203])
        fits = {
            (level, fit): fit_jump(*study, level, fit, "pre_norm", 3, "mixed", 0, CPU)
            for level in (1, None)
            for fit in ("exact", "adam")
        }
        exact = [tensor for level in (1, None) for tensor in fits[level, "exact"][0].tensors().values()]
        curves = [torch.tensor(fits[level, "adam"][1]["train_curve"]) for level in (1, None)]
        jtc = fit_jtc(*study, "pre_norm", CPU)[0]
        same.append([*exact, *curves, *(part for lens in jtc for part in (*lens.factors, lens.bias))])
        different.append([metadata["validation_mse"] for _, metadata in fits.values()])
    assert all(torch.equal(a, b) for a, b in zip(*same, strict=True))
    assert all(a != b for a, b in zip(*different, strict=True))


@pytest.mark.parametrize("level", [-1, 3])
def test_a_level_that_is_no_exit_level_is_refused(study, level):
    with pytest.raises(OnejumpError, match=rf"level {level} is out of range; exit levels of this model are 0\.\.2"):
        fit_jump(*study, level, "exact", "pre_norm", 3, "mixed", 0, CPU)


@pytest.mark.parametrize("rank", [-1, 0, 13])
def test_a_rank_that_no_jump_can_have_is_refused(study, rank):
    with pytest.raises(OnejumpError, match=rf"rank {rank} is out of range; H is 12, so use 1\.\.12"):
        fit_jump(*study, 0, "exact", "pre_norm", rank, "mixed", 0, CPU)


def test_two_training_rows_are_too_few_and_three_are_enough(tmp_path):
    study = make_activations(tmp_path / "3", make_levels(3), [3])
    assert fit_jump(*study, 0, "exact", "pre_norm", 1, "mixed", 0, CPU)[1]["n_rows"] == 3
    study = make_activations(tmp_path / "2", make_levels(2), [2])
    with pytest.raises(OnejumpError, match="2 training rows are too few"):
        fit_jump(*study, 0, "exact", "pre_norm", 1, "mixed", 0, CPU)


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("bad_level", [1, 3])
def test_shards_with_numbers_that_are_not_finite_are_refused(tmp_path, fit, bad_level):
    levels = make_levels(60)
    levels[bad_level, 7, 2] = torch.inf
    study = make_activations(tmp_path, levels, [30, 30])
    with pytest.raises(OnejumpError, match=f"shard-00.*NaN or infinite values at level {bad_level}"):
        fit_jump(*study, 1, fit, "pre_norm", 3, "mixed", 0, CPU)
