"""Full-rank lenses of all levels: JTC from moments, compared with the Jacobian lens from derivatives of the model.

- ours: `fit_jtc`, as the stage runs it, from the shards of the embedded study;
- derivatives: `mean_jacobians` at as many training sentences as the study's lens has, of which a turn takes one;
- limit: the float64 products x'x and x'y of all levels, from memory.

The two are different lenses, so nothing is compared but time. The forward passes that have made the shards are in
neither. `make demo` has to run first.

    python benchmarks/lenses.py
"""

from argparse import Namespace

import measure
import torch

from onejump.files.tables import read_table
from onejump.jumps.fitting import fit_jtc
from onejump.jumps.jacobian import draw_prompts, mean_jacobians
from onejump.jumps.settings import JACOBIAN_PROMPTS
from onejump.models.anatomy import find_anatomy
from onejump.models.sources import ModelSource
from onejump.parameters import Dump

DERIVATIVES = "derivatives"


def tables(given: Namespace) -> dict[str, list[measure.Row]]:
    """The table, for a study of one model and the folder of that model."""
    (folder,) = (path.parent for path in given.results.glob("*/seed-0/positions.parquet"))
    positions, shards = folder / "positions.parquet", sorted(folder.glob("activations/train/*.safetensors"))
    unembedding, activations = Dump(folder.parent / "unembedding.safetensors", positions, shards).open("train")
    anatomy = find_anatomy(ModelSource(given.model).load_model())
    prompts = draw_prompts(read_table(positions), JACOBIAN_PROMPTS, "both", seed=0)
    K, N, H = activations.n_blocks, len(activations), activations.hidden_size
    x = torch.randn(N, H, dtype=torch.float64)
    ways = {
        measure.OURS: lambda turn: fit_jtc(activations, unembedding, "pre_norm", torch.device("cpu")),
        DERIVATIVES: lambda turn: mean_jacobians(anatomy, [prompts[turn]]),
        measure.LIMIT: lambda turn: [x.T @ x for _ in range(2 * K)],
    }
    turns = measure.take_turns(ways, given.rounds, parts={DERIVATIVES: len(prompts)})
    size = f"{K} levels, H={H}, {N} sentences, derivatives at {len(prompts)}"
    return {"lenses": measure.rows_of(turns, size, "float64 products of the moments")}


if __name__ == "__main__":
    results, model = measure.embedded_study()
    measure.run(
        __doc__,
        tables,
        results=(results, "folder of a study of one model"),
        model=(str(model), "folder of the model"),
        rounds=(3, "rounds"),
    )
