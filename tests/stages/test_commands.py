"""The commands of single stages, and what the package offers by name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import irn_pipeline
from irn_pipeline import configs
from irn_pipeline.errors import ConfigError
from irn_pipeline.stages import NAMES, make_cam
from irn_pipeline.stages.catalogue import PIPELINE
from irn_pipeline.stages.command import run_stage_command

ROOT = Path(__file__).parents[2]
MODULES_AFTER = """
import runpy, sys
sys.argv = ["make_cam", "--voc-root", "nowhere"]
try:
    runpy.run_module("stages.{0}", run_name="__main__")
except SystemExit as end:
    print(end.code, *sorted(name for name in sys.modules if name.startswith("irn_pipeline.stages.")))
"""


def test_every_stage_has_its_name_and_its_command() -> None:
    assert {stage.name for stage in PIPELINE.stages + PIPELINE.tools} == set(NAMES)
    assert {path.stem for path in (ROOT / "stages").glob("[a-z]*.py")} == {*NAMES, "plan"}


def test_a_command_imports_no_other_stage() -> None:
    done = subprocess.run(
        [sys.executable, "-c", MODULES_AFTER.format("make_cam")],
        capture_output=True, text=True, cwd=ROOT, check=True,
    )  # fmt: skip
    assert "nowhere" in done.stderr
    assert done.stdout.split() == ["1", "irn_pipeline.stages.command", "irn_pipeline.stages.make_cam"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("train_irn: {epochs: 3}\nmake_cam: {scales: [1.0]}\n", "nowhere"),
        ("train_inr: {epochs: 3}\n", "unknown key 'train_inr'"),
        ("make_cam: {scale: [1.0]}\n", "unknown key 'scale' in make_cam; did you mean 'scales'?"),
    ],
)
def test_a_configuration_may_have_sections_of_other_stages(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, message: str
) -> None:
    (tmp_path / "shared.yaml").write_text(content)
    flags = ["--voc-root", "nowhere", "--run-dir", str(tmp_path), "--config", str(tmp_path / "shared.yaml")]
    assert run_stage_command(make_cam.STAGE, flags) == 1
    assert message in capsys.readouterr().err


def test_the_package_offers_its_names_and_imports_nothing_before_they_are_used() -> None:
    for name in irn_pipeline.__all__:
        assert getattr(irn_pipeline, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'predict_mask'"):
        irn_pipeline.predict_mask  # noqa: B018
    code = "import sys, irn_pipeline; print({'torch', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "set()\n"


def test_configurations_of_a_checkout_and_of_an_installation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert configs.config_folder() == ROOT / "configs"
    folder = tmp_path / "share" / "irn_pipeline" / "configs"
    folder.mkdir(parents=True)
    (folder / "voc12.yaml").touch()

    class Listed:
        name = "voc12.yaml"

        def locate(self) -> Path:
            return folder / "voc12.yaml"

    monkeypatch.setattr(configs, "__file__", str(tmp_path / "site-packages" / "irn_pipeline" / "configs.py"))
    monkeypatch.setattr(configs.metadata, "files", lambda name: [Listed()])
    assert configs.config_folder() == folder
    monkeypatch.setattr(configs.metadata, "files", lambda name: None)
    with pytest.raises(ConfigError, match="install irn_pipeline again"):
        configs.config_folder()
