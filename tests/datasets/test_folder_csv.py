import json
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from irn_pipeline.datasets.folder_csv import load_folder_csv, read_tags
from irn_pipeline.datasets.picture_folder import restrict
from irn_pipeline.datasets.picture_scan import picture_id, scan_pictures
from irn_pipeline.errors import ConfigError, DataError

PICTURES = ("a.jpg", "b.JPG", "cats/a.png", "dogs/my pet.v2.jpeg")
TAGS = {"a": {"dog"}, "b": {"cat", "dog"}, "cats/a": {"cat"}}


@pytest.fixture
def photos(tmp_path):
    """Four pictures (never opened), two of them with the same stem in two folders."""
    folder = tmp_path / "photos"
    for name in PICTURES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def table(photos, content, name="tags.csv"):
    path = photos.parent / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


def load(photos, content, name="tags.csv", classes=()):
    return load_folder_csv(table(photos, content, name), photos, classes=classes)


def tags_of(loaded):
    names = loaded.images.class_names
    return {r.image_id: {names[c] for c in r.class_ids} for r in loaded.images.records}


def negatives_of(loaded):
    return [record.image_id for record in loaded.negatives]


def about(loaded, word):
    """The only warning with that word."""
    (found,) = [warning for warning in loaded.warnings if word in warning]
    return found


PLAIN = "a.jpg,dog\nb.JPG,cat,dog\ncats/a.png,cat\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tags.csv", PLAIN),
        ("tags.csv", PLAIN.encode("utf-8-sig")),
        ("tags.csv", PLAIN.replace("\n", "\r\n").encode("utf-8-sig")),
        ("tags.csv", PLAIN.replace("\n", "\n\n").rstrip()),
        ("tags.csv", PLAIN.replace(",", ";")),
        ("tags.csv", PLAIN.replace(",", "\t")),
        ("tags.tsv", PLAIN.replace(",", "\t")),
        ("tags.csv", "image,label\n" + PLAIN),
        ("tags.csv", "File_Name, Label_1, Label_2\r\n" + PLAIN.replace("\n", "\r\n")),
        ("tags.csv", "tag,image\ndog,a\ncat,b\ndog,b\ncat,./cats//a\n"),
        ("tags.csv", "image,dog,cat\na.jpg,1,0\nb.jpg,1,1\ncats/a,0,1\n"),
        ("tags.csv", "cat;filename;dog\nno;a.jpg;yes\n1.0;b.JPG;TRUE\n1;cats/a.png;-1\n"),
        ("tags.csv", "image,dog,cat\na.jpg,1,\nb.JPG,1,1\ncats/a.png,,1\n"),
        ("tags.csv", '"a.jpg","dog"\n"b.JPG","cat","dog"\n"cats/a.png","cat"\n'),
        (
            "tags.jsonl",
            '{"image": "a.jpg", "label": "dog"}\r\n\r\n{"image": "b.JPG", "labels": ["cat", "dog"]}\r\n'
            '{"image": "cats/a.png", "tags": ["cat"]}',
        ),
        (
            "tags.jsonl",
            '{"file_name": "a", "dog": 1, "cat": 0}\n{"file_name": "b", "dog": true, "cat": 1}\n'
            '{"file_name": "cats/a", "dog": false, "cat": 1.0}\n',
        ),
    ],
)
def test_every_form_of_the_same_tags(photos, name, content):
    loaded = load(photos, content, name)
    assert loaded.images.class_names == ("cat", "dog")
    assert tags_of(loaded) == TAGS
    assert [record.class_ids for record in loaded.images.records] == [(1,), (0, 1), (0,)]
    assert loaded.images.records[2].path == photos / "cats" / "a.png"


def test_class_names_may_hold_other_separators_spaces_and_any_script(photos):
    loaded = load(
        photos, 'a.jpg;red, white\nb.jpg;"x; y"\ncats/a.png;猫\ndogs/my pet.v2.jpeg;traffic light\n'
    )
    assert loaded.images.class_names == ("red, white", "traffic light", "x; y", "猫")
    assert loaded.images.records[3].image_id == "dogs/my pet.v2"


