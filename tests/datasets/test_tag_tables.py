"""Tables as pandas, R, Excel, Label Studio, Roboflow, Kaggle, fastai and Open Images write them."""

import pytest

from irn_pipeline.datasets.folder_csv import load_folder_csv
from irn_pipeline.errors import ConfigError, DataError

LISTS = ("cat", "dog", "cat{0}dog", "car", "dog{0}car", "cat{0}car")
TAGS_OF_LISTS = {"p1": "cat", "p2": "dog", "p3": "cat dog", "p4": "car", "p5": "car dog", "p6": "car cat"}


@pytest.fixture
def load(tmp_path):
    """Read a table of up to twelve pictures p1.jpg ... (never opened)."""
    (tmp_path / "photos").mkdir()
    for number in range(1, 13):
        (tmp_path / "photos" / f"p{number}.jpg").touch()

    def read(content, name="t.csv", classes=()):
        (tmp_path / name).write_bytes(content.encode("utf-8"))
        return load_folder_csv(tmp_path / name, tmp_path / "photos", classes=classes)

    return read


def names_of(loaded):
    return loaded.images.class_names


def tags_of(loaded):
    """Image id -> its classes, in the order of the ids, with blanks between them (a slash where names hold blanks)."""
    mark = "/" if any(" " in name for name in names_of(loaded)) else " "
    return {r.image_id: mark.join(names_of(loaded)[c] for c in r.class_ids) for r in loaded.images.records}


def negatives_of(loaded):
    return [record.image_id for record in loaded.negatives]


def told(loaded):
    """The warnings, but for those about rare classes, joined rows and pictures left out."""
    common = ("classes with", "several rows", "images left out")
    return [warning for warning in loaded.warnings if not any(words in warning for words in common)]


def rows(cells, heading="image,label", quote='"'):
    return heading + "".join(f"\np{i}.jpg,{quote}{cell}{quote}" for i, cell in enumerate(cells, 1)) + "\n"


# Columns


@pytest.mark.parametrize(
    "content",
    [
        ",image,label\n0,p1.jpg,cat\n1,p2.jpg,dog\n2,p3.jpg,cat\n",
        ",image,label\n5,p1.jpg,cat\n2,p2.jpg,dog\n9,p3.jpg,cat\n",
        ",Unnamed: 0,image,label\n0,0,p1.jpg,cat\n1,1,p2.jpg,dog\n2,2,p3.jpg,cat\n",
        "image,label,\np1.jpg,cat,0\np2.jpg,dog,1\np3.jpg,cat,2\n",
        "image,label,\np1.jpg,cat,7\np2.jpg,dog,3\np3.jpg,cat,7\n",
        "image,,label\np1.jpg,0,cat\np2.jpg,1,dog\np3.jpg,2,cat\n",
        '"","image","label"\n"1","p1.jpg","cat"\n"2","p2.jpg","dog"\n"3","p3.jpg","cat"\n',
        '"image","label"\n"1","p1.jpg","cat"\n"2","p2.jpg","dog"\n"3","p3.jpg","cat"\n',
        "...1;image;label\n1;p1.jpg;cat\n2;p2.jpg;dog\n3;p3.jpg;cat\n",
        "index,image,label\n0,p1.jpg,cat\n1,p2.jpg,dog\n2,p3.jpg,cat\n",
        ",image,cat,dog\n0,p1.jpg,1,0\n1,p2.jpg,0,1\n2,p3.jpg,1,0\n",
        "image,cat,dog,\np1.jpg,1,0,0\np2.jpg,0,1,1\np3.jpg,1,0,2\n",
        "image,cat,dog,X\np1.jpg,1,0,1\np2.jpg,0,1,2\np3.jpg,1,0,3\n",
        "0,p1.jpg,cat\n1,p2.jpg,dog\n2,p3.jpg,cat\n",
        "p1.jpg,cat,0\np2.jpg,dog,1\np3.jpg,cat,2\n",
    ],
)
def test_row_numbers_name_no_class(load, content):
    loaded = load(content)
    assert names_of(loaded) == ("cat", "dog")
    assert tags_of(loaded) == {"p1": "cat", "p2": "dog", "p3": "cat"}
    assert len(told(loaded)) == 1 and "columns ignored" in told(loaded)[0]


