"""The report's page: curves and figures as read, thumbnails as drawn, names neutralised, and a real browser."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from irn_pipeline.engine.store import StageRecord
from irn_pipeline.errors import ArtifactError, ConfigError, ShapeError
from irn_pipeline.export.overlay import UNSURE, hues, label_colours, wheel
from irn_pipeline.export.report import (
    Report,
    by_rank,
    chosen_places,
    figure_text,
    render_report,
    seconds_text,
    signs_of_trouble,
    summary_rows,
)
from irn_pipeline.export.report_charts import line_chart, nice_ticks
from irn_pipeline.export.report_pictures import PanelMaker
from irn_pipeline.export.report_records import (
    Curves,
    Picture,
    Quality,
    Result,
    Series,
    Sign,
    common_curves,
    read_curves,
    read_results,
    read_sweep,
    thinned,
)
from irn_pipeline.structures import Instances

HOSTILE = "</script><script>hacked()</script><img src=x onerror=hacked()>&'\""
BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "chrome")


def decoded(uri: str) -> np.ndarray:
    """RGB or RGBA pixels of a data URI."""
    head, data = uri.split(",", 1)
    assert re.fullmatch(r"data:image/(webp|jpeg);base64", head)
    pixels = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_UNCHANGED)
    return pixels[..., [2, 1, 0, *range(3, pixels.shape[2])]]


def instances(masks: np.ndarray) -> Instances:
    return Instances(np.ones(len(masks), np.float32), masks, np.zeros(len(masks), np.int64))


def stage(name: str, seconds: float, complete: bool = True, **params: str) -> StageRecord:
    return StageRecord(name, "f", params, {}, complete, {"images": 8, "skipped": 0}, seconds, {"torch": "2"})


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


class Page(HTMLParser):
    """Ids, references, texts, tables and scripts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.events: list[str] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.text = ""
        self.alts: list[str | None] = []
        self.tables: list[list[list[str]]] = []
        self._in_cell = False
        self._inside: dict[str, str | None] | None = None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.tags.append(tag)
        self.ids += [values["id"]] if "id" in values else []
        self.addresses += [
            values[key] for key in ("src", "href", "action", "srcset", "poster") if key in values
        ]
        self.events += [key for key in values if key.startswith("on")]
        if tag == "img":
            self.alts.append(values.get("alt"))
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self._in_cell = True
        if tag == "script":
            self._inside = values
            self.scripts.append((values, ""))

    def handle_endtag(self, tag):
        self._in_cell = self._in_cell and tag not in ("td", "th")
        if tag == "script":
            self._inside = None

    def handle_data(self, data):
        if self._inside is None:
            self.text += data
            if self._in_cell:
                cell = f"{self.tables[-1][-1][-1]} {data}"
                self.tables[-1][-1][-1] = " ".join(cell.split())
        else:
            self.scripts[-1] = (self._inside, self.scripts[-1][1] + data)

    def island(self, name: str):
        return json.loads(next(text for values, text in self.scripts if values.get("id") == name))


