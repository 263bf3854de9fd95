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
usage: ./setup_env.sh [--which] [tf1|tf2|analysis]

Makes a virtual environment beside this script, or finds it ready:

  tf1       .venv-tf1, Python 3.6, TensorFlow 1.12 (the paper's own stack)
  tf2       .venv-tf2, Python 3.9 to 3.11, TensorFlow 2.15
  analysis  .venv-analysis, newest of Python 3.6 to 3.13, no TensorFlow

Without a name: tf1 where there is a Python 3.6, else tf2; also tf2 where an
NVIDIA driver is there without the CUDA 9.0 that TensorFlow 1.12 needs.
Pythons are looked for on PATH, in pyenv and in conda environments; for tf2
and analysis, uv (if installed) brings a Python 3.11 where none is found.
Without an NVIDIA driver, TensorFlow's CPU wheel of the same version is used.

  --which   print the choice and stop; nothing is installed

The one line on stdout is the environment's folder, so that a script can say
  venv=$(./setup_env.sh tf2)
END
}

say() { echo "$*" >&2; }
die() { say "setup_env.sh: $*"; exit 1; }

# ---- Which Python ----------------------------------------------------------

# Prints the version and the interpreter to build on. That is the base of a
# virtual environment, not the environment, which may be deleted one day.
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
  local conda folder home=${HOME:-}
  type -aP "python$1" python3 python || true
  for folder in "${PYENV_ROOT:-$home/.pyenv}"/versions/*; do
    echo "$folder/bin/python$1"
  done
  conda=${CONDA_EXE:-$(type -P conda || true)}
  if [[ -n $conda ]]; then
    for folder in "${conda%/*/*}"{,/envs/*}; do
      echo "$folder/bin/python$1"
    done
  fi
  # conda's own list of all its environments, wherever they are.
  if [[ -r $home/.conda/environments.txt ]]; then
    sed "s|\$|/bin/python$1|" "$home/.conda/environments.txt"
  fi
}

# Sets python and python_version to the first Python of the versions given.
# Each is run, because a file's name proves nothing: pyenv puts a python3.6 on
# PATH that only says 'command not found'.
find_python() {
  local version candidate answer
  for version in "$@"; do
    while read -r candidate; do
      [[ -x $candidate ]] || continue
      answer=$("$candidate" -c "$probe" 2>/dev/null </dev/null) || continue
      [[ $answer == "$version".* ]] || continue
      python_version=${answer%% *}
      python=${answer#* }
      [[ -z $python ]] || return 0
      without_venv=$candidate
    done < <(candidates "$version")
  done
  return 1
}

find_python_or_uv() {
  find_python "$@" && return
  type -P uv >/dev/null || return 1
  python=uv
  python_version=3.11
}

no_python() {
  local also=''
  if [[ -n ${without_venv:-} ]]; then
    also=" ($without_venv lacks venv: on Debian, apt install python3-venv)"
  fi
  die "$1, and none was found on PATH, in pyenv or in conda$also: $2"
}

find_python_for() {
  case $1 in
    tf1)
      find_python 3.6 || no_python 'tf1 needs Python 3.6' \
        "'pyenv install 3.6.15' or 'conda create -n py36 python=3.6' gives one"
      ;;
    tf2)
      find_python_or_uv 3.11 3.10 3.9 || no_python \
        'tf2 needs Python 3.9, 3.10 or 3.11' \
        "'pyenv install 3.11', or 'pip install uv' and this script again"
      ;;
    analysis)
      find_python_or_uv 3.13 3.12 3.11 3.10 3.9 3.8 3.7 3.6 || no_python \
        'analysis needs one of Python 3.6 to 3.13' \
        "'pyenv install 3.11', or 'pip install uv' and this script again"
      ;;
  esac
}

# Sets stack, python and python_version.
choose_default() {
  local why='no Python 3.6 was found'
  if find_python 3.6; then
    if ! has_nvidia_driver || has_cuda_9; then
      stack=tf1
      say "Choosing tf1: Python $python_version is here."
      return
    fi
    why='TensorFlow 1.12 needs CUDA 9.0, which this NVIDIA machine lacks'
  fi
  stack=tf2
  if ! find_python_or_uv 3.11 3.10 3.9; then
    no_python 'Python 3.6 (for tf1) or 3.9 to 3.11 (for tf2) is needed' \
      "'pyenv install 3.11', or 'pip install uv' and this script again"
  fi
  say "Choosing tf2: $why; Python $python_version ($python) will do."
}

