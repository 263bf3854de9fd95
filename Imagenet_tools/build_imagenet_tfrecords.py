"""Packs ILSVRC2012, or any folder of images, into TFRecords for training.

    python3 build_imagenet_tfrecords.py
    python3 build_imagenet_tfrecords.py --image_folder DIR

writes tf_records/train/train-00000-of-01024 and so on,
tf_records/validation/validation-00000-of-00128 and so on, the labels of both
splits in reading order, and last tf_records/dataset.json: the records are
complete once that file is there.

Images are read where they are. Each goes into exactly one shard; the records
of the paper's repository lost the last 80 validation and 143 training images
to a division that rounded down. The same images and arguments give the same
bytes, with any number of processes, and however often the run was stopped.
"""

import hashlib
import os
import sys

import numpy as np

import image_folder
import imagenet_archives
from record_folder import DATASET_FILE_NAME, BuildJournal, RecordFolder
from record_shards import (
    RECORD_OVERHEAD_BYTES, SHARD_SIZE_RULES, SPLITS, check_records,
    images_per_shard, labels_in_reading_order, name_shard, plan_shards,
    write_shard)
from tools_command_line import (
    ArgumentParser, InputError, Progress, check_range, num_cores, print_result,
    run, run_in_processes, say)

TOOL_VERSION = '2.0'
FORMAT_VERSION = 1  # Of dataset.json.

# To be raised when the same images would give other bytes.
_RECORDS_VERSION = 1


def build(args):
  """Checks all that can be checked quickly, then writes everything.

  Args:
    args: the parsed command line.

  Raises:
    InputError, OSError: see the functions below.
  """
  if not args.image_folder:
    imagenet_archives.check_begins_well(args.train_archive)
    imagenet_archives.check_begins_well(args.validation_archive)
  folder = RecordFolder(
      args.output_dir, args.labels_dir,
      {'train': args.train_shards, 'validation': args.validation_shards})
  folder.prepare()
  with BuildJournal(args.output_dir) as journal:
    if journal.build is None:
      folder.check_no_shards()
    settings, is_all_known = build_settings(args)
    journal.check(settings)
    if args.check_md5:
      imagenet_archives.check_md5([args.train_archive, args.validation_archive])
    is_complete = args.verify != 'full' and folder.is_complete(journal)
    # Known before the archives are indexed, which may take minutes.
    if not (is_complete and is_all_known):
      images, class_texts = index_images(args)
      settings['images_sha256'] = {
          split: images[split].digest() for split in SPLITS}
      journal.check(settings)
    if is_complete:
      print_result(f'{args.output_dir}: complete already, '
                   f'{len(folder.shard_paths()):,} shards; nothing to do')
      return
    shards = plan_splits(args, folder, images)
    # Images that are encoded anew count as they are.
    folder.check_space(sum(
        int(images[shard.split].size[shard.first:shard.stop].sum()) +
        (shard.stop - shard.first) * RECORD_OVERHEAD_BYTES
        for shard in shards if not journal.has(shard.path)))
    journal.begin(settings)
    write_shards(args, folder, images, class_texts, shards, journal)
    finish(args, folder, images, class_texts, shards, journal)


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
  # Reading the archives for a checksum would take hours. The others are
  # small files, which `cp Imagenet_tools/*` may replace by their equals.
  for source in ('train_archive', 'validation_archive'):
    path = getattr(args, source)
    if os.path.isfile(path):
      settings[source] = {'bytes': os.path.getsize(path),
                          'modified_ns': os.stat(path).st_mtime_ns}
  for source in ('validation_labels', 'class_names'):
    path = getattr(args, source)
    if path and os.path.isfile(path):
      with open(path, 'rb') as text:
        settings[source + '_sha256'] = hashlib.sha256(text.read()).hexdigest()
  return settings, not (os.path.isdir(args.train_archive) or
                        os.path.isdir(args.validation_archive))


