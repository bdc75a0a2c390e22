"""Digests of a stage's code: what changes them, and what does not."""

import shutil

import pytest

from onejump.files import code


@pytest.fixture
def digest(tmp_path, monkeypatch):
    """The digest of a stage after an edit of the library, and `None` as the edit for none."""

    def after(stage, module=None, old="", new="", **options):
        folder = tmp_path / "onejump"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(code.PACKAGE, folder, ignore=shutil.ignore_patterns("__pycache__"))
        if module is not None:
            text = (folder / module).read_text()
            assert old in text
            (folder / module).write_text(text.replace(old, new, 1))
        with monkeypatch.context() as patch:
            patch.setattr(code, "PACKAGE", folder)
            for cached in (code._definitions, code._module):
                cached.cache_clear()
            return code.stage_digest(stage, **options)

    yield after
    for cached in (code._definitions, code._module):
        cached.cache_clear()


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        ("activations/dump.py", "import torch\n", "import torch  # tensors\n"),
        ("activations/dump.py", '"""Forward passes', '"""The forward passes'),
        ("stages.py", '"""Run the model', '"""Let the model run'),
        ("stages.py", "Number of a shard;", "Which shard;"),
        ("stages.py", '"""Fit the full-rank', '"""Fit and write the full-rank'),
        ("jumps/exact.py", "CONVERGED = ", "CONVERGED = 2 * "),
    ],
)
def test_what_a_stage_does_not_mean_leaves_its_digest(digest, module, old, new):
    assert digest("dump_activations", module, old, new) == digest("dump_activations")


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        ("activations/dump.py", '"cpu": 512', '"cpu": 256'),
        ("files/tensors.py", "sort_keys=True", "sort_keys=False"),  # imported by what it imports
        ("stages.py", "token_budget or ", "token_budget and "),
        ("parameters.py", 'device: Annotated[str, Option("auto', 'device: Annotated[int, Option("auto'),
        ("cli.py", "multiple=several", "multiple=not several"),
    ],
)
def test_what_a_stage_means_changes_its_digest(digest, module, old, new):
    assert digest("dump_activations", module, old, new) != digest("dump_activations")


def test_a_parameter_that_is_named_as_another_stage_does_not_stand_for_it(digest):
    """`evaluate_lens` has a parameter `lens`, and there is a stage of that name, which renders a page."""
    edit = "report/lens.py", "LARGEST = {", "LARGEST = {'more': 1.0, "
    assert digest("evaluate_lens", *edit) == digest("evaluate_lens")
    assert digest("lens", *edit) != digest("lens")


def test_a_template_counts_where_it_is_read(digest):
    edit = ("report/templates/report.html.j2", "</html>", "</html>\n")
    assert digest("render_report", *edit) == digest("render_report")
    data = "report/templates/*"
    assert digest("render_report", *edit, data=data) != digest("render_report", data=data)


def test_the_digest_is_the_same_under_every_version_of_python(tmp_path, monkeypatch):
    """The one of Python 3.11, 3.12 and 3.13 for code with f-strings, decorators, classes and patterns."""
    for name in ("exit_stages", "study_stages", "parameters"):
        (tmp_path / f"{name}.py").write_text("")
    (tmp_path / "cli.py").write_text("def command_of(stage):\n    return stage\n")
    (tmp_path / "stages.py").write_text(
        "import functools\n\n\n@functools.cache\ndef stage(x: int = 1, *rest, key: str | None = None) -> str:\n"
        '    """Doc."""\n'
        '    match x:\n        case 1 | 2:\n            y = f"a{x!r:>{3}}b" "c" f"{key}" ""\n'
        "        case _:\n            y = [i for i in rest if i]\n    return (lambda z: z)(y)\n"
    )
    monkeypatch.setattr(code, "PACKAGE", tmp_path)
    code._definitions.cache_clear()
    try:
        assert code.stage_digest("stage") == "0115594795a90cae"
    finally:
        code._definitions.cache_clear()
