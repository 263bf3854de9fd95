"""setup_env.sh's choices and .ci/run's count, tried with fake Pythons.

Nothing is installed: a fake Python is a small shell script that answers the
questions setup_env.sh asks, and PATH holds nothing but these and a few tools.
"""

import os
import re
import shutil
import subprocess
import sys

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BASH = shutil.which('bash')
TOOLS = ('bash', 'sh', 'cat', 'cp', 'dirname', 'flock', 'mkdir', 'mktemp',
         'mv', 'rm', 'sed', 'tail')
REQUIREMENTS = ('requirements.txt', 'requirements-tf2.txt',
                'requirements-analysis.txt', 'requirements-test.txt')

# Answers, by what the question contains: which Python is this; is CUDA 9.0
# here; make an environment; run pip; are the modules there; import them.
FAKE_PYTHON = '''#!/bin/sh
case "$*" in
  *base_prefix*) echo "{version} {path}" ;;
  *ctypes*) exit ${{FAKE_CUDA_9_STATUS:-0}} ;;
  "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  "-m pip "*)
    echo "$*" >>"$FAKE_PIP_CALLS"
    echo "what pip says"
    exit ${{FAKE_PIP_STATUS:-0}} ;;
  *find_spec*) echo {version} ;;
  "-c import "*) exit ${{FAKE_IMPORT_STATUS:-0}} ;;
  *) echo "unexpected question: $*" >&2; exit 9 ;;
esac
'''

needs_no_nvidia = pytest.mark.skipif(
    os.path.exists('/proc/driver/nvidia/version'),
    reason='this machine has an NVIDIA driver')


def write_script(path, text):
  os.makedirs(os.path.dirname(path), exist_ok=True)
  with open(path, 'w') as script:
    script.write(text)
  os.chmod(path, 0o755)
  return path


class Machine(object):
  """A copy of setup_env.sh on a machine with nothing but a few tools."""

  def __init__(self, folder):
    self.folder = folder
    self.project = os.path.join(folder, 'project')
    self.bin = os.path.join(folder, 'bin')
    self.pip_calls_file = os.path.join(folder, 'pip_calls')
    os.mkdir(self.project)
    os.mkdir(self.bin)
    for name in ('setup_env.sh',) + REQUIREMENTS:
      shutil.copy(os.path.join(ROOT, name), self.project)
    for name in TOOLS:
      if shutil.which(name):
        os.symlink(shutil.which(name), os.path.join(self.bin, name))
    self.environment = {'PATH': self.bin, 'HOME': folder,
                        'FAKE_PIP_CALLS': self.pip_calls_file}

  def add_python(self, version, place='bin', name=None, has_venv=True):
    name = name or 'python' + version.rsplit('.', 1)[0]
    path = os.path.join(self.folder, place, name)
    return write_script(path, FAKE_PYTHON.format(
        version=version, path=path if has_venv else ''))

  def setup(self, *arguments, **environment):
    """Runs setup_env.sh; returns its exit status, stdout and stderr."""
    process = subprocess.Popen(
        [BASH, os.path.join(self.project, 'setup_env.sh')] + list(arguments),
        env=dict(self.environment, **environment), stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        universal_newlines=True)
    stdout, stderr = process.communicate()
    return process.returncode, stdout, stderr

  def pip_calls(self):
    if not os.path.exists(self.pip_calls_file):
      return 0
    with open(self.pip_calls_file) as calls:
      return len(calls.readlines())


@pytest.fixture
def machine(tmpdir):
  return Machine(str(tmpdir))


def test_default_is_tf1_where_python_3_6_is_on_path(machine):
  path = machine.add_python('3.6.15')
  machine.add_python('3.11.7')
  status, stdout, stderr = machine.setup('--which')
  assert status == 0
  assert stdout.startswith('tf1: Python 3.6.15 (%s), tensorflow' % path)
  assert 'Choosing tf1' in stderr


