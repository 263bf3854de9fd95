"""`--export_onnx` and `run_onnx_cascade.py`, against TensorFlow."""

import glob
import json
import os
import shutil
import subprocess
import sys
import types

import numpy as np
from PIL import Image
import pytest

import imagenet_preprocessing
import run_cascade
import rule_weights
import small_world
from cascade_session import CascadeSession
from devices import resolve
from shared_terminal import UserError
from small_network import NUM_CLASSES
from test_run_cascade import DEFAULTS
from tf_compat import IS_TF1, tf
from tiny_checkpoints import write_checkpoint

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
SCRIPT = os.path.join(ROOT, 'run_onnx_cascade.py')
THRESHOLDS = ['0.15', '0.15']


@pytest.mark.parametrize('height, width', [
    (37, 61), (188, 90), (332, 500), (300, 43), (32, 32)])
def test_pixels_are_tensorflows(height, width):
  """Every grey level, also where the size is truncated to 255."""
  import run_onnx_cascade
  pixels = np.random.RandomState(0).randint(0, 256, [height, width, 3]).astype(
      np.uint8)
  for size in (32, 224):
    with tf.Graph().as_default(), tf.Session() as session:
      expected = session.run(imagenet_preprocessing.subtract_channel_means(
          imagenet_preprocessing.resize_and_crop(
              tf.constant(pixels), size, size)))
    np.testing.assert_array_equal(
        run_onnx_cascade.resized_centre(pixels, size) -
        run_onnx_cascade.CHANNEL_MEANS, expected)


@pytest.mark.skipif(not IS_TF1, reason='for TensorFlow 1')
def test_tf1_says_so(tmp_path):
  flags = types.SimpleNamespace(**dict(
      DEFAULTS, model_dir=str(tmp_path), thresholds=THRESHOLDS,
      export_onnx=str(tmp_path)))
  with pytest.raises(UserError, match='TensorFlow 2'):
    run_cascade.run_cascade(flags, [])


@pytest.fixture(scope='module')
def export(tmp_path_factory):
  """A world, and what `run_cascade.py` exports of its cascade."""
  pytest.importorskip('tf2onnx', reason='needs requirements-onnx.txt')
  pytest.importorskip('onnxruntime', reason='needs requirements-onnx.txt')
  made = small_world.make(tmp_path_factory.mktemp('onnx'))
  weights = rule_weights.rule_variables(
      rule_weights.cascade_variables(18, 2, NUM_CLASSES))
  weights['global_step'] = np.int64(1)
  write_checkpoint(made.folder / 'all', weights, 1)
  flags = flags_of(made)
  flags.export_onnx = str(made.folder / 'export')
  assert run_cascade.run_cascade(flags, []) == 0
  for i, (jpeg, _) in enumerate(made.rows['validation']):
    (made.folder / f'{i:02d}.jpg').write_bytes(jpeg)
  return made


def flags_of(world):
  return types.SimpleNamespace(**dict(
      DEFAULTS, model_dir=str(world.folder / 'all'), thresholds=THRESHOLDS))


def test_answers_are_tensorflows(export):
  """Where thresholds are used, infinite, zero, and one per class."""
  import run_onnx_cascade
  images = export.preprocessed('validation')
  devices = resolve(0, len(images), 0)
  tensorflow = run_cascade._cascade(  # pylint: disable=protected-access
      flags_of(export), None, devices)
  cascade = run_onnx_cascade.Cascade(str(export.folder / 'export'))
  assert list(cascade.thresholds) == list(tensorflow.thresholds)
  seen = set()
  for thresholds in ([.15, .15], [.2, .12], [np.inf, np.inf], [0, 0],
                     np.linspace(.1, .2, 2 * NUM_CLASSES).reshape([2, -1])):
    thresholds = np.array(thresholds, np.float32)
    with CascadeSession(
        tensorflow._replace(thresholds=thresholds), devices) as session:
      expected = session.run(images)
    cascade.thresholds = thresholds
    classes, exits, confidences = cascade.run(images)
    np.testing.assert_array_equal(classes, expected.top5_classes[:, 0])
    np.testing.assert_array_equal(exits, expected.exits)
    np.testing.assert_allclose(confidences, expected.confidences, atol=1e-5)
    seen.update(exits)
  assert seen == {0, 1, 2}


def run_script(python, *args, **kwargs):
  return subprocess.run(
      [str(python), SCRIPT] + [str(arg) for arg in args], timeout=120,
      stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True,
      **kwargs)


def test_on_the_newest_python_without_tensorflow(export, tmp_path):
  """In an environment of its own, as the script's metadata asks for it."""
  pythons = [shutil.which(f'python3.{minor}') for minor in (14, 13, 12)]
  pythons += sorted(glob.glob(os.path.expanduser(
      '~/.pyenv/versions/3.1[2-9]*/bin/python')), reverse=True)
  python = tmp_path / 'bin' / 'python'
  for candidate in filter(None, pythons):
    if subprocess.call([candidate, '-m', 'venv', str(tmp_path)],
                       stderr=subprocess.DEVNULL) == 0 and subprocess.call(
        [str(python), '-m', 'pip', 'install', '-q', 'onnxruntime', 'pillow',
         'numpy'], stderr=subprocess.DEVNULL) == 0:
      break
  else:
    pytest.skip('no Python from 3.12 on with a package index')
  finished = run_script(python, export.folder / 'export', export.folder)
  assert finished.returncode == 0, finished.stderr
  lines = finished.stdout.splitlines()
  assert len(lines) == len(export.rows['validation'])
  assert lines[0].startswith(str(export.folder / '00.jpg') + ': ')
  assert lines[0][-4:] in ('clf0', 'clf1', 'clf2')


def test_photos_and_what_is_wrong(export, tmp_path):
  """Each in one line that names the file."""
  folder = export.folder / 'export'
  photo = export.folder / '00.jpg'
  (tmp_path / 'bad.jpg').write_text('no image')
  Image.new('RGB', (60, 50), (200, 30, 30)).save(str(tmp_path / 'red.png'))
  finished = run_script(sys.executable, folder, tmp_path, '--thresholds', '0,0')
  assert finished.returncode == 1 and 'bad.jpg' in finished.stderr
  assert finished.stdout.startswith(str(tmp_path / 'red.png') + ': ')
  assert finished.stdout.endswith(', clf0\n')
  broken = tmp_path / 'broken'
  shutil.copytree(str(folder), str(broken))
  (broken / 'stage1.onnx').write_bytes(b'no model')
  for args, named in (
      ([tmp_path, photo], 'cascade.json'), ([broken, photo], 'stage1.onnx'),
      ([folder, tmp_path / 'gone.jpg'], 'gone.jpg'), ([folder], 'nothing to do'),
      ([folder, photo, '--thresholds', '0.5'], '--thresholds 0.5'),
      ([folder, photo, '--thresholds', '0.5,7'], '--thresholds 0.5,7')):
    finished = run_script(sys.executable, *args)
    assert finished.returncode == 1
    assert len(finished.stderr.splitlines()) == 1 and named in finished.stderr


def test_record(export):
  record = json.loads((export.folder / 'export' / 'cascade.json').read_text())
  assert record['thresholds'] == [float(np.float32(.15))] * 2
  assert 'less (123.68' in record['images']
  assert sorted(os.listdir(str(export.folder / 'export'))) == [
      'cascade.json', 'stage0.onnx', 'stage1.onnx', 'stage2.onnx']
