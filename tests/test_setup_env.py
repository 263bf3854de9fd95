"""setup_env.sh's choices, tried with fake Pythons.

Nothing is installed: a fake Python is a small shell script that answers the
questions setup_env.sh asks, and PATH holds nothing but these and a few tools.
"""

import os
import pathlib
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
TOOLS = ('sh', 'cat', 'chmod', 'cp', 'dirname', 'flock', 'mkdir', 'mv', 'rm',
         'sed', 'tail')
REQUIREMENTS = sorted(ROOT.glob('requirements*.txt'))

# Answers, by what the question contains: which Python is this; is CUDA 9.0
# here; make an environment; install uv, which finds FAKE_UV_PYTHON; run pip;
# import the packages.
FAKE_PYTHON = '''#!/bin/sh
case "$*" in
  *base_prefix*) echo "{version} {path}" ;;
  *ctypes*) exit ${{FAKE_CUDA_9_STATUS:-0}} ;;
  "-m venv "*)
    for venv; do :; done
    mkdir -p "$venv/bin" && cp "$0" "$venv/bin/python" ;;
  "-m pip install uv=="*)
    printf '#!/bin/sh\\necho "$FAKE_UV_PYTHON"\\nexit ${{FAKE_UV_STATUS:-0}}' \\
      >"${{0%/*}}/uv"
    chmod +x "${{0%/*}}/uv"
    exit ${{FAKE_PIP_STATUS:-0}} ;;
  "-m pip "*) echo "what pip says"; exit ${{FAKE_PIP_STATUS:-0}} ;;
  -V) echo Python {version} ;;
  "-c import "*) exit ${{FAKE_IMPORT_STATUS:-0}} ;;
  *) echo "unexpected question: $*" >&2; exit 9 ;;
esac
'''


def write_script(path, text):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text)
  path.chmod(0o755)


class Machine:
  """A copy of setup_env.sh on a machine with nothing but a few tools."""

  def __init__(self, home):
    self.home = home
    self.project = home / 'project'
    self.project.mkdir()
    (home / 'bin').mkdir()
    for path in REQUIREMENTS + [ROOT / 'setup_env.sh']:
      shutil.copy(str(path), str(self.project))
    for name in TOOLS:
      if shutil.which(name):
        (home / 'bin' / name).symlink_to(shutil.which(name))

  def add_python(self, version, path=None, has_venv=True):
    path = self.home / (path or 'bin/python' + version.rsplit('.', 1)[0])
    write_script(path, FAKE_PYTHON.format(
        version=version, path=path if has_venv else ''))
    return path

  def setup(self, *arguments, **environment):
    """Runs setup_env.sh; returns its exit status, stdout and stderr."""
    process = subprocess.run(
        [shutil.which('bash'), str(self.project / 'setup_env.sh'), *arguments],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, universal_newlines=True,
        env=dict(environment, PATH=str(self.home / 'bin'), HOME=str(self.home)))
    return process.returncode, process.stdout, process.stderr


@pytest.fixture
def machine(tmp_path):
  return Machine(tmp_path)


def test_default_is_tf1_and_a_second_run_installs_nothing(machine):
  path = machine.add_python('3.6.15')
  machine.add_python('3.11.7')
  status, stdout, stderr = machine.setup()
  assert (status, stdout) == (0, f'{machine.project}/.venv-tf1\n')
  assert 'tf1: Python 3.6.15' in stderr and f'with {path};' in stderr
  status, again, stderr = machine.setup('tf1')
  assert (status, again, stderr.count('\n')) == (0, stdout, 1)


def test_default_is_tf2_without_python_3_6_and_takes_the_newest(machine):
  for version in ('3.8.18', '3.9.18', '3.11.7', '3.10.13', '3.12.1'):
    machine.add_python(version)
  assert 'Python 3.11.7, TensorFlow 2.15.1' in machine.setup()[2]
  assert 'Python 3.12.1, no TensorFlow' in machine.setup('analysis')[2]


def test_pyenv_and_conda_are_searched(machine):
  # pyenv's shim does not run, and a name alone proves nothing.
  write_script(machine.home / 'bin/python3.6', '#!/bin/sh\nexit 127\n')
  machine.add_python('3.7.16', 'bin/python3')
  path = machine.add_python('3.9.1', '.pyenv/versions/3.9.1/bin/python3.9')
  assert f'with {path};' in machine.setup()[2]
  path = machine.add_python('3.6.13', 'conda/envs/py36/bin/python3.6')
  (machine.home / '.conda').mkdir()
  (machine.home / '.conda/environments.txt').write_text(
      f'{path.parent.parent}\n')
  assert f'with {path};' in machine.setup()[2]


