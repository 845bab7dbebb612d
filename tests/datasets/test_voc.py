import unicodedata

import pytest

from irn_pipeline.datasets.voc import VOC_CLASSES, load_voc, read_class_names
from irn_pipeline.errors import DataError

CLASSES = ("person", "dog", "car", "cat")


def write_xml(root, image_id, names):
    objects = "".join(
        f"<object><name>{name}</name><difficult>1</difficult><part><name>head</name></part></object>"
        for name in names
    )
    text = f"<annotation><folder>x</folder><source><name>flickr</name></source>{objects}</annotation>"
    (root / "Annotations" / f"{image_id}.xml").write_text(text, encoding="utf-8")


def write_list(root, name, text, folder="Segmentation", encoding="utf-8"):
    path = root / "ImageSets" / folder / f"{name}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))
    return path


def ids(loaded):
    return [record.image_id for record in loaded.images.records]


@pytest.fixture
def voc(tmp_path):
    """Three pictures: a (dog, person), b (car), c.d (two cats)."""
    root = tmp_path / "VOC2012"
    for folder in ("JPEGImages", "Annotations", "SegmentationClass", "SegmentationObject"):
        (root / folder).mkdir(parents=True)
    for image_id, names in {"a": ["person", " dog "], "b": ["car"], "c.d": ["cat", "cat"]}.items():
        (root / "JPEGImages" / f"{image_id}.jpg").touch()
        write_xml(root, image_id, names)
    return root


def add_picture(root, name, names=("car",)):
    (root / "JPEGImages" / name).touch()
    write_xml(root, name.rpartition(".")[0], names)


def test_tags_are_the_sorted_distinct_classes_of_the_objects_not_of_their_parts(voc):
    loaded = load_voc(voc)
    assert loaded.images.class_names == VOC_CLASSES and len(VOC_CLASSES) == 20
    assert [record.class_ids for record in loaded.images.records] == [(11, 14), (6,), (7,)]
    assert ids(loaded) == ["a", "b", "c.d"]
    assert loaded.images.records[2].path == voc / "JPEGImages" / "c.d.jpg"
    assert loaded.skipped == () and load_voc(voc, class_names=CLASSES).warnings == ()


def test_classes_without_a_picture_are_named(voc):
    (warning,) = load_voc(voc).warnings
    assert "classes with no image: 16 ('aeroplane', 'bicycle', " in warning and "'tvmonitor')" in warning
    write_list(voc, "train", "a\n")
    (warning,) = load_voc(voc, class_names=CLASSES).warnings
    assert warning == f"{voc}/ImageSets/Segmentation/train.txt: classes with no image: 2 ('car', 'cat')"


def test_default_lists_in_their_order(voc):
    for folder, name, listed in (
        ("Main", "default", ["b", "c.d"]),
        ("Segmentation", "default", ["c.d", "b"]),
        ("", "train", ["c.d", "a"]),
        ("", "trainval", ["a", "c.d"]),
        ("Main", "train", ["c.d"]),
        ("Main", "trainval", ["c.d", "a", "b"]),
        ("Segmentation", "trainval", ["a"]),
        ("Segmentation", "train", ["b", "a"]),
        ("Segmentation", "train_aug", ["b"]),
    ):
        path = write_list(voc, name, "\n".join(listed), folder=folder)
        loaded = load_voc(voc)
        assert ids(loaded) == listed and loaded.listing == str(path)


def test_held_out_pictures_are_not_taken_where_train_and_val_are_the_only_lists(voc):
    train = write_list(voc, "train", "a\nc.d\n", folder="Main")
    write_list(voc, "val", "b\n", folder="Main")
    write_list(voc, "cat_train", "a -1\nc.d 1\n", folder="Main")
    loaded = load_voc(voc, class_names=CLASSES)
    assert ids(loaded) == ["a", "c.d"] and loaded.listing == str(train)
    assert load_voc(voc, image_list="val").listing == str(train.with_name("val.txt"))


def test_lists_that_are_not_for_training_are_named_where_every_picture_is_taken(voc):
    assert load_voc(voc, class_names=CLASSES).listing == str(voc / "JPEGImages")
    write_list(voc, "val", "b\n")
    write_list(voc, "cat_train", "b -1\n", folder="Main")
    loaded = load_voc(voc, class_names=CLASSES)
    assert ids(loaded) == ["a", "b", "c.d"] and loaded.listing == str(voc / "JPEGImages")
    (warning,) = loaded.warnings
    assert "its lists (val) are not training lists" in warning and "--image-list" in warning


