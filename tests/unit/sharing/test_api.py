"""The public interface is as docs/api.md says."""

import doctest
import inspect

from studies import ROOT

import onejump

PAGE = ROOT / "docs" / "api.md"


def test_the_examples_give_what_the_page_says(study, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "model").symlink_to(study.dump.source.location)
    study.publish(tmp_path / "jumps" / "tiny")
    study.publish(tmp_path / "jumps" / "each-level", "paper", "all")
    text = PAGE.read_text().replace("tiny-llama", "model")  # as the tests call it
    page = doctest.DocTestParser().get_doctest(text, {}, PAGE.name, str(PAGE), 0)
    result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(page)
    assert result.failed == 0 and result.attempted > 10


def test_all_that_is_public_is_on_the_page():
    text = PAGE.read_text()
    for name in onejump.__all__:
        assert f"`onejump.{name}`" in text
    for name, member in inspect.getmembers(onejump.Jump):
        if not name.startswith("_") and inspect.isroutine(member):
            takes = [p for p in inspect.signature(member).parameters.values() if p.name != "self"]
            names = [f"**{p.name}" if p.kind is p.VAR_KEYWORD else p.name for p in takes]
            written = [
                name if p.default is p.empty else f"{name}={p.default}" for name, p in zip(names, takes, strict=True)
            ]
            assert f".{name}({', '.join(written)})`" in text
