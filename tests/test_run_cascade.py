"""`run_cascade.py` on the tiny data set: records, photos, export, refusals."""

import contextlib
import csv
import glob
import itertools
import json
import os
import shutil
import subprocess
import sys
import types

import numpy as np
import pytest
from PIL import Image

import analyze_imagenet_labels
import cascade_pass
import rule_weights
import run_cascade
import run_record
import shared_dumps
import shared_results
import shared_stage_seconds
import small_world
from cascade_graph import CascadeOutput
from cascade_session import CascadeSession
from devices import resolve
from small_network import IMAGE_SIZE, NUM_CLASSES
from tf_compat import tf
from tiny_checkpoints import write_checkpoint
from shared_terminal import UserError

CLASSIFIERS = [0, 1, 2]
SHARP_BATCH_SIZE = 20
DEFAULTS = dict(
    resnet_version='2', resnet_size='18', image_size=IMAGE_SIZE, dtype='fp32',
    pretrained_model_checkpoint_path=None, head_model_dirs=[], batch_size=4,
    num_gpus=0, data_format=None, inter_op_parallelism_threads=0,
    intra_op_parallelism_threads=0, datasets_num_private_threads=None,
    datasets_num_parallel_batches=None, image_bytes_as_serving_input=False,
    data_dir=None, classifier_id=['0', '1', '2'], thresholds=None,
    results=None, choose=None, metric='top1', split=None, compare=False,
    output_dir=None, export_dir=None, export_onnx=None, profile_stages=False)


def make_world(folder, split_shards=small_world.SPLIT_SHARDS, sharpness=1,
               batch_size=4):
  """A data set, a network with all its exits, its dumps, and results."""
  made = small_world.make(folder, split_shards)
  weights = rule_weights.rule_variables(
      rule_weights.cascade_variables(18, 2, NUM_CLASSES))
  weights['global_step'] = np.int64(1)
  for layer in ('cascaded0_fc00', 'cascaded1_fc11', 'dense'):
    for part in ('kernel', 'bias'):
      weights[f'resnet_model/{layer}/{part}'] *= sharpness
  write_checkpoint(folder / 'all', weights, 1)
  # Other weights of one head.
  weights['resnet_model/cascaded1_fc11/bias'][:] += 1
  write_checkpoint(folder / 'other', weights, 1)
  made.run('--eval_only', '--classifier_id', '0,1,2', '-md', folder / 'all',
           '-pmcp', folder / 'all', '-bs', batch_size, '--softmax_dir',
           folder / 'dumps')
  analyze_imagenet_labels.main([
      '-softmax_dir_to_validate_against', str(folder / 'dumps'),
      '-output_dir', str(folder / 'results'), '-epsilons', '0,10,30,60'])
  return made


@pytest.fixture(scope='module')
def world(tmp_path_factory):
  return make_world(tmp_path_factory.mktemp('cascade'))


@pytest.fixture(scope='module')
def sharp(tmp_path_factory):
  """A network whose classifiers are nearly sure of many images."""
  return make_world(tmp_path_factory.mktemp('sharp'), {
      'train': [13, 12, 15], 'validation': [15, 12, 13]}, sharpness=6,
                    batch_size=SHARP_BATCH_SIZE)


def run(world, *paths, **changes):
  """The exit status of a run with these flags."""
  values = dict(DEFAULTS, model_dir=str(world.folder / 'all'))
  values.update((name, str(value) if hasattr(value, 'joinpath') else value)
                for name, value in changes.items())
  return run_cascade.run_cascade(
      types.SimpleNamespace(**values), [str(path) for path in paths])


def read_csv(path):
  with open(str(path)) as stream:
    return list(csv.DictReader(stream))


