#!/bin/sh
# Install the pinned packages and this pipeline: envs/install.sh PYTHON [user|dev] [--editable]
# user: what the pipeline needs. dev: also what tests, linters and benchmarks need.
# `make`, envs/Dockerfile and envs/pipeline.def all run this script.
set -eu
cd "$(dirname "$0")/.."
python=$1 kind=${2:-user}
pip="$python -m pip install --quiet --progress-bar off --no-compile --no-cache-dir"
$pip --requirement requirements.lock
if [ "$kind" = dev ]; then
    $pip --requirement requirements-dev.lock
    $pip --no-deps --requirement envs/brainmarks.lock
fi
# on all cores, pip would take one, and without what no run imports; a few files are templates
"$python" -m compileall -q -j 0 -x '/(tests|testing|transformers/models|pip|setuptools|mypy)/' "$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" >/dev/null 2>&1 || true
$pip --no-deps --no-build-isolation ${3:-} .
"$python" -P -m brainlm.preprocess.motion.compile # or every first job would compile them for itself
