"""Packs ILSVRC2012, or any folder of images, into the TFRecords of training.

    python3 build_imagenet_tfrecords.py
    python3 build_imagenet_tfrecords.py --image_folder DIR

writes tf_records/train/train-00000-of-01024 and so on,
tf_records/validation/validation-00000-of-00128 and so on, the labels of both
splits in reading order, and last tf_records/dataset.json: where that file is,
the records are complete.

Images are read where they are. Each lands in exactly one shard; the records of
the paper's repository lost the last 80 validation and 143 training images to a
division that rounded down. The same images and arguments give the same bytes,
by any number of processes, and however often the run was stopped.
"""

import hashlib
import os
import sys

import numpy as np

import image_folder
import imagenet_archives
import imagenet_devkit
import source_checks
from build_journal import BuildJournal
from record_folder import DATASET_FILE_NAME, RecordFolder, is_finished
from record_shards import (
    RECORD_OVERHEAD_BYTES, SHARD_SIZE_RULES, SPLITS, ShardWriter,
    check_records, give_name, images_per_shard, labels_in_reading_order,
    plan_shards, reading_order)  # pylint: disable=unused-import
from shard_workers import Workers, num_cores
from tools_command_line import ArgumentParser, InputError, Progress, run, say

TOOL_VERSION = '2.0'
FORMAT_VERSION = 1  # Of dataset.json.

# Changes where the same images would give other bytes.
_RECORDS_VERSION = 1

_TRAIN_ARCHIVE = 'ILSVRC2012_img_train.tar'
_VALIDATION_ARCHIVE = 'ILSVRC2012_img_val.tar'
_VALIDATION_LABELS = 'imagenet_2012_validation_synset_labels.txt'


def build(args):
  """Checks everything that can be checked at once, then writes it all.

  Args:
    args: the parsed command line.

  Raises:
    InputError, OSError: as said by the functions below and those they call.
  """
  if not args.image_folder:
    imagenet_archives.check_begins_well(args.train_archive)
    imagenet_archives.check_begins_well(args.validation_archive)
  folder = RecordFolder(
      args.output_dir, args.labels_dir,
      {'train': args.train_shards, 'validation': args.validation_shards})
  folder.prepare()
  with BuildJournal(args.output_dir) as journal:
    folder.check_shards_are_of(journal)
    settings, is_all_known = build_settings(args)
    journal.check(settings)
    if args.check_md5:
      source_checks.check_md5(_archives(args), Progress)
    is_complete = args.verify != 'full' and folder.is_complete(journal)
    # Known before the archives are indexed, which may take minutes.
    if not (is_complete and is_all_known):
      images, class_texts = index_images(args)
      settings['images_sha256'] = {
          split: images[split].digest() for split in SPLITS}
      journal.check(settings)
    if is_complete:
      print('{}: complete already, {:,} shards; nothing to do'.format(
          args.output_dir, len(folder.shard_paths())))
      return
    shards = plan_splits(args, folder, images)
    folder.check_space(required_bytes(images, shards, journal))
    journal.begin(settings)
    write_shards(args, folder, images, class_texts, shards, journal)
    finish(args, folder, images, class_texts, shards, journal)


def _archives(args):
  """Paths of what the images of ImageNet and their labels come from."""
  return [args.train_archive, args.validation_archive] + (
      [args.devkit] if args.devkit else [])


def _validation_labels(args):
  return args.validation_labels or args.devkit or _VALIDATION_LABELS


def build_settings(args):
  """What the bytes of the shards depend on, as far as it is known at once.

  Returns:
    `(settings, is_all_known)`: a dict of what JSON can express, and whether
    the images can differ only if it does.
  """
  settings = {'records_version': _RECORDS_VERSION, 'seed': args.seed,
              'num_shards': {'train': args.train_shards,
                             'validation': args.validation_shards},
              'shard_size_rule': args.shard_size_rule}
  if args.image_folder:
    settings['validation_fraction'] = args.validation_fraction
    return settings, False
  # Hours go by if the archives are read for a checksum; one may replace a small
  # file by its equal, as `cp Imagenet_tools/*` does.
  for source in ('train_archive', 'validation_archive'):
    path = getattr(args, source)
    if os.path.isfile(path):
      settings[source] = {'bytes': os.path.getsize(path),
                          'modified_ns': os.stat(path).st_mtime_ns}
  for source, path in (('validation_labels', _validation_labels(args)),
                       ('devkit', args.devkit)):
    if path and os.path.isfile(path):
      with open(path, 'rb') as opened:
        settings[source + '_sha256'] = hashlib.sha256(
            opened.read()).hexdigest()
  return settings, not (os.path.isdir(args.train_archive) or
                        os.path.isdir(args.validation_archive))


