"""The documentation tells the truth: links lead somewhere, commands parse, flags and defaults are the program's."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import irn_pipeline.stages.catalogue as command_line
from irn_pipeline.engine import command
from irn_pipeline.engine.command import RunOptions
from irn_pipeline.engine.execution import Execution
from irn_pipeline.engine.invocation import Invocation
from irn_pipeline.engine.store import StageRecord
from irn_pipeline.files.yaml_text import read_yaml
from irn_pipeline.stages.catalogue import PIPELINE, main, stage_main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "data" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
IDS = [page.relative_to(ROOT).as_posix() for page in PAGES]
OF_IRN = [
    "num_workers", "voc12_root", "train_list", "val_list", "infer_list", "chainer_eval_set", "cam_network",
    "cam_crop_size", "cam_batch_size", "cam_num_epoches", "cam_learning_rate", "cam_weight_decay",
    "cam_eval_thres", "cam_scales", "conf_fg_thres", "conf_bg_thres", "irn_network", "irn_crop_size",
    "irn_batch_size", "irn_num_epoches", "irn_learning_rate", "irn_weight_decay", "beta", "exp_times",
    "ins_seg_bg_thres", "sem_seg_bg_thres", "log_name", "cam_weights_name", "irn_weights_name",
    "cam_out_dir", "ir_label_out_dir", "sem_seg_out_dir", "ins_seg_out_dir", "train_cam_pass",
    "make_cam_pass", "eval_cam_pass", "cam_to_ir_label_pass", "train_irn_pass", "make_ins_seg_pass",
    "eval_ins_seg_pass", "make_sem_seg_pass", "eval_sem_seg_pass",
]  # fmt: skip
"""Every flag of the original's run_sample.py."""


