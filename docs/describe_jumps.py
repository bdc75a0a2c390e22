"""Update the table of the jumps that come with onejump, jumps/README.md: `python docs/describe_jumps.py`."""

from pathlib import Path
from statistics import fmean

from onejump.sharing.folder import read_published
from onejump.sharing.hub import READY

PAGE = READY / "README.md"
BEGIN, END = "<!-- jumps: made from their folders by docs/describe_jumps.py -->\n", "<!-- end of jumps -->\n"
HEADING = ("name", "base model", "its file", "levels", "rank", "precision", "of identity", "KL", "of identity", "KB")


def table() -> str:
    """A row for each jump."""
    rows = [HEADING, ("---",) * 3 + ("---:",) * 7]
    rows += [_row(folder) for folder in sorted(READY.iterdir()) if folder.is_dir()]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def page() -> str:
    """The page with an updated table."""
    before, rest = PAGE.read_text().split(BEGIN)
    return before + BEGIN + "\n" + table() + "\n" + END + rest.split(END)[1]


def _row(folder: Path) -> tuple[str, ...]:
    config, *_ = read_published(folder)
    base, metrics = config["base_model"], config["metrics"]
    means = [f"{fmean(metrics[method][name]):.3f}" for name in ("precision", "kl") for method in ("jump", "identity")]
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    names = f"[`{folder.name}`]({folder.name}/README.md)", base["hub_id"], f"`{base['model']}`"
    return *names, f"0..{config['levels'] - 1}", str(config["rank"]), *means, str(round(size / 1000))


if __name__ == "__main__":
    PAGE.write_text(page())
