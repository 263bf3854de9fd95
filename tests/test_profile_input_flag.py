"""Tests of `imagenet_main.py --profile_input`."""

import os

import pytest

import command_line
import input_profile
import tiny_records
from user_error import UserError


@pytest.fixture
def data_dir(tmpdir):
  tiny_records.make_data_set(
      str(tmpdir.join('data')), {'train': [5, 4], 'validation': [3, 4]}, 11)
  return str(tmpdir.join('data'))


def test_it_prints_both_tables_and_leaves_nothing(data_dir, tmpdir):
  folder = tmpdir.mkdir('folder')
  result = command_line.command(
      '--profile_input', '--profile_images', 6, '--data_dir', data_dir,
      '--image_size', 32, '--batch_size', 4, '--model_dir',
      folder.join('model'), cwd=str(folder))
  assert result.returncode == 0, result.stderr
  lines = result.stdout.splitlines()
  assert [line for line in lines if line.endswith(': 6 images')] == [
      'evaluation: 6 images', 'training: 6 images']
  for stage in input_profile.STAGES:
    assert len([line for line in lines if line.startswith(stage)]) == 2
  assert not os.listdir(str(folder))


def test_what_is_not_needed_is_not_read(data_dir, capsys):
  command_line.run('--profile_input', '--eval_only', '--nois_cascaded',
                   '--data_dir', data_dir, '--image_size', 32)
  out = capsys.readouterr().out
  assert 'evaluation: 7 images' in out and 'training' not in out


def test_synthetic_data_cannot_be_profiled():
  with pytest.raises(UserError, match='--profile_input: excludes'):
    command_line.run('--profile_input', '--use_synthetic_data')