def outside_blocks(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def broken_links(text: str, folder: Path) -> list[str]:
    """Relative links that lead nowhere."""
    targets = re.findall(r"\]\(([^)\s]+)\)", outside_blocks(text))
    local = [target.split("#")[0] for target in targets if not re.match(r"[a-z]+:", target)]
    return [target for target in local if target and not (folder / target).exists()]


def commands(text: str) -> Iterator[list[str]]:
    """Commands of this package in the code blocks: module or script, then its words; sketches are left out."""
    for block in re.findall(r"^```\w*\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith(
                ("./run_all.sh", "python -m stages", "irn-pipeline", "torchrun", "srun torchrun")
            ):
                words = shlex.split(line.partition("torchrun ")[2] or line, comments=True)
                if "torchrun" in line:
                    words = ["python", *words[words.index("-m") :]]
                # "[--flag] ..." stands for something, and is no command.
                if not any(word.startswith(("[", "...")) for word in words):
                    yield words[2:] if words[0] == "python" else words


def known_flags() -> set[str]:
    """Every flag, as a single stage's command and as a range's."""
    common = [entry.name for kind in (RunOptions, PIPELINE.source, Execution) for entry in fields(kind)]
    flags = {"--help", *(f"--{name}" for name in common)}
    for stage in PIPELINE.stages + PIPELINE.tools:
        for entry in fields(stage.params):
            flags |= {f"--{entry.name}", f"--{stage.name}.{entry.name}"}
    return flags | {flag if "." in flag else flag.replace("_", "-") for flag in flags}


def flags_told(text: str) -> set[str]:
    """Flags in inline code; the original's, in the first column of tables, and those of other scripts are not ours."""
    lines = [
        line.split("|", 2)[-1] if line.startswith("| `") else line
        for line in outside_blocks(text).splitlines()
    ]
    spans = re.findall(r"`([^`]+)`", "\n".join(lines))
    ours = [span for span in spans if not re.match(r"python (?!-m stages)", span)]
    return {flag for span in ours for flag in re.findall(r"(?<![\w-])--[a-z][\w.-]*", span)}


def run(words: list[str]) -> int:
    if words[0] == "stages.plan":
        return main(["plan", *words[1:]])
    if words[0].startswith("stages."):
        return stage_main(words[0].removeprefix("stages."), words[1:])
    return main(["run", *words[1:]] if words[0] == "./run_all.sh" else words[1:])


def read_yaml_if_ours(path: Path) -> dict[str, Any]:
    """A bare name is a file of the reader's own."""
    return read_yaml(path) if path.exists() or path.parent != Path() else {}


@pytest.fixture
def parsed_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands stop after all their words were understood."""
    monkeypatch.setattr(Invocation, "run", lambda self: None)
    monkeypatch.setattr(command, "read_yaml", read_yaml_if_ours)
    monkeypatch.setattr(command_line, "_make_demo_set", lambda: None)
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_lead_to_files(page: Path) -> None:
    assert broken_links(page.read_text(encoding="utf-8"), page.parent) == []


@pytest.mark.usefixtures("parsed_only")
def test_every_command_is_understood(capsys: pytest.CaptureFixture[str]) -> None:
    found = {page: list(commands(page.read_text(encoding="utf-8"))) for page in PAGES}
    assert sum(map(len, found.values())) > 25
    for page, lines in found.items():
        for words in lines:
            if "--help" not in words:
                assert run(words) == 0, f"{page}: {shlex.join(words)}: {capsys.readouterr().err}"


@pytest.mark.usefixtures("parsed_only")
@pytest.mark.parametrize(
    "block",
    [
        "```\n./run_all.sh 1-9 --voc-root x\n```\n",
        "```\n./run_all.sh 2 --voc-root x \\\n  --make_cam.scale 1\n```\n",
        "```\npython -m stages.predict --modell x  # remark\n```\n",
        "```\n./run_all.sh 2 --voc-root x --config configs/none.yaml\n```\n",
    ],
)
def test_a_wrong_command_is_seen(block: str) -> None:
    assert [run(words) for words in commands(block)] == [1]


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_flag_in_the_text_exists(page: Path) -> None:
    assert flags_told(page.read_text(encoding="utf-8")) - known_flags() == set()


def test_what_is_wrong_in_a_text_is_seen(tmp_path: Path) -> None:
    (tmp_path / "there.md").touch()
    text = "[a](there.md#part) [b](gone.md) [c](https://x.org) `--voc-root`\n| `--old` | `--gone x` |\n"
    assert broken_links(text, tmp_path) == ["gone.md"]
    assert flags_told(text) - known_flags() == {"--gone"}


def test_every_flag_of_the_original_has_its_line() -> None:
    text = (ROOT / "docs" / "FROM_IRN.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `--(\w+)` \| (`--|none)", text, flags=re.MULTILINE)
    assert [name for name, _ in rows] == OF_IRN


def test_defaults_in_the_tuning_page_are_the_defaults() -> None:
    defaults = {
        entry.name: entry.default
        for stage in (PIPELINE.stage_named("mine_relations"), PIPELINE.stage_named("synthesize_labels"))
        for entry in fields(stage.params)
    }
    text = (ROOT / "docs" / "TUNING.md").read_text(encoding="utf-8")
    told = re.findall(r"`(\w+)` \((\d[\d.]*)", text)
    assert len(told) >= 10
    assert {name: float(value) for name, value in told} == {name: defaults[name] for name, _ in told}


def test_stages_of_the_run_folder_page_are_the_stages() -> None:
    text = (ROOT / "docs" / "RUN_FOLDER.md").read_text(encoding="utf-8")
    told = re.findall(r"^  (\w+)/", text, flags=re.MULTILINE)
    assert len(told) == len(set(told))
    assert {stage.name for stage in PIPELINE.stages} <= set(told)
    assert set(told) <= {stage.name for stage in PIPELINE.stages + PIPELINE.tools}


def test_keys_of_the_stage_record_are_told() -> None:
    text = (ROOT / "docs" / "RUN_FOLDER.md").read_text(encoding="utf-8")
    table = text.split("## stage.json")[1].split("## ")[0]
    assert re.findall(r"^\| `(\w+)`", table, flags=re.MULTILINE) == [e.name for e in fields(StageRecord)]