def dumped_exits(world, thresholds, metric='top1'):
  """Where images leave by their dumped softmaxes, and what is sure of it.

  Args:
    thresholds: float32 [T], or [T, classes].

  Returns:
    (exits int [images]; whether no confidence is within 1e-5 of a threshold;
    top-5 classes int [images, 5] of each exit; softmaxes of each exit).
  """
  softmaxes = [np.load(str(
      world.folder / 'dumps' / shared_dumps.probabilities_file_names(
          k, 'validation')[0])) for k in CLASSIFIERS]
  num_images = len(softmaxes[0])
  top5 = [np.argsort(-softmax, axis=1, kind='mergesort')[:, :5]
          for softmax in softmaxes]
  exits, is_sure = np.full(num_images, 2), np.ones(num_images, bool)
  for m in (1, 0):
    confidences = -np.sort(-softmaxes[m], axis=1)[
        :, :shared_results.CONFIDENCE_TERMS[metric]].sum(
            axis=1, dtype=np.float64).astype(np.float32)
    threshold = (thresholds[m] if thresholds.ndim == 1 else
                 thresholds[m][top5[m][:, 0]])
    exits[confidences >= threshold] = m
    is_sure &= abs(confidences - threshold) > 1e-5
  rows = np.arange(num_images)
  return (exits, is_sure, np.array(top5)[exits, rows],
          np.array(softmaxes)[exits, rows])


@pytest.mark.parametrize('metric', ['top1', 'top5'])
def test_decisions_equal_the_analysis(sharp, metric):
  """In every row: from records to dump, analysis, and through the cascade."""
  results = shared_results.load(str(sharp.folder / 'results'))
  rows = [row for row in results.rows if row['metric'] == metric]
  assert {row['method'] for row in rows} == {
      'cst', 'ccst', 'global', 'budgeted', 'pareto', 'risk'}
  choices = [f'{row["method"]}:{row["setting"]!r}' for row in rows]
  thresholds = [shared_results.choose(results, choice, metric).thresholds
                for choice in choices]
  expected = [dumped_exits(sharp, of_row, metric) for of_row in thresholds]
  devices = resolve(0, SHARP_BATCH_SIZE, 0)
  batches = list(cascade_pass.read_records(
      sorted(glob.glob(str(sharp.folder / 'tf_records' / 'validation' / '*'))),
      SHARP_BATCH_SIZE, IMAGE_SIZE, NUM_CLASSES))
  # Rounding decides where an image is as near to a threshold as batches of
  # other sizes move its softmax.
  assert sum(np.sum(~is_sure) for _, is_sure, _, _ in expected) <= 20
  sessions = {}  # Whether thresholds are per class, to session.
  for i, row in enumerate(rows):
    exits, is_sure, top5_classes, _ = expected[i]
    if row['method'] != 'risk':  # Half of the images judge it.
      assert [np.mean(exits == k) for k in CLASSIFIERS] == pytest.approx(
          [row[f'exit_share_clf{k}'] for k in CLASSIFIERS], abs=1e-9)
    if row['method'] == 'global' and 0 < i < len(rows) - 1 and all(
        rows[j]['method'] == 'global' and np.array_equal(expected[j][0], exits)
        for j in (i - 1, i + 1)):
      continue  # What is right for a smaller and a larger threshold.
    per_class = row['method'] == 'ccst'
    if per_class not in sessions:
      sessions[per_class] = CascadeSession(
          run_cascade._cascade(  # pylint: disable=protected-access
              types.SimpleNamespace(**dict(
                  DEFAULTS, model_dir=str(sharp.folder / 'all'), metric=metric,
                  results=str(sharp.folder / 'results'), choose=choices[i])),
              None, devices), devices)
    outputs = [sessions[per_class].run(batch.images, thresholds[i])
               for batch in batches]
    np.testing.assert_array_equal(np.concatenate(
        [output.exits for output in outputs])[is_sure], exits[is_sure])
    np.testing.assert_array_equal(np.concatenate(
        [output.top5_classes[:, 0] for output in outputs])[is_sure],
                                  top5_classes[is_sure, 0])


