"""The study's numbers once more, from its files alone: naive, in float64, with NumPy, and without onejump.

From hidden states, head, jumps and positions on disk it computes, as the formulas are written and with predictions of
full width: each method's precision and surprisal at every exit level, those of every jump at every level, D_m and the
choice by it, the errors of every fit, and for exact fits the optimum itself. It prints the largest differences to the
study's own numbers, and fails where one is over its tolerance.

    python tests/workflow/reference.py results/demo smollm2-135m 0 exact --sentences 100

Takes activations in float32 or float16.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors import safe_open
from safetensors.numpy import load_file

TOLERANCE = 1e-4  # of means of precision, surprisal and D_m (absolute), and of squared errors (relative)
RIDGES = (0.0, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0, 10.0)
ROWS = 100  # rows whose logits of full width are held at once
Map = Callable[[np.ndarray], np.ndarray]  # [N, H] -> [N, H]


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    return {name: tensor.astype(np.float64) for name, tensor in load_file(path).items()}


def read_facts(path: Path) -> dict[str, str]:
    with safe_open(path, "np") as file:
        return file.metadata()


class Branch:
    """One model, seed and variant of a study: its files, and the formulas on them."""

    def __init__(self, results: Path, model: str, seed: int, variant: str) -> None:
        self.choices = json.loads((results / "config.json").read_text())["variants"][variant]
        self.branch = results / model / f"seed-{seed}"
        self.folder = self.branch / variant
        rows = self.choices["positions"]
        if self.choices["train_on"] != "corpus":
            rows += f"-{self.choices['train_on']}"
        self.jtc = self.branch / "lenses" / f"jtc.{self.choices['target']}.{rows}.safetensors"
        # Tables of what variants share.
        self.references = [
            self.branch / "references" / f"{rows}.parquet",
            self.jtc.with_suffix(".parquet"),
        ]
        unembedding = results / model / "unembedding.safetensors"
        self.unembedding, self.facts = read_tensors(unembedding), read_facts(unembedding)
        self.levels = range(int(self.facts["n_blocks"]))
        self.jumps = [self.saved_jump(f"level-{k:02d}") for k in self.levels]

    def states(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Sentence ids [N] and hidden states [K + 1, N, H] of the rows that the variant keeps, in order."""
        shards = [load_file(path) for path in sorted((self.branch / "activations" / split).iterdir())]
        ids = np.concatenate([shard["sentence_id"] for shard in shards])
        table = pd.read_parquet(self.branch / "positions.parquet").set_index("sentence_id").loc[ids]
        kept = table["position"].to_numpy() >= (1 if self.choices["positions"] == "not_first" else 0)
        if split == "train" and "origin" in table and self.choices["train_on"] != "both":
            kept &= table["origin"].to_numpy() == self.choices["train_on"]
        names = [f"level.{k:02d}" for k in range(len(self.levels) + 1)]
        hidden = np.stack([np.concatenate([shard[name] for shard in shards]) for name in names])
        return ids[kept], hidden[:, kept].astype(np.float64)

    def norm(self, h: np.ndarray) -> np.ndarray:
        """The final norm."""
        if self.facts["norm_kind"] == "layer":
            h = h - h.mean(1, keepdims=True)
        h = h / np.sqrt((h**2).mean(1, keepdims=True) + float(self.facts["eps"])) * self.unembedding["norm.weight"]
        return h + self.unembedding.get("norm.bias", 0)

    def log_probabilities(self, normed: np.ndarray) -> np.ndarray:
        """The output head and log-softmax, [n, H] -> [n, V]."""
        logits = (normed @ self.unembedding["weight"].T + self.unembedding.get("bias", 0)) * float(self.facts["scale"])
        if (cap := json.loads(self.facts["softcap"])) is not None:
            logits = cap * np.tanh(logits / cap)
        logits -= logits.max(1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(1, keepdims=True))

    def target(self, final: np.ndarray) -> np.ndarray:
        """What jumps predict, from h^K before the final norm."""
        return self.norm(final) if self.choices["target"] == "post_norm" else final

    def normed(self, predicted: np.ndarray) -> np.ndarray:
        """What goes into the output head, from what a jump predicts."""
        return predicted if self.choices["target"] == "post_norm" else self.norm(predicted)

    def saved_jump(self, name: str) -> Map:
        """`BatchNorm(h) A B` (OJFA, Eq. 1) with the numbers of a jump's file."""
        path = self.folder / "jumps" / f"{name}.safetensors"
        t, eps = read_tensors(path), float(read_facts(path)["eps"])
        scale = t["bn.weight"] / np.sqrt(t["bn.running_var"] + eps)
        return lambda h: ((h - t["bn.running_mean"]) * scale + t["bn.bias"]) @ t["A"] @ t["B"]

    def saved_jtc(self) -> list[Map]:
        """The full-rank jump of each level."""
        t = read_tensors(self.jtc)
        return [lambda h, k=k: h @ t[f"level.{k:02d}.weight"] + t[f"level.{k:02d}.bias"] for k in self.levels]