def test_numbers_are_class_names_where_the_heading_says_label(photos):
    assert tags_of(load(photos, "image,label\na,0\nb,1\n")) == {"a": {"0"}, "b": {"1"}}
    assert tags_of(load(photos, '{"image": "a", "label": 3}', "t.jsonl")) == {"a": {"3"}}


def test_a_class_called_path_does_not_make_a_heading(photos):
    assert tags_of(load(photos, "a.jpg,path\nb.jpg,dog\n")) == {"a": {"path"}, "b": {"dog"}}


def test_unknown_pictures_are_left_out_and_counted_and_rows_without_label_are_negatives(photos):
    loaded = load(photos, "a.jpg,dog\nzoo.jpg,cat\nzoo/a.jpg,dog\nb.jpg\ncats/a.png,dog\n")
    assert tags_of(loaded) == {"a": {"dog"}, "cats/a": {"dog"}}
    assert about(loaded, "are not in").endswith("2 (zoo, zoo/a)")
    assert negatives_of(loaded) == ["b"]
    assert about(loaded, "no image").endswith("1 ('cat')")
    assert loaded.skipped == ("zoo", "zoo/a")


def test_repeated_rows_are_joined_and_counted(photos):
    loaded = load(photos, "a.jpg,dog\nb.jpg,dog\na,cat\na.jpg,dog\n")
    assert tags_of(loaded) == {"a": {"cat", "dog"}, "b": {"dog"}}
    assert about(loaded, "tags were joined").endswith("1 (a)")


def test_a_class_with_a_single_picture_is_named(photos):
    loaded = load(photos, PLAIN + "dogs/my pet.v2,hamster\n")
    assert about(loaded, "single image").endswith("1 ('hamster')")
    assert not any("no image" in warning for warning in loaded.warnings)