# ---- Which packages --------------------------------------------------------

# nvidia-smi alone proves nothing, it may be there without a device; it is
# asked only where /proc does not answer, because it can take seconds.
has_nvidia_driver() {
  [[ -e /proc/driver/nvidia/version ]] || nvidia-smi -L >/dev/null 2>&1
}

has_cuda_9() {
  "$python" -c 'import ctypes; ctypes.CDLL("libcublas.so.9.0")' 2>/dev/null
}

# The requirements of stack $1 on this machine, without comments. The first
# line makes an environment that was copied elsewhere count as another one:
# its scripts still point to where it came from.
requirements() {
  local to_cpu='' file=requirements-$1.txt
  [[ $1 != tf1 ]] || file=requirements.txt
  if [[ $1 != analysis ]] && ! has_nvidia_driver; then
    to_cpu='s/^tensorflow-gpu==/tensorflow==/
            s/^tensorflow\[and-cuda\]==/tensorflow-cpu==/'
  fi
  echo "# $root/.venv-$1"
  sed -e 's/ *#.*//' -e '/^$/d' -e "$to_cpu" \
    "$root/$file" "$root/requirements-test.txt"
}

# The TensorFlow among the requirements on stdin; it is named first there.
tensorflow_package() {
  local found
  found=$(sed -n '/^tensorflow/{p;q;}')
  echo "${found:-no TensorFlow}"
}

# ---- The environment -------------------------------------------------------

# Whether stack $1 is there, whole and up to date; sets wanted and
# ready_version. installed.txt is written last, so an interrupted install is
# not taken for a whole one. Modules are looked up but not imported, which
# would take seconds.
is_ready() {
  local venv=$root/.venv-$1 modules='matplotlib numpy pytest'
  [[ $1 == analysis ]] || modules+=' tensorflow'
  wanted=$(requirements "$1")
  [[ -f $venv/installed.txt && $(<"$venv/installed.txt") == "$wanted" ]] &&
    ready_version=$("$venv/bin/python" -c '
import sys
from importlib.util import find_spec
for module in sys.argv[1].split():
  assert find_spec(module).origin
print("%d.%d.%d" % sys.version_info[:3])' "$modules" 2>/dev/null)
}

# Two installs into one folder would spoil each other. The lock is on a file
# that is there anyway; not this script, which cannot be started while it is
# open for writing, as NFS wants it to be. A pip that outlives this script
# keeps the lock.
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

install() {
  local imports='import matplotlib, numpy, pytest' hint=''
  if [[ $python == uv ]]; then
    say 'Getting a Python 3.11 through uv.'
    uv python install 3.11 >&2 || die 'uv could not install a Python 3.11'
    python=$(uv python find --system 3.11)
  fi
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

main() {
  local which='' stack='' venv wanted python python_version without_venv=''
  local ready_version package
  while (($#)); do
    case $1 in
      -h | --help) usage; exit ;;
      --which) which=1 ;;
      tf1 | tf2 | analysis)
        [[ -z $stack ]] || die "one environment at a time, not $stack and $1"
        stack=$1
        ;;
      *) die "unknown argument '$1': expected tf1, tf2, analysis or --help" ;;
    esac
    shift
  done

  # A ready environment is found without looking for any Python.
  if [[ -z $which && -z $stack ]] && is_ready tf1; then
    stack=tf1
  elif [[ -z $stack ]]; then
    choose_default
  elif [[ -n $which ]]; then
    find_python_for "$stack"
  fi

  if [[ -n $which ]]; then
    package=$(tensorflow_package <<<"$(requirements "$stack")")
    echo "$stack: Python $python_version ($python), $package"
    exit
  fi

  venv=$root/.venv-$stack
  if ! is_ready "$stack"; then
    [[ -n ${python:-} ]] || find_python_for "$stack"
    wait_for_turn
    is_ready "$stack" || install
    is_ready "$stack" || die ".venv-$stack does not run after its install"
  fi
  package=$(tensorflow_package <<<"$wanted")
  say ".venv-$stack is ready: Python $ready_version," \
    "${package/#*==/TensorFlow }"
  echo "$venv"
}

main "$@"