def test_weights_are_constants(world):
  """Also behind the conditions under which later stages run."""
  devices = resolve(0, 4, 0)
  cascade = run_cascade._cascade(  # pylint: disable=protected-access
      types.SimpleNamespace(**dict(
          DEFAULTS, model_dir=str(world.folder / 'all'),
          thresholds=['0.5', '0.5'])), None, devices)
  with CascadeSession(cascade, devices) as session:
    operations = session._session.graph.get_operations()  # pylint: disable=protected-access
  assert not [op for op in operations if 'Variable' in op.type]
  kernels = [op.inputs[1].op for op in operations
             if op.type in ('Conv2D', 'MatMul')]
  assert len(kernels) > 40
  assert {kernel.type if kernel.type != 'Identity' else
          kernel.inputs[0].op.type for kernel in kernels} == {'Const'}


def test_records(world, tmp_path):
  """The command: accuracy beside the plain network's, speeds, predictions."""
  finished = subprocess.run(
      [sys.executable, run_cascade.__file__, '-rv', '2', '-rs', '18',
       '--image_size', str(IMAGE_SIZE), '-md', str(world.folder / 'all'),
       '--results', str(world.folder / 'results'), '--choose', 'cst:30', '-bs',
       '4', '--data_dir', str(world.folder / 'tf_records'), '--split',
       'validation', '--output_dir', str(tmp_path / 'out'), '--data_format',
       'channels_first', '--num_gpus', '0'],
      stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)
  assert finished.returncode == 0, finished.stderr
  assert 'speedup: measured' in finished.stdout
  record = json.loads((tmp_path / 'out' / 'run.json').read_text())
  row = shared_results.choose(
      shared_results.load(str(world.folder / 'results')), 'cst:30',
      'top1').row
  assert record['top1'] == pytest.approx(row['test_accuracy'])
  assert record['gmacs_per_image'] == pytest.approx(row['gmacs_per_image'])
  assert record['speedup_by_macs'] == pytest.approx(row['speedup'])
  assert record['choice'] == 'cst:30.0'
  assert all(record[name] > 0 for name in (
      'speedup_by_stage_times', 'speedup_measured', 'images_per_second',
      'plain_images_per_second', 'images_per_second_reading'))
  labels = [label for _, label in world.rows['validation']]
  top5 = np.load(str(world.folder / 'dumps' / 'clf2_top5_classes.npy'))
  hits = top5 == np.array(labels)[:, np.newaxis]
  assert record['plain_top1'] == pytest.approx(hits[:, 0].mean())
  assert record['plain_top5'] == pytest.approx(hits.any(axis=1).mean())
  predictions = read_csv(tmp_path / 'out' / 'predictions.csv')
  assert [int(line['label']) for line in predictions] == labels
  assert np.mean([line['label'] == line['class']
                  for line in predictions]) == pytest.approx(record['top1'])
  assert all(line['image'].endswith('.JPEG') for line in predictions)


def test_photos(world, tmp_path, capsys):
  """A folder and files, one of which is no image; as the records' pixels."""
  folder = tmp_path / 'photos'
  folder.mkdir()
  for i, (jpeg, _) in enumerate(world.rows['validation']):
    (folder / f'{i:02d}.jpg').write_bytes(jpeg)
  (folder / '03a.png').write_text('no image')
  (folder / 'notes.txt').write_text('passed over')
  (folder / '._00.jpg').write_text('hidden')
  (folder / 'again').symlink_to(folder)
  extra = tmp_path / 'extra.webp'
  Image.new('RGB', (40, 50), (200, 30, 30)).save(str(extra))
  status = run(world, folder, extra, thresholds=['0.15', '0.15'],
               output_dir=tmp_path / 'out')
  assert status == 1
  out, err = capsys.readouterr()
  assert len(out.splitlines()) == len(world.rows['validation']) + 1
  assert out.splitlines()[0].startswith(str(folder / '00.jpg') + ': ')
  assert out.splitlines()[-1].startswith(f'{extra}: ')
  assert '03a.png' in err and 'left out' in err
  exits, is_sure, top5_classes, softmaxes = dumped_exits(
      world, np.array([.15, .15], np.float32))
  rows = read_csv(tmp_path / 'out' / 'predictions.csv')[:-1]
  for row, k, classes, softmax in itertools.compress(
      zip(rows, exits, top5_classes, softmaxes), is_sure):
    assert (int(row['exit']), int(row['class'])) == (k, classes[0])
    assert float(row['confidence']) == pytest.approx(max(softmax), abs=1e-5)
  assert json.loads((tmp_path / 'out' / 'run.json').read_text())['top1'] is None


