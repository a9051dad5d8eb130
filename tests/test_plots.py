"""The pictures show the numbers they are given, and nothing hides anything else."""

import copy
import importlib
import itertools
import sys

import compared
import numpy as np
import pytest
import torchassay

pytest.importorskip("matplotlib")

from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.image import imread
from torchassay import checks, plots

OKABE_ITO = {"#000000", "#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7"}
CURVES = ("error_by_backprops", "error_by_seconds", "noise_share", "effective_sample_size")


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    return compared.build(tmp_path_factory.mktemp("few") / "out")


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    return compared.build(tmp_path_factory.mktemp("many") / "out", compared.NAMES)


def axes():
    return Figure(figsize=(6, 4)).add_subplot()


def lines(ax):
    """The lines that the legend names, by name."""
    return {line.get_label(): line for line in ax.lines if not line.get_label().startswith("_")}


def pictures(results):
    """Every picture of a comparison, each of a figure of its own."""
    names = list(dict.fromkeys(run["method"] for run in results["runs"]))
    found = {name: getattr(plots, name)(results) for name in CURVES}
    mombs, ois = compared.arrays("mombs"), compared.arrays("ois")
    found["categories"] = plots.categories(mombs["loss"], mombs["uncertainty"], corrupted=mombs["corrupted"])
    found["picks"] = plots.picks({compared.title(name): compared.arrays(name)["picks"] for name in names})
    marks = {"given": ois["given"], "corrupted": ois["corrupted"]}
    found["most_and_least_picked"] = plots.most_and_least_picked(compared.images(), ois["picks"], **marks)
    return found


def texts(ax):
    """All text that is drawn."""
    found = [*ax.texts, ax.xaxis.label, ax.yaxis.label]
    if ax.axison:
        for axis in (ax.xaxis, ax.yaxis):
            low, high = sorted(axis.get_view_interval())
            found += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    if ax.get_legend():
        found += ax.get_legend().get_texts()
    return [text for text in found if text.get_text()]


@pytest.mark.parametrize("which", ["few", "many"])
def test_no_text_touches_another_and_none_is_cut_off(which, request):
    for name, ax in pictures(request.getfixturevalue(which)).items():
        ax.figure.draw_without_rendering()
        boxes = [(text.get_text(), text.get_window_extent()) for text in texts(ax)]
        assert len(boxes) >= 2, name
        for (first, one), (second, other) in itertools.combinations(boxes, 2):
            assert not one.overlaps(other), f"{name}: {first!r} and {second!r}"
        for text, box in boxes:
            page = ax.figure.bbox
            inside = page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1
            assert inside, f"{name}: {text!r}"
        if ax.get_legend():
            legend = ax.get_legend().get_window_extent()
            assert not legend.overlaps(ax.get_window_extent()), name
            assert not legend.overlaps(ax.xaxis.label.get_window_extent()), name
            assert ax.get_window_extent().height > 0.4 * ax.figure.bbox.height, name


def test_21_methods_look_different_and_each_the_same_everywhere(many):
    def look(line):
        return to_hex(line.get_color()), str(line._dash_pattern), line.get_marker()

    first = {name: look(line) for name, line in lines(plots.error_by_backprops(many)).items()}
    del first["1.2 x best of SGD"]
    assert len(first) == len(set(first.values())) == len({each[:2] for each in first.values()}) == 21
    assert {each[0] for each in first.values()} < OKABE_ITO
    assert first["SGD"][0] == "#000000"
    second = lines(plots.effective_sample_size(many))
    assert look(second["OIS"]) == first["OIS"]


@pytest.mark.parametrize("x", ["backward", "seconds"])
def test_errors_are_means_over_seeds(few, x):
    ax = plots.error_by_backprops(few) if x == "backward" else plots.error_by_seconds(few)
    shown = lines(ax)
    assert list(shown) == ["SGD", "SB, BETA=1", "SBE", "1.2 x best of SGD"]
    for name in ("sgd", "sb:beta=1", "sbe"):
        runs = [run["epochs"] for run in few["runs"] if run["method"] == name]
        expected = [sum(epoch["test_error"] for epoch in epochs) / 3 for epochs in zip(*runs, strict=True)]
        line = shown[compared.title(name)]
        np.testing.assert_allclose(line.get_ydata(), expected)
        np.testing.assert_allclose(line.get_xdata(), [epoch[x] for epoch in runs[0]])
    np.testing.assert_allclose(shown["1.2 x best of SGD"].get_ydata(), 1.2 * 0.02 * 1.1)  # seeds: 1, 1.1, 1.2 x 0.02
    assert len(ax.lines) == 3 + 9 + 1  # single seeds, too
    assert ax.get_yscale() == "log"


