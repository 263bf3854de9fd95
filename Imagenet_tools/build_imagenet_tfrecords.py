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

import sys

import numpy as np

import image_folder
import imagenet_archives
from record_folder import RecordFolder
from record_shards import (
    RECORD_OVERHEAD_BYTES, SHARD_SIZE_RULES, images_per_shard,
    labels_in_reading_order, plan_shards, write_shard)
from shared_dataset import DATASET_FILE_NAME, SPLITS
from shared_terminal import UserError, print_line, run_main, say
from tools_arguments import ArgumentParser, check_range
from worker_processes import num_cores, run_in_processes

TOOL_VERSION = '2.0'
FORMAT_VERSION = 1  # Of dataset.json.

# To be raised when the same images would give other bytes.
_RECORDS_VERSION = 2


def build(args):
  """Checks all that can be checked quickly, then writes everything."""
  if not args.image_folder:
    imagenet_archives.check_begins_well(args.train_archive)
    imagenet_archives.check_begins_well(args.validation_archive)
  folder = RecordFolder(args.output_dir, args.labels_dir)
  with folder.opened():
    if args.check_md5:
      imagenet_archives.check_md5([args.train_archive, args.validation_archive])
    images, class_texts = index_images(args)
    shards = plan_splits(args, folder, images)
    settings = {
        'records_version': _RECORDS_VERSION, 'seed': args.seed,
        'num_shards': _num_shards(args),
        'shard_size_rule': args.shard_size_rule, 'class_names': class_texts,
        'images': {split: images[split].digest() for split in SPLITS}}
    folder.check(settings)
    entries = {shard: folder.entry(shard.path) for shard in shards}
    # With `--verify full`, shards whose pixels were never decoded are
    # written again.
    tasks = [shard for shard in shards if not entries[shard] or (
        args.verify == 'full' and not entries[shard]['decoded'])]
    if not tasks and folder.is_complete():
      print_line(f'{args.output_dir}: complete already, {len(shards):,} shards')
      return
    if len(tasks) < len(shards):
      say(f'{len(shards) - len(tasks):,} of {len(shards):,} shards are there '
          'from an earlier run')
    # Images that are encoded anew count as they are.
    folder.check_space(sum(
        int(images[shard.split].columns['size'][shard.first:shard.stop].sum()) +
        (shard.stop - shard.first) * RECORD_OVERHEAD_BYTES
        for shard in tasks))
    folder.begin(settings)

    def write(shard):
      return write_shard(shard, images[shard.split], class_texts,
                         args.verify == 'full', args.skip_bad_images)

    def finish_shard(shard, entry):  # Here, so no worker waits for the disk.
      folder.finish_shard(shard.path, entry)
      entries[shard] = entry

    run_in_processes(
        write, tasks, args.workers, 'writing records', finish_shard)
    finish(args, folder, images, class_texts, entries)


def index_images(args):
  """Lists the images of both splits and what their classes are called.

  Returns:
    `(images, class_texts)`: a dict from split to `ImageIndex`, in record order;
    a list [classes] of str, or None for a class of which only the synset is
    known.
  """
  names = (imagenet_archives.read_class_names(args.class_names)
           if args.class_names else imagenet_archives.imagenet_class_names())
  if args.image_folder:
    train, validation = image_folder.index_image_folder(
        args.image_folder, args.validation_fraction, args.seed)
    are_synsets = all(name in names for name in train.classes)
    class_texts = ([names[name] for name in train.classes] if are_synsets
                   else train.classes)
  else:
    train, validation = imagenet_archives.index_imagenet(
        args.train_archive, args.validation_archive, args.validation_labels)
    class_texts = [names.get(synset) for synset in train.classes]
  if not args.skip_bad_images:
    train.check_not_empty()
    validation.check_not_empty()
  if not args.image_folder and not args.any_counts:
    imagenet_archives.check_counts({'train': train, 'validation': validation})
  # RandomState's stream is the same in every version of NumPy and Python.
  train.reorder(np.random.RandomState(args.seed).permutation(len(train)))
  return {'train': train, 'validation': validation}, class_texts


def _num_shards(args):
  return {'train': args.train_shards, 'validation': args.validation_shards}


def plan_splits(args, folder, images):
  """The `Shard`s of both splits, by the shard rule; says what is left out."""
  shards, left_out = [], {}
  for split, num_shards in _num_shards(args).items():
    sizes = images_per_shard(
        len(images[split]), num_shards, args.shard_size_rule)
    left_out[split] = len(images[split]) - sum(sizes)
    if not sum(sizes):
      raise UserError(
          f'--shard_size_rule {args.shard_size_rule}: {len(images[split]):,} '
          f'{split} images leave none for each of {len(sizes):,} shards; give '
          f'fewer --{split}_shards')
    shards += plan_shards(split, folder.split_dir(split), sizes)
  if any(left_out.values()):
    say(f'--shard_size_rule {args.shard_size_rule}: the last '
        f'{left_out["train"]:,} training and {left_out["validation"]:,} '
        'validation images are left out')
  return shards


