#!/usr/bin/env bash
# Finds or makes a Python environment for this checkout and prints its interpreter: PYTHON=$(./setup_env.sh [EXTRA])
#
# The active environment is used as it is when it has everything that setup.cfg asks for. Otherwise .venv is made
# here, with uv when it is on PATH and with venv and pip when not. The extra `dev` adds test and lint tools.
set -euo pipefail
exec 3>&1 1>&2 </dev/null # only the interpreter's path goes to standard output
trap 'echo "setup: interrupted; the same command goes on from here"; exit 130' INT

extra=${1:-}
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
venv=$root/.venv
stamp=$venv/.irn_pipeline_setup

die() {
    echo "setup: $*"
    exit 1
}

finish() {
    echo "$1" >&3
    exit 0
}

# Whether interpreter $1 has what setup.cfg asks for; prints the first thing that it lacks.
has_requirements() {
    "$1" - "$root/setup.cfg" "$extra" <<'PYTHON'
import configparser, importlib.metadata, re, sys

def numbers(version):
    return [int(n) for n in re.match(r"[\d.]*", version).group().split(".") if n]

config = configparser.ConfigParser()
config.read(sys.argv[1])
wanted = config["options"]["install_requires"]
if sys.argv[2]:
    wanted += config["options.extras_require"][sys.argv[2]]
if sys.version_info < (3, 10):
    sys.exit("Python 3.10")
for line in wanted.split("\n"):
    found = re.match(r"([\w.-]+)[^<>=~]*[~>]=([\d.]+)", line)
    below = re.search(r'python_version < "3\.(\d+)"', line)
    if below and sys.version_info >= (3, int(below[1])):
        continue
    try:
        if found and numbers(importlib.metadata.version(found[1])) < numbers(found[2]):
            sys.exit(line)
    except importlib.metadata.PackageNotFoundError:
        sys.exit(line)
PYTHON
}

# 1. The environment that the user has activated.
active=${VIRTUAL_ENV:-${CONDA_PREFIX:-}}
if [[ -n $active && ! $active -ef $venv && -x $active/bin/python ]]; then
    if lacks=$(has_requirements "$active/bin/python" 2>&1); then
        finish "$active/bin/python"
    fi
    echo "setup: the active environment $active lacks ${lacks##*$'\n'}; using $venv"
fi

# 2. The one made here before. One made for `dev` serves everything else too, and one with an extra those without.
key=$(cat "$root/setup.cfg" "$root/pyproject.toml" - <<<"$root" | cksum)
is_ready() {
    [[ -x $venv/bin/python && -f $stamp ]] || return 1
    local made
    made=$(<"$stamp")
    [[ $made == "$key $extra" || $made == "$key dev" || (-z $extra && $made == "$key "*) ]]
}
is_ready && finish "$venv/bin/python"

# 3. An interpreter to use as it is, or to make .venv with.
base=
for name in python3 python python3.14 python3.13 python3.12 python3.11 python3.10; do
    if base=$("$name" -c 'import sys; print(sys.executable); sys.exit(sys.version_info < (3, 10))' 2>/dev/null); then
        break
    fi
    base=
done
[[ -n $base ]] || die "Python 3.10 or newer is needed, $(python3 --version 2>/dev/null || echo "no Python") was found"
if [[ ! -e $venv ]] && has_requirements "$base" 2>/dev/null; then
    finish "$base"
fi

if command -v flock >/dev/null; then # two set-ups at once: the second waits for the first and finds it done
    exec 4<"$root"
    if ! flock --nonblock 4; then
        echo "setup: waiting for another set-up in $root"
        flock 4
    fi
    is_ready && finish "$venv/bin/python"
fi

# 4. A new .venv, or the old one brought up to date. One whose making was cut off is made again.
previous=$(cat "$stamp" 2>/dev/null || true)
[[ $previous != unfinished ]] || rm -rf "$venv"
[[ $previous != *" dev" ]] || extra=dev
[[ -n $extra || $previous != *" offline" ]] || extra=offline
[[ -w $root ]] || die "$root cannot be written, so no environment can be made in it; activate one that has the packages of
setup.cfg, or clone into another folder"
rm -f "$stamp"
uv=$(command -v uv || true)
if [[ ! -x $venv/bin/python ]]; then
    if [[ -z $uv ]] && ! "$base" -c 'import ensurepip, venv' 2>/dev/null; then
        die "$base cannot make environments; install uv or its venv module (Debian, Ubuntu: apt install python3-venv)"
    fi
    echo "setup: making $venv with ${uv:-$base -m venv and pip}; this downloads torch and its libraries, several GB, once"
    mkdir -p "$venv"
    echo unfinished >"$stamp"
    make=("$base" -m venv)
    [[ -z $uv ]] || make=(uv venv --quiet --allow-existing --python "$base")
    log=$("${make[@]}" "$venv" 2>&1) || die "$venv cannot be made: ${log##*$'\n'}"
fi

install() {
    if [[ -n $uv ]]; then
        uv pip install --quiet --python "$venv/bin/python" "$@"
    else
        # Without --no-compile pip compiles every module of torch's libraries, of which few are ever imported: 48 of 145 s.
        "$venv/bin/python" -m pip install --quiet --no-input --no-compile --disable-pip-version-check "$@"
    fi
}
[[ -n $uv ]] || "$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$venv/bin/python" -m ensurepip >/dev/null 2>&1
log=$(install --editable "$root${extra:+[$extra]}" 2>&1) ||
    die "installing failed (${log##*$'\n'}); the same command goes on once the cause (network, disk space ...) is removed"
if [[ $extra == dev ]] && ! log=$(install --editable "$root[reference]" 2>&1); then
    echo "setup: pydensecrf2 cannot be built here (it takes a C++ compiler and Python's headers: apt install g++" \
        "python3-dev); going on without it, and without the tests against it: ${log##*$'\n'}"
fi
echo "$key $extra" >"$stamp"
finish "$venv/bin/python"