@pytest.mark.parametrize(
    "content",
    [
        "image,label,,\np1.jpg,cat,,\np2.jpg,cat,dog,\n",
        "image,cat,dog,\np1.jpg,1,0,\np2.jpg,1,1,\n",
        ",label\np1.jpg,cat\np2.jpg,\"['cat', 'dog']\"\n",
        ",cat,dog\np1.jpg,1,0\np2.jpg,1,1\n",
        "image,label\np1.jpg,cat\nimage,label\np2.jpg,cat,dog\n",
    ],
)
def test_columns_without_a_name_that_say_something_or_nothing(load, content):
    loaded = load(content)
    assert tags_of(loaded) == {"p1": "cat", "p2": "cat dog"} and not told(loaded)


def test_numbers_beyond_the_heading_are_tags(load):
    loaded = load("image,label\np1.jpg,1,2\np2.jpg,3,4\np3.jpg,5,6\n")
    assert tags_of(loaded) == {"p1": "1 2", "p2": "3 4", "p3": "5 6"}


@pytest.mark.parametrize(
    ("content", "passed"),
    [
        ("fname,labels,is_valid\np1.jpg,cat,True\np2.jpg,dog,False\n", ["is_valid"]),
        ("image,cat,dog,is_valid\np1.jpg,1,0,0\np2.jpg,0,1,1\n", ["is_valid"]),
        ("image,cat,dog,split,fold\np1.jpg,1,0,train,0\np2.jpg,0,1,test,1\n", ["split", "fold"]),
        ("id,image,width,height,cat,dog\n7,p1.jpg,64,48,1,0\n9,p2.jpg,1,1,0,1\n", ["id", "width", "height"]),
        ("filename,width,height,class,xmin,ymin\np1.jpg,9,9,cat,1,2\np2.jpg,9,9,dog,1,2\n", ["width", "xmin"]),
        ("image,label,label_id\np1.jpg,cat,0\np2.jpg,dog,1\n", ["label_id"]),
        ("image,category_id,category_name\np1.jpg,4,cat\np2.jpg,2,dog\n", ["category_id"]),
        ("image,label,photographer\np1.jpg,cat,Ann\np2.jpg,dog,Bob\n", ["photographer"]),
        ("ImageID,Source,LabelName,Confidence\np1,human,cat,1\np2,human,dog,1\n", ["Source", "Confidence"]),
        ("annotation_id,annotator,choice,created_at,id,image\n1,1,cat,2024,1,p1.jpg\n2,1,dog,2024,2,p2.jpg\n", ["id"]),
        ("p1.jpg,cat,train\np2.jpg,dog,val\n", ["column 3"]),
    ],
)  # fmt: skip
def test_columns_about_the_picture_name_no_class(load, content, passed):
    loaded = load(content)
    assert tags_of(loaded) == {"p1": "cat", "p2": "dog"} and names_of(loaded) == ("cat", "dog")
    assert len(told(loaded)) == 1 and all(name in told(loaded)[0] for name in passed)


def test_parts_of_the_set_are_told_to_be_used_all(load):
    (warning,) = told(load("image,label,split\np1.jpg,cat,train\np2.jpg,dog,val\n"))
    assert "'split'; the images of all rows are used: --image-list" in warning


def test_a_column_becomes_a_class_where_it_is_asked_for(load):
    content = "image,cat,fold,remark\np1.jpg,1,0,good\np2.jpg,0,1,\n"
    assert tags_of(load(content, classes=("fold", "cat"))) == {"p1": "cat", "p2": "fold"}
    with pytest.raises(DataError, match="'good' in column 'remark' is neither 0 nor 1"):
        load(content)


