"""Runs the benchmarks: `python -m benchmarks [--small] [--only NAME ...] [--out FILE.jsonl]`."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.case import Disagreement
from benchmarks.compare import ROOT, Rates, Record, run, table
from benchmarks.registry import NAMES, load

MACHINE_COMMAND = (sys.executable, "-m", "benchmarks.machine")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--small", action="store_true", help="tiny inputs, once each: checks results only")
    parser.add_argument(
        "--only", nargs="+", choices=NAMES, default=NAMES, metavar="NAME", help=", ".join(NAMES)
    )
    parser.add_argument("--out", type=Path, help="write the JSON lines to this file as well")
    options = parser.parse_args(arguments)
    records: list[Record] = []

    def report(record: Record) -> None:
        line = json.dumps({key: _rounded(value) for key, value in record.items()})
        records.append(record)
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
        if options.out is not None:
            with options.out.open("a", encoding="utf-8") as stream:
                stream.write(line + "\n")

    if options.out is not None:
        options.out.unlink(missing_ok=True)
    machine = json.loads(_machine(options.small))
    report(machine)
    rates = Rates(machine["float32_gflops"] * 1e9, machine["memory_gib_s"] * 1024**3)
    try:
        for name in options.only:
            for record in run(load(name), small=options.small, rates=rates):
                report(record)
    except Disagreement as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(table(records) + "\n")
    return 0


def _machine(small: bool) -> str:
    command = [*MACHINE_COMMAND, "--rates", *(["--small"] if small else [])]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def _rounded(value: object) -> object:
    return float(f"{value:.4g}") if isinstance(value, float) else value


if __name__ == "__main__":
    raise SystemExit(main())
