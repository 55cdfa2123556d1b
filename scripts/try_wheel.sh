#!/bin/sh
# Try the built wheel as somebody who installs it: in an environment of its own, in a folder outside the repository.
#
#   scripts/try_wheel.sh WHEEL [PYTHON]
#
# EARWISE_TRY_DIR keeps that folder (default: a temporary one that is deleted). What earwise depends on comes from locks/, the CPU
# build of torch where pip is offered one. The base weights are fetched into EARWISE_HOME (default: the cache of the user).
set -eu

wheel=$(realpath "$1")
python=${2:-python3}
repository=$(realpath "$(dirname "$0")/..")
if [ -n "${EARWISE_TRY_DIR:-}" ]; then
    folder=$EARWISE_TRY_DIR
    mkdir -p "$folder"
else
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
fi
cd "$folder"
unset PYTHONPATH
export PIP_DISABLE_PIP_VERSION_CHECK=1 OMP_NUM_THREADS="${OMP_NUM_THREADS:-2}"

step() { echo "--- $*"; }
fail() { echo "try_wheel.sh: $*" >&2; exit 1; }
# The last command's output is in output.txt: fail unless it contains a text.
expect() { grep -q -e "$1" output.txt || { cat output.txt >&2; fail "the output has no '$1'"; }; }

step "installing $(basename "$wheel") in $folder"
"$python" -m venv --clear venv
locked='--quiet --require-hashes --only-binary :all: --no-deps'
torch=$(sed -n 's/^torch==\([0-9.]*\).*/\1/p' "$repository/locks/torch-cuda.txt")
{ ! command -v nvidia-smi > /dev/null 2>&1 && venv/bin/pip install --quiet --no-deps "torch==$torch+cpu" 2> /dev/null; } \
    || venv/bin/pip install $locked -r "$repository/locks/torch-cuda.txt"
venv/bin/pip install $locked -r "$repository/locks/base.txt"
venv/bin/pip install --quiet --no-deps "$wheel"
venv/bin/pip check
PATH="$folder/venv/bin:$PATH"

step 'it is the wheel that is imported, with its licences'
venv/bin/python - << 'END'
import importlib.metadata
from pathlib import Path

import earwise

assert "site-packages" in earwise.__file__, earwise.__file__
assets = Path(earwise.__file__).parent / "assets"
for name in ("embedded/trained.safetensors", "embedded/MODEL_CARD.md", "starter/ATTRIBUTION.md", "phrases/README.md"):
    assert (assets / name).is_file(), name
assert len(list((assets / "starter" / "clips").glob("*.ogg"))) == 655
licences = {Path(str(path)).name for path in importlib.metadata.files("earwise") or [] if "licenses" in str(path)}
assert {"LICENSE", "REUSE.toml", "CC-BY-NC-SA-4.0.txt", "GPL-2.0-or-later.txt"} <= licences, licences
END

step 'earwise, earwise build, earwise --version: help and version'
earwise > output.txt
expect 'Commands:'
earwise build > output.txt
expect 'Commands:'
earwise --version > output.txt
expect "$(venv/bin/python -c 'import importlib.metadata; print(importlib.metadata.version("earwise"))')"
earwise completion bash > output.txt
expect '_earwise_completion'

step 'earwise recipe'
earwise recipe > output.txt
expect 'r1-aqa'
earwise recipe r1-aqa > mine.yaml
grep -q '^recipe: r1-aqa' mine.yaml || fail 'earwise recipe r1-aqa does not print the recipe'
earwise recipe --path ddp > output.txt
expect 'ddp.yaml'

step 'earwise ask'
clip=$(venv/bin/python -c 'import earwise, pathlib; print(pathlib.Path(earwise.__file__).parent / "assets/starter/clips/dog_0.ogg")')
earwise ask "$clip" 'Which sound is this?' > output.txt
[ -s output.txt ] || fail 'no answer'
cat output.txt

step 'earwise train: one step of the packaged recipe, and of the copy; the trained model answers'
earwise train r1-aqa --profile cpu stages.0.max_steps=1 --no-eval --out run > /dev/null
earwise train mine.yaml --profile cpu --plan > output.txt
expect 'starter'
earwise ask "$clip" 'Which sound is this?' --choices dog,siren,rain --model run > output.txt
[ -s output.txt ] || fail 'no answer of the trained model'
cat output.txt

step 'the wheel works'
