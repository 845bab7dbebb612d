"""Coverage-guided fuzzing (atheris) of every reader of files from strangers.

python -m tests.fuzz.harness --target unpickler --runs 400000
python -m tests.fuzz.harness --target all --runs 20000

Each target runs in a process of its own, which ends at the first input that makes a reader raise anything but an
IrnError, work for longer than 10 s, or take more than 2 GiB; that input is then in `--out`. One line of JSON a target
tells what was done. Not part of the tests; needs the extra `fuzz`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

_SECONDS, _MEGABYTES = 10, 2048
_READERS = [
    *(f"irn_pipeline.{room}" for room in ("foreign", "runtime", "datasets", "artifacts", "cam_files")),
    *("irn_pipeline.export.report_records", "irn_pipeline.nn.backbone", "pickletools", "zipfile"),
    *(
        f"PIL.{kind}"
        for kind in ("PngImagePlugin", "JpegImagePlugin", "BmpImagePlugin", "WebPImagePlugin", "ImageFile")
    ),
    "numpy.lib._format_impl",
]


def main() -> int:
    """Fuzz the targets that are named; returns 1 when one of them failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--target", default="all", help="name of a target, several with commas, or all")
    parser.add_argument("--runs", type=int, default=100_000, help="executions of each target")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--corpus", type=Path, help="folder of inputs to start from and to add to, kept; by default none"
    )
    parser.add_argument(
        "--out", type=Path, default=Path(tempfile.gettempdir()), help="where failing inputs go"
    )
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        _fuzz(options.target, options.runs, options.seed, options.corpus, options.out)
        return 0
    if options.target == "all":
        from tests.fuzz.targets import TARGETS

        names = list(TARGETS)
    else:
        names = options.target.split(",")
    failed = False
    for name in names:
        with tempfile.TemporaryDirectory() as temporary:
            corpus = (options.corpus or Path(temporary)) / name
            figures = _run_child(name, corpus, options)
        failed |= figures["failed"]
        sys.stdout.write(json.dumps(figures) + "\n")
        sys.stdout.flush()
    return int(failed)


def _run_child(name: str, corpus: Path, options: argparse.Namespace) -> dict[str, Any]:
    options.out.mkdir(parents=True, exist_ok=True)
    words = [
        sys.executable,
        "-m",
        "tests.fuzz.harness",
        "--child",
        "--target",
        name,
        "--runs",
        str(options.runs),
    ]
    words += ["--seed", str(options.seed), "--corpus", str(corpus), "--out", str(options.out.resolve())]
    start = time.perf_counter()
    done = subprocess.run(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, text=True, errors="replace"
    )
    executed = re.findall(r"stat::number_of_executed_units: (\d+)", done.stdout)
    covered = re.findall(r"cov: (\d+) ft: (\d+) corp: (\d+)/", done.stdout)
    peak = re.findall(r"stat::peak_rss_mb:\s*(\d+)", done.stdout)
    ok = done.returncode == 0 and bool(executed)
    first, last = (covered[0], covered[-1]) if covered else (("0",) * 3, ("0",) * 3)
    if not ok:
        lines = [line for line in done.stdout.splitlines() if not line.startswith(("#", "[ WARN", "libpng"))]
        sys.stderr.write("\n".join(lines[-60:]) + "\n")
    return {
        "target": name, "failed": not ok, "executions": int(executed[0]) if executed else 0,
        "seconds": round(time.perf_counter() - start, 1), "edges_of_seeds": int(first[0]), "edges": int(last[0]),
        "features": int(last[1]), "corpus": int(last[2]), "peak_mb": int(peak[0]) if peak else None,
    }  # fmt: skip


def _fuzz(name: str, runs: int, seed: int, corpus: Path, out: Path) -> None:
    try:
        import atheris
    except ImportError:
        sys.exit("the fuzzer needs atheris: pip install irn_pipeline[fuzz] (Linux; Python 3.11 to 3.13)")
    with atheris.instrument_imports(include=_READERS):
        from irn_pipeline.errors import IrnError
        from tests.fuzz.targets import TARGETS, surroundings
    import logging

    logging.disable()
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    target = TARGETS[name]
    corpus.mkdir(parents=True, exist_ok=True)
    for place, content in enumerate(target.seeds()):
        (corpus / f"seed{place}").write_bytes(content)
    memory = Path("/dev/shm")
    folder = surroundings(Path(tempfile.mkdtemp(dir=memory if os.access(memory, os.W_OK) else None)))
    (folder / target.file).parent.mkdir(exist_ok=True)
    words = out / f"{name}.dict"
    # An empty dictionary is an error.
    escaped = ["".join(f"\\x{byte:02x}" for byte in word) for word in target.words]
    words.write_text("".join(f'"{word}"\n' for word in escaped or ["0"]))

    def one(content: bytes) -> None:
        try:
            target.run(folder, content)
        except IrnError:
            return

    flags = [
        f"-runs={runs}", f"-seed={seed}", f"-timeout={_SECONDS}", f"-rss_limit_mb={_MEGABYTES}", "-print_final_stats=1",
        "-max_len=8192", f"-artifact_prefix={out}/{name}-", f"-dict={words}",
    ]  # fmt: skip
    atheris.Setup([sys.argv[0], *flags, str(corpus)], one)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