def test_lists_of_one_class_are_no_image_lists_of_their_own(voc):
    write_list(voc, "cat_train", "a -1\nc.d 1\n", folder="Main")
    write_list(voc, "mine", "a\n", folder="Main")
    with pytest.raises(DataError, match=r"the data set has mine$"):
        load_voc(voc, image_list="nope")
    # By its name it can be had, but it does not choose the class's pictures: this is said.
    loaded = load_voc(voc, image_list="cat_train", class_names=("person", "dog", "cat"))
    assert ids(loaded) == ["a", "c.d"]
    (warning,) = loaded.warnings
    assert "cat_train.txt: the numbers behind its image ids are not used" in warning


def test_list_by_name_or_path(voc, tmp_path):
    write_list(voc, "mine", "b\n", folder="Main")
    other = tmp_path / "elsewhere.txt"
    other.write_text("a")
    assert ids(load_voc(voc, image_list="mine")) == ["b"]
    assert ids(load_voc(voc, image_list="mine.txt")) == ["b"]
    assert ids(load_voc(voc, image_list=other)) == ids(load_voc(voc, image_list=str(other))) == ["a"]
    with pytest.raises(DataError, match=r"nothere.*mine"):
        load_voc(voc, image_list="nothere")


@pytest.mark.parametrize(
    "text",
    [
        "b\na\n",
        "\ufeff# a comment\r\n\r\n  b  \r\na\r\n",
        "b  1\na -1\n",
        "/JPEGImages/b.jpg /SegmentationClassAug/b.png\n/JPEGImages/a.jpg /SegmentationClassAug/a.png\n",
        "JPEGImages/b.jpg\nJPEGImages/a.jpg",
        "b.jpg\na.jpg",
        "b.jpg 0\na.jpg 17\n",
        "b 0 0 1\na 1 0 -1\n",
        "/home/me/my data/VOC2012/JPEGImages/b.jpg\nC:\\data\\JPEGImages\\a.JPG\n",
        "./VOC2012/JPEGImages/b.jpg ./VOC2012/Annotations/b.xml\nJPEGImages/a.jpg Annotations/a.xml\n",
    ],
)
def test_line_forms(voc, text):
    write_list(voc, "train", text)
    assert ids(load_voc(voc)) == ["b", "a"]


@pytest.mark.parametrize("stem", ["bild straße 1", "写真", "a.b.c", "x 1", "001", "..b"])
def test_any_stem(voc, stem):
    add_picture(voc, f"{stem}.JPEG")
    write_list(voc, "train", f"{stem}\n")
    assert ids(load_voc(voc)) == [stem]


@pytest.mark.parametrize("listed", ["NFC", "NFD"])
@pytest.mark.parametrize("stored", ["NFC", "NFD"])
def test_composed_and_decomposed_names_are_the_same(voc, stored, listed):
    add_picture(voc, unicodedata.normalize(stored, "café 1.jpg"))
    (voc / "Annotations" / unicodedata.normalize(stored, "café 1.xml")).rename(
        voc / "Annotations" / unicodedata.normalize("NFC" if stored == "NFD" else "NFD", "café 1.xml")
    )
    write_list(voc, "train", unicodedata.normalize(listed, "café 1\n"))
    loaded = load_voc(voc)
    assert ids(loaded) == [unicodedata.normalize("NFC", "café 1")]
    assert loaded.images.records[0].path.is_file()


def test_suffixes_in_upper_case(voc):
    for folder, old, new in (("JPEGImages", "a.jpg", "a.JPG"), ("Annotations", "a.xml", "a.XML")):
        (voc / folder / old).rename(voc / folder / new)
    (voc / "Annotations" / "b.xml").rename(voc / "Annotations" / "b.Xml")
    write_list(voc, "train", "a.JPG\nb.jpg\n")
    loaded = load_voc(voc)
    assert [record.path.name for record in loaded.images.records] == ["a.JPG", "b.jpg"]
    assert [record.class_ids for record in loaded.images.records] == [(11, 14), (6,)]


def test_lower_case_is_preferred_where_both_are_there(voc):
    write_xml(voc, "b", ["dog"])
    (voc / "Annotations" / "b.xml").rename(voc / "Annotations" / "b.XML")
    write_xml(voc, "b", ["car"])
    assert load_voc(voc).images.records[1].class_ids == (VOC_CLASSES.index("car"),)


def test_repeated_lines_are_dropped_with_a_warning(voc):
    write_list(voc, "train", "b\na\nb\nb.jpg\n")
    loaded = load_voc(voc, class_names=("person", "dog", "car"))
    assert ids(loaded) == ["b", "a"]
    assert len(loaded.warnings) == 1 and "2 repeated" in loaded.warnings[0]


def test_pictures_without_objects_are_negatives(voc):
    write_xml(voc, "b", [])
    loaded = load_voc(voc)
    assert ids(loaded) == ["a", "c.d"] and not loaded.skipped
    assert [record.image_id for record in loaded.negatives] == ["b"]
    for image_id in ("a", "c.d"):
        write_xml(voc, image_id, [])
    with pytest.raises(DataError, match="none of its 3"):
        load_voc(voc)