def a_report(count: int = 3, name: str = "run", class_names: tuple[str, ...] = ("cat", "dog")) -> Report:
    """A report with every section; picture n has the class n % 2 and the IoU n / count."""
    maker = PanelMaker(64)
    photo = maker.photo(noise(30, 40))
    label = maker.label(np.eye(30, 40, dtype=np.uint8), "semantic labels")
    maps = np.stack([np.eye(30, 40, dtype=np.float32), np.zeros((30, 40), np.float32)])
    cam = maker.heat(maps, names=class_names)
    pictures = tuple(
        Picture(
            f"{name}_{number:04d}",
            (class_names[number % 2],),
            (photo, label, *((cam,) if number == 0 else ())),
            aspect=4 / 3,
            quality=Quality(
                iou=number / count,
                score=0.5,
                instances=((class_names[number % 2], 0.5),),
                signs=(Sign("no label", f"no label {name}"),) if number == 1 else (),
            ),
        )
        for number in range(count)
    )
    return Report(
        title=name,
        class_names=class_names,
        stages=(stage("train_cam", 75.0, lr="0.1", note=name), stage("make_cam", 1.5, complete=False)),
        data_name=f"photographs of {name}",
        models=("CAM network: resnet18", f"{name}: resnet50"),
        curves=(Curves("train_cam", (Series("classification", ((1.0, 0.5), (2.0, 0.25))),)),),
        results=(
            Result(
                "semantic_label",
                (("miou", 0.5),),
                (("iou", ((class_names[0], 0.25), (class_names[1], 0.75))),),
            ),
            Result("instance_label", (("ap50", 0.125), ("ap70", None))),
            Result(f"segmenters / {name}", (("pictures", 60.0), ("miou", 0.25), ("ap75", 0.0))),
        ),
        sweep=(Series("miou", ((0.1, 0.3), (0.2, 0.4))), Series("ap50", ((0.1, 0.2), (0.2, 0.1)))),
        pictures=pictures,
        chosen=by_rank([picture.quality.iou for picture in pictures]),
        ranked_by="by something",
        signs=(f"trouble with {name}",),
        num_pictures=count,
        class_counts=(2, 1),
        notes=(f"about {name}",),
    )


# Records.


def test_curve_is_averaged_over_equal_parts() -> None:
    values = [(float(step), float(step % 2)) for step in range(1, 9)]
    assert thinned(values, 4) == ((1.5, 0.5), (3.5, 0.5), (5.5, 0.5), (7.5, 0.5))
    assert thinned(values, 8) == tuple(values)
    assert thinned([], 5) == ()


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300), st.integers(1, 50))
def test_thinned_keeps_the_extent(values: list[float], points: int) -> None:
    thin = thinned(list(enumerate(values)), points)
    assert len(thin) == min(len(values), points)
    assert min(values) - 1e-3 <= min(y for _, y in thin) <= max(y for _, y in thin) <= max(values) + 1e-3
    assert [x for x, _ in thin] == sorted(x for x, _ in thin)


def test_losses_of_an_interrupted_training() -> None:
    text = (
        '{"step": 1, "epoch": 0, "time": 9.5, "boundary": 0.5, "other": 2}\n'
        '{"step": 2, "epoch": 0, "time": 9.6, "boundary": NaN, "other": 1}\n'
        '[1]\n{"step": 3, "bound'
    )
    curves = read_curves(text, "train_irn")
    assert curves.stage == "train_irn"
    assert curves.series == (
        Series("boundary", ((1.0, 0.5),)),
        Series("other", ((1.0, 2.0), (2.0, 1.0))),
    )


def test_a_figure_that_several_trainings_have_is_drawn_in_one_chart() -> None:
    first, second, alone = (
        Curves(name, (Series(figure, ((1.0, value), (2.0, 0.5))), Series("loss", ((1.0, 2.0),))))
        for name, figure, value in (("a", "ap", 0.25), ("b", "ap", 0.125), ("c", "miou", 0.75))
    )
    found = common_curves((first, second, alone))
    assert [(one.stage, one.common) for one in found] == [("ap", True), ("loss", True)]
    assert found[0].series == (
        Series("a", ((1.0, 0.25), (2.0, 0.5))),
        Series("b", ((1.0, 0.125), (2.0, 0.5))),
    )
    assert [line.name for line in found[1].series] == ["a", "b", "c"]
    text = render_report(Report("run", (), (), curves=(found[0],)))
    assert text.count("<polyline") == 2 and "key1" in text


def test_results_at_any_depth() -> None:
    metrics = {
        "pictures": 10,
        "cam": {"miou": 0.5, "iou_per_class": {"cat": 0.5, "dog": None}},
        "segmenter": {"mask_rcnn": {"ap50": 0.25, "coco": {"ap": 0.125}, "ap50_per_class": {"cat": 0.25}}},
    }
    assert read_results(metrics, "metrics.json") == (
        Result("cam", (("miou", 0.5),), (("iou", (("cat", 0.5), ("dog", None))),)),
        Result("segmenter / mask_rcnn", (("ap50", 0.25), ("coco ap", 0.125)), (("ap50", (("cat", 0.25),)),)),
    )
    with pytest.raises(ArtifactError, match=r"metrics\.json.*evaluate"):
        read_results([1], "metrics.json")


