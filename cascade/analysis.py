"""From dumps to the points of the cascade: steps 5 and 6 of the README.

Thresholds are fitted on one split and judged on the other, as in the paper, or
on two halves of the validation split.
"""

import collections
from concurrent import futures

import numpy as np

from cascade import evaluation, pareto, thresholds
from cascade.answers import cascade_answers, unfilled_rows
from user_error import UserError

# The paper's classifier-specific thresholds come first.
METHODS = ('cst', 'global', 'ccst', 'budgeted', 'pareto')

# Methods whose setting is epsilon.
EPSILON_METHODS = ('cst', 'ccst')

# Of the permutation that halves the validation split.
HALVES_SEED = 0

# Which images fit thresholds and which judge them: of each the split, the rows
# (int [chosen], or a slice that is all of them) and their number.
Division = collections.namedtuple(
    'Division', 'fit_split fit_rows num_fit judge_split judge_rows num_judged')

# Of one metric.
#   points: ordered dict from method to its list of `evaluation.Point`.
#   ccst_thresholds: float64 [E, T, classes], or None.
#   classifier_accuracies: fractions, each classifier on all judging images.
MetricResults = collections.namedtuple(
    'MetricResults', 'points ccst_thresholds classifier_accuracies')


def divide(answers, fit_on, count_unfilled_rows):
  """Chooses the images that fit and those that judge.

  Args:
    answers: a dict from split to a list of `answers.ClassifierAnswers`.
    fit_on: 'train', the paper's way: the validation split judges; or
      'validation': half of it fits and the other half judges.
    count_unfilled_rows: whether rows that were never filled take part.

  Returns:
    `Division`.

  Raises:
    UserError: there are too few images.
  """
  rows, num_images = {}, {}
  for split, classifiers in answers.items():
    is_unfilled = unfilled_rows(classifiers)
    if count_unfilled_rows or not is_unfilled.any():
      rows[split], num_images[split] = slice(None), len(is_unfilled)
    else:
      rows[split] = np.flatnonzero(~is_unfilled)
      num_images[split] = len(rows[split])
    if num_images[split] < (2 if fit_on == split == 'validation' else 1):
      raise UserError(
          '{}: {:,} rows were filled by every classifier, which is not enough '
          'for thresholds; dump the classifiers again (step 3)'.format(
              split, num_images[split]))
  if fit_on == 'train':
    return Division('train', rows['train'], num_images['train'],
                    'validation', rows['validation'], num_images['validation'])
  chosen = np.arange(len(unfilled_rows(answers['validation'])))[rows['validation']]
  order = np.random.RandomState(HALVES_SEED).permutation(len(chosen))
  first, second = np.split(order, [len(chosen) // 2])
  return Division('validation', chosen[np.sort(first)], len(first),
                  'validation', chosen[np.sort(second)], len(second))


def analyse(answers, division, metrics, methods, epsilon_percents, num_classes,
            cost):
  """Fits and judges the thresholds of all methods.

  Args:
    answers: a dict from split to a list of `answers.ClassifierAnswers`, the
      classifiers in the cascade's order.
    division: `Division`.
    metrics: which of `answers.METRICS`.
    methods: which of `METHODS`.
    epsilon_percents: accuracy that may be given up, in percent.
    num_classes: outputs of each classifier.
    cost: `macs.NetworkCost`.

  Returns:
    An ordered dict from metric to `MetricResults`.
  """
  def analyse_metric(metric):
    return _analyse_metric(answers, division, metric, methods,
                           epsilon_percents, num_classes, cost)

  # Sorting leaves NumPy's lock to the other metric.
  with futures.ThreadPoolExecutor(len(metrics)) as pool:
    return collections.OrderedDict(
        zip(metrics, pool.map(analyse_metric, metrics)))


def _analyse_metric(answers, division, metric, methods, epsilon_percents,
                    num_classes, cost):
  fit = cascade_answers(
      answers[division.fit_split], metric, division.fit_rows)
  judge = cascade_answers(
      answers[division.judge_split], metric, division.judge_rows)
  fitted = _fit_methods(fit, methods, epsilon_percents, num_classes, cost)
  points = collections.OrderedDict(
      (method, evaluation.points(metric, method, *fitted[method],
                                 answers=judge, cost=cost))
      for method in METHODS if method in methods)
  return MetricResults(
      points, fitted['ccst'][1] if 'ccst' in fitted else None,
      [float(correct.mean()) for correct in judge.correct])


def _fit_methods(fit, methods, epsilon_percents, num_classes, cost):
  """A dict from method to `(settings, thresholds)`."""
  epsilon_fractions = np.array(epsilon_percents) / 100.
  fitted = {}
  if 'ccst' in methods:
    fitted['ccst'] = epsilon_percents, thresholds.ccst(
        fit, epsilon_fractions, num_classes)
  if {'cst', 'pareto'} & set(methods):
    fitted['cst'] = epsilon_percents, thresholds.cst(fit, epsilon_fractions)
  if {'global', 'pareto'} & set(methods):
    common = thresholds.common(len(fit.confidence))
    fitted['global'] = common[:, 0], common
  if {'budgeted', 'pareto'} & set(methods):
    fitted['budgeted'] = thresholds.budget_ratios(), thresholds.budgeted(fit)
  if 'pareto' in methods:
    fitted['pareto'] = pareto.fit(fit, cost.exit_macs, np.concatenate([
        fitted[method][1] for method in ('cst', 'global', 'budgeted')]))
  return fitted