def d_scores(branch: Branch, jumps: list[Map]) -> np.ndarray:
    """D_m of each jump (Eq. 4 and 5) over the training sentences."""
    _, hidden = branch.states("train")
    y = branch.target(hidden[-1])
    levels = range(1, len(hidden)) if branch.choices["score_levels"] == "1..K" else range(len(hidden) - 1)
    found = np.zeros((len(jumps), len(levels)))
    for m, jump in enumerate(jumps):
        for i, k in enumerate(levels):
            predicted = jump(hidden[k])
            cosine = (predicted * y).sum(1) / (np.linalg.norm(predicted, axis=1) * np.linalg.norm(y, axis=1))
            found[m, i] = np.mean(np.sign(cosine) * cosine**2)
    return found.mean(1)


# --------------------------------------------------------------------------------------------------------- evaluation


def compare_evaluation(branch: Branch, ojfa: int, sentences: int | None) -> dict[str, float]:
    """Differences in mean precision and surprisal, over all levels and at the worst level or cell."""
    ids, hidden = branch.states("test")
    ids, hidden = ids[:sentences], hidden[:, :sentences]
    blocks = [slice(first, first + ROWS) for first in range(0, len(ids), ROWS)]
    final = branch.norm(hidden[-1])
    token = np.concatenate([branch.log_probabilities(final[rows]).argmax(1) for rows in blocks])

    def means(normed: np.ndarray) -> np.ndarray:
        """Precision and surprisal of what goes into the output head, [n, H] of the first n sentences."""
        parts = []
        for rows in blocks:
            found, right = branch.log_probabilities(normed[rows]), token[: len(normed)][rows]
            parts.append([found.argmax(1) == right, -found[np.arange(len(right)), right]])
        return np.concatenate(parts, 1).mean(1)

    files = [branch.folder / "evaluation.parquet", *branch.references]
    study = pd.concat([pd.read_parquet(file) for file in files]).astype({"method": str, "correct": float})
    study = study[study["sentence_id"].isin(ids)].set_index(["method", "level"]).sort_index()
    n_transfer = study.loc["arbitrary", 0]["sentence_id"].nunique()
    joint, jtc, levels = branch.saved_jump("joint"), branch.saved_jtc(), branch.levels
    methods = {
        "identity": lambda k: branch.norm(hidden[k]),
        "n_njtc": lambda k: branch.normed(branch.jumps[k](hidden[k])),
        "ojfa": lambda k: branch.normed(branch.jumps[ojfa](hidden[k])),
        "joint": lambda k: branch.normed(joint(hidden[k])),
        "jtc": lambda k: branch.normed(jtc[k](hidden[k])),
    }
    exits = {(method, None): normed for method, normed in methods.items()} | {
        ("arbitrary", m): lambda k, jump=jump: branch.normed(jump(hidden[k, :n_transfer]))
        for m, jump in enumerate(branch.jumps)
    }
    overall, worst = [], []
    for (method, m), normed in exits.items():
        difference = []
        for k in levels:
            rows = study.loc[(method, k)]
            rows = rows if m is None else rows[rows["jump"] == m]
            assert rows["sentence_id"].tolist() == ids[: len(rows)].tolist(), (method, k)
            difference.append(means(normed(k)) - rows[["correct", "surprisal"]].mean().to_numpy())
        overall.append(abs(np.mean(difference, 0)))
        worst.append(abs(np.array(difference)).max(0))
    (precision, surprisal), (_, level_surprisal) = np.max(overall, 0), np.max(worst, 0)
    return {"precision": precision, "surprisal": surprisal, "surprisal at a level": level_surprisal}


# --------------------------------------------------------------------------------------------------------------- fits


def standardised(x: np.ndarray, like: np.ndarray) -> np.ndarray:
    """As BatchNorm does, with mean and population variance of the rows `like`."""
    return (x - like.mean(0)) / np.sqrt(like.var(0) + 1e-5)


