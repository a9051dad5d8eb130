"""What a report says is what the runs' numbers come to, whatever of them there is; and its page opens in a browser."""

import base64
import copy
import importlib
import io
import json
import math
import re
import sys
from html.parser import HTMLParser

import browser
import compared
import numpy as np
import pytest
import torchassay
from torchassay import checks
from torchassay.compare import report, summary

pytest.importorskip("matplotlib")

from matplotlib.figure import Figure
from matplotlib.image import imread

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
OPEN = {"meta", "link", "img", "source", "br", "hr"}  # elements without an end


class Page(HTMLParser):
    """A page read strictly: every element is closed where it should be, and nothing comes from elsewhere."""

    def __init__(self, path):
        super().__init__()
        self.open, self.seen, self.images, self.ids, self.text, self.tables = [], [], [], [], "", []
        self.feed(path.read_text("utf-8"))
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        if tag not in OPEN:
            self.open.append(tag)
        assert len(dict(attrs)) == len(attrs), f"an attribute twice: {attrs}"
        for name, value in attrs:
            assert not name.startswith("on"), name
            if name in ("src", "srcset", "href", "data", "action", "poster"):
                assert value.startswith("data:"), value[:80]
            if name in ("src", "srcset"):
                self.images.append(base64.b64decode(value.removeprefix("data:image/png;base64,"), validate=True))
            if name == "id":
                assert value not in self.ids, value
                self.ids.append(value)
            if name == "alt":
                assert value
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> within {self.open}"
        self.open.pop()

    def handle_data(self, data):
        if "style" in self.open:
            assert "url(" not in data and "@import" not in data
            return
        self.text += data
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data


@pytest.fixture
def quick(monkeypatch):
    """Pictures are drawn, but a pixel is saved; images of one method."""
    monkeypatch.setattr(report, "PICTURED", 1)
    monkeypatch.setattr(Figure, "savefig", lambda self, file, **options: file.write(PIXEL))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The report of three methods and three seeds, in full."""
    out = tmp_path_factory.mktemp("full") / "out"
    compared.build(out)
    return out, *report.write(out)


def read(out):
    """The report of a folder: its Markdown, and its page."""
    md, html = report.write(out)
    return md.read_text("utf-8"), Page(html)


def changed(out, results, change):
    """The same comparison with other results."""
    results = copy.deepcopy(results)
    change(results)
    compared.save(out, results)


def test_table(written):
    """SGD reaches 1.2 times its best in its 6th epoch: 2400 samples, 12 s. SB in its 4th, 4th and 6th: 800, 800, 1200
    samples and 4, 4, 6 s, so it is 3, 3 and 2 times as fast. SBE in its 5th, 6th and 5th: 1000, 1200, 1000 samples, 20,
    24, 20 s. The t of 2 degrees of freedom is 4.3027, and the interval's half t s / sqrt(3); for 3, 3, 2 s is 0.57735,
    for 2.4, 2, 2.4 0.23094, for errors of 2, 2.2, 2.4 % 0.2. SB's picks: an epoch of 0.25, seven of 0.5."""
    _, md, html = written
    table = Page(html).tables[0]
    assert table == [
        ["method", "speed-up, samples", "speed-up, seconds", "best error, %", "corrupted picks, %"],
        ["SGD", "1x", "1x", "2.20 ± 0.50", "25.00 ± 0.00"],
        ["SB, BETA=1", "2.67x ± 1.43", "2.67x ± 1.43", "2.42 ± 0.55", "46.88 ± 0.00"],
        ["SBE", "2.27x ± 0.57", "0.57x ± 0.14", "1.98 ± 0.45", "29.38 ± 0.00"],
    ]
    text = md.read_text("utf-8")
    for row in table:
        assert f"| {' | '.join(row)} |" in text
    assert "Best error: SBE (1.98 ± 0.45 %) at the lowest, SB, BETA=1 (2.42 ± 0.55 %) at the highest." in text
    assert "most with SB, BETA=1 (46.88 ± 0.00 %), fewest with SGD (25.00 ± 0.00 %)." in text
    assert "Largest speed-up in seconds to 1.2 x the best error of SGD: SB, BETA=1, 2.67x ± 1.43." in text


