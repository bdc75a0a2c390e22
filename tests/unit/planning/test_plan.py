"""The plan against what the library really counts, writes and imports."""

from collections import Counter
from dataclasses import replace

import pytest
from refusals import error_of
from studies import ROOT
from tiny_models import make_dump

from onejump.activations import generation
from onejump.analysis import ranks
from onejump.exits import chunks, shortlist
from onejump.models.architecture import Architecture, load_architecture
from onejump.planning import work as planning
from onejump.planning.machines import MACHINES, TWO_CORES, read_machine
from onejump.planning.plan import limits, mean_seconds, plan_study, render, sizes_of
from onejump.planning.work import STAGES, Sizes, Work, work_of
from onejump.study.config import complete_config, load_config
from onejump.study.fits import FITS
from onejump.study.lenses import LENSES


def study(**models) -> dict:
    """A complete config of the given models."""
    given = {"study": "s", "corpus": {"source": {"files": {"paths": ["x"]}}, "train": 9000, "test": 3000}}
    plain = {"source": {"path": "none"}, "blocks": 5}
    return complete_config(given | {"models": {name: plain | model for name, model in models.items()}})


def sizes(name: str, dtype: str = "float16") -> Sizes:
    """A model at the paper's numbers of sentences."""
    return Sizes(load_architecture(name), dtype, 9000, 3000, {"train": 6, "test": 2}, 1000)


def test_a_job_dumps_a_split_where_a_block_at_a_time_is_held_and_else_a_shard():
    for load, expected in (("whole", [3, 2]), ("blocks", [1, 1])):
        jobs = plan_study(study(a={"shards": {"train": 3, "test": 2}, "load": load}))
        dumps = [(number, work) for _, stage, number, work in jobs if stage == "dump_activations"]
        assert [number for number, _ in dumps] == expected
        rows = [sum(n * work.amounts["written"] for n, work in dumps)]
        assert rows == pytest.approx([12000 * 6 * 4096 * 4], rel=0.01)


def test_the_papers_ranks_and_jump_sizes_follow_from_the_configs():
    for name, size in (("gpt2-xl", 57_600), ("phi-3-mini", 196_608), ("llama-2-7b", 344_064)):
        assert work_of("fit_jump", sizes(name)).amounts["written"] == 4 * size


def test_the_stages_have_the_sizes_that_are_planned():
    planned = planning.CHUNK, planning.LARGEST_RANK, planning.RANK_POINTS, planning.PREVIEWS, planning.PROMPTS
    found = chunks.ROWS["cpu"], ranks.LARGEST, ranks.POINTS, len(shortlist.WIDTHS), generation.ROWS["cpu"]
    assert planned == found


def test_the_disk_of_a_dump_is_what_the_files_take(tmp_path):
    made = make_dump(tmp_path, 400, 40, shards={"train": 2, "test": 1})
    tiny = Sizes(Architecture("tiny", 3, 32, 97, 9280, 6240), "float32", 400, 40, {"train": 2, "test": 1}, 4)
    for split, files in (("train", made.train), ("test", made.test)):
        data = sum(file.stat().st_size for file in files) / len(files) - 4000  # what a header takes
        planned = work_of("dump_activations", replace(tiny, split=split)).amounts["written"]
        assert planned == pytest.approx(data, rel=0.15)


def test_every_job_of_the_workflow_is_in_the_plan():
    jobs = {}
    config = study(a={"shards": {"train": 3, "test": 2}, "load": "whole"})
    config["variants"]["alone"] = config["variants"]["paper"] | {"jumps": "joint", "rank": 3}
    config["corpus"]["generated"] = {"tokens": 8, "temperature": 1}
    config["variants"]["gated"] = config["variants"]["alone"] | {"gate": "level"}
    config["evaluation"]["lenses"] = {lens: {"seeds": None, "sources": {"a": "theirs"}} for lens in LENSES}
    for _, stage, number, _ in plan_study(config):
        jobs[stage] = jobs.get(stage, 0) + number
    assert jobs.keys() == STAGES.keys()
    assert jobs["dump_activations"] == 5
    assert jobs["fit_jump"] == 2 * 5  # the variants paper and exact
    assert jobs["fit_jtc"] == jobs["evaluate_references"] == jobs["extract_unembedding"] == jobs["generate_text"] == 1
    assert jobs["evaluate_jumps"] == jobs["score_jumps"] == jobs["select_jump"] == 2
    assert jobs["fit_joint_jump"] == 4
    assert (jobs["evaluate_joint_jump"], jobs["evaluate_held_out"]) == (2, 4)
    assert jobs["evaluate_ranks"] == jobs["evaluate_shortlist"] == 1
    assert (jobs["fit_kl_lens"], jobs["fit_jacobian_lens"], jobs["import_lens"]) == (2, 1, 2)
    assert jobs["evaluate_lens"] == len(LENSES)