def test_rows_that_deny_a_tag_give_none(load):
    loaded = load("ImageID,LabelName,Confidence\np1,cat,1\np1,dog,0\np2,dog,1.0\np3,dog,0.0\np4,cat,0.4\n")
    assert tags_of(loaded) == {"p1": "cat", "p2": "dog", "p4": "cat"}
    assert any("0 says that the tag is not in the image: 2" in warning for warning in loaded.warnings)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("image,cat,dog,\np1.jpg,1,0,0\np2.jpg,0,1,1\np3.jpg,1,1,0\n", "column '' has no name"),
        ("image,label,blurred\np1.jpg,0,1\np2.jpg,1,0\n", "columns 'label', 'blurred' hold 0 and 1"),
        ("image,width,height\np1.jpg,64,48\n", r"no column holds labels \('width', 'height'\)"),
        ("id,breed\np1,beagle\np2,boxer\n", "'beagle' in column 'breed' .* must be called 'label'"),
        (rows(["[0, 1, 0]", "[1, 0, 1]"]), "line 2: a list of 0 and 1 names no class"),
        (rows(["['cat', 'dog"]), "line 2: .* looks like a list of tags, but cannot be read"),
        (rows(["array(['cat'], dtype=object)"]), "line 2: .* looks like a list of tags, but cannot be read"),
        (rows(['c(""cat"", ""dog"")']), "line 2: .* looks like a list of tags, but cannot be read"),
        (rows(["['cat' ... 'dog']"]), "line 2: .* looks like a list of tags, but cannot be read"),
        (rows(["[['animal', 'cat']]"]), "line 2: 'list' is not a label"),
        (rows(["[0.25, 0.75]"]), "line 2: '0.25' is not a label"),
        (rows(['{""width"": 64}']), "line 2: an object with 'width' is not a label"),
    ],
)
def test_what_is_not_clear_is_refused(load, content, message):
    with pytest.raises(DataError, match=message) as caught:
        load(content)
    assert "\n" not in str(caught.value)


# Lists in a cell


@pytest.mark.parametrize("separator", [",", ", ", ";", " ; ", "|", " | ", "||", " ", "+", " & ", "\u3001"])
@pytest.mark.parametrize("form", ["comma", "semicolon", "tab", "jsonl"])
def test_texts_whose_parts_are_tags_elsewhere_are_lists(load, separator, form):
    cells = [cell.format(separator) for cell in LISTS]
    mark = {"comma": ",", "semicolon": ";", "tab": "\t"}.get(form)
    if mark is None:
        content = "\n".join(f'{{"image": "p{i}.jpg", "labels": "{cell}"}}' for i, cell in enumerate(cells, 1))
    else:
        content = f"image{mark}labels" + "".join(
            f'\np{i}.jpg{mark}"{cell}"' for i, cell in enumerate(cells, 1)
        )
    loaded = load(content, "t.jsonl" if mark is None else "t.csv")
    assert names_of(loaded) == ("car", "cat", "dog") and tags_of(loaded) == TAGS_OF_LISTS
    assert len(told(loaded)) == 1 and "were read as lists of tags" in told(loaded)[0]


@pytest.mark.parametrize("separator", ["/", " and ", ":"])
def test_marks_that_belong_to_names_do_not_cut_but_are_told(load, separator):
    loaded = load(rows([cell.format(separator) for cell in LISTS]))
    assert f"cat{separator}dog" in names_of(loaded) and len(names_of(loaded)) == 6
    assert len(told(loaded)) == 1 and "were read as one name each" in told(loaded)[0]


@pytest.mark.parametrize(
    ("left", "between", "right"),
    [
        ("['", "', '", "']"),
        ('[""', '"", ""', '""]'),
        ("['", "' '", "']"),
        ("['", "'\n '", "']"),
        ("[", ", ", "]"),
        ("('", "', '", "',)"),
        ("{'", "', '", "'}"),
        ("{", ",", "}"),
        ('{""choices"": [""', '"", ""', '""]}'),
        ('[{""x"": 1, ""rectanglelabels"": [""', '"", ""', '""]}]'),
        ('[{""label"": ""', '""}, {""label"": ""', '""}]'),
        ('{""', '"": 1, ""wolf"": 0, ""', '"": 1}'),
        ("'", "', '", "'"),
    ],
)
def test_lists_by_their_form(load, left, between, right):
    loaded = load(rows([f"{left}{cell.format(between)}{right}" for cell in LISTS]))
    assert names_of(loaded) == ("car", "cat", "dog") and tags_of(loaded) == TAGS_OF_LISTS
    assert not told(loaded)