def test_no_model_twice() -> None:
    model = {"pictures": 60, "miou": 0.5}
    twice = {"segmenter": model, "segmenters": {"mask_rcnn": model, "deeplabv3": model}}
    assert [result.kind for result in read_results(twice, "m")] == [
        "segmenters / mask_rcnn",
        "segmenters / deeplabv3",
    ]
    assert [result.kind for result in read_results({"segmenter": model}, "m")] == ["segmenter"]


def test_sweep_is_sorted_and_gaps_are_left_out() -> None:
    value = [{"threshold": 0.3, "miou": 0.5, "ap50": None}, {"threshold": 0.1, "miou": 0.25}]
    assert read_sweep(value, "sweep.json") == (Series("miou", ((0.1, 0.25), (0.3, 0.5))),)
    assert read_sweep([], "sweep.json") == ()
    for bad in ({}, [1], [{"miou": 0.5}], [{"threshold": "x"}]):
        with pytest.raises(ArtifactError, match=r"sweep\.json.*threshold"):
            read_sweep(bad, "sweep.json")


def test_ranks_go_by_truth_then_signs_then_score() -> None:
    def rank(iou: float | None, score: float, signs: int) -> tuple[float, float]:
        return Quality(iou, score, signs=(Sign("a", "b"),) * signs).rank

    by_iou = [rank(0.2, 0.9, 0), rank(0.3, 0.1, 5)]
    assert by_iou == sorted(by_iou)
    without_truth = [rank(None, 0.9, 2), rank(None, 0.1, 1), rank(None, 0.1, 0), rank(None, 0.2, 0)]
    assert without_truth == sorted(without_truth)


@given(st.lists(st.floats(0, 1), max_size=60), st.integers(0, 70))
def test_chosen_pictures(values: list[float], limit: int) -> None:
    ranked = by_rank(values)
    places = chosen_places([(value, 0.0) for value in values], limit, keep=[place for _, place in ranked])
    assert limit < 12 or {place for _, place in ranked} <= set(places)
    assert places == sorted(set(places))
    assert len(places) == min(limit, len(values))
    chosen = sorted(values[place] for place in places)
    quarter = limit // 4 if limit < len(values) else 0
    assert chosen[:quarter] == sorted(values)[:quarter]
    assert chosen[len(chosen) - quarter :] == sorted(values)[len(values) - quarter :]


# Charts.


def test_ticks_are_round_and_enclose() -> None:
    assert nice_ticks(0, 0.93) == [0, 0.25, 0.5, 0.75, 1]
    assert nice_ticks(0, 7) == [0, 2, 4, 6, 8]
    assert nice_ticks(0, 0) == [0, 0.25, 0.5, 0.75, 1]


@given(st.floats(-1e5, 1e5), st.floats(1e-4, 1e5))
def test_ticks_enclose_any_range(low: float, span: float) -> None:
    ticks = nice_ticks(low, low + span)
    step = ticks[1] - ticks[0]
    assert ticks[0] <= low + 1e-6 * step
    assert ticks[-1] >= low + span - 1e-6 * step
    assert 2 <= len(ticks) <= 7


def test_line_goes_from_corner_to_corner() -> None:
    chart = line_chart([Series("a", ((0, 0), (10, 1))), Series("b", ((5, 0.25),))])
    assert chart is not None
    assert [line.points for line in chart.lines] == [((0, 1000), (1000, 0)), ((500, 750),)]
    assert chart.ticks == (("0", 1000), ("0.25", 750), ("0.5", 500), ("0.75", 250), ("1", 0))
    assert chart.ends == ("0", "10")
    assert chart.lines[1].values == ("0.25 at 5",)
    one = line_chart([Series("a", ((3, 2),))])
    assert one is not None
    assert one.lines[0].points == ((500, 0),)
    assert line_chart([]) is None
    assert line_chart([Series("a", ())]) is None


