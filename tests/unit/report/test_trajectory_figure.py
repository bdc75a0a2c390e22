"""The figure of a trajectory has what its table says, in letters that a paper's reader can make out."""

from io import BytesIO
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pytest
from lens_tables import NAMES, TOKENS, K, lens_table
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, QuadMesh
from refusals import error_of

import onejump
from onejump.report.lens import LARGEST, MEASURES, visible

PAGE_WIDTH = 7.2  # inches


def panels(figure) -> list:
    """Axes of the methods, without that of the colours."""
    return figure.axes[:-1]


def cells(axes) -> dict[tuple[int, int], str]:
    """(column, row) -> text."""
    texts = [text for text in axes.texts if text.get_position()[0] > 0]
    return {tuple(int(value) for value in text.get_position()): text.get_text() for text in texts}


def is_shown(text: str, token: str) -> bool:
    whole = visible(token)
    return text == whole or (len(text) > 6 and text.endswith("…") and whole.startswith(text[:-1]))


@pytest.fixture(scope="module")
def figure():
    return onejump.plot_trajectory(lens_table(), names=NAMES)


def test_every_cell_has_the_tables_token(figure):
    table = lens_table().set_index(["position", "level", "method"])
    assert [axes.texts[-1].get_text() for axes in panels(figure)] == list(NAMES.values())
    for axes, method in zip(panels(figure), NAMES, strict=True):
        found = cells(axes)
        for x, token in enumerate(TOKENS):
            assert is_shown(found[x, K + 1], token)
            for level in range(K + 1):
                row = table.loc[(x, level, method if level < K else "model")]
                assert is_shown(found[x, level], row["predicted"])
        assert [label.get_text() for label in axes.get_yticklabels()] == [str(level) for level in range(K + 1)]


@pytest.mark.parametrize("measure", MEASURES)
def test_cells_are_shaded_by_the_measure(measure):
    table = lens_table().set_index(["position", "level", "method"])
    figure = onejump.plot_trajectory(table.reset_index(), measure)
    for axes, method in zip(panels(figure), NAMES, strict=True):
        (mesh,) = (one for one in axes.collections if isinstance(one, QuadMesh))
        found = mesh.get_array().reshape(K + 1, len(TOKENS))
        expected = [
            [table.loc[(x, level, method if level < K else "model"), measure] for x in range(len(TOKENS))]
            for level in range(K + 1)
        ]
        np.testing.assert_array_equal(found, expected)
        assert mesh.get_clim() == (0, LARGEST[measure])
    assert figure.axes[-1].get_xlabel().startswith(MEASURES[measure])


def test_what_agrees_with_the_final_prediction_is_underlined(figure):
    table = lens_table()
    final = table[table["method"] == "model"].set_index("position")["predicted_id"]
    for axes, method in zip(panels(figure), NAMES, strict=True):
        (lines,) = (one for one in axes.collections if isinstance(one, LineCollection))
        found = sorted((int(line[:, 0].mean()), int(line[0, 1])) for line in lines.get_segments())
        part = table[table["method"].isin([method, "model"])]
        agree = part[part["predicted_id"] == part["position"].map(final)]
        assert found == sorted(zip(agree["position"], agree["level"], strict=True))


@pytest.mark.filterwarnings("ignore:Glyph")
def test_every_token_has_room_in_its_cell(figure):
    FigureCanvasAgg(figure).draw()
    for axes in panels(figure):
        room = axes.transData.transform((1, 0))[0] - axes.transData.transform((0, 0))[0]
        widths = [text.get_window_extent().width for text in axes.texts if text.get_fontfamily() == ["monospace"]]
        assert 0.6 * room < max(widths) < room


def test_sixteen_tokens_fit_on_a_page():
    figure = onejump.plot_trajectory(lens_table().query("position < 16"), names={"jump": "One", "identity": "Two"})
    assert figure.get_figwidth() <= PAGE_WIDTH and figure.get_figheight() <= 8
    file = BytesIO()
    figure.savefig(file, format="png")
    width, _ = (int.from_bytes(file.getvalue()[start : start + 4]) for start in (16, 20))
    assert width == pytest.approx(300 * figure.get_figwidth(), abs=1)


@pytest.mark.parametrize("settings", [{}, {"svg.fonttype": "path", "font.size": 30, "text.usetex": True}])
def test_text_in_svg_is_text_whatever_matplotlibrc_says(settings, recwarn):
    """With tokens that are no XML, and those that Matplotlib has no letters for or takes for formulas."""
    with mpl.rc_context(settings):
        file = BytesIO()
        onejump.plot_trajectory(lens_table(), names=NAMES).savefig(file, format="svg")
    root = ElementTree.fromstring(file.getvalue())
    found = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    for token in TOKENS:
        assert sum(is_shown(text, token) for text in found) > len(NAMES)
    assert {*NAMES.values(), "中", "🙂", "$x_1$", "U+0000", "&amp;", "</scrip…"} <= set(found)
    assert list(root.iter("{http://www.w3.org/2000/svg}image")) == []
    assert [str(warning.message) for warning in recwarn] == []


def test_some_rows_are_a_smaller_figure():
    table = lens_table().query("position in (3, 7) and (level % 10 == 0 or method == 'model')")
    (axes,) = panels(onejump.plot_trajectory(table, names={"beside": "Mine"}))
    found = cells(axes)
    assert {x for x, _ in found} == {0, 1} and found[0, 4] == visible(TOKENS[3])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0", "10", "20", "30"]


@pytest.mark.parametrize(
    ("rows", "options", "said"),
    [
        ("", {"measure": "surprise"}, "no measure is called 'surprise', only probability, kl, entropy"),
        ("method == 'model'", {}, "the table has no row of jump, beside, identity; give some of jump.trajectory"),
        ("method != 'beside'", {"names": NAMES}, "the table has no row of beside; give some of jump.trajectory"),
    ],
)
def test_what_cannot_be_drawn_is_refused(rows, options, said):
    table = lens_table()
    assert error_of(lambda: onejump.plot_trajectory(table.query(rows) if rows else table, **options)) == said


def test_another_table_is_refused():
    said = error_of(lambda: onejump.plot_trajectory(lens_table().drop(columns=["token", "kl"])))
    assert said == "the table has no column token, kl; give one of jump.trajectory"