@pytest.mark.parametrize("cell", ['[""{}""]', '""{}""', "['{}']"])
def test_lists_of_one_text_are_judged_as_the_text(load, cell):
    loaded = load(rows([cell.format(text.format(", ")) for text in LISTS]))
    assert tags_of(loaded) == TAGS_OF_LISTS and "were read as lists of tags" in told(loaded)[0]
    assert names_of(load(rows([cell.format("cat, small"), cell.format("dog")]))) == ("cat, small", "dog")


def test_lists_that_were_written_without_quotation_marks(load):
    loaded = load("image,labels\np1.jpg,['cat', 'dog']\np2.jpg,['cat']\np3.jpg,['dog','car']\n")
    assert tags_of(loaded) == {"p1": "cat dog", "p2": "cat", "p3": "car dog"}


@pytest.mark.parametrize(
    "lines",
    [
        ('"choice": {"choices": ["cat", "dog"]}', '"choice": "cat"', '"choice": {"choices": []}'),
        ('"label": {"choices": ["cat", "dog"]}, "id": 3', '"label": "cat", "id": 4', '"label": null'),
        ('"labels": "[\'cat\', \'dog\']"', '"labels": "[\'cat\']"', '"labels": []'),
        ('"labels": [{"name": "cat"}, {"name": "dog"}]', '"labels": ["cat"]', '"labels": ["NA", null]'),
        ('"cat": 1, "dog": 1, "split": "train"', '"cat": true, "dog": false', '"cat": null, "dog": 0, "width": 9'),
    ],
)  # fmt: skip
def test_the_same_in_json_lines(load, lines):
    content = "\n".join(f'{{"image": "p{i}.jpg", {line}}}' for i, line in enumerate(lines, 1))
    loaded = load(content, "t.jsonl")
    assert names_of(loaded) == ("cat", "dog")
    assert tags_of(loaded) == {"p1": "cat dog", "p2": "cat"} and negatives_of(loaded) == ["p3"]


@pytest.mark.parametrize(
    "cells",
    [
        ["cat, small", "dog/wolf", "bird"],
        ["cat, small", "cat, large", "bird"],
        ["cat, small", "cat, large", "dog, small", "dog, large"],
        ["tench, Tinca tinca", "great white shark, white shark", "crane"],
        ["Paris, France", "Lyon, France", "Bonn, Germany"],
    ],
)
def test_commas_in_names_whose_parts_hardly_recur(load, cells):
    loaded = load(rows(cells))
    assert names_of(loaded) == tuple(sorted(cells))
    assert len(told(loaded)) == 1 and "were read as one name each" in told(loaded)[0]


def test_commas_in_names_where_the_table_lists_tags_in_cells(load):
    loaded = load('image,label\np1.jpg,"a, b","b, a"\np2.jpg,"c, a","a, c"\np3.jpg,"b, c",dog\n')
    assert "a, b" in names_of(loaded) and len(names_of(loaded)) == 6
    assert "one name each" in told(loaded)[0]


@pytest.mark.parametrize(
    ("cells", "notes"),
    [
        (["traffic light", "traffic sign", "light", "polar bear", "brown bear", "bear"], 0),
        (["red car", "blue car", "red truck", "blue truck"], 0),
        (["fire truck", "fire", "truck"], 1),
    ],
)
def test_blanks_in_names(load, cells, notes):
    loaded = load(rows(cells))
    assert names_of(loaded) == tuple(sorted(cells)) and len(told(loaded)) == notes


def test_blanks_between_tags_with_underscores(load):
    cells = ["haze primary", "agriculture clear primary", "agriculture bare_ground clear", "bare_ground haze"]
    loaded = load(rows([*cells, "clear haze"]))
    assert names_of(loaded) == ("agriculture", "bare_ground", "clear", "haze", "primary")


@pytest.mark.parametrize(
    "cells", [["16 0", "7 16 2", "0"], ["16,0", "7, 16,2", "0"], ["[16 0]", "[ 7. 16.  2.]", "[0]"]]
)
def test_several_numbers_in_a_cell(load, cells):
    loaded = load(rows(cells))
    assert names_of(loaded) == ("0", "2", "7", "16")
    assert tags_of(loaded) == {"p1": "0 16", "p2": "2 7 16", "p3": "0"}


