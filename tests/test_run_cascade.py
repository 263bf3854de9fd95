"""`run_cascade.py` on the tiny data set: records, photos, export, refusals."""

import csv
import glob
import json
import os
import subprocess
import sys
import types

import numpy as np
import pytest
from PIL import Image

import analyze_imagenet_labels
import cascade_results
import dump_names
import rule_weights
import run_cascade
import small_world
import stage_seconds
from cascade import analysis
from cascade_session import CascadeSession
from devices import resolve, session_config
from small_network import IMAGE_SIZE, NUM_CLASSES
from tf_compat import tf
from tiny_checkpoints import write_checkpoint
from user_error import UserError

CLASSIFIERS = [0, 1, 2]
DEFAULTS = dict(
    resnet_version='2', resnet_size='18', image_size=IMAGE_SIZE, dtype='fp32',
    pretrained_model_checkpoint_path=None, head_model_dirs=[], batch_size=4,
    num_gpus=0, data_format=None, inter_op_parallelism_threads=0,
    intra_op_parallelism_threads=0, datasets_num_private_threads=None,
    datasets_num_parallel_batches=None, image_bytes_as_serving_input=False,
    data_dir=None, classifier_id=['0', '1', '2'], thresholds=None,
    results=None, choose=None, metric='top1', split=None, compare=False,
    output_dir=None, export_dir=None, profile_stages=False)


@pytest.fixture(scope='module')
def world(tmp_path_factory):
  """A data set, a network with all its exits, its dumps, and results."""
  made = small_world.make(tmp_path_factory.mktemp('cascade'))
  weights = rule_weights.rule_variables(
      rule_weights.cascade_variables(18, 2, NUM_CLASSES))
  weights['global_step'] = np.int64(1)
  write_checkpoint(made.folder / 'all', weights, 1)
  # Other weights of one head.
  weights['resnet_model/cascaded1_fc11/bias'][:] += 1
  write_checkpoint(made.folder / 'other', weights, 1)
  made.run('--eval_only', '--classifier_id', '0,1,2', '-md',
           made.folder / 'all', '-pmcp', made.folder / 'all', '--softmax_dir',
           made.folder / 'dumps')
  analyze_imagenet_labels.main([
      '-softmax_dir_to_validate_against', str(made.folder / 'dumps'),
      '-output_dir', str(made.folder / 'results'), '-epsilons', '0,10,30,60'])
  return made


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