def index_images(args):
  """Lists the images of both splits and what their classes are called.

  Returns:
    `(images, class_texts)`: a dict from split to `ImageIndex`, in record order;
    a list of str [classes], or None where only the synsets are known.

  Raises:
    InputError: see `index_imagenet` and `index_image_folder`; or an image has
      no bytes, or images of ILSVRC2012 are missing.
  """
  if args.image_folder:
    train, validation = image_folder.index_image_folder(
        args.image_folder, args.validation_fraction, args.seed, Progress, say)
    class_texts = train.classes
  else:
    train, validation = imagenet_archives.index_imagenet(
        args.train_archive, args.validation_archive, _validation_labels(args),
        Progress, say)
    class_texts = (
        _class_texts(args.devkit, train.classes) if args.devkit else None)
  if not args.skip_bad_images:
    train.check_not_empty()
    validation.check_not_empty()
  if not args.image_folder and not args.any_counts:
    source_checks.check_counts({'train': train, 'validation': validation})
  # RandomState's stream is the same in every version of NumPy and Python.
  order = np.random.RandomState(args.seed).permutation(len(train))
  return {'train': train.take(order), 'validation': validation}, class_texts


def _class_texts(devkit_path, synsets):
  """The words for each synset, from the archive of the development kit."""
  words = imagenet_devkit.read_devkit(devkit_path).words
  for synset in synsets:
    if synset not in words:
      raise InputError('{}: does not describe the synset {} of the training '
                       'images; leave --devkit out'.format(devkit_path, synset))
  return [words[synset] for synset in synsets]


def plan_splits(args, folder, images):
  """The `Shard`s of each split, by the shard rule; says what is left out."""
  sizes, left_out = {}, {}
  for split, num_shards in folder.num_shards.items():
    sizes[split] = images_per_shard(
        len(images[split]), num_shards, args.shard_size_rule)
    left_out[split] = len(images[split]) - sum(sizes[split])
    if not sum(sizes[split]):
      raise InputError(
          '--shard_size_rule {}: {:,} {} images leave none for each of {:,} '
          'shards; give fewer --{}_shards'.format(
              args.shard_size_rule, len(images[split]), split, num_shards,
              split))
  if any(left_out.values()):
    say('--shard_size_rule {}: the last {:,} training and {:,} validation '
        'images are left out'.format(
            args.shard_size_rule, left_out['train'], left_out['validation']))
  return {split: plan_shards(split, folder.split_dir(split), sizes[split])
          for split in SPLITS}


def required_bytes(images, shards, journal):
  """What the shards to be written take on the disk, about.

  Images that are encoded anew are taken to keep their size.
  """
  return sum(
      int(images[split].size[shard.first:shard.stop].sum()) +
      (shard.stop - shard.first) * RECORD_OVERHEAD_BYTES
      for split in SPLITS for shard in shards[split]
      if not is_finished(shard.path, journal))


