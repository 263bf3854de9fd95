"""The cascade's numbers straight from their definitions: slow, and exact.

The fast code is tested against this. Nothing here is shared with it: loops
over plain lists, and accuracies, costs and epsilons as `Fraction`, so that a
tie is a tie. Standard library only.

Images are list positions. A list `per classifier` has one list per classifier
and in it one value per image; `thresholds` has one value less than there are
classifiers, for the last one accepts everything.
"""

from fractions import Fraction
import itertools
import math
import struct

INFINITY = float('inf')  # the threshold under which nobody leaves
NUM_ANSWERS = {'top1': 1, 'top5': 5}  # classes that a metric looks at
Z_95_PERCENT = 1.959963984540054  # normal quantile of 0.975


def best_classes(row, metric):
  """The metric's classes of one softmax, the lower first among equals."""
  best_first = sorted(range(len(row)), key=lambda c: (-row[c], c))
  return best_first[:NUM_ANSWERS[metric]]


def predicted(row):
  """The top-1 class."""
  return best_classes(row, 'top1')[0]


def correct(row, label, metric):
  """Whether the label is the top-1 class, or among the top-5."""
  return label in best_classes(row, metric)


def confidence(row, metric):
  """The largest softmax, or the sum of the five largest, as a float32."""
  total = float(sum(Fraction(row[c]) for c in best_classes(row, metric)))
  return struct.unpack('f', struct.pack('f', total))[0]


def alpha(d, confidences, correct):
  """Accuracy over the images whose confidence is at least `d`."""
  hits = [hit for c, hit in zip(confidences, correct) if c >= d]
  return Fraction(sum(hits), len(hits))


def cst_threshold(confidences, correct, epsilon):
  """The smallest d whose alpha is within `epsilon` of the largest alpha.

  The images are those of one classifier, and d is any of their confidences.
  """
  alphas = {d: alpha(d, confidences, correct) for d in set(confidences)}
  lowest_alpha = max(alphas.values()) - epsilon
  return min(d for d in alphas if alphas[d] >= lowest_alpha)


def ccst_thresholds(confidences, correct, predicted, num_classes, epsilon):
  """The same within the images predicted as each class, in a list by class."""
  thresholds = []
  for k in range(num_classes):
    images = [i for i, p in enumerate(predicted) if p == k]
    thresholds.append(cst_threshold(
        [confidences[i] for i in images], [correct[i] for i in images],
        epsilon) if images else INFINITY)
  return thresholds


def published_rule(confidences, correct, epsilon):
  """The threshold as the published code finds it, image by image.

  Down the images by falling confidence, the accuracy so far; the threshold is
  the confidence of the last image at which it is within `epsilon` of its
  maximum. It is a rule only where no two confidences are equal.
  """
  assert len(set(confidences)) == len(confidences)
  order = sorted(range(len(confidences)), key=lambda i: -confidences[i])
  accuracies = []  # of the first 1, 2, ... images
  hits = 0
  for i in order:
    hits += correct[i]
    accuracies.append(Fraction(hits, len(accuracies) + 1))
  lowest_accuracy = max(accuracies) - epsilon
  last = max(place for place, accuracy in enumerate(accuracies)
             if accuracy >= lowest_accuracy)
  return confidences[order[last]]


def budgeted_thresholds(confidences, p):
  """Thresholds of budgeted batch classification (Huang et al. 2018).

  Classifier m is to take a share of the images proportional to q ** (m + 1).

  Args:
    confidences: per classifier.
    p: an int above 0; q = p / 20.
  """
  q = Fraction(p, 20)
  weights = [q ** (m + 1) for m in range(len(confidences))]
  remaining = list(range(len(confidences[0])))
  thresholds = []
  for of_classifier, weight in zip(confidences[:-1], weights):
    num_to_leave = math.floor(
        len(of_classifier) * weight / sum(weights))
    num_to_leave = min(num_to_leave, len(remaining))
    if num_to_leave == 0:
      threshold = INFINITY
    else:
      falling = sorted((of_classifier[i] for i in remaining), reverse=True)
      threshold = falling[num_to_leave - 1]
    thresholds.append(threshold)
    remaining = [i for i in remaining if of_classifier[i] < threshold]
  return thresholds


def exits(confidences, thresholds):
  """The classifier, 0, 1, ..., at which each image leaves."""
  num_images = len(confidences[0])
  return exits_per_class(confidences,
                         [[0] * num_images for _ in confidences],
                         [[threshold] for threshold in thresholds])


def exits_per_class(confidences, predicted, thresholds):
  """`exits` with a threshold for each class that a classifier may predict.

  Args:
    confidences: per classifier.
    predicted: per classifier.
    thresholds: for each classifier but the last a list by class.
  """
  last = len(confidences) - 1
  leaves_at = []
  for i in range(len(confidences[0])):
    m = 0
    while m < last and confidences[m][i] < thresholds[m][predicted[m][i]]:
      m += 1
    leaves_at.append(m)
  return leaves_at


