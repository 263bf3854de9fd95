"""How numbers are written into CSV files."""

import csv


def write_csv(path, header, rows):
  """Writes a CSV file of `\\n`-ended lines.

  A float is written as the shortest text that reads back as the same float,
  NaN as an empty field.

  Args:
    path: the file.
    header: names of the columns.
    rows: sequences of str, int or float, not of NumPy's types.
  """
  with open(path, 'w', newline='') as stream:
    writer = csv.writer(stream, lineterminator='\n')
    writer.writerow(header)
    for row in rows:
      # Only NaN differs from itself; csv writes floats by repr.
      writer.writerow(['' if value != value else value for value in row])
