"""Which classes the categories of a COCO file become."""

from __future__ import annotations

from pathlib import Path

import pytest

from irn_pipeline.datasets.coco_entries import classes_of, read_categories

PATH = Path("c.json")
ROBOFLOW = [(0, "pets-xy", "none"), (1, "cat", "pets-xy"), (2, "dog", "pets-xy")]


def classes(categories, used, keep=()):
    content = {
        "categories": [{"id": key, "name": name, "supercategory": above} for key, name, above in categories]
    }
    warnings: list[str] = []
    return classes_of(read_categories(content, PATH), set(used), keep, PATH, warnings), warnings


@pytest.mark.parametrize(
    "categories",
    [
        pytest.param(ROBOFLOW, id="above the others"),
        pytest.param([(0, "pets-xy", "none"), (1, "cat", ""), (2, "dog", "")], id="first, above is none"),
        pytest.param(
            [(0, "_background_", None), (1, "cat", None), (2, "dog", None)], id="labelme's background"
        ),
        pytest.param([(0, "root", ""), (1, "cat", ""), (2, "dog", "")], id="called root"),
        pytest.param([(1, "cat", "pet"), (2, "dog", "pet"), (9, "pet", "animal")], id="not the first"),
        pytest.param([(0, "cat", "none"), (1, "cat", "cat"), (2, "dog", "cat")], id="named as a class"),
    ],
)
def test_a_root_without_annotations_is_left_out(categories):
    found, (warning,) = classes(categories, [1])
    assert found.names == ("cat", "dog") and found.category_ids == (1, 2)
    assert warning.startswith("c.json: root category without annotations left out")


@pytest.mark.parametrize(
    ("categories", "used"),
    [
        pytest.param(
            [(0, "cat", ""), (1, "dog", ""), (2, "car", "")], [1, 2], id="a class that is not in this file"
        ),
        pytest.param([(0, "cat", "none"), (1, "dog", "none")], [1], id="all are below none"),
        pytest.param([(1, "person", "person"), (2, "dog", "animal")], [2], id="above itself"),
        pytest.param(ROBOFLOW, [0, 1, 2], id="a root that is used"),
    ],
)
def test_other_categories_stay(categories, used):
    found, warnings = classes(categories, used)
    assert found.category_ids == tuple(key for key, _, _ in categories) and not warnings
    assert found.names == tuple(name for _, name, _ in categories)


def test_a_root_that_is_asked_for_stays():
    found, warnings = classes(ROBOFLOW, [1], keep=("pets-xy", "cat"))
    assert found.names == ("pets-xy", "cat", "dog") and not warnings
    # A class of its name is meant, if there is one.
    found, (warning,) = classes([(0, "cat", "none"), (1, "cat", "cat")], [1], keep=("cat",))
    assert found.category_ids == (1,) and "(id 0)" in warning


def test_categories_of_one_name_are_one_class_with_the_first_id():
    found, (warning,) = classes([(4, "cat ", ""), (2, "dog", ""), (1, "cat", ""), (9, " cat", "")], [2, 4])
    assert found.names == ("cat", "dog") and found.category_ids == (1, 2)
    assert found.place_of == {1: 0, 4: 0, 9: 0, 2: 1}
    assert warning == (
        "c.json: categories 1, 4, 9 are all called 'cat': joined into one class, exported with id 1"
    )


def test_categories_that_differ_in_case_are_one_class_unless_both_are_asked_for():
    names = [(1, "cat", ""), (2, "Dog", ""), (5, "dog", ""), (7, "dog", "")]
    found, (warning,) = classes(names, [1, 2, 5])
    assert found.names == ("cat", "dog") and found.category_ids == (1, 2)
    assert found.place_of == {1: 0, 2: 1, 5: 1, 7: 1}
    assert "categories 2, 5, 7 are all called 'dog' or 'Dog': joined into one class" in warning
    apart, (warning,) = classes(names, [1, 2, 5], keep=("Dog", "dog"))
    assert apart.names == ("cat", "Dog", "dog") and apart.category_ids == (1, 2, 5)
    assert "categories 5, 7 are all called 'dog': joined" in warning
