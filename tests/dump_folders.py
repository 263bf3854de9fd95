"""Makes small dump folders for tests, whole, in shards and as published."""

import os
import pickle

import numpy as np

import shared_dumps


def random_softmaxes(seed, num_images, num_classes):
  """float32 [images, classes]; rows sum to 1."""
  logits = np.random.RandomState(seed).normal(
      scale=3, size=(num_images, num_classes))
  exponentials = np.exp(logits)
  return (exponentials / exponentials.sum(axis=1, keepdims=True)).astype(
      np.float32)


def best_classes(probabilities):
  """int32 [images, min(5, classes)], best first, lower class first if equal."""
  return np.argsort(-probabilities, axis=1, kind='mergesort')[:, :5].astype(
      np.int32)


def write_split(folder, split, labels, probabilities):
  """Writes the files that step 3 leaves.

  Args:
    folder: an existing folder.
    split: 'validation' or 'train'.
    labels: int [images].
    probabilities: a dict from classifier to float32 [images, classes].
  """
  def save(name, array):
    np.save(os.path.join(str(folder), name), array)

  save(shared_dumps.labels_file_name(split), np.asarray(labels, np.int32))
  for k, softmaxes in probabilities.items():
    for name, (start, stop) in zip(
        shared_dumps.probabilities_file_names(k, split),
        shared_dumps.part_bounds(split, len(softmaxes))):
      save(name, softmaxes[start:stop])
    top5 = best_classes(softmaxes)
    save(shared_dumps.top5_classes_file_name(k, split), top5)
    save(shared_dumps.top5_probabilities_file_name(k, split),
         np.take_along_axis(softmaxes, top5, axis=1))


def classifier_file_names(classifier_id, split):
  """Names of all files of one classifier's dump of `split`."""
  return shared_dumps.probabilities_file_names(classifier_id, split) + [
      shared_dumps.top5_classes_file_name(classifier_id, split),
      shared_dumps.top5_probabilities_file_name(classifier_id, split)]


def cut_into_shards(folder, total, batch_size):
  """Turns a folder of whole dumps into what `total` processes leave."""
  for split in shared_dumps.SPLITS:
    files = {shared_dumps.labels_file_name(split): None}
    for k in shared_dumps.dumped_classifiers(str(folder)):
      files.update(dict.fromkeys(classifier_file_names(k, split)))
    arrays = {name: np.load(os.path.join(str(folder), name)) for name in files}
    num_images = len(arrays[shared_dumps.labels_file_name(split)])
    starts = dict.fromkeys(arrays, 0)
    for k in shared_dumps.dumped_classifiers(str(folder)):
      bounds = shared_dumps.part_bounds(split, num_images)
      starts.update(zip(shared_dumps.probabilities_file_names(k, split),
                        [start for start, _ in bounds]))
    for name, array in arrays.items():
      os.remove(os.path.join(str(folder), name))
      for number in range(1, total + 1):
        rows = np.array(shared_dumps.shard_rows(
            num_images, number, total, batch_size)) - starts[name]
        start, stop = rows.clip(0, len(array))
        np.save(os.path.join(str(folder), shared_dumps.shard_file_name(
            name, shared_dumps.DumpShard(number, total))), array[start:stop])


def publish(folder, labels_folder, protocol=3):
  """Turns a folder of dumps into its published form: pickles, labels apart."""
  for name in os.listdir(str(folder)):
    path = os.path.join(str(folder), name)
    array = np.load(path)
    os.remove(path)
    if 'top5_probabilities' in name:
      continue
    if 'non_onehot' in name:
      path = os.path.join(str(labels_folder), name)
    with open(path, 'wb') as stream:
      pickle.dump(array, stream, protocol)