def test_two_files_of_one_stem(voc):
    (voc / "JPEGImages" / "b.png").touch()
    loaded = load_voc(voc)
    assert loaded.images.records[1].path.name == "b.jpg" and "1 (b)" in loaded.warnings[0]


@pytest.mark.parametrize("line", ["../a", "/etc/passwd", "x/../../a", "..", "..\\a", "/a.jpg"])
def test_ids_that_leave_the_folder_are_refused(voc, line):
    write_list(voc, "train", f"{line}\n")
    with pytest.raises(DataError, match="not an image id"):
        load_voc(voc)


def test_absent_pictures_are_counted(voc):
    write_list(voc, "train", "a\nm1\nm2\nm3\nm4\n")
    with pytest.raises(DataError, match=r"4 \(m1, m2, m3, \.\.\.\) of 5"):
        load_voc(voc)


def test_empty_list_and_list_that_is_no_text(voc):
    path = write_list(voc, "train", "\n# nothing\n")
    with pytest.raises(DataError, match="lists no image"):
        load_voc(voc)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="UTF-8"):
        load_voc(voc)


def test_lists_in_other_encodings(voc):
    add_picture(voc, "café.jpg")
    for encoding in ("utf-8-sig", "utf-16", "utf-16-le"):
        path = write_list(
            voc, "train", "\ufeffb\r\ncafé\r\n" if encoding == "utf-16-le" else "b\ncafé", encoding=encoding
        )
        assert ids(load_voc(voc)) == ["b", "café"]
    for content, problem in (
        ("b\ncafé\n".encode("latin-1"), "line 2: not UTF-8 text; save the file as UTF-8"),
        ("b\n".encode("utf-16-le"), "zero bytes.*save the file as UTF-8"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=f"train.txt: .*{problem}"):
            load_voc(voc)


def test_missing_xml_is_counted(voc):
    (voc / "Annotations" / "b.xml").unlink()
    with pytest.raises(DataError, match=r"no XML file for 1 \(b\)"):
        load_voc(voc)


def test_unknown_class_names_the_nearest_and_the_remedy(voc):
    write_xml(voc, "b", ["persn"])
    with pytest.raises(DataError, match=r"b\.xml.*'persn'.*'person'.*--class-names"):
        load_voc(voc)


def test_own_class_names(voc):
    loaded = load_voc(voc, class_names=("person", "dog", "car", "cat"))
    assert [record.class_ids for record in loaded.images.records] == [(0, 1), (2,), (3,)]
    assert loaded.images.num_classes == 4


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_entity_bombs_are_refused(voc, encoding):
    entities = "".join(f'<!ENTITY e{i + 1} "{f"&e{i};" * 10}">' for i in range(8))
    head = f'<?xml version="1.0" encoding="{encoding}"?><!DOCTYPE x [<!ENTITY e0 "ha">{entities}]>'
    text = f"{head}<x><object><name>&e8;</name></object></x>"
    (voc / "Annotations" / "b.xml").write_bytes(text.encode(encoding))
    with pytest.raises(DataError, match=r"b\.xml.*DOCTYPE"):
        load_voc(voc)


@pytest.mark.parametrize("text", ["", "<annotation><object>", "no xml", "<a>&undefined;</a>"])
def test_broken_xml(voc, text):
    (voc / "Annotations" / "b.xml").write_text(text)
    with pytest.raises(DataError, match=r"b\.xml: not a readable XML"):
        load_voc(voc)


@pytest.mark.parametrize(
    ("declared", "encoding", "name"),
    [
        ("gb2312", "gb2312", "汽车"),
        ("GB2312", "gbk", "汽車"),
        ("gbk", "gbk", "汽车"),
        ("GB18030", "gb18030", "汽车"),
        ("Big5", "big5", "汽車"),
        ("Shift_JIS", "shift_jis", "車"),
        ("EUC-JP", "euc_jp", "車"),
        ("ISO-2022-JP", "iso2022_jp", "車"),
        ("euc-kr", "euc_kr", "차"),
        ("iso-8859-1", "latin-1", "Straße"),
        ("windows-1252", "cp1252", "Straße"),
        ("koi8-r", "koi8-r", "дом"),
        ("utf-16", "utf-16", "汽车"),
        # .NET writes this.
        ("utf-16", "utf-8", "汽车"),
        ("gb2312", "utf-8-sig", "汽车"),
    ],
)
def test_xml_is_read_in_the_encoding_that_it_declares(voc, declared, encoding, name):
    text = f'<?xml version="1.0" encoding="{declared}"?><x><object><name>{name}</name></object></x>'
    (voc / "Annotations" / "b.xml").write_bytes(text.encode(encoding))
    loaded = load_voc(voc, class_names=(*VOC_CLASSES, name))
    assert loaded.images.records[1].class_ids == (20,)


@pytest.mark.parametrize(
    ("start", "encoding"),
    [
        ("", "gbk"),
        ('<?xml version="1.0"?>', "gbk"),
        ('<?xml version="1.0" encoding="utf-8"?>', "latin-1"),
        ('<?xml version="1.0" encoding="x-mine"?>', "gbk"),
        ('<?xml version="1.0" encoding="hex"?>', "utf-8"),
        ('<?xml version="1.0" encoding="gb2312"?>', "latin-1"),
    ],
)
def test_xml_in_an_encoding_that_it_does_not_declare(voc, start, encoding):
    text = f"{start}<x><object><name>\xb0</name></object></x>"
    (voc / "Annotations" / "b.xml").write_bytes(text.encode(encoding))
    with pytest.raises(DataError, match=r"b\.xml: .*save it as UTF-8"):
        load_voc(voc)


def test_decomposed_class_names(voc, tmp_path):
    write_xml(voc, "b", [unicodedata.normalize("NFD", "café")])
    path = tmp_path / "names.txt"
    path.write_text(unicodedata.normalize("NFC", "person\ndog\ncafé\ncat\n"), encoding="utf-8")
    assert load_voc(voc, class_names=read_class_names(path)).images.records[1].class_ids == (2,)


def test_objects_that_are_called_background_give_no_tag(voc):
    write_xml(voc, "b", ["_background_", "car", "__ignore__"])
    loaded = load_voc(voc, class_names=CLASSES)
    assert loaded.images.records[1].class_ids == (2,)
    assert loaded.warnings == ("objects that are called background or ignored give no tag: 1 (b)",)
    write_xml(voc, "b", ["background"])
    assert load_voc(voc, class_names=(*CLASSES, "background")).images.records[1].class_ids == (4,)


def test_wrong_root(voc, tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        load_voc(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"did you mean .*VOC2012\?"):
        load_voc(tmp_path)
    with pytest.raises(DataError, match=r"did you mean .*VOC2012\?"):
        load_voc(voc / "JPEGImages")
    (tmp_path / "empty" / "JPEGImages").mkdir(parents=True)
    with pytest.raises(DataError, match="holds no image"):
        load_voc(tmp_path / "empty")


@pytest.mark.parametrize(
    "text",
    [
        "__ignore__\n_background_\ncat\ndog\n",
        "_background_\n__ignore__\ncat\ndog\n",
        "_background_\ncat\ndog\n",
        "__ignore__\ncat\ndog\n",
        "_background_\ncat\ndog\n__ignore__\n",
        "__background__\ncat\ndog\n",
        "background\ncat\ndog\n",
        "\nBackground\ncat\ndog\n",
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:128,0,0::\ndog:0,128,0:head,tail:run,sit\n",
        "# my classes\n# two of them\ncat\ndog\n",
        "background:::\ncat:::\ndog:::\n",
        "background:0,0,0::\ncat:128,0,0::\ndog:0,128,0::\nignored:224,224,192::\n",
    ],
)
def test_names_of_background_and_ignored_pixels_shift_no_class(tmp_path, text):
    path = tmp_path / "names.txt"
    path.write_text(text)
    assert read_class_names(path) == ("cat", "dog")


@pytest.mark.parametrize(
    "text", ["cat\n_background_\ndog\n", "cat\n__ignore__\ndog\n", "cat\n__background__\n"]
)
def test_a_background_between_the_classes_is_refused(tmp_path, text):
    path = tmp_path / "names.txt"
    path.write_text(text)
    with pytest.raises(DataError, match=r"names\.txt: _.*between the classes.*first line"):
        read_class_names(path)


def test_a_class_may_be_called_background(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("cat\nbackground\ntraffic:light\n# 1\n")
    assert read_class_names(path) == ("cat", "background", "traffic:light", "# 1")
    path.write_text("_background_\nbackground\ncat\n")
    assert read_class_names(path) == ("background", "cat")


def test_class_names_file(tmp_path):
    path = tmp_path / "names.txt"
    path.write_bytes("\ufeffdog\r\n traffic light \r\n\r\nStraße\r\n".encode())
    assert read_class_names(path) == ("dog", "traffic light", "Straße")
    for content, reason in (("\n", "names no class"), ("a\nb\na\n", "'a' is named twice")):
        path.write_text(content)
        with pytest.raises(DataError, match=reason):
            read_class_names(path)
    path.write_text("\n".join(map(str, range(255))))
    with pytest.raises(DataError, match="254"):
        read_class_names(path)
    with pytest.raises(DataError, match="no such file"):
        read_class_names(tmp_path / "missing.txt")