@pytest.mark.parametrize('choose, takes_bytes', [
    ('risk:0', False), ('ccst:30', True)])
def test_export(world, tmp_path, choose, takes_bytes, capsys):
  run(world, results=world.folder / 'results', choose=choose,
      export_dir=tmp_path / 'export', image_bytes_as_serving_input=takes_bytes)
  assert f'--choose {choose}: {choose}, top1 0.' in capsys.readouterr().err
  folder, = glob.glob(str(tmp_path / 'export' / '*'))
  with open(os.path.join(folder, 'assets.extra', 'export.json')) as stream:
    record = json.load(stream, parse_constant=pytest.fail)  # As in NaN.
  assert record['choice'] == choose + '.0'
  assert '123.68' in record['images'] and '0 to 255' in record['images']
  assert record['class_names_first_label'] == 1
  expected = shared_results.choose(shared_results.load(
      str(world.folder / 'results')), choose, 'top1').row
  assert record['expected']['test_accuracy'] == expected['test_accuracy']
  thresholds = np.array(record['thresholds'], np.float32)
  assert thresholds.shape == ((2, NUM_CLASSES) if takes_bytes else (2,))
  images = world.preprocessed('validation')
  fed = [jpeg for jpeg, _ in world.rows['validation']] if takes_bytes else (
      images)

  def check(outputs, thresholds):
    exits, is_sure, top5_classes, softmaxes = dumped_exits(world, thresholds)
    np.testing.assert_array_equal(outputs['exits'][is_sure], exits[is_sure])
    np.testing.assert_array_equal(
        outputs['classes'][is_sure], top5_classes[is_sure, 0])
    np.testing.assert_allclose(
        outputs['probabilities'][is_sure], softmaxes[is_sure], atol=1e-5)
    np.testing.assert_allclose(outputs['confidences'][is_sure],
                               softmaxes[is_sure].max(axis=1), atol=1e-5)

  with tf.Graph().as_default() as graph, tf.Session() as session:
    model = tf.saved_model.loader.load(session, ['serve'], folder)
    assert not [op for op in graph.get_operations() if 'Variable' in op.type]

    def call(signature, **inputs):
      definition = model.signature_def[signature]
      assert all(not of.tensor_shape.dim or of.tensor_shape.dim[0].size == -1
                 for of in definition.outputs.values())
      return session.run(
          {name: of.name for name, of in definition.outputs.items()},
          {definition.inputs[name].name: value
           for name, value in inputs.items()})

    name = 'image_bytes' if takes_bytes else 'images'
    check(call('serving_default', **{name: fed}), thresholds)
    given = np.array([.151, .149], np.float32)
    check(call('with_thresholds', **{
        name: fed, 'thresholds': np.tile(given, (len(images), 1))}), given)
    # No images are no error; thresholds without a row for each image are,
    # though where everybody leaves nobody asks for the other rows.
    none = call('with_thresholds', **{
        name: fed[:0], 'thresholds': np.zeros([0, 2])})
    assert none['probabilities'].shape == (0, NUM_CLASSES)
    with pytest.raises(tf.errors.InvalidArgumentError, match='a row for each'):
      call('with_thresholds', **{name: fed, 'thresholds': np.zeros([1, 2])})


