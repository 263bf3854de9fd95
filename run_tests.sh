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

Sets up the environment and runs pytest in it, from the project's folder: all
tests, or the files that you name. Without a stack it takes the one that
./setup_env.sh chooses. `analysis` runs the tests that need no TensorFlow, in
the newest Python, and those in a browser; tf1 runs the former in the oldest.

  ./run_tests.sh                     minutes
  ./run_tests.sh tf2 tests/test_cascade_macs.py -k published
  ./run_tests.sh tf2 -n 0 --pdb      in one process, to look into a failure
END
}

stack=''
case ${1:-} in
  tf1 | tf2 | analysis) stack=$1; shift ;;
esac

arguments=()
named_files=''
for argument in "$@"; do
  case $argument in
    -h | --help) usage; exit ;;
    tests | tests/* | *.py | *.py::*) named_files=1 ;;
  esac
  arguments+=("$argument")
done

venv=$(./setup_env.sh ${stack:+"$stack"})
if [[ -z $named_files ]]; then
  without_tensorflow=(tests/test_{analyze,cascade,shared,slow}_*.py
                      tests/test_dump_writer.py)
  case ${venv##*-} in
    analysis) arguments+=("${without_tensorflow[@]}") ;;
    tf1) arguments+=(--ignore=tests/test_cascade_browser.py) ;;
    tf2) arguments+=("${without_tensorflow[@]/#/--ignore=}"
                     --ignore=tests/test_setup_env.py) ;;
  esac
fi

# A file's tests stay in one process: they share what is costly to make. More
# than four processes of TensorFlow may be too much for the memory.
cores=$(getconf _NPROCESSORS_ONLN)
# ${arguments[@]+...}: to bash before 4.4 an empty array is an unset variable.
exec "$venv/bin/python" -m pytest --durations=10 --dist loadfile \
  --numprocesses $((cores < 4 ? cores : 4)) ${arguments[@]+"${arguments[@]}"}