def test_single_seeds_of_many_methods_are_left_out(many):
    assert len(plots.error_by_backprops(many).lines) == 21 + 1


def test_an_error_of_zero_is_drawn(tmp_path):
    results = compared.build(tmp_path / "out", seeds=1)
    results["runs"][0]["epochs"][-1]["test_error"] = 0.0
    ax = plots.error_by_seconds(results)
    assert ax.get_yscale() == "linear" and ax.lines[0].get_ydata()[-1] == 0


@pytest.mark.parametrize("best", [0.89, 0.6, 0.3, 0.1, 0.004, 0.0003])
def test_errors_of_any_range_have_ticks(tmp_path, best):
    results = compared.build(tmp_path / "out", ("subset",), seeds=1)
    for run in results["runs"]:
        for epoch in run["epochs"]:
            epoch["test_error"] = 0.9 if epoch["epoch"] == 0 else best
    ax = plots.error_by_backprops(results)
    ax.figure.draw_without_rendering()
    low, high = ax.get_ylim()
    shown = {label.get_text() for label in ax.get_yticklabels() if low <= label.get_position()[1] <= high}
    assert 3 <= len(shown) <= 12


def test_unfinished_runs_are_not_drawn_and_the_shortest_ends_the_mean(few):
    runs = [run for run in few["runs"] if run["method"] == "sgd"]
    results = few | {"runs": [runs[0] | {"epochs": runs[0]["epochs"][:5]}, runs[1], runs[2] | {"done": False}]}
    line = lines(plots.error_by_backprops(results))["SGD"]
    assert len(line.get_ydata()) == 5
    assert line.get_ydata()[0] == (runs[0]["epochs"][0]["test_error"] + runs[1]["epochs"][0]["test_error"]) / 2


def test_noise_share_has_the_base_rate_as_a_line(few):
    shown = lines(plots.noise_share(few))
    assert set(shown["base rate (25 %)"].get_ydata()) == {0.25}
    np.testing.assert_allclose(shown["SB, BETA=1"].get_ydata(), [0.25] + 7 * [0.5])
    np.testing.assert_allclose(shown["SB, BETA=1"].get_xdata(), 200 * np.arange(1, 9))


def test_effective_sample_size_shows_the_methods_with_weights(many):
    shown = lines(plots.effective_sample_size(many))
    assert list(shown) == ["VR, POOL=3", "LOW", "OIS", "OIS, KEEP=0.9", "INFOBATCH", "equal weights (16)"]
    np.testing.assert_allclose(shown["LOW"].get_ydata(), [1 - 0.02 * (12 + epoch) for epoch in range(8)])


def test_categories_of_mombs():
    loss = [0.1, 0.2, 0.3, 3.0, 4.0, 5.0, float("nan"), 9.0]
    uncertainty = [0.1, 0.2, 0.9, 0.8, 0.05, 0.7, 0.3, float("nan")]  # medians of six: 1.65 and 0.45
    corrupted = [False, True, False, False, True, False, True, True]
    ax = plots.categories(loss, uncertainty, corrupted=corrupted)
    found = {points.get_label(): points.get_offsets().tolist() for points in ax.collections}
    assert found == {
        "well represented (2, 50 % corrupted)": [[0.1, 0.1], [0.2, 0.2]],
        "overfitted (1, 0 % corrupted)": [[0.9, 0.3]],
        "poorly labeled (1, 100 % corrupted)": [[0.05, 4.0]],
        "under represented (2, 0 % corrupted)": [[0.8, 3.0], [0.7, 5.0]],
    }
    assert sorted(line.get_ydata()[0] for line in ax.lines) == [0, 1.65]
    assert ax.get_yscale() == "log"
    assert "well represented (2)" in [points.get_label() for points in plots.categories(loss, uncertainty).collections]


