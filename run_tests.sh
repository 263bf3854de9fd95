#!/usr/bin/env bash
# Runs the tests in one of the environments that setup_env.sh makes.
set -euo pipefail

# Modules from the user's own path would be tested in place of the pinned ones.
unset PYTHONPATH PYTHONHOME CDPATH
# Warnings stay; TensorFlow's start-up chatter about the machine goes.
export TF_CPP_MIN_LOG_LEVEL=${TF_CPP_MIN_LOG_LEVEL:-2}

cd "$(dirname "${BASH_SOURCE[0]}")"

usage() {
  cat <<'END'
usage: ./run_tests.sh [tf1|tf2|analysis] [pytest arguments]

Sets up the environment and runs pytest in it, from the project's folder.
Without a name: the environment that ./setup_env.sh chooses. `analysis` runs
the tests that need no TensorFlow.

  ./run_tests.sh tf2 tests/test_cascade_macs.py -k published
END
}

stack=''
case ${1:-} in
  -h | --help) usage; exit ;;
  tf1 | tf2 | analysis) stack=$1; shift ;;
esac

# Files named by the user take the place of the default ones.
tests=(tests)
if [[ $stack == analysis ]]; then
  tests=(tests/test_analyze_imagenet_labels.py tests/test_cascade_*.py
         tests/test_softmax_dump.py tests/test_dump_*.py
         tests/test_resumed_dumps.py tests/test_reading_order.py
         tests/test_background_writer.py)
fi
for argument in "$@"; do
  case $argument in
    tests | tests/* | *.py | *.py::*) tests=() ;;
  esac
done

venv=$(./setup_env.sh ${stack:+"$stack"})
# ${tests[@]+...}: to bash before 4.4 an empty array is an unset variable.
exec "$venv/bin/python" -m pytest --durations=10 \
  ${tests[@]+"${tests[@]}"} "$@"