def test_default_is_tf2_without_python_3_6(machine):
  path = machine.add_python('3.10.13')
  status, stdout, stderr = machine.setup('--which')
  assert status == 0
  assert stdout.startswith('tf2: Python 3.10.13 (%s), tensorflow' % path)
  assert 'Choosing tf2: no Python 3.6 was found' in stderr


def test_shim_that_does_not_run_gives_way_to_pyenvs_own_python(machine):
  write_script(os.path.join(machine.bin, 'python3.6'),
               '#!/bin/sh\necho "python3.6: command not found"\nexit 127\n')
  path = machine.add_python('3.6.15', '.pyenv/versions/3.6.15/bin')
  assert 'Python 3.6.15 (%s)' % path in machine.setup('--which')[1]


def test_pyenv_root_is_heeded(machine):
  path = machine.add_python('3.6.9', 'elsewhere/versions/3.6.9/bin')
  stdout = machine.setup(
      '--which', PYENV_ROOT=os.path.join(machine.folder, 'elsewhere'))[1]
  assert 'Python 3.6.9 (%s)' % path in stdout


def test_conda_environments_are_searched(machine):
  path = machine.add_python('3.6.13', 'conda/envs/py36/bin')
  conda = write_script(
      os.path.join(machine.folder, 'conda', 'bin', 'conda'), '#!/bin/sh\n')
  assert path in machine.setup('--which', CONDA_EXE=conda)[1]
  assert machine.setup('--which')[0] == 1

  listed = os.path.join(machine.folder, '.conda', 'environments.txt')
  os.mkdir(os.path.dirname(listed))
  with open(listed, 'w') as environments:
    environments.write(os.path.join(machine.folder, 'conda/envs/py36') + '\n')
  assert path in machine.setup('--which')[1]


def test_a_plain_python3_of_the_right_version_is_found(machine):
  machine.add_python('3.9.18', name='python3')
  assert machine.setup('--which')[1].startswith('tf2: Python 3.9.18')


def test_a_python_is_known_by_its_answer_and_not_by_its_name(machine):
  machine.add_python('3.7.16', name='python3.6')
  assert machine.setup('--which', 'tf1')[0] == 1


def test_newest_suitable_python_is_chosen(machine):
  for version in ('3.8.18', '3.9.18', '3.11.7', '3.10.13', '3.12.1', '3.14.0'):
    machine.add_python(version)
  assert machine.setup('--which', 'tf2')[1].startswith('tf2: Python 3.11.7 ')
  stdout = machine.setup('--which', 'analysis')[1]
  assert stdout.startswith('analysis: Python 3.12.1 ')
  assert stdout.endswith(', no TensorFlow\n')


def test_uv_helps_where_no_python_is_found(machine):
  write_script(os.path.join(machine.bin, 'uv'), '#!/bin/sh\n')
  machine.add_python('3.12.1')
  assert machine.setup('--which')[1].startswith('tf2: Python 3.11 (uv)')
  assert machine.setup('--which', 'tf2')[1].startswith('tf2: Python 3.11 (uv)')
  assert machine.setup('--which', 'tf1')[0] == 1  # uv has no Python 3.6


@pytest.mark.parametrize('arguments, needed', [
    ((), 'Python 3.6 (for tf1) or 3.9 to 3.11 (for tf2)'),
    (('tf1',), 'Python 3.6'),
    (('tf2',), 'Python 3.9, 3.10 or 3.11'),
    (('analysis',), 'one of Python 3.6 to 3.13'),
])
def test_without_a_suitable_python_one_line_says_what_to_install(
    machine, arguments, needed):
  machine.add_python('3.14.0')
  status, stdout, stderr = machine.setup(*arguments)
  assert status == 1
  assert stdout == ''
  assert stderr.count('\n') == 1
  assert needed in stderr
  assert 'pyenv install' in stderr
  assert not os.path.exists(os.path.join(machine.project, '.venv-tf2'))