def test_what_the_user_asks_for_decides_how_texts_are_read(load):
    small = rows(["cat, small", "cat, large", "dog"])
    assert tags_of(load(small, classes=("cat", "dog"))) == {"p1": "cat", "p2": "cat", "p3": "dog"}
    assert names_of(load(small, classes=("cat, small", "dog"))) == ("cat, small", "dog")
    lists = rows([cell.format(", ") for cell in LISTS])
    for words in (("cat", "dog"), ("cat,dog",), ("cat, dog",)):
        assert names_of(load(lists, classes=words)) == ("cat", "dog")
    assert tags_of(load(lists, classes=('"cat, dog",car',))) == {"p3": "cat, dog", "p4": "car"}


# Names


@pytest.mark.parametrize(
    "missing", ["NA", "nan", "NaN", "None", "none", "NULL", "null", "N/A", "n/a", "#N/A", "<NA>"]
)
def test_missing_values_name_no_class(load, missing):
    loaded = load(rows([missing, "dog", "cat", missing, f"['cat', '{missing}']"]))
    assert names_of(loaded) == ("cat", "dog") and negatives_of(loaded) == ["p1", "p4"]
    assert any(f"read as no tag: '{missing}' (3 rows)" in warning for warning in loaded.warnings)
    columns = load(f"image,cat,dog\np1.jpg,1,{missing}\np2.jpg,0,1\n")
    assert tags_of(columns) == {"p1": "cat", "p2": "dog"} and "read as 0: 1" in told(columns)[0]
    kept = load(rows([missing, "dog"]), classes=(missing, "dog"))
    assert names_of(kept) == (missing, "dog") and not told(kept)


@pytest.mark.parametrize("nothing", ["-", "--", "?"])
def test_signs_for_nothing_name_no_class(load, nothing):
    loaded = load(f"image,label\np1.jpg,cat\np2.jpg,{nothing}\np3.jpg,dog\n")
    assert names_of(loaded) == ("cat", "dog")
    assert any(f"read as no tag: {nothing!r} (1 rows)" in warning for warning in loaded.warnings)


def test_spellings_of_a_name_are_one_class(load):
    loaded = load(rows(["Cat", "cat", "cat", "Big  dog", "big dog", "caf\u00e9", "cafe\u0301"]))
    assert names_of(loaded) == ("big dog", "caf\u00e9", "cat")
    (warning,) = [warning for warning in loaded.warnings if "differ in case" in warning]
    assert "'Big  dog' as 'big dog', 'Cat' as 'cat'" in warning
    assert names_of(load(rows(["Cat", "cat", "dog"]), classes=("Cat", "dog"))) == ("Cat", "dog")
    apart = load(rows(["Cat", "cat", "dog"]), classes=("Cat", "cat"))
    assert tags_of(apart) == {"p1": "Cat", "p2": "cat"}
    assert names_of(load("image,Cat,cat,dog\np1.jpg,1,0,0\np2.jpg,0,1,1\n")) == ("cat", "dog")


@pytest.mark.parametrize(
    ("cells", "names"),
    [
        (["1", "2", "10"], ("1", "2", "10")),
        (["10", "-1", "2"], ("-1", "2", "10")),
        (["1.0", "10.0", "", "2.0"], ("1", "2", "10")),
        (["0.5", "10", "2.25"], ("0.5", "2.25", "10")),
        (["10", "9", "cat"], ("9", "10", "cat")),
    ],
)
def test_numbers_are_sorted_by_value(load, cells, names):
    assert names_of(load(rows(cells))) == names


def test_numbers_as_headings_and_in_json_are_sorted_by_value(load):
    assert names_of(load("image,10,2,1\np1.jpg,1,0,1\np2.jpg,0,1,0\n")) == ("1", "2", "10")
    lines = "".join(
        f'{{"image": "p{i}", "label": {n}}}\n' for i, n in enumerate(("10", "2.0", "1", "NaN"), 1)
    )
    assert names_of(load(lines, "t.jsonl")) == ("1", "2", "10")


