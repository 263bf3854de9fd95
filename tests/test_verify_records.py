"""The check of a folder of records: whoever made it, whatever befell it."""

import json
import os
import shutil

import tiny_records
import verify_records
from tiny_archives import dataset  # pylint: disable=unused-import


def check_error(capsys, folder, *words):
  """Fails with `words` in its last line; gives the lines before it."""
  capsys.readouterr()
  assert verify_records.main([str(folder)]) == 1
  output = capsys.readouterr()
  *damages, error = output.err.splitlines()
  assert output.out == '' and 'Traceback' not in output.err
  for word in words:
    assert word in error, output.err
  return damages


def test_records_of_the_builder(capsys, dataset):
  dataset.build()
  capsys.readouterr()
  assert verify_records.main([dataset.output, '--verify', 'full']) == 0
  assert capsys.readouterr().out == (
      'train: 11 records of 3 classes in 4 shards are sound, and as '
      'dataset.json describes them\n'
      'validation: 5 records of 3 classes in 2 shards are sound, and as '
      'dataset.json describes them\n')


def test_records_of_others(capsys, tmp_path):
  """As another program writes them, by TensorFlow."""
  tiny_records.make_data_set(
      str(tmp_path), {'train': [1, 2], 'validation': [1]}, 11)
  assert verify_records.main([str(tmp_path)]) == 0
  assert capsys.readouterr().out.splitlines() == [
      'train: 3 records of 3 classes in 2 shards are sound',
      'validation: 1 records of 1 classes in 1 shards are sound']


def test_all_damage_is_listed(capsys, dataset):
  dataset.build()
  shards = dataset.shards('train')
  with open(shards[3], 'r+b') as shard:
    shard.seek(100)
    shard.write(b'x')
  os.truncate(shards[0], os.path.getsize(shards[0]) - 4)
  os.remove(shards[1])
  shutil.copy(shards[2], shards[1])  # Whole, but the wrong one.
  damages = check_error(
      capsys, dataset.output, dataset.output, '3 of 6 shards')
  assert len(damages) == 3
  for damage, path, words in zip(damages, (shards[0], shards[1], shards[3]), (
      'truncated or corrupt at record 2 ', 'its SHA-256 differs',
      'truncated or corrupt at record 0 (byte 0 of')):
    assert path in damage and words in damage


def change_description(dataset, change):
  path = os.path.join(dataset.output, 'dataset.json')
  with open(path) as dataset_file:
    content = json.load(dataset_file)
  change(content)
  with open(path, 'w') as dataset_file:
    json.dump(content, dataset_file)


def test_records_that_are_not_those_described(capsys, dataset):
  dataset.build()
  # The description of fewer shards, as a copy may have it.
  change_description(dataset, lambda content: content['shards']['train'].pop(
      'train-00003-of-00004'))
  damages = check_error(capsys, dataset.output, '1 of 6 shards are damaged')
  assert 'train-00003-of-00004' in damages[0]
  change_description(dataset, lambda content: content.update(num_classes=3))
  damage = check_error(capsys, dataset.output, 'shards are damaged')[-1]
  assert 'label 3 is out of range' in damage
  shard = dataset.shards('validation')[1]
  os.rename(shard, f'{shard[:-5]}00003')
  check_error(capsys, dataset.output, f'{shard}: missing')
  shutil.copy(f'{shard[:-5]}00003', shard)
  check_error(capsys, dataset.output, 'of-00003: of another set')