def test_python_without_venv_is_passed_over_and_named(machine):
  path = machine.add_python('3.11.2', has_venv=False)
  stderr = machine.setup('--which', 'tf2')[2]
  assert path + ' lacks venv' in stderr
  assert 'python3-venv' in stderr
  machine.add_python('3.9.18')
  assert 'Python 3.9.18' in machine.setup('--which', 'tf2')[1]


@needs_no_nvidia
def test_cpu_wheels_without_an_nvidia_driver(machine):
  machine.add_python('3.6.15')
  machine.add_python('3.11.7')
  # There, but with no device to list.
  write_script(os.path.join(machine.bin, 'nvidia-smi'), '#!/bin/sh\nexit 9\n')
  assert machine.setup('--which', 'tf1')[1].endswith(', tensorflow==1.12.0\n')
  assert machine.setup('--which', 'tf2')[1].endswith(
      ', tensorflow-cpu==2.15.1\n')


def test_gpu_wheels_with_an_nvidia_driver(machine):
  machine.add_python('3.6.15')
  machine.add_python('3.11.7')
  write_script(os.path.join(machine.bin, 'nvidia-smi'), '#!/bin/sh\n')
  tf1 = machine.setup('--which', 'tf1')[1]
  assert tf1.endswith(', tensorflow-gpu==1.12.0\n')
  assert machine.setup('--which')[1] == tf1
  assert machine.setup('--which', 'tf2')[1].endswith(
      ', tensorflow[and-cuda]==2.15.1\n')


def test_default_is_tf2_on_an_nvidia_machine_without_cuda_9(machine):
  machine.add_python('3.6.15')
  machine.add_python('3.11.7')
  write_script(os.path.join(machine.bin, 'nvidia-smi'), '#!/bin/sh\n')
  _, stdout, stderr = machine.setup('--which', FAKE_CUDA_9_STATUS='1')
  assert stdout.startswith('tf2: Python 3.11.7')
  assert 'CUDA 9.0' in stderr


def test_the_folder_is_all_of_stdout_and_a_second_run_installs_nothing(machine):
  machine.add_python('3.6.15')
  status, stdout, stderr = machine.setup()
  assert status == 0
  assert stdout == os.path.join(machine.project, '.venv-tf1') + '\n'
  assert stderr.endswith(
      '.venv-tf1 is ready: Python 3.6.15, TensorFlow 1.12.0\n')
  calls = machine.pip_calls()
  assert calls == 2  # pip itself, then the requirements

  for arguments in ((), ('tf1',)):
    assert machine.setup(*arguments)[1] == stdout
  assert machine.pip_calls() == calls


def test_changed_requirements_are_installed(machine):
  machine.add_python('3.11.7')
  machine.setup('tf2')
  with open(os.path.join(machine.project, 'requirements-tf2.txt'), 'a') as file:
    file.write('another==1.0\n')
  machine.setup('tf2')
  assert machine.pip_calls() == 2


def test_a_failed_install_shows_the_log_and_is_done_again(machine):
  machine.add_python('3.11.7')
  status, stdout, stderr = machine.setup('tf2', FAKE_PIP_STATUS='1')
  assert (status, stdout) == (1, '')
  assert 'what pip says' in stderr
  assert stderr.splitlines()[-1] == (
      'setup_env.sh: pip install failed; .venv-tf2/setup.log has the whole '
      'output')
  assert machine.setup('tf2')[0] == 0
  assert machine.pip_calls() == 2


def test_packages_that_do_not_import_are_an_error(machine):
  machine.add_python('3.6.15')
  write_script(os.path.join(machine.bin, 'nvidia-smi'), '#!/bin/sh\n')
  status, _, stderr = machine.setup('tf1', FAKE_IMPORT_STATUS='1')
  assert status == 1
  assert 'needs CUDA 9.0' in stderr.splitlines()[-1]


