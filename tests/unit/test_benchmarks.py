"""The benchmarks: no stage has lost half its recorded lead, wrong answers are refused, and the page is up to date."""

import csv
import os

import generate
import growth
import guard
import measure
import numpy as np
import overhead
import page
import pytest
import scores
import startup
from handmade_jump import handmade_jump
from levels_by_hand import random_ids
from refusals import error_of
from synthetic import Size
from tiny_models import N_BLOCKS, sentence_table, tiny_model, tiny_tokenizer

from onejump import stages
from onejump.files.tables import write_table


def slow_score_jumps(activations, unembedding, jumps, target, device):
    """What score_jumps would be without its products in rank r."""
    return scores.full_width(activations, jumps)


def write_csv(folder, name, rows):
    with open(folder / f"{name}.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


# -------------------------------------------------------------------------------------------------------------- guard


@pytest.mark.parametrize("script", guard.GUARDED)
def test_no_stage_has_lost_half_of_its_recorded_lead(script):
    for _ in range(5):  # what runs beside may spoil a measurement; a stage that has become slow is slow in all
        if not (fallen := guard.fallen(guard.ratios(script), guard.recorded(script))):
            break
    assert fallen == []


def test_the_guard_notices_a_slow_stage(monkeypatch):
    before = guard.ratios("scores")
    assert guard.fallen(before, before) == []
    monkeypatch.setattr(scores, "score_jumps", slow_score_jumps)
    (line,) = guard.fallen(guard.ratios("scores"), before)
    assert line.startswith("scores, small: K=16 ") and ": full-width predictions takes " in line


def test_a_fast_wrong_answer_is_refused(monkeypatch):
    right = scores.score_jumps
    monkeypatch.setattr(guard, "ROUNDS", 1)
    monkeypatch.setattr(scores, "score_jumps", lambda *given: right(*given) + 1e-3)
    assert "ours and the baseline differ by" in error_of(lambda: guard.ratios("scores"))


# ------------------------------------------------------------------------------------------------------------- shared


def test_ways_take_turns_and_parts_count_as_the_whole(monkeypatch):
    clock, order = iter(np.cumsum([0, 1, 0, 2, 0, 3] * 2).tolist()), []
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(clock))
    ways = {name: lambda turn, name=name: order.append((turn, name)) for name in ("ours", "plain", "limit")}
    turns = measure.take_turns(ways, 2, parts={"plain": 10})
    assert order == [(turn, name) for turn in range(2) for name in ("ours", "plain", "limit")]
    (row,) = measure.rows_of(turns, "size", "what")
    assert (row.seconds, row.baseline_seconds, row.ratio, row.lowest, row.highest, row.share) == (1, 20, 20, 20, 20, 3)


def test_a_missing_table_is_named(tmp_path):
    assert error_of(lambda: measure.read("dump", tmp_path)) == f"{tmp_path}/dump.csv: no such file; run `make bench`"


@pytest.mark.parametrize("exponent", [1, 2, 3])
def test_exponents_are_fitted_to_the_growth_beyond_the_smallest_size(exponent):
    sizes = np.array([1, 9000, 18000, 27000])
    assert growth.fitted_exponent(sizes, 2.5 + 4 * (sizes / 9000) ** exponent) == pytest.approx(exponent, abs=0.02)


def test_the_growth_of_every_stage_can_be_measured(tmp_path):
    took = growth.run_stages(tmp_path, Size("tiny", 2, 32, 64, 60, 20), 1)
    assert took.keys() == growth.IN_SENTENCES.keys() > growth.IN_WIDTH.keys()
    assert all(seconds > 0 and peak > 0 for seconds, peak in took.values())