def test_what_a_run_spent(written):
    assert Page(written[2]).tables[1] == [
        ["method", "epochs", "samples forward", "samples backward", "seconds", "last error, %"],
        ["SGD", "8", "4,000", "3,200", "16.0", "2.20"],
        ["SB, BETA=1", "8", "4,000", "1,600", "8.0", "2.42"],
        ["SBE", "8", "4,000", "1,600", "32.0", "1.98"],
    ]


def test_rules(written):
    text = Page(written[2]).text
    assert (
        "Budget, backprops: every run ends once it has back-propagated as many samples as 8 epochs hold, 3,200." in text
    )
    assert "the 95 % interval for the mean over the seeds (0, 1, 2): Student's t" in text
    assert "Corruption, labels:0.25: 100 of 400 samples, of which 50 really changed" in text
    assert "torchassay compare --methods sgd,sb:beta=1,sbe" in text


def test_the_page_needs_no_other_file(written):
    out, md, html = written
    page = Page(html)
    assert html.read_text("utf-8").startswith("<!DOCTYPE html>\n")
    assert "script" not in page.seen and page.seen.count("img") == 7
    assert len(page.images) == len(set(page.images)) == 14  # light and dark
    for place, png in enumerate(page.images):
        pixels = imread(io.BytesIO(png))[..., :3]
        assert min(pixels.shape[:2]) > 250 and pixels.std() > 0.05
        assert (pixels[:, 0].mean() > 0.95) == (place % 2 == 1)  # the dark one stands first
    names = re.findall(r"\]\(pictures/(\w+\.png)\)", md.read_text("utf-8"))
    assert len(names) == 7
    assert {path.name for path in (out / "pictures").iterdir()} == set(names)
    assert [(out / "pictures" / name).read_bytes() for name in names] == page.images[1::2]
    assert not list(out.rglob("*.tmp"))


def test_reports_are_written_anew_from_the_files(tmp_path, quick):
    results = compared.build(tmp_path / "out")
    first = [path.read_bytes() for path in report.write(str(tmp_path / "out"))]
    assert [path.read_bytes() for path in report.write(tmp_path / "out")] == first
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == results


def test_some_seeds_or_none_reach_the_target(tmp_path, quick):
    out = tmp_path / "out"
    results = compared.build(out, ("sgd", "sb:beta=1", "subset"))

    def change(results):
        for run in results["runs"][4:6]:  # SB's seeds 1 and 2
            for epoch in run["epochs"]:
                epoch["test_error"] = max(epoch["test_error"], 0.05)

    changed(out, results, change)
    text, page = read(out)
    assert [row[:3] for row in page.tables[0][2:]] == [
        ["SB, BETA=1", "3.00x (1 of 3)", "3.00x (1 of 3)"],
        ["SUBSET", "–", "–"],  # noqa: RUF001
    ]
    assert "Never there: SUBSET." in text
    assert "–: none does." in text  # noqa: RUF001


def test_a_run_that_diverged(tmp_path, quick):
    out = tmp_path / "out"
    results = compared.build(out, ("sgd", "sbe"), seeds=2)

    def change(results):
        for epoch in results["runs"][2]["epochs"][1:]:
            epoch["test_error"] = math.nan
        for epoch in results["runs"][3]["epochs"]:
            epoch["test_error"] = None

    changed(out, results, change)
    row = read(out)[1].tables[0][2]
    assert row[1:4] == ["–", "–", "28.80"]  # noqa: RUF001, the first epoch's error
    changed(out, results, lambda results: [e.update(test_error=None) for run in results["runs"] for e in run["epochs"]])
    text, page = read(out)
    assert [row[1:4] for row in page.tables[0][1:]] == 2 * [["–", "–", "–"]]  # noqa: RUF001
    assert page.tables[1][1][-1] == "–" and "nan" not in text and "Never there: SBE." in text  # noqa: RUF001


def test_one_seed_has_no_interval(tmp_path, quick):
    compared.build(tmp_path / "out", seeds=1)
    text, page = read(tmp_path / "out")
    assert page.tables[0][2] == ["SB, BETA=1", "3.00x", "3.00x", "2.20", "46.88"]
    assert "±" not in text
    assert "One seed (0), so there is no interval" in text


def test_without_sgd(tmp_path, quick):
    compared.build(tmp_path / "out", ("sb:beta=1", "sbe"))
    text, page = read(tmp_path / "out")
    assert page.tables[0][0] == ["method", "best error, %", "corrupted picks, %"]
    assert "SGD has no finished run here, so there is no error to reach and no speed-up." in text
    assert "Speed-up" not in text


