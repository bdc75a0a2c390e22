"""The cost plan against what the library really counts, writes and imports."""

import json
from pathlib import Path

import pytest
import yaml
from refusals import error_of
from tiny_models import ALL_FAMILIES, make_dump, tiny_model

from onejump.analysis import claims, ranks
from onejump.planning import cost as planning
from onejump.planning.architecture import ARCHITECTURES, Architecture, load_architecture
from onejump.planning.cost import ModelPlan, limits, mean_seconds, plan_model, plan_study, render, with_defaults
from onejump.planning.machines import GPUS, TWO_CORES, read_machine

PUBLISHED = {  # parameters as the model cards or Transformers give them
    "gpt2-xl": 1_557_611_200,
    "phi-3-mini": 3_821_079_552,
    "llama-2-7b": 6_738_415_616,
    "llama-3-70b": 70_553_706_496,
    "llama-3-405b": 405_853_388_800,
    "smollm2-135m": 134_515_008,
}


def config(**models) -> dict:
    """A study of the given models, complete with the schema's defaults."""
    schema = yaml.safe_load((Path(__file__).parents[3] / "workflow/schemas/config.schema.yaml").read_text())
    given = {"study": "s", "corpus": {"source": {"files": {"paths": ["x"]}}, "train": 9000, "test": 3000}}
    return with_defaults(given | {"models": models}, schema, schema)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_configs_that_come_along_have_the_published_numbers_of_parameters(name):
    assert load_architecture(name).parameters == pytest.approx(PUBLISHED[name], rel=1e-3)


def test_every_config_that_comes_along_is_checked():
    assert {file.stem for file in ARCHITECTURES.glob("*.json")} == set(PUBLISHED)


@pytest.mark.parametrize("family", [name for name in ALL_FAMILIES if name != "gptj"])
def test_the_weights_of_every_family_are_counted_from_its_config(family):
    model = tiny_model(family)
    matrices = {id(p): p.numel() for p in model.parameters() if p.dim() > 1}
    found = Architecture.of(json.loads(model.config.to_json_string(use_diff=False)), family)
    assert found.parameters == pytest.approx(sum(matrices.values()), rel=0.02)
    assert (found.n_blocks, found.hidden_size, found.vocabulary) == (3, 32, 97)


def test_the_papers_ranks_and_jump_sizes_follow_from_the_configs():
    for name, size in (("gpt2-xl", 57_600), ("phi-3-mini", 196_608), ("llama-2-7b", 344_064)):
        plan = ModelPlan(load_architecture(name), "float16", 9000, 3000, {"train": 1, "test": 1}, 300)
        assert plan.fit_jump("exact").written == 4 * size


def test_the_stages_do_what_the_plan_says_they_do():
    assert (planning.CLAIM_RESAMPLES, planning.LARGEST_RANK, planning.RANK_POINTS) == (
        claims.RESAMPLES,
        ranks.LARGEST,
        ranks.POINTS,
    )


def test_the_disk_of_a_dump_is_what_the_files_take(tmp_path):
    made = make_dump(tmp_path, 400, 40, shards={"train": 2, "test": 1})
    architecture = load_architecture(tmp_path / "model" / "config.json")
    plan = ModelPlan(architecture, "float32", 400, 40, {"train": 2, "test": 1}, 4)
    for split, files in (("train", made.train), ("test", made.test)):
        data = sum(file.stat().st_size for file in files) / len(files) - 4000  # what a header takes
        assert plan.dump_activations(split).written == pytest.approx(data, rel=0.15)


def test_every_job_of_the_workflow_is_in_the_plan():
    study = config(a={"source": {"path": "none"}, "blocks": 5, "shards": {"train": 3, "test": 2}})
    jobs = {line.cost.rule: line.jobs for line in plan_study(study)}
    assert jobs["dump_activations"] == 5
    assert jobs["fit_jump"] == 2 * 5  # the variants paper and exact
    assert jobs["fit_jtc"] == jobs["evaluate_references"] == jobs["extract_unembedding"] == 1
    assert jobs["evaluate_jumps"] == jobs["score_jumps"] == jobs["select_jump"] == jobs["fit_joint_jump"] == 2


