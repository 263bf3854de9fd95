"""Which checkpoint each weight of a dump comes from, and what is refused."""

import collections

import numpy as np
import pytest

import command_line
import exit_weights
from tiny_checkpoints import write_checkpoint
from user_error import UserError

# A network of one layer per exit; the names are what matters.
TRUNK = [('resnet_model/conv2d/kernel', [2, 3]),
         ('resnet_model/batch_normalization/moving_mean', [3]),
         ('resnet_model/conv2d_1/kernel', [3, 4]),
         ('resnet_model/conv2d_2/kernel', [4, 5])]
HEADS = {0: [('resnet_model/cascaded0_fc0/kernel', [3, 2]),
             ('resnet_model/cascaded0_bn00/moving_mean', [2])],
         1: [('resnet_model/cascaded1_fc1/kernel', [4, 2])],
         2: [('resnet_model/dense/kernel', [5, 2]),
             ('resnet_model/dense/bias', [2])]}
AVERAGE = 'resnet_model/batch_normalization/moving_mean'
NUM_TRUNK_VARIABLES = {0: 2, 1: 3, 2: 4}


def exit_shapes(*classifier_ids):
  """What each classifier needs: the trunk as far as there, and its head."""
  return collections.OrderedDict(
      (k, collections.OrderedDict(TRUNK[:NUM_TRUNK_VARIABLES[k]] + HEADS[k]))
      for k in classifier_ids)


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


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """A working folder as step 3 leaves it."""
  monkeypatch.chdir(str(tmp_path))
  write_checkpoint('trunk', values('trunk', 2), 225207)
  write_checkpoint('clf0', values('trunk0', 0), 7)
  write_checkpoint('clf1', values('trunk1', 1), 8)
  write_checkpoint('joint', values('trunk1', 0, 1), 9)
  return tmp_path


def find(classifier_ids, *args):
  """`(trunk's, head's)` checkpoint of each classifier, and the weights."""
  weights = exit_weights.to_dump(
      command_line.parse('--eval_only', *args), exit_shapes(*classifier_ids))
  assert list(weights.sources) == list(classifier_ids)
  # The sources agree with where each variable is read from.
  for k, source in weights.sources.items():
    for name, _ in TRUNK[:NUM_TRUNK_VARIABLES[k]]:
      assert weights.checkpoint_of[name] == source.trunk_checkpoint
    for name, _ in HEADS[k]:
      assert weights.checkpoint_of[name] == source.head_checkpoint
  return {k: (source.trunk_checkpoint, source.head_checkpoint)
          for k, source in weights.sources.items()}, weights


def refused(classifier_ids, *args):
  with pytest.raises(UserError) as error:
    find(classifier_ids, *args)
  assert '\n' not in str(error.value)
  return str(error.value)


PRETRAINED = 'trunk/model.ckpt-225207'
CLF0, CLF1 = 'clf0/model.ckpt-7', 'clf1/model.ckpt-8'
JOINT = 'joint/model.ckpt-9'


# ---- Where they come from ---------------------------------------------------

@pytest.mark.parametrize('classifier_ids, args, expected', [
    # As published: a classifier, from its own folder or as pretrained.
    ([2], ['-md', 'new', '-pmcp', 'trunk'], {2: (PRETRAINED, PRETRAINED)}),
    ([0], ['-md', 'clf0', '-pmcp', 'trunk'], {0: (CLF0, CLF0)}),
    ([1], ['-md', 'clf1'], {1: (CLF1, CLF1)}),
    ([1], ['-md', 'joint'], {1: (JOINT, JOINT)}),
    # All at once: heads of one folder, of several, of the folder and a prefix.
    ([0, 1, 2], ['-md', 'joint', '-pmcp', 'trunk'],
     {0: (PRETRAINED, JOINT), 1: (PRETRAINED, JOINT),
      2: (PRETRAINED, PRETRAINED)}),
    ([0, 1, 2], ['-md', 'new', '-pmcp', 'trunk', '--head_model_dirs',
                 'clf0,clf1'],
     {0: (PRETRAINED, CLF0), 1: (PRETRAINED, CLF1),
      2: (PRETRAINED, PRETRAINED)}),
    ([0, 2], ['-md', 'new', '-pmcp', PRETRAINED, '--head_model_dirs', CLF0],
     {0: (PRETRAINED, CLF0), 2: (PRETRAINED, PRETRAINED)}),
    # One more folder than is needed.
    ([1, 2], ['-md', 'new', '-pmcp', 'trunk', '--head_model_dirs',
              'clf0,clf1'],
     {1: (PRETRAINED, CLF1), 2: (PRETRAINED, PRETRAINED)}),
    # --head_model_dirs goes before --model_dir, for one classifier as well.
    ([0], ['-md', 'joint', '-pmcp', 'trunk', '--head_model_dirs', 'clf0'],
     {0: (PRETRAINED, CLF0)}),
    # Without -pmcp the trunk is that of --model_dir.
    ([0, 1], ['-md', 'joint'], {0: (JOINT, JOINT), 1: (JOINT, JOINT)}),
    ([0, 1], ['-md', 'clf1', '--head_model_dirs', 'clf0,clf1'],
     {0: (CLF1, CLF0), 1: (CLF1, CLF1)}),
    # A model folder of another classifier does not keep the network's own.
    ([2], ['-md', 'clf0', '-pmcp', 'trunk'], {2: (PRETRAINED, PRETRAINED)}),
])
def test_where_weights_come_from(folder, classifier_ids, args, expected):
  assert find(classifier_ids, *args)[0] == expected


