#!/bin/bash
# Packs the ImageNet archives in $IMAGENET_HOME into TFRecords:
#
#   export IMAGENET_HOME=/folder/of/the/archives
#   cp Imagenet_tools/* $IMAGENET_HOME; cd $IMAGENET_HOME
#   ./preprocess_imagenet.sh [options of build_imagenet_tfrecords.py]
#
# In $IMAGENET_HOME it reads
#   ILSVRC2012_img_train.tar   a tar of one tar per synset; or what was unpacked
#                              from it, in the folder ILSVRC2012_img_train or
#                              train
#   ILSVRC2012_img_val.tar     a flat tar; or the folder ILSVRC2012_img_val,
#                              validation or val
#   synset_labels.txt          the synset of each validation image, in file
#                              order; where it is absent,
#                              imagenet_2012_validation_synset_labels.txt
#   synset_names.txt           what the synsets are called; where it is absent,
#                              imagenet_class_names.txt
# and writes
#   tf_records/train/          train-00000-of-01024 and so on
#   tf_records/validation/     validation-00000-of-00128 and so on
#   tf_records/dataset.json    last: where it is, the records are complete
#   {train,validation}_non_onehot.npy     labels in reading order
# It takes about as much space as the archives, and deletes nothing. Run it
# again after any stop, and it goes on.
#
# Environment: TRAIN_SHARDS (1024), VALIDATION_SHARDS (128), WORKERS (processes;
# the cores), PYTHON (python3), which needs NumPy, Pillow and google-crc32c.

set -euo pipefail

fail() {
  echo "preprocess_imagenet.sh: error: ${1//$'\n'/ }" >&2  # One line.
  exit 1
}

for argument in "$@"; do
  if [[ "$argument" == --help || "$argument" == -h ]]; then
    # The comment at the top of this file.
    sed -n '2,/^$/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    exit 0
  fi
done

[[ -n "${IMAGENET_HOME:-}" ]] || fail \
  'IMAGENET_HOME is not set; export it as the folder of the two archives'

first_there() {  # Prints the first of these names that is in $IMAGENET_HOME.
  local name
  for name in "$@"; do
    if [[ -e "$IMAGENET_HOME/$name" ]]; then
      echo "$IMAGENET_HOME/$name"
      return
    fi
  done
  fail "$IMAGENET_HOME/$1: no such file; put it there first"
}

train_archive="$(first_there \
  ILSVRC2012_img_train.tar ILSVRC2012_img_train train)"
validation_archive="$(first_there \
  ILSVRC2012_img_val.tar ILSVRC2012_img_val validation val)"
labels="$(first_there synset_labels.txt \
  imagenet_2012_validation_synset_labels.txt)"
names="$IMAGENET_HOME/synset_names.txt"
[[ -e "$names" ]] || names=

python="${PYTHON:-python3}"
tools="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
builder="$tools/build_imagenet_tfrecords.py"
[[ -f "$builder" ]] || fail \
  "$builder: no such file; copy Imagenet_tools/* there"
"$python" -c 'import numpy, PIL, google_crc32c' 2>/dev/null || fail \
  "$python: no Python with NumPy, Pillow and google-crc32c; install \
requirements.txt or set PYTHON"

exec "$python" "$builder" \
  --train_archive "$train_archive" \
  --validation_archive "$validation_archive" \
  --validation_labels "$labels" \
  ${names:+--class_names "$names"} \
  --output_dir "$IMAGENET_HOME/tf_records" \
  --labels_dir "$IMAGENET_HOME" \
  --train_shards "${TRAIN_SHARDS:-1024}" \
  --validation_shards "${VALIDATION_SHARDS:-128}" \
  ${WORKERS:+--workers "$WORKERS"} \
  "$@"