@pytest.mark.parametrize("rule", ["extract_unembedding", "score_jumps", "evaluate_oracle", "evaluate_jumps", "fit_jtc"])
def test_a_rules_line_in_the_plan_is_one_of_its_jobs(rule):
    study = config(a={"source": {"path": "none"}, "blocks": 5, "architecture": "smollm2-135m", "dtype": "float32"})
    job = plan_model(study["models"]["a"], "a", study).job(rule, variant=study["variants"]["paper"])
    (found,) = (line.cost for line in plan_study(study) if line.cost.rule == rule)
    assert found.host_bytes(TWO_CORES) == pytest.approx(job.host_bytes(TWO_CORES))
    assert found.seconds(TWO_CORES) == pytest.approx(job.seconds(TWO_CORES))


def test_the_average_jobs_add_up_to_the_plan():
    study = config(
        a={"source": {"path": "none"}, "blocks": 5, "shards": {"train": 3, "test": 2}},
        b={"source": {"path": "none"}, "blocks": 9, "architecture": "gpt2-xl"},
    )
    mean = mean_seconds(study, TWO_CORES)
    assert mean[""] == TWO_CORES.start_seconds
    lines = plan_study(study)
    assert sum(line.jobs * mean[line.cost.rule] for line in lines) == pytest.approx(
        sum(line.jobs * line.cost.seconds(TWO_CORES) for line in lines)
    )


def test_a_model_whose_config_is_not_here_is_planned_as_another_and_says_so():
    study = config(unheard={"source": {"path": "none"}, "blocks": 7})
    assert "llama-2-7b, assumed, K=7" in render(study, GPUS["h100"])
    study = config(unheard={"source": {"path": "none"}, "blocks": 80, "architecture": "llama-3-70b"})
    assert "llama-3-70b, K=80 H=8192" in render(study, GPUS["h100"])


def test_what_does_not_scale_is_said():
    def plan(name: str) -> ModelPlan:
        return ModelPlan(load_architecture(name), "bfloat16", 9000, 3000, {"train": 6, "test": 2}, 1000)

    assert limits(plan("llama-2-7b"), GPUS["a100-80gb"], 1) == []
    (gpus, rows) = limits(plan("llama-3-70b"), GPUS["a100-80gb"], 1)
    assert "set gpus: 3" in gpus and "9,000 training sentences do not span H = 8,192" in rows
    assert limits(plan("llama-3-70b"), GPUS["a100-80gb"], 3) == [rows]
    assert len(limits(plan("llama-3-405b"), GPUS["h100"], 8)) == 5


def test_resources_grow_with_each_attempt_and_with_the_model():
    costs = [
        ModelPlan(load_architecture(name), "float16", 9000, 3000, {"train": 6, "test": 2}, 1000).fit_jump("exact")
        for name in ("smollm2-135m", "llama-2-7b")
    ]
    for cost in costs:
        assert cost.mem_mb(2) == 2 * cost.mem_mb(1) and cost.runtime(TWO_CORES, 2) == 2 * cost.runtime(TWO_CORES, 1)
    assert costs[1].mem_mb() > 1.5 * costs[0].mem_mb()
    assert costs[1].runtime(TWO_CORES) >= 30


def test_wrong_names_and_files_are_refused(tmp_path):
    assert "name one of gpt2-xl" in error_of(lambda: load_architecture("llama-9"))
    (tmp_path / "config.json").write_text('{"model_type": "llama", "hidden_size": 8}')
    assert "num_attention_heads" in error_of(lambda: load_architecture(tmp_path / "config.json"))
    (tmp_path / "machine.json").write_text('{"speed": 9}')
    assert "onejump rehearse" in error_of(lambda: read_machine(tmp_path / "machine.json"))