def test_export_on_a_full_disk(world, tmp_path, monkeypatch):
  def fail(*unused, **kwargs):
    raise tf.errors.ResourceExhaustedError(None, None, 'No space left')

  monkeypatch.setattr(
      tf.saved_model.builder.SavedModelBuilder, 'save', fail)
  with pytest.raises(UserError, match='No space left'):
    run(world, thresholds=['0.2', '0.2'], export_dir=tmp_path / 'export')
  assert not os.listdir(str(tmp_path / 'export'))


class NoNetwork(contextlib.ExitStack):
  """In place of a `CascadeSession`: all images are of class 1."""

  def __init__(self, *unused):
    super().__init__()

  def run(self, images):
    zeros = np.zeros(len(images), np.int32)
    return CascadeOutput(
        np.ones([len(images), 5], int), zeros.astype(float), zeros, None)


def test_a_stop_keeps_what_was_predicted(world, tmp_path, monkeypatch):
  """The rows so far, and an earlier run's results."""
  (tmp_path / 'predictions.csv').write_text('earlier')

  def two_batches(*unused):
    for _ in range(2):
      yield cascade_pass.RecordBatch(
          world.preprocessed('validation')[:4], np.ones(4, np.int32), ['x'] * 4)
    raise KeyboardInterrupt

  monkeypatch.setattr(cascade_pass, 'read_records', two_batches)
  monkeypatch.setattr(run_cascade, 'CascadeSession', NoNetwork)
  with pytest.raises(KeyboardInterrupt):
    run(world, thresholds=['0.2', '0.2'], split='validation',
        data_dir=world.folder / 'tf_records', output_dir=tmp_path)
  assert (tmp_path / 'predictions.csv').read_text() == 'earlier'
  assert len(read_csv(tmp_path / 'predictions.csv.unfinished')) == 8


def test_no_photo_is_an_image(world, tmp_path, monkeypatch):
  """The results of an earlier run must not look like this one's."""
  monkeypatch.setattr(run_cascade, 'CascadeSession', NoNetwork)
  (tmp_path / 'bad.jpg').write_text('no image')
  (tmp_path / 'run.json').write_text('{"num_images": 7}')
  (tmp_path / 'predictions.csv').write_text('earlier')
  assert run(world, tmp_path / 'bad.jpg', thresholds=['0.2', '0.2'],
             output_dir=tmp_path) == 1
  assert read_csv(tmp_path / 'predictions.csv') == []
  record = json.loads((tmp_path / 'run.json').read_text())
  assert record['num_images'] == 0 and record['exit_shares'] is None


@pytest.mark.parametrize('known', ['--results', '--thresholds'])
def test_class_names_in_another_order(world, tmp_path, known):
  """Names of --results and --data_dir differ: neither is believed."""
  for name in os.listdir(str(world.folder / 'results')):
    (tmp_path / name).write_bytes(
        (world.folder / 'results' / name).read_bytes())
  names = [f'class {i}' for i in range(1, NUM_CLASSES)]
  summary = json.loads((tmp_path / 'summary.json').read_text())
  summary['class_names'] = names[:2] + names[3:] + names[2:3]
  (tmp_path / 'summary.json').write_text(json.dumps(summary))
  (tmp_path / 'dataset.json').write_text(json.dumps({
      'num_classes': NUM_CLASSES, 'class_names': names,
      'num_images': {'train': 13, 'validation': 11}}))
  flags = dict(choose='cst:30') if known == '--results' else dict(
      thresholds=['0.2', '0.2'])
  with pytest.raises(UserError, match="class 3 is 'class 4', and 'class 3'"):
    run(world, results=tmp_path, data_dir=tmp_path, profile_stages=True,
        output_dir=tmp_path, **flags)