# Words and figures.


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("miou", 0.6084, "60.8\xa0%"),
        ("ap75", 0.0, "0.0\xa0%"),
        ("ap50", None, "–"),
        ("sbd", 1.0, "100.0\xa0%"),
        ("abs_dic", 4.6667, "4.67"),
        ("instances", 814.0, "814"),
        ("abs_dic", None, "–"),
    ],
)
def test_figures_as_printed(name: str, value: float | None, text: str) -> None:
    assert figure_text(value, name) == text


def test_maps_labels_and_models_have_one_row_each() -> None:
    per_class = (("iou", (("cat", 0.5),)),)
    rows = summary_rows(
        [
            Result("cam", (("miou", 0.5),), per_class),
            Result("semantic_label", (("miou", 0.6),)),
            Result("cam_components", (("ap50", 0.1),)),
            Result("instance_label", (("ap50", 0.2),)),
            Result("segmenters / mask_rcnn", (("miou", 0.7), ("ap50", 0.3))),
        ]
    )
    assert rows == [
        Result("CAMs", (("miou", 0.5), ("ap50", 0.1)), per_class),
        Result("Synthesized labels", (("miou", 0.6), ("ap50", 0.2))),
        Result("mask_rcnn", (("miou", 0.7), ("ap50", 0.3))),
    ]


def test_signs_of_trouble() -> None:
    def result(kind: str, **iou: float) -> Result:
        return Result(kind, (("miou", 0.5),), (("iou", tuple(iou.items())),))

    cover = Sign("one class covers more than 90 %", "cat covers 95 %")
    qualities = [Quality(signs=(cover,)), Quality(), Quality(signs=(cover, Sign("no label", "no label")))]
    stages = [stage("train_cam", 1.0), stage("make_cam", 1.0, complete=False)]
    found = signs_of_trouble(
        [result("cam", cat=0.24, dog=0.26), result("semantic_label", cat=0.1)], qualities, stages
    )
    assert found == (
        "Stage make_cam has not finished.",
        "cat: IoU below half of the mean (CAMs 24.0\xa0%, Synthesized labels 10.0\xa0%).",
        "2 of 3 images: one class covers more than 90 %.",
        "1 of 3 images: no label.",
    )
    assert signs_of_trouble([result("cam", cat=0.5)], [Quality()], stages[:1]) == ()
    many = [result("cam", **{f"class {number}": 0.0 for number in range(8)})]
    assert signs_of_trouble(many, [], ())[-1] == "IoU below half of the mean: 3 more classes."


@pytest.mark.parametrize(
    ("values", "ranked"),
    [
        ([], {}),
        ([None], {}),
        ([0.5], {"only one": [0]}),
        ([0.1, 0.5], {"best": [1], "worst": [0]}),
        ([0.1, 0.5, 0.3], {"best": [1], "median": [2], "worst": [0]}),
        ([0.1, 0.4, None, 0.3, 0.2, 0.5, 0.6], {"best": [6], "median": [1, 3], "worst": [0]}),
    ],
)
def test_pictures_of_the_first_screen(values: list[float | None], ranked: dict[str, list[int]]) -> None:
    found: dict[str, list[int]] = {}
    for name, place in by_rank(values):
        found.setdefault(name, []).append(place)
    assert found == ranked


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0.0 s"), (59.94, "59.9 s"), (60, "1 min 00 s"), (7384, "2 h 03 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert seconds_text(seconds) == text


# Small pictures.


