"""How methods and verdicts look in every figure."""

from dataclasses import dataclass

import seaborn as sns


@dataclass(frozen=True)
class MethodStyle:
    """How one method looks in every figure, and what it is called there."""

    name: str
    colour: str
    marker: str
    line: str = "-"
    width: float = 1.4


# Okabe and Ito's palette, whose colours can be told apart with any common form of colour blindness.
METHOD_STYLES = {
    "constant": MethodStyle("Constant", "#555555", "", line=":", width=1.2),
    "constant_by_position": MethodStyle("Constant by position", "#999999", "", line=":", width=1.0),
    "token_table": MethodStyle("Token table", "#555555", "", line="-.", width=1.2),
    "identity_temperature": MethodStyle("Identity, temperature", "#009E73", "", line="--", width=1.0),
    "middle": MethodStyle("Jump of level K/2", "#E69F00", "P"),
    "identity": MethodStyle("Identity", "#009E73", "^"),
    "n_njtc": MethodStyle("N-NJTC", "#0072B2", "s"),
    "ojfa": MethodStyle("OJFA", "#D55E00", "o", width=1.8),
    "joint": MethodStyle("Joint jump", "#CC79A7", "D"),
    "one_jump": MethodStyle("One jump, fitted jointly", "#000000", "*", width=1.8),
    "joint_shortlist": MethodStyle("One jump, shortlist", "#882255", "X"),
    "arbitrary": MethodStyle("Arbitrary jumps", "#56B4E9", "v"),
    "jtc": MethodStyle("JTC (full rank)", "#777777", "", line="--", width=1.0),
    "tuned_lens": MethodStyle("Tuned lens", "#332288", "<", line="--", width=1.0),
    "lora_lens": MethodStyle("LoRA-Lens", "#6699CC", ">", line=":", width=1.0),
    "jacobian_lens": MethodStyle("Jacobian lens", "#999933", "p", line="--", width=1.0),
    "jacobian_lens_low_rank": MethodStyle("Jacobian lens, low rank", "#AA4400", "h", line=":", width=1.0),
    "jacobian_lens_mean": MethodStyle("Jacobian lens, mean", "#44AA99", "d", line="-.", width=1.0),
    "imported_tuned_lens": MethodStyle("Tuned lens, imported", "#AA4499", "$T$", line="--", width=1.0),
    "imported_jacobian_lens": MethodStyle("Jacobian lens, imported", "#117733", "$J$", line="--", width=1.0),
}

INK = "#222222"


@dataclass(frozen=True)
class VerdictStyle:
    """How a verdict looks; its mark alone is enough to recognise it."""

    mark: str
    colour: str
    ink: str


VERDICT_STYLES = {
    "supported": VerdictStyle("+", "#0072B2", "white"),
    "inconclusive": VerdictStyle("?", "#dddddd", INK),
    "equivalent": VerdictStyle("=", "#bbbbbb", INK),
    "contradicted": VerdictStyle("−", "#D55E00", "white"),
    "inapplicable": VerdictStyle("·", "#f4f4f4", INK),
}

MATPLOTLIB_STYLE = {
    **sns.axes_style("ticks"),
    **sns.plotting_context("paper"),
    "font.sans-serif": ["DejaVu Sans"],  # ships with matplotlib, so the bytes do not depend on installed fonts
    **dict.fromkeys(("font.size", "axes.labelsize"), 9),
    **dict.fromkeys(("xtick.labelsize", "ytick.labelsize", "legend.fontsize"), 8.5),
    **dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "text.color", "xtick.color", "ytick.color"), INK),
    **{"axes.titlesize": 9.5, "axes.titleweight": "bold", "axes.titlelocation": "left"},
    "legend.frameon": False,
    "axes.linewidth": 0.8,
    "lines.markersize": 5,
    "figure.constrained_layout.wspace": 0.06,
    "savefig.facecolor": "white",
    "svg.fonttype": "path",
    "svg.hashsalt": "onejump",
    "pdf.fonttype": 42,  # TrueType, since journals refuse Matplotlib's default
}
