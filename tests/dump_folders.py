"""Makes small dump folders for tests, in this project's and in published form.
"""

import os
import pickle

import numpy as np

import softmax_dump


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
  """Writes dumps as step 3 does.

  Args:
    folder: an existing folder.
    split: 'validation' or 'train'.
    labels: int [images].
    probabilities: a dict from classifier to float32 [images, classes].
  """
  for k, softmaxes in probabilities.items():
    top5 = best_classes(softmaxes)
    with softmax_dump.SplitDump(str(folder), split, len(labels),
                                softmaxes.shape[1], [k]) as dump:
      dump.append(labels, {
          k: (softmaxes, top5, np.take_along_axis(softmaxes, top5, axis=1))})


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