def test_everything_in_one_checkpoint(folder):
  prefix = write_checkpoint('all', values('trunk', 0, 1, 2), 1)
  for args in (['-md', 'new', '-pmcp', 'all'], ['-md', 'all']):
    assert find([0, 1, 2], *args)[0] == {
        k: (prefix, prefix) for k in (0, 1, 2)}
  # A head of the model folder goes before the pretrained checkpoint's.
  assert find([0, 1, 2], '-md', 'clf0', '-pmcp', 'all')[0] == {
      0: (prefix, CLF0), 1: (prefix, prefix), 2: (prefix, prefix)}


def test_of_one_checkpoint(folder):
  weights = exit_weights.of_one_checkpoint(JOINT, exit_shapes(0, 1))
  assert set(weights.checkpoint_of) == set(values('trunk1', 0, 1))
  assert set(weights.checkpoint_of.values()) == {JOINT}


# ---- Digests ----------------------------------------------------------------

def digests(weights):
  return {k: (source.trunk_sha256, source.head_sha256)
          for k, source in weights.sources.items()}


def test_digests_are_of_the_weights_alone(folder):
  """Not of the file, nor of what else it holds."""
  _, joint = find([0, 1, 2], '-md', 'joint', '-pmcp', 'trunk')
  _, apart = find([0, 1, 2], '-md', 'new', '-pmcp', 'trunk',
                  '--head_model_dirs', 'clf0,clf1')
  assert digests(joint) == digests(apart)
  for k, folder_name in ((0, 'clf0'), (1, 'clf1')):
    _, alone = find([k], '-md', folder_name)
    assert digests(alone)[k] == digests(joint)[k]
  found = [digest for pair in digests(joint).values() for digest in pair]
  # The trunk as far as each exit is another one; so is each head.
  assert len(set(found)) == 6
  assert all(len(digest) == 64 for digest in found)


@pytest.mark.parametrize('name, trunk_changes, head_changes', [
    ('resnet_model/cascaded0_bn00/moving_mean', [], [0]),
    ('resnet_model/conv2d_1/kernel', [1, 2], []),
    (AVERAGE, [0, 1, 2], []),
])
def test_any_change_changes_the_digest(
    folder, name, trunk_changes, head_changes):
  everything = values('trunk', 0, 1, 2)
  write_checkpoint('one', everything)
  everything[name] = everything[name].copy()
  everything[name].flat[-1] += 1e-6
  write_checkpoint('other', everything)
  before, after = [digests(find([0, 1, 2], '-md', name)[1])
                   for name in ('one', 'other')]
  assert [k for k in before if before[k][0] != after[k][0]] == trunk_changes
  assert [k for k in before if before[k][1] != after[k][1]] == head_changes


# ---- What is refused --------------------------------------------------------

def test_head_in_two_folders(folder):
  message = refused([0, 1, 2], '-md', 'new', '-pmcp', 'trunk',
                    '--head_model_dirs', 'clf0,clf1,joint')
  assert message.startswith('--head_model_dirs: clf0 is in ')
  assert CLF0 in message and JOINT in message


def test_head_nowhere(folder):
  message = refused([0, 1, 2], '-md', 'new', '-pmcp', 'trunk',
                    '--head_model_dirs', 'clf0')
  assert message.startswith('clf1: its head is neither in ')
  assert CLF0 in message and PRETRAINED in message
  assert '--fine_tune' in message and '--head_model_dirs' in message
  # The same without the flag, from a model folder that has the other one.
  message = refused([0, 1], '-md', 'clf0', '-pmcp', 'trunk')
  assert message.startswith('clf1: ') and CLF0 in message


def test_no_head_and_no_folder_of_heads(folder):
  message = refused([0], '-md', 'new', '-pmcp', 'trunk')
  assert message.startswith(PRETRAINED + ': lacks resnet_model/cascaded0_')
  assert '--fine_tune' in message and '--head_model_dirs' in message