def test_histogram_of_picks():
    ax = plots.picks({"one": [0, 0, 1, 3], "other": [2, 2, 2, 2]})
    one, other = ax.patches
    np.testing.assert_allclose(one.get_data().values, [0.85, 0.425, 0, 0.425])  # the tallest bar is 0.85 high
    np.testing.assert_allclose(other.get_data().values, [-1, -1, -0.15, -1])  # a line below
    np.testing.assert_allclose(one.get_data().edges, [-0.5, 0.5, 1.5, 2.5, 3.5])
    assert [label.get_text() for label in ax.get_yticklabels()] == ["one", "other"]


def test_a_wide_histogram_loses_nobody():
    counts = np.arange(1000)
    values = plots.picks({"all": counts}).patches[0].get_data()
    assert len(values.values) <= 60 and values.edges[0] < 0 and values.edges[-1] > 999
    np.testing.assert_allclose(values.values[:58], 0.85)  # as many in each bin


def test_the_images_that_were_picked_most_and_least():
    counts = np.random.default_rng(1).permutation(400)
    images, given, corrupted = compared.images(), np.arange(400) + 1000, counts >= 390
    ax = plots.most_and_least_picked(images, counts, given=given, corrupted=corrupted)
    by_count = np.argsort(counts)
    expected = [*by_count[:-17:-1], *by_count[:16]]  # the very most, then the very least
    assert len(ax.images) == 32
    for shown, i in zip(ax.images, expected, strict=True):
        np.testing.assert_array_equal(shown.get_array(), images[i])
    written = [text.get_text() for text in ax.texts]
    assert [text for text in written if text.isdigit()] == [str(1000 + i) for i in expected]
    assert "picked most often: 384 to 399 times" in written and "picked least often: 0 to 15 times" in written
    frames = {patch.get_xy() for patch in ax.patches}
    assert frames == {(x, ax.images[0].get_extent()[3]) for x in range(8)} | {
        (x, ax.images[8].get_extent()[3]) for x in range(2)
    }


def test_few_images_in_colour_without_labels():
    images = np.random.default_rng(2).integers(0, 256, (5, 4, 6, 3), np.uint8)
    ax = plots.most_and_least_picked(images, [1, 5, 0, 4, 2])
    assert [[int(np.abs(images - each.get_array()).sum((1, 2, 3)).argmin())] for each in ax.images] == [
        *([1], [3]),
        *([2], [0]),
    ]
    assert len(ax.texts) == 2 and not ax.patches


def test_among_equals_chance_decides_the_same_way():
    counts, images = np.repeat([3, 7], 200), compared.images()
    first, again = (plots.most_and_least_picked(images, counts).images for _ in range(2))
    assert [a.get_array().tolist() for a in first] == [b.get_array().tolist() for b in again]
    chosen = [int((images == each.get_array()).all((1, 2)).argmax()) for each in first]
    assert all(i >= 200 for i in chosen[:16]) and all(i < 200 for i in chosen[16:])
    assert chosen[:16] != list(range(200, 216))


def test_given_axes_are_drawn_on(few):
    counts = compared.arrays("sbe")["picks"]
    calls = [lambda ax, name=name: getattr(plots, name)(few, ax) for name in CURVES]
    calls.append(lambda ax: plots.categories([1.0, 2.0], [0.1, 0.2], ax))
    calls.append(lambda ax: plots.picks({"a": counts}, ax))
    calls.append(lambda ax: plots.most_and_least_picked(compared.images(), counts, ax))
    for call in calls:
        ax = axes()
        assert call(ax) is ax
        assert ax.has_data()


def test_a_picture_on_a_dark_page(few, tmp_path):
    from matplotlib import rc_context

    with rc_context({"text.color": "white", "figure.facecolor": "black", "axes.facecolor": "black"}):
        ax = plots.error_by_backprops(few)
        ax.figure.savefig(tmp_path / "dark.png")
    assert lines(ax)["SGD"].get_color() == "white"
    assert imread(tmp_path / "dark.png")[..., :3].mean() < 0.2