def test_without_corruption(tmp_path, quick):
    compared.build(tmp_path / "out", corrupt=False)
    text, page = read(tmp_path / "out")
    assert page.tables[0][0] == ["method", "speed-up, samples", "speed-up, seconds", "best error, %"]
    assert "orrupt" not in text and "noise_share" not in text


def test_another_budget_and_several_modalities(tmp_path, quick):
    results = compared.build(tmp_path / "out", seeds=1)
    text = read(tmp_path / "out")[0]
    assert "400 samples to train on (1 x 8 x 8, 10 classes), 500 to test with" in text

    def change(results):
        results["about"]["budget"] = "seconds"
        results["about"]["data"] |= {"shape": [[1, 8, 4], [6]], "modalities": 2}

    changed(tmp_path / "out", results, change)
    text = read(tmp_path / "out")[0]
    assert "(1 x 8 x 4 and 6, 10 classes)" in text
    assert "Budget, seconds: every run trains for as many seconds as SGD with the same seed takes for 8 epochs." in text


def test_without_images(tmp_path, quick):
    compared.build(tmp_path / "out", pictured=False)
    assert "pictures/picked" not in read(tmp_path / "out")[0]
    np.savez(tmp_path / "out" / "data.npz", other=np.zeros(3))
    assert "pictures/picked" not in read(tmp_path / "out")[0]


def test_images_of_the_first_samples_only(tmp_path, quick):
    compared.build(tmp_path / "out")
    np.savez(tmp_path / "out" / "data.npz", images=compared.images()[:50])
    text = read(tmp_path / "out")[0]
    assert "SB, BETA=1: what it trained on most and least often" in text
    assert "SGD: what it trained on" not in text  # all as often


def test_unfinished_runs_are_left_out_with_a_note(tmp_path, quick):
    out = tmp_path / "out"
    results = compared.build(out)

    def change(results):
        results["runs"][4] = compared.run("sb:beta=1", 1, epochs=2)
        del results["runs"][7:]

    changed(out, results, change)
    text, page = read(out)
    assert "SB, BETA=1: seed 1 has not finished and is left out." in text
    assert "SBE: seeds 1, 2 have not finished and are left out." in text
    table = page.tables[0]
    assert [row[-1] for row in table] == ["seeds", "3", "2", "1"]
    # 3 and 2 times; t of one degree of freedom is 12.706, s / sqrt(2) is 0.5; errors of 2.2 and 2.64 %
    assert table[2][1] == "2.50x ± 6.35" and table[2][3] == "2.42 ± 2.80"
    assert table[3][1] == "2.40x"


def test_before_any_run_has_finished(tmp_path):
    out = tmp_path / "out"
    results = compared.build(out)
    changed(out, results, lambda results: results.update(runs=[compared.run("sgd", 0, epochs=1)]))
    text, page = read(out)
    assert "No run has finished yet." in text and not page.tables and not page.images
    changed(out, results, lambda results: results.update(runs=[]))
    assert "No run has finished yet." in read(out)[0]


def test_numbers_of_single_samples_that_are_missing(tmp_path, quick):
    out = tmp_path / "out"
    results = compared.build(out, seeds=1)
    (out / results["runs"][1]["arrays"]).unlink()
    changed(out, results, lambda results: results["runs"][2].update(arrays=None))
    text, page = read(out)
    for name in ("SB, BETA=1", "SBE"):
        assert f"{name}: its numbers for single samples are missing, so some pictures lack it." in text
    assert len(page.tables[0]) == 4
    (out / results["runs"][0]["arrays"]).unlink()
    text = read(out)[0]
    assert not any(f"pictures/{name}.png" in text for name in ("picks", "categories", "picked_0"))


def test_every_method_and_its_pictures(tmp_path, quick, monkeypatch):
    monkeypatch.setattr(report, "PICTURED", 4)
    compared.build(tmp_path / "out", compared.NAMES, seeds=2)
    text, page = read(tmp_path / "out")
    assert len(page.tables[0]) == 22
    assert "MOMBS, mean loss, its own uncertainty" in text  # before the entropy of the first
    assert "effective_sample_size.png" in text
    assert re.findall(r"pictures/picked_(\d)", text) == ["0", "1", "2", "3"]