def index_images(args):
  """Lists the images of both splits and what their classes are called.

  Returns:
    `(images, class_texts)`: a dict from split to `ImageIndex`, in record order;
    a list [classes] of str, or None for a class of which only the synset is
    known.

  Raises:
    InputError: see `index_imagenet` and `index_image_folder`; or an image has
      no bytes, or images of ILSVRC2012 are missing.
  """
  if args.image_folder:
    train, validation = image_folder.index_image_folder(
        args.image_folder, args.validation_fraction, args.seed)
    class_texts = train.classes
  else:
    names = (imagenet_archives.read_class_names(args.class_names)
             if args.class_names else imagenet_archives.imagenet_class_names())
    train, validation = imagenet_archives.index_imagenet(
        args.train_archive, args.validation_archive, args.validation_labels)
    class_texts = [names.get(synset) for synset in train.classes]
  if not args.skip_bad_images:
    train.check_not_empty()
    validation.check_not_empty()
  if not args.image_folder and not args.any_counts:
    imagenet_archives.check_counts({'train': train, 'validation': validation})
  # RandomState's stream is the same in every version of NumPy and Python.
  order = np.random.RandomState(args.seed).permutation(len(train))
  return {'train': train.take(order), 'validation': validation}, class_texts


def plan_splits(args, folder, images):
  """The `Shard`s of both splits, by the shard rule; says what is left out."""
  shards, left_out = [], {}
  for split in SPLITS:
    sizes = images_per_shard(
        len(images[split]), folder.num_shards[split], args.shard_size_rule)
    left_out[split] = len(images[split]) - sum(sizes)
    if not sum(sizes):
      raise InputError(
          f'--shard_size_rule {args.shard_size_rule}: {len(images[split]):,} '
          f'{split} images leave none for each of {len(sizes):,} shards; give '
          f'fewer --{split}_shards')
    shards += plan_shards(split, folder.split_dir(split), sizes)
  if any(left_out.values()):
    say(f'--shard_size_rule {args.shard_size_rule}: the last '
        f'{left_out["train"]:,} training and {left_out["validation"]:,} '
        'validation images are left out')
  return shards


def write_shards(args, folder, images, class_texts, shards, journal):
  """Writes the shards that are missing, and notes them in the journal.

  With `--verify full`, those of earlier runs are read and decoded, and damaged
  ones are written again.

  Raises:
    InputError: an image cannot be read or a shard cannot be written.
  """
  finished = {shard for shard in shards if journal.has(shard.path)}
  if finished:
    say(f'{len(finished):,} of {len(shards):,} shards are there from an '
        'earlier run')
  is_full = args.verify == 'full'
  tasks = [shard for shard in shards if is_full or shard not in finished]
  if not tasks:
    return
  folder.withdraw_dataset()
  folder.remove_unfinished()  # Left by a run that was killed.
  num_classes = len(class_texts) + 1

  def write(shard, step):
    return write_shard(shard, images[shard.split], class_texts, is_full,
                       args.skip_bad_images, step)

  def work(shard, step):
    """Returns the shard's journal entry, and whether it was written now."""
    if shard not in finished:
      return write(shard, step), True
    entry = journal.entries[os.path.basename(shard.path)]
    try:
      sha256, _ = check_records(shard.path, num_classes, True, step)
    except InputError:
      sha256 = None
    if sha256 == entry['sha256']:
      return dict(entry, decoded=True), False
    return write(shard, lambda: None), True  # Counted by the check.

  num_images = sum(shard.stop - shard.first for shard in tasks)
  damaged = []
  try:
    with Progress(num_images, 'images') as progress:
      for shard, (entry, is_new) in run_in_processes(
          work, tasks, args.workers, progress.step):
        if is_new:
          # Here, so no worker waits for the disk.
          name_shard(shard)
        if is_new and shard in finished:
          damaged.append(shard.path)
        journal.add(entry)
  finally:
    folder.remove_unfinished()
  for path in sorted(damaged):
    say(f'{path}: was damaged, and has been written again')


def finish(args, folder, images, class_texts, shards, journal):
  """Writes the labels in reading order and dataset.json; says what there is."""
  entries, num_images, class_counts, skipped = {}, {}, {}, {}
  classes = images['train'].classes
  for split in SPLITS:
    split_shards = [shard for shard in shards if shard.split == split]
    entries[split] = [journal.entries[os.path.basename(shard.path)]
                      for shard in split_shards]
    labels = labels_in_reading_order(
        images[split].label, split_shards, entries[split])
    num_images[split] = len(labels)
    class_counts[split] = np.bincount(
        labels, minlength=len(classes) + 1).tolist()[1:]
    skipped[split] = [
        {'image': bad['image'], 'reason': bad['reason'],
         'shard': entry['shard']}
        for entry in entries[split] for bad in entry['skipped']]
    folder.write_labels(split, labels)
    for bad in skipped[split]:
      say(f'{bad["image"]}: left out, not a whole image ({bad["reason"]})')
    print_result(
        f'{split}: {num_images[split]:,} images in {len(split_shards):,} '
        f'shards, labels in {folder.labels_path(split)}')
  num_skipped = sum(len(skipped[split]) for split in SPLITS)
  if num_skipped:
    verb = ' is' if num_skipped == 1 else 's are'
    print_result(f'{num_skipped:,} bad image{verb} left out, listed in '
                 f'{DATASET_FILE_NAME}')
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
  if None not in class_texts:
    dataset['class_names'] = class_texts
  folder.write_dataset(dataset)
  print_result(f'{len(classes):,} classes and the background class; records '
               f'in {args.output_dir}')


