"""Which checkpoint each variable comes from, and what is refused."""

import collections
import shutil

import numpy as np
import pytest

import resnet_checkpoint
from resnet_checkpoint import CheckpointPaths
from refusals import refused
from tf_compat import tf
from tiny_checkpoints import write_checkpoint

# A network of one layer per exit; the names are what matters.
AVERAGE = 'resnet_model/batch_normalization/moving_mean'
TRUNK = [('resnet_model/conv2d/kernel', [2, 3]),
         (AVERAGE, [3]),
         ('resnet_model/conv2d_1/kernel', [3, 4]),
         ('resnet_model/conv2d_2/kernel', [4, 5])]
HEADS = {0: [('resnet_model/cascaded0_fc0/kernel', [3, 2]),
             ('resnet_model/cascaded0_bn00/moving_mean', [2])],
         1: [('resnet_model/cascaded1_fc1/kernel', [4, 2])],
         2: [('resnet_model/dense/kernel', [5, 2]),
             ('resnet_model/dense/bias', [2])]}
NUM_TRUNK_VARIABLES = {0: 2, 1: 3, 2: 4}


def exit_shapes(*classifier_ids):
  """What each classifier needs: the trunk as far as there, and its head."""
  return collections.OrderedDict(
      (k, collections.OrderedDict(TRUNK[:NUM_TRUNK_VARIABLES[k]] + HEADS[k]))
      for k in classifier_ids)


def training_shapes(*classifier_ids):
  """Variables of the graph that trains these heads."""
  shapes = collections.OrderedDict(
      [('global_step', [])] + TRUNK[:NUM_TRUNK_VARIABLES[max(classifier_ids)]])
  for k in classifier_ids:
    shapes.update(HEADS[k])
    name, shape = HEADS[k][0]
    shapes[name + '/Momentum'] = shape
  return shapes


def values(*parts):
  """Values of variables, by name; every one is another number throughout.

  Args:
    *parts: classifiers, for their heads; or 'trunk', or 'trunk' and a
      classifier, such as 'trunk0', for the trunk as far as there.
  """
  listed = []
  for part in parts:
    if part in HEADS:
      listed += HEADS[part]
    else:
      listed += TRUNK[:NUM_TRUNK_VARIABLES[int(part[5:] or 2)]]
  everything = [name for name, _ in TRUNK + HEADS[0] + HEADS[1] + HEADS[2]]
  return {name: np.full(shape, everything.index(name), np.float32)
          for name, shape in listed}


def trained(*classifier_ids):
  """What a training of these heads saves."""
  saved = values(f'trunk{max(classifier_ids)}', *classifier_ids)
  for name, shape in training_shapes(*classifier_ids).items():
    saved.setdefault(name, np.zeros(shape, np.float32))
  return saved


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """A working folder as step 3 leaves it."""
  monkeypatch.chdir(str(tmp_path))
  write_checkpoint('trunk', values('trunk', 2), 225207)
  write_checkpoint('clf0', trained(0), 7)
  write_checkpoint('clf1', trained(1), 8)
  write_checkpoint('joint', trained(0, 1), 9)
  return tmp_path


PRETRAINED = 'trunk/model.ckpt-225207'
CLF0, CLF1 = 'clf0/model.ckpt-7', 'clf1/model.ckpt-8'
JOINT = 'joint/model.ckpt-9'


# ---- To evaluate ------------------------------------------------------------

def find(classifier_ids, *args, **kwargs):
  """(trunk's, head's) checkpoint of each classifier, and the weights."""
  weights = resnet_checkpoint.to_evaluate(
      CheckpointPaths(*args, **kwargs), exit_shapes(*classifier_ids))
  assert list(weights.sources) == list(classifier_ids)
  for k, source in weights.sources.items():
    for name, _ in TRUNK[:NUM_TRUNK_VARIABLES[k]]:
      assert weights.checkpoint_of[name] == source.trunk_checkpoint
    for name, _ in HEADS[k]:
      assert weights.checkpoint_of[name] == source.head_checkpoint
  return {k: (source.trunk_checkpoint, source.head_checkpoint)
          for k, source in weights.sources.items()}, weights