def test_own_classifier_without_the_pretrained_network(folder):
  """What the short way is without its -pmcp."""
  message = refused([0, 1, 2], '-md', 'joint')
  assert 'clf2' in message and JOINT in message and '-pmcp' in message


def test_nothing_at_all(folder):
  for more in ([], ['--head_model_dirs', 'clf0']):
    message = refused([0], '-md', 'new', *more)
    assert message.startswith('--eval_only: --model_dir new holds no checkp')
    assert '-pmcp' in message


@pytest.mark.parametrize('args, words', [
    (['-pmcp', 'nowhere'], '-pmcp nowhere: no such folder'),
    (['-pmcp', 'trunk', '--head_model_dirs', 'clf0,nowhere'],
     '--head_model_dirs nowhere: no such folder'),
    (['-pmcp', 'trunk', '--head_model_dirs', 'empty'],
     '--head_model_dirs empty: no checkpoint in this folder'),
])
def test_folders_that_are_not_there(folder, args, words):
  (folder / 'empty').mkdir()
  assert words in refused([0, 2], '-md', 'new', *args)


def test_path_that_no_file_system_takes(folder):
  assert refused([0, 2], '-md', 'new', '-pmcp', 'nosuch://folder').startswith(
      '-pmcp nosuch://folder: cannot be read (')


@pytest.mark.parametrize('args', [
    ['-md', 'clf0'], ['-md', 'new', '--head_model_dirs', 'clf0']])
def test_index_that_is_cut_off(folder, args):
  (folder / 'clf0' / 'model.ckpt-7.index').write_bytes(b'')
  assert refused([0], '-pmcp', 'trunk', *args).startswith(
      'clf0/model.ckpt-7: cannot be read as a checkpoint (')


@pytest.mark.parametrize('name', [
    AVERAGE,  # As --trunk_batch_norm=update leaves it.
    'resnet_model/conv2d/kernel'])
@pytest.mark.parametrize('args', [
    ['-md', 'own'], ['-md', 'new', '--head_model_dirs', 'clf1,own']])
def test_head_of_another_trunk(folder, name, args):
  changed = values('trunk0', 0)
  changed[name] = changed[name].copy()
  changed[name].flat[0] += 1e-6
  own = write_checkpoint('own', changed, 3)
  message = refused([0, 2], '-pmcp', 'trunk', *args)
  assert message.startswith('clf0: the trunk that it was trained on, in ' + own)
  assert PRETRAINED in message
  assert '(1 of 2 variables differ, such as {})'.format(name) in message
  assert '--trunk_batch_norm=update' in message
  # The remedy that it names.
  assert '--classifier_id 0 and its folder as --model_dir' in message
  assert find([0], '-md', 'own', '-pmcp', 'trunk')[0] == {0: (own, own)}


def test_a_trunk_that_differs_beyond_the_head_does_not_matter(folder):
  changed = values('trunk1', 0)
  changed['resnet_model/conv2d_1/kernel'] += 1
  own = write_checkpoint('own', changed, 3)
  assert find([0, 2], '-md', 'own', '-pmcp', 'trunk')[0][0] == (PRETRAINED, own)


def test_head_without_its_trunk(folder):
  write_checkpoint('own', values(0), 3)
  message = refused([0, 2], '-md', 'own', '-pmcp', 'trunk')
  assert message.startswith('clf0: the trunk that it was trained on')
  assert '2 of 2 variables' in message


@pytest.mark.parametrize('changed_folder, parts, name', [
    ('trunk', ['trunk', 2], 'resnet_model/conv2d_2/kernel'),
    ('trunk', ['trunk', 2], 'resnet_model/dense/bias'),
    ('joint', ['trunk1', 0, 1], 'resnet_model/cascaded0_bn00/moving_mean'),
])
def test_missing_and_misshapen(folder, changed_folder, parts, name):
  args = ['-md', 'joint', '-pmcp', 'trunk']
  changed = values(*parts)
  changed[name] = np.zeros([9], np.float32)
  prefix = write_checkpoint(changed_folder, changed, 10)
  message = refused([0, 1, 2], *args)
  assert message.startswith(prefix + ': another shape')
  assert name + ' is [9], needed [' in message
  del changed[name]
  write_checkpoint(changed_folder, changed, 10)
  message = refused([0, 1, 2], *args)
  assert message.startswith('{}: lacks {};'.format(prefix, name))


def test_misshapen_classifier_of_its_own_folder(folder):
  changed = values('trunk0', 0)
  changed['resnet_model/cascaded0_fc0/kernel'] = np.zeros([3, 9], np.float32)
  write_checkpoint('clf0', changed, 7)
  message = refused([0], '-md', 'clf0', '-pmcp', 'trunk')
  assert message.startswith(CLF0 + ': another shape')
  assert 'is --model_dir of this classifier and this network?' in message