def test_names_are_nothing_but_text(tmp_path, quick):
    name = "<script>alert(1)</script> & \"q\" 'r' | *b* $x$ [l](http://x) `c` \\"
    results = compared.build(tmp_path / "out")

    def change(results):
        results["about"]["command"] = results["about"]["data"]["name"] = results["about"]["machine"] = name
        for run in results["runs"][3:6]:
            run["title"] = name

    changed(tmp_path / "out", results, change)
    text, page = read(tmp_path / "out")
    assert page.tables[0][2][0] == page.tables[1][2][0] == name
    assert page.text.count(name) >= 8 and "script" not in page.seen
    rows = [line for line in text.splitlines() if line.startswith("| &lt;script")]
    assert [len(re.findall(r"(?<!\\)\|", row)) for row in rows] == [6, 7]  # one more than columns
    assert "<script" not in text.replace(f"    {name}", "")  # the command is code
    assert "\\[l\\](http" in text and "\\*b\\*" in text


@pytest.mark.parametrize("freedom, t", [(1, 12.7062), (2, 4.30265), (4, 2.77645), (9, 2.26216), (30, 2.04227)])
def test_students_t_of_tables(freedom, t):
    assert summary.student(freedom) == pytest.approx(t, rel=2e-6)


def test_students_t_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    for freedom in (1, 2, 3, 5, 8, 99, 1000):
        assert summary.student(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-12)


def test_an_interval_holds_the_mean_in_95_percent_of_cases():
    draws = np.random.default_rng(3).normal(5.0, 2.0, (4000, 3))
    found = [summary.interval(row) for row in draws]
    held = np.mean([abs(each.mean - 5.0) <= each.half for each in found])
    assert abs(held - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 4000)


def test_noise_share_of_a_run_weighs_epochs_by_what_was_trained_on():
    epochs = [{"backward": b, "noise_share": s} for b, s in ((100, 0.1), (400, 0.5), (400, 0.0), (500, None))]
    assert summary.noise_share({"epochs": epochs}) == pytest.approx((10 + 150) / 400)


def test_messages(tmp_path, monkeypatch):
    with pytest.raises(checks.InputValueError) as caught:
        report.write(tmp_path)
    assert str(caught.value) == f"report.write: out must be a folder with a results.json, got '{tmp_path}'"
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for name in ("plots", "compare.report"):
        monkeypatch.delitem(sys.modules, f"torchassay.{name}")
    monkeypatch.delattr(torchassay, "plots")
    monkeypatch.delattr(torchassay.compare, "report")
    with pytest.raises(ImportError) as caught:
        importlib.import_module("torchassay.compare.report")
    assert str(caught.value) == 'torchassay.plots needs matplotlib: pip install "torchassay[plot]"'


@pytest.mark.skipif(browser.COMMAND is None, reason=f"no browser: none of {', '.join(browser.NAMES)}")
@pytest.mark.parametrize("width, dark", [(390, False), (1200, True)])
def test_the_page_in_a_browser(written, tmp_path, width, dark):
    page = tmp_path / "report.html"
    page.write_bytes(written[2].read_bytes())
    script = """{
        wide: document.documentElement.scrollWidth, window: innerWidth,
        ground: getComputedStyle(document.body).backgroundColor,
        images: [...document.images].map(
            i => [i.complete, i.naturalWidth, i.clientWidth, i.getBoundingClientRect().right]),
        dark: [...document.images].map(i => i.currentSrc == i.previousElementSibling.srcset),
        tables: [...document.querySelectorAll('.table')].map(t => t.getBoundingClientRect().right),
        loaded: performance.getEntriesByType('resource').map(e => e.name).filter(n => !n.startsWith('data:')),
        title: document.querySelector('h1').innerText, mode: document.compatMode }"""
    found = browser.ask(page, script, width=width, dark=dark)
    assert found["window"] == width and found["wide"] <= width  # nothing sticks out
    assert found["title"] == "Sampling methods on digits" and found["mode"] == "CSS1Compat"
    assert found["ground"] == ("rgb(22, 25, 29)" if dark else "rgb(255, 255, 255)")
    assert len(found["images"]) == 7
    for complete, natural, shown, right in found["images"]:
        assert complete and natural > 800 and shown >= min(320, width) and right <= width
    assert found["dark"] == [dark] * 7
    assert all(right <= width for right in found["tables"])
    assert found["loaded"] == []