@pytest.mark.parametrize("cells", [["0", "1", "0"], ["yes", "no", "yes"], ["True", "False", "True"]])
def test_a_label_that_is_yes_or_no_is_doubted(load, cells):
    loaded = load(rows(cells))
    assert names_of(loaded) == tuple(sorted(set(cells)))
    assert (
        len(told(loaded)) == 1
        and "name the column after that ('image,dog' with 0 and 1 below)" in told(loaded)[0]
    )
    assert not told(load(rows(["0", "1", "2"]))) and not told(load(rows(cells), classes=tuple(cells[:2])))


def test_columns_of_0_and_1_may_be_called_label(load):
    assert tags_of(load("image,label1,label2\np1.jpg,0,1\np2.jpg,1,0\n")) == {"p1": "label2", "p2": "label1"}
    blurred = "image,label,blurred\np1.jpg,0,1\np2.jpg,1,0\n"
    assert tags_of(load(blurred, classes=("0", "1"))) == {"p1": "0", "p2": "1"}
    assert tags_of(load(blurred, classes=("blurred", "label"))) == {"p1": "blurred", "p2": "label"}


# Files


@pytest.mark.parametrize(
    ("first", "mark"),
    [
        ("sep=;", ";"),
        ("SEP=,", ","),
        ('"sep=;"', ";"),
        ("sep=\t", "\t"),
        ("sep=|", "|"),
        ("\ufeffsep=;\r", ";"),
        ("sep=;;", ";"),
    ],
)
def test_the_separator_of_the_first_line(load, first, mark):
    loaded = load(f"{first}\nimage,cat,dog\np1.jpg,1,0\np2.jpg,0,1\n".replace(",", mark))
    assert tags_of(loaded) == {"p1": "cat", "p2": "dog"}
    with pytest.raises(DataError, match="line 3: 'x' in column 'dog'"):
        load(f"{first}\nimage,cat,dog\np1.jpg,1,x\n".replace(",", mark))


def test_blanks_after_commas(load):
    loaded = load("filename, cat, dog\np1.jpg, 1, 0\np2.jpg, 0, 1\n")
    assert tags_of(loaded) == {"p1": "cat", "p2": "dog"}
    loaded = load('image, label\np1.jpg, "cat, dog"\np2.jpg, "cat"\np3.jpg, dog\n')
    assert tags_of(loaded) == {"p1": "cat dog", "p2": "cat", "p3": "dog"}


def test_json_that_is_no_table_is_told_where_it_goes(load):
    with pytest.raises(
        DataError, match=r"holds JSON; a COCO file is given with --coco-json, .* ends in \.jsonl"
    ):
        load('[{"image": "p1.jpg", "label": "cat"}]', "t.json")


# --classes


@pytest.mark.parametrize(
    "words",
    [
        ("cat, small", "dog/wolf"),
        ("cat, small,dog/wolf",),
        ('"cat, small",dog/wolf',),
        ('"cat, small"', "dog/wolf"),
    ],
)
@pytest.mark.parametrize("form", ["labels", "columns", "jsonl"])
def test_classes_whose_names_hold_commas(load, words, form):
    content = {
        "labels": 'image,label\np1.jpg,"cat, small"\np2.jpg,dog/wolf\np3.jpg,"cat, small",dog/wolf\np4.jpg,bird\n',
        "columns": 'image,"cat, small",dog/wolf,bird\np1.jpg,1,0,0\np2.jpg,0,1,0\np3.jpg,1,1,0\np4.jpg,0,0,1\n',
        "jsonl": '{"image": "p1", "labels": ["cat, small"]}\n{"image": "p2", "labels": ["dog/wolf"]}\n'
        '{"image": "p3", "labels": ["cat, small", "dog/wolf"]}\n{"image": "p4", "label": "bird"}\n',
    }[form]
    loaded = load(content, "t.jsonl" if form == "jsonl" else "t.csv", classes=words)
    assert names_of(loaded) == ("cat, small", "dog/wolf")
    assert tags_of(loaded) == {"p1": "cat, small", "p2": "dog/wolf", "p3": "cat, small/dog/wolf"}
    with pytest.raises(ConfigError, match="has no class 'wolf'"):
        load(content, "t.jsonl" if form == "jsonl" else "t.csv", classes=("cat, small", "wolf"))