def write_shards(args, folder, images, class_texts, shards, journal):
  """Writes the shards that are missing, and notes them in the journal.

  With `--verify full`, those of earlier runs are read and decoded; one that is
  not what it was is written again.

  Raises:
    InputError: an image cannot be read or a shard cannot be written.
  """
  shards = [shard for split in SPLITS for shard in shards[split]]
  finished = {shard for shard in shards if is_finished(shard.path, journal)}
  if finished:
    say('{:,} of {:,} shards are there from an earlier run'.format(
        len(finished), len(shards)))
  is_full = args.verify == 'full'
  tasks = [shard for shard in shards if is_full or shard not in finished]
  if not tasks:
    return
  folder.withdraw_dataset()
  writer = ShardWriter(images, class_texts, is_full, args.skip_bad_images)
  num_classes = len(images['train'].classes) + 1

  def work(shard, step):
    """Returns the shard's journal entry, and whether it was written now."""
    if shard not in finished:
      return writer.write(shard, step), True
    entry = journal.entries[os.path.basename(shard.path)]
    if _is_as_written(shard.path, entry, num_classes, step):
      return dict(entry, decoded=True), False
    return writer.write(shard, lambda: None), True  # The steps are counted.

  num_images = sum(shard.stop - shard.first for shard in tasks)
  damaged = []
  folder.remove_unfinished()  # Left by a run that was killed.
  try:
    with Progress(num_images, 'images') as progress:
      with Workers(min(args.workers, len(tasks)), work) as workers:
        for shard, (entry, is_new) in workers.run(tasks, progress.step):
          if is_new:
            # Here, so that no worker waits for the disk.
            give_name(shard)
          if is_new and shard in finished:
            damaged.append(shard.path)
          journal.add(entry)
  finally:
    folder.remove_unfinished()
  for path in sorted(damaged):
    say('{}: was damaged, and has been written again'.format(path))


def _is_as_written(path, entry, num_classes, step):
  try:
    contents = check_records(path, num_classes, True, step)
  except InputError:
    return False
  return contents['sha256'] == entry['sha256']


def finish(args, folder, images, class_texts, shards, journal):
  """Writes the labels in reading order and dataset.json; says what there is."""
  entries = {split: [journal.entries[os.path.basename(shard.path)]
                     for shard in shards[split]] for split in SPLITS}
  num_images, class_counts, skipped = {}, {}, {}
  classes = images['train'].classes
  for split in SPLITS:
    labels = labels_in_reading_order(
        images[split], shards[split], entries[split])
    num_images[split] = len(labels)
    class_counts[split] = np.bincount(
        labels, minlength=len(classes) + 1).tolist()[1:]
    skipped[split] = [
        {'image': bad['image'], 'reason': bad['reason'],
         'shard': entry['shard']}
        for entry in entries[split] for bad in entry['skipped']]
    folder.write_labels(split, labels)
    for bad in skipped[split]:
      say('{image}: left out, not a whole image ({reason})'.format(**bad))
    print('{}: {:,} images in {:,} shards, labels in {}'.format(
        split, num_images[split], len(shards[split]),
        folder.labels_path(split)))
  num_skipped = sum(len(skipped[split]) for split in SPLITS)
  if num_skipped:
    print('{:,} bad image{} left out, listed in {}'.format(
        num_skipped, ' is' if num_skipped == 1 else 's are',
        DATASET_FILE_NAME))
  # Class i of these lists has the label i + 1.
  dataset = {
      'format_version': FORMAT_VERSION,
      'tool_version': TOOL_VERSION,
      'num_classes': len(classes) + 1,  # The background class is one.
      'synsets': classes,
      'class_counts': class_counts,
      'num_images': num_images,
      'num_shards': folder.num_shards,
      'shard_size_rule': args.shard_size_rule,
      'train_shuffle_seed': args.seed,
      'verified': 'full' if all(
          entry['decoded'] for split in SPLITS for entry in entries[split]
          ) else 'structure',
      'skipped_images': skipped,
      'shards': {split: {entry['shard']: {
          key: entry[key] for key in ('bytes', 'records', 'sha256')}
          for entry in entries[split]} for split in SPLITS},
  }
  if class_texts is not None:
    dataset['class_names'] = class_texts
  folder.write_dataset(dataset)
  print('{:,} classes and the background class; records in {}'.format(
      len(classes), args.output_dir))