def test_the_average_jobs_add_up_to_the_plan():
    config = study(a={"shards": {"train": 3, "test": 2}}, b={"blocks": 9, "architecture": "gpt2-xl"})
    mean, jobs = mean_seconds(config, TWO_CORES), plan_study(config)
    assert mean[""] == TWO_CORES.start_seconds
    planned = sum(number * work.seconds(TWO_CORES) for _, _, number, work in jobs)
    assert sum(number * mean[stage] for _, stage, number, _ in jobs) == pytest.approx(planned)


def test_a_model_whose_config_is_not_here_is_planned_as_another_and_says_so():
    text = render(study(unheard={"blocks": 7}), MACHINES["h100"])
    assert "llama-2-7b, assumed, K=7" in text
    assert "set architecture:" in text
    text = render(study(unheard={"blocks": 80, "architecture": "llama-3-70b"}), MACHINES["h100"])
    assert "llama-3-70b, K=80 H=8192" in text


def test_the_sums_of_a_plan_are_those_of_its_rows():
    lines = render(study(a={"architecture": "gpt2-xl"}), MACHINES["h100"]).splitlines()
    rows = [line.split() for line in lines if line.split() and line.split()[0] in STAGES]
    (total,) = (line.split()[2:] for line in lines if line.startswith("  in all"))
    assert int(total[0]) == sum(int(row[1]) for row in rows)
    assert float(total[3]) == pytest.approx(sum(float(row[4]) for row in rows), abs=0.01)
    assert float(total[5]) == max(float(row[6]) for row in rows)


def test_a_config_that_lacks_a_key_is_refused_as_the_workflow_does():
    given = study(a={})
    del given["models"]["a"]["blocks"]
    assert "models.a: 'blocks' is a required property" in error_of(lambda: complete_config(given))


def test_what_does_not_scale_is_said():
    assert limits(sizes("llama-2-7b"), MACHINES["a100-80gb"], 1) == []
    whole = replace(sizes("llama-3-70b"), load="whole")
    gpus, curve, rows = limits(whole, MACHINES["a100-80gb"], 1)
    assert "set gpus: 3" in gpus
    assert "evaluate_ranks needs 90 GB on one GPU" in curve
    assert "9,000 training sentences do not span H = 8,192" in rows
    assert limits(whole, MACHINES["a100-80gb"], 3) == [curve, rows]
    assert limits(sizes("llama-3-70b"), MACHINES["a100-80gb"], 1) == [curve, rows]  # a block at a time
    small = replace(MACHINES["a100-80gb"], device_bytes=5e9)
    assert "needs 5 GB of GPU memory to run: set gpus: 38, more than" in limits(sizes("llama-3-70b"), small, 1)[0]
    writing = replace(sizes("llama-3-70b"), written=32, tokens=40.0)  # token by token, the whole model is needed
    assert "set gpus: 3" in limits(writing, MACHINES["a100-80gb"], 1)[0]
    said = " ".join(limits(replace(sizes("llama-3-405b"), load="whole"), MACHINES["h100"], 8))
    assert "more than a common node has" in said
    assert "fit_jtc needs 275 GB of host memory" in said
    assert "on one GPU" not in " ".join(limits(sizes("llama-3-405b"), TWO_CORES, 1))


def test_a_block_at_a_time_needs_little_memory_and_auto_takes_it_for_large_models_alone():
    for stage in ("extract_unembedding", "dump_activations"):
        whole, blocks, auto = (
            work_of(stage, replace(sizes("llama-2-7b"), load=load)) for load in ("whole", "blocks", "auto")
        )
        assert auto == blocks
        assert whole.amounts == blocks.amounts | {"offloaded": 0} or stage == "extract_unembedding"
        assert blocks.host_bytes() < 6e9 < 13e9 < whole.host_bytes()
        assert work_of(stage, sizes("smollm2-135m")) == work_of(stage, replace(sizes("smollm2-135m"), load="whole"))
        assert work_of(stage, replace(sizes("llama-2-7b"), gpus=2)) == whole  # spread over them
    assert work_of("generate_text", sizes("llama-2-7b")).device > 13e9