def parse_arguments(arguments=None):
  """Parses the command line; raises `InputError` where it is wrong."""
  parser = ArgumentParser(
      description='Packs ILSVRC2012, or any folder of images, into TFRecords. '
      'Images are read where they are: nothing is unpacked, changed or '
      'deleted. Give the same command again to go on after any stop.')

  group = parser.add_argument_group('images')
  group.add_argument(
      '--train_archive', default='ILSVRC2012_img_train.tar', metavar='PATH',
      help='tar of one tar per synset, or a folder of what was unpacked from '
      'it (%(default)s)')
  group.add_argument(
      '--validation_archive', default='ILSVRC2012_img_val.tar', metavar='PATH',
      help='flat tar or folder, or a folder of one folder per synset '
      '(%(default)s)')
  group.add_argument(
      '--validation_labels', metavar='FILE',
      default='imagenet_2012_validation_synset_labels.txt',
      help='the synset of each validation image, by file name (%(default)s)')
  group.add_argument(
      '--class_names', metavar='FILE',
      help='what the synsets are called, such as "n01440764 tench" on a line '
      '(those of ImageNet)')
  group.add_argument(
      '--image_folder', metavar='DIR',
      help='images of your own in place of all that, in DIR/train/CLASS/ and '
      'DIR/validation/CLASS/, or in DIR/CLASS/ with --validation_fraction')
  group.add_argument(
      '--validation_fraction', type=float, metavar='F',
      help='the part of each class that becomes validation images')
  group = parser.add_argument_group('records')
  group.add_argument('--output_dir', default='tf_records', metavar='DIR',
                     help='gets the records and dataset.json (%(default)s)')
  group.add_argument('--labels_dir', metavar='DIR',
                     help='gets the labels (the parent of --output_dir)')
  group.add_argument('--train_shards', type=int, default=1024, metavar='N',
                     help='number of training files (%(default)s)')
  group.add_argument('--validation_shards', type=int, default=128, metavar='N',
                     help='number of validation files (%(default)s)')
  group.add_argument(
      '--shard_size_rule', choices=SHARD_SIZE_RULES, default='ceiling',
      help='published: as many images to a shard as in the records of the '
      'paper, which leaves out the last ones (%(default)s)')
  group.add_argument(
      '--seed', type=int, default=0, metavar='N',
      help='of the order of the training images (%(default)s)')
  group = parser.add_argument_group('work')
  group.add_argument('--workers', type=int, metavar='N', default=num_cores(),
                     help='number of processes (the cores: %(default)s)')
  group.add_argument(
      '--verify', choices=('structure', 'full'), default='structure',
      help='full: every pixel is decoded too, and finished shards of an '
      'earlier run are read again (%(default)s)')
  group.add_argument('--check_md5', action='store_true',
                     help='first compare the archives with the published MD5s')
  group.add_argument(
      '--skip_bad_images', action='store_true',
      help='leave images that are not whole out, and list them in '
      'dataset.json; otherwise the first one stops the run')
  group.add_argument(
      '--any_counts', action='store_true',
      help='accept fewer or more images than ILSVRC2012 has of its synsets')
  args = parser.parse_args(arguments)
  check_range(args, 'train_shards', 1, 99999)  # Names have five digits.
  check_range(args, 'validation_shards', 1, 99999)
  check_range(args, 'seed', 0, 2**32 - 1)
  check_range(args, 'workers', 1, 999)
  if args.validation_fraction is not None and not args.image_folder:
    raise InputError(f'--validation_fraction {args.validation_fraction}: is of '
                     '--image_folder, which is not given')
  if args.image_folder and args.check_md5:
    raise InputError('--check_md5: is of the archives of ILSVRC2012; leave it '
                     'or --image_folder out')
  return args


def main(arguments=None):
  """Runs the command line and returns its exit status; see `run`."""
  return run(lambda: build(parse_arguments(arguments)))


if __name__ == '__main__':
  sys.exit(main())