def test_label_panel_is_exact_and_background_clear() -> None:
    label = np.array([[0, 0, 1, 1], [2, 2, 255, 255]], np.uint8).repeat(8, 0).repeat(8, 1)
    panel = PanelMaker(32).label(label, "semantic labels")
    pixels = decoded(panel.uri)
    assert pixels.shape == (16, 32, 4)
    assert (pixels[..., 3] == np.where(label > 0, 255, 0)).all()
    shown = label > 0
    assert (pixels[..., :3][shown] == label_colours(label)[shown]).all()
    assert tuple(pixels[15, 31, :3]) == UNSURE
    assert panel.over is not None
    assert not panel.smooth


def test_panels_are_reduced_to_the_longer_side() -> None:
    pixels = decoded(PanelMaker(64).photo(np.full((100, 200, 3), 90, np.uint8)).uri)
    assert pixels.shape[:2] == (32, 64)
    assert abs(int(pixels[10, 10, 0]) - 90) <= 2
    assert decoded(PanelMaker(64).photo(np.full((3, 5, 3), 9, np.uint8)).uri).shape[:2] == (3, 5)
    assert decoded(PanelMaker(64).photo(np.full((1, 500, 3), 9, np.uint8)).uri).shape[:2] == (1, 64)


@pytest.mark.parametrize("thumbnail", [32, 128])
def test_worst_case_keeps_within_the_bound(thumbnail: int) -> None:
    maker, size = PanelMaker(thumbnail), thumbnail + 9
    random = np.random.default_rng(1)
    photo = maker.photo(noise(size, size))
    maps = [
        maker.heat(random.random((2, size, size), np.float32)),
        maker.label(random.integers(0, 255, (size, size), dtype=np.uint8), "a"),
        maker.masks(instances(random.random((3, size, size)) > 0.5), "b"),
        maker.ids(random.integers(0, 99, (size, size))),
        maker.displacement(random.normal(size=(2, size, size)).astype(np.float32)),
        maker.boundary(random.random((size, size), np.float32)),
    ]
    assert len(base64.b64decode(photo.uri.split(",")[1])) <= max(thumbnail**2 // 8, 512)
    for panel in maps:
        assert len(base64.b64decode(panel.uri.split(",")[1])) <= max(thumbnail**2 // 16, 512)
        assert decoded(panel.uri).size


def test_displacement_hues_are_directions() -> None:
    right, down, left = np.array([[0, 1]]), np.array([[1, 0]]), np.array([[0, -1]])
    field = np.concatenate([right, down, left]).T[:, None].astype(np.float32)
    red, second, third = wheel(field)[0].tolist()
    assert red == [255, 0, 0]
    assert second[1] > second[2]  # a quarter of the wheel on: between yellow and green
    assert third[0] == 0  # opposite to red: cyan
    assert min(third[1:]) == 255
    with pytest.raises(ShapeError, match=r"\(2, h, w\)"):
        wheel(np.zeros((3, 4, 4), np.float32))


def test_masks_have_outlines_and_ignored_pixels() -> None:
    masks = np.zeros((1, 32, 32), bool)
    masks[0, 8:24, 8:24] = True
    ignore = np.zeros((32, 32), bool)
    ignore[0:4] = True
    pixels = decoded(PanelMaker(32).masks(instances(masks), "truth", ignore).uri)
    assert pixels[8, 8].tolist() == [255, 255, 255, 255]
    assert pixels[16, 16].tolist() == [*hues(np.arange(1))[0].tolist(), 255]
    assert pixels[1, 1].tolist() == [*UNSURE, 255]
    assert pixels[30, 30, 3] == 0


def test_nothing_to_draw() -> None:
    maker = PanelMaker(32)
    assert decoded(maker.heat(np.zeros((0, 8, 8), np.float32)).uri).shape[:2] == (8, 8)
    assert (decoded(maker.masks(Instances.empty((8, 8)), "none").uri)[..., 3] == 0).all()


def test_maps_of_several_classes_are_choices() -> None:
    cam = np.zeros((2, 8, 8), np.float32)
    cam[0, :4], cam[1, 4:] = 1.0, 1.0
    panel = PanelMaker(32).heat(cam, names=("cat", "dog"))
    assert [name for name, _ in panel.choices] == ["cat", "dog"]
    whole, cat, dog = (decoded(uri) for uri in (panel.uri, *(uri for _, uri in panel.choices)))
    red, blue = [128, 0, 0], [0, 0, 128]
    assert (whole == red).all()
    assert (cat == np.where(cam[0, ..., None] > 0, red, blue)).all()
    assert (dog == np.where(cam[1, ..., None] > 0, red, blue)).all()
    assert PanelMaker(32).heat(cam[:1], names=("cat",)).choices == ()
    assert PanelMaker(32).heat(cam).choices == ()


def test_bad_pictures_and_sizes() -> None:
    with pytest.raises(ConfigError, match="32"):
        PanelMaker(31)
    with pytest.raises(ShapeError, match=r"\(H, W, 3\)"):
        PanelMaker(32).photo(np.zeros((4, 4), np.uint8))


# The page.


def test_page_is_whole_and_asks_no_other_host() -> None:
    text = render_report(a_report())
    page = Page(text)
    assert len(page.ids) == len(set(page.ids))
    assert all(address.startswith(("#", "data:")) for address in page.addresses)
    assert {address[1:] for address in page.addresses if address.startswith("#")} <= set(page.ids)
    assert not re.search(r"https?://|//[a-z]+\.[a-z]", text)
    assert "default-src 'none'" in text
    script = page.scripts[-1][1]
    asked = set(re.findall(r'byId\("([a-z]+)"\)', script))
    assert len(asked) > 10
    assert asked <= set(page.ids)
    for section in ("chosen", "figures", "classes", "metrics", "curves", "stages", "settings"):
        assert section in page.ids
    assert page.ids.index("chosen") < page.ids.index("figures") < page.ids.index("classes")
    assert page.tags.index("img") < page.tags.index("table")
    assert page.tags.count("svg") == 2 * (1 + 1)  # one loss, the sweep; the lines are an svg inside
    assert "1 min 15 s" in page.text
    assert "not finished" in page.text
    assert "color-scheme: light dark" in text


def test_the_first_screen() -> None:
    page = Page(render_report(a_report(5)))
    assert "photographs of run" in page.text
    assert "5 images, 2 classes · CAM network: resnet18 · run: resnet50" in page.text
    chosen = [alt for alt in page.alts if alt]
    # The pictures 0 to 4 have the IoUs 0 to 0.8; only the first has a CAM.
    assert [alt for alt in chosen if alt.startswith("photograph")] == [
        f"photograph of run_{number:04d}" for number in (4, 3, 2, 0)
    ]
    assert [alt for alt in chosen if alt.startswith("CAM")] == ["CAM of run_0000"]
    assert page.text.count("no CAM") == 3
    assert "Chosen by rank by something." in " ".join(page.text.split())
    assert page.text.index("best") < page.text.index("median") < page.text.index("worst")
    assert "trouble with run" in page.text


def test_tables_are_well_formed_and_figures_as_printed() -> None:
    page = Page(render_report(a_report()))
    for table in page.tables:
        assert len({len(row) for row in table}) == 1, table
    figures = page.tables[0]
    assert [cell.split()[0] for cell in figures[0][1:]] == ["mIoU", "AP50", "AP75"]
    assert [row[1:] for row in figures[1:]] == [
        ["50.0 %", "12.5 %", "–"],
        ["25.0 %", "–", "0.0 %"],
    ]
    assert figures[1][0].startswith("Synthesized labels")
    assert figures[2][0] == "run on 60 held-out images"
    classes = page.tables[1]
    assert classes[0] == ["class", "images", "Synthesized labels IoU"]
    assert classes[1:] == [["cat", "2", "25.0 %"], ["dog", "1", "75.0 %"]]
    assert not re.search(
        r"\b\d\.\d{3}\b", " ".join(cell for table in page.tables for row in table for cell in row)
    )
    names = [row[0] for row in figures]
    assert len(names) == len(set(names))


def test_every_picture_has_words_and_every_table_scrolls_in_its_box() -> None:
    text = render_report(a_report())
    page = Page(text)
    assert len(page.alts) == page.tags.count("img") > 6
    assert all(page.alts)
    assert len(re.findall(r'<div class="(?:box )?scroll">\s*<table', text)) == page.tags.count("table")


def test_hostile_names_stay_text() -> None:
    clean = Page(render_report(a_report(name="run", class_names=("cat", "dog"))))
    text = render_report(a_report(name=HOSTILE, class_names=(HOSTILE, "dog")))
    page = Page(text)
    assert page.tags == clean.tags
    assert page.events == []
    assert "<script>hacked" not in text
    assert HOSTILE in page.text
    first = page.island("pictures")[0]
    assert first["id"] == f"{HOSTILE}_0000"
    assert first["classes"] == [HOSTILE]


@settings(max_examples=15, deadline=None)
@given(st.text(min_size=1, max_size=30))
def test_any_name_comes_back(name: str) -> None:
    name = name.encode("utf-8", "replace").decode()
    page = Page(render_report(a_report(1, name, (name, "dog"))))
    assert page.island("pictures")[0]["classes"] == [name]
    assert page.tags.count("script") == 2


def test_bare_report() -> None:
    page = Page(render_report(Report("empty", (), (stage("train_cam", 0.0, complete=False),))))
    assert not {"metrics", "curves", "pictures-section", "lightbox", "chosen", "figures"} & set(page.ids)
    assert "0 s" in page.text
    assert page.tags.count("script") == 1


def test_a_thousand_pictures_keep_the_bound() -> None:
    report = a_report(1000)
    size = len(render_report(report))
    pictures = sum(len(panel.uri) for picture in report.pictures for panel in picture.panels)
    assert size <= 1000 * (4 * (64**2 // 8 + 64**2 // 16) // 3 + 600)  # base64 of a photograph and a map
    assert size - pictures <= 1000 * 400 + 60_000  # what is not pictures is little


PROBE = """
<script>
const problems = [];
addEventListener("error", (event) => problems.push(String(event.message || event.target.src)), true);
addEventListener("securitypolicyviolation", (event) => problems.push("CSP " + event.blockedURI));
for (const name of ["error", "warn"]) console[name] = (...words) => problems.push(words.join(" "));
</script>
"""
DRIVE = """
<script>
(async () => {
  const get = (name) => document.getElementById(name), out = {};
  const ids = () => [...document.querySelectorAll("#gallery .card h3")].map((title) => title.firstChild.data);
  const wait = (time) => new Promise((done) => setTimeout(done, time));
  const set = (name, value) => { get(name).value = value; get(name).dispatchEvent(new Event("input"));
    get(name).dispatchEvent(new Event("change")); };
  const key = (name) => get("lightbox").dispatchEvent(new KeyboardEvent("keydown", { key: name, bubbles: true }));
  await wait(300);
  out.all = ids().length;
  const filled = async (element) => {  // virtual time runs ahead of the frames that notice what is near
    for (let tries = 0; tries < 50 && !element.querySelector("img"); tries += 1) {
      element.scrollIntoView();
      await wait(50);
      await new Promise(requestAnimationFrame);
    }
  };
  document.querySelectorAll("#chosen button")[1].click();
  out.chosen = [get("lightbox").open, get("name").textContent, document.querySelector("#large figcaption").textContent];
  get("close").click();
  out.wide = document.documentElement.scrollWidth > innerWidth;
  const scrolls = (box, inner) => inner <= box.clientWidth || getComputedStyle(box).overflowX === "auto";
  for (const details of document.querySelectorAll("details")) details.open = true;
  const tables = [...document.querySelectorAll("table")];
  out.cut = tables.filter((table) => !scrolls(table.parentElement, table.scrollWidth)).length;
  set("order", "list");
  await filled(document.querySelector("#gallery .card"));
  const images = [...document.querySelectorAll("#gallery img")];
  await Promise.all(images.map((image) => image.decode()));
  out.images = images.length;
  out.broken = images.filter((image) => !image.naturalWidth).length;
  set("search", "0007"); out.searched = ids(); out.count = get("count").textContent; set("search", "");
  set("class", get("class").options[2].value); out.dogs = ids().length; set("class", "");
  set("order", "best"); out.first = ids()[0]; set("order", "worst"); out.last = ids().at(-1); set("order", "list");
  get("suspicious").click(); out.suspicious = ids(); get("suspicious").click();
  document.querySelector("#gallery .card .view").click();
  out.open = get("lightbox").open; out.shown = get("name").textContent;
  key("ArrowRight"); out.right = get("name").textContent;
  key("ArrowDown"); out.down = document.querySelector("#large figcaption").textContent;
  key("ArrowLeft"); out.left = get("name").textContent;
  key("ArrowDown");
  const choices = [...document.querySelectorAll("#large .choices button")];
  const map = document.querySelector("#large .view").lastChild;
  const panel = JSON.parse(get("pictures").textContent)[0].panels[2];
  out.choices = choices.map((button) => button.textContent);
  choices[2].click(); out.own = map.src === panel[4][1][1] && map.src !== panel[1];
  out.pressed = choices.map((button) => button.getAttribute("aria-pressed"));
  get("close").click(); out.closed = !get("lightbox").open;
  const before = getComputedStyle(document.body).backgroundColor;
  get("theme").click(); out.theme = before !== getComputedStyle(document.body).backgroundColor;
  out.hacked = typeof window.hackedCalled; out.problems = problems;
  const result = document.createElement("pre");
  result.id = "outcome"; result.textContent = JSON.stringify(out); document.body.append(result);
})();
</script>
"""


def browser() -> str | None:
    """Path of a Chromium on this machine."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


@pytest.mark.skipif(browser() is None, reason=f"needs a browser on the path: {', '.join(BROWSERS)}")
def test_in_a_browser(tmp_path: Path) -> None:
    text = render_report(a_report(1000, "x</script><img src=y onerror=hackedCalled=1>"))
    page = tmp_path / "report.html"
    page.write_text(
        text.replace("<title>", PROBE + "<title>", 1).replace("</body>", DRIVE + "</body>"), encoding="utf-8"
    )
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=600000", "--dump-dom")
    path = browser()
    assert path is not None
    # Images are decoded in real time, and the virtual clock may run out before: then the page is not finished.
    for attempt in range(6):
        profile = f"--user-data-dir={tmp_path / f'profile{attempt}'}"
        done = subprocess.run(
            [path, *flags, profile, page.as_uri()], capture_output=True, text=True, timeout=300, check=True
        )
        found = re.search(r'<pre id="outcome">(.*?)</pre>', done.stdout, re.DOTALL)
        if found is not None:
            break
    assert found is not None, done.stdout[-2000:]
    out = json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    name = "x</script><img src=y onerror=hackedCalled=1>_"
    assert out["problems"] == []
    assert out["hacked"] == "undefined"
    assert (out["all"], out["dogs"]) == (1000, 500)
    assert out["chosen"] == [True, f"{name}0999", "semantic labels"]
    assert not out["wide"]
    assert out["cut"] == 0
    assert 0 < out["images"] < 300  # those near the window only
    assert out["broken"] == 0
    assert out["searched"] == [f"{name}0007"]
    assert out["count"] == "1 of 1000 images"
    assert out["first"] == out["last"] == f"{name}0999"
    assert out["suspicious"] == [f"{name}0001"]
    assert out["open"]
    assert out["closed"]
    assert (out["shown"], out["right"], out["left"]) == (f"{name}0000", f"{name}0001", f"{name}0000")
    assert out["down"] == "semantic labels"
    assert out["choices"] == ["all", "cat", "dog"]
    assert out["own"]
    assert out["pressed"] == ["false", "false", "true"]
    assert out["theme"]