def test_a_dump_by_blocks_is_planned_without_an_output_head_that_is_not_the_embedding():
    for name, unused in (("llama-2-7b", 32000 * 4096 * 2), ("smollm2-135m", 0)):  # the latter's is the embedding
        blocks = replace(sizes(name), load="blocks")
        work = work_of("dump_activations", blocks)
        assert work.device - work.states == blocks.held - unused


def test_states_that_leave_a_gpu_too_little_room_are_planned_in_the_hosts_memory_and_cross_the_bus():
    work = work_of("dump_activations", replace(sizes("llama-3-405b"), at_once=6))
    small, large, none = MACHINES["rtx-4090"], MACHINES["h200"], TWO_CORES
    tokens, H, K = 9000 * 16, 16384, 126
    assert work.states == 2 * 2 * tokens * H
    assert work.device_bytes(large) - work.device_bytes(small) == work.states
    assert work.host_bytes(small) - work.host_bytes(large) == work.states
    times = work.times(small)
    assert times["offloaded"] == pytest.approx(2 * K * work.states / small.rates["moved"] / small.share)
    assert times["moved"] == pytest.approx(811.7e9 / small.rates["moved"] / small.share, rel=0.01)
    assert "offloaded" not in work.times(large)
    assert work.times(none).keys() & {"moved", "offloaded"} == set()


def test_a_plan_says_where_the_time_of_a_dump_goes():
    config, gpu = study(a={"architecture": "llama-3-70b", "load": "whole"}), MACHINES["rtx-4090"]
    (line,) = (line for line in render(config, gpu).splitlines() if line.startswith("  time of dump_activations: "))
    shares = {part.split()[0]: int(part.split()[1].strip("%")) for part in line.partition(": ")[2].split(", ")}
    spent = Counter()
    for _, stage, n, work in plan_study(config):
        for kind, seconds in work.times(gpu).items() if stage == "dump_activations" else ():
            spent["disk" if kind in ("read", "written") else "bus" if kind == "moved" else "arithmetic"] += n * seconds
    assert shares == {part: round(100 * spent[part] / spent.total()) for part in ("disk", "bus", "arithmetic")}


def test_the_papers_study_fits_into_8_gb_of_host_memory_and_an_8_gb_gpu():
    gpu = replace(MACHINES["v100-32gb"], device_bytes=8e9)
    for model, stage, _, work in plan_study(load_config(ROOT / "config" / "paper.yaml")):
        assert work.host_bytes(gpu) < 8e9 and work.device < 8e9, (model, stage)


def test_resources_grow_with_each_attempt_and_with_the_model():
    small, large = (work_of("fit_jump", sizes(name)) for name in ("smollm2-135m", "llama-2-7b"))
    for work in (small, large):
        first, second = (work.resources(TWO_CORES, attempt) for attempt in (1, 2))
        assert second["mem_mb"] == 2 * first["mem_mb"]
        assert second["runtime"] == 2 * first["runtime"]
    assert large.resources(TWO_CORES)["mem_mb"] > 1.5 * small.resources(TWO_CORES)["mem_mb"]
    assert large.resources(TWO_CORES)["runtime"] >= 30


@pytest.mark.parametrize("dtype", planning.BYTES)
@pytest.mark.parametrize("stage", STAGES)
def test_a_larger_model_takes_more_of_everything(stage, dtype):
    small, large = (work_of(stage, sizes(name, dtype)) for name in ("smollm2-135m", "llama-3-70b"))
    for kind in small.amounts.keys() & large.amounts.keys() - {"eigen"}:
        assert large.amounts[kind] >= small.amounts[kind], kind
    assert large.kind == ("exact" if stage in ("fit_jump", "fit_joint_jump") else stage)


def test_every_fit_has_an_entry_and_another_is_planned_as_the_one_that_needs_most():
    assert planning.FITS.keys() <= set(FITS)
    works = {fit: work_of("fit_jump", replace(sizes("gpt2-xl"), fit=fit)) for fit in (*FITS, "new")}
    assert works["new"].amounts == works["kl"].amounts
    assert works["new"].kind == "new"
    assert works["new"].seconds(TWO_CORES) > TWO_CORES.start_seconds


