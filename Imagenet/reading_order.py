"""Where an evaluation pass stands after so many rows: what resuming reads.

The reading order interleaves the shards: so many places take turns, a shard
sits in each and gives one record per turn. The turn in which a shard is found
to be at its end gives nothing; the next shard sits down at the next turn of
that place.
"""


def shards_from_row(paths, counts, row, cycle_length):
  """What to interleave so that the rows from `row` on come, and no others.

  Args:
    paths: the shards, in name order.
    counts: records in each of them.
    row: of the whole pass, the first to come; 0 to the sum of `counts`.
    cycle_length: places; `imagenet_input.INTERLEAVED_SHARDS`.

  Returns:
    A list of (path, records to skip), for `interleave(lambda path, skip:
    TFRecordDataset(path).skip(skip), cycle_length, block_length=1)`. All
    records of a shard are to be skipped where its end has yet to be found.

  Raises:
    ValueError: there are fewer rows.
  """
  if not 0 <= row <= sum(counts):
    raise ValueError('row {:,} of {:,}'.format(row, sum(counts)))
  places = [None] * cycle_length  # Index of the shard that sits there.
  num_read = [0] * len(counts)
  next_shard, turn, rows_left = 0, 0, row
  while rows_left:
    if turn == 0:
      num_rounds = _full_rounds(places, counts, num_read,
                                next_shard < len(counts), rows_left)
      for shard in places:
        if shard is not None and num_rounds:
          num_read[shard] += num_rounds
          rows_left -= num_rounds
      if not rows_left:
        break
    if places[turn] is None and next_shard < len(counts):
      places[turn] = next_shard
      next_shard += 1
    shard = places[turn]
    if shard is not None:
      if num_read[shard] < counts[shard]:
        num_read[shard] += 1
        rows_left -= 1
      else:
        places[turn] = None
    turn = (turn + 1) % cycle_length
  # The place whose turn it is comes first. To a free place the next shard comes
  # at its turn of this round, before any shard that ends in it is replaced.
  remaining = []
  for shard in places[turn:] + places[:turn]:
    if shard is None and next_shard < len(counts):
      shard = next_shard
      next_shard += 1
    if shard is not None:
      remaining.append(shard)
  remaining.extend(range(next_shard, len(counts)))
  return [(paths[shard], num_read[shard]) for shard in remaining]


def _full_rounds(places, counts, num_read, has_waiting, rows_left):
  """Rounds that can be counted at once: every place that is taken gives a
  record in each, and nobody comes or goes."""
  taken = [shard for shard in places if shard is not None]
  if not taken or (has_waiting and len(taken) < len(places)):
    return 0
  return min([counts[shard] - num_read[shard] for shard in taken] +
             [rows_left // len(taken)])