@pytest.mark.parametrize('classifier_ids, args, expected', [
    # As published: a classifier, from its own folder or as pretrained.
    ([2], ['new', 'trunk'], {2: (PRETRAINED, PRETRAINED)}),
    ([0], ['clf0', 'trunk'], {0: (CLF0, CLF0)}),
    ([1], ['clf1'], {1: (CLF1, CLF1)}),
    # All at once: heads of one folder, of several, of a folder and a prefix.
    ([0, 1, 2], ['joint', 'trunk'],
     {0: (PRETRAINED, JOINT), 1: (PRETRAINED, JOINT),
      2: (PRETRAINED, PRETRAINED)}),
    ([0, 1, 2], ['new', 'trunk', ['clf0', 'clf1']],
     {0: (PRETRAINED, CLF0), 1: (PRETRAINED, CLF1),
      2: (PRETRAINED, PRETRAINED)}),
    ([0, 2], ['new', PRETRAINED, [CLF0]],
     {0: (PRETRAINED, CLF0), 2: (PRETRAINED, PRETRAINED)}),
    # --head_model_dirs goes before --model_dir, for one classifier as well.
    ([0], ['joint', 'trunk', ['clf0']], {0: (PRETRAINED, CLF0)}),
    # Without -pmcp the trunk is that of --model_dir.
    ([0, 1], ['clf1', None, ['clf0', 'clf1']],
     {0: (CLF1, CLF0), 1: (CLF1, CLF1)}),
    # A model folder of another classifier has not the network's own.
    ([2], ['clf0', 'trunk'], {2: (PRETRAINED, PRETRAINED)}),
])
def test_where_weights_come_from(folder, classifier_ids, args, expected):
  assert find(classifier_ids, *args)[0] == expected


def digests(weights):
  return {k: (source.trunk_sha256, source.head_sha256)
          for k, source in weights.sources.items()}


def test_digests_are_of_the_weights_alone(folder):
  """Not of the file, nor of what else it holds."""
  _, joint = find([0, 1, 2], 'joint', 'trunk')
  _, apart = find([0, 1, 2], 'new', 'trunk', ['clf0', 'clf1'])
  assert digests(joint) == digests(apart)
  # The trunk as far as each exit is another one; so is each head.
  assert len({digest for pair in digests(joint).values()
              for digest in pair}) == 6
  changed = values('trunk', 0, 1, 2)
  changed['resnet_model/conv2d_1/kernel'][-1, -1] += 1e-6
  write_checkpoint('changed', changed)
  before, after = digests(joint), digests(find([0, 1, 2], 'changed')[1])
  assert [k for k in before if before[k][0] != after[k][0]] == [1, 2]
  assert [k for k in before if before[k][1] != after[k][1]] == []


@pytest.mark.parametrize('classifier_ids, args, words', [
    ([0, 1, 2], ['new', 'trunk', ['clf0', 'clf1', 'joint']],
     ['--head_model_dirs', CLF0, JOINT]),
    ([0, 1, 2], ['new', 'trunk', ['clf0']],
     ['clf1: ', CLF0, PRETRAINED, '--fine_tune']),
    # What the short way is without its -pmcp.
    ([0, 1, 2], ['joint'], ['clf2', JOINT, '-pmcp']),
    ([0], ['new'], ['--model_dir new', '-pmcp']),
    ([0, 2], ['new', 'trunk', ['clf0', 'nowhere']],
     ['--head_model_dirs nowhere']),
])
def test_evaluation_refused(folder, classifier_ids, args, words):
  message = refused(find, classifier_ids, *args)
  assert all(word in message for word in words), message


def changed_head0(folder_name, name):
  """A clf0 that was trained on a trunk with another value of `name`."""
  changed = trained(0)
  changed[name] = changed[name] + 1e-6
  return write_checkpoint(folder_name, changed, 3)


@pytest.mark.parametrize('args', [
    ['own', 'trunk'], ['new', 'trunk', ['clf1', 'own']]])
def test_head_of_another_trunk(folder, args):
  own = changed_head0('own', AVERAGE)
  message = refused(find, [0, 2], *args)
  assert message.startswith('clf0: ') and own in message and AVERAGE in message
  # The remedies that it names.
  assert find([0], 'own')[0] == {0: (own, own)}
  assert find([0], 'own', 'trunk', averages_drift=True)[0] == {0: (own, own)}


def test_evaluating_a_folder_of_another_trunk_than_pmcp(folder):
  """-pmcp used to be ignored, and gave a cascade of two trunks."""
  own = changed_head0('own', 'resnet_model/conv2d/kernel')
  for averages_drift in (False, True):
    message = refused(find, [0], 'own', 'trunk', averages_drift=averages_drift)
    assert own in message and PRETRAINED in message


@pytest.mark.parametrize('changed_folder, parts, name', [
    ('trunk', ['trunk', 2], 'resnet_model/dense/bias'),
    ('joint', ['trunk1', 0, 1], 'resnet_model/cascaded0_bn00/moving_mean'),
])
def test_missing_and_misshapen(folder, changed_folder, parts, name):
  changed = values(*parts)
  changed[name] = np.zeros([9], np.float32)
  prefix = write_checkpoint(changed_folder, changed, 10)
  message = refused(find, [0, 1, 2], 'joint', 'trunk')
  assert prefix in message and f'{name} is [9], needed [2]' in message
  del changed[name]
  write_checkpoint(changed_folder, changed, 10)
  message = refused(find, [0, 1, 2], 'joint', 'trunk')
  assert prefix in message and f'lacks {name};' in message


# ---- To train ---------------------------------------------------------------

def start(classifier_ids, *args, **kwargs):
  fine_tune = kwargs.pop('fine_tune', True)
  return resnet_checkpoint.to_train(
      CheckpointPaths(*args, **kwargs), training_shapes(*classifier_ids),
      classifier_ids, fine_tune, may_start_anew=not fine_tune)