def finish(args, folder, images, class_texts, entries):
  """Writes the labels in reading order and dataset.json; says what there is.

  `entries`: a dict from each `Shard`, in order, to what `write_shard` returned.
  """
  classes = images['train'].classes  # The i-th has the label i + 1.
  by_split = {key: {} for key in (
      'num_images', 'class_counts', 'skipped_images', 'shards')}
  for split in SPLITS:
    written = {shard: entry for shard, entry in entries.items()
               if shard.split == split}
    labels = labels_in_reading_order(
        images[split].columns['label'], written, written.values())
    folder.write_labels(split, labels)
    by_split['num_images'][split] = len(labels)
    by_split['class_counts'][split] = np.bincount(
        labels, minlength=len(classes) + 1).tolist()[1:]
    by_split['shards'][split] = {
        shard.name: {key: entry[key] for key in ('bytes', 'records', 'sha256')}
        for shard, entry in written.items()}
    by_split['skipped_images'][split] = skipped = [
        {'image': bad['image'], 'reason': bad['reason'], 'shard': shard.name}
        for shard, entry in written.items() for bad in entry['skipped']]
    for bad in skipped:
      say(f'{bad["image"]}: left out, not a whole image ({bad["reason"]})')
    print_line(f'{split}: {len(labels):,} images in {len(written):,} shards, '
               f'labels in {folder.labels_path(split)}')
  num_skipped = sum(map(len, by_split['skipped_images'].values()))
  if num_skipped:
    verb = ' is' if num_skipped == 1 else 's are'
    print_line(f'{num_skipped:,} bad image{verb} left out, listed in '
               f'{DATASET_FILE_NAME}')
  folder.write_dataset({
      'format_version': FORMAT_VERSION,
      'tool_version': TOOL_VERSION,
      'num_classes': len(classes) + 1,  # The background class is one.
      'synsets': classes,
      'num_shards': _num_shards(args),
      'shard_size_rule': args.shard_size_rule,
      'train_shuffle_seed': args.seed,
      'verified': 'full' if all(
          entry['decoded'] for entry in entries.values()) else 'structure',
      **by_split,
      **({} if None in class_texts else {'class_names': class_texts})})
  print_line(f'{len(classes):,} classes and the background class; records '
             f'in {args.output_dir}')


def parse_arguments(arguments=None):
  parser = ArgumentParser(
      description='Packs ILSVRC2012, or any folder of images, into TFRecords. '
      'Images are read where they are: nothing is unpacked, changed or '
      'deleted. Give the same command again to go on after any stop.')

  add = parser.add_argument_group('images').add_argument
  add('--train_archive', default='ILSVRC2012_img_train.tar', metavar='PATH',
      help='tar of one tar per synset, or a folder of what was unpacked from '
      'it (%(default)s)')
  add('--validation_archive', default='ILSVRC2012_img_val.tar', metavar='PATH',
      help='flat tar or folder, or a folder of one folder per synset '
      '(%(default)s)')
  add('--validation_labels', metavar='FILE',
      default='imagenet_2012_validation_synset_labels.txt',
      help='the synset of each validation image, by file name (%(default)s)')
  add('--class_names', metavar='FILE',
      help='what the synsets are called, such as "n01440764 tench" on a line '
      '(those of ImageNet)')
  add('--image_folder', metavar='DIR',
      help='images of your own in place of all that, in DIR/train/CLASS/ and '
      'DIR/validation/CLASS/, or in DIR/CLASS/ with --validation_fraction; or '
      'tiny-imagenet-200 as it is')
  add('--validation_fraction', type=float, metavar='F',
      help='the part of each class that becomes validation images')
  add = parser.add_argument_group('records').add_argument
  add('--output_dir', default='tf_records', metavar='DIR',
      help='gets the records and dataset.json (%(default)s)')
  add('--labels_dir', metavar='DIR',
      help='gets the labels (the parent of --output_dir)')
  add('--train_shards', type=int, default=1024, metavar='N',
      help='number of training files (%(default)s)')
  add('--validation_shards', type=int, default=128, metavar='N',
      help='number of validation files (%(default)s)')
  add('--shard_size_rule', choices=SHARD_SIZE_RULES, default='ceiling',
      help='published: as many images to a shard as in the records of the '
      'paper, which leaves out the last ones (%(default)s)')
  add('--seed', type=int, default=0, metavar='N',
      help='of the order of the training images (%(default)s)')
  add = parser.add_argument_group('work').add_argument
  add('--workers', type=int, metavar='N', default=num_cores(),
      help='number of processes (the cores: %(default)s)')
  add('--verify', choices=('structure', 'full'), default='structure',
      help='full: every pixel is decoded too; shards of an earlier run that '
      'were not checked so are written again (%(default)s)')
  add('--check_md5', action='store_true',
      help='first compare the archives with the published MD5s')
  add('--skip_bad_images', action='store_true',
      help='leave images that are not whole out, and list them in '
      'dataset.json; otherwise the first one stops the run')
  add('--any_counts', action='store_true',
      help='accept fewer or more images than ILSVRC2012 has of its synsets')
  args = parser.parse_args(arguments)
  check_range(args, 'train_shards', 1, 99999)  # Names have five digits.
  check_range(args, 'validation_shards', 1, 99999)
  check_range(args, 'seed', 0, 2**32 - 1)
  check_range(args, 'workers', 1, 999)
  if args.validation_fraction is not None and not args.image_folder:
    raise UserError('--validation_fraction: requires --image_folder')
  if args.image_folder and args.check_md5:
    raise UserError('--check_md5: not with --image_folder, as it checks the '
                    'archives of ILSVRC2012')
  return args


def main(arguments=None):
  return run_main(lambda: build(parse_arguments(arguments)))


if __name__ == '__main__':
  sys.exit(main())