def test_a_broken_environment_is_made_anew(machine):
  machine.add_python('3.11.7')
  machine.setup('tf2')
  os.remove(os.path.join(machine.project, '.venv-tf2', 'bin', 'python'))
  assert machine.setup('tf2')[0] == 0
  assert machine.pip_calls() == 2


def test_an_environment_copied_elsewhere_is_made_anew(machine):
  machine.add_python('3.11.7')
  machine.setup('tf2')
  moved = os.path.join(machine.folder, 'moved')
  os.rename(machine.project, moved)
  machine.project = moved
  assert machine.setup('tf2')[1] == os.path.join(moved, '.venv-tf2') + '\n'
  assert machine.pip_calls() == 2


@pytest.mark.parametrize('arguments', [('tf3',), ('tf1', 'tf2')])
def test_wrong_arguments_are_a_one_line_error(machine, arguments):
  status, stdout, stderr = machine.setup(*arguments)
  assert (status, stdout) == (1, '')
  assert stderr.count('\n') == 1


@pytest.mark.parametrize('name', REQUIREMENTS)
def test_every_requirement_is_pinned(name):
  with open(os.path.join(ROOT, name)) as file:
    lines = [line.split('#')[0].strip() for line in file]
  for line in filter(None, lines):
    assert re.match(r'[A-Za-z0-9_.\[\]-]+==[0-9][\w.]*(;.*)?$', line), line


# ---- .ci/run ----------------------------------------------------------------

PASSED = '<testcase name="a"/>'
FAILED = '<testcase name="b"><failure message="m"/></testcase>'
ERROR = '<testcase name="c"><error message="m"/></testcase>'
SKIPPED = '<testcase name="d"><skipped message="m"/></testcase>'


@pytest.mark.parametrize('tf1, tf2, closing', [
    ((0, PASSED * 3), (0, PASSED * 2), '6 passed, 0 failed'),
    ((0, PASSED + SKIPPED), (0, PASSED), '3 passed, 0 failed, 1 skipped'),
    ((1, PASSED + FAILED + ERROR), (0, PASSED), '3 passed, 2 failed'),
    ((139, None), (0, PASSED), '2 passed, 1 failed'),
    ((5, ''), (0, PASSED), '2 passed, 1 failed'),
    ((0, SKIPPED), (0, PASSED), '2 passed, 1 failed, 1 skipped'),
    ((3, PASSED), (0, PASSED), '3 passed, 1 failed'),
], ids=['all-pass', 'skip', 'fail-and-error', 'crash-without-report', 'no-test',
        'skips-only', 'failure-outside-tests'])
def test_ci_counts_all_three_runs(tmpdir, tf1, tf2, closing):
  project = str(tmpdir)
  os.mkdir(os.path.join(project, '.ci'))
  shutil.copy(os.path.join(ROOT, '.ci', 'run'), os.path.join(project, '.ci'))
  cases = []
  runs = {'tf1': tf1, 'tf2': tf2, 'analysis': (0, PASSED)}
  for stack, (status, report) in runs.items():
    write = ''
    if report is not None:
      xml = '<testsuites><testsuite>%s</testsuite></testsuites>' % report
      write = "echo '%s' >\"${2#--junitxml=}\"; " % xml
    cases.append('%s) %sexit %d ;;' % (stack, write, status))
    write_script(os.path.join(project, '.venv-' + stack, 'bin', 'python'),
                 '#!/bin/sh\nexec "%s" "$@"\n' % sys.executable)
  write_script(os.path.join(project, 'run_tests.sh'),
               '#!/bin/sh\ncase $1 in %s esac\n' % ' '.join(cases))
  process = subprocess.Popen(
      [BASH, os.path.join(project, '.ci', 'run')], stdout=subprocess.PIPE,
      stderr=subprocess.PIPE, universal_newlines=True)
  lines = process.communicate()[0].splitlines()
  assert lines[-1] == closing
  assert (process.returncode == 0) == (', 0 failed' in closing)
  assert [line for line in lines[:-1] if 'passed' in line] == []