@pytest.mark.parametrize('classifier_ids, args, expected', [
    ([0], ['new', 'trunk'], PRETRAINED),
    ([0], ['new', 'clf1'], CLF1),  # Its trunk is long enough.
    ([0], ['clf0', 'trunk'], None),
    ([0], ['clf0', 'trunk', (), True], PRETRAINED),  # --clean
])
def test_where_training_starts(folder, classifier_ids, args, expected):
  assert start(classifier_ids, *args) == expected


@pytest.mark.parametrize('classifier_ids, args, words', [
    ([0], ['clf1', 'trunk'], [CLF1, 'cascaded0_', '--model_dir', '--clean']),
    ([1], ['new', 'clf0'], [CLF0, 'conv2d_1/kernel', '-pmcp']),
])
def test_training_refused(folder, classifier_ids, args, words):
  message = refused(start, classifier_ids, *args)
  assert all(word in message for word in words), message


def test_resuming_on_another_trunk(folder):
  """-pmcp used to be ignored once --model_dir held a checkpoint."""
  other = values('trunk', 2)
  other['resnet_model/conv2d/kernel'] += 1
  write_checkpoint('other', other, 3)
  message = refused(start, [0], 'clf0', 'other')
  assert CLF0 in message and 'other/model.ckpt-3' in message
  # A trunk that differs beyond the exit is the same for this head.
  other = values('trunk', 2)
  other['resnet_model/conv2d_2/kernel'] += 1
  write_checkpoint('other', other, 4)
  assert start([0], 'clf0', 'other') is None


def test_resuming_after_the_trunks_averages_drifted(folder):
  changed_head0('own', AVERAGE)
  assert '--trunk_batch_norm=update' in refused(start, [0], 'own', 'trunk')
  assert start([0], 'own', 'trunk', averages_drift=True) is None


def test_resuming_would_drop_a_head(folder):
  """clf1's head used to vanish from the newest checkpoint."""
  message = refused(start, [0], 'joint', 'trunk')
  assert JOINT in message and 'clf1' in message
  assert '--classifier_id 0,1' in message
  assert start([0, 1], 'joint', 'trunk') is None


def test_resuming_in_a_copied_folder(folder):
  """The Estimator would resume from the folder the copy was made of."""
  shutil.copytree('clf0', 'copy')
  (folder / 'copy' / 'checkpoint').write_text(
      f'model_checkpoint_path: "{folder}/clf0/model.ckpt-7"\n')
  assert start([0], 'copy') is None
  assert tf.train.latest_checkpoint('copy') == 'copy/model.ckpt-7'


# ---- Finding, reading, restoring --------------------------------------------

def test_newest_checkpoint(folder):
  newest = resnet_checkpoint.newest_checkpoint
  assert newest('nowhere') is None
  for step in (9, 100):
    write_checkpoint('run', values(2), step)
  assert newest('run') == 'run/model.ckpt-100'
  # The official archives name the folder that they were trained in.
  (folder / 'run' / 'checkpoint').write_text(
      'model_checkpoint_path: "/elsewhere/model.ckpt-9"\n')
  assert newest('run') == 'run/model.ckpt-9'
  for content in ('model_checkpoint_path: "model.ckpt-70"', 'no message {', ''):
    (folder / 'run' / 'checkpoint').write_text(content)
    assert newest('run') == 'run/model.ckpt-100'


def test_step_of_a_checkpoint(folder):
  """A checkpoint without a global step used to end in a traceback."""
  assert resnet_checkpoint.checkpoint_step(CLF0) == 0
  assert resnet_checkpoint.checkpoint_step(PRETRAINED) is None


@pytest.mark.parametrize('suffix, num_bytes_left', [
    ('index', 0), ('data-00000-of-00001', 20), ('data-00000-of-00001', None)])
def test_damaged_files(folder, suffix, num_bytes_left):
  """As a download that was interrupted leaves them."""
  damaged = folder / 'trunk' / f'model.ckpt-225207.{suffix}'
  if num_bytes_left is None:
    damaged.unlink()
  else:
    damaged.write_bytes(damaged.read_bytes()[:num_bytes_left])
  assert refused(find, [2], 'new', 'trunk').startswith(f'{PRETRAINED}: ')


@pytest.mark.parametrize('suffix', ['index', 'data-00000-of-00001'])
def test_the_name_of_one_of_its_files(folder, suffix):
  """As a shell completes it."""
  assert resnet_checkpoint.find_checkpoint(
      f'{PRETRAINED}.{suffix}', '-pmcp') == PRETRAINED


def test_training_that_diverged(folder):
  diverged = trained(0)
  diverged['resnet_model/cascaded0_fc0/kernel'][0] = np.nan
  prefix = write_checkpoint('clf0', diverged, 9)
  for function in (find, start):
    message = refused(function, [0], 'clf0')
    assert prefix in message and '--clean' in message
