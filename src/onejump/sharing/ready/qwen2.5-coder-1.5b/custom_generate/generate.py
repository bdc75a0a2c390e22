"""Generation with early exits by the jump of this repository, for Transformers' `custom_generate`; see README.md."""

REPOSITORY = None


def generate(model, jump=REPOSITORY, **arguments):
    """As `model.generate`, with `exit_levels`, `confidence` and `draft_tokens`; `jump` is this folder or repository."""
    try:
        from onejump.sharing.generation import generate_by
    except ImportError as error:
        raise ImportError("this repository's generate needs onejump: pip install . in a clone of its source") from error
    return generate_by(jump, model, **arguments)