def test_classes_are_picked_and_ordered(photos):
    loaded = load(photos, PLAIN, classes=("dog",))
    assert loaded.images.class_names == ("dog",)
    assert tags_of(loaded) == {"a": {"dog"}, "b": {"dog"}} and negatives_of(loaded) == ["cats/a"]
    assert load(photos, PLAIN, classes=("dog", "cat")).images.records[0].class_ids == (0,)
    with pytest.raises(ConfigError, match=r"--classes: .*tags\.csv has no class 'dgo' \(nearest: 'dog'\)"):
        load(photos, PLAIN, classes=("cat", "dgo"))
    with pytest.raises(ConfigError, match="'cat' is named twice"):
        load(photos, PLAIN, classes=("cat", "cat"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", "", "holds no row; expected 'image,label"),
        ("t.csv", "\ufeff\r\n ,\n", "holds no row"),
        ("t.csv", "image,label\n", "a heading, but no row"),
        ("t.csv", "\nimge,label\na.jpg,dog\n", r"line 2: heading 'imge', 'label' .* did you mean 'image'\?"),
        ("t.csv", "photo1,label\na.jpg,dog\n", "line 1: heading .* has no column for the images"),
        ("t.csv", "image,lable\na.jpg,dog\n", "line 2: 'dog' in column 'lable' is neither 0 nor 1"),
        ("t.csv", "image,dog,cat\na.jpg,1,0\nb.jpg,1\n", "line 3: has 2 cells, the heading has 3"),
        ("t.csv", "image,dog,cat\na.jpg,1,2\n", "line 2: '2' in column 'cat'"),
        ("t.csv", "image,dog,dog\na.jpg,1,0\n", "line 1: column 'dog' occurs twice"),
        ("t.csv", "image,dog,\na.jpg,1,0\n", "line 1: column '' has no name"),
        ("t.csv", "image\na.jpg\n", "line 1: the heading has no column for labels"),
        ("t.csv", "a.jpg,0,1\nb.jpg,1,0\n", "line 1: columns of 0 and 1 need a heading"),
        ("t.csv", "a.jpg dog\nb.jpg cat\n", "line 1: no row has a label"),
        (
            "t.csv",
            'a.jpg,dog\nb.jpg,"cat\ncats/a,dog\n',
            "line 2: unexpected end of data; check the quotation",
        ),
        ("t.csv", 'a.jpg,"dog\nb.jpg,cat"\n', "line 1: class name .* control character"),
        ("t.csv", "a.jpg,dog\n,cat\n", "line 2: '' names no image"),
        ("t.csv", "a.jpg,dog\n../a.jpg,cat\n", r"line 2: '\.\./a\.jpg' holds '\.\.'"),
        ("t.csv", "a.jpg,dog\ncats\\a.png,cat\n", "line 2: .* holds a backslash"),
        ("t.csv", "/photos/a.jpg,dog\n", "line 1: .* is an absolute path"),
        ("t.csv", "C:/photos/a.jpg,dog\n", "line 1: .* is an absolute path"),
        ("t.csv", b"a.jpg,\xff\xfe\n", "not UTF-8"),
        ("t.csv", "x.jpg,dog\ny.jpg,cat\n", r"none of its 2 images can be used: 2 are not in .*'a'"),
        ("t.csv", "image,dog\na.jpg,0\n", "none of its 1 images .* 1 show none"),
        ("t.csv", "image,label\na.jpg,\n", "names no class"),
        ("t.csv", "".join(f"a.jpg,{i}\n" for i in range(255)), "names 255 classes; 254 at most"),
        ("t.jsonl", "", "holds no row; write one"),
        ("t.jsonl", '{"image": "a", "label": "dog"}\n{"image": "b"', "line 2: not JSON"),
        ("t.jsonl", '["a.jpg", "dog"]\n', "line 1: expected an object"),
        ("t.jsonl", '{"imge": "a.jpg", "label": "dog"}\n', "line 1: names no image"),
        ("t.jsonl", '{"image": 3, "label": "dog"}\n', "line 1: names no image"),
        ("t.jsonl", '{"image": "a", "lable": "dog"}\n', "line 1: 'dog' in column 'lable'"),
        ("t.jsonl", '{"image": "a", "labels": [["dog"]]}\n', r"line 1: .* is not a label"),
        ("t.jsonl", '{"image": "a", "label": true}\n', r"line 1: 'True' is not a label"),
        ("t.jsonl", '{"image": "\\ud800", "label": "dog"}\n', "line 1: .* control character"),
        ("t.jsonl", "[" * 100_000 + "\n", "line 1: not JSON"),
    ],
)
def test_bad_tables_are_explained_with_file_and_line(photos, name, content, message):
    with pytest.raises(DataError, match=message) as caught:
        load(photos, content, name)
    assert str(photos.parent / name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_things(photos, tmp_path):
    with pytest.raises(DataError, match=r"no\.csv: no such file"):
        load_folder_csv(tmp_path / "no.csv", photos)
    with pytest.raises(DataError, match=r"nowhere: no such folder; --image-dir"):
        load_folder_csv(table(photos, PLAIN), tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: holds no image"):
        load_folder_csv(table(photos, PLAIN), tmp_path / "empty")


def test_two_suffixes_of_one_stem_are_an_error_where_the_table_does_not_say_which(photos):
    (photos / "a.png").touch()
    for rows in ("image,label\na,dog\n", "a.jpg,dog\na.png,cat\n"):
        with pytest.raises(DataError, match=r"a\.jpg and a\.png differ only in their suffix, .* 'a'; rename"):
            load(photos, rows)
    assert tags_of(load(photos, "b.jpg,dog\n")) == {"b": {"dog"}}
    for name in ("a.jpg", "a.png", "./a.png"):
        (record,) = load(photos, f"{name},dog\n").images.records
        assert record.path == photos / name


def test_a_heic_file_beside_a_picture_of_the_same_name_is_not_in_the_way(photos):
    (photos / "a.HEIC").touch()
    (record,) = load(photos, "image,label\na,dog\n").images.records
    assert record.path == photos / "a.jpg"


def test_what_is_in_the_folder_is_never_called_absent(photos):
    for name in ("raw.NEF", "only_by_stem.cr2", "table.xlsx"):
        (photos / name).touch()
    (photos / ".thumbs").mkdir()
    (photos / ".thumbs" / "t.jpg").touch()
    rows = "a.jpg,dog\nraw.NEF,dog\nonly_by_stem,cat\n.thumbs/t.jpg,cat\nnowhere.jpg,cat\ntable,cat\n"
    loaded = load(photos, rows)
    assert [record.image_id for record in loaded.images.records] == ["a"]
    there = about(loaded, "although they are in")
    assert "3 (raw.NEF, only_by_stem.cr2, .thumbs/t.jpg); JPEG, PNG" in there
    assert about(loaded, "because they are not in").endswith("2 (nowhere, table)")
    assert set(loaded.skipped) == {"raw.NEF", "only_by_stem", ".thumbs/t", "nowhere", "table"}


@pytest.mark.parametrize(
    "suffix",
    ["tif", "TIFF", "gif", "heic", "HEIF", "jfif", "jpe", "JPG", "bmp", "webp", "ppm", "avif", "mpo"],
)
def test_suffixes_of_pictures(photos, suffix):
    (photos / f"new.{suffix}").touch()
    for name in (f"new.{suffix}", "new"):
        (record,) = load(photos, f"image,label\n{name},dog\n").images.records
        assert (record.image_id, record.path) == ("new", photos / f"new.{suffix}")


@pytest.mark.parametrize(
    ("name", "image_id"),
    [
        ("a.jpg", "a"),
        ("./x//y/a.b.JPEG", "x/y/a.b"),
        ("a", "a"),
        ("a.tif", "a"),
        ("a.svg", "a.svg"),
        ("cafe\u0301.png", "caf\u00e9"),
        ("Screenshot 3.00\u202fPM.png", "Screenshot 3.00\u202fPM"),
        ("..a.jpg", "..a"),
    ],
)
def test_picture_id(name, image_id):
    assert picture_id(name, "x") == image_id


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "/",
        "..",
        "a/../b.jpg",
        "...jpg",
        "..jpg",
        ".jpg",
        "a/.png",
        "a\\b.jpg",
        "a\0.jpg",
        "/a",
        "a\nb",
    ],
)
def test_names_that_are_no_picture_id(name):
    with pytest.raises(DataError, match=r"^here: .*; write the path of an image below --image-dir"):
        picture_id(name, "here")