def parse_arguments(arguments=None):
  """Parses the command line; raises `InputError` where it is wrong."""
  parser = ArgumentParser(
      description='Packs ILSVRC2012, or any folder of images, into TFRecords. '
      'Images are read where they are: nothing is unpacked, changed or '
      'deleted. Give the same command again to go on after any stop.')
  sources = parser.add_argument_group('images')
  sources.add_argument(
      '--train_archive', default=_TRAIN_ARCHIVE, metavar='PATH',
      help='tar of one tar per synset of JPEGs, or a folder of these tars or '
      'of one folder per synset (%(default)s)')
  sources.add_argument(
      '--validation_archive', default=_VALIDATION_ARCHIVE, metavar='PATH',
      help='flat tar or folder of JPEGs, or a folder of one folder per synset '
      '(%(default)s)')
  sources.add_argument(
      '--validation_labels', metavar='FILE',
      help='one synset per line; line i is of the i-th validation image by '
      'file name (--devkit, else {})'.format(_VALIDATION_LABELS))
  sources.add_argument(
      '--devkit', metavar='FILE',
      help='ILSVRC2012_devkit_t12.tar.gz: has these labels too, and the words '
      'for each synset, which become image/class/text')
  sources.add_argument(
      '--image_folder', metavar='DIR',
      help='images of your own in place of all that: JPEG, PNG, WebP or BMP, '
      'in DIR/train/CLASS/ and DIR/validation/CLASS/, or in DIR/CLASS/ with '
      '--validation_fraction')
  sources.add_argument(
      '--validation_fraction', type=float, metavar='F',
      help='the part of each class that becomes validation images, such as '
      '0.1; --seed chooses which')
  records = parser.add_argument_group('records')
  records.add_argument(
      '--output_dir', default='tf_records', metavar='DIR',
      help='gets train/, validation/ and dataset.json (%(default)s)')
  records.add_argument(
      '--labels_dir', metavar='DIR',
      help='gets {train,validation}_non_onehot.npy (the parent of '
      '--output_dir)')
  records.add_argument('--train_shards', type=int, default=1024, metavar='N',
                       help='number of training files (%(default)s)')
  records.add_argument('--validation_shards', type=int, default=128,
                       metavar='N',
                       help='number of validation files (%(default)s)')
  records.add_argument(
      '--shard_size_rule', choices=SHARD_SIZE_RULES, default='ceiling',
      help='published: as many images to a shard as in the records of the '
      'paper, 1251 and 390, which leaves out the last 143 and 80 (%(default)s)')
  records.add_argument(
      '--seed', type=int, default=0, metavar='N',
      help='of the order of the training images (%(default)s)')
  work = parser.add_argument_group('work')
  work.add_argument('--workers', type=int, metavar='N', default=num_cores(),
                    help='number of processes (the cores: %(default)s)')
  work.add_argument(
      '--verify', choices=('structure', 'full'), default='structure',
      help='structure: headers and checksums of the archives, markers of the '
      'JPEGs, and each shard read again as soon as it is written. full: every '
      'pixel is decoded too, which takes an hour and a half of two cores for '
      'ILSVRC2012, and finished shards of an earlier run are read again '
      '(%(default)s)')
  work.add_argument(
      '--check_md5', action='store_true',
      help='first compare the archives with the published MD5s; reads all 144 '
      'GB once more')
  work.add_argument(
      '--skip_bad_images', action='store_true',
      help='leave images that are not whole out, and list them in '
      'dataset.json; otherwise the first one stops the run')
  work.add_argument(
      '--any_counts', action='store_true',
      help='accept fewer or more images than ILSVRC2012 has of its synsets')
  args = parser.parse_args(arguments)
  for flag, smallest, largest in (
      ('train_shards', 1, 99999),  # Names have five digits.
      ('validation_shards', 1, 99999),
      ('seed', 0, 2**32 - 1),
      ('workers', 1, 999)):
    if not smallest <= getattr(args, flag) <= largest:
      raise InputError('--{} {}: give a number from {} to {}'.format(
          flag, getattr(args, flag), smallest, largest))
  if args.validation_fraction is not None and not args.image_folder:
    raise InputError('--validation_fraction {}: is of --image_folder, which is '
                     'not given'.format(args.validation_fraction))
  if args.image_folder and args.check_md5:
    raise InputError('--check_md5: is of the archives of ILSVRC2012; leave it '
                     'or --image_folder out')
  return args


def main(arguments=None):
  """Runs the command line and returns its exit status; see `run`."""
  return run(lambda: build(parse_arguments(arguments)))


if __name__ == '__main__':
  sys.exit(main())
