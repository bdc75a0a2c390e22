"""Architectures of every kind, compared with themselves, and the page that lists them all."""

import re
from pathlib import Path

import pytest
import tiny_architectures
import torch
from tiny_architectures import ARCHITECTURES, REFUSED, SUPPORTED, TRIED, VERDICTS, WRONG, attempt

from onejump.models.unembedding import extract_unembedding

PAGE = Path(__file__).parents[3] / "docs" / "architectures.md"
FOUND = re.findall(r"^\| `([^`]+)` \| \w+ \| (.+) \| ([^|]*) \|$", PAGE.read_text(), re.MULTILINE)
ROWS = {model_type: said for model_type, said, _ in FOUND}

REFUSED_BY_NAME = [
    "deepseek_v4", "gemma3n_text", "hrm_text", "hy_v4", "inkling2_text", "mllama", "prophetnet", "qwen4_exp_text",
    "xlnet",
]  # fmt: skip


@pytest.mark.parametrize("model_type", TRIED)
def test_an_architecture_is_supported_as_the_page_says(model_type):
    verdict, form = attempt(model_type)
    assert verdict == SUPPORTED, form
    assert ROWS[model_type] == f"{verdict} | {form}"


@pytest.mark.parametrize("model_type", REFUSED_BY_NAME)
def test_an_architecture_that_cannot_be_right_is_refused_as_the_page_says(model_type):
    verdict, reason = attempt(model_type)
    assert verdict == REFUSED, reason
    assert ROWS[model_type] == f"{verdict} | {reason}"


def test_a_wrong_final_norm_would_show(monkeypatch):
    def without_weight(model):
        unembedding, anatomy = extract_unembedding(model)
        unembedding.norm_weight = torch.ones(anatomy.hidden_size)
        return unembedding, anatomy

    monkeypatch.setattr(tiny_architectures, "extract_unembedding", without_weight)
    verdict, difference = attempt("lfm2")
    assert (verdict, difference.split(" differ ")[0]) == (WRONG, "logits")


def test_the_page_lists_every_architecture_and_no_failure():
    verdicts = [row.split(" | ")[0] for row in ROWS.values()]
    assert ROWS.keys() == ARCHITECTURES.keys()
    assert set(verdicts) <= set(VERDICTS[:3])
    assert verdicts.count(SUPPORTED) >= 160
    by_blocks = [blocks for _, said, blocks in FOUND if said.startswith(SUPPORTED)]
    assert by_blocks.count("yes") >= 160 and all(blocks == "yes" or blocks.startswith("no: ") for blocks in by_blocks)