@given(st.text(st.sampled_from("a./\\\0é:C \n\ud800"), max_size=12) | st.text(max_size=20))
def test_a_picture_id_stays_in_its_folder_and_is_its_own_id(name):
    try:
        image_id = picture_id(name, "x")
    except DataError:
        return
    assert not image_id.startswith("/") and "\\" not in image_id
    assert not {"", ".", ".."} & set(image_id.split("/"))
    assert os.path.normpath(image_id) == image_id
    image_id.encode("utf-8")


def test_scan_follows_links_once_and_passes_over_hidden_files(photos, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "far.jpg").touch()
    (photos / "linked").symlink_to(outside)
    (photos / "cats" / "loop").symlink_to(photos)
    for name in (".cache", ".ipynb_checkpoints", "cats/@eaDir", "__MACOSX"):
        (photos / name).mkdir()
    hidden = (".cache/x.jpg", "cats/@eaDir/x.jpg", "__MACOSX/x.jpg", "._a.jpg", ".h.png")
    for name in (*hidden, "notes.txt", "a.heic", "odd\\name.jpg", "new\nline.jpg"):
        (photos / name).touch()
    warnings, passed_over = [], []
    found = scan_pictures(photos, warnings, passed_over)
    folders = [".cache/", ".ipynb_checkpoints/", "__MACOSX/", "cats/@eaDir/"]
    assert sorted(passed_over) == sorted([*folders, "._a.jpg", ".h.png", "notes.txt", "a.heic"])
    assert found == {
        "a": ("a.jpg",),
        "b": ("b.JPG",),
        "cats/a": ("cats/a.png",),
        "dogs/my pet.v2": ("dogs/my pet.v2.jpeg",),
        "linked/far": ("linked/far.jpg",),
    }
    assert len(warnings) == 1 and ": 2 (" in warnings[0] and "\n" not in warnings[0]