def test_growth_is_compared_with_the_theory_except_where_nothing_grows():
    taken = [growth.Taken("N", n, "stage", 2 + (n / 1000) ** 1.5, 400.0) for n in (1, 1000, 3000, 9000)]
    seconds, memory = growth.growth(taken, {"stage": ((1, 1), (1, 1))})
    assert (seconds.constant, seconds.exponent) == (pytest.approx(2, abs=0.01), pytest.approx(1.5, abs=0.02))
    assert (seconds.theory, seconds.agrees) == ("1", "no")
    assert (memory.constant, memory.exponent, memory.agrees) == (400.0, "", "")


def test_time_outside_the_stages_is_when_cores_had_no_job(tmp_path):
    for name, seconds, end in (("first", 10, 1010), ("second", 16, 1020)):
        file = tmp_path / "benchmarks" / name / "job.tsv"
        file.parent.mkdir(parents=True)
        file.write_text(f"s\th:m:s\n{seconds}\t0:00:10\n")
        os.utime(file, (end, end))
    found = overhead.overhead(tmp_path, cores=2)
    assert (found.wall_seconds, found.stage_seconds, found.beside_seconds, found.share) == (20, 26, 7, 0.35)
    assert "no benchmark files; name the folder" in error_of(lambda: overhead.overhead(tmp_path / "benchmarks", 2))


def test_imports_of_a_stage_are_its_own_and_those_of_its_parameters():
    found = startup.imports_of(stages.fit_jump)
    assert "import torch" in found and "from onejump.jumps.fitting import fit_jump" in found
    assert "import torch" not in startup.imports_of(stages.select_jump)


def test_ways_to_write_are_measured_by_what_they_run_and_write():
    model, (T, P) = tiny_model("llama"), (12, generate.BEGINNING)
    given = (model, handmade_jump(model), random_ids((1, P), 1), random_ids((3, P)), T)
    rows = {row.way: row for row in generate.compare(*given)}
    greedy, fixed, drafts = (rows[name] for name in ("greedy", "fixed exit", "drafts of the jump"))
    assert (greedy.calls, greedy.blocks, greedy.ratio) == (N_BLOCKS, N_BLOCKS, 1)
    level = int(fixed.choices.removeprefix("exit_levels "))
    assert (fixed.calls, fixed.blocks, fixed.same) == (level, level, 0)
    assert fixed.agreement < 1 and fixed.perplexity > greedy.perplexity
    assert drafts.choices.startswith(f"exit_levels {level}, draft_tokens ") and drafts.blocks >= N_BLOCKS
    for name in ("greedy", "drafts of the jump", "by the whole head", "early exit of Transformers", "prompt lookup"):
        assert (rows[name].same, rows[name].agreement) == (1, 1)
        assert rows[name].perplexity == pytest.approx(greedy.perplexity, rel=1e-5)
    assert (
        rows["early exit of Transformers"].blocks > N_BLOCKS and 0 <= rows["early exit of Transformers"].acceptance < 1
    )


def test_too_few_beginnings_are_refused(tmp_path):
    write_table(tmp_path / "corpus" / "seed-0" / "sentences.parquet", sentence_table(3, 2))
    said = error_of(lambda: generate.beginnings(tmp_path, tiny_tokenizer(), 9))
    assert "test sentences of 16 tokens, expected 9; ask for fewer" in said


# --------------------------------------------------------------------------------------------------------------- page


def test_the_worst_row_counts_for_a_target(tmp_path):
    write_csv(tmp_path, "t", [{"size": "a 1", "x": 4.0}, {"size": "a 2", "x": 8.0}, {"size": "b", "x": 0.5}])
    at_least = page.Target("", ">=", 5, "t", "x", {"size": "a"})
    at_most = page.Target("", "<=", 0.2, "t", "x", {"size": "a"}, inverse=True)
    assert at_least.measured(tmp_path) == 4 and not at_least.reached(4)
    assert at_most.measured(tmp_path) == 0.25 and not at_most.reached(0.25)
    assert at_least.reached(5) and at_most.reached(0.2)


def test_the_page_is_what_the_numbers_say():
    assert page.PAGE.read_text(encoding="utf-8") == page.page(measure.RESULTS)