def test_uv_helps_where_no_python_is_found(machine):
  path = machine.add_python('3.11.9', 'uv/python')
  write_script(machine.home / 'bin/uv', f'#!/bin/sh\necho {path}\n')
  assert f'with {path};' in machine.setup()[2]
  assert machine.setup('tf1')[0] == 1  # uv has no Python 3.6


def test_a_python_too_new_gets_uv_and_uv_a_python_3_11(machine):
  newest = machine.add_python('3.14.0', 'bin/python3')
  path = machine.add_python('3.11.9', 'uv/python')
  environment = {'FAKE_UV_PYTHON': str(path)}
  for wrong in ('FAKE_PIP_STATUS', 'FAKE_UV_STATUS'):
    status, stdout, stderr = machine.setup('tf2', **environment, **{wrong: '1'})
    assert (status, stdout, stderr.count('setup_env.sh: ')) == (1, '', 1)
  for stack in ('tf2', 'analysis'):
    status, stdout, stderr = machine.setup(stack, **environment)
    assert (status, stdout) == (0, f'{machine.project}/.venv-{stack}\n')
    assert str(newest) in stderr and f'with {path};' in stderr
  assert machine.setup('tf1', **environment)[0] == 1


@pytest.mark.parametrize('version', ['3.11.2', '3.14.0'])
def test_without_a_suitable_python_one_line_says_what_to_install(
    machine, version):
  path = machine.add_python(version, 'bin/python3', has_venv=False)
  status, stdout, stderr = machine.setup('tf2')
  assert (status, stdout, stderr.count('\n')) == (1, '', 1)
  for part in ('3.11 or 3.10 or 3.9', 'pyenv install', f'{path} lacks venv'):
    assert part in stderr


@pytest.mark.parametrize('smi_status, packages', [
    (9, ('tensorflow==1.12.0', 'tensorflow-cpu==2.15.1')),  # no device to list
    (0, ('tensorflow-gpu==1.12.0', 'tensorflow[and-cuda]==2.15.1')),
])
def test_gpu_wheels_with_an_nvidia_driver(machine, smi_status, packages):
  if smi_status and os.path.exists('/proc/driver/nvidia/version'):
    pytest.skip('this machine has an NVIDIA driver')
  machine.add_python('3.6.15')
  machine.add_python('3.11.7')
  write_script(machine.home / 'bin/nvidia-smi',
               f'#!/bin/sh\nexit {smi_status}\n')
  for stack, package in zip(('tf1', 'tf2'), packages):
    machine.setup(stack)
    venv = machine.project / f'.venv-{stack}'
    assert package in (venv / 'installed.txt').read_text().splitlines()
  chosen = machine.setup(FAKE_CUDA_9_STATUS='1')[2].splitlines()[0]
  assert ('tf1: ' if smi_status else 'tf2: TensorFlow 1.12 needs CUDA') in chosen


def test_a_failed_install_shows_the_log_and_is_done_again(machine):
  machine.add_python('3.11.7')
  status, stdout, stderr = machine.setup('tf2', FAKE_PIP_STATUS='1')
  assert (status, stdout) == (1, '')
  assert 'what pip says' in stderr
  assert '.venv-tf2/setup.log' in stderr.splitlines()[-1]
  status, _, stderr = machine.setup('tf2', FAKE_IMPORT_STATUS='1')
  assert status == 1
  assert 'importing the packages failed' in stderr.splitlines()[-1]
  assert machine.setup('tf2')[0] == 0


def test_what_changed_is_installed_anew(machine):
  machine.add_python('3.11.7')
  machine.setup('tf2')
  with (machine.project / 'requirements-tf2.txt').open('a') as stream:
    stream.write('another==1.0\n')
  assert 'Installing' in machine.setup('tf2')[2]
  (machine.project / '.venv-tf2/bin/python').unlink()
  assert 'Installing' in machine.setup('tf2')[2]
  # Copied elsewhere, its scripts would still point to where it came from.
  moved = machine.home / 'moved'
  machine.project.rename(moved)
  machine.project = moved
  assert 'Installing' in machine.setup('tf2')[2]