def test_names_are_text_and_not_formulas(tmp_path):
    results = compared.build(tmp_path / "out", compared.NAMES[:2], seeds=1)
    for run in results["runs"]:
        run["title"] = "$a$ and $\\nonsense{$"
    for name in ("error_by_seconds", "noise_share"):
        ax = getattr(plots, name)(results)
        ax.figure.draw_without_rendering()
        assert "\\$a\\$ and \\$\\nonsense{\\$" in lines(ax)
    plots.picks({"$\\nonsense{$": [1, 2]}).figure.draw_without_rendering()


def test_inputs_stay_as_they_are(few):
    before = copy.deepcopy(few)
    images, arrays = compared.images(), compared.arrays("mombs")
    for value in (images, *arrays.values()):
        value.flags.writeable = False
    for name in CURVES:
        getattr(plots, name)(few)
    plots.categories(arrays["loss"], arrays["uncertainty"], corrupted=arrays["corrupted"])
    plots.picks({"a": arrays["picks"]})
    plots.most_and_least_picked(images, arrays["picks"], given=arrays["given"], corrupted=arrays["corrupted"])
    assert few == before


def error(call):
    with pytest.raises((checks.InputValueError, checks.InputTypeError)) as caught:
        call()
    return f"{caught.type.__name__[5:]}: {caught.value}"


def test_messages(tmp_path):
    results = compared.build(tmp_path / "out", seeds=1, corrupt=False)
    images = compared.images()
    shape = "images must have shape (N, H, W) or (N, H, W, 3) with N at least 2"
    expected = "results must be a dict with 'about' and 'runs', as compare returns"
    assert error(lambda: plots.noise_share(results)) == (
        "ValueError: noise_share: results must be of corrupted data, got none corrupted"
    )
    for name in CURVES:
        call = getattr(plots, name)
        assert error(lambda: call([])) == f"TypeError: {name}: {expected}, got list"  # noqa: B023
        assert error(lambda: call({"runs": []})) == f"TypeError: {name}: {expected}, got one with 'runs'"  # noqa: B023
        nothing = {"about": results["about"], "runs": []}
        assert error(lambda: call(nothing)) == (  # noqa: B023
            f"ValueError: {name}: results must have a finished run, got none"
        )
    wrong = {
        lambda: plots.error_by_seconds(results, 3): "error_by_seconds: ax must be matplotlib Axes or None, got int",
        lambda: plots.categories([1], [1], "x"): "categories: ax must be matplotlib Axes or None, got str",
    }
    for call, text in wrong.items():
        assert error(call) == f"TypeError: {text}"
    wrong = {
        lambda: plots.categories([1, 2], [1]): "categories: uncertainty must have the shape of loss (2,), got (1,)",
        lambda: plots.categories([1], [1], corrupted=[True, True]): (
            "categories: corrupted must have the shape of loss (1,), got (2,)"
        ),
        lambda: plots.categories([1, np.nan], [np.nan, 1]): (
            "categories: loss and uncertainty must have a sample with both, got none"
        ),
        lambda: plots.picks({}): "picks: counts must hold a method with at least one sample, got none",
        lambda: plots.picks({"a": []}): "picks: counts must hold a method with at least one sample, got none",
        lambda: plots.most_and_least_picked(images[0], [1] * 8): f"most_and_least_picked: {shape}, got (8, 8)",
        lambda: plots.most_and_least_picked(images[:1], [1]): f"most_and_least_picked: {shape}, got (1, 8, 8)",
        lambda: plots.most_and_least_picked(images, [1, 2]): (
            "most_and_least_picked: counts must have shape (400,), got (2,)"
        ),
        lambda: plots.most_and_least_picked(images, [1] * 400, given=[1]): (
            "most_and_least_picked: given must have shape (400,), got (1,)"
        ),
    }
    for call, text in wrong.items():
        assert error(call) == f"ValueError: {text}"


def test_without_matplotlib_one_line_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "torchassay.plots")
    monkeypatch.delattr(torchassay, "plots")
    with pytest.raises(ImportError) as caught:
        importlib.import_module("torchassay.plots")
    assert str(caught.value) == 'torchassay.plots needs matplotlib: pip install "torchassay[plot]"'
