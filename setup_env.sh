#!/usr/bin/env bash
# Makes one of the project's virtual environments; --help has the usage.
set -euo pipefail

# Settings meant for another Python, or for pip outside an environment, would
# reach into the one made here.
unset PYTHONPATH PYTHONHOME PIP_TARGET PIP_PREFIX CDPATH
export PIP_USER=0 PIP_DISABLE_PIP_VERSION_CHECK=1

root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

usage() {
  cat <<'END'
usage: ./setup_env.sh [tf1|tf2|analysis]

Makes a virtual environment beside this script, or finds it ready:

  tf1       .venv-tf1, Python 3.6, TensorFlow 1.12 (the paper's own stack)
  tf2       .venv-tf2, Python 3.9 to 3.11, TensorFlow 2.15
  analysis  .venv-analysis, newest of Python 3.6 to 3.13, no TensorFlow

Without a name it chooses tf1 where there is a Python 3.6, else tf2. It also
chooses tf2 where an NVIDIA driver is there without the CUDA 9.0 that
TensorFlow 1.12 needs. Pythons are looked for on PATH, in pyenv and in conda
environments. Where none suits tf2 or analysis, uv brings a Python 3.11: the uv
on PATH, or else one that is put into .venv-uv by any Python 3 that is here.
Without an NVIDIA driver, TensorFlow's CPU wheel of the same version is used.

The one line on stdout is the environment's folder, so that a script can say
  venv=$(./setup_env.sh tf2)
END
}

say() { echo "$*" >&2; }
die() { say "setup_env.sh: $*"; exit 1; }

# ---- Which Python ----------------------------------------------------------

# Prints a Python's version and the interpreter to build on. In a virtual
# environment that is its base, as the environment may be deleted one day.
# Debian's Python lacks ensurepip until python3-venv is installed.
readonly probe='
import os, sys
path = sys.base_prefix + "/bin/python%d.%d" % sys.version_info[:2]
if not os.access(path, os.X_OK):
  path = sys.executable
try:
  import ensurepip, ssl, venv
except ImportError:
  path = ""
print("%d.%d.%d" % sys.version_info[:3], path)
'

# Every path where a Python of version $1 may be, one per line.
candidates() {
  local folder
  type -aP "python$1" python3 python || true
  for folder in "${PYENV_ROOT:-${HOME:-}/.pyenv}"/versions/*; do
    echo "$folder/bin/python$1"
  done
  # conda's own list of its environments.
  sed "s|\$|/bin/python$1|" "${HOME:-}/.conda/environments.txt" 2>/dev/null ||
    true
}

# Sets python and python_version to the first Python of the versions given.
# Each is run, because a file's name proves nothing: pyenv puts a python3.6 on
# PATH that only says 'command not found'.
find_python() {
  local version candidate answer
  for version in "$@"; do
    while read -r candidate; do
      answer=$("$candidate" -c "$probe" 2>/dev/null </dev/null) || continue
      [[ $answer == "$version".* ]] || continue
      python_version=${answer%% *}
      python=${answer#* }
      [[ -z $python ]] || return 0
      without_venv=" ($candidate lacks venv: on Debian, apt install"
      without_venv+=' python3-venv)'
    done < <(candidates "$version")
  done
  return 1
}

# Sets python for $stack. For the stacks that run on Python 3.11, uv_from is set
# in its place where only uv can bring one: to the uv on PATH, or to the Python
# that can install it.
find_python_for_stack() {
  local versions remedy="'pyenv install 3.11', or install uv, and this script \
again"
  case $stack in
    tf1)
      versions=3.6
      remedy="'pyenv install 3.6.15' or 'conda create -n py36 python=3.6'"
      ;;
    tf2) versions='3.11 3.10 3.9' ;;
    analysis) versions='3.13 3.12 3.11 3.10 3.9 3.8 3.7 3.6' ;;
  esac
  # shellcheck disable=SC2086
  find_python $versions && return
  if [[ $stack != tf1 ]]; then
    uv_from=$(type -P uv) && return
    find_python 3 && uv_from=$python && return
  fi
  die "$stack needs Python ${versions// / or }, and none was found on PATH," \
    "in pyenv or in conda$without_venv: $remedy"
}

choose_stack() {
  local why='no Python 3.6 was found'
  stack=tf1
  if find_python 3.6; then
    why="Python $python_version is here"
    if has_nvidia_driver && ! "$python" -c \
        'import ctypes; ctypes.CDLL("libcublas.so.9.0")' 2>/dev/null; then
      stack=tf2
      why='TensorFlow 1.12 needs CUDA 9.0, which this NVIDIA machine lacks'
    fi
  else
    stack=tf2
  fi
  say "Choosing $stack: $why."
}

# ---- Which packages --------------------------------------------------------

# nvidia-smi alone proves nothing, it may be there without a device; it is
# asked only where /proc does not answer, because it can take seconds.
has_nvidia_driver() {
  [[ -e /proc/driver/nvidia/version ]] || nvidia-smi -L >/dev/null 2>&1
}

# The requirements of $stack on this machine, without comments. The first line
# makes an environment that was copied elsewhere count as another one: its
# scripts still point to where it came from.
requirements() {
  local to_cpu='' files=("$root/requirements-$stack.txt")
  case $stack in
    tf1) files=("$root/requirements.txt") ;;
    tf2) files+=("$root/requirements-onnx.txt") ;;  # For --export_onnx.
  esac
  if [[ $stack != analysis ]] && ! has_nvidia_driver; then
    to_cpu='s/^tensorflow-gpu==/tensorflow==/
            s/^tensorflow\[and-cuda\]==/tensorflow-cpu==/'
  fi
  echo "# $venv"
  sed -e 's/ *#.*//' -e '/^$/d' -e "$to_cpu" \
    "${files[@]}" "$root/requirements-test.txt"
}

# ---- The environment -------------------------------------------------------

# installed.txt is written last, so an interrupted install is not taken for a
# whole one.
is_ready() {
  [[ -f $venv/installed.txt && $(<"$venv/installed.txt") == "$wanted" ]] &&
    "$venv/bin/python" -V >/dev/null 2>&1
}

# Two installs into one folder would spoil each other. The lock is on a file
# that is there anyway; not this script, which cannot be started while it is
# open for writing, as NFS wants it to be.
wait_for_turn() {
  type -P flock >/dev/null || return 0
  exec 9<>"$root/requirements-test.txt"
  flock -n 9 && return
  say 'Waiting for another setup_env.sh to finish.'
  flock 9
}

# step WHAT COMMAND...: runs COMMAND; its output goes to the log.
step() {
  local what=$1
  shift
  "$@" >>"$venv/setup.log" 2>&1 </dev/null && return
  tail -n 20 "$venv/setup.log" >&2
  die "$what failed; .venv-$stack/setup.log has the whole output"
}

# Sets python to the Python 3.11 that uv brings.
get_python_from_uv() {
  local uv=$uv_from
  if [[ ${uv##*/} != uv ]]; then
    uv=$root/.venv-uv/bin/uv
    say "No Python for $stack is here: putting uv into .venv-uv with $uv_from."
    { "$uv_from" -m venv --clear "$root/.venv-uv" &&
      "$root/.venv-uv/bin/python" -m pip install uv==0.13.9
    } >/dev/null 2>&1 </dev/null || die "'pip install uv' failed; connect to" \
      "the internet, or install a Python 3.11, and run this script again"
  fi
  say 'Getting a Python 3.11 through uv.'
  { "$uv" python install 3.11 >/dev/null 2>&1 </dev/null &&
    python=$("$uv" python find --system 3.11)
  } || die "'$uv python install 3.11' failed; run it to see why, or install a" \
    "Python 3.11, and run this script again"
  python_version=3.11
}

install() {
  local imports='import matplotlib, numpy, pytest' hint=''
  find_python_for_stack
  [[ -z $uv_from ]] || get_python_from_uv
  say "Installing .venv-$stack with $python; this takes about a minute."
  rm -rf "$venv"
  mkdir "$venv"
  step 'making the environment' "$python" -m venv "$venv"
  # The pip that comes with Python 3.6 cannot resolve absl-py; this is the
  # last one for 3.6.
  if [[ $python_version == 3.6.* ]]; then
    step 'updating pip' "$venv/bin/python" -m pip install pip==21.3.1
  fi
  echo "$wanted" >"$venv/requirements.txt"
  step 'pip install' \
    "$venv/bin/python" -m pip install -r "$venv/requirements.txt"
  if [[ $stack != analysis ]]; then
    imports+=', tensorflow'
  fi
  if [[ $wanted == *tensorflow-gpu==* ]]; then
    hint=' (it needs CUDA 9.0 and cuDNN 7; for newer GPUs: ./setup_env.sh tf2)'
  fi
  step "importing the packages$hint" "$venv/bin/python" -c "$imports"
  mv "$venv/requirements.txt" "$venv/installed.txt"
}

# ---- The command -----------------------------------------------------------

python=''
python_version=''
uv_from=''
without_venv=''
(($# < 2)) || die "one environment at a time, not $*"
case ${1:-} in
  -h | --help) usage; exit ;;
  '') choose_stack ;;
  tf1 | tf2 | analysis) stack=$1 ;;
  *) die "unknown argument '$1': expected tf1, tf2, analysis or --help" ;;
esac
venv=$root/.venv-$stack
wanted=$(requirements)
if ! is_ready; then
  wait_for_turn
  is_ready || install
fi
tensorflow=$(sed -n '/^tensorflow/{s/.*==/TensorFlow /p;q;}' <<<"$wanted")
say ".venv-$stack is ready: $("$venv/bin/python" -V)," \
  "${tensorflow:-no TensorFlow}"
echo "$venv"