def test_restrict_takes_the_order_of_the_list_and_keeps_the_classes(photos):
    path = photos.parent / "list.txt"
    (photos / "b.JPG").unlink()
    whole = load(photos, PLAIN + "b.jpg,cat\ndogs/my pet.v2.jpeg\n")
    path.write_bytes(
        "\ufeff# mine\r\n\r\ncats/a\r\n./a.jpg\r\ncats/a.png\r\ndogs/my pet.v2\r\nb\r\n".encode()
    )
    part = restrict(whole, path)
    assert [record.image_id for record in part.images.records] == ["cats/a", "a"]
    assert part.images.class_names == ("cat", "dog") and negatives_of(part) == ["dogs/my pet.v2"]
    assert part.skipped == ("b",) and about(part, "left out").endswith("1 (b)")
    assert about(part, "repeated").endswith("1 repeated lines were dropped")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a\nzebra\n../a\n", r"list\.txt: not in .*: 2 \(zebra, \.\./a\) of 3"),
        ("# nothing\n", r"list\.txt: lists no image"),
        ("dogs/my pet.v2\n", r"list\.txt: none of its 1 images has both"),
    ],
)
def test_lists_that_do_not_fit(photos, content, message):
    whole = load(photos, PLAIN + "dogs/my pet.v2.jpeg\n")
    path = photos.parent / "list.txt"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        restrict(whole, path)


CELLS = st.sampled_from([
    *("image", "label", "a.jpg", "b", "cats/a", "dog", "0", "1", "", '"', "..", "é", "\\", "x" * 50, "id", "split"),
    *("['a', 'b']", "['a' 'b'", "{'a': 1}", '"[""a""]"', '"a, b"', "a|b", "a b", "NA", "Dog", "2", "sep=;", "(", "'"),
])  # fmt: skip
TABLES = st.lists(st.lists(CELLS, max_size=4).map(",".join), max_size=6).map("\n".join).map(str.encode)
JSON = st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(), st.lists)
KEYS = st.sampled_from(["image", "file_name", "label", "labels", "dog", ""])
LINES = (
    st.lists(st.dictionaries(KEYS, CELLS | JSON).map(json.dumps), max_size=4).map("\n".join).map(str.encode)
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
@given(content=st.binary() | TABLES | LINES, name=st.sampled_from(["t.csv", "t.tsv", "t.jsonl"]))
def test_any_file_is_read_or_explained(photos, content, name):
    try:
        loaded = load(photos, content, name)
    except (DataError, ConfigError) as error:
        assert len(str(error).splitlines()) == 1
        return
    assert {record.image_id for record in loaded.images.records} <= {"a", "b", "cats/a", "dogs/my pet.v2"}
    assert all(record.class_ids and record.path.is_file() for record in loaded.images.records)


@given(
    st.dictionaries(st.sampled_from("abcdefgh"), st.sets(st.sampled_from(["dog", "cat", "ox"]), min_size=1))
)
def test_rows_and_columns_say_the_same(tmp_path_factory, tags):
    folder = tmp_path_factory.mktemp("twin")
    rows = "image,label\n" + "".join(f"{i},{','.join(sorted(names))}\n" for i, names in tags.items())
    marks = "image,cat,dog,ox\n" + "".join(
        f"{i},{','.join(str(int(c in names)) for c in ('cat', 'dog', 'ox'))}\n" for i, names in tags.items()
    )
    found = []
    for content in (rows, marks):
        (folder / "t.csv").write_text(content)
        found.append({i: set(names) for _, i, names in read_tags(folder / "t.csv").rows} if tags else {})
    assert found == [tags, tags]