def cascade(leaves_at, correct, exit_macs):
  """What a cascade achieves.

  Args:
    leaves_at: of `exits`.
    correct: per classifier.
    exit_macs: for each classifier the MACs from the image to its softmax.

  Returns:
    The accuracy and the MACs per image, each a `Fraction`, and the list of
    how many images leave at each classifier.
  """
  num_images = len(leaves_at)
  hits = sum(correct[m][i] for i, m in enumerate(leaves_at))
  macs = sum(exit_macs[m] for m in leaves_at)
  counts = [leaves_at.count(m) for m in range(len(correct))]
  return Fraction(hits, num_images), Fraction(macs, num_images), counts


def all_cascades(confidences, correct, exit_macs):
  """(accuracy, MACs per image) under each possible choice of thresholds.

  Every way of parting the images by a threshold is met by one that equals a
  confidence, or by infinity.
  """
  choices = [sorted(set(of_classifier)) + [INFINITY]
             for of_classifier in confidences[:-1]]
  return [cascade(exits(confidences, thresholds), correct, exit_macs)[:2]
          for thresholds in itertools.product(*choices)]


def best_accuracy_within(confidences, correct, exit_macs, budget):
  """The highest accuracy of any thresholds at up to `budget` MACs per image."""
  return max(accuracy for accuracy, macs_per_image in
             all_cascades(confidences, correct, exit_macs)
             if macs_per_image <= budget)


def wilson_interval(num_correct, n):
  """95 % score interval (Wilson 1927) of an accuracy: low, high."""
  p, z = num_correct / n, Z_95_PERCENT
  centre = (p + z ** 2 / (2 * n)) / (1 + z ** 2 / n)
  half_width = z / (1 + z ** 2 / n) * math.sqrt(
      p * (1 - p) / n + z ** 2 / (4 * n ** 2))
  return centre - half_width, centre + half_width


def difference_interval(num_both, num_lost, num_gained, n):
  """95 % interval of an accuracy drop on the same images: low, high.

  Newcombe 1998, method 10, of the table of both right, plain right, cascade
  right and neither.
  """
  num_neither = n - num_both - num_lost - num_gained
  plain, cascade = num_both + num_lost, num_both + num_gained
  product = plain * (n - plain) * cascade * (n - cascade)
  phi = 0
  if product:
    numerator = num_both * num_neither - num_lost * num_gained
    if numerator > 0:
      numerator = max(numerator - Fraction(n, 2), 0)
    phi = numerator / math.sqrt(product)
  plain_low, plain_high = wilson_interval(plain, n)
  cascade_low, cascade_high = wilson_interval(cascade, n)
  down = plain / n - plain_low, cascade_high - cascade / n
  up = plain_high - plain / n, cascade / n - cascade_low
  drop = (num_lost - num_gained) / n
  return (
      drop - math.sqrt(down[0]**2 - 2 * phi * down[0] * down[1] + down[1]**2),
      drop + math.sqrt(up[0]**2 - 2 * phi * up[0] * up[1] + up[1]**2))


def binomial_tail(most, n, probability):
  """P(Binomial(n, probability) <= most), a `Fraction`."""
  term = (1 - probability)**n  # of none; the next ones follow by their ratios
  total = Fraction(0)
  for k in range(most + 1):
    if probability == 1:
      term = Fraction(k == n)
    total += term
    if probability != 1:
      term *= Fraction(n - k, k + 1) * probability / (1 - probability)
  return total


def losses(leaves_at, correct):
  """Images that the last classifier has right and the cascade wrong."""
  return sum(correct[-1][i] and not correct[m][i]
             for i, m in enumerate(leaves_at))


def differences(leaves_at, predicted):
  """Images of which the cascade says another class than the last classifier."""
  return sum(predicted[-1][i] != predicted[m][i]
             for i, m in enumerate(leaves_at))


def risk_thresholds(sequence, confidences, count_lost, epsilon, delta):
  """The last thresholds before the first that fail the test of their losses.

  Args:
    sequence: thresholds, the dearest first.
    confidences: per classifier, of the calibrating images.
    count_lost: from `exits` to a number.
    epsilon, delta: fractions.
  """
  passed = [INFINITY] * (len(confidences) - 1)
  for thresholds in sequence:
    num_lost = count_lost(exits(confidences, thresholds))
    if binomial_tail(num_lost, len(confidences[0]), epsilon) > delta:
      break
    passed = thresholds
  return passed


def oracle(correct, exit_macs):
  """`cascade` where each image leaves at the first classifier that is right.

  Those that none has right leave at the first of all.
  """
  leaves_at = [next((m for m, hits in enumerate(correct) if hits[i]), 0)
               for i in range(len(correct[0]))]
  return cascade(leaves_at, correct, exit_macs)