@pytest.mark.parametrize('metric', ['top1', 'top5'])
def test_decisions_equal_the_analysis(world, metric):
  """Every setting of every method, image by image."""
  results = cascade_results.load(str(world.folder / 'results'))
  dumps = {k: np.load(str(
      world.folder / 'dumps' / dump_names.probabilities_file_names(
          k, 'validation')[0])) for k in CLASSIFIERS}
  labels = np.array([label for _, label in world.rows['validation']])
  order = {k: np.argsort(-dump, axis=1, kind='mergesort')[:, :5]
           for k, dump in dumps.items()}
  num_terms = {'top1': 1, 'top5': 5}[metric]
  confidences = {
      k: np.take_along_axis(dump, order[k][:, :num_terms], axis=1).sum(
          axis=1, dtype=np.float64) for k, dump in dumps.items()}
  images = world.preprocessed('validation')
  rows = [row for row in results.rows if row['metric'] == metric]
  # All settings but for those of `global`, a thousand.
  rows = [row for i, row in enumerate(rows)
          if row['method'] != 'global' or i % 50 == 0]
  assert {row['method'] for row in rows} == {
      'cst', 'global', 'ccst', 'budgeted', 'pareto', 'risk'}
  # The first half of them calibrates `risk`, the second one judges it.
  shuffled = np.random.RandomState(analysis.HALVES_SEED).permutation(
      len(images))
  second_half = np.sort(shuffled[len(images) // 2:])
  devices = resolve(0, len(images), 0)
  num_near = 0
  flags = types.SimpleNamespace(**dict(
      DEFAULTS, model_dir=str(world.folder / 'all'), metric=metric,
      results=str(world.folder / 'results')))
  for is_per_class in (False, True):
    chosen = [row for row in rows if (row['method'] == 'ccst') == is_per_class]
    for row in chosen:
      flags.choose = f'{row["method"]}:{row["setting"]!r}'
      choice = cascade_results.choose(results, flags.choose, metric)
      if row is chosen[0]:
        cascade = run_cascade._cascade(  # pylint: disable=protected-access
            flags, None, devices)
        session = CascadeSession(
            cascade.model, CLASSIFIERS, cascade.weights, metric,
            choice.thresholds, IMAGE_SIZE, devices, session_config(devices))
      thresholds = choice.thresholds
      if not is_per_class:
        thresholds = np.tile(thresholds, (len(images), 1))
      output = session.run(images, thresholds)
      exits = np.full(len(images), 2)
      is_near = np.zeros(len(images), bool)
      for m in (1, 0):
        threshold = choice.thresholds[m]
        if is_per_class:
          threshold = threshold[order[m][:, 0]]
        exits[confidences[m].astype(np.float32) >= threshold] = m
        is_near |= abs(confidences[m] - threshold) <= 1e-5
      np.testing.assert_array_equal(output.exits[~is_near], exits[~is_near])
      classes = np.array([order[k][i] for i, k in enumerate(output.exits)])
      np.testing.assert_array_equal(output.top5_classes, classes)
      num_near += np.count_nonzero(output.exits != exits)
      if (output.exits == exits).all():
        judging = second_half if row['method'] == 'risk' else slice(None)
        hits = (classes == labels[:, np.newaxis])[judging, :num_terms]
        assert hits.any(axis=1).mean() == pytest.approx(row['test_accuracy'])
        for k in CLASSIFIERS:
          assert np.mean(exits[judging] == k) == pytest.approx(
              row[f'exit_share_clf{k}'])
    session.__exit__()
  print(f'{num_near} images, of {len(rows) * len(images)}, are within 1e-5 of '
        'a threshold and left elsewhere')


def test_records(world, tmp_path, capfd):
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
  row = cascade_results.choose(
      cascade_results.load(str(world.folder / 'results')), 'cst:30',
      'top1').row
  assert record['top1'] == pytest.approx(row['test_accuracy'])
  assert record['gmacs_per_image'] == pytest.approx(row['gmacs_per_image'])
  assert record['speedup_by_macs'] == pytest.approx(row['speedup'])
  assert record['choice'] == 'cst:30.0'
  assert all(record[name] > 0 for name in (
      'speedup_by_stage_times', 'speedup_measured', 'speedup_end_to_end',
      'images_per_second', 'plain_images_per_second'))
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
  extra = tmp_path / 'extra.webp'
  Image.new('RGB', (40, 50), (200, 30, 30)).save(str(extra))
  status = run(world, folder, extra, thresholds=['0.15', '0.15'],
               output_dir=tmp_path / 'out')
  assert status == 1
  out, err = capsys.readouterr()
  assert len(out.splitlines()) == len(world.rows['validation']) + 1
  assert out.splitlines()[0].startswith(str(folder / '00.jpg') + ': ')
  assert out.splitlines()[-1].startswith(f'{extra}: ')
  line, = [line for line in err.splitlines() if 'run_cascade' in line]
  assert '03a.png' in line and 'left out' in line
  of_photos = read_csv(tmp_path / 'out' / 'predictions.csv')
  assert run(world, thresholds=['0.15', '0.15'], split='validation',
             data_dir=world.folder / 'tf_records', output_dir=tmp_path) == 0
  for photo, record in zip(of_photos, read_csv(tmp_path / 'predictions.csv')):
    assert photo['exit'] == record['exit']
    assert photo['class'] == record['class']
    assert float(photo['confidence']) == pytest.approx(
        float(record['confidence']), abs=1e-5)
  assert json.loads((tmp_path / 'out' / 'run.json').read_text())['top1'] is None


@pytest.mark.parametrize('choose, takes_bytes', [
    ('cst:30', False), ('risk:0', False), ('ccst:30', True)])
def test_export(world, tmp_path, choose, takes_bytes, capsys):
  run(world, results=world.folder / 'results', choose=choose,
      export_dir=tmp_path / 'export', image_bytes_as_serving_input=takes_bytes)
  assert f'run_cascade.py: --choose {choose}: {choose}, top1 0.' in (
      capsys.readouterr().err)
  folder, = glob.glob(str(tmp_path / 'export' / '*'))
  with open(os.path.join(folder, 'assets.extra', 'cascade.json')) as stream:
    record = json.load(stream, parse_constant=pytest.fail)  # As in NaN.
  assert record['choice'] == choose + '.0'
  expected = cascade_results.choose(cascade_results.load(
      str(world.folder / 'results')), choose, 'top1').row
  assert record['expected']['test_accuracy'] == expected['test_accuracy']
  thresholds = np.array(record['thresholds'], np.float32)
  assert thresholds.shape == ((2, NUM_CLASSES) if takes_bytes else (2,))
  images = world.preprocessed('validation')
  fed = [jpeg for jpeg, _ in world.rows['validation']] if takes_bytes else (
      images)
  dumped = {k: np.load(str(
      world.folder / 'dumps' / dump_names.probabilities_file_names(
          k, 'validation')[0])) for k in CLASSIFIERS}

  def check(outputs, thresholds_of):
    exits = np.full(len(images), 2)
    for m in (1, 0):
      exits[dumped[m].max(axis=1) >= thresholds_of(m)] = m
    assert list(outputs['exits']) == list(exits)
    for i, k in enumerate(exits):
      np.testing.assert_allclose(
          outputs['probabilities'][i], dumped[k][i], atol=1e-5)
      assert outputs['classes'][i] == dumped[k][i].argmax()
      assert outputs['confidences'][i] == pytest.approx(
          dumped[k][i].max(), abs=1e-5)

  with tf.Graph().as_default(), tf.Session() as session:
    model = tf.saved_model.loader.load(session, ['serve'], folder)

    def call(signature, **inputs):
      definition = model.signature_def[signature]
      assert all(not of.tensor_shape.dim or of.tensor_shape.dim[0].size == -1
                 for of in definition.outputs.values())
      return session.run(
          {name: of.name for name, of in definition.outputs.items()},
          {definition.inputs[name].name: value
           for name, value in inputs.items()})

    name = 'image_bytes' if takes_bytes else 'images'
    # Away from the dumps' own confidences, which are the thresholds.
    check(call('with_thresholds', **{
        name: fed, 'thresholds': np.tile([.151, .149], (len(images), 1))}),
          lambda m: (.151, .149)[m])
    stored = call('serving_default', **{name: fed})
    check(stored, lambda m: np.float32(1e-6) * -1 + (
        thresholds[m][dumped[m].argmax(axis=1)] if takes_bytes
        else thresholds[m]))


def test_profile_is_a_cost_of_the_analysis(world, tmp_path, capsys):
  run(world, profile_stages=True, output_dir=tmp_path)
  path = tmp_path / stage_seconds.FILE_NAME
  profile = stage_seconds.load(str(path))
  assert profile.batch_sizes == [1, 2, 4]
  assert list(profile.seconds_per_image) == CLASSIFIERS
  analyze_imagenet_labels.main([
      '-softmax_dir_to_validate_against', str(world.folder / 'dumps'),
      '-output_dir', str(tmp_path / 'by_time'), '-method', 'pareto', '-cost',
      str(path)])
  assert all(float(row['ms_per_image']) > 0
             for row in read_csv(tmp_path / 'by_time' / 'cascade.csv'))


@pytest.mark.parametrize('flags, message', [
    (dict(), 'when do images leave'),
    (dict(thresholds=['0.5']), '1 of them, and 2 exits'),
    (dict(thresholds=['0.5', '0.5', '0.5']), '3 of them, and 2 exits'),
    (dict(thresholds=['0.5', 'nan']), 'nan is no threshold'),
    (dict(thresholds=['0.5', 'x']), 'not numbers'),
    (dict(thresholds=['0.9', '80']), 'from 0 to 1, or inf'),
    (dict(thresholds=['-0.5', '1']), 'from 0 to 1, or inf'),
    (dict(choose='cst:2'), 'needs --results'),
    (dict(thresholds=['1', '1'], num_gpus=2), 'one device'),
    (dict(thresholds=['1', '1'], image_size=33), 'multiple of 32'),
    (dict(thresholds=['1'], classifier_id=['0', '1']), 'ends with classifier'),
    (dict(thresholds=['1', '1'], split='train'), 'photo.jpg'),
    (dict(profile_stages=True), 'needs --output_dir'),
])
def test_flags_that_do_not_fit(world, flags, message, tmp_path):
  photo = tmp_path / 'photo.jpg'
  photo.write_bytes(world.rows['validation'][0][0])
  with pytest.raises(UserError, match=message):
    run(world, photo, **flags)


@pytest.mark.parametrize('flags, message', [
    (dict(choose='cst:2'), 'no such setting'),
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


def test_paths_that_do_not_fit(world, tmp_path):
  for path, message in ((tmp_path, 'a folder without images'),
                        (tmp_path / 'gone.jpg', 'no such file')):
    with pytest.raises(UserError, match=message):
      run(world, path, thresholds=['1', '1'])