def optimum(x: np.ndarray, y: np.ndarray, rank: int, ridge: float) -> Map:
    """The reduced-rank ridge regression of y on a constant and standardised x: project the full one on its axes."""
    xn, mean_y = standardised(x, x), y.mean(0)
    covariance = xn.T @ xn / len(x) + ridge * np.eye(x.shape[1])
    cross = xn.T @ (y - mean_y) / len(x)
    full = np.linalg.pinv(covariance, rcond=1e-12, hermitian=True) @ cross
    _, axes = np.linalg.eigh(cross.T @ full + np.outer(mean_y, mean_y))
    V = axes[:, -rank:]
    return lambda h: (standardised(h, x) @ full + mean_y) @ V @ V.T


def compare_fits(branch: Branch, names: list[str]) -> dict[str, float]:
    """Relative differences in squared errors; for exact fits also of the optimum's predictions, at the same ridge."""
    _, hidden = branch.states("train")
    y = branch.target(hidden[-1])
    cut = len(y) - max(1, len(y) // 10)  # the last tenth chooses the ridge, or the epoch
    found = {"training error": [], "validation error": [], "optimum": [], "exact predictions": []}
    for name in names:
        facts = read_facts(branch.folder / "jumps" / f"{name}.safetensors")
        levels = branch.levels if name == "joint" else [int(facts["level"])]
        jump, rank = branch.saved_jump(name), int(facts["rank"])
        x, x_left = (np.concatenate([hidden[k, rows] for k in levels]) for rows in (slice(cut), slice(cut, None)))
        y_fit, y_left = (np.concatenate([y[rows] for _ in levels]) for rows in (slice(cut), slice(cut, None)))

        def error(predict: Map, x: np.ndarray, y: np.ndarray) -> float:
            return ((predict(x) - y) ** 2).sum(1).mean()

        def apart(value: float, fact: str, facts: dict = facts) -> float:
            return abs(value / float(facts[fact]) - 1)

        found["training error"].append(apart(error(jump, x, y_fit), "train_mse"))
        found["validation error"].append(apart(error(jump, x_left, y_left), "validation_mse"))
        ridges = RIDGES if facts["fit"] == "exact" else (0.0,)
        fits = {ridge: optimum(x, y_fit, rank, ridge) for ridge in ridges}
        found["optimum"].append(apart(error(fits[0.0], x, y_fit), "optimum_mse"))
        if facts["fit"] == "exact":
            best = min(fits, key=lambda ridge: error(fits[ridge], x_left, y_left))
            assert best == float(facts["ridge"]), (name, best, facts["ridge"])
            distance = np.linalg.norm(fits[best](x_left) - jump(x_left)) / np.linalg.norm(jump(x_left))
            found["exact predictions"].append(distance)
    return {name: max(values) for name, values in found.items() if values}


def compare(
    results: Path, model: str, seed: int, variant: str, fits: int | None = None, sentences: int | None = None
) -> dict[str, float]:
    """Largest differences between the study's numbers and those computed here.

    Args:
        results: the study's folder.
        model: name of the model.
        seed: the branch's seed.
        variant: the branch's variant.
        fits: number of levels, evenly spaced, whose fits are repeated besides the joint one; all by default.
        sentences: number of test sentences, the first ones; all by default.

    Raises:
        AssertionError: another jump is chosen, another ridge, or other sentences are evaluated.
    """
    branch = Branch(Path(results), model, seed, variant)
    selection = json.loads((branch.folder / "selection.json").read_text())
    scores = d_scores(branch, branch.jumps)
    assert scores.argmax() == selection["ojfa"], (scores, selection["ojfa"])
    found = {"D_m": abs(scores - selection["scores"]).max()}
    found |= compare_evaluation(branch, selection["ojfa"], sentences)
    step = 1 if fits is None else len(branch.levels) // fits
    return found | compare_fits(branch, [*(f"level-{k:02d}" for k in branch.levels[::step]), "joint"])


def main() -> None:
    parser = argparse.ArgumentParser(description="Compute a study's numbers once more, naively, and compare.")
    for name in ("results", "model", "seed", "variant"):
        parser.add_argument(name)
    parser.add_argument("--fits", type=int, help="levels whose fits are done again; all by default")
    parser.add_argument("--sentences", type=int, help="test sentences; all by default")
    given = vars(parser.parse_args())
    found = compare(**given)
    for name, difference in found.items():
        print(f"{name:22} {difference:.1e} {'' if difference <= TOLERANCE else 'TOO LARGE'}")
    if max(found.values()) > TOLERANCE:
        raise SystemExit(f"differences over {TOLERANCE}")


if __name__ == "__main__":
    main()