def test_class_names_of_the_model_folder(world, tmp_path, monkeypatch, capsys):
  """Printed without --data_dir and --results; another data set is refused."""
  monkeypatch.setattr(run_cascade, 'CascadeSession', NoNetwork)
  shutil.copytree(str(world.folder / 'all'), str(tmp_path / 'all'))
  names = [f'class {i}' for i in range(1, NUM_CLASSES)]
  run_record.record_class_names(str(tmp_path / 'all'), names)
  photo = tmp_path / 'photo.jpg'
  photo.write_bytes(world.rows['validation'][0][0])
  run(world, photo, model_dir=tmp_path / 'all', thresholds=['0', '0'])
  assert ': class 1, ' in capsys.readouterr().out
  (tmp_path / 'dataset.json').write_text(json.dumps({
      'num_classes': NUM_CLASSES, 'class_names': ['ant'] + names[1:],
      'num_images': {'train': 13, 'validation': 11}}))
  with pytest.raises(UserError, match="class 1 is 'class 1', and 'ant' in"):
    run(world, photo, model_dir=tmp_path / 'all', thresholds=['0', '0'],
        data_dir=tmp_path)


def test_profile_is_a_cost_of_the_analysis(world, tmp_path, capsys):
  run(world, profile_stages=True, output_dir=tmp_path,
      thresholds=['0.9999999', '0.2'])
  assert 'within 1e-06 of 1' in capsys.readouterr().err  # Rounding decides.
  path = tmp_path / shared_stage_seconds.FILE_NAME
  profile = shared_stage_seconds.load(str(path))
  assert profile.batch_sizes == [1, 2, 4]
  assert list(profile.seconds_per_image) == CLASSIFIERS
  analyze_imagenet_labels.main([
      '-softmax_dir_to_validate_against', str(world.folder / 'dumps'),
      '-output_dir', str(tmp_path / 'by_time'), '-method', 'pareto', '-cost',
      str(path)])
  assert all(float(row['ms_per_image']) > 0
             for row in read_csv(tmp_path / 'by_time' / 'cascade.csv'))


@pytest.mark.parametrize('flags, message', [
    (dict(), '--thresholds'),
    (dict(thresholds=['0.5']), '--thresholds 0.5: give 2'),
    (dict(thresholds=['0.5', 'nan']), '--thresholds 0.5,nan'),
    (dict(thresholds=['0.5', 'x']), '--thresholds 0.5,x'),
    (dict(thresholds=['0.9', '80']), '--thresholds 0.9,80'),
    (dict(choose='cst:2'), '--results'),
    (dict(thresholds=['1', '1'], num_gpus=2), '--num_gpus'),
    (dict(thresholds=['1', '1'], image_size=33), '--image_size'),
    (dict(thresholds=['1'], classifier_id=['0', '1']), '--classifier_id'),
    (dict(thresholds=['1', '1'], split='train'), 'photo.jpg'),
    (dict(profile_stages=True), '--output_dir'),
])
def test_flags_that_do_not_fit(world, flags, message, tmp_path):
  photo = tmp_path / 'photo.jpg'
  photo.write_bytes(world.rows['validation'][0][0])
  with pytest.raises(UserError, match=message):
    run(world, photo, **flags)


@pytest.mark.parametrize('flags, message', [
    (dict(choose='cst:99'), 'no such setting'),
    (dict(choose='speedup>=50'), 'the nearest is'),
    (dict(choose='cst:30', model_dir='other'), 'of other weights'),
    (dict(choose='cst:30', model_dir='trunk'), 'clf0: its head is not in'),
    (dict(choose='cst:30', image_size=64), 'of another network'),
    (dict(choose='cst:30', classifier_id=['0', '2']), 'are of classifiers'),
])
def test_results_that_do_not_fit(world, flags, message):
  flags = dict(flags, model_dir=world.folder / flags.get('model_dir', 'all'))
  with pytest.raises(UserError, match=message):
    run(world, export_dir=world.folder / 'never',
        results=world.folder / 'results', **flags)
  assert not (world.folder / 'never').exists()