def test_a_stage_without_an_entry_is_planned_from_its_inputs():
    s = sizes("gpt2-xl", "bfloat16")
    work = work_of("a_new_stage", s)
    assert work.amounts["read"] == 49 * 12_000 * 1600 * 2
    assert work.device >= 4 * (50257 * 1600 + 12_000 * 1600)
    asked = work.resources(TWO_CORES)
    assert asked["mem_mb"] * 2**20 > work.host_bytes() > s.kept(50257, 1600)


def test_works_add_up_in_the_same_memory():
    first, second = Work({"read": 1.0, "float32": 2.0}, host=5.0), Work({"read": 3.0}, host=4.0, device=7.0)
    both = first + 2 * second
    assert (both.amounts["read"], both.amounts["float32"], both.host, both.device) == (7.0, 2.0, 5.0, 7.0)


def test_passes_are_of_the_stage_or_the_median_of_those_known():
    machine = replace(TWO_CORES, passes={"a": 1.0, "b": 2.0, "c": 30.0})
    assert (machine.passes_of("b"), machine.passes_of("new")) == (2.0, 2.0)
    touched = Work({"touched": machine.rates["touched"]}, kind="c")
    assert touched.seconds(machine) == pytest.approx(machine.start_seconds + 30)


def test_a_machine_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "machine.json").write_text('{"speed": 9}')
    assert "onejump rehearse" in error_of(lambda: read_machine(tmp_path / "machine.json"))


def test_what_was_measured_has_passes_for_every_stage_and_fit():
    assert TWO_CORES.passes.keys() == (STAGES.keys() - {"fit_jump", "fit_joint_jump"}) | set(FITS)


def test_sizes_follow_from_the_config():
    s = sizes_of("a", study(a={"architecture": "gpt2-xl", "blocks": 48, "dtype": "bfloat16"}))
    assert (s.dims[:4], s.dtype, s.train, s.test) == ((48, 1600, 50257, 16), "bfloat16", 9000, 3000)


def test_text_that_models_write_doubles_the_rows():
    config = study(a={"architecture": "gpt2-xl"})
    config["corpus"]["generated"] = {"tokens": 40, "temperature": 1}
    s = sizes_of("a", config)
    # A position is at 16 on average in a sentence, and in a continuation at 2 x 16 + 20.
    assert (s.train, s.test, s.written, s.tokens) == (18000, 6000, 40, (16 + 52) / 2)
    config["variants"] = {"paper": config["variants"]["paper"]}
    config["variants"]["own"] = config["variants"]["paper"] | {"train_on": "generated"}
    jobs = {stage: 0 for _, stage, *_ in plan_study(config)}
    for _, stage, number, _ in plan_study(config):
        jobs[stage] += number
    assert (jobs["generate_text"], jobs["dump_activations"]) == (1, 2)
    assert (jobs["fit_jtc"], jobs["evaluate_references"], jobs["fit_joint_jump"]) == (2, 2, 2)


def test_a_rank_beyond_the_models_width_is_refused():
    config = study(xl={"architecture": "gpt2-xl"})
    config["variants"]["paper"]["rank"] = 9999
    expected = "config: variants.paper.rank is 9999, expected at most H of xl = 1600"
    assert error_of(lambda: plan_study(config)) == expected


@pytest.mark.parametrize("fit", ["exact", "kl"])
def test_gates_cost_what_they_compute(fit):
    plain = replace(sizes("gpt2-xl"), fit=fit)
    gated = replace(plain, gated=True)

    def amounts(stage: str, kind: str) -> tuple[float, float]:
        return tuple(work_of(stage, one).amounts[kind] for one in (plain, gated))

    ungated, open_ = amounts("evaluate_jumps", "float32")
    assert open_ - ungated == 2 * 48 * 3000 * 1600 * 50257  # the head on the state of each level
    assert work_of("fit_jtc", gated) == work_of("fit_jtc", plain)
    if fit == "exact":
        once, with_gates = amounts("fit_joint_jump", "float64")
        assert with_gates - once == pytest.approx(2 * 48 * 9000 * 1600**2)  # X'n of each level
        one, other = (work_of("fit_joint_jump", study).device for study in (plain, gated))
        assert other - one == 8 * 48 * 1600**2
    else:
        without, with_head = amounts("fit_joint_jump", "float32")
        assert with_head > 2 * without
